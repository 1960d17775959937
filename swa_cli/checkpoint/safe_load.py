"""Load files of weights as untrusted input: the result is plain values and dense tensors, or one clear error.

The one idea: trust nothing that a file says of itself. `torch.load(weights_only=True)` runs no code, but it accepts a
flipped bit, a tensor of terabytes over one stored number, and storages compressed a thousandfold. So the checksums are
verified first, a class that the file names becomes one of `STAND_INS` (plain values, or objects that hold nothing), and
everything loaded is counted and checked.
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

MAX_VALUES = 20_000_000  # beside tensors: enough for averages of a million steps
MAX_CONTAINERS = 1_000_000  # the state of an optimizer has one per parameter
MAX_DEPTH = 50
MAX_OVERLAP = 8  # how many times tensors may cover the bytes of a file: shared weights
VERSIONS_KEY = "state_dict_metadata"  # in the metadata of a safetensors file: that of the state dict, as JSON
UNSUPPORTED = re.compile(r"nsupported (?:class|GLOBAL|global: GLOBAL) ([\w.]+)")  # in torch's error messages


class DamagedError(UserError):
    """A file that cannot be read, or no longer holds what was written."""


def read_archive(path: Path) -> Any:
    """Return what `torch.save` wrote, on the CPU, with verified checksums; no code in it is run.

    Values that other programs keep beside weights, such as options and numbers of numpy, become plain values.

    Raises:
        DamagedError: The file cannot be read, or its checksums are wrong.
        UserError: The file holds something that weights do not need.
    """
    try:
        is_zip = zipfile.is_zipfile(path)  # torch < 1.6, of the time of timgaripov/swa, wrote plain pickles
        if is_zip:
            _verify(path)
        # torch warns about files that are rejected below.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(list(STAND_INS)):
            content = torch.load(path, weights_only=True, mmap=is_zip, map_location="cpu")
    except UserError:
        raise
    except Exception as error:  # zipfile, pickle and torch raise a dozen types at damaged and hostile files
        if objects := _objects(path, error):
            raise _holds_objects(path, objects) from error
        raise DamagedError(
            f"{path}: cannot be read as a checkpoint ({_first_line(error)})",
            hint="name a file that torch.save wrote and that holds tensors and plain values only",
        ) from error
    _require_plain(content, path)
    return content


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, with the layers' versions if it is ours. The format holds no code.

    Raises:
        DamagedError: The file cannot be read.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            versions = (file.metadata() or {}).get(VERSIONS_KEY, "null")
            names = list(file.keys())
            return with_metadata({name: file.get_tensor(name) for name in names}, json.loads(versions))
    except Exception as error:  # of the parser, of the file system, of torch for a type that it lacks
        raise DamagedError(
            f"{path}: cannot be read as safetensors ({_first_line(error)})", hint="take another copy of the file"
        ) from error


def read_shards(path: Path) -> dict[str, Tensor]:
    """Return the tensors of all files in a safetensors index, as transformers and accelerate write large networks.

    Raises:
        DamagedError: The index, or a file beside it, cannot be read.
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
    shards = [read_safetensors(path.parent / name) for name in names]
    return {name: value for shard in shards for name, value in shard.items()}


def tensors(content: Any) -> Iterator[Tensor]:
    """Iterate over every tensor in nested dicts, lists and tuples.

    Raises:
        ValueError: There is something else than tensors and plain values, too much of it, or it is nested too deeply.
    """
    num_values, num_containers, waiting = 0, 0, [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple)):
            parts = [*_attributes(value), *value.keys(), *value.values()] if isinstance(value, dict) else value
            num_containers += 1
            num_values += len(parts)  # a shared container counts each time, since a reader meets it each time
            if num_values > MAX_VALUES or num_containers > MAX_CONTAINERS or depth > MAX_DEPTH:
                raise ValueError("more values, or deeper ones, than weights need")
            waiting.extend((part, depth + 1) for part in parts if type(part) not in PRIMITIVES)
        elif not isinstance(value, (*PRIMITIVES, *OTHER_VALUES)):
            raise ValueError(f"a {type(value).__name__}")


def num_bytes(content: Any) -> int:
    """Return the bytes that the tensors of `content` take in a file, each storage once."""
    storages = {value.untyped_storage()._cdata: value.untyped_storage().nbytes() for value in tensors(content)}
    return sum(storages.values())


def _verify(path: Path) -> None:
    """Verify the checksum of every part, and that none is compressed and so larger in memory than in the file."""
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
    """The classes and functions that loading the file would need beside tensors and plain values."""
    try:
        with torch.serialization.safe_globals(list(STAND_INS)):
            return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # no archive, or a broken one; the first error may still name a class
        return UNSUPPORTED.findall(str(error))


