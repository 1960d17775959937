"""Run the trials of a sweep, in this process or in several.

Each trial is quiet: its output goes to the log.txt of its run. An error of a trial is recorded, and the sweep goes on.
"""

from __future__ import annotations

import gc
import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import torch

from swa_cli import signals
from swa_cli.analysis import plot, sweep_metric
from swa_cli.analysis.run_output import RunOutput
from swa_cli.analysis.several_runs import POLL_S, run_or_continue, state_of
from swa_cli.analysis.sweep_study import (
    COMPLETE,
    FAILED,
    HOW_TO_REPLACE,
    PRUNED,
    Claim,
    Record,
    Settings,
    SweepStudy,
    folder_of,
)
from swa_cli.analysis.sweep_table import Table
from swa_cli.checkpoint.run_folder import RunFolder, read_json
from swa_cli.data.image_file import num_cores
from swa_cli.engine.events import Bar, EpochEvent, PlanEvent, Stopped
from swa_cli.errors import EXIT_FAILED, RecipeError, Terminated, UserError
from swa_cli.metrics.metric import TaskMetrics
from swa_cli.recipe.load import Loaded
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.space import words_of
from swa_cli.report.terminal import Terminal

PARTS = 1000  # of the bar, per trial
HOPELESS = 3  # if the first so many trials fail with the same error, so will the others


@dataclass(frozen=True)
class Sweep:
    """A sweep in its folder."""

    loaded: Loaded
    settings: Settings
    limit: int  # trials
    metrics: TaskMetrics
    folder: RunFolder
    study: SweepStudy
    timeout_s: float | None = None  # no trial is begun after it

    def recipe_of(self, texts: dict[str, str]) -> Loaded:
        """Return the recipe of a trial."""
        return self.loaded.with_changes(words_of(self.settings.space, texts))

    def records(self) -> list[Record]:
        """Return the trials that count."""
        return self.study.records()[: self.limit]

    @property
    def is_finished(self) -> bool:
        """Whether no trial is left to run."""
        records = self.records()
        return len(records) == self.limit and all(record.is_finished for record in records)

    @property
    def how_to_begin_anew(self) -> str:
        """What a hint says to a person who wants none of the trials so far."""
        move = f"move {self.folder.display_path} elsewhere"
        if not self.study.is_local:
            url = shlex.quote(read_json(self.folder.sweep, hint=HOW_TO_REPLACE)["storage"])
            words = f"optuna delete-study --study-name {shlex.quote(self.study.study.study_name)} --storage {url}"
            move = f"{move}, and take its trials out of the database: `{words}`"
        return f"{move}; the same command then starts a new one"


class Pruned(Exception):  # noqa: N818 - no error
    """A trial was pruned; its run is saved."""


def work(sweep: Sweep, *, terminal: Terminal, table: Table | None) -> None:
    """Run trials until none is left or the time is over; wait for those of other processes, which may be killed.

    Raises:
        UserError: The first trials fail with the same error.
    """
    deadline = float("inf") if sweep.timeout_s is None else time.monotonic() + sweep.timeout_s
    with terminal.progress("sweep", PARTS * sweep.limit) as bar:
        shown = _Shown(bar)
        while True:
            signals.check()  # one that came when a run was complete, or that a callback lost
            records = sweep.records()
            if table is not None:
                table.tell(records)
            shown.finished(records)
            if time.monotonic() > deadline:
                terminal.note("the time is over: the same command continues")
                return
            claim = sweep.study.claim(limit=sweep.limit)
            if claim is not None:
                with claim:
                    _run_trial(sweep, claim, terminal=terminal, shown=shown)
                _refuse_hopeless(sweep)
            elif sweep.study.is_local and not all(record.is_finished for record in sweep.records()):
                time.sleep(POLL_S)
            else:
                return


def launch(sweep: Sweep, words: Sequence[str], *, processes: int, terminal: Terminal, table: Table) -> None:
    """Start `swa WORDS` in several processes, each of which works on this sweep; show what they finish.

    The processes share the cores, and each has one of the GPUs. They hear signals from this one, which ends after them.

    Raises:
        UserError: They ended before the trials did.
    """
    number, gpus = 0, torch.cuda.device_count()
    command = [sys.executable, "-m", "swa_cli", *words, "--quiet", "--worker", str(sweep.folder.path)]
    if sweep.loaded.recipe.train.threads == "auto":
        command.append(f"train.threads={max(num_cores() // processes, 1)}")
    with ExitStack() as stack:
        bar = stack.enter_context(terminal.progress("sweep", PARTS * sweep.limit))
        shown = _Shown(bar)
        children: list[subprocess.Popen[bytes]] = []
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        try:
            for number in range(processes):
                own = {"CUDA_VISIBLE_DEVICES": visible[number % gpus]} if gpus > 1 else {}
                with signals.deferred():  # no process is started and not listed
                    children.append(subprocess.Popen(command, env=os.environ | own))
            while any(child.poll() is None for child in children):
                table.tell(sweep.records())
                shown.finished(sweep.records())
                signals.check()
                time.sleep(POLL_S)
        except BaseException:
            terminal.will_stop_soon()
            _stop(children)
            raise
    table.tell(sweep.records())
    if codes := [child.returncode for child in children if child.returncode]:
        terminal.warning(f"{len(codes)} of {processes} processes ended early (exit code {codes[0]})")
        _refuse_hopeless(sweep)
    if len(codes) == processes:
        raise UserError("all processes ended early", hint="run the same command again", exit_code=EXIT_FAILED)


