"""Everything a person sees while a command works: the plan, a row an epoch, one live bar, the final table.

The conversation goes to stderr, the answer to stdout, and everything permanent also to the run's log, each
laid out for its own width. On a pipe the same lines appear without control codes, and no bar.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from swa_cli.metrics.metric import CLASSIFICATION, TaskMetrics
from swa_cli.report.console_text import hanging, in_notebook, open_console, open_log, safe
from swa_cli.report.progress import Bar, live
from swa_cli.report.tables.columns import Column, cell_line, fit, head_line
from swa_cli.report.tables.epochs import epoch_cells, epoch_columns
from swa_cli.report.tables.scores import ensemble_table, score_table, verdict
from swa_cli.report.tables.search import tried_table
from swa_cli.report.tables.seeds import Against, repeat_table, repeat_verdict, spelled

if TYPE_CHECKING:
    from rich.progress import TaskID

Lines = Callable[[Console], list[Text]]  # lays the same words out for any page

LOG_WIDTH = 120
_LABEL_WIDTH = 10


class Terminal:
    """The voice of a command.

    Args:
        quiet: Say nothing but warnings and the answer; the log still gets everything.
        json: Keep stdout free for one JSON object; the table is then part of the conversation.
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
        """Write everything said so far and all that follows to `file`, which stays the caller's to close."""
        self._log = open_log(file, width=LOG_WIDTH)
        for lines in self._unlogged:
            _print(lines, console=self._log)
        self._unlogged.clear()

    @property
    def is_mute(self) -> bool:
        """Whether another process speaks."""
        return self._is_mute

    def mute(self) -> None:
        """Say nothing from now on, except to the log: another process speaks."""
        self._is_mute, self._quiet, self._has_bars = True, True, False

    def part(self) -> Terminal:
        """The voice of a part of the work: its answers are conversation here, and it has a log of its own."""
        part = Terminal(quiet=self._quiet, json=True)
        part._warned = self._warned
        if self._is_mute:
            part.mute()
        return part

    def heading(self, text: str) -> None:
        """The title of a part of the work, after an empty line."""
        self._say(lambda console: [Text(), Text(safe(text, console=console), style="bold")])

    def plan(self, title: str, rows: Sequence[tuple[str, str]], *, warnings: Sequence[str] = ()) -> None:
        """What is about to happen: a title, then labelled values, then warnings."""
        self._say(lambda console: _labelled(title, rows, console=console))
        for warning in warnings:
            self.warning(warning)

    def facts(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Part of the answer: a title, then labelled values."""
        self._say(lambda console: _labelled(title, rows, console=console), answer=not self._json)

    def table(self, columns: Sequence[Column], rows: Sequence[Mapping[str, str]]) -> None:
        """Part of the answer: rows of cells under their headings; columns that do not fit are left out by rank."""

        def lines(console: Console) -> list[Text]:
            fitting = fit(columns, width=console.width)
            return [
                head_line(fitting, console=console),
                *(cell_line(fitting, row, console=console) for row in rows),
            ]

        self._say(lines, answer=not self._json)

    def note(self, text: str) -> None:
        """A remark: one paragraph."""
        self._say(lambda console: _remark(Text(), text, console=console))

    def warning(self, text: str) -> None:
        """Something to think about: one paragraph, shown even by a quiet terminal, which says it once."""
        head = Text.assemble(("warning: ", "bold yellow"))
        self._say(lambda console: _remark(head, text, console=console), always=text not in self._warned)
        self._warned.add(text)

    def will_stop_soon(self) -> None:
        """Ctrl-C was heard. Called in a signal handler, where only the bare descriptor can be written to."""
        if not self._quiet:
            with suppress(OSError):
                os.write(2, b"\nstopping after this step; Ctrl-C once more stops at once\n")

    def epoch_header(self, averages: Sequence[str], *, metrics: TaskMetrics = CLASSIFICATION) -> None:
        """The headings of the epoch rows to come, with these averages and the scores of this task."""
        self._averages, self._metrics = tuple(averages), metrics
        self._header_width = self._stderr.width

        def lines(console: Console) -> list[Text]:
            columns = epoch_columns(averages, width=console.width, metrics=metrics)
            return [Text(), head_line(columns, console=console)]

        self._say(lines)

    def epoch_row(self, row: Mapping[str, Any]) -> None:
        """One epoch: a row of `metrics.csv`, None where something was not measured."""
        if self._stderr.width != self._header_width:  # the window was resized: other columns fit now
            self.epoch_header(self._averages, metrics=self._metrics)
        averages, metrics = self._averages, self._metrics
        cells = epoch_cells(row, averages=averages, metrics=metrics)

        def lines(console: Console) -> list[Text]:
            columns = epoch_columns(averages, width=console.width, metrics=metrics)
            return [cell_line(columns, cells, console=console)]

        self._say(lines)

    @contextmanager
    def progress(self, description: str, total: int, *, unit: int | None = None, done: int = 0) -> Iterator[Bar]:
        """A live bar under the rows while the block runs; it leaves no trace, and none is shown on a pipe.

        Args:
            description: What is going on.
            total: How many steps it takes.
            unit: Images in a step, if their rate is to be shown.
            done: Steps that were done before.
        """
        if not self._has_bars:
            yield Bar(None)
            return
        with live(self._stderr, redirect_stdout=self._stdout.is_terminal) as progress:
            task = progress.add_task(safe(description, console=self._stderr), total=total, completed=done, state="")
            yield Bar(progress, task=task, unit=unit)

    @contextmanager
    def loading(self) -> Iterator[Callable[[str, int, int], None]]:
        """A live bar for each thing that is read meanwhile: yields `report(what, done, total)`."""
        if not self._has_bars:
            yield lambda what, done, total: None
            return
        with live(self._stderr, redirect_stdout=self._stdout.is_terminal) as progress:
            tasks: dict[str, TaskID] = {}

            def report(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = progress.add_task(safe(what, console=self._stderr), total=total, state="")
                progress.update(tasks[what], completed=done)

            yield report

    def answer(self, text: str) -> None:
        """A sentence that answers the command."""
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
        """The answer: the scores of every weight set, then whether averaging helped.

        Args:
            scores: Weight set to the scores of the task (`accuracy`, `nll`) with their errors (`accuracy_se`), `count`,
                `batchnorm`, and of an average `reference`, and against it `accuracy_diff`, `nll_diff` with their paired
                `_se`, or else `no_verdict`.
            split: What was scored: test, val or train.
            samples: How many samples that split has.
            tta: Of what views of each sample the scores are, as `eval.tta` names them.
            metrics: What the task scores.
        """

        def lines(console: Console) -> list[Text]:
            views = "" if tta == "none" else f", tta {tta}"
            title = hanging(Text(), f"{split}: {samples:,} samples{views} (± one standard error)", console=console)
            block = [*title, *score_table(scores, console=console, metrics=metrics)]
            for sentence in verdict(scores, metrics=metrics):
                block += hanging(Text(), sentence, console=console)
            return block

        self._say(lambda console: [Text()])
        self._say(lines, answer=not self._json)

    def summary_over_seeds(
        self,
        weights: Mapping[str, Mapping[str, Any]],
        *,
        split: str,
        samples: int,
        seeds: Sequence[int],
        metrics: TaskMetrics = CLASSIFICATION,
        against: Against | None = None,
    ) -> None:
        """The answer of a repeat: means and spreads of every weight set, then whether averaging helped.

        Args:
            weights: Weight set to what `training.spread.over_seeds` gives.
            split: What was scored: test, val or train.
            samples: How many samples that split has.
            seeds: All that were asked for.
            metrics: What the task scores.
            against: Another recipe that was run with the same seeds.
        """

        def lines(console: Console) -> list[Text]:
            title = f"{split}: {samples:,} samples, seeds {spelled(seeds)} (± standard deviation, [95 % interval])"
            block = hanging(Text(), title, console=console)
            block += repeat_table(weights, console=console, metrics=metrics, against=against)
            for sentence in repeat_verdict(weights, metrics=metrics, against=against):
                block += hanging(Text(), sentence, console=console)
            return block

        self._say(lambda console: [Text()])
        self._say(lines, answer=not self._json)

    def ensemble(self, curve: Sequence[Mapping[str, Any]], *, metrics: TaskMetrics = CLASSIFICATION) -> None:
        """The rest of an answer with an ensemble: its cost, and both scores by the number of `members`."""
        number = len(curve)
        cost = (
            f"ensemble: the mean {metrics.predictions} of the last {number} snapshots,"
            f" which take {number} forward passes an image; every other row takes one. Of the last m snapshots:"
        )

        def lines(console: Console) -> list[Text]:
            return [*hanging(Text(), cost, console=console), *ensemble_table(curve, console=console, metrics=metrics)]

        self._say(lambda console: [Text()])
        self._say(lines, answer=not self._json)

    def tried(
        self, rows: Sequence[Mapping[str, Any]], *, samples: int, passes: int, metrics: TaskMetrics = CLASSIFICATION
    ) -> None:
        """Part of the answer: what was tried on validation images before one was chosen.

        Args:
            rows: What each scored, see `windows.tried_table`.
            metrics: What the task scores.
            samples: Validation images.
            passes: BatchNorm passes that it took.
        """

        def lines(console: Console) -> list[Text]:
            took = f"{passes} BatchNorm pass{'es' if passes != 1 else ''}"
            title = f"val: {samples:,} samples (± one standard error); {took}"
            return [
                *hanging(Text(), title, console=console),
                *tried_table(rows, metrics=metrics, console=console),
                Text(),
            ]

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


def _labelled(title: str, rows: Sequence[tuple[str, str]], *, console: Console) -> list[Text]:
    block = [Text(safe(title, console=console), style="bold")]
    labels = [safe(label, console=console) for label, _ in rows]
    width = max([_LABEL_WIDTH, *(cell_len(label) + 1 for label in labels)])
    for label, (_, value) in zip(labels, rows, strict=True):
        head = Text.assemble(("  " + label + " " * (width - cell_len(label)), "cyan"))
        block += hanging(head, value, console=console, indent=head.cell_len)
    return block


def _remark(head: Text, text: str, *, console: Console) -> list[Text]:
    """A paragraph for people on a terminal, one whole line for the tools behind a pipe."""
    if console.is_terminal:
        return hanging(head, text, console=console)
    return [Text.assemble(head, safe(text, console=console))]


def _print(lines: Lines, *, console: Console) -> None:
    console.print(Text("\n").join(lines(console)), soft_wrap=True)
