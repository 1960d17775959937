"""Table of the kinds of averages: keys, defaults, checks, texts and shares.

One idea: a kind is one entry of `KINDS`. The section `averages`, its JSON Schema, the template, the plan, the arguments
of `WeightAverage` and the stored form are derived from the entry. No field of an entry has a default, so a part that is
left out is an error at import. The entry of a weighted running mean has the weight of the n-th weight set in closed
form and needs no other code.
"""

from __future__ import annotations

import math
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
    lengths: tuple[str, ...]  # keys that in % are a share of the whole run
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


MOSTLY_ONE = 0.5  # weight of the newest weight set at the end, from which on hardly anything is averaged
WIDEST = 0.28  # relative width of a power-function EMA; that of the plain mean is 0.2887


def _power_problems(values: Settings, every: Duration, exact: Exact) -> list[Problem]:
    """Return the mistake in a width or half-life that no power function has."""
    half_life, width = values["half_life"], values["width"]
    if half_life is None:
        if width > WIDEST:
            message = f"{width:g} is above {WIDEST}, where the average is nearly the plain mean"
            return [Problem("width", message, f"write at most {WIDEST}, or kind: mean")]
        return []
    if half_life.unit != "%":
        message = f"{half_life} is not a share of the elapsed run, as power_ema takes it"
        return [Problem("half_life", message, "write it in %, such as 10%, or kind: ema")]
    if not 0 < half_life.value < 100:
        message = f"{half_life} is not between 0% and 100% of the elapsed run"
        return [Problem("half_life", message, "write a share such as 10%, or kind: mean")]
    return []


def _power_settings(values: Settings, every: Duration, exact: Exact) -> Settings:
    """Return the exponent g of the profile g tau^g of a time tau (Karras et al. 2024, arXiv:2312.02696, section 3.1).

    A half-life h is a share of the elapsed run: (1 - h)^g = 1/2, so g = ln(1/2) / ln(1 - h).
    """
    half_life = values["half_life"]
    if half_life is None:
        return {"exponent": power_exponent(values["width"])}
    return {"exponent": -math.log(2) / math.log1p(-float(half_life.value / 100))}


def power_exponent(width: float) -> float:
    """Return the exponent g of a power-function EMA whose profile has this standard deviation, in elapsed runs.

    The inverse of width = sqrt((g + 1) / ((g + 2)^2 (g + 3))), the largest real root of
    g^3 + 7 g^2 + (16 - 1/width^2) g + (12 - 1/width^2) (Karras et al. 2024, appendix C). The width falls from g = 0 on.
    """
    low, high = 0.0, 1 / width
    while low < (middle := (low + high) / 2) < high:
        is_wider = (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > width**2
        low, high = (middle, high) if is_wider else (low, middle)
    return low


def power_share(n: int, *, exponent: float) -> float:
    """Return the share of the n-th weight set in a power-function EMA: 1 - (1 - 1/n)^(g + 1), 1 for the first.

    The time t counts from one interval before the first weight set, in intervals of `every`: t = n, and a weight set
    stands for the interval before it. Of n weight sets the i-th then has the weight (i^(g + 1) - (i - 1)^(g + 1)) /
    n^(g + 1), the integral of the profile (g + 1) tau^g / t^(g + 1) over its interval, whatever its length is.
    """
    return 1.0 if n == 1 else -math.expm1((exponent + 1) * math.log1p(-1 / n))


def _power_warnings(plan: AveragePlan) -> list[str]:
    share = power_share(plan.count, exponent=plan.settings["exponent"])
    if share < MOSTLY_ONE:
        return []
    key = "width" if plan.given["half_life"] is None else "half_life"
    return [f"is mostly its newest weight set ({share:.0%} at the end): shorten {plan.key}.every or raise its {key}"]


def _power_text(plan: AveragePlan) -> str:
    half_life, exponent = plan.given["half_life"], plan.settings["exponent"]
    if half_life is None:
        return f"power EMA of width {plan.given['width']:g} (exponent {exponent:.4g})"
    return f"power EMA of half-life {half_life} of the elapsed run (exponent {exponent:.4g})"


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
        lengths=(),
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
            "warmup": Key(Flag, False, "decay of update n, from 1, at most n / (n + 9)"),
            "bias_correction": Key(Flag, True, "the first weight set counts like the others"),
        },
        exclusions=(
            Exclusion(
                key="half_life",
                replaces="decay",
                problem=Problem("half_life", "half_life and decay are mutually exclusive", "write one of the two"),
            ),
        ),
        lengths=("half_life",),
        problems=_ema_problems,
        resolve=_ema_settings,
        few=0,
        warnings=_ema_warnings,
        text=_ema_text,
        memory=_one_weight_set,
        share=None,
    ),
    "power_ema": Kind(
        summary="EMA whose memory grows with the run",
        start="0ep",
        every="1step",
        keys={
            "width": Key(
                Annotated[Number, Field(gt=0)], 0.1, "standard deviation of its profile, as a share of the elapsed run"
            ),
            "half_life": Key(
                DurationField, None, "in place of width, the share of the elapsed run after which a weight counts half"
            ),
        },
        exclusions=(
            Exclusion(
                key="half_life",
                replaces="width",
                problem=Problem("half_life", "half_life and width are mutually exclusive", "write one of the two"),
            ),
        ),
        lengths=(),
        problems=_power_problems,
        resolve=_power_settings,
        few=0,
        warnings=_power_warnings,
        text=_power_text,
        memory=_one_weight_set,
        share=lambda n, settings: power_share(n, exponent=settings["exponent"]),
    ),
    "lawa": Kind(
        summary="mean of the last weight sets",
        start="75%",
        every="1ep",
        keys={"window": Key(Count, 5, "number of weight sets")},
        exclusions=(),
        lengths=(),
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
        lengths=(),
        problems=_no_problems,
        resolve=_as_given,
        few=5,
        warnings=_swag_warnings,
        text=lambda plan: f"SWAG of {count_text(plan.count, 'weight')}, {_swag_memory(plan)}",
        memory=_swag_memory,
        share=None,
    ),
}
