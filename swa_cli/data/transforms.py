"""Views of photos: how a decoded image of any size becomes one of the network's size.

A training view is a random part, resized, rotated and changed by a policy; an evaluation view is resized and cropped at
its center. The operators are torchvision's functionals, and the random numbers are uniform ones that the caller gives,
so a view is a function of (seed, epoch, position). A mask moves like its image, and keeps its classes.
Shapes: H W pixels of a file, h w of a view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from swa_cli.data import policies

Size = tuple[int, int]  # height and width
Interpolation = Literal["bilinear", "bicubic"]
NEAREST = "nearest-exact"  # of masks: "nearest" is half a pixel off
NUM_CROP_DRAWS = 22  # ten trials of area and ratio, and the place
IGNORED = 255  # the class of mask pixels that a change uncovers


class Photo(Protocol):
    """An image file that is decoded when its pixels are asked for."""

    @property
    def size(self) -> Size:
        """(H, W), upright."""

    def pixels(self, *, divisor: int = 1) -> Tensor:
        """Decode to (3, H, W) uint8; with a divisor of 2, 4 or 8 to that part of both sides, if the format can."""


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


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

        The first of ten trials that fits; if none does, the largest part in the middle whose ratio is allowed.
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
        h, w = min(height, round(width / self.ratio[0])), min(width, round(height * self.ratio[1]))
        return Box((height - h) // 2, (width - w) // 2, h, w)


class ViewDraws(NamedTuple):
    """The uniform numbers of a training view."""

    crop: Tensor  # (NUM_CROP_DRAWS,)
    rotate: float
    policy: Tensor  # (policies.NUM_DRAWS,)


@dataclass(frozen=True)
class EvaluationView:
    """The middle of an image: its shorter side is resized, and its center cropped.

    Args:
        size: (h, w) of the view.
        resize: Pixels of the shorter side before the crop; None resizes the whole image to `size`, whatever its ratio.
        interpolation: How pixels are resized, with antialiasing.
    """

    size: Size
    resize: int | None
    interpolation: Interpolation = "bilinear"

    def image(self, photo: Photo) -> Tensor:
        """Return the view (3, h, w) uint8; what lies outside of a small image is black."""
        return self._apply(photo.pixels(), interpolation=self.interpolation, fill=0)

    def mask(self, mask: Tensor) -> Tensor:
        """Return the view (h, w) of a mask (H, W) of classes."""
        return self._apply(mask[None], interpolation=NEAREST, fill=IGNORED)[0]

    def _apply(self, pixels: Tensor, *, interpolation: str, fill: int) -> Tensor:
        if self.resize is None:
            return _resized(pixels, self.size, interpolation)
        pixels = _resized(pixels, (self.resize,), interpolation)
        return _center(pixels, self.size, fill=fill)


@dataclass(frozen=True)
class TrainingView:
    """A random part of an image, resized, rotated and changed by a policy.

    Args:
        still: The view where nothing is drawn.
        crop: The random part; None takes what `still` shows.
        rotate: Degrees; a uniform angle up to it, either way.
        policy: One of `policies.POLICIES`; None changes nothing.
        interpolation: How pixels are resized, rotated and sheared.
    """

    still: EvaluationView
    crop: RandomResizedCrop | None = None
    rotate: float = 0.0
    policy: str | None = None
    interpolation: Interpolation = "bilinear"

    @property
    def is_random(self) -> bool:
        """Whether two epochs may see different views of an image."""
        return self.crop is not None or self.rotate > 0 or self.policy is not None

    def image(self, photo: Photo, draws: ViewDraws) -> Tensor:
        """Return the view (3, h, w) uint8.

        A file is decoded to a part of its size where its crop then still has the pixels of the view.
        """
        if self.crop is None:
            pixels = self.still.image(photo)
        else:
            box, divisor = self._box(photo.size, draws)
            part = _part(photo.pixels(divisor=divisor), box, of=photo.size)
            pixels = _resized(part, self.still.size, self.interpolation)
        operations = self._operations(draws)
        if operations:
            image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
            for operation in operations:
                image = operation.apply(image, interpolation=self.interpolation, fill=0)
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        if self.policy == "augmix":
            pixels = policies.augmix(pixels, draws=draws.policy, interpolation=self.interpolation)
        return pixels

    def mask(self, mask: Tensor, draws: ViewDraws) -> Tensor:
        """Return the view (h, w) of a mask (H, W) of classes; a policy that blends images has none."""
        if self.crop is None:
            pixels = self.still.mask(mask)
        else:
            size = mask.shape[0], mask.shape[1]
            part = _part(mask[None], self._box(size, draws)[0], of=size)
            pixels = _resized(part, self.still.size, NEAREST)[0]
        for operation in self._operations(draws):
            if operation.is_geometric:
                image = operation.apply(
                    Image.fromarray(pixels.contiguous().numpy()), interpolation="nearest", fill=IGNORED
                )
                pixels = torch.from_numpy(np.array(image))
        return pixels

    def _box(self, size: Size, draws: ViewDraws) -> tuple[Box, int]:
        """Return the random part, and the divisor of both sides that its file may be decoded by.

        The part then begins and ends at decoded pixels: it moves by half a pixel of the view at most.
        """
        assert self.crop is not None
        box, (height, width) = self.crop.box(size, draws.crop), self.still.size
        divisor = next((d for d in (8, 4, 2) if box.height >= d * height and box.width >= d * width), 1)
        return Box(*(side // divisor * divisor for side in box)), divisor

    def _operations(self, draws: ViewDraws) -> list[policies.Operation]:
        turn = [policies.Operation("Rotate", self.rotate * (2 * draws.rotate - 1))] if self.rotate else []
        if self.policy is not None and self.policy in policies.CHOICES:
            turn += policies.chosen(self.policy, size=self.still.size, draws=draws.policy)
        return [operation for operation in turn if operation.name != "Identity"]


def _part(pixels: Tensor, box: Box, *, of: Size) -> Tensor:
    """Return a box of an image of `of` (H, W) from its pixels, which may be those of a smaller decoding."""
    divisor = round(of[0] / pixels.shape[1])
    top, left, height, width = (side // divisor for side in box)
    return pixels[:, top : top + height, left : left + width]


def _resized(pixels: Tensor, size: tuple[int, ...], interpolation: str) -> Tensor:
    """Resize to (h, w), or the shorter side to (h,)."""
    from torchvision.transforms.v2 import InterpolationMode, functional

    resized: Tensor = functional.resize(
        pixels, list(size), interpolation=InterpolationMode(interpolation), antialias=True
    )
    return resized


def _center(pixels: Tensor, size: Size, *, fill: int) -> Tensor:
    """Return the center (C, h, w) of (C, H, W) pixels, as torchvision's `center_crop`; missing ones get `fill`."""
    from torchvision.transforms.v2 import functional

    missing = [max(wanted - found, 0) for wanted, found in zip(size, pixels.shape[1:], strict=True)]
    if any(missing):
        rows, columns = missing
        borders = [columns // 2, rows // 2, (columns + 1) // 2, (rows + 1) // 2]
        pixels = functional.pad(pixels, borders, fill=fill)
    cropped: Tensor = functional.center_crop(pixels, list(size))
    return cropped
