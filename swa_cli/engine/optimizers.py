"""Optimizers by name: the class, its options, and groups of parameters with their own rate or options.

Options are checked against the signature of the class before anything runs, so a misspelt `momentun` is a problem with
a suggestion. A name is a class of torch.optim, or the import path of a user's class that derives from torch's
Optimizer, or of a function that returns one.
"""

from __future__ import annotations

import difflib
import fnmatch
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from swa_cli.errors import Problem, RecipeError, UserError, did_you_mean
from swa_cli.import_path import import_callable
from swa_cli.recipe import schema

NORM_LAYERS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
# Steps of these need a closure or sparse gradients, which the training loop does not give.
UNSUPPORTED = {"Optimizer", "LBFGS", "SparseAdam"}
MATRICES_ONLY = {"Muon"}
FORMS = "an optimizer is a class of torch.optim or package.module:Class"
# torch does not choose its fused kernels by itself (0.42 against 0.93 ms a step of PreResNet-20).
FUSED = {"SGD", "Adam", "AdamW"}
FUSED_SHARDED = {"Adam", "AdamW"}  # for DTensors
LR_MULTIPLE = "lr_multiple"  # of a group, kept in the optimizer's state


def check(settings: schema.Optimizer) -> list[Problem]:
    """Return the problems of `optimizer.name`, of its options, and of the options of each group.

    Errors inside a user's module pass through.
    """
    name = settings.name
    try:
        make = _find(name)
    except RecipeError as error:
        return list(error.problems)
    parameters = list(inspect.signature(make).parameters.values())
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return []  # the class checks its options itself
    known = [parameter.name for parameter in parameters[1:] if parameter.name != "lr"]  # the first: the parameters
    problems = []
    places = [("optimizer", settings.options, ["lr", "no_decay", "groups", "layer_decay"])]
    places += [(f"optimizer.groups.{i}", group.options, ["lr", "match"]) for i, group in enumerate(settings.groups)]
    for place, given, ours in places:
        for key in given:
            if key in known:
                continue
            close = difflib.get_close_matches(key, [*known, *ours], n=1)
            hint = f"did you mean `{place}.{close[0]}`?" if close else f"{name} takes {', '.join(sorted(known))}"
            problems.append(Problem(f"{place}.{key}", f"{_full_name(name)} has no option {key!r}", hint))
    return problems


