"""BatchNorm layers of a model, the moments of their inputs, and the batches that a network takes.

One idea: (n, mean, M2) of any two sets of values merge exactly by Chan's formula, so the statistics of a dataset follow
from those of its batches, in any grouping. The inputs of a network are a tensor, or a tuple or dict of tensors, which
`batch_to_args` passes as arguments.

B samples; C channels; n values per channel; M2 sum of squared distances from the mean, both (C,) in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.parameter import is_lazy

from swa_cli.averaging.model_state import Place, float64_device
from swa_cli.errors import UserError

Arguments = tuple[Sequence[Any], Mapping[str, Any]]  # positional and keyword arguments of a network
Gather = Callable[[Any], list[Any]]  # a value of this process -> the values of all processes, in order
STATISTICS = ("running_mean", "running_var")
Kept = dict[str, bool]  # layer, or buffer of another kind, that keeps its statistics -> whether training moves them


def gather_single_process(value: Any) -> list[Any]:
    """Gather where there is only one process."""
    return [value]


@dataclass(frozen=True)
class Moments:
    """Moments of n values per channel; of several layers in one row, n is (C,) in float64."""

    n: int | Tensor
    mean: Tensor  # (C,) float64
    m2: Tensor  # (C,) float64

    def on_cpu(self) -> Moments:
        """Move the moments to where every process can read them."""
        return Moments(self.n, self.mean.cpu(), self.m2.cpu())


def moments_of(values: Tensor) -> Moments:
    """Compute the moments of values (B, C, ...) in two passes: distances from a rounded mean give M2 and the rest.

    In float32 or better; several times faster than `torch.var_mean` on a CPU.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    n = values.numel() // values.shape[1]
    not_channels = [dim for dim in range(values.dim()) if dim != 1]
    rough_mean = values.mean(not_channels, keepdim=True)
    distance = values - rough_mean
    mean = to_float64(rough_mean.flatten()) + to_float64(distance.mean(not_channels))
    return Moments(n, mean, to_float64(distance.square_().sum(not_channels)))


def merge_moments(old: Moments | None, new: Moments) -> Moments:
    """Return the moments of both sets of values together (Chan, Golub & LeVeque 1979)."""
    if old is None:
        return new
    n = old.n + new.n
    shift = new.mean - old.mean
    mean = old.mean + shift * (new.n / n)
    return Moments(n, mean, old.m2 + new.m2 + shift.square() * (old.n * new.n / n))


def to_float64(values: Tensor) -> Tensor:
    """Copy, also from float64: the next batch overwrites the running statistics."""
    return values.to(float64_device(values.device)).to(torch.float64, copy=True)


def has_batchnorm(model: nn.Module) -> bool:
    """Whether a BatchNorm or InstanceNorm layer, scripted or not, keeps running statistics, frozen or not."""
    return any(_is_norm(module) for module in model.modules())


def is_frozen(model: nn.Module) -> bool:
    """Whether there are such layers, and all of them are in eval mode inside a model in training mode."""
    modes = [module.training for module in model.modules() if _is_norm(module)]
    return bool(modes) and not any(modes) and any(module.training for module in model.modules())


def is_refreshable(model: nn.Module) -> bool:
    """Whether one of these layers can be measured; only a batch shows whether the model has other statistics."""
    return has_batchnorm(model) and not is_frozen(model)


def norm_layers(model: nn.Module) -> list[_BatchNorm]:
    """Return the eager BatchNorm layers with running statistics."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]


def bn_layers(model: nn.Module) -> list[_BatchNorm]:
    """Return the `norm_layers` to measure: all of a model in eval mode, else those in training mode."""
    layers = norm_layers(model)
    if any(module.training for module in model.modules()):
        layers = [layer for layer in layers if layer.training]
    return layers


def may_have_statistics(model: nn.Module) -> bool:
    """Whether a forward pass in training mode might change statistics; only the pass itself shows it."""
    return bool(bn_layers(model) or other_buffers(model))


def other_buffers(model: nn.Module, uncalled: Set[str] = frozenset()) -> dict[str, Place]:
    """Return the floating-point buffers by name, without the running statistics of eager BatchNorm layers.

    Args:
        model: The network.
        uncalled: Names of such layers whose statistics are returned, too.
    """
    return {
        f"{prefix}.{key}" if prefix else key: (module, key)
        for prefix, module in model.named_modules()
        for key, value in module.named_buffers(recurse=False)
        if not (isinstance(module, _BatchNorm) and key in STATISTICS and (prefix not in uncalled or is_lazy(value)))
        if value.is_floating_point() and value.layout == torch.strided
    }


def moves_statistics(layer: _BatchNorm) -> bool:
    """Whether a layer that is executed now moves its statistics; a `forward` may set the mode of its layers."""
    return layer.training and layer.track_running_stats


def statistics_of(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return the running mean and variance of a layer that tracks them."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return layer.running_mean, layer.running_var


def names_of_statistics(layer: str) -> tuple[str, str]:
    """Return the names of the running mean and variance of the layer of this name, empty for the model itself."""
    prefix = f"{layer}." if layer else ""
    mean, var = STATISTICS
    return f"{prefix}{mean}", f"{prefix}{var}"


def layer_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the values (B, C, ...) that a layer is called with."""
    values = args[0] if args else kwargs["input"]
    assert isinstance(values, Tensor)
    return values


