"""Draw reliability diagrams and confusion matrices.

A reliability diagram shows the accuracy of each bin of confidence as a bar, its gap to the mean confidence as a hatched
box, and the number of samples below (Guo et al. 2017, On Calibration of Modern Neural Networks, figure 4). Bins of few
samples are faded: they say little.
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
_FEW = 10  # samples of a bin
_FADED = 0.3  # opacity
_BAR: dict[str, Any] = {"facecolor": "#56B4E9", "edgecolor": "black", "linewidth": 0.6}
_GAP: dict[str, Any] = {"facecolor": "none", "edgecolor": "#D55E00", "hatch": "////", "linewidth": 0.8}
_DIAGONAL: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1}

Bins = Sequence[Mapping[str, Any]]  # `count`, `confidence` and `accuracy`: means, None where the bin is empty


def draw_reliability(
    target: plots.Target,
    *,
    sets: Mapping[str, Mapping[str, Any]],
    title: str,
    form: str = "png",
    width: float | None = None,
) -> None:
    """Write the reliability diagrams of weight sets.

    `sets` maps a weight set to its `ece` and its `bins` of equal width from 0 to 1.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    rows = math.ceil(len(sets) / _COLUMNS)
    columns = math.ceil(len(sets) / rows)  # four are two rows of two, not three and one
    size = (max(4.2 * columns, 5.0), 5.2 * rows + 0.6)
    with plots.sheet(target, size=size, title=title, form=form, width=width) as figure:
        grid = figure.subplots(2 * rows, columns, squeeze=False, sharex=True, height_ratios=[3, 1] * rows)
        places = [
            (grid[2 * row][column], grid[2 * row + 1][column]) for row in range(rows) for column in range(columns)
        ]
        for (upper, lower), (name, found) in zip(places, sets.items(), strict=False):
            _reliability(upper, found["bins"])
            upper.set_title(f"{plots.short(name)}: ECE {found['ece']:.3f}")
            _counts(lower, found["bins"])
            lower.tick_params(labelbottom=True)  # also where another panel stands below
        for unused in places[len(sets) :]:
            for axes in unused:
                axes.set_axis_off()
        handles = [
            Patch(label="accuracy", **_BAR),
            Patch(label="gap to the confidence", **_GAP),
            Line2D([], [], label="perfect calibration", **_DIAGONAL),
        ]
        text = f"Error bars: Wilson interval of one standard error; faded: fewer than {_FEW} samples"
        plots.legend_below(figure, handles, note=text)


def _reliability(axes: Axes, bins: Bins) -> None:
    width, held = 1 / len(bins), [(index, found) for index, found in enumerate(bins) if found["count"]]
    lefts = [index * width for index, _ in held]
    accuracies = [found["accuracy"] for _, found in held]
    gaps = [found["confidence"] - found["accuracy"] for _, found in held]
    solid = axes.bar(lefts, accuracies, width=width, align="edge", **_BAR)
    hatched = axes.bar(lefts, gaps, bottom=accuracies, width=width, align="edge", **_GAP)
    for pair, (_, found) in zip(zip(solid, hatched, strict=True), held, strict=True):
        for bar in pair:
            bar.set_alpha(_FADED if found["count"] < _FEW else 1.0)
    middles = [left + width / 2 for left in lefts]
    ends = [plots.wilson(found["accuracy"], found["count"]) for _, found in held]
    axes.errorbar(
        middles,
        accuracies,
        yerr=plots.bars(accuracies, ends),
        linestyle="none",
        color="black",
        capsize=2,
        elinewidth=0.8,
    )
    axes.plot([0, 1], [0, 1], **_DIAGONAL)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_ylabel("accuracy")
    plots.tidy(axes)


def _counts(axes: Axes, bins: Bins) -> None:
    width, counts = 1 / len(bins), [found["count"] for found in bins]
    lefts = [index * width for index in range(len(bins))]
    axes.bar(lefts, counts, width=width, align="edge", color="#999999", edgecolor="black", linewidth=0.6)
    axes.set_yscale("symlog", linthresh=1)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylim(0, 4 * max(1, *counts))
    for left, count in zip(lefts, counts, strict=True):
        if count:
            axes.text(left + width / 2, count * 1.15, f"{count}", ha="center", va="bottom", fontsize="xx-small")
    axes.set_ylabel("samples")
    axes.set_xlabel("confidence")
    plots.tidy(axes)


MOST_NUMBERS = 25  # classes; with more, the numbers would not fit into their cells
_LONGEST_CLASS = 24
_TEXT_HEIGHT = 1.25 / 72  # inches per point of the font, with the space between lines
_SHADES = ("white", "#08306b")  # between them lightness falls evenly, and paper stays white


def draw_confusion(
    target: plots.Target,
    *,
    matrix: Sequence[Sequence[int]],
    classes: Sequence[str],
    title: str,
    form: str = "png",
    width: float | None = None,
) -> None:
    """Write a confusion matrix; shades are fractions of the true class, numbers are samples.

    `matrix` (K, K) has a row per true class and a column per predicted class, `classes` their names. The picture grows
    with K until all names have a place; beyond that, every so many are named, which a note says.
    """
    from matplotlib.colors import LinearSegmentedColormap

    cell = 0.42 if len(classes) <= MOST_NUMBERS else 0.15
    side = min(max(5.5, 2.5 + cell * len(classes)), 20)
    size = (side + 1, side) if width is None else (width, width * side / (side + 1))
    with plots.sheet(target, size=size, title=title, form=form, width=width) as figure:
        axes = figure.subplots()
        fractions = [[count / max(1, sum(row)) for count in row] for row in matrix]
        image = axes.imshow(fractions, cmap=LinearSegmentedColormap.from_list("shades", _SHADES), vmin=0, vmax=1)
        figure.colorbar(image, ax=axes, shrink=0.8, label="fraction of the true class")
        if len(classes) <= MOST_NUMBERS:
            _numbers(axes, matrix, fractions)
        room = 0.75 * min(figure.get_figwidth() - 1, figure.get_figheight())
        if (every := _names(axes, classes, room=room)) > 1:
            plots.note(figure, f"One of {every} of the {len(classes):,} classes is named")
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")


def _numbers(axes: Axes, matrix: Sequence[Sequence[int]], fractions: Sequence[Sequence[float]]) -> None:
    for row, counts in enumerate(matrix):
        for column, count in enumerate(counts):
            if count:
                color = (
                    "white" if fractions[row][column] > 0.655 else "black"
                )  # either has a contrast of 4.5 to the shade
                axes.text(column, row, f"{count}", ha="center", va="center", fontsize="small", color=color)


def _names(axes: Axes, classes: Sequence[str], *, room: float) -> int:
    """Name the classes that have a place along an axis of so many inches: one of each N, which is returned."""
    import matplotlib as mpl

    size = min(8.0, 0.8 * mpl.rcParams["font.size"])
    if len(classes) > MOST_NUMBERS:
        size = min(size, 6.5)
    every = math.ceil(len(classes) * size * _TEXT_HEIGHT / room)
    names, places = plots.distinct(classes, longest=_LONGEST_CLASS), list(range(0, len(classes), every))
    shown = [names[place] for place in places]
    is_long = max(map(len, shown)) > 2
    axes.set_xticks(places, shown, fontsize=size, rotation=90 if is_long else 0)
    axes.set_yticks(places, shown, fontsize=size)
    return every
