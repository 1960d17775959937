"""Freeze parameters by name patterns, and keep the BatchNorm layers among them in eval mode.

A frozen parameter gets no gradient, so it takes no memory for one and optimizers skip it. A normalization layer whose
parameters are all frozen normalizes by its running statistics and leaves them alone, whatever `model.train()` says.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Mapping, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from swa_cli.errors import UserError, did_you_mean

EXCEPT = "!"  # in front of a pattern: what it matches is not frozen


def frozen_names(model: nn.Module, patterns: Sequence[str]) -> frozenset[str]:
    """Return the names of the parameters that the patterns freeze; of those that match a name the last one decides.

    Raises:
        UserError: A pattern matches no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen: set[str] = set()
    for pattern in patterns:
        found = fnmatch.filter(names, pattern.removeprefix(EXCEPT))
        if not found:
            layers = dict.fromkeys(part for name in names for part in (name, *_prefixes(name)))
            suggestion = did_you_mean(pattern.removeprefix(EXCEPT).rstrip(".*"), layers)
            raise UserError(
                f"model.freeze: {pattern!r} matches no parameter",
                hint=f"{suggestion}names look like {', '.join(names[-3:])}",
            )
        frozen = frozen - set(found) if pattern.startswith(EXCEPT) else frozen | set(found)
    return frozenset(frozen)


def freeze(model: nn.Module, names: Collection[str]) -> frozenset[str]:
    """Freeze the parameters of these names; return those that were not frozen before, which `unfreeze` takes."""
    fresh = frozenset(name for name, parameter in model.named_parameters() if name in names and parameter.requires_grad)
    for name, parameter in model.named_parameters():
        if name in fresh:
            parameter.requires_grad = False
            parameter.grad = None
    for layer in _layers_of(model, names):
        keep(layer)
    return fresh


def keep(layer: nn.Module) -> None:
    """Keep a layer in eval mode, whatever `model.train()` says."""
    layer.eval()
    layer.train = _keep_mode.__get__(layer)  # type: ignore[method-assign]


def kept_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers that are kept in eval mode: a layer that replaces one of them is not."""
    return [name for name, layer in model.named_modules() if "train" in vars(layer)]


def unfreeze(model: nn.Module, names: Collection[str]) -> None:
    """Let the parameters train that `freeze` has frozen; their layers follow `model.train()` again."""
    for layer in _layers_of(model, names):
        vars(layer).pop("train", None)
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad = True


def _keep_mode(layer: nn.Module, mode: bool = True) -> nn.Module:
    """Take the place of `train` of a frozen layer."""
    return layer


def _layers_of(model: nn.Module, names: Collection[str]) -> Iterator[nn.Module]:
    """Iterate over the normalization layers whose parameters are all frozen, some by `names`.

    A layer without parameters (`affine=False`) belongs to the innermost module around it that has some.
    """
    modules: Mapping[str, nn.Module] = dict(model.named_modules())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for path, layer in modules.items():
        if not isinstance(layer, _NormBase):
            continue
        around = next(
            (prefix for prefix in (path, *_prefixes(path), "") if next(modules[prefix].parameters(), None) is not None),
            "",
        )
        own = [f"{around}.{key}" if around else key for key, _ in modules[around].named_parameters()]
        if any(name in names for name in own) and all(name in names or name not in trained for name in own):
            yield layer


def _prefixes(name: str) -> Iterator[str]:
    """Iterate over the modules that a name lies in, the innermost first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