@contextmanager
def replaced_forward(
    layers: Iterable[_BatchNorm], replace: Callable[[_BatchNorm, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Replace the `forward` of each layer inside the context: hooks would cost 1 % of a training-mode pass."""
    before = {layer: vars(layer).get("forward") for layer in layers}  # of the object, which hides that of its class
    try:
        for layer in before:
            vars(layer)["forward"] = replace(layer, layer.forward)
        yield
    finally:
        for layer, forward in before.items():
            if forward is None:
                vars(layer).pop("forward", None)
            else:
                vars(layer)["forward"] = forward


def _is_norm(module: nn.Module) -> bool:
    if isinstance(module, _NormBase):
        return module.running_mean is not None
    name = getattr(module, "original_name", "")  # of a scripted module
    return name.startswith(("BatchNorm", "InstanceNorm", "SyncBatchNorm")) and hasattr(module, "running_mean")


def batch_to_args(inputs: Any) -> Arguments:
    """Return the arguments of a network for its inputs: `model(x)` for a tensor, `model(*x)`, `model(**x)`."""
    if isinstance(inputs, Mapping):
        return (), inputs
    return (inputs if isinstance(inputs, (tuple, list)) else (inputs,)), {}


def tensors_of(inputs: Any) -> list[Tensor]:
    """Return the tensors among the inputs of a network."""
    args, kwargs = batch_to_args(inputs)
    return [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]


def map_tensors(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return inputs of the same structure with each tensor changed."""
    if isinstance(inputs, Mapping):
        return {key: map_tensors(value, change) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(map_tensors(value, change) for value in inputs)
    return change(inputs) if isinstance(inputs, Tensor) else inputs


def num_samples(inputs: Any) -> int:
    """Return B."""
    return len(tensors_of(inputs)[0])


@dataclass(frozen=True)
class Batches:
    """The inputs in a loader's batches, on `device`, for `model`; a tiny last batch is joined to the one before."""

    model: nn.Module
    loader: Iterable[Any]
    device: torch.device
    batch_to_args: Callable[[Any], Arguments]

    def __iter__(self) -> Iterator[Any]:
        return _joined(self.as_loaded())

    def as_loaded(self) -> Iterator[Any]:
        """Yield the inputs of each batch that has samples; a tiny last one is not joined."""
        for batch in self.loader:
            inputs = self._inputs(batch)
            if num_samples(inputs):
                yield map_tensors(inputs, lambda values: values.to(self.device, non_blocking=True))

    def forward(self, inputs: Any) -> Any:
        """Return the outputs of the model for a batch."""
        args, kwargs = self.batch_to_args(inputs)
        return self.model(*args, **kwargs)

    def _inputs(self, batch: Any) -> Any:
        is_sequence = isinstance(batch, (tuple, list)) and len(batch) > 0
        inputs = batch[0] if is_sequence else batch
        if not tensors_of(inputs) or not (is_sequence or isinstance(inputs, Tensor)):
            raise UserError(
                f"the loader's batches begin with a {type(inputs).__name__}",
                hint="yield a tensor, or a tuple or list whose first element is one, or a tuple or dict of them",
            )
        return inputs


class Pass:
    """One pass over batches, which can begin again until its second batch is read; it never reads the loader again.

    What is looked at before is `first`, as it is loaded: no process has asked for another batch then, so processes that
    have more batches than others are still in step, and may exchange what they have found.

    Args:
        batches: What to read, from now on.

    Raises:
        UserError: There are no samples.
    """

    def __init__(self, batches: Batches) -> None:
        loaded = batches.as_loaded()
        self.first = next(loaded, None)
        if self.first is None:
            raise no_samples()
        self._others = _joined(chain([self.first], loaded))
        self._begun: list[Any] = []  # the first, which a tiny second one may be joined to

    def __iter__(self) -> Iterator[Any]:
        if not self._begun:
            self._begun.append(next(self._others))
        yield from self._begun
        yield from self._others


def no_samples() -> UserError:
    """Return the error for a loader without samples."""
    return UserError("the loader has no samples to measure BatchNorm on", hint="pass at least one batch")


def _joined(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield batches, of which a tiny last one is joined to the one before."""
    held: list[Any] = []  # two are held back: only the end shows which batch is the last
    for inputs in batches:
        held.append(inputs)
        if len(held) > 2:
            yield held.pop(0)
    if len(held) == 2 and 2 * num_samples(held[1]) < num_samples(held[0]):
        held = _join(*held)
    yield from held


def _join(first: Any, second: Any) -> list[Any]:
    """Concatenate two batches, or leave them alone where their samples differ in shape."""
    others = iter(tensors_of(second))
    pairs = list(zip(tensors_of(first), tensors_of(second), strict=True))
    if any(one.shape[1:] != other.shape[1:] for one, other in pairs):
        return [first, second]
    return [map_tensors(first, lambda values: torch.cat([values, next(others)]))]
