"""Table of the kinds of averages: keys, defaults, checks, texts and shares.

One idea: a kind is one entry of `KINDS`. The section `averages`, its JSON Schema, the template, the plan, the arguments
of `WeightAverage` and the stored form are derived from the entry. No field of an entry has a default, so a part that is
left out is an error at import. The entry of a weighted running mean has the weight of the n-th weight set in closed
form and needs no other code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any

from pydantic import Field

from swa_cli.errors import Problem
from swa_cli.recipe.values import Count, Duration, DurationField, Flag, Key, Number, Whole, owners_of_keys
from swa_cli.units import count_text

Settings = Mapping[str, Any]  # the own keys of an average; those that the recipe leaves out have their defaults
Exact = Callable[[Duration], Fraction]  # the steps of a length, before rounding


@dataclass(frozen=True)
class Exclusion:
    """Two keys of a kind that exclude each other: the default of one gives way to the other."""

    key: str
    replaces: str
    problem: Problem  # if both are written

    def applies(self, values: Mapping[str, object]) -> bool:
        """Return whether `key` is given, and is not false; its value may be as it is written."""
        return str(values.get(self.key)).lower() not in ("none", "false")


@dataclass(frozen=True)
class Kind:
    """One kind of average; no field has a default, so that an entry states all of them."""

    summary: str
    start: str  # default of the key `start`
    every: str  # default of the key `every`
    keys: Mapping[str, Key]  # of this kind alone
    exclusions: tuple[Exclusion, ...]
    problems: Callable[[Settings, Duration, Exact], list[Problem]]  # in the values and `every`; keys are relative
    resolve: Callable[[Settings, Duration, Exact], Settings]  # the plain values that a checkpoint holds, with `every`
    few: int  # a plan warns of fewer weight sets
    warnings: Callable[[AveragePlan], list[str]]  # about the number of weight sets; the average's name goes before them
    text: Callable[[AveragePlan], str]
    memory: Callable[[AveragePlan], str]  # what it depends on beside the weights; empty for the size of one weight set
    share: Callable[[int, Settings], float] | None  # weight of the n-th weight set, from 1; None: WeightAverage has it


@dataclass(frozen=True)
class AveragePlan:
    """One average of a run: `steps` are the points, in updates done, whose weights it takes."""

    name: str
    key: str  # the section of the recipe: swa, averages.ema
    kind: str
    steps: tuple[int, ...]
    given: Settings  # as the recipe has them
    settings: Settings  # as WeightAverage takes them

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `WeightAverage`."""
        return arguments(self.kind, self.settings)

    @property
    def count(self) -> int:
        """Return the number of weight sets that the average takes."""
        return len(self.steps)


