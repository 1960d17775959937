"""WebDataset shards: tar files in which members of one name are a sample, such as `0001.jpg` and `0001.cls`.

The headers are read once, into an index of 20 bytes per photo; a photo is then read from its place in the tar file, so
the batches of an epoch are shuffled as those of any other dataset. The key of a sample is the path of its members up to
the first dot in the file name, as webdataset has it; its members stand next to each other.
Shapes: N photos.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
import weakref
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from swa_cli.data.class_labels import LabelTexts, number_classes
from swa_cli.data.image_file import SUFFIXES
from swa_cli.data.listing import CLUTTER, NAMED, LeftOut
from swa_cli.data.photos import found
from swa_cli.data.splits import Found, Progress
from swa_cli.data.transforms import EvaluationView
from swa_cli.errors import UserError

IMAGES = tuple(suffix[1:] for suffix in SUFFIXES)
_BLOCK = tarfile.BLOCKSIZE  # a member is a header of one block and its content
_MAX_OPEN = 64  # files per process
_PER_REPORT = 2048  # members between two reports of progress
_COMPRESSED = {  # first bytes -> the command that unpacks the file
    b"\x1f\x8b": "gunzip -k",
    b"BZh": "bunzip2 -k",
    b"\xfd7zXZ\x00": "unxz -k",
    b"\x28\xb5\x2f\xfd": "unzstd",
}


@dataclass(frozen=True)
class Members:
    """Which members of a sample are read."""

    images: Sequence[str]  # extensions, without the first dot
    label: str  # extension
    field: str | None  # of the JSON object that the label is; None: the label is the whole text

    def kind(self, extension: str) -> str | None:
        """Return `image`, `label`, or None for a member that is not read."""
        if extension == self.label:
            return "label"
        return "image" if extension in self.images else None


@dataclass(frozen=True, eq=False)
class ShardPhotos:
    """`photos.Photos` in tar files."""

    files: Sequence[str]
    shards: np.ndarray  # (N,) int32: which file
    offsets: np.ndarray  # (N,) int64: of the content, in bytes
    sizes: np.ndarray  # (N,) int64
    checksum: str = ""
    _open: dict[str, _OpenFile] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.shards)

    def encoded(self, row: int) -> tuple[str, bytes]:
        """Read a photo and its name, which stands in the block before it; see `photos.Photos`."""
        path = self.files[self.shards[row]]
        size = int(self.sizes[row])
        block = self._file(path).read(_BLOCK + size, int(self.offsets[row]) - _BLOCK)
        name = f"{path}: {_name_in(block[:_BLOCK])}"
        if len(block) < _BLOCK + size:
            raise OSError(f"{name}: the file ends before the image does")
        return name, block[_BLOCK:]

    def _file(self, path: str) -> _OpenFile:
        """Return an open file; the oldest one is closed where there are many. Threads may call this at one time."""
        opened = self._open.get(path)
        if opened is None:
            for oldest in [*self._open][: len(self._open) - _MAX_OPEN + 1]:
                self._open.pop(oldest, None)
            opened = self._open[path] = _OpenFile(path)
        return opened

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": {}}


class _OpenFile:
    """A file that is closed when nobody reads it any more, which another thread may do."""

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise OSError(f"{path}: {error.strerror}") from error
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, size: int, offset: int) -> bytes:
        try:
            return os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise OSError(f"{self._path}: {error.strerror}") from error


def find(
    root: Path,
    *,
    patterns: Mapping[str, Sequence[str]],
    members: Members,
    view: EvaluationView,
    classes: Sequence[str] | None = None,
    trained: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Found:
    """Index the shards of each split.

    Args:
        root: The folder that patterns are relative to.
        patterns: Of the files of each split, such as `train-{000..099}.tar` or `train-*.tar`.
        members: Those of a sample that are read.
        view: Of each photo, where nothing is drawn.
        classes: Their names, in order; None: the labels of the training split, sorted.
        trained: Classes of weights; they stand in for a training split that is not there.
        progress: Called with the bytes read.

    Raises:
        UserError: A file is missing, compressed, damaged, or read twice; a sample has no photo or no label, or two; or
            a label is not one of the classes.
    """
    files = {split: _expand_all(root, split, given) for split, given in patterns.items()}
    _require_different(files)
    sizes = {path: os.path.getsize(path) for paths in files.values() for path in paths}
    indices: dict[str, _Index] = {}
    done = 0
    for split, paths in files.items():
        index = indices[split] = _Index(paths, members)
        for number, path in enumerate(paths):
            for position in index.read(number):
                if progress:
                    progress("reading the headers of shards", done + position, sum(sizes.values()))
            done += sizes[path]
        if not index.sizes:
            raise UserError(
                f"{paths[0]}: has no samples{index.left_out_text()}",
                hint=f"a sample is an image ({', '.join(members.images[:NAMED])}) and its {members.label}",
            )
    labels, names = number_classes(
        {split: index.labels for split, index in indices.items()},
        classes=classes,
        trained=trained,
        source=", ".join(text for given in patterns.values() for text in given),
        describe=str,
    )
    left_out = sum((index.left_out for index in indices.values()), LeftOut()).describe()
    photos = {split: index.photos() for split, index in indices.items()}
    return found(photos, labels, class_names=names, view=view, left_out=left_out)


# --- names of shards


def _expand_all(root: Path, split: str, patterns: Sequence[str]) -> list[str]:
    """Return the files of a split, in the order of the patterns, and of their names where a pattern has `*`."""
    files: list[str] = []
    for pattern in patterns:
        for name in expand_braces(pattern):
            is_glob = any(mark in name for mark in "*?[")
            found = sorted(map(str, root.glob(name))) if is_glob and not os.path.isabs(name) else [str(root / name)]
            missing = [path for path in found if not os.path.isfile(path)]
            if not found or missing:
                there = sorted(path.name for path in root.glob("*.tar*"))
                beside = f"; there are {', '.join(there[:NAMED])}" if there else ""
                raise UserError(
                    f"dataset.args.{split}: {missing[0] if missing else root / name} is not there",
                    hint=f"patterns are relative to dataset.root, {root}{beside}",
                )
            files += found
    return files


def expand_braces(pattern: str) -> list[str]:
    """Expand `a-{000..002}.tar` and `{a,b}.tar` as a shell does."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    return ["".join(chosen) for chosen in product(*(_choices(text, index) for index, text in enumerate(parts)))]


