"""BatchNorm statistics of a model over a dataset, for weights that were never trained as they are (averages).

One idea: each layer's (n, mean, M2) of every batch are merged in float64 by Chan's formula, so every sample
counts the same and the variance between batches is kept. Whatever happens, the model is left as it was, but
for the new statistics of the layers that were measured.

B samples; C channels; n values a channel; M2 sum of squared distances from the mean, both (C,) in float64.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from swa_cli.averaging import exact, inputs, pooled
from swa_cli.averaging.inputs import Arguments, Batches
from swa_cli.averaging.layers import bn_layers, write_statistics
from swa_cli.averaging.moments import Moments, alone
from swa_cli.averaging.tensors import plain_model
from swa_cli.errors import UserError

METHODS = {"pooled": pooled.measure, "exact": exact.measure}


@dataclass(frozen=True)
class BatchNormUpdate:
    """What an update was made of: layers with new statistics, samples of one pass, `pooled` or `exact`."""

    num_layers: int
    num_samples: int
    method: str


def update_batchnorm(
    loader: Iterable[Any],
    model: nn.Module,
    *,
    method: str = "pooled",
    device: torch.device | str | None = None,
    batch_to_args: Callable[[Any], Arguments] = inputs.batch_to_args,
    gathered: Callable[[Any], list[Any]] = alone,
) -> BatchNormUpdate:
    """Replace the running statistics of the BatchNorm layers by those of the dataset, stored unbiased.

    Layers in eval mode inside a model in training mode are frozen and left alone; in a model wholly in eval
    mode every layer is measured. Dropout is off. A layer that is never executed keeps its statistics. Modes,
    momentum, `num_batches_tracked` and the global random state stay as they are, on an error all statistics
    too.

    pooled: one pass in which every layer normalises by its batch, as in training. Layers downstream of
        another BatchNorm therefore depend slightly on how the samples are grouped: shuffle them.
    exact: layer by layer, the layers upstream normalising by their new statistics. Equal to one batch of the
        whole dataset, whatever the batches; as many partial passes as there are layers.

    Args:
        loader: Batches (B, ...), or tuples or lists that begin with them, or with a tuple or dict of tensors. A last
            batch under half the size of the one before is joined to it. `exact` reads it once a layer.
        model: Wrappers (DistributedDataParallel, torch.compile) are looked through.
        method: `pooled` or `exact`.
        device: Where batches go; by default where the model's first parameter is.
        batch_to_args: Positional and keyword arguments of the model for a batch; by default a tensor is
            `model(x)`, a tuple `model(*x)` and a dict `model(**x)`.
        gathered: Where several processes share the batches, each with one at least: gives what all of them passed to
            it, in the order of the batches. Moments are merged in that order, `exact` bit for bit as in one process.

    Raises:
        UserError: No samples, one value a channel, values that are not finite, or `exact` asked for with a
            loader that can be read only once or a layer that a forward pass executes more than once.
    """
    if method not in METHODS:
        raise UserError(f"method: {method!r} does not measure BatchNorm", hint=f"one of {', '.join(METHODS)}")
    model = plain_model(model)
    layers = bn_layers(model)
    if not layers:
        return BatchNormUpdate(num_layers=0, num_samples=0, method=method)
    if device is None:
        device = next(chain(model.parameters(), model.buffers())).device
    batches = Batches(loader, torch.device(device), batch_to_args)
    names = {module: name for name, module in model.named_modules()}
    named_layers = {layer: names[layer] for layer in layers}
    with torch.no_grad():
        with _left_as_it_was(model, layers, device=batches.device):
            found, num_samples = METHODS[method](model, named_layers, batches, gathered)
            for layer, moments in found.items():
                _require_usable(moments, name=names[layer])
        for layer, moments in found.items():
            write_statistics(layer, moments, variance=moments.m2 / (moments.n - 1))
    return BatchNormUpdate(num_layers=len(found), num_samples=sum(gathered(num_samples)), method=method)


def _require_usable(moments: Moments, *, name: str) -> None:
    if moments.n < 2:
        raise UserError(f"{name}: one value a channel has no variance", hint="pass more samples")
    if not (moments.mean + moments.m2).isfinite().all():
        raise UserError(
            f"{name}: receives values that are not finite, so it has no statistics",
            hint="look for broken samples or diverged weights; under fp16, use bf16 or fp32",
        )


@contextmanager
def _left_as_it_was(model: nn.Module, layers: list[_BatchNorm], *, device: torch.device) -> Iterator[None]:
    """All modules in eval mode inside; modes, momentum, statistics and random state come back after it.

    Flags are set one by one because models override `train()`. Compiled parts run eagerly: they would not
    call what takes the place of a layer's `forward` after their compilation, and nothing would be measured.
    """
    modes = {module: module.training for module in model.modules()}
    momenta = {layer: layer.momentum for layer in layers}
    buffers = [buffer for layer in layers for buffer in layer.buffers(recurse=False)]
    saved = [buffer.clone() for buffer in buffers]
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), eager:
        try:
            for module in modes:
                module.training = False
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            for layer, momentum in momenta.items():
                layer.momentum = momentum
            for buffer, value in zip(buffers, saved, strict=True):
                buffer.copy_(value)
