"""Draw the validation curves of several settings over each other: the loss, and below it the primary metric.

A setting has one color: its raw weights a line, its average the same line with markers. Several seeds are a thin line
each, their mean in front of a band of one standard deviation. Both panels have one scale for all settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swa_cli.metrics.metric import CLASSIFICATION, Metric, TaskMetrics
from swa_cli.report import plots
from swa_cli.report.plots import curves

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

Point = tuple[float, float]  # epoch, value

WIDTH, PANEL, LEGEND_LINE = 9.0, 3.4, 0.2  # inches
MOST = 12  # settings that can be told apart
LONGEST_LABEL = 52
COLORS = (plots.VAL["color"], *(look["color"] for look in plots.AVERAGES), "#000000", "#8C6D1F")
_DASHES = ("-", "--")
_MAX_MARKERS = 15


@dataclass(frozen=True)
class Curve:
    """A metric over the epochs: mean and standard deviation over seeds (None for one), and a line per seed."""

    mean: Sequence[Point]
    sd: Sequence[float | None]
    seeds: Sequence[Sequence[Point]]


@dataclass(frozen=True)
class SettingCurves:
    """The curves of a setting by the key of their metric; `average` names its average, which may have none."""

    label: str
    raw: Mapping[str, Curve]
    averaged: Mapping[str, Curve]
    average: str | None = None


def draw(
    target: plots.Target,
    *,
    settings: Sequence[SettingCurves],
    title: str,
    metrics: TaskMetrics = CLASSIFICATION,
    panels: Sequence[str] | None = None,
    form: str = "png",
    width: float | None = None,
) -> None:
    """Write the picture of at most `MOST` settings; `panels` are the metrics to draw, by default loss and primary."""
    from matplotlib.ticker import MaxNLocator

    shown = (metrics.loss, metrics.primary) if panels is None else [metrics[key] for key in panels]
    num_lines = sum(1 + bool(each.averaged) for each in settings)
    size = (WIDTH, PANEL * len(shown) + LEGEND_LINE * num_lines + 0.4)
    with plots.sheet(target, size=size, title=title, form=form, width=width) as figure:
        places = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        end = max([1.0, *(epoch for each in settings for curve in _curves(each) for epoch, _ in curve.mean)])
        for axes, metric in zip(places, shown, strict=True):
            for index, each in enumerate(settings):
                _draw_setting(axes, each, metric, _look(index))
            is_loss = metric == metrics.loss
            points = [point for each in settings for point in _points(each, metric)]
            curves.fit_scale(axes, points, metric=metric, is_loss=is_loss, end=end)
            plots.limit(axes, metric)
            name = f"validation {metrics.loss_axis if is_loss else plots.axis_title(metric)}"
            name += ", log scale" if axes.get_yscale() == "log" else ""
            axes.set_ylabel(name.replace(" (", "\n(", 1) if plots.is_narrow(figure) else name)
            plots.tidy(axes)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6 if plots.is_narrow(figure) else 12, integer=True))
        places[-1].set_xlabel("epoch")
        places[-1].set_xlim(0, 1.02 * end)
        entries: dict[str, Artist] = {}  # a metric may have lines that the other lacks
        for axes in places:
            entries |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(handles=list(entries.values()), labels=list(entries), loc="outside lower left", frameon=False)


def _look(index: int) -> dict[str, Any]:
    return {"color": COLORS[index % len(COLORS)], "linestyle": _DASHES[index // len(COLORS) % len(_DASHES)]}


def _curves(setting: SettingCurves) -> list[Curve]:
    return [*setting.raw.values(), *setting.averaged.values()]


def _points(setting: SettingCurves, metric: Metric) -> list[Point]:
    """Return all points of a metric as they are drawn."""
    found = [curve for kind in (setting.raw, setting.averaged) if (curve := kind.get(metric.key)) is not None]
    scale = plots.scale(metric)
    return [(epoch, scale * value) for curve in found for line in (curve.mean, *curve.seeds) for epoch, value in line]


def _draw_setting(axes: Axes, setting: SettingCurves, metric: Metric, look: Mapping[str, Any]) -> None:
    """Draw the raw weights of a setting, and its average."""
    label, scale = plots.plain(setting.label, longest=LONGEST_LABEL, cut="middle"), plots.scale(metric)
    for curve, is_average in ((setting.raw.get(metric.key), False), (setting.averaged.get(metric.key), True)):
        if curve is None or not curve.mean:
            continue
        if len(curve.seeds) > 1:
            for points in curve.seeds:
                axes.plot(*_axes_of(points, scale), linewidth=0.6, alpha=0.45, **look)
            spread = [
                (epoch, value, sd) for (epoch, value), sd in zip(curve.mean, curve.sd, strict=True) if sd is not None
            ]
            axes.fill_between(
                [epoch for epoch, _, _ in spread],
                [scale * (value - sd) for _, value, sd in spread],
                [scale * (value + sd) for _, value, sd in spread],
                color=look["color"],
                alpha=0.15,
                linewidth=0,
            )
        number = f", {len(curve.seeds)} seeds" if len(curve.seeds) > 1 else ""
        name = f"{label}: {plots.short(setting.average or '')}" if is_average else label
        marker: dict[str, Any] = {"marker": "s", "markersize": 4.5, "markeredgecolor": "white", "markeredgewidth": 0.5}
        axes.plot(
            *_axes_of(curve.mean, scale),
            label=f"{name}{number}",
            linewidth=2.2 if is_average else 1.5,
            markevery=math.ceil(len(curve.mean) / _MAX_MARKERS),
            **look,
            **(marker if is_average else {}),
        )


def _axes_of(points: Sequence[Point], scale: float) -> tuple[list[float], list[float]]:
    return [epoch for epoch, _ in points], [scale * value for _, value in points]