def require_trained(model: nn.Module) -> None:
    """Refuse a network that has nothing to train.

    Raises:
        RecipeError: No parameter requires a gradient.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        frozen = sum(1 for _ in model.parameters())
        message = f"there is nothing to train: requires_grad is False for all {frozen} parameters of the network"
        raise RecipeError([Problem("model.name", message, "let the layers to be trained keep requires_grad=True")])


def build(
    model: nn.Module,
    settings: schema.Optimizer,
    *,
    is_sparse: bool = False,
    later: Collection[str] = (),
) -> torch.optim.Optimizer:
    """Build the optimizer over the parameters that require gradients; `set_learning_rate` sets the rate of each step.

    A parameter belongs to the first group that matches, if any; the weight decay of those in `no_decay` is 0 in every
    group. With `layer_decay` d a parameter of block i of n has d^(n - 1 - i) times the rate, see `depths`. torch's
    fused kernels do not take sparse gradients, nor parameters of one group some of which have no momentum yet: those
    that train `later` have groups of their own, and no state until then.

    Raises:
        RecipeError: Nothing is trained, the class refuses a value, or a pattern matches no parameter.
    """
    require_trained(model)
    name, options, groups = settings.name, settings.options, settings.groups
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    _require_matrices(name, trained)
    free = _matched(model, trained, settings.no_decay, place="optimizer.no_decay")
    matched = [
        _matched(model, trained, group.match, place=f"optimizer.groups.{index}.match")
        for index, group in enumerate(groups)
    ]
    decay, depth = settings.layer_decay, depths(model)
    last = max(depth.values())
    built: dict[tuple[int, bool, int, bool], dict[str, Any]] = {}
    for key, parameter in trained.items():
        index = next((index for index, names in enumerate(matched) if key in names), len(groups))
        own: dict[str, Any] = {LR_MULTIPLE: 1.0}
        if index < len(groups):
            own = {LR_MULTIPLE: groups[index].lr, **groups[index].options}
        block = last if decay == 1 else depth[key]
        own[LR_MULTIPLE] *= decay ** (last - block)
        if key in free:
            own["weight_decay"] = 0.0
        built.setdefault((index, key in free, block, key in later), {"params": [], **own})["params"].append(parameter)
    parts = [built[key] for key in sorted(built, reverse=True)]
    fused = {"fused": True} if not is_sparse and _is_fusible(name, trained, options) else {}
    make = _find(name)
    _avoid_the_compiler()
    try:
        optimizer = make(parts, lr=settings.lr, **fused, **options)
    except (ValueError, TypeError, RuntimeError) as error:
        message = f"{_full_name(name)} refuses its options: {error}"
        raise RecipeError([Problem("optimizer", message, "correct that option")]) from error
    if _is_own(name):
        _require_usable(optimizer, name)
        return optimizer
    kind = type(optimizer)
    step = kind.profile_hook_step(torch.no_grad()(inspect.unwrap(kind.step)))  # profilers and hooks still see it
    optimizer.step = partial(step, optimizer)  # type: ignore[method-assign]
    return optimizer


def depths(model: nn.Module) -> dict[str, int]:
    """Return the block, from 0, of each parameter by name: the head is in the last one.

    A network of timm tells its blocks (`group_matcher`, as in timm's `param_groups_layer_decay`, after BEiT, Bao et al.
    2022). Of another one each child with parameters is a block, in the order of the children; a plain Sequential or
    ModuleList, and a child with more than half of the parameters, stand for their own children. Parameters that lie in
    the network itself are in block 0.
    """
    matcher = getattr(model, "group_matcher", None)
    if callable(matcher):
        from timm.models import group_parameters

        found: dict[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
        return found
    half = sum(parameter.numel() for parameter in model.parameters()) / 2
    blocks: dict[str, int] = {}

    def count(module: nn.Module, prefix: str, first: int) -> int:
        """Number the blocks of a module from `first` on; return the number after its last one."""
        blocks.update({f"{prefix}{name}": first for name, _ in module.named_parameters(recurse=False)})
        block = first
        for name, child in module.named_children():
            size = sum(parameter.numel() for parameter in child.parameters())
            has_parts = next(child.children(), None) is not None
            if has_parts and (type(child) in (nn.Sequential, nn.ModuleList) or size > half):
                block = count(child, f"{prefix}{name}.", block)
            elif next(child.parameters(), None) is not None:
                own = [f"{prefix}{name}.{key}" for key, _ in child.named_parameters()]
                blocks.update(dict.fromkeys(own, block))
                block += 1
        return block

    count(model, "", 0)
    return {name: blocks[name] for name, _ in model.named_parameters()}


def describe(optimizer: torch.optim.Optimizer, settings: schema.Optimizer) -> str:
    """Describe groups of parameters with rates or options of their own; empty without any.

    `layer_decay 0.75: 12 rates, 0.0422 to 1 times that of the schedule; head.*: lr 10x, weight_decay 0`.
    """
    parts = []
    if settings.layer_decay != 1:
        rates = sorted({group[LR_MULTIPLE] for group in optimizer.param_groups})
        blocks = f"{len(rates)} rates, {rates[0]:.3g} to {rates[-1]:.3g} times that of the schedule"
        parts.append(f"layer_decay {settings.layer_decay:g}: {blocks}")
    for group in settings.groups:
        options = [f"lr {group.lr:g}x"] * (group.lr != 1)
        options += [f"{key} {value}" for key, value in group.options.items()]
        parts.append(f"{', '.join(group.match)}: {', '.join(options) or 'as the others'}")
    return "; ".join(parts)


def _find(name: str) -> Callable[..., torch.optim.Optimizer]:
    """Return the class of torch.optim, or what `package.module:Class` names.

    Raises:
        RecipeError: There is none that this training loop can use.
    """
    if _is_own(name):
        return _import(name)
    classes = [key for key, value in vars(torch.optim).items() if _is_optimizer(value) and key not in UNSUPPORTED]
    if name not in classes:
        hint = did_you_mean(name, classes) + f"choose from {', '.join(sorted(classes))}; {FORMS}"
        raise RecipeError([Problem("optimizer.name", f"torch.optim has no optimizer {name!r} for this loop", hint)])
    found: Callable[..., torch.optim.Optimizer] = getattr(torch.optim, name)
    return found


def _import(name: str) -> Callable[..., torch.optim.Optimizer]:
    """Import a user's optimizer.

    Raises:
        RecipeError: There is none, or it does not take parameters and a rate.
    """
    hint = "derive the class from torch.optim.Optimizer, with __init__(params, lr, ...)"
    try:
        found = import_callable(
            name,
            lambda signature: signature.bind_partial([], lr=1.0),
            key="optimizer.name",
            what="an optimizer",
            forms=FORMS,
            expected=hint,
        )
    except UserError as error:
        message = error.message.removeprefix("optimizer.name: ")
        raise RecipeError([Problem("optimizer.name", message, error.hint)]) from error
    if inspect.isclass(found) and not _is_optimizer(found):
        raise RecipeError([Problem("optimizer.name", f"{name} is not an optimizer", hint)])
    return found


def _require_usable(optimizer: object, name: str) -> None:
    """Refuse what the training loop cannot use.

    Raises:
        RecipeError: It is no optimizer, has lost its groups, or needs a closure.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        message = f"{name} returned {type(optimizer).__name__}, not a torch.optim.Optimizer"
        raise RecipeError([Problem("optimizer.name", message, "return an object of a class that derives from it")])
    if any(LR_MULTIPLE not in group for group in optimizer.param_groups):
        hint = "hand the parameter groups on to the __init__ of torch.optim.Optimizer as they are"
        raise RecipeError([Problem("optimizer.name", f"{name} does not keep the parameter groups it is given", hint)])
    try:
        inspect.signature(optimizer.step).bind()
    except TypeError as error:
        hint = "give its arguments defaults: the training loop calls step()"
        raise RecipeError([Problem("optimizer.name", f"{name}.step takes other arguments: {error}", hint)]) from error


