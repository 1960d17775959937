"""SWAP after its common phase (Gupta, Serrano, DeCoste, ICLR 2020): workers, each alone, and the mean of their ends.

The one idea: a worker is an ordinary run, in a folder of its own in the run folder, that begins from the common
weights. So it stops, is killed and goes on like any run, and could be run by itself elsewhere. Of N processes, rank r
has the workers r + 1, r + 1 + N, ... in turn, and until they are done it hears nothing of the others.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from swa_cli.averaging.average import WeightAverage
from swa_cli.checkpoint import loading
from swa_cli.checkpoint.reader import Checkpoint
from swa_cli.checkpoint.run_folder import RESUMABLE_KEYS, RunFolder, about
from swa_cli.engine import failures, resume, state
from swa_cli.engine.distributed import ALONE
from swa_cli.engine.plan_text import plan_rows
from swa_cli.engine.run import Run, Worker, prepare
from swa_cli.engine.signals import Interrupt, Stopped
from swa_cli.errors import UserError
from swa_cli.recipe import load
from swa_cli.recipe.load import Loaded
from swa_cli.recipe.swap import worker_of

NAME = "swa"  # of the mean, as that of weights along one trajectory
LOOK_EVERY_S = 0.1  # for processes that are still at their workers
DONE = "swap workers"  # where processes arrive


@dataclass(frozen=True)
class Part:
    """A worker that has epochs left."""

    run: Run
    folder: RunFolder


def assigned(run: Run, folder: RunFolder) -> list[int]:
    """The workers of this process; says who has the others, once the common weights are there for all."""
    world, terminal = run.context.world, run.context.terminal
    run.writer.wait()
    world.gathered(None)
    numbers = range(1, _num_workers(run) + 1)
    others = [number for number in numbers if (number - 1) % world.size != world.rank]
    if others:
        logs = ", ".join(f"{number}: {folder.worker(number).log}" for number in others)
        terminal.note(f"workers of other processes, and what they say: {logs}")
    return [number for number in numbers if number not in others]


@contextmanager
def begun(run: Run, folder: RunFolder, number: int) -> Iterator[Part | None]:
    """A worker as it stands, begun if it was not; None where it has come to its end. Its folder is held meanwhile.

    Args:
        run: Its common phase, whose data it shares.
        folder: Of the whole run.
        number: Of the worker, from 1.

    Raises:
        UserError: Something in its folder is not of this run, or another process is working there.
    """
    with failures.told(folder):
        own = RunFolder.at(folder.worker(number).path)
    title = f"worker {number} of {_num_workers(run)}"
    with own.claimed() as log:
        with failures.told(own):
            point, loaded = _begun_from(run, folder, number)
        if _is_complete(point, run):
            run.context.terminal.heading(f"{title} has come to its end")
            yield None
            return
        with failures.told(own):
            context = replace(
                run.context,
                recipe=loaded.recipe,
                hardware=replace(run.context.hardware, processes=1),
                terminal=run.context.terminal.part(),
                world=ALONE,
            )
            recorded = None if point is None else point.content["input"]
            worker = prepare(loaded, context.terminal, recorded=recorded, context=context)
            _put_in_place(worker, own, point, recipe_folder=Path(about(folder.about)["recipe_folder"]))
        where = f", continued after step {worker.step:,} of {worker.plan.total_steps:,}" if worker.step else ""
        run.context.terminal.heading(f"{title}{where}")
        context.terminal.attach_log(log)
        rows = [row for row in plan_rows(worker) if row[0] in ("schedule", "swap")]
        warnings = resume.changes_since(point, context.hardware)
        context.terminal.plan(f"{own.path}{where}", rows, warnings=warnings)
        yield Part(worker, own)


def wait(run: Run) -> None:
    """Return when all processes have done their workers.

    Raises:
        KeyboardInterrupt: Ctrl-C, or Terminated for SIGTERM.
    """
    world, terminal = run.context.world, run.context.terminal
    world.arrive(DONE)
    done = 0
    with (
        Interrupt(terminal.will_stop_soon) as interrupt,
        terminal.progress("waiting for the workers of other processes", world.size) as bar,
    ):
        try:
            while done < world.size:
                before, done = done, world.num_arrived(DONE)
                bar.advance(done - before)
                interrupt.check()
                time.sleep(LOOK_EVERY_S if done < world.size else 0)
        except Stopped as stopped:
            raise stopped.ending from None


def merged(run: Run, folder: RunFolder) -> Run:
    """The run with its workers and the mean of their weights as the average `swa`, in float64 and in their order.

    Raises:
        UserError: A worker's resume point is not that of its end.
    """
    workers = tuple(_ended(run, folder, number) for number in range(1, _num_workers(run) + 1))
    mean = WeightAverage(run.model)
    for worker in workers:
        with run.replica.holding(worker.state_dict) as model:
            mean.update(model, step=worker.step)
    return replace(run, averages={NAME: mean}, workers=workers)


def _num_workers(run: Run) -> int:
    settings = run.context.recipe.swap
    assert settings is not None, "the plan has workers only where the recipe has the section"
    return settings.workers


def _begun_from(run: Run, folder: RunFolder, number: int) -> tuple[Checkpoint | None, Loaded]:
    """The resume point of a worker, if it has saved one, and its recipe.

    Raises:
        RecipeError: The point is of another recipe.
        UserError: It cannot be read.
    """
    own = folder.worker(number)
    recipe = worker_of(run.context.recipe, number, init=str(folder.last.resolve()))
    loaded = load.from_values(recipe.model_dump(mode="json", exclude_none=True), source=str(own.recipe))
    point = state.newest_resume_point(own, run.context.terminal)
    if point is not None:
        resume.require_same(point, loaded, ignored=(*RESUMABLE_KEYS, "train.init"))  # the folder may have moved
    return point, loaded


def _is_complete(point: Checkpoint | None, run: Run) -> bool:
    assert run.plan.worker is not None, "the plan of a common phase has that of its workers"
    return point is not None and point.content["step"] == run.plan.worker.total_steps


def _put_in_place(worker: Run, own: RunFolder, point: Checkpoint | None, *, recipe_folder: Path) -> None:
    """The worker where it was saved, or its folder made ready for it to begin."""
    if point is None:
        state.begin(worker, own, recipe_folder=recipe_folder)
        return
    state.restore(worker, point.content, source=str(point.path))
    state.settle(own, point, load.dump(worker.context.recipe), extended=False)


def _ended(run: Run, folder: RunFolder, number: int) -> Worker:
    point, _ = _begun_from(run, folder, number)
    if point is None or not _is_complete(point, run):
        raise UserError(
            f"{folder.worker(number).path}: worker {number} has not come to its end, as this process sees it",
            hint="let all machines have the run folder on one file system",
        )
    content, file = point.content, point.path.relative_to(folder.path)
    with run.replica.refreshing() as model:
        loading.load_weights(model, content["model"], source=str(point.path))
    return Worker(number, str(file), content["model"], content["step"], content["history"])
