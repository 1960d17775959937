"""Messages about a wrong recipe: one sentence with the value, and one action.

One idea: pydantic finds what is wrong, but its words are never shown. Each of its errors becomes a `Problem` at the
path of the key; a key that no section knows is looked up under every name that a person may have meant.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from swa_cli.recipe import kinds, scalars
from swa_cli.recipe.schema import Recipe, misplaced_in_schedule
from swa_cli.recipe.schema.output import misplaced_in_logger
from swa_cli.recipe.values import INTERNAL
from swa_cli.recipe.yaml_document import KeyPath, Tree, label

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
    "save_best": "train.keep_best",
    "monitor": "train.early_stopping.metric",
    "criterion": "train.loss",
    "smoothing": "train.label_smoothing",
    "weighted_sampler": "dataset.sampler",
    "shard": "train.fsdp",
    "tensorboard": "output.loggers",
    "wandb": "output.loggers",
    "mlflow": "output.loggers",
    "data": "dataset.name",
    "data_dir": "dataset.root",
    "num_workers": "dataset.workers",
    "augmentation": "dataset.augment",
    "img_size": "dataset.image_size",
    "resolution": "dataset.image_size",
    "horizontal_flip": "dataset.augment.flip",
    "hflip": "dataset.augment.flip",
    "vflip": "dataset.augment.vertical_flip",
    "randaugment": "dataset.augment.policy: rand_augment",
    "autoaugment": "dataset.augment.policy: auto_augment",
    "trivialaugment": "dataset.augment.policy: trivial_augment",
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
    "pretrained": "model.pretrained",
    "weights": "model.pretrained",
    "frozen": "model.freeze",
    "gradient_checkpointing": "train.grad_checkpointing",
}
BOUNDS = {  # error of pydantic -> what the value is not, what to write
    "greater_than_equal": ("ge", "is below {0}", "write {0} or more"),
    "greater_than": ("gt", "is not above {0}", "write a number above {0}"),
    "less_than_equal": ("le", "is above {0}", "write {0} or less"),
    "less_than": ("lt", "is not below {0}", "write a number below {0}"),
}


def explain(error: ValidationError, tree: Tree) -> None:
    """Add a problem to the tree for every mistake that pydantic found in its values."""
    for detail in error.errors(include_url=False):
        kind, path = detail["type"], detail["loc"]
        if kind == "missing":
            for leaf in _required(path):
                tree.add_problem(leaf, *_missing(leaf))
        elif kind == "extra_forbidden":
            tree.add_problem(path, "unknown key", suggest(path), at_key=True)
        elif path[-1] == "[key]":
            tree.add_problem(path[:-1], *_split(str(detail["ctx"]["error"]), ""), at_key=True)
        elif kind != "misplaced":  # `add_misplaced` finds those, also beside wrong values
            value = _as_written(tree.values, path, otherwise=detail["input"])
            tree.add_problem(path, *_about_value(kind, path=path, value=value, context=detail.get("ctx", {})))


def add_odd_keys(tree: Tree) -> None:
    """Add a problem for each key that is no text in YAML, but where a key is a value, which its field checks."""
    for path in sorted(tree.odd_keys, key=str):
        above, key = path[:-1], str(path[-1])
        if is_leaf(label(above)) and not is_argument(label(path)):
            continue
        section = _as_written(tree.values, above, otherwise={})
        keys = list(section)
        before = section[keys[keys.index(key) - 1]] if key in keys[1:] else None
        hint = f"write {scalars.quoted(key)}"
        if scalars.is_null(section.get(key)) and key.isdigit() and isinstance(before, scalars.Plain):
            hint = f"write {before}.{key}" if re.fullmatch(r"[-+]?\d+", before) else hint
        tree.add_problem(path, f"the key {scalars.shown(key)} is not text", hint, at_key=True)


def add_misplaced(tree: Tree) -> None:
    """Add a problem for each key that the name or kind of its section excludes, and for options of no optimizer."""
    sections: list[tuple[KeyPath, Any, Any]] = [(("schedule",), tree.values.get("schedule"), misplaced_in_schedule)]
    averages = tree.values.get("averages")
    if isinstance(averages, Mapping):
        sections += [(("averages", name), section, kinds.misplaced) for name, section in averages.items()]
    output = tree.values.get("output")
    loggers = output.get("loggers") if isinstance(output, Mapping) else None
    for index, section in enumerate(loggers if isinstance(loggers, list | tuple) else ()):
        sections.append((("output", "loggers", index), section, misplaced_in_logger))
    for path, section, misplaced in sections:
        for problem in misplaced(section) if isinstance(section, Mapping) else ():
            tree.add_problem((*path, problem.key), problem.message, problem.hint, at_key=True)
    optimizer = tree.values.get("optimizer")
    for key in optimizer if isinstance(optimizer, Mapping) else ():
        owners = [path for path in _owners(key) if path[0] in ("train", "schedule", "dataset", "swa")]
        if owners and key != "args" and ("optimizer", key) not in fields():
            tree.add_problem(("optimizer", key), "unknown key", _belongs(key, owners), at_key=True)


def suggest(path: KeyPath) -> str:
    """Say what to write instead of a key that its section does not know."""
    key, section = str(path[-1]), _general(path)[:-1]
    if len(key) > 60:
        return _known_keys(section)
    if glued := _without_space(key, section):
        return f"write `{glued[0]}: {glued[1]}`, with a space after the colon"
    word = _normal(key)
    inside = _normal("_".join(map(str, path)))
    for candidate in _suggested():
        if len(candidate) > 1 and _normal("_".join(candidate)) in (word, inside):
            return f"did you mean `{'.'.join(candidate)}`?"
    if owners := _owners(word):
        same = [owner for owner in owners if owner[:-1] == section]
        return f"did you mean `{label((*path[:-1], same[0][-1]))}`?" if same else _belongs(word, owners)
    if word in MEANT:
        return f"did you mean `{MEANT[word]}`?"
    here = [candidate[-1] for candidate in _suggested() if candidate[:-1] == section]
    old_names = [old for old, new in MEANT.items() if tuple(new.split(".")[:-1]) == section]
    if close := closest(word, [*here, *old_names]):
        meant = MEANT[close] if close in old_names else label((*path[:-1], close))
        return f"did you mean `{meant}`?"
    if close := closest(word, [candidate[-1] for candidate in _suggested() if candidate[-1:] != section[-1:]]):
        return _belongs(close, _owners(close))
    return _known_keys(section)


def closest(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice that a mistyped word most likely means."""
    if len(word) > 60:
        return None
    close = difflib.get_close_matches(_normal(word), list(choices), n=1, cutoff=0.7)
    return close[0] if close else None


