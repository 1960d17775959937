"""Wide residual networks of any depth and width.

Zagoruyko & Komodakis (2016, arXiv:1605.07146): few pre-activation blocks with many channels. As in the SWA
paper's code, convolutions have biases and PyTorch's default initialisation (that code defines another one and
never calls it). Parameter names are those of timgaripov/swa, so its checkpoints load.
Letters: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from swa_cli.errors import UserError


class WideResNet(nn.Module):
    """Map images (B, C, H, W) of any size to logits (B, K).

    Args:
        depth: Layers with weights, 6n+4: 10, 16, 22, 28, 40.
        width: How many times wider than a plain residual network the stages are.
        dropout: Probability of dropping an activation between the convolutions of a block.

    Raises:
        UserError: No network of this family has that depth.
    """

    def __init__(self, *, depth: int, width: int, dropout: float = 0.0, num_classes: int, in_channels: int) -> None:
        super().__init__()
        num_blocks, rest = divmod(depth - 4, 6)
        if num_blocks < 1 or rest:
            raise UserError(
                f"model.args.depth: there is no WideResNet of depth {depth}",
                hint="the depth is 6n+4: 10, 16, 22, 28, 40",
            )
        stage = partial(_stage, num_blocks=num_blocks, dropout=dropout)
        self.conv1 = nn.Conv2d(in_channels, 16, kernel_size=3, padding=1)
        self.layer1 = stage(16, 16 * width, stride=1)
        self.layer2 = stage(16 * width, 32 * width, stride=2)
        self.layer3 = stage(32 * width, 64 * width, stride=2)
        # The paper's code has .9 here: the running statistics are almost those of the latest batch.
        self.bn1 = nn.BatchNorm2d(64 * width, momentum=0.9)
        self.linear = nn.Linear(64 * width, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        x = self.conv1(images)
        x = self.layer1(x)  # (B, 16 width, H, W)
        x = self.layer2(x)  # (B, 32 width, H/2, W/2)
        x = self.layer3(x)  # (B, 64 width, H/4, W/4)
        x = F.relu(self.bn1(x), inplace=True)
        logits: torch.Tensor = self.linear(x.mean((2, 3)))
        return logits


class WideBlock(nn.Module):
    """Two 3x3 convolutions with dropout between them, beside a shortcut."""

    def __init__(self, num_in: int, num_out: int, *, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(num_in)
        self.conv1 = nn.Conv2d(num_in, num_out, kernel_size=3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.bn2 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, kernel_size=3, stride=stride, padding=1)
        self.shortcut = nn.Sequential()  # the identity where shapes allow it
        if stride != 1 or num_in != num_out:
            self.shortcut.append(nn.Conv2d(num_in, num_out, kernel_size=1, stride=stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input plus what the block adds to it."""
        out = self.dropout(self.conv1(F.relu(self.bn1(x), inplace=True)))
        out = self.conv2(F.relu(self.bn2(out), inplace=True))
        total: torch.Tensor = out + self.shortcut(x)
        return total


def _stage(num_in: int, num_out: int, *, num_blocks: int, stride: int, dropout: float) -> nn.Sequential:
    """Return blocks of one width; the first takes `num_in` channels and has the stride."""
    blocks = [WideBlock(num_in, num_out, stride=stride, dropout=dropout)]
    blocks += [WideBlock(num_out, num_out, stride=1, dropout=dropout) for _ in range(num_blocks - 1)]
    return nn.Sequential(*blocks)
