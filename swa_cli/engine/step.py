"""One optimizer step: forward, backward, update; in one or several processes, compiled or not.

Each process computes its part of a batch, and weights its loss so that the mean of the gradients over the processes is
the gradient of the mean loss of the whole batch. In one process the part is the batch, with weight 1. A mean whose
weight depends on the targets (class weights, counted pixels) is one over all batches of a step, not a mean of means:
each batch counts by its weight relative to the first one, and the gradients are scaled once all weights are known.

`train.compile` names inductor, another backend of torch.compile, or a user's function. Its name, its import and the C++
compiler that inductor needs on a CPU are checked before the run folder is made. Without `train.compile`, nothing here
imports torch's compiler, which takes more than a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from swa_cli.averaging.bn_layers import num_samples
from swa_cli.averaging.model_state import plain_model, unchanged
from swa_cli.checkpoint import loading
from swa_cli.engine.context import Context
from swa_cli.engine.optimizers import set_learning_rate
from swa_cli.errors import Problem, UserError, did_you_mean
from swa_cli.import_path import import_callable
from swa_cli.recipe.schema import Compile

if TYPE_CHECKING:
    from swa_cli.engine.run import Run  # which imports this module

FORMS = "train.compile is true, false, a backend of torch.compile, or package.module:attribute"
INDUCTOR = "inductor"
WAY_OUT = "write train.compile=false"
TINY = torch.finfo(torch.float32).tiny  # for the share of a batch without weight

Backend = Callable[..., Any]  # a graph and example inputs -> a function that does what the graph does
Forward = Callable[..., Any]  # of the network: arguments as the task makes them of a batch -> outputs


@dataclass(frozen=True)
class StepResult:
    """The loss and score of a batch in this process, detached."""

    loss: Tensor
    part: Tensor  # (2,) its sum over the processes is the loss and score of the whole batch


def wrap_ddp(run: Run) -> nn.Module:
    """Return the network with gradients that are averaged over the processes."""
    if run.sharding.is_used:
        return run.model  # FSDP2 has its hooks in the layers
    sync_batchnorm = run.context.recipe.train.sync_batchnorm
    return run.context.world.synchronised(run.model, sync_batchnorm=sync_batchnorm, make=run.replica.make)


def build_forward(run: Run) -> Forward:
    """Return the network as a run trains it; report the compile time, which the first epoch's time includes.

    Raises:
        UserError: The backend cannot compile the network.
    """
    network, settings = wrap_ddp(run), run.context.recipe.train.compile
    if settings is None:
        return network
    started = time.monotonic()
    forward = _compiled(network, settings)
    with _explain_compile_failures(settings), unchanged(plain_model(network)):
        _warm_up(run, forward)
    run.context.events.note(f"torch.compile took {time.monotonic() - started:.0f} s")
    return forward


def train_step(run: Run, forward: Forward, batches: Iterator[tuple[Any, Any]]) -> Iterator[StepResult]:
    """Do the optimizer update that follows `run.step`, and yield the result of each of its `grad_accum_steps` batches.

    The network is in training mode. The weights change after the last batch, when the iterator runs to its end.
    """
    context, last = run.context, run.plan.phase.grad_accum_steps - 1
    weights: list[Tensor] = []
    again: list[tuple[Any, Any]] | None = [] if run.needs_closure else None
    for index in range(last + 1):
        batch = next(batches)
        if index == 0:  # only now: reading a batch may draw random numbers, which must not change those of the step
            _begin_graphs(context)
            context.hardware.seed(context.seed, "step", run.step, *context.world.words)
            set_learning_rate(run.optimizer, run.plan.learning_rate(run.step))
            run.optimizer.zero_grad(set_to_none=True)
        if again is not None:
            again.append(batch)
        yield forward_backward(run, forward, batch, is_last=index == last, weights=weights)
    _finish_gradients(run, weights)
    if again is None:
        run.scaler.step(run.optimizer)
    else:
        _step_with_closure(run, forward, again)
    run.scaler.update()
    context.world.average(run.running)
    if run.statistics.moved:
        buffers = dict(run.model.named_buffers())  # anew at each step: they may be other tensors
        context.world.average([buffers[name] for name in run.statistics.moved])


def _begin_graphs(context: Context) -> None:
    """Tell CUDA graphs that a step begins: what those of the step before returned may be written over."""
    if _uses_graphs(context):
        torch.compiler.cudagraph_mark_step_begin()


def _uses_graphs(context: Context) -> bool:
    settings = context.recipe.train.compile
    return settings is not None and settings.mode != "default" and context.hardware.device.type == "cuda"


def _finish_gradients(run: Run, weights: Sequence[Tensor]) -> None:
    """Divide gradients by the weight of their batches, and clip them."""
    if len(weights) > 1:
        _divide_by_weight(run, weights)
    clip_norm = run.context.recipe.train.clip_norm
    if clip_norm > 0:
        run.scaler.unscale_(run.optimizer)
        nn.utils.clip_grad_norm_(run.model.parameters(), clip_norm)


def _step_with_closure(run: Run, forward: Forward, batches: Sequence[tuple[Any, Any]]) -> None:
    """Let the optimizer pass the batches of a step again as often as it likes, each time with the same dropout.

    The gradients of the first pass are there, as SAM expects (Foret et al. 2021); an optimizer that begins with its
    closure computes them once more. Buffers, such as running statistics, stay those of the first pass: others belong to
    weights at which the optimizer only looks.
    """
    context = run.context

    def closure() -> Tensor:
        weights: list[Tensor] = []
        context.hardware.seed(context.seed, "step", run.step, *context.world.words)
        run.optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            passed = [
                forward_backward(run, forward, batch, is_last=batch is batches[-1], weights=weights)
                for batch in batches
            ]
        _finish_gradients(run, weights)
        losses = torch.stack([each.part[0] for each in passed])  # (S,)
        shares = torch.stack(weights).to(losses.device) if weights else torch.ones_like(losses)
        loss = (losses * shares).sum() / _or_one(shares.sum())
        return loss if context.world.size == 1 else loss.new_tensor(context.world.total(float(loss)))

    first = {name: buffer.clone() for name, buffer in run.model.named_buffers()}
    run.optimizer.step(closure)  # type: ignore[arg-type]
    loading.load_buffers(run.model, first)


def forward_backward(
    run: Run,
    forward: Forward,
    batch: tuple[Any, Any],
    *,
    is_last: bool = True,
    weights: list[Tensor] | None = None,
) -> StepResult:
    """Pass this process's part of a batch through the network, and add its gradients to those that are there.

    The last batch of a step exchanges the gradients of the processes. `weights` are those of the batches of the step
    before this one, to which its own is added, if the loss has any.
    """
    context, size = run.context, run.context.world.size
    task, (inputs, targets) = context.task, batch
    args, kwargs = task.batch_to_args(inputs)
    share = score_share = _share(context, inputs, targets)
    relative: float | Tensor = 1.0  # weight of the batch in multiples of that of the first one
    weight = context.loss.weight(targets)
    if weight is not None:
        whole = weight.detach() if size == 1 else torch.tensor(context.world.total(float(weight)))
        share = 1.0 if size == 1 else float(weight) / max(float(whole), TINY)
        weights = [] if weights is None else weights
        weights.append(whole)
        relative = 1.0 if len(weights) == 1 else whole / _or_one(weights[0])
    # Sharded gradients are exchanged for each batch: whole gradients would need the memory of a whole network.
    with context.world.backward_of(forward, is_last=is_last or run.sharding.is_used):
        with context.hardware.autocast():
            outputs = forward(*args, **kwargs)
        loss = context.loss(outputs, targets)
        with _buffers_kept(run.model) if context.recipe.train.grad_checkpointing else nullcontext():
            run.scaler.scale(loss * (share * size) * relative / context.phase.grad_accum_steps).backward()
    if not is_last and _uses_graphs(context) and size == 1:
        # The first gradients lie where the graph of the next batch writes; with several processes in DDP's buckets.
        for parameter in run.model.parameters():
            parameter.grad = None if parameter.grad is None else parameter.grad.clone()
    part = torch.stack([loss.detach() * share, task.train_score(outputs, targets).detach() * score_share])
    return StepResult(loss.detach(), part)


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Give buffers their values back after a backward pass that computes activations again, in training mode.

    Without it BatchNorm would count each batch twice.
    """
    kept = {name: value.clone() for name, value in model.named_buffers()}
    yield
    loading.load_buffers(model, kept)


