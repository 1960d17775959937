"""Draw the trials of a sweep: parallel coordinates, the best value so far, and how much each key matters."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from swa_cli.metrics.metric import Metric
from swa_cli.report import plots
from swa_cli.report.plots import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNFINISHED: dict[str, Any] = {"color": "#bbbbbb", "linewidth": 0.7, "linestyle": ":"}
MOST_TICKS = 12  # names of choices beside an axis


def draw(
    target: plots.Target,
    *,
    space: Mapping[str, Mapping[str, Any]],
    trials: Sequence[Row],
    importances: Mapping[str, float],
    metric: Metric,
    column: str,
    title: str,
    form: str = "png",
    width: float | None = None,
) -> None:
    """Write the picture.

    `space` and `trials` are those of sweep.json and result.json: a trial has `params`, texts by key, a `state`, and a
    `value` unless it was pruned or has failed. `column` names the value.
    """
    with plots.sheet(target, size=(10.0, 8.0), title=title, form=form, width=width) as figure:
        grid = figure.add_gridspec(2, 2, height_ratios=[5, 4])
        label = f"{column}{' (%)' if metric.is_percent else ''}"
        _draw_coordinates(figure.add_subplot(grid[0, :]), space, trials, metric, label)
        _draw_history(figure.add_subplot(grid[1, 0]), trials, metric, label)
        _draw_importances(figure.add_subplot(grid[1, 1]), importances)


def _draw_coordinates(
    axes: Axes, space: Mapping[str, Mapping[str, Any]], trials: Sequence[Row], metric: Metric, label: str
) -> None:
    """Draw a line per trial over one axis per key and one of the value; a key that is not drawn has its own place."""
    import matplotlib as mpl

    values = [trial["value"] for trial in trials if trial["value"] is not None]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    colors = mpl.colormaps[plots.SURFACE]
    for trial in sorted(trials, key=lambda trial: _rank(trial, metric)):  # the best on top
        heights = [_height(space[key], trial["params"].get(key)) for key in space]
        if trial["value"] is None:
            axes.plot(range(len(space)), heights, **UNFINISHED)
            continue
        goodness = (high - trial["value"]) / span if metric.is_lower_better else (trial["value"] - low) / span
        heights.append((trial["value"] - low) / span if high > low else 0.5)
        axes.plot(range(len(heights)), heights, color=colors(1 - goodness), linewidth=0.8 + 1.4 * goodness, alpha=0.9)
    for position, (key, domain) in enumerate(space.items()):
        axes.axvline(position, color="#444444", linewidth=0.8)
        for height, text in _ticks(domain, any(key not in trial["params"] for trial in trials)):
            axes.annotate(
                plots.plain(text, longest=18),
                (position, height),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5},
            )
    axes.axvline(len(space), color="#444444", linewidth=0.8)
    for share in (0.0, 0.5, 1.0) if high > low else (0.5,):
        text = f"{plots.scale(metric) * (low + share * (high - low)):.4g}"
        axes.annotate(text, (len(space), share), (4, 0), textcoords="offset points", va="center", fontsize=8)
    names = [*space, label]
    axes.set_xticks(range(len(names)), [plots.plain(name, longest=26) for name in names])
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(space) + 0.35)
    axes.spines[:].set_visible(False)
    better = "lower" if metric.is_lower_better else "higher"
    axes.set_title(
        f"each line is a trial; darker and thicker is better ({better}); dotted: pruned or failed", fontsize=9
    )


def _draw_history(axes: Axes, trials: Sequence[Row], metric: Metric, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    scale = plots.scale(metric)
    complete = [trial for trial in trials if trial["value"] is not None]
    numbers = [trial["number"] for trial in complete]
    values = [scale * trial["value"] for trial in complete]
    choose = min if metric.is_lower_better else max
    best = [choose(values[: index + 1]) for index in range(len(values))]
    axes.plot(numbers, values, "o", color=plots.VAL["color"], markersize=4, label="trial")
    axes.step(
        [*numbers, trials[-1]["number"]],
        [*best, best[-1]],
        where="post",
        color="#D55E00",
        linewidth=1.5,
        label="best so far",
    )
    others = [trial["number"] for trial in trials if trial["value"] is None]
    if others:
        # At the upper edge, as they have no value.
        edge: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
        axes.plot(others, [1.0] * len(others), "x", color="#999999", markersize=5, label="pruned or failed", **edge)
    axes.set_xlabel("trial")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    plots.tidy(axes)
    axes.legend(frameon=False, fontsize=8)


def _draw_importances(axes: Axes, importances: Mapping[str, float]) -> None:
    axes.set_title("importance of each key (PED-ANOVA)", fontsize=10)
    if not importances:
        axes.text(0.5, 0.5, "needs two different values", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    ordered = sorted(importances.items(), key=lambda pair: pair[1])
    bars = axes.barh([plots.plain(key, longest=26) for key, _ in ordered], [share for _, share in ordered])
    for bar in bars:
        bar.set_color("#56B4E9")
    axes.bar_label(bars, [f"{share:.2f}" for _, share in ordered], padding=3, fontsize=8)
    axes.set_xlim(0, max(importances.values()) * 1.18 or 1)
    axes.set_xlabel("share")
    plots.tidy(axes)


def _rank(trial: Row, metric: Metric) -> float:
    if trial["value"] is None:
        return -math.inf
    return -trial["value"] if metric.is_lower_better else trial["value"]


def _height(domain: Mapping[str, Any], text: str | None) -> float:
    """Return where a value stands on its axis, from 0 to 1; below it where the trial has none."""
    if text is None:
        return -0.1
    if "choices" in domain:
        choices = list(domain["choices"])
        return choices.index(text) / max(len(choices) - 1, 1) if len(choices) > 1 else 0.5
    number = float(re.sub(r"[a-z%]+$", "", text))
    low, high = domain["low"], domain["high"]
    if domain["log"]:
        low, high, number = math.log(low), math.log(high), math.log(number)
    return (number - low) / (high - low)


def _ticks(domain: Mapping[str, Any], has_none: bool) -> list[tuple[float, str]]:
    none = [(-0.1, "none")] if has_none else []
    if "choices" in domain:
        choices = list(domain["choices"])
        step = -(-len(choices) // MOST_TICKS)
        return [*none, *((_height(domain, text), text) for text in choices[::step])]
    low, high = domain["low"], domain["high"]
    middle = math.sqrt(low * high) if domain["log"] else (low + high) / 2
    return [*none, *((share, f"{value:.3g}{domain['unit']}") for share, value in ((0, low), (0.5, middle), (1, high)))]
