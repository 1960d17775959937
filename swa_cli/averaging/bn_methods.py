"""The two methods of measuring BatchNorm layers: pooled, in one pass, and exact, layer by layer.

One idea: with momentum 1 the running statistics of a layer in training mode are those of the batch just seen, so the
pooled pass computes nothing twice. The exact pass ends at the layer to be measured, while all layers upstream normalise
by their new statistics.

B samples; C channels; n values per channel; M2 sum of squared distances from the mean, both (C,) in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import reduce
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from swa_cli.averaging.bn_layers import (
    Batches,
    Gather,
    Moments,
    gather_single_process,
    in_mode,
    layer_input,
    map_tensors,
    merge_moments,
    moments_of,
    no_samples,
    num_samples,
    replaced_forward,
    statistics_of,
    to_float64,
)
from swa_cli.averaging.bn_other_layers import OtherStatistics
from swa_cli.errors import UserError

# Classes whose forward leaves the moments of its input in the buffers; other classes are checked against their input.
KNOWN = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
TOLERANCE = 0.02  # of a standard deviation, between the mean of a batch and what a layer of another class keeps

Measured = tuple[dict[_BatchNorm, Moments], int]  # the moments of each layer, and the samples in this process


class UnlikeBatchNormError(Exception):
    """`layer`, of a subclass of BatchNorm, keeps something else than the moments of its input."""

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__(type(layer).__name__)
        self.layer = layer


def measure_pooled(
    names: dict[_BatchNorm, str], batches: Batches, gather: Gather, *, stream: Iterable[Any], others: OtherStatistics
) -> Measured:
    """Measure all layers in one pass, in which each layer normalises by its batch, as in training.

    Below float32 the running statistics would be rounded, so there the moments are computed from the input.

    Args:
        names: The layers to measure, with their names.
        batches: Of a model in eval mode; the layers are in training mode during the pass.
        gather: See `update_batchnorm`.
        stream: The batches of the pass.
        others: Layers of other kinds, measured in the same pass.

    Raises:
        UnlikeBatchNormError: On its first batch, a layer of another class than torch's kept something else.
    """
    statistics = {layer: statistics_of(layer) for layer in names}
    layer_moments = _LayerMoments(statistics)
    narrow: dict[_BatchNorm, Moments] = {}
    unchecked = {layer for layer in names if type(layer).forward not in KNOWN}

    def measuring(layer: _BatchNorm, forward: Callable[..., Any]) -> Callable[..., Any]:
        is_narrow = statistics[layer][0].dtype.itemsize < 4

        def measured_forward(*args: Any, **kwargs: Any) -> Any:
            values = layer_input(args, kwargs)
            n = values.numel() // len(statistics[layer][0])  # of a part, if the layer keeps statistics of parts
            if n == 1:
                raise UserError(
                    f"{names[layer]}: a batch has one value per channel, which has no variance",
                    hint="use larger batches, or method exact",
                )
            layer_moments.before(layer)
            output = forward(*args, **kwargs)
            if is_narrow:
                narrow[layer] = merge_moments(narrow.get(layer), moments_of(values))
            else:
                layer_moments.after(layer, n)
            if layer in unchecked:
                unchecked.remove(layer)
                _require_moments_of(values, layer, statistics[layer][0])
            return output

        return measured_forward

    for layer in names:
        layer.momentum = 1.0
        for statistic in statistics[layer]:
            statistic.zero_()  # the old ones enter with weight 0, and 0 * NaN would be NaN
    total = 0
    with in_mode(dict.fromkeys([*names, *others.modules], True)), replaced_forward(names, measuring):
        for inputs in stream:
            others.before_batch()
            batches.forward(inputs)
            layer_moments.merge()
            others.after_batch(num_samples(inputs))
            total += num_samples(inputs)
    own = layer_moments.by_layer() | narrow
    processes = gather({names[layer]: moments.on_cpu() for layer, moments in own.items()})
    parts = {layer: [part[name] for part in processes if name in part] for layer, name in names.items()}
    return {layer: reduce(merge_moments, found) for layer, found in parts.items() if found}, total


def measure_exact(
    names: dict[_BatchNorm, str], batches: Batches, gather: Gather, *, first: Any, stream: Iterator[Any]
) -> Measured:
    """Measure the layers one by one in the order of execution, each in a pass that ends there, all in eval mode.

    The result equals that of one batch of the whole dataset, whatever the batches.

    Args:
        names: The layers to measure, with their names.
        batches: Of a model in eval mode; read again for each layer but the first.
        gather: See `update_batchnorm`.
        first: The first batch.
        stream: The other batches, for the first layer.

    Raises:
        UserError: A layer keeps statistics of parts of a batch or is executed more than once per forward pass, or the
            loader can be read only once.
    """
    for layer, name in names.items():
        if len(statistics_of(layer)[0]) != layer.num_features:
            message = f"{name}: keeps statistics of parts of a batch, which method exact does not support"
            raise UserError(message, hint="use method pooled")
    order = _execution_order(names, batches, map_tensors(first, lambda values: values[:2]))
    if len(order) > 1 and isinstance(batches.loader, Iterator):
        raise UserError(
            "method exact reads the samples once per layer, and this iterator can be read only once",
            hint="pass a DataLoader or a list, or use method pooled",
        )
    found: dict[_BatchNorm, Moments] = {}
    total = 0
    for layer in order:
        source = chain([first], stream) if layer is order[0] else batches
        moments, total = _measure_input(layer, batches, source, gather)
        # Biased while the layers after it are measured: a batch is normalised by its own biased variance.
        running_mean, running_var = statistics_of(layer)
        running_mean.copy_(moments.mean)
        running_var.copy_(moments.m2 / moments.n)
        found[layer] = moments
    return found, total


class _LayerMoments:
    """Moments of the layers of a network, merged for all layers of a forward pass at once.

    Args:
        statistics: For each layer the tensors (C,) where it leaves the mean and unbiased variance of a batch.
    """

    def __init__(self, statistics: Mapping[_BatchNorm, tuple[Tensor, Tensor]]) -> None:
        self._statistics = statistics
        self._executed: dict[_BatchNorm, int] = {}  # since the last merge -> n of each
        self._rows: dict[tuple[_BatchNorm, ...], Moments] = {}  # the layers of a pass -> their channels in a row
        self._counts: dict[tuple[Any, ...], Tensor] = {}  # those layers and n of each -> n of each channel

    def before(self, layer: _BatchNorm) -> None:
        """Prepare for the execution of a layer, which overwrites its statistics."""
        if layer in self._executed:
            self.merge()

    def after(self, layer: _BatchNorm, n: int) -> None:
        """Record that a layer was executed on n values per channel."""
        self._executed[layer] = n

    def merge(self) -> None:
        """Merge the statistics of the layers that were executed."""
        by_device: dict[torch.device, dict[_BatchNorm, int]] = {}  # a network may be spread over several
        for layer, n in self._executed.items():
            by_device.setdefault(self._statistics[layer][0].device, {})[layer] = n
        self._executed.clear()
        for executed in by_device.values():
            self._merge_row(tuple(executed), tuple(executed.values()))

    def _merge_row(self, layers: tuple[_BatchNorm, ...], counts: tuple[int, ...]) -> None:
        means, variances = zip(*(self._statistics[layer] for layer in layers), strict=True)
        mean, variance = to_float64(torch.cat(means + variances)).chunk(2)
        if (layers, counts) not in self._counts:
            sizes = torch.tensor([len(values) for values in means])
            n = torch.tensor(counts, dtype=torch.float64).repeat_interleave(sizes)
            self._counts[layers, counts] = n.to(mean.device)
        n = self._counts[layers, counts]
        self._rows[layers] = merge_moments(self._rows.get(layers), Moments(n, mean, variance * (n - 1)))

    def by_layer(self) -> dict[_BatchNorm, Moments]:
        """Return the merged moments of each layer."""
        found: dict[_BatchNorm, Moments] = {}
        for layers, row in self._rows.items():
            assert isinstance(row.n, Tensor)
            sizes = [len(self._statistics[layer][0]) for layer in layers]
            parts = zip(layers, row.n.split(sizes), row.mean.split(sizes), row.m2.split(sizes), strict=True)
            for layer, n, mean, m2 in parts:
                found[layer] = merge_moments(found.get(layer), Moments(int(n[0]), mean, m2))
        return found


def _require_moments_of(values: Tensor, layer: _BatchNorm, mean: Tensor) -> None:
    """Compare the mean that a layer of a class of the user's keeps with that of its input (B, C, ...)."""
    expected = moments_of(values)
    deviation = (expected.m2 / expected.n).sqrt()
    num_channels = len(expected.mean)
    parts = mean.view(-1, num_channels) if len(mean) % num_channels == 0 else mean[None, :0]
    found = parts.double().mean(0)
    if len(found) != num_channels or not torch.all((found - expected.mean).abs() <= TOLERANCE * deviation + 1e-6):
        raise UnlikeBatchNormError(layer)


