"""The seeds of a repeat: its folder, which processes may share, and the runs that are left to do.

A process holds the lock of the seed that it works on, and the lock of the files of the folder while it writes them. So
the same command in several processes, on machines that see the folder, shares the seeds, and each is run once.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from swa_cli import signals
from swa_cli.analysis import plot
from swa_cli.analysis.compare import Result, read_result
from swa_cli.analysis.run_output import RunOutput
from swa_cli.analysis.several_runs import POLL_S, making, newest, run_or_continue, state_of
from swa_cli.checkpoint import locks
from swa_cli.checkpoint.atomic import json_text
from swa_cli.checkpoint.run_folder import RESUMABLE_KEYS, RunFolder, make_next
from swa_cli.engine.run import Run
from swa_cli.errors import EXIT_FAILED, Terminated, UserError
from swa_cli.metrics.metric import TaskMetrics
from swa_cli.recipe import load
from swa_cli.recipe.load import Loaded
from swa_cli.recipe.schema import Recipe
from swa_cli.report.seeds import seed_ranges
from swa_cli.report.terminal import Terminal

FILES = "files"  # the lock of the files of a repeat itself, beside one per seed

Results = dict[int, tuple[dict[str, Any], Result]]  # seed -> result.json, and its compared part


@dataclass(frozen=True)
class Member:
    """A seed of a repeat and its run folder; `state` is one of `STATES`."""

    seed: int
    folder: RunFolder
    state: str


@dataclass
class Series:
    """A recipe of a repeat, its folder and its seeds; `label` names it where two are compared."""

    loaded: Loaded
    label: str
    folder: RunFolder | None  # None until it is made
    reason: str  # why this folder was chosen
    ready: dict[int, Run] = field(default_factory=dict)
    members: list[Member] = field(default_factory=list)
    results: Results = field(default_factory=dict)

    @property
    def place(self) -> RunFolder:
        """The folder, once it is made."""
        assert self.folder is not None, "made before a seed is run"
        return self.folder

    def in_state(self, wanted: str, seeds: Sequence[int]) -> list[int]:
        """Return the seeds in a state; all are new where there is no folder."""
        states = {member.seed: member.state for member in self.members} or dict.fromkeys(seeds, "new")
        return [seed for seed, state in states.items() if state == wanted]


def newest_repeat(recipe: Recipe, terminal: Terminal) -> tuple[RunFolder | None, str]:
    """Return the newest folder of a repeat to continue with a recipe, or None, and the reason of the choice."""
    return newest(
        recipe,
        _name(recipe),
        is_kind=lambda found: found.repeat.is_file(),
        terminal=terminal,
        ignored=(*RESUMABLE_KEYS, "seed"),
    )


@contextmanager
def opened(series: Series, seeds: Sequence[int], terminal: Terminal) -> Iterator[TextIO]:
    """Find the seeds in the folder of a series, which is made if there is none; yield its log."""
    recipe = series.loaded.recipe
    if series.folder is None:
        root = Path(recipe.output.root)
        with making(root, _name(recipe)):
            series.folder, _ = newest_repeat(recipe, terminal)  # another process may have made it just now
            if series.folder is None:
                series.folder = RunFolder(make_next(root, _name(recipe)))
                describe(series.folder, recipe, seeds)
    with series.folder.lock(is_shared=True) as log:
        series.members = members_of(series.folder, recipe, seeds)
        yield log


def describe(folder: RunFolder, recipe: Recipe, seeds: Sequence[int]) -> None:
    """Write what the folder of a repeat is; in this order: with recipe.yaml alone it would be the folder of a run."""
    with locks.holding(folder.lock_of(FILES)):
        folder.write_json(folder.repeat.name, {"seeds": list(seeds)})
        folder.write_text(folder.recipe.name, load.dump(recipe))


def members_of(folder: RunFolder, recipe: Recipe, seeds: Sequence[int]) -> list[Member]:
    """Return each seed with the state of its folder; see `state_of` for the errors."""
    return [_member(folder, recipe, seed) for seed in seeds]


def _member(folder: RunFolder, recipe: Recipe, seed: int) -> Member:
    run, own = RunFolder(folder.path / f"seed-{seed}"), recipe.model_copy(update={"seed": seed})
    return Member(seed, run, state_of(run, own, noun="seed", command="repeat"))


def run_seeds(
    every: Sequence[Series], seeds: Sequence[int], *, metrics: TaskMetrics, terminal: Terminal, waits: bool
) -> bool:
    """Run each seed that is not finished, with each recipe in turn, and put its result into `results`.

    Seeds of other processes are looked at again until they are finished, or free because their process has ended.
    Return whether all are finished, as they are unless `waits` is false.
    """
    has_run, is_first_look = False, True
    while True:
        elsewhere = []
        for (number, seed), series in itertools.product(enumerate(seeds, start=1), every):
            title = f"seed {seed} ({number} of {len(seeds)})" + (f", {series.label}" if series.label else "")
            if seed in series.results:
                if is_first_look:
                    terminal.heading(f"{title} is finished")
                continue
            claim = locks.take(series.place.lock_of(f"seed-{seed}"))
            if claim is None:
                elsewhere.append(title)
                continue
            with claim:
                member = _member(series.place, series.loaded.recipe, seed)  # anew: it may be finished by now
                terminal.heading(title if member.state != "finished" else f"{title} is finished")
                with _named(title, finished=list(series.results), has_run=has_run, terminal=terminal):
                    if member.state != "finished":
                        _run(member, series, terminal=terminal)
                        has_run = True
                    series.results[seed] = read_result(member.folder.result, metrics=metrics)
                    signals.check()  # one that came when the run was complete
        if not elsewhere or not waits:
            return not elsewhere
        if is_first_look:
            terminal.note(f"other processes work on {', '.join(elsewhere)}: this one waits for them")
        is_first_look = False
        time.sleep(POLL_S)


def _run(member: Member, series: Series, *, terminal: Terminal) -> None:
    """Run a seed, or continue it, and draw its pictures."""
    ready = series.ready.pop(member.seed, None)
    series.ready.clear()  # its network and data must not stay in memory while other seeds run
    own, output = series.loaded.with_seed(member.seed), RunOutput(terminal.part())
    run_or_continue(own, member.folder, state=member.state, listeners=[output], ready=ready)
    if series.loaded.recipe.output.plots:
        plot.draw_all(member.folder.path, terminal=terminal.part())


@contextmanager
def _named(title: str, *, finished: Sequence[int], has_run: bool, terminal: Terminal) -> Iterator[None]:
    """Name the seed in which the repeat ended; the exit code is 1 once a seed has run."""
    try:
        yield
    except UserError as error:
        kept = f"; {seeds_text(sorted(finished))}: finished and kept" if finished else ""
        code = EXIT_FAILED if has_run else error.exit_code
        raise UserError(f"{title}: {error.message}", hint=error.hint + kept, exit_code=code) from error
    except (KeyboardInterrupt, Terminated):
        terminal.warning(f"stopped in {title}: run the same command again to continue")
        raise


def write_result(folder: RunFolder, answer: Mapping[str, Any]) -> None:
    """Write result.json, unless another process has written the same at its end."""
    text = json_text(answer, indent=2) + "\n"
    with locks.holding(folder.lock_of(FILES)):
        if not folder.result.is_file() or folder.result.read_bytes() != text.encode():
            folder.write_text(folder.result.name, text)


def require_same_samples(series: Series) -> None:
    """Refuse to compare scores of different splits or numbers of samples."""
    kinds = {(result.split, result.samples): seed for seed, (_, result) in series.results.items()}
    if len(kinds) > 1:
        said = ", ".join(f"seed {seed} on {samples:,} {split}" for (split, samples), seed in kinds.items())
        raise UserError(
            f"{series.place.path}: its seeds were scored on different samples ({said})",
            hint="move the seeds of the older data elsewhere: the same command runs them again",
        )


def seeds_text(seeds: Sequence[int]) -> str:
    """Return seeds as `seed 3` or `seeds 0 to 2`."""
    return f"seed{'s' if len(seeds) > 1 else ''} {seed_ranges(seeds)}"


def _name(recipe: Recipe) -> str:
    return f"{recipe.title}-repeat"
