"""Datasets that need no files: the digits in this package, the same digits rotated, and scenes drawn from a seed.

A scene is painted in layers: a textured background, strokes without a class, objects, strokes again; then lighting
from one side, and noise. A layer is one operation on many scenes: the signed distance of every pixel to an outline,
the share of the pixel that this covers, a color. The topmost object gives a pixel its class; a stroke is background.
Coordinates run from -1 to 1 across the image, y downwards; a radius of 1 is half the image.
Shapes: N images or scenes, B scenes drawn at once, n of them, C channels, H W pixels, S pixels per side.
"""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass
from importlib import resources

import torch
from torch import Tensor
from torch.nn import functional

from swa_cli.data.randomness import generator
from swa_cli.data.splits import Arrays, Progress

NUM_DIGITS, NUM_TEST_DIGITS = 1797, 360  # the reason for this split is in digits.md
SHAPES = ("disc", "rectangle", "triangle", "ring")
# Class names by their number: is there an object, what kind of object, and which digit.
CLASSES: dict[int, tuple[str, ...]] = {
    2: ("background", "object"),
    6: ("background", *SHAPES, "digit"),
    15: ("background", *SHAPES, *(f"digit {number}" for number in range(10))),
}
_DIGIT = len(SHAPES)  # the kind of digits: after the last shape
_SCENES_AT_ONCE, _PIXELS_AT_ONCE = 64, 2**18  # few enough for the processor's cache
_NUM_OBJECTS = (3, 6)
_STROKES_BEHIND, _STROKES_BEFORE = 5, 2
LARGEST_ANGLE = 60  # degrees, either way
UNIT = 10  # degrees counter-clockwise that a target of 1 stands for
_MARGIN = 2  # black pixels on each side, so that no corner of a rotated digit is lost


# --- digits


def read_digits(*, num_test: int = NUM_TEST_DIGITS) -> dict[str, Arrays]:
    """Read the digits in this package, gray values 0..16 spread over 0..255; the last `num_test` are the test split."""
    content = gzip.decompress(resources.files("swa_cli.data").joinpath("digits.gz").read_bytes())
    values = torch.frombuffer(bytearray(content), dtype=torch.uint8).long()
    images = (values[: NUM_DIGITS * 64] * 255 // 16).to(torch.uint8).view(NUM_DIGITS, 1, 8, 8)
    labels = values[NUM_DIGITS * 64 :]
    cut = NUM_DIGITS - num_test
    return {"train": Arrays(images[:cut], labels[:cut]), "test": Arrays(images[cut:], labels[cut:])}


def read_rotated_digits(*, num_test: int = NUM_TEST_DIGITS) -> dict[str, Arrays]:
    """Return the digits, each rotated by an angle that is always the same, and the angles: a regression.

    Returns:
        Of "train" and "test" the images (N, 1, 12, 12) uint8 and angles (N, 1) float32 in units of `UNIT` degrees.
    """
    rotated = {}
    for split, (images, _) in read_digits(num_test=num_test).items():
        uniform = torch.rand(len(images), generator=generator(0, "rotated digits", split))
        degrees = LARGEST_ANGLE * (2 * uniform - 1)
        padded = functional.pad(images, (_MARGIN,) * 4)
        rotated[split] = Arrays(rotate(padded, degrees=degrees), degrees[:, None] / UNIT)
    return rotated


def rotate(images: Tensor, *, degrees: Tensor) -> Tensor:
    """Rotate images (N, 1, H, W) uint8 by angles (N,) counter-clockwise about their centers; borders become black."""
    angle = degrees * (math.pi / 180)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # Where each pixel comes from, x to the right and y downwards: the inverse rotation, which is clockwise.
    inverse = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)  # (N, 2, 3)
    grid = functional.affine_grid(inverse, list(images.shape), align_corners=False)
    return functional.grid_sample(images.float(), grid, align_corners=False).round().clamp(0, 255).to(torch.uint8)


# --- scenes