class _StopForward(BaseException):
    """Ends a forward pass at the layer to be measured; no `except Exception` of a model can swallow it."""


def _execution_order(names: dict[_BatchNorm, str], batches: Batches, inputs: Any) -> list[_BatchNorm]:
    """Return the layers in the order in which a forward pass executes them."""
    order: list[_BatchNorm] = []

    def recording(layer: _BatchNorm, forward: Callable[..., Any]) -> Callable[..., Any]:
        def recorded_forward(*args: Any, **kwargs: Any) -> Any:
            if layer in order:
                raise UserError(
                    f"{names[layer]}: is executed more than once per forward pass, which method exact does not support",
                    hint="use method pooled",
                )
            order.append(layer)
            return forward(*args, **kwargs)

        return recorded_forward

    with replaced_forward(names, recording):
        batches.forward(inputs)
    return order


def _measure_input(layer: _BatchNorm, batches: Batches, source: Iterable[Any], gather: Gather) -> tuple[Moments, int]:
    """Return the moments of the input of `layer` in all processes, and the number of samples in this one.

    Merging rounds, so processes that share the batches keep the moments of each batch and merge them in the order of
    one process.
    """
    found: list[Moments] = []
    total = 0

    def take(*args: Any, **kwargs: Any) -> None:
        found.append(moments_of(layer_input(args, kwargs)))
        if gather is gather_single_process:
            found[:] = [reduce(merge_moments, found)]
        raise _StopForward

    with replaced_forward([layer], lambda _layer, _forward: take):
        for inputs in source:
            total += num_samples(inputs)
            with suppress(_StopForward):
                batches.forward(inputs)
    if not found:
        raise no_samples()
    parts = gather([moments.on_cpu() for moments in found])
    return reduce(merge_moments, chain.from_iterable(parts)), total
