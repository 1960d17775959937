"""What all sections share: no unknown key, and keys that do not go together."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import ConfigDict
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

STRICT = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)
INTERNAL: JsonDict = {"internal": True}  # of a field that swa alone writes: no template or JSON Schema has it


class Misfit(NamedTuple):
    """A key that does not go with the name or kind of its section, or that this one needs."""

    key: str
    message: str
    hint: str


def refuse(misfits: list[Misfit]) -> None:
    """Let pydantic report the first."""
    if misfits:
        raise PydanticCustomError("misfit", "{key}: {message}", misfits[0]._asdict())
