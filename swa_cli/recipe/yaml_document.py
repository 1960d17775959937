"""A recipe file as a tree of sections, lists and texts with their places, before it is checked.

One idea: YAML is composed without aliases, types or guesses, and a path (a tuple of keys, with numbers for the items of
lists) names a value and its place, so file and command line are changed and reported in the same way. `MEANINGS` turns
what PyYAML expected into what a person wrote wrong, with one action.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from swa_cli.errors import Place, Problem, RecipeError
from swa_cli.recipe import scalars

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
    odd_keys: set[KeyPath] = field(default_factory=set)  # whose last key is no text in YAML, such as a number

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
        self._forget_places(path)
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
        self._forget_places(path)
        return True

    def _forget_places(self, path: KeyPath) -> None:
        for below in [spot for spot in self.spots if spot[: len(path)] == path]:
            del self.spots[below]
        self.odd_keys.difference_update([odd for odd in self.odd_keys if odd[: len(path)] == path])


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


LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # as PyYAML counts lines
NO_CHARACTER = ("a text has a `\\u` or `\\U` escape of no character", "correct it, or use single quotes")


def read(text: str, *, source: str) -> tuple[Any, Tree]:
    """Return the value of YAML text, which is a single document, and a tree of its places and problems.

    Raises:
        RecipeError: The text is not YAML.
    """
    reader = _Reader(text, source=source)
    return reader.document(), reader.tree


class _Reader(yaml.SafeLoader):
    """Composes nodes with PyYAML, then values from them; aliases, anchors and types are reported, not followed."""

    def __init__(self, text: str, *, source: str) -> None:
        self.tree = Tree(source)
        self._lines = LINE_BREAK.split(text)
        self._depth = self._num_values = 0
        self._refused: dict[yaml.Node, tuple[str, str, Place]] = {}  # message, hint, place
        self._anchored: dict[yaml.Node, tuple[str, str, Place]] = {}
        try:
            super().__init__(text)
        except yaml.reader.ReaderError as error:
            *before, last = LINE_BREAK.split(text[: error.position])
            place = Place(source, len(before) + 1, len(last) + 1, 1, self._lines[len(before)])
            raise self._fatal(*meaning(error.reason), place) from error

    def document(self) -> Any:
        """Return the value of the text; `tree` collects places and problems."""
        try:
            self.get_event()  # the stream begins
            if self.check_event(yaml.StreamEndEvent):
                return scalars.Plain("")
            root = self.compose_document()
            if not self.check_event(yaml.StreamEndEvent):
                place = self._place(self.peek_event())
                self._complain((), "a second document begins here", "keep one recipe in a file", place)
        except yaml.MarkedYAMLError as error:
            problem, context = error.problem or "", error.context or ""
            mark = error.problem_mark or error.context_mark
            if is_left_open(problem, context=context):
                mark = error.context_mark or mark
            place = self._between(mark, mark)
            before, above = place.text[: place.column - 1], self._lines[max(place.line - 2, 0)]
            raise self._fatal(*meaning(problem, context=context, before=before, above=above), place) from error
        except (ValueError, OverflowError) as error:  # of chr(), for an escape such as "\UFFFFFFFF"
            raise self._fatal(*NO_CHARACTER, Place(self.tree.source)) from error
        return self._value(root, ())

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        """Compose a key, value or item; PyYAML calls this for each of them."""
        event = self.peek_event()
        place, anchor, tag = self._place(event), event.anchor, getattr(event, "tag", None)
        self._num_values += index is not None  # the root and keys have no index
        if self._depth > MAX_DEPTH or self._num_values > MAX_NODES:
            reason = "is nested too deeply" if self._depth > MAX_DEPTH else "is longer than any recipe"
            raise self._fatal(f"the recipe {reason}", "give the file of a recipe", place)
        if isinstance(event, yaml.AliasEvent):
            self.get_event()
            alias = yaml.ScalarNode("", f"*{anchor}", event.start_mark, event.end_mark, style="'")
            self._refused[alias] = (f"aliases (`*{anchor}`) are not read", "write the value out", place)
            return alias
        event.anchor = None
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        assert node is not None, "an event that is not an alias begins a node"
        if isinstance(node, yaml.ScalarNode) and not scalars.is_utf8(node.value):
            raise self._fatal(*NO_CHARACTER, place)
        if anchor is not None:
            hint = "remove it, and write the values out where needed"
            self._anchored[node] = (f"anchors (`&{anchor}`) are not read", hint, place)
        elif tag is not None:
            self._refused[node] = (f"types (`{tag}`) are not read", "remove it: each key knows its type", place)
        return node

    def _value(self, node: yaml.Node, path: KeyPath, *, key_place: Place | None = None) -> Any:
        """Return the value at a path and keep its place; an empty value has the place of its key."""
        self._report(node, path)
        place = self._place(node)
        value: Any
        if isinstance(node, yaml.MappingNode):
            value = self._section(node, path)
        elif isinstance(node, yaml.SequenceNode):
            value = [self._value(item, (*path, number)) for number, item in enumerate(node.value)]
        elif node.style:
            value = node.value
        else:
            value = scalars.Plain(node.value)
            place = place if value else key_place or place
        if path:
            self.tree.spots[path] = Spot(key_place or place, place)
        return value

    def _section(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        section: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            place = self._place(key_node)
            key = self._key(key_node, path, place)
            if key in lines:
                message = f"duplicate key, it is already in line {lines[key]}"
                self._complain((*path, key), message, "keep one of the two", place)
                key = None
            below = (*path, -1 if key is None else key)  # -1: the value is read and discarded
            value = self._value(value_node, below, key_place=place)
            if key is not None:
                section[key], lines[key] = value, place.line
                if not key_node.style and not scalars.is_text(key):
                    self.tree.odd_keys.add(below)
        return section

    def _key(self, node: yaml.Node, path: KeyPath, place: Place) -> str | None:
        """Return the text of a key; None, and a problem, if it has none."""
        self._report(node, path)
        key = str(node.value)
        if not isinstance(node, yaml.ScalarNode):
            self._complain(path, "a key is not text", "write `key: value`", replace(place, length=1))
        elif node.style:
            return key
        elif key == "<<":
            self.tree.opaque.add(path)
            self._complain(path, "merge keys (`<<`) are not read", "write the keys out", place)
        elif not key:
            self._complain(path, "a key is missing before the `:`", "write `key: value`", place)
        else:
            return key
        return None

    def _report(self, node: yaml.Node, path: KeyPath) -> None:
        """Report the alias, anchor or type of a node."""
        if node in self._refused:
            self.tree.opaque.add(path)
            self._complain(path, *self._refused[node])
        elif node in self._anchored:
            self._complain(path, *self._anchored[node])

    def _complain(self, path: KeyPath, message: str, hint: str, place: Place) -> None:
        self.tree.problems.append(Problem(label(path), message, hint, place))

    def _fatal(self, message: str, hint: str, place: Place) -> RecipeError:
        return RecipeError([Problem("", message, hint, place)], source=self.tree.source)

    def _place(self, at: yaml.Node | yaml.Event) -> Place:
        return self._between(at.start_mark, at.end_mark)

    def _between(self, start: yaml.Mark, end: yaml.Mark) -> Place:
        """Return the place from one mark to the other, or to the end of the first line."""
        text = self._lines[start.line] if start.line < len(self._lines) else ""
        last = end.column if end.line == start.line else len(text.rstrip())
        return Place(self.tree.source, start.line + 1, start.column + 1, max(last - start.column, 1), text)


def dump(values: Mapping[str, Any]) -> str:
    """Return YAML text from which `read` returns the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """Writes text so that `scalars` parses it as text again, and lists in one line."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = None if scalars.is_text(text) and text.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    def represent_list(self, items: list[object]) -> yaml.SequenceNode:
        return self.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)


_Dumper.add_representer(str, _Dumper.represent_text)
_Dumper.add_representer(list, _Dumper.represent_list)


# Pattern in PyYAML's message and context -> what is wrong, what to do. The first that fits is taken.
MEANINGS: tuple[tuple[str, str, str], ...] = (
    (r"'\\t' that cannot start", "a tab indents this line", "indent with spaces, YAML takes no tabs"),
    (
        "cannot start any token|scanning an? (anchor|alias|tag)|parsing a node|directive|YAML document|mapping keys",
        "text cannot begin with this character",
        "put the text in quotes",
    ),
    (
        "mapping values",
        "a second `:` in the line, or a line indented too far",
        "align the line with the keys of its section, or put the text in quotes",
    ),
    ("find expected ':'", "a key without `: ` and a value", "write `key: value`, with a space after the colon"),
    ("sequence entries", "a list begins where none can", "begin the list in a line of its own, or write [a, b]"),
    (
        "node content",
        "a value is missing, or it begins with a character of YAML",
        "close every bracket, or put the text in quotes",
    ),
    ("but found '[]}]'", "a bracket is closed that was not opened", "remove it"),
    ("found '<scalar>'", "text stands after the end of the value", "put the whole value in quotes"),
    ("parsing a flow mapping", "a `{` is not closed, or a comma is missing", "write {key: value, key: value}"),
    ("parsing a flow sequence", "a `[` is not closed, or a comma is missing", "write [a, b]"),
    ("a quoted scalar", "a quote is not closed", "close the text with the quote that opened it"),
    ("a double-quoted scalar", "a backslash in double quotes that means nothing", r"use single quotes, or write \\"),
    (
        "parsing a block (mapping|collection)|<document start>",
        "this line does not line up with the keys above it, or with the items of its list",
        "align it: keys of a section are two spaces deeper than the section",
    ),
    ("a block scalar", "text after `|` or `>` is not indented as it should be", "write it in one line, in quotes"),
    ("special characters", "an invisible control character", "remove it"),
)


def is_left_open(problem: str, *, context: str) -> bool:
    """Return whether the mistake is where the parser started (a bracket, a quote), not where it stopped."""
    unclosed_bracket = "while parsing a flow" in context and "','" in problem
    return unclosed_bracket or "end of stream" in problem or "could not find expected ':'" in problem


def meaning(problem: str, *, context: str = "", before: str = "", above: str = "") -> tuple[str, str]:
    """Return message and hint for an error of PyYAML; `before` is the line up to it, `above` the line above it."""
    if r"'\t' that cannot start" in problem and before.strip():
        return "a tab stands beside a value", "write a space in its place"
    if "mapping values" in problem and (glued := re.fullmatch(r"\s*(\w+):(\w\S*)\s*", above)):
        return "the line above has no space after its `:`", f"write `{glued[1]}: {glued[2]}` there"
    for pattern, message, hint in MEANINGS:
        if re.search(pattern, f"{problem} {context}"):
            return message, hint
    return "this is not YAML", "write `key: value` lines, and indent the keys of a section with two spaces"