def _holds_objects(path: Path, objects: list[str]) -> DamagedError:
    """The error for a Lightning checkpoint with objects among its hyperparameters, a whole model, a trap."""
    names = ", ".join(objects[:3]) + ", ..." * (len(objects) > 3)
    hint = "ask whoever wrote it for a state_dict of dense tensors"
    if found := outline.find_in_file(path):
        others = f" (it also holds weights at {outline.describe(found[1:])})" if len(found) > 1 else ""
        command = outline.extract_command(path, found[0], weights_only=False)
        hint = f"take its weights out where you trust who wrote it, since this runs its code: {command}{others}"
    return DamagedError(
        f"{path}: cannot be read as a checkpoint without running code: beside tensors it holds {names}", hint=hint
    )


def _require_plain(content: Any, path: Path) -> None:
    """Require primitives and dense tensors over numbers that are in the file, and not too many of them.

    Raises:
        UserError: Something else was found.
    """
    claimed, reason = 0, None
    try:
        for value in tensors(content):
            claimed += value.numel() * value.element_size()
            reason = reason or _unusual(value)
    except ValueError as error:
        reason = str(error)
    if reason is None and claimed > MAX_OVERLAP * path.stat().st_size:
        reason = "more numbers than the file has"
    if reason is not None:
        raise UserError(f"{path}: holds {reason}", hint="save a state_dict of dense tensors and plain values")


def _attributes(value: dict[Any, Any]) -> list[Any]:
    """The attributes of a dict: torch keeps the versions of the layers beside the tensors of a state dict.

    Raises:
        ValueError: There are others; an attribute could replace a method of the dict.
    """
    attributes: dict[str, Any] = getattr(value, "__dict__", {})
    if not attributes.keys() <= {"_metadata"}:
        raise ValueError("a dict with attributes that torch does not give it")
    return list(attributes.values())


def _unusual(value: Tensor) -> str | None:
    """What is wrong with a tensor, if anything: each of its numbers must be stored."""
    if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided or value.device.type != "cpu":
        return f"a {type(value).__name__} of layout {value.layout} on {value.device}"
    if value.is_quantized or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"a tensor {tuple(value.shape)} whose numbers are not all in the file"
    return None


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


_TEXT_TYPE = re.compile(r"[US]\d+")
_STRUCT_FORMATS: Mapping[str, str] = {  # numpy's code of a number type -> that of `struct`
    "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
    "f2": "e", "f4": "f", "f8": "d", "c8": "2f", "c16": "2d",
}  # fmt: skip


class _NumberType:
    """Stands for a `numpy.dtype` of numbers or of text."""

    def __init__(self, code: str, align: object = False, copy: object = True) -> None:
        if code not in _STRUCT_FORMATS and not _TEXT_TYPE.fullmatch(code):
            raise ValueError(f"a numpy.dtype {code!r}")
        self.code = code
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


class _Array:
    """Stands for a `numpy.ndarray`, without its numbers: they are no weights."""

    def __init__(self, *_: object) -> None:
        """Drop the arguments."""

    def __setstate__(self, state: object) -> None:
        """Drop the numbers."""


class _Options(dict[Any, Any]):
    """Stands for an `argparse.Namespace`, as a dict."""

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.update(state)


class _Class:
    """Stands for a class that is named and not instantiated, such as the factory of a `defaultdict`."""


def _number(kind: _NumberType, data: bytes) -> complex | str:
    """A `numpy.generic`, such as `numpy.float64(93.1)`, as a Python number or text.

    Raises:
        ValueError: Type or size are not those of a number.
    """
    if not isinstance(kind, _NumberType) or not isinstance(data, bytes):
        raise ValueError("a numpy number without its type")
    if kind.code not in _STRUCT_FORMATS:
        return data.decode("utf-32" if kind.code[0] == "U" else "utf-8", errors="replace")
    try:
        values: tuple[Any, ...] = struct.unpack(kind.order + _STRUCT_FORMATS[kind.code], data)
    except struct.error as error:
        raise ValueError(f"a numpy number of {len(data)} bytes and type {kind.code}") from error
    return complex(*values) if kind.code[0] == "c" else values[0]


def _path(*parts: str) -> str:
    """A `pathlib` path, as text."""
    return "/".join(map(str, parts)).replace("//", "/")


def _dict(*_: object) -> dict[Any, Any]:
    """A `collections.defaultdict`, as a dict."""
    return {}


_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")  # before and since numpy 2
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
# (stand-in, name in the file), as `torch.serialization.safe_globals` takes them; every other name is refused.
STAND_INS: list[tuple[Callable[..., Any], str]] = [
    *((_number, f"{module}.scalar") for module in _MULTIARRAY),
    *((_Array, f"{module}._reconstruct") for module in _MULTIARRAY),
    (_NumberType, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    (_Options, "argparse.Namespace"),
    (_dict, "collections.defaultdict"),
    *((_Class, f"builtins.{name}") for name in ("list", "dict", "int", "float", "str")),
    *((_path, f"{module}.{name}") for module in ("pathlib", "pathlib._local") for name in _PATHS),
]
PRIMITIVES = (str, bytes, bool, int, float, type(None))
OTHER_VALUES = (complex, torch.dtype, torch.device, _Array, _Class, _NumberType)  # allowed beside weights
