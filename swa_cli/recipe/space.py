"""The space of a sweep: which values each key may take, written as KEY=VALUES words.

A parameter is a key with its domain: choices (`swa.lr=0.01,0.02`, texts as in KEY=VALUE) or a range (`log(1e-3,1)`,
`50%..90%`, `int(1,4)`). A point of the space is a value per key, and `words` turns it into changes of a recipe. One
idea: a word is the only form in which a value reaches a recipe, so each value is checked by the schema before the first
trial. A choice that removes a section (`swa=null`) removes the parameters below it from the point.
"""

from __future__ import annotations

import fnmatch
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from swa_cli.errors import Place, Problem, RecipeError, did_you_mean
from swa_cli.recipe import load
from swa_cli.recipe.load import Loaded
from swa_cli.recipe.scalars import Plain, is_null
from swa_cli.recipe.yaml_document import COMMAND_LINE, in_order
from swa_cli.units import count_text

Point = Mapping[str, Any]  # key -> the text of a choice, or a number of a range

DIGITS = 4  # significant ones of a number that is drawn, so that recipes stay readable
MAX_DIGITS = 15  # of any number in a recipe
LARGEST, LARGEST_WHOLE = 1e300, 2**53  # end of a range: its width is finite, and whole ends are exact
NARROWEST = 1e-9  # range, as a share of its numbers: it holds more numbers of MAX_DIGITS digits than a sweep has trials
MAX_CHECKED = 1000  # combinations of a grid that are checked one by one; of a larger space, each value by itself
WHOLE_UNITS = ("step", "cycle")
_OPEN, _CLOSE = "([{", ")]}"
_CALL = re.compile(r"(\w+)\s*\((.*)\)", re.DOTALL)
_NUMBER = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(%|[a-z]*)", re.ASCII)
FORMS = "write linear(LOW,HIGH), log(LOW,HIGH), int(LOW,HIGH) or LOW..HIGH, or a list such as 0.1,0.2"
# Keys that change nothing a trial is chosen by, and keys that would let trials be scored on different images.
IDLE_KEYS = ("name", "output", "output.*", "dataset.root", "dataset.workers", "train.device", "train.threads")
DATA_KEYS = ("task", "dataset", "dataset.name", "dataset.args*", "dataset.val", "dataset.val_seed", "dataset.stratify")


