"""Draw the pictures of a run in one style: the sheet, the palette, limits, error bars, and the text of names and axes.

Each `draw` function takes plain values and writes a picture under its `title` to the `target`, in the `form` png, svg
or pdf, `width` inches wide. The same values give the same bytes, whatever matplotlib's settings are. Things that differ
in color also differ in dash, marker, hatch or label. Names are drawn in the first font of `FONTS` that has them.
"""

from __future__ import annotations

import math
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
FORMATS = ("png", "svg", "pdf")
WIDTHS = (2.0, 20.0)  # inches that a person may ask for
_NARROW = 5.0  # inches: the column of a paper; legends stand above the panels, and text is smaller
# The first is part of matplotlib. The others are the usual fonts of Linux, macOS and Windows for scripts it lacks.
FONTS = (
    "DejaVu Sans",
    *("Noto Sans", "Noto Sans CJK JP", "Noto Sans JP", "Noto Sans SC", "Noto Sans KR", "Noto Sans Arabic"),
    *("Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Thai"),
    *("IPAexGothic", "WenQuanYi Zen Hei", "Droid Sans Fallback", "Unifont"),
    *("Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo", "Arial Unicode MS"),
    *("Yu Gothic", "Microsoft YaHei", "Malgun Gothic", "Nirmala UI", "Leelawadee UI", "Segoe UI"),
)
STYLE: dict[str, Any] = {
    "svg.hashsalt": "swa",  # otherwise ids inside an SVG are random
    "svg.fonttype": "none",  # text stays text: it can be searched, copied and edited
    "pdf.fonttype": 42,  # TrueType, which journals ask for; the default is refused by some
    "axes.titlesize": "medium",
    "figure.titlesize": "large",
    "legend.fontsize": "small",
    "xtick.labelsize": "small",
    "ytick.labelsize": "small",
}
_LONG_RUN = 10  # epochs; the steep start of a longer run is cut off: it would flatten the rest
_STEEP = 0.2  # of the run
MAX_MARKS = 200  # more marks would merge into a bar
PHASE = "#f3e9dd"  # background of the epochs in which weights are averaged
_NOTE = "#444444"  # the color of explanations
SURFACE = "cividis"  # lightness rises evenly, so it can be read without color

TRAIN: dict[str, Any] = {"color": "#777777", "linestyle": "-", "linewidth": 1.2}
VAL: dict[str, Any] = {
    "color": "#0072B2",
    "linestyle": "--",
    "linewidth": 1.5,
    "marker": "o",
    "markersize": 4,
}
# One look per average. The palette is that of Okabe and Ito: color-blind people can distinguish its colors, and each
# keeps its name (orange, green, ...) in print. No two dashes are equal, so lines differ without color or markers.
AVERAGES: tuple[dict[str, Any], ...] = tuple(
    {"color": color, "linestyle": dash, "linewidth": 1.8, "marker": marker, "markersize": 5}
    for color, dash, marker in (
        ("#D55E00", "-", "s"),
        ("#009E73", "-.", "^"),
        ("#CC79A7", ":", "D"),
        ("#E69F00", (0, (6, 1)), "v"),
        ("#56B4E9", (0, (4, 1, 1, 1, 1, 1)), "P"),
    )
)


