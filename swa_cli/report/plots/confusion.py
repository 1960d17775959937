"""The confusion matrix of a weight set: how many samples of each class were taken for which. Legend: K classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from swa_cli.report.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_NUMBERS = 25  # classes; with more, the numbers would not fit into their cells
_LONGEST_CLASS = 14


def draw(
    target: style.Target, *, matrix: Sequence[Sequence[int]], classes: Sequence[str], title: str, form: str = "png"
) -> None:
    """Write the picture; shades are fractions of the class, numbers are samples.

    Args:
        target: Where it goes.
        matrix: (K, K) samples, a row each true class, a column each predicted one.
        classes: (K,) names.
        title: What stands over it.
        form: png or svg.
    """
    side = min(max(5.5, 2.5 + 0.42 * len(classes)), 14)
    with style.sheet(target, size=(side + 1, side), title=title, form=form) as figure:
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
    names = [style.plain(classes[index], longest=_LONGEST_CLASS) for index in shown]
    is_long = max(map(len, names)) > 2
    axes.set_xticks(shown, names, fontsize=8, rotation=90 if is_long else 0)
    axes.set_yticks(shown, names, fontsize=8)
