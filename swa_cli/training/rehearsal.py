"""A few real steps before a run, of which nothing stays: `swa train --dry-run`, and the times in `swa plan`.

One idea: a plan is arithmetic, but what a step takes on this machine is measured, and said to be.
"""

from __future__ import annotations

import itertools
import statistics
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from swa_cli.averaging.average import update_all
from swa_cli.averaging.batchnorm import update_batchnorm
from swa_cli.data.batches import Batches
from swa_cli.errors import UserError
from swa_cli.recipe.phase import worker_of
from swa_cli.recipe.plan import Plan
from swa_cli.report.columns import Column, duration, rate, short_time
from swa_cli.report.spelling import NOT_MEASURED
from swa_cli.training import evaluate
from swa_cli.training.announce import plan_rows
from swa_cli.training.forward import Forward, Passed, connected, train_step
from swa_cli.training.scaling import Cluster, Scaled
from swa_cli.training.setup import Run

MAX_STEPS = 10  # timed, after one that is not
MAX_SECONDS = 3.0  # unless one step takes longer


@dataclass(frozen=True)
class Pace:
    """What things take here: seconds of a step, of scoring a sample, of a batch of the BatchNorm pass."""

    num_steps: int  # that were timed
    step_s: float
    sample_s: float
    refresh_s: float  # 0 where the network has no BatchNorm
    worker_s: float = 0.0  # of a step of a SWAP worker

    def scaled(self, scaled: Scaled, *, device: torch.device) -> Pace:
        """The pace of several processes, each of which does some of the batches of a pass, or some of the workers."""
        cluster = scaled.cluster
        faster = cluster.machines if device.type == "cpu" else cluster.processes  # cores of a machine are shared
        passes = (self.sample_s / faster, self.refresh_s / faster)
        return Pace(self.num_steps, scaled.step_s, *passes, worker_s=self.worker_s / faster)


def dry_run(run: Run) -> dict[str, Any]:
    """One real step of training, of the averages, and one scored batch; nothing is written."""
    bench, phase = run.bench, run.plan.phase
    started = time.monotonic()
    passed = _step(run, connected(run), iter(bench.training_batches(1)))
    loss = sum(bench.world.gathered(sum(float(each.part[0]) for each in passed))) / len(passed)
    update_all([*run.averages.values(), *([run.cumulative] if run.cumulative else [])], run.model, step=1)
    scored = itertools.islice(bench.plain_batches(bench.scoring_split()), 1)
    with run.replica.holding() as model:
        evaluate.score(model, scored, task=bench.task, hardware=bench.eval_hardware)
    seconds = time.monotonic() - started
    samples = phase.batch_size * phase.accumulate
    bench.terminal.note(f"one step of {samples} samples: loss {loss:.3f}, {seconds:.1f} s; nothing was written")
    return {
        "command": "train",
        "dry_run": True,
        **_arithmetic(run.plan),
        "loss": loss,
        "seconds": round(seconds, 3),
        "device": str(bench.hardware.device),
        "precision": bench.hardware.precision,
    }


def plan(run: Run, *, cluster: Cluster | None = None) -> dict[str, Any]:
    """Tell what a run will do, epoch by epoch, and how long it will take; nothing is written.

    Args:
        run: In this process alone.
        cluster: The processes whose time is to be told, if not that of this one.
    """
    bench, planned = run.bench, run.plan
    with bench.memory():
        pace = _measure(run)
        scaled = None if cluster is None else _scaled(run, cluster, alone_s=pace.step_s)
    if scaled is not None:
        pace = pace.scaled(scaled, device=bench.hardware.device)
    seconds = _estimate(run, pace)
    total = sum(seconds.values())
    for warning in planned.warnings:
        bench.terminal.warning(warning)
    rows = [("processes", str(scaled))] if scaled is not None else []
    rows.append(("time", _time_text(seconds, pace, planned)))
    bench.terminal.facts(bench.recipe.title, [*plan_rows(run), *rows])
    bench.terminal.answer("")
    phases = [planned, *([planned.worker] if planned.worker else [])]
    cells = [_cells(phase, epoch) for phase in phases for epoch in range(1, phase.epochs + 1)]
    bench.terminal.table(_columns(planned), cells)
    return {
        "command": "plan",
        "name": bench.recipe.title,
        **_arithmetic(planned),
        "total_steps": planned.total_steps,
        "snapshots": list(planned.snapshots),
        "scored_epochs": sorted(planned.score_epochs),
        "memory": {item.name: run.averages[item.name].num_bytes(len(item.steps)) for item in planned.averages},
        "seconds": round(total, 3),
        "seconds_of": {name: round(value, 3) for name, value in seconds.items()},
        "step_seconds": pace.step_s,
        "timed_steps": pace.num_steps,
        **({} if scaled is None else {"processes": scaled.values}),
        "device": str(bench.hardware.device),
        "precision": bench.hardware.precision,
        "warnings": list(planned.warnings),
    }