def arguments(name: str, settings: Settings) -> dict[str, Any]:
    """Return the keyword arguments of `WeightAverage` for a kind with these settings."""
    share = KINDS[name].share
    if share is None:
        return {"kind": name, **settings}
    for key, value in settings.items():
        assert isinstance(value, str | int | float | None), f"kind {name}: resolve has to return plain values: {key}"
    return {"kind": name, "share": lambda n: share(n, settings), "share_settings": dict(settings) or None}


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a section with the defaults of its kind."""
    kind = KINDS.get(str(values.get("kind")), KINDS["mean"])
    defaults = {"start": kind.start, "every": kind.every, **{name: key.default for name, key in kind.keys.items()}}
    for exclusion in kind.exclusions:
        if exclusion.applies(values):
            del defaults[exclusion.replaces]
    return {key: value for key, value in defaults.items() if value is not None} | dict(values)


def misplaced(values: Mapping[str, object]) -> list[Problem]:
    """Return a problem for each key that this kind does not take, or not beside another key.

    The values may be as they are written; the keys of the problems are relative to the section.
    """
    name = str(values.get("kind"))
    if name not in KINDS:
        return []
    kind, given = KINDS[name], {key for key, value in values.items() if value is not None}
    found = []
    for key, owners in owners_of_keys(KINDS).items():
        if key in given and key not in kind.keys:
            hint = f"`{key}` goes with {' or '.join(f'`kind: {owner}`' for owner in owners)}"
            found.append(Problem(key, f"an average of kind {name} has no such key", hint))
    for exclusion in kind.exclusions:
        if exclusion.replaces in given and exclusion.applies(values):
            found.append(exclusion.problem)
    return found


def _no_problems(values: Settings, every: Duration, exact: Exact) -> list[Problem]:
    return []


def _as_given(values: Settings, every: Duration, exact: Exact) -> Settings:
    return values


def _one_weight_set(plan: AveragePlan) -> str:
    return ""


def _ema_problems(values: Settings, every: Duration, exact: Exact) -> list[Problem]:
    """Return the mistake in a half-life that cannot be turned into a decay."""
    half_life = values["half_life"]
    if half_life is None:
        return []
    if half_life.unit == "cycle":
        return [Problem("half_life", f"{half_life} has no fixed length", "write it in %, ep or step")]
    if half_life.value == 0:
        return [Problem("half_life", f"{half_life} is too short", "write a longer one, such as 1ep")]
    if every.unit == "cycle":
        message = f"{half_life} is not a number of updates, which come every {every}"
        return [Problem("half_life", message, "write decay, or an interval in %, ep or step")]
    if _ema_decay(values, every, exact) == 1:
        message = f"{half_life} is so long that nothing would ever be forgotten"
        return [Problem("half_life", message, "write a shorter one, or kind: mean")]
    return []


def _ema_settings(values: Settings, every: Duration, exact: Exact) -> Settings:
    others = {key: value for key, value in values.items() if key != "half_life"}
    return others | {"decay": _ema_decay(values, every, exact)}


def _ema_decay(values: Settings, every: Duration, exact: Exact) -> float:
    """Return the weight of the past at an update; after a half-life a weight set counts half.

    Both lengths are exact until then.
    """
    if values["half_life"] is None:
        return float(values["decay"])
    interval = max(exact(every), Fraction(1))  # what is shorter than a step is every step
    return float(0.5 ** float(interval / exact(values["half_life"])))


def _ema_warnings(plan: AveragePlan) -> list[str]:
    horizon = 0 if plan.settings["warmup"] else round(1 / (1 - plan.settings["decay"]))
    if horizon <= plan.count:
        return []
    cure = f"lower {plan.key}.decay" if plan.given["half_life"] is None else f"shorten {plan.key}.half_life"
    return [f"looks back over {horizon:,} updates, but has {plan.count:,}: {cure}"]


def _ema_text(plan: AveragePlan) -> str:
    decay, half_life = plan.settings["decay"], plan.given["half_life"]
    pace = f"EMA {decay}" if half_life is None else f"EMA of half-life {half_life} ({decay:.6g})"
    warmup = ", warmed up" if plan.settings["warmup"] else ""
    return pace + warmup + ("" if plan.settings["bias_correction"] else ", no bias correction")


def _lawa_warnings(plan: AveragePlan) -> list[str]:
    window = plan.settings["window"]
    return [f"holds the last {window} weights, but takes only {plan.count}"] if window > plan.count else []


def _swag_warnings(plan: AveragePlan) -> list[str]:
    rank = plan.settings["rank"]
    too_few = rank is not None and rank > plan.count
    return [f"keeps the last {rank} deviations, but takes only {plan.count}"] if too_few else []


def _swag_memory(plan: AveragePlan) -> str:
    return "diagonal" if plan.settings["diagonal"] else f"rank {plan.settings['rank']}"


KINDS: Mapping[str, Kind] = {
    "mean": Kind(
        summary="mean of all weight sets",
        start="75%",
        every="1ep",
        keys={},
        exclusions=(),
        problems=_no_problems,
        resolve=_as_given,
        few=5,  # such a mean is hardly flatter than its members
        warnings=lambda plan: [],
        text=lambda plan: count_text(plan.count, "weight"),
        memory=_one_weight_set,
        share=None,
    ),
    "ema": Kind(
        summary="exponential moving average",
        start="0ep",
        every="1step",
        keys={
            "decay": Key(Annotated[Number, Field(gt=0, lt=1)], 0.999, "weight of the past"),
            "half_life": Key(DurationField, None, "in place of decay, the time after which a weight set counts half"),
            "warmup": Key(Flag, False, "decay of update n at most (1 + n) / (10 + n)"),
            "bias_correction": Key(Flag, True, "the first weight set counts like the others"),
        },
        exclusions=(
            Exclusion(
                key="half_life",
                replaces="decay",
                problem=Problem("half_life", "half_life and decay are mutually exclusive", "write one of the two"),
            ),
        ),
        problems=_ema_problems,
        resolve=_ema_settings,
        few=0,
        warnings=_ema_warnings,
        text=_ema_text,
        memory=_one_weight_set,
        share=None,
    ),
    "lawa": Kind(
        summary="mean of the last weight sets",
        start="75%",
        every="1ep",
        keys={"window": Key(Count, 5, "number of weight sets")},
        exclusions=(),
        problems=_no_problems,
        resolve=_as_given,
        few=0,
        warnings=_lawa_warnings,
        text=lambda plan: f"LAWA, last {plan.settings['window']} of {count_text(plan.count, 'weight')}",
        memory=lambda plan: f"lawa {plan.settings['window']}",
        share=None,
    ),
    "swag": Kind(
        summary="mean with a Gaussian around it",
        start="75%",
        every="1ep",
        keys={
            "rank": Key(Annotated[Whole, Field(ge=2)], 20, "number of deviations from the mean that are kept"),
            "diagonal": Key(Flag, False, "variances alone, no deviations"),
        },
        exclusions=(
            Exclusion(
                key="diagonal",
                replaces="rank",
                problem=Problem(
                    "rank", "a diagonal swag keeps no deviations", "leave `rank` out, or write `diagonal: false`"
                ),
            ),
        ),
        problems=_no_problems,
        resolve=_as_given,
        few=5,
        warnings=_swag_warnings,
        text=lambda plan: f"SWAG of {count_text(plan.count, 'weight')}, {_swag_memory(plan)}",
        memory=_swag_memory,
        share=None,
    ),
}