@dataclass(frozen=True)
class Choices:
    """The texts that a key may take."""

    texts: tuple[str, ...]

    def text(self, value: Any) -> str:
        """Return a choice as it stands in KEY=VALUE."""
        return str(value)

    def rounded(self, value: str, *, digits: int) -> str:
        """Return a choice as it is."""
        return value

    @property
    def size(self) -> float:
        """How many there are."""
        return len(self.texts)

    @property
    def samples(self) -> tuple[str, ...]:
        """The values to check."""
        return self.texts

    @property
    def values(self) -> dict[str, Any]:
        """The entry of sweep.json."""
        return {"choices": list(self.texts)}

    def __str__(self) -> str:
        return ", ".join(self.texts)


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, both included, with their `unit`."""

    low: float
    high: float
    unit: str = ""
    is_log: bool = False
    is_whole: bool = False

    def rounded(self, value: float, *, digits: int) -> float:
        """Return the number of so many significant digits next to a drawn one, inside the range."""
        return int(value) if self.is_whole else min(max(float(f"{value:.{digits}g}"), self.low), self.high)

    @property
    def size(self) -> float:
        """How many numbers there are: infinitely many, but of whole ones."""
        return int(self.high - self.low) + 1 if self.is_whole else math.inf

    def text(self, value: Any) -> str:
        """Return a number as it stands in KEY=VALUE."""
        if self.is_whole:
            return f"{int(value)}{self.unit}"
        short = f"{value:.{MAX_DIGITS}g}"
        return f"{Decimal(short):f}{self.unit}" if self.unit else short  # no exponent before a unit

    @property
    def samples(self) -> tuple[str, ...]:
        """The values to check: both ends, and one between that is no round number, as those that are drawn."""
        middle = (self.low * self.high) ** 0.5 if self.is_log else self.low + 0.3819 * (self.high - self.low)
        return tuple(self.text(value) for value in (self.low, self.rounded(middle, digits=DIGITS), self.high))

    @property
    def values(self) -> dict[str, Any]:
        """The entry of sweep.json."""
        return {"low": self.low, "high": self.high, "unit": self.unit, "log": self.is_log, "int": self.is_whole}

    def __str__(self) -> str:
        kind = "whole numbers " if self.is_whole else ""
        scale = ", logarithmic" if self.is_log else ""
        return f"{kind}{self.text(self.low)} to {self.text(self.high)}{scale}"


def domain_of(values: Mapping[str, Any]) -> Choices | Range:
    """Return the domain of an entry of sweep.json.

    Raises:
        KeyError, TypeError, ValueError: It is none.
    """
    if "choices" in values:
        if not values["choices"] or not all(isinstance(text, str) for text in values["choices"]):
            raise ValueError("choices that are no texts")
        return Choices(tuple(values["choices"]))
    if not 0 < values["high"] - values["low"] < math.inf:
        raise ValueError("a range without numbers")
    return Range(values["low"], values["high"], values["unit"], is_log=values["log"], is_whole=values["int"])


@dataclass(frozen=True)
class Parameter:
    """A key that a sweep varies; `word` is the argument of the command line."""

    key: str
    domain: Choices | Range
    word: str

    @property
    def column(self) -> str:
        """The heading of its column: the key without its section."""
        return self.key.rpartition(".")[2]


@dataclass(frozen=True)
class Space:
    """All parameters of a sweep, in the order of the command line.

    `fixed` are the keys with one value below a parameter: each value of a section replaces the whole section.
    """

    parameters: tuple[Parameter, ...]
    fixed: tuple[tuple[str, str], ...] = ()

    @property
    def values(self) -> dict[str, Any]:
        """The entry of sweep.json."""
        return {each.key: each.domain.values for each in self.parameters}

    @property
    def is_finite(self) -> bool:
        """Whether every parameter has choices, so that there is a grid."""
        return all(isinstance(each.domain, Choices) for each in self.parameters)

    def draw(self, suggest: Callable[[Parameter], Any]) -> dict[str, Any]:
        """Return a point: `suggest` gives a value for each parameter that no value before has removed."""
        point: dict[str, Any] = {}
        for each in sorted(self.parameters, key=lambda each: each.key.count(".")):  # sections first
            if not self._is_removed(each.key, point):
                point[each.key] = suggest(each)
        return {each.key: point[each.key] for each in self.parameters if each.key in point}

    def rounded(self, point: Point, *, digits: int) -> dict[str, Any]:
        """Return a point with its numbers rounded to so many significant digits."""
        parameters = [each for each in self.parameters if each.key in point]
        return {each.key: each.domain.rounded(point[each.key], digits=digits) for each in parameters}

    def texts(self, point: Point) -> dict[str, str]:
        """Return the values of a point as they stand in KEY=VALUE."""
        return {each.key: each.domain.text(point[each.key]) for each in self.parameters if each.key in point}

    def grid(self) -> Iterator[dict[str, Any]]:
        """Yield each point of a space of choices once; the last parameter changes fastest."""
        seen = set()
        domains = [each.domain.samples for each in self.parameters]
        keys = [each.key for each in self.parameters]
        for combination in itertools.product(*domains):
            values = dict(zip(keys, combination, strict=True))
            point = {key: text for key, text in values.items() if not self._is_removed(key, values)}
            if (fixed := tuple(point.items())) not in seen:
                seen.add(fixed)
                yield point

    @property
    def size(self) -> float:
        """The number of points; infinite with a range of numbers that are not whole."""
        keys = [each.key for each in self.parameters]
        sections = [each for each in self.parameters if any(key.startswith(f"{each.key}.") for key in keys)]
        others = [each for each in self.parameters if each not in sections]
        return sum(
            math.prod(each.domain.size for each in others if not self._is_removed(each.key, point))
            for point in Space(tuple(sections)).grid()
        )

    def examples(self) -> list[dict[str, str]]:
        """Return points as texts in which each value to check occurs: a whole grid, or one value changed at a time."""
        sizes = [len(each.domain.samples) for each in self.parameters]
        if self.is_finite and math.prod(sizes) <= MAX_CHECKED:
            return list(self.grid())
        found: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
        for each in self.parameters:
            for text in each.domain.samples:
                point = self._example(each.key, text)
                found.setdefault(tuple(point.items()), point)
        return list(found.values())

    def _example(self, key: str, text: str) -> dict[str, str]:
        """Return a point with this value, the first ones elsewhere, and no section above the key removed."""
        values = {}
        for each in self.parameters:
            texts = each.domain.samples
            if key.startswith(f"{each.key}."):
                texts = tuple(other for other in texts if not _removes(other)) or texts
            values[each.key] = text if each.key == key else texts[0]
        return {name: value for name, value in values.items() if not self._is_removed(name, values)}

    def kept(self, point: Point) -> list[tuple[str, str]]:
        """Return the fixed keys that no value of a point removes."""
        return [(key, text) for key, text in self.fixed if not self._is_removed(key, point)]

    @staticmethod
    def _is_removed(key: str, point: Point) -> bool:
        sections = itertools.accumulate(key.split(".")[:-1], lambda above, part: f"{above}.{part}")
        return any(section in point and _removes(str(point[section])) for section in sections)


def read(recipe: Path | str, words: Sequence[str]) -> tuple[Loaded, Space, list[Loaded]]:
    """Read a recipe and the space of its sweep; return both, and the recipe of each example of the space.

    A word with one value (`train.epochs=2`) is a change of the recipe itself.

    Raises:
        RecipeError: Every problem of the recipe, and of every value at its argument.
        UserError: The recipe cannot be read.
    """
    fixed, single, parameters, problems = list[str](), dict[str, str](), list[Parameter](), list[Problem]()
    for word in words:
        key, _, text = (part.strip() for part in word.partition("="))
        try:
            domain = _domain(text)
            if isinstance(domain, Choices) and len(domain.texts) == 1:
                fixed.append(word)
                single[key] = text
                continue
            _refuse_key(key, [each.key for each in parameters])
            parameters.append(Parameter(key, domain, word))
        except _WrongError as error:
            problems.append(Problem(key, error.message, error.hint, Place(COMMAND_LINE + word)))
    for each in parameters:
        if each.key in single:
            message = f"is given twice, once as {single[each.key]}"
            problems.append(Problem(each.key, message, "write all its values once", Place(COMMAND_LINE + each.word)))
    below = [key for key in single if any(key.startswith(f"{each.key}.") for each in parameters)]
    space = Space(tuple(parameters), tuple((key, single[key]) for key in below))
    try:
        loaded = load.load(recipe, fixed)
        problems += _seed_problems(loaded, space)
        recipes = check(loaded, space)
        problems += _equal_problems(space, recipes)
        if not problems and parameters:
            return loaded, space, recipes
    except RecipeError as error:
        problems = [*error.problems, *problems]
    if not problems:
        message, hint = "no key has several values: there is nothing to sweep", "write a list, such as swa.lr=0.02,0.05"
        problems.append(Problem("", message, hint, Place(str(recipe))))
    raise in_order(problems, source=str(recipe))


def _seed_problems(loaded: Loaded, space: Space) -> list[Problem]:
    """Return a problem if the seeds of a sweep would hold out different validation images."""
    dataset, seed = loaded.recipe.dataset, next((each for each in space.parameters if each.key == "seed"), None)
    if seed is None or dataset.val_seed is not None or dataset.val in (0, "0%"):
        return []
    message = "each seed would hold out other validation images, and trials are compared on the same ones"
    hint = "add dataset.val_seed=0, or repeat the best trials with --seeds"
    return [Problem("seed", message, hint, Place(COMMAND_LINE + seed.word))]


def _equal_problems(space: Space, recipes: Sequence[Loaded]) -> list[Problem]:
    """Return a problem for each key with values that give the same recipe, such as 0.05 and 5e-2."""
    points, found = dict[str, dict[str, str]](), dict[str, Problem]()
    for texts, changed in zip(space.examples(), recipes, strict=True):
        other = points.setdefault(repr(changed.recipe.model_dump(mode="json")), texts)
        if other != texts:
            each = next(each for each in space.parameters if texts.get(each.key) != other.get(each.key))
            text, same = (values.get(each.key, "null") for values in (texts, other))
            message = f"`{text}` gives the same recipe as `{same}`"
            problem = Problem(each.key, message, "write each value once", Place(COMMAND_LINE + each.word))
            found.setdefault(each.key, problem)
    return list(found.values())


def words_of(space: Space, texts: Mapping[str, str]) -> list[str]:
    """Return the changes of a recipe for the texts of a point: sections first."""
    pairs = sorted([*space.kept(texts), *texts.items()], key=lambda pair: pair[0].count("."))
    return [f"{key}={text}" for key, text in pairs]


def check(
    loaded: Loaded, space: Space, *, further: Callable[[Loaded], Sequence[Problem]] = lambda changed: ()
) -> list[Loaded]:
    """Return the recipe of each example of a space; `further` checks that need more than the recipe are done too.

    Raises:
        RecipeError: Every problem of every value, at the argument that it comes from.
    """
    found: dict[tuple[str, str, Place | None], Problem] = {}
    recipes = []
    for texts in space.examples():
        try:
            recipes.append(loaded.with_changes(words_of(space, texts)))
            if problems := further(recipes[-1]):
                raise recipes[-1].locate(problems)
        except RecipeError as error:
            for problem in error.problems:
                moved = _at_argument(problem, space, texts)
                is_range = any(each.key == moved.key and isinstance(each.domain, Range) for each in space.parameters)
                found.setdefault((moved.key, "" if is_range else moved.message, moved.place), moved)
    if found:
        raise RecipeError(list(found.values()), source=loaded.source)
    return recipes


def _at_argument(problem: Problem, space: Space, texts: Mapping[str, str]) -> Problem:
    """Place a problem of a value at the whole argument; elsewhere, say with which values the recipe has it."""
    arguments = {f"{each.key}={texts[each.key]}": each for each in space.parameters if each.key in texts}
    where = "" if problem.place is None else problem.place.source.removeprefix(COMMAND_LINE)
    if where not in arguments:
        point = ", ".join(f"{key}={text}" for key, text in texts.items())
        return replace(problem, message=f"{problem.message} (with {point})")
    parameter, hint = arguments[where], problem.hint
    domain = parameter.domain
    if isinstance(domain, Range) and "is not a whole number" in problem.message:
        hint = f"write int({domain.low:.0f},{domain.high:.0f})"
    return replace(problem, hint=hint, place=Place(COMMAND_LINE + parameter.word))


class _WrongError(Exception):
    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


def _refuse_key(key: str, before: Sequence[str]) -> None:
    if key in before:
        raise _WrongError("is given twice", "write all its values in one list")
    if any(fnmatch.fnmatchcase(key, pattern) for pattern in IDLE_KEYS):
        raise _WrongError("changes no score, so there is nothing to choose by", "give it one value")
    if any(fnmatch.fnmatchcase(key, pattern) for pattern in DATA_KEYS):
        message = "changes the validation images, and trials are compared on the same ones"
        raise _WrongError(message, "give it one value, and run a sweep for each")


def _domain(text: str) -> Choices | Range:
    """Parse the values of one key."""
    parts = _split(text)
    if len(parts) > 1:
        if "" in parts:
            raise _WrongError(f"`{text}` has an empty value", "remove the comma that has no value beside it")
        if twice := [part for part in parts if parts.count(part) > 1]:
            raise _WrongError(f"{twice[0]} is written twice", "write each value once")
        return Choices(tuple(parts))
    if match := _CALL.fullmatch(text):
        if match[1] not in ("linear", "log", "int"):
            hint = did_you_mean(match[1], ("linear", "log", "int")) + FORMS
            raise _WrongError(f"`{match[1]}` is no kind of range", hint)
        ends = _split(match[2])
        if len(ends) != 2:
            raise _WrongError(f"`{text}` has {count_text(len(ends), 'end')}", f"write {match[1]}(LOW,HIGH)")
        return _range(match[1], *ends, text=text)
    low, dots, high = text.partition("..")
    if dots and _NUMBER.fullmatch(low.strip()) and _NUMBER.fullmatch(high.strip()):
        return _range("linear", low, high, text=text)
    return Choices((text,))


def _range(kind: str, low: str, high: str, *, text: str) -> Range:
    found = [_NUMBER.fullmatch(end.strip()) for end in (low, high)]
    for end, match in zip((low, high), found, strict=True):
        if match is None:
            raise _WrongError(
                f"`{end.strip()}` is not the end of a range", "write a number, with its unit if it has one"
            )
    (first, unit), (last, other) = (match.groups() for match in found if match is not None)
    if unit != other:
        raise _WrongError(f"`{text}` has ends in different units", "write both in one unit, such as 50%..90%")
    is_whole = kind == "int" or unit in WHOLE_UNITS
    if is_whole and not all(re.fullmatch(r"[-+]?\d+", end) for end in (first, last)):
        raise _WrongError(f"`{text}` has an end that is no whole number", "write whole numbers, or linear(LOW,HIGH)")
    ends = float(first), float(last)
    if max(map(abs, ends)) > (largest := LARGEST_WHOLE if is_whole else LARGEST):
        raise _WrongError(f"`{text}` has an end beyond {largest:g}", "write a smaller number")
    if ends[0] > ends[1]:
        raise _WrongError(f"`{text}` does not ascend", f"write {kind}({last}{unit},{first}{unit})")
    if ends[1] - ends[0] <= (0 if is_whole else NARROWEST * max(map(abs, ends))):
        raise _WrongError(f"`{text}` has one value", f"write {first}{unit}")
    if kind == "log" and ends[0] <= 0:
        raise _WrongError(f"`{text}` begins at {first}, which has no logarithm", "begin above 0, such as at 1e-4")
    return Range(ends[0], ends[1], unit, is_log=kind == "log", is_whole=is_whole)


def _split(text: str) -> list[str]:
    """Split a text at the commas outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'" and not parts[-1].strip(" [{(,:"):
            quote = char
        depth += (char in _OPEN) - (char in _CLOSE) if not quote else 0
        if char == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]


def _removes(text: str) -> bool:
    return is_null(Plain(text))
