"""Tables of photos: a csv or tsv file with a path, a label and perhaps a split in each row.

A row may have several labels, or none: in one column with a delimiter between them, or in a column of 0 and 1 per
class. Paths are relative to the root of the dataset, wherever the table lies. Every mistake is told with its line.
Shapes: N rows, K classes.
"""

from __future__ import annotations

import csv
import errno
import io
import os
import re
import stat
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from swa_cli.data.class_labels import (
    DELIMITERS,
    FLAGS,
    LabelTexts,
    how_to_have_several,
    number_classes,
    without_unlabeled,
)
from swa_cli.data.listing import NAMED, SPLITS, split_of
from swa_cli.data.paths import Paths
from swa_cli.data.photos import PhotoFiles, found
from swa_cli.data.splits import Found, Progress
from swa_cli.data.transforms import EvaluationView
from swa_cli.errors import UserError, did_you_mean

SPLIT_COLUMN = "split"  # the only column that may be missing, under this name
_DELIMITERS = {".tsv": "\t", ".tab": "\t"}  # by suffix; others have commas
_PER_REPORT = 4096  # rows between two reports of progress
_BLOCK = 4096  # paths that are packed at once


@dataclass(frozen=True)
class Columns:
    """The names of the columns."""

    path: str
    label: str
    split: str
    labels: tuple[str, ...] = ()  # a class each, of 0 and 1, in place of `label`
    delimiter: str | None = None  # between several labels in `label`

    def in_nfc(self) -> Columns:
        """Return the names in the Unicode form NFC: what is typed and what a program wrote may differ in it."""
        path, label, split, *labels = (
            unicodedata.normalize("NFC", name) for name in (self.path, self.label, self.split, *self.labels)
        )
        return Columns(path, label, split, tuple(labels), self.delimiter)


def find(
    table: Path,
    *,
    root: Path,
    columns: Columns,
    delimiter: str | None,
    view: EvaluationView,
    classes: Sequence[str] | None = None,
    trained: Sequence[str] | None = None,
    allow_missing: bool = False,
    progress: Progress | None = None,
) -> Found:
    """Read a table of photos; without a column of splits all rows are the training split.

    Spaces around values do not count; the splits have the names of `listing.SPLITS`.

    Args:
        table: The file, UTF-8, whose first row names the columns.
        root: The folder that paths in it are relative to.
        columns: Those that are read.
        delimiter: Between columns; None: a tab in .tsv and .tab files, a comma in others.
        view: Of each photo, where nothing is drawn.
        classes: Their names, in order; None: the labels of the training split, sorted.
        trained: Classes of weights; they stand in for a training split that is not there.
        allow_missing: Whether photos may be missing because unreadable ones are left out later.
        progress: Called with the bytes read.

    Raises:
        UserError: The table is not one, photos are missing or named twice, or a label or split is not what it may be.
    """
    rows = _Rows(table, root)
    delimiter = delimiter or _DELIMITERS.get(table.suffix.lower(), ",")
    _read(rows, columns, delimiter=delimiter, progress=progress)
    if not len(rows):
        raise UserError(f"{table}: has no rows below its header", hint="add a row per photo")
    if rows.num_missing and not allow_missing:
        raise _missing(rows)
    _require_different(rows)
    splits = {split: rows.splits[split] for split in SPLITS if split in rows.splits}
    texts, left_out = {split: part.labels for split, part in splits.items()}, list[str]()
    if columns.labels:
        labels, names = {split: _flags(part) for split, part in texts.items()}, columns.labels
    else:
        labels, names = number_classes(
            texts,
            classes=classes,
            trained=trained,
            source=str(table),
            describe=lambda line: f"{table}:{line}",
            delimiter=columns.delimiter,
            may_have_several=True,
        )
    if columns.labels or columns.delimiter:
        labels, left_out = without_unlabeled(labels, source=str(table))
    photos = {split: PhotoFiles(splits[split].paths) for split in labels}
    unread = f"left out columns: {', '.join(rows.unread[:NAMED])}{', ...' * (len(rows.unread) > NAMED)}"
    left_out += [unread] if rows.unread else []
    return found(photos, labels, class_names=names, view=view, left_out=left_out)


def _flags(texts: LabelTexts) -> Tensor:
    """Return the labels (N, K) uint8 of texts such as `0110`."""
    return texts.of_texts(torch.tensor([[int(flag) for flag in text] for text in texts.texts], dtype=torch.uint8))


class _Places(NamedTuple):
    """Where the columns stand."""

    path: int
    label: int | None  # None: the labels are in `labels`
    labels: tuple[int, ...]
    split: int | None  # None: all rows are training samples

    @property
    def read(self) -> set[int | None]:
        return {self.path, self.label, self.split, *self.labels}


class _Row(NamedTuple):
    line: int  # from 1
    path: str
    label: str
    split: str


