"""The schema as a list of keys: what each means, may be, and is where a recipe leaves it out.

One idea: `swa new` and `swa schema` say what the schema says, so neither lists a key of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel


@dataclass(frozen=True)
class Key:
    """One key of a section; `section` is the class of what stands below it, if it is a section itself."""

    name: str
    description: str
    default: Any  # as a recipe file has it; None where there is none, or it depends on other keys
    choices: tuple[str, ...]  # empty where any value of its type is possible
    section: type[BaseModel] | None
    many: Literal["", "named", "listed"]  # sections by names of one's own, or a list of them
    pattern: str | None  # of its text


def keys(model: type[BaseModel]) -> list[Key]:
    """The keys of a section in their order."""
    defaults = model.model_construct().model_dump(mode="json")
    found = []
    for name, info in model.model_fields.items():
        sections = list(_sections(info.annotation))
        section = sections[0] if sections else None
        origin = get_origin(info.annotation)
        patterns = [about.pattern for about in info.metadata if getattr(about, "pattern", None)]
        found.append(
            Key(
                name,
                info.description or (section and _sentence(section)) or "",
                default=None if info.is_required() else defaults.get(name),
                choices=tuple(_choices(info.annotation)),
                section=section,
                many="named" if origin is dict and section else "listed" if origin is list and section else "",
                pattern=patterns[0] if patterns else None,
            )
        )
    return found


def all_sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The section itself and every one below it."""
    yield model
    for key in keys(model):
        if key.section is not None:
            yield from all_sections(key.section)


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)


def _choices(annotation: Any) -> Iterator[str]:
    """The words of a Literal that is all there is; beside another type they are not the only values."""
    parts = [part for part in get_args(annotation) if part is not type(None)]
    if get_origin(annotation) is Literal:
        yield from parts
    elif len(parts) == 1:
        yield from _choices(parts[0])


def _sentence(section: type[BaseModel]) -> str:
    return (section.__doc__ or "").strip().split("\n\n")[0].rstrip(".")
