"""Running statistics of layers other than eager BatchNorm: InstanceNorm, norms in TorchScript, norms of the user's.

One idea: such a layer moves a buffer r to (1 - f) r + f s with a statistic s of the batch. Two passes of one batch,
from r = 0 and from r = 1, give f for any class, and show whether the layer works like this. Its statistic of a batch is
then what it leaves in a zeroed buffer, divided by f; that of the data is the mean over the samples. Only where torch
itself normalises by the buffers, as in a scripted BatchNorm, does it include the variance between batches.

A buffer that training changes in any other way, and that evaluation reads, cannot be measured; it is reported by name.

B samples; C channels; n values per channel; M2 sum of squared distances from the mean; f share of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from swa_cli.averaging.bn_layers import (
    Batches,
    Gather,
    Kept,
    ModelState,
    Moments,
    Place,
    in_mode,
    in_training,
    map_tensors,
    merge_moments,
    other_buffers,
    to_float64,
)
from swa_cli.averaging.model_state import comparable

TOLERANCE = 1e-4  # of f over the values of a buffer: float32 rounds


@dataclass
class RunningBuffer:
    """A buffer that moves to (1 - share) r + share s with each batch; `sum` and `weight` collect s."""

    place: Place
    share: float
    partner: Place | None = None  # of a variance that torch normalises by: its mean
    values_per_sample: int = 1  # n of a batch, divided by B
    sum: Tensor | None = None  # float64, of s times samples
    weight: int = 0
    moments: Moments | None = None


@dataclass(frozen=True)
class OtherLayers:
    """What one batch shows of a network's layers besides eager BatchNorm."""

    running: Mapping[str, RunningBuffer] = field(default_factory=dict)  # name of the buffer -> how to measure it
    unmeasured: tuple[str, ...] = ()  # buffers that training changes and evaluation reads, and that none can measure
    moved: tuple[str, ...] = ()  # all buffers that training changes


def find_other_layers(batches: Batches, inputs: Any, before: ModelState) -> OtherLayers:
    """Find out what a forward pass in training mode does to the buffers of a model.

    The caller restores the random state.

    Args:
        batches: Of a model in eval mode.
        inputs: One batch.
        before: The model as it was.
    """
    candidates = other_buffers(batches.model)
    if not candidates:
        return OtherLayers()
    with in_training(before.modes):
        batches.forward(map_tensors(inputs, torch.clone))
    moved = {name: place for name, place in candidates.items() if _is_moved(_buffer(place), before.buffers[place][1])}
    before.restore()
    for place in moved.values():
        before.materialize(place)
    running = _calibrate(moved, batches, inputs, before)
    rest = {name: place for name, place in moved.items() if name not in running}
    return OtherLayers(running, _read_in_eval_mode(rest, batches, inputs, before), tuple(moved))


class OtherStatistics:
    """Collects the statistics of other layers while the caller gives batches to the model."""

    def __init__(self, running: Mapping[str, RunningBuffer], before: ModelState) -> None:
        self._running = running
        self._before = before
        self.modules = {item.place[0] for item in running.values()}  # they have to be in training mode
        self._counters = [
            place
            for place, (buffer, _) in before.buffers.items()
            if place[0] in self.modules and not buffer.is_floating_point()
        ]
        self._called = set[nn.Module]()  # modules that Python calls; it does not call those inside TorchScript
        self._fed = set[nn.Module]()  # those of them that this batch has fed values

    @property
    def names(self) -> Set[str]:
        """The buffers that are measured."""
        return self._running.keys()

    @contextmanager
    def watched(self, kept: Kept) -> Iterator[None]:
        """Watch the layers inside the context; those that are executed in eval mode are added to `kept`."""

        def look(module: nn.Module, args: tuple[Any, ...]) -> None:
            if module not in self.modules:
                return
            self._called.add(module)
            if all(value.numel() for value in args if isinstance(value, Tensor)):
                self._fed.add(module)
            if not module.training:  # the first batch moved them in the mode that they have
                kept.update({name: True for name, item in self._running.items() if item.place[0] is module})

        if not self._running:
            yield
            return
        hook = register_module_forward_pre_hook(look)
        try:
            yield
        finally:
            hook.remove()

    def before_batch(self) -> None:
        """Zero what the batch will fill, and reset counters: a layer may count its batches."""
        for item in self._running.values():
            _buffer(item.place).zero_()
        self._before.restore(self._counters)
        self._fed.clear()

    def after_batch(self, num_samples: int) -> None:
        """Collect what a batch has left."""
        for item in self._running.values():
            if item.place[0] in self._called - self._fed:
                continue
            statistic = to_float64(_buffer(item.place)) / item.share
            if item.partner is None:
                item.sum = statistic * num_samples + (0 if item.sum is None else item.sum)
                item.weight += num_samples
            else:
                n = item.values_per_sample * num_samples
                mean = to_float64(_buffer(item.partner)) / item.share
                item.moments = merge_moments(item.moments, Moments(n, mean, statistic * (n - 1)))

    def result(self, gather: Gather) -> dict[str, Tensor]:
        """Return the statistic of all samples in float64 by the name of its buffer, over all processes."""
        items = self._running.values()
        processes = gather(
            [
                (None if item.sum is None else item.sum.cpu(), item.weight, item.moments and item.moments.on_cpu())
                for item in items
            ]
        )
        found = {}
        for name, parts in zip(self._running, zip(*processes, strict=True), strict=True):
            taken = [part for part in parts if part[1] or part[2] is not None]
            if not taken:
                continue  # no batch fed it: it keeps its statistics
            if taken[0][2] is None:
                found[name] = sum(total for total, _, _ in taken) / sum(weight for _, weight, _ in taken)
            else:
                moments = reduce(merge_moments, (moments for _, _, moments in taken))
                found[name] = moments.m2 / (moments.n - 1)
        return found


