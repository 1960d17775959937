"""Run a few real training steps without side effects: `swa train --dry-run`, and the times of `swa plan`.

A plan is arithmetic, but the time of a step on this machine is measured. The time of a step in N processes is a model
of two terms: the measured time of one process's part of a batch, and the exchange of gradients at a given bandwidth.
The ring all-reduce of Patarasuk and Yuan (2009, J. Parallel Distrib. Comput. 69, section 3), which gloo and nccl use,
sends and receives 2 (N - 1) / N of the gradients' bytes in each process. The model leaves out overlap with the backward
pass and latency: real steps of a large network are shorter, of a tiny one longer.
"""

from __future__ import annotations

import itertools
import statistics
import time
import timeit
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from swa_cli.averaging.average import update_all
from swa_cli.averaging.batchnorm import update_batchnorm
from swa_cli.data.batches import Batches
from swa_cli.engine import evaluate
from swa_cli.engine.context import Context
from swa_cli.engine.events import Bar
from swa_cli.engine.plan_text import plan_rows
from swa_cli.engine.run import Run, end_freezing, running_statistics
from swa_cli.engine.step import train_step, wrap_ddp
from swa_cli.errors import UserError
from swa_cli.metrics.task import num_views
from swa_cli.models.freezing import freeze
from swa_cli.recipe.plan import Plan
from swa_cli.recipe.swap import worker_of

MAX_STEPS = 10  # timed, after one that is not
MAX_SECONDS = 3.0  # of timed steps, unless one takes longer
GIGABIT = 1e9  # bits


@dataclass(frozen=True)
class StepTimes:
    """Measured seconds of a step, of scoring a sample, and of a batch of the BatchNorm pass."""

    num_steps: int  # that were timed
    step_s: float
    sample_s: float
    refresh_s: float  # 0 where the network has no BatchNorm
    worker_s: float = 0.0  # of a step of a SWAP worker


@dataclass(frozen=True)
class Cluster:
    """Processes that train one network; the slowest link carries `gigabits` per second in each direction."""

    processes: int
    machines: int
    gigabits: float


@dataclass(frozen=True)
class Scaled:
    """The time of a step in one process (`alone_s` seconds) and in a cluster."""

    cluster: Cluster
    samples: int  # of a batch, in the slowest process
    alone_s: float
    compute_s: float
    gradient_bytes: int  # of a step, the mean over the epochs

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

    def times(self, alone: StepTimes, *, device: torch.device) -> StepTimes:
        """Return the times in the cluster, where each process does some batches of a pass, or some workers."""
        faster = self.cluster.machines if device.type == "cpu" else self.cluster.processes  # cores are shared
        return StepTimes(
            alone.num_steps, self.step_s, alone.sample_s / faster, alone.refresh_s / faster, alone.worker_s / faster
        )

    @property
    def values(self) -> dict[str, Any]:
        """The values for `--json`."""
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


@dataclass(frozen=True)
class Estimate:
    """What a run will do and how long it takes."""

    rows: Sequence[tuple[str, str]]  # label and text, see `plan_text`
    plan: Plan
    times: StepTimes
    seconds: Mapping[str, float]  # of each part of the run
    scaled: Scaled | None
    values: Mapping[str, Any]  # for `--json`


def dry_run(run: Run) -> dict[str, Any]:
    """Do one real step of training and of the averages, and score one batch; nothing is written.

    Raises:
        UserError: The step leads to a loss or weights that are not finite.
    """
    context, phase = run.context, run.plan.phase
    started = time.monotonic()
    run.model.train()
    passed = list(train_step(run, wrap_ddp(run), iter(context.training_batches(1))))
    loss = sum(context.world.gathered(sum(float(each.part[0]) for each in passed))) / len(passed)
    run.require_finite_loss(loss)
    run.require_finite_weights()
    with run.eval_weights():
        update_all([*run.averages.values(), *([run.cumulative] if run.cumulative else [])], run.model, step=1)
        scored = itertools.islice(context.plain_batches(context.scoring_split()), 1)
        with run.replica.holding() as model:
            evaluate.score(model, scored, task=context.task, hardware=context.eval_hardware)
    seconds = time.monotonic() - started
    samples = phase.batch_size * phase.grad_accum_steps
    is_seeded = run.initial is not None and run.initial.sha256 is None
    what = f"one step of {samples} samples{' with weights of the seed' if is_seeded else ''}"
    context.events.note(f"{what}: loss {loss:.3f}, {seconds:.1f} s; nothing was written")
    return {
        "command": "train",
        "dry_run": True,
        **_arithmetic(run.plan),
        "loss": loss,
        "seconds": round(seconds, 3),
        **context.hardware.facts,
    }


