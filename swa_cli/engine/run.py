"""Build a run from a recipe: plan, network, optimizer, averages.

Every problem that only shows when data and classes are known is collected and reported at once, before anything
is run or written.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from swa_cli.averaging.average import WeightAverage
from swa_cli.averaging.batchnorm import NOTHING, BatchNormUpdate
from swa_cli.averaging.bn_layers import bn_layers, statistics_of
from swa_cli.averaging.model_state import NonFiniteWeightsError, read, require_finite
from swa_cli.checkpoint.atomic import BackgroundWriter
from swa_cli.checkpoint.reader import Checkpoint
from swa_cli.data.image_file import num_cores
from swa_cli.data.packed import Packing
from swa_cli.engine import class_balance, failures, fsdp, loggers, optimizers, preflight, step
from swa_cli.engine.context import Context, build_context
from swa_cli.engine.distributed import ALONE, World
from swa_cli.engine.events import Events, SavedEvent
from swa_cli.engine.failures import Interrupt
from swa_cli.engine.fsdp import UNSHARDED, Sharding
from swa_cli.engine.keep import Kept
from swa_cli.engine.network import InitialWeights, Replica, load_initial, names_to_freeze, read_initial
from swa_cli.engine.pretrained import Purpose, load_pretrained, problems_of_args
from swa_cli.errors import Problem, RecipeError, UserError
from swa_cli.metrics.tasks import SampleScores
from swa_cli.models import build_model
from swa_cli.models.freezing import freeze, unfreeze
from swa_cli.recipe.load import Loaded
from swa_cli.recipe.plan import Plan, image_problems, make_plan, model_problems, problems_between, watched_columns
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.swap import name_of_worker
from swa_cli.units import count_text


@dataclass
class Run:
    """A training run: its plan and all state that training changes."""

    context: Context
    plan: Plan
    model: nn.Module
    replica: Replica  # holds averages to be scored
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    averages: dict[str, WeightAverage]
    cumulative: WeightAverage | None  # the mean of the weights after every step, for the snapshots only
    due: dict[str, frozenset[int]]  # average -> the numbers of updates after which it takes the weights
    totals: Tensor  # (2,) loss and score, summed over the batches of the present epoch
    finite: Tensor | None  # () whether all weights that averages took were; None on a CPU, where they are looked at
    interrupt: Interrupt
    initial: InitialWeights | None = None  # None where they come from the seed or a resume point
    writer: BackgroundWriter = field(default_factory=BackgroundWriter)
    unannounced: list[SavedEvent] = field(default_factory=list)  # files that are being written
    sharding: Sharding = UNSHARDED
    statistics: BatchNormUpdate = NOTHING  # what a BatchNorm pass does to this network, tried on some samples
    needs_closure: bool = False  # the optimizer passes each batch several times, see `optimizers.needs_closure`
    running: tuple[Tensor, ...] = ()  # BatchNorm's running statistics, which are averaged over processes
    step: int = 0  # updates done
    history: list[dict[str, Any]] = field(default_factory=list)
    stopped: str | None = None  # what ended the run before its last epoch: a key of `ENDED_BY`
    kept: dict[str, Kept] = field(default_factory=dict)  # the best so far, by the name of its file
    saved_best: int | None = None  # the epoch that best.pt holds
    refreshed: dict[str, Refreshed] = field(default_factory=dict)
    validated: dict[str, SampleScores] = field(default_factory=dict)  # the weight sets of the last epoch
    workers: tuple[Worker, ...] = ()  # of a SWAP run at its end
    clock: float = field(default_factory=lambda: time.monotonic())  # when the present epoch began
    saved_at: float = field(default_factory=lambda: time.monotonic())

    @property
    def epoch(self) -> int:
        """The present epoch, from 1."""
        return len(self.history) + 1

    @property
    def seconds(self) -> float:
        """The seconds that the run has taken, earlier sessions included."""
        return float(sum(row["seconds"] for row in self.history)) + time.monotonic() - self.clock

    @property
    def averages_inside(self) -> bool:
        """Whether the optimizer averages inside: what is read are its eval weights, see `eval_weights`."""
        return optimizers.averages_inside(self.optimizer)

    def eval_weights(self) -> AbstractContextManager[None]:
        """Let the network hold the weights to be read while a block runs, see `optimizers.eval_weights`."""
        return optimizers.eval_weights(self.optimizer)

    def require_finite_loss(self, loss: float) -> float:
        """Return the loss of the step that follows `step`.

        Raises:
            UserError: The run has diverged: it is not finite.
        """
        if not math.isfinite(loss):
            raise failures.diverged(f"epoch {self.epoch}, step {self.step + 1}: the loss is {loss}")
        return loss

    def require_finite_weights(self) -> None:
        """Refuse to go on with weights that are not finite.

        Raises:
            UserError: The run has diverged.
        """
        try:
            require_finite(read(self.model).weights)
        except NonFiniteWeightsError as error:
            raise failures.diverged(f"epoch {self.epoch}: {error}") from error

    def require_finite_averages(self) -> None:
        """Refuse to go on with averages of weights that are not finite: a GPU lets them take any, see `update_all`.

        Raises:
            UserError: The run has diverged.
        """
        if self.finite is None or self.finite:
            return
        weights = read(self.model).weights
        taken = [*self.averages.values(), *([] if self.cumulative is None else [self.cumulative])]
        try:
            require_finite(weights)
            for average in taken:
                state = average.averaged_state() if average.count else {}
                require_finite({name: value for name, value in state.items() if name in weights})
        except NonFiniteWeightsError as error:
            raise failures.diverged(f"epoch {self.epoch}, step {self.step}: {error}") from error
        self.finite.fill_(True)  # the norm of finite weights had overflowed

    @property
    def filled(self) -> list[str]:
        """The names of the averages that hold any weights."""
        return [name for name, average in self.averages.items() if average.count]


@dataclass(frozen=True)
class Worker:
    """The end of a worker of a SWAP run; `file` is relative to the run folder."""

    number: int
    file: str
    state_dict: Mapping[str, Tensor]
    step: int
    history: list[dict[str, Any]]
    batchnorm: str | None = None  # of `state_dict`, if the optimizer averages inside

    @property
    def name(self) -> str:
        """The key of its weights in the results."""
        return name_of_worker(self.number)


@dataclass(frozen=True)
class Refreshed:
    """The recomputed statistics of a weight set after `step` updates, with which it is scored and shipped."""

    step: int
    buffers: dict[str, Tensor]
    update: BatchNormUpdate


def build_run(
    loaded: Loaded,
    events: Events,
    *,
    point: Checkpoint | None = None,
    world: World = ALONE,
    context: Context | None = None,
    purpose: Purpose = "plan",
) -> Run:
    """Build everything a run needs.

    Args:
        loaded: The recipe and where its keys stand.
        events: Of the run; the loggers of the recipe are added.
        point: The resume point, if the run continues from one.
        world: The processes that train together.
        context: The context of this recipe, if its data were loaded before.
        purpose: A run that is built to `train` may pack images and download weights.

    Raises:
        RecipeError: Every problem that data, plan and optimizer show, with its place in the recipe.
        UserError: Something is wrong that no key of the recipe says, such as a broken file.
    """
    try:
        return _build_run(loaded, events, point=point, world=world, context=context, purpose=purpose)
    except RecipeError as error:
        raise loaded.locate(error.problems) from error
    except UserError as error:
        if found := loaded.problems_of(error):
            raise loaded.locate(found) from error
        raise


def _build_run(
    loaded: Loaded, events: Events, *, point: Checkpoint | None, world: World, context: Context | None, purpose: Purpose
) -> Run:
    settings, problems = loaded.recipe.train, problems_of_names(loaded.recipe)
    warm = None
    if settings.init is not None and point is None:  # a resumed run starts from its resume point
        warm, unreadable = read_initial(settings.init)
        problems += unreadable if warm is None else problems_of_args(warm, loaded.recipe)
    if world.is_rank0:
        events, unusable = _with_loggers(events, loaded.recipe)
        problems += unusable
    context = _read_data(loaded, events, problems=problems, point=point, world=world, context=context, purpose=purpose)
    recipe = context.recipe  # with the inputs of pretrained weights
    plan = _make_plan(loaded.recipe, context, problems)
    model = _build_model(context, initialize=point is None)
    replica = Replica(context, model)
    initial = None
    if warm is not None:
        initial = load_initial(warm, model, name=settings.init_weights, skip=settings.init_skip)
    elif recipe.model.pretrained is not None and point is None:
        initial = load_pretrained(context, model, purpose=purpose)
    seen = preflight.check(replica, plan)
    context = replica.context = preflight.with_defined_gradients(replica, seen.samples)
    sharding = UNSHARDED
    if settings.fsdp:
        model, sharding = _shard(replica)
        replica = Replica(context, model, sharding)
    frozen = names_to_freeze(model, recipe.model.freeze) if plan.unfreeze is not None else frozenset()
    optimizer = optimizers.build(model, recipe.optimizer, is_sparse=seen.is_sparse)
    replica.frozen = freeze(model, frozen)  # after all that has to see the whole network
    optimizers.begin_momentum(optimizer)
    _require_closure_possible(optimizer, context)
    warnings = (
        *plan.warnings,
        *_warnings_of_workers(context),
        *_warnings_of_inner_average(context, optimizer),
        *(initial.warnings if initial else ()),
        *seen.warnings,
    )
    device, place = context.hardware.device, None if settings.averages_device == "auto" else settings.averages_device
    return Run(
        context,
        replace(plan, warnings=warnings),
        model,
        replica,
        optimizer,
        torch.amp.GradScaler(device.type, enabled=context.hardware.precision == "fp16"),
        {item.name: WeightAverage(model, **item.arguments, device=place) for item in plan.averages},
        WeightAverage(model, device=place) if recipe.snapshots and recipe.snapshots.cumulative else None,
        {item.name: frozenset(item.steps) for item in plan.averages},
        torch.zeros(2, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device),
        None if device.type == "cpu" else torch.ones((), dtype=torch.bool, device=device),
        Interrupt(announce=events.will_stop_soon, agree=context.world.largest),
        initial=initial,
        sharding=sharding,
        statistics=seen.update,
        needs_closure=optimizers.needs_closure(optimizer),
        running=running_statistics(model),
    )


def _with_loggers(events: Events, recipe: Recipe) -> tuple[Events, list[Problem]]:
    """Add metrics.csv and the loggers of the recipe; return the problems of those that cannot be used too."""
    is_worker = recipe.swap is not None and recipe.swap.worker is not None  # its rows are in its metrics.csv alone
    entries = [] if is_worker else recipe.output.loggers
    found, unusable = loggers.build(entries) if entries else ({}, [])
    return events.extended(loggers.MetricsCsv(), loggers=found), unusable


def _read_data(
    loaded: Loaded,
    events: Events,
    *,
    problems: list[Problem],
    point: Checkpoint | None,
    world: World,
    context: Context | None,
    purpose: Purpose,
) -> Context:
    """Build the context, or complete the one that was built before; its problems are told with those found before.

    Raises:
        RecipeError: The data cannot be read as the recipe says.
        UserError: As for `build_context`, where there were no `problems`.
    """
    recipe = loaded.recipe
    if image_problems(recipe) or model_problems(recipe):
        raise RecipeError([*problems, *problems_between(recipe, columns=None)])
    known = {} if point is None else {"recorded": point.content["input"], "begun": point.content["environment"]}
    try:
        if context is None:
            packing: Packing = "write" if purpose == "train" else "plan"
            context = build_context(recipe, events, world=world, packing=packing, **known)
            context.require_same_data()
        return replace(context, events=events)
    except (UserError, RecipeError) as error:
        found_too = loaded.problems_of(error)
        if problems or found_too:
            raise RecipeError([*problems, *found_too]) from error
        raise


def _build_model(context: Context, *, initialize: bool) -> nn.Module:
    """Build the network, and refuse what can be neither trained, evaluated, averaged nor saved.

    A network that has `initialize_from`, as speednet has, is initialized from training images where asked.
    """
    model = context.build_model()
    if problem := _problem_of_layers(model, context):
        raise RecipeError([problem])
    read(model)  # refuses a state dict that can be neither averaged nor saved
    preflight.check_evaluation(Replica(context, model))
    if initialize and (initialize_from := getattr(model, "initialize_from", None)) is not None:
        initialize_from(context.initial_inputs())
    if (settings := context.recipe.train.compile) is not None:
        step.require_compiler(settings, device=context.hardware.device)
    optimizers.require_trained(model)
    return model


def _shard(replica: Replica) -> tuple[nn.Module, Sharding]:
    """Shard the network over the processes."""
    recipe, context = replica.context.recipe, replica.context
    if replica.borrows:
        message = f"{recipe.model.name} makes another network each time: its parts cannot be put together"
        raise RecipeError([Problem("train.fsdp", message, "write train.fsdp=false")])
    sync_batchnorm = recipe.train.sync_batchnorm
    return fsdp.shard(
        replica.trained, world=context.world, device=context.hardware.device, sync_batchnorm=sync_batchnorm
    )


def running_statistics(model: nn.Module) -> tuple[Tensor, ...]:
    """Return the statistics that training moves."""
    return tuple(statistics for layer in bn_layers(model) for statistics in statistics_of(layer))


def unfreeze_if_due(run: Run) -> bool:
    """Let all parameters train from the epoch on that the plan says; return whether that is now."""
    if run.plan.unfreeze is None or not run.replica.frozen or run.epoch < run.plan.unfreeze:
        return False
    end_freezing(run)
    return True


def end_freezing(run: Run) -> None:
    """Let the parameters train that were frozen up to an epoch, and recompute their statistics for every average."""
    if not run.replica.frozen:
        return
    unfreeze(run.model, run.replica.frozen)
    optimizers.begin_momentum(run.optimizer)
    run.model.train()
    run.replica.frozen, run.running = frozenset(), running_statistics(run.model)
    run.refreshed.clear()
    run.validated.clear()


def problems_with_data(recipe: Recipe, context: Context) -> list[Problem]:
    """Return the problems of a recipe that show without its network, on the data and device of another one's run."""
    problems = problems_of_names(recipe)
    if recipe.train.init is not None:
        problems += read_initial(recipe.train.init)[1]
    _, found = _planned(recipe, replace(context, recipe=recipe))
    return problems + found


