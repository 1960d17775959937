"""Complete the words of a command line in a shell: recipes, keys and values, runs, checkpoints, choices.

One idea: the metavar of a parameter says what it takes, and so what completes it, for every command alike. `RUN` is a
run folder; `KIND` is one of the `KINDS` of the command's module; a part in lower case, as in `test|val`, is itself a
choice. Where nothing is offered, shells complete the names of files. A key press must not wait: nothing here imports
torch, and only completions of recipes and keys import what reads recipes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from swa_cli.errors import RecipeError, UserError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from swa_cli.recipe.templates import Key

RUN_MARKS = ("run.json", "repeat.json", "sweep.json")  # the file that makes a folder one of a run, repeat or sweep
FIRST_AVERAGE = "ema"  # the name that is offered where the recipe has no `averages`


class Item(NamedTuple):
    """One completion, as the classes of typer that print them read it."""

    value: str
    help: str | None = None
    type: str = "plain"


Completer = Callable[[str, Mapping[str, Any]], Iterable[Item]]  # (typed so far, other arguments) -> completions


def attach(group: Any) -> None:
    """Give each parameter of each command of a typer group the completions that its metavar names."""
    for command in group.commands.values():
        module = sys.modules[command.callback.__module__]
        for param in command.params:
            completers = [_completer(part, module) for part in (param.metavar or "").strip("[].").split("|")]
            if any(completers):
                param.shell_complete = _shell_complete([each for each in completers if each is not None])


def _shell_complete(completers: list[Completer]) -> Callable[[Any, str], list[Item]]:
    def shell_complete(context: Any, typed: str) -> list[Item]:
        found = (item for completer in completers for item in completer(typed, context.params))
        return [item for item in dict.fromkeys(found) if item.value.startswith(typed)]

    return shell_complete


def _completer(part: str, module: object) -> Completer | None:
    """Return what completes one part of a metavar; None: nothing but files."""
    part = part.rstrip(".")
    choices = (part,) if part.islower() else getattr(module, f"{part}S", ())
    if choices:
        return lambda typed, given: [Item(choice) for choice in choices]
    return COMPLETERS.get(part)


def complete_recipes(typed: str, given: Mapping[str, Any]) -> Iterator[Item]:
    """Complete names of shipped recipes and YAML files; with --resume, which takes no recipe, changes."""
    if given.get("resume") is not None:
        yield from complete_changes(typed, given)
        return
    from swa_cli.recipe.load import shipped_names

    yield from map(Item, shipped_names())
    yield from _files(typed, (".yaml", ".yml"))


def complete_runs(typed: str, given: Mapping[str, Any]) -> Iterator[Item]:
    """Complete folders of runs, repeats and sweeps: in the folder that was typed, else here and in runs/."""
    folder, slash, _ = typed.rpartition("/")
    for place in [folder + slash] if slash else ["", "runs/"]:
        yield from (Item(f"{place}{path.name}") for path in _listed(place) if _is_run(path))


def complete_checkpoints(typed: str, given: Mapping[str, Any]) -> Iterator[Item]:
    """Complete checkpoints: those of runs, with the snapshots of the run that was typed, and other files of weights."""
    inside = [parent for parent in Path(f"{typed}*").parents if _is_run(parent)]
    for run in inside[:1] or [Path(item.value) for item in complete_runs(typed, given)]:
        for folder in ("checkpoints", "snapshots") if inside else ("checkpoints",):
            yield from (Item(str(path)) for path in _listed(str(run / folder)) if path.suffix == ".pt")
    yield from _files(typed, (".pt", ".safetensors"))


def complete_sources(typed: str, given: Mapping[str, Any]) -> Iterator[Item]:
    """Complete runs and checkpoints, and changes once a letter was typed."""
    yield from complete_runs(typed, given)
    yield from complete_checkpoints(typed, given)
    if typed:
        yield from complete_changes(typed, given)


def complete_changes(typed: str, given: Mapping[str, Any]) -> Iterator[Item]:
    """Complete KEY=VALUE one section at a time: `optimizer.`, then `optimizer.lr=`, then its values.

    Shells put a space after a sole completion. So a sole section is replaced by its keys, and a sole key is shown with
    its values too.
    """
    from swa_cli.recipe.schema import Recipe

    values = _recipe_values(given.get("recipe") or given.get("run"))
    keys = dict(_keys(Recipe, "", names=tuple(values.get("averages") or ()) or (FIRST_AVERAGE,)))
    words = [word for value in given.values() if isinstance(value, (list, tuple)) for word in value]
    *_, before, last = ["", "", *words]
    if last == "=" and before in keys:  # bash splits KEY=VALUE into three words
        yield from map(Item, _choices(before, keys[before], values))
        return
    key, equals, _ = typed.partition("=")
    if equals:
        yield from (Item(f"{key}={choice}") for choice in (_choices(key, keys[key], values) if key in keys else ()))
        return
    while len(level := _level(keys, typed)) == 1 and level[0].value.endswith("."):
        typed = level[0].value
    yield from level
    if len(level) == 1:
        name = level[0].value.rstrip("=")
        yield from (Item(f"{name}={choice}") for choice in _choices(name, keys[name], values) or ("VALUE",))


COMPLETERS: Mapping[str, Completer] = {
    "RECIPE": complete_recipes,
    "RUN": complete_runs,
    "REPEAT": complete_runs,
    "SWEEP": complete_runs,
    "CKPT": complete_checkpoints,
    "SOURCE": complete_sources,
    "KEY=VALUE": complete_changes,
    "KEY=VALUES": complete_changes,
}


def _keys(model: type[BaseModel], prefix: str, *, names: tuple[str, ...]) -> Iterator[tuple[str, Key]]:
    """Return the dotted keys of a section and of those below it; `names` are the names of averages."""
    from swa_cli.recipe import templates
    from swa_cli.recipe.schema import SGD_DEFAULTS

    for key in templates.keys(model):
        own = f"{prefix}{key.name}"
        if key.section is None or key.many == "listed":
            yield own, key
        elif key.many == "named":
            for name in names:
                yield from _keys(key.section, f"{own}.{name}.", names=names)
        else:
            yield from _keys(key.section, f"{own}.", names=names)
        if own == "optimizer":
            for name, value in SGD_DEFAULTS.items():
                yield f"{own}.{name}", templates.Key(name, "Option of SGD", value, (), None, "", None)


def _level(keys: Mapping[str, Key], typed: str) -> list[Item]:
    """Return the keys that begin as typed, cut after the next dot."""
    found: dict[str, Item] = {}
    for name, key in keys.items():
        if name.startswith(typed):
            dot = name.find(".", len(typed))
            value, about = (f"{name}=", key.description) if dot < 0 else (name[: dot + 1], None)
            found.setdefault(value, Item(value, about))
    return list(found.values())


def _choices(name: str, key: Key, values: Mapping[str, Any]) -> list[str]:
    """Return the values of a key: its choices, or else the value of the recipe and the default."""
    if key.choices:
        return list(key.choices)
    if isinstance(key.default, bool):
        return ["true", "false"]
    value: Any = values
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    found = (value, key.default)
    return list(dict.fromkeys(v if isinstance(v, str) else json.dumps(v) for v in found if v is not None))


def _recipe_values(recipe: object) -> Mapping[str, Any]:
    """Return the values of the recipe that the command line names; none where it cannot be read."""
    from swa_cli.recipe import load

    try:
        return load.load(str(recipe)).recipe.model_dump(mode="json") if recipe else {}
    except (RecipeError, UserError):
        return {}


def _files(typed: str, suffixes: tuple[str, ...]) -> Iterator[Item]:
    folder, slash, _ = typed.rpartition("/")
    yield from (Item(f"{folder}{slash}{path.name}") for path in _listed(folder + slash) if path.suffix in suffixes)


def _listed(folder: str) -> list[Path]:
    try:
        return sorted(Path(folder or ".").iterdir())
    except OSError:
        return []


def _is_run(folder: Path) -> bool:
    return any((folder / mark).is_file() for mark in RUN_MARKS)
