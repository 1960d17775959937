"""State dicts by the names of the plain model, with torch's metadata; and a model that is tried and left as it was.

One idea: `read` looks through wrappers (DistributedDataParallel, torch.compile), takes shared parameters once and tells
what is averaged from what is copied. Loading needs `_metadata`, the versions of the layers, which torch keeps as an
attribute of the OrderedDict: code that builds a state dict from the tensors of another one passes it on.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from swa_cli.errors import UserError

Value = TypeVar("Value")
Place = tuple[nn.Module, str]  # where a buffer is: the module and its key there
NUM_EXAMPLES = 3  # names shown of each kind of mismatch


class NonFiniteWeightsError(ArithmeticError):
    """A weight set with NaN or infinity was offered to an average; the average is unchanged.

    Attributes:
        name: The first tensor that is not finite.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} holds values that are not finite")
        self.name = name


@dataclass(frozen=True)
class Tensors:
    """The state of a model: the tensors to average, the tensors to copy, and the names that they come out under."""

    weights: dict[str, Tensor]  # each shared parameter once, under its first name
    buffers: dict[str, Tensor]
    owners: dict[str, str]  # every name of the state_dict, in its order -> the name it is kept under
    metadata: dict[str, Any] | None = None  # of the state_dict, see `metadata_of`


def metadata_of(state: object) -> Any:
    """Return what torch keeps beside the tensors, module name to version; None for a plain dict."""
    return getattr(state, "_metadata", None)


def with_metadata(values: Mapping[str, Value], metadata: Any) -> dict[str, Value]:
    """Return a state dict of these values with a copy of the metadata; a plain dict if that is None."""
    if metadata is None:
        return dict(values)
    state = OrderedDict(values)
    state._metadata = copy.deepcopy(metadata)  # type: ignore[attr-defined]  # torch's own name for it
    return state


def like(state: object, values: Mapping[str, Value]) -> dict[str, Value]:
    """Return a state dict of these values with the metadata of `state`."""
    return with_metadata(values, metadata_of(state))


