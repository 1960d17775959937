"""Load a user's task and wrap it like the others; `UserTask` documents what it must provide.

Its `metrics` returns a value for each sample and metric, whose means are reported: that suffices for sampling errors
and paired differences.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from swa_cli.errors import UserError
from swa_cli.import_path import import_object
from swa_cli.metrics.metric import Direction, SampleScores, TaskMetrics, user_task_metrics
from swa_cli.metrics.task import Subject, Task, UserTask, batch_to_args

EXPECTED = (
    'define loss, predict, metrics, and scores such as {"accuracy": "higher", "loss": "lower"}, with "loss" not first'
)
FORMS = "a name is classification, segmentation, regression or package.module:attribute"
NUM_ARGUMENTS = {"loss": 2, "predict": 1, "metrics": 2}  # function -> positional arguments


def find(name: str) -> Task:
    """Return the task that `package.module:attribute` names; a class is called without arguments.

    Raises:
        UserError: It cannot be imported, or is no task.
    """
    found: Any = import_object(name, key="task", what="a task", forms=FORMS)
    if inspect.isclass(found):
        found = found()
    task: UserTask = found
    for function, number in NUM_ARGUMENTS.items():
        _require_function(getattr(task, function, None), name=name, function=function, number=number)
    table = user_task_metrics(_directions(getattr(task, "scores", None), name=name))

    def score_predictions(predictions: Tensor, targets: Any) -> SampleScores:
        return _sample_scores(task.metrics(predictions, targets), table, num_samples=len(predictions), name=name)

    def train_score(outputs: Any, targets: Any) -> Tensor:
        with torch.no_grad():
            return task.metrics(task.predict(outputs), targets)[table.training_key].float().mean()

    def check(outputs: Any, targets: Any, *, subject: Subject) -> None:
        value = task.loss(outputs, targets, label_smoothing=0.0)
        if not isinstance(value, Tensor) or value.dim():
            raise UserError(f"task: the loss of {name} is no scalar tensor", hint="return the mean over the batch")
        score_predictions(task.predict(outputs), targets)

    return Task(
        metrics=table,
        loss=task.loss,
        predict=task.predict,
        score_predictions=score_predictions,
        score_outputs=lambda outputs, targets: score_predictions(task.predict(outputs), targets),
        train_score=train_score,
        check=check,
        families=("classification", "segmentation"),
        target=None,
        batch_to_args=getattr(task, "batch_to_args", batch_to_args),
    )


def _require_function(value: Any, *, name: str, function: str, number: int) -> None:
    """Raise unless `value` can be called with `number` positional arguments."""
    keywords = {"label_smoothing": 0.0} if function == "loss" else {}
    if not isinstance(value, Callable):  # type: ignore[arg-type]
        raise UserError(f"task: {name} has no function {function}", hint=EXPECTED)
    try:
        inspect.signature(value).bind(*[None] * number, **keywords)
    except TypeError as error:
        wanted = {"loss": "(outputs, targets, *, label_smoothing)", "predict": "(outputs)"}
        raise UserError(
            f"task: {function} of {name} takes other arguments: {error}",
            hint=f"define {function}{wanted.get(function, '(predictions, targets)')}",
        ) from error


def _directions(found: Any, *, name: str) -> dict[str, Direction]:
    """Return `scores` of a task, the direction of each metric.

    Raises:
        UserError: It is no such dict, or `loss` is missing or first.
    """
    named = isinstance(found, Mapping) and all(isinstance(key, str) and key.isidentifier() for key in found)
    if not named or next(iter(found), "loss") == "loss" or found.get("loss") != "lower":
        raise UserError(f"task: {name} has the scores {found!s:.200}", hint=EXPECTED)
    for key, direction in found.items():
        if direction not in ("higher", "lower"):
            raise UserError(f"task: {name} says {direction!r:.50} of {key}", hint="say higher or lower")
    return dict(found)


def _sample_scores(found: Any, table: TaskMetrics, *, num_samples: int, name: str) -> SampleScores:
    """Return the tensors that `metrics` returned, (B,) float32 each.

    Raises:
        UserError: Their names are not those of `scores`, or one has not one value per sample.
    """
    if not isinstance(found, Mapping) or set(found) != set(table.keys):
        what = sorted(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise UserError(f"task: metrics of {name} returned {what}", hint=f"return a dict with {', '.join(table.keys)}")
    for key in table.keys:
        if not isinstance(found[key], Tensor) or found[key].shape != (num_samples,):
            shape = tuple(found[key].shape) if isinstance(found[key], Tensor) else type(found[key]).__name__
            raise UserError(
                f"task: metrics of {name} returned {shape} as {key} of {num_samples} samples",
                hint="return one value per sample, a tensor (B,)",
            )
    return SampleScores(table, {key: found[key].float() for key in table.keys})
