"""Draw a chart as inline SVG: lines over the epochs, whose values the page's script shows under the pointer.

Lines differ in dash and marker as well as in color. Their colors are CSS variables of the page, so they follow light
and dark. Lengths are pixels at the width of `_AREA`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from swa_cli.report.page import render

_MAX_MARKERS = 12
_STEEP, _LONG_RUN = 0.2, 10  # see `plots/curves.py`
_DASHES = {"-": "", "--": "6 4", "-.": "7 3 2 3", ":": "2 3"}
_MARKERS = {
    "o": "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "s": "M-3-3h6v6h-6z",
    "^": "M0-4l4 7h-8z",
    "v": "M0 4l4-7h-8z",
    "D": "M0-4l4 4l-4 4l-4-4z",
    "P": "M-1-4h2v3h3v2h-3v3h-2v-3h-3v-2h3z",
}


@dataclass(frozen=True)
class _Area:
    """The drawing, and the area inside its axes."""

    total_width: int = 420
    total_height: int = 250
    left: int = 52
    right: int = 410
    top: int = 8
    height: int = 206

    @property
    def width(self) -> int:
        return self.right - self.left


_AREA = _Area()


@dataclass(frozen=True)
class Line:
    """A line: its name, its CSS variable `color`, its dash and marker as matplotlib names them, and its points."""

    name: str
    color: str
    dash: str
    marker: str | None
    points: Sequence[tuple[float, float]]  # epoch, value


def chart(
    lines: Sequence[Line],
    *,
    title: str,
    unit: str,
    end: float,
    phase: float | None = None,
    is_lower_better: bool = True,
    from_zero: bool = False,
) -> Markup:
    """Return the HTML of a chart with its legend and the place for the values.

    Args:
        lines: The lines.
        title: The title, with the unit.
        unit: The text after each value, such as ` %`.
        end: The last epoch.
        phase: The epoch at which averaging begins; the rest is shaded.
        is_lower_better: Which end of the scale cuts off the steep start of a long run.
        from_zero: Start the scale at 0.
    """
    low, high = _scale(lines, end=end, is_lower_better=is_lower_better, from_zero=from_zero)

    def x(epoch: float) -> float:
        return _AREA.left + _AREA.width * epoch / end

    def y(value: float) -> float:
        return _AREA.top + _AREA.height * (1 - (value - low) / (high - low))  # pixels count from the top

    return render(
        "chart.html",
        title=title,
        area=_AREA,
        values=_values(lines, end=end, unit=unit),
        phase=None if phase is None else {"x": f"{x(phase):.1f}", "width": f"{x(end) - x(phase):.1f}"},
        x_ticks=[{"at": f"{x(tick):.1f}", "text": f"{tick:g}"} for tick in _ticks(0, end)],
        y_ticks=[
            {"at": f"{y(tick):.1f}", "text_at": f"{y(tick) + 4:.1f}", "text": f"{tick:.6g}"}
            for tick in _ticks(low, high)
        ],
        lines=[_drawn(line, x, y) for line in lines],
    )


def _values(lines: Sequence[Line], *, end: float, unit: str) -> str:
    """Return what the page's script needs, as JSON."""
    series = [
        {"name": line.name, "points": [[epoch, value, f"{value:.4g}"] for epoch, value in line.points]}
        for line in lines
    ]
    values = {"left": _AREA.left, "width": _AREA.width, "end": end, "unit": unit, "series": series}
    return json.dumps(values, ensure_ascii=False)


def _drawn(line: Line, x: Callable[[float], float], y: Callable[[float], float]) -> dict[str, object]:
    """Return a line as the template draws it: its path, and the places of its markers."""
    places = [(f"{x(epoch):.1f}", f"{y(value):.1f}") for epoch, value in line.points]
    every = max(1, math.ceil(len(places) / _MAX_MARKERS))
    return {
        "name": line.name,
        "color": line.color,
        "dash": _DASHES[line.dash],
        "path": "M" + "L".join(f"{left} {top}" for left, top in places),
        "marker": None if line.marker is None else _MARKERS[line.marker],
        "marks": [] if line.marker is None else places[::every],
    }


def _scale(lines: Sequence[Line], *, end: float, is_lower_better: bool, from_zero: bool) -> tuple[float, float]:
    """Return the ends of the scale, which may cut off the steep start of a long run."""
    every = [value for line in lines for _, value in line.points]
    settled = [value for line in lines for epoch, value in line.points if epoch > end * _STEEP]
    low, high = min(every, default=0.0), max(every, default=1.0)
    if settled and end >= _LONG_RUN and not from_zero:
        low, high = (low, max(settled)) if is_lower_better else (min(settled), high)
    low = 0.0 if from_zero else low
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return (low if from_zero else low - margin), high + margin


def _ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers from `low` to `high`."""
    rough = (high - low) / 6
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]
