"""BatchNorm statistics of a model over a dataset, for weights that were never trained as they are (averages).

One idea: `bn_methods.py` measures the moments of each layer's input over all samples, `bn_other_layers.py` those of
layers of other kinds; this file decides which layers are measured, writes the result, and leaves everything else about
the model as it was, also after an error.

B samples; C channels; n values per channel; M2 sum of squared distances from the mean, both (C,) in float64.
"""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from swa_cli.averaging import bn_layers, bn_methods
from swa_cli.averaging.bn_layers import (
    Arguments,
    Batches,
    Gather,
    Kept,
    Pass,
    gather_single_process,
    is_frozen,
    map_tensors,
    may_have_statistics,
    names_of_statistics,
    norm_layers,
)
from swa_cli.averaging.bn_other_layers import OtherStatistics, RunningBuffer, find_other_layers
from swa_cli.averaging.model_state import ModelState, fork_rng, in_mode, plain_model
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
    is_frozen: bool = False  # there are such layers, and all of them keep their statistics, being in eval mode

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

    Layers in eval mode inside a model in training mode are frozen and left alone, and so are layers that `forward` puts
    into eval mode; in a model wholly in eval mode every other layer is measured. Dropout is off. A layer that is never
    executed, or fed no values, keeps its statistics. Modes, momentum, `num_batches_tracked` and the global random state
    stay as they are, after an error all statistics too.

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
    return replace(update, is_frozen=frozen or update.is_frozen)


def _measure(
    batches: Batches, before: ModelState, method: str, gather: Gather
) -> tuple[BatchNormUpdate, dict[str, Tensor]]:
    """Run the passes; return what they did, and the new values of buffers by their names.

    All modules are in eval mode before and after; buffers hold anything afterwards. Layers that `forward` itself
    freezes are found first. What only a pass shows, such as another mode in a later batch, voids it: other layers were
    fed wrong values, so it begins anew without that layer.
    """
    names = {module: name for name, module in batches.model.named_modules()}
    layers = {layer: names[layer] for layer in norm_layers(batches.model) if before.modes[layer]}
    stream = Pass(batches)
    found = _modes_in_training(layers, batches, stream.first, before)
    seen = found or {}
    uncalled = set() if found is None else layers.values() - seen.keys()
    uncalled = set.intersection(*gather(uncalled))  # processes look for other layers in step
    others = find_other_layers(batches, stream.first, before, uncalled)
    for layer, name in list(layers.items()):
        if name in uncalled and not set(others.moved).isdisjoint(names_of_statistics(name)):
            del layers[layer]
    running, kept = dict(others.running), Kept()
    kept.update({name: True in modes for name, modes in seen.items() if False in modes})
    _leave(layers, kept)
    while layers or running or (kept and gather is not gather_single_process):  # others may not have found it yet
        try:
            statistics, total = _run(layers, running, batches, before, method, gather, stream, kept)
            break
        except bn_methods.KeptStatisticsError as error:
            before.restore()
            handed = [name for layer, name in layers.items() if name in kept and bn_methods.is_known(layer)]
            kept.update({name: kept[name] or name in seen for name in handed})  # in training they move
            _leave(layers, kept)
            running = {name: item for name, item in running.items() if name not in kept}
            if not error.is_first:
                if isinstance(batches.loader, Iterator):
                    raise UserError(
                        f"{next(iter(kept))}: forward puts it into eval mode in some batches, so the samples are read"
                        " again, and this iterator can be read only once",
                        hint="pass a DataLoader or a list",
                    ) from error
                stream = Pass(batches)
    else:
        statistics, total = {}, 0
        if gather is not gather_single_process:  # processes read in step: the others may have more batches
            deque(stream, maxlen=0)
    unlike = [names_of_statistics(name) if name in names.values() else (name,) for name in kept if kept[name]]
    num_layers = len({name.rpartition(".")[0] for name in statistics})
    update = BatchNormUpdate(
        num_layers,
        sum(gather(total)) if num_layers else 0,
        method,
        unmeasured=(*chain.from_iterable(unlike), *others.unmeasured),
        moved=others.moved,
        is_frozen=bool(kept) and not num_layers,
    )
    return update, statistics


def _modes_in_training(
    layers: dict[_BatchNorm, str], batches: Batches, first: Any, before: ModelState
) -> dict[str, set[bool]] | None:
    """Return in which modes training executes each layer; of a batch only if two of its samples do not settle it.

    None if the network cannot be executed so.
    """
    if not layers:
        return {}
    few = map_tensors(first, lambda values: values[:2])
    seen = bn_methods.modes_in_training(layers, batches, few, before.modes)
    if seen is None or len(seen) < len(layers) or any(False in modes for modes in seen.values()):
        seen = bn_methods.modes_in_training(layers, batches, first, before.modes)
    before.restore()
    return seen


def _leave(layers: dict[_BatchNorm, str], kept: Kept) -> None:
    """Measure the layers in `kept` no longer."""
    for layer in [layer for layer, name in layers.items() if name in kept]:
        del layers[layer]
        layer.momentum = 0.0  # `forward` may put it into training mode


def _run(
    layers: dict[_BatchNorm, str],
    running: dict[str, RunningBuffer],
    batches: Batches,
    before: ModelState,
    method: str,
    gather: Gather,
    stream: Pass,
    kept: Kept,
) -> tuple[dict[str, Tensor], int]:
    """Measure these layers and running buffers; return the new values of buffers and the samples in this process."""
    statistics: dict[str, Tensor] = {}
    if method == "exact" and (layers or not running):
        if running:
            name = next(iter(running))
            raise UserError(f"{name}: method exact measures BatchNorm alone", hint="use method pooled")
        if not all(map(bn_methods.is_known, layers)):  # show it in training mode
            nothing, alone = OtherStatistics({}, before), gather_single_process
            few = [stream.first]
            bn_methods.measure_pooled(layers, batches, alone, stream=few, others=nothing, kept=kept, is_trial=True)
            before.restore()
        moments, total = bn_methods.measure_exact(layers, batches, gather, stream=stream, kept=kept)
    else:
        measuring = OtherStatistics(running, before)
        moments, total = bn_methods.measure_pooled(layers, batches, gather, stream=stream, others=measuring, kept=kept)
        statistics = measuring.result(gather)
        for name, value in statistics.items():
            _require_finite(value, name=name)
    for layer, found in moments.items():
        if found.n < 2:
            raise UserError(f"{layers[layer]}: one value per channel has no variance", hint="pass more samples")
        _require_finite(found.mean + found.m2, name=layers[layer])
        running_mean, running_var = names_of_statistics(layers[layer])
        statistics |= {running_mean: found.mean, running_var: found.m2 / (found.n - 1)}
    return statistics, total


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
    before, draws, arrays = ModelState(model), random.getstate(), np.random.get_state()
    momenta = {layer: layer.momentum for layer in norm_layers(model)}
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    with fork_rng(device), eager, in_mode(dict.fromkeys(before.modes, False)):
        try:
            yield before
        finally:
            before.restore()
            for layer, momentum in momenta.items():
                layer.momentum = momentum
            random.setstate(draws)
            np.random.set_state(arrays)