def _share(context: Context, inputs: Any, targets: Any) -> float:
    """Return this process's fraction of all that the score of the whole batch is the mean of."""
    if context.world.size == 1:
        return 1.0
    if context.task.weight is None:
        return num_samples(inputs) / context.phase.batch_size
    weight = context.task.weight(targets)
    return weight / max(context.world.total(weight), 1)


def _divide_by_weight(run: Run, weights: Sequence[Tensor]) -> None:
    """Scale the gradients of a step, whose batches were counted relative to the first one, to those of its mean loss.

    `weights` (S,) are those of all batches of the step; without any, the gradients are 0 anyway.
    """
    total = torch.stack(list(weights)).sum()
    factor = len(weights) * _or_one(weights[0]) / _or_one(total)
    gradients = [parameter.grad for parameter in run.model.parameters() if parameter.grad is not None]
    torch._foreach_mul_(gradients, factor if run.context.world.size == 1 else float(factor))


def _or_one(weight: Tensor) -> Tensor:
    return weight.where(weight > 0, 1)


def _warm_up(run: Run, forward: Forward) -> None:
    """Compile the forward and backward pass for a batch of this run."""
    context = run.context
    run.model.train()
    with context.events.progress("compiling", total=1), context.memory():
        forward_backward(run, forward, context.training_batches(run.epoch).first())
    run.model.zero_grad(set_to_none=True)


