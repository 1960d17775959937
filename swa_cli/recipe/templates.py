"""Recipes to start from: the template of `swa new`, the JSON Schema, the shipped recipes.

One idea: template and JSON Schema are derived from the schema and its tables, so neither lists a key of its own. The
template writes out only what a task needs; every other key is commented out with its default. The JSON Schema is
pydantic's, corrected where a recipe file differs from Python (durations are text, a missing value is not null, some
keys belong to one schedule or kind).

The shipped recipes are the files of the folder `recipes/` of the repository, to which `shipped` beside this file is a
link; an installed package has copies in its place. The comment at the top of a recipe describes it.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from swa_cli.errors import UserError
from swa_cli.recipe.explain import section_of
from swa_cli.recipe.kinds import KINDS
from swa_cli.recipe.load import SHIPPED, load, shipped_names, similar_shipped
from swa_cli.recipe.schedules import SCHEDULES
from swa_cli.recipe.schema import SGD_DEFAULTS, Recipe, Schedule
from swa_cli.recipe.schema.output import LOGGERS
from swa_cli.recipe.values import AVERAGE_PATTERN, INTERNAL


@dataclass(frozen=True)
class Key:
    """One key of a section; `section` is the class of the section below it, if it is one."""

    name: str
    description: str
    default: Any  # as in a recipe file; None without one, or if it depends on other keys
    choices: tuple[str, ...]  # empty if any value of the type is possible
    section: type[BaseModel] | None
    many: Literal["", "named", "listed"]  # sections by user-defined names, or a list of sections
    pattern: str | None  # of its text


def keys(model: type[BaseModel]) -> list[Key]:
    """Return the keys of a section in their order, without internal ones."""
    defaults = model.model_construct().model_dump(mode="json")
    found = []
    for name, info in model.model_fields.items():
        if info.json_schema_extra == INTERNAL:
            continue
        section = section_of(info.annotation)
        origin = get_origin(info.annotation) if section else None
        found.append(
            Key(
                name,
                info.description or (section.__doc__ if section and section.__doc__ else "").rstrip("."),
                default=None if info.is_required() else defaults.get(name),
                choices=tuple(_choices(info.annotation)),
                section=section,
                many="named" if origin is dict else "listed" if origin is list else "",
                pattern=next((about.pattern for about in info.metadata if getattr(about, "pattern", None)), None),
            )
        )
    return found


def all_sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Return the section and every section below it."""
    yield model
    for key in keys(model):
        if key.section is not None:
            yield from all_sections(key.section)


def _choices(annotation: Any) -> Iterator[str]:
    """Return the choices of a field whose only type is a Literal."""
    parts = [part for part in get_args(annotation) if part is not type(None)]
    if get_origin(annotation) is Literal:
        yield from parts
    elif len(parts) == 1:
        yield from _choices(parts[0])


WIDTH = 100
INDENT = "  "
NAME = "NAME"  # placeholder of a user-defined name
# Values that are written out, by dotted key. The data are in the package, or drawn from a seed. In docs/study.md
# a quarter of the rate was chosen for two of three networks, and several weight sets per epoch were better than one.
COMMON = {"schedule.name": "cosine", "swa.start": "75%", "swa.every": "0.25ep", "output.root": "runs"}
STARTS: Mapping[str, Mapping[str, str]] = {
    "classification": {
        "model.name": "convnet",
        "model.args": "{width: 16}",
        "dataset.name": "digits",
        "optimizer.lr": "0.1",
        "swa.lr": "0.025",
        "train.epochs": "20",
        "train.batch_size": "64",
    },
    "segmentation": {
        "model.name": "unet",
        "model.args": "{depth: 2, width: 8}",
        "dataset.name": "shapes",
        "dataset.args": "{size: 32, train: 600, test: 200, classes: 2}",
        "optimizer.lr": "0.1",
        "swa.lr": "0.025",
        "train.epochs": "10",
        "train.batch_size": "16",
    },
    "regression": {
        "model.name": "convnet",
        "model.args": "{width: 16}",
        "dataset.name": "rotated_digits",
        "optimizer.lr": "0.01",
        "swa.lr": "0.0025",
        "train.epochs": "20",
        "train.batch_size": "64",
    },
}
HEAD = """\
# swa train recipe.yaml
# Every key of a recipe. A line that starts with # is left out and shows the default: to set a key, remove its # and
# that of its section. Durations carry their unit: 75% of the run, 23ep, 0.25ep, 200step, 1cycle.
"""


