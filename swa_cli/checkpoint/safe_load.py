"""Load files of weights as untrusted input, or say where the weights stand in a file that cannot be loaded so.

The one idea: trust nothing that a file says of itself. `torch.load(weights_only=True)` runs no code, but it accepts a
flipped bit, a tensor of terabytes over one stored number, and storages compressed a thousandfold. So the checksums are
verified first, a class that the file names becomes one of `STAND_INS` (plain values, or objects that hold nothing), and
everything loaded is counted and checked. Where a file needs other classes, an unpickler that makes none of them finds
the keys of the weights, so that the error can give the command that extracts them.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import reduce
from itertools import zip_longest
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swa_cli.averaging.model_state import place_of, with_metadata
from swa_cli.checkpoint import other_formats
from swa_cli.errors import UserError
from swa_cli.units import some_of

MAX_VALUES = 20_000_000  # beside tensors: enough for averages of a million steps
MAX_CONTAINERS = 1_000_000  # the state of an optimizer has one per parameter
MAX_DEPTH = 50
MAX_OVERLAP = 8  # how many times different tensors may cover the bytes of a file; a shared weight is one tensor
VERSIONS_KEY = "state_dict_metadata"  # in the metadata of a safetensors file: that of the state dict, as JSON
MAX_KEYS = 3  # in front of a state dict
MAX_EXAMPLES = 10  # values of a list that are looked at
STORAGE = re.compile(r"[^/]+/data/[^/]+")  # a part of what torch.save writes: the numbers of tensors
UNSUPPORTED = re.compile(r"nsupported (?:class|GLOBAL|global: GLOBAL) ([\w.]+)")  # in torch's error messages
ZIP_START, PICKLE_START = b"PK\x03\x04", b"\x80"  # of what torch.save writes: since torch 1.6, and before
_NUM_LEGACY_PICKLES = 3  # before the content in files of torch < 1.6: magic number, protocol, machine


class DamagedError(UserError):
    """A file that cannot be read, or no longer holds what was written."""


@dataclass(frozen=True)
class Place:
    """The keys that lead to a state dict, or to a whole network."""

    keys: tuple[str | int, ...]
    num_tensors: int
    is_network: bool = False

    @property
    def expression(self) -> str:
        """Python code that follows the content: `['model'].state_dict()`."""
        return "".join(f"[{key!r}]" for key in self.keys) + ".state_dict()" * self.is_network

    def state(self, content: Any) -> Any:
        """Return what stands at this place."""
        return reduce(getitem, self.keys, content)

    def __str__(self) -> str:
        return self.expression if self.is_network else f"{self.expression} ({self.num_tensors} tensors)"


def read_archive(path: Path) -> Any:
    """Return what `torch.save` wrote, on the CPU, with verified checksums; no code in it is run.

    Values that other programs keep beside weights, such as options and numbers of numpy, become plain values.

    Raises:
        DamagedError: The file cannot be read, or its checksums are wrong.
        UserError: The file holds something that weights do not need.
    """
    try:
        is_zip = zipfile.is_zipfile(path)  # torch < 1.6, of the time of timgaripov/swa, wrote plain pickles
        sizes = _verify(path) if is_zip else None
        # torch warns about files that are rejected below.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(list(STAND_INS)):
            content = torch.load(path, weights_only=True, mmap=is_zip, map_location="cpu")
    except UserError:
        raise
    except Exception as error:  # zipfile, pickle and torch raise a dozen types at damaged and hostile files
        if needed := _needed_objects(path, error):
            raise needed from error
        raise _unreadable_archive(path, error) from error
    _require_plain(content, path)
    if sizes is not None:
        _require_whole(content, sizes, path)
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
        raise _unreadable(path, "safetensors", error) from error


def safetensors_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file.

    Raises:
        DamagedError: The file cannot be read.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except Exception as error:  # of the parser, of the file system
        raise _unreadable(path, "safetensors", error) from error


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
        raise _unreadable(path, "an index of safetensors", error) from error
    shards = [read_safetensors(path.parent / name) for name in names]
    return {name: value for shard in shards for name, value in shard.items()}


def tensors(content: Any) -> Iterator[Tensor]:
    """Iterate over every tensor in nested dicts, lists, tuples and sets.

    Raises:
        ValueError: There is something else than tensors and plain values, too much of it, or it is nested too deeply.
    """
    num_values, num_containers, waiting = 0, 0, [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple, set)):
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
    return sum(_storages(content))


def _storages(content: Any) -> list[int]:
    """Return the bytes of each storage below the tensors of `content`."""
    storages = {value.untyped_storage()._cdata: value.untyped_storage().nbytes() for value in tensors(content)}
    return list(storages.values())


def find_weights(content: object) -> list[Place]:
    """Find the networks, and the dicts that hold only tensors, in nested dicts; largest first."""
    return sorted(_find(content, ()), key=lambda place: -place.num_tensors)


def find_in_list(content: object) -> list[Place]:
    """Find the networks, and the dicts that hold only tensors, in the values of a list or tuple, in its order."""
    values = content[:MAX_EXAMPLES] if isinstance(content, list | tuple) else ()
    return [
        replace(place, keys=(index, *place.keys)) for index, value in enumerate(values) for place in find_weights(value)
    ]


def extract_command(path: Path, places: Sequence[Place]) -> str:
    """Return how to write weights of a file to one of their own: a shell command for each place.

    torch itself lacks our stand-ins, so where the file names objects its command has to run their code; it says so.
    """
    try:
        torch.load(path, weights_only=True, mmap=zipfile.is_zipfile(path), map_location="cpu")
        trust, loader = "", "weights_only=True"
    except Exception:  # at objects, torch raises what pickle does
        trust, loader = other_formats.TRUST, "weights_only=False"
    commands = []
    for place in places:
        load = f"torch.load({str(path)!r}, map_location='cpu', {loader}){place.expression}"
        code = f"import torch; torch.save({load}, 'weights.pt')"
        commands.append(other_formats.run(code))
    return f"{trust}: {' or '.join(commands)}"


def _verify(path: Path) -> list[int]:
    """Verify the checksum of every part, and that none is compressed and so larger in memory than in the file.

    Returns:
        The bytes of each part that is a storage of tensors.
    """
    with zipfile.ZipFile(path) as archive:
        if other := other_formats.of_archive(archive.namelist(), path):
            raise DamagedError(f"{path}: {other[0]}", hint=other[1])
        for part in archive.infolist():
            if part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size:
                raise DamagedError(
                    f"{path}: holds a compressed part, which torch.save never writes",
                    hint="unpack it, and save the weights with torch.save",
                )
        damaged = archive.testzip()
        sizes = [part.file_size for part in archive.infolist() if STORAGE.fullmatch(part.filename)]
    if damaged is not None:
        raise DamagedError(
            f"{path}: is damaged: the checksum of {damaged!r} is wrong", hint="take another copy of the file"
        )
    return sizes


def _needed_objects(path: Path, error: Exception) -> DamagedError | None:
    """Return the error for a file that needs classes or functions: such as a whole model, or hyperparameters."""
    try:
        with torch.serialization.safe_globals(list(STAND_INS)):
            objects = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # no archive, or a broken one; the first error may still name a class
        objects = UNSUPPORTED.findall(str(error))
    if not objects:
        return None
    hint = "ask whoever wrote it for a state_dict of dense tensors"
    if found := _find_in_file(path):
        others = f" (it also holds weights at {some_of(found[1:])})" if len(found) > 1 else ""
        hint = f"take its weights out{extract_command(path, found[:1])}{others}"
    return DamagedError(
        f"{path}: cannot be read as a checkpoint without running code: beside tensors it holds {some_of(objects)}",
        hint=hint,
    )


def _find_in_file(path: Path) -> list[Place]:
    """Find the weights in a file, largest first; empty unless `torch.save` wrote it."""
    try:
        if not zipfile.is_zipfile(path):
            with open(path, "rb") as file:
                for _ in range(_NUM_LEGACY_PICKLES):
                    _Outline(file).load()
                return find_weights(_Outline(file).load())
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(name) as part:
                return find_weights(_Outline(part).load())
    except Exception:  # pickle raises anything at a broken or hostile file; the message then lacks a hint
        return []


def _find(value: object, keys: tuple[str, ...]) -> Iterator[Place]:
    if isinstance(value, _Anything) and value.is_network:
        yield Place(keys, 0, is_network=True)
    if not isinstance(value, Mapping) or not value:
        return
    items = [(key, part) for key, part in value.items() if type(key) is str]  # an optimizer's keys are numbers
    if items and all(isinstance(part, (Tensor, _UnreadTensor)) for part in value.values()):
        yield Place(keys, len(value))
    elif len(keys) < MAX_KEYS:
        for key, part in items:
            yield from _find(part, (*keys, key))


class _UnreadTensor:
    """Stands for a tensor whose numbers are not read."""


class _Anything(dict[Any, Any]):
    """Stands for any object. It keeps the items of a dict, and drops what else it is made from."""

    is_network = False

    def __init__(self, *_: object, **options: object) -> None:
        """Drop the arguments."""

    def __setstate__(self, state: object) -> None:
        self.is_network = isinstance(state, dict) and {"_parameters", "_modules"} <= state.keys()

    def __hash__(self) -> int:  # type: ignore[override]  # it may be a key of a dict
        return id(self)

    def append(self, value: object) -> None:
        """Drop an item of a list."""

    def extend(self, values: object) -> None:
        """Drop items of a list."""


class _Outline(pickle.Unpickler):
    """Makes nothing that a file names: a pickle can call only what `find_class` returns."""

    def find_class(self, module: str, name: str) -> Any:
        is_tensor = module == "torch._utils" and name.startswith("_rebuild")
        return (lambda *_: _UnreadTensor()) if is_tensor else _Anything

    def persistent_load(self, identity: object) -> _UnreadTensor:
        return _UnreadTensor()


def _require_plain(content: Any, path: Path) -> None:
    """Require primitives and dense tensors over numbers that are in the file, and not too many of them."""
    claimed, reason = dict[tuple[object, ...], int](), None
    try:
        for value in tensors(content):
            reason = reason or _unusual(value)
            if reason is None:
                claimed[place_of(value)] = value.numel() * value.element_size()
    except ValueError as error:
        reason = str(error)
    if reason is None and sum(claimed.values()) > MAX_OVERLAP * path.stat().st_size:
        reason = "more numbers than the file has"
    if reason is not None:
        raise UserError(f"{path}: holds {reason}", hint="save a state_dict of dense tensors and plain values")


def _require_whole(content: Any, sizes: Sequence[int], path: Path) -> None:
    """Require a part of the file for each storage that is at least as large; `sizes` are those of the parts.

    torch maps the file into memory, and would read on behind a part that is too short. Which part is whose it does not
    say, and need not: if each fits into its own, then the largest fits into the largest, and so on.
    """
    pairs = zip_longest(sorted(_storages(content), reverse=True), sorted(sizes, reverse=True), fillvalue=0)
    if any(storage > size for storage, size in pairs):
        raise DamagedError(
            f"{path}: is damaged: some tensors are larger than what it holds of them",
            hint="take another copy of the file",
        )


def _attributes(value: dict[Any, Any]) -> list[Any]:
    """Return the attributes of a dict: torch keeps layers' versions there. Others could replace methods of the dict."""
    attributes: dict[str, Any] = getattr(value, "__dict__", {})
    if not attributes.keys() <= {"_metadata"}:
        raise ValueError("a dict with attributes that torch does not give it")
    return list(attributes.values())


