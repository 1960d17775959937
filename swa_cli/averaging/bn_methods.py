"""The two methods of measuring BatchNorm layers: pooled, in one pass, and exact, layer by layer.

One idea: with momentum 1 the running statistics of a layer in training mode are those of the batch just seen, so the
pooled pass computes nothing twice. The exact pass ends at the layer to be measured, while all layers upstream normalise
by their new statistics.

B samples; C channels; n values per channel; M2 sum of squared distances from the mean, both (C,) in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import suppress
from functools import reduce
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from swa_cli.averaging.bn_layers import (
    Batches,
    Gather,
    Kept,
    Moments,
    Pass,
    gather_single_process,
    layer_input,
    map_tensors,
    merge_moments,
    moments_of,
    moves_statistics,
    num_samples,
    replaced_forward,
    statistics_of,
    to_float64,
)
from swa_cli.averaging.bn_other_layers import OtherStatistics
from swa_cli.averaging.model_state import in_mode, in_training
from swa_cli.errors import UserError

# Those that leave the moments of their input in the buffers; a layer with another one is checked against its input.
KNOWN_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
TOLERANCE = 0.02  # of a standard deviation, between the mean of a batch and what a layer of another class keeps

MAX_COUNTS = 16  # numbers of values that are kept on the device

Measured = tuple[dict[_BatchNorm, Moments], int]  # the moments of each layer, and the samples in this process


class KeptStatisticsError(Exception):
    """A pass is void: it took layers for measurable that keep their statistics; these are now in `kept`.

    Args:
        is_first: Whether only the first batch of the stream was read.
    """

    def __init__(self, *, is_first: bool) -> None:
        super().__init__()
        self.is_first = is_first


def measure_pooled(
    names: dict[_BatchNorm, str],
    batches: Batches,
    gather: Gather,
    *,
    stream: Iterable[Any],
    others: OtherStatistics,
    kept: Kept,
    is_trial: bool = False,
) -> Measured:
    """Measure all layers in one pass, in which each layer normalises by its batch, as in training.

    Below float32 the running statistics would be rounded, so there the moments are computed from the input. Without
    any layer, the batches are only counted.

    Args:
        names: The layers to measure, with their names.
        batches: Of a model in eval mode; the layers are in training mode during the pass.
        gather: See `update_batchnorm`.
        stream: The batches of the pass.
        others: Layers of other kinds, measured in the same pass.
        kept: What earlier passes found; layers that turn out to keep their statistics are added.
        is_trial: Whether the caller will measure the inputs instead of what a layer keeps of them.

    Raises:
        KeptStatisticsError: There are such layers. After its first batch each process raises it for itself, at the end
            all of them do.
    """
    statistics = {layer: statistics_of(layer) for layer in names}
    layer_moments = _LayerMoments(statistics)
    narrow: dict[_BatchNorm, Moments] = {}
    untouched = set(names)
    unchecked = {layer for layer in names if not is_known(layer)}

    owners: dict[int, _BatchNorm] = {}  # id of a running mean -> the first layer that has it
    for layer in names:
        owners.setdefault(id(statistics[layer][0]), layer)

    def measuring(layer: _BatchNorm, forward: Callable[..., Any]) -> Callable[..., Any]:
        mean, var = statistics[layer]
        owner = owners[id(mean)]
        is_narrow = mean.dtype.itemsize < 4
        is_plain = layer not in unchecked and not isinstance(layer, nn.SyncBatchNorm)  # which requires its count

        def measured_forward(*args: Any, **kwargs: Any) -> Any:
            values = layer_input(args, kwargs)
            n = values.numel() // mean.shape[0]  # of a part, if the layer keeps statistics of parts
            if not moves_statistics(layer):
                kept.setdefault(names[layer], False)
                return forward(*args, **kwargs)
            if n == 0:  # torch leaves the statistics alone
                return forward(*args, **kwargs)
            if n == 1:
                raise UserError(
                    f"{names[layer]}: a batch has one value per channel, which has no variance",
                    hint="use larger batches, or method exact",
                )
            if owner in untouched:
                untouched.remove(owner)
                for statistic in (mean, var):
                    statistic.zero_()  # the old ones enter with weight 0, and 0 * NaN would be NaN
            layer_moments.before(owner)
            output = _uncounted(layer, forward, args, kwargs) if is_plain else forward(*args, **kwargs)
            if layer in unchecked:
                unchecked.remove(layer)
                if not _keeps_moments_of(values, mean, var, with_variance=is_trial):
                    kept[names[layer]] = any(bool(statistic.any()) for statistic in (mean, var))  # both were 0
                    return output
            if is_narrow:
                narrow[owner] = merge_moments(narrow.get(owner), moments_of(values))
            else:
                layer_moments.after(owner, n)
            return output

        return measured_forward

    def found() -> dict[str, Moments]:
        return {names[layer]: moments.on_cpu() for layer, moments in (layer_moments.by_layer() | narrow).items()}

    for layer in names:
        layer.momentum = 1.0
    measured = {*names.values(), *others.names}
    total = 0
    with (
        in_mode(dict.fromkeys([*names, *others.modules], True)),
        replaced_forward(names, measuring),
        others.watched(kept),
    ):
        for inputs in stream:
            if measured:
                others.before_batch()
                batches.forward(inputs)
                layer_moments.merge()
                others.after_batch(num_samples(inputs))
            if not total and measured & kept.keys():
                _require_agreement(kept, [(measured, found().keys(), kept)], is_first=True)
            total += num_samples(inputs)
    processes = gather((found(), measured, kept))
    checks = [(every, moments.keys(), theirs) for moments, every, theirs in processes]
    _require_agreement(kept, checks, is_first=False)
    parts = {layer: [part[name] for part, _, _ in processes if name in part] for layer, name in names.items()}
    return {layer: reduce(merge_moments, moments) for layer, moments in parts.items() if moments}, total


def measure_exact(
    names: dict[_BatchNorm, str], batches: Batches, gather: Gather, *, stream: Pass, kept: Kept
) -> Measured:
    """Measure the layers one by one in the order of execution, each in a pass that ends there, all in eval mode.

    The result equals that of one batch of the whole dataset, whatever the batches.

    Args:
        names: The layers to measure, with their names.
        batches: Of a model in eval mode; read again for each layer but the first.
        gather: See `update_batchnorm`.
        stream: The batches for the first layer.
        kept: As for `measure_pooled`.

    Raises:
        KeptStatisticsError: Layers keep their statistics; all processes raise it together.
        UserError: A layer keeps statistics of parts of a batch or is executed more than once per forward pass, or the
            loader can be read only once.
    """
    for layer, name in names.items():
        mean, _ = statistics_of(layer)
        if not is_lazy(mean) and len(mean) != layer.num_features:
            message = f"{name}: keeps statistics of parts of a batch, which method exact does not support"
            raise UserError(message, hint="use method pooled")
        if shared := [other for other in names if statistics_of(other)[0] is mean][1:]:
            message = f"{name}: shares its statistics with {names[shared[0]]}, which method exact does not support"
            raise UserError(message, hint="use method pooled")
    if len(names) > 1 and isinstance(batches.loader, Iterator):
        raise UserError(
            "method exact reads the samples once per layer, and this iterator can be read only once",
            hint="pass a DataLoader or a list, or use method pooled",
        )
    source: Iterable[Any] = stream
    few = [map_tensors(stream.first, lambda values: values[:2].clone())]
    order = _execution_order(names, batches, few, gather, kept, is_first=True)
    if len(order) < len(names) == 1:
        order = list(names)
    elif len(order) < len(names):  # some may be executed for other samples only
        order = _execution_order(names, batches, source, gather, kept, is_first=False)
        source = batches
    found: dict[_BatchNorm, Moments] = {}
    total = 0
    for layer in order:
        moments, total = _measure_input(layer, names[layer], batches, source, gather, kept)
        source = batches
        if moments is None:
            continue
        # Biased while the layers after it are measured: a batch is normalised by its own biased variance.
        running_mean, running_var = statistics_of(layer)
        running_mean.copy_(moments.mean)
        running_var.copy_(moments.m2 / moments.n)
        found[layer] = moments
    return found, total


def modes_in_training(
    names: Mapping[_BatchNorm, str], batches: Batches, inputs: Any, modes: Mapping[nn.Module, bool]
) -> dict[str, set[bool]] | None:
    """Return whether each layer that is executed moves its statistics where every module is in its mode of training.

    A `forward` may set the modes of its layers by its own, which is another one in a pass. None if the network cannot
    be executed in those modes, for example without targets.
    """
    seen: dict[str, set[bool]] = {}

    def watching(layer: _BatchNorm, forward: Callable[..., Any]) -> Callable[..., Any]:
        def watched_forward(*args: Any, **kwargs: Any) -> Any:
            seen.setdefault(names[layer], set()).add(moves_statistics(layer))
            with in_mode({layer: False}):  # few samples may have no variance, and other processes no part in it
                return forward(*args, **kwargs)

        return watched_forward

    with replaced_forward(names, watching), in_training(modes):
        try:
            batches.forward(map_tensors(inputs, torch.clone))
        except Exception:  # of the network, in a mode that an average never needs
            return None
    return seen


def _uncounted(layer: _BatchNorm, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Execute a layer of torch's without counting the batch, which would cost 1 % of a pass."""
    count = layer._buffers.get("num_batches_tracked")
    if count is None:
        return forward(*args, **kwargs)
    layer._buffers["num_batches_tracked"] = None
    try:
        return forward(*args, **kwargs)
    finally:
        layer._buffers["num_batches_tracked"] = count


