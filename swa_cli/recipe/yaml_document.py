"""The text of a recipe file as a tree of values with places, before it is checked.

One idea: a path (a tuple of keys, with numbers for the items of lists) names a value and its place, so file and command
line are changed and reported in the same way. A file that is no recipe (a folder, a checkpoint) is refused before it is
parsed. `MEANINGS` turns what PyYAML expected into what a person wrote wrong, with one action.
"""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swa_cli.errors import Place, Problem, RecipeError, UserError
from swa_cli.recipe import scalars

MAX_BYTES = 1 << 20
SHIPPED = Path(__file__).parent / "shipped"  # the folder `recipes` of the repository; installed, its files


def shipped_names() -> list[str]:
    """Return the names of the recipes that come with swa."""
    return sorted(path.relative_to(SHIPPED).with_suffix("").as_posix() for path in SHIPPED.rglob("*.yaml"))


def recipe_path(word: Path | str) -> Path | str:
    """Return the file of a shipped recipe if a word is its name and no such file exists; else the word."""
    name = str(word)
    return SHIPPED / f"{name}.yaml" if name in shipped_names() and not os.path.isfile(name) else word


def file_text(path: Path | str) -> str:
    """Return the text of a recipe file.

    Raises:
        UserError: The file is missing, cannot be read, is larger than `MAX_BYTES` or is not text.
    """
    hint = "name a recipe, a YAML file"
    if not scalars.is_utf8(str(Path(path).absolute())):  # a run records where its recipe lay
        raise UserError(f"{path}: its path has bytes that are not UTF-8", hint="rename the file or its folder")
    try:
        # O_NONBLOCK: opening a pipe without a writer would wait forever.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"{path}: is no regular file", hint=hint)
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file", hint=_similar_recipe(Path(path)) or hint) from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a folder", hint=f"{hint} in it") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"{path}: cannot be read ({reason})", hint=hint) from error
    if len(data) > MAX_BYTES:
        raise UserError(f"{path}: is larger than any recipe ({MAX_BYTES >> 20} MiB)", hint=hint)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: is not text in UTF-8 (line {line})", hint=f"{hint} in UTF-8") from error
    if "\0" in text:
        raise UserError(f"{path}: is not a text file", hint=hint)
    return text


def _similar_recipe(path: Path) -> str | None:
    """Return a hint at a recipe in the same folder, or at a shipped one, with a similar name."""
    try:
        names = [item.name for item in path.parent.iterdir() if item.suffix in (".yaml", ".yml")]
    except (OSError, ValueError):
        names = []
    if close := difflib.get_close_matches(path.name, names, n=1):
        return f"did you mean {path.parent / close[0]}?"
    close = difflib.get_close_matches(path.stem, shipped_names(), n=1)
    return f"did you mean {close[0]}, which comes with swa?" if close else None


KeyPath = tuple[str | int, ...]
MAX_DEPTH = 20
MAX_NODES = 5000  # a recipe has about a hundred; a larger file would take minutes
COMMAND_LINE = "command line: "  # how the source of an override begins


@dataclass(frozen=True)
class Spot:
    """The places of a key and its value."""

    key: Place
    value: Place


@dataclass(frozen=True)
class Tree:
    """Sections, lists and texts with their places; paths in `opaque` could not be read and get no more problems."""

    source: str
    values: dict[str, Any] = field(default_factory=dict)
    spots: dict[KeyPath, Spot] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    opaque: set[KeyPath] = field(default_factory=set)
    complained: set[KeyPath] = field(default_factory=set)  # paths that have a problem

    def place(self, path: KeyPath, *, at_key: bool) -> Place:
        """Return the place of a path, else that of the nearest section around it, else the file."""
        if path in self.spots:
            return self.spots[path].key if at_key else self.spots[path].value
        for length in range(len(path) - 1, 0, -1):
            if path[:length] in self.spots:
                return self.spots[path[:length]].key
        return Place(self.source)

    def add_problem(self, path: KeyPath, message: str, hint: str, *, at_key: bool = False) -> None:
        """Add a problem at a path; only the first of a path counts, and none of a path that could not be read."""
        if path not in self.complained and not self.is_opaque(path):
            self.complained.add(path)
            self.problems.append(Problem(label(path), message, hint, self.place(path, at_key=at_key)))

    def is_opaque(self, path: KeyPath) -> bool:
        """Return whether the path, or a section around it, could not be read."""
        return any(path[:length] in self.opaque for length in range(len(path) + 1))

    def put(self, key: str, value: object, place: Place) -> Iterator[Problem]:
        """Set a dotted key and create the sections that it needs; yield the problem if that is not possible."""
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
        """Remove a dotted key with everything below it; return whether it was there."""
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


