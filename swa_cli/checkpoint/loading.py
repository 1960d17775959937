"""Weights into a network: torch's own loader decides what fits, and what it refuses is told in one message.

The one idea: a layer may take other names, shapes and versions than it has (`_load_from_state_dict`, load hooks), so
nothing is compared before torch is asked. Afterwards the network tells what the weights are called in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from swa_cli.averaging.model_state import cloned, like, metadata_of, takes, with_metadata
from swa_cli.errors import UserError

RECIPE_OF_WEIGHTS = "pass the recipe that the weights were trained with"
NUM_EXAMPLES = 3
# What loaders and hooks raise at a state dict that is not for them.
REFUSALS = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError)
ASSIGN = "assign_to_params_buffers"  # torch keeps an argument of the loader among the versions


class MisfitError(UserError):
    """A state dict that torch does not load; `names` are those that are missing, unexpected or of another shape."""

    def __init__(self, message: str, *, hint: str, names: tuple[str, ...]) -> None:
        super().__init__(message, hint=hint)
        self.names = names


def load_weights(
    model: nn.Module, state_dict: Mapping[str, Tensor], *, source: str, cure: str = RECIPE_OF_WEIGHTS
) -> dict[str, Tensor]:
    """Load a state dict strictly.

    Args:
        model: Takes the weights; where they are refused it may have taken some of them.
        state_dict: With the metadata that it was saved with, if there is any.
        source: Where it comes from.
        cure: What to do where it does not fit.

    Returns:
        The state dict under the names and in the shapes of the network: `state_dict` itself where it is that, which may
        be mapped to a file, else a copy.

    Raises:
        MisfitError: torch refuses it (the message counts the differences and shows three).
        UserError: A tensor is of another kind of number, or not finite.
    """
    put(model, state_dict, source=source, cure=cure)
    own = model.state_dict()
    require_finite(state_dict, source=source)
    return as_in(own, state_dict)


def put(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    source: str,
    cure: str = RECIPE_OF_WEIGHTS,
    load: Callable[[Mapping[str, Tensor]], object] | None = None,
) -> None:
    """Let torch load a state dict strictly; `load` does it where the network is not loaded as a whole.

    Raises:
        MisfitError: torch refuses it.
        UserError: A tensor is of another kind of number, which torch would cast.
    """
    _require_kinds(state_dict, like=model.state_dict(), source=source)
    missing, unexpected = list[str](), list[str]()

    def note(_: nn.Module, found: Any) -> None:
        missing.extend(found.missing_keys)
        unexpected.extend(found.unexpected_keys)

    if _fits_but_for_buffers(model, state_dict):
        fit_buffers(model, state_dict)
    hook = None  # TorchScript takes none: its refusal is told in its own words
    if not isinstance(model, torch.jit.ScriptModule):
        hook = model.register_load_state_dict_post_hook(note)
    try:
        (load or _strictly(model))(with_metadata(state_dict, _versions(metadata_of(state_dict))))
    except REFUSALS as error:
        reshaped = _reshaped(model, state_dict)
        raise _misfit(missing, unexpected, reshaped, error, source=source, cure=cure) from error
    finally:
        if hook is not None:
            hook.remove()


def _fits_but_for_buffers(model: nn.Module, state_dict: Mapping[str, Tensor]) -> bool:
    """Whether all parameters of the network are there in their shapes: then it is this network's."""
    return all(name in state_dict and state_dict[name].shape == value.shape for name, value in model.named_parameters())


