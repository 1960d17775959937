"""Pre-activation residual networks of any depth.

He et al. (2016, arXiv:1603.05027): BatchNorm and ReLU stand before each convolution, so the residual path is
a plain sum from the first layer to the last. Three stages of 16, 32 and 64 channels; bottleneck blocks from
depth 44 on, basic ones below. Parameter names are those of timgaripov/swa, so its checkpoints load.
Letters: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from swa_cli.errors import UserError

MIN_BOTTLENECK_DEPTH = 44


class PreResNet(nn.Module):
    """Map images (B, C, H, W) of any size to logits (B, K).

    Args:
        depth: Layers with weights: 6n+2 below 44 (20, 26, 32, 38), 9n+2 from 44 on (47, 56, 110, 164).

    Raises:
        UserError: No network of this family has that depth.
    """

    def __init__(self, *, depth: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        block, num_blocks = _blocks(depth)
        self.conv1 = nn.Conv2d(in_channels, 16, kernel_size=3, padding=1, bias=False)
        self.layer1 = _stage(block, 16, width=16, num_blocks=num_blocks, stride=1)
        self.layer2 = _stage(block, 16 * block.expansion, width=32, num_blocks=num_blocks, stride=2)
        self.layer3 = _stage(block, 32 * block.expansion, width=64, num_blocks=num_blocks, stride=2)
        self.bn = nn.BatchNorm2d(64 * block.expansion)
        self.fc = nn.Linear(64 * block.expansion, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        x = self.conv1(images)
        x = self.layer1(x)  # (B, 16e, H, W), e the expansion of a block
        x = self.layer2(x)  # (B, 32e, H/2, W/2)
        x = self.layer3(x)  # (B, 64e, H/4, W/4)
        x = F.relu(self.bn(x), inplace=True)
        logits: torch.Tensor = self.fc(x.mean((2, 3)))
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, num_in: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(num_in)
        self.conv1 = nn.Conv2d(num_in, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.downsample = _shortcut(num_in, width * self.expansion, stride=stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input plus what the block adds to it."""
        out = self.conv1(F.relu(self.bn1(x), inplace=True))
        out = self.conv2(F.relu(self.bn2(out), inplace=True))
        total: torch.Tensor = out + self.downsample(x)
        return total


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 convolutions that narrow and widen, beside a shortcut."""

    expansion = 4

    def __init__(self, num_in: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(num_in)
        self.conv1 = nn.Conv2d(num_in, width, kernel_size=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, kernel_size=1, bias=False)
        self.downsample = _shortcut(num_in, width * self.expansion, stride=stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input plus what the block adds to it."""
        out = self.conv1(F.relu(self.bn1(x), inplace=True))
        out = self.conv2(F.relu(self.bn2(out), inplace=True))
        out = self.conv3(F.relu(self.bn3(out), inplace=True))
        total: torch.Tensor = out + self.downsample(x)
        return total


Block = type[BasicBlock] | type[Bottleneck]


def _blocks(depth: int) -> tuple[Block, int]:
    """Return the kind of block and how many of them a stage has."""
    block, layers = (Bottleneck, 9) if depth >= MIN_BOTTLENECK_DEPTH else (BasicBlock, 6)
    num_blocks, rest = divmod(depth - 2, layers)
    if num_blocks < 1 or rest:
        raise UserError(
            f"model.args.depth: there is no PreResNet of depth {depth}",
            hint="below 44 the depth is 6n+2 (20, 26, 32, 38), from 44 on 9n+2 (47, 56, 110, 164)",
        )
    return block, num_blocks


def _stage(block: Block, num_in: int, *, width: int, num_blocks: int, stride: int) -> nn.Sequential:
    """Return blocks of one width; the first takes `num_in` channels and has the stride."""
    blocks = [block(num_in, width, stride=stride)]
    blocks += [block(width * block.expansion, width, stride=1) for _ in range(num_blocks - 1)]
    return nn.Sequential(*blocks)


def _shortcut(num_in: int, num_out: int, *, stride: int) -> nn.Sequential:
    """Return the identity (an empty sequence) where shapes allow it, else a 1x1 convolution."""
    if stride == 1 and num_in == num_out:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(num_in, num_out, kernel_size=1, stride=stride, bias=False))
