"""The pages of the site that are made when it is built, from README and from the code: none can be out of date."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel

import swa_cli
from swa_cli.cli import app
from swa_cli.recipe.kinds import KINDS
from swa_cli.recipe.schedules import SCHEDULES
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.templates import Key, json_schema, keys

ROOT = Path(__file__).parent.parent


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name the version in the head of each page."""
    config.site_name = f"swa {swa_cli.__version__}"
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    for name, content in pages().items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Name files of the source instead of linking to them: the site does not hold them."""
    return re.sub(r"\[([^\]]*)\]\(\.\./((?!own_loop)[\w/.]+)\)", r"\1 (`\2`)", markdown)


def pages() -> dict[str, str]:
    """Return each page that is made, by its path in the site."""
    return {
        "index.md": from_root("README.md"),
        "contributing.md": from_root("CONTRIBUTING.md"),
        "changelog.md": from_root("CHANGELOG.md"),
        "reference/keys.md": "\n".join(["# Every key of a recipe", "", *key_lines(Recipe, "", 2)]),
        "reference/kinds.md": "\n".join(kind_lines()),
        "reference/commands.md": "\n".join(command_lines()),
        "reference/python.md": "\n".join(python_lines()),
    }


def from_root(name: str) -> str:
    """Return a page of the top folder with its links as the site has them."""
    text = (ROOT / name).read_text()
    text = text.replace("](docs/examples)", "](your_own.md)")
    text = re.sub(r"\]\(docs/", "](", text)
    for page in ("CONTRIBUTING.md", "CHANGELOG.md"):
        text = text.replace(f"]({page})", f"]({page.lower()})")
    return text.replace("](README.md)", "](index.md)")


def key_lines(model: type[BaseModel], path: str, level: int) -> Iterator[str]:
    """Yield the table of a section's keys, then those of the sections in it."""
    whole = json_schema()
    own = whole if model is Recipe else whole["$defs"][model.__name__]
    plain = [key for key in keys(model) if key.section is None or "anyOf" in own["properties"][key.name]]
    if plain:
        yield "| key | type | default | meaning | example |"
        yield "|---|---|---|---|---|"
        required = own.get("required", [])
        for key in plain:
            node = own["properties"][key.name]
            default = "required" if key.name in required else code(key.default)
            cells = type_of(node), default, cell(key.description), example(key, node, path)
            yield f"| `{path}{key.name}` | {' | '.join(cells)} |"
        yield ""
    for key in keys(model):
        if key.section is None:
            continue
        inner = f"{path}{key.name}." + ("NAME." if key.many == "named" else "")
        yield f"{'#' * min(level, 4)} `{path}{key.name}`"
        yield ""
        yield f"{key.description}."
        yield {"named": "One section per name.", "listed": "A list of such sections.", "": ""}[key.many]
        yield ""
        yield from key_lines(key.section, inner, level + 1)


def type_of(node: dict[str, Any]) -> str:
    """Return the type of a value in words, with its bounds."""
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(type_of(choice) for choice in node["anyOf"]))
    if "enum" in node:
        return " \\| ".join(f"`{value}`" for value in node["enum"])
    if "const" in node:
        return f"`{node['const']}`"
    if "$ref" in node:
        return "section"
    kind = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}
    if node.get("type") == "array":
        return f"list of {type_of(node['items'])}" if "items" in node else "list"
    text = kind.get(node.get("type", ""), "mapping" if node.get("type") == "object" else "any value")
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    return ", ".join([text, *(f"{word} {node[key]:,}" for key, word in bounds.items() if key in node)])


def example(key: Key, node: dict[str, Any], path: str) -> str:
    """Return `KEY=VALUE` as the command line takes it, of a choice that is not the default, else of the default."""
    other = [choice for choice in (*key.choices, *node.get("enum", ())) if choice != key.default]
    if other:
        value = other[0]
    elif node.get("type") == "boolean":
        value = json.dumps(not key.default)
    else:
        value = key.default
    if value in (None, "", {}, []) or "NAME" in path or "groups" in path:
        return ""
    return f"`{path}{key.name}={value if isinstance(value, str) else json.dumps(value)}`"


def kind_lines() -> Iterator[str]:
    """Yield the tables of schedules and of averages, with their keys."""
    yield from ("# Schedules and averages", "", "## Schedules", "")
    yield from ("| `schedule.name` | required keys | further keys |", "|---|---|---|")
    for name, schedule in SCHEDULES.items():
        yield f"| `{name}` | {codes(schedule.required)} | {codes(schedule.optional)} |"
    yield from ("", "## Averages", "")
    yield from ("| `averages.NAME.kind` | what it is | `start` | `every` | its own keys |", "|---|---|---|---|---|")
    for name, kind in KINDS.items():
        yield f"| `{name}` | {cell(kind.summary)} | `{kind.start}` | `{kind.every}` | {codes(kind.keys)} |"


def command_lines() -> Iterator[str]:
    """Yield each command with its arguments, options, examples and exit codes, as `swa COMMAND --help` says them."""
    group = typer.main.get_command(app)
    yield from ("# Every command", "", group.help or "", "")
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        context = typer.Context(command, info_name=f"swa {name}", max_content_width=100, terminal_width=100)
        yield from ("", f"## `swa {name}`", "", "```text", command.get_help(context).strip(), "```")


def python_lines() -> Iterator[str]:
    """Yield the names that `import swa_cli` offers, for mkdocstrings."""
    yield from ("# Python", "", "`from swa_cli import ...`: see [your own loop](../own_loop.md) for how they are used.")
    for name in swa_cli.__all__:
        if not name.startswith("_"):
            yield from ("", f"::: {swa_cli._HOMES[name]}.{name}")


def codes(names: Iterable[str]) -> str:
    """Return names as code, one after the other."""
    return " ".join(f"`{name}`" for name in names)


def code(value: object) -> str:
    """Return a default as code, empty without one."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{text}`" if text else ""


def cell(text: str) -> str:
    """Return a text for a cell of a table."""
    return re.sub(r"(?<!\\)([|*_\[\]])", r"\\\1", text).replace("<", "&lt;").replace("\n", " ")
