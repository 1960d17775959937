"""BatchNorm statistics of a model over a dataset, for weights that were never trained as they are (averages).

One idea: each layer's (n, mean, M2) of every batch are merged in float64 by Chan's formula, so every sample
counts the same and the variance between batches is kept. Whatever happens, the model is left as it was, but
for the new statistics of the layers that were measured.

B samples; C channels; n values a channel; M2 sum of squared distances from the mean, both (C,) in float64.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from swa_cli.averaging import inputs
from swa_cli.averaging.inputs import Arguments
from swa_cli.averaging.moments import LayerMoments, Moments, merged, moments_of
from swa_cli.averaging.tensors import plain_model
from swa_cli.errors import UserError

METHODS = ("pooled", "exact")


def alone(value: Any) -> list[Any]:
    """What all processes gave, where there is one."""
    return [value]


@dataclass(frozen=True)
class BatchNormUpdate:
    """What an update was made of: layers with new statistics, samples of one pass, `pooled` or `exact`."""

    num_layers: int
    num_samples: int
    method: str


def update_batchnorm(
    loader: Iterable[Any],
    model: nn.Module,
    *,
    method: str = "pooled",
    device: torch.device | str | None = None,
    batch_to_args: Callable[[Any], Arguments] = inputs.batch_to_args,
    gathered: Callable[[Any], list[Any]] = alone,
) -> BatchNormUpdate:
    """Replace the running statistics of the BatchNorm layers by those of the dataset, stored unbiased.

    Layers in eval mode inside a model in training mode are frozen and left alone; in a model wholly in eval
    mode every layer is measured. Dropout is off. A layer that is never executed keeps its statistics. Modes,
    momentum, `num_batches_tracked` and the global random state stay as they are, on an error all statistics
    too.

    pooled: one pass in which every layer normalises by its batch, as in training. Layers downstream of
        another BatchNorm therefore depend slightly on how the samples are grouped: shuffle them.
    exact: layer by layer, the layers upstream normalising by their new statistics. Equal to one batch of the
        whole dataset, whatever the batches; as many partial passes as there are layers.

    Args:
        loader: Batches (B, ...), or tuples or lists that begin with them, or with a tuple or dict of tensors. A last
            batch under half the size of the one before is joined to it. `exact` reads it once a layer.
        model: Wrappers (DistributedDataParallel, torch.compile) are looked through.
        method: `pooled` or `exact`.
        device: Where batches go; by default where the model's first parameter is.
        batch_to_args: Positional and keyword arguments of the model for a batch; by default a tensor is
            `model(x)`, a tuple `model(*x)` and a dict `model(**x)`.
        gathered: Where several processes share the batches, each with one at least: gives what all of them passed to
            it, in the order of the batches. Moments are merged in that order, `exact` bit for bit as in one process.

    Raises:
        UserError: No samples, one value a channel, values that are not finite, or `exact` asked for with a
            loader that can be read only once or a layer that a forward pass executes more than once.
    """
    if method not in METHODS:
        raise UserError(f"method: {method!r} does not measure BatchNorm", hint=f"one of {', '.join(METHODS)}")
    model = plain_model(model)
    layers = bn_layers(model)
    if not layers:
        return BatchNormUpdate(num_layers=0, num_samples=0, method=method)
    if device is None:
        device = next(chain(model.parameters(), model.buffers())).device
    batches = _Batches(loader, torch.device(device), batch_to_args)
    measure = _measure_pooled if method == "pooled" else _measure_exact
    names = {module: name for name, module in model.named_modules()}
    named_layers = {layer: names[layer] for layer in layers}
    with torch.no_grad():
        with _left_as_it_was(model, layers, device=batches.device):
            found, num_samples = measure(model, named_layers, batches, gathered)
            for layer, moments in found.items():
                _require_usable(moments, name=names[layer])
        for layer, moments in found.items():
            _write(layer, moments, variance=moments.m2 / (moments.n - 1))
    return BatchNormUpdate(num_layers=len(found), num_samples=sum(gathered(num_samples)), method=method)


def has_batchnorm(model: nn.Module) -> bool:
    """Whether any layer tracks BatchNorm statistics, frozen or not."""
    return any(_tracks_statistics(module) for module in model.modules())


def bn_layers(model: nn.Module) -> list[_BatchNorm]:
    """The layers `update_batchnorm` measures: all of a model in eval mode, else those in train mode."""
    layers = [module for module in model.modules() if _tracks_statistics(module)]
    if any(module.training for module in model.modules()):
        layers = [layer for layer in layers if layer.training]
    return layers  # type: ignore[return-value]


@dataclass(frozen=True)
class _Batches:
    """The first tensors of a loader's batches on `device`, a tiny last one joined to the one before."""

    loader: Iterable[Any]
    device: torch.device
    batch_to_args: Callable[[Any], Arguments]

    def __iter__(self) -> Iterator[Any]:
        ready: list[Any] = []  # two are held back: only the end tells which batch is the last
        for batch in self.loader:
            is_pair = isinstance(batch, (tuple, list)) and len(batch) > 0
            samples = batch[0] if is_pair else batch
            if not inputs.tensors_of(samples) or not (is_pair or isinstance(samples, Tensor)):
                raise UserError(
                    f"the loader's batches begin with a {type(samples).__name__}",
                    hint="yield a tensor, or a tuple or list whose first element is one, or a tuple or dict of them",
                )
            if inputs.num_samples(samples):
                ready.append(inputs.mapped(samples, lambda values: values.to(self.device, non_blocking=True)))
            if len(ready) > 2:
                yield ready.pop(0)
        if len(ready) == 2 and 2 * inputs.num_samples(ready[1]) < inputs.num_samples(ready[0]):
            ready = inputs.joined(*ready)
        yield from ready

    def through(self, model: nn.Module, samples: Any) -> int:
        """Give a batch to the model; how many samples it has."""
        args, kwargs = self.batch_to_args(samples)
        model(*args, **kwargs)
        return inputs.num_samples(samples)