# torch.compile.


@dataclass(frozen=True)
class UserBackend:
    """A user's backend; equal ones share what is compiled, as torch compares backends by value."""

    name: str
    backend: Backend

    def __call__(self, graph_module: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        """Compile a graph.

        Raises:
            UserError: The backend returned something else than a function.
        """
        function = self.backend(graph_module, example_inputs)
        if not callable(function):
            raise UserError(
                f"train.compile: {self.name} returned {type(function).__name__}",
                hint="return a function that takes the inputs of the graph, such as graph_module.forward",
            )
        return function


def compile_problems(settings: Compile) -> list[Problem]:
    """Return the problem of a backend that torch does not know."""
    if _is_own(settings.backend):
        return []
    from torch._dynamo import list_backends

    known = list_backends(exclude_tags=None)
    if settings.backend in known:
        return []
    hint = did_you_mean(settings.backend, known) + f"choose from {', '.join(list_backends())}; {FORMS}"
    return [Problem("train.compile", f"torch.compile has no backend {settings.backend!r}", hint)]


def require_compiler(settings: Compile, *, device: torch.device) -> None:
    """Refuse a backend that cannot be imported, and inductor on a CPU without a C++ compiler.

    Raises:
        UserError: It cannot run here. Errors inside a user's own module pass through.
    """
    if _is_own(settings.backend):
        _import_backend(settings.backend)
    elif settings.backend == INDUCTOR and device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except RuntimeError as error:
            raise UserError(
                f"train.compile: inductor needs a C++ compiler on a CPU: {error}",
                hint=f"install g++ or clang++, name one in the environment variable CXX, or {WAY_OUT}",
            ) from error


def _compiled(forward: Forward, settings: Compile) -> Forward:
    """Wrap a network in `torch.compile`; it is compiled when the first batch goes through."""
    if settings.backend == INDUCTOR:
        options: dict[str, Any] = {"mode": settings.mode}
    elif _is_own(settings.backend):
        options = {"backend": UserBackend(settings.backend, _import_backend(settings.backend))}
    else:
        options = {"backend": settings.backend}
    wrapped: Forward = torch.compile(forward, **options)
    return wrapped


@contextmanager
def _explain_compile_failures(settings: Compile) -> Iterator[None]:
    """Name the backend where it cannot compile the network; an error in a user's own backend passes through.

    The network has trained a step without it, so a RuntimeError is of the compiled one: eager gives one for BatchNorm
    whose activations are computed again.

    Raises:
        UserError: It cannot.
    """
    from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException

    try:
        yield
    except (TorchDynamoException, RuntimeError) as error:
        cause = error.inner_exception if isinstance(error, BackendCompilerFailed) else error
        if isinstance(cause, UserError):
            raise cause from error
        if _is_own(settings.backend):
            raise
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise UserError(
            f"train.compile: {settings.backend} cannot compile the network: {reason}",
            hint=f"{WAY_OUT}, or another backend",
        ) from error


def _is_own(backend: str) -> bool:
    return ":" in backend


def _import_backend(name: str) -> Backend:
    return import_callable(
        name,
        lambda signature: signature.bind(None, None),
        key="train.compile",
        what="a backend",
        forms=FORMS,
        expected="let it be backend(graph_module, example_inputs), which returns a function",
    )
