"""The validation curves of settings over each other, from metrics.csv alone."""

from __future__ import annotations

from collections.abc import Sequence

from swa_cli.analysis.compare import spread
from swa_cli.analysis.settings import RAW, Setting
from swa_cli.report import plots
from swa_cli.report.plots.overlay import LONGEST_LABEL, MOST, Curve, Point, SettingCurves
from swa_cli.report.tables import SettingTable, value_text
from swa_cli.units import count_text, some_of


def overlaid(settings: Sequence[Setting], table: SettingTable) -> tuple[list[SettingCurves], list[str]]:
    """Return the curves of the settings of a table, in its order, and the labels of those that are left out.

    The settings without validation scores are left out, and all after the first `MOST`: those cannot be told apart.
    """
    by_label = {setting.label: setting for setting in settings}
    found: list[SettingCurves] = []
    left_out = []
    for row in table.rows:
        params = ", ".join(f"{table.names[key]} {value_text(value)}" for key, value in row.params.items())
        label = f"{row.label} ({params})" if params and len(row.label + params) < LONGEST_LABEL - 2 else row.label
        average = None if row.weights.removesuffix("_bn") == RAW else row.weights
        curves = SettingCurves(
            label,
            _curves(by_label[row.label], "", table),
            {} if average is None else _curves(by_label[row.label], f"{average}_", table),
            average,
        )
        if curves.raw and len(found) < MOST:
            found.append(curves)
        else:
            left_out.append(row.label)
    return found, left_out


def not_drawn(left_out: Sequence[str]) -> str:
    """Return what is left out, and why, as words."""
    return (
        f"{count_text(len(left_out), 'setting')} without validation scores, or after the first {MOST}:"
        f" {some_of(left_out, most=8)}"
    )


def _curves(setting: Setting, prefix: str, table: SettingTable) -> dict[str, Curve]:
    """Return the curves of one weight set by metric; a metric that was never measured has none."""
    columns = {table.metrics.loss_key: "val_loss", table.metrics.primary.key: f"val_{table.metrics.primary.key}"}
    found = {}
    for key, column in columns.items():
        seeds: list[list[Point]] = []
        for run in setting.runs:
            measured = ((row["epoch"], row.get(f"{prefix}{column}")) for row in run.rows)
            seeds.append([(epoch, value) for epoch, value in measured if plots.is_number(value)])
        if any(seeds):
            found[key] = _over_seeds([points for points in seeds if points])
    return found


def _over_seeds(seeds: Sequence[Sequence[Point]]) -> Curve:
    """Return the mean at each epoch over the seeds that have got that far."""
    values: dict[float, list[float]] = {}
    for points in seeds:
        for epoch, value in points:
            values.setdefault(epoch, []).append(value)
    spreads = {epoch: spread(values[epoch]) for epoch in sorted(values)}
    return Curve(
        [(epoch, found["mean"]) for epoch, found in spreads.items()], [found["sd"] for found in spreads.values()], seeds
    )
