"""Folders of images: their splits, the image files below them, and what is left out.

Links are followed, each real folder once and none upwards, so loops end. Hidden files and folders, and what systems
and archives leave behind (`CLUTTER`), are skipped silently; everything else that is not read is counted in `LeftOut`.
Shared by folders of classes (`folders`) and of masks (`masks`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from swa_cli.data.image_file import SUFFIXES
from swa_cli.errors import UserError

NAMED = 5  # classes or folders that a message lists
SPLITS = {  # folder names, case-insensitive
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "eval"),
    "test": ("test", "testing"),
}
CLUTTER = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")
_SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}


@dataclass(frozen=True)
class LeftOut:
    """What is under a root and not read: numbers of files per kind, and names of folders."""

    files: tuple[tuple[str, int], ...] = ()
    folders: tuple[str, ...] = ()

    def __add__(self, other: LeftOut) -> LeftOut:
        files = Counter(dict(self.files)) + Counter(dict(other.files))
        return LeftOut(tuple(files.most_common()), self.folders + other.folders)

    def describe(self) -> list[str]:
        """Return `left out 21 files: 15 .heic, 6 .txt; folder extra/`; nothing where nothing was left out."""
        parts = []
        if number := sum(count for _, count in self.files):
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.files)
            parts.append(f"{number:,} file{'s' * (number > 1)}: {kinds}")
        if self.folders:
            names = ", ".join(f"{name}/" for name in self.folders[:NAMED]) + ", ..." * (len(self.folders) > NAMED)
            parts.append(f"folder{'s' * (len(self.folders) > 1)} {names}")
        return [f"left out {'; '.join(parts)}"] if parts else []


@dataclass(frozen=True)
class Listing:
    """The image files in and below some folders, sorted by path."""

    images: tuple[str, ...]
    left_out: LeftOut


def split_of(name: str) -> str | None:
    """Return the split that a folder name stands for (`Valid` is val), or None."""
    return _SPLIT_OF.get(name.lower())


def split_folders(root: Path) -> dict[str, Path]:
    """Return the split folders directly under a root, by split; none if the root does not exist.

    Raises:
        UserError: Two folders stand for the same split.
    """
    found: dict[str, Path] = {}
    for name in subfolders(root) if root.is_dir() else ():
        split = split_of(name)
        if split in found:
            raise UserError(
                f"{root}: has {found[split].name}/ and {name}/, which both mean the {split} split",
                hint="keep one of them and move the other one",
            )
        if split is not None:
            found[split] = root / name
    return {split: found[split] for split in SPLITS if split in found}


def splits_under(root: Path) -> tuple[dict[str, Path], LeftOut]:
    """Return the split folders of a root and what lies beside them; the root itself is train if it has none."""
    folders = split_folders(root)
    if folders:
        return folders, left_out_of(root, used=[folder.name for folder in folders.values()])
    return {"train": root} if root.is_dir() else {}, LeftOut()


def subfolders(folder: Path) -> list[str]:
    """Return the sorted names of folders, and links to folders, directly inside; not hidden ones or clutter."""
    return [entry.name for entry in _entries(folder) if _is_folder(entry)]


def left_out_of(folder: Path, *, used: Iterable[str], where: str = "") -> LeftOut:
    """Return what is directly inside a folder, except for the subfolders that are `used`.

    `where` is added to the kind of image files, which a person may expect to be read.
    """
    kinds: Counter[str] = Counter()
    folders = []
    for entry in _entries(folder):
        if _is_folder(entry):
            folders += [] if entry.name in set(used) else [entry.name]
        else:
            kind = _kind(entry.path)
            kinds[f"{kind} {where}" if where and kind in SUFFIXES else kind] += 1
    return LeftOut(tuple(kinds.most_common()), tuple(folders))


def images_below(folders: Sequence[Path]) -> Listing:
    """List all image files in and below some folders.

    Raises:
        UserError: A folder cannot be listed, or an image is not a regular file.
    """
    images: list[str] = []
    others: Counter[str] = Counter()
    above = {parent for folder in folders for path in (folder.absolute(), folder.resolve()) for parent in path.parents}
    visited = {_identity(folder) for folder in above}  # a link upwards would add the images of other classes
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
            elif not os.path.exists(entry.path) or entry.is_file():  # a broken link is reported with the broken files
                images.append(entry.path)
            else:  # a pipe, which would block for ever
                raise UserError(f"{entry.path}: is not a regular file", hint="remove it")
        waiting += reversed(below)
    return Listing(tuple(sorted(images)), LeftOut(tuple(others.most_common())))


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """Return what is directly inside, sorted; hidden names and clutter excluded."""
    try:
        with os.scandir(folder) as entries:
            seen = [entry for entry in entries if entry.name[0] != "." and entry.name.lower() not in CLUTTER]
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror}", hint="make it readable, or move it") from error
    return sorted(seen, key=lambda entry: entry.name)


def _identity(folder: Path | str) -> tuple[int, int]:
    """Return what all links to a folder have in common."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one; a link to itself is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _kind(path: str) -> str:
    if os.path.islink(path) and not os.path.exists(path):
        return "broken link"
    return os.path.splitext(path)[1].lower() or "without suffix"
