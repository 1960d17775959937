"""Print what a command says: the plan, one row per epoch, a live bar, the final tables.

The conversation goes to stderr and the answer to stdout; everything permanent also goes to the run's log. Each console
lays out the lines for its own width. A pipe gets the same lines without control codes and without a bar. Epoch rows fit
80 cells with one average. With more, the primary metric of each further average takes precedence over the learning rate
and the validation loss; averages that still do not fit are counted in the heading (`+2 more`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from swa_cli.metrics.metric import CLASSIFICATION, Metric, TaskMetrics
from swa_cli.report.console_text import (
    Cells,
    Column,
    Lines,
    cell_line,
    count,
    duration,
    fit,
    hanging,
    head_line,
    number,
    open_console,
    print_lines,
    rate,
    safe,
    table,
)
from swa_cli.report.scores import cell, score_summary

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LOG_WIDTH = 120
_LABEL_WIDTH = 10
_LONGEST_NAME = 12  # of an average, in the headings of epoch rows


class Terminal:
    """Print what a command says.

    Args:
        quiet: Print only warnings and the answer; the log still gets everything.
        json: Keep stdout free for one JSON object; tables become part of the conversation.

    Attributes:
        is_mute: Whether another process prints; the log still gets everything.
    """

    def __init__(self, *, quiet: bool = False, json: bool = False) -> None:
        self.is_mute = False
        self._stderr = open_console(stderr=True, on_loss=self._go_on)
        self._stdout = open_console(on_loss=self._go_on_with_log)
        self._quiet = quiet
        self._json = json
        # A command in a notebook's cell (`!swa ...`) has a terminal, but the cell cannot move the cursor up.
        self._has_bars = not quiet and self._stderr.is_interactive and "JPY_PARENT_PID" not in os.environ
        self._log: Console | None = None
        self._unlogged: list[tuple[str, Lines]] = []  # with the time of each
        self._warned: set[str] = set()
        self._with_bars: list[Console] = []  # that show a bar now, of this terminal and its parts
        self._averages: Sequence[str] = ()
        self._metrics = CLASSIFICATION
        self._header_width = 0

    def attach_log(self, file: TextIO) -> None:
        """Write everything printed so far and from now on to `file`, which the caller closes.

        It gets plain text whatever the environment says about colors and terminals. What was printed at once begins
        with the local date and time, in a column of its own.
        """
        self._log = open_console(file, width=LOG_WIDTH, force_terminal=False, color_system=None)
        for when, lines in self._unlogged:
            print_lines(_dated(lines(self._log), when), console=self._log)
        self._unlogged.clear()

    def mute(self) -> None:
        """Print nothing from now on, except to the log: another process prints."""
        self.is_mute, self._quiet, self._has_bars = True, True, False

    def part(self, *, quiet: bool = False) -> Terminal:
        """Return a terminal for a part of the work: its answers are conversation, and it has a log of its own.

        A `quiet` one prints warnings only, each once.
        """
        part = Terminal(quiet=self._quiet or quiet, json=True)
        part._warned, part._with_bars = self._warned, self._with_bars
        if self.is_mute:
            part.mute()
        return part

    def heading(self, text: str) -> None:
        """Print the title of a part of the work, after an empty line."""
        self._say(lambda console: [Text(), Text(safe(text, console=console), style="bold")])

    def plan(self, title: str, rows: Sequence[tuple[str, str]], *, warnings: Sequence[str] = ()) -> None:
        """Print what is about to happen: a title, labeled values, and warnings."""
        self._say(_labeled(title, rows))
        for warning in warnings:
            self.warning(warning)

    def note(self, text: str) -> None:
        """Print a remark: one paragraph."""
        self._say(_remark(Text(), text))

    def warning(self, text: str) -> None:
        """Print a warning: one paragraph. A quiet terminal prints it too, but only once."""
        self._say(_remark(Text.assemble(("warning: ", "bold yellow")), text), always=text not in self._warned)
        self._warned.add(text)

    def will_stop_soon(self) -> None:
        """Say that Ctrl-C was received. A signal handler calls this: only the bare file descriptor is safe there."""
        if not self._quiet:
            with suppress(OSError):
                os.write(2, b"\nstopping after this step; Ctrl-C once more stops at once\n")

    def epoch_header(self, averages: Sequence[str], *, metrics: TaskMetrics = CLASSIFICATION) -> None:
        """Print the headings of the epoch rows that follow, for these averages and metrics."""
        self._averages, self._metrics = tuple(averages), metrics
        self._header_width = self._stderr.width
        self._say(lambda console: [Text(), head_line(_epoch_columns(averages, metrics, console), console=console)])

    def epoch_row(self, row: Mapping[str, Any]) -> None:
        """Print one epoch: a row of `metrics.csv`, None where something was not measured."""
        if self._stderr.width != self._header_width:  # the window was resized
            self.epoch_header(self._averages, metrics=self._metrics)
        averages, metrics = self._averages, self._metrics
        cells = _epoch_cells(row, averages, metrics)
        self._say(lambda console: [cell_line(_epoch_columns(averages, metrics, console), cells, console=console)])

    @contextmanager
    def progress(self, description: str, total: int, *, unit: int | None = None, done: int = 0) -> Iterator[Bar]:
        """Show a live bar under the rows while the block runs; a pipe gets none.

        Args:
            description: The work.
            total: Its number of steps.
            unit: Images per step, to show their rate.
            done: Steps that were done before.
        """
        if not self._has_bars:
            yield Bar(None)
            return
        console = self._printing(self._stderr)
        with _live(console, redirect_stdout=_are_one_terminal(self._stdout, console)) as progress:
            task = progress.add_task(safe(description, console=console), total=total, completed=done, state="")
            self._with_bars.append(console)
            try:
                yield Bar(progress, task=task, unit=unit)
            finally:
                self._with_bars.pop()

    def facts(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Print a part of the answer: a title and labeled values."""
        self._say(_labeled(title, rows), answer=not self._json)

    def table(self, columns: Sequence[Column], rows: Sequence[Cells]) -> None:
        """Print a part of the answer: rows of cells under headings; columns that do not fit are left out by rank."""
        self._say(table(columns, rows), answer=not self._json)

    def rows(self, columns: Sequence[Column], rows: Sequence[Cells], *, head: bool, answer: bool = True) -> None:
        """Print rows of a long table as they come, whole on a narrow page too; the first under headings (`head`)."""

        def lines(console: Console) -> list[Text]:
            heading = [head_line(columns, console=console)] if head else []
            return [*heading, *(cell_line(columns, row, console=console) for row in rows)]

        self._say(lines, answer=answer and not self._json)

    def answer(self, text: str) -> None:
        """Print a sentence of the answer."""
        self._say(_remark(Text(), text), answer=not self._json)

    def summary(
        self,
        scores: Mapping[str, Mapping[str, Any]],
        *,
        split: str,
        samples: int,
        tta: str = "none",
        metrics: TaskMetrics = CLASSIFICATION,
    ) -> None:
        """Print the final comparison, see `score_summary`."""
        self.print(score_summary(scores, split=split, samples=samples, tta=tta, metrics=metrics))

    def print(self, lines: Lines) -> None:
        """Print a block of the answer, after an empty line."""
        self._say(lambda console: [Text()])
        self._say(lines, answer=not self._json)

    def _go_on(self, error: OSError) -> None:
        """Warn once that a stream has failed: its reader has gone, or its disk is full."""
        text = f"the output can no longer be written ({error.strerror}): the log has the rest"
        if text not in self._warned:
            self.warning(text)

    def _go_on_with_log(self, error: OSError) -> None:
        """Likewise where a log has the answer too, as in a run; elsewhere a lost answer ends the command."""
        if self._log is None:
            raise error
        self._go_on(error)

    def _say(self, lines: Lines, *, always: bool = False, answer: bool = False) -> None:
        if not self.is_mute and (answer or always or not self._quiet):
            console = self._printing(self._stdout if answer else self._stderr)
            print_lines(lines(console), console=console)
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        if self._log is None:
            self._unlogged.append((when, lines))
        else:
            print_lines(_dated(lines(self._log), when), console=self._log)

    def _printing(self, console: Console) -> Console:
        """Return the console that prints lines for another one: that of a bar on the same terminal moves the bar."""
        found = [other for other in self._with_bars[-1:] if _are_one_terminal(console, other)]
        return found[0] if found else console


