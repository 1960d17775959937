"""What stands beside weights in other people's files and runs no code: numbers of numpy, options, paths.

The one idea: no class that a file names is made. Each name is read as one of the stand-ins below, which are plain
values or hold nothing: a number, a text, a dict. `STAND_INS` is the whole list; every other name is refused.

Files of weights as untrusted input: what comes out is plain values and dense tensors, or one clean message.

torch.load with `weights_only=True` runs no code, but it accepts a flipped bit, a tensor of terabytes over one stored
number, and storages deflated a thousandfold; and what it does not accept comes as a dozen kinds of exceptions.
"""

from __future__ import annotations

import json
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swa_cli.averaging.model_state import with_metadata
from swa_cli.checkpoint import outline
from swa_cli.errors import UserError

Number = bool | int | float | complex

# Letters of `struct` for the kinds and sizes of numpy's numbers.
_LETTERS: Mapping[str, str] = {
    "b1": "?",
    **{f"i{size}": letter for size, letter in ((1, "b"), (2, "h"), (4, "i"), (8, "q"))},
    **{f"u{size}": letter for size, letter in ((1, "B"), (2, "H"), (4, "I"), (8, "Q"))},
    **{f"f{size}": letter for size, letter in ((2, "e"), (4, "f"), (8, "d"))},
    "c8": "2f",
    "c16": "2d",
}
_TEXT = re.compile(r"[US]\d+")


class NumberType:
    """A `numpy.dtype` of numbers or of text."""

    def __init__(self, code: str, align: object = False, copy: object = True) -> None:
        if code not in _LETTERS and not _TEXT.fullmatch(code):
            raise ValueError(f"a numpy.dtype {code!r}")
        self.code = code
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


class Array:
    """A `numpy.ndarray`, of which nothing is kept: no weights stand in one."""

    def __setstate__(self, state: object) -> None:
        """Drop the numbers."""


class Options(dict[Any, Any]):
    """An `argparse.Namespace`, as a dict."""

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.update(state)


class Name:
    """A class that is named and not made, such as the one that a `defaultdict` makes values of."""


def number(kind: NumberType, data: bytes) -> Number | str:
    """A `numpy.generic`, such as `numpy.float64(93.1)`, as a number of Python.

    Raises:
        ValueError: It is of another kind or size than its type says.
    """
    if not isinstance(kind, NumberType) or not isinstance(data, bytes):
        raise ValueError("a numpy number without its type")
    if kind.code not in _LETTERS:
        return data.decode("utf-32" if kind.code[0] == "U" else "utf-8", errors="replace")
    try:
        values: tuple[Any, ...] = struct.unpack(kind.order + _LETTERS[kind.code], data)
    except struct.error as error:
        raise ValueError(f"a numpy number of {len(data)} bytes and type {kind.code}") from error
    return complex(*values) if kind.code[0] == "c" else values[0]


def path(*parts: str) -> str:
    """A `pathlib` path, as text."""
    return "/".join(map(str, parts)).replace("//", "/")


def array(*_: object) -> Array:
    """What `numpy` rebuilds an array with."""
    return Array()


def mapping(*_: object) -> dict[Any, Any]:
    """A `collections.defaultdict`, as a dict."""
    return {}


_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")  # before and since numpy 2
_PATHS = [
    f"{module}.{name}"
    for module in ("pathlib", "pathlib._local")
    for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
]
# (stand-in, name in the file), as `torch.serialization.safe_globals` takes them
STAND_INS: list[tuple[Callable[..., Any], str]] = [
    *((number, f"{module}.scalar") for module in _MULTIARRAY),
    *((array, f"{module}._reconstruct") for module in _MULTIARRAY),
    (NumberType, "numpy.dtype"),
    (Array, "numpy.ndarray"),
    (Options, "argparse.Namespace"),
    (mapping, "collections.defaultdict"),
    *((Name, f"builtins.{name}") for name in ("list", "dict", "int", "float", "str")),
    *((path, name) for name in _PATHS),
]


MAX_VALUES = 20_000_000  # beside tensors: averages that were updated at each of a million steps fit
MAX_CONTAINERS = 1_000_000  # the state of an optimizer has one a parameter
MAX_DEPTH = 50
MAX_OVERLAP = 8  # how often the bytes of a file may be seen through different tensors: shared weights
VERSIONS_KEY = "state_dict_metadata"  # of the metadata of a safetensors file: that of the state dict, as JSON
PLAIN = (str, bytes, bool, int, float, type(None))
BESIDE = (complex, torch.dtype, torch.device, Array, Name, NumberType)  # what else may stand beside weights

UNSUPPORTED = re.compile(r"nsupported (?:class|GLOBAL|global: GLOBAL) ([\w.]+)")  # as torch says it


class DamagedError(UserError):
    """A file that is not, or no longer, what was written."""


