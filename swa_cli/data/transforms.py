"""Views of photos: how a decoded image of any size becomes one of the network's size.

A training view is a random part, resized, rotated and changed by a policy; an evaluation view is resized and cropped at
its center. The operators are torchvision's functionals, and the random numbers are uniform ones that the caller gives,
so a view is a function of (seed, epoch, position). A mask moves like its image, and keeps its classes.
Shapes: H W pixels of a file, h w of a view.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from swa_cli.data import policies
from swa_cli.data.randomness import uniforms

Size = tuple[int, int]  # height and width
Interpolation = Literal["bilinear", "bicubic"]
NEAREST = "nearest-exact"  # of masks: "nearest" is half a pixel off
NUM_CROP_DRAWS = 22  # ten trials of area and ratio, and the place
IGNORED = 255  # the class of mask pixels that count nowhere
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485  # a file with more may be a decompression bomb


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def __floordiv__(self, divisor: int) -> Box:
        return Box(*(side // divisor for side in self))


class Photo(Protocol):
    """An image file that is decoded when its pixels are asked for."""

    @property
    def size(self) -> Size:
        """(H, W), upright."""

    def pixels(self, *, box: Box | None = None, divisor: int = 1) -> Tensor:
        """Decode a part, or all, to (3, H, W) uint8; with a divisor of 2, 4, 8 at 1/2, 1/4, 1/8, if the format can."""


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of an image (Szegedy et al. 2015, arXiv:1409.4842, section 6), chosen as torchvision does.

    Args:
        scale: Its least and greatest share of the area.
        ratio: Its least and greatest width / height; uniform in the logarithm.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def box(self, size: Size, draws: Tensor) -> Box:
        """Return the part of an image of (H, W) that `NUM_CROP_DRAWS` uniform numbers choose.

        The first of ten trials that fits; if none does, the largest part in the middle whose ratio is allowed, at
        least a pixel high and wide.
        """
        height, width = size
        *trials, top, left = draws.tolist()
        low, high = (math.log(bound) for bound in self.ratio)
        for first, second in zip(trials[::2], trials[1::2], strict=True):
            area = height * width * (self.scale[0] + first * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + second * (high - low))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return Box(int(top * (height - h + 1)), int(left * (width - w + 1)), h, w)
        h = max(1, min(height, round(width / self.ratio[0])))
        w = max(1, min(width, round(height * self.ratio[1])))
        return Box((height - h) // 2, (width - w) // 2, h, w)


class ViewDraws(NamedTuple):
    """The uniform numbers of a training view."""

    crop: Tensor  # (NUM_CROP_DRAWS,)
    rotate: float
    policy: Tensor  # (policies.NUM_DRAWS,)


def draw_views(positions: Tensor, *, seed: int, key: tuple[str | int, ...]) -> list[ViewDraws]:
    """Draw the numbers of the views at some positions (B,); each purpose has its own."""
    crops, angles, choices = (
        uniforms(positions, number, seed=seed, key=(*key, purpose))
        for purpose, number in (("crop", NUM_CROP_DRAWS), ("rotate", 1), ("policy", policies.NUM_DRAWS))
    )
    return [ViewDraws(*row) for row in zip(crops, angles.flatten().tolist(), choices, strict=True)]


class View(Protocol):
    """What is shown of one image, and of its mask."""

    @property
    def size(self) -> Size | None:
        """(h, w) of each view; None: that of its image."""

    def image(self, photo: Photo) -> Tensor:
        """Return the view (C, h, w) uint8."""

    def mask(self, mask: Tensor) -> Tensor:
        """Return the view (h, w) of a mask (H, W) of classes."""


@dataclass(frozen=True)
class EvaluationView:
    """The middle of an image: its shorter side is resized, and its center cropped.

    Args:
        size: (h, w) of the view; None shows the image as it is.
        resize: Pixels of the shorter side before the crop; None resizes the whole image to `size`, whatever its ratio.
        interpolation: How pixels are resized, with antialiasing.
    """

    size: Size | None = None
    resize: int | None = None
    interpolation: Interpolation = "bilinear"

    def describe(self) -> str:
        """Return `224 x 224 pixels`."""
        return "whole images" if self.size is None else f"{self.size[0]} x {self.size[1]} pixels"

    def image(self, photo: Photo) -> Tensor:
        """Return the view (C, h, w) uint8; what lies outside of a small image is black."""
        return self._apply(photo.pixels(), interpolation=self.interpolation, fill=0)

    def mask(self, mask: Tensor) -> Tensor:
        """Return the view (h, w) of a mask (H, W) of classes; what lies outside of it is ignored."""
        return self._apply(mask[None], interpolation=NEAREST, fill=IGNORED)[0]

    def shown_part(self, of: Size) -> tuple[Box, Box]:
        """Return the part of an image (H, W) that the view shows, and where this part lies in the view."""
        whole = Box(0, 0, *of)
        if self.size is None or self.resize is None:
            return whole, Box(0, 0, *(self.size or of))
        shorter, spans = min(of), []
        for side, shown in zip(of, self.size, strict=True):
            resized = self.resize if side == shorter else int(self.resize * side / shorter)
            start = round((resized - shown) / 2) if resized >= shown else -((shown - resized) // 2)  # as `_center`
            first, last = max(start, 0), min(start + shown, resized)
            own = round(first * side / resized), round(last * side / resized)
            spans.append((own[0], own[1] - own[0], first - start, last - first))
        (top, height, into_top, rows), (left, width, into_left, columns) = spans
        return Box(top, left, height, width), Box(into_top, into_left, rows, columns)

    def _apply(self, pixels: Tensor, *, interpolation: str, fill: int) -> Tensor:
        if self.size is None:
            return pixels
        if self.resize is None:
            return _resized(pixels, self.size, interpolation)
        pixels = _middle(pixels, resize=self.resize, shown=max(self.size))
        return _center(_resized(pixels, (self.resize,), interpolation), self.size, fill=fill)


@dataclass(frozen=True)
class Shrunk:
    """The whole image, its shorter side resized to at most `side` pixels with antialiasing; a smaller one as it is."""

    side: int
    interpolation: Interpolation = "bilinear"

    def describe(self) -> str:
        """Return `a shorter side of at most 468 pixels`."""
        return f"a shorter side of at most {self.side} pixels"

    def size_of(self, of: Size) -> Size:
        """Return the (h, w) of an image of (H, W)."""
        shorter = min(of)
        return of if shorter <= self.side else (of[0] * self.side // shorter, of[1] * self.side // shorter)

    def image(self, photo: Photo) -> Tensor:
        """Return the image (C, h, w) uint8; a file is decoded to a part of its size that is not smaller."""
        size = self.size_of(photo.size)
        divisor = next((d for d in (8, 4, 2) if min(photo.size) >= d * self.side), 1)
        pixels = photo.pixels(divisor=divisor)
        return pixels if size == photo.size else _resized(pixels, size, self.interpolation)

    def mask(self, mask: Tensor) -> Tensor:
        """Return the mask (h, w) of classes."""
        size = self.size_of((mask.shape[0], mask.shape[1]))
        return mask if size == tuple(mask.shape) else _resized(mask[None], size, NEAREST)[0]


@dataclass(frozen=True)
class TrainingView:
    """A random part of an image, resized, rotated and changed by a policy.

    Args:
        still: The view where nothing is drawn.
        crop: The random part, which needs a size of `still`; None takes what `still` shows.
        rotate: Degrees; a uniform angle up to it, either way.
        policy: One of `policies.CHOICES`, or augmix; None changes nothing.
        interpolation: How pixels are resized, rotated and sheared.
    """

    still: EvaluationView
    crop: RandomResizedCrop | None = None
    rotate: float = 0.0
    policy: str | None = None
    interpolation: Interpolation = "bilinear"

    @property
    def size(self) -> Size | None:
        """(h, w) of each view; None: that of its image."""
        return self.still.size

    @property
    def is_random(self) -> bool:
        """Whether two epochs may see different views of an image."""
        return self.crop is not None or self.rotate > 0 or self.policy is not None


@dataclass(frozen=True)
class Views:
    """How the images of a dataset are shown to the network."""

    training: TrainingView
    evaluation: EvaluationView
    others: tuple[EvaluationView, ...] = ()  # of the epochs of other sizes, where nothing is drawn

    @property
    def varies(self) -> bool:
        """Whether some epoch frames training images otherwise than evaluation."""
        stills = (self.training.still, *self.others)
        return any(still.size is not None and still != self.evaluation for still in stills)


@dataclass(frozen=True)
class DrawnView:
    """A training view with its random numbers."""

    view: TrainingView
    draws: ViewDraws

    @property
    def size(self) -> Size | None:
        """(h, w) of each view; None: that of its image."""
        return self.view.size

    def image(self, photo: Photo) -> Tensor:
        """Return the view (C, h, w) uint8.

        A file is decoded to a part of its size where its crop then still has the pixels of the view.
        """
        view = self.view
        pixels = view.still.image(photo) if view.crop is None else self._crop(photo, interpolation=view.interpolation)
        operations = self._operations(pixels)
        if operations:
            image = _to_pil(pixels)
            for operation in operations:
                image = operation.apply(image, interpolation=view.interpolation, fill=0)
            pixels = _from_pil(image)
        if view.policy == "augmix":
            pixels = policies.augmix(pixels, draws=self.draws.policy, interpolation=view.interpolation)
        return pixels

    def mask(self, mask: Tensor) -> Tensor:
        """Return the view (h, w) of a mask (H, W) of classes, moved like its image; what is uncovered is ignored."""
        if self.view.crop is None:
            pixels = self.view.still.mask(mask)
        else:
            pixels = self._crop(Pixels(mask[None]), interpolation=NEAREST)[0]
        for operation in self._operations(pixels):
            if operation.is_geometric:
                image = operation.apply(_to_pil(pixels[None]), interpolation="nearest", fill=IGNORED)
                pixels = _from_pil(image)[0]
        return pixels

    def _box(self, size: Size) -> tuple[Box, int]:
        """Return the random part, and the divisor of both sides that its file may be decoded by.

        The part then begins and ends at decoded pixels: its edges move by less than two pixels of the view.
        """
        assert self.view.crop is not None
        assert self.view.size is not None, "the recipe is checked: a random crop has a size"
        box, (height, width) = self.view.crop.box(size, self.draws.crop), self.view.size
        divisor = next((d for d in (8, 4, 2) if box.height >= d * height and box.width >= d * width), 1)
        return Box(*(side // divisor * divisor for side in box)), divisor

    def _crop(self, photo: Photo, *, interpolation: str) -> Tensor:
        assert self.view.size is not None
        box, divisor = self._box(photo.size)
        return _resized(photo.pixels(box=box, divisor=divisor), self.view.size, interpolation)

    def _operations(self, pixels: Tensor) -> list[policies.Operation]:
        """Return what is applied to the pixels (..., h, w) one after another."""
        view, found = self.view, []
        if view.rotate:
            found.append(policies.Operation("Rotate", view.rotate * (2 * self.draws.rotate - 1)))
        if view.policy is not None and view.policy in policies.CHOICES:
            size = pixels.shape[-2], pixels.shape[-1]
            found += policies.chosen(view.policy, size=size, draws=self.draws.policy)
        return [operation for operation in found if operation.name != "Identity"]


@dataclass(frozen=True, eq=False)
class Pixels:
    """A `Photo` that is decoded already: (C, H, W) uint8, or a batch (B, C, H, W) of them for an evaluation view."""

    decoded: Tensor

    @property
    def size(self) -> Size:
        """(H, W)."""
        return self.decoded.shape[-2], self.decoded.shape[-1]

    def pixels(self, *, box: Box | None = None, divisor: int = 1) -> Tensor:
        """Return a part of the pixels, or all, at full size."""
        return self.decoded if box is None else part_of(self.decoded, box)


def import_operators() -> None:
    """Import torchvision's functionals, so that loader processes that are forked later have them (half a second)."""
    importlib.import_module("torchvision.transforms.v2.functional")


