"""Load weights into a network: torch's own loader decides what fits, one error reports what does not.

The one idea: a layer may take other names, shapes and versions than it has (`_load_from_state_dict`, load hooks), so
nothing is compared before torch is asked. Afterwards the network says what the weights are called in it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from swa_cli.averaging.model_state import comparable, like, metadata_of, place_of, takes, with_metadata
from swa_cli.errors import UserError

RECIPE_OF_WEIGHTS = "pass the recipe that the weights were trained with"
NUM_EXAMPLES = 3
# What loaders and hooks raise at a state dict of another network.
REFUSALS = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError)
# For floats without infinity torch has `isnan`, and no `isfinite`.
WITHOUT_INFINITY = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float4_e2m1fn_x2)
ASSIGN = "assign_to_params_buffers"  # torch keeps this argument of its loader among the versions


class MisfitError(UserError):
    """A state dict that torch refuses; `names` are missing, unexpected or of another shape."""

    def __init__(self, message: str, *, hint: str, names: tuple[str, ...]) -> None:
        super().__init__(message, hint=hint)
        self.names = names


def load_weights(
    model: nn.Module, state_dict: Mapping[str, Tensor], *, source: str, cure: str = RECIPE_OF_WEIGHTS
) -> dict[str, Tensor]:
    """Load a state dict as `load_strict` does, and return it as the network has it.

    To see whether layers have changed it, each tensor is copied to the device of the network once more.

    Returns:
        The state dict under the names and in the shapes of the network: the tensors of `state_dict`, which may be
        mapped to a file, if they have these, else copies on the CPU, where files are read. Numbers of another kind than
        the network's, and 8-bit floats, with which torch does not compute, become those of the network.

    Raises:
        MisfitError, UserError: As `load_strict` does.
    """
    load_strict(model, state_dict, source=source, cure=cure)
    own = model.state_dict()
    is_same = own.keys() == state_dict.keys() and all(
        _can_replace(state_dict[name], value)
        and torch.equal(comparable(value), comparable(state_dict[name].to(value.device, value.dtype)))
        for name, value in own.items()
    )
    if is_same:
        return like(own, {name: state_dict[name] for name in own})
    return like(own, {name: value.detach().to("cpu", copy=True) for name, value in own.items()})


def load_strict(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    source: str,
    cure: str = RECIPE_OF_WEIGHTS,
    load: Callable[[Mapping[str, Tensor]], object] | None = None,
) -> None:
    """Let torch load a state dict strictly, and require finite numbers.

    Args:
        model: Takes the weights; if they are refused it may have taken some of them.
        state_dict: With the metadata that it was saved with, if there is any.
        source: Where the weights come from, for messages.
        cure: What to do if they do not fit.
        load: Takes the place of torch's loader if the network is not loaded as a whole.

    Raises:
        MisfitError: torch refuses it (the message counts the differences and shows three).
        UserError: A tensor is not finite, or of another kind of number, which torch would cast. A buffer may be
            infinite, as masks and unset ranges are, but no statistic of a normalization layer. Whole numbers may be
            written as floats, and counters of a normalization layer as any, as a mean of state dicts has them.
    """
    require_numbers(
        state_dict,
        like=model.state_dict(),
        source=source,
        may_be_infinite=_buffers(model, of_normalization=False),
        may_be_rounded=_buffers(model, of_normalization=True),  # the counters among them
    )
    if all(name in state_dict and state_dict[name].shape == value.shape for name, value in model.named_parameters()):
        _resize_buffers(model, state_dict)  # the weights are those of this network
    if load is None:
        takes_strict = takes(model.load_state_dict, "strict")
        load = partial(model.load_state_dict, strict=True) if takes_strict else model.load_state_dict
    missing, unexpected = list[str](), list[str]()

    def note(_: nn.Module, found: Any) -> None:
        missing.extend(found.missing_keys)
        unexpected.extend(found.unexpected_keys)

    hook = None  # TorchScript takes none: its refusal is reported in its own words
    if not isinstance(model, torch.jit.ScriptModule):
        hook = model.register_load_state_dict_post_hook(note)
    try:
        load(with_metadata(state_dict, _versions(metadata_of(state_dict))))
    except REFUSALS as error:
        reshaped = {
            key: f"{key} is {tuple(state_dict[key].shape)}, not {tuple(value.shape)}"
            for key, value in model.state_dict().items()
            if key in state_dict and state_dict[key].shape != value.shape
        }
        reason = _reason(missing, unexpected, list(reshaped.values()), error)
        names = tuple(dict.fromkeys((*missing, *unexpected, *reshaped)))
        raise MisfitError(f"{source}: does not fit the recipe's model: {reason}", hint=cure, names=names) from error
    finally:
        if hook is not None:
            hook.remove()


def load_unchecked(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Load values that already stand under the network's own names."""
    _resize_buffers(model, values)
    model.load_state_dict(like(model.state_dict(), values))


