"""Optimizers by name: the class, its options, and groups of parameters with their own rate, options or optimizer.

Options are checked against the signature of the class before anything runs, so a misspelt `momentun` is a problem with
a suggestion; those of a constructor of torch are also held against its types, and tried on a parameter. A name
is a class of torch.optim, or the import path of a user's class that derives from torch's Optimizer, or of a function
that returns one. Two kinds need more than `step()`: those that average inside (Schedule-Free) have modes, see
`eval_weights`, and those with `needs_closure` (SAM) pass a batch several times.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor, nn

from swa_cli.errors import Problem, RecipeError, UserError, did_you_mean
from swa_cli.import_path import import_callable
from swa_cli.models.freezing import matching
from swa_cli.recipe import schema
from swa_cli.recipe.explain import MEANT
from swa_cli.units import some_of

PARAMETRIZATIONS = "parametrizations."  # the name of torch.nn.utils.parametrize for what a parameter is made of
NORM_LAYERS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
UNSUPPORTED = {
    "Optimizer": "it is the base class of the others",
    "LBFGS": "its curvature compares gradients of one loss, and each step here has another batch",
    "SparseAdam": "it takes sparse gradients only",
}
MATRICES_ONLY = {"Muon"}
NOT_2D = "not_2d"  # of match: the parameters that those refuse
REFUSALS = (ValueError, TypeError, RuntimeError, IndexError)  # of a constructor that gets wrong options
FORMS = "an optimizer is a class of torch.optim or package.module:Class"
# torch does not choose its fused kernels by itself (0.42 against 0.93 ms a step of PreResNet-20).
FUSED = {"SGD", "Adam", "AdamW"}
FUSED_SHARDED = {"Adam", "AdamW"}  # for DTensors
KERNELS = ("fused", "foreach")  # options of a group that name how torch computes a step
LR_MULTIPLE = "lr_multiple"  # of a group, kept in the optimizer's state


def check(settings: schema.Optimizer) -> list[Problem]:
    """Return the problems of the names of optimizers, of their options, and of the options of each group.

    Errors inside a user's module pass through.
    """
    ours = ["lr", "no_decay", "groups", "layer_decay"]
    problems = of_all = _check_options(settings.name, settings.options, ours, place="optimizer", beside={})
    for index, group in enumerate(settings.groups):
        if group.name is None and of_all and of_all[0].key == "optimizer.name":
            continue  # there is no class to hold the options against
        place, own = f"optimizer.groups.{index}", ["lr", "match", "name"]
        beside = {} if group.name is not None else None if of_all else settings.options
        name = group.name or settings.name
        problems = [*problems, *_check_options(name, group.options, own, place=place, beside=beside)]
    return problems


def _check_options(
    name: str, options: Mapping[str, Any], ours: Sequence[str], *, place: str, beside: Mapping[str, Any] | None
) -> list[Problem]:
    """Return the problem of a name at `place`, or those of the options that its class does not have or refuses.

    `beside` has options that hold where `options` has no others; None if they are wrong themselves.
    """
    try:
        make = _find(name, key=f"{place}.name")
    except RecipeError as error:
        return list(error.problems)
    parameters = list(inspect.signature(make).parameters.values())
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return []  # the class checks its options itself
    known = [parameter.name for parameter in parameters[1:] if parameter.name != "lr"]  # the first: the parameters
    problems = []
    for key in (key for key in options if key not in known):
        section, _, meant = MEANT.get(key, "").rpartition(".")
        is_here = section == "optimizer" and meant in (*known, *ours)
        close = [meant] if is_here else difflib.get_close_matches(key, [*known, *ours], n=1)
        hint = f"did you mean `{place}.{close[0]}`?" if close else f"{name} takes {', '.join(sorted(known))}"
        problems.append(Problem(f"{place}.{key}", f"{_full_name(name)} has no option {key!r}", hint))
    is_of_torch = inspect.isclass(make) and make.__init__.__module__.startswith("torch.optim.")
    if not is_of_torch:
        return problems  # another constructor may take more than its types tell
    types = get_type_hints(make.__init__)
    defaults = {parameter.name: parameter.default for parameter in parameters}
    for key, value in options.items():
        if key in known and not _has_type(value, types[key]):
            message = f"{value!r:.100} is no value of this option of {_full_name(name)}"
            hint = f"write {inspect.formatannotation(types[key])}"
            problems.append(Problem(f"{place}.{key}", message, f"{hint}; its default is {defaults[key]!r}"))
    if not problems and beside is not None and make.__module__.startswith("torch.optim."):
        # torch takes more in a group than its constructor does: momentum 0 beside nesterov of the others.
        refusals = [_refusal_of(make, {**others, **options}) for others in (beside, {})]
        if refusals[0] is not None and refusals[1] is not None:
            problems.append(_refusal(name, refusals[0], place=place))
    return problems


def _refusal_of(make: Callable[..., Any], options: Mapping[str, Any]) -> Exception | None:
    _avoid_the_compiler()
    try:
        make([nn.Parameter(torch.zeros(1, 1))], **options)
    except REFUSALS as error:
        return error
    return None


def _has_type(value: Any, annotation: Any) -> bool:
    """Return whether a value of a recipe, in which a tuple is a list, has the type that a signature tells."""
    adapter = TypeAdapter(annotation, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
    try:
        adapter.validate_python(tuple(value) if isinstance(value, list) else value)
    except ValidationError:
        return False
    return True


def _refusal(name: str, error: Exception, *, place: str) -> Problem:
    return Problem(place, f"{_full_name(name)} refuses its options: {error}", "correct that option")


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
) -> torch.optim.Optimizer:
    """Build the optimizer over the parameters that require gradients; `set_learning_rate` sets the rate of each step.

    A parameter belongs to the first group that matches, if any; the weight decay of those in `no_decay` is 0 in every
    group. With `layer_decay` d a parameter of block i of n has d^(n - 1 - i) times the rate, see `depths`. torch's
    fused kernels do not take sparse gradients. Groups that name other optimizers are steps of one, see
    `several_optimizers`.

    Raises:
        RecipeError: Nothing is trained, a class refuses a value, or a pattern matches no parameter.
    """
    require_trained(model)
    found = _owned(model, settings)
    _require_matrices(settings, found)
    if not found[None].trained:
        message = f"the groups take all parameters, and none is left for {settings.name}"
        hint = "name the optimizer of one group here, and leave that group out"
        raise RecipeError([Problem("optimizer.name", message, hint)])
    _avoid_the_compiler()
    optimizers = {}
    for owner, own in found.items():
        key, name = _place(settings, owner)
        options = (settings if owner is None else settings.groups[owner]).options
        if not is_sparse and _is_fusible(name, own.trained, options):
            options = {"fused": True, **options}
        optimizers[key] = _make(name, own.groups, lr=settings.lr, options=options, key=key)
        if len(found) > 1 and needs_closure(optimizers[key]):
            message = f"{name} passes each batch several times, and no other optimizer can stand beside it"
            raise RecipeError([Problem(key, message, "let it train all parameters: leave out the names of groups")])
    if len(optimizers) == 1:
        return optimizers["optimizer.name"]
    from swa_cli.engine.several_optimizers import SeveralOptimizers

    return SeveralOptimizers(list(optimizers.values()))


@dataclass(frozen=True)
class _Owned:
    """The parameters of one optimizer by name, and in groups of equal rate and options."""

    trained: dict[str, nn.Parameter]
    groups: list[dict[str, Any]]


def _owned(model: nn.Module, settings: schema.Optimizer) -> dict[int | None, _Owned]:
    """Return what each optimizer trains, by the index of the group that names it; None for that of the section."""
    sections = settings.groups
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    free = _matched(model, trained, settings.no_decay, place="optimizer.no_decay")
    matched = [
        _matched(model, trained, section.match, place=f"optimizer.groups.{index}.match")
        for index, section in enumerate(sections)
    ]
    decay, depth = settings.layer_decay, depths(model)
    last = max(depth.values())
    built: dict[tuple[int, bool, int], dict[str, Any]] = {}
    found: dict[int | None, _Owned] = {None: _Owned({}, [])}
    owners = {index: index for index, section in enumerate(sections) if section.name is not None}
    for key, parameter in trained.items():
        index = next((index for index, names in enumerate(matched) if key in names), len(sections))
        own: dict[str, Any] = {LR_MULTIPLE: 1.0}
        if index < len(sections):
            own = {LR_MULTIPLE: sections[index].lr, **({} if index in owners else sections[index].options)}
        block = last if decay == 1 else depth[key]
        own[LR_MULTIPLE] *= decay ** (last - block)
        if key in free:
            own["weight_decay"] = 0.0
        built.setdefault((index, key in free, block), {"params": [], **own})["params"].append(parameter)
        found.setdefault(owners.get(index), _Owned({}, [])).trained[key] = parameter
    for place in sorted(built, reverse=True):
        found[owners.get(place[0])].groups.append(built[place])
    return found


def _place(settings: schema.Optimizer, owner: int | None) -> tuple[str, str]:
    """Return key and name of the optimizer of the group `owner`, or of the section."""
    name = None if owner is None else settings.groups[owner].name
    return ("optimizer.name", settings.name) if name is None else (f"optimizer.groups.{owner}.name", name)


def _make(
    name: str, parts: Sequence[dict[str, Any]], *, lr: float, options: Mapping[str, Any], key: str
) -> torch.optim.Optimizer:
    """Build one optimizer, whose name stands at `key` of the recipe, over some groups of parameters."""
    make = _find(name, key=key)
    try:
        optimizer = make(parts, lr=lr, **options)
    except REFUSALS as error:
        raise RecipeError([_refusal(name, error, place=key.removesuffix(".name"))]) from error
    if _is_own(name):
        _require_usable(optimizer, name, key=key)
    else:
        kind = type(optimizer)
        step = kind.profile_hook_step(torch.no_grad()(inspect.unwrap(kind.step)))  # profilers and hooks still see it
        optimizer.step = partial(step, optimizer)  # type: ignore[method-assign]
    if averages_inside(optimizer):
        optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Let a fused SGD bear parameters without a first gradient, and a GradScaler that skips its first step.

    To be called before the first step, and again when more parameters train. Its kernel takes no group of which some
    have a momentum and some have none yet, as of layers that a network drops at random; after a skipped step it leaves
    the momentum as it was allocated, with any numbers (torch 2.14). Momentum 0 gives the same first step. With
    dampening it would not: such a group is not fused, and a scaler skips on the host, which waits for the device.
    """
    for part in getattr(optimizer, "parts", (optimizer,)):  # of several
        if not isinstance(part, torch.optim.SGD) or not part.defaults["fused"]:
            continue
        for group in (group for group in part.param_groups if group["momentum"]):
            if group["dampening"]:
                group["fused"] = part._step_supports_amp_scaling = False
                continue
            for parameter in group["params"]:
                if parameter.requires_grad and part.state[parameter].get("momentum_buffer") is None:
                    part.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def averages_inside(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer averages inside: then it has `train()` and `eval()`, as Schedule-Free does.

    In training mode the parameters are those whose gradients it takes, in evaluation mode their average (Defazio et
    al. 2024, arXiv:2405.15682: y and x). A run trains in the one mode, and reads weights in the other.
    """
    declared = getattr(optimizer, "averages_inside", None)
    if declared is not None:
        return bool(declared)
    return all(callable(getattr(optimizer, mode, None)) for mode in ("train", "eval"))


@contextmanager
def eval_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let the network hold the weights that an optimizer averages inside while the block runs.

    The weights that are trained come back bit for bit: an optimizer computes them from the average, with rounding, and
    weights that are read must not change the trajectory. Without an average inside, nothing happens. Not to be nested.
    """
    if not averages_inside(optimizer):
        yield
        return
    parameters = [parameter.detach() for group in optimizer.param_groups for parameter in group["params"]]
    trained = [parameter.clone() for parameter in parameters]
    optimizer.eval()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]
        for parameter, value in zip(parameters, trained, strict=True):
            parameter.copy_(value)


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether `step` has to be called with a closure: it says so by `needs_closure`, or by its signature."""
    declared = getattr(optimizer, "needs_closure", None)
    if declared is not None:
        return bool(declared)
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


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


def describe(optimizer: torch.optim.Optimizer, settings: schema.Optimizer, *, has_batchnorm: bool = True) -> str:
    """Describe what an optimizer does besides `step()`, and groups with rates or options; empty without any.

    `layer_decay 0.75: 12 rates, 0.0422 to 1 times that of the schedule; head.*: lr 10x, weight_decay 0`. Where groups
    name others, it begins with the name of the first: `Muon; not_2d: AdamW, lr 0.1x`.
    """
    parts = [settings.name] * any(group.name is not None for group in settings.groups)
    if averages_inside(optimizer):
        refreshed = ", BatchNorm refreshed before each score" * has_batchnorm
        parts.append(f"averages inside: scores and files have its eval weights{refreshed}")
    if needs_closure(optimizer):
        parts.append("each step passes its batch several times" + "; BatchNorm counts the first pass" * has_batchnorm)
    if settings.layer_decay != 1:
        rates = sorted({group[LR_MULTIPLE] for group in optimizer.param_groups})
        blocks = f"{len(rates)} rates, {rates[0]:.3g} to {rates[-1]:.3g} times that of the schedule"
        parts.append(f"layer_decay {settings.layer_decay:g}: {blocks}")
    for group in settings.groups:
        options = [group.name] if group.name is not None else []
        options += [f"lr {group.lr:g}x"] * (group.lr != 1)
        options += [f"{key} {value}" for key, value in group.options.items()]
        parts.append(f"{', '.join(group.match)}: {', '.join(options) or 'as the others'}")
    return "; ".join(parts)


def _find(name: str, *, key: str) -> Callable[..., torch.optim.Optimizer]:
    """Return the class of torch.optim, or what `package.module:Class` names; `key` is that of the recipe.

    Raises:
        RecipeError: There is none that this training loop can use.
    """
    if _is_own(name):
        return _import(name, key=key)
    classes = [each for each, value in vars(torch.optim).items() if _is_optimizer(value) and each not in UNSUPPORTED]
    if name not in classes:
        reason = f": {UNSUPPORTED[name]}" if name in UNSUPPORTED else ""
        hint = did_you_mean(name, classes) + f"choose from {', '.join(sorted(classes))}; {FORMS}"
        raise RecipeError([Problem(key, f"torch.optim has no optimizer {name!r} for this loop{reason}", hint)])
    found: Callable[..., torch.optim.Optimizer] = getattr(torch.optim, name)
    return found


def _import(name: str, *, key: str) -> Callable[..., torch.optim.Optimizer]:
    """Import a user's optimizer.

    Raises:
        RecipeError: There is none, or it does not take parameters and a rate.
    """
    hint = "derive the class from torch.optim.Optimizer, with __init__(params, lr, ...)"
    try:
        found = import_callable(
            name,
            lambda signature: signature.bind_partial([], lr=1.0),
            key=key,
            what="an optimizer",
            forms=FORMS,
            expected=hint,
        )
    except UserError as error:
        message = error.message.removeprefix(f"{key}: ")
        raise RecipeError([Problem(key, message, error.hint)]) from error
    if inspect.isclass(found) and not _is_optimizer(found):
        raise RecipeError([Problem(key, f"{name} is not an optimizer", hint)])
    return found


def _require_usable(optimizer: object, name: str, *, key: str) -> None:
    """Refuse what the training loop cannot use.

    Raises:
        RecipeError: It is no optimizer, has lost its groups, or its step takes something else than a closure.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        message = f"{name} returned {type(optimizer).__name__}, not a torch.optim.Optimizer"
        raise RecipeError([Problem(key, message, "return an object of a class that derives from it")])
    if any(LR_MULTIPLE not in group for group in optimizer.param_groups):
        hint = "hand the parameter groups on to the __init__ of torch.optim.Optimizer as they are"
        raise RecipeError([Problem(key, f"{name} does not keep the parameter groups it is given", hint)])
    closure = {"closure": None} if needs_closure(optimizer) else {}
    try:
        inspect.signature(optimizer.step).bind(**closure)
    except TypeError as error:
        hint = "give its arguments defaults: the training loop calls step(), or step(closure) if it needs one"
        raise RecipeError([Problem(key, f"{name}.step takes other arguments: {error}", hint)]) from error


