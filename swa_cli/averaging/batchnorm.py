"""BatchNorm statistics of a model over a dataset, for weights that were never trained as they are (averages).

One idea: `bn_methods.py` measures the moments of each layer's input over all samples, `bn_other_layers.py` those of
layers of other kinds; this file decides which layers are measured, writes the result, and leaves everything else about
the model as it was, also after an error.

B samples; C channels; n values per channel; M2 sum of squared distances from the mean, both (C,) in float64.
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

from swa_cli.averaging import bn_layers, bn_methods
from swa_cli.averaging.bn_layers import (
    Arguments,
    Batches,
    Gather,
    Moments,
    gather_single_process,
    is_frozen,
    may_have_statistics,
    no_samples,
    norm_layers,
    statistics_of,
    write_statistics,
)
from swa_cli.averaging.bn_other_layers import OtherLayers, OtherStatistics, find_other_layers
from swa_cli.averaging.model_state import plain_model
from swa_cli.errors import UserError

METHODS = ("pooled", "exact")


@dataclass(frozen=True)
class BatchNormUpdate:
    """What an update did."""

    num_layers: int  # with new statistics
    num_samples: int  # of one pass
    method: str  # pooled or exact
    unmeasured: tuple[str, ...] = ()  # buffers that training changes and evaluation reads, and that are unchanged
    moved: tuple[str, ...] = ()  # buffers of other layers than BatchNorm that training changes
    is_frozen: bool = False  # there are such layers, and all of them are in eval mode inside a model in training mode

    @property
    def freshness(self) -> str:
        """The state of the statistics: `recomputed`, `partial`, `frozen`, or `none` where there are none."""
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
    batch_to_args: Callable[[Any], Arguments] = bn_layers.batch_to_args,
    gather: Gather = gather_single_process,
) -> BatchNormUpdate:
    """Replace the running statistics of normalisation layers by those of the dataset, stored unbiased.

    These layers are BatchNorm of any kind, InstanceNorm with running statistics, norms inside TorchScript, and the
    user's own layers that keep a moving average of a statistic of each batch (see `bn_other_layers.py`).

    Layers in eval mode inside a model in training mode are frozen and left alone; in a model wholly in eval mode every
    layer is measured. Dropout is off. A layer that is never executed keeps its statistics. Modes, momentum,
    `num_batches_tracked` and the global random state stay as they are, after an error all statistics too.

    pooled: one pass in which every layer normalises by its batch, as in training. Layers downstream of another
        BatchNorm therefore depend slightly on how the samples are grouped: shuffle them.
    exact: layer by layer, the layers upstream normalising by their new statistics. Equal to one batch of the whole
        dataset, whatever the batches; as many partial passes as there are layers.

    Args:
        loader: Batches (B, ...), or tuples or lists that begin with them, or with a tuple or dict of tensors. A last
            batch under half the size of the one before is joined to it. `exact` reads the loader once per layer.
        model: Wrappers (DistributedDataParallel, torch.compile) are looked through.
        method: `pooled` or `exact`.
        device: Where the batches are moved; default: the device of the model's first parameter.
        batch_to_args: Returns the positional and keyword arguments of the model for a batch; by default a tensor is
            `model(x)`, a tuple `model(*x)` and a dict `model(**x)`.
        gather: Where several processes share the batches, each with at least one: returns what all of them passed to
            it, in the order of the batches. Moments are merged in that order, with `exact` to the bits of one process.

    Raises:
        UserError: There are no samples, there is one value per channel, values are not finite, or `exact` is asked for
            with a loader that can be read only once, a layer that a forward pass executes more than once, or statistics
            that are not those of BatchNorm.
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
        with _preserved(model, device=batches.device) as modes:
            result = _measure(model, modes, batches, method, gather)
        for layer, moments in result.layers.items():
            write_statistics(layer, moments, variance=moments.m2 / (moments.n - 1))
        buffers = dict(model.named_buffers())
        for name, value in result.others.items():
            buffers[name].copy_(value)
    return BatchNormUpdate(
        num_layers=result.num_layers,
        num_samples=sum(gather(result.num_samples)) if result.num_layers else 0,
        method=method,
        unmeasured=result.unmeasured,
        moved=result.moved,
        is_frozen=not result.num_layers and is_frozen(model),
    )


