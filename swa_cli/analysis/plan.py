"""`swa plan`: what a run will do, epoch by epoch, and the time it will take."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from swa_cli.analysis.run_output import RunOutput
from swa_cli.engine import failures, train
from swa_cli.engine.estimate import Cluster, Estimate, Scaled, estimate
from swa_cli.recipe.load import Loaded
from swa_cli.recipe.plan import Plan
from swa_cli.report.console_text import NOT_MEASURED, Column, duration, rate
from swa_cli.report.terminal import Terminal
from swa_cli.units import count_text, short_time, size_text


def show_plan(loaded: Loaded, *, cluster: Cluster | None, terminal: Terminal) -> dict[str, Any]:
    """Time a few steps of a recipe; print warnings, the plan with its time, and a row per epoch; return the values.

    With a `cluster` the time in its processes is estimated, and `train.fsdp` is left out: one process cannot shard.
    """
    if loaded.recipe.train.fsdp and cluster is not None and cluster.processes > 1:
        loaded = loaded.with_changes(["train.fsdp=false"])
        terminal.note("the plan is of the whole network in each process: train.fsdp exchanges weights, too")
    run = train.set_up(loaded, listeners=[RunOutput(terminal)])
    with failures.before_a_run():
        found = estimate(run, cluster=cluster)
    for warning in found.plan.warnings:
        terminal.warning(warning)
    processes = [("processes", _processes_text(found.scaled))] if found.scaled is not None else []
    terminal.facts(loaded.recipe.title, [*found.rows, *processes, ("time", _time_text(found))])
    terminal.answer("")
    phases = [found.plan, *([found.plan.worker] if found.plan.worker else [])]
    rows = [_cells(phase, epoch) for phase in phases for epoch in range(1, phase.epochs + 1)]
    terminal.table(_columns(found.plan), rows)
    return dict(found.values)


def _time_text(found: Estimate) -> str:
    parts = ", ".join(f"{name} {duration(value)}" for name, value in found.seconds.items() if value)
    number = count_text(found.times.num_steps, "step")
    return (
        f"about {duration(sum(found.seconds.values()))} ({parts}): {found.plan.total_steps:,} steps of"
        f" {short_time(found.times.step_s)}, the mean of {number} timed now; saves and pictures come on top"
    )


def _processes_text(scaled: Scaled) -> str:
    number, machines = scaled.cluster.processes, scaled.cluster.machines
    return (
        f"{number}{f' on {machines} machines' if machines > 1 else ''}, {scaled.samples} samples each: a step of"
        f" {short_time(scaled.compute_s)} and {short_time(scaled.exchange_s)} for {size_text(scaled.gradient_bytes)} of"
        f" gradients at {scaled.cluster.gigabits:g} Gbit/s, {scaled.speedup:.2f} times as fast as the"
        f" {short_time(scaled.alone_s)} of one process"
    )


def _columns(planned: Plan) -> list[Column]:
    """An epoch, the rates of its first and last step, the weights that each average takes, what is kept and scored."""
    columns = [Column("epoch", "epoch", 5, rank=0)]
    columns += [Column("first lr", "first lr", 10, rank=1), Column("last lr", "last lr", 9, rank=1)]
    columns += [Column(f"of {item.name}", item.name, max(len(item.name) + 2, 6), rank=2) for item in planned.averages]
    columns += [Column("batch", "batch", 10, rank=2)] if planned.worker else []
    columns += [Column("snapshots", "snapshots", 11, rank=3)] if planned.snapshots else []
    return columns + ([Column("scored", "scored", 8, rank=4)] if planned.averages else [])


def _cells(planned: Plan, epoch: int) -> dict[str, str]:
    """Return the cells of an epoch of a phase; its number is that of the recipe."""
    first, last = (epoch - 1) * planned.steps_per_epoch, epoch * planned.steps_per_epoch

    def taken(steps: tuple[int, ...]) -> str:
        number = bisect_right(steps, last) - bisect_right(steps, first)
        return str(number) if number else NOT_MEASURED

    is_scored = epoch in planned.score_epochs or epoch == planned.epochs
    return {
        "epoch": str(planned.phase.before + epoch),
        "batch": planned.phase.batch.removeprefix("batch "),
        "first lr": rate(planned.learning_rate(first)),
        "last lr": rate(planned.learning_rate(last - 1)),
        **{f"of {item.name}": taken(item.steps) for item in planned.averages},
        "snapshots": taken(planned.snapshots),
        "scored": "yes" if is_scored else NOT_MEASURED,
    }
