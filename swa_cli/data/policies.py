"""Augmentation policies: TrivialAugment, RandAugment, AutoAugment and AugMix, as torchvision defines them.

A policy chooses operations and their magnitudes by uniform numbers that the caller gives; torchvision's functionals
apply them. `chosen` tells which, so that a mask is moved by the same operations as its image.
Sources: Müller and Hutter 2021 (arXiv:2103.10158), Cubuk et al. 2019 (arXiv:1909.13719) and 2018 (arXiv:1805.09501),
Hendrycks et al. 2019 (arXiv:1912.02781).
Shapes: C channels, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

NUM_DRAWS = 48  # uniform numbers of an image: AugMix takes 5, and 3 chains of 1 + 3 operations of 3


class Operation(NamedTuple):
    """An operation on an image, and how far it goes."""

    name: str
    magnitude: float

    @property
    def is_geometric(self) -> bool:
        """Whether it moves pixels, so that a mask has to follow."""
        return self.name in _GEOMETRIC

    def apply(self, image: Any, *, interpolation: str, fill: int) -> Any:
        """Apply it to a PIL image or a tensor (C, H, W) uint8; uncovered pixels get the value `fill`."""
        from torchvision.transforms.v2 import InterpolationMode, functional

        if self.name in _GEOMETRIC:
            settings = {"interpolation": InterpolationMode(interpolation), "fill": fill}
            return _GEOMETRIC[self.name](functional, image, self.magnitude, settings)
        return _COLORS[self.name](functional, image, self.magnitude)


def _affine(functional: Any, image: Any, settings: Mapping[str, Any], **changes: Any) -> Any:
    return functional.affine(
        image, **{"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]} | changes, **settings
    )


def _degrees(slope: float) -> float:
    """Return the angle of a shear: the papers give its tangent."""
    return math.degrees(math.atan(slope))


_GEOMETRIC: Mapping[str, Callable[..., Any]] = {
    "ShearX": lambda f, image, m, with_: _affine(f, image, with_, shear=[_degrees(m), 0.0], center=[0, 0]),
    "ShearY": lambda f, image, m, with_: _affine(f, image, with_, shear=[0.0, _degrees(m)], center=[0, 0]),
    "TranslateX": lambda f, image, m, with_: _affine(f, image, with_, translate=[int(m), 0]),
    "TranslateY": lambda f, image, m, with_: _affine(f, image, with_, translate=[0, int(m)]),
    "Rotate": lambda f, image, m, with_: f.rotate(image, angle=m, **with_),
}
_COLORS: Mapping[str, Callable[..., Any]] = {
    "Identity": lambda f, image, m: image,
    "Brightness": lambda f, image, m: f.adjust_brightness(image, 1.0 + m),
    "Color": lambda f, image, m: f.adjust_saturation(image, 1.0 + m),
    "Contrast": lambda f, image, m: f.adjust_contrast(image, 1.0 + m),
    "Sharpness": lambda f, image, m: f.adjust_sharpness(image, 1.0 + m),
    "Posterize": lambda f, image, m: f.posterize(image, int(m)),
    "Solarize": lambda f, image, m: f.solarize(image, 255.0 * m),
    "AutoContrast": lambda f, image, m: f.autocontrast(image),
    "Equalize": lambda f, image, m: f.equalize(image),
    "Invert": lambda f, image, m: f.invert(image),
}
_SIGNED = (*_GEOMETRIC, "Brightness", "Color", "Contrast", "Sharpness")  # half of them go the other way


@dataclass(frozen=True)
class _Space:
    """The greatest magnitudes of a policy; 0 changes nothing, and what has no magnitude is not listed.

    Args:
        bins: Magnitudes are `bins` evenly spaced ones.
        shear: Slope.
        translate: Greatest translation of (side,) pixels.
        rotate: Degrees.
        enhance: Of brightness, color, contrast and sharpness.
        posterize: Bits at magnitude 0, and how many are lost at the greatest one.
        others: Operations without a magnitude.
    """

    bins: int
    shear: float
    translate: Callable[[int], float]
    rotate: float
    enhance: float
    posterize: tuple[int, int]
    others: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All operations."""
        return (*_SIGNED, "Posterize", "Solarize", *self.others)

    def operation(self, name: str, *, bin: int, sign: float, size: tuple[int, int]) -> Operation:
        """Return the operation at one of the magnitudes, on an image of (H, W); `sign` in [0, 1) decides its way."""
        share = bin / (self.bins - 1)
        if name == "Posterize":
            return Operation(name, float(round(self.posterize[0] - share * self.posterize[1])))
        if name == "Solarize":
            return Operation(name, 1.0 - share)
        if name not in _SIGNED:
            return Operation(name, 0.0)
        greatest = {
            "ShearX": self.shear,
            "ShearY": self.shear,
            "TranslateX": self.translate(size[1]),
            "TranslateY": self.translate(size[0]),
            "Rotate": self.rotate,
        }.get(name, self.enhance)
        return Operation(name, share * greatest * (-1 if sign <= 0.5 else 1))


