"""Show the trials of a sweep: a row as each ends, and the best at the end. Fractions become percent here."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from swa_cli.analysis import sweep_metric
from swa_cli.analysis.sweep_study import COMPLETE, FAILED, Record, Settings, best_of
from swa_cli.metrics.metric import TaskMetrics
from swa_cli.recipe.space import Choices, Parameter
from swa_cli.report.console_text import NOT_MEASURED, Cells, Column, duration, widest, width_of
from swa_cli.report.scores import cell, value_with_error
from swa_cli.report.terminal import Terminal

WIDEST = 24  # cells of a value; a section as a choice would fill the page


class Table:
    """The rows of the trials that end while a process looks, of other processes too."""

    def __init__(
        self, settings: Settings, limit: int, metrics: TaskMetrics, *, terminal: Terminal, processes: int
    ) -> None:
        self._settings, self._limit, self._terminal, self._processes = settings, limit, terminal, processes
        self._metric = sweep_metric.metric_of(settings.metric, metrics)
        self._told: set[int] = set()
        self._has_header = False

    def skip(self, records: Sequence[Record]) -> None:
        """Leave out the trials that were finished before."""
        self._told |= {record.number for record in records if record.is_finished}

    def tell(self, records: Sequence[Record]) -> None:
        """Print the trials that are finished and were not told yet."""
        columns = _columns(self._settings, value=self._settings.metric, last=("best", "left"))
        for record in records:
            if record.is_finished and record.number not in self._told:
                self._told.add(record.number)
                best = best_of(records, is_lower_better=self._settings.is_lower_better)
                cells = {
                    **_cells(record, self._settings),
                    "value": cell(self._metric, record.value) if record.state == COMPLETE else record.state,
                    "best": f"{cell(self._metric, best[0].value)} ({best[0].number})" if best else NOT_MEASURED,
                    "left": self._left(records),
                }
                self._terminal.rows(columns, [cells], head=not self._has_header, answer=False)
                self._has_header = True
                if record.state == FAILED:
                    self._terminal.warning(f"trial {record.number} failed: {record.reason}")

    def _left(self, records: Sequence[Record]) -> str:
        """Return the time that the other trials will take, by the mean of those that have not failed."""
        taken = [each.seconds for each in records if each.seconds and each.is_finished and each.state != FAILED]
        left = self._limit - sum(record.is_finished for record in records)
        return duration(left * statistics.fmean(taken) / self._processes) if taken else NOT_MEASURED


def print_best(
    records: Sequence[Record],
    settings: Settings,
    metrics: TaskMetrics,
    *,
    seeds: Mapping[int, Sequence[float]],
    terminal: Terminal,
) -> None:
    """Print the best trials, with mean and standard deviation over seeds (trial -> values) where there are some."""
    metric = sweep_metric.metric_of(settings.metric, metrics)
    rows = []
    for record in records:
        values = seeds.get(record.number, ())
        spread = statistics.stdev(values) if len(values) > 1 else None
        over = value_with_error(metric, statistics.fmean(values), spread) if values else NOT_MEASURED
        rows.append({**_cells(record, settings), "value": cell(metric, record.value), "seeds": over})
    columns = _columns(settings, value=settings.metric, last=())
    if seeds:
        columns.append(Column("seeds", "seeds", widest("seeds", "seeds", rows) + 2, rank=2))
    terminal.table(columns, rows)


def _columns(settings: Settings, *, value: str, last: Sequence[str]) -> list[Column]:
    columns = [Column("trial", "trial", 5, rank=0)]
    for rank, each in enumerate(settings.space.parameters, start=4):
        name = _heading(each, settings)
        columns.append(Column(each.key, name, max(len(name), _width(each)) + 2, rank=rank))
    columns.append(Column("value", value, max(len(value), 8) + 2, rank=1))
    widths = {"best": 17, "left": 9}
    return columns + [Column(key, key, widths[key], rank=2 + index) for index, key in enumerate(last)]


def _heading(parameter: Parameter, settings: Settings) -> str:
    """Return the last word of a key, or the whole key where two end in the same word."""
    names = [each.column for each in settings.space.parameters]
    return parameter.key if names.count(parameter.column) > 1 else parameter.column


def _width(parameter: Parameter) -> int:
    domain = parameter.domain
    return min(max(map(width_of, domain.texts)), WIDEST) if isinstance(domain, Choices) else 9 + len(domain.unit)


def _cells(record: Record, settings: Settings) -> Cells:
    cells = {"trial": str(record.number)}
    for each in settings.space.parameters:
        text = record.texts.get(each.key, NOT_MEASURED)
        cells[each.key] = text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"
    return cells
