"""Where the weights stand in a file that is refused: its keys, read without making anything that the file names.

The one idea: a pickle can only call what its reader finds for a name, and this reader finds stand-ins that hold
nothing. What is left is the nesting of keys, so that a message can give the line that takes the weights out.
"""

from __future__ import annotations

import pickle
import shlex
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

MAX_DEPTH = 3  # keys that may stand before a state dict
_NUM_LEGACY_PICKLES = 3  # before the content, in files of torch < 1.6: magic number, protocol, machine


@dataclass(frozen=True)
class Place:
    """Where weights stand: behind these keys, as a state dict or as a network."""

    keys: tuple[str, ...]
    num_tensors: int
    is_network: bool = False

    @property
    def expression(self) -> str:
        """What follows the content in Python: `['model'].state_dict()`."""
        return "".join(f"[{key!r}]" for key in self.keys) + ".state_dict()" * self.is_network

    def __str__(self) -> str:
        return self.expression if self.is_network else f"{self.expression} ({self.num_tensors} tensors)"


class Stored:
    """A tensor; its numbers are not read."""


class _Thing:
    """Whatever a file names."""

    is_network = False

    def __new__(cls, *args: object, **options: object) -> _Thing:
        return super().__new__(cls)

    def __init__(self, *args: object, **options: object) -> None:
        """Drop what it would be made from."""

    def __setstate__(self, state: object) -> None:
        self.is_network = isinstance(state, dict) and {"_parameters", "_modules"} <= state.keys()

    def __setitem__(self, key: object, value: object) -> None:
        """Drop an item."""

    def append(self, value: object) -> None:
        """Drop an item."""

    def extend(self, values: object) -> None:
        """Drop items."""


class _Dict(dict[Any, Any]):
    """A dict of any class."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        """Drop its attributes."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name.startswith("_rebuild"):
            return lambda *args: Stored()
        return _Dict if name.endswith(("Dict", "dict")) else _Thing

    def persistent_load(self, identity: object) -> Stored:
        return Stored()


def places_in(path: Path) -> list[Place]:
    """Where the weights of a file stand, largest first; empty where it is no file of `torch.save`."""
    try:
        if not zipfile.is_zipfile(path):
            with open(path, "rb") as file:
                for _ in range(_NUM_LEGACY_PICKLES):
                    _Reader(file).load()
                return places(_Reader(file).load(), tensor=Stored)
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(name) as part:
                return places(_content(part), tensor=Stored)
    except Exception:  # a broken or hostile file ends in whatever pickle meets; there is only a hint less to give
        return []


def places(content: object, *, tensor: type) -> list[Place]:
    """Where dicts of tensors alone stand in nested dicts, and networks; largest first.

    Args:
        content: Of a file.
        tensor: The class of what stands for a tensor.
    """
    return sorted(_places(content, (), tensor), key=lambda place: -place.num_tensors)


def line(path: Path, place: Place, *, weights_only: bool) -> str:
    """A command that writes these weights to a file of their own, to be pasted into a shell."""
    name, loader = str(path), f"weights_only={weights_only}"
    code = f"import torch; torch.save(torch.load({name!r}, {loader}){place.expression}, 'weights.pt')"
    is_plain = not any(character in code for character in '"$`\\!')
    return f'python -c "{code}"' if is_plain else f"python -c {shlex.quote(code)}"


def _content(file: IO[bytes]) -> object:
    return _Reader(file).load()


def _places(value: object, keys: tuple[str, ...], tensor: type) -> Iterator[Place]:
    if isinstance(value, _Thing) and value.is_network:
        yield Place(keys, 0, is_network=True)
    if not isinstance(value, Mapping) or not value:
        return
    items = [(key, part) for key, part in value.items() if type(key) is str]  # numbers are those of parameters
    if items and all(isinstance(part, tensor) for part in value.values()):
        yield Place(keys, len(value))
    elif len(keys) < MAX_DEPTH:
        for key, part in items:
            yield from _places(part, (*keys, key), tensor)


def told(found: Sequence[Place]) -> str:
    """The places in words, three at most: `['generator'] (12 tensors), ['critic'] (8 tensors)`."""
    return ", ".join(map(str, found[:3])) + ", ..." * (len(found) > 3)
