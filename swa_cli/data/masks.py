"""Images with masks that give each pixel a class: pairs of files found, checked and decoded.

A mask is a PNG whose gray value or palette index is the class number; 255 is ignored. It is resized, cropped and moved
like its image.

An image is made upright as its EXIF says, and so is a mask with an orientation of its own. A mask without one is taken
as drawn on the upright image, as programs show it, unless it has the size of the stored image and not that of the
upright one: then it is rotated with the image. Where both have one size, as after half a turn, nothing tells what a
mask was drawn on, and a warning says so.
Shapes: N pairs, H W pixels.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from swa_cli.data.image_file import (
    USUAL_SUFFIXES,
    EncodedPhoto,
    Header,
    Progress,
    gray_step,
    make_upright,
    open_image,
    orientation_of,
    read_header,
    read_rgb,
    require_size,
    stored_size,
)
from swa_cli.data.listing import (
    FolderIndex,
    LeftOut,
    Listing,
    images_below,
    left_out_of,
    require_different,
    split_folders,
    splits_under,
    subfolders,
)
from swa_cli.data.paths import Paths
from swa_cli.data.photos import PhotoFiles, describe, first_size, of_looked_at, sampled_headers
from swa_cli.data.splits import Found
from swa_cli.data.transforms import IGNORED, EvaluationView, View
from swa_cli.errors import UserError

_CHECKED = 20  # masks that are read first to check their classes
_MASK_MODES = ("1", "L", "P", "I", "I;16")  # PIL's modes with one whole number per pixel


@dataclass(frozen=True, eq=False)
class MaskDataset:
    """The image and the mask of each pair of paths."""

    images: Paths
    masks: Paths
    class_of: tuple[int, ...]  # the class of each value in the files
    shape: tuple[int, int]  # (H, W) of the images where nothing is drawn
    first: str = ""  # the image that has this shape, where the view has no size
    labels: None = None  # unknown without decoding
    checksum: str = ""
    tables: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def files(self) -> Paths:
        """All files that are read."""
        return Paths.joined([self.images, self.masks])

    def name(self, row: int) -> str:
        """Return the path of an image."""
        return self.images[row]

    def photo(self, row: int) -> EncodedPhoto:
        """Return an image; see `stream.FileDataset`."""
        return EncodedPhoto(self.images[row])

    def read(self, row: int, view: View) -> tuple[Tensor, Tensor]:
        """Read the views (3, h, w) of an image and (h, w) of its mask; see `stream.FileDataset`."""
        photo = self.photo(row)
        mask = self.mask(row, size=photo.size)
        image = view.image(photo)
        require_size(image, view.size or self.shape, path=self.images[row], first=self.first)
        return image, view.mask(mask)

    def check(self, row: int) -> None:
        """Decode an image, a JPEG file at 1/8 of its size, and its mask; see `stream.FileDataset`."""
        read_rgb(self.images[row], divisor=8)
        self.mask(row, size=read_header(self.images[row]).size)

    def mask(self, row: int, *, size: tuple[int, int] | None = None) -> Tensor:
        """Read (H, W) uint8; `size` is that of the upright image, which the mask must have too."""
        path = self.masks[row]
        with open_image(path, formats=("PNG",)) as file:
            if file.mode not in _MASK_MODES:
                raise UserError(
                    f"{path}: is a color image ({file.mode}), not a mask",
                    hint="save each pixel's class number as a gray or palette PNG; colors have no meaning",
                )
            step = gray_step(file)
            file.load()
            mask = make_upright(file, orientation_of(file))
            if size not in (None, mask.size[::-1]):
                mask = make_upright(mask, read_header(self.images[row]).orientation)
            if size is not None and size != mask.size[::-1]:
                raise UserError(
                    f"{path}: is {file.width}x{file.height}, its image {self.images[row]} {size[1]}x{size[0]}",
                    hint="save both in one size",
                )
            values = np.array(mask) // step
        last = len(self.class_of) - 1
        wrong = ((values < 0) | (values > last)) & (values != IGNORED)
        if wrong.any():
            raise UserError(
                f"{path}: has the value {values[wrong][0]}, but classes are 0 to {last}",
                hint=f"number the classes from 0 ({IGNORED} is ignored), or raise dataset.args.classes",
            )
        classes = np.full(IGNORED + 1, IGNORED, dtype=np.uint8)
        classes[: last + 1] = self.class_of
        return torch.from_numpy(classes[values.astype(np.uint8)])


def find(
    root: Path,
    *,
    class_names: tuple[str, ...],
    view: EvaluationView,
    needs_training: bool = True,
    keep_in: Path | None = None,
    progress: Progress | None = None,
) -> Found:
    """Find the splits under a folder: root/train with optional root/val and root/test, or root itself.

    Each has `images/` and `masks/`, whose files have the same names except for the suffix.

    Args:
        root: The folder.
        class_names: Mask values are below their number, or 255.
        view: Of each image and mask, where nothing is drawn.
        needs_training: Whether to refuse a root without a training split.
        keep_in: Where the index of a large folder is kept, see `listing.FolderIndex`.
        progress: Called while the folders are listed.

    Raises:
        UserError: The layout is wrong, an image has no mask or a mask no image, the first masks have unknown classes,
            or a link makes two splits share images.
    """
    folders, beside = splits_under(root)
    if needs_training and "train" not in folders:
        raise _no_pairs(root / "train")
    index = FolderIndex(root, keep_in=keep_in)
    pairs = {split: _pairs(folder, split=split, index=index, progress=progress) for split, folder in folders.items()}
    require_different(part.listing for part in pairs.values())
    classes = tuple(range(len(class_names)))
    datasets = {
        split: MaskDataset(part.images, part.masks, classes, view.size or (0, 0)) for split, part in pairs.items()
    }
    first = next(iter(datasets.values()))
    _require_classes(first)
    if view.size is None:
        shape, name = first_size(first)
        datasets = {split: replace(part, shape=shape, first=name) for split, part in datasets.items()}
    photos = [PhotoFiles(part.images) for part in pairs.values()]
    headers = sampled_headers(photos)
    return Found(
        splits=datasets,
        class_names=class_names,
        contents=(*describe(photos, headers), *sum((part.left_out for part in pairs.values()), beside).describe()),
        notes=tuple(index.save()),
        warnings=_of_unknown_orientation([*datasets.values()], headers, of=of_looked_at(photos)),
    )


@dataclass(frozen=True)
class _Pairs:
    """Images and their masks, sorted by name."""

    listing: Listing  # of the images
    images: Paths
    masks: Paths
    left_out: LeftOut


def _pairs(folder: Path, *, split: str, index: FolderIndex, progress: Progress | None) -> _Pairs:
    if not all(os.path.isdir(folder / kind) for kind in ("images", "masks")):
        raise _no_pairs(folder)
    listings = list[Listing]()
    for kind in ("images", "masks"):
        listings.append(images_below([folder / kind], index=index))
        if progress:
            progress(f"listing {split} images and masks", len(listings), 2)
    images, masks = (listing.images for listing in listings)
    if not images:
        raise UserError(f"no images in {folder / 'images'}", hint=f"add some ({USUAL_SUFFIXES})")
    for path in masks:
        if not path.lower().endswith(".png"):
            raise UserError(
                f"{path}: is not a PNG", hint="save masks as PNG: other formats may change the class numbers"
            )
    image_of = _places(images, folder=folder / "images")
    mask_of = _places(masks, folder=folder / "masks")
    missing = [
        f"{images[image_of[name]]}: its mask {folder / 'masks' / name}.png is missing"
        for name in image_of.keys() - mask_of
    ] or [
        f"{masks[mask_of[name]]}: its image {folder / 'images' / name}.* is missing"
        for name in mask_of.keys() - image_of
    ]
    if missing:
        more = f", and {len(missing) - 1:,} more like it" if len(missing) > 1 else ""
        raise UserError(f"{min(missing)}{more}", hint="add the missing files, or remove these")
    left_out = sum((listing.left_out for listing in listings), left_out_of(folder, used=("images", "masks")))
    return _Pairs(listings[0], images, Paths(masks[mask_of[name]] for name in image_of), left_out)


def _places(paths: Paths, *, folder: Path) -> dict[str, int]:
    """Return the place of each path by its part inside the folder without the suffix, in the Unicode form NFC."""
    start = len(os.path.join(folder, ""))
    found: dict[str, int] = {}
    for place, path in enumerate(paths):
        name = unicodedata.normalize("NFC", path[start : path.rindex(".")])
        if found.setdefault(name, place) != place:
            raise UserError(f"{paths[found[name]]} and {path} have the same name", hint="rename or remove one of them")
    return found


def _require_classes(dataset: MaskDataset) -> None:
    """Read masks until two classes are found: 0 and 255 alone mean that 255 was meant to be a class."""
    seen: set[int] = set()
    for row in range(len(dataset)):
        try:
            seen |= set(np.unique(dataset.mask(row)).tolist())
        except OSError:
            continue  # reported with all other broken files when they are decoded
        if len(seen - {IGNORED}) > 1 or (IGNORED not in seen and row >= _CHECKED):
            return
    if IGNORED in seen:
        values = " and ".join(map(str, sorted(seen)))
        raise UserError(
            f"the masks beside {dataset.masks[0]} have only the values {values}, and {IGNORED} is ignored",
            hint=f"write the class number 1 for pixels of a class that are {IGNORED} now",
        )


def _of_unknown_orientation(
    datasets: Sequence[MaskDataset], headers: Sequence[tuple[int, int, Header]], *, of: str
) -> tuple[str, ...]:
    """Return a warning if masks have one size drawn on the upright image and on the stored one, which EXIF turns."""
    unknown = drawn_on_stored = 0
    for split, row, image in headers:
        if image.orientation == 1:
            continue
        try:
            mask = read_header(datasets[split].masks[row])
        except OSError:
            continue  # reported with all other broken files when they are decoded
        if mask.orientation == 1 and mask.size == stored_size(image):
            unknown += mask.size == image.size
            drawn_on_stored += mask.size != image.size
    if not unknown:
        return ()
    others = f", although {drawn_on_stored:,} others have the size of the stored one" if drawn_on_stored else ""
    return (
        f"mask_folder: the masks of {unknown:,} image{'s' * (unknown > 1)} turned by EXIF{of} have no orientation and"
        f" the same size either way: they are taken as drawn on the upright image{others}. If they were drawn on the"
        " stored pixels, give each mask the EXIF orientation of its image, or save both upright",
    )


def _no_pairs(folder: Path) -> UserError:
    better = _first_with_pairs(folder)
    return UserError(
        f"no images/ and masks/ in {folder}",
        hint="mask_folder reads dataset.root/train/images/*.jpg with train/masks/*.png of the same names (and test/, "
        "val/ beside train/), or dataset.root/images and dataset.root/masks"
        + (f": write dataset.root={better}" if better else ""),
    )


def _first_with_pairs(folder: Path) -> Path | None:
    """Follow single subfolders down to a folder that has `images/` and `masks/` or splits."""
    while os.path.isdir(folder) and len(below := subfolders(folder)) == 1:
        folder = folder / below[0]
        if {"images", "masks"} <= set(subfolders(folder)) or "train" in split_folders(folder):
            return folder
    return None