_TRIVIAL = _Space(31, 0.99, lambda side: 32.0, 135.0, 0.99, (8, 6), ("Identity", "AutoContrast", "Equalize"))
_RAND = _Space(31, 0.3, lambda side: 150 / 331 * side, 30.0, 0.9, (8, 4), ("Identity", "AutoContrast", "Equalize"))
_AUTO = _Space(10, 0.3, lambda side: 150 / 331 * side, 30.0, 0.9, (8, 4), ("AutoContrast", "Equalize", "Invert"))
_AUGMIX = _Space(10, 0.3, lambda side: side / 3, 30.0, 0.9, (4, 4), ("AutoContrast", "Equalize"))
_RAND_OPERATIONS, _RAND_BIN = 2, 9
_AUGMIX_CHAINS, _AUGMIX_DEPTH, _AUGMIX_SEVERITY = 3, 3, 3
# AutoAugment's policies for ImageNet: two operations, each with its probability and bin (table 9 of the paper).
_IMAGENET = """
Posterize .4 8 Rotate .6 9, Solarize .6 5 AutoContrast .6 0, Equalize .8 0 Equalize .6 0, Posterize .6 7 Posterize .6 6,
Equalize .4 0 Solarize .2 4, Equalize .4 0 Rotate .8 8, Solarize .6 3 Equalize .6 0, Posterize .8 5 Equalize 1 0,
Rotate .2 3 Solarize .6 8, Equalize .6 0 Posterize .4 6, Rotate .8 8 Color .4 0, Rotate .4 9 Equalize .6 0,
Equalize 0 0 Equalize .8 0, Invert .6 0 Equalize 1 0, Color .6 4 Contrast 1 8, Rotate .8 8 Color 1 2,
Color .8 8 Solarize .8 7, Sharpness .4 7 Invert .6 0, ShearX .6 5 Equalize 1 0, Color .4 0 Equalize .6 0,
Equalize .4 0 Solarize .2 4, Solarize .6 5 AutoContrast .6 0, Invert .6 0 Equalize 1 0, Color .6 4 Contrast 1 8,
Equalize .8 0 Equalize .6 0"""
_SUB_POLICIES = tuple(tuple(text.split()) for text in _IMAGENET.split(","))


def _trivial_augment(size: tuple[int, int], draws: Iterator[float]) -> list[Operation]:
    """Choose one operation at one of its magnitudes, all alike."""
    return [_TRIVIAL.operation(_one_of(_TRIVIAL.names, draws), bin=_below(31, draws), sign=next(draws), size=size)]


def _rand_augment(size: tuple[int, int], draws: Iterator[float]) -> list[Operation]:
    """Choose two operations at the tenth of 31 magnitudes."""
    return [
        _RAND.operation(_one_of(_RAND.names, draws), bin=_RAND_BIN, sign=next(draws), size=size)
        for _ in range(_RAND_OPERATIONS)
    ]


def _auto_augment(size: tuple[int, int], draws: Iterator[float]) -> list[Operation]:
    """Choose one of 25 pairs of operations, each applied with its probability."""
    words, found = _one_of(_SUB_POLICIES, draws), []
    for name, probability, bin in (words[:3], words[3:]):
        coin, sign = next(draws), next(draws)
        if coin <= float(probability):
            found.append(_AUTO.operation(name, bin=int(bin), sign=sign, size=size))
    return found


CHOICES: Mapping[str, Callable[[tuple[int, int], Iterator[float]], list[Operation]]] = {
    "trivial_augment": _trivial_augment,
    "rand_augment": _rand_augment,
    "auto_augment": _auto_augment,
}


def chosen(policy: str, *, size: tuple[int, int], draws: Tensor) -> list[Operation]:
    """Return the operations that a policy of `CHOICES` applies one after another.

    Args:
        policy: Its name.
        size: (H, W) of the image.
        draws: `NUM_DRAWS` uniform numbers in [0, 1).
    """
    return CHOICES[policy](size, iter(draws.tolist()))


def augmix(image: Tensor, *, draws: Tensor, interpolation: str) -> Tensor:
    """Blend an image (C, H, W) uint8 with three chains of one to three operations on it.

    The shares of the chains are uniform on the simplex, that of the image itself is uniform in [0, 1].
    """
    numbers = iter(draws.tolist())
    own = next(numbers)
    exponential = torch.tensor([-math.log(1 - next(numbers)) for _ in range(_AUGMIX_CHAINS)])
    shares = (1 - own) * exponential / exponential.sum()  # Dirichlet(1, 1, 1)
    mixed = own * image
    size = image.shape[-2], image.shape[-1]
    for share in shares:
        changed = image
        for _ in range(1 + _below(_AUGMIX_DEPTH, numbers)):
            name, bin = _one_of(_AUGMIX.names, numbers), _below(_AUGMIX_SEVERITY, numbers)
            operation = _AUGMIX.operation(name, bin=bin, sign=next(numbers), size=size)
            changed = operation.apply(changed, interpolation=interpolation, fill=0)
        mixed += share * changed
    return mixed.to(torch.uint8)


def _below(number: int, draws: Iterator[float]) -> int:
    """Return a whole number from 0 to below `number`."""
    return int(next(draws) * number)


def _one_of(choices: Sequence[Any], draws: Iterator[float]) -> Any:
    return choices[_below(len(choices), draws)]
