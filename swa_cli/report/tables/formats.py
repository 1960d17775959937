"""Write tables of runs for a terminal, and as CSV, Markdown and LaTeX.

A terminal gets the columns that fit its width, and is told which ones do not. CSV has every metric with full
precision, mean and standard deviation in columns of their own, all tables in one; Markdown is that of GitHub; LaTeX
needs booktabs. The best row by validation loss is bold.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from rich.console import Console
from rich.text import Text

from swa_cli.report.console_text import (
    MINUS,
    NOT_MEASURED,
    PLUS_MINUS,
    Column,
    Lines,
    block,
    cut_to,
    fit,
    widest,
    width_of,
)
from swa_cli.report.console_text import table as console_table
from swa_cli.report.tables import SettingTable, columns, line_text, lines, value_text

LONGEST_CELL = 40
SHORTEST_LABEL = 8  # of a console: with less, no label tells a run


def terminal_lines(table: SettingTable) -> Lines:
    """Lay out a table for a console: title, rows, the names of the columns that do not fit, and notes.

    Where a column does not fit, labels lose what they all begin with, and more where the first score would not fit.
    """
    prefix = _common_start([row.label for row in table.rows])

    def found(console: Console) -> list[Text]:
        laid_out, rows = _terminal_columns(table, prefix="")
        if prefix and len(fit(laid_out, width=console.width)) < len(laid_out):
            laid_out, rows = _terminal_columns(table, prefix=prefix)
        label, score = sorted(laid_out, key=lambda column: column.rank)[:2]
        if label.width + score.width > console.width >= SHORTEST_LABEL + score.width:
            laid_out, rows = _terminal_columns(table, prefix=prefix, longest=console.width - score.width)
        fitting = {column.key for column in fit(laid_out, width=console.width)}
        missing = ", ".join(column.heading for column in laid_out if column.key not in fitting)
        said = [f"Too wide for this page: {missing}. `--format csv` has every column."] if missing else []
        told = [
            cells
            for cells, (_, is_difference) in zip(rows, lines(table), strict=True)
            if not is_difference or any(cells[key][0] for key in fitting - {"label"})
        ]
        return block(table.title, console_table(laid_out, told), *said, *table.notes)(console)

    return found


def _terminal_columns(
    table: SettingTable, *, prefix: str, longest: int = LONGEST_CELL
) -> tuple[list[Column], list[dict[str, tuple[str, str]]]]:
    """Return the columns and the cells of a console, with `…` in the place of `prefix` in labels.

    Of a label that is then wider than `longest`, the end is shown, which tells it from the others.
    """
    shown = columns(table)
    rows = []
    for row, is_difference in lines(table):
        texts = {each.key: line_text(each, row, is_difference=is_difference) for each in shown}
        if is_difference:
            texts["label"] = cut_to(texts["label"], longest)
        elif prefix or longest < LONGEST_CELL:
            texts["label"] = _end_of(texts["label"], prefix=prefix, width=longest)
        style = "dim" if is_difference else "bold" if row.is_best else ""
        rows.append({key: (_cut(text), style) for key, text in texts.items()})
    laid_out = [
        Column(
            each.key, each.heading, widest(each.key, each.heading, rows) + 2 * bool(index), each.rank, left=not index
        )
        for index, each in enumerate(shown)
    ]
    return laid_out, rows


def _end_of(label: str, *, prefix: str, width: int) -> str:
    """Return a label without a prefix, and of the rest the last `width` cells, with `…` for what is left out."""
    end = label.removeprefix(prefix)
    while width_of(end) + (end != label) > width:
        end = end[1:]
    return label if end == label else f"…{end}"


def _common_start(labels: Sequence[str]) -> str:
    """Return the words that all labels begin with, up to a hyphen or slash; nothing if that saves little."""
    start = "".join(first for first, *_ in takewhile(lambda chars: len(set(chars)) == 1, zip(*labels, strict=False)))
    start = start[: max(start.rfind("-"), start.rfind("/")) + 1]
    return start if len(set(labels)) > 1 and len(start) > 4 else ""


def markdown(tables: Sequence[SettingTable]) -> str:
    """Return tables in the Markdown of GitHub, with their notes."""
    parts = []
    for table in tables:
        shown = columns(table)
        rows = ["| " + " | ".join(_markdown(each.heading) for each in shown) + " |"]
        rows.append("|" + "|".join(" :--- " if each.is_text else " ---: " for each in shown) + "|")
        for row, is_difference in lines(table):
            texts = [line_text(each, row, is_difference=is_difference).strip() for each in shown]
            texts = [_markdown(text) if each.is_text else text for each, text in zip(shown, texts, strict=True)]
            if row.is_best and not is_difference:
                texts = [f"**{text}**" if text else "" for text in texts]
            rows.append("| " + " | ".join(texts) + " |")
        parts += [_markdown(table.title), "\n".join(rows), *map(_markdown, table.notes)]
    return "\n\n".join(parts) + "\n"


def latex(tables: Sequence[SettingTable]) -> str:
    """Return tables as LaTeX tabulars of booktabs; comments hold the title and the notes."""
    parts = ["% \\usepackage{booktabs}"]
    for table in tables:
        shown = columns(table)
        parts += [f"% {line}" for line in [table.title, *table.notes]]
        parts.append(f"\\begin{{tabular}}{{{''.join('l' if each.is_text else 'r' for each in shown)}}}")
        parts += ["\\toprule", " & ".join(_latex(each.heading) for each in shown) + r" \\", "\\midrule"]
        for row, is_difference in lines(table):
            texts = [line_text(each, row, is_difference=is_difference) for each in shown]
            texts = [_latex(text.strip()) for text in texts]
            if is_difference:
                texts[0] = f"\\quad {texts[0]}"
            elif row.is_best:
                texts = [f"\\textbf{{{text}}}" if text else "" for text in texts]
            # A line that begins with [ would be an argument of the line break before it.
            parts.append(("{}" if texts[0].startswith("[") else "") + " & ".join(texts) + r" \\")
        parts += ["\\bottomrule", "\\end{tabular}"]
    return "\n".join(parts) + "\n"


def comma_separated(tables: Sequence[SettingTable]) -> str:
    """Return all tables as one CSV: a line per row, numbers as they are, empty where something was not measured."""
    found = [values for table in tables for values in csv_rows(table)]
    params = [name for table in tables for name in table.names.values()]
    names = dict.fromkeys([*_FIRST, *params, *(name for values in found for name in values)])
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return buffer.getvalue()


_FIRST = ("label", "runs", "task", "samples", "state", "weights", "n", "seeds")


def csv_rows(table: SettingTable) -> list[dict[str, Any]]:
    """Return the values of each row by the names of their columns; `--sort` takes these names too."""
    rows = []
    for row in table.rows:
        values: dict[str, Any] = {
            "label": row.label,
            "runs": " ".join(row.runs),
            "task": table.task,
            "samples": next(iter(table.samples.values()), ""),
            "state": row.state,
            "weights": row.weights,
            "n": len(row.seeds),
            "seeds": " ".join(map(str, row.seeds)),
        }
        for key, name in table.names.items():
            value = row.params[key]
            is_plain = value is None or (isinstance(value, str | int | float) and not isinstance(value, bool))
            values[name] = value if is_plain else value_text(value)
        for split in table.splits:
            for key, found in row.scores.get(split, {}).items():
                values |= _numbers(f"{split}_{key}", found)
        for split in table.splits:
            for key, found in (row.against or {}).get(split, {}).items():
                name = f"{split}_{key}_diff"
                values |= {name: found["mean"], f"{name}_low": found["low"], f"{name}_high": found["high"]}
                values["pairs"] = found["pairs"]
        rows.append(values)
    return rows


def _numbers(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: found["mean"], f"{name}_sd": found["sd"], f"{name}_se": found.get("se")}


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_CELL else f"{text[: LONGEST_CELL - 1]}…"


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*<>|\[\]~])", r"\\\1", text)


_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    PLUS_MINUS: r"$\pm$",
    MINUS: "$-$",
    NOT_MEASURED: "--",
    "…": r"\dots{}",
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
