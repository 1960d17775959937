"""State dicts as torch means them: tensors by name, and beside them `_metadata`, the versions of the layers.

The one idea: loading asks for these versions, so whoever makes a state dict of another one's tensors passes them on.
torch keeps them as an attribute of the OrderedDict, which `torch.save` stores and `torch.load` brings back.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Value = TypeVar("Value")
Place = tuple[Any, ...]


def metadata_of(state: object) -> Any:
    """What torch keeps beside the tensors: module name to its version; None for a plain dict."""
    return getattr(state, "_metadata", None)


def with_metadata(values: Mapping[str, Value], metadata: Any) -> dict[str, Value]:
    """A state dict of these values with a copy of this metadata; a plain dict without any."""
    if metadata is None:
        return dict(values)
    state = OrderedDict(values)
    state._metadata = copy.deepcopy(metadata)  # type: ignore[attr-defined]  # torch's own name for it
    return state


def like(state: object, values: Mapping[str, Value]) -> dict[str, Value]:
    """These values with the metadata of `state`."""
    return with_metadata(values, metadata_of(state))


def cloned(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in memory of its own."""
    return like(state, {name: value.detach().clone() for name, value in state.items()})


def state_of(model: nn.Module) -> dict[str, Any]:
    """`model.state_dict()` with the parameters and buffers themselves in it, as `keep_vars=True` gives them.

    The `state_dict` of a network's own may not take that word: then they are found by their memory. What a layer
    computes of its parameters for the state dict requires a gradient.
    """
    with torch.enable_grad():
        if takes(model.state_dict, "keep_vars"):
            return model.state_dict(keep_vars=True)
        state = model.state_dict()
    own = {_place(value): value for value in (*model.parameters(), *model.buffers())}
    return like(state, {name: own.get(_place(value), value) for name, value in state.items()})


def takes(function: Any, word: str) -> bool:
    """Whether a function has an argument of this name, or takes any."""
    parameters = inspect.signature(function).parameters
    return word in parameters or any(item.kind is item.VAR_KEYWORD for item in parameters.values())


def _place(value: Any) -> Place:
    """The memory of a tensor, and how it lies there."""
    if not isinstance(value, Tensor):
        return (id(value),)
    return value.device, value.data_ptr(), value.dtype, value.shape, value.stride()
