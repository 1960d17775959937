"""`swa compare`: one table of runs, repeats and sweeps, with the keys that differ, and validation beside test scores.

A row is a setting (see `settings`) with one of its weight sets. Runs of other tasks, or scored on other samples, get a
table of their own. Nothing is chosen by test scores: rows are sorted by the validation loss, which also decides the
weight set and the best row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from swa_cli.analysis import settings
from swa_cli.analysis.compare import against, spreads
from swa_cli.analysis.settings import Row, Setting
from swa_cli.errors import UserError, did_you_mean
from swa_cli.metrics.metric import TaskMetrics
from swa_cli.report.tables import CAUTION, SettingRow, SettingTable
from swa_cli.report.tables.formats import csv_rows
from swa_cli.report.terminal import Terminal
from swa_cli.units import some_of

ALL, BEST = "all", "best"
SPLITS = ("val", "test", "train")


def compare(
    paths: Sequence[Path],
    *,
    terminal: Terminal,
    split: str | None = None,
    sort: str | None = None,
    other: str | None = None,
    weights: str = BEST,
) -> tuple[list[SettingTable], dict[str, Any]]:
    """Return the tables of runs, repeats and sweeps, and the answer for `--json`.

    Args:
        paths: Folders of any of them.
        terminal: Hears what is left out.
        split: `val` or `test`; None for all that were scored.
        sort: The name of a column, as in CSV; None for the validation loss.
        other: The row that all others are compared with: a label or a folder, with `:NAME` for a weight set.
        weights: `best` on validation images, a name, or `all`.

    Raises:
        UserError: No run, no such column, row or weight set.
    """
    found = settings.find(paths, terminal=terminal, may_be_one=False)
    tables = tabulate(found, warn=terminal.warning, split=split, sort=sort, other=other, weights=weights)
    return tables, {"command": "compare", "tables": [_table_values(table) for table in tables]}


def tabulate(
    found: Sequence[Setting],
    *,
    warn: Callable[[str], None],
    split: str | None = None,
    sort: str | None = None,
    other: str | None = None,
    weights: str = BEST,
) -> list[SettingTable]:
    """Return a table for each task, split and number of samples; see `compare`.

    A table without the column `sort` has its default order.

    Raises:
        UserError: No table has that column, or a word names none of the rows or weight sets.
    """
    _warn_of_seeds(found, warn)
    groups, params = _on_the_same_samples(found), settings.differing([setting.first.recipe for setting in found])
    names = dict(zip(params, settings.short_names(list(params)), strict=True))
    values = {setting.label: {key: each[index] for key, each in params.items()} for index, setting in enumerate(found)}
    if len(groups) > 1:
        warn("the runs are of different tasks or datasets, or were scored on different samples: a table for each")
    chosen = _weights(found, weights, warn)
    base = None if other is None else _row_named(other, chosen)
    tables = []
    for members in groups:
        pairs = [(setting, name) for setting, name in chosen if setting in members]
        if pairs:
            table = _table(pairs, names, values, split=split, base=base if base in pairs else None)
            tables.append(table)
    if base is not None and len(tables) > 1:
        warn(f"only the rows of one table are compared with {other}: the others have other samples")
    sorts = [_column(sort, table) for table in tables]
    if sort is not None and not any(sorts):
        listed = dict.fromkeys(name for table in tables for row in _values(table) for name in row)
        raise UserError(f"--sort {sort}: there is no such column", hint=f"choose from {', '.join(listed)}")
    return [_sorted(table, column) for table, column in zip(tables, sorts, strict=True)]


def _warn_of_seeds(found: Sequence[Setting], warn: Callable[[str], None]) -> None:
    """Name the runs of a setting that its means leave out, as they have not finished."""
    for setting in found:
        left_out = [run for run in setting.runs if run not in setting.counted.values()]
        if left_out:
            said = ", ".join(f"seed {run.recipe.seed} ({run.state})" for run in left_out)
            warn(f"{setting.label}: {said} {'is' if len(left_out) == 1 else 'are'} not in the mean: not finished")


def _on_the_same_samples(found: Sequence[Setting]) -> list[list[Setting]]:
    """Group settings by task, dataset, split and number of samples; one without scores joins those of its dataset."""
    groups: dict[tuple[object, ...], list[Setting]] = {}
    for setting in sorted(found, key=lambda setting: setting.first.result is None):
        run = setting.first
        key: tuple[object, ...] = (run.recipe.task, run.recipe.dataset.name)
        if run.result is not None:
            key = (*key, run.metrics.keys, run.result.split, run.result.samples)
        elif alike := [k for k, group in groups.items() if _is_alike(group[0], setting)]:
            key = alike[0]
        groups.setdefault(key, []).append(setting)
    return [[setting for setting in found if setting in group] for group in groups.values()]


def _is_alike(setting: Setting, other: Setting) -> bool:
    first, second = setting.first.recipe, other.first.recipe
    return (first.task, first.dataset.name) == (second.task, second.dataset.name)


def _weights(found: Sequence[Setting], weights: str, warn: Callable[[str], None]) -> list[tuple[Setting, str]]:
    """Return each setting with its weight sets that become rows."""
    if weights == BEST:
        return [(setting, setting.best) for setting in found]
    if weights == ALL:
        return [(setting, name) for setting in found for name in setting.names or [setting.best]]
    if missing := [setting.label for setting in found if weights not in setting.names]:
        if len(missing) == len(found):
            names = list(dict.fromkeys(name for setting in found for name in setting.names))
            raise UserError(
                f"--weights {weights}: no run has scores of such a weight set", hint=f"choose from {', '.join(names)}"
            )
        warn(f"no scores of {weights}, and left out: {', '.join(missing)}")
    return [(setting, weights) for setting in found if weights in setting.names]


def _row_named(word: str, chosen: Sequence[tuple[Setting, str]]) -> tuple[Setting, str]:
    """Return the row that a word names.

    Raises:
        UserError: None, or several.
    """
    found = [pair for pair in chosen if _is_named(word, *pair)]
    if not found:  # the terminal shows the ends of labels
        end = word.removeprefix("…")
        found = [pair for pair in chosen if f"{pair[0].label}:{pair[1]}".endswith(end) or pair[0].label.endswith(end)]
    exact = [pair for pair in found if len(found) > 1 and pair[1] == pair[0].best]
    if len(found) == 1 or len(exact) == 1:
        return (exact or found)[0]
    labels = list(dict.fromkeys(setting.label for setting, _ in found or chosen))
    raise UserError(
        f"--against {word}: names {'no row' if not found else f'{len(found)} rows'}",
        hint=f"add its weight set, such as {word}:{found[0][1]}"
        if found and len(labels) == 1
        else f"{did_you_mean(word, labels)}choose from {some_of(labels, most=8)}",
    )


def _is_named(word: str, setting: Setting, name: str) -> bool:
    """Return whether a word is the label or a folder of a setting, alone or with `:` and the name of a weight set."""
    folders = [setting.path.resolve(), *(run.path.resolve() for run in setting.runs)]
    texts = {word, word.removesuffix(f":{name}")}
    return setting.label in texts or any(Path(text).resolve() in folders for text in texts)


def _table(
    pairs: Sequence[tuple[Setting, str]],
    names: Mapping[str, str],
    params: Mapping[str, Mapping[str, Any]],
    *,
    split: str | None,
    base: tuple[Setting, str] | None,
) -> SettingTable:
    """Return the table of settings with their weight sets.

    `names` are those of the keys that differ, `params` their values for each label; `base` is the row that others are
    compared with.
    """
    members = [setting for setting, _ in pairs]
    metrics = members[0].first.metrics
    scored = {split for setting, name in pairs for split in setting.scores(name)}
    shown = [each for each in SPLITS if each in scored] if split is None else [split]
    other = None if base is None else base[0].scores(base[1])
    rows = []
    for setting, name in pairs:
        scores = setting.scores(name)
        rows.append(
            SettingRow(
                label=setting.label,
                runs=[str(run.path) for run in setting.runs],
                seeds=list(setting.counted),
                params=params[setting.label],
                weights=name,
                state=setting.state,
                scores={each: _spreads(rows, metrics) for each, rows in scores.items()},
                against=None
                if other is None or (setting, name) == base
                else _differences(scores, other, metrics, shown),
                is_best=False,
            )
        )
    result = next((setting.first.result for setting in members if setting.first.result is not None), None)
    return SettingTable(
        task=members[0].first.recipe.task,
        metrics=metrics,
        samples={} if result is None else {result.split: result.samples},
        splits=shown,
        names=names,
        rows=rows,
        sort="",
        against=None if base is None else _against_label(base, pairs),
    )


def _against_label(base: tuple[Setting, str], pairs: Sequence[tuple[Setting, str]]) -> str:
    setting, name = base
    is_alone = sum(other is setting for other, _ in pairs) == 1
    return setting.label if is_alone else f"{setting.label}:{name}"


def _spreads(rows: Mapping[int, Row], metrics: TaskMetrics) -> dict[str, dict[str, Any]]:
    """Return the spread of each metric over the seeds that have it; `se` is the sampling error of a single one."""
    keys = [each.key for each in metrics.all if all(each.key in row for row in rows.values())]
    optional = [key for key in keys if metrics[key].is_optional and any(row[key] is None for row in rows.values())]
    found = spreads(rows, [key for key in keys if key not in optional])
    if len(rows) == 1:
        (row,) = rows.values()
        found = {key: {**each, "se": row.get(f"{key}_se")} for key, each in found.items()}
    return found


def _differences(
    scores: Mapping[str, Mapping[int, Row]],
    other: Mapping[str, Mapping[int, Row]],
    metrics: TaskMetrics,
    splits: Sequence[str],
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the differences to another row, for each of the splits and each metric that both have."""
    return {
        split: {
            each.key: against(rows, other[split], each.key)
            for each in metrics.over_seeds
            if all(each.key in row for side in (rows, other[split]) for row in side.values())
        }
        for split, rows in scores.items()
        if split in other and split in splits
    }


