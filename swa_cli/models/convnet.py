"""ConvNet, a small network for images of 8 x 8 to 28 x 28 pixels.

Five 3x3 convolutions with BatchNorm, two of them followed by max pooling, then global average pooling: one network
fits every size and trains in minutes on a laptop.
Letters: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import torch
from torch import nn


class ConvNet(nn.Module):
    """Map images (B, C, H, W) of at least 4 x 4 pixels to logits (B, K).

    Args:
        width: Channels of the first convolution; the last has four times as many.
        dropout: Probability of dropping a feature before the last layer.
    """

    def __init__(self, *, width: int = 32, dropout: float = 0.0, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_conv(in_channels, width),
            nn.MaxPool2d(kernel_size=2),
            *_conv(width, 2 * width),
            *_conv(2 * width, 2 * width),
            nn.MaxPool2d(kernel_size=2),
            *_conv(2 * width, 4 * width),
            *_conv(4 * width, 4 * width),
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(4 * width, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        features = self.features(images)  # (B, 4 width, H/4, W/4)
        logits: torch.Tensor = self.classifier(self.dropout(features.mean((2, 3))))
        return logits


def _conv(num_in: int, num_out: int) -> tuple[nn.Module, ...]:
    """Return a convolution without bias (the BatchNorm would cancel it), BatchNorm and ReLU."""
    return (
        nn.Conv2d(num_in, num_out, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(num_out),
        nn.ReLU(inplace=True),
    )