class _Reached(BaseException):
    """Ends a forward pass at the layer to be measured; no `except Exception` of a model can swallow it."""


def _measure_pooled(
    model: nn.Module, names: dict[_BatchNorm, str], batches: _Batches, gathered: Callable[[Any], list[Any]]
) -> tuple[dict[_BatchNorm, Moments], int]:
    """One pass with the layers in training mode.

    With momentum 1 their running statistics are those of the batch just seen: nothing is computed twice.
    Below float32 they would be rounded, so the statistics are taken from the input.
    """
    statistics = {layer: statistics_of(layer) for layer in names}
    layer_moments = LayerMoments(statistics)
    narrow: dict[_BatchNorm, Moments] = {}

    def measuring(layer: _BatchNorm, forward: Callable[..., Any]) -> Callable[..., Any]:
        is_narrow = statistics[layer][0].dtype.itemsize < 4

        def measured(*args: Any, **kwargs: Any) -> Any:
            values = _input(args, kwargs)
            n = values.numel() // values.shape[1]
            if n == 1:
                raise UserError(
                    f"{names[layer]}: a batch has one value a channel, which has no variance",
                    hint="use larger batches, or method exact",
                )
            layer_moments.before(layer)
            output = forward(*args, **kwargs)
            if is_narrow:
                narrow[layer] = merged(narrow.get(layer), moments_of(values))
            else:
                layer_moments.after(layer, n)
            return output

        return measured

    for layer in names:
        layer.training = True
        layer.momentum = 1.0
        for statistic in statistics[layer]:
            statistic.zero_()  # the old ones enter with weight 0, and 0 * NaN would be NaN
    num_samples = 0
    with _with_forward_of(names, measuring):
        for samples in batches:
            num_samples += batches.through(model, samples)
            layer_moments.merge()
    if not num_samples:
        raise _no_samples()
    own = layer_moments.of_each() | narrow
    everyone = gathered({names[layer]: moments.on_cpu() for layer, moments in own.items()})
    found = {layer: [part[name] for part in everyone if name in part] for layer, name in names.items()}
    return {layer: reduce(merged, parts) for layer, parts in found.items() if parts}, num_samples


