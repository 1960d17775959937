"""What is said about a wrong recipe: one readable sentence with the value, and one action.

The one idea: pydantic finds what is wrong, but never speaks. Each of its errors becomes a `Finding` with the
path of the key; a key that no section knows is looked for under every name a person may have meant.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from swa_cli.recipe import scalars
from swa_cli.recipe.schema import Recipe, average_misfits, schedule_misfits
from swa_cli.recipe.yaml_document import KeyPath

NAME = "NAME"  # stands for a name of the user's own, as in averages.NAME.decay
MEANT = {
    "arch": "model.name",
    "architecture": "model.name",
    "net": "model.name",
    "network": "model.name",
    "bs": "train.batch_size",
    "num_epochs": "train.epochs",
    "max_epochs": "train.epochs",
    "gpu": "train.device",
    "amp": "train.precision",
    "grad_clip": "train.clip_norm",
    "accumulate": "train.grad_accum_steps",
    "gradient_accumulation_steps": "train.grad_accum_steps",
    "stop": "train.early_stopping",
    "shard": "train.fsdp",
    "tensorboard": "output.loggers",
    "data": "dataset.name",
    "data_dir": "dataset.root",
    "num_workers": "dataset.workers",
    "augmentation": "dataset.augment",
    "learning_rate": "optimizer.lr",
    "momentum": "optimizer.momentum",
    "nesterov": "optimizer.nesterov",
    "wd": "optimizer.weight_decay",
    "weight_decay": "optimizer.weight_decay",
    "scheduler": "schedule",
    "lr_scheduler": "schedule",
    "lr_schedule": "schedule",
    "warmup_epochs": "schedule.warmup",
    "min_lr": "schedule.final_lr",
    "eta_min": "schedule.final_lr",
    "cycle": "schedule.T_0",
    "cycle_mult": "schedule.T_mult",
    "up": "schedule.step_size_up",
    "down": "schedule.step_size_down",
    "at": "schedule.milestones",
    "factor": "schedule.gamma",
    "peak": "schedule.pct_start",
    "swa_freq": "swa.every",
    "ema": "averages.ema",
    "pretrained": "train.init",
    "weights": "train.init",
}
BOUNDS = {  # error of pydantic -> what the value is not, what to write
    "greater_than_equal": ("ge", "is below {0}", "write {0} or more"),
    "greater_than": ("gt", "is not above {0}", "write a number above {0}"),
    "less_than_equal": ("le", "is above {0}", "write {0} or less"),
    "less_than": ("lt", "is not below {0}", "write a number below {0}"),
}


@dataclass(frozen=True)
class Finding:
    """One mistake at `path`; `at_key` if the key is the mistake, not its value."""

    path: KeyPath
    message: str
    hint: str
    at_key: bool = False


def explain(error: ValidationError, values: Mapping[str, Any]) -> Iterator[Finding]:
    """Every mistake that pydantic found in the values."""
    for detail in error.errors(include_url=False):
        kind, path = detail["type"], detail["loc"]
        if kind == "missing":
            yield from (_missing(leaf) for leaf in _required(path))
        elif kind == "extra_forbidden":
            yield Finding(path, "unknown key", suggest(path), at_key=True)
        elif path[-1] == "[key]":
            yield Finding(path[:-1], *_split(str(detail["ctx"]["error"]), ""), at_key=True)
        elif kind != "misfit":  # `misplaced` has found those, also beside wrong values
            value = _as_written(values, path, otherwise=detail["input"])
            message, hint = _about_value(kind, path=path, value=value, context=detail.get("ctx", {}))
            yield Finding(path, message, hint)


def misplaced(values: Mapping[str, Any]) -> Iterator[Finding]:
    """Keys that do not go with the name or kind of their section, and options no optimizer can have."""
    sections: list[tuple[KeyPath, Any, Any]] = [(("schedule",), values.get("schedule"), schedule_misfits)]
    averages = values.get("averages")
    if isinstance(averages, Mapping):
        sections += [(("averages", name), section, average_misfits) for name, section in averages.items()]
    for path, section, misfits in sections:
        if isinstance(section, Mapping):
            for key, message, hint in misfits(section):
                yield Finding((*path, key), message, hint, at_key=True)
    optimizer = values.get("optimizer")
    if isinstance(optimizer, Mapping):
        for key in optimizer:
            owners = [path for path in _owners(key) if path[0] in ("train", "schedule", "dataset", "swa")]
            if owners and key != "args" and ("optimizer", key) not in fields():
                path = ("optimizer", key)
                yield Finding(path, "unknown key", _belongs(key, owners), at_key=True)


def suggest(path: KeyPath) -> str:
    """What to write instead of a key that its section does not know."""
    key, section = str(path[-1]), _general(path)[:-1]
    if len(key) > 60:
        return _known_keys(section)
    word = _normal(key)
    inside = _normal("_".join(map(str, path)))
    for candidate in fields():
        if len(candidate) > 1 and _normal("_".join(candidate)) in (word, inside):
            return f"did you mean `{'.'.join(candidate)}`?"
    if owners := _owners(word):
        same = [owner for owner in owners if owner[:-1] == section]
        return f"did you mean `{'.'.join(same[0])}`?" if same else _belongs(word, owners)
    if word in MEANT:
        return f"did you mean `{MEANT[word]}`?"
    here = [candidate[-1] for candidate in fields() if candidate[:-1] == section]
    if close := closest(word, here):
        return f"did you mean `{'.'.join(map(str, (*path[:-1], close)))}`?"
    if close := closest(word, [candidate[-1] for candidate in fields() if candidate[-1:] != section[-1:]]):
        return _belongs(close, _owners(close))
    return _known_keys(section)


def closest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that a mistyped word most likely meant."""
    if len(word) > 60:
        return None
    close = difflib.get_close_matches(_normal(word), list(choices), n=1, cutoff=0.7)
    return close[0] if close else None