def problems_of_names(recipe: Recipe) -> list[Problem]:
    """Return the problems of optimizer, network and compiler, which need no data."""
    problems = optimizers.check(recipe.optimizer)
    problems += build_model.problems(recipe.model.name, recipe.model.args)
    if recipe.train.compile is not None:
        problems += step.compile_problems(recipe.train.compile)
    return problems


def _make_plan(recipe: Recipe, context: Context, problems: list[Problem]) -> Plan:
    """Make the plan for the data that were found.

    Raises:
        RecipeError: There were `problems` before, or the plan shows some: all of them at once.
    """
    plan, found = _planned(recipe, context)
    if problems or found or plan is None:
        raise RecipeError([*problems, *found])
    return plan


def _planned(recipe: Recipe, context: Context) -> tuple[Plan | None, list[Problem]]:
    """Return the plan for the data that were found, if it can be made, and the problems that show with them."""
    plan, problems = None, list[Problem]()
    try:
        columns = context.task.metrics.columns(list(recipe.all_averages))
        plan = make_plan(recipe, num_train=len(context.split("train")), columns=columns)
    except RecipeError as error:
        problems += error.problems
    problems += _problems_of_processes(context)
    counts_classes = recipe.train.class_weights != "none" or recipe.dataset.sampler == "balanced"
    of_classes = class_balance.problems(recipe, context.source) if counts_classes else []
    problems += of_classes or _problems_of_loss(context)
    if recipe.train.fsdp:
        problems += fsdp.problems(recipe, world=context.world)
    for key, column in watched_columns(recipe).items():
        if "val" in column and context.source.val is None:
            message = f"there is no validation split to measure {column} on"
            other = "leave it out" if key.startswith("averages.") else "name train_loss"
            problems.append(Problem(key, message, f"set dataset.val to 10%, or {other}"))
    return plan, problems


