"""Batches as trees of tensors, and their memory format.

An input or target of a sample is a tensor, or a tuple or dict of tensors; what is done to one tensor is done to each.
`torch.utils._pytree` does not fit: it is private, and would take a list of numbers apart.
Images lie channels last: their rows can then be copied whole, and convolutions are fastest.
Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

# --- trees


def map_tensors(tree: Any, function: Callable[[Any], Tensor]) -> Any:
    """Apply a function to each part of a tree; dict keys become text."""
    if isinstance(tree, Mapping):
        return {str(key): function(part) for key, part in tree.items()}
    return tuple(map(function, tree)) if isinstance(tree, tuple) else function(tree)


def named_tensors(tree: Any) -> dict[Any, Tensor]:
    """Return each tensor by its key or index; a single tensor has the key None."""
    if isinstance(tree, Mapping):
        return dict(tree)
    return dict(enumerate(tree)) if isinstance(tree, tuple) else {None: tree}


def batch_size(batch: Any) -> int:
    """Return B."""
    return len(next(iter(named_tensors(batch).values())))


def first_sample(batch: Any) -> Any:
    """Return the first sample of a batch, without its batch dimension."""
    return map_tensors(batch, lambda values: values[0])


def slice_batch(batch: Any, span: slice) -> Any:
    """Return a view of the samples in a span."""
    return map_tensors(batch, lambda values: values[span])


def select_rows(batch: Any, rows: Tensor) -> Any:
    """Copy the samples at some rows; channels-last images are copied row by row and stay channels last."""

    def select(values: Tensor) -> Tensor:
        if is_channels_last(values):
            return values.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
        return values.index_select(0, rows)

    return map_tensors(batch, select)


def stack(samples: Sequence[Any]) -> Any:
    """Stack B samples into one batch."""
    return _join(samples, torch.stack)


def concatenate(batches: Sequence[Any]) -> Any:
    """Concatenate batches into one."""
    return _join(batches, torch.cat)


def _join(trees: Sequence[Any], join: Callable[[list[Tensor]], Tensor]) -> Any:
    first, parts = trees[0], [named_tensors(tree) for tree in trees]
    joined = {key: join([part[key] for part in parts]) for key in parts[0]}
    if isinstance(first, Mapping):
        return joined
    return tuple(joined.values()) if isinstance(first, tuple) else joined[None]


def is_image(sample: Any) -> bool:
    """Return whether an input is a tensor (C, H, W) of pixels, which can be normalized and augmented."""
    is_pixels = isinstance(sample, Tensor) and (sample.dtype == torch.uint8 or sample.is_floating_point())
    return is_pixels and sample.dim() == 3


def describe(sample: Any) -> str:
    """Describe types and shapes: `torch.uint8 (3, 8, 8)`, or `key: type shape` of each part."""
    kinds = {key: f"{part.dtype} {tuple(part.shape)}" for key, part in named_tensors(sample).items()}
    return kinds[None] if None in kinds else ", ".join(f"{key}: {kind}" for key, kind in kinds.items())


# --- memory format and device


def is_channels_last(images: Tensor) -> bool:
    """Return whether (B, C, H, W) lie in memory as (B, H, W, C) but not as (B, C, H, W)."""
    return images.dim() == 4 and images.shape[1] > 1 and images.is_contiguous(memory_format=torch.channels_last)


def to_nhwc(images: Tensor) -> Tensor:
    """Return (B, C, H, W) as contiguous (B, H, W, C): a view of channels-last images, else a copy."""
    return images.permute(0, 2, 3, 1).contiguous()


def to_nchw(pixels: Tensor) -> Tensor:
    """Return (B, H, W, C) as a view (B, C, H, W)."""
    if pixels.shape[3] == 1:  # both formats are the same memory; convolutions choose their algorithm by the strides
        return pixels[..., 0][:, None]
    return pixels.permute(0, 3, 1, 2)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Move to a device; through pinned memory where it has some, so that the host does not wait for the copy."""
    if device.type not in ("cpu", "mps") and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def batch_to_device(batch: Any, device: torch.device) -> Any:
    """Move a batch to a device; on a GPU the copy overlaps with the steps before it, for which it does not wait.

    The host asks for a batch long before the GPU has done the step before, and the copy would come last among the
    operations of that step.
    """
    move = partial(map_tensors, batch, partial(to_device, device=device))
    if all(values.device.type == device.type for values in named_tensors(batch).values()):
        return move()
    return beside_the_step(move, device)


def beside_the_step(work: Callable[[], Any], device: torch.device) -> Any:
    """Return the tensors that `work` makes; on a GPU in a stream of its own, for which only what comes after waits."""
    if device.type != "cuda":
        return work()
    own, computing = _own_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(own):
        made = work()
    computing.wait_stream(own)
    for values in named_tensors(made).values():
        values.record_stream(computing)  # else later work may take its memory as soon as the host has let it go
    return made


@cache  # torch keeps free memory by stream: another one for each epoch would get its own
def _own_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
