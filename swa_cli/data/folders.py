"""Folders of images with one subfolder per class: found, checked and decoded.

`FolderDataset` is a list of files that reads one image at a time, or many on all cores. Images are RGB.
A layout that must be a mistake is refused: a root one level too high, a single class, a split among the classes.
Shapes: N images, H W pixels.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from swa_cli.data.image_file import USUAL_SUFFIXES, decode_rows, describe_files, first_size, read_rgb
from swa_cli.data.listing import (
    NAMED,
    NOTHING,
    LeftOut,
    images_below,
    left_out_of,
    split_folders,
    split_of,
    subfolders,
    sum_left_out,
)
from swa_cli.data.splits import Found, Progress
from swa_cli.errors import UserError


@dataclass(frozen=True, eq=False)
class FolderDataset(Dataset[tuple[Tensor, int]]):
    """(image (3, H, W) uint8, label) of each path."""

    files: tuple[str, ...]
    labels: Tensor  # (N,) int64
    resize: int | None  # side of the square images; None: all files have the same size
    shape: tuple[int, int]  # (H, W) of the images

    def __len__(self) -> int:
        return len(self.files)

    @property
    def num_bytes(self) -> int:
        """Bytes of all pixels."""
        return 3 * math.prod(self.shape) * len(self)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        pixels = self.pixels(row)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), int(self.labels[row])

    def pixels(self, row: int) -> np.ndarray:
        """Read (H, W, 3) uint8.

        Raises:
            OSError: The file is broken; the message names it.
            UserError: The size differs from the other images', or it cannot become 8-bit RGB.
        """
        path = self.files[row]
        rgb = read_rgb(path)
        if self.resize:
            rgb = _resize(rgb, side=self.resize)
        if (rgb.height, rgb.width) != self.shape:
            raise UserError(
                f"images differ in size: {self.files[0]} is {self.shape[1]}x{self.shape[0]}, "
                f"{path} is {rgb.width}x{rgb.height}",
                hint="resize all with dataset.args={size: 224}, which networks for photos expect, or"
                f" {{size: {min(self.shape)}}} for small ones",
            )
        return np.asarray(rgb)

    def decode(self, rows: Tensor, *, what: str, progress: Progress | None) -> tuple[Tensor, Tensor]:
        """Decode images (N, 3, H, W) uint8 and their labels (N,) at some rows, on all cores.

        Raises:
            UserError: Files are broken (all are counted, five are named), or images differ in size.
        """
        images = torch.empty((len(rows), 3, *self.shape), dtype=torch.uint8, memory_format=torch.channels_last)

        def read(row: int) -> tuple[np.ndarray, ...]:
            return (self.pixels(row).transpose(2, 0, 1),)

        decode_rows(read, rows=rows, into=(images.numpy(),), what=what, progress=progress)
        return images, self.labels[rows]


def find(root: Path, *, resize: int | None, classes: Sequence[str] | None = None) -> Found:
    """Find the splits under a folder and the class names.

    The layout is root/train with optional root/val and root/test (`listing.SPLITS` has their other names), or class
    folders directly under root, which are the training split. Class names are compared in the Unicode form NFC.

    Args:
        root: The folder.
        resize: Side of the square images: the shorter side is resized, then the center is cropped.
        classes: Those of trained weights: they name the classes of root/val and root/test without root/train.

    Raises:
        UserError: The layout is wrong, a class has no images, or a split has classes that training lacks.
    """
    folders = split_folders(root)
    has_splits = bool(folders)
    if not has_splits and root.is_dir():
        folders = {"train": root}
    if not folders:
        raise _no_images(root / "train")
    if "train" in folders:
        class_names = _training_classes(folders["train"], root=root)
    elif classes is not None:
        class_names = tuple(classes)
    else:
        raise _no_training(root, folders)
    parts = {split: _list_split(folder, classes=class_names) for split, folder in folders.items()}
    for split, part in parts.items():
        if not part.paths:
            raise _no_images(folders[split])
    paths = [path for part in parts.values() for path in part.paths]
    shape = (resize, resize) if resize else first_size(paths[0])
    beside = [left_out_of(root, used=[folder.name for folder in folders.values()])] if has_splits else []
    left_out = sum_left_out([*beside, *(part.left_out for part in parts.values())])
    return Found(
        splits={
            split: FolderDataset(part.paths, torch.tensor(part.labels, dtype=torch.int64), resize, shape)
            for split, part in parts.items()
        },
        class_names=class_names,
        contents=(*describe_files(paths), *left_out.describe()),
        notes=(*(note for part in parts.values() for note in part.notes), *([] if has_splits else _siblings(root))),
    )


def _resize(image: Image.Image, *, side: int) -> Image.Image:
    """Resize the shorter side to `side` (bilinear, antialiased) and crop the center, as torchvision does."""
    shorter = min(image.size)
    if shorter != side:
        width, height = (side if length == shorter else int(side * length / shorter) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (round((length - side) / 2) for length in image.size)
    return image.crop((left, top, left + side, top + side))


def _siblings(root: Path) -> list[str]:
    """Return a note on the other splits beside a root that is a training folder itself."""
    folder = root.absolute()
    others = split_folders(folder.parent) if split_of(folder.name) == "train" else {}
    unread = [f"{path.name}/" for split, path in others.items() if split != "train"]
    note = f"{' and '.join(unread)} beside {root} are not read: to read them, write dataset.root={root.parent}"
    return [note] if unread else []


@dataclass(frozen=True)
class _Part:
    """The images of a split, sorted by class and path."""

    paths: tuple[str, ...]
    labels: list[int]
    left_out: LeftOut
    notes: tuple[str, ...]


def _class_folders(folder: Path) -> dict[str, list[Path]]:
    """Return the folders of each class, whose name may be there in several Unicode forms, sorted by the name in NFC."""
    found: dict[str, list[Path]] = {}
    for name in subfolders(folder):
        found.setdefault(unicodedata.normalize("NFC", name), []).append(folder / name)
    return dict(sorted(found.items()))


def _list_split(folder: Path, *, classes: Sequence[str]) -> _Part:
    """List the images in and below the class folders of a split."""
    found = _class_folders(folder)
    unknown = [name for name in found if name not in classes]
    if unknown:
        raise UserError(
            f"{folder} has classes that the training folder lacks: {', '.join(unknown[:NAMED])}",
            hint=f"the training folder has {', '.join(classes[:NAMED])}...: name the class folders alike",
        )
    paths: list[str] = []
    labels: list[int] = []
    used = [part.name for parts in found.values() for part in parts]
    left_out = [left_out_of(folder, used=used, where="outside of class folders")]
    for label, name in enumerate(classes):
        listing = images_below(found.get(name, []))
        paths += listing.images
        labels += [label] * len(listing.images)
        left_out.append(listing.left_out)
    notes = (
        f"{folder / name} exists {len(parts)} times, in several Unicode forms: all are the class {name}"
        for name, parts in found.items()
        if len(parts) > 1
    )
    return _Part(tuple(paths), labels, sum_left_out(left_out), tuple(notes))


def _training_classes(folder: Path, *, root: Path) -> tuple[str, ...]:
    """Return the classes of the training folder, which may be the root itself.

    Raises:
        UserError: It has none, a single one, one without images, or split folders among or below the classes.
    """
    found = _class_folders(folder)
    listings = {name: images_below(parts) for name, parts in found.items()}
    if not any(listing.images for listing in listings.values()):
        raise _no_images(folder, sum_left_out(listing.left_out for listing in listings.values()))
    _require_no_splits(folder, tuple(found), root=root)
    if len(found) == 1:
        raise _single_class(folder, next(iter(found)), root=root)
    for name, listing in listings.items():
        if not listing.images:
            others = "; ".join(f"{count:,} {kind}" for kind, count in listing.left_out.files)
            raise UserError(
                f"no images in {folder / name}{f', but {others}' if others else ''}",
                hint=f"a class needs images ({USUAL_SUFFIXES}): add some, or remove its folder",
            )
    return tuple(found)


def _require_no_splits(folder: Path, classes: Sequence[str], *, root: Path) -> None:
    """Check that there are no split folders among or below the class folders."""
    nested = [
        folder / name / below for name in classes for below in _subfolders_if_any(folder / name) if split_of(below)
    ]
    tops = sorted({path.parent for path in nested})
    if nested:
        are_datasets = len(tops) == 1 or any(map(_subfolders_if_any, nested))
        raise UserError(
            f"{nested[0]}: is a split inside a class folder; dataset.root is {root}",
            hint=f"write dataset.root={' or dataset.root='.join(map(str, tops[:NAMED]))}"
            if are_datasets
            else f"move the images to {root / 'train'}/<class>/ and {root / 'test'}/<class>/",
        )
    splits = [name for name in classes if split_of(name) and _subfolders_if_any(folder / name)]
    if splits:
        raise UserError(
            f"{folder / splits[0]}: is a split among the class folders",
            hint=f"move it to {root / splits[0]}, or rename it if it is a class",
        )


def _single_class(folder: Path, name: str, *, root: Path) -> UserError:
    """Return the error for a single class; the classes may be some levels further down."""
    better = _first_with_classes(folder / name)
    if better is None:
        hint = f"add the folders of the other classes to {folder}"
    elif folder == root:
        hint = f"write dataset.root={better}"
    else:
        hint = f"move the class folders of {better} into {folder}"
    return UserError(f"{folder}: has a single class, {name}/: there is nothing to classify", hint=hint)


def _first_with_classes(folder: Path) -> Path | None:
    """Follow single subfolders down to a folder with several ones."""
    while len(below := _subfolders_if_any(folder)) == 1:
        folder = folder / below[0]
    return folder if below else None


def _subfolders_if_any(folder: Path) -> list[str]:
    """Return the subfolder names; none if the path, such as a name in another Unicode form, is not a folder."""
    return subfolders(folder) if folder.is_dir() else []


def _no_training(root: Path, folders: Mapping[str, Path]) -> UserError:
    """Return the error for a root with other splits only, and perhaps classes."""
    splits = ", ".join(f"{folder.name}/" for folder in folders.values())
    used = [folder.name for folder in folders.values()]
    others = [f"{name}/" for name in subfolders(root) if name not in used]
    beside = f" beside {', '.join(others[:NAMED])}" if others else ""
    return UserError(
        f"no class folders with images in {root / 'train'}: {root} has {splits}{beside}",
        hint=f"move the class folders into {root / 'train'}, or rename {splits} if it is a class",
    )


def _no_images(folder: Path, below: LeftOut = NOTHING) -> UserError:
    """Return the error for no images in class folders; `below` is what these contain."""
    directly = left_out_of(folder, used=(), where="outside of class folders") if folder.is_dir() else NOTHING
    others = ", ".join(f"{number:,} {kind}" for kind, number in (directly + below).files)
    return UserError(
        f"no class folders with images in {folder}{f' (there are {others})' if others else ''}",
        hint="image_folder reads dataset.root/train/<class>/*.jpg (and test/, val/ beside train/), "
        "or dataset.root/<class>/*.jpg",
    )