def _arithmetic(planned: Plan) -> dict[str, Any]:
    return {
        "epochs": planned.epochs,
        "steps_per_epoch": planned.steps_per_epoch,
        "learning_rates": [planned.learning_rate(epoch * planned.steps_per_epoch) for epoch in range(planned.epochs)],
        "averages": {item.name: {"kind": item.kind, "steps": list(item.steps)} for item in planned.averages},
    } | ({"worker": _arithmetic_of_worker(planned.worker)} if planned.worker else {})


def _arithmetic_of_worker(planned: Plan) -> dict[str, Any]:
    return {"batch_size": planned.phase.batch_size, "total_steps": planned.total_steps, **_arithmetic(planned)}


def _step(run: Run, forward: Forward, batches: Iterator[tuple[Any, Any]]) -> list[Passed]:
    """What each batch of the run's first step gave; a run does not count it, so that all are the first."""
    run.model.train()
    return list(train_step(run, forward, batches))


def _measure(run: Run) -> Pace:
    """Time some steps with the reading of their batches, a scored batch, and a batch of the BatchNorm pass."""
    bench = run.bench
    batches, split = bench.training_batches(1), bench.scoring_split()
    num_steps, step_s = _step_s(run, batches)
    first = next(iter(bench.plain_batches(split)))
    size = min(bench.recipe.eval.batch_size, len(bench.split(split)))
    refresh_s = _refresh_s(run, next(iter(batches))) if run.statistics.num_layers else 0.0
    sample_s = _least(lambda: evaluate.score(run.model, [first], task=bench.task, hardware=bench.eval_hardware)) / size
    worker_s = 0.0
    if run.plan.worker is not None:
        own = replace(bench, recipe=worker_of(bench.recipe, 1))
        _, worker_s = _step_s(replace(run, bench=own, plan=run.plan.worker), own.training_batches(1))
    return Pace(num_steps, step_s, sample_s, refresh_s, worker_s)


def _step_s(run: Run, batches: Batches) -> tuple[int, float]:
    """How many steps were timed, each with the reading of its batches, and the seconds of one."""
    taken: list[float] = []
    started = time.perf_counter()
    with run.bench.terminal.progress("timing steps", total=MAX_STEPS + 1) as bar:
        reading = iter(batches)
        for _ in range(min(MAX_STEPS + 1, run.plan.steps_per_epoch)):
            float(_step(run, run.model, reading)[-1].loss)  # waits for a GPU
            taken.append(time.perf_counter() - started - sum(taken))
            bar.advance()
            if sum(taken[1:]) > MAX_SECONDS:
                break
    timed = taken[1:] or taken  # the first one sets things up
    return len(timed), statistics.median(timed)


