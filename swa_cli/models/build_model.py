"""Build a network from the name and the arguments in a recipe.

A name is one of the zoo (`ZOO`), `torchvision:NAME`, `timm:NAME`, or `package.module:Attribute` for the user's own
network. Networks of the zoo map images (B, C, H, W) to logits (B, K), to K numbers, or to logits of each pixel
(B, K, H, W); `num_classes` and `in_channels` follow the dataset. Initial weights come from torch's global generator:
seed it first. Of a library only names that it lists itself are built, with new weights, and no argument may load
weights: opening an untrusted recipe can neither download nor unpickle anything through a library.
B batch; C channels; H W pixels; K classes or other outputs.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from swa_cli.errors import Problem, UserError, did_you_mean
from swa_cli.import_path import import_object
from swa_cli.models import pretrained
from swa_cli.models.convnet import ConvNet
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
FOLLOW_DATA = ("num_classes", "in_channels")  # arguments that nobody gives
FORMS = "a name is one of the zoo, torchvision:NAME, timm:NAME or package.module:Attribute"
LIBRARIES = ("torchvision", "timm")  # their networks are not code of the user's own


def build(
    name: str,
    *,
    num_classes: int | None,
    in_channels: int | None,
    args: Mapping[str, Any] | None = None,
    families: Sequence[str] = ("classification",),
    published: str | bool | None = None,
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
        families: Families of torchvision networks to choose from: classification, segmentation, or both.
        published: The published weights that the network will take, by name, True for the library's choice: some need
            other constructor arguments.

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
        return _from_timm(attribute, args=args, num_classes=num_classes, in_channels=in_channels, published=published)
    return _from_torchvision(
        attribute,
        args=args,
        num_classes=num_classes,
        in_channels=in_channels,
        families=families,
        published=published,
    )


def problems(name: str, args: Mapping[str, Any], *, families: Sequence[str] = ("classification",)) -> list[Problem]:
    """Return the problems of the name of a network without `:`, one of the zoo, and of its arguments."""
    if ":" in name:
        return []
    if name not in ZOO:
        found = _find_in_libraries(name, families=families)
        suggestion = f"did you mean {found}? " if found else did_you_mean(name, ZOO)
        hint = f"{suggestion}the zoo has {', '.join(ZOO)}; {FORMS}"
        return [Problem("model.name", f"unknown network {name!r}", hint)]
    constructor = ZOO[name]
    accepted = {
        key: parameter
        for key, parameter in inspect.signature(constructor, eval_str=True).parameters.items()
        if key not in FOLLOW_DATA and key not in constructor.keywords
    }
    takes = f"{name} takes {', '.join(accepted) or 'no arguments'}"
    found_in = []
    for key, value in args.items():
        if key in FOLLOW_DATA:
            found_in.append(Problem(f"model.args.{key}", "this follows the dataset", f"leave {key} out"))
        elif key not in accepted:
            hint = did_you_mean(key, accepted) + takes
            found_in.append(Problem(f"model.args.{key}", f"unknown argument of {name}", hint))
        elif expected := _what_is_expected(value, kind=accepted[key].annotation):
            found_in.append(Problem(f"model.args.{key}", f"{value!r} is not {expected}", f"give {expected}"))
    for key, parameter in accepted.items():
        if parameter.default is parameter.empty and key not in args:
            found_in.append(Problem(f"model.args.{key}", f"{name} needs this argument", f"give it; {takes}"))
    return found_in


def _from_zoo(name: str, *, args: Mapping[str, Any], filled: Mapping[str, int], families: Sequence[str]) -> nn.Module:
    for problem in problems(name, args, families=families):
        raise UserError(f"{problem.key}: {problem.message}", hint=problem.hint)
    network: nn.Module = ZOO[name](**args, **filled)
    return network


def _what_is_expected(value: object, *, kind: type) -> str:
    """Return what a wrong value is not, else "": every `int` is a count, every `float` a probability of dropout."""
    if kind is bool:
        is_valid, expected = isinstance(value, bool), "true or false"
    elif kind is int:
        is_valid = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        expected = "a whole number of at least 1"
    else:
        assert kind is float
        is_valid = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
        expected = "a number from 0 to below 1"
    return "" if is_valid else expected


def _from_import(name: str, *, args: Mapping[str, Any], filled: Mapping[str, int]) -> nn.Module:
    constructor = import_object(name, key="model.name", what="a network", forms=FORMS)
    if not callable(constructor):
        raise UserError(f"model.name: {name} is not a class or function", hint="name one that returns a network")
    signature = inspect.signature(constructor)
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    taken = {key: value for key, value in filled.items() if takes_all or key in signature.parameters}
    arguments = {**args, **taken}
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


def _from_torchvision(
    name: str,
    *,
    args: Mapping[str, Any],
    num_classes: int,
    in_channels: int,
    families: Sequence[str],
    published: str | bool | None,
) -> nn.Module:
    from torchvision import models  # takes half a second, which the zoo does not need

    known = _torchvision_networks(families)
    if name not in known:
        places = " and ".join(HOMES[family] for family in families)
        raise UserError(
            f"model.name: torchvision has no {' or '.join(families)} network {name!r}",
            hint=did_you_mean(name, known) + f"`torchvision.models.list_models(module={places})` lists them",
        )
    home = HOMES[known[name]]
    _refuse_pretrained(args)
    fresh = {"weights_backbone": None} if known[name] == "segmentation" else {}
    needed = {} if published is None else pretrained.find(f"torchvision:{name}", published).args
    args = {**TORCHVISION_DEFAULTS.get(name, {}), **fresh, **needed, **args}
    if in_channels != 3 and "transform_input" in args:  # of GoogLeNet and Inception: it indexes red, green and blue
        args["transform_input"] = False
    with _explaining_args(f"torchvision:{name}", see=f"{home}.{name}"):
        model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **args)
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


def _from_timm(
    name: str, *, args: Mapping[str, Any], num_classes: int, in_channels: int, published: str | bool | None
) -> nn.Module:
    try:
        import timm  # takes seconds, which the zoo does not need
    except ModuleNotFoundError as error:
        raise UserError(
            f"model.name: timm:{name} needs the package timm: {error}", hint="pip install 'swa-cli[timm]'"
        ) from error
    known = timm.list_models()
    if name not in known:  # a name with a tag or a hub would name pretrained weights
        network, _, tag = name.partition(".")
        weights = f"with model.pretrained={tag} if you mean its weights; " if tag and network in known else ""
        raise UserError(
            f"model.name: timm has no network {name!r}",
            hint=f"{did_you_mean(network, known)}{weights}`timm.list_models()` lists them",
        )
    _refuse_pretrained(args)
    # The tag decides details of some networks, such as their image size.
    tagged = name if published is None else f"{name}.{pretrained.find(f'timm:{name}', published).name}"
    with _explaining_args(f"timm:{name}", see=f"timm.create_model({name!r})"):
        model: nn.Module = timm.create_model(tagged, num_classes=num_classes, in_chans=in_channels, **args)
    return model


def _refuse_pretrained(args: Mapping[str, Any]) -> None:
    """Refuse arguments that load weights: `model.pretrained` does."""
    for key in args:
        if key in PRETRAINED or key.startswith("pretrained"):
            raise UserError(
                f"model.args.{key}: the weights to start from are named by model.pretrained",
                hint=f"leave {key} out, and write model.pretrained=true, a name such as IMAGENET1K_V2, or a file",
            )


@contextmanager
def _explaining_args(name: str, *, see: str) -> Iterator[None]:
    """Turn what a library's constructor raises for arguments that it does not accept into a `UserError`."""
    try:
        yield
    except ARGUMENT_ERRORS as error:
        if isinstance(error, RuntimeError) and any(word in str(error) for word in MEMORY_WORDS):
            raise
        text = str(error).partition("\n")[0]
        explains = isinstance(error, TypeError | ValueError | AssertionError | RuntimeError) and text
        reason = text if explains else f"{type(error).__name__} {text}".rstrip()
        raise UserError(f"model.args: {name} refuses them: {reason}", hint=f"see the arguments of {see}") from error


def _find_in_libraries(name: str, *, families: Sequence[str]) -> str | None:
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
