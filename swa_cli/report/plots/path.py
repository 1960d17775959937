"""Loss and score along the straight line between two weight sets, and a little beyond them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from swa_cli.report.measures import CLASSIFICATION, Measures
from swa_cli.report.plots import plane, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE_INCHES = (9.0, 7.0)


def draw(
    target: style.Target,
    *,
    line: Mapping[str, Any],
    title: str,
    measures: Measures = CLASSIFICATION,
    form: str = "png",
) -> None:
    """Write the picture: a panel with the loss, one with the score of the task, of training and scored samples.

    Args:
        target: Where it goes.
        line: `x`, distances of weights from the first end; `train_loss`, `train_score`, `loss`, `score` and
            `score_se` at each, None where not finite; `points`, the two ends with `name` and `x`; `split`.
        title: What stands over it.
        measures: What the task scores.
        form: png or svg.
    """
    with style.sheet(target, size=SIZE_INCHES, title=title, form=form) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, key in ((upper, "loss"), (lower, "score")):
            _lines(axes, line, key=key, measures=measures)
        upper.set_ylabel(measures.loss_axis)
        lower.set_ylabel(plane.says(measures, "score", split="").strip())
        lower.set_xlabel(f"distance of weights (L2) from {style.plain(line['points'][0]['name'], longest=30)}")
        for point in line["points"]:
            upper.text(
                point["x"],
                1.02,
                style.plain(point["name"], longest=30),
                transform=upper.get_xaxis_transform(),
                ha="center",
                va="bottom",
            )
        style.legend(upper)


def _lines(axes: Axes, line: Mapping[str, Any], *, key: str, measures: Measures) -> None:
    for prefix, label, look in (("train_", "train", style.TRAIN), ("", line["split"], style.VAL)):
        values = [plane.shown(measures, key, value) for value in line[f"{prefix}{key}"]]
        axes.plot(line["x"], values, label=label, **look)
    if key == "score" and all(style.is_number(error) for error in line["score_se"]):
        middle = [plane.shown(measures, key, value) for value in line["score"]]
        errors = [style.scale(measures.own) * error for error in line["score_se"]]
        low, high = zip(*((value - e, value + e) for value, e in zip(middle, errors, strict=True)), strict=True)
        axes.fill_between(line["x"], low, high, color=style.VAL["color"], alpha=0.15, linewidth=0)
    for point in line["points"]:
        axes.axvline(point["x"], color="black", linewidth=1, linestyle=":")
    style.tidy(axes)
