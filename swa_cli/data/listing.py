"""Folders of images: their splits, the files below them, and what of it is left out of a run.

Links are followed, each real folder once and none upwards, so that a loop ends. Hidden files and folders, and what
systems and archives leave behind (`CLUTTER`), are passed over without a word; whatever else is not read is counted in
`LeftOut`.

Image files on all cores: their pixels decoded into memory, and their headers looked at for the plan.

What folders of classes (`folder`) and of masks (`masks`) share.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
from torch import Tensor

from swa_cli.data.image_file import SUFFIXES, Header, header
from swa_cli.errors import UserError

NAMED = 5  # files, classes or folders that a message lists
SPLITS = {  # names of their folders, in any case
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "eval"),
    "test": ("test", "testing"),
}
CLUTTER = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")
_SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}


@dataclass(frozen=True)
class LeftOut:
    """What lies under a root and is not read: numbers of files by kind, and folders by their name under the root."""

    files: tuple[tuple[str, int], ...] = ()
    folders: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.files or self.folders)

    def __add__(self, other: LeftOut) -> LeftOut:
        files = Counter(dict(self.files)) + Counter(dict(other.files))
        return LeftOut(tuple(files.most_common()), self.folders + other.folders)

    def __str__(self) -> str:
        """`left out 21 files: 15 .heic, 6 .txt; folder extra/`."""
        parts = []
        if number := sum(count for _, count in self.files):
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.files)
            parts.append(f"{number:,} file{'s' * (number > 1)}: {kinds}")
        if self.folders:
            names = ", ".join(f"{name}/" for name in self.folders[:NAMED]) + ", ..." * (len(self.folders) > NAMED)
            parts.append(f"folder{'s' * (len(self.folders) > 1)} {names}")
        return f"left out {'; '.join(parts)}"


NOTHING = LeftOut()


@dataclass(frozen=True)
class Listing:
    """The image files of some folders and below them, in the order of their paths."""

    images: tuple[str, ...]
    left_out: LeftOut = NOTHING


def split_of(name: str) -> str | None:
    """The split that a folder of this name is: `Valid` is val; None for any other name."""
    return _SPLIT_OF.get(name.lower())


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of splits right under a root by split; empty where there are none, or no root.

    Raises:
        UserError: Two of them are of one split.
    """
    found: dict[str, Path] = {}
    for name in folders_in(root) if root.is_dir() else ():
        split = split_of(name)
        if split in found:
            raise UserError(
                f"{root}: has {found[split].name}/ and {name}/, which are both names of the {split} split",
                hint="keep one of them, and move the other one elsewhere",
            )
        if split is not None:
            found[split] = root / name
    return {split: found[split] for split in SPLITS if split in found}


def folders_in(folder: Path) -> list[str]:
    """Names of the folders right inside, and of links to folders, in sorted order; hidden ones and clutter left out."""
    return [entry.name for entry in _entries(folder) if _is_folder(entry)]


def files_of(folder: Path, *, taken: Iterable[str], where: str = "") -> LeftOut:
    """What lies right inside a folder beside the subfolders that are `taken`.

    Args:
        folder: Is looked at, but not what is below it.
        taken: Names of folders that are read.
        where: Added to the kind of the image files among it, which a person may have thought to be read.
    """
    kinds: Counter[str] = Counter()
    folders = []
    for entry in _entries(folder):
        if _is_folder(entry):
            folders += [] if entry.name in set(taken) else [entry.name]
        else:
            kind = _kind(entry.path)
            kinds[f"{kind} {where}" if where and kind in SUFFIXES else kind] += 1
    return LeftOut(tuple(kinds.most_common()), tuple(folders))


def images_below(folders: Sequence[Path]) -> Listing:
    """All image files in some folders and below them.

    Raises:
        UserError: A folder cannot be listed, or an image is no regular file.
    """
    images: list[str] = []
    others: Counter[str] = Counter()
    above = {parent for folder in folders for path in (folder.absolute(), folder.resolve()) for parent in path.parents}
    visited = {_identity(folder) for folder in above}  # a link upwards would bring the images of the other classes
    waiting = [str(folder) for folder in folders]
    while waiting:
        folder = waiting.pop()
        if _identity(folder) in visited:
            continue
        visited.add(_identity(folder))
        below = []
        for entry in _entries(folder):
            if _is_folder(entry):
                below.append(entry.path)
            elif not entry.name.lower().endswith(SUFFIXES):
                others[_kind(entry.path)] += 1
            else:
                _require_file(entry)
                images.append(entry.path)
        waiting += reversed(below)
    return Listing(tuple(sorted(images)), LeftOut(tuple(others.most_common())))


def all_left_out(parts: Iterable[LeftOut]) -> LeftOut:
    """Several of them as one."""
    return reduce(LeftOut.__add__, parts, NOTHING)


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """What is inside, in sorted order; hidden names and clutter left out."""
    try:
        with os.scandir(folder) as entries:
            seen = [entry for entry in entries if entry.name[0] != "." and entry.name.lower() not in CLUTTER]
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror}", hint="let it be read, or move it") from error
    return sorted(seen, key=lambda entry: entry.name)


def _identity(folder: Path | str) -> tuple[int, int]:
    """What is the same for all links to a folder."""
    about = os.stat(folder)
    return about.st_dev, about.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or leads to one; a link to itself does not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _require_file(entry: os.DirEntry[str]) -> None:
    """Opening a pipe would wait for ever; a link to nowhere is named with the other broken files."""
    if os.path.exists(entry.path) and not entry.is_file():
        raise UserError(f"{entry.path}: is no regular file", hint="remove it")


def _kind(path: str) -> str:
    if os.path.islink(path) and not os.path.exists(path):
        return "broken link"
    return os.path.splitext(path)[1].lower() or "without suffix"


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
