"""Try one step and one BatchNorm pass before a run makes its folder, and explain what cannot work.

A second network does them, with batches of the smallest size that the run will have. Heads that exist in training only,
gradients that the optimizer cannot use, and layers whose statistics cannot be recomputed are found before the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from swa_cli.averaging.batchnorm import BatchNormUpdate, update_batchnorm
from swa_cli.averaging.bn_layers import tensors_of
from swa_cli.checkpoint import loading
from swa_cli.data import pytree
from swa_cli.data.randomness import preserve_global_rng
from swa_cli.engine import optimizers
from swa_cli.engine.context import Context
from swa_cli.engine.failures import is_out_of_memory
from swa_cli.engine.hardware import undefined_in_bf16
from swa_cli.engine.network import Replica
from swa_cli.engine.user_code import is_own_code
from swa_cli.errors import Problem, RecipeError, UserError
from swa_cli.metrics.tasks import Subject
from swa_cli.recipe.plan import Plan

ONE_VALUE = "Expected more than 1 value per channel"  # what torch says of BatchNorm in training
PROBE_SAMPLES = 2
SLOW_S = 5.0  # of making a network
FAULTS = (RuntimeError, ValueError, TypeError, AssertionError, IndexError, KeyError, AttributeError)


@dataclass(frozen=True)
class Preflight:
    """What was seen."""

    update: BatchNormUpdate  # of the BatchNorm pass
    warnings: tuple[str, ...]  # what should be known before the run
    is_sparse: bool = False  # whether any gradient is


def check(replica: Replica, plan: Plan) -> Preflight:
    """Try what the run will do; decide whether `replica` has to borrow the trained network.

    Args:
        replica: Of the trained network with its first weights.
        plan: Of the run.

    Raises:
        UserError: A step, or the BatchNorm pass, cannot be done.
    """
    context, warnings, is_sparse = replica.context, list[str](), False
    with preserve_global_rng(), context.events.progress("trying a step", 3) as bar:
        batch = next(iter(context.training_batches(1)))
        is_equal = is_made_anew(replica, batch)
        bar.advance()
        if replica.made_in_s > SLOW_S:
            warnings.append(
                f"model.name: making {context.recipe.model.name} takes {replica.made_in_s:.1f} s, and a run makes one"
                " each time that it evaluates an average: swa.eval_every says how often"
            )
        if not is_equal:
            replica.borrows = True
            warnings.append(
                f"model.name: {context.recipe.model.name} makes another network each time, beyond what its state dict"
                " holds: averages are scored in the trained one, and a file will not score the same in another process"
            )
        if not context.recipe.train.fsdp:  # a process that has only parts may not have the memory for it
            common, *workers = [phase.phase.batch_size for phase in (plan, plan.worker) if phase is not None]
            sizes = [common // context.world.size, *workers]  # each worker of a SWAP run is one process
            few = slice(max(min(sizes), 1))
            with context.memory():
                is_sparse = _step(replica, pytree.slice_batch(batch[0], few), pytree.slice_batch(batch[1], few))
        bar.advance()
        update = check_refresh(replica, batch, num_train=plan.num_train)
        bar.advance()
    return Preflight(update, (*warnings, *warnings_of(update)), is_sparse)


def check_evaluation(replica: Replica) -> None:
    """Pass two samples through the network in evaluation mode.

    Raises:
        UserError: The network cannot take the inputs, or gives what the task cannot use.
    """
    context = replica.context
    source, name = context.source, context.recipe.model.name
    inputs, targets = context.probe()
    try:
        outputs = _evaluated(replica.trained, context, inputs)
    except FAULTS as error:
        if is_own_code(name) or is_out_of_memory(error):
            raise  # its author needs the traceback; memory says nothing of what the network can take
        raise UserError(
            f"model.name: {name} cannot take {source.describe_inputs()}: {_reason(error)}",
            hint="choose a network for this size, or for an image_folder larger images: dataset.args.size=224",
        ) from error
    context.task.check(outputs, targets, subject=_subject(context))


def is_made_anew(replica: Replica, batch: tuple[Any, Any]) -> bool:
    """Return whether a second network with the same state dict gives the same outputs, bit for bit.

    Outputs that differ from one pass to the next tell nothing, and count as equal.
    """
    context, inputs = replica.context, pytree.map_tensors(batch[0], lambda values: values[:PROBE_SAMPLES])
    try:
        with replica.refreshing() as other:
            found = _evaluated(other, context, inputs)
    except (UserError, *loading.REFUSALS):
        return False  # the constructor has made one of other shapes
    expected = _evaluated(replica.trained, context, inputs)
    return _equal(expected, found) or not _equal(expected, _evaluated(replica.trained, context, inputs))


def check_refresh(replica: Replica, batch: tuple[Any, Any], *, num_train: int) -> BatchNormUpdate:
    """Try the BatchNorm pass with every batch size that it will have.

    Args:
        replica: Its second network is changed by it.
        batch: Any number of samples, which are repeated to fill the batches.
        num_train: Samples of the training split.

    Raises:
        UserError: A layer cannot take a batch of the pass.
    """
    context = replica.context
    settings, size = context.recipe.average_scoring.batchnorm, context.recipe.train.batch_size
    total = num_train if settings.samples == "all" else min(int(settings.samples), num_train)
    last = total % size
    sizes = [size] * (total >= size) + [last] * (last > 0)
    if settings.method == "exact":  # whose passes are many; a layer then sees any samples one by one
        sizes = [PROBE_SAMPLES]
    with replica.refreshing() as network, _executing(network) as layers, context.hardware.autocast():
        network.train()
        try:
            return update_batchnorm(
                [_repeated(batch, number) for number in sizes],
                network,
                method=settings.method,
                device=context.hardware.device,
                batch_to_args=context.task.batch_to_args,
            )
        except FAULTS as error:
            if is_out_of_memory(error) or isinstance(error, UserError):
                raise
            where = layers[-1] if layers else context.recipe.model.name
            whole = total - last
            hint = "let the layer take batches of any size"
            if last and whole:
                hint += f", or leave the last samples out of the pass: swa.batchnorm.samples={whole}"
            text = f"{where}: cannot be refreshed in batches of {' and '.join(map(str, sizes))}: {_reason(error)}"
            raise UserError(f"model.name: {text}", hint=hint) from error


def undefined_gradient(replica: Replica) -> str | None:
    """Return the first convolution without a defined gradient in bf16, see `hardware.undefined_in_bf16`."""
    context = replica.context
    args, kwargs = context.task.batch_to_args(context.probe()[0])
    with replica.refreshing() as network:
        return undefined_in_bf16(network.eval(), args, kwargs)


def _step(replica: Replica, inputs: Any, targets: Any) -> bool:
    """Try one step: forward, loss, backward, clipping, optimizer. Return whether gradients are sparse."""
    context, recipe = replica.context, replica.context.recipe
    args, kwargs = context.task.batch_to_args(inputs)
    with replica.refreshing() as network:
        network.train()
        context.hardware.seed(context.seed, "preflight")
        with _told(network, context, num_samples=pytree.batch_size(inputs)):
            with context.hardware.autocast():
                outputs = network(*args, **kwargs)
            context.task.check_training(outputs, subject=_subject(context))
            context.task.loss(outputs, targets, label_smoothing=recipe.train.label_smoothing).backward()
        sparse = [key for key, value in network.named_parameters() if value.grad is not None and value.grad.is_sparse]
        optimizer = optimizers.of_recipe(network, recipe.optimizer, is_sparse=bool(sparse))
        try:
            if recipe.train.clip_norm > 0:
                nn.utils.clip_grad_norm_(network.parameters(), recipe.train.clip_norm)
            optimizer.step()
        except FAULTS as error:
            if not sparse:
                raise
            message = f"the sparse gradient of {sparse[0]} is of no use to {recipe.optimizer.name}: {_reason(error)}"
            hint = "write sparse=False in that layer, or choose SGD with momentum=0, nesterov=false and weight_decay=0"
            raise RecipeError([Problem("optimizer.name", message, hint)]) from error
        finally:
            network.zero_grad(set_to_none=True)
    return bool(sparse)


@contextmanager
def _told(network: nn.Module, context: Context, *, num_samples: int) -> Iterator[None]:
    """Explain what cannot be trained, and why, if a step fails."""
    name, processes = context.recipe.model.name, context.world.size
    with _executing(network) as layers:
        try:
            yield
        except FAULTS as error:
            if ONE_VALUE in str(error):
                part = "a batch" if processes == 1 else f"the part of a batch that one of {processes} processes has"
                where = layers[-1] if layers else "a layer"
                message = f"BatchNorm cannot train on {num_samples} sample in {part}: {where} has one value per channel"
                hint = f"write train.batch_size={2 * processes} or more"
                raise RecipeError([Problem("train.batch_size", message, hint)]) from error
            if is_own_code(name) or is_own_code(context.recipe.task) or is_out_of_memory(error):
                raise
            raise UserError(
                f"model.name: {name} cannot be trained on {context.source.describe_inputs()}: {_reason(error)}",
                hint="choose another network, or other model.args",
            ) from error


def warnings_of(update: BatchNormUpdate) -> tuple[str, ...]:
    """Return warnings about buffers that a BatchNorm pass cannot recompute."""
    if not update.unmeasured:
        return ()
    names = ", ".join(update.unmeasured[:3]) + ", ..." * (len(update.unmeasured) > 3)
    return (
        f"{names}: training moves these buffers, evaluation reads them, and swa cannot recompute them: an average has"
        " those of the raw weights (batchnorm: partial)",
    )


def _evaluated(network: nn.Module, context: Context, inputs: Any) -> Any:
    """The outputs in evaluation mode; modes are left as they were. Not inference mode: a network may keep tensors."""
    modes = {module: module.training for module in network.modules()}
    args, kwargs = context.task.batch_to_args(inputs)
    try:
        with torch.no_grad(), context.hardware.autocast():
            return network.eval()(*args, **kwargs)
    finally:
        network.train(modes[network])  # networks that merge weights in eval() part them again
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _executing(network: nn.Module) -> Iterator[list[str]]:
    """Name and class of the layers that are being executed, the innermost last; after an error, those it left."""
    names = {id(module): f"{name} ({type(module).__name__})" for name, module in network.named_modules() if name}
    stack: list[str] = []

    def enter(module: nn.Module, _: Any) -> None:
        if id(module) in names:
            stack.append(names[id(module)])

    def leave(module: nn.Module, _: Any, __: Any) -> None:
        if id(module) in names and stack:
            stack.pop()

    hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        yield stack
    finally:
        for hook in hooks:
            hook.remove()


def _repeated(batch: tuple[Any, Any], number: int) -> tuple[Any, Any]:
    """Return a batch of this many samples, repeated as needed."""
    rows = torch.arange(number) % pytree.batch_size(batch[0])
    inputs, targets = (pytree.select_rows(part, rows) for part in batch)
    return inputs, targets


def _equal(one: Any, other: Any) -> bool:
    """Return whether all tensors have the same bits; NaN equals NaN."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
    pairs = zip(tensors_of(one), tensors_of(other), strict=False)
    return all(_equal(first, second) for first, second in pairs)


def _subject(context: Context) -> Subject:
    return Subject(context.recipe.model.name, context.source.num_classes or None, context.source.size)


def _reason(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