def is_known(layer: _BatchNorm) -> bool:
    """Return whether a layer has a forward of torch's; one may have replaced it in the object, or in the class."""
    method: Any = layer.forward
    is_own = type(method) is MethodType and method.__self__ is layer
    return is_own and method.__func__ in KNOWN_FORWARDS


def _require_agreement(kept: Kept, processes: Iterable[tuple[Set[str], Set[str], Kept]], *, is_first: bool) -> None:
    """Add what all processes found to `kept`; void the pass if one of them took any of it for measurable.

    Args:
        kept: Of this process.
        processes: Of each process, the layers that it took for measurable, those it moved, and its `kept`.
        is_first: See `KeptStatisticsError`.
    """
    measured, moved = set[str](), set[str]()
    for names, executed, found in processes:
        measured |= names
        moved |= executed
        kept.update({name: moves or kept.get(name, False) for name, moves in found.items()})
    kept.update(dict.fromkeys(moved & kept.keys(), True))
    if measured & kept.keys():
        raise KeptStatisticsError(is_first=is_first)


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
            if len(self._counts) == MAX_COUNTS:  # routed samples have another n in each batch
                self._counts.clear()
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


def _keeps_moments_of(values: Tensor, mean: Tensor, var: Tensor, *, with_variance: bool) -> bool:
    """Return whether the mean, and variance, that a layer with an unknown forward keeps are those of (B, C, ...)."""
    expected = moments_of(values)
    variance = expected.m2 / expected.n
    num_channels = len(expected.mean)
    parts = mean.view(-1, num_channels) if len(mean) % num_channels == 0 else mean[None, :0]
    found = parts.double().mean(0)
    if len(found) != num_channels or (variance.any() and not (mean.any() or var.any())):  # never moved from 0
        return False
    rounding = torch.finfo(mean.dtype).eps * expected.mean.abs() + 1e-6
    is_same = ((found - expected.mean).abs() <= TOLERANCE * variance.sqrt() + rounding).all()
    if with_variance and len(parts) == 1:  # biased or not
        is_same &= ((var.double() - variance).abs() <= (2 * TOLERANCE + 2 / expected.n) * variance + 1e-6).all()
    return bool(is_same)