def _stop(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Stop processes after their present step, or at once where a further signal arrives, and wait for them."""
    while running := [child for child in children if child.poll() is None]:
        with suppress(KeyboardInterrupt, Terminated):
            for child in running:
                child.terminate()
            for child in running:
                child.wait()


def _run_trial(sweep: Sweep, claim: Claim, *, terminal: Terminal, shown: _Shown) -> None:
    """Run a trial, or continue it, and record how it ended."""
    own, folder = sweep.recipe_of(claim.texts), folder_of(sweep.folder, claim.number)
    state = state_of(folder, own.recipe, noun="trial", command="sweep")
    quiet = terminal.part(quiet=True)
    listeners = [RunOutput(quiet), _Listener(sweep, claim, own.recipe, terminal, shown)]
    try:
        if state == "stopped" and claim.was_pruned:
            raise Pruned
        if state != "finished":
            looks = "dataset.root" in claim.texts  # photos that the check of the first values has not seen
            run_or_continue(own, folder, state=state, listeners=listeners, looks=looks)
            if own.recipe.output.plots:
                plot.draw_all(folder.path, terminal=terminal.part(quiet=True))
        result = read_json(folder.result)
        value = sweep_metric.final_value(result, sweep.settings.metric, own.recipe, sweep.metrics)
    except Pruned:
        claim.finish(PRUNED)
    except (KeyboardInterrupt, Terminated):
        claim.record_seconds()
        terminal.warning(f"stopped in {claim.name}")
        raise
    except Exception as error:  # whatever ended this trial, others may do better
        if is_of_disk(error):
            raise
        claim.finish(FAILED, reason=reason_of(error))
    else:
        column = sweep_metric.column_of(sweep.settings.metric, own.recipe)
        reason = "" if value is not None else f"{column} was not measured at the end, or is not finite"
        ended = FAILED if value is None else COMPLETE
        claim.finish(ended, value=value, reason=reason)
    with signals.deferred():  # what a handler raised in a destructor would be lost
        gc.collect()  # the network and the data of this trial


def is_of_disk(error: BaseException) -> bool:
    """Return whether an error is of the disk, not of the values of a trial."""
    return isinstance(error, OSError) or (error.__cause__ is not None and is_of_disk(error.__cause__))


def reason_of(error: Exception) -> str:
    """Return an error in a line."""
    text = next(iter(str(error).strip().splitlines()), "")
    return text if isinstance(error, UserError | RecipeError) else f"{type(error).__name__}: {text}"


def _refuse_hopeless(sweep: Sweep) -> None:
    """Stop a sweep whose first trials fail with the same error.

    Raises:
        UserError: They do.
    """
    ended = [record for record in sweep.records() if record.is_finished]
    if len(ended) < HOPELESS or any(record.state != FAILED for record in ended):
        return
    reasons = Counter(_general(record.reason) for record in ended)
    if len(reasons) == 1:
        raise UserError(
            f"the first {len(ended)} trials fail with the same error: {ended[0].reason}",
            hint=f"correct that, and {sweep.how_to_begin_anew}",
            exit_code=EXIT_FAILED,
        )


def _general(reason: str) -> str:
    """Return a reason without its numbers: of the same error, the epoch and the step may differ."""
    return "".join("#" if char.isdigit() else char for char in reason)


class _Shown:
    """The bar of the sweep: finished trials, and the epochs of the one that runs here."""

    def __init__(self, bar: Bar) -> None:
        self._bar, self._done = bar, 0

    def finished(self, records: Sequence[Record]) -> None:
        """Show the finished trials."""
        self._base = PARTS * sum(record.is_finished for record in records)
        self._show(self._base)

    def share(self, share: float) -> None:
        """Show how much of the present trial is done."""
        self._show(self._base + int(PARTS * share))

    def _show(self, done: int) -> None:
        if done > self._done:
            self._bar.advance(done - self._done)
            self._done = done


class _Listener:
    """Hears the epochs of a trial: shows them, reports the metric, and stops the run where it is pruned."""

    def __init__(self, sweep: Sweep, claim: Claim, recipe: Recipe, terminal: Terminal, shown: _Shown) -> None:
        self._claim, self._shown = claim, shown
        self._column = sweep_metric.column_of(sweep.settings.metric, recipe)
        self._epochs = recipe.train.epochs
        self.will_stop_soon = terminal.will_stop_soon

    def plan(self, event: PlanEvent) -> None:
        """Show the epochs that were done before."""
        self._shown.share(len(event.history) / self._epochs)

    def epoch(self, event: EpochEvent) -> None:
        """Report the metric where it was measured; a run at its end is not pruned."""
        epoch, value = len(event.history), event.row.get(self._column)
        self._shown.share(epoch / self._epochs)
        self._claim.record_seconds()
        if value is not None and self._claim.report(epoch, value) and epoch < self._epochs:
            raise Stopped(Pruned())
