"""The rows of metrics.csv for TensorBoard, in the run folder under `tensorboard/`.

One idea: like metrics.csv, they are those of the run's history. A session writes them anew into a file of its own, so
that a resumed run repeats no row and misses none; the files of the sessions before it go.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from swa_cli.errors import Problem
from swa_cli.recipe.schema import Recipe

VERSION = "brain.Event:2"  # what TensorBoard wants to read first
FILES = "events.out.tfevents.*"


class Board:
    """Writes rows to one file, each at once; without a thread, beside which loader processes could not be forked."""

    def __init__(self, file: IO[bytes]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary, self._file = Event, Summary, file
        self._records = RecordWriter(file)
        self._write(Event(wall_time=time.time(), file_version=VERSION))

    def add(self, row: Mapping[str, Any]) -> None:
        """A scalar for each number of a row, at its step; what was not measured has none."""
        values = [
            self._summary.Value(tag=key, simple_value=value)
            for key, value in row.items()
            if key not in ("epoch", "step") and value is not None
        ]
        self._write(self._event(wall_time=time.time(), step=row["step"], summary=self._summary(value=values)))

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
        self._file.flush()


@contextmanager
def opened(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Iterator[Board]:
    """The board of a session, in `folder`, which begins with the rows so far."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob(FILES):
        old.unlink()
    name = FILES.replace("*", f"{time.time_ns() // 10**9}.{socket.gethostname()}.{os.getpid()}")
    with open(folder / name, "wb") as file:
        board = Board(file)
        for row in rows:
            board.add(row)
        yield board


def problems(recipe: Recipe) -> list[Problem]:
    """The package that writes for TensorBoard, if it is wanted and missing."""
    if "tensorboard" not in recipe.output.loggers or importlib.util.find_spec("tensorboard") is not None:
        return []
    hint = "pip install 'swa-cli[tensorboard]', or leave it out: metrics.csv has the same rows"
    return [Problem("output.loggers", "the package tensorboard is not installed", hint)]
