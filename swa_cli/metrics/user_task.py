"""A task of one's own: found, checked, and wrapped to look like the others.

Its `metrics` gives a value for each sample and score, whose means are reported: that is all which its scores need to
have sampling errors and paired differences. See `UserTask` for what it has to be.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swa_cli.averaging.batch_args import batch_to_args
from swa_cli.errors import UserError
from swa_cli.metrics.metric import user_task_metrics
from swa_cli.metrics.task import MetricValue, Subject, Task, UserTask, mean_of
from swa_cli.models import build_model

EXPECTED = (
    'it has loss, predict, metrics, and scores such as {"accuracy": "higher", "loss": "lower"}, with "loss" not first'
)
FORMS = "a name is classification, segmentation, regression or package.module:attribute"
WORDS = {"loss": 2, "predict": 1, "metrics": 2}  # function -> positional arguments


@dataclass(frozen=True)
class SampleScores:
    """What `metrics` gave for every sample: (N, M) float32, a column for each of M scores."""

    keys: tuple[str, ...]
    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def metric(self, key: str) -> MetricValue:
        """The mean of a score."""
        return mean_of(self.values[:, self.keys.index(key)])


def find(name: str) -> Task:
    """The task that `package.module:attribute` names; a class is called without arguments.

    Raises:
        UserError: It cannot be imported, or is no task.
    """
    found: Any = build_model.import_attribute(name, key="task", what="a task", forms=FORMS)
    if inspect.isclass(found):
        found = found()
    task: UserTask = found
    for function, number in WORDS.items():
        _require_function(getattr(task, function, None), name=name, function=function, number=number)
    directions = _directions(getattr(task, "scores", None), name=name)
    keys = tuple(directions)

    def score_predictions(predictions: Tensor, targets: Any) -> SampleScores:
        return _table(task.metrics(predictions, targets), keys, num_samples=len(predictions), name=name)

    def train_score(outputs: Any, targets: Any) -> Tensor:
        with torch.no_grad():
            return task.metrics(task.predict(outputs), targets)[keys[0]].float().mean()

    def check(outputs: Any, targets: Any, *, subject: Subject) -> None:
        value = task.loss(outputs, targets, label_smoothing=0.0)
        if not isinstance(value, Tensor) or value.dim():
            raise UserError(f"task: the loss of {name} is no scalar tensor", hint="return the mean over the batch")
        score_predictions(task.predict(outputs), targets)

    return Task(
        metrics=user_task_metrics(directions),
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
    words = {"label_smoothing": 0.0} if function == "loss" else {}
    if not isinstance(value, Callable):  # type: ignore[arg-type]
        raise UserError(f"task: {name} has no function {function}", hint=EXPECTED)
    try:
        inspect.signature(value).bind(*[None] * number, **words)
    except TypeError as error:
        wanted = {"loss": "(outputs, targets, *, label_smoothing)", "predict": "(outputs)"}
        raise UserError(
            f"task: {function} of {name} takes other arguments: {error}",
            hint=f"let it be {function}{wanted.get(function, '(predictions, targets)')}",
        ) from error


def _directions(found: Any, *, name: str) -> dict[str, str]:
    """`scores` of a task: which way each of its metrics is better."""
    named = isinstance(found, Mapping) and all(isinstance(key, str) and key.isidentifier() for key in found)
    if not named or next(iter(found), "loss") == "loss" or found.get("loss") != "lower":
        raise UserError(f"task: {name} has the scores {found!s:.200}", hint=EXPECTED)
    for key, direction in found.items():
        if direction not in ("higher", "lower"):
            raise UserError(f"task: {name} says {direction!r:.50} of {key}", hint="say higher or lower")
    return dict(found)


def _table(found: Any, keys: tuple[str, ...], *, num_samples: int, name: str) -> SampleScores:
    """What `metrics` returned as one tensor.

    Raises:
        UserError: Its names are not those of `scores`, or it has not one value for each sample.
    """
    if not isinstance(found, Mapping) or set(found) != set(keys):
        what = sorted(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise UserError(f"task: metrics of {name} returned {what}", hint=f"return a dict with {', '.join(keys)}")
    for key in keys:
        if not isinstance(found[key], Tensor) or found[key].shape != (num_samples,):
            shape = tuple(found[key].shape) if isinstance(found[key], Tensor) else type(found[key]).__name__
            raise UserError(
                f"task: metrics of {name} gave {shape} as {key} of {num_samples} samples",
                hint="return one value for each sample, a tensor (B,)",
            )
    return SampleScores(keys, torch.stack([found[key].float() for key in keys], dim=1))