@contextmanager
def sheet(
    target: Target, *, size: tuple[float, float], title: str, form: str = "png", width: float | None = None
) -> Iterator[Figure]:
    """Yield a figure of this `size` in inches, and write it when the block ends.

    With another `width` the height shrinks less than the width does, and text keeps the size of small print.

    Warns:
        MissingGlyphs: No font has a character.
    """
    import matplotlib.style
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    own = {**STYLE, "font.family": [name for name in FONTS if name in installed]}
    if width is not None:
        size = (width, size[1] * math.sqrt(min(1.0, width / size[0])))
        own["font.size"] = 7 if width < _NARROW else 8
    with matplotlib.style.context(["default", own]):
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        if title:
            figure.suptitle(_wrapped(plain(title, longest=120), figure, size=1.2))
        yield figure
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            # Without its date, a file depends on its content alone.
            metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form, {})
            figure.savefig(target, format=form, dpi=DPI, metadata=metadata)
    missing = set()
    for each in caught:
        if (found := re.match(r"Glyph (\d+) ", str(each.message))) is None:
            warnings.warn(each.message, each.category, stacklevel=3)
        else:
            missing.add(chr(int(found[1])))
    if missing and form != "svg":  # the program that shows an SVG finds fonts of its own
        warnings.warn(
            f"no installed font has {' '.join(sorted(missing)[:10])}{' ...' if len(missing) > 10 else ''}, "
            "so boxes are drawn instead; install a font for them, such as Noto Sans CJK, or draw an SVG",
            MissingGlyphs,
            stacklevel=3,
        )


class MissingGlyphs(UserWarning):
    """Characters that no font has are drawn as boxes."""


@contextmanager
def telling(tell: Callable[[str], None]) -> Iterator[None]:
    """Pass what is missing in pictures that are drawn in the block to `tell`, and other warnings on."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", MissingGlyphs)
        yield
    for each in caught:
        if issubclass(each.category, MissingGlyphs):
            tell(str(each.message))
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


def is_narrow(figure: Figure) -> bool:
    """Return whether the figure is as narrow as the column of a paper."""
    return figure.get_figwidth() < _NARROW


def note(figure: Figure, text: str) -> None:
    """Explain something below the panels."""
    figure.supxlabel(_wrapped(text, figure, size=0.83), fontsize="small", color=_NOTE)


def legend_below(figure: Figure, handles: Sequence[Any], *, note: str = "") -> None:
    """Put a legend of all panels below them, under an explanation."""
    figure.legend(
        handles=list(handles),
        title=_wrapped(note, figure, size=0.83) if note else None,
        title_fontproperties={"size": "small"},
        loc="outside lower center",
        ncols=1 if is_narrow(figure) else 3,
        frameon=False,
    ).get_title().set_color(_NOTE)


def _wrapped(text: str, figure: Figure, *, size: float) -> str:
    """Break a text, in a size relative to the font, into lines that fit the width of the figure."""
    import matplotlib as mpl

    character = 0.6 * size * mpl.rcParams["font.size"]  # points, on average
    return textwrap.fill(text, max(20, int(figure.get_figwidth() * 72 / character)))


def look(name: str, averages: Sequence[str]) -> dict[str, Any]:
    """Return the line style of a weight set: one per average; raw weights look like their validation line.

    Weights with recomputed statistics (`last_bn`) have the color of those without, and a marker of their own.
    """
    if name not in averages and name.endswith("_bn"):
        return {**look(name.removesuffix("_bn"), averages), "marker": "h"}
    return AVERAGES[averages.index(name) % len(AVERAGES)] if name in averages else VAL


def tidy(axes: Axes, *, grid: bool = True) -> None:
    """Apply the frame of all panels."""
    if grid:
        axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend(axes: Axes, *, above: float = 1.0) -> None:
    """Put the legend to the right of the panel, or on top of a narrow one, where it hides nothing."""
    if not axes.get_legend_handles_labels()[0]:
        return
    figure = axes.get_figure(root=True)
    if figure is not None and is_narrow(figure):
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, above), frameon=False, ncols=2)
    else:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def bounds(metric: Metric) -> tuple[float, float]:
    """Return the ends of the values that a metric can have, on its axis: a loss is at least 0 unless one is not."""
    if metric.is_percent:
        return 0.0, 100.0
    return (0.0, math.inf) if metric.is_lower_better else (-math.inf, math.inf)


def within(low: float, high: float, values: Iterable[float], limits: tuple[float, float]) -> tuple[float, float]:
    """Return the ends of a scale, moved inside the limits where all values are inside them."""
    found = list(values)
    if found and min(found) >= limits[0]:
        low = max(low, limits[0])
    if found and max(found) <= limits[1]:
        high = min(high, limits[1])
    return low, high


def limit(axes: Axes, metric: Metric, *, limits: tuple[float, float] | None = None) -> None:
    """End the y axis where values end, and draw lines there as wide as elsewhere: a mark at 100 % is whole."""
    from matplotlib.transforms import Bbox, TransformedBbox

    lines: list[Any] = axes.get_lines()
    drawn = [float(value) for line in lines for value in line.get_ydata() if is_number(value)]
    limits = bounds(metric) if limits is None else limits
    ends = within(*axes.get_ylim(), drawn, limits)
    axes.set_ylim(*ends)
    below, above = (0.02 * (end == edge) for end, edge in zip(ends, limits, strict=True))
    room = TransformedBbox(Bbox([[0, -below], [1, 1 + above]]), axes.transAxes)
    for line in lines:
        line.set_clip_path(None)
        line.set_clip_box(room)


def interval(
    metric: Metric, value: float, error: float | None, *, samples: int | None = None
) -> tuple[float, float] | None:
    """Return the interval of one standard error of a score; None without an error that is known.

    Of an accuracy on so many samples it is Wilson's (1927, Probable Inference, equation 4, with z = 1), which has a
    width also where all samples, or none, are right.
    """
    if metric.key == "accuracy" and samples and 0 <= value <= 1:  # a user's task may call anything so
        return wilson(value, samples)
    return (value - error, value + error) if is_number(error) else None


def wilson(fraction: float, samples: int) -> tuple[float, float]:
    """Return Wilson's interval of one standard error for a fraction of so many samples."""
    middle = fraction + 0.5 / samples
    half = math.sqrt(fraction * (1 - fraction) / samples + 0.25 / samples**2)
    return (middle - half) / (1 + 1 / samples), (middle + half) / (1 + 1 / samples)


