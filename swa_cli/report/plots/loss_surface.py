"""Loss and score along the straight line between two weight sets, and a little beyond them.

Loss and score over the plane through three weight sets (Izmailov et al. 2018, figure 3).

Both axes are distances of weights, drawn to the same scale. Levels stand closer where the value is good: far from the
weights it rises without end, and near them is what matters. Legend: X, Y points of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from swa_cli.metrics.metric import CLASSIFICATION, Metric, TaskMetrics
from swa_cli.report.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE_INCHES = (9.0, 7.0)


def draw_path(
    target: style.Target,
    *,
    line: Mapping[str, Any],
    title: str,
    metrics: TaskMetrics = CLASSIFICATION,
    form: str = "png",
) -> None:
    """Write the picture: a panel with the loss, one with the score of the task, of training and scored samples.

    Args:
        target: Where it goes.
        line: `x`, distances of weights from the first end; `train_loss`, `train_score`, `loss`, `score` and
            `score_se` at each, None where not finite; `points`, the two ends with `name` and `x`; `split`.
        title: What stands over it.
        metrics: What the task scores.
        form: png or svg.
    """
    with style.sheet(target, size=SIZE_INCHES, title=title, form=form) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, key in ((upper, "loss"), (lower, "score")):
            _lines(axes, line, key=key, metrics=metrics)
        upper.set_ylabel(metrics.loss_axis)
        lower.set_ylabel(says(metrics, "score", split="").strip())
        lower.set_xlabel(f"distance of weights (L2) from {style.plain(line['points'][0]['name'], longest=30)}")
        for point in line["points"]:
            upper.text(
                point["x"],
                1.02,
                style.plain(point["name"], longest=30),
                transform=upper.get_xaxis_transform(),
                ha="center",
                va="bottom",
            )
        style.legend(upper)


def _lines(axes: Axes, line: Mapping[str, Any], *, key: str, metrics: TaskMetrics) -> None:
    for prefix, label, look in (("train_", "train", style.TRAIN), ("", line["split"], style.VAL)):
        values = [shown(metrics, key, value) for value in line[f"{prefix}{key}"]]
        axes.plot(line["x"], values, label=label, **look)
    if key == "score" and all(style.is_number(error) for error in line["score_se"]):
        middle = [shown(metrics, key, value) for value in line["score"]]
        errors = [style.scale(metrics.primary) * error for error in line["score_se"]]
        low, high = zip(*((value - e, value + e) for value, e in zip(middle, errors, strict=True)), strict=True)
        axes.fill_between(line["x"], low, high, color=style.VAL["color"], alpha=0.15, linewidth=0)
    for point in line["points"]:
        axes.axvline(point["x"], color="black", linewidth=1, linestyle=":")
    style.tidy(axes)


PANELS = ("loss", "score")
_LEVELS = 8
_FAR = 0.9  # of the grid lies below the highest level: the last tenth is anything
_CLOSER = {"loss": 2.0, "score": 1.3}  # power of the spacing of levels: a score has steps of a sample
_LOOKS: tuple[dict[str, Any], ...] = tuple(
    {"marker": marker, "markersize": size, "markerfacecolor": color}
    for marker, size, color in (("o", 9, "white"), ("s", 9, "#56B4E9"), ("*", 16, "#D55E00"))
)


def draw_plane(
    target: style.Target,
    *,
    surface: Mapping[str, Any],
    title: str,
    metrics: TaskMetrics = CLASSIFICATION,
    panels: Sequence[str] = PANELS,
    form: str = "png",
) -> None:
    """Write the picture: a panel with the training loss, and one with the score of the task.

    Args:
        target: Where it goes.
        surface: `x` (X,) and `y` (Y,), distances of weights; `loss` and `score`, Y rows of X values, None where not
            finite; `points`, each with `name`, `x`, `y`, `loss`, `score`; `split` and `samples` of the score.
        title: What stands over it.
        metrics: What the task scores.
        panels: Which of `PANELS`.
        form: png or svg.
    """
    with style.sheet(target, size=(0.5 + 5.5 * len(panels), 6.2), title=title, form=form) as figure:
        for axes, key in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _panel(figure, axes, surface, key=key, metrics=metrics)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=10)


def says(metrics: TaskMetrics, key: str, *, split: str) -> str:
    """What a panel shows, with its unit: of what is right in percent, the error."""
    if key == "loss":
        return f"train {metrics.loss_axis}"
    return f"{split} error (%)" if _is_error(metrics.primary) else f"{split} {style.axis_title(metrics.primary)}"


def shown(metrics: TaskMetrics, key: str, value: float | None) -> float:
    """A value as a panel shows it; nan where there is none."""
    if value is None or not math.isfinite(value):
        return math.nan
    if key == "loss":
        return value
    return 100 * (1 - value) if _is_error(metrics.primary) else style.scale(metrics.primary) * value


def _is_error(metric: Metric) -> bool:
    return metric.key == "accuracy"


def _panel(figure: Figure, axes: Axes, surface: Mapping[str, Any], *, key: str, metrics: TaskMetrics) -> None:
    import numpy as np

    values = np.ma.masked_invalid([[shown(metrics, key, value) for value in row] for row in surface[key]])
    is_lower_better = key == "loss" or _is_error(metrics.primary) or metrics.primary.is_lower_better
    levels = _levels(values.compressed().tolist(), is_lower_better=is_lower_better, power=_CLOSER[key])
    axes.set_title(says(metrics, key, split=surface["split"]), fontsize=11)
    if len(levels) > 2:
        from matplotlib.colors import BoundaryNorm

        colors = style.SURFACE if is_lower_better else f"{style.SURFACE}_r"
        bands = axes.contourf(
            surface["x"],
            surface["y"],
            values,
            levels=levels,
            cmap=colors,
            norm=BoundaryNorm(levels, 256, extend="max" if is_lower_better else "min"),
            extend="max" if is_lower_better else "min",
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
            label=style.plain(point["name"], longest=40),
            zorder=5,
            **look,
        )
    axes.set_xlim(surface["x"][0], surface["x"][-1])
    axes.set_ylim(surface["y"][0], surface["y"][-1])
    axes.set_aspect("equal")
    first, second = (style.short(point["name"]) for point in surface["points"][:2])
    axes.set_xlabel(f"distance of weights (L2), from {first} to {second}")
    axes.set_ylabel("distance of weights (L2) from that line")
    style.tidy(axes, grid=False)


def _label(axes: Axes, lines: Any) -> None:
    """Numbers on the lines, black on white: they are read on any band."""
    from matplotlib.patheffects import withStroke

    for text in axes.clabel(lines, lines.levels[::2], fontsize=8, fmt="%.3g", inline=False):
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def _levels(values: Sequence[float], *, is_lower_better: bool, power: float) -> list[float]:
    """From the best value to one that nine tenths of the grid are better than, closer to each other at the best.

    They are rounded to three digits, as they are written; a flat surface has none.
    """
    if not values:
        return []
    ordered = sorted(values, reverse=not is_lower_better)
    best, far = ordered[0], ordered[round(_FAR * (len(ordered) - 1))]
    levels = {float(f"{best + (far - best) * (index / _LEVELS) ** power:.3g}") for index in range(1, _LEVELS + 1)}
    edge = math.nextafter(best, -math.inf if is_lower_better else math.inf)
    return sorted({edge, *levels}) if best != far else []
