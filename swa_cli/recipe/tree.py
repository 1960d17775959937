"""What stands in a recipe before it is checked: values by key, and the place of each key.

The one idea: a path (a tuple of keys, with numbers for the items of lists) names a value and finds its place,
so that file and command line are changed and reported in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from swa_cli.errors import Place, Problem, RecipeError
from swa_cli.recipe import scalars

KeyPath = tuple[str | int, ...]
MAX_DEPTH = 20
MAX_NODES = 5000  # of a recipe, which has about a hundred: so that no file takes minutes to be refused
COMMAND_LINE = "command line: "  # how the source of an override begins


@dataclass(frozen=True)
class Spot:
    """Where a key and its value stand."""

    key: Place
    value: Place


@dataclass(frozen=True)
class Tree:
    """Sections, lists and texts; of paths in `opaque`, which could not be read, nothing more is said."""

    source: str
    values: dict[str, Any] = field(default_factory=dict)
    spots: dict[KeyPath, Spot] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    opaque: set[KeyPath] = field(default_factory=set)

    def place(self, path: KeyPath, *, at_key: bool) -> Place:
        """Where a path stands, or the key of the nearest section around it, or the file."""
        if path in self.spots:
            return self.spots[path].key if at_key else self.spots[path].value
        for length in range(len(path) - 1, 0, -1):
            if path[:length] in self.spots:
                return self.spots[path[:length]].key
        return Place(self.source)

    def is_opaque(self, path: KeyPath) -> bool:
        """Whether the path, or a section around it, could not be read."""
        return any(path[:length] in self.opaque for length in range(len(path) + 1))

    def put(self, key: str, value: object, place: Place) -> Iterator[Problem]:
        """Set a dotted key, with the sections that it needs, or say why not."""
        path = tuple(key.split("."))
        section = self.values
        for length, part in enumerate(path[:-1], start=1):
            if scalars.is_null(section.get(part)):
                section[part] = {}
                self.spots[path[:length]] = Spot(place, place)
            section = section[part]
            if not isinstance(section, dict):
                above = ".".join(path[:length])
                yield Problem(key, f"`{above}` is a value, not a section", f"write {above}=VALUE", place)
                return
        section[path[-1]] = value
        for below in [spot for spot in self.spots if spot[: len(path)] == path]:
            del self.spots[below]
        self.spots[path] = Spot(place, place)

    def remove(self, key: str) -> bool:
        """Take a dotted key out, with all below it; whether there was one."""
        path = tuple(key.split("."))
        section: Any = self.values
        for part in path[:-1]:
            section = section.get(part) if isinstance(section, dict) else None
        if not isinstance(section, dict) or path[-1] not in section:
            return False
        del section[path[-1]]
        for below in [spot for spot in self.spots if spot[: len(path)] == path]:
            del self.spots[below]
        return True


def copied(values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of stored values that may be changed.

    Raises:
        ValueError: They are not the values of a recipe.
    """
    num_nodes = 0

    def copy(value: Any, depth: int) -> Any:
        nonlocal num_nodes
        num_nodes += 1
        if depth > MAX_DEPTH or num_nodes > MAX_NODES:
            raise ValueError(f"the recipe in it is {'nested too deeply' if depth > MAX_DEPTH else 'longer than any'}")
        if isinstance(value, Mapping):
            if not all(isinstance(key, str) for key in value):
                raise ValueError("the recipe in it has keys that are not text")
            return {key: copy(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [copy(item, depth + 1) for item in value]
        if isinstance(value, str) and not scalars.is_utf8(value):
            raise ValueError("the recipe in it holds text that is not UTF-8")
        if not isinstance(value, (str, bool, int, float, type(None))):
            raise ValueError(f"the recipe in it holds a {type(value).__name__}")
        return value

    copied_values: dict[str, Any] = copy(values, 0)
    return copied_values


def in_order(problems: Sequence[Problem], *, source: str) -> RecipeError:
    """The problems in the order of the file, then those of the command line."""

    def order(problem: Problem) -> tuple[bool, int, int]:
        place = problem.place or Place(source)
        return place.source.startswith(COMMAND_LINE), place.line, place.column

    return RecipeError(sorted(problems, key=order), source=source)
