"""BatchNorm statistics layer by layer, equal to those of one batch of the whole dataset, whatever the batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import reduce
from itertools import chain
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from swa_cli.averaging import batch_args
from swa_cli.averaging.batch_args import Batches, no_samples
from swa_cli.averaging.bn_layers import (
    Moments,
    gather_single_process,
    input_of,
    merged,
    moments_of,
    statistics_of,
    with_forward_of,
    write_statistics,
)
from swa_cli.errors import UserError


class _Reached(BaseException):
    """Ends a forward pass at the layer to be measured; no `except Exception` of a model can swallow it."""


def measure(
    model: nn.Module,
    names: dict[_BatchNorm, str],
    batches: Batches,
    gathered: Callable[[Any], list[Any]],
    *,
    first: Any,
    stream: Iterator[Any],
) -> tuple[dict[_BatchNorm, Moments], int]:
    """One pass a layer in the order of execution, up to that layer, all in eval mode.

    Args:
        model: Wholly in eval mode.
        names: The layers to measure.
        batches: Read anew for each layer but the first one.
        gathered: See `update_batchnorm`.
        first: The first batch.
        stream: The rest of them, for the first layer.
    """
    for layer, name in names.items():
        if len(statistics_of(layer)[0]) != layer.num_features:
            message = f"{name}: keeps statistics of parts of a batch, which method exact does not have"
            raise UserError(message, hint="use method pooled")
    order = _execution_order(model, names, batches, batch_args.mapped(first, lambda values: values[:2]))
    if len(order) > 1 and isinstance(batches.loader, Iterator):
        raise UserError(
            "method exact reads the samples once a layer, and this iterator can be read only once",
            hint="pass a DataLoader or a list, or use method pooled",
        )
    found: dict[_BatchNorm, Moments] = {}
    num_samples = 0
    for layer in order:
        source = chain([first], stream) if layer is order[0] else batches
        moments, num_samples = _measure_input(model, layer, batches, source, gathered)
        # Biased while the layers after it are measured: a batch is normalised by its own biased variance.
        write_statistics(layer, moments, variance=moments.m2 / moments.n)
        found[layer] = moments
    return found, num_samples


def _execution_order(
    model: nn.Module, names: dict[_BatchNorm, str], batches: Batches, samples: Any
) -> list[_BatchNorm]:
    order: list[_BatchNorm] = []

    def noting(layer: _BatchNorm, forward: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            if layer in order:
                raise UserError(
                    f"{names[layer]}: is executed more than once a forward pass; method exact cannot measure it",
                    hint="use method pooled",
                )
            order.append(layer)
            return forward(*args, **kwargs)

        return noted

    with with_forward_of(names, noting):
        batches.through(model, samples)
    return order


def _measure_input(
    model: nn.Module,
    layer: _BatchNorm,
    batches: Batches,
    source: Iterable[Any],
    gathered: Callable[[Any], list[Any]],
) -> tuple[Moments, int]:
    """Moments of all that reaches `layer` in any process, and the number of samples in this one.

    Merging rounds: processes that share the batches keep the moments of each, to merge them one by one as one would.
    """
    found: list[Moments] = []
    num_samples = 0

    def take(*args: Any, **kwargs: Any) -> None:
        found.append(moments_of(input_of(args, kwargs)))
        if gathered is gather_single_process:
            found[:] = [reduce(merged, found)]
        raise _Reached

    with with_forward_of([layer], lambda _layer, _forward: take):
        for samples in source:
            num_samples += batch_args.num_samples(samples)
            with suppress(_Reached):
                batches.through(model, samples)
    if not found:
        raise no_samples()
    parts = gathered([moments.on_cpu() for moments in found])
    return reduce(merged, chain.from_iterable(parts)), num_samples
