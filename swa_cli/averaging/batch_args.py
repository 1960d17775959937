"""Batches of a data loader as arguments of a network.

One idea: the inputs of a network are a tensor, or a tuple or dict of tensors; `batch_to_args` says how they are passed.

B samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from swa_cli.errors import UserError

Arguments = tuple[Sequence[Any], Mapping[str, Any]]  # positional and keyword arguments of a network


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
    """The inputs of the network in a loader's batches, on `device`; a tiny last batch is joined to the one before."""

    loader: Iterable[Any]
    device: torch.device
    batch_to_args: Callable[[Any], Arguments]

    def __iter__(self) -> Iterator[Any]:
        held: list[Any] = []  # two are held back: only the end shows which batch is the last
        for batch in self.loader:
            inputs = self._inputs(batch)
            if num_samples(inputs):
                held.append(map_tensors(inputs, lambda values: values.to(self.device, non_blocking=True)))
            if len(held) > 2:
                yield held.pop(0)
        if len(held) == 2 and 2 * num_samples(held[1]) < num_samples(held[0]):
            held = _join(*held)
        yield from held

    def forward(self, model: nn.Module, inputs: Any) -> Any:
        """Return the outputs of the model for a batch."""
        args, kwargs = self.batch_to_args(inputs)
        return model(*args, **kwargs)

    def _inputs(self, batch: Any) -> Any:
        is_sequence = isinstance(batch, (tuple, list)) and len(batch) > 0
        inputs = batch[0] if is_sequence else batch
        if not tensors_of(inputs) or not (is_sequence or isinstance(inputs, Tensor)):
            raise UserError(
                f"the loader's batches begin with a {type(inputs).__name__}",
                hint="yield a tensor, or a tuple or list whose first element is one, or a tuple or dict of them",
            )
        return inputs


def no_samples() -> UserError:
    """Return the error for a loader without samples."""
    return UserError("the loader has no samples to measure BatchNorm on", hint="pass at least one batch")


def _join(first: Any, second: Any) -> list[Any]:
    """Concatenate two batches, or leave them alone where their samples differ in shape."""
    others = iter(tensors_of(second))
    pairs = list(zip(tensors_of(first), tensors_of(second), strict=True))
    if any(one.shape[1:] != other.shape[1:] for one, other in pairs):
        return [first, second]
    return [map_tensors(first, lambda values: torch.cat([values, next(others)]))]