def estimate(run: Run, *, cluster: Cluster | None = None) -> Estimate:
    """Return what a run will do, and how long by timed steps, here or in a `cluster`; nothing is written."""
    context, planned = run.context, run.plan
    with context.memory():
        times = measure(run)
        scaled = None if cluster is None else _scaled(run, cluster, alone_s=times.step_s)
    if scaled is not None:
        times = scaled.times(times, device=context.hardware.device)
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
        **context.hardware.facts,
        "warnings": list(planned.warnings),
    }
    return Estimate(plan_rows(run), planned, times, seconds, scaled, values)


def _arithmetic(planned: Plan) -> dict[str, Any]:
    starts = range(0, planned.total_steps, planned.steps_per_epoch)
    values = {
        "epochs": planned.epochs,
        "steps_per_epoch": planned.steps_per_epoch,
        "learning_rates": [planned.learning_rate(step) for step in starts],  # of the first step of each epoch
        "last_learning_rates": [planned.learning_rate(step + planned.steps_per_epoch - 1) for step in starts],
        "averages": {item.name: {"kind": item.kind, "steps": list(item.steps)} for item in planned.averages},
    }
    if (worker := planned.worker) is not None:
        sizes = {"batch_size": worker.phase.batch_size, "total_steps": worker.total_steps}
        values["worker"] = sizes | _arithmetic(worker)
    return values