def field_at(path: KeyPath) -> FieldInfo | None:
    """The field of the schema at a path; none for keys that the schema leaves open."""
    return fields().get(_general(path))


def is_leaf(key: str) -> bool:
    """Whether a dotted key is a field with a value: no section, and known to the schema."""
    path = _general(tuple(key.split(".")))
    return path in fields() and not any(known[: len(path)] == path != known for known in fields())


def is_argument(key: str) -> bool:
    """Whether a dotted key stands below `model.args` or `dataset.args`: null is a value there."""
    section, *below = key.split(".", 2)
    return section in ("model", "dataset") and below[:1] == ["args"] and len(below) > 1


@functools.cache
def fields() -> dict[tuple[str, ...], FieldInfo]:
    """Every field of the schema by its path."""
    return dict(_walk(Recipe, ()))


def label(path: KeyPath) -> str:
    """A path as a person writes it; places in a list are left to the caret."""
    return ".".join(part for part in path if isinstance(part, str))


def _walk(model: type[BaseModel], prefix: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    for name, info in model.model_fields.items():
        yield (*prefix, name), info
        named = (NAME,) if get_origin(info.annotation) is dict else ()
        for inner in (info.annotation, *get_args(info.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from _walk(inner, (*prefix, name, *named))


def _general(path: KeyPath) -> tuple[str, ...]:
    """The path with a name of the user's own replaced, without places in a list."""
    parts = tuple(part for part in path if isinstance(part, str))
    return ("averages", NAME, *parts[2:]) if parts[:1] == ("averages",) and len(parts) > 1 else parts


def _owners(key: str) -> list[tuple[str, ...]]:
    """Paths of the schema that end in this key; a bare `name` tells nothing, nor does what stands in a list.

    `swap` has keys of other sections again, for its workers: they are meant only where no other has them.
    """
    found = [
        path
        for path in fields()
        if _normal(path[-1]) == _normal(key) != "name" and path[:-1] != ("optimizer", "groups")
    ]
    return [path for path in found if path[0] != "swap"] or found


def _belongs(key: str, owners: Sequence[tuple[str, ...]]) -> str:
    sections = " or ".join(f"`{'.'.join(owner[:-1])}`" for owner in owners if len(owner) > 1)
    if not sections:
        return f"`{key}` stands at the top, outside of every section"
    return f"`{key}` belongs to {sections}: write {' or '.join('.'.join(owner) for owner in owners)}"


def _known_keys(section: tuple[str, ...]) -> str:
    keys = [candidate[-1] for candidate in fields() if candidate[:-1] == section]
    return f"the keys {'here' if section else 'at the top'} are {', '.join(keys)}"


def _normal(word: str) -> str:
    return re.sub(r"[-.\s]+", "_", word.strip()).lower()


def _required(path: KeyPath) -> list[KeyPath]:
    """The path itself, or the keys that a missing section must have."""
    return [leaf for leaf, info in fields().items() if leaf[:-1] == path and info.is_required()] or [path]


def _missing(path: KeyPath) -> Finding:
    info = field_at(path)
    section = f"to the section `{label(path[:-1])}`" if len(path) > 1 else "at the top"
    meaning = f" ({info.description})" if info is not None and info.description else ""
    return Finding(path, "is missing", f"add `{path[-1]}:` {section}{meaning}")


def _as_written(values: Any, path: KeyPath, *, otherwise: Any) -> Any:
    """The value before any field typed it; a default that a validator filled in stands nowhere else."""
    for part in path:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return otherwise
    return values


def _about_value(kind: str, *, path: KeyPath, value: Any, context: Mapping[str, Any]) -> tuple[str, str]:
    """Message and hint for a value that its field refuses."""
    info = field_at(path)
    meaning = info.description if info is not None and info.description else "correct the value"
    if kind == "value_error":
        return _split(str(context["error"]), meaning)
    if kind in ("model_type", "dict_type"):
        return _about_section(path, value)
    if kind == "list_type":
        if scalars.is_null(value) or isinstance(value, Mapping):
            return "takes a list", "write [] for an empty one"
        item = scalars.shown(value).strip("`")
        return f"takes a list, not `{item}`", f"write [{item}]" if item[:1].isalnum() else f'write ["{item}"]'
    if kind == "literal_error":
        return _about_choice(value, choices=re.findall(r"'([^']*)'", context["expected"]), meaning=meaning)
    if kind in BOUNDS:
        name, message, action = BOUNDS[kind]
        bound = context[name]
        bound = f"{bound:g}" if isinstance(bound, float) else str(bound)
        return f"{scalars.shown(value)} {message.format(bound)}", f"{action.format(bound)} ({meaning})"
    return f"{scalars.shown(value)} is not possible here", f"what is possible: {meaning}"


def _about_choice(value: Any, *, choices: Sequence[str], meaning: str) -> tuple[str, str]:
    try:
        word = scalars.written(value)
    except ValueError as error:
        return _split(str(error), meaning)
    close = closest(word, choices)
    message = f"{scalars.shown(value)} is not one of {', '.join(choices)}"
    if len(choices) == 1:
        return f"{scalars.shown(value)} is not {choices[0]}, the only choice", f"write {choices[0]}"
    return message, f"did you mean `{close}`?" if close else f"choose one of them ({meaning})"


def _about_section(path: KeyPath, value: Any) -> tuple[str, str]:
    name = label(path)
    if not path:
        return (
            "the recipe is not a section with keys",
            "write `key: value` lines, such as `model: {name: ...}`",
        )
    if scalars.is_null(value):
        required = [str(leaf[-1]) for leaf in _required(path) if leaf != path]
        otherwise = f", at least {', '.join(required)}" if required else ", or leave the section out"
        return "has no value", f"indent its keys below it{otherwise}"
    message = f"{scalars.shown(value)} is a value, but `{name}` is a section"
    if isinstance(value, (list, tuple)):
        message = f"a list is given, but `{name}` is a section"
    elif field_at((*path, "name")) is not None:
        return message, f"write `{path[-1]}: {{name: {scalars.shown(value).strip('`')}}}`"
    return message, "indent its keys below it, or write them in braces, {key: value}"


def _split(text: str, otherwise: str) -> tuple[str, str]:
    """`what is wrong: what to do` in its two halves."""
    message, colon, action = text.rpartition(": ")
    return (message, action) if colon else (text, otherwise)
