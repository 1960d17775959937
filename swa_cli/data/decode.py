"""Image files on all cores: their pixels decoded into memory, and their headers looked at for the plan.

What folders of classes (`folder`) and of masks (`masks`) share.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from torch import Tensor

from swa_cli.data.image_file import Header, header
from swa_cli.data.listing import NAMED
from swa_cli.errors import UserError

_CHUNK = 256  # images per task: few enough for a lively progress bar, many enough to keep threads busy
_HEADERS = 2_000  # that are looked at, some tenths of a second


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


def first_size(path: str) -> tuple[int, int]:
    """(H, W) of an image, upright.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return header(path).size
    except OSError as error:
        raise UserError(f"1 image file cannot be read:\n  {error}", hint="repair or remove it") from error


def describe_files(paths: Sequence[str]) -> list[str]:
    """What the plan says of image files: their sizes, and what is done to those that are no plain 8-bit RGB.

    Of many files some are looked at, evenly spaced, and it is said of how many.

    Raises:
        UserError: A file has too many pixels; broken ones are left to whoever reads them.
    """
    number = min(len(paths), _HEADERS)
    found = [each for each in (_header_or_none(paths[index * len(paths) // number]) for index in range(number)) if each]
    if not found:
        return []
    of = "" if number == len(paths) else f", of {number:,} looked at"
    sizes = sorted((each.size for each in found), key=lambda size: (size[0] * size[1], size))
    least, most = (f"{width}x{height}" for height, width in (sizes[0], sizes[-1]))
    facts = [f"image files of {least}{f' to {most}' if most != least else ''} pixels{of}"]
    for what, holds in _CONVERTED.items():
        if count := sum(map(holds, found)):
            facts.append(f"{count:,} {what}{of}")
    return facts


_CONVERTED: dict[str, Callable[[Header], bool]] = {
    "of 16 bits (65,535 becomes 255)": lambda each: each.is_deep,
    "with transparency (put on white)": lambda each: each.is_transparent,
    "of several frames (the first is read)": lambda each: each.has_frames,
    "turned upright by EXIF": lambda each: each.orientation != 1,
}


def _header_or_none(path: str) -> Header | None:
    try:
        return header(path)
    except OSError:
        return None


def num_cores() -> int:
    """The cores this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
