"""Running statistics of layers other than eager BatchNorm: InstanceNorm, norms in TorchScript, norms of the user's.

One idea: such a layer moves a buffer r to (1 - f) r + f s with a statistic s of the batch. Two passes of one batch,
from r = 0 and from r = 1, give f for any class, and show whether the layer works like this. Its statistic of a batch is
then what it leaves in a zeroed buffer, divided by f; that of the data is the mean over the samples. Only where torch
itself normalises by the buffers, as in a scripted BatchNorm, does it include the variance between batches.

A buffer that training changes in any other way, and that evaluation reads, cannot be measured; it is reported by name.

B samples; C channels; n values per channel; M2 sum of squared distances from the mean; f share of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from swa_cli.averaging.bn_layers import Batches, Gather, Moments, merge_moments, to_float64

TOLERANCE = 1e-4  # of f over the values of a buffer: float32 rounds

Place = tuple[nn.Module, str]  # where a buffer is: the module and its key there


@dataclass
class RunningBuffer:
    """A buffer that moves to (1 - share) r + share s with each batch; `sum` and `weight` collect s."""

    module: nn.Module
    key: str
    share: float
    partner: str | None = None  # of a variance that torch normalises by: the key of its mean
    values_per_sample: int = 1  # n of a batch, divided by B
    sum: Tensor | None = None  # float64, of s times samples
    weight: int = 0
    moments: Moments | None = None

    @property
    def value(self) -> Tensor:
        """The present tensor."""
        return _buffer(self.module, self.key)


@dataclass(frozen=True)
class OtherLayers:
    """What one batch shows of a network's layers besides eager BatchNorm."""

    running: Mapping[str, RunningBuffer] = field(default_factory=dict)  # name of the buffer -> how to measure it
    unmeasured: tuple[str, ...] = ()  # buffers that training changes and evaluation reads, and that none can measure
    moved: tuple[str, ...] = ()  # all buffers that training changes


def find_other_layers(
    model: nn.Module, batches: Batches, inputs: Any, *, modes: Mapping[nn.Module, bool]
) -> OtherLayers:
    """Find out what a forward pass in training mode does to the buffers of a model.

    The caller restores buffers and the random state.

    Args:
        model: All of it in eval mode.
        batches: Gives batches to the model.
        inputs: One batch.
        modes: Which modules were in training mode: the others are frozen, unless none was.
    """
    candidates = _float_buffers(model)
    if not candidates:
        return OtherLayers()
    copies = {name: _buffer(*place).clone() for name, place in candidates.items()}
    counters = _copy_counters(module for module, _ in candidates.values())
    layers = {module for module in modes if isinstance(module, _BatchNorm)}

    def forward(modules: Mapping[nn.Module, bool]) -> None:
        with _in_mode(modules):
            batches.forward(model, inputs)

    training = dict(modes) if any(modes.values()) else dict.fromkeys(modes, True)
    forward(training)
    moved = {name: place for name, place in candidates.items() if not _is_equal(_buffer(*place), copies[name])}
    for name, place in candidates.items():
        _put(*place, copies[name])
    _restore(counters)
    leaves = {name: place for name, place in moved.items() if next(place[0].children(), None) is None}
    measured = {module for module, _ in leaves.values()} | layers
    running = _calibrate(leaves, lambda: forward({module: training[module] for module in measured})) if leaves else {}
    for name, place in moved.items():
        _put(*place, copies[name])
    _restore(counters)
    rest = {name: place for name, place in moved.items() if name not in running}
    return OtherLayers(running, tuple(_read_in_eval_mode(model, batches, inputs, rest)), tuple(moved))


class OtherStatistics:
    """Collects the statistics of other layers while the caller gives batches to the model."""

    def __init__(self, layers: OtherLayers) -> None:
        self._running = layers.running
        self._counters = _copy_counters(item.module for item in layers.running.values())

    @property
    def modules(self) -> list[nn.Module]:
        """The layers, each once; they have to be in training mode."""
        return list({id(item.module): item.module for item in self._running.values()}.values())

    def before_batch(self) -> None:
        """Zero what the batch will fill, and reset counters: a layer may count its batches."""
        for item in self._running.values():
            item.value.zero_()
        _restore(self._counters)

    def after_batch(self, num_samples: int) -> None:
        """Collect what a batch has left."""
        for item in self._running.values():
            statistic = to_float64(item.value) / item.share
            if item.partner is None:
                item.sum = statistic * num_samples + (0 if item.sum is None else item.sum)
                item.weight += num_samples
            else:
                n = item.values_per_sample * num_samples
                mean = to_float64(_buffer(item.module, item.partner)) / item.share
                item.moments = merge_moments(item.moments, Moments(n, mean, statistic * (n - 1)))

    def result(self, gather: Gather) -> dict[str, Tensor]:
        """Return the statistic of all samples in float64 by the name of its buffer, over all processes."""
        items = self._running.values()
        processes = gather([(item.sum, item.weight, item.moments and item.moments.on_cpu()) for item in items])
        found = {}
        for name, parts in zip(self._running, zip(*processes, strict=True), strict=True):
            taken = [part for part in parts if part[1] or part[2] is not None]
            if taken[0][2] is None:
                found[name] = sum(total.cpu() for total, _, _ in taken) / sum(weight for _, weight, _ in taken)
            else:
                moments = reduce(merge_moments, (moments for _, _, moments in taken))
                found[name] = moments.m2 / (moments.n - 1)
        return found


