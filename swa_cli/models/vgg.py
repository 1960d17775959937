"""VGG16 and VGG19 for small images, with and without BatchNorm.

The networks of Simonyan & Zisserman (2015, arXiv:1409.1556) as the SWA paper trains them on CIFAR: five
stages of 3x3 convolutions, each halved by max pooling, then a head of three linear layers with dropout.
Parameter names are those of timgaripov/swa, so its checkpoints load.
Letters: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import torch
from torch import nn

from swa_cli.errors import UserError

STAGE_WIDTHS = (64, 128, 256, 512, 512)
STAGE_CONVS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
MIN_SIZE = 2 ** len(STAGE_WIDTHS)  # five halvings must leave one pixel


class VGG(nn.Module):
    """Map images (B, C, H, W), at least 32 x 32, to logits (B, K).

    Args:
        depth: 16 or 19, the layers with weights of the original network.
        batch_norm: Whether a BatchNorm follows each convolution.
    """

    def __init__(self, *, depth: int, batch_norm: bool, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.features = _features(depth=depth, batch_norm=batch_norm, in_channels=in_channels)
        self.classifier = nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(512, 512),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(512, 512),
            nn.ReLU(inplace=True),
            nn.Linear(512, num_classes),
        )
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                assert module.bias is not None
                # PyTorch's default shrinks activations layer by layer, which prevents training without BatchNorm.
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits.

        Raises:
            UserError: The images are too small for five halvings.
        """
        height, width = images.shape[-2:]
        if min(height, width) < MIN_SIZE:
            raise UserError(
                f"a VGG needs images of at least {MIN_SIZE} x {MIN_SIZE} pixels, got {height} x {width}",
                hint="use another network (convnet is made for small images) or larger images",
            )
        features = self.features(images)  # (B, 512, H/32, W/32)
        logits: torch.Tensor = self.classifier(features.mean((2, 3)))  # one pixel where images are 32 x 32
        return logits


def _features(*, depth: int, batch_norm: bool, in_channels: int) -> nn.Sequential:
    """Return the convolutions; their indices are part of the parameter names."""
    layers: list[nn.Module] = []
    for width, num_convs in zip(STAGE_WIDTHS, STAGE_CONVS[depth], strict=True):
        for _ in range(num_convs):
            layers.append(nn.Conv2d(in_channels, width, kernel_size=3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU(inplace=True))
            in_channels = width
        layers.append(nn.MaxPool2d(kernel_size=2))
    return nn.Sequential(*layers)
