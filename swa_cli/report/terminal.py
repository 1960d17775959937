"""Print what a command says: the plan, one row per epoch, a live bar, the final tables.

The conversation goes to stderr and the answer to stdout; everything permanent also goes to the run's log. Each console
lays out the lines for its own width. A pipe gets the same lines without control codes and without a bar.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from swa_cli.metrics.metric import CLASSIFICATION, TaskMetrics
from swa_cli.report.console_text import Lines, hanging, safe
from swa_cli.report.tables.columns import Column, cell_line, epoch_cells, epoch_columns, fit, head_line
from swa_cli.report.tables.scores import score_summary

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LOG_WIDTH = 120
_LABEL_WIDTH = 10


def open_console(file: TextIO | None = None, *, stderr: bool = False) -> Console:
    """Open a console on `file`, or on stdout or stderr as they are when something is printed.

    It prints plain lines in a notebook too, where rich would turn each line into HTML and lose stderr.
    """
    return Console(file=file, stderr=stderr, markup=False, highlight=False, emoji=False, force_jupyter=False)


def in_notebook() -> bool:
    """Return whether this is a notebook's kernel or a command in a cell (`!swa ...`).

    Such a command has a terminal, but the cell that shows its output cannot move the cursor up.
    """
    return "JPY_PARENT_PID" in os.environ


def open_log(file: TextIO, *, width: int) -> Console:
    """Open a console that writes plain text whatever the environment says about colors and terminals."""
    return Console(
        file=file,
        width=width,
        force_terminal=False,
        force_jupyter=False,
        color_system=None,
        markup=False,
        highlight=False,
        emoji=False,
    )


class Terminal:
    """Print what a command says.

    Args:
        quiet: Print only warnings and the answer; the log still gets everything.
        json: Keep stdout free for one JSON object; tables become part of the conversation.
    """

    def __init__(self, *, quiet: bool = False, json: bool = False) -> None:
        self._stderr = open_console(stderr=True)
        self._stdout = open_console()
        self._quiet = quiet
        self._json = json
        self._has_bars = not quiet and self._stderr.is_interactive and not in_notebook()
        self._is_mute = False
        self._log: Console | None = None
        self._unlogged: list[Lines] = []
        self._warned: set[str] = set()
        self._averages: Sequence[str] = ()
        self._metrics = CLASSIFICATION
        self._header_width = 0

    def attach_log(self, file: TextIO) -> None:
        """Write everything printed so far and from now on to `file`, which the caller closes."""
        self._log = open_log(file, width=LOG_WIDTH)
        for lines in self._unlogged:
            _print(lines, console=self._log)
        self._unlogged.clear()

    @property
    def is_mute(self) -> bool:
        """Whether another process prints."""
        return self._is_mute

    def mute(self) -> None:
        """Print nothing from now on, except to the log: another process prints."""
        self._is_mute, self._quiet, self._has_bars = True, True, False

    def part(self) -> Terminal:
        """Return a terminal for a part of the work: its answers are conversation, and it has a log of its own."""
        part = Terminal(quiet=self._quiet, json=True)
        part._warned = self._warned
        if self._is_mute:
            part.mute()
        return part

    def heading(self, text: str) -> None:
        """Print the title of a part of the work, after an empty line."""
        self._say(lambda console: [Text(), Text(safe(text, console=console), style="bold")])

    def plan(self, title: str, rows: Sequence[tuple[str, str]], *, warnings: Sequence[str] = ()) -> None:
        """Print what is about to happen: a title, labeled values, and warnings."""
        self._say(lambda console: _labeled(title, rows, console=console))
        for warning in warnings:
            self.warning(warning)

    def facts(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Print a part of the answer: a title and labeled values."""
        self._say(lambda console: _labeled(title, rows, console=console), answer=not self._json)

    def table(self, columns: Sequence[Column], rows: Sequence[Mapping[str, str]]) -> None:
        """Print a part of the answer: rows of cells under headings; columns that do not fit are left out by rank."""

        def lines(console: Console) -> list[Text]:
            fitting = fit(columns, width=console.width)
            return [
                head_line(fitting, console=console),
                *(cell_line(fitting, row, console=console) for row in rows),
            ]

        self._say(lines, answer=not self._json)

    def note(self, text: str) -> None:
        """Print a remark: one paragraph."""
        self._say(lambda console: _remark(Text(), text, console=console))

    def warning(self, text: str) -> None:
        """Print a warning: one paragraph. A quiet terminal prints it too, but only once."""
        head = Text.assemble(("warning: ", "bold yellow"))
        self._say(lambda console: _remark(head, text, console=console), always=text not in self._warned)
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

        def lines(console: Console) -> list[Text]:
            columns = epoch_columns(averages, width=console.width, metrics=metrics)
            return [Text(), head_line(columns, console=console)]

        self._say(lines)

    def epoch_row(self, row: Mapping[str, Any]) -> None:
        """Print one epoch: a row of `metrics.csv`, None where something was not measured."""
        if self._stderr.width != self._header_width:  # the window was resized
            self.epoch_header(self._averages, metrics=self._metrics)
        averages, metrics = self._averages, self._metrics
        cells = epoch_cells(row, averages=averages, metrics=metrics)

        def lines(console: Console) -> list[Text]:
            columns = epoch_columns(averages, width=console.width, metrics=metrics)
            return [cell_line(columns, cells, console=console)]

        self._say(lines)

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
        with _live(self._stderr, redirect_stdout=self._stdout.is_terminal) as progress:
            task = progress.add_task(safe(description, console=self._stderr), total=total, completed=done, state="")
            yield Bar(progress, task=task, unit=unit)

    @contextmanager
    def loading(self) -> Iterator[Callable[[str, int, int], None]]:
        """Show a live bar for each thing that is read while the block runs: yields `report(what, done, total)`."""
        if not self._has_bars:
            yield lambda what, done, total: None
            return
        with _live(self._stderr, redirect_stdout=self._stdout.is_terminal) as progress:
            tasks: dict[str, TaskID] = {}

            def report(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = progress.add_task(safe(what, console=self._stderr), total=total, state="")
                progress.update(tasks[what], completed=done)

            yield report

    def answer(self, text: str) -> None:
        """Print a sentence of the answer."""
        self._say(lambda console: _remark(Text(), text, console=console), answer=not self._json)

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

    def _say(self, lines: Lines, *, always: bool = False, answer: bool = False) -> None:
        if self._is_mute:
            pass
        elif answer:
            _print(lines, console=self._stdout)
        elif always or not self._quiet:
            _print(lines, console=self._stderr)
        if self._log is None:
            self._unlogged.append(lines)
        else:
            _print(lines, console=self._log)


def _labeled(title: str, rows: Sequence[tuple[str, str]], *, console: Console) -> list[Text]:
    block = [Text(safe(title, console=console), style="bold")]
    labels = [safe(label, console=console) for label, _ in rows]
    width = max([_LABEL_WIDTH, *(cell_len(label) + 1 for label in labels)])
    for label, (_, value) in zip(labels, rows, strict=True):
        head = Text.assemble(("  " + label + " " * (width - cell_len(label)), "cyan"))
        block += hanging(head, value, console=console, indent=head.cell_len)
    return block


def _remark(head: Text, text: str, *, console: Console) -> list[Text]:
    """Return a wrapped paragraph for a terminal, one whole line for the tools behind a pipe."""
    if console.is_terminal:
        return hanging(head, text, console=console)
    return [Text.assemble(head, safe(text, console=console))]


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


def _print(lines: Lines, *, console: Console) -> None:
    console.print(Text("\n").join(lines(console)), soft_wrap=True)