@dataclass
class _SplitRows:
    """The rows of a split; their paths are packed block by block, since a million strings would take 150 MB."""

    labels: LabelTexts = field(default_factory=LabelTexts)
    lines: array[int] = field(default_factory=lambda: array("i"))
    hashes: array[int] = field(default_factory=lambda: array("q"))  # of what all paths of a file have in common
    _blocks: list[Paths] = field(default_factory=list)
    _last: list[str] = field(default_factory=list)

    def add(self, path: str, row: _Row, *, identity: object) -> None:
        self._last.append(path)
        if len(self._last) == _BLOCK:
            self._blocks.append(Paths(self._last))
            self._last.clear()
        self.labels.add(row.label, place=row.line)
        self.lines.append(row.line)
        self.hashes.append(hash(identity))

    @cached_property
    def paths(self) -> Paths:
        """The paths, once all rows have been added."""
        return Paths.joined([*self._blocks, Paths(self._last)])


@dataclass
class _Rows:
    """What has been read of a table."""

    table: Path
    root: Path
    splits: dict[str, _SplitRows] = field(default_factory=dict)
    missing: list[_Row] = field(default_factory=list)  # the first ones
    num_missing: int = 0
    unread: list[str] = field(default_factory=list)  # names of columns

    def add(self, row: _Row) -> None:
        split = split_of(row.split)
        if split is None:
            known = [name for names in SPLITS.values() for name in names]
            raise UserError(
                f"{self.table}:{row.line}: {row.split!r} is not a split",
                hint=f"{did_you_mean(row.split, known)}write train, val or test, or name the column of the splits with "
                "dataset.args.split=COLUMN",
            )
        path = os.path.join(self.root, row.path)
        identity = _identity(path)
        if identity is None:
            self.num_missing += 1
            self.missing += [row] * (self.num_missing <= NAMED)
        if split not in self.splits:
            self.splits[split] = _SplitRows()
        self.splits[split].add(path, row, identity=identity or os.path.abspath(path))

    def __len__(self) -> int:
        return sum(len(part.lines) for part in self.splits.values())

    def at(self, place: int) -> tuple[int, str]:
        """Return the line and the path of a row; rows are counted split by split."""
        for part in self.splits.values():
            if place < len(part.lines):
                break
            place -= len(part.lines)
        return part.lines[place], part.paths[place]