def template_of(task: str) -> str:
    """Return the text of a recipe for one of the tasks in `STARTS`, which trains in seconds."""
    return template({"task": task, **COMMON, **STARTS[task]})


def template(written: Mapping[str, str]) -> str:
    """Return the text of a recipe with some values, by dotted key, as YAML; all other keys are commented out."""
    return HEAD + "".join(f"{line}\n" for line in _section(keys(Recipe), "", written, depth=0))


def _section(
    found: list[Key], path: str, written: Mapping[str, str], *, depth: int, hidden: bool = False
) -> Iterator[str]:
    """Return the lines of a section's keys; all are commented out if `hidden`."""
    for key in found:
        own = f"{path}{key.name}"
        indent = INDENT * depth
        is_written = any(name == own or name.startswith(f"{own}.") for name in written)
        mark = "" if is_written and not hidden else "#"
        if depth == 0 and key.section is not None:
            yield ""
        yield from _comment(key, indent)
        if key.section is None:
            yield f"{mark}{indent}{key.name}: {written.get(own) or _text(key.default)}".rstrip()
            continue
        if own in written:  # a section in one line
            yield f"{mark}{indent}{key.name}: {written[own]}"
            continue
        yield f"{mark}{indent}{key.name}:"
        inner = keys(key.section)
        if key.many == "named":
            yield f"#{indent}{INDENT}{NAME}:"
            yield from _section(inner, f"{own}.{NAME}.", {}, depth=depth + 2, hidden=True)
        elif key.many == "listed":
            yield from _listed(inner, f"{own}.", depth=depth)
        else:
            yield from _section(inner, f"{own}.", written, depth=depth + 1, hidden=bool(mark))
        if own == "optimizer":
            yield f"{indent}{INDENT}# any option of the class; of SGD:"
            yield from (f"#{indent}{INDENT}{name}: {_text(value)}" for name, value in SGD_DEFAULTS.items())


def _listed(inner: list[Key], path: str, *, depth: int) -> Iterator[str]:
    """Return the lines of one item of a list, its first key after the dash."""
    is_first = True
    for line in _section(inner, path, {}, depth=depth + 2, hidden=True):
        if is_first and line.startswith("#"):
            line = line.replace(INDENT * (depth + 2), f"{INDENT * (depth + 1)}- ", 1)
            is_first = False
        yield line


def _comment(key: Key, indent: str) -> list[str]:
    choices = f" ({' | '.join(key.choices)})" if key.choices else ""
    lines = textwrap.wrap(key.description + choices, WIDTH - len(indent), break_long_words=False)
    return [f"{indent}# {line}" for line in lines]