def draw_scenes(
    split: str,
    *,
    count: int,
    size: int,
    classes: int,
    channels: int,
    seed: int,
    progress: Progress | None = None,
) -> Arrays:
    """Draw the first scenes of a split; scene i does not depend on how many are drawn.

    Args:
        split: "train" or "test", which differ in all scenes and use the digits of the same split.
        count: N.
        size: S.
        classes: A key of `CLASSES`; the images do not depend on it.
        channels: 1 or 3.
        seed: Decides all scenes.
        progress: Called with (what, scenes drawn, all scenes).

    Returns:
        Images (N, C, S, S) uint8 and masks (N, S, S) uint8.
    """
    images = torch.empty((count, channels, size, size), dtype=torch.uint8, memory_format=torch.channels_last)
    masks = torch.empty((count, size, size), dtype=torch.uint8)
    digits = read_digits()[split]
    together = max(1, min(_SCENES_AT_ONCE, _PIXELS_AT_ONCE // size**2))  # independent of `count`, as scenes are
    for first in range(0, count, together):
        random = generator(seed, "shapes", split, first // together)
        drawn, kinds = _Artist(random, num_scenes=together, size=size, channels=channels).scenes(*digits)
        last = min(first + together, count)
        images[first:last] = drawn[: last - first]
        masks[first:last] = kinds[: last - first].clamp(max=classes - 1)  # background, shapes, digits in this order
        if progress:
            progress(f"drawing {split} scenes", last, count)
    return Arrays(images, masks)


@dataclass(frozen=True)
class _Placed:
    """Coordinates of every pixel in the frames of n objects, each moved, rotated and of radius `radius`."""

    u: Tensor  # (n, S, S)
    v: Tensor
    radius: Tensor  # (n, 1, 1)
    ratio: Tensor  # (n, 1, 1) in 0..1: length, thickness or curvature

    def __getitem__(self, rows: Tensor) -> _Placed:
        return _Placed(self.u[rows], self.v[rows], self.radius[rows], self.ratio[rows])


def _disc(at: _Placed) -> Tensor:
    return (at.u.square() + at.v.square()).sqrt_() - at.radius


def _rectangle(at: _Placed) -> Tensor:
    return torch.maximum(at.u.abs() - at.radius, at.v.abs() - at.radius * (0.35 + 0.55 * at.ratio))


def _triangle(at: _Placed) -> Tensor:
    """An isosceles triangle with its base below."""
    slope = 0.35 + 0.5 * at.ratio  # of a side against the vertical
    sides = (at.u.abs() - slope * (at.v + at.radius)) / (1 + slope.square()).sqrt()
    return torch.maximum(at.v - 0.8 * at.radius, sides)


def _ring(at: _Placed) -> Tensor:
    thickness = at.radius * (0.12 + 0.15 * at.ratio)
    return ((at.u.square() + at.v.square()).sqrt_() - at.radius + thickness).abs_() - thickness


def _stroke(at: _Placed) -> Tensor:
    """A line of 2 radii that may be curved."""
    bent = at.v - (2 * at.ratio - 1) * at.u.square()
    return torch.maximum(bent.abs() - 0.03, at.u.abs() - at.radius)


_DISTANCES = (_disc, _rectangle, _triangle, _ring)


class _Artist:
    """Draws B scenes; its state is the random generator and the canvas."""

    def __init__(self, random: torch.Generator, *, num_scenes: int, size: int, channels: int) -> None:
        self._random = random
        self._num_scenes = num_scenes
        self._size = size
        centers = (torch.arange(size) + 0.5) * (2 / size) - 1  # center of each pixel
        self._x, self._y = centers[None, None, :], centers[None, :, None]
        self._canvas = torch.zeros(num_scenes, channels, size, size)
        self._kinds = torch.zeros(num_scenes, size, size, dtype=torch.uint8)

    def scenes(self, digits: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Draw images (B, C, S, S) and kinds (B, S, S), both uint8, with digits (N, 1, 8, 8) of numbers (N,)."""
        tone = self._paint_background()
        for _ in range(_STROKES_BEHIND):
            self._add_strokes(tone)
        num_objects = torch.randint(_NUM_OBJECTS[0], _NUM_OBJECTS[1] + 1, (self._num_scenes,), generator=self._random)
        for layer in range(_NUM_OBJECTS[1]):
            self._add_objects(tone, is_there=layer < num_objects, digits=digits, numbers=numbers)
        for _ in range(_STROKES_BEFORE):
            self._add_strokes(tone)
        self._add_light_and_noise()
        return self._canvas.mul_(255).round_().clamp_(0, 255).to(torch.uint8), self._kinds

    def _uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Draw (B, *shape)."""
        return torch.rand((self._num_scenes, *shape), generator=self._random) * (high - low) + low

    def _waves(self, *, strength: float) -> Tensor:
        """Draw stripes (B, S, S) of random direction and width."""
        angle, phase = self._uniform(0, math.pi, 1, 1), self._uniform(0, 2 * math.pi, 1, 1)
        frequency = self._uniform(6, 30, 1, 1)
        along = (angle.cos() * frequency) * self._x + (angle.sin() * frequency) * self._y
        return (along + phase).sin_().mul_(self._uniform(0, strength, 1, 1))

    def _paint_background(self) -> Tensor:
        """Paint clouds and stripes; return their mean tone (B, C)."""
        channels = self._canvas.shape[1]
        tone = self._uniform(0.3, 0.7, 1) + self._uniform(-0.12, 0.12, channels)
        self._canvas += tone[:, :, None, None]
        for cells, strength in ((4, 0.10), (12, 0.07)):
            clouds = torch.randn((self._num_scenes, channels, cells, cells), generator=self._random)
            clouds *= self._uniform(0, strength, 1, 1, 1)
            self._canvas += functional.interpolate(clouds, self._size, mode="bilinear", align_corners=False)
        self._canvas += self._waves(strength=0.10)[:, None]
        return tone

    def _place(self, *, radius: tuple[float, float], turn: float) -> _Placed:
        """Draw B random frames, rotated by up to `turn` radians either way."""
        x, y = self._uniform(-0.85, 0.85, 2, 1, 1).unbind(1)
        angle = self._uniform(-turn, turn, 1, 1)
        cos, sin = angle.cos(), angle.sin()
        u = cos * (self._x - x) + sin * (self._y - y)
        v = cos * (self._y - y) - sin * (self._x - x)
        return _Placed(u, v, self._uniform(*radius, 1, 1), self._uniform(0, 1, 1, 1))

    def _colors(self, tone: Tensor, *, contrast: tuple[float, float]) -> Tensor:
        """Draw colors (B, C) lighter or darker than the background, by another amount in each channel."""
        step = self._uniform(*contrast, 1) * self._uniform(-1, 1, 1).sign()
        return tone + step * self._uniform(0.6, 1.2, tone.shape[1])

    def _add_strokes(self, tone: Tensor) -> None:
        at = self._place(radius=(0.2, 1.0), turn=math.pi)
        colors = self._colors(tone, contrast=(0.1, 0.5))
        self._paint(torch.arange(self._num_scenes), self._coverage(_stroke(at)), colors[:, :, None, None], kinds=0)

    def _add_objects(self, tone: Tensor, *, is_there: Tensor, digits: Tensor, numbers: Tensor) -> None:
        """Add one object to each scene where `is_there` (B,)."""
        kinds = torch.randint(0, _DIGIT + 1, (self._num_scenes,), generator=self._random)
        which = torch.randint(0, len(digits), (self._num_scenes,), generator=self._random)
        at, upright = self._place(radius=(0.16, 0.42), turn=math.pi), self._place(radius=(0.24, 0.52), turn=0.4)
        colors = self._colors(tone, contrast=(0.12, 0.45))[:, :, None, None] + self._waves(strength=0.08)[:, None]
        for kind, distance in enumerate(_DISTANCES):
            rows = (is_there & (kinds == kind)).nonzero()[:, 0]
            self._paint(rows, self._coverage(distance(at[rows])), colors[rows], kinds=kind + 1)
        rows = (is_there & (kinds == _DIGIT)).nonzero()[:, 0]
        cover = self._ink(upright[rows], digits[which[rows]])
        self._paint(rows, cover, colors[rows], kinds=_DIGIT + 1 + numbers[which[rows]].to(torch.uint8)[:, None, None])

    def _coverage(self, distance: Tensor) -> Tensor:
        """Return the share of each pixel inside an outline at signed distances (n, S, S)."""
        return distance.mul_(-self._size / 2).add_(0.5).clamp_(0, 1)

    def _ink(self, at: _Placed, digits: Tensor) -> Tensor:
        """Return the coverage (n, S, S) of enlarged digits (n, 1, 8, 8), whose outline is at two fifths of the ink."""
        grid = torch.stack((at.u, at.v), dim=-1) / at.radius[..., None]
        ink = functional.grid_sample(digits / 255, grid, mode="bilinear", align_corners=False)[:, 0]
        pixels_per_cell = (at.radius * (self._size / 8)).clamp(min=1)
        return (ink - 0.4).mul_(pixels_per_cell).add_(0.5).clamp_(0, 1)

    def _paint(self, rows: Tensor, cover: Tensor, colors: Tensor, *, kinds: Tensor | int) -> None:
        """Paint n objects over the scenes at `rows` (n,): cover (n, S, S), colors (n, C, S or 1, S or 1)."""
        self._canvas[rows] = self._canvas[rows].lerp_(colors.expand(-1, -1, self._size, self._size), cover[:, None])
        self._kinds[rows] = torch.where(cover > 0.5, kinds, self._kinds[rows])

    def _add_light_and_noise(self) -> None:
        angle, strength = self._uniform(0, 2 * math.pi, 1, 1), self._uniform(0, 0.35, 1, 1)
        light = 1 + (strength * angle.cos()) * self._x + (strength * angle.sin()) * self._y
        noise = torch.randn(self._canvas.shape, generator=self._random)
        self._canvas.mul_(light[:, None]).add_(noise.mul_(self._uniform(0.02, 0.08, 1, 1, 1)))