def _float_buffers(model: nn.Module) -> dict[str, Place]:
    """Return the floating-point buffers by name, without those of eager BatchNorm layers."""
    return {
        f"{prefix}.{key}" if prefix else key: (module, key)
        for prefix, module in model.named_modules()
        if not isinstance(module, _BatchNorm)
        for key, value in module.named_buffers(recurse=False)
        if value.is_floating_point() and value.layout == torch.strided
    }


def _calibrate(leaves: Mapping[str, Place], forward: Callable[[], None]) -> dict[str, RunningBuffer]:
    """Return the buffers that move as running statistics do, with their share."""
    fills: list[dict[str, Tensor]] = []
    counters = _copy_counters(module for module, _ in leaves.values())
    values_per_channel: dict[int, list[int]] = {}
    for fill in (0.0, 1.0):
        for place in leaves.values():
            _buffer(*place).fill_(fill)
        _restore(counters)
        with _NormInputs({_buffer(*place).data_ptr() for place in leaves.values()}) as norms:
            forward()
        values_per_channel = norms.values_per_channel
        fills.append({name: to_float64(_buffer(*place)) for name, place in leaves.items()})
    running: dict[str, RunningBuffer] = {}
    for name, (module, key) in leaves.items():
        share = _constant_share(fills[0][name], fills[1][name])
        if share is None:
            continue
        running[name] = RunningBuffer(module, key, share)
        mean_key = key.replace("var", "mean")
        partner = dict(module.named_buffers(recurse=False)).get(mean_key) if mean_key != key else None
        counts = [] if partner is None else values_per_channel.get(partner.data_ptr(), [])
        if len(counts) == 1:
            running[name].partner = mean_key
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
            if address in self._addresses:
                count = values.numel() // (values.shape[0] * values.shape[1])
                self.values_per_channel.setdefault(address, []).append(count)
        return func(*args, **(kwargs or {}))


def _read_in_eval_mode(model: nn.Module, batches: Batches, inputs: Any, places: Mapping[str, Place]) -> Iterator[str]:
    """Yield the names of the buffers that change the outputs in eval mode."""
    if not places:
        return
    with _in_mode(dict.fromkeys(model.modules(), False)):
        expected = _output_tensors(batches.forward(model, inputs))
        for name, (module, key) in places.items():
            value = _buffer(module, key).clone()
            _put(module, key, value * 1.5 + 0.5)
            found = _output_tensors(batches.forward(model, inputs))
            _put(module, key, value)
            if any(not torch.equal(one, other) for one, other in zip(expected, found, strict=True)):
                yield name


def _output_tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = outputs.values()
    return [tensor for part in outputs for tensor in _output_tensors(part)] if hasattr(outputs, "__iter__") else []


@contextmanager
def _in_mode(modes: Mapping[nn.Module, bool]) -> Iterator[None]:
    """Put each module into its mode inside the context; flags are set one by one because models override `train()`."""
    before = {module: module.training for module in modes}
    try:
        for module, mode in modes.items():
            module.training = mode
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


def _copy_counters(modules: Iterable[nn.Module]) -> dict[Place, Tensor]:
    """Copy the integer buffers."""
    return {
        (module, key): value.clone()
        for module in modules
        for key, value in module.named_buffers(recurse=False)
        if not value.is_floating_point()
    }


def _restore(copies: Mapping[Place, Tensor]) -> None:
    for (module, key), value in copies.items():
        _put(module, key, value)


def _buffer(module: nn.Module, key: str) -> Tensor:
    value = module._buffers[key]
    assert value is not None
    return value


def _put(module: nn.Module, key: str, value: Tensor) -> None:
    """Restore the values of a buffer; the model may have replaced it by one of another shape."""
    present = module._buffers[key]
    if present is not None and present.shape == value.shape:
        present.copy_(value)
    else:
        module._buffers[key] = value.clone()


def _is_equal(found: Tensor, before: Tensor) -> bool:
    """Whether all values are equal; NaN equals NaN."""
    if found.shape != before.shape or not torch.equal(found.isnan(), before.isnan()):
        return False
    return torch.equal(found.nan_to_num(), before.nan_to_num())
