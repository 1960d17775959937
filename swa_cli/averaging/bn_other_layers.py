"""Running statistics of layers other than eager BatchNorm: InstanceNorm, norms in TorchScript, norms of the user's.

One idea: such a layer moves a buffer r to (1 - f) r + f s with a statistic s of the batch. Passes of one batch from
different r give f for any class, and show whether the layer works like this. Its statistic of a batch is then what it
leaves in a zeroed buffer, divided by f; that of the data is the mean over the samples. Only where torch itself
normalises by the buffers, as in a scripted BatchNorm, does it include the variance between batches.

A buffer that training writes in any other way, and that evaluation reads, cannot be measured; it is reported by name.
So is one on which the inputs of a BatchNorm layer depend in training: zeroed, it would spoil what is measured there.
Its layer stays in eval mode and feeds that layer what it feeds it in evaluation.

B samples; C channels; n values per channel; M2 sum of squared distances from the mean; f share of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
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
    Moments,
    layer_input,
    map_tensors,
    merge_moments,
    moments_of,
    norm_layers,
    other_buffers,
    replaced_forward,
    to_float64,
)
from swa_cli.averaging.model_state import ModelState, Place, comparable, fork_rng, in_training

TOLERANCE = 1e-4  # of f over the values of a buffer, and of what BatchNorm is fed: float32 rounds
ROUNDING = 1e-6  # of a mean


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
    unmeasured: tuple[str, ...] = ()  # buffers that training writes and evaluation reads, and that none can measure
    moved: tuple[str, ...] = ()  # all buffers that training writes


def find_other_layers(batches: Batches, inputs: Any, before: ModelState, uncalled: Set[str]) -> OtherLayers:
    """Find out what a forward pass in training mode does to the buffers of a model.

    The caller restores the random state.

    Args:
        batches: Of a model in eval mode.
        inputs: One batch.
        before: The model as it was.
        uncalled: Names of BatchNorm layers whose `forward` this batch does not call; the network may still move their
            statistics, for example by `functional.batch_norm`.
    """
    candidates = other_buffers(batches.model, uncalled)
    if not candidates:
        return OtherLayers()
    versions = {place: _version(_buffer(place)) for place in candidates.values()}
    with in_training(before.modes):
        batches.forward(map_tensors(inputs, torch.clone))
    moved = {name: place for name, place in candidates.items() if _is_written(place, before, versions[place])}
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
    """Return the buffers that move as running statistics do, with their share; modules with children have none.

    The first values of buffers must matter neither to their statistics nor to what BatchNorm layers are fed. Else the
    layers whose buffers matter to others are left out, or the buffers that move in another way, and the rest are tried
    again, with the layers that are left out in eval mode.
    """
    leaves = {
        name: place
        for name, place in moved.items()
        if next(place[0].children(), None) is None and comparable(_buffer(place)).is_floating_point()
    }
    while leaves:
        values = {place: before.buffers[place][1] for place in leaves.values()}
        zeros = {place: torch.zeros_like(value) for place, value in values.items()}
        as_is, from_zero = (_try(fill, values, batches, inputs, before) for fill in ({}, zeros))
        large = {place: _larger(value, from_zero.left[place]) for place, value in values.items()}
        from_large = _try(large, values, batches, inputs, before)
        running: dict[str, RunningBuffer] = {}
        for name, place in leaves.items():
            left = (trial.left[place] for trial in (as_is, from_zero, from_large))
            share = _constant_share(values[place], large[place], *left)
            if share is not None:
                running[name] = RunningBuffer(place, share)
        if len(running) == len(leaves) and _agree(as_is.fed, from_zero.fed):
            for item in running.values():
                _find_partner(item, from_zero.norms, before)
            return running
        readers = set[nn.Module]()
        for module in {module for module, _ in values}:
            own = {place: zero for place, zero in zeros.items() if place[0] is module}
            if not _is_alike(_try(own, values, batches, inputs, before), as_is, but=module):
                readers.add(module)
        if readers:
            leaves = {name: place for name, place in leaves.items() if place[0] not in readers}
        elif len(running) < len(leaves):
            leaves = {name: item.place for name, item in running.items()}
        else:
            break  # only together do they matter
    return {}


def _larger(value: Tensor, left: Tensor) -> Tensor:
    """Return values beyond those of a buffer, and beyond what a batch leaves of it where it began as 0."""
    known = value.nan_to_num(0, 0, 0).abs()
    if left.shape == value.shape:
        known = known + left.to(value).nan_to_num(0, 0, 0).abs()
    return 2 * known + 1


@dataclass(frozen=True)
class _Trial:
    """What a batch leaves, from some first values of the buffers in question."""

    left: Mapping[Place, Tensor]  # in those buffers, in float64
    fed: Sequence[Moments]  # of the inputs of BatchNorm layers, in the order of execution
    norms: _NormInputs


def _try(
    fills: Mapping[Place, Tensor], places: Iterable[Place], batches: Batches, inputs: Any, before: ModelState
) -> _Trial:
    """Pass a batch through the model, the modules of `places` and BatchNorm in their modes of training."""
    for place, value in fills.items():
        _buffer(place).copy_(value)
    measured = {module for module, _ in places}
    modes = {
        module: mode for module, mode in before.modes.items() if module in measured or isinstance(module, _BatchNorm)
    }
    fed: list[Moments] = []

    def watching(_: _BatchNorm, forward: Callable[..., Any]) -> Callable[..., Any]:
        def watched_forward(*args: Any, **kwargs: Any) -> Any:
            values = layer_input(args, kwargs)
            if values.numel():
                fed.append(moments_of(values))
            return forward(*args, **kwargs)

        return watched_forward

    layers = [layer for layer in norm_layers(batches.model) if before.modes[layer]]
    norms = _NormInputs({_buffer(place).data_ptr() for place in places})
    with fork_rng(batches.device), replaced_forward(layers, watching), in_training(modes), norms:
        batches.forward(inputs)
        left = {place: to_float64(_buffer(place)) for place in places}
    before.restore()
    return _Trial(left, fed, norms)


def _is_alike(trial: _Trial, expected: _Trial, *, but: nn.Module) -> bool:
    """Return whether BatchNorm and all layers in question but one saw the same."""
    return _agree(trial.fed, expected.fed) and all(
        value.shape == expected.left[place].shape
        and torch.allclose(value, expected.left[place], rtol=TOLERANCE, atol=ROUNDING, equal_nan=True)
        for place, value in trial.left.items()
        if place[0] is not but
    )


def _agree(found: Sequence[Moments], expected: Sequence[Moments]) -> bool:
    """Return whether BatchNorm layers were fed the same, but for rounding."""
    if len(found) != len(expected):
        return False
    for one, other in zip(found, expected, strict=True):
        if one.mean.shape != other.mean.shape or one.n != other.n:
            return False
        error = TOLERANCE * (other.m2 / other.n).sqrt() + ROUNDING * other.mean.abs()
        if not ((one.mean - other.mean).abs() <= error).all():
            return False
        if not ((one.m2 - other.m2).abs() <= TOLERANCE * other.m2).all():
            return False
    return True


def _find_partner(item: RunningBuffer, norms: _NormInputs, before: ModelState) -> None:
    """Find the mean that belongs to a variance, if torch itself normalises by both."""
    module, key = item.place
    partner = (module, key.replace("var", "mean"))
    if partner[1] != key and partner in before.buffers:
        counts = norms.values_per_channel.get(_buffer(partner).data_ptr(), [])
        if len(counts) == 1:
            item.partner = partner
            item.values_per_sample = counts[0]


def _constant_share(value: Tensor, large: Tensor, as_is: Tensor, from_zero: Tensor, from_large: Tensor) -> float | None:
    """Return f of a buffer that began as `value`, 0 and `large`; None if it does not move as a running statistic."""
    if not (as_is.shape == from_zero.shape == from_large.shape == value.shape):
        return None
    if not (from_zero.isfinite().all() and from_large.isfinite().all()):
        return None
    value, large = to_float64(value), to_float64(large)
    shares = 1 - (from_large - from_zero) / large
    mean = float(shares.mean())
    expected = from_zero + (1 - mean) * value
    is_affine = torch.isclose(as_is, expected, rtol=TOLERANCE, atol=TOLERANCE * mean, equal_nan=True)
    is_constant = TOLERANCE < mean <= 1 + TOLERANCE and float((shares - mean).abs().max()) < TOLERANCE
    return mean if is_constant and bool(is_affine.all()) else None


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
    before.restore()  # some layers, such as observers, move buffers in any mode
    read = []
    for name, place in places.items():
        values = comparable(_buffer(place))
        if values.is_floating_point():
            values.nan_to_num_(0, 1, -1).mul_(1.5).add_(0.5)  # an observer that saw nothing has an infinite range
        else:
            values.bitwise_not_()
        found = _output_tensors(batches.forward(inputs))
        before.restore()
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


def _version(buffer: Tensor) -> int | None:
    return None if buffer.is_inference() else buffer._version


def _is_written(place: Place, before: ModelState, version: int | None) -> bool:
    """Return whether a pass has written into a buffer since it had this version, even what was there.

    A running maximum shows only so that it may move in another batch. Writes through `.data` leave the version, so
    values count, too; NaN equals NaN. A tensor of another shape is a cache that any pass fills anew.
    """
    found, (buffer, kept) = _buffer(place), before.buffers[place]
    if found.shape != kept.shape:
        return False
    if found is not buffer or _version(found) != version:
        return True
    found, kept = comparable(found), comparable(kept)
    if not torch.equal(found.isnan(), kept.isnan()):
        return True
    return not torch.equal(found.nan_to_num(), kept.nan_to_num())