def _sorted(table: SettingTable, sort: str | None) -> SettingTable:
    """Sort the rows by a column, by the validation loss without one, and mark the best by that loss."""
    loss, values = f"val_{table.metrics.loss_key}", _values(table)
    losses = [row.get(loss) for row in values]
    known = [value for value in losses if value is not None and math.isfinite(value)]
    best = min(known) if known else None
    rows = [
        replace(row, is_best=value is not None and value == best) for row, value in zip(table.rows, losses, strict=True)
    ]
    if sort is None and not known:
        return replace(table, rows=rows, sort="In the order of the folders: there are no validation scores to sort by.")
    column = loss if sort is None else sort
    split, _, key = column.partition("_")
    is_score = split in _splits(table) and key in table.metrics.keys
    is_reversed = is_score and key != table.metrics.loss_key and not table.metrics[key].is_lower_better
    order = [_sort_key(row.get(column), is_reversed=is_reversed) for row in values]
    rows = [row for _, row in sorted(zip(order, rows, strict=True), key=lambda pair: pair[0])]
    order_text = ("the highest first" if is_reversed else "the lowest first") if is_score else "ascending"
    words = f"Sorted by {column}, {order_text}."
    return replace(table, rows=rows, sort=words, caution=CAUTION if is_score and split == "test" else None)