@contextmanager
def _with_forward_of(
    layers: Iterable[_BatchNorm], changed: Callable[[_BatchNorm, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """The `forward` of each layer changed inside: hooks would cost 1 % of a pass."""
    own = {layer: vars(layer).get("forward") for layer in layers}  # of the object; that of its class is below it
    try:
        for layer in own:
            vars(layer)["forward"] = changed(layer, layer.forward)
        yield
    finally:
        for layer, forward in own.items():
            if forward is None:
                vars(layer).pop("forward", None)
            else:
                vars(layer)["forward"] = forward


def _measure_exact(
    model: nn.Module, names: dict[_BatchNorm, str], batches: _Batches, gathered: Callable[[Any], list[Any]]
) -> tuple[dict[_BatchNorm, Moments], int]:
    """One pass a layer in the order of execution, up to that layer, all in eval mode."""
    stream = iter(batches)
    first = next(stream, None)
    if first is None:
        raise _no_samples()
    order = _execution_order(model, names, batches, inputs.mapped(first, lambda values: values[:2]))
    if len(order) > 1 and isinstance(batches.loader, Iterator):
        raise UserError(
            "method exact reads the samples once a layer, and this iterator can be read only once",
            hint="pass a DataLoader or a list, or use method pooled",
        )
    found: dict[_BatchNorm, Moments] = {}
    num_samples = 0
    for layer in order:
        source = chain([first], stream) if layer is order[0] else batches
        moments, num_samples = _measure_input(model, layer, batches, source, gathered)
        # Biased while the layers after it are measured: a batch is normalised by its own biased variance.
        _write(layer, moments, variance=moments.m2 / moments.n)
        found[layer] = moments
    return found, num_samples


def _execution_order(
    model: nn.Module, names: dict[_BatchNorm, str], batches: _Batches, samples: Any
) -> list[_BatchNorm]:
    order: list[_BatchNorm] = []

    def note(layer: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(layer, _BatchNorm)
        if layer in order:
            raise UserError(
                f"{names[layer]}: is executed more than once a forward pass; method exact cannot measure it",
                hint="use method pooled",
            )
        order.append(layer)

    hooks = [layer.register_forward_pre_hook(note) for layer in names]
    try:
        batches.through(model, samples)
    finally:
        for hook in hooks:
            hook.remove()
    return order


def _measure_input(
    model: nn.Module,
    layer: _BatchNorm,
    batches: _Batches,
    source: Iterable[Any],
    gathered: Callable[[Any], list[Any]],
) -> tuple[Moments, int]:
    """Moments of all that reaches `layer` in any process, and the number of samples in this one.

    Merging rounds: processes that share the batches keep the moments of each, to merge them one by one as one would.
    """
    found: list[Moments] = []
    num_samples = 0

    def take(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(moments_of(_input(args, kwargs)))
        if gathered is alone:
            found[:] = [reduce(merged, found)]
        raise _Reached

    hook = layer.register_forward_pre_hook(take, with_kwargs=True)
    try:
        for samples in source:
            num_samples += inputs.num_samples(samples)
            with suppress(_Reached):
                batches.through(model, samples)
    finally:
        hook.remove()
    if not found:
        raise _no_samples()
    parts = gathered([moments.on_cpu() for moments in found])
    return reduce(merged, chain.from_iterable(parts)), num_samples


def _require_usable(moments: Moments, *, name: str) -> None:
    if moments.n < 2:
        raise UserError(f"{name}: one value a channel has no variance", hint="pass more samples")
    if not (moments.mean + moments.m2).isfinite().all():
        raise UserError(
            f"{name}: receives values that are not finite, so it has no statistics",
            hint="look for broken samples or diverged weights; under fp16, use bf16 or fp32",
        )


@contextmanager
def _left_as_it_was(model: nn.Module, layers: list[_BatchNorm], *, device: torch.device) -> Iterator[None]:
    """All modules in eval mode inside; modes, momentum, statistics and random state come back after it.

    Flags are set one by one because models override `train()`. Compiled parts run eagerly: they would not
    call hooks that were added after their compilation, and nothing would be measured.
    """
    modes = {module: module.training for module in model.modules()}
    momenta = {layer: layer.momentum for layer in layers}
    buffers = [buffer for layer in layers for buffer in layer.buffers(recurse=False)]
    saved = [buffer.clone() for buffer in buffers]
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), eager:
        try:
            for module in modes:
                module.training = False
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            for layer, momentum in momenta.items():
                layer.momentum = momentum
            for buffer, value in zip(buffers, saved, strict=True):
                buffer.copy_(value)


def _write(layer: _BatchNorm, moments: Moments, *, variance: Tensor) -> None:
    running_mean, running_var = statistics_of(layer)
    running_mean.copy_(moments.mean)
    running_var.copy_(variance)


def statistics_of(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Running mean and variance of a layer that tracks them."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return layer.running_mean, layer.running_var


def _tracks_statistics(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    values = args[0] if args else kwargs["input"]
    assert isinstance(values, Tensor)
    return values


def _no_samples() -> UserError:
    return UserError("the loader has no samples to measure BatchNorm on", hint="pass at least one batch")