def label(path: KeyPath) -> str:
    """Write a path as a person does; the caret of the message shows the place in a list."""
    return ".".join(part for part in path if isinstance(part, str))


def copied(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of stored values.

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
    """Return the problems in the order of the file, then those of the command line."""

    def order(problem: Problem) -> tuple[bool, int, int]:
        place = problem.place or Place(source)
        return place.source.startswith(COMMAND_LINE), place.line, place.column

    return RecipeError(sorted(problems, key=order), source=source)


# Words of PyYAML's message (or of its context) -> what is wrong, what to do. The first that fits is taken.
MEANINGS: tuple[tuple[str, str, str], ...] = (
    ("'\\t' that cannot start", "a tab indents this line", "indent with spaces, YAML takes no tabs"),
    ("that cannot start any token", "text cannot begin with this character", "put the text in quotes"),
    (
        "mapping values are not allowed",
        "a second `:` in the line, or a line indented too far",
        "align the line with the keys of its section, or put the text in quotes",
    ),
    (
        "could not find expected ':'",
        "a key without `: ` and a value",
        "write `key: value`, with a space after the colon",
    ),
    (
        "sequence entries are not allowed",
        "a list begins where none can",
        "begin the list in a line of its own, or write [a, b]",
    ),
    (
        "expected the node content",
        "a value is missing, or it begins with a character of YAML",
        "close every bracket, or put the text in quotes",
    ),
    ("but found '<scalar>'", "text stands after the end of the value", "put the whole value in quotes"),
    ("mapping keys are not allowed", "a `?` where none can be", "put the text in quotes"),
    (
        "while parsing a flow mapping",
        "a `{` is not closed, or a comma is missing",
        "write {key: value, key: value}",
    ),
    ("while parsing a flow sequence", "a `[` is not closed, or a comma is missing", "write [a, b]"),
    (
        "while scanning a quoted scalar",
        "a quote is not closed",
        "close the text with the quote that opened it",
    ),
    (
        "while scanning a double-quoted scalar",
        "a backslash in double quotes that means nothing",
        "use single quotes, or write \\\\ for a backslash",
    ),
    (
        "while parsing a block mapping",
        "this line does not line up with the keys above it",
        "align the keys of a section, two spaces deeper than the section",
    ),
    (
        "while parsing a block collection",
        "this line does not line up with the list above it",
        "align the items of the list",
    ),
    (
        "while scanning a block scalar",
        "text after `|` or `>` is not indented as it should be",
        "write the text in one line, in quotes",
    ),
    ("while scanning an anchor", "`&` begins a name of YAML", "put the text in quotes"),
    ("while scanning an alias", "`*` begins a name of YAML", "put the text in quotes"),
    ("while scanning a tag", "`!` begins a type of YAML", "put the text in quotes"),
    ("while parsing a node", "`!` begins a type of YAML", "put the text in quotes"),
    ("directive", "a `%` begins the line", "put the text in quotes"),
    ("YAML document", "a `%` begins the line", "put the text in quotes"),
    ("special characters are not allowed", "an invisible control character", "remove it"),
    ("expected '<document start>'", "this line belongs to no section", "align it with the keys above it"),
)


def is_left_open(problem: str, *, context: str) -> bool:
    """Return whether the mistake is where the parser started (a bracket, a quote), not where it stopped."""
    unclosed_bracket = "while parsing a flow" in context and "','" in problem
    return unclosed_bracket or "end of stream" in problem or "could not find expected ':'" in problem


def meaning(problem: str, *, context: str = "") -> tuple[str, str]:
    """Return message and hint for an error of PyYAML."""
    said = f"{problem} {context}"
    for words, message, hint in MEANINGS:
        if words in said:
            return message, hint
    return "this is not YAML", "write `key: value` lines, and indent the keys of a section with two spaces"