def _text(value: Any) -> str:
    """Write a value as in a recipe; empty without a default."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


DIALECT = "https://json-schema.org/draft/2020-12/schema"
BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
Node = dict[str, Any]


def json_schema() -> Node:
    """Return the JSON Schema of a recipe file, draft 2020-12."""
    whole = Recipe.model_json_schema()
    sections: dict[str, Node] = {"Recipe": whole, **whole.pop("$defs")}
    for model in all_sections(Recipe):
        section = sections[model.__name__]
        section.pop("title", None)
        public = keys(model)
        section["properties"] = {key.name: section["properties"][key.name] for key in public}
        for key in public:
            node = _as_written(section["properties"][key.name])
            is_plain = key.default is not None and key.section is None
            node |= {"description": key.description} | ({"default": key.default} if is_plain else {})
            node |= {"pattern": key.pattern} if key.pattern else {}
            section["properties"][key.name] = node
    sections["Schedule"]["allOf"] = [_of_schedule(name) for name in SCHEDULES]
    sections["Average"]["allOf"] = [_of_kind(kind) for kind in KINDS]
    sections["Logger"]["allOf"] = [_of_logger(name) for name in LOGGERS]
    whole["properties"]["averages"]["propertyNames"] = {"pattern": AVERAGE_PATTERN}
    return {"$schema": DIALECT, "title": "Recipe of swa", **whole, "$defs": _without(sections, {"Recipe"})}


def _as_written(node: Node) -> Node:
    """Return the node of a value in a recipe file: not null, and with JSON Schema's names of bounds."""
    choices = [choice for choice in node.get("anyOf", ()) if choice != {"type": "null"}]
    rest = _without(node, {"anyOf", "default", "title"})
    if len(choices) == 1:
        rest |= choices[0]
    elif choices:
        rest["anyOf"] = choices
    return {BOUNDS.get(name, name): value for name, value in rest.items()}


def _of_schedule(name: str) -> Node:
    """Return the condition with the keys of a schedule of this name."""
    kind = SCHEDULES[name]
    is_default = name == Schedule.model_fields["name"].default
    condition = {"properties": {"name": {"const": name}}, **({} if is_default else {"required": ["name"]})}
    takes = {"propertyNames": {"enum": ["name", *sorted(kind.keys)]}}
    return {"if": condition, "then": takes | ({"required": sorted(kind.required)} if kind.required else {})}


def _of_kind(kind: str) -> Node:
    """Return the condition with the keys of an average of this kind."""
    takes = ["kind", "start", "every", "keep", *KINDS[kind].keys]
    return {
        "if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]},
        "then": {"propertyNames": {"enum": takes}},
    }


def _of_logger(name: str) -> Node:
    """Return the condition with the options of a logger of this name."""
    takes = ["name", *LOGGERS[name].keys]
    return {"if": {"properties": {"name": {"const": name}}}, "then": {"propertyNames": {"enum": takes}}}


def _without(values: Mapping[str, Any], names: Set[str]) -> Node:
    return {name: value for name, value in values.items() if name not in names}


COMMAND = re.compile(r"(\w+: )?swa \w+ ")  # start of a comment line that is a command

SENTENCE_END = re.compile(r"(?<=\.)(?<!et al\.)\s+(?=[A-Z0-9])")


@dataclass(frozen=True)
class Shipped:
    """A shipped recipe; `result` is its measured result, None without one."""

    name: str
    text: str
    recipe: Recipe
    about: str
    result: str | None


def all_shipped() -> list[Shipped]:
    """Return every shipped recipe, sorted by name."""
    return [_read(name) for name in shipped_names()]


def shipped(name: str) -> Shipped:
    """Return the shipped recipe of a name, which may be its path: `recipes/digits.yaml`.

    Raises:
        UserError: No shipped recipe has the name.
    """
    wanted = name.removeprefix("recipes/").removesuffix(".yaml")
    if wanted in shipped_names():
        return _read(wanted)
    close = similar_shipped(name)
    hint = f"did you mean {close}?" if close else "`swa recipes` lists them"
    raise UserError(f"{name}: swa comes with no such recipe", hint=hint)


def _read(name: str) -> Shipped:
    path = SHIPPED / f"{name}.yaml"
    text = path.read_text(encoding="utf-8")
    told = [line[1:].strip() for line in takewhile(lambda line: line.startswith("#"), text.splitlines())]
    words = " ".join(line for line in told if not COMMAND.match(line))
    sentences = SENTENCE_END.split(words) if words else []
    measured = [sentence for sentence in sentences if "±" in sentence or "measured" in sentence]
    about = " ".join(sentence for sentence in sentences if sentence not in measured)
    return Shipped(name, text, load(path).recipe, about, " ".join(measured) or None)
