"""A simulated accelerator: the device `simulated`, whose memory is a second one to torch, and the journal of its host.

Its one idea: a tensor of the device is a host tensor under another name. DLPack hands the same memory over as a tensor
of torch's PrivateUse1 backend, to which autograd, autocast, modules and optimizers do what they do to one of CUDA. An
operation without a kernel of its own, which is nearly every one, comes to `_fallback`: its operands are lent to the
CPU, the CPU computes, and the results go back.

Held as on CUDA: an operand on the host is an error unless it has no dimensions; what returns a number or a shape that
depends on values makes the host wait; so does a copy that is not `non_blocking`; random numbers come from a generator
of the device. Pinned memory is ordinary memory that is remembered as pinned, and must not change before the host next
waits for the device. The journal has each copy and each wait, with the frames of the project that asked for it.

Not simulated: streams and events, graphs, generators that a caller makes for the device, fp16 with scaled gradients,
processes that exchange gradients. torch is changed for good, so this is for a process of its own, see `sessions`.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.amp.autocast_mode import _cast
from torch.utils import _pytree as trees
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import swa_cli

NAME = "simulated"
MEMORY = 1 << 30  # bytes, always free
PROJECT = Path(swa_cli.__file__).parent
ON_HOST, ON_DEVICE = 1, 12  # kDLCPU and kDLExtDev of dlpack.h, which torch takes for PrivateUse1
DEVICE_OFFSET, STRIDES_OFFSET = 8, 32  # in a DLTensor: of `device.device_type`, of `strides`

# Operations whose result is a number, or has a shape that depends on values: CUDA waits in each of them.
WAITS = {
    "_local_scalar_dense",  # item, bool, float, int
    "_unique2",
    "bincount",
    "equal",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}

# Autocast as on CUDA, of the operations that networks here consist of; what is in neither list keeps its type.
IN_LOW_PRECISION = """addbmm addmm addmv baddbmm bmm conv1d conv2d conv3d conv_transpose1d conv_transpose2d.input
    conv_transpose3d.input einsum linear matmul mm mv prelu scaled_dot_product_attention"""
IN_FLOAT32 = """binary_cross_entropy_with_logits cdist cosine_similarity cumsum exp expm1 group_norm kl_div l1_loss
    layer_norm log log1p log_softmax.int mse_loss nll_loss nll_loss2d norm.Scalar pow.Tensor_Scalar prod rsqrt
    smooth_l1_loss softmax.int softplus sum sum.dim_IntList"""

_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


@dataclass(frozen=True)
class Entry:
    """A copy between the memories, or a wait of the host for the device."""

    kind: Literal["to device", "to host", "wait"]
    operation: str
    waits: bool  # the host, until the device has done all that it was asked for
    num_bytes: int
    is_pinned: bool  # the host memory of a copy
    frames: tuple[str, ...]  # of the project, the innermost first: `engine/train.py:162 _train_epoch`

    def within(self, function: str) -> bool:
        """Return whether a function of the project had asked for it, itself or through others."""
        return any(frame.endswith(f" {function}") for frame in self.frames)

    def __str__(self) -> str:
        waits, where = ", the host waits" if self.waits else "", " < ".join(self.frames)
        return f"{self.kind}: {self.operation}, {self.num_bytes} bytes{waits}: {where}"


@dataclass
class Device:
    """The state of the simulated device in this process."""

    journal: list[Entry] = field(default_factory=list)
    random_state: Tensor = field(default_factory=lambda: torch.Generator().manual_seed(0).get_state())
    pinned: dict[int, weakref.ref[Tensor]] = field(default_factory=dict)  # by address
    under_way: list[tuple[Tensor, Tensor, tuple[str, ...]]] = field(default_factory=list)  # pinned, its values then

    def note(
        self,
        kind: Literal["to device", "to host", "wait"],
        operation: str,
        *,
        waits: bool,
        num_bytes: int = 0,
        is_pinned: bool = False,
    ) -> None:
        """Write an entry; a wait ends all copies that are under way.

        Raises:
            RuntimeError: The host has changed pinned memory before its copy was surely done.
        """
        self.journal.append(Entry(kind, operation, waits, num_bytes, is_pinned, project_frames()))
        if waits:
            under_way, self.under_way = self.under_way, []
            for source, values, frames in under_way:
                if not torch.equal(source, values):
                    raise RuntimeError(f"pinned memory was changed while its copy was under way: {' < '.join(frames)}")

    def is_pinned(self, values: Tensor) -> bool:
        """Return whether a host tensor lies in pinned memory."""
        owner = self.pinned.get(values.untyped_storage().data_ptr())
        return owner is not None and owner() is not None


DEVICE = Device()


class BackendModule:
    """`torch.simulated`: what torch asks the module of an accelerator for."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def mem_get_info(self, device: object = None) -> tuple[int, int]:
        return MEMORY, MEMORY

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def manual_seed(self, seed: int) -> None:
        DEVICE.random_state = torch.Generator().manual_seed(seed).get_state()

    manual_seed_all = manual_seed

    def get_rng_state(self, device: object = None) -> Tensor:
        return DEVICE.random_state.clone()

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        DEVICE.random_state = state.clone()


