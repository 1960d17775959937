"""Build a network from the name and the arguments in a recipe.

A name is one of the zoo (`names()`), `torchvision:NAME`, `timm:NAME`, or `package.module:Attribute` for the user's own
network. Networks of the zoo map images (B, C, H, W) to logits (B, K), to K numbers, or to logits of each pixel
(B, K, H, W); `num_classes` and `in_channels` follow the dataset. Initial weights come from torch's global generator:
seed it first.
B batch; C channels; H W pixels; K classes or other outputs.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from swa_cli.errors import UserError
from swa_cli.models.convnet import ConvNet
from swa_cli.models.libraries import did_you_mean, find_in_libraries, from_timm, from_torchvision
from swa_cli.models.preresnet import PreResNet
from swa_cli.models.speednet import SpeedNet
from swa_cli.models.unet import UNet
from swa_cli.models.vgg import VGG
from swa_cli.models.wide_resnet import WideResNet

# Name -> constructor. An argument that a partial fixes belongs to the name; a recipe cannot give it.
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
LIBRARIES = ("torchvision", "timm")  # their networks are not code of the user's own


def names() -> list[str]:
    """Return the names of the zoo."""
    return list(ZOO)


def build(
    name: str,
    *,
    num_classes: int | None,
    in_channels: int | None,
    args: Mapping[str, Any] | None = None,
    families: Sequence[str] = ("classification",),
) -> nn.Module:
    """Build the network `name` with new weights on the CPU.

    Args:
        name: `preresnet20`, `torchvision:resnet18`, `timm:resnet18`, `my_networks:Tiny`. The user's own module must be
            importable; its class or function gets `num_classes` (also as `num_outputs`) and `in_channels` if its
            signature has them.
        num_classes: K; None if the dataset does not define it.
        in_channels: C; None if the inputs are not images. Unless it is 3, a torchvision network gets a new first
            convolution.
        args: Other constructor arguments.
        families: The kinds of torchvision networks to choose from: classification, segmentation, or both.

    Raises:
        UserError: The name or an argument is wrong. Errors inside the user's own constructor pass through.
    """
    args = dict(args or {})
    known = {"num_classes": num_classes, "in_channels": in_channels}
    filled = {key: value for key, value in known.items() if value is not None}
    for key in filled:
        if key in args:
            raise UserError(f"model.args.{key}: this follows the dataset", hint=f"leave {key} out")
    source, colon, attribute = name.partition(":")
    if colon and source not in LIBRARIES:
        return _from_import(name, args=args, filled=filled)
    if num_classes is None or in_channels is None:
        missing = "channels of images" if in_channels is None else "number of outputs"
        raise UserError(
            f"model.name: {name} needs the {missing}, which the dataset does not define",
            hint="use a network of your own, package.module:Attribute",
        )
    if not colon:
        return _from_zoo(name, args=args, filled=filled, families=families)
    if source == "timm":
        return from_timm(attribute, args=args, num_classes=num_classes, in_channels=in_channels)
    return from_torchvision(attribute, args=args, num_classes=num_classes, in_channels=in_channels, families=families)


def _from_zoo(name: str, *, args: Mapping[str, Any], filled: Mapping[str, int], families: Sequence[str]) -> nn.Module:
    if name not in ZOO:
        found = find_in_libraries(name, families=families)
        suggestion = f"did you mean {found}? " if found else did_you_mean(name, ZOO)
        raise UserError(
            f"model.name: unknown network {name!r}", hint=f"{suggestion}the zoo has {', '.join(ZOO)}; {FORMS}"
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
            raise UserError(f"model.args.{key}: unknown argument of {name}", hint=did_you_mean(key, accepted) + takes)
        _check_value(key, value, kind=accepted[key].annotation)
    for key, parameter in accepted.items():
        if parameter.default is parameter.empty and key not in args:
            raise UserError(f"model.args.{key}: {name} needs this argument", hint=f"give it; {takes}")
    network: nn.Module = constructor(**args, **filled)
    return network


def _check_value(key: str, value: object, *, kind: type) -> None:
    """Refuse a wrong value; in the zoo every `int` is a count and every `float` a probability of dropout."""
    if kind is bool:
        is_valid, expected = isinstance(value, bool), "true or false"
    elif kind is int:
        is_valid = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        expected = "a whole number of at least 1"
    else:
        assert kind is float
        is_valid = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
        expected = "a number from 0 to below 1"
    if not is_valid:
        raise UserError(f"model.args.{key}: {value!r} is not {expected}", hint=f"give {expected}")


def _from_import(name: str, *, args: Mapping[str, Any], filled: Mapping[str, int]) -> nn.Module:
    constructor = import_attribute(name, key="model.name", what="a network", forms=FORMS)
    if not callable(constructor):
        raise UserError(f"model.name: {name} is not a class or function", hint="name one that returns a network")
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
            f"model.name: {name} returns a {type(model).__name__}, not a torch.nn.Module",
            hint="name a class or function that returns a network",
        )
    return model


def import_attribute(name: str, *, key: str, what: str, forms: str) -> Any:
    """Import `package.module:attribute` as Python imports modules.

    Args:
        name: The attribute may be a module of the package.
        key: The recipe key, for the message.
        what: What the attribute should be, for the message.
        forms: The valid forms of a name, for the hint.

    Raises:
        UserError: The module or the attribute does not exist. Errors inside the module pass through.
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
            hint = f"fix the imports of {module_name}, or install what it needs"
        raise UserError(f"{key}: cannot import {module_name}: {error}", hint=hint) from error
    except SystemExit as error:
        hint = "move code that must not run on import below `if __name__ == '__main__':`"
        raise UserError(f"{key}: cannot import {module_name}: it ends the program", hint=hint) from error
    is_package = hasattr(module, "__path__")  # importing it does not import its modules
    if not hasattr(module, attribute) and is_package and importlib.util.find_spec(f"{module_name}.{attribute}"):
        importlib.import_module(f"{module_name}.{attribute}")
    if not hasattr(module, attribute):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise UserError(
            f"{key}: {module_name} has no attribute {attribute!r}",
            hint=did_you_mean(attribute, public) + f"define it in {module_name}",
        )
    return getattr(module, attribute)
