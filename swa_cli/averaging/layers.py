"""The BatchNorm layers of a model, what reaches them and the statistics (C,) that they keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from swa_cli.averaging.moments import Moments


def has_batchnorm(model: nn.Module) -> bool:
    """Whether any layer tracks BatchNorm statistics, frozen or not."""
    return any(_tracks_statistics(module) for module in model.modules())


def bn_layers(model: nn.Module) -> list[_BatchNorm]:
    """The layers `update_batchnorm` measures: all of a model in eval mode, else those in train mode."""
    layers = [module for module in model.modules() if _tracks_statistics(module)]
    if any(module.training for module in model.modules()):
        layers = [layer for layer in layers if layer.training]
    return layers  # type: ignore[return-value]


def statistics_of(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Running mean and variance of a layer that tracks them."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return layer.running_mean, layer.running_var


def write_statistics(layer: _BatchNorm, moments: Moments, *, variance: Tensor) -> None:
    """Give a layer the mean that was measured, and the variance (C,) made of it: unbiased, or biased for a while."""
    running_mean, running_var = statistics_of(layer)
    running_mean.copy_(moments.mean)
    running_var.copy_(variance)


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The values (B, C, ...) that a layer is called with."""
    values = args[0] if args else kwargs["input"]
    assert isinstance(values, Tensor)
    return values


@contextmanager
def with_forward_of(
    layers: Iterable[_BatchNorm], changed: Callable[[_BatchNorm, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """The `forward` of each layer changed inside: hooks would cost 1 % of a training-mode pass."""
    own = {layer: vars(layer).get("forward") for layer in layers}  # of the object; that of its class is below it
    try:
        for layer in own:
            vars(layer)["forward"] = changed(layer, layer.forward)
        yield
    finally:
        for layer, forward in own.items():
            if forward is None:
                vars(layer).pop("forward", None)
            else:
                vars(layer)["forward"] = forward


def _tracks_statistics(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is not None
