"""What pixels are worth, in whole batches: changed at random as by torchvision's ColorJitter, then normalised.

Brightness, contrast, saturation and hue are changed in float32 on pixels scaled to [0, 1], as torchvision does with
float images: nothing is rounded in between. Each image has its own factors and its own order of the four, so at each of
the four places the images that have the same change there are changed together. Grey images have no saturation and no
hue, and keep them, as in torchvision.
Shapes: N samples, B batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace

import torch
from torch import Tensor

from swa_cli.data.pytree import lies_channels_last, moved


@dataclass(frozen=True)
class Jitter:
    """How far colours change: factors from 1 - x (at least 0) to 1 + x, turns of the hue from -x to x; 0 is off."""

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    @property
    def is_on(self) -> bool:
        """Whether anything is changed."""
        return any(astuple(self))


@dataclass(frozen=True, eq=False)
class Colours:
    """The random numbers of N samples, on the CPU; the changes are numbered as in `Jitter`."""

    jitter: Jitter
    factors: Tensor  # (N, 4) float32: of each change
    order: Tensor  # (N, 4) int64: which change stands at each place

    def __getitem__(self, span: slice | Tensor) -> Colours:
        return replace(self, factors=self.factors[span], order=self.order[span])


def draw_colours(num_samples: int, *, jitter: Jitter, generator: torch.Generator) -> Colours | None:
    """Draw what each of the samples gets; None if nothing is changed."""
    if not jitter.is_on:
        return None
    *spreads, hue = astuple(jitter)
    low = torch.tensor([*(max(0.0, 1 - spread) for spread in spreads), -hue])
    high = torch.tensor([*(1 + spread for spread in spreads), hue])
    factors = low + torch.rand((num_samples, 4), generator=generator) * (high - low)
    order = torch.rand((num_samples, 4), generator=generator, dtype=torch.float64).argsort(dim=1)
    return Colours(jitter, factors, order)


def normalize(images: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x - mean) / std per channel in float32, where uint8 images are first scaled by 1/255.

    Floating-point images that a user's dataset has normalised already come with mean 0 and std 1.
    """
    scale = 1 if images.is_floating_point() else 255
    is_last = lies_channels_last(images)
    # Whole rows (W C,) at once: loops over the three channels of a pixel would be three times as slow.
    shift, width = (
        torch.tensor([*values] * (images.shape[3] if is_last else 1), dtype=torch.float64, device="cpu")
        .mul(scale)
        .float()
        .to(images.device)
        for values in (mean, std)
    )
    images = images.to(torch.float32, copy=True)
    if is_last:
        images.permute(0, 2, 3, 1).flatten(2).sub_(shift).div_(width)
        return images
    return images.sub_(shift[:, None, None]).div_(width[:, None, None])


def change_colours(images: Tensor, *, colours: Colours) -> Tensor:
    """Change the colours of each image by its factors in its order.

    Args:
        images: (B, 1 or 3, H, W) uint8.
        colours: Those of the B images.

    Returns:
        (B, C, H, W) float32 in [0, 1].
    """
    values = images.contiguous().to(torch.float32).div_(255)
    known = _CHANGES if images.shape[1] == 3 else _CHANGES[:2]
    changes = [number for number in range(len(known)) if astuple(colours.jitter)[number]]
    for place in colours.order.unbind(dim=1):
        for number in changes:
            which = (place == number).nonzero()[:, 0]
            factors = moved(colours.factors[which, number], images.device)[:, None, None, None]
            which = moved(which, images.device)
            values.index_copy_(0, which, known[number](values.index_select(0, which), factors))
    return values


def _brightness(images: Tensor, factors: Tensor) -> Tensor:
    return (images * factors).clamp_(0, 1)


def _contrast(images: Tensor, factors: Tensor) -> Tensor:
    return _blended(images, _grey(images).mean(dim=(1, 2, 3), keepdim=True), factors)


def _saturation(images: Tensor, factors: Tensor) -> Tensor:
    return _blended(images, _grey(images), factors)


def _hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of HSV, of which 1 is a whole turn."""
    red, green, blue = images.split(1, dim=1)
    value, least = images.amax(dim=1, keepdim=True), images.amin(dim=1, keepdim=True)
    chroma = value - least
    unit = chroma.where(chroma > 0, 1)  # a grey pixel has hue 0, whatever that is
    hue = torch.where(value == red, (green - blue) / unit, 0)  # in sixths of a turn
    hue = torch.where((value == green) & (value != red), 2 + (blue - red) / unit, hue)
    hue = torch.where((value != green) & (value != red), 4 + (red - green) / unit, hue)
    # A channel falls linearly by the chroma and rises again, each at its own third of the turn.
    sixth = (torch.tensor([5.0, 3.0, 1.0], device=images.device)[:, None, None] + hue + 6 * turns) % 6
    return value - chroma * torch.minimum(sixth, 4 - sixth).clamp_(0, 1)


def _blended(images: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    return (factors * images + (1 - factors) * others).clamp_(0, 1)


def _grey(images: Tensor) -> Tensor:
    """(B, 1, H, W) luma of ITU-R BT.601, with the weights of torchvision."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return 0.2989 * red + 0.587 * green + 0.114 * blue


_CHANGES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (_brightness, _contrast, _saturation, _hue)
