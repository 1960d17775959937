"""Types of the values of a recipe, durations first.

One idea: a duration (`75%`, `0.25ep`, `200step`, `1cycle`) stays an exact fraction until it becomes a step, and each
point of a series is rounded on its own. So `every: 0.25ep` with 351 steps per epoch never drifts off the ends of
epochs.

A field parses the text that stands in the recipe and refuses ambiguous text. `_form` gives the JSON Schema of a field
where its type does not. Text of another form raises a `ValueError`, `what is wrong: what to do`, which `explain` splits
into message and hint.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from swa_cli.errors import Problem
from swa_cli.recipe import scalars
from swa_cli.recipe.scalars import shown
from swa_cli.units import count_text

# Few digits, so that every length is written out exactly.
_VALUE = r"(?P<value>\d{1,15}(?:\.\d{1,12})?|\.\d{1,12})\s*"
PATTERN = re.compile(_VALUE + r"(?P<unit>%|ep|step|cycle)", re.ASCII)
SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
TIME_PATTERN = re.compile(_VALUE + r"(?P<unit>s|min|h|d)", re.ASCII)


@dataclass(frozen=True)
class Duration:
    """A length of training, or a point in it measured from its beginning."""

    value: Fraction
    unit: str

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Parse `75%`, `23ep`, `200step` or `1cycle`."""
        match = PATTERN.fullmatch(text.strip())
        if match is None:
            bare = re.fullmatch(r"[\d.]+", text.strip(), re.ASCII)
            reason = "has no unit" if bare else "is not a duration"
            raise ValueError(f"{shown(text)} {reason}: write it as 75%, 23ep, 0.25ep, 200step or 1cycle")
        value, unit = Fraction(Decimal(match["value"])), match["unit"]
        if unit == "%" and value > 100:
            raise ValueError(f"{shown(text)} is more than the whole run: write at most 100%")
        if unit in ("step", "cycle") and value.denominator != 1:
            raise ValueError(f"{shown(text)} cannot be, a {unit} is not divided: write a whole number of {unit}s")
        return cls(value, unit)

    def exact_steps(self, *, steps_per_epoch: int, total_steps: int) -> Fraction:
        """Return the length in steps, before rounding; the schedule resolves cycles, which have no fixed length."""
        assert self.unit != "cycle", "the schedule knows how long a cycle is"
        if self.unit == "%":
            return self.value * total_steps / 100
        return self.value * (steps_per_epoch if self.unit == "ep" else 1)

    def __str__(self) -> str:
        return f"{_decimal(self.value)}{self.unit}"


@dataclass(frozen=True)
class TimeSpan:
    """A length of wall-clock time, which a plan cannot turn into steps."""

    value: Fraction
    unit: str

    @classmethod
    def parse(cls, text: str) -> TimeSpan:
        """Parse `90s`, `10min`, `2h` or `1.5d`."""
        match = TIME_PATTERN.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{shown(text)} is not a length of time: write it as 90s, 10min, 2h or 1d")
        value = Fraction(Decimal(match["value"]))
        if value == 0:
            raise ValueError(f"{shown(text)} is no time at all: write a longer one, such as 10min")
        return cls(value, match["unit"])

    @property
    def seconds(self) -> float:
        """Return the length in seconds."""
        return float(self.value * SECONDS[self.unit])

    def __str__(self) -> str:
        return f"{_decimal(self.value)}{self.unit}"


def round_half_up(value: Fraction) -> int:
    """Round to the nearest whole number, halves up (Python's `round` takes halves to even)."""
    return int((value + Fraction(1, 2)).__floor__())


def _decimal(value: Fraction) -> str:
    return f"{Decimal(value.numerator) / Decimal(value.denominator):f}"


def in_epochs(steps: Fraction | int, *, steps_per_epoch: int) -> str:
    """Write a point or length in epochs, to two digits: 7898 steps of 351 are `22.5`."""
    return f"{round(float(steps) / steps_per_epoch, 2):.12g}"