def part_of(pixels: Tensor, box: Box) -> Tensor:
    """Return a box of pixels (..., H, W) as a view."""
    top, left, height, width = box
    return pixels[..., top : top + height, left : left + width]


def _middle(pixels: Tensor, *, resize: int, shown: int) -> Tensor:
    """Return the part of thin pixels (..., H, W) that a center crop shows, where the whole would grow past any file.

    Others stay as they are. `resize` is the shorter side that they get, and `shown` the pixels of the crop.
    """
    shorter, longer = sorted(pixels.shape[-2:])
    if resize * resize * longer <= MAX_PIXELS * shorter:
        return pixels
    kept = math.ceil(shown * shorter / resize) + 4  # what bicubic interpolation reads beside it
    kept = min(longer, max(shorter, kept))  # which stays the shorter side
    kept += (longer - kept) % 2  # the same center
    return pixels.narrow(-1 if pixels.shape[-1] == longer else -2, (longer - kept) // 2, kept)


def _resized(pixels: Tensor, size: tuple[int, ...], interpolation: str) -> Tensor:
    """Resize (..., H, W) to (h, w), or the shorter side to (h,)."""
    from torchvision.transforms.v2 import InterpolationMode, functional

    resized: Tensor = functional.resize(
        pixels, list(size), interpolation=InterpolationMode(interpolation), antialias=True
    )
    return resized


def _center(pixels: Tensor, size: Size, *, fill: int) -> Tensor:
    """Return the center (..., h, w) of (..., H, W) pixels, as torchvision's `center_crop`; missing ones get `fill`."""
    from torchvision.transforms.v2 import functional

    missing = [max(wanted - found, 0) for wanted, found in zip(size, pixels.shape[-2:], strict=True)]
    if any(missing):
        rows, columns = missing
        borders = [columns // 2, rows // 2, (columns + 1) // 2, (rows + 1) // 2]
        pixels = functional.pad(pixels, borders, fill=fill)
    cropped: Tensor = functional.center_crop(pixels, list(size))
    return cropped


def _to_pil(pixels: Tensor) -> Image.Image:
    """Return (1 or 3, H, W) uint8 as a PIL image: its operations are faster than those of tensors."""
    values = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
    return Image.fromarray(values.contiguous().numpy())


def _from_pil(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)
