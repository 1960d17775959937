"""Draw the pictures of a run in one style: the sheet, the palette, and the text of names and axes.

Each `draw` function takes plain values and writes a picture under its `title` to the `target`, in the `form` png or
svg. The same values give the same picture, whatever matplotlib's settings are. Things that differ in color also differ
in dash, marker, hatch or label.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import IO, TYPE_CHECKING, Any, TypeGuard

from swa_cli.metrics.metric import Metric, TaskMetrics
from swa_cli.report.console_text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Row = Mapping[str, Any]
Target = str | PathLike[str] | IO[bytes]  # a path, or a file open for bytes

DPI = 150
FORMATS = ("png", "svg")
_LONG_RUN = 10  # epochs; the steep start of a longer run is cut off: it would flatten the rest
_STEEP = 0.2  # of the run
MAX_MARKS = 200  # more marks would merge into a bar
PHASE = "#f3e9dd"  # background of the epochs in which weights are averaged
SURFACE = "cividis"  # lightness rises evenly, so it can be read without color

TRAIN: dict[str, Any] = {"color": "#777777", "linestyle": "-", "linewidth": 1.2}
VAL: dict[str, Any] = {
    "color": "#0072B2",
    "linestyle": "--",
    "linewidth": 1.5,
    "marker": "o",
    "markersize": 4,
}
# One look per average, from the palette of Okabe and Ito, which color-blind people can distinguish.
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
    """Yield a figure of this `size` in inches, and write it when the block ends."""
    import matplotlib.style
    from matplotlib.figure import Figure

    own = {"svg.hashsalt": "swa"}  # otherwise ids inside an SVG are random
    with matplotlib.style.context(["default", own]), warnings.catch_warnings():
        # A name with characters that the font lacks gets empty boxes: not worth a warning.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        figure.suptitle(plain(title, longest=80), fontsize=13)
        yield figure
        metadata = {"Date": None} if form == "svg" else {}
        figure.savefig(target, format=form, dpi=DPI, metadata=metadata)


def look(name: str, averages: Sequence[str]) -> dict[str, Any]:
    """Return the line style of a weight set: one per average; raw weights look like their validation line.

    Raw weights with recomputed statistics (`last_bn`) have a marker of their own.
    """
    if name in averages:
        return AVERAGES[averages.index(name) % len(AVERAGES)]
    return {**VAL, "marker": "D"} if name.endswith("_bn") else VAL


def tidy(axes: Axes, *, grid: bool = True) -> None:
    """Apply the frame of all panels."""
    if grid:
        axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend(axes: Axes) -> None:
    """Put the legend to the right of the panel, where it hides nothing."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)


def axis_title(metric: Metric) -> str:
    """Return the name of a metric with its unit."""
    return f"{metric.name} (%)" if metric.is_percent else metric.name


def loss_title(metrics: TaskMetrics, *, trained: str | None) -> str:
    """Return `loss (nats per sample)`; `loss (val: nats per sample; train: bce)` where another loss is trained."""
    if trained is None:
        return metrics.loss_axis
    unit = metrics.loss_axis.removeprefix("loss").strip(" ()")
    return f"loss ({f'val: {unit}; ' if unit else ''}train: {plain(trained, longest=40)})"


def scale(metric: Metric) -> float:
    """Return the factor from a metric to its axis."""
    return 100.0 if metric.is_percent else 1.0


def is_number(value: float | None) -> TypeGuard[float]:
    """Return whether the value can be drawn."""
    return value is not None and math.isfinite(value)


def settled(points: Iterable[tuple[float, float]], *, end: float) -> list[float]:
    """Return the values after the steep start of a long run, of points (epoch, value); none of a short run."""
    return [value for epoch, value in points if epoch > end * _STEEP] if end >= _LONG_RUN else []


def short(text: str) -> str:
    """Return the name of a weight set for a legend."""
    return plain(text, longest=20)


def plain(text: str, *, longest: int) -> str:
    """Return `text` as matplotlib draws it literally: a dollar sign would start a formula."""
    return printable(text if len(text) <= longest else text[: longest - 1] + "…").replace("$", r"\$")