@dataclass(frozen=True)
class _Result:
    """What the passes have measured."""

    layers: dict[_BatchNorm, Moments]
    others: dict[str, Tensor]  # name of a buffer -> its new values
    unmeasured: tuple[str, ...]
    num_samples: int
    moved: tuple[str, ...]

    @property
    def num_layers(self) -> int:
        return len(self.layers) + len({name.rpartition(".")[0] for name in self.others})


def _measure(
    model: nn.Module, modes: Mapping[nn.Module, bool], batches: Batches, method: str, gather: Gather
) -> _Result:
    """Run the passes. All modules are in eval mode before and after; buffers hold anything afterwards."""
    names = {module: name for name, module in model.named_modules()}
    is_training = any(modes.values())
    layers = {layer: names[layer] for layer in norm_layers(model) if modes[layer] or not is_training}
    stream = iter(batches)
    first = next(stream, None)
    if first is None:
        raise no_samples()
    others = find_other_layers(model, batches, first, modes=modes)
    unmeasured = (*_remove_unlike(model, layers, batches, first), *others.unmeasured)
    values: dict[str, Tensor] = {}
    if not layers and not others.running:
        return _Result({}, {}, unmeasured, 0, others.moved)
    if method == "exact" and layers:
        if others.running:
            name = next(iter(others.running))
            raise UserError(f"{name}: method exact measures BatchNorm alone", hint="use method pooled")
        moments, total = bn_methods.measure_exact(model, layers, batches, gather, first=first, stream=stream)
    else:
        statistics = OtherStatistics(others)
        moments, total = bn_methods.measure_pooled(
            model, layers, batches, gather, stream=chain([first], stream), others=statistics
        )
        values = statistics.result(gather)
    for layer, found in moments.items():
        _require_usable(found, name=names[layer])
    for name, value in values.items():
        _require_finite(value, name=name)
    return _Result(moments, values, unmeasured, total, others.moved)


def _remove_unlike(model: nn.Module, layers: dict[_BatchNorm, str], batches: Batches, first: Any) -> list[str]:
    """Remove the layers that keep something else than the moments of their input, as one batch shows.

    Returns:
        The names of their buffers.
    """
    found: list[str] = []
    copies = {layer: [value.clone() for value in statistics_of(layer)] for layer in layers}
    nothing = OtherStatistics(OtherLayers())
    while any(type(layer).forward not in bn_methods.KNOWN for layer in layers):
        try:
            bn_methods.measure_pooled(model, layers, batches, gather_single_process, stream=[first], others=nothing)
            break
        except bn_methods.UnlikeBatchNormError as error:
            name = layers.pop(error.layer)
            for statistic, value in zip(statistics_of(error.layer), copies[error.layer], strict=True):
                statistic.copy_(value)  # it normalises by them in the pass
            found += [f"{name}.running_mean", f"{name}.running_var"]
        finally:
            for module in model.modules():
                module.training = False
    return found


def _require_usable(moments: Moments, *, name: str) -> None:
    if moments.n < 2:
        raise UserError(f"{name}: one value per channel has no variance", hint="pass more samples")
    _require_finite(moments.mean + moments.m2, name=name)


def _require_finite(values: Tensor, *, name: str) -> None:
    if not values.isfinite().all():
        raise UserError(
            f"{name}: receives values that are not finite, so it has no statistics",
            hint="look for broken samples or diverged weights; under fp16, use bf16 or fp32",
        )


@contextmanager
def _preserved(model: nn.Module, *, device: torch.device) -> Iterator[dict[nn.Module, bool]]:
    """Put all modules into eval mode inside the context; afterwards restore modes, momentum, buffers, random state.

    Flags are set one by one because models override `train()`. Compiled parts run eagerly: they would not call what
    replaces the `forward` of a layer after their compilation, and nothing would be measured.

    Yields:
        The modes before.
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