def bars(values: Sequence[float], intervals: Sequence[tuple[float, float]]) -> list[list[float]]:
    """Return the lengths of error bars as matplotlib takes them: those below the values, and those above."""
    pairs = list(zip(values, intervals, strict=True))
    return [
        [max(0.0, value - low) for value, (low, _) in pairs],
        [max(0.0, high - value) for value, (_, high) in pairs],
    ]


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


def or_nan(value: float | None) -> float:
    """Return a value as matplotlib takes it: NaN, which it leaves out, for one that is not known."""
    return value if is_number(value) else math.nan


def settled(points: Iterable[tuple[float, float]], *, end: float) -> list[float]:
    """Return the values after the steep start of a long run, of points (epoch, value); none of a short run."""
    return [value for epoch, value in points if epoch > end * _STEEP] if end >= _LONG_RUN else []


def short(text: str) -> str:
    """Return the name of a weight set for a legend."""
    return plain(text, longest=20)


SPLITS = {"train": "training", "val": "validation", "test": "test"}  # in legends and at axes


def plain(text: str, *, longest: int, cut: str = "end") -> str:
    """Return `text` as matplotlib draws it literally: a dollar sign would start a formula.

    What does not fit is cut at the `end`, the `start` or in the `middle`.
    """
    if len(text) > longest:
        head = {"end": longest - 1, "start": 0, "middle": longest // 2}[cut]
        text = f"{text[:head]}…{text[len(text) - (longest - 1 - head) :]}"
    return printable(text).replace("$", r"\$")


def distinct(names: Sequence[str], *, longest: int) -> list[str]:
    """Shorten names so that they stay different: each in the middle, or all at the start, or at the end.

    Where every cut makes some equal, these get the numbers of their places, from 1.
    """
    for cut in ("middle", "start", "end"):
        found = [plain(name, longest=longest, cut=cut) for name in names]
        if len(set(found)) == len(set(names)):
            return found
    found = [plain(name, longest=longest, cut="middle") for name in names]
    counts = Counter(found)
    return [
        text if counts[text] == 1 else f"{place}: {plain(name, longest=longest - 5, cut='middle')}"
        for place, (name, text) in enumerate(zip(names, found, strict=True), 1)
    ]