def _calibrate(
    moved: Mapping[str, Place], batches: Batches, inputs: Any, before: ModelState
) -> dict[str, RunningBuffer]:
    """Return the buffers that move as running statistics do, with their share; modules with children have none."""
    leaves = {
        name: place
        for name, place in moved.items()
        if next(place[0].children(), None) is None and comparable(_buffer(place)).is_floating_point()
    }
    if not leaves:
        return {}
    measured = {module for module, _ in leaves.values()}
    modes = {
        module: mode for module, mode in before.modes.items() if module in measured or isinstance(module, _BatchNorm)
    }
    fills: list[dict[str, Tensor]] = []
    for fill in (0.0, 1.0):
        for place in leaves.values():
            _buffer(place).fill_(fill)
        with in_mode(modes), _NormInputs({_buffer(place).data_ptr() for place in leaves.values()}) as norms:
            batches.forward(inputs)
        fills.append({name: to_float64(_buffer(place)) for name, place in leaves.items()})
        before.restore()
    running: dict[str, RunningBuffer] = {}
    for name, (module, key) in leaves.items():
        share = _constant_share(fills[0][name], fills[1][name])
        if share is None:
            continue
        running[name] = RunningBuffer((module, key), share)
        partner = (module, key.replace("var", "mean"))
        if partner[1] != key and partner in before.buffers:
            counts = norms.values_per_channel.get(_buffer(partner).data_ptr(), [])
            if len(counts) == 1:
                running[name].partner = partner
                running[name].values_per_sample = counts[0]
    return running


def _constant_share(from_zero: Tensor, from_one: Tensor) -> float | None:
    """Return f of a buffer that began as 0 and as 1, or None if it does not move as a running statistic does."""
    if from_zero.shape != from_one.shape or not (from_zero.isfinite().all() and from_one.isfinite().all()):
        return None
    shares = 1 - (from_one - from_zero)
    mean = float(shares.mean())
    is_constant = TOLERANCE < mean <= 1 + TOLERANCE and float((shares - mean).abs().max()) < TOLERANCE
    return mean if is_constant else None


class _NormInputs(TorchDispatchMode):
    """Records the values per channel and sample of each batch_norm whose running mean is at one of the addresses.

    The dispatcher also sees calls inside TorchScript, where hooks are not called.
    """

    def __init__(self, addresses: set[int]) -> None:
        super().__init__()
        self._addresses = addresses
        self.values_per_channel: dict[int, list[int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "batch_norm" in str(func) and len(args) > 3 and isinstance(args[3], Tensor):
            address, values = args[3].data_ptr(), args[0]
            if address in self._addresses and values.numel():
                count = values.numel() // (values.shape[0] * values.shape[1])
                self.values_per_channel.setdefault(address, []).append(count)
        return func(*args, **(kwargs or {}))


def _read_in_eval_mode(
    places: Mapping[str, Place], batches: Batches, inputs: Any, before: ModelState
) -> tuple[str, ...]:
    """Return the names of the buffers that change the outputs in eval mode."""
    if not places:
        return ()
    expected = _output_tensors(batches.forward(inputs))
    read = []
    for name, place in places.items():
        values = comparable(_buffer(place))
        _ = values.mul_(1.5).add_(0.5) if values.is_floating_point() else values.bitwise_not_()
        found = _output_tensors(batches.forward(inputs))
        before.restore([place])
        if any(not torch.equal(one, other) for one, other in zip(expected, found, strict=True)):
            read.append(name)
    return tuple(read)


def _output_tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = outputs.values()
    return [tensor for part in outputs for tensor in _output_tensors(part)] if hasattr(outputs, "__iter__") else []


def _buffer(place: Place) -> Tensor:
    module, key = place
    value = module._buffers[key]
    assert value is not None
    return value


def _is_moved(found: Tensor, before: Tensor) -> bool:
    """Return whether values differ; NaN equals NaN. A tensor of another shape is a cache that any pass fills anew."""
    if found.shape != before.shape:
        return False
    found, before = comparable(found), comparable(before)
    if not torch.equal(found.isnan(), before.isnan()):
        return True
    return not torch.equal(found.nan_to_num(), before.nan_to_num())
