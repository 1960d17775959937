"""A few real steps before a run, of which nothing stays: `swa train --dry-run`, and the times in `swa plan`.

One idea: a plan is arithmetic, but what a step takes on this machine is measured, and said to be.

What a step takes in several processes: a model of two terms, one measured on this machine and one told.

The one idea: each process computes its part of a batch, then all sum their gradients. The ring all-reduce of Patarasuk
and Yuan (2009, J. Parallel Distrib. Comput. 69, section 3), which gloo and nccl use, sends 2 (N - 1) / N of the
gradients' bytes out of each of N processes, and takes in as many. Torch hides some of that behind the backward pass,
and messages take a while to begin: neither is in the model. So a step of a large network is shorter, and one of a tiny
network longer.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from swa_cli.averaging.average import update_all
from swa_cli.averaging.batchnorm import update_batchnorm
from swa_cli.data.batches import Batches
from swa_cli.engine import evaluate
from swa_cli.engine.plan_text import plan_rows
from swa_cli.engine.run import Run
from swa_cli.engine.step import Forward, StepResult, train_step, wrap_ddp
from swa_cli.errors import UserError
from swa_cli.recipe.plan import Plan
from swa_cli.recipe.swap import worker_of

MAX_STEPS = 10  # timed, after one that is not
MAX_SECONDS = 3.0  # unless one step takes longer


@dataclass(frozen=True)
class StepTimes:
    """What things take here: seconds of a step, of scoring a sample, of a batch of the BatchNorm pass."""

    num_steps: int  # that were timed
    step_s: float
    sample_s: float
    refresh_s: float  # 0 where the network has no BatchNorm
    worker_s: float = 0.0  # of a step of a SWAP worker

    def scaled(self, scaled: Scaled, *, device: torch.device) -> StepTimes:
        """Return the times in several processes, each of which does some batches of a pass, or some workers."""
        cluster = scaled.cluster
        faster = cluster.machines if device.type == "cpu" else cluster.processes  # cores of a machine are shared
        passes = (self.sample_s / faster, self.refresh_s / faster)
        return StepTimes(self.num_steps, scaled.step_s, *passes, worker_s=self.worker_s / faster)


def dry_run(run: Run) -> dict[str, Any]:
    """One real step of training, of the averages, and one scored batch; nothing is written."""
    context, phase = run.context, run.plan.phase
    started = time.monotonic()
    passed = _step(run, wrap_ddp(run), iter(context.training_batches(1)))
    loss = sum(context.world.gathered(sum(float(each.part[0]) for each in passed))) / len(passed)
    update_all([*run.averages.values(), *([run.cumulative] if run.cumulative else [])], run.model, step=1)
    scored = itertools.islice(context.plain_batches(context.scoring_split()), 1)
    with run.replica.holding() as model:
        evaluate.score(model, scored, task=context.task, hardware=context.eval_hardware)
    seconds = time.monotonic() - started
    samples = phase.batch_size * phase.grad_accum_steps
    context.events.note(f"one step of {samples} samples: loss {loss:.3f}, {seconds:.1f} s; nothing was written")
    return {
        "command": "train",
        "dry_run": True,
        **_arithmetic(run.plan),
        "loss": loss,
        "seconds": round(seconds, 3),
        "device": str(context.hardware.device),
        "precision": context.hardware.precision,
    }


@dataclass(frozen=True)
class Estimate:
    """What a run will do and how long it takes."""

    rows: Sequence[tuple[str, str]]  # label and text, see `plan_text`
    plan: Plan
    times: StepTimes
    seconds: Mapping[str, float]  # of each part of the run
    scaled: Scaled | None
    values: Mapping[str, Any]  # what `--json` prints

    @property
    def total_s(self) -> float:
        """Seconds of the whole run."""
        return sum(self.seconds.values())


def estimate(run: Run, *, cluster: Cluster | None = None) -> Estimate:
    """Return what a run will do, and how long it will take by timed steps; nothing is written.

    Args:
        run: In this process alone.
        cluster: The processes whose time is estimated, if not that of this one.
    """
    context, planned = run.context, run.plan
    with context.memory():
        times = measure(run)
        scaled = None if cluster is None else _scaled(run, cluster, alone_s=times.step_s)
    if scaled is not None:
        times = times.scaled(scaled, device=context.hardware.device)
    seconds = _estimate_seconds(run, times)
    values = {
        "command": "plan",
        "name": context.recipe.title,
        **_arithmetic(planned),
        "total_steps": planned.total_steps,
        "snapshots": list(planned.snapshots),
        "scored_epochs": sorted(planned.score_epochs),
        "memory": {item.name: run.averages[item.name].num_bytes(len(item.steps)) for item in planned.averages},
        "seconds": round(sum(seconds.values()), 3),
        "seconds_of": {name: round(value, 3) for name, value in seconds.items()},
        "step_seconds": times.step_s,
        "timed_steps": times.num_steps,
        **({} if scaled is None else {"processes": scaled.values}),
        "device": str(context.hardware.device),
        "precision": context.hardware.precision,
        "warnings": list(planned.warnings),
    }
    return Estimate(plan_rows(run), planned, times, seconds, scaled, values)


def _arithmetic(planned: Plan) -> dict[str, Any]:
    return {
        "epochs": planned.epochs,
        "steps_per_epoch": planned.steps_per_epoch,
        "learning_rates": [planned.learning_rate(epoch * planned.steps_per_epoch) for epoch in range(planned.epochs)],
        "averages": {item.name: {"kind": item.kind, "steps": list(item.steps)} for item in planned.averages},
    } | ({"worker": _arithmetic_of_worker(planned.worker)} if planned.worker else {})


def _arithmetic_of_worker(planned: Plan) -> dict[str, Any]:
    return {"batch_size": planned.phase.batch_size, "total_steps": planned.total_steps, **_arithmetic(planned)}


def _step(run: Run, forward: Forward, batches: Iterator[tuple[Any, Any]]) -> list[StepResult]:
    """What each batch of the run's first step gave; a run does not count it, so that all are the first."""
    run.model.train()
    return list(train_step(run, forward, batches))


