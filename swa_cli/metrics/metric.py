"""Declare the metrics of each task: name, direction, and how each is computed.

A metric is one entry in one of the tables at the end of this file. The columns of metrics.csv, the keys of JSON, the
headings of tables and the sentences of a verdict all follow from it. A value is a number *and*, where possible, N
per-sample values with that mean: their spread is its sampling error, and the difference of two weight sets on the same
samples gets a paired error. A metric that is no mean of samples (mean IoU, R2) has jackknife pseudo-values (Tukey
1958) instead, for which the same holds. This module does not import torch, so that reports can read the tables.

Legend: N samples, K classes, D outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Direction = Literal["higher", "lower"]  # which values are better

THRESHOLD = 0.5  # of a probability, above which a sample has a label
_ROUNDING = 1e-12  # of a sum of squares in float64
ECE_BINS = 15  # as in Guo et al. 2017, On Calibration of Modern Neural Networks


@dataclass(frozen=True)
class MetricValue:
    """The value of a metric; without per-sample values it has no error and no paired difference."""

    value: float | None  # None where the samples do not define it
    each: Tensor | None = None  # (N,) float64 with the mean `value`; all NaN where its error is unknown
    error: float | None = None  # standard error of `value`; NaN where it is unknown, as of one sample


@dataclass(frozen=True)
class Metric:
    """One metric; `key` names it in JSON and metrics.csv, `name` in sentences and headings.

    `compute` maps the tensors of `SampleScores` that `of` names to the value, which is None where one is missing, and
    where the samples do not define it.
    Values are fractions also where `is_percent` makes reports show percent. `is_headline` metrics keep their column on
    a narrow page.
    """

    key: str
    name: str
    direction: Direction
    compute: Callable[..., MetricValue] = field(compare=False, repr=False)
    of: tuple[str, ...]
    short_name: str = ""  # in the headings of epoch rows, for primary and training metrics
    is_percent: bool = False
    has_error: bool = True
    is_optional: bool = False  # None where it would say nothing; not compared over seeds
    is_headline: bool = False

    @property
    def is_lower_better(self) -> bool:
        """Whether a lower value is better."""
        return self.direction == "lower"

    def resolution(self, value: float) -> float:
        """Return the smallest difference from `value` that counts: half of the last digit shown, or 0.5 % of it."""
        shown = 0.5e-4 if self.is_percent else 0.5e-3
        return shown if abs(value) >= self.least_in_decimals else 0.5e-2 * abs(value)

    @property
    def least_in_decimals(self) -> float:
        """The smallest value that has two digits in the decimals shown: 0.01, or 0.1 %."""
        return 1e-3 if self.is_percent else 1e-2

    def gain(self, difference: float) -> float:
        """Return a difference as an improvement: positive is better."""
        return -difference if self.is_lower_better else difference


@dataclass(frozen=True)
class TaskMetrics:
    """All metrics of a task in the order of its tables; the first is the primary metric.

    `loss_key` names the metric that is trained, `training_key` the one that is cheap enough to compute on every
    training batch. Averages are judged by the primary metric and the loss.
    """

    all: tuple[Metric, ...]
    loss_key: str
    training_key: str
    loss_axis: str = "loss"
    predictions: str = "predictions"  # what an ensemble averages

    def __post_init__(self) -> None:
        assert len(set(self.keys)) == len(self.keys), f"a metric is declared twice: {self.keys}"
        if self.all:  # the metrics of a user's task are not always known
            assert {self.loss_key, self.training_key} <= set(self.keys), f"no metric {self.loss_key}"

    def __getitem__(self, key: str) -> Metric:
        return {metric.key: metric for metric in self.all}[key]

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of all metrics, in the order of JSON."""
        return tuple(metric.key for metric in self.all)

    @property
    def primary(self) -> Metric:
        """The metric that epoch rows show."""
        return self.all[0]

    @property
    def loss(self) -> Metric:
        """The metric that is `loss` in metrics.csv."""
        return self[self.loss_key]

    @property
    def training(self) -> Metric:
        """The metric of training batches."""
        return self[self.training_key]

    @property
    def compared(self) -> tuple[Metric, Metric]:
        """The two metrics that averages are judged by."""
        return self.primary, self.loss

    @property
    def over_seeds(self) -> tuple[Metric, ...]:
        """The metrics that are compared over seeds, the judged ones first."""
        others = (metric for metric in self.all if metric not in self.compared and not metric.is_optional)
        return (*self.compared, *others)

    def columns(self, averages: Sequence[str]) -> list[str]:
        """Return the columns of metrics.csv that hold metrics."""
        columns = ["train_loss", f"train_{self.training_key}", "val_loss", f"val_{self.primary.key}"]
        for name in averages:
            columns += [f"{name}_val_loss", f"{name}_val_{self.primary.key}"]
        return columns

    def is_lower_better(self, column: str) -> bool:
        """Return whether a lower value is better in a column of metrics.csv."""
        if column == f"train_{self.training_key}":
            return self.training.is_lower_better
        return self.primary.is_lower_better if column.endswith(f"val_{self.primary.key}") else True