def _choices(text: str, index: int) -> list[str]:
    """Return what a part of a pattern stands for; parts with an odd index stood in braces."""
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", text) if index % 2 else None
    if bounds:
        first, last = (int(bound) for bound in bounds.groups())
        width = len(bounds[1]) if bounds[1].startswith("0") else 0
        return [f"{number:0{width}}" for number in range(first, last + 1)]
    return text.split(",") if index % 2 else [text]


def _require_different(files: Mapping[str, Sequence[str]]) -> None:
    """Check that no shard is read twice."""
    seen: dict[str, str] = {}
    for split, paths in files.items():
        for path in paths:
            real = os.path.realpath(path)
            if real in seen:
                again = "twice" if seen[real] == split else f"in the {seen[real]} split already"
                raise UserError(f"dataset.args.{split}: {path} is read {again}", hint="name each shard once")
            seen[real] = split


# --- the index


@dataclass
class _Sample:
    """The members of a key, as far as they have been read."""

    key: str
    image: tarfile.TarInfo | None = None
    label: str | None = None
    others: list[str] = field(default_factory=list)  # extensions


class _Index:
    """Where the photos of a split lie, and their labels."""

    def __init__(self, files: Sequence[str], members: Members) -> None:
        self.files, self.members = files, members
        self.labels = LabelTexts()
        self.sizes = array("q")
        self._shards, self._offsets = array("i"), array("q")
        self._others: Counter[str] = Counter()

    @property
    def left_out(self) -> LeftOut:
        """The members that are not read."""
        return LeftOut(tuple(self._others.most_common()))

    def left_out_text(self) -> str:
        return f", but {', '.join(f'{count:,} {kind}' for kind, count in self._others.most_common(NAMED))}" * bool(
            self._others
        )

    def photos(self) -> ShardPhotos:
        return ShardPhotos(
            self.files,
            np.frombuffer(self._shards, np.int32),
            np.frombuffer(self._offsets, np.int64),
            np.frombuffer(self.sizes, np.int64),
        )

    def read(self, number: int) -> Iterator[int]:
        """Read the headers of a shard; yield now and then how many bytes are done."""
        path = self.files[number]
        sample: _Sample | None = None
        for count, (tar, member) in enumerate(_members(path)):
            folder, _, name = member.name.rpartition("/")
            base, _, extension = name.partition(".")
            key = f"{folder}/{base}" if folder else base
            if sample is None or sample.key != key:
                self._finish(sample, number)
                sample = _Sample(key)
            self._take(sample, member, extension.lower(), tar=tar, path=path)
            if count % _PER_REPORT == 0:
                yield member.offset
        self._finish(sample, number)
        yield os.path.getsize(path)

    def _take(self, sample: _Sample, member: tarfile.TarInfo, extension: str, *, tar: Any, path: str) -> None:
        kind = self.members.kind(extension) if member.isreg() and not member.issparse() else None
        if kind is None:
            shown = f".{extension}" if extension else "without suffix"
            self._others[shown if member.isreg() else "link"] += 1
            sample.others.append(extension)
        elif getattr(sample, kind) is not None:
            self._refuse_second(sample, kind, extension, path=path)
        elif kind == "image":
            sample.image = member
        else:
            tar.fileobj.seek(member.offset_data)
            content = tar.fileobj.read(member.size)
            if len(content) < member.size:
                raise _damaged(path, f"it ends in {member.name}")
            sample.label = self._label(content, where=f"{path}: {member.name}")

    def _refuse_second(self, sample: _Sample, kind: str, extension: str, *, path: str) -> None:
        first = Path(sample.image.name).name.partition(".")[2] if kind == "image" and sample.image else extension
        raise UserError(
            f"{path}: {sample.key} has two {kind}s, .{first} and .{extension}",
            hint=f"name the one to read with dataset.args.{kind}={first}"
            if first != extension
            else "give each sample a name of its own",
        )

    def _label(self, content: bytes, *, where: str) -> str:
        """Return a label as text: that of the member, or of a field of its JSON object."""
        try:
            text = content.decode().strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: is not a label but binary", hint="write the class as text") from error
        if self.members.field is not None or text.startswith("{"):
            text = _json_field(text, self.members.field, where=where)
        if not text or "\n" in text:
            raise UserError(
                f"{where}: {'is empty' if not text else 'has several lines'}", hint="write one class, such as 7"
            )
        return text

    def _finish(self, sample: _Sample | None, number: int) -> None:
        """Add a sample whose members have all been read."""
        if sample is None or (sample.image is None and sample.label is None):
            return
        path = self.files[number]
        if sample.image is None or sample.label is None:
            missing = "image" if sample.image is None else "label"
            wanted = ", ".join(self.members.images[:NAMED]) if missing == "image" else self.members.label
            others = [f".{extension}" for extension in sample.others if extension]
            likely = [name for name in others if (name.rpartition(".")[2] in IMAGES) == (missing == "image")]
            hint = "put the members of a sample next to each other: tar --sort=name -cf new.tar FOLDER"
            if likely:
                hint = f"name it with dataset.args.{missing}={likely[0][1:]}"
            raise UserError(
                f"{path}: {sample.key} has no {missing} ({wanted})" + f", but {', '.join(others)}" * bool(others),
                hint=hint,
            )
        self._shards.append(number)
        self._offsets.append(sample.image.offset_data)
        self.sizes.append(sample.image.size)
        self.labels.add(sample.label, place=f"{path}: {sample.key}")


