"""Folders of images: their splits, the files below them, and what of it is left out of a run.

Links are followed, each real folder once and none upwards, so that a loop ends. Hidden files and folders, and what
systems and archives leave behind (`CLUTTER`), are passed over without a word; whatever else is not read is counted in
`LeftOut`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

from swa_cli.data.image_file import SUFFIXES
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