def read_archive(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU, its checksums verified; no code of it is run.

    What other programs keep beside weights, such as their options and numbers of numpy, comes out as plain values: see
    `inert`.

    Raises:
        DamagedError: It cannot be read, or is not what was written.
        UserError: It holds what weights do not need.
    """
    try:
        is_zip = zipfile.is_zipfile(path)  # torch wrote no zip before 1.6; timgaripov/swa checkpoints are of that time
        if is_zip:
            _verify(path)
        # torch wonders aloud at what is then refused.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(list(STAND_INS)):
            content = torch.load(path, weights_only=True, mmap=is_zip, map_location="cpu")
    except UserError:
        raise
    except Exception as error:  # zipfile, pickle and torch raise a dozen kinds for foreign and hostile files
        if objects := _objects(path, error):
            raise _holds_objects(path, objects) from error
        raise DamagedError(
            f"{path}: cannot be read as a checkpoint ({_first_line(error)})",
            hint="name a file that torch.save wrote and that holds tensors and plain values only",
        ) from error
    _require_plain(content, path)
    return content


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, whose format has nothing that could run; one of ours has the layers' versions.

    Raises:
        DamagedError: It cannot be read.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            versions = (file.metadata() or {}).get(VERSIONS_KEY, "null")
            names = list(file.keys())
            return with_metadata({name: file.get_tensor(name) for name in names}, json.loads(versions))
    except Exception as error:  # of its parser, of the file system, of torch for a type that it lacks
        raise DamagedError(
            f"{path}: cannot be read as safetensors ({_first_line(error)})", hint="take another copy of the file"
        ) from error


def read_shards(path: Path) -> dict[str, Tensor]:
    """The tensors of safetensors files that an index names, as transformers and accelerate write large networks.

    Raises:
        DamagedError: The index or a file beside it cannot be read.
    """
    try:
        files = json.loads(path.read_text())["weight_map"]
        names = sorted(set(files.values()))
        if not all(name == Path(name).name and name.endswith(".safetensors") for name in names):
            raise ValueError(f"it names files elsewhere, such as {names[0]!r}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(
            f"{path}: cannot be read as an index of safetensors ({_first_line(error)})",
            hint="take another copy of the file",
        ) from error
    shards = {name: read_safetensors(path.parent / name) for name in names}
    return {name: value for name_of_file in names for name, value in shards[name_of_file].items()}


def tensors(content: Any) -> Iterator[Tensor]:
    """Every tensor in nested dicts, lists and tuples.

    Raises:
        ValueError: There is something else than tensors and plain values, or too much, or it is nested too deeply.
    """
    num_values, num_containers, waiting = 0, 0, [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple)):
            parts = [*_attributes(value), *value.keys(), *value.values()] if isinstance(value, dict) else value
            num_containers += 1
            num_values += len(parts)  # what is shared is counted each time: whoever reads it meets it each time
            if num_values > MAX_VALUES or num_containers > MAX_CONTAINERS or depth > MAX_DEPTH:
                raise ValueError("more values, or deeper ones, than weights need")
            waiting.extend((part, depth + 1) for part in parts if type(part) not in PLAIN)
        elif not isinstance(value, (*PLAIN, *BESIDE)):
            raise ValueError(f"a {type(value).__name__}")


def _attributes(value: dict[Any, Any]) -> list[Any]:
    """What torch keeps beside the tensors of a state dict: the version of each layer.

    Raises:
        ValueError: Anything else; an attribute could stand in for a method of the dict.
    """
    attributes: dict[str, Any] = getattr(value, "__dict__", {})
    if not attributes.keys() <= {"_metadata"}:
        raise ValueError("a dict with attributes that torch does not give it")
    return list(attributes.values())


def num_bytes(content: Any) -> int:
    """What the tensors of `content` take in a file, each storage once."""
    storages = {value.untyped_storage()._cdata: value.untyped_storage().nbytes() for value in tensors(content)}
    return sum(storages.values())


def _verify(path: Path) -> None:
    """The checksum of every part; nothing is deflated, so nothing is larger in memory than in the file."""
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            if part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size:
                raise DamagedError(
                    f"{path}: holds a compressed part, which torch.save never writes",
                    hint="unpack it, and save the weights with torch.save",
                )
        damaged = archive.testzip()
    if damaged is not None:
        raise DamagedError(
            f"{path}: is damaged: the checksum of {damaged!r} is wrong", hint="take another copy of the file"
        )


def _objects(path: Path, error: Exception) -> list[str]:
    """The classes and functions that reading a file would need beside tensors and plain values."""
    try:
        with torch.serialization.safe_globals(list(STAND_INS)):
            return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # it is of torch < 1.6, no archive, or a broken one: the error of reading it may name one
        return UNSUPPORTED.findall(str(error))


def _holds_objects(path: Path, objects: list[str]) -> DamagedError:
    """A Lightning checkpoint with objects among its hyperparameters, a whole model, a trap: only code can read it."""
    names = ", ".join(objects[:3]) + ", ..." * (len(objects) > 3)
    found = outline.find_in_file(path)
    hint = "ask whoever wrote it for a state_dict of dense tensors"
    if found:
        others = f" (it also holds weights at {outline.describe(found[1:])})" if len(found) > 1 else ""
        line = outline.extract_command(path, found[0], weights_only=False)
        hint = f"take its weights out where you trust who wrote it, since this runs its code: {line}{others}"
    return DamagedError(
        f"{path}: cannot be read as a checkpoint without running code: beside tensors it holds {names}", hint=hint
    )


def _require_plain(content: Any, path: Path) -> None:
    """Primitives and dense tensors over numbers that are really in the file, and not too many of them."""
    claimed, reason = 0, None
    try:
        for value in tensors(content):
            claimed += value.numel() * value.element_size()
            reason = reason or _strange(value)
    except ValueError as error:
        reason = str(error)
    if reason is None and claimed > MAX_OVERLAP * path.stat().st_size:
        reason = "more numbers than the file has"
    if reason is not None:
        raise UserError(f"{path}: holds {reason}", hint="save a state_dict of dense tensors and plain values")


def _strange(value: Tensor) -> str | None:
    """What is unusual about a tensor: each number of it must be stored."""
    if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided or value.device.type != "cpu":
        return f"a {type(value).__name__} of layout {value.layout} on {value.device}"
    if value.is_quantized or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"a tensor {tuple(value.shape)} whose numbers are not all in the file"
    return None


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
