"""What is trained: `build` makes a network from the name and the arguments that a recipe gives.

A name is one of our own zoo (`names()`), `torchvision:NAME`, `timm:NAME`, or `package.module:Attribute` for a
network of one's own. Every network maps images (B, C, H, W) to logits (B, K), `unet` to those of each pixel
(B, K, H, W); `num_classes` K and `in_channels` C follow the dataset.
Initial weights are drawn from torch's global generator: seed it first.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from swa_cli.errors import UserError
from swa_cli.models.convnet import ConvNet
from swa_cli.models.preresnet import PreResNet
from swa_cli.models.unet import UNet
from swa_cli.models.vgg import VGG
from swa_cli.models.wide_resnet import WideResNet

# Name -> constructor. What a partial fixes is the name's meaning and cannot be an argument in a recipe.
ZOO: Mapping[str, partial[Any]] = {
    "convnet": partial(ConvNet),
    "preresnet": partial(PreResNet),
    "preresnet20": partial(PreResNet, depth=20),
    "preresnet56": partial(PreResNet, depth=56),
    "preresnet110": partial(PreResNet, depth=110),
    "preresnet164": partial(PreResNet, depth=164),
    "unet": partial(UNet),
    "vgg16": partial(VGG, depth=16, batch_norm=False),
    "vgg16_bn": partial(VGG, depth=16, batch_norm=True),
    "vgg19": partial(VGG, depth=19, batch_norm=False),
    "vgg19_bn": partial(VGG, depth=19, batch_norm=True),
    "wide_resnet": partial(WideResNet),
    "wide_resnet28x10": partial(WideResNet, depth=28, width=10),
}
FORMS = "a name is one of the zoo, torchvision:NAME, timm:NAME or package.module:Attribute"
LIBRARIES = ("torchvision", "timm")  # whose networks are no code of one's own

# Left alone, these two also return auxiliary logits in training, and warn of an initialisation to come.
TORCHVISION_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")
}

# Arguments of timm.create_model that load weights, most of them from the network.
TIMM_PRETRAINED = frozenset({"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"})


def names() -> list[str]:
    """Return the names of our own networks."""
    return list(ZOO)


def build(name: str, *, num_classes: int, in_channels: int, args: Mapping[str, Any] | None = None) -> nn.Module:
    """Make the network `name` with fresh weights, on the CPU.

    Args:
        name: `preresnet20`, `torchvision:resnet18`, `timm:resnet18`, `my_networks:Tiny`. A module of one's own must
            be importable; its class or function gets `num_classes` and `in_channels` if the signature has them.
        num_classes: How many logits, K.
        in_channels: Channels of an image, C. Unless it is 3, a torchvision network gets new first weights.
        args: Further constructor arguments.

    Raises:
        UserError: The name or an argument is wrong. Errors inside a constructor of one's own pass through.
    """
    args = dict(args or {})
    filled = {"num_classes": num_classes, "in_channels": in_channels}
    for key in filled:
        if key in args:
            raise UserError(f"model.args.{key}: this follows the dataset", hint=f"leave {key} out")
    source, colon, attribute = name.partition(":")
    if not colon:
        return _from_zoo(name, args=args, filled=filled)
    if source == "torchvision":
        return _from_torchvision(attribute, args=args, num_classes=num_classes, in_channels=in_channels)
    if source == "timm":
        return _from_timm(attribute, args=args, num_classes=num_classes, in_channels=in_channels)
    return _from_import(source, attribute, args=args, filled=filled)


def _from_zoo(name: str, *, args: Mapping[str, Any], filled: Mapping[str, int]) -> nn.Module:
    if name not in ZOO:
        raise UserError(
            f"model.name: unknown network {name!r}",
            hint=f"{_did_you_mean(name, ZOO)}the zoo has {', '.join(ZOO)}; {FORMS}",
        )
    constructor = ZOO[name]
    accepted = {
        key: parameter
        for key, parameter in inspect.signature(constructor, eval_str=True).parameters.items()
        if key not in filled and key not in constructor.keywords
    }
    takes = f"{name} takes {', '.join(accepted) or 'no arguments'}"
    for key, value in args.items():
        if key not in accepted:
            raise UserError(f"model.args.{key}: unknown argument of {name}", hint=_did_you_mean(key, accepted) + takes)
        _check_value(key, value, kind=accepted[key].annotation)
    for key, parameter in accepted.items():
        if parameter.default is parameter.empty and key not in args:
            raise UserError(f"model.args.{key}: {name} needs this argument", hint=f"give it; {takes}")
    network: nn.Module = constructor(**args, **filled)
    return network


def _check_value(key: str, value: object, *, kind: type) -> None:
    """Refuse a wrong value; in the zoo every `int` is a count and every `float` a probability of dropout."""
    if kind is bool:
        good, wanted = isinstance(value, bool), "true or false"
    elif kind is int:
        good = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        wanted = "a whole number of at least 1"
    else:
        assert kind is float
        good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
        wanted = "a number from 0 to below 1"
    if not good:
        raise UserError(f"model.args.{key}: {value!r} is not {wanted}", hint=f"give {wanted}")


def _from_torchvision(name: str, *, args: Mapping[str, Any], num_classes: int, in_channels: int) -> nn.Module:
    from torchvision import models  # half a second, which our own networks need not wait for

    # Classifiers only: others return no logits, and some load pretrained weights unasked.
    known = models.list_models(module=models)
    if name not in known:
        raise UserError(
            f"model.name: torchvision has no classification network {name!r}",
            hint=_did_you_mean(name, known) + "`torchvision.models.list_models(module=torchvision.models)` lists them",
        )
    if "weights" in args:
        raise UserError(
            "model.args.weights: a run starts from fresh weights, not from pretrained ones",
            hint="leave weights out",
        )
    args = {**TORCHVISION_DEFAULTS.get(name, {}), **args}
    try:
        model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **args)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"model.args: torchvision:{name} refuses them: {error}",
            hint=f"see the arguments of torchvision.models.{name}",
        ) from error
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


def _from_timm(name: str, *, args: Mapping[str, Any], num_classes: int, in_channels: int) -> nn.Module:
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
            hint=_did_you_mean(name.partition(".")[0], known) + "`timm.list_models()` lists them",
        )
    for key in TIMM_PRETRAINED & args.keys():
        raise UserError(
            f"model.args.{key}: a run starts from fresh weights, not from pretrained ones",
            hint=f"leave {key} out; weights in a file of yours come with train.init",
        )
    try:
        model: nn.Module = timm.create_model(name, num_classes=num_classes, in_chans=in_channels, **args)
    except (TypeError, ValueError, KeyError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"model.args: timm:{name} refuses them: {reason}", hint=f"see the arguments of timm.create_model({name!r})"
        ) from error
    return model


def _from_import(module_name: str, attribute: str, *, args: Mapping[str, Any], filled: Mapping[str, int]) -> nn.Module:
    name = f"{module_name}:{attribute}"
    constructor = _imported(module_name, attribute)
    if not callable(constructor):
        raise UserError(f"model.name: {name} is not a class or function", hint="name one that makes a network")
    signature = inspect.signature(constructor)
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    arguments = {**args}
    for key, value in filled.items():
        if takes_all or key in signature.parameters:
            arguments[key] = value
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise UserError(f"model.args: {name}: {error}", hint=f"its signature is {signature}") from error
    model = constructor(**arguments)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"model.name: {name} makes a {type(model).__name__}, not a torch.nn.Module",
            hint="name a class or function that makes a network",
        )
    return model


def _imported(module_name: str, attribute: str) -> Any:
    """Return what `package.module:Attribute` names, or say which half of it does not exist."""
    name = f"{module_name}:{attribute}"
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise UserError(f"model.name: {name!r} is not a name of a network", hint=FORMS)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            hint = f"put {module_name.replace('.', '/')}.py beside the recipe or install it; {FORMS}"
        else:
            hint = f"mend the imports of {module_name}, or install what it needs"
        raise UserError(f"model.name: cannot import {module_name}: {error}", hint=hint) from error
    if not hasattr(module, attribute):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise UserError(
            f"model.name: {module_name} has no attribute {attribute!r}",
            hint=_did_you_mean(attribute, public) + f"define it in {module_name}",
        )
    return getattr(module, attribute)


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the beginning of a hint, empty where nothing known is like the word."""
    spelling = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), spelling, n=1)
    return f"did you mean {spelling[close[0]]}? " if close else ""
