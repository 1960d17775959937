"""Draw what happens over the epochs of a run: its curves, its schedule, and a search of windows.

The schedule is known before the run begins. A search shows how flat the optimum is: scores over the start of the
window, or over the mean age of the weights, which averages of any shape have. Its error bars are those of the
difference to the chosen average on the same samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from swa_cli.metrics.metric import CLASSIFICATION, Metric, TaskMetrics
from swa_cli.report import plots
from swa_cli.report.plots import MAX_MARKS, Row
from swa_cli.report.scores import cell
from swa_cli.units import count_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float]  # epoch, value

SIZE_INCHES = (9.0, 10.0)
_WIDE = 50  # times the lowest loss: on a linear scale, the end of such a run is a flat line
MAX_MARKERS = 30  # on a line; where there are more points, marks on some of them would look like all


def draw(
    target: plots.Target,
    *,
    rows: Sequence[Row],
    title: str,
    averaging: Mapping[str, Sequence[int]],
    steps_per_epoch: int,
    lr: Sequence[float],
    worker_lr: Sequence[Point] = (),
    trained: str | None = None,
    final: Mapping[str, Row] | None = None,
    split: str = "test",
    samples: int | None = None,
    metrics: TaskMetrics = CLASSIFICATION,
    form: str = "png",
    width: float | None = None,
) -> None:
    """Write `curves.png`: three panels over the epochs, the phase of the first average shaded.

    `rows` are those of `metrics.csv`, with None where something was not measured. `averaging` maps an average to the
    steps it holds, in optimizer updates done. `lr` is the learning rate of each step; `worker_lr` pairs epochs done
    with the learning rate of a SWAP worker from then on. `trained` is the loss that is trained, if it is not that of
    the task. `final` maps `last` and the averages to their final scores on the `samples` of a `split`.
    """
    from matplotlib.ticker import MaxNLocator

    names, final = list(averaging), final or {}
    with plots.sheet(target, size=SIZE_INCHES, title=title, form=form, width=width) as figure:
        loss, score, rates = panels = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 2])
        end = max([1.0, len(lr) / steps_per_epoch, *(row["epoch"] for row in rows)])
        for panel in (loss, score):
            _draw_lines(panel, rows, names=names, end=end, metrics=metrics, is_loss=panel is loss)
            metric = metrics.loss if panel is loss else metrics.primary
            _draw_final(panel, final, names=names, end=end, metric=metric, split=split, samples=samples)
            plots.limit(panel, metric)
        is_log = loss.get_yscale() == "log"
        loss.set_ylabel(plots.loss_title(metrics, trained=trained) + (", log scale" if is_log else ""))
        score.set_ylabel(plots.axis_title(metrics.primary))
        _draw_rates(rates, lr, worker_lr, averaging, steps_per_epoch=steps_per_epoch)
        nbins = 6 if plots.is_narrow(figure) else 12
        ticks = MaxNLocator(nbins=nbins, integer=True).tick_values(0, end)
        _shade(panels, averaging, steps_per_epoch=steps_per_epoch, end=end)
        rates.set_xlabel("epoch")
        for panel in panels:
            panel.set_xlim(0, end * (_beside(len(final)) if final else 1.02))
            panel.set_xticks([tick for tick in ticks if tick <= end])
            plots.tidy(panel)
            plots.legend(panel)


def draw_schedule(
    target: plots.Target,
    *,
    title: str,
    lr: Sequence[float],
    averaging: Mapping[str, Sequence[int]],
    snapshots: Sequence[int],
    steps_per_epoch: int,
    worker_lr: Sequence[Point] = (),
    form: str = "png",
    width: float | None = None,
) -> None:
    """Write the picture of a schedule; `snapshots` are the steps whose raw weights are kept, the rest as in `draw`."""
    with plots.sheet(target, size=(9.0, 4.5), title=title, form=form, width=width) as figure:
        axes, end = figure.subplots(), max([len(lr) / steps_per_epoch, *(epoch for epoch, _ in worker_lr)])
        _draw_rates(axes, lr, worker_lr, averaging, snapshots, steps_per_epoch=steps_per_epoch)
        _shade([axes], averaging, steps_per_epoch=steps_per_epoch, end=end)
        axes.set_xlim(0, end * 1.02)
        axes.set_xlabel("epochs done")
        plots.tidy(axes)
        plots.legend(axes)


def draw_starts(
    target: plots.Target,
    *,
    rows: Sequence[Row],
    title: str,
    steps_per_epoch: int,
    reference: tuple[str, Row] | None = None,
    metrics: TaskMetrics = CLASSIFICATION,
    form: str = "png",
    width: float | None = None,
) -> None:
    """Write the picture of windows with different starts: the loss and the primary metric over the start.

    Each of `rows` has `start` and `end` in updates done, both metrics, their `_diff_se` to the best window, and whether
    it is `chosen`, the best. `reference` is the name of the raw weights that averages are judged against and their
    scores on the same samples.
    """
    end = max(row["end"] for row in rows)
    groups = [
        ("up to the end", _TO_END, [row for row in rows if row["end"] == end]),
        ("ends before", _SHORTER, [row for row in rows if row["end"] < end]),
        (_best(metrics), _CHOSEN, [row for row in rows if row["chosen"]]),
    ]
    with plots.sheet(target, size=(9.0, 7.0), title=title, form=form, width=width) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, metric in ((upper, metrics.loss), (lower, metrics.primary)):
            _draw_trials(axes, groups, lambda row: row["start"] / steps_per_epoch, metric=metric)
            if reference is not None and plots.is_number(reference[1].get(metric.key)):
                level = plots.scale(metric) * reference[1][metric.key]
                label = f"{plots.short(reference[0])}, the reference"
                axes.axhline(level, color=plots.VAL["color"], linestyle=":", label=label)
            _finish_trials(axes, metric)
        lower.set_xlabel("start of the window (epochs done)")
        plots.legend(upper)
        plots.note(figure, _BARS)


def draw_search(
    target: plots.Target,
    *,
    rows: Sequence[Row],
    title: str,
    steps_per_epoch: int,
    metrics: TaskMetrics = CLASSIFICATION,
    form: str = "png",
    width: float | None = None,
) -> None:
    """Write the picture of a search: the loss and the primary metric over the mean age of the averaged weights.

    Each of `rows` has the `shape` of its average, its `mean_age` in steps before the end of its window, `end` in
    updates done, both metrics, their `_diff_se` to the chosen average, and whether it is `chosen`.
    """
    end = max(row["end"] for row in rows)
    whole = [row for row in rows if row["end"] == end]
    groups = [
        (shape, {**plots.AVERAGES[index % len(plots.AVERAGES)], "linewidth": 1.2}, found)
        for index, shape in enumerate(dict.fromkeys(row["shape"] for row in rows))
        if (found := [row for row in whole if row["shape"] == shape])
    ]
    groups.append(("ends before", _SHORTER, [row for row in rows if row["end"] < end]))
    groups.append((_best(metrics), _CHOSEN, [row for row in rows if row["chosen"]]))
    with plots.sheet(target, size=(9.0, 7.0), title=title, form=form, width=width) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, metric in ((upper, metrics.loss), (lower, metrics.primary)):
            _draw_trials(axes, groups, lambda row: row["mean_age"] / steps_per_epoch, metric=metric)
            _finish_trials(axes, metric)
        lower.set_xlabel("mean age of the averaged weights (epochs before the end of their window)")
        plots.legend(upper)
        plots.note(figure, _BARS)


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
    looks = {f"train_{what}": ("training", plots.TRAIN), f"val_{what}": ("validation", plots.VAL)}
    for name in names:
        looks[f"{name}_val_{what}"] = (f"{name}, validation", plots.look(name, names))
    scale, found = plots.scale(metric), []
    for key, (label, look) in looks.items():
        points = [(float(row["epoch"]), scale * row[key]) for row in rows if plots.is_number(row.get(key))]
        if points:
            found.append((label, look, points))
    return found


def _draw_lines(
    axes: Axes, rows: Sequence[Row], *, names: Sequence[str], end: float, metrics: TaskMetrics, is_loss: bool
) -> None:
    """Draw the lines of the loss, or of the primary metric."""
    drawn: list[Point] = []
    for label, look, points in lines(rows, names=names, metrics=metrics, is_loss=is_loss):
        marks = {"marker": None} if len(points) > MAX_MARKERS else {}
        axes.plot(*zip(*points, strict=True), label=plots.plain(label, longest=30, cut="middle"), **{**look, **marks})
        drawn += points
    fit_scale(axes, drawn, metric=metrics.loss if is_loss else metrics.primary, is_loss=is_loss, end=end)


def fit_scale(axes: Axes, drawn: Sequence[Point], *, metric: Metric, is_loss: bool, end: float) -> None:
    """Cut off the steep start of a long run; a loss that falls very far has a logarithmic scale instead."""
    settled = plots.settled(drawn, end=end)
    values = settled or [value for _, value in drawn]
    if is_loss and values and max(values) > _WIDE * min(values) > 0:
        axes.set_yscale("log")
    elif settled:
        margin = 0.05 * (max(settled) - min(settled))
        if is_loss or metric.is_lower_better:
            axes.set_ylim(top=max(settled) + margin)
        else:
            axes.set_ylim(bottom=min(settled) - margin)


def _beside(index: int) -> float:
    """Return the place of a final score, to the right of the run, in lengths of the run."""
    return 1.03 + 0.025 * index


def _draw_final(
    axes: Axes,
    final: Mapping[str, Row],
    *,
    names: Sequence[str],
    end: float,
    metric: Metric,
    split: str,
    samples: int | None,
) -> None:
    """Draw the final scores side by side to the right of the run, each with one standard error."""
    known = {name: row for name, row in final.items() if plots.is_number(row.get(metric.key))}
    scale, unit = plots.scale(metric), " %" if metric.is_percent else ""
    low, high = axes.get_ylim()
    is_log = axes.get_yscale() == "log"
    margin = 0.0 if is_log else 0.05 * (high - low)
    for index, (name, row) in enumerate(known.items()):
        look, value = plots.look(name, names), row[metric.key]
        found = plots.interval(metric, value, row.get(f"{metric.key}_se"), samples=samples)
        axes.errorbar(
            _beside(index) * end,
            scale * value,
            yerr=None if found is None else plots.bars([scale * value], [(scale * found[0], scale * found[1])]),
            linestyle="none",
            marker=look["marker"],
            markersize=7,
            markerfacecolor="none",
            markeredgewidth=1.6,
            elinewidth=1.0,
            color=look["color"],
            label=f"{plots.short(name)}, {plots.SPLITS.get(split, split)}: {cell(metric, value)}{unit}",
        )
        low, high = min(low, (0.8 if is_log else 1) * scale * value - margin), max(high, scale * value + margin)
    if known:
        axes.set_ylim(max(low, 1e-12) if is_log else low, high)
        axes.axvline(1.01 * end, color="#999999", linewidth=0.8)


_ROW = 0.1  # of the panel's height, for each row of marks
_MOST_ROWS = 5


def _draw_rates(
    axes: Axes,
    lr: Sequence[float],
    worker_lr: Sequence[Point],
    averaging: Mapping[str, Sequence[int]],
    snapshots: Sequence[int] = (),
    *,
    steps_per_epoch: int,
) -> None:
    """Draw the rate of each step; above it a row of marks per average at the steps it holds, and one of snapshots."""
    rates = [*lr, *lr[-1:]]
    epochs = [step / steps_per_epoch for step in range(len(rates))]
    axes.plot(epochs, rates, color="black", linewidth=1.2)
    axes.set_ylim(bottom=0)
    if worker_lr:
        axes.plot(*zip(*worker_lr, strict=True), color="#D55E00", linestyle="--", linewidth=1.2, label="each worker")
    rows = [
        (name, steps, plots.look(name, list(averaging))["color"], "|") for name, steps in averaging.items() if steps
    ]
    rows += [("", snapshots, "black", "d")] if snapshots else []
    axes.set_ylim(top=axes.get_ylim()[1] / (1 - _ROW * min(len(rows), _MOST_ROWS)))
    for index, (name, steps, color, marker) in enumerate(rows):
        shown = thinned(steps)
        held = f"{plots.short(name)}: {count_text(len(steps), 'step')} averaged"
        label = held if name else count_text(len(steps), "snapshot")
        if len(shown) < len(steps):
            label += f"\n({len(shown)} drawn)"
        axes.plot(
            [step / steps_per_epoch for step in shown],
            [0.96 - _ROW * index] * len(shown),
            transform=axes.get_xaxis_transform(),
            linestyle="none",
            marker=marker,
            markersize=5 if marker == "d" else 9,
            color=color,
            label=label,
        )
    axes.set_ylabel("learning rate")


def _shade(panels: Iterable[Axes], averaging: Mapping[str, Sequence[int]], *, steps_per_epoch: int, end: float) -> None:
    """Shade the epochs of the first average."""
    name, steps = next(iter(averaging.items()), ("", ()))
    if steps:
        for panel in panels:
            panel.axvspan(
                steps[0] / steps_per_epoch, end, color=plots.PHASE, zorder=0, label=f"{plots.short(name)} averages"
            )


def thinned(steps: Sequence[int]) -> list[int]:
    """Return at most `MAX_MARKS` of the steps, evenly spaced, with the first and the last."""
    if len(steps) <= MAX_MARKS:
        return list(steps)
    last = len(steps) - 1
    return [steps[round(index * last / (MAX_MARKS - 1))] for index in range(MAX_MARKS)]


_BARS = (
    "Error bars: ± one standard error of the paired difference to the best average on the same samples; "
    "without a bar, the score of every sample is that of the best"
)
_TO_END: dict[str, Any] = {"color": "#0072B2", "marker": "o", "linestyle": "--", "linewidth": 1.2}
_SHORTER: dict[str, Any] = {"color": "#777777", "marker": "x", "linestyle": "none"}
_CHOSEN: dict[str, Any] = {"color": "black", "marker": "*", "markersize": 15, "linestyle": "none", "zorder": 1}


def _draw_trials(
    axes: Axes,
    groups: Iterable[tuple[str, Mapping[str, Any], Sequence[Row]]],
    place: Callable[[Row], float],
    *,
    metric: Metric,
) -> None:
    """Draw one metric of the trials in each group, which has a label, a look and rows; the best has no error bar."""
    key, scale = metric.key, plots.scale(metric)
    for label, look, group in groups:
        if group:
            ordered = sorted(group, key=place)
            axes.errorbar(
                [place(row) for row in ordered],
                [scale * plots.or_nan(row[key]) for row in ordered],
                yerr=None if look is _CHOSEN else [scale * plots.or_nan(row[f"{key}_diff_se"]) for row in ordered],
                label=label,
                capsize=3,
                elinewidth=0.8,
                **look,
            )
    plots.tidy(axes)


def _best(metrics: TaskMetrics) -> str:
    """Return what the chosen average is best by."""
    return f"best: {'lowest' if metrics.loss.is_lower_better else 'highest'} validation {metrics.loss.name}"


def _finish_trials(axes: Axes, metric: Metric) -> None:
    axes.set_ylabel(f"validation {plots.axis_title(metric)}")
    plots.limit(axes, metric)
