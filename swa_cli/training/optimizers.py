"""torch.optim by name: the class, its options, and the parameters that take no weight decay.

The one idea: options are checked against the signature of the class before anything runs, so a misspelt
`momentun` is a problem with a suggestion and not a silent default.
"""

from __future__ import annotations

import difflib
import fnmatch
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from swa_cli.errors import Problem, RecipeError

NORM_LAYERS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
# Steps of these need a closure or sparse gradients, which the training loop does not give.
UNSUPPORTED = {"Optimizer", "LBFGS", "SparseAdam"}


def check(name: str, options: Mapping[str, Any]) -> list[Problem]:
    """Problems of `optimizer.name` and of the options that go to its class; none if it can be built."""
    classes = [key for key, value in vars(torch.optim).items() if inspect.isclass(value) and key not in UNSUPPORTED]
    if name not in classes:
        close = difflib.get_close_matches(name, classes, n=1, cutoff=0.5)
        hint = f"did you mean `{close[0]}`?" if close else f"one of {', '.join(sorted(classes))}"
        return [Problem("optimizer.name", f"torch.optim has no optimizer {name!r} for this loop", hint)]
    known = [key for key in inspect.signature(getattr(torch.optim, name)).parameters if key not in ("params", "lr")]
    problems = []
    for key in options:
        if key in known:
            continue
        close = difflib.get_close_matches(key, [*known, "lr", "no_decay"], n=1)
        hint = f"did you mean `optimizer.{close[0]}`?" if close else f"{name} takes {', '.join(sorted(known))}"
        problems.append(Problem(f"optimizer.{key}", f"torch.optim.{name} has no option {key!r}", hint))
    return problems


def build(
    model: nn.Module, *, name: str, lr: float, options: Mapping[str, Any], no_decay: Sequence[str]
) -> torch.optim.Optimizer:
    """The optimizer over the parameters that take gradients, in at most two groups: with and without decay.

    Args:
        model: The network.
        name: Class in torch.optim.
        lr: Base learning rate; the schedule sets it before each step.
        options: Constructor arguments.
        no_decay: `norm` (all parameters of normalisation layers), `bias`, or patterns of parameter names.

    Raises:
        RecipeError: The class refuses a value, or a pattern matches no parameter.
    """
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    free = _without_decay(model, trained, no_decay)
    groups: list[dict[str, Any]] = [{"params": [value for key, value in trained.items() if key not in free]}]
    if free:
        groups.append({"params": [trained[key] for key in trained if key in free], "weight_decay": 0.0})
    groups = [group for group in groups if group["params"]]
    try:
        optimizer: torch.optim.Optimizer = getattr(torch.optim, name)(groups, lr=lr, **options)
    except (ValueError, TypeError, RuntimeError) as error:
        problem = Problem("optimizer", f"torch.optim.{name} refuses its options: {error}", "correct that option")
        raise RecipeError([problem]) from error
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every parameter group."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def _without_decay(model: nn.Module, trained: Mapping[str, nn.Parameter], no_decay: Sequence[str]) -> set[str]:
    """Names of the parameters that `no_decay` takes out of weight decay."""
    in_norm_layers = {
        f"{prefix}.{key}" if prefix else key
        for prefix, layer in model.named_modules()
        if isinstance(layer, NORM_LAYERS)
        for key, _ in layer.named_parameters(recurse=False)
    }
    free: set[str] = set()
    for word in no_decay:
        if word == "norm":
            found = in_norm_layers & trained.keys()
        elif word == "bias":
            found = {key for key in trained if key.rpartition(".")[2] == "bias"}
        else:
            found = set(fnmatch.filter(trained, word))
            if not found:
                some = ", ".join(list(trained)[:3])
                problem = Problem("optimizer.no_decay", f"{word!r} matches no parameter", f"names look like {some}")
                raise RecipeError([problem])
        free |= found
    return free
