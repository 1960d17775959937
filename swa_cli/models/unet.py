"""U-Net for semantic segmentation.

Ronneberger, Fischer & Brox (2015, arXiv:1505.04597). The encoder halves the image `depth` times and doubles the
channels; each level of the decoder concatenates its upsampled input with the features of the encoder at that size.
Unlike in the paper, convolutions are padded and a halving rounds up, so an upsampled level has at most one row and one
column too many, which are cut off: any image size goes in, and the same size comes out.
Letters: B batch, C channels, H W pixels, K classes, L depth, w width.
"""

from __future__ import annotations

import torch
from torch import nn


class UNet(nn.Module):
    """Map images (B, C, H, W) to logits of each pixel (B, K, H, W).

    It has 9Cw + w^2 (9 + 89 (4^L - 1) / 3) + w (13 * 2^L - 9) + K (w + 1) parameters with BatchNorm: by default
    482,466 for one channel and two classes, 31,036,546 at the paper's depth and width.

    Args:
        depth: How often the image is halved, L; 4 in the paper.
        width: Channels of the first level, w; the lowest has 2^L as many. 64 in the paper.
        batchnorm: Whether a BatchNorm follows each 3x3 convolution; the paper has none.
    """

    def __init__(
        self, *, depth: int = 3, width: int = 16, batchnorm: bool = True, num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            _two_convs(num_in, num_out, batchnorm=batchnorm)
            for num_in, num_out in zip([in_channels, *widths], widths, strict=False)
        )
        self.pool = nn.MaxPool2d(kernel_size=2, ceil_mode=True)
        self.widen = nn.ModuleList(
            nn.ConvTranspose2d(2 * num_out, num_out, kernel_size=2, stride=2) for num_out in reversed(widths[:-1])
        )
        self.up = nn.ModuleList(
            _two_convs(2 * num_out, num_out, batchnorm=batchnorm) for num_out in reversed(widths[:-1])
        )
        self.classifier = nn.Conv2d(width, num_classes, kernel_size=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                # The paper's normal(0, sqrt(2 / fan in)). An up-convolution, which no ReLU follows, gets 1 / fan in:
                # torch counts its 2 x 2 weights, but each output pixel uses one of them.
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        features = self.down[0](images)
        skips = []
        for convs in self.down[1:]:
            skips.append(features)
            features = convs(self.pool(features))
        for widen, convs in zip(self.widen, self.up, strict=True):
            skip = skips.pop()
            doubled = widen(features)[..., : skip.shape[2], : skip.shape[3]]
            features = convs(torch.cat((skip, doubled), dim=1))
        logits: torch.Tensor = self.classifier(features)
        return logits


def _two_convs(num_in: int, num_out: int, *, batchnorm: bool) -> nn.Sequential:
    """Return two 3x3 convolutions with ReLU; a BatchNorm would cancel a bias before it."""
    layers: list[nn.Module] = []
    for channels in (num_in, num_out):
        layers.append(nn.Conv2d(channels, num_out, kernel_size=3, padding=1, bias=not batchnorm))
        if batchnorm:
            layers.append(nn.BatchNorm2d(num_out))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
