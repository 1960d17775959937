"""Draw loss and primary metric along the line through two weight sets, and over the plane through three.

The plane is that of Izmailov et al. 2018, figure 3. Its axes are distances of weights, drawn to the same scale. Levels
are closer to each other where the value is good: far from the weights the loss rises without bound.
Legend: X, Y points of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
) -> None:
    """Write the picture of a line: a panel of the loss and one of the primary metric, on two splits.

    `line` has `x`, distances of weights from the first end; `train_loss`, `train_score`, `loss`, `score` and `score_se`
    at each, None where not finite; `points`, the two ends with `name` and `x`; `split`; and `barrier`, of which
    `loss` has the `height`, its `x`, and the loss `line` that it rises above there, or is None.
    """
    with plots.sheet(target, size=(9.0, 7.0), title=title, form=form) as figure:
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
        plots.legend(upper)


def _lines(axes: Axes, line: Mapping[str, Any], *, key: str, metrics: TaskMetrics) -> None:
    for prefix, label, look in (("train_", "train", plots.TRAIN), ("", line["split"], plots.VAL)):
        values = [panel_value(metrics, key, value) for value in line[f"{prefix}{key}"]]
        axes.plot(line["x"], values, label=label, **look)
    if key == "score" and all(plots.is_number(error) for error in line["score_se"]):
        middle = [panel_value(metrics, key, value) for value in line["score"]]
        errors = [plots.scale(metrics.primary) * error for error in line["score_se"]]
        low, high = zip(*((value - e, value + e) for value, e in zip(middle, errors, strict=True)), strict=True)
        axes.fill_between(line["x"], low, high, color=plots.VAL["color"], alpha=0.15, linewidth=0)
    for point in line["points"]:
        axes.axvline(point["x"], color="black", linewidth=1, linestyle=":")
    plots.tidy(axes)


def _barrier(axes: Axes, barrier: Mapping[str, float] | None, *, split: str) -> None:
    """Mark the highest rise of a loss above the line between its ends."""
    if barrier is None or not barrier["height"]:
        return
    ends = (barrier["line"], barrier["line"] + barrier["height"])
    label = f"barrier {barrier['height']:.3g} ({split})"
    axes.plot([barrier["x"]] * 2, ends, color=plots.VAL["color"], linewidth=4, alpha=0.4, label=label)


PANELS = ("loss", "score")
_LEVELS = 8
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
) -> None:
    """Write the picture of a plane: a panel of the training loss and one of the primary metric.

    `surface` has `x` (X,) and `y` (Y,), distances of weights; `loss` and `score`, Y rows of X values, None where not
    finite; `points`, each with `name`, `x`, `y`, `loss`, `score`; `split` and `samples` of the score. `panels` are some
    of `PANELS`.
    """
    with plots.sheet(target, size=(0.5 + 5.5 * len(panels), 6.2), title=title, form=form) as figure:
        for axes, key in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _panel(figure, axes, surface, key=key, metrics=metrics)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=10)


def panel_title(metrics: TaskMetrics, key: str, *, split: str) -> str:
    """Return the title of a panel with its unit; accuracy is shown as the error."""
    if key == "loss":
        return f"train {metrics.loss_axis}"
    shown = "error (%)" if _is_shown_as_error(metrics.primary) else plots.axis_title(metrics.primary)
    return f"{split} {shown}"


def panel_value(metrics: TaskMetrics, key: str, value: float | None) -> float:
    """Return a value as a panel shows it; NaN if there is none."""
    if not plots.is_number(value):
        return math.nan
    if key == "loss":
        return value
    return 100 * (1 - value) if _is_shown_as_error(metrics.primary) else plots.scale(metrics.primary) * value


def _is_shown_as_error(metric: Metric) -> bool:
    return metric.key == "accuracy"


def _panel(figure: Figure, axes: Axes, surface: Mapping[str, Any], *, key: str, metrics: TaskMetrics) -> None:
    import numpy as np

    values = np.ma.masked_invalid([[panel_value(metrics, key, value) for value in row] for row in surface[key]])
    is_lower_better = key == "loss" or _is_shown_as_error(metrics.primary) or metrics.primary.is_lower_better
    levels = _levels(values.compressed().tolist(), is_lower_better=is_lower_better, power=_CLOSER[key])
    axes.set_title(panel_title(metrics, key, split=surface["split"]), fontsize=11)
    if len(levels) > 2:
        from matplotlib.colors import BoundaryNorm

        extend: Literal["max", "min"] = "max" if is_lower_better else "min"
        bands = axes.contourf(
            surface["x"],
            surface["y"],
            values,
            levels=levels,
            cmap=plots.SURFACE if is_lower_better else f"{plots.SURFACE}_r",
            norm=BoundaryNorm(levels, 256, extend=extend),
            extend=extend,
        )
        lines = axes.contour(surface["x"], surface["y"], values, levels=levels[1:-1], colors="black", linewidths=0.7)
        _label(axes, lines)
        figure.colorbar(bands, ax=axes, shrink=0.75, format="%.3g", ticks=levels)
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


def _levels(values: Sequence[float], *, is_lower_better: bool, power: float) -> list[float]:
    """Return levels from the best value to that of the 90th percentile of the grid, closer to each other at the best.

    They are rounded to three digits, as they are written; a flat surface has none.
    """
    if not values:
        return []
    ordered = sorted(values, reverse=not is_lower_better)
    best, far = ordered[0], ordered[round(_FAR * (len(ordered) - 1))]
    levels = {float(f"{best + (far - best) * (index / _LEVELS) ** power:.3g}") for index in range(1, _LEVELS + 1)}
    edge = math.nextafter(best, -math.inf if is_lower_better else math.inf)
    return sorted({edge, *levels}) if best != far else []
