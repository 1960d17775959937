"""Try one step and one BatchNorm pass before a run makes its folder, and explain what cannot work.

A second network does them, with batches of the smallest size that the run will have. This finds heads that exist in
training only, gradients that the optimizer cannot use, and layers whose statistics cannot be recomputed. The trained
network itself is evaluated, and left as it was: what its first `forward` sets up is set up by the first batch of a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from swa_cli.averaging.batchnorm import BatchNormUpdate, update_batchnorm
from swa_cli.averaging.bn_layers import tensors_of
from swa_cli.averaging.model_state import unchanged
from swa_cli.checkpoint import loading
from swa_cli.data import pytree
from swa_cli.data.randomness import preserve_global_rng
from swa_cli.engine import optimizers
from swa_cli.engine.context import Context
from swa_cli.engine.failures import is_out_of_memory
from swa_cli.engine.network import Replica, evaluation_mode
from swa_cli.errors import Problem, RecipeError, UserError
from swa_cli.metrics.tasks import Subject
from swa_cli.recipe.plan import Plan
from swa_cli.units import some_of
from swa_cli.user_frames import user_frames

ONE_VALUE = "Expected more than 1 value per channel"  # what torch says of BatchNorm in training
PROBE_SAMPLES = 2
LARGE = 299  # pixels: the largest input that networks of torchvision were published for
SLOW_S = 5.0  # to build a network
FAULTS = (RuntimeError, ValueError, TypeError, AssertionError, IndexError, KeyError, AttributeError)


@dataclass(frozen=True)
class Preflight:
    """The result of `check`."""

    update: BatchNormUpdate
    warnings: tuple[str, ...]
    is_sparse: bool  # whether any gradient is
    samples: tuple[Any, ...]  # inputs of a few samples in each size that trains


def check(replica: Replica, plan: Plan) -> Preflight:
    """Try what the run will do; decide whether `replica` has to borrow the trained network.

    Raises:
        UserError: A step, or the BatchNorm pass, cannot be done.
    """
    context, warnings, is_sparse = replica.context, list[str](), False
    with preserve_global_rng(), context.events.progress("trying a step", 3) as bar:
        epochs = plan.epochs + (plan.worker.epochs if plan.worker else 0)
        sizes = context.epochs_by_size(epochs=epochs)
        batches = [context.training_batches(first).first() for first, _ in sizes]
        batch = batches[-1]
        is_equal = is_made_anew(replica, batch)
        bar.advance()
        if replica.made_in_s > SLOW_S:
            warnings.append(
                f"model.name: making {context.recipe.model.name} takes {replica.made_in_s:.1f} s, and a run makes one"
                " each time that it evaluates an average"
                + (": swa.eval_every says how often" if context.recipe.swap is None else "")
            )
        if not is_equal:
            replica.borrows = True
            warnings.append(
                f"model.name: {context.recipe.model.name} makes another network each time, beyond what its state dict"
                " holds: averages are scored in the trained one, and a file will not score the same in another process"
            )
        if not context.recipe.train.fsdp:  # a sharded process may not have the memory for it
            common, *workers = [phase.phase.batch_size for phase in (plan, plan.worker) if phase is not None]
            part = max(common // context.world.size, 1)
            few, key = slice(part), "train.batch_size"
            if workers and workers[0] < part:  # each worker of a SWAP run is one process
                few, key = slice(workers[0]), "swap.batch_size"
            with context.memory():
                for inputs, targets in batches:
                    small = pytree.slice_batch(inputs, few), pytree.slice_batch(targets, few)
                    is_sparse |= _step(replica, *small, key=key)
        bar.advance()
        update = check_refresh(replica, batch, num_train=plan.num_train)
        bar.advance()
    samples = tuple(pytree.slice_batch(inputs, slice(PROBE_SAMPLES)) for inputs, _ in batches)
    return Preflight(update, (*warnings, *warnings_of(update)), is_sparse, samples)


def check_evaluation(replica: Replica) -> None:
    """Pass two samples through the network in evaluation mode, and leave it as it was.

    Raises:
        UserError: The network cannot take the inputs, or gives what the task cannot use.
    """
    context = replica.context
    source, name = context.source, context.recipe.model.name
    inputs, targets = context.probe()
    try:
        with preserve_global_rng(), unchanged(replica.trained):
            outputs = _evaluated(replica.trained, context, inputs)
    except FAULTS as error:
        if _tells_itself(error):
            raise
        raise UserError(
            f"model.name: {name} cannot take {source.describe_inputs()}: {_reason(error)}",
            hint="choose a network for this size, or show it images of another one: dataset.image_size=224",
        ) from error
    context.task.check(outputs, targets, subject=_subject(context))


def is_made_anew(replica: Replica, batch: tuple[Any, Any]) -> bool:
    """Return whether a second network with the same state dict gives the same outputs, bit for bit.

    Outputs that differ from one pass to the next tell nothing, and count as equal.
    """
    context, inputs = replica.context, pytree.map_tensors(batch[0], lambda values: values[:PROBE_SAMPLES])
    trained = replica.trained
    with unchanged(trained):
        _evaluated(trained, context, context.probe()[0])  # sets up what a first pass does, from other samples
        try:
            with replica.refreshing() as other:
                found = _evaluated(other, context, inputs)
        except (UserError, *loading.REFUSALS):
            return False  # the constructor has made other shapes
        expected = _evaluated(trained, context, inputs)
        return _equal(expected, found) or not _equal(expected, _evaluated(trained, context, inputs))


def check_refresh(replica: Replica, batch: tuple[Any, Any], *, num_train: int) -> BatchNormUpdate:
    """Try the BatchNorm pass with every batch size that it will have, by repeating the samples of `batch`.

    Raises:
        UserError: A layer cannot take a batch of the pass.
    """
    context = replica.context
    settings, size = context.recipe.average_scoring.batchnorm, context.recipe.train.batch_size
    total = settings.num_samples(num_train)
    last = total % size
    sizes = [size] * (total >= size) + [last] * (last > 0)
    if settings.method == "exact":  # many passes; a layer then sees any samples one by one
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
                section = "swap" if context.recipe.swap else "swa"
                hint += f", or leave the last samples out of the pass: {section}.batchnorm.samples={whole}"
            text = f"{where}: cannot be refreshed in batches of {' and '.join(map(str, sizes))}: {_reason(error)}"
            raise UserError(f"model.name: {text}", hint=hint) from error


def with_defined_gradients(replica: Replica, samples: Sequence[Any]) -> Context:
    """Return the context in a precision in which all gradients of the network are defined.

    Args:
        replica: Of the network.
        samples: Inputs in each size that trains.

    Raises:
        UserError: The recipe insists on bf16, in which one is not.
    """
    context, hardware = replica.context, replica.context.hardware
    if hardware.device.type != "cpu" or hardware.precision != "bf16":
        return context
    with replica.refreshing() as network:
        network.eval()
        names = [_undefined_in_bf16(network, *context.task.batch_to_args(inputs)) for inputs in samples]
    name = next(filter(None, names), None)
    if name is None:
        return context
    reason = f"torch has no bf16 gradient of {name} for images so small"
    if context.recipe.train.precision == "bf16":
        raise UserError(f"train.precision: {reason}", hint="write train.precision=fp32, or use larger images")
    return replace(context, hardware=replace(hardware, precision="fp32", reason=reason))


def _undefined_in_bf16(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Return the first convolution whose bf16 weight gradient torch leaves undefined on a CPU, or None.

    Where images are narrower than the stride, and the kernel is wider than a pixel, torch 2.14 reads memory that was
    never written: the same step gives another gradient each time, or NaN.
    """
    found: list[str] = []

    def look(name: str, layer: nn.Conv2d, inputs: Tensor) -> None:
        if inputs.shape[-1] < layer.stride[-1] and layer.kernel_size[-1] > 1:
            found.append(name)

    with ExitStack() as hooks, torch.inference_mode():
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Conv2d):
                hook = layer.register_forward_pre_hook(lambda layer, args, name=name: look(name, layer, args[0]))
                hooks.callback(hook.remove)
        model(*args, **kwargs)
    return found[0] if found else None


