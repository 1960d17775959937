"""Folders of images, one subfolder a class: found, checked and decoded.

A folder is first a `FolderDataset`, a list of paths that reads one image at a time; `decode` reads any rows
of it into one uint8 tensor on all cores. Images are always RGB.
Shapes: N images, H W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from swa_cli.data.decode import NAMED, SUFFIXES, broken_named, decode_rows, files_in, first_size, split_folders
from swa_cli.data.decode import num_cores as num_cores
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
            UserError: The size differs from the other images'.
        """
        path = self.paths[row]
        with broken_named(path), Image.open(path) as image:
            rgb = image.convert("RGB")
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
    folders = split_folders(root)
    if not folders:
        raise _no_images(root / "train")
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
    shape = (resize, resize) if resize else first_size(listed["train"][0][0])
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


def _class_folders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."))


def _listed(folder: Path, *, classes: tuple[str, ...]) -> tuple[list[str], list[int]]:
    """Paths and labels of all images of the class folders, nested ones too, in sorted order."""
    unknown = sorted(set(_class_folders(folder)) - set(classes))
    if unknown:
        raise UserError(
            f"{folder} has classes that the training folder lacks: {', '.join(unknown[:NAMED])}",
            hint=f"the training folder has {', '.join(classes[:NAMED])}...: name the class folders alike",
        )
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = [path for path in files_in(folder / name) if path.lower().endswith(SUFFIXES)]
        paths += found
        labels += [label] * len(found)
    return paths, labels


def _no_images(folder: Path) -> UserError:
    return UserError(
        f"no class folders with images in {folder}",
        hint="image_folder reads dataset.root/train/<class>/*.jpg (and test/, val/ beside train/), "
        "or dataset.root/<class>/*.jpg",
    )
