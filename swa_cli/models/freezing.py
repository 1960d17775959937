"""Freeze parameters by name patterns, and keep the layers among them that have running statistics in eval mode.

A frozen parameter gets no gradient, so it takes no memory for one and optimizers skip it. A layer with running
statistics whose parameters are all frozen normalizes by them and leaves them alone, whatever `model.train()` says.
A parameter that a network has under several names is found by each of them, and called by the first one.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Mapping, Sequence

from torch import nn

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
        found = matching(model, pattern.removeprefix(EXCEPT))
        if not found:
            layers = dict.fromkeys(part for name in names for part in (name, *_prefixes(name)))
            suggestion = did_you_mean(pattern.removeprefix(EXCEPT).rstrip(".*"), layers)
            raise UserError(
                f"model.freeze: {pattern!r} matches no parameter",
                hint=f"{suggestion}names look like {', '.join(names[-3:])}",
            )
        frozen = frozen - found if pattern.startswith(EXCEPT) else frozen | found
    return frozenset(frozen)


def matching(model: nn.Module, pattern: str) -> set[str]:
    """Return the parameters of which a name matches; one with several names is called by its first."""
    names = dict(model.named_parameters(remove_duplicate=False))
    first = {value: name for name, value in model.named_parameters()}
    return {first[names[name]] for name in fnmatch.filter(names, pattern)}


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
    """Iterate over the layers with running statistics whose parameters are all frozen, some by `names`.

    A layer without parameters (`affine=False`) belongs to the innermost module around it that has some.
    """
    modules: Mapping[str, nn.Module] = dict(model.named_modules())
    frozen = {value for name, value in model.named_parameters() if name in names}
    for path, layer in modules.items():
        if not _may_have_statistics(layer):
            continue
        around = (modules[prefix] for prefix in (path, *_prefixes(path), ""))
        own = next((found for module in around if (found := set(module.parameters()))), set[nn.Parameter]())
        if own & frozen and not any(value.requires_grad for value in own - frozen):
            yield layer


def _may_have_statistics(layer: nn.Module) -> bool:
    """Return whether training may move statistics of a layer.

    A norm of torch, also in TorchScript, has a `running_mean`. Of other layers only a batch would show it; those with
    parameters and floating-point buffers, and without layers inside, are taken for such: a norm of the user's.
    """
    buffers = dict(layer.named_buffers(recurse=False))
    is_simple = next(layer.children(), None) is None and next(layer.parameters(), None) is not None
    return "running_mean" in buffers or (is_simple and any(value.is_floating_point() for value in buffers.values()))


def _prefixes(name: str) -> Iterator[str]:
    """Iterate over the modules that a name lies in, the innermost first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
