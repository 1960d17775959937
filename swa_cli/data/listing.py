"""Folders of images: their splits, the image files below them, and what is left out.

Links are followed, each real folder once and none upwards, so loops end; a folder that two splits or classes share is
refused. Hidden files and folders, and what systems and archives leave behind (`CLUTTER`), are skipped silently;
everything else that is not read is counted in `LeftOut`.
Shared by folders of classes (`folders`) and of masks (`masks`).

A `FolderIndex` keeps what is in the folders of a large dataset in a file, so that they are listed once. It is a cache:
a folder is listed again when its inode, its modification time or its change time is another one, and whatever is wrong
with the file means that all are. It holds names only; what a link leads to, and the size of a file, is not in it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

from swa_cli import temporary
from swa_cli.data.image_file import SUFFIXES, USUAL_SUFFIXES
from swa_cli.data.paths import Paths
from swa_cli.errors import UserError

NAMED = 5  # classes or folders that a message lists
SPLITS = {  # folder names, case-insensitive
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "eval"),
    "test": ("test", "testing"),
}
CLUTTER = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")
KEPT_FROM = 20_000  # images: fewer are listed in some hundredths of a second
_FORMAT = 1  # of the file of a `FolderIndex`
_SETTLED_NS = 2_000_000_000  # file systems round times, to 2 s at most
_SUFFIXES = frozenset(SUFFIXES)
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

    images: Paths
    left_out: LeftOut
    folders: tuple[str, ...]  # names of those directly inside
    read: Mapping[tuple[int, int], str]  # identity -> path of each folder with images


def split_of(name: str) -> str | None:
    """Return the split that a folder name stands for (`Valid` is val), or None."""
    return _SPLIT_OF.get(name.lower())


def split_folders(root: Path) -> dict[str, Path]:
    """Return the split folders directly under a root, by split; none if the root does not exist.

    Raises:
        UserError: Two folders stand for the same split.
    """
    found: dict[str, Path] = {}
    for name in subfolders(root) if os.path.isdir(root) else ():
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
    """Return the split folders of a root and what lies beside them; the root itself is train if it has none.

    Raises:
        UserError: The root is not a folder, or two folders stand for the same split.
    """
    if not os.path.isdir(root):
        what = "is not a folder" if os.path.lexists(root) else "there is no such folder"
        raise UserError(f"{root}: {what}", hint="name the root folder of the images")
    folders = split_folders(root)
    if folders:
        return folders, left_out_of(root, used=[folder.name for folder in folders.values()])
    return {"train": root}, LeftOut()


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


def images_below(folders: Sequence[Path], *, index: FolderIndex | None = None) -> Listing:
    """List all image files in and below some folders.

    Raises:
        UserError: A folder cannot be listed.
    """
    index = FolderIndex() if index is None else index
    images: list[str] = []
    others: Counter[str] = Counter()
    above = {parent for folder in folders for path in (folder.absolute(), folder.resolve()) for parent in path.parents}
    visited = {_identity(os.stat(folder)) for folder in above}  # a link upwards would add the images of other classes
    tops = [*map(str, folders)]
    directly: list[str] = []
    read: dict[tuple[int, int], str] = {}
    waiting = [*tops]
    while waiting:
        folder = waiting.pop()
        status = os.stat(folder)
        if _identity(status) in visited:
            continue
        visited.add(_identity(status))
        found = index.contents(folder, status)
        prefix = os.path.join(folder, "")
        if found.images:
            read[_identity(status)] = folder
        images += [prefix + name for name in _split(found.images)]
        others.update(found.others)
        below = _split(found.folders)
        waiting += [prefix + name for name in reversed(below)]
        directly += below if folder in tops else []
    return Listing(Paths(sorted(images)), LeftOut(tuple(others.most_common())), tuple(directly), read)


def require_different(listings: Iterable[Listing]) -> None:
    """Check that no folder is in two listings through links: its photos would train and validate, or have two labels.

    Raises:
        UserError: One is.
    """
    seen: dict[tuple[int, int], str] = {}
    for listing in listings:
        for identity, folder in listing.read.items():
            if identity in seen:
                raise UserError(
                    f"{folder}: is the same folder as {seen[identity]}", hint="remove the link: a photo is read once"
                )
            seen[identity] = folder


@dataclass(frozen=True)
class NamedImages:
    """Image files that a person named, or folders of them, in the order that they were named."""

    images: Paths
    names: Paths  # of each, below the folder that was named; of a file alone its own
    left_out: LeftOut


def images_at(paths: Sequence[Path]) -> NamedImages:
    """List the files that are named, whatever their suffix, and all image files in and below the folders.

    Raises:
        UserError: A path is neither, a folder cannot be listed, or there is no image.
    """
    images, names, left_out = list[Paths](), list[Paths](), LeftOut()
    for path in paths:
        if os.path.isdir(path):
            listing = images_below([path])
            prefix = os.path.join(path, "")
            images.append(listing.images)
            names.append(Paths(image.removeprefix(prefix) for image in listing.images))
            left_out += listing.left_out
        elif os.path.isfile(path):
            images.append(Paths([str(path)]))
            names.append(Paths([path.name]))
        else:
            what = "is not a regular file" if os.path.exists(path) else "there is no such file or folder"
            raise UserError(f"{path}: {what}", hint="name images, or folders of images")
    found = NamedImages(Paths.joined(images), Paths.joined(names), left_out)
    if not found.images:
        others = "; ".join(left_out.describe())
        raise UserError(
            f"no images in {', '.join(map(str, paths))}{f' ({others})' if others else ''}",
            hint=f"name images, or folders with files {USUAL_SUFFIXES}",
        )
    return found


# --- what is in a folder


@dataclass(frozen=True)
class Contents:
    """What is directly inside a folder, hidden names and clutter excluded.

    Names are sorted, and joined with slashes: a million strings would take 100 MB.
    """

    images: str  # names of image files, and of broken links and pipes that are named so
    folders: str  # names of folders, and of links to them
    others: Mapping[str, int]  # the number of other files of each kind


def contents_of(folder: str) -> Contents:
    """List a folder.

    Raises:
        UserError: It cannot be listed.
    """
    images, folders = list[str](), list[str]()
    others: Counter[str] = Counter()
    for entry in _entries(folder):
        if _is_folder(entry):
            folders.append(entry.name)
        elif _is_image(entry.name):  # a broken link or a pipe is reported with the broken files
            images.append(entry.name)
        else:
            others[_kind(entry.path)] += 1
    return Contents("/".join(images), "/".join(folders), others)


class FolderIndex:
    """The contents of folders, which are kept in a file if they hold many images.

    Args:
        root: The folder that all others are below.
        keep_in: The folder of the file; None: nothing is read or kept.
        least: The number of images from which on the contents are kept.
        clock: The time in ns.
    """

    def __init__(
        self,
        root: Path = Path(),
        *,
        keep_in: Path | None = None,
        least: int = KEPT_FROM,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._root, self._least, self._clock = os.path.abspath(root), least, clock
        self._prefix = os.path.join(root, "")
        digest = hashlib.sha256(self._root.encode(errors="surrogatepass")).hexdigest()
        self._file = None if keep_in is None else keep_in / f"{digest[:16]}.jsonl.gz"
        self._kept = {} if self._file is None else self._read(self._file)
        self._used: dict[str, _Record] = {}  # to be kept
        self._is_changed = False

    def contents(self, folder: str, status: os.stat_result) -> Contents:
        """Return what is directly inside a folder of this status; it is listed only if that has changed.

        Raises:
            UserError: It cannot be listed.
        """
        name = folder.removeprefix(self._prefix)
        state = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
        record = self._kept.get(name)
        if record is None or record.state != state:
            began = self._clock()
            record = _Record(state, contents_of(folder))
            if status.st_ctime_ns > began - _SETTLED_NS:
                return record.contents  # another change may give the same time
            self._is_changed = True
        self._used[name] = record
        return record.contents

    def save(self) -> list[str]:
        """Keep the contents for the next time, if they are new and hold many images; return a note if that fails."""
        number = sum(record.contents.images.count("/") + 1 for record in self._used.values() if record.contents.images)
        is_changed = self._is_changed or len(self._used) < len(self._kept)
        if self._file is None or number < self._least or not is_changed:
            return []
        lines = ((name, record.state, *vars(record.contents).values()) for name, record in self._used.items())
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with temporary.beside(self._file) as made:
                with gzip.open(made, "wt", compresslevel=1, encoding="ascii") as file:
                    file.writelines(f"{json.dumps(line)}\n" for line in chain([self._head], lines))
                os.replace(made, self._file)
        except OSError as error:
            return [f"the list of {number:,} files is rebuilt each time: {self._file}: {error.strerror}"]
        return []

    def _read(self, path: Path) -> dict[str, _Record]:
        """Return the records of a file; none if it is missing, damaged (gzip has a checksum), or of another format."""
        try:
            with gzip.open(path, "rt", encoding="ascii") as file:
                if json.loads(next(file)) != self._head:
                    return {}
                lines = map(json.loads, file)
                return {name: _Record(tuple(state), Contents(*found)) for name, state, *found in lines}
        except (OSError, EOFError, zlib.error, ValueError, TypeError, StopIteration, RecursionError):
            return {}

    @property
    def _head(self) -> list[Any]:
        """What must be as it was: the format, the root, and which names are images."""
        return [_FORMAT, self._root, [*SUFFIXES], [*CLUTTER]]


@dataclass(frozen=True)
class _Record:
    """The contents of a folder while it had a state."""

    state: tuple[int, ...]  # inode, modification time and change time in ns
    contents: Contents


def _split(names: str) -> list[str]:
    return names.split("/") if names else []


def _is_image(name: str) -> bool:
    """Return whether a file name has the suffix of an image."""
    return name[name.rfind(".") :].lower() in _SUFFIXES


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """Return what is directly inside, sorted; hidden names and clutter excluded."""
    try:
        with os.scandir(folder) as entries:
            seen = [entry for entry in entries if entry.name[0] != "." and entry.name.lower() not in CLUTTER]
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror}", hint="make it readable, or move it") from error
    return sorted(seen, key=attrgetter("name"))


def _identity(status: os.stat_result) -> tuple[int, int]:
    """Return what all links to a folder have in common."""
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