def _members(path: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the members of a tar file in order, except for folders, hidden files and what systems leave behind.

    Raises:
        UserError: It is compressed, not a tar file, or cut short.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            for magic, command in _COMPRESSED.items():
                if start.startswith(magic):
                    raise UserError(
                        f"{path}: is compressed, so photos cannot be read from the middle of it",
                        hint=f"unpack it with {command} '{path}' and name the .tar file (photos are compressed anyway)",
                    )
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # the list would grow with the shard
                    if not member.isdir() and not _is_clutter(member.name):
                        yield tar, member
                file.seek(tar.offset)
                end = file.read(_BLOCK)
    except (tarfile.TarError, OSError) as error:
        raise _damaged(path, str(error)) from error
    if end != bytes(_BLOCK):  # tarfile takes any block that is no header for the end
        raise _damaged(path, "it has no end mark" if len(end) < _BLOCK else "a header is damaged")


def _is_clutter(name: str) -> bool:
    return any(
        part.startswith((".", "__")) or part.lower() in CLUTTER for part in name.split("/") if part not in ("", ".")
    )


def _damaged(path: str, reason: str) -> UserError:
    return UserError(f"{path}: is not a whole tar file: {reason}", hint="copy or download it again")


def _json_field(text: str, name: str | None, *, where: str) -> str:
    """Return the class in a field of a JSON object; None stands for a field that was not named."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: is not JSON: {error}", hint="correct it") from error
    value = values.get(name) if isinstance(values, dict) else None
    if not isinstance(value, str | int) or isinstance(value, bool):
        is_what = "is an object" if name is None else f"{name!r} is {json.dumps(value)[:40]}"
        keys = f"with one of {', '.join(values)}" if isinstance(values, dict) and values else "of an object"
        raise UserError(
            f"{where}: {is_what}, not a class", hint=f"name the field of the class, dataset.args.field=FIELD, {keys}"
        )
    return str(value).strip()


def _name_in(header: bytes) -> str:
    """Return the name in a header, without the part that a longer one has in a header of its own."""
    name, prefix = (part.partition(b"\0")[0].decode(errors="replace") for part in (header[:100], header[345:500]))
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name