def _column(sort: str | None, table: SettingTable) -> str | None:
    """Return the column of CSV that a word names, by its name or by the key of a recipe; None if there is none."""
    column = None if sort is None else table.names.get(sort, sort)
    return column if any(column in row for row in _values(table)) else None


def _values(table: SettingTable) -> list[dict[str, Any]]:
    """Return the rows of CSV, with the columns of all splits, also of those that are not shown."""
    return csv_rows(replace(table, splits=_splits(table)))


def _splits(table: SettingTable) -> list[str]:
    return list(dict.fromkeys([*table.splits, *(split for row in table.rows for split in row.scores)]))


def _sort_key(value: Any, *, is_reversed: bool) -> tuple[int, Any]:
    """Return what sorts numbers, then texts, then what is missing or not finite."""
    if isinstance(value, int | float) and math.isfinite(value):
        return (0, -value if is_reversed else value)
    return (1, value) if isinstance(value, str) and value else (2, 0)


def _table_values(table: SettingTable) -> dict[str, Any]:
    """Return a table as JSON has it."""
    rows = [
        {
            "label": row.label,
            "runs": [str(Path(run).resolve()) for run in row.runs],
            "seeds": list(row.seeds),
            "params": dict(row.params),
            "weights": row.weights,
            "state": row.state,
            "best": row.is_best,
            **{
                split: row.scores.get(split) if split in table.splits else None
                for split in dict.fromkeys([*SPLITS[:2], *table.splits])
            },
            "against": row.against,
        }
        for row in table.rows
    ]
    return {"task": table.task, "samples": dict(table.samples), "against": table.against, "rows": rows}
