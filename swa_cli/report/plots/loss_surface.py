"""Draw loss and primary metric along the line through two weight sets, and over the plane through three.

The plane is that of Izmailov et al. 2018, figure 3. Its axes are distances of weights, drawn to the same scale. Levels
are round numbers, closer to each other where the value is good, for far from the weights the loss rises without bound;
but no closer than one standard error of the score. Between measured points, values are interpolated monotonically.
Legend: X, Y points of the grid.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from swa_cli.metrics.metric import CLASSIFICATION, Metric, TaskMetrics
from swa_cli.report import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_path(
    target: plots.Target,
    *,
    line: Mapping[str, Any],
    title: str,
    metrics: TaskMetrics = CLASSIFICATION,
    form: str = "png",
    width: float | None = None,
) -> None:
    """Write the picture of a line: a panel of the loss and one of the primary metric, on two splits.

    `line` has `x`, distances of weights from the first end; `train_loss`, `train_score`, `loss`, `score` and `score_se`
    at each, None where not finite; `points`, the two ends with `name` and `x`; `split`; and `barrier`, of which
    `loss` has the `height`, its `x`, and the loss `line` that it rises above there, or is None. It may
    have the number of `samples` of the split.
    """
    with plots.sheet(target, size=(9.0, 7.0), title=title, form=form, width=width) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, key in ((upper, "loss"), (lower, "score")):
            _lines(axes, line, key=key, metrics=metrics)
        _barrier(upper, line["barrier"]["loss"], split=line["split"])
        upper.set_ylabel(metrics.loss_axis)
        lower.set_ylabel(panel_title(metrics, "score", split="").strip())
        lower.set_xlabel(f"distance of weights (L2) from {plots.plain(line['points'][0]['name'], longest=30)}")
        for point in line["points"]:
            upper.text(
                point["x"],
                1.02,
                plots.plain(point["name"], longest=30),
                transform=upper.get_xaxis_transform(),
                ha="center",
                va="bottom",
            )
        plots.legend(upper, above=1.1)
        if all(plots.is_number(error) for error in line["score_se"]):
            plots.note(figure, f"Band: ± one standard error on the {plots.SPLITS[line['split']]} samples")


def _lines(axes: Axes, line: Mapping[str, Any], *, key: str, metrics: TaskMetrics) -> None:
    metric = metrics.loss if key == "loss" else metrics.primary
    for prefix, split, look in (("train_", "train", plots.TRAIN), ("", line["split"], plots.VAL)):
        values = [panel_value(metrics, key, value) for value in line[f"{prefix}{key}"]]
        axes.plot(line["x"], values, label=plots.SPLITS[split], **look)
    if key == "score" and all(plots.is_number(error) for error in line["score_se"]):
        scores = list(zip(line["x"], line["score"], line["score_se"], strict=True))
        known = [(x, value, error) for x, value, error in scores if plots.is_number(value)]
        found = [plots.interval(metric, value, error, samples=line.get("samples")) for _, value, error in known]
        ends = [sorted(panel_value(metrics, key, end) for end in pair) for pair in found if pair is not None]
        low, high = zip(*ends, strict=True)
        axes.fill_between([x for x, *_ in known], low, high, color=plots.VAL["color"], alpha=0.15, linewidth=0)
    plots.limit(axes, metric)
    for point in line["points"]:
        axes.axvline(point["x"], color="black", linewidth=1, linestyle=":")
    plots.tidy(axes)


def _barrier(axes: Axes, barrier: Mapping[str, float] | None, *, split: str) -> None:
    """Mark the highest rise of a loss above the line between its ends."""
    if barrier is None or not barrier["height"]:
        return
    ends = (barrier["line"], barrier["line"] + barrier["height"])
    label = f"barrier {barrier['height']:.3g} ({plots.SPLITS[split]})"
    axes.plot([barrier["x"]] * 2, ends, color=plots.VAL["color"], linewidth=4, alpha=0.4, label=label)


PANELS = ("loss", "score")
_LEVELS = 8
_SMALLEST_PANEL = 3.5  # inches; two that would be narrower stand on top of each other
_FINER = 4  # drawn points per measured one, along each axis
_FAR = 0.9  # fraction of the grid below the highest level; the rest is unbounded
_CLOSER = {"loss": 2.0, "score": 1.3}  # power of the spacing of levels
_LOOKS: tuple[dict[str, Any], ...] = tuple(
    {"marker": marker, "markersize": size, "markerfacecolor": color}
    for marker, size, color in (("o", 9, "white"), ("s", 9, "#56B4E9"), ("*", 16, "#D55E00"))
)


def draw_plane(
    target: plots.Target,
    *,
    surface: Mapping[str, Any],
    title: str,
    metrics: TaskMetrics = CLASSIFICATION,
    panels: Sequence[str] = PANELS,
    form: str = "png",
    width: float | None = None,
) -> None:
    """Write the picture of a plane: a panel of the training loss and one of the primary metric.

    `surface` has `x` (X,) and `y` (Y,), distances of weights; `loss` and `score`, Y rows of X values, None where not
    finite; perhaps `score_se`, of the same shape; `points`, each with `name`, `x`, `y`, `loss`, `score`; `split` and
    `samples` of the score. `panels` are some of `PANELS`. Scores within one standard error of the best are dotted.
    """
    narrow = width is not None and width < 2 * _SMALLEST_PANEL
    shape = (len(panels), 1) if narrow else (1, len(panels))
    side = 5.5 if width is None else width / shape[1]
    size = (side * shape[1], 0.84 * side * shape[0] + (0.4 if title else 0.0) + (1.0 if narrow else 0.6))
    with plots.sheet(target, size=size, title=title, form=form, width=width) as figure:
        for axes, key in zip(figure.subplots(*shape, squeeze=False).flat, panels, strict=True):
            _panel(figure, axes, surface, key=key, metrics=metrics)
        error, text = _error_of_best(surface, metrics) if "score" in panels else None, ""
        if error is not None:
            best = "lowest" if _is_better_low(metrics, "score") else "highest"
            what = panel_title(metrics, "score", split=surface["split"])
            text = (
                f"Dotted: within one standard error ({error:#.2g}) of the {best} {what}, on {surface['samples']:,} "
                "samples; differences there can be sampling noise"
            )
        plots.legend_below(figure, figure.axes[0].get_legend_handles_labels()[0], note=text)


def panel_title(metrics: TaskMetrics, key: str, *, split: str) -> str:
    """Return the title of a panel with its unit; accuracy is shown as the error."""
    if key == "loss":
        return f"training {metrics.loss_axis}"
    shown = "error (%)" if _is_shown_as_error(metrics.primary) else plots.axis_title(metrics.primary)
    return f"{plots.SPLITS.get(split, split)} {shown}"


def panel_value(metrics: TaskMetrics, key: str, value: float | None) -> float:
    """Return a value as a panel shows it; NaN if there is none."""
    if not plots.is_number(value):
        return math.nan
    if key == "loss":
        return value
    return 100 * (1 - value) if _is_shown_as_error(metrics.primary) else plots.scale(metrics.primary) * value


def _is_shown_as_error(metric: Metric) -> bool:
    return metric.key == "accuracy"


def _is_better_low(metrics: TaskMetrics, key: str) -> bool:
    return key == "loss" or _is_shown_as_error(metrics.primary) or metrics.primary.is_lower_better


def _error_of_best(surface: Mapping[str, Any], metrics: TaskMetrics) -> float | None:
    """Return the standard error of the best score of the grid, as the panel shows it; None where it is not known."""
    rows = zip(surface["score"], surface.get("score_se") or [], strict=False)
    pairs = [pair for row in rows for pair in zip(*row, strict=True) if all(map(plots.is_number, pair))]
    if not pairs:
        return None
    metric = metrics.primary
    score, error = (min if metric.is_lower_better else max)(pairs, key=lambda pair: pair[0])
    found = plots.interval(metric, score, error, samples=surface["samples"])
    assert found is not None, "it has an error"
    return plots.scale(metric) * max(score - found[0], found[1] - score)


def _panel(figure: Figure, axes: Axes, surface: Mapping[str, Any], *, key: str, metrics: TaskMetrics) -> None:
    import numpy as np

    values = np.array([[panel_value(metrics, key, value) for value in row] for row in surface[key]])
    is_lower_better = _is_better_low(metrics, key)
    known = values[np.isfinite(values)].tolist()
    error = _error_of_best(surface, metrics) if key == "score" else None
    levels = _levels(known, is_lower_better=is_lower_better, power=_CLOSER[key], least=error or 0.0)
    axes.set_title(panel_title(metrics, key, split=surface["split"]))
    if len(levels) > 2:
        from matplotlib.colors import BoundaryNorm

        extend: Literal["max", "min"] = "max" if is_lower_better else "min"
        grid = _finer(surface["x"], surface["y"], values)
        bands = axes.contourf(
            *grid,
            levels=levels,
            cmap=plots.SURFACE if is_lower_better else f"{plots.SURFACE}_r",
            norm=BoundaryNorm(levels, 256, extend=extend),
            extend=extend,
        )
        lines = axes.contour(*grid, levels=levels[1:-1], colors="black", linewidths=0.7)
        _label(axes, lines)
        figure.colorbar(bands, ax=axes, shrink=0.85, format="%.3g", ticks=levels)
        if error is not None:
            ends = (levels[0], min(known) + error) if is_lower_better else (max(known) - error, levels[-1])
            if ends[0] < ends[1]:
                dots = axes.contourf(*grid, levels=ends, colors="none", hatches=[".."])
                dots.set(edgecolor="white", linewidth=0.0)
    for point, look in zip(surface["points"], _LOOKS, strict=True):
        axes.plot(
            point["x"],
            point["y"],
            linestyle="none",
            markeredgecolor="black",
            markeredgewidth=1.4,
            label=plots.plain(point["name"], longest=40),
            zorder=5,
            **look,
        )
    axes.set_xlim(surface["x"][0], surface["x"][-1])
    axes.set_ylim(surface["y"][0], surface["y"][-1])
    axes.set_aspect("equal")
    first, second = (plots.short(point["name"]) for point in surface["points"][:2])
    axes.set_xlabel(f"distance of weights (L2), from {first} to {second}")
    axes.set_ylabel("distance of weights (L2) from that line")
    plots.tidy(axes, grid=False)


def _label(axes: Axes, lines: Any) -> None:
    """Write numbers on the lines, black on white, so that they can be read on any band."""
    from matplotlib.patheffects import withStroke

    for text in axes.clabel(lines, lines.levels[::2], fontsize=8, fmt="%.3g", inline=False):
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def _finer(xs: Sequence[float], ys: Sequence[float], values: Any) -> tuple[Any, Any, Any]:
    """Return the grid with points between the measured ones, whose values lie between those of their neighbors.

    Grids with values that are not finite stay as they are.
    """
    import numpy as np

    if not np.isfinite(values).all():
        return np.asarray(xs), np.asarray(ys), np.ma.masked_invalid(values)
    from scipy.interpolate import pchip_interpolate

    finer = [
        np.interp(np.linspace(0, len(places) - 1, _FINER * (len(places) - 1) + 1), range(len(places)), places)
        for places in (xs, ys)
    ]
    across = pchip_interpolate(xs, values, finer[0], axis=1)
    return *finer, pchip_interpolate(ys, across, finer[1], axis=0)


def _levels(values: Sequence[float], *, is_lower_better: bool, power: float, least: float = 0.0) -> list[float]:
    """Return round levels from the best value to that of the 90th percentile of the grid, closer to each other there.

    They are at least `least` apart; a flat surface has none.
    """
    if not values:
        return []
    ordered = sorted(values, reverse=not is_lower_better)
    best, far = ordered[0], ordered[round(_FAR * (len(ordered) - 1))]
    if best == far:
        return []
    wanted = [best + (far - best) * (index / _LEVELS) ** power for index in range(_LEVELS + 1)]
    gaps = [abs(after - before) for before, after in itertools.pairwise(wanted)]
    first = _round(best, gaps[0], math.floor if is_lower_better else math.ceil)
    levels = [first]
    for level, gap in zip(wanted[1:], gaps, strict=True):
        level = _round(level, max(gap, least), round)
        if abs(level - levels[-1]) >= least and (level > levels[-1] if is_lower_better else level < levels[-1]):
            levels.append(level)
    return sorted(levels)


def _round(value: float, gap: float, to_whole: Callable[[float], int]) -> float:
    """Round to a multiple of 1, 2 or 5 times a power of ten: the largest of at most half the gap to the next value."""
    power = 10.0 ** math.floor(math.log10(gap / 2))
    step = max(factor * power for factor in (1, 2, 5) if factor == 1 or factor * power <= gap / 2)
    return float(f"{to_whole(value / step) * step:.12g}")