def cloned(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a copy of a state dict in new memory."""
    return like(state, {name: value.detach().clone() for name, value in state.items()})


def takes(function: Any, word: str) -> bool:
    """Whether a function accepts a keyword argument of this name."""
    parameters = inspect.signature(function).parameters
    return word in parameters or any(item.kind is item.VAR_KEYWORD for item in parameters.values())


@torch.no_grad()
def read(model: nn.Module) -> Tensors:
    """Return the model's state by the names of the plain model, without copying; of a DTensor the local part.

    Integer parameters are copied like buffers.

    Raises:
        UserError: The state holds something else than tensors, or lacks a trained parameter.
    """
    first_names: dict[int, str] = {}
    plain = plain_model(model)
    state = _state_of(plain)
    metadata = metadata_of(state)
    if metadata is not None:
        metadata = {without_compile(name): value for name, value in metadata.items()}
    tensors = Tensors({}, {}, {}, metadata)
    is_derived = False
    for key, value in state.items():
        name = without_compile(key)
        if not isinstance(value, Tensor):
            raise UserError(
                f"{name}: the model's state holds a {type(value).__name__}, which cannot be averaged",
                hint="let the state_dict of the model hold tensors only",
            )
        is_weight = isinstance(value, nn.Parameter) or (value.requires_grad and not _is_result(value, plain))
        is_derived |= is_weight and not isinstance(value, nn.Parameter)
        averaged = is_weight and (value.is_floating_point() or value.is_complex())
        owner = first_names.setdefault(id(value), name)
        # Of a DTensor, its local part; naming the class would import much more.
        local = value.to_local() if hasattr(value, "to_local") else value
        (tensors.weights if averaged else tensors.buffers)[owner] = local.detach()
        tensors.owners[name] = owner
    if not is_derived:  # a tensor computed from parameters may stand for any of them
        _require_trained(plain, first_names)
    return tensors


def _is_result(value: Tensor, model: nn.Module) -> bool:
    """Whether a tensor is a buffer that `forward` has set to what it computed, with the graph of that."""
    return not value.is_leaf and any(value is buffer for buffer in model.buffers())


def _state_of(model: nn.Module) -> dict[str, Any]:
    """Return `model.state_dict()` with the parameters and buffers themselves, as `keep_vars=True` gives them.

    A network that overrides `state_dict` may not take that argument: then they are found by their memory. A tensor that
    a layer computes from its parameters for the state dict requires a gradient.
    """
    with torch.enable_grad():
        if takes(model.state_dict, "keep_vars"):
            return model.state_dict(keep_vars=True)
        state = model.state_dict()
    own = {_memory_key(value): value for value in (*model.parameters(), *model.buffers())}
    return like(state, {name: own.get(_memory_key(value), value) for name, value in state.items()})


def _memory_key(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, Tensor):
        return (id(value),)
    return value.device, value.data_ptr(), value.dtype, value.shape, value.stride()


def _require_trained(model: nn.Module, present: Mapping[int, str]) -> None:
    """Refuse a state dict without a trained parameter, which could be neither averaged nor saved."""
    for name, value in model.named_parameters():
        if value.requires_grad and id(value) not in present:
            raise UserError(
                f"{name}: is trained, but missing in the state_dict of the model",
                hint="let state_dict() return every parameter that requires a gradient",
            )


def plain_model(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif "_orig_mod" in model._modules:  # torch.compile; naming its class would import all of dynamo
            model = model.get_submodule("_orig_mod")
        else:
            return model


def without_compile(name: str) -> str:
    """Return the name of a tensor without the `_orig_mod.` that torch.compile inserts anywhere."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def float64_device(device: torch.device) -> torch.device:
    """Return a device for float64 arithmetic on tensors of `device`: mps has none."""
    return torch.device("cpu") if device.type == "mps" else device


def is_expanded(tensor: Tensor) -> bool:
    """Whether elements share memory, as `expand` makes them: torch refuses to write into such a tensor."""
    return tensor.layout == torch.strided and any(
        stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )


def comparable(values: Tensor) -> Tensor:
    """Return the values, of floats of 8 bits or fewer the same memory as bytes: torch does not compare those."""
    return values.view(torch.uint8) if values.is_floating_point() and values.dtype.itemsize == 1 else values


def place_of(tensor: Tensor) -> tuple[object, ...]:
    """Return where the numbers of a tensor lie in memory, and how: equal for one tensor under several names."""
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def fork_rng(device: torch.device) -> AbstractContextManager[None]:
    """Restore torch's global generators of the CPU and of a device on exit; torch cannot do so for mps."""
    return torch.random.fork_rng(devices=[] if device.type in ("cpu", "mps") else [device], device_type=device.type)


def on_meta(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of the same shapes, strides and types without memory."""
    return {name: torch.empty_like(value, device="meta") for name, value in tensors.items()}


def in_memory(like: Tensor, *, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Allocate a tensor with the shape and strides of `like`, a meta tensor, and its type or another.

    Not by `empty_like`, which imports sympy for a meta tensor: a third of a second.
    """
    return torch.empty_strided(like.shape, like.stride(), dtype=dtype or like.dtype, device=device)


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor, to compare and to print."""
    return {name: tuple(value.shape) for name, value in tensors.items()}


def require_same_shapes(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], *, what: str
) -> None:
    """Refuse tensors of other names or shapes than expected; the error counts the differences and shows three each."""
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
    """Group names by device and dtype: a foreach operation handles each group in one kernel."""
    found: dict[tuple[torch.device, torch.dtype], list[str]] = defaultdict(list)
    for name, value in tensors.items():
        found[value.device, value.dtype].append(name)
    return found.values()


def all_finite(weights: Mapping[str, Tensor]) -> Tensor:
    """Return whether no weight is NaN or infinite, in one pass over them: a bool tensor, on the device of the first.

    A 2-norm is infinite or NaN if any value is. It may also overflow over finite values, which then count as infinite.
    (On a CPU the infinity norm, which cannot overflow, takes ten times as long.)
    """
    lengths = [torch.stack(torch._foreach_norm([weights[name] for name in names], 2)) for names in groups(weights)]
    finite = [norms.isfinite().all() for norms in lengths]
    return torch.stack([flag.to(finite[0].device) for flag in finite]).all() if finite else torch.tensor(True)


def require_finite(weights: Mapping[str, Tensor]) -> None:
    """Refuse weights with NaN or infinity, with one host synchronisation.

    Raises:
        NonFiniteWeightsError: A value is not finite.
    """
    if all_finite(weights):
        return
    for name, value in weights.items():  # each by itself: a norm over finite values may overflow
        if not value.isfinite().all():
            raise NonFiniteWeightsError(name)


class ModelState:
    """A model before it is measured: its buffers, and the modes of its modules in a pass that measures.

    These are the modes that the modules have, in which some may be frozen; all train in a model wholly in eval mode.
    """

    def __init__(self, model: nn.Module) -> None:
        modes = {module: module.training for module in model.modules()}
        self.modes = modes if any(modes.values()) else dict.fromkeys(modes, True)
        self.buffers = {
            (module, key): (buffer, buffer if is_expanded(buffer) else buffer.clone())
            for module in modes
            for key, buffer in module.named_buffers(recurse=False)
            if not is_lazy(buffer)
        }

    def restore(self, places: Iterable[Place] | None = None) -> None:
        """Restore the buffers at these places, by default all; a model may have put another tensor in their place."""
        for module, key in self.buffers if places is None else places:
            buffer, value = self.buffers[module, key]
            if buffer.shape != value.shape:  # resized in place
                buffer.data = value.clone()
            with torch.inference_mode() if buffer.is_inference() else nullcontext():  # as evaluation makes it
                module._buffers[key] = buffer if buffer is value else buffer.copy_(value)

    def materialize(self, place: Place) -> None:
        """Give an expanded buffer memory of its own, so that it can be written."""
        buffer, _ = self.buffers[place]
        if is_expanded(buffer):
            self.buffers[place] = buffer.clone(), buffer
            self.restore([place])


@contextmanager
def in_mode(modes: Mapping[nn.Module, bool]) -> Iterator[None]:
    """Put each module into its mode inside the context; flags are set one by one because models override `train()`."""
    before = {module: module.training for module in modes}
    try:
        for module, mode in modes.items():
            module.training = mode
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


@contextmanager
def in_training(modes: Mapping[nn.Module, bool]) -> Iterator[None]:
    """Put each module into its mode of training inside the context; restore all but buffers and random state."""
    with _attributes_kept(modes), in_mode(modes):
        yield


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Restore all that forward passes inside the context change of a model: buffers, parameters, attributes, modes.

    Modules that a pass completes, such as lazy layers or those that make their layers in their first `forward`, keep
    what it made. The caller restores the random state.
    """
    with torch.no_grad():
        before = ModelState(model)
    try:
        with _attributes_kept(before.modes):
            yield
    finally:
        with torch.no_grad():
            before.restore([(module, key) for module, key in before.buffers if key in module._buffers])


@contextmanager
def _attributes_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Restore attributes and parameters of modules afterwards.

    A `forward` may count its steps, set a flag, or move the weights of a teacher. What attributes other than tensors
    hold, such as a list, is not copied. Modules that have other tensors or children than before keep their attributes,
    and so do those around them, which may remember it.
    """
    before = [(module, dict(vars(module)), _registries(module), _parts(module)) for module in modules]
    parameters = {value for module, *_ in before for value in module.parameters(recurse=False)}
    others = {value for _, attributes, *_ in before for value in attributes.values() if isinstance(value, Tensor)}
    values = {value: value.detach().clone() for value in parameters | others if _is_writable(value)}
    try:
        yield
    finally:
        completed = {module for module, _, _, parts in before if _parts(module) != parts}
        if completed:
            completed |= {module for module, *_ in before if not completed.isdisjoint(module.modules())}
        for module, attributes, registries, _ in before:
            if module in completed:
                continue
            vars(module).clear()
            vars(module).update(attributes)
            for registry, entries in registries:
                registry.clear()
                registry.update(entries)
        for value, kept in values.items():
            if value.shape != kept.shape:  # resized in place
                value.data = kept
            elif value in parameters or not _is_same(value, kept):  # others may lie in memory that cannot be written
                value.data.copy_(kept)  # whatever its version says: what is written through `.data` leaves that


def _is_writable(value: Tensor) -> bool:
    return not (is_lazy(value) or value.is_inference() or value.is_nested or is_expanded(value))


def _is_same(value: Tensor, kept: Tensor) -> bool:
    if value.layout != torch.strided or value.is_meta:
        return False
    return torch.equal(comparable(value.detach()), comparable(kept))


def _registries(module: nn.Module) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the dicts of a module's parameters and children with what they hold; TorchScript keeps no dicts."""
    own = (module._parameters, module._modules)
    return [(registry, dict(registry)) for registry in own if isinstance(registry, dict)]


def _parts(module: nn.Module) -> dict[str, bool]:
    """Return the names of a module's own tensors and children, and whether each is still without a shape."""
    tensors = chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
    return {name: is_lazy(value) for name, value in tensors} | {name: False for name, _ in module.named_children()}
