"""Networks of torchvision and timm by name, always with fresh weights.

The one idea: only names that the library itself lists are built, and no argument may load weights. So a recipe of
somebody else's can neither download nor unpickle anything by way of a library.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from swa_cli.errors import UserError, did_you_mean

# Where torchvision has the networks of a family.
HOMES = {"classification": "torchvision.models", "segmentation": "torchvision.models.segmentation"}
# Left alone, these two also return auxiliary logits in training, and warn of an initialisation to come.
TORCHVISION_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")
}

# Arguments that load weights, from the network or from a file that is not checked; timm has more that begin alike.
PRETRAINED = frozenset({"weights", "weights_backbone", "checkpoint_path", "cache_dir"})
# What constructors raise for arguments that they do not take; a RuntimeError with one of these words is of memory.
REFUSALS = (TypeError, ValueError, LookupError, AttributeError, AssertionError, ZeroDivisionError, RuntimeError)
OF_MEMORY = ("memory", "verflow")


def from_torchvision(
    name: str, *, args: Mapping[str, Any], num_classes: int, in_channels: int, families: Sequence[str]
) -> nn.Module:
    """Make the network `torchvision:NAME`; see `build` for the arguments.

    Raises:
        UserError: There is none in these families, or it does not take the arguments.
    """
    from torchvision import models  # half a second, which our own networks need not wait for

    known = _of_torchvision(families)
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
    except REFUSALS as error:
        raise _refused_args(f"torchvision:{name}", error, see=f"{home}.{name}") from error
    if in_channels != 3:
        _fit_first_conv(model, in_channels=in_channels)
    return model


def _fit_first_conv(model: nn.Module, *, in_channels: int) -> None:
    """Give the first convolution weights for `in_channels`; all else about it stays."""
    conv = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert conv.groups == 1
    # Each family of networks has its own initialisation: keep its scale rather than take Conv2d's.
    weight = torch.empty(conv.out_channels, in_channels, *conv.kernel_size)
    conv.weight = nn.Parameter(nn.init.normal_(weight, std=conv.weight.std().item()))
    conv.in_channels = in_channels


def from_timm(name: str, *, args: Mapping[str, Any], num_classes: int, in_channels: int) -> nn.Module:
    """Make the network `timm:NAME`; see `build` for the arguments.

    Raises:
        UserError: timm is not installed, has no such network, or it does not take the arguments.
    """
    try:
        import timm  # seconds, which our own networks need not wait for
    except ModuleNotFoundError as error:
        raise UserError(
            f"model.name: timm:{name} needs the package timm: {error}", hint="pip install 'swa-cli[timm]'"
        ) from error
    known = timm.list_models()
    if name not in known:  # a name with a tag or a hub would be one of pretrained weights
        raise UserError(
            f"model.name: timm has no network {name!r}",
            hint=did_you_mean(name.partition(".")[0], known) + "`timm.list_models()` lists them",
        )
    _refuse_pretrained(
        args, file=f"{name}.pth", make=f"import timm; net = timm.create_model('{name}', pretrained=True)"
    )
    try:
        model: nn.Module = timm.create_model(name, num_classes=num_classes, in_chans=in_channels, **args)
    except REFUSALS as error:
        raise _refused_args(f"timm:{name}", error, see=f"timm.create_model({name!r})") from error
    return model


def _refuse_pretrained(args: Mapping[str, Any], *, file: str, make: str) -> None:
    """Refuse arguments that load weights, and say how to start from those weights.

    Args:
        args: The constructor arguments.
        file: Where the weights are saved.
        make: Python code that makes `net`, the pretrained network.

    Raises:
        UserError: There is such an argument.
    """
    for key in args:
        if key in PRETRAINED or key.startswith("pretrained"):
            save = f"import torch; {make}; torch.save(net.state_dict(), '{file}')"
            raise UserError(
                f"model.args.{key}: a run starts from fresh weights; pretrained weights are read from a file",
                hint=f'leave {key} out, save the weights once with `python -c "{save}"`, and add train.init={file}',
            )


def _refused_args(name: str, error: Exception, *, see: str) -> Exception:
    """What is told where a library's constructor has raised this."""
    if isinstance(error, RuntimeError) and any(word in str(error) for word in OF_MEMORY):
        return error
    words = str(error).partition("\n")[0]
    says_what = isinstance(error, TypeError | ValueError | AssertionError | RuntimeError) and words
    reason = words if says_what else f"{type(error).__name__} {words}".rstrip()
    return UserError(f"model.args: {name} refuses them: {reason}", hint=f"see the arguments of {see}")


def in_libraries(name: str, *, families: Sequence[str]) -> str | None:
    """A name without its library, such as resnet18, as a recipe has to write it."""
    if found := _listed(name, _of_torchvision(families)):
        return f"torchvision:{found}"
    if "classification" in families and importlib.util.find_spec("timm") is not None:
        import timm

        if found := _listed(name, timm.list_models()):
            return f"timm:{found}"
    return None


def _listed(name: str, known: Iterable[str]) -> str | None:
    """The known name that differs from this one at most in capitals, - and _, as ResNet-18 from resnet18."""

    def bare(name: str) -> str:
        return name.lower().replace("-", "").replace("_", "")

    return next((other for other in known if bare(other) == bare(name)), None)


def _of_torchvision(families: Sequence[str]) -> dict[str, str]:
    """Network to its family; others return something else than logits, and some load pretrained weights unasked."""
    from torchvision import models

    modules = {"classification": models, "segmentation": models.segmentation}
    return {network: family for family in families for network in models.list_models(module=modules[family])}
