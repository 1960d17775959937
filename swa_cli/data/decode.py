"""Image files: which there are, and their pixels decoded into memory on all cores.

What folders of classes (`folder`) and of masks (`masks`) share. A broken file is named, whatever PIL raises on it.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from swa_cli.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
NAMED = 5  # files that an error lists

# What PIL raises on files that are no images, cut short or damaged.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
_CHUNK = 256  # images per task: few enough for a lively progress bar, many enough to keep threads busy


def decode_rows(
    read: Callable[[int], tuple[np.ndarray, ...]],
    *,
    rows: Tensor,
    into: tuple[np.ndarray, ...],
    what: str,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Read rows of a folder into arrays, on all cores.

    Args:
        read: Gives the parts of a row; an OSError from it names a broken file.
        rows: Which ones (N,), in the order wanted.
        into: An array (N, ...) for each part.
        what: Shown by `progress`.
        progress: Called with (what, rows done, rows in all).

    Raises:
        UserError: Files are broken (all are counted, five are named), or `read` raises one.
    """

    def decode_chunk(first: int) -> list[str]:
        broken = []
        for place, row in enumerate(rows[first : first + _CHUNK].tolist(), start=first):
            try:
                for target, part in zip(into, read(row), strict=True):
                    target[place] = part
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
            + "\n  ".join(broken[:NAMED] + ["..."] * (len(broken) > NAMED)),
            hint="repair or remove them",
        )


@contextmanager
def broken_named(path: str) -> Iterator[None]:
    """Turn whatever PIL raises on a broken file into an OSError that names it."""
    try:
        yield
    except _BROKEN as error:
        reason = str(error).replace(f" '{path}'", "").replace(f" {path!r}", "") or type(error).__name__
        raise OSError(f"{path}: {reason}") from error


def first_size(path: str) -> tuple[int, int]:
    """(H, W) of an image.

    Raises:
        UserError: It cannot be read.
    """
    try:
        with broken_named(path), Image.open(path) as image:
            return image.height, image.width
    except OSError as error:
        raise UserError(f"1 image file cannot be read:\n  {error}", hint="repair or remove it") from error


def split_folders(root: Path) -> dict[str, Path]:
    """root/train and, if they are there, root/val and root/test; root alone is the training split.

    Empty where that cannot be meant: there is no such folder, or a part but no root/train.
    """
    folders = {split: root / split for split in ("train", "val", "test") if (root / split).is_dir()}
    if "train" in folders:
        return folders
    return {} if folders or not root.is_dir() else {"train": root}


def files_in(folder: Path) -> list[str]:
    """Paths of all files in a folder and below it, hidden ones left out, in sorted order.

    Raises:
        UserError: An image is no regular file.
    """
    found = sorted(
        os.path.join(where, file) for where, _, files in os.walk(folder) for file in files if not file.startswith(".")
    )
    for path in found:
        # Opening a pipe would wait for ever.
        if path.lower().endswith(SUFFIXES) and not os.path.isfile(path) and os.path.exists(path):
            raise UserError(f"{path}: is no regular file", hint="remove it")
    return found


def num_cores() -> int:
    """The cores this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
