"""SpeedNet, a network for training in few epochs.

The network of airbench (Jordan 2024, arXiv:2404.00498): a frozen first layer that whitens patches and is computed from
the data, three groups of convolutions that are initialised as the identity, BatchNorm without scale, whose biases
tolerate a learning rate many times that of the weights, and logits that are scaled down.
Letters: B batch, N images, C channels, H W pixels, K classes, P values of a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PATCH = 2  # side of a patch in pixels
EPSILON = 5e-4  # added to the variances: patches have directions of hardly any variance
LOGIT_SCALE = 1 / 9
BATCHNORM_MOMENTUM = 0.4  # large, because training has few steps


class SpeedNet(nn.Module):
    """Map images (B, C, H, W) of at least 9 x 9 pixels to logits (B, K).

    The first convolution is frozen. Its filters are random until `initialize_from` makes them whiten the data.

    Args:
        width: Channels of the first group; the other two have four times as many.
    """

    def __init__(self, *, width: int = 64, num_classes: int, in_channels: int) -> None:
        super().__init__()
        num_patches = 2 * in_channels * PATCH**2  # each direction of a patch and its opposite
        self.whiten = nn.Conv2d(in_channels, num_patches, kernel_size=PATCH)
        self.whiten.weight.requires_grad = False
        self.group1 = _Group(num_patches, width)
        self.group2 = _Group(width, 4 * width)
        self.group3 = _Group(4 * width, 4 * width)
        self.head = nn.Linear(4 * width, num_classes, bias=False)

    def initialize_from(self, images: Tensor) -> None:
        """Make the first layer whiten patches: eigenvectors of their covariance over the root of the eigenvalues.

        Args:
            images: (N, C, H, W), normalised as for training; a few thousand are enough.
        """
        patches = F.unfold(images.float(), PATCH).transpose(1, 2).flatten(0, 1).double()  # (N patches, P)
        # The second moment, as in the paper's code: the mean of normalised images is about 0.
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (directions / (variances + EPSILON).sqrt()).T.flip(0)  # (P, P), the largest variance first
        shape = (-1, *self.whiten.weight.shape[1:])
        with torch.no_grad():
            self.whiten.weight.copy_(torch.cat([filters, -filters]).reshape(shape))
            assert self.whiten.bias is not None
            self.whiten.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        x = F.gelu(self.whiten(images))
        x = self.group3(self.group2(self.group1(x)))  # (B, 4 width, H/8, W/8)
        x = x.flatten(2).max(2).values  # of adaptive_max_pool2d CUDA has no deterministic gradient
        logits: Tensor = self.head(x) * LOGIT_SCALE
        return logits


class _Group(nn.Module):
    """Two convolutions, each with BatchNorm and GELU; max pooling after the first halves the side."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.conv1 = _conv(num_in, num_out)
        self.norm1 = _norm(num_out)
        self.conv2 = _conv(num_out, num_out)
        self.norm2 = _norm(num_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, num_out, H/2, W/2)."""
        x = F.max_pool2d(self.conv1(x), 2)
        x = F.gelu(self.norm1(x))
        return F.gelu(self.norm2(self.conv2(x)))


def _conv(num_in: int, num_out: int) -> nn.Conv2d:
    """Return a convolution whose first filters are the identity; the others are random."""
    conv = nn.Conv2d(num_in, num_out, kernel_size=3, padding=1, bias=False)
    nn.init.dirac_(conv.weight[:num_in])
    return conv


def _norm(num_channels: int) -> nn.BatchNorm2d:
    """Return a BatchNorm whose scale stays 1."""
    norm = nn.BatchNorm2d(num_channels, momentum=BATCHNORM_MOMENTUM)
    norm.weight.requires_grad = False
    return norm
