"""Datasets of Hugging Face: photos and classes in tables, from the hub or from a folder of parquet or arrow files.

The package `datasets` downloads, converts to Arrow and maps the tables into memory; a photo stays encoded until it is
read. Its splits are named as `listing.SPLITS` says. A row may have several labels: a list, a text with a delimiter
between them, or a column of 0 and 1 per class.
Shapes: N rows, K classes.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swa_cli.data.class_labels import FLAGS, UNLABELED, LabelTexts, number_classes, without_unlabeled
from swa_cli.data.listing import NAMED, SPLITS, split_of
from swa_cli.data.photos import found
from swa_cli.data.splits import Found, Progress
from swa_cli.data.transforms import EvaluationView
from swa_cli.errors import UserError, did_you_mean

PREFIX = "hf:"  # of `dataset.name`, before a name on the hub
_SUFFIXES = (".parquet", ".arrow")
_KEPT = re.compile(r"(cache-|tmp).*\.arrow")  # what the library keeps beside a table when it is filtered or mapped
_BETWEEN = "\0"  # labels of a list, in one text
_FAILURES = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError)  # what damaged files raise, too
_SPAN = 4096  # bytes of a photo that are looked at, at its begin, in its middle and at its end
_BAR = re.compile(r"\r?([^\r|]*?):? +(\d+)%\|")


@dataclass(frozen=True, eq=False)
class TablePhotos:
    """`photos.Photos` in a column of a `datasets.Dataset` that is not decoded."""

    table: Any
    column: str
    name: str  # of the split, for messages
    root: str  # that paths of photos in files of their own are relative to
    checksum: str
    files: Sequence[str]  # those of photos in files of their own
    is_local: bool  # whether the tables lie in `root`; of the hub the library keeps copies anywhere

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def tables(self) -> list[str]:
        """The parquet and arrow files of the root, whatever splits they hold."""
        return sorted(map(str, _tables_below(Path(self.root)))) if self.is_local else []

    def encoded(self, row: int) -> tuple[str, bytes | None]:
        """Return a photo, which may be a file of its own; see `photos.Photos`."""
        value = self.table[row][self.column] or {}
        path: str | None = value.get("path")
        content: bytes | None = value.get("bytes")
        if content is not None:
            return f"{self.name}, row {row}{f' ({path})' if path else ''}", content
        if path is None:
            raise OSError(f"{self.name}, row {row}: has no image")
        path = os.path.join(self.root, path)
        if not os.path.isfile(path):  # a pipe would block for ever
            raise OSError(f"{path}: {'is not a regular file' if os.path.exists(path) else 'is not there'}")
        return path, None


def find(
    name: str,
    *,
    root: Path,
    config: str | None,
    revision: str | None,
    image: str | None,
    label: str | None,
    download: bool,
    view: EvaluationView,
    labels: Sequence[str] | None = None,
    label_delimiter: str | None = None,
    classes: Sequence[str] | None = None,
    trained: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Found:
    """Load a dataset of the hub, or the folder `root`.

    Args:
        name: `hf:NAME`, such as hf:user/pets; `hf` loads the folder.
        root: The folder.
        config: The configuration, where a dataset has several.
        revision: A branch, tag or commit of a dataset of the hub.
        image: The column of the photos; None: the only one of the type Image.
        label: The column of the labels; None: the only one of the type ClassLabel, or of lists of it.
        download: Whether what is not in the library's cache may be downloaded.
        view: Of each photo, where nothing is drawn.
        labels: Columns of 0 and 1, a class each, in place of `label`; None: there are none.
        label_delimiter: Between several labels in a column of texts.
        classes: The names of the classes; None: those of the column, or the labels of the training split, sorted.
        trained: Classes of weights; they stand in for a training split that is not there.
        progress: Called before and after the library works.

    Raises:
        UserError: The package is missing, the dataset cannot be had, or its columns are not photos and classes.
    """
    hub_name = name.removeprefix(PREFIX) if name.startswith(PREFIX) else None
    if hub_name == "":
        raise UserError(
            "dataset.name: hf: names no dataset of the hub",
            hint="write hf:NAME, such as hf:user/pets, or hf for the folder dataset.root",
        )
    source = hub_name or str(root)
    if hub_name is not None and Path(hub_name).exists():  # which the library would read instead
        raise UserError(
            f"dataset.name: {name} is a dataset of the hub, and {hub_name} is there, too",
            hint=f"to read {hub_name}, write dataset.name=hf dataset.root={hub_name}; otherwise rename it",
        )
    _require_library(name)
    with _notes_of_library() as notes, _shown(f"loading {source}", progress):
        tables = _load(hub_name, root=root, config=config, revision=revision, download=download)
    parts, left_out = _named_splits(tables, source=source)
    first = next(iter(parts.values()))
    image = _column(first, "image", "Image", image, source=source)
    class_names: Sequence[str] = labels or ()
    if labels:
        known = {split: _flags(part, labels, source=f"{source}: {split}") for split, part in parts.items()}
    else:
        label = _column(first, "label", "ClassLabel", label, source=source)
        for split in [split for split, part in parts.items() if label not in part.features]:
            left_out.append(f"left out split {split}: {len(parts.pop(split)):,} rows without the column {label!r}")
        known, class_names = _labels(
            parts, label, source=source, classes=classes, trained=trained, delimiter=label_delimiter
        )
    known, unlabeled = without_unlabeled(known, source=source)
    photos = {
        split: _photos(parts[split], image, name=f"{source}: {split}", root=str(root), is_local=hub_name is None)
        for split in known
    }
    left_out += unlabeled
    return found(photos, known, class_names=class_names, view=view, left_out=left_out, notes=notes)


# --- the library


def _require_library(name: str) -> None:
    """Import the package datasets, which takes seconds and is optional."""
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"dataset.name: {name} needs the package datasets: {error}", hint='pip install "swa-cli[hf]"'
        ) from error


def _load(
    hub_name: str | None, *, root: Path, config: str | None, revision: str | None, download: bool
) -> Mapping[str, Any]:
    """Return the tables of a dataset by the names of its splits."""
    import datasets

    source = hub_name or str(root)
    try:
        with _offline(not download):
            if hub_name is not None:
                loaded = datasets.load_dataset(hub_name, config, revision=revision)
            elif any(os.path.isfile(root / name) for name in ("state.json", "dataset_dict.json")):
                loaded = datasets.load_from_disk(str(root.absolute()))  # what `save_to_disk` wrote
            else:
                _require_tables(root)
                loaded = datasets.load_dataset(
                    str(root.absolute()), config
                )  # `parquet` alone is a reader of the library
    except (*_FAILURES, datasets.exceptions.DatasetsError) as error:
        raise _not_loaded(source, error, is_hub=hub_name is not None, download=download) from error
    return loaded if isinstance(loaded, Mapping) else {"train": loaded}


def _require_tables(root: Path) -> None:
    if not os.path.isdir(root):
        raise UserError(f"{root}: is not a folder", hint="write dataset.root=FOLDER with the folder of the tables")
    if not any(_tables_below(root)):
        raise UserError(
            f"{root}: has no .parquet or .arrow files",
            hint="hf reads dataset.root/train*.parquet (and test*, validation*), or what save_to_disk wrote; "
            "hf:NAME reads a dataset of the hub",
        )


def _tables_below(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        tables = (name for name in names if name.endswith(_SUFFIXES) and not _KEPT.match(name))
        yield from (Path(folder, name) for name in tables)


def _not_loaded(source: str, error: BaseException, *, is_hub: bool, download: bool) -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    hint = "check the files, and dataset.args.config where there are several configurations"
    if isinstance(error, ConnectionError):
        reason = "is not in the cache of the package datasets, and the hub cannot be reached"
        hint = f"download it where there is a network: hf download --repo-type dataset {source}"
        if not download:
            reason = "is not in the cache of the package datasets, and dataset.download is false"
            hint = "allow it with dataset.download=true"
    elif is_hub:
        hint = f"see https://huggingface.co/datasets/{source}: the name, dataset.args.config and dataset.args.revision"
    return UserError(f"{source}: {reason}", hint=hint)


@contextmanager
def _offline(is_offline: bool) -> Iterator[None]:
    """Keep the library from the network; its environment variable is read when it is imported."""
    import datasets
    import huggingface_hub

    places: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places if is_offline else ():
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


@contextmanager
def _notes_of_library() -> Iterator[list[str]]:
    """Yield a list of what the package datasets warns of, such as a copy from its cache without a look at the hub.

    What its client of the hub says, which are mostly its retries, is dropped.
    """
    notes: list[str] = []
    heard, dropped = logging.Handler(logging.WARNING), logging.NullHandler()
    heard.emit = lambda record: notes.append(record.getMessage().strip())  # type: ignore[method-assign]
    loggers = {logging.getLogger("datasets"): heard, logging.getLogger("huggingface_hub"): dropped}
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    try:
        for logger, handler in loggers.items():
            logger.handlers, logger.propagate = [handler], False
        yield notes
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate


@contextmanager
def _shown(what: str, progress: Progress | None) -> Iterator[None]:
    """Show the work of the library, and its bars, as progress."""
    progress = progress or (lambda what, done, total: None)
    progress(what, 0, 1)
    with redirect_stderr(_Bars(what, progress)):
        yield
    progress(what, 1, 1)


class _Bars(io.TextIOBase):
    """A stand-in for stderr that reads the bars which tqdm draws, such as `Downloading data:  45%|...`."""

    def __init__(self, what: str, progress: Progress) -> None:
        self._what, self._progress, self._stderr = what, progress, sys.stderr
        self._in_line = False  # of text that is no bar

    def write(self, text: str) -> int:
        found = _BAR.search(text)
        if found:
            self._progress(found[1].strip() or self._what, int(found[2]), 100)
        elif text and (self._in_line or text[0] not in "\r\n\x1b"):  # bars without a total, and their ends, begin so
            self._stderr.write(text)
            self._in_line = not text.endswith("\n")
        return len(text)

    def isatty(self) -> bool:
        return True  # otherwise some bars are not drawn


# --- splits and columns


def _named_splits(tables: Mapping[str, Any], *, source: str) -> tuple[dict[str, Any], list[str]]:
    """Return the tables by the splits that they are, and sentences on those that are none."""
    parts: dict[str, Any] = {}
    names: dict[str, str] = {}
    left_out = []
    for name, table in tables.items():
        split = split_of(name)
        if split is None or not len(table):
            left_out.append(f"left out split {name}: {len(table):,} rows")
        elif split in parts:
            raise UserError(
                f"{source}: has {names[split]} and {name}, which both mean the {split} split",
                hint="name another configuration with dataset.args.config, or rename one of them",
            )
        else:
            parts[split], names[split] = table, name
    if not parts:
        raise UserError(
            f"{source}: has no rows in a split that is known; it has {', '.join(tables) or 'none'}",
            hint="name its splits train, validation and test",
        )
    return {split: parts[split] for split in SPLITS if split in parts}, left_out


def _column(table: Any, key: str, kind: str, given: str | None, *, source: str) -> str:
    """Return the column that is given, or the only one whose feature is of a kind."""
    features = table.features
    names = [given] if given in features else []
    if given is None:
        names = [name for name, feature in features.items() if type(_item(feature)).__name__ == kind]
    if len(names) == 1 and names[0] is not None:
        return names[0]
    listed = ", ".join(f"{name} ({_described(feature)})" for name, feature in features.items())
    message = f"has no column {given!r}" if given else f"has {len(names) or 'no'} columns of the type {kind}"
    suggestion = did_you_mean(given, features) if given else ""
    raise UserError(
        f"{source}: {message}; its columns are {listed}",
        hint=f"{suggestion}Name the column with dataset.args.{key}={names[0] if names else 'COLUMN'}",
    )


def _described(feature: Any) -> str:
    """Return `ClassLabel`, `Image`, `int64`, `a struct of bytes, path`, or `a list of string`."""
    kind = _item(feature)
    name = type(kind).__name__
    if isinstance(kind, Mapping):
        name = f"a struct of {', '.join(kind)}"
    elif name not in ("ClassLabel", "Image"):
        name = str(getattr(kind, "dtype", name))
    return name if kind is feature else f"a list of {name}"


def _item(feature: Any) -> Any:
    """Return the feature of the items of a list; another feature as it is."""
    return feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)


def _photos(table: Any, column: str, *, name: str, root: str, is_local: bool) -> TablePhotos:
    """Return the photos of a column: of the type Image, or of bytes or paths, as files of other programs have them."""
    from datasets import Image

    try:
        table = table.select_columns([column]).cast_column(column, Image(decode=False))
        checksum, paths = _identify(table, column)
    except (TypeError, ValueError, KeyError, NotImplementedError) as error:  # pyarrow's errors are of these types
        raise UserError(
            f"{name}: its column {column!r} does not hold images: {str(error).splitlines()[0]}",
            hint="name the column of the images with dataset.args.image=COLUMN",
        ) from error
    files = [os.path.join(root, path) for path in paths]
    return TablePhotos(table, column, name, root, checksum, files=files, is_local=is_local)


def _identify(table: Any, column: str) -> tuple[str, list[str]]:
    """Return a checksum of the photos whose bytes are in a column, and the paths of the others.

    The checksum is of lengths and names, and of parts of the photos that these do not tell apart, such as bitmaps.
    """
    import pyarrow.compute as pc

    described: list[tuple[int, str]] = []  # length and name; -1 and a path of a photo in a file of its own
    for batch in table.with_format("arrow").iter(1024):
        contents, names = (pc.struct_field(batch[column], field) for field in ("bytes", "path"))
        lengths = pc.fill_null(pc.cast(pc.binary_length(contents), "int64"), -1)
        described += zip(lengths.to_pylist(), pc.fill_null(names, "").to_pylist(), strict=True)
    digest = hashlib.sha256()
    for length, name in described:
        digest.update(f"{length}\0{name if length >= 0 else ''}\0".encode(errors="surrogateescape"))
    found = Counter(described)
    alike = [row for row, known in enumerate(described) if known[0] >= 0 and found[known] > 1]
    for first in range(0, len(alike), 1024):
        batch = table.with_format("arrow").select(alike[first : first + 1024])[:]
        for content in pc.struct_field(batch[column], "bytes"):
            photo = memoryview(content.as_buffer())
            for begin in (0, max(len(photo) // 2 - _SPAN // 2, 0), max(len(photo) - _SPAN, 0)):
                digest.update(photo[begin : begin + _SPAN])
    return digest.hexdigest(), [name for length, name in described if length < 0 and name]


def _labels(
    parts: Mapping[str, Any],
    column: str,
    *,
    source: str,
    classes: Sequence[str] | None,
    trained: Sequence[str] | None,
    delimiter: str | None,
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the classes of each split, (N,) or (N, K), and their names; -1 is no class, as test sets may have it."""
    feature = next(iter(parts.values())).features[column]
    kind = _item(feature)
    is_list, is_numbered = kind is not feature, type(kind).__name__ == "ClassLabel"
    for split, part in parts.items():
        own = part.features[column]
        if (_item(own) is not own, type(_item(own)).__name__ == "ClassLabel") != (is_list, is_numbered):
            raise UserError(
                f"{source}: {split} has {_described(own)} in the column {column!r}, and {next(iter(parts))}"
                f" {_described(feature)}",
                hint=f"encode all splits together, or take the column {column!r} out of the one that has no labels",
            )
    values = {split: table.select_columns([column]).with_format("arrow")[:][column] for split, table in parts.items()}
    if delimiter is not None and (is_list or is_numbered):
        raise UserError(
            f"dataset.args.label_delimiter: the column {column!r} of {source} holds no texts to divide",
            hint="leave it out",
        )
    for split, found_values in values.items():
        if found_values.null_count and not (is_list or delimiter):
            row = next(row for row, value in enumerate(found_values) if not value.is_valid)
            raise UserError(f"{source}: {split}, row {row}: has no {column}", hint="remove the row, or fill it in")
    if is_numbered:
        number_of, names = _numbers_of(kind.names, classes, source=source)
        labels = {}
        for split, each in values.items():
            place = f"{source}: {split}"
            numbers = _numbers_in(_item(parts[split].features[column]).names, number_of, place=place)
            if is_list:
                sets = _sets(each, len(numbers), place=place)
                labels[split] = torch.zeros(len(sets), len(names), dtype=torch.uint8)
                labels[split][:, numbers] = sets
            else:
                labels[split] = _renumbered(torch.from_numpy(each.to_numpy().astype(np.int64)), numbers, place=place)
        return labels, names
    if str(getattr(kind, "dtype", "")) not in _TEXTS_AND_NUMBERS:
        raise UserError(
            f"{source}: its column {column!r} is {getattr(kind, 'dtype', kind)}, not classes",
            hint="name a column of class names or numbers with dataset.args.label=COLUMN",
        )
    texts = {split: _texts(found_values, place=f"{source}: {split}") for split, found_values in values.items()}
    delimiter = _BETWEEN if is_list else delimiter
    for each in texts.values():
        if delimiter is None and "" in each.texts:
            raise UserError(
                f"{each.places[each.texts.index('')]}: the {column} is empty",
                hint="fill it in, or remove the row",
            )
    return number_classes(
        texts, classes=classes, trained=trained, source=source, describe=str, delimiter=delimiter, may_have_several=True
    )


