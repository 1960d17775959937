"""State dicts as torch means them: tensors by name, and beside them `_metadata`, the versions of the layers.

The one idea: loading asks for these versions, so whoever makes a state dict of another one's tensors passes them on.
torch keeps them as an attribute of the OrderedDict, which `torch.save` stores and `torch.load` brings back.

The tensors of a model under the names of the plain model: what is averaged, what is copied.

Wrappers (DistributedDataParallel, torch.compile) are looked through; shared parameters are met once. Whatever
does not fit is told with counts and three names, before anything changes.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from swa_cli.errors import UserError

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


NUM_EXAMPLES = 3  # names shown of each kind of mismatch


class NonFiniteWeightsError(ArithmeticError):
    """A weight set with NaN or infinity was offered to an average; nothing of the average was changed.

    Attributes:
        name: The first tensor that is not finite.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} holds values that are not finite")
        self.name = name


@dataclass(frozen=True)
class Tensors:
    """The state of a model: what is averaged, what is copied, and under which names it all comes out."""

    weights: dict[str, Tensor]  # each shared parameter once, under its first name
    buffers: dict[str, Tensor]
    owners: dict[str, str]  # every name of the state_dict, in its order -> the name it is kept under
    metadata: dict[str, Any] | None = None  # of the state_dict: see `state`

    def all(self) -> dict[str, Tensor]:
        """Weights and buffers together."""
        return {**self.weights, **self.buffers}


def read(model: nn.Module) -> Tensors:
    """The model's state by clean names, not copied; of what lies in parts over processes, the part here.

    Parameters of integers are copied like buffers.

    Raises:
        UserError: The state holds something else than tensors, or lacks a parameter that is trained.
    """
    first_names: dict[int, str] = {}
    plain = plain_model(model)
    state = state_of(plain)
    tensors = Tensors({}, {}, {}, _clean(metadata_of(state)))
    is_derived = False
    for key, value in state.items():
        name = without_compile(key)
        if not isinstance(value, Tensor):
            raise UserError(
                f"{name}: the model's state holds a {type(value).__name__}, which cannot be averaged",
                hint="let the state_dict of the model hold tensors only",
            )
        is_weight = isinstance(value, nn.Parameter) or value.requires_grad
        is_derived |= is_weight and not isinstance(value, nn.Parameter)
        averaged = is_weight and (value.is_floating_point() or value.is_complex())
        owner = first_names.setdefault(id(value), name)
        (tensors.weights if averaged else tensors.buffers)[owner] = _local(value).detach()
        tensors.owners[name] = owner
    if not is_derived:  # what a layer computes of its parameters may stand for any of them
        _require_trained(plain, first_names)
    return tensors


def _clean(metadata: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The metadata of a state dict under the names of the plain model; of a compiled block that of what is in it."""
    return None if metadata is None else {without_compile(name): value for name, value in metadata.items()}


def _require_trained(model: nn.Module, present: Mapping[int, str]) -> None:
    """Each parameter that is trained is in the state dict: what is not could be neither averaged nor saved."""
    for name, value in model.named_parameters():
        if value.requires_grad and id(value) not in present:
            raise UserError(
                f"{name}: is trained, and the state_dict of the model does not hold it",
                hint="let state_dict() of the model return every parameter that requires a gradient",
            )


@torch.no_grad()
def _local(value: Tensor) -> Tensor:
    """The part of a DTensor that lies in this process; every other tensor itself."""
    return value.to_local() if hasattr(value, "to_local") else value  # naming its class would import much more


def plain_model(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif "_orig_mod" in model._modules:  # torch.compile; naming its class would import all of dynamo
            model = model.get_submodule("_orig_mod")
        else:
            return model


def without_compile(name: str) -> str:
    """The name that a tensor has without torch.compile, which puts `_orig_mod.` anywhere."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def float64_device(device: torch.device) -> torch.device:
    """Where float64 arithmetic on tensors of `device` can be done: mps has none."""
    return torch.device("cpu") if device.type == "mps" else device


def on_meta(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Shapes, strides and types without memory."""
    return {name: torch.empty_like(value, device="meta") for name, value in tensors.items()}


def in_memory(like: Tensor, *, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """What lies as a tensor of `on_meta` does, not yet filled; of its type, or of another.

    Not `empty_like`, which imports sympy for a meta tensor: a third of a second.
    """
    return torch.empty_strided(like.shape, like.stride(), dtype=dtype or like.dtype, device=device)


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor, to compare and to print."""
    return {name: tuple(value.shape) for name, value in tensors.items()}


def require_same_shapes(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], *, what: str
) -> None:
    """Names and shapes must agree; the error counts each kind of difference and shows three of it."""
    if found == expected:
        return
    differences = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {list(found[name])} instead of {list(shape)}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ],
    }
    counts = [
        f"{len(names)} {kind} ({', '.join(names[:NUM_EXAMPLES])}{', ...' * (len(names) > NUM_EXAMPLES)})"
        for kind, names in differences.items()
        if names
    ]
    raise UserError(
        f"the tensors of the {what} do not match the average: {'; '.join(counts)}",
        hint="use the model that the average was made for",
    )


def groups(tensors: Mapping[str, Tensor]) -> Iterable[list[str]]:
    """Names by device and dtype: what a foreach operation does in one kernel."""
    groups: dict[tuple[torch.device, torch.dtype], list[str]] = defaultdict(list)
    for name, value in tensors.items():
        groups[value.device, value.dtype].append(name)
    return groups.values()


def require_finite(weights: Mapping[str, Tensor]) -> None:
    """One pass over the weights and one host sync.

    A 2-norm is infinite or NaN if any value is. It may also overflow over finite values, so a suspicion is
    looked into value by value. (On a CPU the infinity norm, which cannot overflow, takes ten times as long.)
    """
    lengths = [torch.stack(torch._foreach_norm([weights[name] for name in names], 2)) for names in groups(weights)]
    finite = [norms.isfinite().all() for norms in lengths]
    if not finite or torch.stack([flag.to(finite[0].device) for flag in finite]).all():
        return
    for name, value in weights.items():
        if not value.isfinite().all():
            raise NonFiniteWeightsError(name)
