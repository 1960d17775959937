"""Load a recipe from YAML and KEY=VALUE words, or raise every problem with its place.

One idea: each text of the tree that `yaml_document` reads goes to the schema as it is written, and each key keeps its
place. A file that is not a recipe (a folder, a checkpoint) is refused before it is parsed.
"""

from __future__ import annotations

import copy
import difflib
import fnmatch
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from swa_cli.errors import Place, Problem, RecipeError, UserError
from swa_cli.recipe import explain, scalars, yaml_document
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.yaml_document import (
    COMMAND_LINE,
    KeyPath,
    Tree,
    copied,
    in_order,
)

MAX_BYTES = 1 << 20
SHIPPED = Path(__file__).parent / "shipped"  # the folder `recipes` of the repository; installed, its files


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

    def with_changes(self, overrides: Sequence[str]) -> Loaded:
        """Return the recipe, as it is written, with further KEY=VALUE words; `null` may remove what is not there."""
        tree = Tree(self.source, copy.deepcopy(self._tree.values), dict(self._tree.spots))
        return _checked(tree, overrides, may_be_absent=True)

    def with_seed(self, seed: int) -> Loaded:
        """Return the same recipe with another seed."""
        return replace(self, recipe=self.recipe.model_copy(update={"seed": seed}))

    def with_recipe(self, recipe: Recipe) -> Loaded:
        """Return a recipe that is derived from this one; its problems are shown at the places of this one."""
        return replace(self, recipe=recipe)

    def problems_of(self, error: UserError | RecipeError) -> list[Problem]:
        """Return the problems of a later check; none where its message does not begin with a key (`model.name: `)."""
        if isinstance(error, RecipeError):
            return list(error.problems)
        key, colon, message = error.message.partition(": ")
        return [Problem(key, message, error.hint)] if colon and explain.is_key(key) else []

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
    """Read a YAML file, or a recipe that comes with swa, such as `digits`.

    `overrides` are words such as `optimizer.lr=0.2`, or `swa=null` to remove a section; later ones win. Below `args`
    null is a value. `allowed` are patterns of the keys that may be changed, such as `dataset.*`; None: all.

    Raises:
        RecipeError: Every problem of the recipe.
        UserError: The file is missing, cannot be read or is not text.
    """
    path = _recipe_path(path)
    source = str(path)
    return _checked(_read_yaml(_file_text(path), source=source), overrides, allowed=allowed)


