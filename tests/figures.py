"""Read pictures as matplotlib holds them: lines, points with error bars, and explanations."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """What is drawn by a label: its x and its y."""
    return {
        str(line.get_label()): (list(map(float, line.get_xdata())), list(map(float, line.get_ydata())))
        for line in axes.get_lines()
    }


def points(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """What is drawn with error bars by a label: its x and its y."""
    return {
        str(item.get_label()): (list(map(float, item[0].get_xdata())), list(map(float, item[0].get_ydata())))
        for item in axes.containers
    }


def bars(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    """The ends of the vertical error bars by a label."""
    return {
        str(item.get_label()): [(one[0][1], one[1][1]) for one in (item[2][0].get_segments() if item[2] else ())]
        for item in axes.containers
    }


def notes(figure: Figure) -> str:
    """What a figure explains below its panels."""
    titles = [legend.get_title().get_text() for legend in figure.legends]
    return " ".join(" ".join([figure.get_supxlabel(), *titles]).split())