def load_buffers(model: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    """Copy values into the buffers of these names, without a loader, which may require the whole state."""
    with torch.no_grad():
        _resize_buffers(model, buffers)
        for name, buffer in model.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])


def require_numbers(
    state_dict: Mapping[str, Tensor],
    *,
    like: Mapping[str, Tensor],
    source: str,
    may_be_infinite: Collection[str] = (),
    may_be_rounded: Collection[str] = (),
) -> None:
    """Require finite tensors, each real, complex or whole like the tensor of its name in `like`, if there is one.

    Whole numbers may be written as real ones, and those that `may_be_rounded` as fractions.

    Raises:
        UserError: One is not.
    """
    checked = set[tuple[object, ...]]()  # a file may have one large tensor under very many names
    for key, given in state_dict.items():
        value = like.get(key, given)
        kinds = (_kind(given), _kind(value))
        is_whole = kinds == ("real", "whole") and (key in may_be_rounded or _holds_whole(given, value.dtype))
        if len(set(kinds)) > 1 and not is_whole:
            raise UserError(
                f"{source}: {key} is of {given.dtype}, not {value.dtype}", hint="take another copy of the file"
            )
        has_infinity = given.dtype not in WITHOUT_INFINITY
        check = Tensor.isfinite if has_infinity and key not in may_be_infinite else _is_number
        place = (check, *place_of(given))
        if place not in checked and not bool(check(given).all()):
            raise UserError(f"{source}: {key} is not finite", hint="take weights from before the run diverged")
        checked.add(place)


def _can_replace(given: Tensor, value: Tensor) -> bool:
    """Return whether a tensor has the shape and the kind of another, and is one of 8-bit floats only if that is."""
    kinds = ((_kind(tensor), _kind(comparable(tensor))) for tensor in (given, value))
    return given.shape == value.shape and len(set(kinds)) == 1


def _is_number(values: Tensor) -> Tensor:
    return ~values.isnan()


def _kind(values: Tensor) -> str:
    return "complex" if values.is_complex() else "real" if values.is_floating_point() else "whole"


def _holds_whole(values: Tensor, dtype: torch.dtype) -> bool:
    """Return whether real numbers are whole ones of a type."""
    exact = values.double()
    return torch.equal(exact.to(dtype).double(), exact)


def _buffers(model: nn.Module, *, of_normalization: bool) -> set[str]:
    """Return the names of the buffers of normalization layers, or of all other layers."""
    return {
        f"{prefix}.{key}" if prefix else key
        for prefix, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, _NormBase) == of_normalization
        for key, _ in module.named_buffers(recurse=False)
    }


def _resize_buffers(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give each buffer the shape of its value: some, such as a memory bank, grow during training.

    The statistics of normalization layers never do: another shape there belongs to another network.
    """
    for prefix, module in model.named_modules():
        if isinstance(module, _NormBase):
            continue
        for key, buffer in module.named_buffers(recurse=False):
            value = values.get(f"{prefix}.{key}" if prefix else key)
            if isinstance(value, Tensor) and value.shape != buffer.shape and value.dtype == buffer.dtype:
                setattr(module, key, torch.empty_like(value, device=buffer.device))


def _versions(metadata: Any) -> Any:
    """Return the metadata without `ASSIGN`, with which torch would replace parameters by tensors of the file."""
    if not isinstance(metadata, Mapping):
        return None
    return {
        name: {key: value for key, value in layer.items() if key != ASSIGN}
        for name, layer in metadata.items()
        if isinstance(layer, Mapping)
    }


def _reason(missing: list[str], unexpected: list[str], reshaped: list[str], error: BaseException) -> str:
    """Return counts and three examples of what torch refuses, or torch's own words."""
    kinds = (reshaped, [f"missing {key}" for key in missing], [f"unexpected {key}" for key in unexpected])
    if any(kinds):
        first_of_each = [kind[0] for kind in kinds if kind]
        examples = [*first_of_each, *(example for kind in kinds for example in kind[1:NUM_EXAMPLES])]
        return (
            f"{len(missing)} tensors missing, {len(unexpected)} unexpected, {len(reshaped)} of another shape"
            f" ({'; '.join(examples[:NUM_EXAMPLES])})"
        )
    words = str(error).partition("\n\t")[2] if isinstance(error, RuntimeError) else f"{type(error).__name__}: {error}"
    return (words or str(error)).partition("\n")[0]
