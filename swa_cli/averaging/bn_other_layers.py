"""Running statistics of other layers than eager BatchNorm: InstanceNorm, norms in TorchScript, norms of one's own.

One idea: such a layer moves a buffer r to (1 - f) r + f s with a statistic s of the batch. Two passes of one batch,
from r = 0 and from r = 1, give f whatever the class, and show whether this is how the layer works. Its statistic of a
batch is then what it leaves in a zeroed buffer, divided by f; that of the data is the mean over the samples. Only where
torch itself normalises by the buffers, as in a scripted BatchNorm, is the variance between batches a part of it.

A buffer that training moves in any other way, and that evaluation reads, cannot be measured: it is named.

B samples; C channels; n values per channel; M2 sum of squared distances from the mean.
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

from swa_cli.averaging.batch_args import Batches
from swa_cli.averaging.bn_layers import Moments, merged, to_float64

TOLERANCE = 1e-4  # of f over the values of a buffer: float32 rounds


@dataclass
class Running:
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
    def buffer(self) -> Tensor:
        """As it is now."""
        value = self.module._buffers[self.key]
        assert value is not None
        return value


@dataclass(frozen=True)
class Others:
    """What a network has besides eager BatchNorm layers, as one batch has shown it."""

    running: Mapping[str, Running] = field(default_factory=dict)  # name of the buffer -> how to measure it
    unmeasured: tuple[str, ...] = ()  # names of buffers that training moves, evaluation reads, and nobody can measure
    moved: tuple[str, ...] = ()  # all that training moves, these and others


def find(model: nn.Module, batches: Batches, samples: Any, *, modes: Mapping[nn.Module, bool]) -> Others:
    """Look at what a forward pass in training mode does to the buffers of a model.

    The caller restores buffers and the random state.

    Args:
        model: All of it in eval mode.
        batches: How samples go through the model.
        samples: One batch.
        modes: Which modules were in training mode: others are frozen, unless none was.
    """
    candidates = _float_buffers(model)
    if not candidates:
        return Others()
    copies = {name: _buffer(*place).clone() for name, place in candidates.items()}
    counters = _counters(module for module, _ in candidates.values())
    layers = {module for module in modes if isinstance(module, _BatchNorm)}

    def passed(modules: Mapping[nn.Module, bool]) -> None:
        with _in_mode(modules):
            batches.through(model, samples)

    training = dict(modes) if any(modes.values()) else dict.fromkeys(modes, True)
    passed(training)
    moved = {name: place for name, place in candidates.items() if not _same(_buffer(*place), copies[name])}
    for name, place in candidates.items():
        _put(*place, copies[name])
    _restore(counters)
    leaves = {name: place for name, place in moved.items() if next(place[0].children(), None) is None}
    own = {module for module, _ in leaves.values()} | layers
    running = _calibrated(leaves, lambda: passed({module: training[module] for module in own})) if leaves else {}
    for name, place in moved.items():
        _put(*place, copies[name])
    _restore(counters)
    left = {name: place for name, place in moved.items() if name not in running}
    return Others(running, tuple(_that_are_read(model, batches, samples, left)), tuple(moved))


def _float_buffers(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """By name, the module and the key of each floating-point buffer that is none of an eager BatchNorm layer."""
    return {
        f"{prefix}.{key}" if prefix else key: (module, key)
        for prefix, module in model.named_modules()
        if not isinstance(module, _BatchNorm)
        for key, value in module.named_buffers(recurse=False)
        if value.is_floating_point() and value.layout == torch.strided
    }


class Measuring:
    """Collects the statistics of the others while a caller gives batches to the model, in training mode for them."""

    def __init__(self, others: Others) -> None:
        self._names, self._running = list(others.running), list(others.running.values())
        self._counters = _counters(item.module for item in self._running)

    @property
    def modules(self) -> list[nn.Module]:
        """The layers, each once."""
        return list({id(item.module): item.module for item in self._running}.values())

    def before_batch(self) -> None:
        """Zero what the batch will fill; a layer that counts its batches begins at the same count each time."""
        for item in self._running:
            item.buffer.zero_()
        _restore(self._counters)

    def after_batch(self, samples: int) -> None:
        """Take in what a batch of so many samples has left."""
        for item in self._running:
            statistic = to_float64(item.buffer) / item.share
            if item.partner is None:
                item.sum = statistic * samples + (0 if item.sum is None else item.sum)
                item.weight += samples
            else:
                n = item.values_per_sample * samples
                mean = to_float64(_buffer(item.module, item.partner)) / item.share
                item.moments = merged(item.moments, Moments(n, mean, statistic * (n - 1)))

    def found(self, gathered: Callable[[Any], list[Any]]) -> dict[str, Tensor]:
        """By the name of its buffer, the statistic of all samples in float64, over the batches of all processes."""
        parts = gathered([(item.sum, item.weight, item.moments and item.moments.on_cpu()) for item in self._running])
        found = {}
        for name, each in zip(self._names, zip(*parts, strict=True), strict=True):
            taken = [part for part in each if part[1] or part[2] is not None]
            if taken[0][2] is None:
                found[name] = sum(total.cpu() for total, _, _ in taken) / sum(weight for _, weight, _ in taken)
            else:
                moments = reduce(merged, (moments for _, _, moments in taken))
                found[name] = moments.m2 / (moments.n - 1)
        return found


def _calibrated(leaves: Mapping[str, tuple[nn.Module, str]], passed: Callable[[], None]) -> dict[str, Running]:
    """Those of the buffers that move as running statistics do, with their share."""
    fills: list[dict[str, Tensor]] = []
    counters = _counters(module for module, _ in leaves.values())
    inputs: dict[int, list[int]] = {}
    for fill in (0.0, 1.0):
        for module, key in leaves.values():
            _buffer(module, key).fill_(fill)
        _restore(counters)
        where = {_buffer(module, key).data_ptr(): (module, key) for module, key in leaves.values()}
        with _NormInputs(where.keys()) as seen:
            passed()
        inputs = seen.values_per_channel
        fills.append({name: to_float64(_buffer(*place)) for name, place in leaves.items()})
    running: dict[str, Running] = {}
    for name, (module, key) in leaves.items():
        zero, one = fills[0][name], fills[1][name]
        if zero.shape != one.shape or not (zero.isfinite().all() and one.isfinite().all()):
            continue
        share = 1 - (one - zero)
        mean_share = float(share.mean())
        if not (TOLERANCE < mean_share <= 1 + TOLERANCE and float((share - mean_share).abs().max()) < TOLERANCE):
            continue
        running[name] = Running(module, key, mean_share)
        mean_key = key.replace("var", "mean")
        partner = dict(module.named_buffers(recurse=False)).get(mean_key) if mean_key != key else None
        counts = [] if partner is None else inputs.get(partner.data_ptr(), [])
        if len(counts) == 1:
            running[name].partner = mean_key
            running[name].values_per_sample = counts[0]
    return running


class _NormInputs(TorchDispatchMode):
    """Notes how many values per channel and sample each batch_norm sees whose running mean lies at a known address.

    The dispatcher also sees what runs inside TorchScript, where hooks are not called.
    """

    def __init__(self, addresses: Any) -> None:
        super().__init__()
        self._addresses = set(addresses)
        self.values_per_channel: dict[int, list[int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "batch_norm" in str(func) and len(args) > 3 and isinstance(args[3], Tensor):
            address, values = args[3].data_ptr(), args[0]
            if address in self._addresses:
                count = values.numel() // (values.shape[0] * values.shape[1])
                self.values_per_channel.setdefault(address, []).append(count)
        return func(*args, **(kwargs or {}))


def _that_are_read(
    model: nn.Module, batches: Batches, samples: Any, places: Mapping[str, tuple[nn.Module, str]]
) -> Iterator[str]:
    """The names of the buffers that change what the model gives in eval mode."""
    if not places:
        return
    everything = dict.fromkeys(model.modules(), False)
    with _in_mode(everything):
        expected = _tensors(batches.outputs(model, samples))
        for name, (module, key) in places.items():
            value = _buffer(module, key).clone()
            _put(module, key, value * 1.5 + 0.5)
            found = _tensors(batches.outputs(model, samples))
            _put(module, key, value)
            if any(not torch.equal(one, other) for one, other in zip(expected, found, strict=True)):
                yield name


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = outputs.values()
    return [tensor for part in outputs for tensor in _tensors(part)] if hasattr(outputs, "__iter__") else []


@contextmanager
def _in_mode(modes: Mapping[nn.Module, bool]) -> Iterator[None]:
    """Each module in the mode that is given for it; flags are set one by one because models override `train()`."""
    before = {module: module.training for module in modes}
    try:
        for module, mode in modes.items():
            module.training = mode
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


def _counters(modules: Iterable[nn.Module]) -> dict[tuple[nn.Module, str], Tensor]:
    """Copies of the buffers of whole numbers."""
    return {
        (module, key): value.clone()
        for module in modules
        for key, value in module.named_buffers(recurse=False)
        if not value.is_floating_point()
    }


def _restore(copies: Mapping[tuple[nn.Module, str], Tensor]) -> None:
    for (module, key), value in copies.items():
        _put(module, key, value)


def _buffer(module: nn.Module, key: str) -> Tensor:
    value = module._buffers[key]
    assert value is not None
    return value


def _put(module: nn.Module, key: str, value: Tensor) -> None:
    """Give a buffer its values back; it may have been replaced by one of another shape."""
    present = module._buffers[key]
    if present is not None and present.shape == value.shape:
        present.copy_(value)
    else:
        module._buffers[key] = value.clone()


def _same(found: Tensor, before: Tensor) -> bool:
    """Whether all values are equal; NaN equals NaN."""
    if found.shape != before.shape or not torch.equal(found.isnan(), before.isnan()):
        return False
    return torch.equal(found.nan_to_num(), before.nan_to_num())
