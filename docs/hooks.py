"""The pages of the site that are made when it is built, from README and from the code: none can be out of date."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import typer
import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel

import swa_cli
from swa_cli.cli import app
from swa_cli.data.datasets import DATASETS
from swa_cli.metrics.metric import BY_TASK
from swa_cli.models.build_model import ZOO
from swa_cli.recipe.kinds import KINDS
from swa_cli.recipe.schedules import SCHEDULES
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.schema.output import LOGGERS
from swa_cli.recipe.templates import NAME, Key, json_schema, keys

ROOT = Path(__file__).parent.parent
TOP_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
KEYS_HEAD = (
    "# Every key of a recipe",
    "",
    "A duration has a unit: `75%` of the run, `23ep`, `0.25ep`, `200step`, `1cycle`. Examples are words of a command"
    " line; [the recipe by example](../recipe.md) shows the keys in a file.",
    "",
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name the version in the head of each page; `make docs-version` adds a menu of the versions that are published."""
    config.site_name = f"swa {swa_cli.__version__}"
    if "MIKE_DOCS_VERSION" in os.environ:
        config.site_name = "swa"
        config.extra["version"] = {"provider": "mike"}
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    for name, content in pages().items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Link to the pages of the top folder, and name files of the source: the site does not hold them."""
    for name, page in TOP_PAGES.items():
        markdown = markdown.replace(f"](../{name}", f"]({page}")
    named = re.sub(r"\[`?([\w/.]+)`?\]\(\.\./\1\)", r"`\1`", markdown)
    return re.sub(r"\[([^\]]*)\]\(\.\./((?!\w+\.md)[\w/.]+)\)", r"\1 (`\2`)", named)


def pages() -> dict[str, str]:
    """Return each page that is made, by its path in the site."""
    return {
        **{page: from_root(name) for name, page in TOP_PAGES.items()},
        "reference/keys.md": "\n".join([*KEYS_HEAD, *key_lines(Recipe, "", 2)]),
        "reference/kinds.md": "\n".join(kind_lines()),
        "reference/commands.md": "\n".join(command_lines()),
        "reference/python.md": "\n".join(python_lines()),
    }


def from_root(name: str) -> str:
    """Return a page of the top folder with its links as the site has them."""
    text = (ROOT / name).read_text().replace("](docs/examples)", "](your_own.md)")
    text = re.sub(r"\]\(docs/", "](", text)
    text = re.sub(r"\]\((?=(?:swa_cli|recipes)/)", "](../", text)  # files that the site does not hold
    for other, page in TOP_PAGES.items():
        text = text.replace(f"]({other}", f"]({page}")
    return text


def key_lines(model: type[BaseModel], path: str, level: int) -> Iterator[str]:
    """Yield the keys of a section, each with an anchor of its name, then those of the sections in it."""
    whole = json_schema()
    own = whole if model is Recipe else whole["$defs"][model.__name__]
    for key in keys(model):
        node = own["properties"][key.name]
        if key.section is not None and "anyOf" not in node:
            continue
        default = "required" if key.name in own.get("required", []) else f"default {code(key.default)}"
        dotted = f"{path}{key.name}"
        yield f"`{dotted}`{{#{dotted}}}"
        yield f":   {markdown(key.description)}"
        yield ""
        facts = [
            type_of(node),
            *([default] if default != "default " else []),
            f"example `{example(dotted, key, node)}`",
        ]
        yield f"    <small>{'; '.join(facts)}</small>"
        yield ""
    for key in keys(model):
        if key.section is None:
            continue
        inner = f"{path}{key.name}." + (f"{NAME}." if key.many == "named" else "")
        yield from (f"{'#' * min(level, 4)} `{path}{key.name}`", "")
        many = {"named": " One section per name.", "listed": " A list of such sections.", "": ""}[key.many]
        yield from (f"{markdown(key.description[0].upper() + key.description[1:]).rstrip('.')}.{many}", "")
        yield from key_lines(key.section, inner, level + 1)


def type_of(node: dict[str, Any]) -> str:
    """Return the type of a value in words, with its bounds."""
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(type_of(choice) for choice in node["anyOf"]))
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if "const" in node:
        return f"`{node['const']}`"
    if "$ref" in node:
        return "section"
    if node.get("type") == "array":
        return re.sub(r"\b(number|duration|text)\b", r"\1s", f"list of {type_of(node['items'])}", count=1)
    if node.get("type") == "string":
        return text_type(node.get("pattern", ""))
    kind = {"integer": "whole number", "number": "number", "boolean": "true or false", "object": "mapping"}
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    shown = (f"{word} {node[key]:,}" for key, word in bounds.items() if key in node and node[key] < 2**62)
    return f"{kind[node['type']]} {' and '.join(shown)}".strip()


def text_type(pattern: str) -> str:
    """Return what a text of this pattern is: choices, a duration, a time, a multiple, a share, an import path, text."""
    if any(unit in pattern for unit in ("|step", "|min")):
        return " or ".join(kind for kind, unit in (("duration", "|step"), ("time", "|min")) if unit in pattern)
    if pattern.endswith(("x)$", "%)$")):
        return {"x": "multiple, such as `2x`", "%": "share, such as `10%`"}[pattern[-3]]
    words = re.match(r"\^\((?:\?:)?([a-z_]+(?:\|[a-z_]+)*)", pattern)
    own_code = ["`package.module:attribute`"] if ":" in pattern.replace("?:", "") and r"\." in pattern else []
    return ", ".join([*(f"`{word}`" for word in words[1].split("|")), *own_code]) if words else "text"


# Values for the examples of keys whose type and default suggest none; the others come from `shown_values`.
EXAMPLES: Mapping[str, Any] = {
    "seed": 1,
    "name": "digits-high-rate",
    "dataset.interpolation": "bicubic",
    "dataset.augment.random_resized_crop.scale": [0.35, 1],
    "optimizer.name": "AdamW",
    "optimizer.layer_decay": 0.75,
    "averages.NAME.bias_correction": False,
    "averages.NAME.width": 0.2,
    "train.loss": "focal",
    "train.compile": True,
    "train.threads": 4,
    "train.averages_device": "cpu",
    "eval.crop": "none",
    "eval.interpolation": "bicubic",
    "output.loggers.tracking_uri": "sqlite:///mlflow.db",
    "task": "segmentation",
    "schedule.name": "wsd",
    "dataset.val_seed": 0,
    "dataset.cache": "packed",
    "dataset.decode": "device",
    "dataset.on_device": False,
    "dataset.augment.random_resized_crop.ratio": [0.5, 2],
    "schedule.decay": "20%",
    "schedule.hold": "5ep",
    "schedule.T_mult": 2,
    "schedule.max_lr": 0.2,
    "schedule.gamma": 0.5,
    "schedule.milestones": ["50%", "75%"],
    "schedule.pct_start": "30%",
    "swa.start": "60%",
    "swa.every": "10step",
    "swa.eval_every": "1ep",
    "swa.anneal": "2ep",
    "swap.batchnorm.samples": 10000,
    "snapshots.keep": 5,
    "train.init_skip": ["fc.*"],
    "train.grad_accum_steps": 2,
    "train.focal_gamma": 1.5,
    "train.class_weights": "balanced",
    "train.clip_norm": 1,
    "train.device": "cuda:1",
    "train.compile.backend": "aot_eager",
    "train.max_time": "2h",
    "model.freeze": ["*", "!fc.*"],
    "model.unfreeze": "3ep",
    "output.root": "results",
    "output.save_every": "10min",
    "output.loggers.entity": "my-team",
    "output.loggers.experiment": "digits",
}


@cache
def shown_values() -> dict[str, Any]:
    """Return a value for each key that the page recipe.md or a shipped recipe sets to other than its default."""
    (page,) = re.findall(r"```yaml\n(.*?train:.*?)```", (ROOT / "docs/recipe.md").read_text(), re.DOTALL)
    values: dict[str, Any] = {}

    def collect(document: Any, model: type[BaseModel], path: str) -> None:
        for key in keys(model):
            value = document.get(key.name) if isinstance(document, dict) else None
            inner = f"{path}{key.name}." + (f"{NAME}." if key.many == "named" else "")
            if key.section is not None and isinstance(value, dict | list):
                sections = value.values() if key.many == "named" else value if key.many == "listed" else [value]
                for section in sections:
                    collect(section, key.section, inner)
            elif value is not None and value != key.default and str(value) != str(key.default):
                values.setdefault(f"{path}{key.name}", value)

    for text in (page, *(path.read_text() for path in sorted((ROOT / "recipes").rglob("*.yaml")))):
        collect(yaml.safe_load(text), Recipe, "")
    return values


def example(dotted: str, key: Key, node: dict[str, Any]) -> str:
    """Return `KEY=VALUE` as the command line takes it, with a value that is not the default."""
    value = {**shown_values(), **EXAMPLES}.get(dotted)
    if value is None:
        choices = [choice for part in (node, *node.get("anyOf", ())) for choice in part.get("enum", ())]
        others = [choice for choice in (*key.choices, *choices) if choice != key.default]
        value = others[-1] if others else not key.default if {"type": "boolean"}.items() <= node.items() else None
    if value is None:
        return ""
    section, _, leaf = dotted.rpartition(".")
    if section == "optimizer.groups":
        dotted, value = section, [{"match": "head.*", leaf: value}]
    if section == "output.loggers":
        name = next((name for name, logger in LOGGERS.items() if leaf in logger.keys), value)
        dotted, value = section, [{"name": name, leaf: value}]
    return word(dotted, value)


def word(dotted: str, value: Any) -> str:
    """Return `KEY=VALUE` as a shell takes it."""
    if isinstance(value, str):
        text = value
    else:
        text = (
            yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).removesuffix("...\n").strip()
        )
    text = f"{dotted}={text}".replace("'", '"')
    return text if re.fullmatch(r"[\w.%:/=-]+", text) else f"'{text}'"


def schedule_example(name: str) -> str:
    """Return a schedule with its required keys as `KEY=VALUE`."""
    found = {**shown_values(), **EXAMPLES}
    return word("schedule", {"name": name, **{key: found[f"schedule.{key}"] for key in SCHEDULES[name].required}})


def kind_lines() -> Iterator[str]:
    """Yield the tables of schedules, averages, metrics, datasets, networks and loggers, as the code has them."""
    yield from ("# Schedules, averages, metrics, datasets, networks", "", "## Schedules", "")
    yield from ("| `schedule.name` | required keys | further keys | example |", "|---|---|---|---|")
    for name, schedule in SCHEDULES.items():
        required, optional = (linked("schedule", names) for names in (schedule.required, schedule.optional))
        yield f"| `{name}` | {required} | {optional} | `{schedule_example(name)}` |"
    yield from ("", "![The learning rate of each schedule over 20 epochs](../pictures/schedules.svg)", "")
    yield from ("", "## Averages", "")
    yield from ("| `averages.NAME.kind` | what it is | `start` | `every` | its own keys |", "|---|---|---|---|---|")
    for name, kind in KINDS.items():
        own_keys = linked(f"averages.{NAME}", kind.keys)
        yield f"| `{name}` | {markdown(kind.summary)} | `{kind.start}` | `{kind.every}` | {own_keys} |"
    yield from (
        "",
        "## Metrics",
        "",
        "The first metric of a task is its primary one. An average is judged by it and by the loss.",
        "",
    )
    yield from ("| task | key in JSON and metrics.csv | name | better | standard error |", "|---|---|---|---|---|")
    for task, metrics in BY_TASK.items():
        for metric in metrics.all:
            role = " (primary)" if metric is metrics.primary else " (loss)" if metric is metrics.loss else ""
            error = "yes" if metric.has_error else "no"
            yield f"| `{task}` | `{metric.key}` | {metric.name}{role} | {metric.direction} | {error} |"
    yield from ("", "## Datasets", "", "[Images and labels](../data.md) describes how each is read.", "")
    yield from (
        "| `dataset.name` | label | training samples | key of `dataset.args` | what it takes |",
        "|---|---|---|---|---|",
    )
    for name, dataset in DATASETS.items():
        samples = f"{dataset.num_train:,}" if dataset.num_train else "as found"
        first = f"`{name}` | {dataset.target or 'as found'} | {samples}"
        if not dataset.args:
            yield f"| {first} | | {'the arguments of the factory' if dataset.args is None else 'no arguments'} |"
        for key, argument in (dataset.args or {}).items():
            yield f"| {first} | `{key}` | {markdown(argument.wanted)} |"
            first = " | | "
    yield from (
        "",
        "## Networks of the zoo",
        "",
        "Beside them `torchvision:NAME`, `timm:NAME` and [your own](../your_own.md).",
        "",
    )
    yield from ("| `model.name` | `model.args` |", "|---|---|")
    for name, constructor in ZOO.items():
        given = {*constructor.keywords, "num_classes", "in_channels"}
        free = [f"`{key}`" for key in inspect.signature(constructor.func).parameters if key not in given]
        yield f"| `{name}` | {' '.join(free)} |"
    yield from ("", "## Loggers", "", "[How they log](../loggers.md).", "")
    yield from ("| `output.loggers` | where it writes | its own keys |", "|---|---|---|")
    for name, logger in LOGGERS.items():
        yield f"| `{name}` | {markdown(logger.text)} | {linked('output.loggers', logger.keys)} |"


def command_lines() -> Iterator[str]:
    """Yield each command with its arguments, options, examples and exit codes, from the command line itself."""
    group = typer.main.get_command(app)
    yield from ("# Every command", "", group.help or "", "")
    yield from ("Each command takes `--help`. These options stand before the command:", "")
    yield from option_lines(group, "swa")
    yield from epilog_lines(group.epilog)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        pieces = " ".join(command.collect_usage_pieces(typer.Context(command, info_name=name)))
        yield from ("", f"## `swa {name}`", "", markdown(command.help), "")
        yield from ("```text", f"swa {name} {pieces}", "```", "")
        yield from option_lines(command, f"swa {name}")
        yield from epilog_lines(command.epilog)


def option_lines(command: Any, name: str) -> Iterator[str]:
    """Yield the arguments and options of a command, each with its meaning, default and range."""
    context = typer.Context(command, info_name=name, terminal_width=1000, max_content_width=1000)
    for param in command.params:
        record = param.get_help_record(context)  # None for an option that is hidden
        if record is not None:
            yield from (f"`{re.sub(r' <(?:str|path|list.*)>$', '', record[0])}`", f":   {markdown(record[1])}", "")


def epilog_lines(epilog: str | None) -> Iterator[str]:
    """Yield the parts of the text below the options, such as examples and exit codes."""
    for part in re.split(r"\n*\x08\n", epilog or ""):
        title, _, rest = part.strip().partition(":\n")
        if rest:
            language = "bash" if title == "Examples" else "text"
            yield from (f"**{title}**", "", f"```{language}", *(line[2:] for line in rest.splitlines()), "```", "")


def python_lines() -> Iterator[str]:
    """Yield the names that `import swa_cli` offers, for mkdocstrings."""
    yield from ("# Python", "", "`from swa_cli import ...`: see [your own loop](../own_loop.md) for how they are used.")
    for name in swa_cli.__all__:
        if not name.startswith("_"):
            yield from ("", f"::: {swa_cli._HOMES[name]}.{name}")


def linked(section: str, names: Iterable[str]) -> str:
    """Return keys of a section, each as a link to its entry in the page of keys."""
    return " ".join(f"[`{name}`](keys.md#{section}.{name})" for name in names)


def code(value: object) -> str:
    """Return a default as code, empty without one."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{text}`" if text else ""


def markdown(text: str) -> str:
    """Return a plain text so that Markdown shows it as it is, on one line and inside a table too."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.replace("\x08", "").split()))
    plain = [re.sub(r"([|*_\[\]<>])", r"\\\1", part) if index % 2 == 0 else part for index, part in enumerate(parts)]
    return "".join(plain)
