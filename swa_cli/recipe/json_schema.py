"""The recipe as a JSON Schema, with which editors complete keys, show what they mean and mark mistakes.

One idea: pydantic writes the schema, and what a recipe file says in other words than Python does (durations are
text, a missing value is no null, some keys go with one kind alone) is put right from the same tables that check it.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from swa_cli.recipe.fields import AVERAGE_PATTERN
from swa_cli.recipe.schema import AVERAGE_KEYS, SCHEDULE_KEYS, Average, Recipe, Schedule
from swa_cli.recipe.sections import all_sections, keys

DIALECT = "https://json-schema.org/draft/2020-12/schema"
BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
Node = dict[str, Any]


def json_schema() -> Node:
    """The schema of a recipe file, of draft 2020-12."""
    whole = Recipe.model_json_schema()
    sections: dict[str, Node] = {"Recipe": whole, **whole.pop("$defs")}
    for model in all_sections(Recipe):
        section = sections[model.__name__]
        section.pop("title", None)
        for key in keys(model):
            node = _as_written(section["properties"][key.name])
            is_plain = key.default is not None and key.section is None
            node |= {"description": key.description} | ({"default": key.default} if is_plain else {})
            node |= {"pattern": key.pattern} if key.pattern else {}
            section["properties"][key.name] = node
    sections["Schedule"]["allOf"] = [_of_shape(name) for name in SCHEDULE_KEYS]
    sections["Average"]["allOf"] = [_of_kind(kind) for kind in sections["Average"]["properties"]["kind"]["enum"]]
    whole["properties"]["averages"]["propertyNames"] = {"pattern": AVERAGE_PATTERN}
    return {"$schema": DIALECT, "title": "Recipe of swa", **whole, "$defs": _without(sections, {"Recipe"})}


def _as_written(node: Node) -> Node:
    """What may stand in a recipe: no null, and bounds by their names (pydantic leaves Python's beside a null)."""
    choices = [choice for choice in node.get("anyOf", ()) if choice != {"type": "null"}]
    rest = _without(node, {"anyOf", "default", "title"})
    if len(choices) == 1:
        rest |= choices[0]
    elif choices:
        rest["anyOf"] = choices
    return {BOUNDS.get(name, name): value for name, value in rest.items()}


def _of_shape(name: str) -> Node:
    """What a schedule of this name must and may have."""
    required, optional = SCHEDULE_KEYS[name]
    is_default = name == Schedule.model_fields["name"].default
    condition = {"properties": {"name": {"const": name}}, **({} if is_default else {"required": ["name"]})}
    takes = {"propertyNames": {"enum": ["name", *sorted(required | optional)]}}
    return {"if": condition, "then": takes | ({"required": sorted(required)} if required else {})}


def _of_kind(kind: str) -> Node:
    """What an average of this kind may have."""
    takes = [key for key in Average.model_fields if AVERAGE_KEYS.get(key, kind) == kind]
    return {
        "if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]},
        "then": {"propertyNames": {"enum": takes}},
    }


def _without(values: Mapping[str, Any], names: Set[str]) -> Node:
    return {name: value for name, value in values.items() if name not in names}