def _scaled(run: Run, cluster: Cluster, *, alone_s: float) -> Scaled:
    """Time the part of a batch that a process of the cluster computes, on the threads that it will have.

    Raises:
        UserError: There are more processes than samples in a batch.
    """
    settings, hardware = run.bench.recipe.train, run.bench.hardware
    if cluster.processes > settings.batch_size:
        raise UserError(
            f"--processes: {cluster.processes} are more than the {settings.batch_size} samples of a batch",
            hint="name fewer, or a larger train.batch_size",
        )
    last = cluster.processes - 1  # no part is larger
    if hardware.device.type == "cpu":
        torch.set_num_threads(max(hardware.threads // cluster.on_a_machine, 1))
    try:
        _, compute_s = _step_s(run, run.bench.training_batches(1).part(last, size=cluster.processes))
    finally:
        torch.set_num_threads(hardware.threads)
    parameters = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
    return Scaled(
        cluster,
        samples=cluster.part(settings.batch_size),
        alone_s=alone_s,
        compute_s=compute_s,
        gradient_bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
    )


def _refresh_s(run: Run, batch: tuple[Any, Any]) -> float:
    """Seconds that one more batch of the pass takes; beginning a pass is not part of it."""
    with run.replica.refreshing() as model:

        def go(number: int) -> None:
            with run.bench.hardware.autocast():
                update_batchnorm([batch] * number, model, batch_to_args=run.bench.task.batch_to_args)

        return max(0.0, _least(lambda: go(6)) - _least(lambda: go(1))) / 5


def _least(work: Callable[[], object]) -> float:
    """Seconds of the faster of two goes."""
    taken = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)


def _estimate(run: Run, pace: Pace) -> dict[str, float]:
    """Seconds of the parts of the run."""
    bench, planned = run.bench, run.plan
    per_epoch, num_averages = planned.steps_per_epoch, len(planned.averages) + (planned.worker is not None)
    in_between = sum(
        average.steps[0] <= epoch * per_epoch for epoch in planned.score_epochs for average in planned.averages
    )
    num_val = 0 if bench.source.val is None else len(bench.source.val)
    samples = num_val * (planned.epochs + in_between + num_averages)
    num_workers, workers = 0, dict[str, float]()
    if planned.worker is not None and bench.recipe.swap is not None:
        num_workers = bench.recipe.swap.workers
        samples += num_val * num_workers * planned.worker.epochs
        workers = {"workers": num_workers * planned.worker.total_steps * pace.worker_s}
    num_twins = 1 + num_workers if run.statistics.num_layers else 0  # raw weights with recomputed statistics
    samples += num_val * (num_workers + num_twins)
    samples += len(bench.split(bench.scoring_split())) * (1 + num_workers + num_twins + num_averages)
    num_passes = in_between + num_averages + num_twins
    return {
        "training": planned.total_steps * pace.step_s,
        **workers,
        "scoring": samples * pace.sample_s,
        "BatchNorm": num_passes * bench.refresh_length(run.model) * pace.refresh_s,
    }


def _time_text(seconds: Mapping[str, float], pace: Pace, planned: Plan) -> str:
    parts = ", ".join(f"{name} {duration(value)}" for name, value in seconds.items() if value)
    number = f"{pace.num_steps} step{'s' if pace.num_steps != 1 else ''}"
    return (
        f"about {duration(sum(seconds.values()))} ({parts}): {planned.total_steps:,} steps of"
        f" {short_time(pace.step_s)}, the median of {number} timed now; saves and pictures come on top"
    )


def _columns(planned: Plan) -> list[Column]:
    """An epoch, the rate of its first step, how many weights each average takes in it, what is kept and scored."""
    columns = [Column("epoch", "epoch", 5, rank=0), Column("lr", "lr", 9, rank=1)]
    columns += [Column(f"of {item.name}", item.name, max(len(item.name) + 2, 6), rank=2) for item in planned.averages]
    columns += [Column("batch", "batch", 10, rank=2)] if planned.worker else []
    columns += [Column("snapshots", "snapshots", 11, rank=3)] if planned.snapshots else []
    return columns + ([Column("scored", "scored", 8, rank=4)] if planned.averages else [])


def _cells(planned: Plan, epoch: int) -> dict[str, str]:
    """Of an epoch of a phase; it is called by its number in the recipe."""
    first, last = (epoch - 1) * planned.steps_per_epoch, epoch * planned.steps_per_epoch

    def taken(steps: tuple[int, ...]) -> str:
        number = bisect_right(steps, last) - bisect_right(steps, first)
        return str(number) if number else NOT_MEASURED

    is_scored = epoch in planned.score_epochs or epoch == planned.epochs
    return {
        "epoch": str(planned.phase.before + epoch),
        "batch": planned.phase.batch.removeprefix("batch "),
        "lr": rate(planned.learning_rate(first)),
        **{f"of {item.name}": taken(item.steps) for item in planned.averages},
        "snapshots": taken(planned.snapshots),
        "scored": "yes" if is_scored else NOT_MEASURED,
    }
