"""Loggers of a run (`output.loggers`): metrics.csv, TensorBoard, those in `trackers.py`, and a user's own class.

All of them are listeners, see `events.py`. On `plan` a logger gets the rows so far, so that a resumed run repeats no
epoch and misses none.
"""

from __future__ import annotations

import importlib.util
import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.engine.events import METHODS, EpochEvent, PlanEvent, ResultEvent, Row
from swa_cli.errors import Problem, UserError
from swa_cli.import_path import import_callable
from swa_cli.recipe.schema.output import LOGGERS, Logger

VERSION = "brain.Event:2"  # what TensorBoard wants to read first
FILES = "events.out.tfevents.*"
KEY = "output.loggers"
HEARD = [name for name in METHODS if name != "progress"]  # what loggers are told
FORMS = f"a logger is {', '.join(LOGGERS)} or package.module:Class"


class MetricsCsv:
    """Writes metrics.csv anew after each epoch."""

    def plan(self, event: PlanEvent) -> None:
        """Take the folder and the columns of the run."""
        self._plan = event

    def epoch(self, event: EpochEvent) -> None:
        """Write the rows of all epochs so far."""
        assert self._plan.folder is not None, "a dry run has no epochs"
        RunFolder(self._plan.folder).write_metrics(event.history, self._plan.averages, self._plan.metrics)


class TensorBoard:
    """Writes the rows of metrics.csv and the final scores for TensorBoard, in the run folder under `tensorboard/`.

    Each session of a run writes a new file, which begins with the rows so far, and removes the earlier ones. It starts
    no thread: loader processes could not be forked beside one.
    """

    def plan(self, event: PlanEvent) -> None:
        """Begin a file with the recipe and the rows so far."""
        if event.folder is None:
            return
        from tensorboard.compat.proto.event_pb2 import Event

        folder = RunFolder(event.folder).board
        folder.mkdir(exist_ok=True)
        for old in folder.glob(FILES):
            old.unlink()
        name = FILES.replace("*", f"{time.time_ns() // 10**9}.{socket.gethostname()}.{os.getpid()}")
        self._path = folder / name
        _append(self._path, Event(wall_time=time.time(), file_version=VERSION))
        self._add({}, step=0, texts={"recipe": f"```yaml\n{RunFolder(event.folder).recipe.read_text()}```"})
        for row in event.history:
            self._add_row(row)

    def epoch(self, event: EpochEvent) -> None:
        """Add the row of an epoch."""
        self._add_row(event.row)

    def result(self, event: ResultEvent) -> None:
        """Add the final scores, the reference and the path of the best checkpoint, at the last step."""
        step = event.history[-1]["step"] if event.history else 0
        self._add(final_scores(event), step=step, texts=final_choice(event))

    def _add_row(self, row: Row) -> None:
        """Add the numbers of a row; what was not measured has none."""
        numbers = {key: value for key, value in row.items() if key not in ("epoch", "step") and value is not None}
        self._add(numbers, step=row["step"])

    def _add(self, numbers: Mapping[str, float], *, step: int, texts: Mapping[str, str] | None = None) -> None:
        """Add a scalar for each number, and texts in Markdown, at a step."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.text.summary_v2 import text_pb

        values = [Summary.Value(tag=key, simple_value=value) for key, value in numbers.items()]
        for key, text in (texts or {}).items():
            values.extend(text_pb(key, text).value)
        _append(self._path, Event(wall_time=time.time(), step=step, summary=Summary(value=values)))


def final_scores(event: ResultEvent) -> dict[str, float]:
    """Return the final scores as `split/weights/score`."""
    found = dict[str, float]()
    for name, row in event.values["weights"].items():
        for split, scores in ((event.values["split"], row), ("val", row["val"] or {})):
            numbers = {key: value for key, value in scores.items() if _is_number(value)}
            found |= {f"{split}/{name}/{key}": value for key, value in numbers.items()}
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def final_choice(event: ResultEvent) -> dict[str, str]:
    """Return the reference of the comparison, and the file of the best weights."""
    return {"reference": event.values["reference"], "checkpoint": str(event.ship.resolve())}


def _append(path: Path, event: Any) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    with open(path, "ab") as file:
        RecordWriter(file).write(event.SerializeToString())


def build(entries: Sequence[Logger]) -> tuple[dict[str, object], list[Problem]]:
    """Return the loggers of `output.loggers` by their names, and the problems of those that cannot be built.

    A user's class is called without arguments. Errors inside a user's own module pass through.
    """
    loggers, problems = dict[str, object](), list[Problem]()
    for entry in entries:
        try:
            if entry.name in loggers:
                raise UserError(f"{entry.name} is listed twice", hint="list each logger once")
            loggers[entry.name] = _build_known(entry) if entry.name in LOGGERS else _build_own(entry.name)
        except UserError as error:
            problems.append(Problem(KEY, error.message.removeprefix(f"{KEY}: "), error.hint))
    return loggers, problems


def _build_known(entry: Logger) -> object:
    for package in LOGGERS[entry.name].packages:
        if importlib.util.find_spec(package) is None:
            hint = f"pip install 'swa-cli[{entry.name}]', or leave it out: metrics.csv has the same rows"
            raise UserError(f"the package {package} is not installed", hint=hint)
    if entry.name == "tensorboard":
        return TensorBoard()
    from swa_cli.engine import trackers  # only for runs that ask for them

    return trackers.TRACKERS[entry.name](**entry.options)


def _build_own(name: str) -> object:
    expected = f"let it be a class without arguments that has some of the methods {', '.join(HEARD)}"
    logger: object = import_callable(
        name, lambda signature: signature.bind(), key=KEY, what="a logger", forms=FORMS, expected=expected
    )()
    if not any(callable(getattr(logger, method, None)) for method in HEARD):
        raise UserError(f"{name} has none of the methods of a logger", hint=expected)
    return logger
