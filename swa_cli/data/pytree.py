"""How images lie in memory: channels last, as their rows can then be copied whole and convolutions are fastest.

Shapes: B batch, C channels, H W pixels.

Inputs and targets of a sample: a tensor, or a tuple or dict of tensors.

What is done to one tensor is done to each: stacked to a batch, indexed, moved. Shapes: B batch, N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

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


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same kind of value with each tensor changed."""
    if isinstance(value, Mapping):
        return {str(key): change(part) for key, part in value.items()}
    return tuple(map(change, value)) if isinstance(value, tuple) else change(value)


def tensors(value: Any) -> dict[Any, Tensor]:
    """Each tensor by its name or place; a tensor alone has the name None."""
    if isinstance(value, Mapping):
        return dict(value)
    return dict(enumerate(value)) if isinstance(value, tuple) else {None: value}


def rows_of(batch: Any, rows: Tensor) -> Any:
    """The samples at some rows; images that lie channels last are copied whole, and lie so again."""

    def taken(values: Tensor) -> Tensor:
        if lies_channels_last(values):
            return values.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
        return values.index_select(0, rows)

    return mapped(batch, taken)


def span_of(batch: Any, span: slice) -> Any:
    """The samples in a span, not copied."""
    return mapped(batch, lambda values: values[span])


def stacked(samples: Sequence[Any]) -> Any:
    """Values of B samples as one batch."""
    return _together(samples, torch.stack)


def joined(batches: Sequence[Any]) -> Any:
    """Batches as one."""
    return _together(batches, torch.cat)


def is_image(sample: Any) -> bool:
    """Whether an input is a tensor (C, H, W) of pixels, which can be normalised and augmented."""
    is_pixels = isinstance(sample, Tensor) and (sample.dtype == torch.uint8 or sample.is_floating_point())
    return is_pixels and sample.dim() == 3


def kind_of(sample: Any) -> str:
    """Types and shapes in words: `torch.uint8 (3, 8, 8)`, or those of each part after its name."""
    kinds = {key: f"{part.dtype} {tuple(part.shape)}" for key, part in tensors(sample).items()}
    return kinds[None] if None in kinds else ", ".join(f"{key}: {kind}" for key, kind in kinds.items())


def num_samples(batch: Any) -> int:
    """B."""
    return len(next(iter(tensors(batch).values())))


def _together(values: Sequence[Any], join: Callable[[list[Tensor]], Tensor]) -> Any:
    first, parts = values[0], [tensors(value) for value in values]
    together = {key: join([part[key] for part in parts]) for key in parts[0]}
    if isinstance(first, Mapping):
        return together
    return tuple(together.values()) if isinstance(first, tuple) else together[None]
