"""How images lie in memory: channels last, as their rows can then be copied whole and convolutions are fastest.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def lies_channels_last(images: Tensor) -> bool:
    """Whether (B, C, H, W) lie in memory as (B, H, W, C), and not as (B, C, H, W) as well."""
    return images.dim() == 4 and images.shape[1] > 1 and images.is_contiguous(memory_format=torch.channels_last)


def pixels_of(images: Tensor) -> Tensor:
    """(B, C, H, W) as (B, H, W, C) in this order: a view of images that lie so, else a copy."""
    return images.permute(0, 2, 3, 1).contiguous()


def images_of(pixels: Tensor) -> Tensor:
    """(B, H, W, C) as (B, C, H, W), a view."""
    if pixels.shape[3] == 1:  # both orders are one, and convolutions choose their way by the strides
        return pixels[..., 0][:, None]
    return pixels.permute(0, 3, 1, 2)


def moved(values: Tensor, device: torch.device) -> Tensor:
    """To the device; through pinned memory to a GPU, so that the copy overlaps with its work."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