def _are_one_terminal(*consoles: Console) -> bool:
    """Return whether consoles print to the same terminal."""
    try:
        files = [console.file.fileno() for console in consoles]
        return all(map(os.isatty, files)) and len({os.fstat(file).st_rdev for file in files}) == 1
    except (OSError, ValueError):  # no files of the system, or they are closed
        return False


def _dated(lines: Sequence[Text], when: str) -> list[Text]:
    """Return lines with the date and time before the first that is not empty, and as much space before the others."""
    heads = iter([f"{when}  "])
    return [Text(next(heads, " " * (len(when) + 2))) + line if line else line for line in lines]


def _labeled(title: str, rows: Sequence[tuple[str, str]]) -> Lines:
    def lines(console: Console) -> list[Text]:
        found = [Text(safe(title, console=console), style="bold")]
        labels = [safe(label, console=console) for label, _ in rows]
        width = max([_LABEL_WIDTH, *(cell_len(label) + 1 for label in labels)])
        for label, (_, value) in zip(labels, rows, strict=True):
            head = Text.assemble(("  " + label + " " * (width - cell_len(label)), "cyan"))
            found += hanging(head, value, console=console, indent=head.cell_len)
        return found

    return lines


def _remark(head: Text, text: str) -> Lines:
    """Return a wrapped paragraph for a terminal, one whole line for the tools behind a pipe."""

    def lines(console: Console) -> list[Text]:
        if console.is_terminal:
            return hanging(head, text, console=console)
        return [Text.assemble(head, safe(text, console=console))]

    return lines


