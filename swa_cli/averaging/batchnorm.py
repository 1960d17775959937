"""BatchNorm statistics of a model over a dataset, for weights that were never trained as they are (averages).

One idea: `bn_methods.py` measures the moments of each layer's input over all samples, `bn_other_layers.py` those of
layers of other kinds; this file decides which layers are measured, writes the result, and leaves everything else about
the model as it was, also after an error.

B samples; C channels; n values per channel; M2 sum of squared distances from the mean, both (C,) in float64.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
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
    ModelState,
    gather_single_process,
    in_mode,
    is_frozen,
    may_have_statistics,
    names_of_statistics,
    no_samples,
    norm_layers,
)
from swa_cli.averaging.bn_other_layers import OtherStatistics, find_other_layers
from swa_cli.averaging.model_state import fork_rng, plain_model
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
    frozen = is_frozen(model)
    if not may_have_statistics(model):
        return BatchNormUpdate(num_layers=0, num_samples=0, method=method, is_frozen=frozen)
    if device is None:
        device = next(chain(model.parameters(), model.buffers())).device
    batches = Batches(model, loader, torch.device(device), batch_to_args)
    with torch.no_grad():
        with _preserved(model, device=batches.device) as before:
            update, statistics = _measure(batches, before, method, gather)
        buffers = dict(model.named_buffers(remove_duplicate=False))
        for name, value in statistics.items():
            buffers[name].copy_(value)
    return replace(update, is_frozen=frozen)


def _measure(
    batches: Batches, before: ModelState, method: str, gather: Gather
) -> tuple[BatchNormUpdate, dict[str, Tensor]]:
    """Run the passes; return what they did, and the new values of buffers by their names.

    All modules are in eval mode before and after; buffers hold anything afterwards.
    """
    names = {module: name for name, module in batches.model.named_modules()}
    layers = {layer: names[layer] for layer in norm_layers(batches.model) if before.modes[layer]}
    stream = iter(batches)
    first = next(stream, None)
    if first is None:
        raise no_samples()
    others = find_other_layers(batches, first, before)
    unmeasured = (*_remove_unlike(layers, batches, first, before), *others.unmeasured)
    if not layers and not others.running:
        if gather is not gather_single_process:  # processes read in step: the others may have more batches
            deque(stream, maxlen=0)
        return BatchNormUpdate(0, 0, method, unmeasured, others.moved), {}
    statistics: dict[str, Tensor] = {}
    if method == "exact" and layers:
        if others.running:
            name = next(iter(others.running))
            raise UserError(f"{name}: method exact measures BatchNorm alone", hint="use method pooled")
        moments, total = bn_methods.measure_exact(layers, batches, gather, first=first, stream=stream)
    else:
        measuring = OtherStatistics(others.running, before)
        stream = chain([first], stream)
        moments, total = bn_methods.measure_pooled(layers, batches, gather, stream=stream, others=measuring)
        statistics = measuring.result(gather)
        for name, value in statistics.items():
            _require_finite(value, name=name)
    for layer, found in moments.items():
        if found.n < 2:
            raise UserError(f"{names[layer]}: one value per channel has no variance", hint="pass more samples")
        _require_finite(found.mean + found.m2, name=names[layer])
        running_mean, running_var = names_of_statistics(names[layer])
        statistics |= {running_mean: found.mean, running_var: found.m2 / (found.n - 1)}
    num_layers = len({name.rpartition(".")[0] for name in statistics})
    num_samples = sum(gather(total)) if num_layers else 0
    return BatchNormUpdate(num_layers, num_samples, method, unmeasured, others.moved), statistics


def _remove_unlike(layers: dict[_BatchNorm, str], batches: Batches, first: Any, before: ModelState) -> list[str]:
    """Remove the layers that keep something else than the moments of their input; return the names of their buffers."""
    found: list[str] = []
    nothing = OtherStatistics({}, before)
    while any(type(layer).forward not in bn_methods.KNOWN for layer in layers):
        try:
            bn_methods.measure_pooled(layers, batches, gather_single_process, stream=[first], others=nothing)
            break
        except bn_methods.UnlikeBatchNormError as error:
            found += names_of_statistics(layers.pop(error.layer))
            before.restore()  # the layer normalises by its own statistics in the passes
    return found


def _require_finite(values: Tensor, *, name: str) -> None:
    if not values.isfinite().all():
        raise UserError(
            f"{name}: receives values that are not finite, so it has no statistics",
            hint="look for broken samples or diverged weights; under fp16, use bf16 or fp32",
        )


@contextmanager
def _preserved(model: nn.Module, *, device: torch.device) -> Iterator[ModelState]:
    """Put all modules into eval mode inside the context; afterwards restore modes, momentum, buffers, random state.

    Compiled parts run eagerly: they would not call what replaces the `forward` of a layer after their compilation, and
    nothing would be measured.
    """
    before = ModelState(model)
    momenta = {layer: layer.momentum for layer in norm_layers(model)}
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    with fork_rng(device), eager, in_mode(dict.fromkeys(before.modes, False)):
        try:
            yield before
        finally:
            before.restore()
            for layer, momentum in momenta.items():
                layer.momentum = momentum
