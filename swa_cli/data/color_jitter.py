"""Batched color jitter, equal to torchvision's ColorJitter, and normalization.

Brightness, contrast, saturation and hue are changed in float32 on pixels scaled to [0, 1], as torchvision does with
float images: nothing is rounded in between. Each image has its own factors and its own order of the four changes; at
each of the four places, the images with the same change there are changed together. Gray images have no saturation and
no hue, so these changes skip them, as in torchvision.
Shapes: N samples, B batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from swa_cli.data.pytree import to_device

_SERIAL = 32_767  # values; torch divides more among its threads


@dataclass(frozen=True)
class ColorJitter:
    """The strength x of each change: factors from 1 - x (at least 0) to 1 + x, hue turns from -x to x; 0 is off."""

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    @property
    def is_on(self) -> bool:
        """Whether any change is on."""
        return any(astuple(self))


@dataclass(frozen=True, eq=False)
class ColorDraws:
    """The random numbers of N samples, on the CPU; the changes are numbered as in `ColorJitter`."""

    jitter: ColorJitter
    factors: Tensor  # (N, 4) float32 of each change
    order: Tensor  # (N, 4) int64: which change stands at each place

    def __getitem__(self, span: slice | Tensor) -> ColorDraws:
        return replace(self, factors=self.factors[span], order=self.order[span])


def draw_color_jitter(num_samples: int, *, jitter: ColorJitter, generator: torch.Generator) -> ColorDraws | None:
    """Draw the changes of each sample; None if the jitter is off."""
    if not jitter.is_on:
        return None
    *spreads, hue = astuple(jitter)
    low = torch.tensor([*(max(0.0, 1 - spread) for spread in spreads), -hue])
    high = torch.tensor([*(1 + spread for spread in spreads), hue])
    factors = low + torch.rand((num_samples, 4), generator=generator) * (high - low)
    order = torch.rand((num_samples, 4), generator=generator, dtype=torch.float64).argsort(dim=1)
    return ColorDraws(jitter, factors, order)


def normalize(images: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (x - mean) / std per channel in float32, channels last; uint8 images are first scaled by 1/255.

    Floating-point images that a user's dataset has normalized already have mean 0 and std 1.
    """
    scale = 1 if images.is_floating_point() else 255
    # Whole rows (W C,) at once: looping over the three channels of a pixel is three times as slow.
    shift, width = (
        _constant((*values,) * images.shape[3], scale=scale, device=images.device) for values in (mean, std)
    )
    images = images.contiguous(memory_format=torch.channels_last)
    normalized = torch.empty_like(images, dtype=torch.float32)
    parts = (_rows(values).split(_rows_at_once(images)) for values in (images, normalized))
    for source, target in zip(*parts, strict=True):
        target.copy_(source).sub_(shift).div_(width)
    return normalized


@lru_cache(maxsize=64)
def _constant(values: tuple[float, ...], *, scale: int = 1, device: torch.device) -> Tensor:
    """Return numbers in float32 on a device, to which they are copied once: a copy in each step would wait for it."""
    with torch.inference_mode(False):  # else it could not be used outside of the pass that made it
        return torch.tensor(values, dtype=torch.float64, device="cpu").mul(scale).float().to(device)


def _rows(images: Tensor) -> Tensor:
    """Return the rows (B H, W C) of channels-last images as a view."""
    return images.permute(0, 2, 3, 1).flatten(2).flatten(0, 1)


def _rows_at_once(images: Tensor) -> int:
    """Return the rows that are normalized in one call.

    On a processor they fit the cache, and one thread does them: those of torch would wait for each other while loader
    processes use the same cores (measured: 10 times as slow).
    """
    batch, channels, height, width = images.shape
    return max(1, _SERIAL // (width * channels) if images.device.type == "cpu" else batch * height)


def jitter_colors(images: Tensor, *, draws: ColorDraws) -> Tensor:
    """Change the colors of images (B, 1 or 3, H, W) uint8 by their factors in their order; return float32 in [0, 1]."""
    values = images.contiguous().to(torch.float32).div_(255)
    known = _CHANGES if images.shape[1] == 3 else _CHANGES[:2]
    changes = [number for number in range(len(known)) if astuple(draws.jitter)[number]]
    for place in draws.order.unbind(dim=1):
        for number in changes:
            which = (place == number).nonzero()[:, 0]
            factors = to_device(draws.factors[which, number], images.device)[:, None, None, None]
            which = to_device(which, images.device)
            values.index_copy_(0, which, known[number](values.index_select(0, which), factors))
    return values


def _brightness(images: Tensor, factors: Tensor) -> Tensor:
    return (images * factors).clamp_(0, 1)


def _contrast(images: Tensor, factors: Tensor) -> Tensor:
    return _blend(images, _to_gray(images).mean(dim=(1, 2, 3), keepdim=True), factors)


def _saturation(images: Tensor, factors: Tensor) -> Tensor:
    return _blend(images, _to_gray(images), factors)


def _hue(images: Tensor, turns: Tensor) -> Tensor:
    """Shift the hue of HSV, where 1 is a whole turn."""
    red, green, blue = images.split(1, dim=1)
    value, least = images.amax(dim=1, keepdim=True), images.amin(dim=1, keepdim=True)
    chroma = value - least
    unit = chroma.where(chroma > 0, 1)  # the hue of a gray pixel is arbitrary: 0
    hue = torch.where(value == red, (green - blue) / unit, 0)  # in sixths of a turn
    hue = torch.where((value == green) & (value != red), 2 + (blue - red) / unit, hue)
    hue = torch.where((value != green) & (value != red), 4 + (red - green) / unit, hue)
    # Each channel falls linearly by the chroma and rises again, at its own third of the turn.
    sixth = (_constant((5.0, 3.0, 1.0), device=images.device)[:, None, None] + hue + 6 * turns) % 6
    return value - chroma * torch.minimum(sixth, 4 - sixth).clamp_(0, 1)


def _blend(images: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    return (factors * images + (1 - factors) * others).clamp_(0, 1)


def _to_gray(images: Tensor) -> Tensor:
    """Return the luma (B, 1, H, W) of ITU-R BT.601, with the weights of torchvision."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return 0.2989 * red + 0.587 * green + 0.114 * blue


_CHANGES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (_brightness, _contrast, _saturation, _hue)