def put_own(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Load values that were made under the network's own names, whatever the files they come from called them."""
    fit_buffers(model, values)
    model.load_state_dict(like(model.state_dict(), values))


def fit_buffers(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give buffers that change their shape as a network trains, such as a memory that fills, the shape of their values.

    The statistics of normalisation layers never do: another shape there is that of another network.
    """
    for prefix, module in model.named_modules():
        if isinstance(module, _NormBase):
            continue
        for key, buffer in module.named_buffers(recurse=False):
            value = values.get(f"{prefix}.{key}" if prefix else key)
            if isinstance(value, Tensor) and value.shape != buffer.shape and value.dtype == buffer.dtype:
                setattr(module, key, torch.empty_like(value, device=buffer.device))


def put_buffers(model: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    """Copy values into the buffers of these names; no loader is asked, which may want the whole state."""
    with torch.no_grad():
        fit_buffers(model, buffers)
        for name, buffer in model.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])


def _strictly(model: nn.Module) -> Callable[[Mapping[str, Tensor]], object]:
    strict = {"strict": True} if takes(model.load_state_dict, "strict") else {}
    return lambda state_dict: model.load_state_dict(state_dict, **strict)


def as_in(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What was loaded, as the network has it: `given` if names and numbers are the same, else a copy of `own`."""
    same = own.keys() == given.keys() and all(_is_same(value, given[name]) for name, value in own.items())
    return like(own, {name: given[name] for name in own}) if same else cloned(own)


def require_numbers(state_dict: Mapping[str, Tensor], *, like: Mapping[str, Tensor], source: str) -> None:
    """Each tensor is finite, and real, complex or whole as its namesake in `like`, if it has one.

    Raises:
        UserError: One is not.
    """
    _require_kinds(state_dict, like=like, source=source)
    require_finite(state_dict, source=source)


def require_finite(state_dict: Mapping[str, Tensor], *, source: str) -> None:
    """Each number is finite.

    Raises:
        UserError: One is not.
    """
    for key, given in state_dict.items():
        if not bool(torch.isfinite(given).all()):
            raise UserError(f"{source}: {key} is not finite", hint="take weights from before the run diverged")


def _require_kinds(state_dict: Mapping[str, Tensor], *, like: Mapping[str, Tensor], source: str) -> None:
    for key, given in state_dict.items():
        value = like.get(key, given)
        if (given.is_floating_point(), given.is_complex()) != (value.is_floating_point(), value.is_complex()):
            raise UserError(
                f"{source}: {key} is of {given.dtype}, not {value.dtype}", hint="take another copy of the file"
            )


def _misfit(
    missing: list[str],
    unexpected: list[str],
    reshaped: Mapping[str, str],
    error: BaseException,
    *,
    source: str,
    cure: str,
) -> MisfitError:
    """Torch's refusal: counts and three examples, or else its own words."""
    kinds = (
        list(reshaped.values()),
        [f"missing {key}" for key in missing],
        [f"unexpected {key}" for key in unexpected],
    )
    words = str(error).partition("\n\t")[2] if isinstance(error, RuntimeError) else f"{type(error).__name__}: {error}"
    reason = (words or str(error)).partition("\n")[0]
    if any(kinds):
        examples = [example for part in (slice(0, 1), slice(1, 3)) for kind in kinds for example in kind[part]]
        reason = (
            f"{len(missing)} tensors missing, {len(unexpected)} unexpected, {len(reshaped)} of another shape"
            f" ({'; '.join(examples[:NUM_EXAMPLES])})"
        )
    names = tuple(dict.fromkeys((*missing, *unexpected, *reshaped)))
    return MisfitError(f"{source}: does not fit the recipe's model: {reason}", hint=cure, names=names)


def _reshaped(model: nn.Module, given: Mapping[str, Tensor]) -> dict[str, str]:
    """Tensors of a name that the network has, and of another shape."""
    return {
        key: f"{key} is {tuple(given[key].shape)}, not {tuple(value.shape)}"
        for key, value in model.state_dict().items()
        if key in given and given[key].shape != value.shape
    }


def _versions(metadata: Any) -> Any:
    """Metadata without what is no version: with it torch would let the file's tensors replace parameters."""
    if not isinstance(metadata, Mapping):
        return None
    return {
        name: {key: value for key, value in of_layer.items() if key != ASSIGN}
        for name, of_layer in metadata.items()
        if isinstance(of_layer, Mapping)
    }


def _is_same(own: Tensor, given: Tensor) -> bool:
    return own.shape == given.shape and torch.equal(own, given.to(own.device, own.dtype))
