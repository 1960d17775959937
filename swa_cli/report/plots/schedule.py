"""Draw the learning rate over a run with its averaged steps and snapshots, and the scores of a search of windows.

The schedule is known before the run begins. The search shows the scores over the start of the window, and so how flat
the optimum is; its error bars are those of the difference to the chosen window on the same samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from swa_cli.metrics.metric import CLASSIFICATION, Metric, TaskMetrics
from swa_cli.report import plots
from swa_cli.report.plots import MAX_MARKS, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE_INCHES = (9.0, 4.5)
_ROW = 0.1  # of the panel's height, for each row of marks
_MOST_ROWS = 5


def draw_schedule(
    target: plots.Target,
    *,
    title: str,
    lr: Sequence[float],
    averaging: Mapping[str, Sequence[int]],
    snapshots: Sequence[int],
    steps_per_epoch: int,
    worker_lr: Sequence[tuple[float, float]] = (),
    form: str = "png",
) -> None:
    """Write the picture of a schedule.

    Args:
        target: A path, or a file open for bytes.
        title: The title of the run.
        lr: The learning rate of each step.
        averaging: Average to the steps it holds, in optimizer updates done; the first one's phase is shaded.
        snapshots: Steps whose raw weights are kept.
        steps_per_epoch: Optimizer updates per epoch.
        worker_lr: Epochs done and the learning rate of a SWAP worker from then on.
        form: png or svg.
    """
    with plots.sheet(target, size=SIZE_INCHES, title=title, form=form) as figure:
        axes, end = figure.subplots(), max([len(lr) / steps_per_epoch, *(epoch for epoch, _ in worker_lr)])
        rates(axes, lr, steps_per_epoch=steps_per_epoch)
        rates_of_workers(axes, worker_lr)
        rug(axes, averaging, snapshots=snapshots, steps_per_epoch=steps_per_epoch)
        shade([axes], averaging, steps_per_epoch=steps_per_epoch, end=end)
        axes.set_xlim(0, end * 1.02)
        axes.set_ylabel("learning rate of a step")
        axes.set_xlabel("epochs done")
        plots.tidy(axes)
        plots.legend(axes)


def rates(axes: Axes, lr: Sequence[float], *, steps_per_epoch: int) -> None:
    """Draw the learning rate of each step."""
    epochs = [step / steps_per_epoch for step in range(len(lr) + 1)]
    axes.plot(epochs, [*lr, *lr[-1:]], drawstyle="steps-post", color="black", linewidth=1.2)
    axes.set_ylim(bottom=0)


def rates_of_workers(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Draw the learning rate of each SWAP worker after the common phase."""
    if points:
        epochs, values = zip(*points, strict=True)
        axes.plot(epochs, values, drawstyle="steps-post", color="#D55E00", linewidth=1.2, label="each worker")


def rug(
    axes: Axes, averaging: Mapping[str, Sequence[int]], *, steps_per_epoch: int, snapshots: Sequence[int] = ()
) -> None:
    """Mark the averaged steps above the learning rate: a row of marks per average, and one for snapshots."""
    rows = [
        (name, steps, plots.look(name, list(averaging))["color"], "|") for name, steps in averaging.items() if steps
    ]
    rows += [("", snapshots, "black", "2")] if snapshots else []
    axes.set_ylim(top=axes.get_ylim()[1] / (1 - _ROW * min(len(rows), _MOST_ROWS)))
    for index, (name, steps, color, marker) in enumerate(rows):
        shown = thinned(steps)
        label = f"{len(steps):,} snapshot{'s' * (len(steps) != 1)}"
        if name:
            label = plots.short(name) + (": 1 step averaged" if len(steps) == 1 else f": {len(steps):,} steps averaged")
        if len(shown) < len(steps):
            label += f"\n({len(shown)} drawn)"
        axes.plot(
            [step / steps_per_epoch for step in shown],
            [0.96 - _ROW * index] * len(shown),
            transform=axes.get_xaxis_transform(),
            linestyle="none",
            marker=marker,
            markersize=9,
            color=color,
            label=label,
        )