def from_values(
    values: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    source: str,
    allowed: Sequence[str] | None = None,
) -> Loaded:
    """Return the recipe that the checkpoint `source` holds, as `Recipe.model_dump(mode="json")` returned it.

    `overrides` and `allowed` as in `load`.

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


def shipped_names() -> list[str]:
    """Return the names of the recipes that come with swa."""
    return sorted(path.relative_to(SHIPPED).with_suffix("").as_posix() for path in SHIPPED.rglob("*.yaml"))


def similar_shipped(name: str) -> str | None:
    """Return the shipped recipe that a mistyped name or path most likely means, also without its folder."""
    names = shipped_names()
    spelling = {name.rpartition("/")[2]: name for name in names} | {name: name for name in names}
    wanted = name.removeprefix("recipes/").removesuffix(".yaml").lower()
    for word in (wanted, wanted.rpartition("/")[2]):
        if close := difflib.get_close_matches(word, spelling, n=1):
            return spelling[close[0]]
    return None


def is_among(word: str, patterns: Sequence[str]) -> bool:
    """Return whether the key of KEY=VALUE matches one of the patterns, such as `dataset.*`."""
    key = word.partition("=")[0].strip()
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def differences(before: Recipe, now: Recipe, *, ignored: Sequence[str] = ()) -> list[tuple[str, object, object]]:
    """Return dotted key, value before and value now of every difference; `ignored` are patterns of keys.

    An empty section differs from one with keys in these keys alone.
    """
    first, second = (leaves(recipe, ignored=ignored) for recipe in (before, now))
    keys = dict.fromkeys([*first, *second])
    sections = {key[:place] for key in keys for place, char in enumerate(key) if char == "."}
    pairs = [(key, first.get(key, "left out"), second.get(key, "left out")) for key in keys]
    return [
        (key, value, other)
        for key, value, other in pairs
        if value != other and not (key in sections and {} in (value, other))
    ]


def leaves(recipe: Recipe, *, ignored: Sequence[str] = ()) -> dict[str, object]:
    """Return every value of a recipe by its dotted key; `ignored` are patterns of keys."""
    every = _leaves(recipe.values())
    return {key: value for key, value in every if not any(fnmatch.fnmatchcase(key, pattern) for pattern in ignored)}


def _leaves(values: Mapping[str, Any], *, above: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, above=f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def dump(recipe: Recipe) -> str:
    """Return YAML text that loads as the same recipe; keys without a value are left out."""
    return yaml_document.dump(recipe.model_dump(exclude_none=True))


def _recipe_path(word: Path | str) -> Path | str:
    """Return the file of a shipped recipe if a word is its name and no such file exists; else the word."""
    name = str(word)
    return SHIPPED / f"{name}.yaml" if name in shipped_names() and not os.path.isfile(name) else word


def _file_text(path: Path | str) -> str:
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
    close_name = similar_shipped(str(path))
    return f"did you mean {close_name}, which comes with swa?" if close_name else None


def _checked(
    tree: Tree, overrides: Sequence[str], *, allowed: Sequence[str] | None = None, may_be_absent: bool = False
) -> Loaded:
    """Apply the overrides and return the recipe, or raise every problem."""
    for word in overrides:
        tree.problems.extend(_override(tree, word, allowed=allowed, may_be_absent=may_be_absent))
    explain.add_odd_keys(tree)
    explain.add_misplaced(tree)
    recipe = None
    try:
        recipe = Recipe.model_validate(tree.values)
    except ValidationError as error:
        explain.explain(error, tree)
    if tree.problems or recipe is None:
        raise in_order(tree.problems, source=tree.source)
    return Loaded(recipe, tree.source, tree)


def _override(tree: Tree, word: str, *, allowed: Sequence[str] | None, may_be_absent: bool) -> Iterator[Problem]:
    """Put KEY=VALUE into the tree; yield the problem if that is not possible."""
    place = Place(COMMAND_LINE + word)
    key, equals, text = (part.strip() for part in word.partition("="))
    if not equals:
        if _is_source(key):
            yield Problem(key, "is not KEY=VALUE", "name one recipe, run or checkpoint", place)
        else:
            yield Problem(key, "has no value", f"write {key or 'KEY'}=VALUE, without spaces", place)
    elif not all(key.split(".")):
        yield Problem(key, "is not a key", "write section and key with a dot, such as optimizer.lr=0.1", place)
    elif not scalars.is_utf8(word):
        yield Problem(key, "has bytes that are not UTF-8", "rename what it names, or correct the text", place)
    elif allowed is not None and not is_among(word, allowed):
        hint = f"only {', '.join(allowed)} may be changed here" if allowed else "leave the change out"
        yield Problem(key, "cannot be changed here", hint, place)
    elif text and scalars.is_null(scalars.Word(text)) and not explain.is_argument(key):
        if not tree.remove(key) and not may_be_absent:
            yield Problem(key, "is not in the recipe: there is nothing to remove", "leave the change out", place)
    elif text[:1] not in ("[", "{", '"', "'"):
        yield from tree.put(key, scalars.Word(text), place)
    else:
        problems: Sequence[Problem]
        try:
            value, read = yaml_document.read(text, source=tree.source)
            problems = read.problems
        except RecipeError as error:
            hint = f"put the word in quotes for the shell, such as '{key}=[a, b]'"
            value, problems = None, [replace(problem, hint=hint) for problem in error.problems]
        yield from (replace(problem, key=key, place=place) for problem in problems)
        yield from () if problems else tree.put(key, value, place)
        tree.odd_keys.update((*key.split("."), *path) for path in ([] if problems else read.odd_keys))


def _is_source(word: str) -> bool:
    """Return whether a word without `=` is a recipe, a run or a checkpoint, and not a key."""
    return not explain.is_key(word) and (
        word.endswith((".yaml", ".yml")) or word in shipped_names() or os.path.exists(word)
    )


def _read_yaml(text: str, *, source: str) -> Tree:
    """Return the tree of a recipe file, with its problems as YAML."""
    root, tree = yaml_document.read(text, source=source)
    if isinstance(root, dict):
        tree.values.update(root)
        return tree
    message = "the recipe is empty" if scalars.is_null(root) else "the recipe has no keys"
    hint = "write at least model.name, dataset.name, optimizer.lr and train.epochs"
    raise in_order([*tree.problems, Problem("", message, hint, Place(source))], source=source)
