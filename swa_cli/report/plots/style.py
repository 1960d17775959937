"""What all pictures share: the sheet they are drawn on, the palette, and how names and axes are written."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import IO, TYPE_CHECKING, Any

from swa_cli.metrics.metric import Metric
from swa_cli.report.console_text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
Target = str | PathLike[str] | IO[bytes]

DPI = 150
FORMATS = ("png", "svg")
MAX_MARKS = 200  # more ticks than this on the rug would be a solid bar
PHASE = "#f3e9dd"  # of the part of a run in which weights are averaged
SURFACE = "cividis"  # its lightness rises evenly: it is read without colour too

TRAIN: dict[str, Any] = {"color": "#777777", "linestyle": "-", "linewidth": 1.2}
VAL: dict[str, Any] = {
    "color": "#0072B2",
    "linestyle": "--",
    "linewidth": 1.5,
    "marker": "o",
    "markersize": 4,
}
# One look for each average, from the palette of Okabe and Ito, which colour-blind people can tell apart.
AVERAGES: tuple[dict[str, Any], ...] = tuple(
    {"color": color, "linestyle": dash, "linewidth": 1.8, "marker": marker, "markersize": 5}
    for color, dash, marker in (
        ("#D55E00", "-", "s"),
        ("#009E73", "-.", "^"),
        ("#CC79A7", ":", "D"),
        ("#E69F00", "-", "v"),
        ("#56B4E9", "-.", "P"),
    )
)


@contextmanager
def sheet(target: Target, *, size: tuple[float, float], title: str, form: str = "png") -> Iterator[Figure]:
    """A figure to draw on; it is written when the block ends.

    Args:
        target: Where it goes; a file open for bytes will do.
        size: Inches.
        title: What stands over it.
        form: One of `FORMATS`.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    own = {"svg.hashsalt": "swa"}  # else the names inside an SVG would be drawn at random
    with matplotlib.style.context(["default", own]), warnings.catch_warnings():
        # A name in a script that the font lacks gets empty boxes, which is no reason to alarm anyone.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        figure.suptitle(plain(title, longest=80), fontsize=13)
        yield figure
        metadata = {"Date": None} if form == "svg" else {}
        figure.savefig(target, format=form, dpi=DPI, metadata=metadata)


def look(name: str, averages: Sequence[str]) -> dict[str, Any]:
    """How a weight set is drawn: each average in its own way, the raw weights as their validation line.

    With recomputed statistics, as `last_bn`, they have a marker of their own.
    """
    if name in averages:
        return AVERAGES[averages.index(name) % len(AVERAGES)]
    return {**VAL, "marker": "D"} if name.endswith("_bn") else VAL


def tidy(axes: Axes, *, grid: bool = True) -> None:
    """The frame that all panels have."""
    if grid:
        axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend(axes: Axes) -> None:
    """To the right of the panel, where it hides nothing."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)


def axis_title(metric: Metric) -> str:
    """A score with its unit."""
    return f"{metric.name} (%)" if metric.is_percent else metric.name


def scale(metric: Metric) -> float:
    """What a score is multiplied by to be drawn."""
    return 100.0 if metric.is_percent else 1.0


def is_number(value: float | None) -> bool:
    """Whether there is something to draw."""
    return value is not None and math.isfinite(value)


def short(text: str) -> str:
    """The name of a weight set in a legend."""
    return plain(text, longest=20)


def plain(text: str, *, longest: int) -> str:
    """`text` as matplotlib draws it literally: a dollar sign would start a formula."""
    return printable(text if len(text) <= longest else text[: longest - 1] + "…").replace("$", r"\$")
