"""What goes into a network: a tensor, or a tuple or dict of tensors, each with B samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

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