def _step(replica: Replica, inputs: Any, targets: Any, *, key: str) -> bool:
    """Try one step: forward, loss, backward, clipping, optimizer. Return whether gradients are sparse.

    `key` of the recipe decides how many samples it has.
    """
    context, recipe = replica.context, replica.context.recipe
    args, kwargs = context.task.batch_to_args(inputs)
    with replica.refreshing() as network:
        network.train()

        def passed() -> Tensor:
            context.hardware.seed(context.seed, "preflight")
            network.zero_grad(set_to_none=True)
            with context.hardware.autocast():
                outputs = network(*args, **kwargs)
            context.task.check_training(outputs, subject=_subject(context))
            with _explain_loss(context):
                loss = context.loss(outputs, targets)
            loss.backward()
            return loss.detach()

        def clip() -> None:
            if recipe.train.clip_norm > 0:
                nn.utils.clip_grad_norm_(network.parameters(), recipe.train.clip_norm)

        def closure() -> Tensor:
            with torch.enable_grad():
                loss = passed()
            clip()
            return loss

        with _explain_step(network, context, num_samples=pytree.batch_size(inputs), key=key):
            passed()
        sparse = [key for key, value in network.named_parameters() if value.grad is not None and value.grad.is_sparse]
        optimizer = optimizers.build(network, recipe.optimizer, is_sparse=bool(sparse))
        try:
            clip()
            optimizer.step(*([closure] if optimizers.needs_closure(optimizer) else []))  # type: ignore[arg-type]
        except FAULTS as error:
            if "closure" in str(error) and not optimizers.needs_closure(optimizer):
                message = f"{recipe.optimizer.name}.step() cannot be called without a closure: {_reason(error)}"
                hint = "let it have the attribute needs_closure = True: then it is called as step(closure)"
                raise RecipeError([Problem("optimizer.name", message, hint)]) from error
            if _tells_itself(error):
                raise
            if not sparse:
                names = [recipe.optimizer.name, *(group.name for group in recipe.optimizer.groups if group.name)]
                message = f"{' and '.join(names)} cannot do a step with these options: {_reason(error)}"
                raise RecipeError([Problem("optimizer", message, "correct the options")]) from error
            message = f"{recipe.optimizer.name} cannot use the sparse gradient of {sparse[0]}: {_reason(error)}"
            hint = "write sparse=False in that layer, or choose SGD with momentum=0, nesterov=false and weight_decay=0"
            raise RecipeError([Problem("optimizer.name", message, hint)]) from error
        finally:
            network.zero_grad(set_to_none=True)
    return bool(sparse)


