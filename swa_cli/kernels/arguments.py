"""Which calls of a network the kernels take: what is alike for all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from swa_cli.kernels.library import SCALARS


def are_images(images: Tensor) -> bool:
    """Whether they are (B, C, H, W) with channels last, on the CPU, of a dtype of SCALARS, and there are any."""
    return (
        images.dim() == 4
        and images.device.type == "cpu"
        and images.dtype in SCALARS
        and images.is_contiguous(memory_format=torch.channels_last)
        and images.numel() > 0
    )


def is_plain(tensor: Tensor) -> bool:
    """Whether it is on the CPU, and no tensor of another kind (in parts, wrapped)."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu"


def pair(size: Any) -> Any:
    """A size, in rows and in columns; words of torch's ("same") as they are."""
    return tuple(size) if isinstance(size, (tuple, list)) else (size, size) if isinstance(size, int) else size
