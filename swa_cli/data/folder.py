"""Folders of images, one subfolder a class: found, checked and decoded.

A folder is first a `FolderDataset`, a list of paths that reads one image at a time; `decode` reads any rows
of it into one uint8 tensor on all cores. Images are always RGB.
Shapes: N images, H W pixels.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from swa_cli.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")

# What PIL raises on files that are no images, cut short or damaged.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
_CHUNK = 256  # images per task: few enough for a lively progress bar, many enough to keep threads busy
_NAMED = 5  # broken files that an error lists


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
            UserError: The size differs from the other images'.
        """
        path = self.paths[row]
        with _broken_named(path), Image.open(path) as image:
            rgb = image.convert("RGB")
        if self.resize:
            rgb = _resized(rgb, side=self.resize)
        if (rgb.height, rgb.width) != self.shape:
            raise UserError(
                f"images differ in size: {self.paths[0]} is {self.shape[1]}x{self.shape[0]}, "
                f"{path} is {rgb.width}x{rgb.height}",
                hint="bring all to one size with dataset.args={size: 32}, or another size",
            )
        return np.asarray(rgb)


def find(root: Path, *, resize: int | None) -> tuple[dict[str, FolderDataset], tuple[str, ...]]:
    """Find the splits under a folder and the names of the classes, sorted.

    Either root/train, with or without root/val and root/test, or class folders right under root, which
    are then the training split.

    Args:
        root: The folder.
        resize: Bring each image to resize x resize: the shorter side first, then the middle is cut out.

    Returns:
        The datasets by name ("train", "val", "test"), and the class names.

    Raises:
        UserError: The layout is another one, a class has no images, or a split has classes of its own.
    """
    folders = {split: root / split for split in ("train", "val", "test") if (root / split).is_dir()}
    if "train" not in folders:
        if folders or not root.is_dir():
            raise _no_images(root / "train")
        folders = {"train": root}
    classes = _class_folders(folders["train"])
    if not classes:
        raise _no_images(folders["train"])
    listed = {split: _listed(folder, classes=classes) for split, folder in folders.items()}
    for split, (paths, _) in listed.items():
        if not paths:
            raise _no_images(folders[split])
    empty = set(classes) - {classes[label] for label in listed["train"][1]}
    if empty:
        raise UserError(
            f"no images in {folders['train'] / min(empty)}",
            hint=f"a class needs images ({', '.join(SUFFIXES)}): add some, or remove its folder",
        )
    shape = (resize, resize) if resize else _first_size(listed["train"][0][0])
    return {
        split: FolderDataset(tuple(paths), torch.tensor(labels, dtype=torch.int64), resize, shape)
        for split, (paths, labels) in listed.items()
    }, classes


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
    images = torch.empty((len(rows), 3, *dataset.shape), dtype=torch.uint8)
    target = images.numpy()

    def decode_chunk(first: int) -> list[str]:
        broken = []
        for place, row in enumerate(rows[first : first + _CHUNK].tolist(), start=first):
            try:
                target[place] = dataset.pixels(row).transpose(2, 0, 1)
            except OSError as error:
                broken.append(str(error))
        return broken

    broken: list[str] = []
    pool = ThreadPoolExecutor(num_cores())
    try:
        for first, names in zip(
            range(0, len(rows), _CHUNK), pool.map(decode_chunk, range(0, len(rows), _CHUNK)), strict=True
        ):
            broken += names
            if progress:
                progress(what, min(first + _CHUNK, len(rows)), len(rows))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C and images of another size end the work at once
    if broken:
        raise UserError(
            f"{len(broken)} image file{'s' * (len(broken) > 1)} cannot be read:\n  "
            + "\n  ".join(broken[:_NAMED] + ["..."] * (len(broken) > _NAMED)),
            hint="repair or remove them",
        )
    return images


@contextmanager
def _broken_named(path: str) -> Iterator[None]:
    """Turn whatever PIL raises on a broken file into an OSError that names it."""
    try:
        yield
    except _BROKEN as error:
        reason = str(error).replace(f" '{path}'", "").replace(f" {path!r}", "") or type(error).__name__
        raise OSError(f"{path}: {reason}") from error


def _resized(image: Image.Image, *, side: int) -> Image.Image:
    """The shorter side brought to `side` (bilinear, antialiased), then the middle cut out: as torchvision."""
    shorter = min(image.size)
    if shorter != side:
        width, height = (side if length == shorter else int(side * length / shorter) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (round((length - side) / 2) for length in image.size)
    return image.crop((left, top, left + side, top + side))


def _class_folders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."))


def _listed(folder: Path, *, classes: tuple[str, ...]) -> tuple[list[str], list[int]]:
    """Paths and labels of all images of the class folders, nested ones too, in sorted order."""
    unknown = sorted(set(_class_folders(folder)) - set(classes))
    if unknown:
        raise UserError(
            f"{folder} has classes that the training folder lacks: {', '.join(unknown[:_NAMED])}",
            hint=f"the training folder has {', '.join(classes[:_NAMED])}...: name the class folders alike",
        )
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(
            os.path.join(where, file)
            for where, _, files in os.walk(folder / name)
            for file in files
            if file.lower().endswith(SUFFIXES) and not file.startswith(".")
        )
        for path in found:
            if not os.path.isfile(path) and os.path.exists(path):  # opening a pipe would wait for ever
                raise UserError(f"{path}: is no regular file", hint="remove it")
        paths += found
        labels += [label] * len(found)
    return paths, labels


def _first_size(path: str) -> tuple[int, int]:
    """(H, W) of an image."""
    try:
        with _broken_named(path), Image.open(path) as image:
            return image.height, image.width
    except OSError as error:
        raise UserError(f"1 image file cannot be read:\n  {error}", hint="repair or remove it") from error


def _no_images(folder: Path) -> UserError:
    return UserError(
        f"no class folders with images in {folder}",
        hint="image_folder reads dataset.root/train/<class>/*.jpg (and test/, val/ beside train/), "
        "or dataset.root/<class>/*.jpg",
    )


def num_cores() -> int:
    """The cores this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
