"""Count, mean and sum of squared distances, merged exactly: what BatchNorm statistics are made of.

n values a channel; C channels; M2 sum of squared distances from the mean, both (C,) in float64.

The BatchNorm layers of a model, what reaches them and the statistics (C,) that they keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from swa_cli.averaging.model_state import float64_device


@dataclass(frozen=True)
class Moments:
    """Of n values a channel; of several layers in one row, n is (C,) in float64."""

    n: int | Tensor
    mean: Tensor  # (C,) float64
    m2: Tensor  # (C,) float64

    def on_cpu(self) -> Moments:
        """The same where every process can read it."""
        return Moments(self.n, self.mean.cpu(), self.m2.cpu())


def gather_single_process(value: Any) -> list[Any]:
    """What all processes gave, where there is one."""
    return [value]


def moments_of(values: Tensor) -> Moments:
    """Of values (B, C, ...), in two passes: the distances from a rounded mean give M2 and the mean's rest.

    In float32 or better; several times faster than `torch.var_mean` on a CPU.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    n = values.numel() // values.shape[1]
    not_channels = [dim for dim in range(values.dim()) if dim != 1]
    rough_mean = values.mean(not_channels, keepdim=True)
    distance = values - rough_mean
    mean = to_float64(rough_mean.flatten()) + to_float64(distance.mean(not_channels))
    return Moments(n, mean, to_float64(distance.square_().sum(not_channels)))


def merged(old: Moments | None, new: Moments) -> Moments:
    """Moments of both sets together (Chan, Golub, LeVeque 1979)."""
    if old is None:
        return new
    n = old.n + new.n
    shift = new.mean - old.mean
    mean = old.mean + shift * (new.n / n)
    return Moments(n, mean, old.m2 + new.m2 + shift.square() * (old.n * new.n / n))


class LayerMoments:
    """Moments of the layers of a network, merged for all layers of a forward pass in one go.

    Args:
        statistics: Of each layer the tensors (C,) where it leaves mean and unbiased variance of the batch just seen.
    """

    def __init__(self, statistics: Mapping[_BatchNorm, tuple[Tensor, Tensor]]) -> None:
        self._statistics = statistics
        self._executed: dict[_BatchNorm, int] = {}  # since the last merge -> n of each
        self._rows: dict[tuple[_BatchNorm, ...], Moments] = {}  # the layers of a pass -> their channels in a row
        self._counts: dict[tuple[Any, ...], Tensor] = {}  # those layers and n of each -> n of each channel

    def before(self, layer: _BatchNorm) -> None:
        """Tell that a layer is going to be executed, which overwrites its statistics."""
        if layer in self._executed:
            self.merge()

    def after(self, layer: _BatchNorm, n: int) -> None:
        """Tell that a layer was executed on n values a channel."""
        self._executed[layer] = n

    def merge(self) -> None:
        """Take in the statistics of the layers that were executed."""
        by_device: dict[torch.device, dict[_BatchNorm, int]] = {}  # of a network that is spread over several
        for layer, n in self._executed.items():
            by_device.setdefault(self._statistics[layer][0].device, {})[layer] = n
        self._executed.clear()
        for executed in by_device.values():
            self._merge(tuple(executed), tuple(executed.values()))

    def _merge(self, layers: tuple[_BatchNorm, ...], counts: tuple[int, ...]) -> None:
        means, variances = zip(*(self._statistics[layer] for layer in layers), strict=True)
        mean, variance = to_float64(torch.cat(means + variances)).chunk(2)
        if (layers, counts) not in self._counts:
            sizes = torch.tensor([len(values) for values in means])
            n = torch.tensor(counts, dtype=torch.float64).repeat_interleave(sizes)
            self._counts[layers, counts] = n.to(mean.device)
        n = self._counts[layers, counts]
        self._rows[layers] = merged(self._rows.get(layers), Moments(n, mean, variance * (n - 1)))

    def of_each(self) -> dict[_BatchNorm, Moments]:
        """What has been merged, layer by layer."""
        found: dict[_BatchNorm, Moments] = {}
        for layers, row in self._rows.items():
            assert isinstance(row.n, Tensor)
            sizes = [len(self._statistics[layer][0]) for layer in layers]
            parts = zip(layers, row.n.split(sizes), row.mean.split(sizes), row.m2.split(sizes), strict=True)
            for layer, n, mean, m2 in parts:
                found[layer] = merged(found.get(layer), Moments(int(n[0]), mean, m2))
        return found


def to_float64(values: Tensor) -> Tensor:
    """A copy, also of float64: the running statistics are overwritten by the next batch."""
    return values.to(float64_device(values.device)).to(torch.float64, copy=True)


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