def is_leaf(key: str) -> bool:
    """Return whether a dotted key is a field of the schema and not a section."""
    path = _general(tuple(key.split(".")))
    return path in fields() and not any(known[: len(path)] == path != known for known in fields())


def is_key(key: str) -> bool:
    """Return whether a dotted key is a field or a section of the schema, or below `args`."""
    path = _general(tuple(key.split(".")))
    return is_argument(key) or any(known[: len(path)] == path for known in fields())


def is_argument(key: str) -> bool:
    """Return whether a dotted key is below `model.args` or `dataset.args`, where null is a value."""
    section, *below = key.split(".", 2)
    return section in ("model", "dataset") and below[:1] == ["args"] and len(below) > 1


@functools.cache
def fields() -> dict[tuple[str, ...], FieldInfo]:
    """Return every field of the schema by its path."""
    return dict(_walk(Recipe, ()))


@functools.cache
def _suggested() -> list[tuple[str, ...]]:
    """Return the paths of the fields that a person writes."""
    return [path for path, info in fields().items() if info.json_schema_extra != INTERNAL]


def _walk(model: type[BaseModel], prefix: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    for name, info in model.model_fields.items():
        yield (*prefix, name), info
        named = (NAME,) if get_origin(info.annotation) is dict else ()
        if (section := section_of(info.annotation)) is not None:
            yield from _walk(section, (*prefix, name, *named))


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the class of the sections that a field holds: one, an optional one, a list, or some by name."""
    types = (annotation, *get_args(annotation))
    return next((one for one in types if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _general(path: KeyPath) -> tuple[str, ...]:
    """Return the path with a user's own name replaced, without indices of lists."""
    parts = tuple(part for part in path if isinstance(part, str))
    return ("averages", NAME, *parts[2:]) if parts[:1] == ("averages",) and len(parts) > 1 else parts


def _owners(key: str) -> list[tuple[str, ...]]:
    """Return the paths of the schema that end in this key, without `name`, which many have, and keys of lists.

    `swap` repeats keys of other sections for its workers: they count only if no other section has the key.
    """
    found = [
        path
        for path in _suggested()
        if _normal(path[-1]) == _normal(key) != "name"
        and path[:-1] not in (("optimizer", "groups"), ("output", "loggers"))
    ]
    return [path for path in found if path[0] != "swap"] or found


def _belongs(key: str, owners: Sequence[tuple[str, ...]]) -> str:
    sections = " or ".join(f"`{'.'.join(owner[:-1])}`" for owner in owners if len(owner) > 1)
    if not sections:
        return f"`{key}` belongs at the top, outside of every section"
    return f"`{key}` belongs to {sections}: write {' or '.join('.'.join(owner) for owner in owners)}"


def _known_keys(section: tuple[str, ...]) -> str:
    keys = [candidate[-1] for candidate in _suggested() if candidate[:-1] == section]
    return f"the keys {'here' if section else 'at the top'} are {', '.join(keys)}"


def _normal(word: str) -> str:
    return re.sub(r"[-.\s]+", "_", word.strip()).lower()


def _required(path: KeyPath) -> list[KeyPath]:
    """Return the path itself, or the keys that a missing section must have."""
    return [leaf for leaf, info in fields().items() if leaf[:-1] == path and info.is_required()] or [path]


def _description(path: KeyPath) -> str:
    """Return the description of a key; empty for keys that the schema leaves open."""
    info = fields().get(_general(path))
    return (info.description if info else None) or ""


def _missing(path: KeyPath) -> tuple[str, str]:
    """Return message and hint for a key that has to be there."""
    section = f"to the section `{label(path[:-1])}`" if len(path) > 1 else "at the top"
    meaning = _description(path)
    return "is missing", f"add `{path[-1]}:` {section}" + (f" ({meaning})" if meaning else "")


def _as_written(values: Any, path: KeyPath, *, otherwise: Any) -> Any:
    """Return the value before a field typed it; `otherwise` for a default that a validator filled in."""
    for part in path:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return otherwise
    return values


def _about_value(kind: str, *, path: KeyPath, value: Any, context: Mapping[str, Any]) -> tuple[str, str]:
    """Return message and hint for a value that its field refuses."""
    meaning = _description(path) or "correct the value"
    if kind == "value_error":
        return _split(str(context["error"]), meaning)
    if kind in ("model_type", "dict_type"):
        return _about_section(path, value)
    if kind == "list_type":
        if scalars.is_null(value):
            return "takes a list", "write [] for an empty one"
        return f"takes a list, not {scalars.shown(value)}", f"write [{_item(path, value)}]"
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
    if len(choices) == 1:
        return f"{scalars.shown(value)} is not {choices[0]}, the only choice", f"write {choices[0]}"
    close, message = closest(word, choices), f"{scalars.shown(value)} is not one of {', '.join(choices)}"
    return message, f"did you mean `{close}`?" if close else f"choose one of them ({meaning})"


def _about_section(path: KeyPath, value: Any) -> tuple[str, str]:
    name = label(path)
    if not path:
        return "the recipe is not a section with keys", "write `key: value` lines, such as `model: {name: ...}`"
    if scalars.is_null(value):
        required = [str(leaf[-1]) for leaf in _required(_general(path)) if leaf != _general(path)]
        otherwise = f", at least {', '.join(required)}" if required else ", or leave the section out"
        return "has no value", f"indent its keys below it{otherwise}"
    message = f"{scalars.shown(value)} is a value, but `{name}` is a section"
    if isinstance(value, (list, tuple)):
        message = f"a list is given, but `{name}` is a section"
    elif isinstance(value, scalars.Word) and isinstance(path[-1], str):
        key, word = _without_space(value, _general(path)) or (_key_of(value, _general(path)), value)
        return message, f"write {shlex.quote(f'{name}.{key}={word}')}" if key else f"write {name}.KEY=VALUE"
    elif glued := _without_space(value, _general(path)):
        section = _in_brackets({glued[0]: scalars.Plain(glued[1])})
        return f"{scalars.shown(value)} has no space after the colon", f"write `{path[-1]}: {section}`"
    elif (key := _key_of(value, _general(path))) is not None:
        section = _in_brackets({key: value})  # in a list it stands alone
        return message, f"write `{path[-1]}: {section}`" if isinstance(path[-1], str) else f"write {section}"
    return message, "indent its keys below it, or write them in braces, {key: value}"


def _key_of(value: Any, section: tuple[str, ...]) -> str | None:
    """Return the key that a value in place of a section most likely means: a required one that takes it, or name."""
    for leaf in (*_required(section), (*section, "name")):
        with suppress(KeyError, ValidationError):
            TypeAdapter(fields()[_general(leaf)].rebuild_annotation()).validate_python(value)
            return str(leaf[-1])
    return None


def _without_space(value: Any, section: tuple[str, ...]) -> tuple[str, str] | None:
    """Return key and value of text such as `key:value`, if the section has the key."""
    glued = re.fullmatch(r"(\w+):(\S+)", value) if isinstance(value, str) else None
    return (glued[1], glued[2]) if glued and (*section, glued[1]) in fields() else None


def _item(path: KeyPath, value: Any) -> str:
    """Write a value as the item of the list at a path that it means: the value, or the section with its key."""
    key = None if isinstance(value, Mapping) else _key_of(value, _general(path))
    if key is not None:
        try:
            TypeAdapter(fields()[_general(path)].rebuild_annotation()).validate_python([value])
        except ValidationError:
            return _in_brackets({key: value})
    return _in_brackets(value)


def _in_brackets(value: Any) -> str:
    """Write a value as it stands inside brackets or braces, in quotes where YAML needs them."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_in_brackets(key)}: {_in_brackets(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_in_brackets, value))}]"
    if isinstance(value, scalars.Plain) and not scalars.is_text(value):
        return value
    item = scalars.shown(value).strip("`")
    return item if re.fullmatch(r"\w[\w.:*%/+-]*[\w*%]|\w", item) else json.dumps(item, ensure_ascii=False)


def _split(text: str, otherwise: str) -> tuple[str, str]:
    """Split `what is wrong: what to do` into its halves."""
    message, colon, action = text.rpartition(": ")
    return (message, action) if colon else (text, otherwise)