class _StopForward(BaseException):
    """Ends a forward pass at the layer to be measured; no `except Exception` of a model can swallow it."""


def _execution_order(
    names: dict[_BatchNorm, str], batches: Batches, source: Iterable[Any], gather: Gather, kept: Kept, *, is_first: bool
) -> list[_BatchNorm]:
    """Return the layers in the order in which forward passes execute them: all after those that come before them.

    They normalise by the statistics that they have.
    """
    orders: dict[tuple[str, ...], None] = {}  # that some batch has had
    order: list[str] = []

    def recording(layer: _BatchNorm, forward: Callable[..., Any]) -> Callable[..., Any]:
        name = names[layer]

        def recorded_forward(*args: Any, **kwargs: Any) -> Any:
            if not moves_statistics(layer):
                kept.setdefault(name, False)
            elif name in order and name not in kept:
                raise UserError(
                    f"{name}: is executed more than once per forward pass, which method exact does not support",
                    hint="use method pooled",
                )
            elif name not in order:
                order.append(name)
            with in_mode({layer: False}):
                return forward(*args, **kwargs)

        return recorded_forward

    with in_mode(dict.fromkeys(names, True)), replaced_forward(names, recording):
        for inputs in source:
            order.clear()
            batches.forward(inputs)
            orders[tuple(order)] = None
    processes = gather(({*names.values()}, kept, list(orders)))
    checks = [(measured, set(chain.from_iterable(found)), theirs) for measured, theirs, found in processes]
    _require_agreement(kept, checks, is_first=is_first)
    graph = TopologicalSorter[str]()
    for one in chain.from_iterable(found for _, _, found in processes):
        for before, name in zip((None, *one), one, strict=False):
            graph.add(name, *([] if before is None else [before]))
    layers = {name: layer for layer, name in names.items()}
    try:
        return [layers[name] for name in graph.static_order()]
    except CycleError as error:
        raise UserError(
            f"{error.args[1][0]}: is executed in another order in some batches, which method exact does not support",
            hint="use method pooled",
        ) from error


def _measure_input(
    layer: _BatchNorm, name: str, batches: Batches, source: Iterable[Any], gather: Gather, kept: Kept
) -> tuple[Moments | None, int]:
    """Return the moments of the input of `layer` in all processes, and the number of samples in this one.

    None if the layer is fed no values. Merging rounds, so processes that share the batches keep the moments of each
    batch and merge them in the order of one process.
    """
    found: list[Moments] = []
    total = 0

    def take(*args: Any, **kwargs: Any) -> None:
        values = layer_input(args, kwargs)
        if not moves_statistics(layer):
            kept[name] = True  # in the first batch it was in training mode
        elif values.numel():
            found.append(moments_of(values))
            if gather is gather_single_process:
                found[:] = [reduce(merge_moments, found)]
        raise _StopForward

    with in_mode({layer: True}), replaced_forward([layer], lambda _layer, _forward: take):
        for inputs in source:
            total += num_samples(inputs)
            with suppress(_StopForward):
                batches.forward(inputs)
    processes = gather(([moments.on_cpu() for moments in found], kept))
    checks = [({name}, {name} if moments else set(), theirs) for moments, theirs in processes]
    _require_agreement(kept, checks, is_first=False)
    parts = list(chain.from_iterable(moments for moments, _ in processes))
    return (reduce(merge_moments, parts) if parts else None), total
