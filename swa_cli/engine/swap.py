"""SWAP (Gupta, Serrano, DeCoste, ICLR 2020): train workers from the common weights, and average their final weights.

A worker is an ordinary run in a folder inside the run folder, and can be stopped, killed and resumed like any run. Of N
processes, rank r trains the workers r + 1, r + 1 + N, ... in turn, and does not communicate until they are done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from swa_cli.averaging.average import WeightAverage
from swa_cli.checkpoint import loading
from swa_cli.checkpoint.reader import Checkpoint
from swa_cli.checkpoint.run_folder import RESUMABLE_KEYS, RunFolder, about
from swa_cli.engine import failures, resume, state
from swa_cli.engine.distributed import ALONE
from swa_cli.engine.events import Stopped
from swa_cli.engine.failures import Interrupt
from swa_cli.engine.plan_text import plan_event
from swa_cli.engine.run import Run, Worker, build_run
from swa_cli.errors import UserError
from swa_cli.recipe import load
from swa_cli.recipe.load import Loaded
from swa_cli.recipe.swap import worker_of

NAME = "swa"  # of the mean
LOOK_EVERY_S = 0.1  # for processes that still train workers
DONE = "swap workers"  # the point that processes arrive at


def train_workers(run: Run, folder: RunFolder, *, train_epochs: Callable[[Run, RunFolder], None]) -> Run:
    """Train the workers assigned to this process, wait for the others, and return the run with the workers' mean.

    `run` is at the end of its common phase; `train_epochs` trains a worker's run in its folder to its last epoch.
    """
    for number in _assigned_workers(run, folder):
        with _open_worker(run, folder, number) as worker:
            if worker is not None:
                train_epochs(*worker)
    _wait_for_processes(run)
    return _merge_workers(run, folder)


def _assigned_workers(run: Run, folder: RunFolder) -> list[int]:
    """Return the workers of this process, once all processes can read the common weights."""
    world = run.context.world
    run.writer.wait()
    world.gathered(None)
    numbers = range(1, _num_workers(run) + 1)
    others = [number for number in numbers if (number - 1) % world.size != world.rank]
    if others:
        logs = ", ".join(f"{number}: {folder.worker(number).log}" for number in others)
        run.context.events.note(f"workers of other processes, and their logs: {logs}")
    return [number for number in numbers if number not in others]


@contextmanager
def _open_worker(run: Run, folder: RunFolder, number: int) -> Iterator[tuple[Run, RunFolder] | None]:
    """Yield a worker as it stands, and its locked folder; None for a worker that is done.

    The worker shares the data of `run`, its common phase.

    Raises:
        UserError: Something in its folder is not of this run, or another process is working there.
    """
    events = run.context.events
    with failures.explain(folder):
        own = RunFolder.at(folder.worker(number).path)
    title = f"worker {number} of {_num_workers(run)}"
    with own.lock() as log:
        with failures.explain(own):
            point, loaded = _load_worker(run, folder, number)
        if _is_complete(point, run):
            events.note(f"{title} is complete")
            yield None
            return
        with failures.explain(own):
            hardware = replace(run.context.hardware, processes=1)
            context = replace(run.context, recipe=loaded.recipe, hardware=hardware, world=ALONE)
            worker = build_run(loaded, events.part(), point=point, context=context)
            if point is None:
                state.write_first_files(worker, own, recipe_folder=Path(about(folder.about)["recipe_folder"]))
            else:
                state.restore(worker, point.content, source=str(point.path))
                state.prepare_folder(own, point, load.dump(worker.context.recipe), extended=None)
        where = f", continued after step {worker.step:,} of {worker.plan.total_steps:,}" if worker.step else ""
        events.note(f"{title}{where}")
        worker.context.events.emit(
            plan_event(
                worker,
                title=f"{own.path}{where}",
                warnings=resume.changes_since(point, worker.context.hardware),
                folder=own.path,
                log=log,
                labels=("schedule", "swap"),
            )
        )
        yield worker, own


def _wait_for_processes(run: Run) -> None:
    """Return when all processes have trained their workers.

    Raises:
        KeyboardInterrupt: Ctrl-C, or Terminated for SIGTERM.
    """
    world, events = run.context.world, run.context.events
    world.arrive(DONE)
    done = 0
    with (
        Interrupt(events.will_stop_soon) as interrupt,
        events.progress("waiting for the workers of other processes", world.size) as bar,
    ):
        try:
            while done < world.size:
                before, done = done, world.num_arrived(DONE)
                bar.advance(done - before)
                interrupt.check()
                time.sleep(LOOK_EVERY_S if done < world.size else 0)
        except Stopped as stopped:
            raise stopped.ending from None


def _merge_workers(run: Run, folder: RunFolder) -> Run:
    """Return the run with its workers, and the float64 mean of their weights in their order as the average `swa`.

    Raises:
        UserError: A worker's resume point is not that of its end.
    """
    workers = tuple(_read_worker(run, folder, number) for number in range(1, _num_workers(run) + 1))
    mean = WeightAverage(run.model)
    for worker in workers:
        with run.replica.holding(worker.state_dict) as model:
            mean.update(model, step=worker.step)
    return replace(run, averages={NAME: mean}, workers=workers)


def _num_workers(run: Run) -> int:
    settings = run.context.recipe.swap
    assert settings is not None, "the plan has workers only where the recipe has the section"
    return settings.workers


def _load_worker(run: Run, folder: RunFolder, number: int) -> tuple[Checkpoint | None, Loaded]:
    """Load the resume point of a worker, if it has saved one, and its recipe.

    Raises:
        RecipeError: The point is of another recipe.
        UserError: It cannot be read.
    """
    own = folder.worker(number)
    recipe = worker_of(run.context.recipe, number, init=str(folder.last.resolve()))
    loaded = load.from_values(recipe.values(), source=str(own.recipe))
    point = state.newest_resume_point(own, run.context.events)
    if point is not None:
        resume.require_same(point, loaded, ignored=(*RESUMABLE_KEYS, "train.init"))  # the folder may have moved
    return point, loaded


def _is_complete(point: Checkpoint | None, run: Run) -> bool:
    assert run.plan.worker is not None, "the plan of a common phase has that of its workers"
    if point is None or point.content["step"] != run.plan.worker.total_steps:
        return False
    return bool(point.content["epoch"] == run.plan.worker.epochs)  # else it was stopped in its last validation


def _read_worker(run: Run, folder: RunFolder, number: int) -> Worker:
    point, _ = _load_worker(run, folder, number)
    if point is None or not _is_complete(point, run):
        raise UserError(
            f"{folder.worker(number).path}: worker {number} is not finished, as this process sees it",
            hint="let all machines have the run folder on one file system",
        )
    content, file = point.content, point.path.relative_to(folder.path)
    with run.replica.refreshing() as model:
        loading.load_strict(model, content["model"], source=str(point.path))
    fresh = content.get("batchnorm")
    return Worker(number, str(file), content["model"], content["step"], content["history"], fresh)