@contextmanager
def _explain_loss(context: Context) -> Iterator[None]:
    """Explain why a loss of the user cannot take a batch; its warnings are left to the first step of the run."""
    try:
        with catch_warnings():
            simplefilter("ignore")
            yield
    except FAULTS as error:
        name = context.recipe.train.loss or ""
        if ":" not in name or _tells_itself(error):
            raise
        hint = "name a function (outputs, targets) that returns the mean over a batch"
        message = f"{name} cannot take the outputs of the network and the targets of a batch: {_reason(error)}"
        raise RecipeError([Problem("train.loss", message, hint)]) from error


@contextmanager
def _explain_step(network: nn.Module, context: Context, *, num_samples: int, key: str) -> Iterator[None]:
    """Explain why the network cannot be trained if a step fails."""
    name, processes = context.recipe.model.name, context.world.size
    with _executing(network) as layers:
        try:
            yield
        except FAULTS as error:
            if ONE_VALUE in str(error):
                part, least = "a batch", 2
                if key == "swap.batch_size":
                    part = "a batch of a SWAP worker"
                elif processes > 1:
                    part, least = f"the part of a batch that one of {processes} processes has", 2 * processes
                where = layers[-1] if layers else "a layer"
                message = f"BatchNorm cannot train on {num_samples} sample in {part}: {where} has one value per channel"
                raise RecipeError([Problem(key, message, f"write {key}={least} or more")]) from error
            if _tells_itself(error):
                raise
            hint = "choose another network, or other model.args"
            size = context.source.size if context.source.channels is not None else ()
            if any(pixels < LARGE for pixels in size):  # as an auxiliary head needs them, which only trains
                hint = f"choose another network, other model.args, or larger images: dataset.image_size={LARGE}"
            if "deterministic" in str(error) and context.hardware.deterministic:
                hint = "set train.deterministic=false: the device has no such form of a layer"
            raise UserError(
                f"model.name: {name} cannot be trained on {context.source.describe_inputs()}: {_reason(error)}",
                hint=hint,
            ) from error


def warnings_of(update: BatchNormUpdate) -> tuple[str, ...]:
    """Return warnings about buffers that a BatchNorm pass cannot recompute."""
    if not update.unmeasured:
        return ()
    names = some_of(update.unmeasured)
    return (
        f"{names}: training moves these buffers, evaluation reads them, and swa cannot recompute them: an average has"
        " those of the raw weights (batchnorm: partial)",
    )


def _evaluated(network: nn.Module, context: Context, inputs: Any) -> Any:
    """Return the outputs in evaluation mode, and restore all modes. No inference mode: a network may keep tensors."""
    args, kwargs = context.task.batch_to_args(inputs)
    with evaluation_mode(network), torch.no_grad(), context.hardware.autocast():
        return network(*args, **kwargs)


@contextmanager
def _executing(network: nn.Module) -> Iterator[list[str]]:
    """Yield name and class of the layers in execution, the innermost last; an error leaves those it passed."""
    names = {id(module): f"{name} ({type(module).__name__})" for name, module in network.named_modules() if name}
    stack: list[str] = []

    def enter(module: nn.Module, _: Any) -> None:
        if id(module) in names:
            stack.append(names[id(module)])

    def leave(module: nn.Module, _: Any, __: Any) -> None:
        if id(module) in names and stack:
            stack.pop()

    with ExitStack() as hooks:
        hooks.callback(register_module_forward_pre_hook(enter).remove)
        hooks.callback(register_module_forward_hook(leave).remove)
        yield stack


def _repeated(batch: tuple[Any, Any], number: int) -> tuple[Any, Any]:
    (device,) = {values.device for values in pytree.named_tensors(batch[0]).values()}
    rows = torch.arange(number, device=device) % pytree.batch_size(batch[0])
    inputs, targets = (pytree.select_rows(part, rows) for part in batch)
    return inputs, targets


def _equal(one: Any, other: Any) -> bool:
    """Return whether all tensors are equal; NaN equals NaN."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
    pairs = zip(tensors_of(one), tensors_of(other), strict=False)
    return all(_equal(first, second) for first, second in pairs)


def _subject(context: Context) -> Subject:
    return Subject(context.recipe.model.name, context.source.num_classes or None, context.source.size)


def _tells_itself(error: BaseException) -> bool:
    """Return whether an error is told as it is: its author needs the frames, and a lack of memory has other reasons."""
    return bool(user_frames(error)) or is_out_of_memory(error)


def _reason(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