@dataclass(frozen=True)
class SampleScores:
    """What metrics are computed of, for every sample of a split, so that two weight sets can be compared in pairs."""

    metrics: TaskMetrics
    values: Mapping[str, Tensor]  # each (N, ...), see the function of the task that scores a batch

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the metrics, in the order of JSON."""
        return self.metrics.keys

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def metric(self, key: str) -> MetricValue:
        """Return a metric over all samples, in float64."""
        metric = self.metrics[key]
        if not all(name in self.values for name in metric.of):
            return MetricValue(None)
        return metric.compute(*(self.values[name] for name in metric.of))


def mean_of(values: Tensor) -> MetricValue:
    """Return the mean of (N,) values and its standard error."""
    each = values.double()
    return MetricValue(float(each.mean()), each, standard_error(each))


def jackknife(value: float, left_out: Tensor) -> MetricValue:
    """Return a value that is no mean of samples, with its jackknife error.

    The pseudo-values N value - (N - 1) left_out are shifted to the mean `value`: the bias is not corrected.

    Args:
        value: The metric over all samples.
        left_out: (N,) float64, the metric without sample i, for each i. Where it is NaN, as the other samples do not
            define the metric, the error is unknown: NaN.
    """
    each = value - (len(left_out) - 1) * (left_out - left_out.mean())
    return MetricValue(value, each, standard_error(each))


def standard_error(values: Tensor) -> float:
    """Return the standard error of the mean of (N,) values; NaN for a single one, which has no spread."""
    return float(values.double().std(correction=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def undefined(num_samples: int) -> MetricValue:
    """Return a metric that so many samples do not define: no value, and an unknown error."""
    import torch

    return MetricValue(None, torch.full((num_samples,), math.nan, dtype=torch.float64), math.nan)


def _accuracy(correct: Tensor) -> MetricValue:
    """Return the fraction of (N,) that is true, with the binomial error sqrt(p (1 - p) / N); NaN for one sample."""
    each = correct.double()
    value = float(each.mean())
    return MetricValue(value, each, math.sqrt(value * (1 - value) / len(each)) if len(each) > 1 else math.nan)


def _mean(values: Tensor) -> MetricValue:
    """Return the mean of (N,) values alone."""
    return MetricValue(float(values.double().mean()))


def _calibration_error(confidence: Tensor, correct: Tensor) -> MetricValue:
    """Sum |correct - confidence| over bins of equal width, divided by N (Guo et al. 2017, equation 5).

    Not torchmetrics: importing it takes 3 s and 250 MB, more than many a run.
    """
    import torch

    confidence = confidence.double()
    edges = torch.linspace(0, 1, ECE_BINS + 1, dtype=torch.float64)
    bins = (torch.bucketize(confidence, edges, right=True) - 1).clamp(0, ECE_BINS - 1)
    gaps = torch.zeros(ECE_BINS, dtype=torch.float64).index_add_(0, bins, correct.double() - confidence)
    return MetricValue(float(gaps.abs().sum()) / len(confidence))


def _iou(right: Tensor, present: Tensor, predicted: Tensor) -> MetricValue:
    return _ratio_over_images(right, present + predicted - right)


def _dice(right: Tensor, present: Tensor, predicted: Tensor) -> MetricValue:
    return _ratio_over_images(2 * right, present + predicted)


def _mean_average_precision(p: Tensor, positive: Tensor) -> MetricValue:
    from swa_cli.metrics.average_precision import mean_average_precision

    return mean_average_precision(p, positive)


def _macro_f1(p: Tensor, positive: Tensor) -> MetricValue:
    predicted = p > THRESHOLD
    return _dice(predicted & positive, positive.double(), predicted)


def _micro_f1(p: Tensor, positive: Tensor) -> MetricValue:
    predicted = p > THRESHOLD
    return _dice(*(part.sum(1, keepdim=True) for part in (predicted & positive, positive, predicted)))


def _over_pixels(part: Tensor, present: Tensor) -> MetricValue:
    """Return the sum of (N, ...) over the number of counted pixels."""
    return _ratio_over_images(part.view(len(part), -1).sum(1, keepdim=True), present.sum(1, keepdim=True))


def _ratio_over_images(part: Tensor, whole: Tensor) -> MetricValue:
    """Return the mean over classes of sum(part) / sum(whole), both (N, K); classes without a whole are left out."""
    part, whole = part.double(), whole.double()
    sums = part.sum(0), whole.sum(0)
    if not bool((sums[1] > 0).any()):
        return undefined(len(part))
    return jackknife(float(_mean_ratio(*sums)), _mean_ratio(sums[0] - part, sums[1] - whole))


def _mean_ratio(part: Tensor, whole: Tensor) -> Tensor:
    ratios = part / whole  # (..., K), NaN where the whole is empty
    return ratios.where(whole > 0, math.nan).nanmean(-1)


def _mean_square(error: Tensor) -> MetricValue:
    return mean_of(error.double().square().mean(1))


def _mean_magnitude(error: Tensor) -> MetricValue:
    return mean_of(error.double().abs().mean(1))


def _r2(error: Tensor, target: Tensor) -> MetricValue:
    """Return 1 - residual / total of (N, D) errors and targets, the mean over the outputs whose targets differ."""
    error, target = error.double(), target.double()
    squared, centered = error.square(), target - target.mean(0)
    n = len(squared)
    residual, total = squared.sum(0), centered.square().sum(0)
    # Without sample i the mean of the others is -y_i / (n - 1), as the centered y sum to 0.
    left_total = total - centered.square() * (n / max(n - 1, 1))
    # Rounding leaves a little of the total where targets are equal, and more where the others are.
    is_defined = total > _ROUNDING**2 * target.square().sum(0)
    if not bool(is_defined.any()):
        return undefined(n)
    left_out = _mean_where(is_defined & (left_total > _ROUNDING * total), 1 - (residual - squared) / left_total)
    return jackknife(float(_mean_where(is_defined, 1 - residual / total)), left_out)


def _mean_where(is_defined: Tensor, values: Tensor) -> Tensor:
    """Return the mean over the last dimension of the values that are defined; NaN without any."""
    return values.where(is_defined, 0).sum(-1) / is_defined.sum(-1)


CLASSIFICATION = TaskMetrics(
    all=(
        Metric("accuracy", "accuracy", "higher", _accuracy, ("correct",), short_name="acc", is_percent=True),
        Metric("top5", "top-5", "higher", _mean, ("top5",), is_percent=True, has_error=False, is_optional=True),
        Metric("nll", "NLL", "lower", mean_of, ("nll",)),
        Metric("ece", "ECE", "lower", _calibration_error, ("confidence", "correct"), has_error=False, is_headline=True),
        Metric("brier", "Brier", "lower", _mean, ("brier",), has_error=False),
    ),
    loss_key="nll",
    training_key="accuracy",
    loss_axis="loss (nats per sample)",
    predictions="probabilities",
)
SEGMENTATION = TaskMetrics(  # of the counts (N, K) of pixels by class
    all=(
        Metric(
            "mean_iou",
            "mean IoU",
            "higher",
            _iou,
            ("right", "present", "predicted"),
            short_name="mIoU",
            is_percent=True,
        ),
        Metric("dice", "Dice", "higher", _dice, ("right", "present", "predicted"), is_percent=True),
        Metric(
            "pixel_accuracy",
            "pixel accuracy",
            "higher",
            _over_pixels,
            ("right", "present"),
            short_name="px acc",
            is_percent=True,
        ),
        Metric("nll", "NLL", "lower", _over_pixels, ("nll", "present")),
    ),
    loss_key="nll",
    training_key="pixel_accuracy",
    loss_axis="loss (nats per pixel)",
    predictions="probabilities",
)
REGRESSION = TaskMetrics(  # of errors and targets (N, D)
    all=(
        Metric("r2", "R2", "higher", _r2, ("error", "target")),
        Metric("mse", "MSE", "lower", _mean_square, ("error",)),
        Metric("mae", "MAE", "lower", _mean_magnitude, ("error",), is_headline=True),
    ),
    loss_key="mse",
    training_key="mae",
    loss_axis="loss (squared error)",
)
MULTILABEL = TaskMetrics(  # of probabilities and labels (N, K)
    all=(
        Metric(
            "map",
            "mAP",
            "higher",
            _mean_average_precision,
            ("p", "positive"),
            short_name="mAP",
            is_percent=True,
        ),
        Metric("macro_f1", "macro F1", "higher", _macro_f1, ("p", "positive"), is_percent=True, is_headline=True),
        Metric("micro_f1", "micro F1", "higher", _micro_f1, ("p", "positive"), is_percent=True),
        Metric(
            "label_accuracy",
            "label accuracy",
            "higher",
            mean_of,
            ("right",),
            short_name="label acc",
            is_percent=True,
        ),
        Metric("nll", "NLL", "lower", mean_of, ("nll",)),
    ),
    loss_key="nll",
    training_key="label_accuracy",
    loss_axis="loss (nats per label)",
    predictions="probabilities",
)
BY_TASK = {
    "classification": CLASSIFICATION,
    "multilabel": MULTILABEL,
    "segmentation": SEGMENTATION,
    "regression": REGRESSION,
}


def user_task_metrics(directions: Mapping[str, Direction]) -> TaskMetrics:
    """Return the metrics of a user's task, which are means of per-sample values; `loss` is one, and not the first."""
    metrics = tuple(
        Metric(key, key.replace("_", " "), direction, mean_of, (key,)) for key, direction in directions.items()
    )
    return TaskMetrics(metrics, loss_key="loss", training_key=metrics[0].key)


def metrics_of(task: str, weights: Mapping[str, Mapping[str, Any]]) -> TaskMetrics:
    """Return the metrics of a task by its name in a recipe; those of a user's task are read from a result.

    The direction of a user's metrics, but for the loss, is not in a result. "higher" stands in for it, in tables
    without a verdict.
    """
    if task in BY_TASK:
        return BY_TASK[task]
    first = next(iter(weights.values()), {})
    keys = [key for key, value in first.items() if isinstance(value, float) and not key.endswith(("_se", "_diff"))]
    return user_task_metrics({key: "lower" if key == "loss" else "higher" for key in [*keys, "loss"]})
