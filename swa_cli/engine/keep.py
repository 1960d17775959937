"""Keep the best: raw weights (`train.keep_best`) and averages (`averages.X.keep: best`) of their best epoch so far.

What is kept is a function of the history, and lies as a copy on the CPU and in last.pt. So a run that is killed
continues with what it had kept at its last save: epochs after that save are done again, and what they had kept is
forgotten with them. best.pt is only ever written from what a durable last.pt holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from swa_cli.averaging.model_state import read
from swa_cli.checkpoint import reader
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.metrics.metric import TaskMetrics
from swa_cli.recipe.schema import Recipe

if TYPE_CHECKING:
    from swa_cli.engine.run import Run  # which imports this module

BEST = "best"  # the name of the raw weights that train.keep_best keeps
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Kept:
    """The weights of the best epoch so far, whole and on the CPU, with what their file says of them."""

    epoch: int
    state_dict: dict[str, Tensor]
    average: dict[str, Any]  # name, kind, count and steps
    fresh: dict[str, Any]  # how fresh the BatchNorm statistics are, see `BatchNormUpdate.record`

    @property
    def values(self) -> dict[str, Any]:
        """Return the entry of last.pt."""
        return {"epoch": self.epoch, "state_dict": self.state_dict, "average": self.average, **self.fresh}

    def content(self, origin: Mapping[str, Any]) -> dict[str, Any]:
        """Return the content of a file of these weights."""
        return reader.weights_content(origin, self.average, self.state_dict, self.fresh)


def from_entry(entry: Mapping[str, Any]) -> Kept:
    """Return an entry of last.pt."""
    fresh = {key: entry[key] for key in ("batchnorm", "batchnorm_method", "samples") if key in entry}
    return Kept(entry["epoch"], entry["state_dict"], dict(entry["average"]), fresh)


def copy_of(model: nn.Module, average: Mapping[str, Any], fresh: Mapping[str, Any], *, epoch: int) -> Kept:
    """Return a copy of the weights in a network."""
    return Kept(epoch, reader.copy_to_cpu(model.state_dict()), dict(average), dict(fresh))


def columns(recipe: Recipe) -> dict[str, str]:
    """Return the weight sets of which the best is kept, and the column of metrics.csv that decides."""
    best = {} if recipe.train.keep_best is None else {BEST: recipe.train.keep_best}
    kept = [name for name, average in recipe.averages.items() if average.keep == "best"]
    return best | {name: f"{name}_val_loss" for name in kept}


def best_row(history: Sequence[Row], column: str, metrics: TaskMetrics) -> int | None:
    """Return the index of the row with the best value of a column, the first of equal ones; None if none is finite."""
    values = {index: row[column] for index, row in enumerate(history) if row[column] is not None}
    values = {index: value for index, value in values.items() if math.isfinite(value)}
    choose = min if metrics.is_lower_better(column) else max
    return choose(values, key=lambda index: values[index]) if values else None


def due(run: Run) -> list[str]:
    """Return the weight sets of which the epoch that has just ended is the best so far."""
    last, metrics = len(run.history) - 1, run.context.task.metrics
    found = columns(run.context.recipe)
    return [name for name, column in found.items() if best_row(run.history, column, metrics) == last]


def restored(run: Run, stored: Mapping[str, Mapping[str, Any]], history: Sequence[Row]) -> dict[str, Kept] | None:
    """Return what a resume point has kept; None if that is not what its history says."""
    expected, metrics = {}, run.context.task.metrics
    for name, column in columns(run.context.recipe).items():
        if (index := best_row(history, column, metrics)) is not None:
            expected[name] = history[index]["epoch"]
    if {name: entry["epoch"] for name, entry in stored.items()} != expected:
        return None
    own, tensors = run.model.state_dict(), read(run.model)
    kept = {}
    for name, entry in stored.items():
        weights = entry["state_dict"]
        if weights.keys() != own.keys() or entry["average"]["name"] != name:
            return None
        if any(
            weights[key].shape != own[key].shape for key, owner in tensors.owners.items() if owner in tensors.weights
        ):
            return None
        kept[name] = replace(
            from_entry(entry), state_dict=reader.copy_to_cpu(weights)
        )  # the file stays mapped otherwise
    return kept


def write_best(run: Run, folder: RunFolder) -> None:
    """Let best.pt hold what the resume point holds that the run continues from, whatever a killed process left."""
    if not folder.writes:
        return
    if (kept := run.kept.get(BEST)) is not None:
        reader.save(folder.best, kept.content(run.context.origin))
        run.saved_best = kept.epoch
    elif run.context.recipe.train.keep_best is not None:
        folder.best.unlink(missing_ok=True)