def length_text(steps: int, steps_per_epoch: int) -> str:
    """Write a length as `1 epoch`, `2.5 epochs`, or `12 steps` if it is less than an epoch."""
    if steps < steps_per_epoch:
        return count_text(steps, "step")
    epochs = in_epochs(steps, steps_per_epoch=steps_per_epoch)
    return f"{epochs} epoch" if epochs == "1" else f"{epochs} epochs"


STRICT = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)
INTERNAL: JsonDict = {"internal": True}  # of a field that swa alone writes: no template or JSON Schema has it


def refuse(problems: Sequence[Problem]) -> None:
    """Let pydantic report the first problem of a section as `misplaced`; `explain` finds them all."""
    if problems:
        key, message = problems[0].key, problems[0].message
        raise PydanticCustomError("misplaced", "{key}: {message}", {"key": key, "message": message})


@dataclass(frozen=True)
class Key:
    """A key that one schedule or one kind of average takes: the type, default and meaning of its value."""

    type: Any
    default: Any  # None where the recipe may leave the key out, or where the default depends on other keys
    description: str

    @property
    def text(self) -> str:
        """Return the meaning with the default, as `length of the cycle; default 0.1`."""
        default = str(self.default).lower() if isinstance(self.default, bool) else self.default
        default = f"{default:g}" if isinstance(default, float) else default
        return self.description if default is None else f"{self.description}; default {default}"


def owners_of_keys(table: Mapping[str, Any]) -> dict[str, dict[str, Key]]:
    """Return every key of the table of schedules or kinds, as each entry that takes it declares it."""
    owners: dict[str, dict[str, Key]] = {}
    for name, entry in table.items():
        for key, declared in entry.keys.items():
            owners.setdefault(key, {})[name] = declared
    return owners


