"""WebDataset shards: tar files in which members of one name are a sample, such as `0001.jpg` and `0001.cls`.

The headers are read once, into an index of 24 bytes per photo; a photo is then read from its place in the tar file, so
the batches of an epoch are shuffled as those of any other dataset.
Shapes: N photos.
"""

from __future__ import annotations

import glob
import io
import os
import re
import tarfile
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from swa_cli.data.class_labels import number_classes
from swa_cli.data.listing import NAMED, LeftOut
from swa_cli.data.photos import found
from swa_cli.data.shard_index import BLOCK, Index, Members
from swa_cli.data.splits import Found, Progress
from swa_cli.data.transforms import EvaluationView
from swa_cli.errors import UserError

_MAX_OPEN = 64  # files per process
_KIND = slice(156, 157)  # of a header: x has records of POSIX.1-2001, L a name of GNU tar


@dataclass(frozen=True, eq=False)
class ShardPhotos:
    """`photos.Photos` in tar files."""

    files: Sequence[str]
    shards: np.ndarray  # (N,) int32: which file
    offsets: np.ndarray  # (N,) int64: of the content, in bytes
    headers: np.ndarray  # (N,) int32: bytes before it that have its name
    sizes: np.ndarray  # (N,) int64
    checksum: str = ""
    tables: Sequence[str] = ()
    _open: dict[str, _OpenFile] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.shards)

    def encoded(self, row: int) -> tuple[str, bytes]:
        """Read a photo and its name, which stands in the headers before it; see `photos.Photos`."""
        path = self.files[self.shards[row]]
        before, size = int(self.headers[row]), int(self.sizes[row])
        blocks = self._file(path).read(before + size, int(self.offsets[row]) - before)
        name = f"{path}: {_name_in(blocks[:before])}"
        if len(blocks) < before + size:
            raise OSError(f"{name}: the file ends before the image does")
        return name, blocks[before:]

    def _file(self, path: str) -> _OpenFile:
        """Return an open file; the oldest one is closed where there are many. Threads may call this at one time."""
        opened = self._open.get(path)
        if opened is None:
            for oldest in [*self._open][: max(len(self._open) - _MAX_OPEN + 1, 0)]:
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
    indices: dict[str, Index] = {}
    done = 0
    for split, paths in files.items():
        index = indices[split] = Index(paths, members)
        for number, path in enumerate(paths):
            for position in index.read(number):
                if progress:
                    progress("reading the headers of shards", done + position, sum(sizes.values()))
            done += sizes[path]
        if not index.sizes:
            others = ", ".join(f"{count:,} {kind}" for kind, count in index.left_out.files[:NAMED])
            raise UserError(
                f"{paths[0]}: has no samples{f', but {others}' if others else ''}",
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
    photos = {split: ShardPhotos(index.files, *index.places()) for split, index in indices.items()}
    return found(photos, labels, class_names=names, view=view, left_out=left_out)


# --- names of shards


def _expand_all(root: Path, split: str, patterns: Sequence[str]) -> list[str]:
    """Return the files of a split, in the order of the patterns, and of their names where a pattern has `*`."""
    files: list[str] = []
    for pattern in patterns:
        for name in expand_braces(pattern):
            found = [str(root / name)]
            if glob.has_magic(name):
                found = sorted(glob.glob(os.path.join(glob.escape(str(root)), name), recursive=True))
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
        is_padded = any(len(bound) > 1 and bound.startswith("0") for bound in bounds.groups())
        width = max(map(len, bounds.groups())) if is_padded else 0
        step = 1 if first <= last else -1
        return [f"{number:0{width}}" for number in range(first, last + step, step)]
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


def _name_in(headers: bytes) -> str:
    """Return the name in the headers of a member: one block, or more if the name is long or not plain ASCII."""
    if len(headers) > BLOCK and (b" path=" in headers or headers[_KIND] != b"x"):  # 0.1 ms: most have other records
        with suppress(tarfile.TarError), tarfile.open(fileobj=io.BytesIO(headers), mode="r:") as tar:
            member = tar.next()
            assert member is not None, "tarfile refuses a file without a header"
            return member.name.encode(errors="surrogateescape").decode(errors="replace")
    header = headers[-BLOCK:]
    name, prefix = (part.partition(b"\0")[0].decode(errors="replace") for part in (header[:100], header[345:500]))
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name
