"""BatchNorm statistics in one pass, every layer normalising by its batch, as in training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from swa_cli.averaging.batch_args import Batches, no_samples
from swa_cli.averaging.bn_layers import (
    LayerMoments,
    Moments,
    input_of,
    merged,
    moments_of,
    statistics_of,
    with_forward_of,
)
from swa_cli.averaging.bn_other_layers import Measuring
from swa_cli.errors import UserError

# Classes whose forward leaves the moments of its input in the buffers; that of others is held against its input once.
KNOWN = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
TOLERANCE = 0.02  # of a standard deviation, between a batch's mean and what a layer of another class leaves


class Unlike(Exception):  # noqa: N818  (it names what a layer is)
    """A layer that is a BatchNorm by its class, and does not keep the moments of its input.

    Attributes:
        layer: Which one.
    """

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__(type(layer).__name__)
        self.layer = layer


def measure(
    model: nn.Module,
    names: dict[_BatchNorm, str],
    batches: Batches,
    gathered: Callable[[Any], list[Any]],
    *,
    stream: Iterable[Any],
    others: Measuring,
) -> tuple[dict[_BatchNorm, Moments], int]:
    """One pass with the layers in training mode.

    With momentum 1 their running statistics are those of the batch just seen: nothing is computed twice.
    Below float32 they would be rounded, so the statistics are taken from the input.

    Raises:
        Unlike: Of the first batch, a layer of another class than torch's left something else than its moments.
    """
    statistics = {layer: statistics_of(layer) for layer in names}
    layer_moments = LayerMoments(statistics)
    narrow: dict[_BatchNorm, Moments] = {}
    unknown = {layer for layer in names if type(layer).forward not in KNOWN}

    def measuring(layer: _BatchNorm, forward: Callable[..., Any]) -> Callable[..., Any]:
        is_narrow = statistics[layer][0].dtype.itemsize < 4

        def measured(*args: Any, **kwargs: Any) -> Any:
            values = input_of(args, kwargs)
            n = values.numel() // len(statistics[layer][0])  # of a layer with statistics of parts, those of a part
            if n == 1:
                raise UserError(
                    f"{names[layer]}: a batch has one value a channel, which has no variance",
                    hint="use larger batches, or method exact",
                )
            layer_moments.before(layer)
            output = forward(*args, **kwargs)
            if is_narrow:
                narrow[layer] = merged(narrow.get(layer), moments_of(values))
            else:
                layer_moments.after(layer, n)
            if layer in unknown:
                unknown.remove(layer)
                _require_moments_of(values, layer, statistics[layer][0])
            return output

        return measured

    for layer in names:
        layer.training = True
        layer.momentum = 1.0
        for statistic in statistics[layer]:
            statistic.zero_()  # the old ones enter with weight 0, and 0 * NaN would be NaN
    for module in others.modules:
        module.training = True
    num_samples = 0
    with with_forward_of(names, measuring):
        for samples in stream:
            others.before_batch()
            count = batches.through(model, samples)
            layer_moments.merge()
            others.after_batch(count)
            num_samples += count
    if not num_samples:
        raise no_samples()
    own = layer_moments.of_each() | narrow
    everyone = gathered({names[layer]: moments.on_cpu() for layer, moments in own.items()})
    found = {layer: [part[name] for part in everyone if name in part] for layer, name in names.items()}
    return {layer: reduce(merged, parts) for layer, parts in found.items() if parts}, num_samples


def _require_moments_of(values: Tensor, layer: _BatchNorm, found: Tensor) -> None:
    """Hold what a layer of a class of one's own has left against its input (B, C, ...)."""
    right = moments_of(values)
    deviation = (right.m2 / right.n).sqrt()
    parts = found.view(-1, len(right.mean)) if len(found) % len(right.mean) == 0 else found[None, :0]
    mean = parts.double().mean(0)
    if len(mean) != len(right.mean) or not torch.all((mean - right.mean).abs() <= TOLERANCE * deviation + 1e-6):
        raise Unlike(layer)