def _numbers_of(
    own: Sequence[str], classes: Sequence[str] | None, *, source: str
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the number of each class that the dataset names, and the names: its own, those given, or its own renamed.

    Raises:
        UserError: `classes` are neither the names of the dataset in some order nor as many other names.
    """
    names = tuple(classes or own)
    if set(names) == set(own):
        return {name: names.index(name) for name in own}, names
    if len(names) != len(own):
        raise UserError(
            f"dataset.args.classes: has {len(names)} names, {source} has {len(own)} classes",
            hint="leave it out: the dataset has names of its own",
        )
    if same := [name for name in own if name in names]:
        raise UserError(
            f"dataset.args.classes: {source} has a class {same[0]!r}, too, and others: it is not told which is which",
            hint=f"order the names of the dataset, or leave it out: {', '.join(own[:NAMED])}",
        )
    return {name: number for number, name in enumerate(own)}, names


def _numbers_in(own: Sequence[str], number_of: Mapping[str, int], *, place: str) -> Tensor:
    """Return the class (K,) of each name that a split has for its numbers: splits may be encoded one by one.

    Raises:
        UserError: It has a name that the first split lacks.
    """
    if unknown := [name for name in own if name not in number_of]:
        raise UserError(
            f"{place}: has a class {unknown[0]!r}, which the first split lacks",
            hint=f"encode all splits together, or remove the rows of this class: {', '.join([*number_of][:NAMED])}",
        )
    return torch.tensor([number_of[name] for name in own])


def _renumbered(labels: Tensor, numbers: Tensor, *, place: str) -> Tensor:
    """Return the classes of labels (N,) that count the names of their own split; -1 stays: no label."""
    if len(wrong := (labels >= len(numbers)).nonzero()):
        row = int(wrong[0])
        raise UserError(
            f"{place}, row {row}: the label {int(labels[row])} is not one of {len(numbers)} classes",
            hint="correct the label, or remove the row",
        )
    return torch.where(labels < 0, labels, numbers[labels.clamp(min=0)])


def _sets(column: Any, num_classes: int, *, place: str) -> Tensor:
    """Return the labels (N, K) uint8 of a column of lists of classes; a missing list is an empty one."""
    import pyarrow.compute as pc

    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    rows = torch.arange(len(lengths)).repeat_interleave(torch.from_numpy(lengths.astype(np.int64)))
    numbers = torch.from_numpy(pc.fill_null(pc.list_flatten(column), UNLABELED).to_numpy().astype(np.int64))
    if len(wrong := ((numbers < 0) | (numbers >= num_classes)).nonzero()):
        first = int(wrong[0])
        raise UserError(
            f"{place}, row {int(rows[first])}: the label {int(numbers[first])} is not one of {num_classes} classes",
            hint="correct the list, or leave it empty where there is no label",
        )
    found = torch.zeros(len(lengths), num_classes, dtype=torch.uint8)
    found[rows, numbers] = 1
    return found


def _flags(table: Any, columns: Sequence[str], *, source: str) -> Tensor:
    """Return the labels (N, K) uint8 of a column of 0 and 1 per class."""
    for column in columns:
        if column not in table.features:
            raise UserError(
                f"{source}: has no column {column!r}; its columns are {', '.join(table.features)}",
                hint=f"{did_you_mean(column, table.features)}Correct dataset.args.labels",
            )
    values = table.select_columns([*columns]).with_format("arrow")[:]
    found = []
    for column in columns:
        texts = (str(value).lower() for value in values[column].to_pylist())
        flags = [FLAGS.get(text) for text in texts]
        if None in flags:
            row = flags.index(None)
            raise UserError(
                f"{source}, row {row}: {values[column][row].as_py()!r} in the column {column!r} is neither 0 nor 1",
                hint="write 1 if the photo has the label, 0 if not, or remove the row",
            )
        found.append(torch.tensor(flags, dtype=torch.uint8))
    return torch.stack(found, dim=1)


_TEXTS_AND_NUMBERS = (
    "string",
    "large_string",
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)


def _texts(column: Any, *, place: str) -> LabelTexts:
    texts = LabelTexts()
    for row, value in enumerate(column):
        found = value.as_py()
        if isinstance(found, list):
            if None in found:
                raise UserError(
                    f"{place}, row {row}: a label of the list is missing",
                    hint="take it out; an empty list is a photo without labels",
                )
            found = _BETWEEN.join(map(str, found))
        texts.add("" if found is None else str(found).strip(), place=f"{place}, row {row}")
    return texts
