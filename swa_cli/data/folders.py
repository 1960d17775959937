"""Folders of images, one subfolder a class: found, checked and decoded.

A folder is first a `FolderDataset`, a list of paths that reads one image at a time; `decode` reads any rows
of it into one uint8 tensor on all cores. Images are always RGB (`image_file`).
Which folder is what is decided here, and what cannot be meant is refused: a root one level too high, a single class,
a split among the classes.
Shapes: N images, H W pixels.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from swa_cli.data.image_file import USUAL, read_rgb
from swa_cli.data.listing import (
    NAMED,
    NOTHING,
    LeftOut,
    all_left_out,
    decode_rows,
    describe_files,
    files_of,
    first_size,
    folders_in,
    images_below,
    split_folders,
    split_of,
)
from swa_cli.errors import UserError


@dataclass(frozen=True, eq=False)
class FolderDataset(Dataset[tuple[Tensor, int]]):
    """(image (3, H, W) uint8, label) of each path."""

    paths: tuple[str, ...]
    labels: Tensor  # (N,) int64
    resize: int | None  # side of the square images; None takes them as they are, all of one size
    shape: tuple[int, int]  # (H, W) of what comes out

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        pixels = self.pixels(row)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), int(self.labels[row])

    def pixels(self, row: int) -> np.ndarray:
        """(H, W, 3) uint8.

        Raises:
            OSError: The file is broken; the message names it.
            UserError: The size differs from the other images', or it is no 8-bit image and cannot become one.
        """
        path = self.paths[row]
        rgb = read_rgb(path)
        if self.resize:
            rgb = _resized(rgb, side=self.resize)
        if (rgb.height, rgb.width) != self.shape:
            raise UserError(
                f"images differ in size: {self.paths[0]} is {self.shape[1]}x{self.shape[0]}, "
                f"{path} is {rgb.width}x{rgb.height}",
                hint="bring all to one size with dataset.args={size: 224}, which networks for photos expect, or"
                f" {{size: {min(self.shape)}}} for small ones",
            )
        return np.asarray(rgb)


@dataclass(frozen=True)
class Folders:
    """What was found under a root."""

    datasets: dict[str, FolderDataset]  # "train", "val", "test", as far as they are there
    class_names: tuple[str, ...]  # sorted
    left_out: LeftOut
    facts: tuple[str, ...]  # of the files, for the plan
    notes: tuple[str, ...]


def find(root: Path, *, resize: int | None, classes: Sequence[str] | None = None) -> Folders:
    """Find the splits under a folder and the names of the classes.

    Either root/train, with or without root/val and root/test (`listing.SPLITS` has their other names), or class
    folders right under root, which are then the training split. Class names are compared in the Unicode form NFC.

    Args:
        root: The folder.
        resize: Bring each image to resize x resize: the shorter side first, then the middle is cut out.
        classes: Those that weights were trained on: without root/train, root/val and root/test are read by them.

    Raises:
        UserError: The layout is another one, a class has no images, or a split has classes of its own.
    """
    folders = split_folders(root)
    has_splits = bool(folders)
    if not has_splits and root.is_dir():
        folders = {"train": root}
    if not folders:
        raise _no_images(root / "train")
    if "train" in folders:
        named = _training_classes(folders["train"], root=root)
    elif classes is not None:
        named = tuple(classes)
    else:
        raise _no_training(root, folders)
    parts = {split: _listed(folder, classes=named) for split, folder in folders.items()}
    for split, part in parts.items():
        if not part.paths:
            raise _no_images(folders[split])
    every = [path for part in parts.values() for path in part.paths]
    shape = (resize, resize) if resize else first_size(every[0])
    beside = [files_of(root, taken=[folder.name for folder in folders.values()])] if has_splits else []
    return Folders(
        {
            split: FolderDataset(part.paths, torch.tensor(part.labels, dtype=torch.int64), resize, shape)
            for split, part in parts.items()
        },
        named,
        all_left_out([*beside, *(part.left_out for part in parts.values())]),
        tuple(describe_files(every)),
        (*(note for part in parts.values() for note in part.notes), *([] if has_splits else _siblings(root))),
    )


def decode(
    dataset: FolderDataset,
    *,
    rows: Tensor,
    what: str,
    progress: Callable[[str, int, int], None] | None = None,
) -> Tensor:
    """Decode rows of a folder into one (N, 3, H, W) uint8 tensor, on all cores.

    Args:
        dataset: The folder.
        rows: Which images, in the order wanted.
        what: Shown by `progress`.
        progress: Called with (what, images done, images in all).

    Raises:
        UserError: Files are broken (all are counted, five are named), or images differ in size.
    """
    images = torch.empty((len(rows), 3, *dataset.shape), dtype=torch.uint8, memory_format=torch.channels_last)

    def read(row: int) -> tuple[np.ndarray, ...]:
        return (dataset.pixels(row).transpose(2, 0, 1),)

    decode_rows(read, rows=rows, into=(images.numpy(),), what=what, progress=progress)
    return images


def _resized(image: Image.Image, *, side: int) -> Image.Image:
    """The shorter side brought to `side` (bilinear, antialiased), then the middle cut out: as torchvision."""
    shorter = min(image.size)
    if shorter != side:
        width, height = (side if length == shorter else int(side * length / shorter) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (round((length - side) / 2) for length in image.size)
    return image.crop((left, top, left + side, top + side))


def _siblings(root: Path) -> list[str]:
    """A note on the other splits beside a root that is a training folder itself."""
    folder = root.absolute()
    others = split_folders(folder.parent) if split_of(folder.name) == "train" else {}
    there = [f"{path.name}/" for split, path in others.items() if split != "train"]
    beside = f"{' and '.join(there)} beside {root} are not read: write dataset.root={root.parent} for that"
    return [beside] if there else []


@dataclass(frozen=True)
class _Part:
    """The images of a split, in the order of classes and paths."""

    paths: tuple[str, ...]
    labels: list[int]
    left_out: LeftOut
    notes: tuple[str, ...]


def _class_folders(folder: Path) -> dict[str, list[Path]]:
    """The folders of each class, whose names may be spelled in several Unicode forms; sorted by the name in NFC."""
    found: dict[str, list[Path]] = {}
    for name in folders_in(folder):
        found.setdefault(unicodedata.normalize("NFC", name), []).append(folder / name)
    return dict(sorted(found.items()))


def _listed(folder: Path, *, classes: Sequence[str]) -> _Part:
    """The images of the class folders, those in folders below them too."""
    found = _class_folders(folder)
    unknown = [name for name in found if name not in classes]
    if unknown:
        raise UserError(
            f"{folder} has classes that the training folder lacks: {', '.join(unknown[:NAMED])}",
            hint=f"the training folder has {', '.join(classes[:NAMED])}...: name the class folders alike",
        )
    paths: list[str] = []
    labels: list[int] = []
    taken = [part.name for parts in found.values() for part in parts]
    left_out = [files_of(folder, taken=taken, where="outside of class folders")]
    for label, name in enumerate(classes):
        listing = images_below(found.get(name, []))
        paths += listing.images
        labels += [label] * len(listing.images)
        left_out.append(listing.left_out)
    notes = (
        f"{folder / name} is there {len(parts)} times, in several Unicode forms: all are the class {name}"
        for name, parts in found.items()
        if len(parts) > 1
    )
    return _Part(tuple(paths), labels, all_left_out(left_out), tuple(notes))


def _training_classes(folder: Path, *, root: Path) -> tuple[str, ...]:
    """The classes of the training folder, which may be the root itself.

    Raises:
        UserError: It has none, or a single one, one without images, or folders of splits in their place or below them.
    """
    found = _class_folders(folder)
    listings = {name: images_below(parts) for name, parts in found.items()}
    if not any(listing.images for listing in listings.values()):
        raise _no_images(folder, all_left_out(listing.left_out for listing in listings.values()))
    _require_no_splits(folder, tuple(found), root=root)
    if len(found) == 1:
        raise _single_class(folder, next(iter(found)), root=root)
    for name, listing in listings.items():
        if not listing.images:
            there = "; ".join(f"{count:,} {kind}" for kind, count in listing.left_out.files)
            raise UserError(
                f"no images in {folder / name}{f', but {there}' if there else ''}",
                hint=f"a class needs images ({USUAL}): add some, or remove its folder",
            )
    return tuple(found)


def _require_no_splits(folder: Path, classes: Sequence[str], *, root: Path) -> None:
    """No folder of a split stands in place of a class, or below one."""
    nested = [folder / name / below for name in classes for below in _folders_or_none(folder / name) if split_of(below)]
    tops = sorted({path.parent for path in nested})
    if nested:
        are_datasets = len(tops) == 1 or any(map(_folders_or_none, nested))
        raise UserError(
            f"{nested[0]}: is a split inside a class folder; dataset.root is {root}",
            hint=f"write dataset.root={' or dataset.root='.join(map(str, tops[:NAMED]))}"
            if are_datasets
            else f"bring the images to {root / 'train'}/<class>/ and {root / 'test'}/<class>/",
        )
    splits = [name for name in classes if split_of(name) and _folders_or_none(folder / name)]
    if splits:
        raise UserError(
            f"{folder / splits[0]}: is a split among the class folders",
            hint=f"move it to {root / splits[0]}, or rename it if it is a class",
        )


def _single_class(folder: Path, name: str, *, root: Path) -> UserError:
    """There is nothing to tell apart; the classes may be one level further down."""
    better = _first_with_classes(folder / name)
    if better is None:
        hint = f"add the folders of the other classes to {folder}"
    elif folder == root:
        hint = f"write dataset.root={better}"
    else:
        hint = f"move the class folders of {better} into {folder}"
    return UserError(f"{folder}: has one class alone, {name}/: there is nothing to tell apart", hint=hint)


def _first_with_classes(folder: Path) -> Path | None:
    """The folder itself, or the only one below it, and so on, that holds several folders."""
    while len(below := _folders_or_none(folder)) == 1:
        folder = folder / below[0]
    return folder if below else None


def _folders_or_none(folder: Path) -> list[str]:
    """Names of the folders in a folder; none where it is no folder, as a name in another Unicode form."""
    return folders_in(folder) if folder.is_dir() else []


def _no_training(root: Path, folders: Mapping[str, Path]) -> UserError:
    """A root that has other splits alone, and perhaps classes."""
    there = ", ".join(f"{folder.name}/" for folder in folders.values())
    taken = [folder.name for folder in folders.values()]
    others = [f"{name}/" for name in folders_in(root) if name not in taken]
    beside = f" beside {', '.join(others[:NAMED])}" if others else ""
    return UserError(
        f"no class folders with images in {root / 'train'}: {root} has {there}{beside}",
        hint=f"move the class folders into {root / 'train'}, or rename {there} if it is a class",
    )


def _no_images(folder: Path, below: LeftOut = NOTHING) -> UserError:
    """There are no images in folders of classes; `below` is what there is in them."""
    right_in = files_of(folder, taken=(), where="outside of class folders") if folder.is_dir() else NOTHING
    there = ", ".join(f"{number:,} {kind}" for kind, number in (right_in + below).files)
    return UserError(
        f"no class folders with images in {folder}{f' (there are {there})' if there else ''}",
        hint="image_folder reads dataset.root/train/<class>/*.jpg (and test/, val/ beside train/), "
        "or dataset.root/<class>/*.jpg",
    )
