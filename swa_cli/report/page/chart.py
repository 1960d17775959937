"""A chart as inline SVG: lines over the epochs, with the values that the page's script says when one points at them.

Lines differ in dash and marker as well as in colour, as in the pictures; the colours are the page's variables, so they
follow light and dark. Units of the drawing are pixels at a width of `_WIDTH`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 420, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 8, 36
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
class Line:
    """A line: its name, `color` a variable of the page, dash and marker as matplotlib names them, and its points."""

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
) -> str:
    """HTML of a chart with its key and the place for the values.

    Args:
        lines: What is drawn.
        title: What stands over it, with the unit.
        unit: Follows each value that is said, such as ` %`.
        end: The last epoch.
        phase: Epoch from which weights are averaged; shaded.
        is_lower_better: Which end of the scale the steep beginning may leave.
        from_zero: Begin the scale at 0.
    """
    low, high = _range(lines, end=end, is_lower_better=is_lower_better, from_zero=from_zero)
    ticks = _ticks(low, high)
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(epoch: float) -> float:
        return _LEFT + width * epoch / end

    def y(value: float) -> float:
        return _TOP + height * (1 - (value - low) / (high - low))

    parts = []
    if phase is not None:
        parts.append(
            f'<rect class="phase" x="{x(phase):.1f}" y="{_TOP}" width="{x(end) - x(phase):.1f}" height="{height}"/>'
        )
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.6g}</text>')
    for tick in _ticks(0, end):
        parts.append(f'<text x="{x(tick):.1f}" y="{_HEIGHT - 20}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{_LEFT + width / 2}" y="{_HEIGHT - 4}" text-anchor="middle">epoch</text>')
    parts.append(f'<path class="axis" fill="none" d="M{_LEFT} {_TOP}v{height}h{width}"/>')
    box = f"0 {_TOP - 4} {_WIDTH} {height + 8}"  # what leaves the scale is cut off there
    clip = f'<svg x="0" y="{_TOP - 4}" width="{_WIDTH}" height="{height + 8}" viewBox="{box}">'
    parts.append(clip + "".join(_drawn(line, x, y) for line in lines) + "</svg>")
    parts.append(f'<line class="at" y1="{_TOP}" y2="{_TOP + height}"/>')
    values = {
        "left": _LEFT,
        "width": width,
        "end": end,
        "unit": unit,
        "series": [
            {"name": line.name, "points": [[epoch, value, f"{value:.4g}"] for epoch, value in line.points]}
            for line in lines
        ],
    }
    return (
        f'<figure class="chart" data-values="{escape(json.dumps(values, ensure_ascii=False))}">'
        f"<figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" tabindex="0" aria-label="{escape(title)} over the epochs">'
        f"{''.join(parts)}</svg>{_key(lines, phase=phase)}"
        '<p class="reading soft" aria-live="polite">Point at the chart for values.</p></figure>'
    )


def _drawn(line: Line, x: object, y: object) -> str:
    assert callable(x)
    assert callable(y)
    places = [(x(epoch), y(value)) for epoch, value in line.points]
    path = "M" + "L".join(f"{left:.1f} {top:.1f}" for left, top in places)
    dash = f' stroke-dasharray="{_DASHES[line.dash]}"' if _DASHES[line.dash] else ""
    drawn = f'<path d="{path}" fill="none" stroke="var(--{line.color})" stroke-width="1.6"{dash}/>'
    if line.marker is not None:
        every = math.ceil(len(places) / _MAX_MARKERS)
        drawn += "".join(_mark(line, left, top) for left, top in places[::every])
    return drawn


def _mark(line: Line, left: float, top: float) -> str:
    assert line.marker is not None
    return f'<path d="{_MARKERS[line.marker]}" transform="translate({left:.1f} {top:.1f})" fill="var(--{line.color})"/>'


def _key(lines: Sequence[Line], *, phase: float | None) -> str:
    items = []
    for line in lines:
        dash = f' stroke-dasharray="{_DASHES[line.dash]}"' if _DASHES[line.dash] else ""
        stroke = f'<path d="M0 6h28" stroke="var(--{line.color})" stroke-width="1.8"{dash}/>'
        mark = _mark(line, 14, 6) if line.marker is not None else ""
        items.append(
            f'<span><svg viewBox="0 0 28 12" aria-hidden="true">{stroke}{mark}</svg> {escape(line.name)}</span>'
        )
    if phase is not None:
        box = '<svg viewBox="0 0 28 12" aria-hidden="true"><rect class="phase" width="28" height="12"/></svg>'
        items.append(f"<span>{box} weights are averaged</span>")
    return f'<div class="key">{"".join(items)}</div>'


def _range(lines: Sequence[Line], *, end: float, is_lower_better: bool, from_zero: bool) -> tuple[float, float]:
    """The ends of the scale; the steep beginning of a long run may leave it."""
    every = [value for line in lines for _, value in line.points]
    settled = [value for line in lines for epoch, value in line.points if epoch > end * _STEEP]
    low, high = min(every, default=0.0), max(every, default=1.0)
    if settled and end >= _LONG_RUN and not from_zero:
        low, high = (low, max(settled)) if is_lower_better else (min(settled), high)
    low = 0.0 if from_zero else low
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return (low if from_zero else low - margin), high + margin


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers from `low` to `high`."""
    rough = (high - low) / 6
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]