def shade(panels: Sequence[Axes], averaging: Mapping[str, Sequence[int]], *, steps_per_epoch: int, end: float) -> None:
    """Shade the epochs of the first average."""
    name, steps = next(iter(averaging.items()), ("", ()))
    if not steps:
        return
    for panel in panels:
        start, label = steps[0] / steps_per_epoch, f"phase of {plots.short(name)}"
        panel.axvspan(start, end, color=plots.PHASE, zorder=0, label=label)


def thinned(steps: Sequence[int]) -> list[int]:
    """Return at most `MAX_MARKS` of the steps, evenly spaced, with the first and the last."""
    if len(steps) <= MAX_MARKS:
        return list(steps)
    last = len(steps) - 1
    return [steps[round(index * last / (MAX_MARKS - 1))] for index in range(MAX_MARKS)]


SEARCH_SIZE_INCHES = (9.0, 7.0)
_TO_END: dict[str, Any] = {"color": "#0072B2", "marker": "o", "linestyle": "--", "linewidth": 1.2}
_SHORTER: dict[str, Any] = {"color": "#E69F00", "marker": "s", "linestyle": "none"}
_CHOSEN: dict[str, Any] = {"color": "#D55E00", "marker": "*", "markersize": 16, "linestyle": "none"}


def draw_search(
    target: plots.Target,
    *,
    rows: Sequence[Row],
    title: str,
    steps_per_epoch: int,
    chosen: str = "chosen",
    reference: tuple[str, Row] | None = None,
    metrics: TaskMetrics = CLASSIFICATION,
    form: str = "png",
) -> None:
    """Write the picture of a search: the loss and the primary metric over the start of the window.

    Args:
        target: A path, or a file open for bytes.
        rows: `start` and `end` in updates done, both metrics, their `_diff_se` to the chosen window, and `chosen`.
        title: The title of the picture.
        steps_per_epoch: Optimizer updates per epoch.
        chosen: The label of the chosen window.
        reference: The name of the raw weights that averages are judged against, and their scores on the same samples.
        metrics: The metrics of the task.
        form: png or svg.
    """
    with plots.sheet(target, size=SEARCH_SIZE_INCHES, title=title, form=form) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, metric in ((upper, metrics.loss), (lower, metrics.primary)):
            _draw(axes, rows, metric=metric, steps_per_epoch=steps_per_epoch, chosen=chosen)
            if reference is not None and plots.is_number(reference[1].get(metric.key)):
                level = plots.scale(metric) * reference[1][metric.key]
                axes.axhline(level, color=plots.VAL["color"], linestyle=":", label=f"{reference[0]}, the reference")
            axes.set_ylabel(plots.axis_title(metric))
        lower.set_xlabel("start of the window (epochs done)")
        plots.legend(upper)


def _draw(axes: Axes, rows: Sequence[Row], *, metric: Metric, steps_per_epoch: int, chosen: str) -> None:
    """Draw one metric; the line joins the windows that reach the end of the run."""
    key, scale = metric.key, plots.scale(metric)
    end = max(row["end"] for row in rows)
    groups = (
        ("up to the end", _TO_END, [row for row in rows if row["end"] == end]),
        ("ends before", _SHORTER, [row for row in rows if row["end"] < end]),
        (chosen, _CHOSEN, [row for row in rows if row["chosen"]]),
    )
    for label, look, group in groups:
        if group:
            ordered = sorted(group, key=lambda row: row["start"])
            axes.errorbar(
                [row["start"] / steps_per_epoch for row in ordered],
                [scale * row[key] for row in ordered],
                yerr=None if label == chosen else [scale * row[f"{key}_diff_se"] for row in ordered],
                label=label,
                capsize=3,
                elinewidth=0.8,
                **look,
            )
    plots.tidy(axes)
