"""Draw the scores of networks by the budget of their training: averages of one run up to several of its points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from swa_cli.metrics.metric import CLASSIFICATION, Metric, TaskMetrics
from swa_cli.report import plots
from swa_cli.report.plots import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SPLITS: dict[str, dict[str, Any]] = {
    "val": {"linestyle": "-"},
    "test": {"linestyle": ":", "markerfacecolor": "none"},
}


def draw(
    target: plots.Target,
    *,
    series: Sequence[Row],
    raw: Sequence[Row],
    title: str,
    metrics: TaskMetrics = CLASSIFICATION,
    form: str = "png",
    width: float | None = None,
) -> None:
    """Write the picture: the loss and the primary metric over the budget, with one standard error.

    Each of `series` has a `name` and `rows`, which have `epochs` and the scores on `val` and `test`, or None; these may
    have the number of `samples`. `raw` has
    `epochs` and the validation scores of the raw weights.
    """
    with plots.sheet(target, size=(9.0, 7.0), title=title, form=form, width=width) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, metric in ((upper, metrics.loss), (lower, metrics.primary)):
            _draw_metric(axes, series, raw, metric=metric)
        lower.set_xlabel("budget (epochs)")
        plots.legend(upper)
        plots.note(figure, "Error bars: ± one standard error on the samples of the split")


def _draw_metric(axes: Axes, series: Sequence[Row], raw: Sequence[Row], *, metric: Metric) -> None:
    key, scale = metric.key, plots.scale(metric)
    for index, one in enumerate(series):
        look = plots.AVERAGES[index % len(plots.AVERAGES)]
        for split, style in _SPLITS.items():
            rows = [row for row in one["rows"] if row[split] is not None and plots.is_number(row[split][key])]
            if rows:
                scores = [row[split] for row in rows]
                values = [scale * each[key] for each in scores]
                ends = [
                    plots.interval(metric, each[key], each.get(f"{key}_se"), samples=each.get("samples"))
                    for each in scores
                ]
                known = [(scale * end[0], scale * end[1]) for end in ends if end is not None]
                axes.errorbar(
                    [row["epochs"] for row in rows],
                    values,
                    yerr=plots.bars(values, known) if len(known) == len(rows) else None,
                    label=f"{plots.plain(one['name'], longest=40)}, {plots.SPLITS[split]}",
                    capsize=3,
                    elinewidth=0.8,
                    **{**look, **style},
                )
    if raw:
        axes.plot(
            [row["epochs"] for row in raw],
            [scale * row[key] for row in raw],
            label="raw weights, validation",
            color="#777777",
            linewidth=1.0,
        )
    axes.set_ylabel(plots.axis_title(metric))
    plots.tidy(axes)
    plots.limit(axes, metric)
