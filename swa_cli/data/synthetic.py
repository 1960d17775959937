"""Scenes drawn as tensors from a seed: overlapping shapes and digits on clutter, the class of each pixel known.

A scene is painted in layers: a textured ground, strokes that mean nothing, objects, strokes again; then light from
one side, and noise. A layer is one operation on many scenes: the signed distance of every pixel to an outline,
how much of the pixel that covers, a colour. What lies on top gives the pixel its class; a stroke is background.
Coordinates run from -1 to 1 across the image, y downwards; a radius of 1 is half the image.
Letters: B scenes, n of them, C channels, S pixels a side.

Digits turned by an angle that is to be told: an example of regression inside the package.

Each digit of the package is turned about its centre by an angle of its own, drawn once: these are always the same
images. All of them are turned at once, as one grid of sampling points each.
Shapes: N images, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from swa_cli.data.randomness import generator
from swa_cli.data.torchvision_sets import NUM_TEST_DIGITS, Arrays, read_digits

SHAPES = ("disc", "rectangle", "triangle", "ring")
# Names of the classes for each number of them: is there anything, what kind of thing, and which digit.
CLASSES: dict[int, tuple[str, ...]] = {
    2: ("background", "object"),
    6: ("background", *SHAPES, "digit"),
    15: ("background", *SHAPES, *(f"digit {number}" for number in range(10))),
}
_DIGIT = len(SHAPES)  # the kind after the last shape
_AT_ONCE, _PIXELS_AT_ONCE = 64, 2**18  # drawn together: few enough for the processor's cache
_NUM_OBJECTS = (3, 6)
_STROKES_BEHIND, _STROKES_BEFORE = 5, 2


def draw_scenes(
    split: str,
    *,
    count: int,
    size: int,
    classes: int,
    channels: int,
    seed: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw the first scenes of a split; scene i is the same however many are drawn.

    Args:
        split: "train" or "test": scenes of their own, with the digits of that part of the digits' set.
        count: Number of scenes, N.
        size: S.
        classes: A key of `CLASSES`; the pictures do not depend on it.
        channels: 1 or 3.
        seed: Another one gives another dataset.
        progress: Called with (what, scenes drawn, scenes in all).

    Returns:
        Images (N, C, S, S) uint8 and masks (N, S, S) uint8.
    """
    images = torch.empty((count, channels, size, size), dtype=torch.uint8, memory_format=torch.channels_last)
    masks = torch.empty((count, size, size), dtype=torch.uint8)
    train, test = read_digits()
    digits = train if split == "train" else test
    together = max(1, min(_AT_ONCE, _PIXELS_AT_ONCE // size**2))  # not by the count: a scene must not depend on it
    for first in range(0, count, together):
        random = generator(seed, "shapes", split, first // together)
        drawn, kinds = _Artist(random, num_scenes=together, size=size, channels=channels).scenes(*digits)
        last = min(first + together, count)
        images[first:last] = drawn[: last - first]
        masks[first:last] = _classes_of(kinds[: last - first], classes=classes)
        if progress:
            progress(f"drawing {split} scenes", last, count)
    return images, masks


def _classes_of(kinds: Tensor, *, classes: int) -> Tensor:
    """Kinds count from 1, a digit d being `_DIGIT` + 1 + d; 0 is background."""
    return kinds.clamp(max={2: 1, 6: _DIGIT + 1, 15: _DIGIT + 10}[classes])


@dataclass(frozen=True)
class _Placed:
    """Coordinates in the frames of n things, each moved, turned and of radius `radius`."""

    u: Tensor  # (n, S, S)
    v: Tensor
    radius: Tensor  # (n, 1, 1)
    ratio: Tensor  # (n, 1, 1) in 0..1: how long, thick or bent

    def __getitem__(self, rows: Tensor) -> _Placed:
        return _Placed(self.u[rows], self.v[rows], self.radius[rows], self.ratio[rows])


def _disc(at: _Placed) -> Tensor:
    return (at.u.square() + at.v.square()).sqrt_() - at.radius


def _rectangle(at: _Placed) -> Tensor:
    return torch.maximum(at.u.abs() - at.radius, at.v.abs() - at.radius * (0.35 + 0.55 * at.ratio))


def _triangle(at: _Placed) -> Tensor:
    """Isosceles: the base below, two sides that meet at the top; half as high again as it is deep."""
    slope = 0.35 + 0.5 * at.ratio  # of a side against the upright
    sides = (at.u.abs() - slope * (at.v + at.radius)) / (1 + slope.square()).sqrt()
    return torch.maximum(at.v - 0.8 * at.radius, sides)


def _ring(at: _Placed) -> Tensor:
    thickness = at.radius * (0.12 + 0.15 * at.ratio)
    return ((at.u.square() + at.v.square()).sqrt_() - at.radius + thickness).abs_() - thickness


def _stroke(at: _Placed) -> Tensor:
    """A line of 2 radii that may be bent."""
    bent = at.v - (2 * at.ratio - 1) * at.u.square()
    return torch.maximum(bent.abs() - 0.03, at.u.abs() - at.radius)


_DISTANCES = (_disc, _rectangle, _triangle, _ring)


class _Artist:
    """Draws B scenes; what it holds are its random numbers and the paper."""

    def __init__(self, random: torch.Generator, *, num_scenes: int, size: int, channels: int) -> None:
        self._random = random
        self._num_scenes = num_scenes
        self._size = size
        middle = (torch.arange(size) + 0.5) * (2 / size) - 1  # of each pixel
        self._x, self._y = middle[None, None, :], middle[None, :, None]
        self._paper = torch.zeros(num_scenes, channels, size, size)
        self._kinds = torch.zeros(num_scenes, size, size, dtype=torch.uint8)

    def scenes(self, digits: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, S, S) and kinds (B, S, S), both uint8, with digits (N, 1, 8, 8) of such numbers (N,)."""
        tone = self._ground()
        for _ in range(_STROKES_BEHIND):
            self._add_strokes(tone)
        num_objects = torch.randint(_NUM_OBJECTS[0], _NUM_OBJECTS[1] + 1, (self._num_scenes,), generator=self._random)
        for layer in range(_NUM_OBJECTS[1]):
            self._add_objects(tone, there=layer < num_objects, digits=digits, numbers=numbers)
        for _ in range(_STROKES_BEFORE):
            self._add_strokes(tone)
        self._light_and_noise()
        return self._paper.mul_(255).round_().clamp_(0, 255).to(torch.uint8), self._kinds

    def _uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """(B, *shape)."""
        return torch.rand((self._num_scenes, *shape), generator=self._random) * (high - low) + low

    def _waves(self, *, strength: float) -> Tensor:
        """(B, S, S): a stripe pattern of random direction and width."""
        angle, phase = self._uniform(0, math.pi, 1, 1), self._uniform(0, 2 * math.pi, 1, 1)
        frequency = self._uniform(6, 30, 1, 1)
        along = (angle.cos() * frequency) * self._x + (angle.sin() * frequency) * self._y
        return (along + phase).sin_().mul_(self._uniform(0, strength, 1, 1))

    def _ground(self) -> Tensor:
        """Paint clouds and stripes; returns their mean tone (B, C)."""
        channels = self._paper.shape[1]
        tone = self._uniform(0.3, 0.7, 1) + self._uniform(-0.12, 0.12, channels)
        self._paper += tone[:, :, None, None]
        for cells, strength in ((4, 0.10), (12, 0.07)):
            clouds = torch.randn((self._num_scenes, channels, cells, cells), generator=self._random)
            clouds *= self._uniform(0, strength, 1, 1, 1)
            self._paper += functional.interpolate(clouds, self._size, mode="bilinear", align_corners=False)
        self._paper += self._waves(strength=0.10)[:, None]
        return tone

    def _placed(self, *, radius: tuple[float, float], turn: float) -> _Placed:
        """B random frames, turned by up to `turn` either way."""
        x, y = self._uniform(-0.85, 0.85, 2, 1, 1).unbind(1)
        angle = self._uniform(-turn, turn, 1, 1)
        cos, sin = angle.cos(), angle.sin()
        u = cos * (self._x - x) + sin * (self._y - y)
        v = cos * (self._y - y) - sin * (self._x - x)
        return _Placed(u, v, self._uniform(*radius, 1, 1), self._uniform(0, 1, 1, 1))

    def _colours(self, tone: Tensor, *, contrast: tuple[float, float]) -> Tensor:
        """(B, C): lighter or darker than the ground, in each channel by another amount."""
        step = self._uniform(*contrast, 1) * self._uniform(-1, 1, 1).sign()
        return tone + step * self._uniform(0.6, 1.2, tone.shape[1])

    def _add_strokes(self, tone: Tensor) -> None:
        at = self._placed(radius=(0.2, 1.0), turn=math.pi)
        colours = self._colours(tone, contrast=(0.1, 0.5))
        self._paint(torch.arange(self._num_scenes), self._covered(_stroke(at)), colours[:, :, None, None], kinds=0)

    def _add_objects(self, tone: Tensor, *, there: Tensor, digits: Tensor, numbers: Tensor) -> None:
        """One object on each scene where it is `there` (B,)."""
        kinds = torch.randint(0, _DIGIT + 1, (self._num_scenes,), generator=self._random)
        which = torch.randint(0, len(digits), (self._num_scenes,), generator=self._random)
        at, upright = self._placed(radius=(0.16, 0.42), turn=math.pi), self._placed(radius=(0.24, 0.52), turn=0.4)
        colours = self._colours(tone, contrast=(0.12, 0.45))[:, :, None, None] + self._waves(strength=0.08)[:, None]
        for kind, distance in enumerate(_DISTANCES):
            rows = (there & (kinds == kind)).nonzero()[:, 0]
            self._paint(rows, self._covered(distance(at[rows])), colours[rows], kinds=kind + 1)
        rows = (there & (kinds == _DIGIT)).nonzero()[:, 0]
        cover = self._ink(upright[rows], digits[which[rows]])
        self._paint(rows, cover, colours[rows], kinds=_DIGIT + 1 + numbers[which[rows]].to(torch.uint8)[:, None, None])

    def _covered(self, distance: Tensor) -> Tensor:
        """How much of each pixel lies inside an outline at signed distances (n, S, S)."""
        return distance.mul_(-self._size / 2).add_(0.5).clamp_(0, 1)

    def _ink(self, at: _Placed, digits: Tensor) -> Tensor:
        """(n, S, S): digits (n, 1, 8, 8) enlarged, with an outline where the ink is two fifths."""
        grid = torch.stack((at.u, at.v), dim=-1) / at.radius[..., None]
        ink = functional.grid_sample(digits / 255, grid, mode="bilinear", align_corners=False)[:, 0]
        pixels_per_cell = (at.radius * (self._size / 8)).clamp(min=1)
        return (ink - 0.4).mul_(pixels_per_cell).add_(0.5).clamp_(0, 1)

    def _paint(self, rows: Tensor, cover: Tensor, colours: Tensor, *, kinds: Tensor | int) -> None:
        """Lay n things over the scenes at `rows` (n,): cover (n, S, S), colours (n, C, S or 1, S or 1)."""
        self._paper[rows] = self._paper[rows].lerp_(colours.expand(-1, -1, self._size, self._size), cover[:, None])
        self._kinds[rows] = torch.where(cover > 0.5, kinds, self._kinds[rows])

    def _light_and_noise(self) -> None:
        angle, strength = self._uniform(0, 2 * math.pi, 1, 1), self._uniform(0, 0.35, 1, 1)
        light = 1 + (strength * angle.cos()) * self._x + (strength * angle.sin()) * self._y
        noise = torch.randn(self._paper.shape, generator=self._random)
        self._paper.mul_(light[:, None]).add_(noise.mul_(self._uniform(0.02, 0.08, 1, 1, 1)))


LARGEST_ANGLE = 60  # degrees, either way
UNIT = 10  # degrees counter-clockwise that a target of 1 stands for
_MARGIN = 2  # black pixels on each side, so that no corner of a turned digit is lost


def read_rotated_digits(*, num_test: int = NUM_TEST_DIGITS) -> tuple[Arrays, Arrays]:
    """Training and test set: images (N, 1, 12, 12) uint8 and angles (N, 1) float32 in tens of degrees."""
    sets = zip(("train", "test"), read_digits(num_test=num_test), strict=True)
    train, test = (_turned(images, name=name) for name, (images, _) in sets)
    return train, test


def turn(images: Tensor, *, degrees: Tensor) -> Tensor:
    """Images (N, 1, H, W) uint8 turned counter-clockwise about their centres, bilinearly; black comes in at the edges.

    Args:
        images: As they are stored.
        degrees: (N,) angles.
    """
    angle = degrees * (math.pi / 180)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # Where each pixel comes from, x to the right and y downwards: the turn back, which is clockwise.
    back = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)  # (N, 2, 3)
    grid = functional.affine_grid(back, list(images.shape), align_corners=False)
    return functional.grid_sample(images.float(), grid, align_corners=False).round().clamp(0, 255).to(torch.uint8)


def _turned(images: Tensor, *, name: str) -> Arrays:
    degrees = LARGEST_ANGLE * (2 * torch.rand(len(images), generator=generator(0, "rotated digits", name)) - 1)
    padded = functional.pad(images, (_MARGIN,) * 4)
    return turn(padded, degrees=degrees), degrees[:, None] / UNIT