def _is_own(name: str) -> bool:
    return ":" in name


def _full_name(name: str) -> str:
    return name if _is_own(name) else f"torch.optim.{name}"


def _is_optimizer(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, torch.optim.Optimizer)


def _require_matrices(settings: schema.Optimizer, found: Mapping[int | None, _Owned]) -> None:
    """Refuse parameters for an optimizer of matrices that are none, with the group that takes them."""
    for owner, own in found.items():
        parameters = own.trained
        key, name = _place(settings, owner)
        others = {key: value for key, value in parameters.items() if value.dim() != 2}
        if name not in MATRICES_ONLY or not others:
            continue
        named = [f"{each} ({' x '.join(map(str, value.shape)) or 'a number'})" for each, value in others.items()]
        message = f"{name} takes parameters of 2 dimensions only, and {len(others)} of {len(parameters)} are not"
        group = f"{{match: {NOT_2D}, name: AdamW, lr: 0.1x}}"
        if owner is not None:
            hint = f"let AdamW train them: put {group} before this group"
        elif settings.groups:
            hint = f"let AdamW train them: add {group} at the end of optimizer.groups"
        else:
            hint = f"let AdamW train them: 'optimizer.groups=[{group}]'"
        if len(others) == len(parameters):
            hint = f"write AdamW in place of {name}"
        raise RecipeError([Problem(key, f"{message}: {some_of(named, most=8)}", hint)])


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every parameter group: its multiple of `lr`."""
    for group in optimizer.param_groups:
        rate = lr * group[LR_MULTIPLE]
        if isinstance(group["lr"], Tensor):
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
    """Return the names of the parameters that `norm`, `bias`, `not_2d` or patterns match.

    Raises:
        RecipeError: A pattern matches none; `place` is its key.
    """
    in_norm_layers = {
        f"{prefix}.{key}" if prefix else key
        for prefix, layer in model.named_modules()
        for key, value in layer.named_parameters()
        if "." not in key or key.startswith(PARAMETRIZATIONS)
        if isinstance(layer, NORM_LAYERS) or ("Norm" in type(layer).__name__ and value.dim() < 2)  # timm has its own
    }
    names: set[str] = set()
    for word in words:
        if word == "norm":
            found = in_norm_layers & trained.keys()
        elif word == "bias":
            found = {key for key, value in trained.items() if _is_bias(_attribute(key), value)}
        elif word == NOT_2D:
            found = {key for key, value in trained.items() if value.dim() != 2}
        else:
            found = matching(model, word) & trained.keys()
            if not found:
                some = ", ".join(list(trained)[:3])
                raise RecipeError([Problem(place, f"{word!r} matches no parameter", f"names look like {some}")])
        names |= found
    return names


def _attribute(name: str) -> str:
    """Return the attribute of its layer that a parameter is, or that a parametrization makes of it."""
    _, is_parametrized, path = name.rpartition(PARAMETRIZATIONS)
    return path.partition(".")[0] if is_parametrized else name.rpartition(".")[2]


def _is_bias(name: str, value: Tensor) -> bool:
    """Return whether a parameter is a bias; `in_proj_bias` and `bias_ih_l0` are names of torch."""
    return name == "bias" or (value.dim() < 2 and (name.endswith("_bias") or name.startswith("bias_")))


def _is_fusible(name: str, trained: Mapping[str, nn.Parameter], options: Mapping[str, Any]) -> bool:
    """Return whether torch has a fused kernel for these parameters, and no option excludes it."""
    if {"fused", "foreach", "capturable", "differentiable"} & options.keys():
        return False
    is_sharded = any(hasattr(value, "to_local") for value in trained.values())
    if name not in (FUSED_SHARDED if is_sharded else FUSED):
        return False
    return all(value.is_floating_point() and value.device.type != "mps" for value in trained.values())