def _identity(path: str) -> tuple[int, int] | None:
    """Return what all links to a file have in common; None if there is no regular file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def _missing(rows: _Rows) -> UserError:
    """Return the error for photos that are not there; they may be relative to the folder of the table."""
    beside = rows.table.absolute().parent
    told = [f"{rows.table}:{row.line}: {rows.root / row.path}" for row in rows.missing]
    hint = "correct the paths, remove these rows, or leave them out with dataset.skip_broken=true"
    if all(_identity(os.path.join(beside, row.path)) for row in rows.missing):
        hint = f"paths are relative to dataset.root: write dataset.root={beside} dataset.args.file={rows.table.name}"
    return UserError(
        f"{rows.num_missing:,} of {len(rows):,} photos are not there:\n  "
        + "\n  ".join(told + ["..."] * (rows.num_missing > NAMED)),
        hint=hint,
    )


def _require_different(rows: _Rows) -> None:
    """Check that no photo has two rows, also through links: they would train and validate, or have two labels."""
    hashes = np.concatenate([np.frombuffer(part.hashes, np.int64) for part in rows.splits.values()])
    order = np.argsort(hashes, kind="stable")
    alike = np.diff(hashes[order]) == 0
    seen: dict[str, tuple[int, str]] = {}
    for place in order[np.append(alike, False) | np.append(False, alike)].tolist():  # hard links may be alike, too
        line, path = rows.at(place)
        found = seen.setdefault(os.path.realpath(path), (line, path))
        if found != (line, path):
            (first, known), (second, other) = sorted([found, (line, path)])
            also = "" if known == other else f" as {known}"
            raise UserError(
                f"{rows.table}:{second}: {other} stands on line {first} already{also}", hint="keep one row per photo"
            )


def _read(rows: _Rows, columns: Columns, *, delimiter: str, progress: Progress | None) -> None:
    """Add the rows below the header; blank lines are skipped."""
    table = rows.table
    try:
        if os.path.exists(table) and not os.path.isfile(table):  # a pipe would block for ever
            raise OSError(errno.EINVAL, "it is not a regular file")
        with open(table, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            lines = text if delimiter == " " else _without_spaces_behind_quotes(text, delimiter)
            reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
            header = [unicodedata.normalize("NFC", name.strip()) for name in next(reader, [])]
            places = _places(table, header, columns)
            rows.unread += [name or "(no name)" for place, name in enumerate(header) if place not in places.read]
            for number, values in enumerate(reader):
                if values:
                    rows.add(_row(values, header, places, columns, table=table, line=reader.line_num))
                if progress and number % _PER_REPORT == 0:
                    progress(f"reading {table.name}", file.tell(), size)
            if progress:
                progress(f"reading {table.name}", size, size)
    except OSError as error:
        raise _no_table(table, error) from error
    except UnicodeDecodeError as error:
        raise _not_utf8(table) from error
    except csv.Error as error:
        raise UserError(
            f"{table}:{reader.line_num}: is not a row of a table: {error}",
            hint='close every quote, and double quotes inside quotes: "a ""b"".jpg"',
        ) from error


def _without_spaces_behind_quotes(lines: Iterable[str], delimiter: str) -> Iterator[str]:
    """Yield the lines of a table without spaces from a closing quote to the end of its value, which csv refuses."""
    spaces = re.compile(rf"^ +(?=[{re.escape(delimiter)}\r\n]|$)")
    is_inside = False
    for line in lines:
        first, *parts = line.split('"')
        for number, part in enumerate(parts):  # each begins behind a quote; doubled quotes open again at once
            is_inside = not is_inside
            if not is_inside and (part.strip(" ") or number == len(parts) - 1):
                parts[number] = spaces.sub("", part)
        yield '"'.join([first, *parts])


def _places(table: Path, header: Sequence[str], columns: Columns) -> _Places:
    """Return where the columns of paths, labels and splits stand."""
    if not any(header):
        raise UserError(f"{table}:1: is empty", hint="name the columns in the first row, such as path,label")
    columns = columns.in_nfc()
    of_labels = [("labels", name) for name in columns.labels] or [("label", columns.label)]
    for key, name in [("path", columns.path), *of_labels, ("split", columns.split)]:
        if header.count(name) > 1:
            raise UserError(
                f"{table}:1: has {header.count(name)} columns {name!r}",
                hint=f"rename all but one, or name another column with dataset.args.{key}=COLUMN",
            )
        if name not in header and not key == name == SPLIT_COLUMN:
            raise _no_column(table, header, key, name)
    return _Places(
        header.index(columns.path),
        None if columns.labels else header.index(columns.label),
        tuple(map(header.index, columns.labels)),
        header.index(columns.split) if columns.split in header else None,
    )


def _no_column(table: Path, header: Sequence[str], key: str, name: str) -> UserError:
    marks = [mark for mark in (";", "\t", "|", ",") if len(header) == 1 and mark in header[0]]
    hint = f"{did_you_mean(name, header)}Write dataset.args.{key}=COLUMN with one of {', '.join(header)}"
    if marks:
        hint = f"its columns are separated by {marks[0]!r}: write 'dataset.args.delimiter={marks[0]}'"
    if marks == ["\t"]:
        hint = "its columns are separated by tabs: give the file the suffix .tsv"
    return UserError(f"{table}:1: has no column {name!r}", hint=hint)


def _row(
    values: Sequence[str], header: Sequence[str], places: _Places, columns: Columns, *, table: Path, line: int
) -> _Row:
    where = f"{table}:{line}"
    if len(values) != len(header):
        raise UserError(
            f"{where}: has {len(values)} values, the header {len(header)}",
            hint="give each column a value, and quote a value with a delimiter in it",
        )
    path = values[places.path].strip()
    split = "train" if places.split is None else values[places.split].strip()
    if places.label is None:
        label = "".join(_flag(values[place], header[place], where=where) for place in places.labels)
    else:
        label = values[places.label].strip()
    for name, value in (("path", path), ("label", label), ("split", split)):
        if not value and not (name == "label" and columns.delimiter):
            several = how_to_have_several([], default=DELIMITERS[0])
            beside = f". If rows have several labels, or none, write {several}" if name == "label" else ""
            raise UserError(f"{where}: the {name} is empty", hint=f"fill it in, or remove the row{beside}")
        if "\0" in value:
            raise UserError(f"{where}: the {name} has a null character", hint="export the table as text once more")
    return _Row(line, path, label, split)


def _flag(value: str, column: str, *, where: str) -> str:
    """Return the 0 or 1 of a column of a class."""
    flag = FLAGS.get(value.strip().lower())
    if flag is None:
        raise UserError(
            f"{where}: {value!r} in the column {column!r} is neither 0 nor 1",
            hint="write 1 if the photo has the label, 0 if not, or remove the row",
        )
    return str(flag)


def _no_table(table: Path, error: OSError) -> UserError:
    folder = table.parent
    others = sorted(path.name for path in folder.glob("*.[ct]sv") if path != table and os.path.isfile(path))
    hint = f"dataset.args.file is relative to dataset.root, {folder}"
    if others:
        hint = (
            f"{did_you_mean(table.name, others)}Write dataset.args.file={' or dataset.args.file='.join(others[:NAMED])}"
        )
    return UserError(f"{table}: cannot be read: {error.strerror}", hint=hint)


def _not_utf8(table: Path) -> UserError:
    """Return the error for a file of another encoding, with the first line that is not UTF-8."""
    number = 0
    with open(table, "rb") as file:
        start = file.read(4)
        file.seek(0)
        for number, line in enumerate(file, start=1):  # noqa: B007
            try:
                line.decode()
            except UnicodeDecodeError:
                break
    hint = f"save it as UTF-8: iconv -f latin1 -t utf-8 '{table}' > new.csv"
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        hint = f"save it as UTF-8: iconv -f utf-16 -t utf-8 '{table}' > new.csv"
    elif start.startswith((b"\x1f\x8b", b"PK", b"\x28\xb5\x2f\xfd")):
        hint = "unpack it, or export it as csv"
    return UserError(f"{table}:{number}: is not UTF-8 text", hint=hint)
