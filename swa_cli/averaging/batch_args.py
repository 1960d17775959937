"""What goes into a network: a tensor, or a tuple or dict of tensors, each with B samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from swa_cli.errors import UserError

Arguments = tuple[Sequence[Any], Mapping[str, Any]]


def batch_to_args(inputs: Any) -> Arguments:
    """Positional and keyword arguments of the network: `model(x)` for a tensor, `model(*x)`, `model(**x)`."""
    if isinstance(inputs, Mapping):
        return (), inputs
    return (inputs if isinstance(inputs, (tuple, list)) else (inputs,)), {}


def tensors_of(inputs: Any) -> list[Tensor]:
    """The tensors of a batch; what is none is left out."""
    args, kwargs = batch_to_args(inputs)
    return [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]


def mapped(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same kind of batch with each tensor changed."""
    if isinstance(inputs, Mapping):
        return {key: mapped(value, change) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(mapped(value, change) for value in inputs)
    return change(inputs) if isinstance(inputs, Tensor) else inputs


def num_samples(inputs: Any) -> int:
    """B."""
    return len(tensors_of(inputs)[0])


def joined(first: Any, second: Any) -> list[Any]:
    """Two batches as one, or as they are where their samples are not of one shape."""
    others = iter(tensors_of(second))
    pairs = list(zip(tensors_of(first), tensors_of(second), strict=True))
    if any(one.shape[1:] != other.shape[1:] for one, other in pairs):
        return [first, second]
    return [mapped(first, lambda values: torch.cat([values, next(others)]))]


@dataclass(frozen=True)
class Batches:
    """The first tensors of a loader's batches on `device`, a tiny last one joined to the one before."""

    loader: Iterable[Any]
    device: torch.device
    batch_to_args: Callable[[Any], Arguments]

    def __iter__(self) -> Iterator[Any]:
        ready: list[Any] = []  # two are held back: only the end tells which batch is the last
        for batch in self.loader:
            is_pair = isinstance(batch, (tuple, list)) and len(batch) > 0
            samples = batch[0] if is_pair else batch
            if not tensors_of(samples) or not (is_pair or isinstance(samples, Tensor)):
                raise UserError(
                    f"the loader's batches begin with a {type(samples).__name__}",
                    hint="yield a tensor, or a tuple or list whose first element is one, or a tuple or dict of them",
                )
            if num_samples(samples):
                ready.append(mapped(samples, lambda values: values.to(self.device, non_blocking=True)))
            if len(ready) > 2:
                yield ready.pop(0)
        if len(ready) == 2 and 2 * num_samples(ready[1]) < num_samples(ready[0]):
            ready = joined(*ready)
        yield from ready

    def through(self, model: nn.Module, samples: Any) -> int:
        """Give a batch to the model; how many samples it has."""
        self.outputs(model, samples)
        return num_samples(samples)

    def outputs(self, model: nn.Module, samples: Any) -> Any:
        """What the model gives for a batch."""
        args, kwargs = self.batch_to_args(samples)
        return model(*args, **kwargs)


def no_samples() -> UserError:
    """The error of a loader without any."""
    return UserError("the loader has no samples to measure BatchNorm on", hint="pass at least one batch")
