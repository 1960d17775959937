"""Write predictions as they come: a csv, json or parquet file, a table on stdout, or a folder of masks.

`FORMATS` maps suffixes to writers. Whatever is written takes its place at the end, whole: a file is renamed, and so is
a folder. Nothing but the rows of one batch, or of one row group, is in memory. Shapes: H W pixels.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from torch import Tensor

from swa_cli import temporary
from swa_cli.checkpoint.atomic import json_text, write_atomic
from swa_cli.errors import UserError
from swa_cli.report.console_text import GAP, Column, cut_to
from swa_cli.report.terminal import Terminal

ROW_GROUP = 10_000  # rows of a parquet file that are written at once
_CELL = 10  # of a number in a table: two spaces and eight characters

Row = Mapping[str, Any]  # column -> text, number, None, or (not in csv files) a list of texts
Add = Callable[[Sequence[Row]], None]
Facts = Mapping[str, Any]  # what is told beside the rows, complete once they all are written
Writer = Callable[[IO[bytes], Sequence[str], Facts], AbstractContextManager[Add]]


@contextmanager
def _csv(file: IO[bytes], columns: Sequence[str], facts: Facts) -> Iterator[Add]:
    # A name that is no text keeps its bytes.
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    yield writer.writerows
    text.detach()  # leaves the file open


@contextmanager
def _json(file: IO[bytes], columns: Sequence[str], facts: Facts) -> Iterator[Add]:
    separator = "\n"

    def add(rows: Sequence[Row]) -> None:
        nonlocal separator
        for row in rows:
            file.write(f"{separator}{json_text(row)}".encode())
            separator = ",\n"

    file.write(b'{"predictions": [')
    yield add
    file.write(f"\n], {json_text(facts)[1:]}\n".encode())


@contextmanager
def _parquet(file: IO[bytes], columns: Sequence[str], facts: Facts) -> Iterator[Add]:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    waiting: list[Row] = []
    writer: ParquetWriter | None = None

    def write() -> None:
        nonlocal writer
        texts = ({key: _text(row[key]) for key in columns} for row in waiting)
        schema = None if writer is None else writer.schema
        table = pa.Table.from_pylist([*texts], schema=schema)
        for place, field in enumerate(table.schema):
            if field.type == pa.list_(pa.null()):  # so far all lists are empty
                table = table.cast(table.schema.set(place, field.with_type(pa.list_(pa.string()))))
        waiting.clear()
        if writer is None:
            writer = ParquetWriter(file, table.schema)
        writer.write_table(table)

    def add(rows: Sequence[Row]) -> None:
        waiting.extend(rows)
        if len(waiting) >= ROW_GROUP:
            write()

    yield add
    if waiting or writer is None:
        write()
    assert writer is not None
    writer.close()


def _text(value: Any) -> Any:
    """Return a text as parquet takes it: a byte that is no character becomes `?`."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


FORMATS: Mapping[str, Writer] = {".csv": _csv, ".json": _json, ".parquet": _parquet}


def require_format(target: Path) -> None:
    """Refuse a file whose suffix is none of `FORMATS`, or needs a package that is missing.

    Raises:
        UserError: It is one.
    """
    if target.suffix.lower() not in FORMATS:
        raise UserError(
            f"{target}: predictions are written as {', '.join(FORMATS)}", hint=f"name {target.with_suffix('.csv')}"
        )
    if target.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError(
            f"{target}: parquet files need pyarrow",
            hint=f"pip install 'swa-cli[parquet]', or name {target.with_suffix('.csv')}",
        )


def write_rows(target: Path, columns: Sequence[str], facts: Facts, work: Callable[[Add], None]) -> None:
    """Let `work` add the rows of a file, which takes its place once `work` has returned."""

    def write(file: IO[bytes]) -> None:
        with FORMATS[target.suffix.lower()](file, columns, facts) as add:
            work(add)

    write_atomic(target, write)


def print_json(columns: Sequence[str], facts: Facts, work: Callable[[Add], None]) -> None:
    """Let `work` add the rows of a JSON object, which is printed once `work` has returned."""
    with tempfile.TemporaryFile() as file:
        with _json(file, columns, facts) as add:
            work(add)
        file.seek(0)
        with io.TextIOWrapper(file, encoding="utf-8") as text:
            shutil.copyfileobj(text, sys.stdout)


def print_rows(
    columns: Sequence[str], widths: Mapping[str, int], work: Callable[[Add], None], *, terminal: Terminal
) -> None:
    """Let `work` add the rows of a table, which are printed as they come; columns without a width hold numbers."""
    shown = [
        Column(key, key, max(len(key), widths[key]) + (GAP if place else 0), rank=0, left=True)
        if key in widths
        else Column(key, key, max(_CELL, len(key) + GAP), rank=0)
        for place, key in enumerate(columns)
    ]
    head = True

    def add(rows: Sequence[Row]) -> None:
        nonlocal head
        cells = [{key: _cell(value, widths.get(key)) for key, value in row.items()} for row in rows]
        terminal.rows(shown, cells, head=head)
        head = False

    work(add)


def _cell(value: Any, width: int | None) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return text if width is None else cut_to(text, width)


# --- masks


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`, which takes its place when the block ends without an error."""
    with temporary.beside(target, is_folder=True) as folder:
        yield folder
        if target.is_dir():
            target.rmdir()  # it is empty
        folder.rename(target)


def require_new_folder(target: Path, *, sources: Sequence[Path]) -> None:
    """Refuse a folder that holds something, that cannot be made, or that lies in one of the folders of images.

    Raises:
        UserError: It is one.
    """
    other = "name a new folder with -o FOLDER"
    if target.suffix.lower() in FORMATS:
        raise UserError(f"{target}: the predictions are masks, which are written into a folder", hint=other)
    if not target.name:
        raise UserError(f"{target}: is the folder that the command runs in", hint=other)
    if not target.absolute().parent.is_dir():
        raise UserError(f"{target.parent}: no such folder", hint=f"make it, or {other}")
    for source in sources:
        if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
            raise UserError(
                f"{target}: lies in {source}, and the masks would be images of the next call", hint=f"{other} elsewhere"
            )
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UserError(f"{target}: is not a folder", hint=other)
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"{target}: is not empty, and nothing in it is overwritten", hint=other)


def mask_names(names: Sequence[str]) -> list[str]:
    """Return the file of each image's mask: its name with the suffix .png.

    Raises:
        UserError: Two images would get the same.
    """
    found: dict[str, str] = {}
    for name in names:
        mask = str(Path(name).with_suffix(".png"))
        if mask in found:
            raise UserError(
                f"{found[mask]} and {name} would both get the mask {mask}",
                hint="name these images, or their folders, in two calls, each with its own -o FOLDER",
            )
        found[mask] = name
    return [*found]


def write_mask(mask: Tensor, path: Path) -> None:
    """Write the classes (H, W) uint8 of an image as a palette PNG file, in the colors of Pascal VOC."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask.numpy())
    image.putpalette(_voc_colors())
    image.save(path)


def _voc_colors() -> list[int]:
    """Return the red, green and blue of 256 classes: the bits of a class, spread over the three from the top."""
    numbers = np.arange(256)
    colors = np.zeros((256, 3), dtype=np.int64)
    for place in range(8):
        for channel in range(3):
            colors[:, channel] |= (numbers >> channel & 1) << (7 - place)
        numbers >>= 3
    return colors.flatten().tolist()