def _unusual(value: Tensor) -> str | None:
    """Return what is wrong with a tensor, or None: all of its numbers must be stored."""
    if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided or value.device.type != "cpu":
        return f"a {type(value).__name__} of layout {value.layout} on {value.device}"
    if value.is_quantized or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"a tensor {tuple(value.shape)} whose numbers are not all in the file"
    return None


def _unreadable_archive(path: Path, error: Exception) -> DamagedError:
    """Return the error for a file that `torch.load` cannot read; its first bytes may tell more than torch."""
    hint = "name a file that torch.save wrote and that holds tensors and plain values only"
    start = b""
    with suppress(OSError), open(path, "rb") as file:
        start = file.read(len(ZIP_START))
    if start == ZIP_START and not zipfile.is_zipfile(path):
        reason, hint = "its end is missing", "take another copy of the file"
    elif start[:1] == PICKLE_START or start == ZIP_START:
        words = str(error).rpartition("WeightsUnpickler error: ")[2]  # what comes before is advice to run its code
        reason = words.partition("\n")[0] or type(error).__name__
    else:
        reason = "torch.save has not written it" if start else "it is empty"
    return DamagedError(f"{path}: cannot be read as a checkpoint ({reason})", hint=hint)


def _unreadable(path: Path, kind: str, error: Exception) -> DamagedError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return DamagedError(f"{path}: cannot be read as {kind} ({reason})", hint="take another copy of the file")


_NUMPY_TYPE = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[US]\d+")


class _NumberType:
    """Stands for a `numpy.dtype` of numbers or of text."""

    def __init__(self, code: str, align: object = False, copy: object = True) -> None:
        if not _NUMPY_TYPE.fullmatch(code):
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
    """Return a `numpy.generic`, such as `numpy.float64(93.1)`, as a Python number or text."""
    if not isinstance(kind, _NumberType) or not isinstance(data, bytes):
        raise ValueError("a numpy number without its type")
    if kind.code[0] in "US":
        return data.decode("utf-32" if kind.code[0] == "U" else "utf-8", errors="replace")
    if len(data) != np.dtype(kind.code).itemsize:
        raise ValueError(f"a numpy number of {len(data)} bytes and type {kind.code}")
    number: complex = np.frombuffer(data, kind.order + kind.code).item()
    return number


def _path(*parts: str) -> str:
    """Return a `pathlib` path as text."""
    return "/".join(map(str, parts)).replace("//", "/")


def _dict(*_: object) -> dict[Any, Any]:
    """Return a dict in place of a `collections.defaultdict`."""
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
OTHER_VALUES = (complex, bytearray, torch.dtype, torch.device, _Array, _Class, _NumberType)  # allowed beside weights