def _epoch_columns(averages: Sequence[str], metrics: TaskMetrics, console: Console) -> list[Column]:
    """Return the columns of epoch rows that fit a console, with as many of the averages as fit."""
    training, primary = metrics.training, metrics.primary

    def score(key: str, metric: Metric, *, prefix: str, rank: int) -> Column:
        text = f"{prefix} {metric.short_name or metric.name}"
        return Column(key, text, max(len(text) + 2, 9 if metric.is_percent else 10), rank=rank)

    for num_shown in range(len(averages), -1, -1):
        columns = [
            Column("epoch", "epoch", 5, rank=0),
            Column("lr", "lr", 9, rank=6),
            Column("train_loss", "train loss", 12, rank=3),
            score(f"train_{training.key}", training, prefix="train", rank=9),
            Column("val_loss", "val loss", 10, rank=7),
            score(f"val_{primary.key}", primary, prefix="val", rank=1),
        ]
        for index, name in enumerate(averages[:num_shown]):
            prefix = name.upper()[:_LONGEST_NAME]
            columns.append(score(f"{name}_val_{primary.key}", primary, prefix=prefix, rank=5 if index else 2))
            columns.append(Column(f"{name}_count", "n", 5, rank=8))
        columns.append(Column("seconds", "time", 8, rank=4))
        if num_shown < len(averages):
            more = f"+{len(averages) - num_shown} more"
            columns.append(Column("more", more, len(more) + 2, rank=1))
        columns = fit(columns, width=console.width)
        if sum(column.key.endswith(f"_val_{primary.key}") for column in columns) == num_shown:
            break
    return columns


def _epoch_cells(row: Mapping[str, Any], averages: Sequence[str], metrics: TaskMetrics) -> dict[str, str]:
    """Return the cells of one row of `metrics.csv`; a column that is missing or None was not measured."""
    training, primary = metrics.training, metrics.primary
    cells = {
        "epoch": str(row["epoch"]),
        "lr": rate(row.get("lr")),
        "train_loss": number(row.get("train_loss")),
        f"train_{training.key}": cell(training, row.get(f"train_{training.key}")),
        "val_loss": number(row.get("val_loss")),
        f"val_{primary.key}": cell(primary, row.get(f"val_{primary.key}")),
        "seconds": duration(row.get("seconds")),
    }
    for name in averages:
        cells[f"{name}_val_{primary.key}"] = cell(primary, row.get(f"{name}_val_{primary.key}"))
        cells[f"{name}_count"] = count(row.get(f"{name}_count"))
    return cells


class Bar:
    """The live bar of one piece of work; without a terminal it does nothing."""

    def __init__(self, progress: Progress | None, *, task: TaskID | None = None, unit: int | None = None) -> None:
        self._progress = progress
        self._task = task
        self._unit = unit
        self._done = 0
        self._fields: dict[str, float] = {}
        self._started = time.monotonic()

    def advance(self, n: int = 1, **fields: float) -> None:
        """Advance by `n` steps; `fields` such as a loss stay shown until they are given again."""
        if self._progress is None or self._task is None:
            return
        self._done += n
        self._fields |= fields
        state = [f"{name} {value:.3f}" for name, value in self._fields.items()]
        elapsed_s = time.monotonic() - self._started
        if self._unit is not None and elapsed_s > 0:
            state.append(f"{self._done * self._unit / elapsed_s:,.0f} images/s")
        self._progress.update(self._task, advance=n, state="  ".join(state))


def _live(console: Console, *, redirect_stdout: bool) -> Progress:
    """Return bars under the lines of a console, removed at their end; rich.progress is slow to import."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    def text(template: str) -> TextColumn:
        return TextColumn(template, markup=False, table_column=Column(no_wrap=True, overflow="crop"))

    return Progress(
        text("{task.description}"),
        BarColumn(bar_width=10 if console.width < 80 else 24),
        text("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(compact=True),
        text("left  {task.fields[state]}"),
        console=console,
        transient=True,
        refresh_per_second=4,
        redirect_stdout=redirect_stdout,
    )