def _problems_of_loss(context: Context) -> list[Problem]:
    """Return the problem of a user's loss that cannot be imported or called."""
    name = context.recipe.train.loss
    if name is None or ":" not in name:
        return []
    try:
        _ = context.loss
    except UserError as error:
        return [Problem("train.loss", error.message.removeprefix("train.loss: "), error.hint)]
    return []


def _problems_of_processes(context: Context) -> list[Problem]:
    """Return the settings that this number of processes, or this device, cannot use."""
    settings, device, size = context.recipe.train, context.hardware.device, context.world.size
    problems = []
    if settings.batch_size < size:
        message = f"{settings.batch_size} samples leave some of {size} processes without one"
        problems.append(Problem("train.batch_size", message, f"write at least {size}, or start fewer processes"))
    if settings.sync_batchnorm and device.type != "cuda":
        message = f"torch has it for GPUs only, and this run is on {device}"
        problems.append(Problem("train.sync_batchnorm", message, "write false, or train.device=cuda"))
    return problems


def _warnings_of_workers(context: Context) -> list[str]:
    """Return a warning if there are more loader processes than cores."""
    workers, cores = context.recipe.dataset.workers * context.world.local_size, num_cores()
    splits = (context.source.train, context.source.val, context.source.test)
    if workers <= cores or not any(split is not None and split.dataset is not None for split in splits):
        return []
    best = max(cores // context.world.local_size, 1)
    message = f"dataset.workers: {workers} loader processes for {count_text(cores, 'core')}"
    return [f"{message}: more than one per core read no faster, so write dataset.workers={best}"]


def _warnings_of_inner_average(context: Context, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return warnings about what hardly goes with an optimizer that averages inside: a decay, and further averages."""
    recipe, found = context.recipe, list[str]()
    if not optimizers.averages_inside(optimizer):
        return found
    if recipe.schedule.name != "constant":
        message = f"schedule.name: {recipe.schedule.name} changes the rate, and the optimizer averages inside"
        found.append(f"{message}, which takes the place of a decay: write `schedule: {{name: constant}}`")
    if recipe.all_averages:
        names = ", ".join(recipe.all_averages)
        found.append(f"{names}: the optimizer averages inside, and an average of its averages lags behind them")
    return found


def _require_closure_possible(optimizer: torch.optim.Optimizer, context: Context) -> None:
    """Refuse what cannot be combined with an optimizer that passes each batch several times.

    Raises:
        RecipeError: The precision scales gradients, or the network is sharded.
    """
    if not optimizers.needs_closure(optimizer):
        return
    name, reason = context.recipe.optimizer.name, "passes each batch several times within a step"
    if context.hardware.precision == "fp16":
        message = f"fp16 scales the gradients of one pass, and {name} {reason}"
        raise RecipeError([Problem("train.precision", message, "write train.precision=bf16 or fp32")])
    if context.recipe.train.fsdp:
        message = f"{name} {reason}, which was never tried with sharded weights"
        raise RecipeError([Problem("train.fsdp", message, "write train.fsdp=false")])


def _problem_of_layers(model: nn.Module, context: Context) -> Problem | None:
    """Return the problem of a tensor that no checkpoint holds, or of a layer that several processes cannot train."""
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor) and value.layout != torch.strided:
            message = f"{name} is a sparse tensor ({value.layout}), which a checkpoint does not hold"
            hint = "register it with persistent=False where forward can make it anew, or keep it dense"
            return Problem("model.name", message, hint)
    if context.world.size == 1:
        return None
    for name, layer in model.named_modules():
        if isinstance(layer, nn.SyncBatchNorm):
            message = f"{name} is a SyncBatchNorm, which would exchange in passes that processes do not make together"
            hint = "let the network have BatchNorm, and on GPUs write train.sync_batchnorm=true, or start one process"
            return Problem("model.name", message, hint)
        is_own = isinstance(layer, _BatchNorm) and type(layer).forward is not _BatchNorm.forward
        if is_own and context.recipe.train.sync_batchnorm:  # torch would replace it with a layer that does less
            message = f"{name} is a {type(layer).__name__}, which does more than BatchNorm"
            return Problem("train.sync_batchnorm", message, "write train.sync_batchnorm=false")
    return None
