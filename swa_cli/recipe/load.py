"""Load a recipe from YAML and KEY=VALUE words, or raise every problem with its place.

One idea: YAML is parsed as a tree of sections, lists and texts, without aliases, tags or guesses at types. Each text
goes to the schema as it is written, and each key keeps its place.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from swa_cli.errors import Place, Problem, RecipeError
from swa_cli.recipe import explain, scalars, yaml_document
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.yaml_document import (
    COMMAND_LINE,
    MAX_DEPTH,
    MAX_NODES,
    KeyPath,
    Spot,
    Tree,
    copied,
    file_text,
    in_order,
    label,
    recipe_path,
)

LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # as PyYAML counts lines

NO_CHARACTER = ("a text has a `\\u` or `\\U` escape of no character", "correct it, or use single quotes")


@dataclass(frozen=True)
class Loaded:
    """A recipe with the places of its keys."""

    recipe: Recipe
    source: str
    _tree: Tree = field(repr=False)

    @property
    def folder(self) -> Path:
        """Return the folder of the recipe, in which the modules that it names are searched."""
        return Path(self.source).parent

    def is_changed(self, path: KeyPath) -> bool:
        """Return whether the value at a path comes from the command line."""
        return self._tree.place(path, at_key=False).source.startswith(COMMAND_LINE)

    def with_seed(self, seed: int) -> Loaded:
        """Return the same recipe with another seed."""
        return replace(self, recipe=self.recipe.model_copy(update={"seed": seed}))

    def with_recipe(self, recipe: Recipe) -> Loaded:
        """Return a recipe that is derived from this one; its problems are shown at the places of this one."""
        return replace(self, recipe=recipe)

    def locate(self, problems: Sequence[Problem]) -> RecipeError:
        """Return the problems of a later check, each placed at its key or at the nearest section in the file."""
        located = []
        for problem in problems:
            place = problem.place or self._tree.place(
                tuple(int(part) if part.isdigit() else part for part in problem.key.split(".")),
                at_key=not explain.is_leaf(problem.key),
            )
            located.append(replace(problem, place=place))
        return in_order(located, source=self.source)


def load(path: Path | str, overrides: Sequence[str] = (), *, allowed: Sequence[str] | None = None) -> Loaded:
    """Read a recipe.

    Args:
        path: The YAML file, or the name of a recipe that comes with swa, such as `digits`.
        overrides: Words such as `optimizer.lr=0.2`, or `swa=null` to remove a section; later ones win. Below `args`
            null is a value.
        allowed: Patterns of the keys that may be changed, such as `dataset.*`; all of them if left out.

    Raises:
        RecipeError: Every problem of the recipe.
        UserError: The file is missing, cannot be read or is not text.
    """
    path = recipe_path(path)
    source = str(path)
    return _checked(_read_yaml(file_text(path), source=source), overrides, allowed=allowed)


def from_values(
    values: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    source: str,
    allowed: Sequence[str] | None = None,
) -> Loaded:
    """Return the recipe that a checkpoint holds.

    Args:
        values: The result of `Recipe.model_dump(mode="json")`.
        overrides: Words such as `dataset.root=/data`; later ones win.
        source: Path of the checkpoint.
        allowed: Patterns of the keys that may be changed, such as `dataset.*`; all of them if left out.

    Raises:
        RecipeError: Every problem of the recipe.
    """
    tree = Tree(source)
    try:
        tree.values.update(copied(values))
    except ValueError as error:
        problem = Problem("", str(error), "name another file", Place(source))
        raise RecipeError([problem], source=source) from error
    return _checked(tree, overrides, allowed=allowed)


def is_among(word: str, patterns: Sequence[str]) -> bool:
    """Return whether the key of KEY=VALUE matches one of the patterns, such as `dataset.*`."""
    key = word.partition("=")[0].strip()
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def differences(before: Recipe, now: Recipe, *, ignored: Sequence[str] = ()) -> list[tuple[str, object, object]]:
    """Return dotted key, value before and value now of every difference.

    Args:
        before: The first recipe.
        now: The second recipe.
        ignored: Patterns of keys that may differ.
    """
    first, second = (dict(_leaves(recipe.model_dump(mode="json", exclude_none=True))) for recipe in (before, now))
    pairs = [(key, first.get(key, "left out"), second.get(key, "left out")) for key in dict.fromkeys([*first, *second])]
    return [
        (key, value, other)
        for key, value, other in pairs
        if value != other and not any(fnmatch.fnmatchcase(key, pattern) for pattern in ignored)
    ]


def _leaves(values: Mapping[str, Any], *, above: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, above=f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def dump(recipe: Recipe) -> str:
    """Return YAML text that loads as the same recipe; keys without a value are left out."""
    values = recipe.model_dump(exclude_none=True)
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _checked(tree: Tree, overrides: Sequence[str], *, allowed: Sequence[str] | None = None) -> Loaded:
    """Apply the overrides and return the recipe, or raise every problem."""
    for word in overrides:
        tree.problems.extend(_override(tree, word, allowed=allowed))
    explain.add_misplaced(tree)
    recipe = None
    try:
        recipe = Recipe.model_validate(tree.values)
    except ValidationError as error:
        explain.explain(error, tree)
    if tree.problems or recipe is None:
        raise in_order(tree.problems, source=tree.source)
    return Loaded(recipe, tree.source, tree)


def _override(tree: Tree, word: str, *, allowed: Sequence[str] | None) -> Iterator[Problem]:
    """Put KEY=VALUE into the tree; yield the problem if that is not possible."""
    place = Place(COMMAND_LINE + word)
    key, equals, text = (part.strip() for part in word.partition("="))
    if not equals:
        yield Problem(key, "has no value", f"write {key or 'KEY'}=VALUE, without spaces", place)
    elif not all(key.split(".")):
        yield Problem(key, "is not a key", "write section and key with a dot, such as optimizer.lr=0.1", place)
    elif not scalars.is_utf8(word):
        yield Problem(key, "has bytes that are not UTF-8", "rename what it names, or correct the text", place)
    elif allowed is not None and not is_among(word, allowed):
        yield Problem(key, "cannot be changed here", f"only {', '.join(allowed)} may be changed here", place)
    elif text and scalars.is_null(scalars.Plain(text)) and not explain.is_argument(key):
        if not tree.remove(key):
            yield Problem(key, "is not in the recipe: there is nothing to remove", "leave the change out", place)
    elif text[:1] not in ("[", "{", '"', "'"):
        yield from tree.put(key, scalars.Plain(text), place)
    else:
        reader = _Reader(text, source=tree.source)
        try:
            value, problems = reader.document(), reader.tree.problems
        except RecipeError as error:
            hint = f"put the word in quotes for the shell, such as '{key}=[a, b]'"
            value, problems = None, [replace(problem, hint=hint) for problem in error.problems]
        yield from (replace(problem, key=key, place=place) for problem in problems)
        yield from () if problems else tree.put(key, value, place)


def _read_yaml(text: str, *, source: str) -> Tree:
    """Return the tree of a recipe file, with its problems as YAML."""
    reader = _Reader(text, source=source)
    root = reader.document()
    if isinstance(root, dict):
        reader.tree.values.update(root)
        return reader.tree
    message = "the recipe is empty" if scalars.is_null(root) else "the recipe has no keys"
    hint = "write at least model.name, dataset.name, optimizer.lr and train.epochs"
    raise in_order([*reader.tree.problems, Problem("", message, hint, Place(source))], source=source)


class _Reader:
    """Builds a tree from the events of PyYAML's parser; nothing is expanded or guessed."""

    def __init__(self, text: str, *, source: str) -> None:
        self.tree = Tree(source)
        self._text = text
        self._lines = LINE_BREAK.split(text)
        self._events = yaml.parse(text, Loader=yaml.SafeLoader)
        self._end = yaml.Mark("", 0, 0, 0, None, None)  # of the last event
        self._num_nodes = 0

    def document(self) -> object:
        """Return the value of the text, which must be a single document; `tree` collects problems.

        Raises:
            RecipeError: The text is not YAML.
        """
        self._next()  # the stream begins
        if isinstance(self._next(), yaml.StreamEndEvent):
            return scalars.Plain("")
        root = self._node(self._next(), (), depth=0)
        self._next()  # the document ends
        event = self._next()
        if not isinstance(event, yaml.StreamEndEvent):
            place = self._place(event.start_mark, event.end_mark)
            self._complain((), "a second document begins here", "keep one recipe in a file", place)
        return root

    def _next(self) -> yaml.Event:
        try:
            event = next(self._events)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            if yaml_document.is_left_open(error.problem or "", context=error.context or ""):
                mark = error.context_mark or mark
            said = yaml_document.meaning(error.problem or "", context=error.context or "")
            place = self._place(mark, mark)
        except yaml.reader.ReaderError as error:
            *before, last = LINE_BREAK.split(self._text[: error.position])
            said = yaml_document.meaning(error.reason)
            place = Place(self.tree.source, len(before) + 1, len(last) + 1, 1, self._lines[len(before)])
        except (ValueError, OverflowError):  # of chr(), for an escape such as "\UFFFFFFFF"
            said = NO_CHARACTER
            place = Place(self.tree.source)
        else:
            self._end = event.end_mark
            if not isinstance(event, yaml.ScalarEvent) or scalars.is_utf8(event.value):
                return event
            said, place = NO_CHARACTER, self._place(event.start_mark, event.end_mark)
        raise self._fatal(*said, place)

    def _node(self, event: yaml.Event, path: KeyPath, *, depth: int) -> Any:
        """Return the value that begins with this event: a section, a list or text."""
        self._num_nodes += 1
        if depth > MAX_DEPTH or self._num_nodes > MAX_NODES:
            reason = "is nested too deeply" if depth > MAX_DEPTH else "is longer than any recipe"
            place = self._place(event.start_mark, event.end_mark)
            raise self._fatal(f"the recipe {reason}", "give the file of a recipe", place)
        self._refuse_names_and_types(event, path)
        if isinstance(event, yaml.MappingStartEvent):
            return self._section(path, depth=depth)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._list(path, depth=depth)
        if isinstance(event, yaml.ScalarEvent):
            return str(event.value) if event.style else scalars.Plain(event.value)
        return scalars.Plain("")  # an alias

    def _section(self, path: KeyPath, *, depth: int) -> dict[str, Any]:
        section: dict[str, Any] = {}
        lines: dict[str, int] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            place = self._place(event.start_mark, event.end_mark)
            key = self._key(event, path, place, depth=depth)
            if key in lines:
                hint = "keep one of the two"
                self._complain((*path, key), f"duplicate key, it is already in line {lines[key]}", hint, place)
                key = None
            below = (*path, -1 if key is None else key)  # -1: the value is parsed and discarded
            value = self._value(self._next(), below, depth=depth, key_place=place)
            if key is not None:
                section[key], lines[key] = value, place.line
        return section

    def _list(self, path: KeyPath, *, depth: int) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            items.append(self._value(event, (*path, len(items)), depth=depth))
        return items

    def _value(self, event: yaml.Event, path: KeyPath, *, depth: int, key_place: Place | None = None) -> Any:
        """Return the value at a path and keep its place; an empty value has the place of its key."""
        value = self._node(event, path, depth=depth + 1)
        place = self._place(event.start_mark, self._end)
        if value == "" and isinstance(value, scalars.Plain):
            place = key_place or place
        self.tree.spots[path] = Spot(key_place or place, place)
        return value

    def _key(self, event: yaml.Event, path: KeyPath, place: Place, *, depth: int) -> str | None:
        """Return the text of a key; None, and a problem, if it is not text."""
        if not isinstance(event, yaml.ScalarEvent):
            self._node(event, (*path, -1), depth=depth + 1)
            self._complain(path, "a key is not text", "write `key: value`", place)
            return None
        self._refuse_names_and_types(event, path)
        key = str(event.value)
        if event.style:
            return key
        if key == "<<":
            self.tree.opaque.add(path)
            self._complain(path, "merge keys (`<<`) are not read", "write the keys out", place)
            return None
        if not scalars.is_text(key):
            message = f"the key {scalars.shown(key)} is not text" if key else "a key is missing before the `:`"
            self._complain(path, message, f'write "{key}" in quotes' if key else "write `key: value`", place)
            return None
        return key

    def _refuse_names_and_types(self, event: yaml.Event, path: KeyPath) -> None:
        if isinstance(event, yaml.AliasEvent):
            words = f"aliases (`*{event.anchor}`) are not read", "write the value out"
        elif event.anchor is not None:
            words = (
                f"anchors (`&{event.anchor}`) are not read",
                "remove it, and write the values out where needed",
            )
        elif event.tag is not None:
            words = f"types (`{event.tag}`) are not read", "remove it: each key knows its type"
        else:
            return
        if event.anchor is None or isinstance(event, yaml.AliasEvent):
            self.tree.opaque.add(path)
        self._complain(path, *words, self._place(event.start_mark, event.end_mark))

    def _complain(self, path: KeyPath, message: str, hint: str, place: Place) -> None:
        self.tree.problems.append(Problem(label(path), message, hint, place))

    def _fatal(self, message: str, hint: str, place: Place) -> RecipeError:
        self._complain((), message, hint, place)
        return in_order(self.tree.problems, source=self.tree.source)

    def _place(self, start: yaml.Mark, end: yaml.Mark) -> Place:
        """Return the place from one mark to the other, or to the end of the first line."""
        text = self._lines[start.line] if start.line < len(self._lines) else ""
        last = end.column if end.line == start.line else len(text.rstrip())
        return Place(self.tree.source, start.line + 1, start.column + 1, max(last - start.column, 1), text)


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