def _is_own(name: str) -> bool:
    return ":" in name


def _full_name(name: str) -> str:
    return name if _is_own(name) else f"torch.optim.{name}"


def _is_optimizer(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, torch.optim.Optimizer)


def _require_matrices(name: str, trained: Mapping[str, nn.Parameter]) -> None:
    other = next((key for key, value in trained.items() if value.dim() != 2), None)
    if name in MATRICES_ONLY and other is not None:
        shape = " x ".join(map(str, trained[other].shape)) or "a single number"
        message = f"{name} takes parameters of 2 dimensions only, and {other} is {shape}"
        raise RecipeError([Problem("optimizer.name", message, "write optimizer.name=SGD, or optimizer.name=AdamW")])


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every parameter group: its multiple of `lr`."""
    for group in optimizer.param_groups:
        rate = lr * group[LR_MULTIPLE]
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _avoid_the_compiler() -> None:
    """Keep optimizers from importing torch's compiler (1.4 s).

    They import it only to exclude their own code from compilation: in torch 2.14 `step`, which `build` replaces, and
    the wrapped methods here. A run compiles at most the network.
    """
    for method in vars(torch.optim.Optimizer).values():
        plain = getattr(method, "__wrapped__", None)
        if plain is not None:
            plain.__dynamo_disable = plain


def _matched(model: nn.Module, trained: Mapping[str, nn.Parameter], words: Sequence[str], *, place: str) -> set[str]:
    """Return the names of the parameters that `norm`, `bias` or patterns match.

    Raises:
        RecipeError: A pattern matches none; `place` is its key.
    """
    in_norm_layers = {
        f"{prefix}.{key}" if prefix else key
        for prefix, layer in model.named_modules()
        if isinstance(layer, NORM_LAYERS)
        for key, _ in layer.named_parameters(recurse=False)
    }
    names: set[str] = set()
    for word in words:
        if word == "norm":
            found = in_norm_layers & trained.keys()
        elif word == "bias":
            found = {key for key in trained if key.rpartition(".")[2] == "bias"}
        else:
            found = set(fnmatch.filter(trained, word))
            if not found:
                some = ", ".join(list(trained)[:3])
                raise RecipeError([Problem(place, f"{word!r} matches no parameter", f"names look like {some}")])
        names |= found
    return names


def _is_fusible(name: str, trained: Mapping[str, nn.Parameter], options: Mapping[str, Any]) -> bool:
    """Return whether torch has a fused kernel for these parameters, and no option excludes it."""
    if {"fused", "foreach", "capturable", "differentiable"} & options.keys():
        return False
    is_sharded = any(hasattr(value, "to_local") for value in trained.values())
    if name not in (FUSED_SHARDED if is_sharded else FUSED):
        return False
    return all(value.is_floating_point() and value.device.type != "mps" for value in trained.values())