def measure(run: Run) -> StepTimes:
    """Time some steps, some scored batches, and some batches of the BatchNorm pass, each with their reading."""
    context, split = run.context, run.context.scoring_split()
    num_steps, step_s = _time_periods(run, context)
    number = len(context.split(split))
    size = min(context.recipe.eval.batch_size, number)
    score = partial(evaluate.score, run.model, task=context.task, hardware=context.eval_hardware)
    whole = itertools.islice(context.plain_batches(split), number // size)  # not the rest at the end
    _, scored_s = _mean_s(score([batch]) for batch in whole)
    with _all_trained(run):
        refresh_s = _refresh_s(run) if run.statistics.num_layers else 0.0
    worker_s = 0.0
    if run.plan.worker is not None:
        own = replace(context, recipe=worker_of(context.recipe, 1))
        _, worker_s = _time_periods(replace(run, context=own, plan=run.plan.worker), own)
    return StepTimes(num_steps, step_s, scored_s / size, refresh_s, worker_s)


def _time_periods(run: Run, context: Context, *, rank: int = 0, processes: int = 1) -> tuple[int, float]:
    """Return the number of timed steps on a part of each batch, and their seconds: the mean over the epochs."""
    num_steps, total_s = 0, 0.0
    for first, number in _periods(run, context):
        timed, seconds = time_steps(run, context.training_batches(first).part(rank, size=processes))
        num_steps, total_s = num_steps + timed, total_s + seconds * number
    return num_steps, total_s / run.plan.epochs


def _periods(run: Run, context: Context) -> Iterator[tuple[int, int]]:
    """Iterate over the first one, and the number, of epochs that train the same parameters on one size of images.

    Until the next one, the parameters that train are those of these epochs.
    """
    until = run.plan.unfreeze if run.plan.unfreeze is not None and run.replica.frozen else 1
    for first, number in context.epochs_by_size(epochs=run.plan.epochs):
        num_frozen = min(max(until - first, 0), number)
        if num_frozen:
            yield first, num_frozen
        if num_frozen < number:
            with _all_trained(run):
                yield first + num_frozen, number - num_frozen


@contextmanager
def _all_trained(run: Run) -> Iterator[None]:
    """Let the parameters train that are frozen up to an epoch, as they do at the end of the run."""
    frozen = run.replica.frozen
    end_freezing(run)
    try:
        yield
    finally:
        if frozen:
            run.replica.frozen, run.running = freeze(run.model, frozen), running_statistics(run.model)


def time_steps(run: Run, batches: Batches) -> tuple[int, float]:
    """Return the number of timed steps, and the mean of their seconds; the time to read batches is included.

    Not the median: loader processes hand over several batches at once, and then nothing until the next ones.
    """

    def steps(bar: Bar) -> Iterator[None]:
        reading = iter(batches)
        for _ in range(run.plan.steps_per_epoch):
            run.model.train()
            *_, last = train_step(run, run.model, reading)
            float(last.loss)  # waits for a GPU
            bar.advance()
            yield

    with run.context.events.progress("timing steps", total=MAX_STEPS + 1) as bar:
        return _mean_s(steps(bar))


def _mean_s(work: Iterable[object]) -> tuple[int, float]:
    """Return how many parts of `work` were timed, and the mean of their seconds; the first one sets things up."""
    taken: list[float] = []
    started = time.perf_counter()
    for _ in itertools.islice(work, MAX_STEPS + 1):
        taken.append(time.perf_counter() - started - sum(taken))
        if sum(taken[1:]) > MAX_SECONDS:
            break
    timed = taken[1:] or taken
    return len(timed), statistics.fmean(timed)


def _scaled(run: Run, cluster: Cluster, *, alone_s: float) -> Scaled:
    """Time the part of a batch that a process of the cluster computes, on the threads that it will have."""
    settings, hardware = run.context.recipe.train, run.context.hardware
    if cluster.processes > settings.batch_size:
        raise UserError(
            f"--processes: {cluster.processes} are more than the {settings.batch_size} samples of a batch",
            hint="name fewer, or a larger train.batch_size",
        )
    last = cluster.processes - 1  # no part is larger
    if hardware.device.type == "cpu":
        per_machine = -(-cluster.processes // cluster.machines)  # the most that share one
        torch.set_num_threads(max(hardware.threads // per_machine, 1))
    try:
        _, compute_s = _time_periods(run, run.context, rank=last, processes=cluster.processes)
    finally:
        torch.set_num_threads(hardware.threads)
    exchanged = sum(number * _gradient_bytes(run.model) for _, number in _periods(run, run.context))
    return Scaled(
        cluster,
        samples=-(-settings.batch_size // cluster.processes),
        alone_s=alone_s,
        compute_s=compute_s,
        gradient_bytes=round(exchanged / run.plan.epochs),
    )


def _gradient_bytes(model: nn.Module) -> int:
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    return sum(parameter.numel() * parameter.element_size() for parameter in trained)


def _refresh_s(run: Run) -> float:
    """Return the seconds that one more batch of the BatchNorm pass takes, without the start of a pass.

    Loader processes read the next batch meanwhile.
    """
    context = run.context
    batch = next(iter(context.statistics_batches()))
    with run.replica.refreshing() as model:

        def least_s(number: int) -> float:
            with context.hardware.autocast():
                refresh = partial(update_batchnorm, [batch] * number, model, batch_to_args=context.task.batch_to_args)
                return min(timeit.repeat(refresh, repeat=2, number=1))

        refresh_s = max(0.0, least_s(6) - least_s(1)) / 5
    if context.split("train").dataset is None:
        return refresh_s
    _, read_s = _mean_s(context.statistics_batches())
    return max(refresh_s, read_s) if context.recipe.dataset.workers else refresh_s + read_s


def _estimate_seconds(run: Run, times: StepTimes) -> dict[str, float]:
    """Return the seconds of each part of the run."""
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
    num_raw = 1 + num_workers
    num_twins = num_raw if run.statistics.num_layers and not run.averages_inside else 0  # raw, statistics recomputed
    own = 0  # passes for the raw weights of each epoch
    if run.averages_inside:
        epochs = planned.epochs + (num_workers * planned.worker.epochs if planned.worker else 0)
        own = epochs if num_val else num_raw
    final, split, tta = 1 + num_workers + num_twins + num_averages, context.scoring_split(), context.recipe.eval.tta
    samples += len(context.split(split)) * final * num_views(tta)
    if split != "val":  # else these are the same scores; validation after an epoch has no views
        samples += num_val * (num_workers + num_twins if tta == "none" else final * num_views(tta))
    num_passes = in_between + num_averages + num_twins + own
    return {
        "training": planned.total_steps * times.step_s,
        **workers,
        "scoring": samples * times.sample_s,
        "BatchNorm": num_passes * context.refresh_length(run.model) * times.refresh_s,
    }
