"""What all sections share: no unknown key, and keys that do not go together."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import ConfigDict
from pydantic_core import PydanticCustomError

STRICT = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Misfit(NamedTuple):
    """A key that does not go with the name or kind of its section, or that this one needs."""

    key: str
    message: str
    hint: str


def refuse(misfits: list[Misfit]) -> None:
    """Let pydantic report the first."""
    if misfits:
        raise PydanticCustomError("misfit", "{key}: {message}", misfits[0]._asdict())
