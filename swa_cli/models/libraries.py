"""Networks of torchvision and timm by name, always with new weights.

One idea: only names that the library itself lists are built, and no argument may load weights. So an untrusted recipe
can neither download nor unpickle anything through a library.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from swa_cli.errors import UserError

# Family of networks -> the module of torchvision that has them.
HOMES = {"classification": "torchvision.models", "segmentation": "torchvision.models.segmentation"}
# By default these two also return auxiliary logits in training, and warn that their initialisation will change.
TORCHVISION_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")
}

# Arguments that load weights, from the internet or from an unchecked file; so do all that begin with `pretrained`.
PRETRAINED = frozenset({"weights", "weights_backbone", "checkpoint_path", "cache_dir"})
# What constructors raise for arguments that they do not accept; a RuntimeError with one of these words is about memory.
ARGUMENT_ERRORS = (TypeError, ValueError, LookupError, AttributeError, AssertionError, ZeroDivisionError, RuntimeError)
MEMORY_WORDS = ("memory", "verflow")


def from_torchvision(
    name: str, *, args: Mapping[str, Any], num_classes: int, in_channels: int, families: Sequence[str]
) -> nn.Module:
    """Build the network `torchvision:NAME`; see `build` for the arguments.

    Raises:
        UserError: These families have no such network, or it does not accept the arguments.
    """
    from torchvision import models  # takes half a second, which the zoo does not need

    known = _torchvision_networks(families)
    if name not in known:
        places = " and ".join(HOMES[family] for family in families)
        raise UserError(
            f"model.name: torchvision has no {' or '.join(families)} network {name!r}",
            hint=did_you_mean(name, known) + f"`torchvision.models.list_models(module={places})` lists them",
        )
    home = HOMES[known[name]]
    _refuse_pretrained(args, file=f"{name}.pth", make=f"import {home} as m; net = m.{name}(weights='DEFAULT')")
    fresh = {"weights_backbone": None} if known[name] == "segmentation" else {}
    args = {**TORCHVISION_DEFAULTS.get(name, {}), **fresh, **args}
    try:
        model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **args)
    except ARGUMENT_ERRORS as error:
        raise _args_error(f"torchvision:{name}", error, see=f"{home}.{name}") from error
    if in_channels != 3:
        _fit_first_conv(model, in_channels=in_channels)
    return model


def _fit_first_conv(model: nn.Module, *, in_channels: int) -> None:
    """Replace the weights of the first convolution by new ones for `in_channels` channels."""
    conv = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert conv.groups == 1
    # Each family of networks has its own initialisation: keep its scale instead of Conv2d's.
    weight = torch.empty(conv.out_channels, in_channels, *conv.kernel_size)
    conv.weight = nn.Parameter(nn.init.normal_(weight, std=conv.weight.std().item()))
    conv.in_channels = in_channels


def from_timm(name: str, *, args: Mapping[str, Any], num_classes: int, in_channels: int) -> nn.Module:
    """Build the network `timm:NAME`; see `build` for the arguments.

    Raises:
        UserError: timm is not installed or has no such network, or the network does not accept the arguments.
    """
    try:
        import timm  # takes seconds, which the zoo does not need
    except ModuleNotFoundError as error:
        raise UserError(
            f"model.name: timm:{name} needs the package timm: {error}", hint="pip install 'swa-cli[timm]'"
        ) from error
    known = timm.list_models()
    if name not in known:  # a name with a tag or a hub would name pretrained weights
        raise UserError(
            f"model.name: timm has no network {name!r}",
            hint=did_you_mean(name.partition(".")[0], known) + "`timm.list_models()` lists them",
        )
    _refuse_pretrained(
        args, file=f"{name}.pth", make=f"import timm; net = timm.create_model('{name}', pretrained=True)"
    )
    try:
        model: nn.Module = timm.create_model(name, num_classes=num_classes, in_chans=in_channels, **args)
    except ARGUMENT_ERRORS as error:
        raise _args_error(f"timm:{name}", error, see=f"timm.create_model({name!r})") from error
    return model


def _refuse_pretrained(args: Mapping[str, Any], *, file: str, make: str) -> None:
    """Refuse arguments that load weights, with a hint that shows how to start from those weights.

    Args:
        args: The constructor arguments.
        file: Where the hint saves the weights.
        make: Python code that creates `net`, the pretrained network.

    Raises:
        UserError: There is such an argument.
    """
    for key in args:
        if key in PRETRAINED or key.startswith("pretrained"):
            save = f"import torch; {make}; torch.save(net.state_dict(), '{file}')"
            raise UserError(
                f"model.args.{key}: a run starts from new weights; pretrained weights are read from a file",
                hint=f'leave {key} out, save the weights once with `python -c "{save}"`, and add train.init={file}',
            )


def _args_error(name: str, error: Exception, *, see: str) -> Exception:
    """Return the error to raise for one that a library's constructor raised."""
    if isinstance(error, RuntimeError) and any(word in str(error) for word in MEMORY_WORDS):
        return error
    text = str(error).partition("\n")[0]
    explains = isinstance(error, TypeError | ValueError | AssertionError | RuntimeError) and text
    reason = text if explains else f"{type(error).__name__} {text}".rstrip()
    return UserError(f"model.args: {name} refuses them: {reason}", hint=f"see the arguments of {see}")


def find_in_libraries(name: str, *, families: Sequence[str]) -> str | None:
    """Return a name without its library, such as resnet18, as a recipe has to spell it."""
    if found := _find_spelling(name, _torchvision_networks(families)):
        return f"torchvision:{found}"
    if "classification" in families and importlib.util.find_spec("timm") is not None:
        import timm

        if found := _find_spelling(name, timm.list_models()):
            return f"timm:{found}"
    return None


def _find_spelling(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that differs at most in capitals, - and _, such as resnet18 for ResNet-18."""

    def normalize(name: str) -> str:
        return name.lower().replace("-", "").replace("_", "")

    return next((other for other in known if normalize(other) == normalize(name)), None)


def _torchvision_networks(families: Sequence[str]) -> dict[str, str]:
    """Return network -> family. Other networks do not return logits, and some load pretrained weights by default."""
    from torchvision import models

    modules = {"classification": models, "segmentation": models.segmentation}
    return {network: family for family in families for network in models.list_models(module=modules[family])}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the beginning of a hint, empty if no known word is similar."""
    spelling = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), spelling, n=1)
    return f"did you mean {spelling[close[0]]}? " if close else ""