def fields_of(table: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return type and field of every key of a table."""
    fields = {}
    for key, owners in owners_of_keys(table).items():
        first, *others = owners.values()
        assert all(other.type == first.type for other in others), f"{key}: one name, several types"
        is_shared = others and all(other == first for other in others)
        text = first.text if is_shared else "; ".join(f"{name}: {one.text}" for name, one in owners.items())
        fields[key] = first.type | None, Field(default=None, description=text)
    return fields


MAX_NAME = 100  # characters of a name of folders and files, well below the limits of file systems
NAME_PATTERN = rf"[A-Za-z0-9_][A-Za-z0-9_.+-]{{0,{MAX_NAME - 1}}}"
MAX_THREADS = 1024
TASKS = ("classification", "multilabel", "segmentation", "regression")
LOSSES = ("cross_entropy", "bce", "focal")
OWN_CODE = r"\w+(\.\w+)*:\w+"
RESERVED_AVERAGES = ("last", "last_bn", "best", "previous", "swa", "ensemble")
DEVICES = r"con|prn|aux|nul|(?:com|lpt)[0-9]"  # Windows has no files of these names
AVERAGE_PATTERN = rf"^(?!(?:{'|'.join(RESERVED_AVERAGES)}|{DEVICES})$)[a-z][a-z0-9_]{{0,{MAX_NAME - 1}}}$"


def _parsed_as(kind: type[Duration] | type[TimeSpan]) -> BeforeValidator:
    return BeforeValidator(lambda value: value if isinstance(value, kind) else kind.parse(scalars.written(value)))


def _duration_or_time(value: object) -> Duration | TimeSpan:
    """Parse a duration or a time, by its unit."""
    if isinstance(value, Duration | TimeSpan):
        return value
    text = scalars.written(value)
    return TimeSpan.parse(text) if re.search(rf"[\d.]\s*({'|'.join(SECONDS)})$", text) else Duration.parse(text)


def _portion(value: object) -> str | int:
    """Parse `10%` of the samples, or a number of samples."""
    text = scalars.written(value)
    if re.fullmatch(r"0|[1-9]\d{0,17}", text, re.ASCII):
        return int(text)
    if re.fullmatch(r"\d{1,2}(\.\d{1,9})?%", text, re.ASCII):
        return text
    raise ValueError(f"{shown(value)} is neither a share below 100% nor a count: write 10%, 5000 or 0")


def _count_or(*words: str) -> BeforeValidator:
    """Return a validator of a positive whole number, or of one of these words."""

    def check(value: object) -> str | int:
        text = scalars.written(value)
        if text in words:
            return text
        if re.fullmatch(r"[1-9]\d{0,17}", text, re.ASCII):
            return int(text)
        quoted, plain = " nor ".join(f"`{word}`" for word in words), ", ".join(words)
        raise ValueError(f"{shown(value)} is neither {quoted} nor a count: write {plain} or a number from 1 on")

    return BeforeValidator(check)


def _flag_or(word: str, *, what: str) -> BeforeValidator:
    """Return what parses a flag, or one word; `what` names both."""

    def parse(value: object) -> bool | str:
        if value == word:
            return word
        try:
            return scalars.flag(value)
        except ValueError as error:
            if not str(error).endswith("true or false"):
                raise
            raise ValueError(f"{shown(value)} is not {what}: write true, false or {word}") from None

    return BeforeValidator(parse)


def _few_threads(count: str | int) -> str | int:
    if isinstance(count, int) and count > MAX_THREADS:
        raise ValueError(f"`{count}` threads are more than any machine has: write at most {MAX_THREADS}, or auto")
    return count


def _name_of_average(name: str) -> str:
    if not re.fullmatch(AVERAGE_PATTERN, name):
        raise ValueError(
            f"{shown(name)} cannot name an average: use at most {MAX_NAME} small letters, digits and _,"
            f" but not {', '.join(RESERVED_AVERAGES)} or a device of Windows (aux, con, nul, ...)"
        )
    return name


def one_of(choices: Sequence[str], *, noun: str) -> AfterValidator:
    """Return a validator of one of these names, or of package.module:attribute."""

    def check(name: str) -> str:
        if name in choices or re.fullmatch(OWN_CODE, name):
            return name
        close = difflib.get_close_matches(name, choices, n=1)
        meant = f"did you mean `{close[0]}`?" if close else f"write {', '.join(choices)} or package.module:attribute"
        raise ValueError(f"{shown(name)} is not a {noun}: {meant}")

    return AfterValidator(check)


def _multiple(value: object) -> float:
    """Parse `64x`; a value that is parsed already is a number."""
    if isinstance(value, float):
        return value
    text = scalars.written(value)
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?x", text, re.ASCII):
        return float(text[:-1])
    raise ValueError(f"{shown(value)} is not a multiple of the rate: write 64x or 0.1x")


def _class_weights(value: object) -> str | list[float]:
    """Parse `none`, `balanced`, or a weight for each class, of which one is above 0."""
    if value in ("none", "balanced"):
        return str(value)
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{shown(value)} is not a weight per class: write none, balanced or a list such as [1, 2.5]")
    weights = list(map(scalars.number, value))
    if min(weights) < 0 or max(weights) == 0:
        raise ValueError(f"{shown(value)} is out of range: write weights of 0 or more, one of them above 0")
    return weights


def _texts(value: object) -> list[str]:
    """Parse one text, or a list of them."""
    return [scalars.text(item) for item in (value if isinstance(value, list | tuple) and value else [value])]


def pretrained(value: object) -> bool | str:
    """Parse a flag, or text: a name of weights, or a file."""
    return scalars.flag(value) if str(value).lower() in scalars.TRUTH_WORDS else scalars.text(value)


def form_of(*patterns: str, least: int | None = None, most: int | None = None) -> WithJsonSchema:
    """Return the JSON Schema of text in one of these forms, or of a whole number from `least` on, up to `most`."""
    plain = "|".join(re.sub(r"\(\?P<\w+>", "(?:", pattern) for pattern in patterns)
    text = {"type": "string", "pattern": f"^(?:{plain})$"}
    if least is None:
        return WithJsonSchema(text)
    whole = {"type": "integer", "minimum": least} | ({} if most is None else {"maximum": most})
    return WithJsonSchema({"anyOf": [text, whole]})


_WEIGHTS = {
    "type": "array",
    "items": {"type": "number", "minimum": 0},
    "contains": {"type": "number", "exclusiveMinimum": 0},
}
_ONE_TEXT = {"type": "string", "minLength": 1}
DurationField = Annotated[Duration, _parsed_as(Duration), PlainSerializer(str), form_of(PATTERN.pattern)]
TimeField = Annotated[TimeSpan, _parsed_as(TimeSpan), PlainSerializer(str), form_of(TIME_PATTERN.pattern)]
DurationOrTime = Annotated[
    Duration | TimeSpan,
    BeforeValidator(_duration_or_time),
    PlainSerializer(str),
    form_of(PATTERN.pattern, TIME_PATTERN.pattern),
]
Text = Annotated[str, BeforeValidator(scalars.text)]
TaskName = Annotated[Text, one_of(TASKS, noun="task"), form_of(*TASKS, OWN_CODE)]
LossName = Annotated[Text, one_of(LOSSES, noun="loss"), form_of(*LOSSES, OWN_CODE)]
TextOrTexts = Annotated[
    list[str],
    BeforeValidator(_texts),
    WithJsonSchema({"anyOf": [_ONE_TEXT, {"type": "array", "items": _ONE_TEXT, "minItems": 1}]}),
]
ClassWeights = Annotated[
    str | list[float],
    BeforeValidator(_class_weights),
    WithJsonSchema({"anyOf": [{"enum": ["none", "balanced"]}, _WEIGHTS]}),
]
Patterns = Annotated[
    list[str],
    BeforeValidator(lambda value: value if value == [] else _texts(value)),
    WithJsonSchema({"anyOf": [_ONE_TEXT, {"type": "array", "items": _ONE_TEXT}]}),
]
Flag = Annotated[bool, BeforeValidator(scalars.flag)]
Flip = Annotated[bool | Literal["alternating"], _flag_or("alternating", what="a way to flip")]
FlagOrAuto = Annotated[bool | Literal["auto"], _flag_or("auto", what="a truth value")]
Pretrained = Annotated[
    bool | str,
    BeforeValidator(pretrained),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, _ONE_TEXT]}),
]
Whole = Annotated[int, BeforeValidator(scalars.whole)]
Count = Annotated[Whole, Field(ge=1)]
Portion = Annotated[str | int, BeforeValidator(_portion), form_of(r"\d{1,2}(\.\d{1,9})?%", least=0)]
CountOrAll = Annotated[str | int, _count_or("all"), form_of("all", least=1)]
CountAutoOrAll = Annotated[str | int, _count_or("auto", "all"), form_of("auto", "all", least=1)]
CountOrAuto = Annotated[str | int, _count_or("auto"), form_of("auto", least=1)]
Threads = Annotated[CountOrAuto, AfterValidator(_few_threads), form_of("auto", least=1, most=MAX_THREADS)]
Number = Annotated[float, BeforeValidator(scalars.number)]
Multiple = Annotated[
    float,
    BeforeValidator(_multiple),
    PlainSerializer(lambda times: f"{times:.9f}".rstrip("0").rstrip(".") + "x"),
    form_of(r"\d{1,9}(\.\d{1,9})?x"),
]
Rate = Annotated[Number, Field(ge=0)]
LayerDecay = Annotated[Number, Field(gt=0, le=1)]
Free = Annotated[Any, BeforeValidator(scalars.free)]
Argument = Annotated[Any, BeforeValidator(partial(scalars.free, takes_null=True))]  # of a constructor
AverageName = Annotated[str, AfterValidator(_name_of_average)]
