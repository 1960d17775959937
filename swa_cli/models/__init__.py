"""What is trained: `build` makes a network from the name and the arguments that a recipe gives.

A name is one of our own zoo (`names()`), `torchvision:NAME`, `timm:NAME`, or `package.module:Attribute` for a network
of one's own. Networks of the zoo map images (B, C, H, W) to logits (B, K), or to K numbers, or to those of each pixel
(B, K, H, W); `num_classes` K and `in_channels` C follow the dataset.
Initial weights are drawn from torch's global generator: seed it first.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from swa_cli.errors import UserError
from swa_cli.models.convnet import ConvNet
from swa_cli.models.preresnet import PreResNet
from swa_cli.models.speednet import SpeedNet
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
    "speednet": partial(SpeedNet),
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

# What their constructors raise at arguments that they do not take. RuntimeError is one too, but may be of memory.
REFUSALS = (TypeError, ValueError, AssertionError, LookupError, AttributeError, ZeroDivisionError)

# Left alone, these two also return auxiliary logits in training, and warn of an initialisation to come.
TORCHVISION_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")
}

# Arguments of timm.create_model that load weights, most of them from the network.
TIMM_PRETRAINED = frozenset({"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"})


def names() -> list[str]:
    """Return the names of our own networks."""
    return list(ZOO)


def build(
    name: str,
    *,
    num_classes: int | None,
    in_channels: int | None,
    args: Mapping[str, Any] | None = None,
    families: Sequence[str] = ("classification",),
) -> nn.Module:
    """Make the network `name` with fresh weights, on the CPU.

    Args:
        name: `preresnet20`, `torchvision:resnet18`, `timm:resnet18`, `my_networks:Tiny`. A module of one's own must
            be importable; its class or function gets `num_classes` (also as `num_outputs`) and `in_channels` if the
            signature has them.
        num_classes: How many logits or other outputs, K; None where the dataset does not tell.
        in_channels: Channels of an image, C. Unless it is 3, a torchvision network gets new first weights.
            None where the inputs are no images.
        args: Further constructor arguments.
        families: Which networks of torchvision fit: classification, segmentation, or both.

    Raises:
        UserError: The name or an argument is wrong. Errors inside a constructor of one's own pass through.
    """
    args = dict(args or {})
    known = {"num_classes": num_classes, "in_channels": in_channels}
    filled = {key: value for key, value in known.items() if value is not None}
    for key in filled:
        if key in args:
            raise UserError(f"model.args.{key}: this follows the dataset", hint=f"leave {key} out")
    source, colon, attribute = name.partition(":")
    if colon and source not in ("torchvision", "timm"):
        return _from_import(name, args=args, filled=filled)
    if num_classes is None or in_channels is None:
        missing = "channels of images" if in_channels is None else "number of outputs"
        raise UserError(
            f"model.name: {name} needs the {missing}, which the dataset does not have",
            hint="name a network of your own, package.module:Attribute",
        )
    if not colon:
        return _from_zoo(name, args=args, filled=filled)
    if source == "timm":
        return _from_timm(attribute, args=args, num_classes=num_classes, in_channels=in_channels)
    return _from_torchvision(attribute, args=args, num_classes=num_classes, in_channels=in_channels, families=families)


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


def _from_torchvision(
    name: str, *, args: Mapping[str, Any], num_classes: int, in_channels: int, families: Sequence[str]
) -> nn.Module:
    from torchvision import models  # half a second, which our own networks need not wait for

    # Others return something else than logits, and some load pretrained weights unasked.
    modules = {"classification": models, "segmentation": models.segmentation}
    known = {network: family for family in families for network in models.list_models(module=modules[family])}
    if name not in known:
        places = " and ".join(
            f"torchvision.models{'' if kind == 'classification' else f'.{kind}'}" for kind in families
        )
        raise UserError(
            f"model.name: torchvision has no {' or '.join(families)} network {name!r}",
            hint=_did_you_mean(name, known) + f"`torchvision.models.list_models(module={places})` lists them",
        )
    for key in {"weights", "weights_backbone"} & args.keys():
        raise UserError(
            f"model.args.{key}: a run starts from fresh weights, not from pretrained ones",
            hint=f"leave {key} out",
        )
    fresh = {"weights_backbone": None} if known[name] == "segmentation" else {}
    args = {**TORCHVISION_DEFAULTS.get(name, {}), **fresh, **args}
    try:
        model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **args)
    except REFUSALS as error:
        raise refused(f"torchvision:{name}", error) from error
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
    except REFUSALS as error:
        raise refused(f"timm:{name}", error) from error
    return model


def refused(name: str, error: Exception) -> UserError:
    """What is told where the constructor of a network that is not one's own has raised this."""
    source, _, attribute = name.partition(":")
    makers = {"torchvision": f"torchvision.models.{attribute}", "timm": f"timm.create_model({attribute!r})"}
    words = str(error).partition("\n")[0]
    says_what = isinstance(error, TypeError | ValueError | AssertionError | RuntimeError) and words
    reason = words if says_what else f"{type(error).__name__} {words}".rstrip()
    return UserError(
        f"model.args: {name} refuses them: {reason}", hint=f"see the arguments of {makers.get(source, name)}"
    )


def _from_import(name: str, *, args: Mapping[str, Any], filled: Mapping[str, int]) -> nn.Module:
    constructor = imported(name, key="model.name", what="a network", forms=FORMS)
    if not callable(constructor):
        raise UserError(f"model.name: {name} is not a class or function", hint="name one that makes a network")
    signature = inspect.signature(constructor)
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    arguments = {**args}
    for key, value in filled.items():
        if takes_all or key in signature.parameters:
            arguments[key] = value
    if "num_outputs" in signature.parameters and "num_classes" in filled:
        arguments["num_outputs"] = filled["num_classes"]
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


def imported(name: str, *, key: str, what: str, forms: str) -> Any:
    """What `package.module:attribute` names, found as Python finds modules.

    Args:
        name: The attribute may be a module of the package.
        key: Of the recipe, for the message.
        what: Kind of thing, for the message.
        forms: What names there are, for the hint.

    Raises:
        UserError: One half of it does not exist. Errors inside the module pass through.
    """
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise UserError(f"{key}: {name!r} is not a name of {what}", hint=forms)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            hint = f"put {module_name.replace('.', '/')}.py beside the recipe or install it; {forms}"
        else:
            hint = f"mend the imports of {module_name}, or install what it needs"
        raise UserError(f"{key}: cannot import {module_name}: {error}", hint=hint) from error
    is_package = hasattr(module, "__path__")  # its modules are not loaded with it
    if not hasattr(module, attribute) and is_package and importlib.util.find_spec(f"{module_name}.{attribute}"):
        importlib.import_module(f"{module_name}.{attribute}")
    if not hasattr(module, attribute):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise UserError(
            f"{key}: {module_name} has no attribute {attribute!r}",
            hint=_did_you_mean(attribute, public) + f"define it in {module_name}",
        )
    return getattr(module, attribute)


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the beginning of a hint, empty where nothing known is like the word."""
    spelling = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), spelling, n=1)
    return f"did you mean {spelling[close[0]]}? " if close else ""