def measure(run: Run) -> StepTimes:
    """Time some steps with the reading of their batches, a scored batch, and a batch of the BatchNorm pass."""
    context = run.context
    batches, split = context.training_batches(1), context.scoring_split()
    num_steps, step_s = time_steps(run, batches)
    first = next(iter(context.plain_batches(split)))
    size = min(context.recipe.eval.batch_size, len(context.split(split)))
    refresh_s = _refresh_s(run, next(iter(batches))) if run.statistics.num_layers else 0.0
    sample_s = (
        _least(lambda: evaluate.score(run.model, [first], task=context.task, hardware=context.eval_hardware)) / size
    )
    worker_s = 0.0
    if run.plan.worker is not None:
        own = replace(context, recipe=worker_of(context.recipe, 1))
        _, worker_s = time_steps(replace(run, context=own, plan=run.plan.worker), own.training_batches(1))
    return StepTimes(num_steps, step_s, sample_s, refresh_s, worker_s)


def time_steps(run: Run, batches: Batches) -> tuple[int, float]:
    """How many steps were timed, each with the reading of its batches, and the seconds of one."""
    taken: list[float] = []
    started = time.perf_counter()
    with run.context.events.progress("timing steps", total=MAX_STEPS + 1) as bar:
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
    settings, hardware = run.context.recipe.train, run.context.hardware
    if cluster.processes > settings.batch_size:
        raise UserError(
            f"--processes: {cluster.processes} are more than the {settings.batch_size} samples of a batch",
            hint="name fewer, or a larger train.batch_size",
        )
    last = cluster.processes - 1  # no part is larger
    if hardware.device.type == "cpu":
        torch.set_num_threads(max(hardware.threads // cluster.on_a_machine, 1))
    try:
        _, compute_s = time_steps(run, run.context.training_batches(1).part(last, size=cluster.processes))
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
            with run.context.hardware.autocast():
                update_batchnorm([batch] * number, model, batch_to_args=run.context.task.batch_to_args)

        return max(0.0, _least(lambda: go(6)) - _least(lambda: go(1))) / 5


def _least(work: Callable[[], object]) -> float:
    """Seconds of the faster of two goes."""
    taken = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)


def _estimate_seconds(run: Run, times: StepTimes) -> dict[str, float]:
    """Seconds of the parts of the run."""
    context, planned = run.context, run.plan
    per_epoch, num_averages = planned.steps_per_epoch, len(planned.averages) + (planned.worker is not None)
    in_between = sum(
        average.steps[0] <= epoch * per_epoch for epoch in planned.score_epochs for average in planned.averages
    )
    num_val = 0 if context.source.val is None else len(context.source.val)
    samples = num_val * (planned.epochs + in_between + num_averages)
    num_workers, workers = 0, dict[str, float]()
    if planned.worker is not None and context.recipe.swap is not None:
        num_workers = context.recipe.swap.workers
        samples += num_val * num_workers * planned.worker.epochs
        workers = {"workers": num_workers * planned.worker.total_steps * times.worker_s}
    num_twins = 1 + num_workers if run.statistics.num_layers else 0  # raw weights with recomputed statistics
    samples += num_val * (num_workers + num_twins)
    samples += len(context.split(context.scoring_split())) * (1 + num_workers + num_twins + num_averages)
    num_passes = in_between + num_averages + num_twins
    return {
        "training": planned.total_steps * times.step_s,
        **workers,
        "scoring": samples * times.sample_s,
        "BatchNorm": num_passes * context.refresh_length(run.model) * times.refresh_s,
    }


GIGABIT = 1e9  # bits


@dataclass(frozen=True)
class Cluster:
    """Processes that train one network; `gigabits` a second go through the slowest link between two, each way."""

    processes: int
    machines: int
    gigabits: float

    @property
    def on_a_machine(self) -> int:
        """The most processes that share a machine."""
        return -(-self.processes // self.machines)

    def part(self, batch_size: int) -> int:
        """The samples of a batch that the slowest process computes."""
        return -(-batch_size // self.processes)


@dataclass(frozen=True)
class Scaled:
    """A step of one process (`alone_s` seconds) and of a cluster."""

    cluster: Cluster
    samples: int  # of a batch, in each process
    alone_s: float
    compute_s: float
    gradient_bytes: int

    @property
    def exchange_s(self) -> float:
        """Seconds of the all-reduce."""
        number = self.cluster.processes
        return 2 * (number - 1) / number * self.gradient_bytes * 8 / (self.cluster.gigabits * GIGABIT)

    @property
    def step_s(self) -> float:
        """Seconds of a step, forward to update."""
        return self.compute_s + self.exchange_s

    @property
    def speedup(self) -> float:
        """How many times as fast as one process."""
        return self.alone_s / self.step_s

    @property
    def values(self) -> dict[str, Any]:
        """What `--json` tells."""
        return {
            "number": self.cluster.processes,
            "machines": self.cluster.machines,
            "gigabits": self.cluster.gigabits,
            "samples": self.samples,
            "compute_seconds": self.compute_s,
            "exchange_seconds": self.exchange_s,
            "one_process_seconds": self.alone_s,
            "speedup": self.speedup,
        }
