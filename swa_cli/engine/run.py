"""From a recipe to a run that is ready to go: plan, network, optimizer, averages.

Every problem that only shows when data and classes are known is collected and reported at once, before anything
is run or written.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from swa_cli.averaging.average import WeightAverage
from swa_cli.averaging.batchnorm import NOTHING, BatchNormUpdate
from swa_cli.averaging.bn_layers import bn_layers, statistics_of
from swa_cli.averaging.model_state import read
from swa_cli.checkpoint.atomic import BackgroundWriter
from swa_cli.engine import compilation, fsdp, loggers, optimizers, preflight, warm_start
from swa_cli.engine.context import Context, build_context
from swa_cli.engine.distributed import ALONE, World
from swa_cli.engine.fsdp import WHOLE, Sharding, shard
from swa_cli.engine.replica import Replica
from swa_cli.engine.signals import Interrupt
from swa_cli.engine.warm_start import InitialWeights
from swa_cli.errors import Problem, RecipeError, UserError
from swa_cli.metrics.tasks import SampleScores
from swa_cli.recipe.load import Loaded
from swa_cli.recipe.plan import Plan, make_plan
from swa_cli.recipe.swap import name_of_worker
from swa_cli.report.terminal import Terminal


@dataclass
class Run:
    """A training run: its plan and all that changes while it goes on."""

    context: Context
    plan: Plan
    model: nn.Module
    replica: Replica  # holds averages to be scored
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    averages: dict[str, WeightAverage]
    cumulative: WeightAverage | None  # the mean of the weights after every step, kept for the snapshots alone
    due: dict[str, frozenset[int]]  # average -> updates done after which it takes the weights
    totals: Tensor  # (2,) loss and score, summed over the batches of the epoch that has no row in `history` yet
    interrupt: Interrupt
    initial: InitialWeights | None = None  # None where the seed gives them, or a resume point will
    writer: BackgroundWriter = field(default_factory=BackgroundWriter)
    parts: Sharding = WHOLE
    statistics: BatchNormUpdate = NOTHING  # what a BatchNorm pass does to this network, tried on some samples
    running: tuple[Tensor, ...] = ()  # statistics of BatchNorm in training: several processes keep their mean
    step: int = 0  # updates done
    history: list[dict[str, Any]] = field(default_factory=list)
    stopped: str | None = None  # max_time | patience: what ended the run before its last epoch
    refreshed: dict[str, Refreshed] = field(default_factory=dict)
    validated: dict[str, SampleScores] = field(default_factory=dict)  # weight sets as the last epoch left them
    workers: tuple[Worker, ...] = ()  # of a SWAP run at its end
    clock: float = field(default_factory=time.monotonic)  # when the present epoch began
    saved_at: float = field(default_factory=time.monotonic)

    @property
    def epoch(self) -> int:
        """The epoch that is going on, from 1."""
        return len(self.history) + 1

    @property
    def seconds(self) -> float:
        """How long the run has taken, earlier sessions of it included."""
        return float(sum(row["seconds"] for row in self.history)) + time.monotonic() - self.clock

    def begin_epoch(self) -> None:
        """Start the sums and the clock of the next epoch."""
        self.totals.zero_()
        self.clock = time.monotonic()


@dataclass(frozen=True)
class Worker:
    """Where a worker of a SWAP run has ended; `file` is seen from the run folder."""

    number: int
    file: str
    state_dict: Mapping[str, Tensor]
    step: int
    history: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """Of its weights, among those of the run."""
        return name_of_worker(self.number)


@dataclass(frozen=True)
class Refreshed:
    """What was recomputed for a weight set as it was after `step` updates, so that it can be scored and shipped."""

    step: int
    buffers: dict[str, Tensor]  # the weights are those of the set
    update: BatchNormUpdate


def prepare(
    loaded: Loaded,
    terminal: Terminal,
    *,
    recorded: Mapping[str, Any] | None = None,
    begun: Mapping[str, Any] | None = None,
    world: World = ALONE,
    context: Context | None = None,
) -> Run:
    """Build everything a run needs.

    Args:
        loaded: The recipe and where its keys stand.
        terminal: Told of anything slow.
        recorded: `input` of the resume point, if the run goes on from one.
        begun: `environment` of a run that goes on.
        world: The processes that do the run.
        context: Of this recipe, with data that were loaded before, if there is one.

    Raises:
        RecipeError: Every problem that data, plan and optimizer show, with its place in the recipe.
        UserError: Data or device are missing.
    """
    recipe = loaded.recipe
    problems: list[Problem] = optimizers.check(
        recipe.optimizer.name, recipe.optimizer.options, [group.options for group in recipe.optimizer.groups]
    )
    problems += loggers.problems(recipe) + compilation.problems(recipe.train.compile)
    begun_from, unreadable = warm_start.read(recipe.train.init if recorded is None else None)
    problems += unreadable
    try:
        context = context or build_context(recipe, terminal, recorded=recorded, begun=begun, world=world)
    except UserError:
        if problems:
            raise loaded.locate(problems) from None
        raise
    plan = None
    try:
        columns = context.task.metrics.columns(list(recipe.all_averages))
        plan = make_plan(recipe, num_train=len(context.split("train")), columns=columns)
    except RecipeError as error:
        problems += error.problems
    problems += _problems_of_processes(context) + fsdp.problems(recipe, world=world)
    stop = recipe.train.early_stopping
    if stop is not None and "val" in stop.metric and context.source.val is None:
        message = f"there is no validation split to measure {stop.metric} on"
        problems.append(
            Problem("train.early_stopping.metric", message, "set dataset.val to 10%, or the metric to train_loss")
        )
    if problems or plan is None:
        raise loaded.locate(problems)
    model = context.build_model()
    if problems := _problems_of_layers(model, context):
        raise loaded.locate(problems)
    read(model)  # refuses a state dict that can be neither averaged nor saved
    replica = Replica(context, model)
    preflight.check_evaluation(replica)
    if recorded is None:  # a resumed run has the weights that came of it
        _initialize_from_data(model, context)
    compilation.require_available(recipe.train.compile, device=context.hardware.device)
    try:
        optimizers.require_trained(model)
        settings = recipe.train
        weights = warm_start.put(begun_from, model, name=settings.init_weights, skip=settings.init_skip)
        seen = preflight.check(replica, plan)
        context = replica.context = _with_defined_gradients(context, replica)
        parts = WHOLE
        if settings.fsdp and replica.borrows:
            message = f"{recipe.model.name} makes another network each time: no process can put its parts together"
            raise RecipeError([Problem("train.fsdp", message, "write train.fsdp=false")])
        if settings.fsdp:
            model, parts = shard(
                model, world=world, device=context.hardware.device, sync_batchnorm=settings.sync_batchnorm
            )
            replica = Replica(context, model, parts)
        optimizer = optimizers.of_recipe(model, recipe.optimizer, is_sparse=seen.is_sparse)
    except RecipeError as error:
        raise loaded.locate(error.problems) from error
    averages = {item.name: WeightAverage(model, **item.settings) for item in plan.averages}
    cumulative = WeightAverage(model) if recipe.snapshots and recipe.snapshots.cumulative else None
    device = context.hardware.device
    scaler = torch.amp.GradScaler(device.type, enabled=context.hardware.precision == "fp16")
    due = {item.name: frozenset(item.steps) for item in plan.averages}
    totals = torch.zeros(2, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    plan = replace(plan, warnings=(*plan.warnings, *(weights.warnings if weights else ()), *seen.warnings))
    interrupt = Interrupt(announce=terminal.will_stop_soon, agree=world.largest)
    run = Run(
        context,
        plan,
        model,
        replica,
        optimizer,
        scaler,
        averages,
        cumulative,
        due,
        totals,
        interrupt,
        initial=weights,
        parts=parts,
        statistics=seen.update,
    )
    layers = bn_layers(model)
    run.running = tuple(statistics for layer in layers for statistics in statistics_of(layer))
    return run


def _problems_of_processes(context: Context) -> list[Problem]:
    """What does not go with this number of processes, or on this device."""
    settings, device, size = context.recipe.train, context.hardware.device, context.world.size
    problems = []
    if settings.batch_size < size:
        message = f"{settings.batch_size} samples leave some of {size} processes without one"
        problems.append(Problem("train.batch_size", message, f"write at least {size}, or start fewer processes"))
    if settings.sync_batchnorm and device.type != "cuda":
        message = f"torch has it for GPUs alone, and this run is on {device}"
        problems.append(Problem("train.sync_batchnorm", message, "write false, or train.device=cuda"))
    return problems


def _problems_of_layers(model: nn.Module, context: Context) -> list[Problem]:
    """What a checkpoint cannot hold, and layers that several processes on this device cannot train."""
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor) and value.layout != torch.strided:
            message = f"{name} is a sparse tensor ({value.layout}), which a checkpoint does not hold"
            hint = "register it with persistent=False where forward can make it anew, or keep it dense"
            return [Problem("model.name", message, hint)]
    if context.world.size == 1 or context.hardware.device.type == "cuda":
        return []
    layers = [name for name, layer in model.named_modules() if isinstance(layer, nn.SyncBatchNorm)]
    if not layers:
        return []
    message = f"{layers[0]} is a SyncBatchNorm, which torch has for GPUs alone"
    hint = f"start one process, or let the network have BatchNorm on a {context.hardware.device.type}"
    return [Problem("model.name", message, hint)]


def _initialize_from_data(model: nn.Module, context: Context) -> None:
    """Let a network that wants to set its first weights by training samples do so."""
    initialize_from = getattr(model, "initialize_from", None)
    if initialize_from is not None:
        initialize_from(context.initial_inputs())


def _with_defined_gradients(context: Context, replica: Replica) -> Context:
    """The bench in a precision in which all gradients of the network are defined.

    Raises:
        UserError: The recipe insists on another one.
    """
    hardware = context.hardware
    if hardware.device.type != "cpu" or hardware.precision != "bf16":
        return context
    name = preflight.undefined_gradient(replica)
    if name is None:
        return context
    reason = f"torch has no bf16 gradient of {name} for images so small"
    if context.recipe.train.precision == "bf16":
        raise UserError(f"train.precision: {reason}", hint="write train.precision=fp32, or use larger images")
    return replace(context, hardware=replace(hardware, precision="fp32", reason=reason))
