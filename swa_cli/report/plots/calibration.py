"""Draw reliability diagrams and confusion matrices.

A reliability diagram shows the accuracy of each bin of confidence as a bar, its gap to the mean confidence as a hatched
box, and the number of samples below (Guo et al. 2017, On Calibration of Modern Neural Networks, figure 4).
Legend: K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from swa_cli.report import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 3
_BAR: dict[str, Any] = {"color": "#56B4E9", "edgecolor": "black", "linewidth": 0.6}
_GAP: dict[str, Any] = {"facecolor": "none", "edgecolor": "#D55E00", "hatch": "////", "linewidth": 0.8}

Bins = Sequence[Mapping[str, Any]]  # `count`, `confidence` and `accuracy`: means, None where the bin is empty


def draw_reliability(
    target: plots.Target, *, sets: Mapping[str, Mapping[str, Any]], title: str, form: str = "png"
) -> None:
    """Write the reliability diagrams of weight sets.

    `sets` maps a weight set to its `ece` and its `bins` of equal width from 0 to 1.
    """
    columns = min(_COLUMNS, len(sets))
    rows = math.ceil(len(sets) / columns)
    with plots.sheet(target, size=(max(4.2 * columns, 5.0), 5.4 * rows + 0.4), title=title, form=form) as figure:
        grid = figure.subplots(2 * rows, columns, squeeze=False, sharex=True, height_ratios=[3, 1] * rows)
        places = [
            (grid[2 * row][column], grid[2 * row + 1][column]) for row in range(rows) for column in range(columns)
        ]
        for (upper, lower), (name, found) in zip(places, sets.items(), strict=False):
            _reliability(upper, found["bins"])
            upper.set_title(f"{plots.short(name)}: ECE {found['ece']:.3f}", fontsize=11)
            _counts(lower, found["bins"])
        for unused in places[len(sets) :]:
            for axes in unused:
                axes.set_axis_off()
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=1 if columns == 1 else 3, frameon=False, fontsize=9
        )


def _reliability(axes: Axes, bins: Bins) -> None:
    width, held = 1 / len(bins), [(index, found) for index, found in enumerate(bins) if found["count"]]
    lefts = [index * width for index, _ in held]
    accuracies = [found["accuracy"] for _, found in held]
    gaps = [found["confidence"] - found["accuracy"] for _, found in held]
    errors = [math.sqrt(found["accuracy"] * (1 - found["accuracy"]) / found["count"]) for _, found in held]
    axes.bar(lefts, accuracies, width=width, align="edge", label="accuracy (± one standard error)", **_BAR)
    axes.bar(lefts, gaps, bottom=accuracies, width=width, align="edge", label="gap to the confidence", **_GAP)
    middles = [left + width / 2 for left in lefts]
    axes.errorbar(middles, accuracies, yerr=errors, linestyle="none", color="black", capsize=2, elinewidth=0.8)
    axes.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="perfect calibration")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("fraction right")
    plots.tidy(axes)


def _counts(axes: Axes, bins: Bins) -> None:
    width, counts = 1 / len(bins), [found["count"] for found in bins]
    lefts = [index * width for index in range(len(bins))]
    axes.bar(lefts, counts, width=width, align="edge", color="#999999", edgecolor="black", linewidth=0.6)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, 4 * max(1, *counts))
    for left, count in zip(lefts, counts, strict=True):
        if count:
            axes.text(left + width / 2, count * 1.15, f"{count}", ha="center", va="bottom", fontsize=6.5)
    axes.set_ylabel("samples")
    axes.set_xlabel("confidence")
    plots.tidy(axes)


_MOST_NUMBERS = 25  # classes; with more, the numbers would not fit into their cells
_LONGEST_CLASS = 14


def draw_confusion(
    target: plots.Target, *, matrix: Sequence[Sequence[int]], classes: Sequence[str], title: str, form: str = "png"
) -> None:
    """Write a confusion matrix; shades are fractions of the true class, numbers are samples.

    `matrix` (K, K) has a row per true class and a column per predicted class, `classes` their names.
    """
    side = min(max(5.5, 2.5 + 0.42 * len(classes)), 14)
    with plots.sheet(target, size=(side + 1, side), title=title, form=form) as figure:
        axes = figure.subplots()
        fractions = [[count / max(1, sum(row)) for count in row] for row in matrix]
        image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
        figure.colorbar(image, ax=axes, shrink=0.8, label="fraction of the true class")
        if len(classes) <= _MOST_NUMBERS:
            _numbers(axes, matrix, fractions)
        _names(axes, classes)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")


def _numbers(axes: Axes, matrix: Sequence[Sequence[int]], fractions: Sequence[Sequence[float]]) -> None:
    for row, counts in enumerate(matrix):
        for column, count in enumerate(counts):
            if count:
                color = "white" if fractions[row][column] > 0.5 else "black"
                axes.text(column, row, f"{count}", ha="center", va="center", fontsize=8, color=color)


def _names(axes: Axes, classes: Sequence[str]) -> None:
    every = -(-len(classes) // 50)
    shown = list(range(0, len(classes), every))
    names = [plots.plain(classes[index], longest=_LONGEST_CLASS) for index in shown]
    is_long = max(map(len, names)) > 2
    axes.set_xticks(shown, names, fontsize=8, rotation=90 if is_long else 0)
    axes.set_yticks(shown, names, fontsize=8)
