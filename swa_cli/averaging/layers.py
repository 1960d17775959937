"""The BatchNorm layers of a model, what reaches them and the statistics (C,) that they keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from swa_cli.averaging.moments import Moments


def has_batchnorm(model: nn.Module) -> bool:
    """Whether a BatchNorm or InstanceNorm layer, scripted or not, keeps running statistics, frozen or not."""
    return any(_is_norm(module) for module in model.modules())


def is_frozen(model: nn.Module) -> bool:
    """Whether all of these layers are in eval mode inside a model in training mode."""
    modes = [module.training for module in model.modules() if _is_norm(module)]
    return bool(modes) and not any(modes) and any(module.training for module in model.modules())


def is_refreshable(model: nn.Module) -> bool:
    """Whether any of these layers is to be measured; other statistics show only when a batch passes through."""
    return has_batchnorm(model) and not is_frozen(model)


def norm_layers(model: nn.Module) -> list[_BatchNorm]:
    """The eager BatchNorm layers with running statistics."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]


def bn_layers(model: nn.Module) -> list[_BatchNorm]:
    """Those of `norm_layers` that are measured: all of a model in eval mode, else those in train mode."""
    layers = norm_layers(model)
    if any(module.training for module in model.modules()):
        layers = [layer for layer in layers if layer.training]
    return layers


def may_have_statistics(model: nn.Module) -> bool:
    """Whether a forward pass in training mode might move statistics; the pass itself tells."""
    return bool(bn_layers(model)) or any(
        value.is_floating_point()
        for module in model.modules()
        if not isinstance(module, _BatchNorm)
        for _, value in module.named_buffers(recurse=False)
    )


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


def _is_norm(module: nn.Module) -> bool:
    if isinstance(module, _NormBase):
        return module.running_mean is not None
    name = getattr(module, "original_name", "")  # of a scripted module
    return name.startswith(("BatchNorm", "InstanceNorm", "SyncBatchNorm")) and hasattr(module, "running_mean")
