"""Draw the curves of a run: loss, primary metric and learning rate over the epochs, with every averaged step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from swa_cli.metrics.metric import CLASSIFICATION, Metric, TaskMetrics
from swa_cli.report import plots
from swa_cli.report.plots import Row, schedule
from swa_cli.report.scores import cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float]  # epoch, value

SIZE_INCHES = (9.0, 10.0)
_MAX_MARKERS = 15  # markers along one line
# The steep start of a long run is cut off: it would flatten the rest.
_LONG_RUN = 10  # epochs
_STEEP = 0.2  # of the run


def draw(
    target: plots.Target,
    *,
    rows: Sequence[Row],
    title: str,
    averaging: Mapping[str, Sequence[int]],
    steps_per_epoch: int,
    lr: Sequence[float] | None = None,
    worker_lr: Sequence[Point] = (),
    final: Mapping[str, Row] | None = None,
    metrics: TaskMetrics = CLASSIFICATION,
    form: str = "png",
) -> None:
    """Write `curves.png`: three panels over the epochs, the phase of averaging shaded.

    Args:
        target: A path, or a file open for bytes.
        rows: The rows of `metrics.csv`; None where something was not measured.
        title: The title of the run.
        averaging: Average to the steps it holds, in optimizer updates done; the first one's phase is shaded.
        steps_per_epoch: Optimizer updates per epoch.
        lr: The learning rate of each step; without it, that of each row is drawn.
        worker_lr: Epochs done and the learning rate of a SWAP worker from then on.
        final: Weight set (`last` and the averages) to its final scores.
        metrics: The metrics of the task.
        form: png or svg.
    """
    with plots.sheet(target, size=SIZE_INCHES, title=title, form=form) as figure:
        loss, score, rates = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 2])
        end = max([1.0, len(lr or ()) / steps_per_epoch, *(row["epoch"] for row in rows)])
        _draw_scores(loss, rows, names=list(averaging), final=final or {}, end=end, metrics=metrics, is_loss=True)
        _draw_scores(score, rows, names=list(averaging), final=final or {}, end=end, metrics=metrics, is_loss=False)
        _draw_rates(rates, rows, lr=lr, steps_per_epoch=steps_per_epoch)
        schedule.rates_of_workers(rates, worker_lr)
        schedule.rug(rates, averaging, steps_per_epoch=steps_per_epoch)
        schedule.shade((loss, score, rates), averaging, steps_per_epoch=steps_per_epoch, end=end)
        rates.set_ylabel("learning rate of a step")
        rates.set_xlabel("epoch")
        for panel in (loss, score, rates):
            _finish(panel, end=end, room_for_final=bool(final))


def _draw_scores(
    axes: Axes,
    rows: Sequence[Row],
    *,
    names: Sequence[str],
    final: Mapping[str, Row],
    end: float,
    metrics: TaskMetrics,
    is_loss: bool,
) -> None:
    """Draw the panel of the loss, or of the primary metric."""
    metric = metrics.loss if is_loss else metrics.primary
    points = _draw_lines(axes, rows, names=names, metrics=metrics, is_loss=is_loss)
    points += _draw_final(axes, final, names=names, metric=metric, end=end)
    settled = [value for epoch, value in points if epoch > end * _STEEP]
    if settled and len(rows) >= _LONG_RUN:
        margin = 0.05 * (max(settled) - min(settled))
        if metric.is_lower_better:
            axes.set_ylim(top=max(settled) + margin)
        else:
            axes.set_ylim(bottom=min(settled) - margin)
    axes.set_ylabel(metrics.loss_axis if is_loss else plots.axis_title(metric))


def with_workers(rows: Sequence[Row], workers: Mapping[str, Sequence[Row]]) -> list[Row]:
    """Return the rows of a SWAP run, followed by the validation scores of its workers as further epochs.

    Args:
        rows: The rows of the common phase.
        workers: Worker to its own rows, whose epochs count from 1.
    """
    later: dict[int, dict[str, Any]] = {}
    for name, own in workers.items():
        for row in own:
            epoch = len(rows) + row["epoch"]
            scores = {f"{name}_{key}": value for key, value in row.items() if key.startswith("val_")}
            later.setdefault(epoch, {"epoch": epoch, "lr": row["lr"]}).update(scores)
    return [*rows, *(later[epoch] for epoch in sorted(later))]


def lines(
    rows: Sequence[Row], *, names: Sequence[str], metrics: TaskMetrics, is_loss: bool
) -> list[tuple[str, dict[str, Any], list[Point]]]:
    """Return the lines of one metric: label, style and points; lines without a point are left out."""
    metric = metrics.loss if is_loss else metrics.primary
    what = "loss" if is_loss else metric.key
    looks = {f"train_{what}": ("train", plots.TRAIN), f"val_{what}": ("val", plots.VAL)}
    for name in names:
        looks[f"{name}_val_{what}"] = (f"{name}, val", plots.look(name, names))
    scale, found = plots.scale(metric), []
    for key, (label, look) in looks.items():
        points = [(float(row["epoch"]), scale * row[key]) for row in rows if plots.is_number(row.get(key))]
        if points:
            found.append((label, look, points))
    return found


def _draw_lines(
    axes: Axes, rows: Sequence[Row], *, names: Sequence[str], metrics: TaskMetrics, is_loss: bool
) -> list[Point]:
    drawn: list[Point] = []
    for label, look, points in lines(rows, names=names, metrics=metrics, is_loss=is_loss):
        epochs, values = zip(*points, strict=True)
        every = math.ceil(len(points) / _MAX_MARKERS)
        axes.plot(epochs, values, label=plots.plain(label, longest=25), markevery=every, **look)
        drawn += points
    return drawn


def _draw_rates(axes: Axes, rows: Sequence[Row], *, lr: Sequence[float] | None, steps_per_epoch: int) -> None:
    if lr:
        schedule.rates(axes, lr, steps_per_epoch=steps_per_epoch)
    else:
        axes.plot([row["epoch"] for row in rows], [row["lr"] for row in rows], color="black", linewidth=1.2)
        axes.set_ylim(bottom=0)


def _draw_final(
    axes: Axes, final: Mapping[str, Row], *, names: Sequence[str], metric: Metric, end: float
) -> list[Point]:
    """Mark the final score of each weight set to the right of the run, with its value in the legend."""
    key, drawn = metric.key, list[Point]()
    for name, scores in final.items():
        if not plots.is_number(scores.get(key)):
            continue
        look: dict[str, Any] = plots.look(name, names)
        point = (1.03 * end, plots.scale(metric) * scores[key])
        axes.plot(
            *point,
            linestyle="none",
            marker=look["marker"],
            markersize=9,
            markerfacecolor="none",
            markeredgewidth=1.8,
            color=look["color"],
            label=f"{plots.short(name)}, final: {cell(metric, scores[key])}{' %' if metric.is_percent else ''}",
        )
        drawn.append(point)
    return drawn


def _finish(axes: Axes, *, end: float, room_for_final: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0, end * (1.06 if room_for_final else 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    plots.tidy(axes)
    plots.legend(axes)
