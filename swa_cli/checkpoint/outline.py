"""Find where weights stand in a file, without making anything that the file names.

The one idea: a pickle can call only what its unpickler returns for a name, and this one returns stand-ins that hold
nothing. The nesting of keys remains, so that an error message can give the command that extracts the weights.
"""

from __future__ import annotations

import pickle
import shlex
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

MAX_DEPTH = 3  # keys in front of a state dict
_NUM_LEGACY_PICKLES = 3  # before the content in files of torch < 1.6: magic number, protocol, machine


@dataclass(frozen=True)
class Place:
    """The keys that lead to a state dict, or to a whole network."""

    keys: tuple[str, ...]
    num_tensors: int
    is_network: bool = False

    @property
    def expression(self) -> str:
        """Python code that follows the content: `['model'].state_dict()`."""
        return "".join(f"[{key!r}]" for key in self.keys) + ".state_dict()" * self.is_network

    def __str__(self) -> str:
        return self.expression if self.is_network else f"{self.expression} ({self.num_tensors} tensors)"


class _TensorStandIn:
    """A tensor; its numbers are not read."""


class _ObjectStandIn:
    """Any object that a file names; it drops what it is made from."""

    is_network = False

    def __new__(cls, *args: object, **options: object) -> _ObjectStandIn:
        return super().__new__(cls)

    def __init__(self, *args: object, **options: object) -> None:
        """Drop the arguments."""

    def __setstate__(self, state: object) -> None:
        self.is_network = isinstance(state, dict) and {"_parameters", "_modules"} <= state.keys()

    def __setitem__(self, key: object, value: object) -> None:
        """Drop an item."""

    def append(self, value: object) -> None:
        """Drop an item."""

    def extend(self, values: object) -> None:
        """Drop items."""


class _DictStandIn(dict[Any, Any]):
    """A dict of any class."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        """Drop its attributes."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name.startswith("_rebuild"):
            return lambda *args: _TensorStandIn()
        return _DictStandIn if name.endswith(("Dict", "dict")) else _ObjectStandIn

    def persistent_load(self, identity: object) -> _TensorStandIn:
        return _TensorStandIn()


def find_in_file(path: Path) -> list[Place]:
    """Find the weights in a file, largest first; empty unless `torch.save` wrote it."""
    try:
        if not zipfile.is_zipfile(path):
            with open(path, "rb") as file:
                for _ in range(_NUM_LEGACY_PICKLES):
                    _Unpickler(file).load()
                return find(_Unpickler(file).load())
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(name) as part:
                return find(_Unpickler(part).load())
    except Exception:  # pickle raises anything at a broken or hostile file; the message then lacks a hint
        return []


def find(content: object) -> list[Place]:
    """Find the networks, and the dicts that hold only tensors, in nested dicts; largest first."""
    return sorted(_find(content, ()), key=lambda place: -place.num_tensors)


def describe(places: Sequence[Place]) -> str:
    """Return at most three places as text: `['generator'] (12 tensors), ['critic'] (8 tensors)`."""
    return ", ".join(map(str, places[:3])) + ", ..." * (len(places) > 3)


def extract_command(path: Path, place: Place, *, weights_only: bool) -> str:
    """Return a shell command that writes these weights to a file of their own."""
    name, loader = str(path), f"weights_only={weights_only}"
    code = f"import torch; torch.save(torch.load({name!r}, {loader}){place.expression}, 'weights.pt')"
    is_plain = not any(character in code for character in '"$`\\!')
    return f'python -c "{code}"' if is_plain else f"python -c {shlex.quote(code)}"


def _find(value: object, keys: tuple[str, ...]) -> Iterator[Place]:
    if isinstance(value, _ObjectStandIn) and value.is_network:
        yield Place(keys, 0, is_network=True)
    if not isinstance(value, Mapping) or not value:
        return
    items = [(key, part) for key, part in value.items() if type(key) is str]  # an optimizer's keys are numbers
    if items and all(isinstance(part, (Tensor, _TensorStandIn)) for part in value.values()):
        yield Place(keys, len(value))
    elif len(keys) < MAX_DEPTH:
        for key, part in items:
            yield from _find(part, (*keys, key))
