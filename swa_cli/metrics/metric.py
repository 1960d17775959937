"""What each task scores, as a person reads it: names, headings, percent or number, and which way is better.

The one table of it: columns of metrics.csv, keys of JSON, the headings of every table and the sentences of a verdict
follow from it. The first metric of a task is its own, `loss` the one that is trained; averages are judged by both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swa_cli.report.tables.columns import Column, number, percent, signed


@dataclass(frozen=True)
class Metric:
    """One score; `key` names it in JSON, `name` in a sentence, `short` over the column of an epoch's row."""

    key: str
    name: str
    short: str = ""
    is_percent: bool = False
    is_lower_better: bool = False
    has_error: bool = True
    is_optional: bool = False  # None where it would say nothing, and not compared over seeds
    rank: int = 6  # the highest gives way first on a narrow page; the count has 4, BatchNorm 5

    @property
    def heading(self) -> str:
        """What stands over its column."""
        return f"{self.name} %" if self.is_percent else self.name

    @property
    def column(self) -> Column:
        """Its column in a table of scores."""
        widest = 0 if not self.has_error else 15 if self.is_percent else 16
        return Column(self.key, self.heading, max(widest, len(self.heading) + 2, 7), rank=self.rank)

    def cell(self, value: float | None) -> str:
        """A value in a table."""
        return percent(value) if self.is_percent else number(value)

    def said(self, value: float | None) -> str:
        """A value in a sentence."""
        return f"{percent(value)} %" if self.is_percent else number(value)

    def difference(self, value: float) -> str:
        """A difference of two values."""
        return signed(100 * value, digits=2) if self.is_percent else signed(value, digits=3)

    def resolution(self, value: float) -> float:
        """The smallest difference from `value` that counts: half of the last digit shown; less for a small value."""
        shown = 0.5e-4 if self.is_percent else 0.5e-3
        return shown if abs(value) >= 20 * shown else 0.5e-2 * abs(value)

    def gain(self, difference: float) -> float:
        """A difference as an improvement."""
        return -difference if self.is_lower_better else difference


@dataclass(frozen=True)
class TaskMetrics:
    """All that a task scores, in the order of its tables."""

    all: tuple[Metric, ...]  # the first is the primary one
    loss_key: str
    training: Metric  # what is cheap enough to be measured on each training batch
    loss_axis: str = "loss"
    predictions: str = "predictions"  # what is averaged over weight sets

    @property
    def primary(self) -> Metric:
        """The score that the task is about, which an epoch's row shows."""
        return self.all[0]

    @property
    def loss(self) -> Metric:
        """The score that is `loss` in metrics.csv."""
        return next(metric for metric in self.all if metric.key == self.loss_key)

    @property
    def compared(self) -> tuple[Metric, Metric]:
        """What averages are judged by."""
        return self.primary, self.loss

    @property
    def over_seeds(self) -> tuple[Metric, ...]:
        """What is compared over seeds: what averages are judged by, then the others."""
        others = (metric for metric in self.all if metric not in self.compared and not metric.is_optional)
        return (*self.compared, *others)

    def columns(self, averages: Sequence[str]) -> list[str]:
        """The columns of metrics.csv that hold scores."""
        every = ["train_loss", f"train_{self.training.key}", "val_loss", f"val_{self.primary.key}"]
        for name in averages:
            every += [f"{name}_val_loss", f"{name}_val_{self.primary.key}"]
        return every

    def is_lower_better(self, column: str) -> bool:
        """Which way a column of metrics.csv is better."""
        if column == f"train_{self.training.key}":
            return self.training.is_lower_better
        return self.primary.is_lower_better if column.endswith(f"val_{self.primary.key}") else True


_ACCURACY = Metric("accuracy", "accuracy", "acc", is_percent=True, rank=1)
_PIXEL_ACCURACY = Metric("pixel_accuracy", "pixel accuracy", "px acc", is_percent=True)
_MAE = Metric("mae", "MAE", "MAE", is_lower_better=True, rank=3)
_NLL = Metric("nll", "NLL", is_lower_better=True, rank=2)

CLASSIFICATION = TaskMetrics(
    all=(
        _ACCURACY,
        Metric("top5", "top-5", is_percent=True, has_error=False, is_optional=True, rank=6),
        _NLL,
        Metric("ece", "ECE", is_lower_better=True, has_error=False, rank=3),
        Metric("brier", "Brier", is_lower_better=True, has_error=False, rank=7),
    ),
    loss_key="nll",
    training=_ACCURACY,
    loss_axis="loss (nats a sample)",
    predictions="probabilities",
)
SEGMENTATION = TaskMetrics(
    all=(
        Metric("mean_iou", "mean IoU", "mIoU", is_percent=True, rank=1),
        Metric("dice", "Dice", is_percent=True, rank=7),
        _PIXEL_ACCURACY,
        _NLL,
    ),
    loss_key="nll",
    training=_PIXEL_ACCURACY,
    loss_axis="loss (nats a pixel)",
    predictions="probabilities",
)
REGRESSION = TaskMetrics(
    all=(
        Metric("r2", "R2", "R2", rank=1),
        Metric("mse", "MSE", is_lower_better=True, rank=2),
        _MAE,
    ),
    loss_key="mse",
    training=_MAE,
    loss_axis="loss (squared error)",
)
BY_TASK = {"classification": CLASSIFICATION, "segmentation": SEGMENTATION, "regression": REGRESSION}


def metrics_of(task: str, weights: Mapping[str, Mapping[str, Any]]) -> TaskMetrics:
    """What a task scores, as a result tells it: a task of one's own is known by the scores of its weight sets alone.

    Which way these are better is not known then, and taken as upwards: for tables without a verdict.
    """
    if task in BY_TASK:
        return BY_TASK[task]
    first = next(iter(weights.values()), {})
    keys = [key for key, value in first.items() if isinstance(value, float) and not key.endswith(("_se", "_diff"))]
    return user_task_metrics(dict.fromkeys(keys, "higher"))


def user_task_metrics(directions: dict[str, str]) -> TaskMetrics:
    """Of a task of one's own: its scores by name, each `higher` or `lower`; `loss` is among them, and not first."""
    scores = tuple(
        Metric(
            key,
            key.replace("_", " "),
            key.replace("_", " "),
            is_lower_better=direction == "lower",
            rank={0: 1}.get(index, 2 if key == "loss" else 6),
        )
        for index, (key, direction) in enumerate(directions.items())
    )
    return TaskMetrics(scores, loss_key="loss", training=scores[0])