def register() -> None:
    """Make torch know the device, for as long as the process lives; before its first backward pass."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=BackendModule())
    anything = torch.library.Library("_", "IMPL")
    anything.fallback(_fallback, "PrivateUse1")
    anything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    own = torch.library.Library("aten", "IMPL")
    own.impl("convolution_overrideable", _convolution, "PrivateUse1")
    own.impl("convolution_backward_overrideable", _convolution_backward, "PrivateUse1")
    own.impl("_pin_memory", _pin_memory, "CPU")
    own.impl("is_pinned", lambda values, device=None: DEVICE.is_pinned(values), "CPU")
    for names, dtype in ((IN_LOW_PRECISION, None), (IN_FLOAT32, torch.float32)):
        for name in names.split():
            own.impl(name, _autocast(_operation(name), dtype), "AutocastPrivateUse1")
    LIBRARIES.extend([anything, own])


LIBRARIES: list[torch.library.Library] = []  # a library that is collected takes its kernels with it


def project_frames() -> tuple[str, ...]:
    """Return the frames of the project that led here, also from the thread of a backward pass."""
    frames = tuple(_frames_of(sys._getframe(1)))
    return frames or tuple(_frames_of(sys._current_frames()[threading.main_thread().ident or 0]))


def _frames_of(frame: Any) -> Iterator[str]:
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PROJECT):
            yield f"{path.relative_to(PROJECT)}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back


# --- the two memories


def lend(values: Tensor) -> Tensor:
    """Return the memory of a tensor of the device as a tensor of the host."""
    return _renamed(values, ON_HOST)


def take_back(values: Tensor) -> Tensor:
    """Return the memory of a tensor of the host as a tensor of the device."""
    return _renamed(values, ON_DEVICE)


def _renamed(values: Tensor, device_type: int) -> Tensor:
    """Return the same memory as a tensor of another type of device, with the same strides."""
    capsule = torch._C._to_dlpack(values.detach())  # which keeps its memory, also if `values` is given other `data`
    address = _capsule_pointer(capsule, b"dltensor")
    assert address is not None
    ctypes.c_int.from_address(address + DEVICE_OFFSET).value = device_type
    place = ctypes.c_void_p.from_address(address + STRIDES_OFFSET).value
    if place is not None:  # DLPack writes other strides of dimensions with one element
        strides = ctypes.cast(place, ctypes.POINTER(ctypes.c_int64))
        for number, stride in enumerate(values.stride()):
            strides[number] = stride
    renamed: Tensor = torch._C._from_dlpack(capsule)
    return renamed


def _is_here(value: object) -> bool:
    return isinstance(value, Tensor) and value.device.type == NAME


def _pin_memory(values: Tensor, device: object = None) -> Tensor:
    pinned = values.clone()
    DEVICE.pinned[pinned.untyped_storage().data_ptr()] = weakref.ref(pinned)
    return pinned


# --- operations


def _fallback(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """Compute an operation of the device on the CPU."""
    name = operation._schema.name.removeprefix("aten::")
    if name == "_copy_from":
        return _copy(*args, **kwargs)
    if name == "index":  # the shape of its result was found before, with copies of the indices that are noted already
        args = (args[0], [index if index is None or _is_here(index) else take_back(index) for index in args[1]])
    if name == "_index_put_impl_":
        args = (args[0], _indices_here(args[1], args[0].device), *args[2:])
        if _counts_places(*args[1:], **kwargs):
            DEVICE.note("wait", "index_put with a mask", waits=True)
    if name in WAITS:
        DEVICE.note("wait", name, waits=True)
    return _compute(operation, args, kwargs)


def _compute(operation: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Lend the operands to the CPU, compute, and take the results back; what is written in place is what was given."""
    args = [_as_declared(value, argument) for value, argument in zip(args, operation._schema.arguments, strict=False)]
    leaves, spec = trees.tree_flatten((tuple(args), kwargs))
    for value in leaves:
        if isinstance(value, Tensor) and not _is_here(value) and value.dim() > 0:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {operation} found {value.device} "
                f"{tuple(value.shape)} beside {NAME}: {' < '.join(project_frames())}"
            )
    lent_args, lent_kwargs = trees.tree_unflatten([_lent(value) for value in leaves], spec)
    written = _written(operation, args, kwargs)
    for name, value in kwargs.items():
        if _is_here(value) and value.numel() <= 1 and any(value is result for result in written.values()):
            lent_kwargs[name] = torch.empty(0, dtype=value.dtype)  # some operations give `out` other sizes meanwhile
    with _random_numbers_of_device(operation):
        results = operation(*lent_args, **lent_kwargs)
    for memory, computed in _written(operation, lent_args, lent_kwargs).items():
        value = written[memory]
        if _is_here(value) and value.shape != computed.shape:  # an empty result that was given its size
            value.data = take_back(computed)
        elif _is_here(value) and value.numel() == 1:
            lend(value).copy_(computed)
    returns = operation._schema.returns
    if len(returns) == 1:
        return _result(results, returns[0], written, args[0])
    if isinstance(results, tuple):
        return tuple(_result(*each, written, args[0]) for each in zip(results, returns, strict=True))
    return results


