"""BatchNorm statistics in one pass, every layer normalising by its batch, as in training."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from swa_cli.averaging.inputs import Batches, no_samples
from swa_cli.averaging.layers import input_of, statistics_of, with_forward_of
from swa_cli.averaging.moments import LayerMoments, Moments, merged, moments_of
from swa_cli.errors import UserError


def measure(
    model: nn.Module, names: dict[_BatchNorm, str], batches: Batches, gathered: Callable[[Any], list[Any]]
) -> tuple[dict[_BatchNorm, Moments], int]:
    """One pass with the layers in training mode.

    With momentum 1 their running statistics are those of the batch just seen: nothing is computed twice.
    Below float32 they would be rounded, so the statistics are taken from the input.
    """
    statistics = {layer: statistics_of(layer) for layer in names}
    layer_moments = LayerMoments(statistics)
    narrow: dict[_BatchNorm, Moments] = {}

    def measuring(layer: _BatchNorm, forward: Callable[..., Any]) -> Callable[..., Any]:
        is_narrow = statistics[layer][0].dtype.itemsize < 4

        def measured(*args: Any, **kwargs: Any) -> Any:
            values = input_of(args, kwargs)
            n = values.numel() // values.shape[1]
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
            return output

        return measured

    for layer in names:
        layer.training = True
        layer.momentum = 1.0
        for statistic in statistics[layer]:
            statistic.zero_()  # the old ones enter with weight 0, and 0 * NaN would be NaN
    num_samples = 0
    with with_forward_of(names, measuring):
        for samples in batches:
            num_samples += batches.through(model, samples)
            layer_moments.merge()
    if not num_samples:
        raise no_samples()
    own = layer_moments.of_each() | narrow
    everyone = gathered({names[layer]: moments.on_cpu() for layer, moments in own.items()})
    found = {layer: [part[name] for part in everyone if name in part] for layer, name in names.items()}
    return {layer: reduce(merged, parts) for layer, parts in found.items() if parts}, num_samples
