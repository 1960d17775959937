"""BatchNorm statistics of a model over a dataset, for weights that were never trained as they are (averages).

One idea: each layer's (n, mean, M2) of every batch are merged in float64 by Chan's formula, so every sample
counts the same and the variance between batches is kept. Whatever happens, the model is left as it was, but
for the new statistics of the layers that were measured.

B samples; C channels; n values a channel; M2 sum of squared distances from the mean, both (C,) in float64.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from swa_cli.averaging import batch_args, bn_exact, bn_pooled
from swa_cli.averaging.batch_args import Arguments, Batches, no_samples
from swa_cli.averaging.bn_layers import (
    Moments,
    gather_single_process,
    is_frozen,
    may_have_statistics,
    norm_layers,
    statistics_of,
    write_statistics,
)
from swa_cli.averaging.bn_other_layers import Measuring, Others, find
from swa_cli.averaging.model_state import plain_model
from swa_cli.errors import UserError

METHODS = ("pooled", "exact")


@dataclass(frozen=True)
class BatchNormUpdate:
    """What an update was made of: layers with new statistics, samples of one pass, `pooled` or `exact`."""

    num_layers: int
    num_samples: int
    method: str
    unmeasured: tuple[str, ...] = ()  # buffers that training moves and evaluation reads, and that stayed as they were
    moved: tuple[str, ...] = ()  # buffers of other layers than BatchNorm that training moves
    is_frozen: bool = False  # there are such layers, and all of them are in eval mode inside a model in training mode

    @property
    def freshness(self) -> str:
        """What a checkpoint says of the statistics: `recomputed`, `partial`, `frozen`, or `none` without any."""
        if self.unmeasured:
            return "partial"
        if self.num_layers:
            return "recomputed"
        return "frozen" if self.is_frozen else "none"

    @property
    def record(self) -> dict[str, Any]:
        """What a checkpoint keeps of the update."""
        method = self.method if self.num_layers else None
        return {"batchnorm": self.freshness, "batchnorm_method": method, "samples": self.num_samples}


NOTHING = BatchNormUpdate(num_layers=0, num_samples=0, method="pooled")


def update_batchnorm(
    loader: Iterable[Any],
    model: nn.Module,
    *,
    method: str = "pooled",
    device: torch.device | str | None = None,
    batch_to_args: Callable[[Any], Arguments] = batch_args.batch_to_args,
    gathered: Callable[[Any], list[Any]] = gather_single_process,
) -> BatchNormUpdate:
    """Replace the running statistics of normalisation layers by those of the dataset, stored unbiased.

    These are BatchNorm of any kind, InstanceNorm with running statistics, norms inside TorchScript, and layers of one's
    own that keep a moving average of a statistic of each batch (see `others.py`).

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
            loader that can be read only once, a layer that a forward pass executes more than once, or statistics that
            are not those of BatchNorm.
    """
    if method not in METHODS:
        raise UserError(f"method: {method!r} does not measure BatchNorm", hint=f"one of {', '.join(METHODS)}")
    model = plain_model(model)
    if not may_have_statistics(model):
        return BatchNormUpdate(num_layers=0, num_samples=0, method=method, is_frozen=is_frozen(model))
    if device is None:
        device = next(chain(model.parameters(), model.buffers())).device
    batches = Batches(loader, torch.device(device), batch_to_args)
    with torch.no_grad():
        with _left_as_it_was(model, device=batches.device) as modes:
            found = _measured(model, modes, batches, method, gathered)
        for layer, moments in found.layers.items():
            write_statistics(layer, moments, variance=moments.m2 / (moments.n - 1))
        buffers = dict(model.named_buffers())
        for name, value in found.others.items():
            buffers[name].copy_(value)
    return BatchNormUpdate(
        num_layers=found.num_layers,
        num_samples=sum(gathered(found.num_samples)) if found.num_layers else 0,
        method=method,
        unmeasured=found.unmeasured,
        moved=found.moved,
        is_frozen=not found.num_layers and is_frozen(model),
    )


@dataclass(frozen=True)
class _Found:
    """What a pass has measured."""

    layers: dict[_BatchNorm, Moments]
    others: dict[str, Tensor]  # name of a buffer -> its new values
    unmeasured: tuple[str, ...]
    num_samples: int
    moved: tuple[str, ...]

    @property
    def num_layers(self) -> int:
        return len(self.layers) + len({name.rpartition(".")[0] for name in self.others})


def _measured(
    model: nn.Module,
    modes: Mapping[nn.Module, bool],
    batches: Batches,
    method: str,
    gathered: Callable[[Any], list[Any]],
) -> _Found:
    """Run the passes; all modules are in eval mode before and after, and buffers hold anything."""
    names = {module: name for name, module in model.named_modules()}
    is_training = any(modes.values())
    layers = {layer: names[layer] for layer in norm_layers(model) if modes[layer] or not is_training}
    stream = iter(batches)
    first = next(stream, None)
    if first is None:
        raise no_samples()
    others = find(model, batches, first, modes=modes)
    unmeasured = (*_taken_out(model, layers, batches, first), *others.unmeasured)
    if method == "exact" and layers:
        if others.running:
            name = next(iter(others.running))
            raise UserError(f"{name}: method exact measures BatchNorm alone", hint="use method pooled")
        moments, num_samples = bn_exact.measure(model, layers, batches, gathered, first=first, stream=stream)
        return _checked(_Found(moments, {}, unmeasured, num_samples, others.moved), names)
    if not layers and not others.running:
        return _Found({}, {}, unmeasured, 0, others.moved)
    measuring = Measuring(others)
    moments, num_samples = bn_pooled.measure(
        model, layers, batches, gathered, stream=chain([first], stream), others=measuring
    )
    return _checked(_Found(moments, measuring.found(gathered), unmeasured, num_samples, others.moved), names)


def _taken_out(model: nn.Module, layers: dict[_BatchNorm, str], batches: Batches, first: Any) -> list[str]:
    """Take out those layers that keep something else than the moments of their input, as one batch shows.

    Returns:
        The names of their buffers.
    """
    found: list[str] = []
    kept = {layer: [value.clone() for value in statistics_of(layer)] for layer in layers}
    while any(type(layer).forward not in bn_pooled.KNOWN for layer in layers):
        try:
            bn_pooled.measure(model, layers, batches, gather_single_process, stream=[first], others=Measuring(Others()))
            break
        except bn_pooled.Unlike as error:
            name = layers.pop(error.layer)
            for statistic, value in zip(statistics_of(error.layer), kept[error.layer], strict=True):
                statistic.copy_(value)  # it normalises by them in the pass
            found += [f"{name}.running_mean", f"{name}.running_var"]
        finally:
            for module in model.modules():
                module.training = False
    return found


def _checked(found: _Found, names: Mapping[nn.Module, str]) -> _Found:
    for layer, moments in found.layers.items():
        _require_usable(moments, name=names[layer])
    for name, values in found.others.items():
        _require_finite(values, name=name)
    return found


def _require_usable(moments: Moments, *, name: str) -> None:
    if moments.n < 2:
        raise UserError(f"{name}: one value a channel has no variance", hint="pass more samples")
    _require_finite(moments.mean + moments.m2, name=name)


def _require_finite(values: Tensor, *, name: str) -> None:
    if not values.isfinite().all():
        raise UserError(
            f"{name}: receives values that are not finite, so it has no statistics",
            hint="look for broken samples or diverged weights; under fp16, use bf16 or fp32",
        )


@contextmanager
def _left_as_it_was(model: nn.Module, *, device: torch.device) -> Iterator[dict[nn.Module, bool]]:
    """All modules in eval mode inside, given the modes before; modes, momentum, buffers and random state come back.

    Flags are set one by one because models override `train()`. Compiled parts run eagerly: they would not
    call what takes the place of a layer's `forward` after their compilation, and nothing would be measured.
    """
    modes = {module: module.training for module in model.modules()}
    momenta = {layer: layer.momentum for layer in norm_layers(model)}
    saved = {
        (module, key): (buffer, buffer.clone())
        for module in modes
        for key, buffer in module.named_buffers(recurse=False)
    }
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), eager:
        try:
            for module in modes:
                module.training = False
            yield modes
        finally:
            for module, mode in modes.items():
                module.training = mode
            for layer, momentum in momenta.items():
                layer.momentum = momentum
            for (module, key), (buffer, value) in saved.items():
                buffer.copy_(value)
                if getattr(module, key) is not buffer and not isinstance(module, torch.jit.ScriptModule):
                    setattr(module, key, buffer)  # the model has put another tensor in its place