def _as_declared(value: Any, argument: Any) -> Any:
    """Return a number as a tensor where the operation has one: torch gives the fallback numbers in their place."""
    is_number = isinstance(value, int | float) and isinstance(argument.type, torch.TensorType)
    return torch.tensor(value) if is_number else value


def _lent(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == NAME:
        return torch.device("cpu")
    if _is_here(value):
        return lend(value)
    return value


def _written(operation: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[frozenset[str], Any]:
    """Return the operands that an operation writes to, by what its schema calls their memory."""
    given = dict(zip((argument.name for argument in operation._schema.arguments), args, strict=False)) | kwargs
    return {
        frozenset(argument.alias_info.before_set): given.get(argument.name)
        for argument in operation._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    }


def _result(result: Any, declared: Any, written: dict[frozenset[str], Any], first: Any) -> Any:
    """Return what a result is on the device: what was written to, a view of the first operand, or new memory."""
    if declared.alias_info is None:
        return trees.tree_map_only(Tensor, take_back, result)
    if declared.alias_info.is_write:
        return written[frozenset(declared.alias_info.before_set)]
    with torch.inference_mode(first.is_inference()):  # in inference mode too, a view of a parameter is an ordinary one
        return trees.tree_map_only(Tensor, take_back, result)


def _copy(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """Copy within the device, or between the memories."""
    if _is_here(source) and _is_here(target):
        lend(target).copy_(lend(source))
    elif _is_here(target):
        is_pinned = DEVICE.is_pinned(source)
        DEVICE.note("to device", "copy", waits=not non_blocking, num_bytes=source.nbytes, is_pinned=is_pinned)
        lend(target).copy_(source)
        if non_blocking and is_pinned:
            DEVICE.under_way.append((source, source.clone(), project_frames()))
    else:
        is_pinned = DEVICE.is_pinned(target)
        waits = not (non_blocking and is_pinned)  # CUDA waits for what goes to pageable memory
        DEVICE.note("to host", "copy", waits=waits, num_bytes=source.nbytes, is_pinned=is_pinned)
        target.copy_(lend(source))
    return target


def _indices_here(indices: Sequence[Tensor | None], device: torch.device) -> list[Tensor | None]:
    """Copy indices of the host to the device, as CUDA does by itself."""
    return [index if index is None or _is_here(index) else index.to(device) for index in indices]


def _counts_places(
    indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False, unsafe: bool = False
) -> bool:
    """Return whether CUDA has to know how many places a mask has before it writes there."""
    masks = [index for index in indices if index is not None and index.dtype in (torch.bool, torch.uint8)]
    is_fill = len(masks) == 1 and values.numel() == 1 and not accumulate
    return bool(masks) and not is_fill


def _convolution(*args: Any) -> Any:
    return _compute(torch.ops.aten.convolution.default, args, {})


def _convolution_backward(
    gradient: Tensor, inputs: Tensor, weight: Tensor, *settings: Any
) -> tuple[Tensor | None, ...]:
    *options, mask = settings
    arguments = (gradient, inputs, weight, [gradient.shape[1]], *options, mask)
    found: tuple[Tensor | None, ...] = _compute(torch.ops.aten.convolution_backward.default, arguments, {})
    return found


@contextmanager
def _random_numbers_of_device(operation: Any) -> Iterator[None]:
    """Draw from the generator of the device, and leave that of the host as it is."""
    if torch.Tag.nondeterministic_seeded not in operation.tags:
        yield
        return
    state = torch.get_rng_state()
    torch.set_rng_state(DEVICE.random_state)
    try:
        yield
    finally:
        DEVICE.random_state = torch.get_rng_state()
        torch.set_rng_state(state)


# --- autocast


def _operation(name: str) -> Any:
    name, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, name), overload or "default")


def _autocast(operation: Any, dtype: torch.dtype | None) -> Callable[..., Any]:
    """Return an operation that casts its operands to a type, or to that of the autocast context (None)."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            wanted = torch.get_autocast_dtype(NAME) if dtype is None else dtype
            return operation(*_cast(args, NAME, wanted), **_cast(kwargs, NAME, wanted))

    return cast
