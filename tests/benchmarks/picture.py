"""bench.png: each figure by its distance to its bar, a line that all bars share.

A bar that reaches the line or crosses it is met; one that is missed is hatched, so no colour is needed to see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
from matplotlib.figure import Figure as Canvas

from benchmarks.figures import Figure, number

LARGEST = 10.0  # margins beyond it say nothing more


def draw(figures: Sequence[Figure], *, title: str, path: Path) -> None:
    """Write the picture; figures without a bar are not in it."""
    judged = [figure for figure in figures if figure.bar is not None][::-1]
    with matplotlib.style.context("default"):
        canvas = Canvas(figsize=(9, 1.6 + 0.42 * len(judged)), layout="constrained")
        axes = canvas.subplots()
        for row, figure in enumerate(judged):
            margin = figure.margin
            assert margin is not None
            look = {"color": "#f2f2f2", "hatch": "////"} if figure.is_missed else {"color": "#8fb8de"}
            width = min(max(margin, 1 / LARGEST), LARGEST)
            axes.barh(row, width - 1 / LARGEST, left=1 / LARGEST, height=0.6, edgecolor="black", **look)
            label = f"{number(figure.value)} {figure.value_unit}  ({figure.spoken_bar}, {figure.verdict})"
            axes.text(LARGEST * 1.1, row, label, va="center", fontsize=8)
        axes.axvline(1, color="black", linewidth=2)
        axes.set_xscale("log")
        axes.set_xlim(1 / LARGEST, LARGEST)
        axes.set_xticks([0.1, 0.5, 1, 2, 5, 10], ["1/10", "1/2", "the bar", "2 x", "5 x", "10 x"])
        axes.set_yticks(range(len(judged)), [figure.name for figure in judged], fontsize=8)
        canvas.suptitle(title, x=0.01, ha="left", fontsize=9)
        axes.set_xlabel("as good as the bar asks, and so many times better")
        canvas.savefig(path, dpi=150)
