"""Save our checkpoints atomically, and read the weight sets of any checkpoint safely.

The one idea: a checkpoint holds only primitives and tensors and carries its recipe; it is read as untrusted input.
Three files are ours, see `schema.py`, and a safetensors file of `swa export` is read as weights to ship;
`third_party.py` reads those of other programs. `batchnorm` says how fresh the statistics of a weight set are: `none` no
such layers | `frozen` kept from the start | `running` moving averages of training | `stale` averaged weights, not
recomputed | `recomputed`, `partial` by a pass over the training set.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor, nn

from swa_cli.averaging.average import WeightAverage
from swa_cli.averaging.bn_layers import has_batchnorm, is_frozen, is_refreshable
from swa_cli.averaging.kinds import OWNERS
from swa_cli.averaging.model_state import like
from swa_cli.averaging.model_state import read as read_tensors
from swa_cli.averaging.swag import Posterior, variance_of
from swa_cli.checkpoint import other_formats, safe_load, schema, third_party
from swa_cli.checkpoint.atomic import write_atomic
from swa_cli.errors import UserError
from swa_cli.recipe.kinds import KINDS, arguments

RESERVE_BESIDE_TENSORS = 1 << 16  # bytes of a checkpoint for names, places and checksums


@dataclass(frozen=True)
class Checkpoint:
    """A file that was read: `kind` is resume | weights | snapshot, or foreign for another program's."""

    path: Path
    content: dict[str, Any]
    kind: str

    @property
    def recipe(self) -> dict[str, Any] | None:
        """The values of its recipe; None in a foreign file."""
        return None if self.kind == "foreign" else self.content["recipe"]

    @property
    def trained_on(self) -> Mapping[str, Any] | None:
        """Recipe and input that the weights were trained with; None where the file does not say it."""
        return None if self.kind == "foreign" else self.origin

    @property
    def origin(self) -> dict[str, Any]:
        """Recipe and input of a file of ours."""
        return {key: self.content[key] for key in ("recipe", "input")}


@dataclass(frozen=True)
class WeightSet:
    """Complete weights that load with `strict=True`; `count` is the number of weights in an average.

    `kind` is raw, that of the average, or foreign for an average of another program.
    """

    state_dict: dict[str, Tensor]
    batchnorm: str
    count: int | None = None
    kind: str = "raw"
    posterior: Posterior | None = None  # of kind swag


def save(path: Path, content: Mapping[str, Any], *, keep: Path | None = None) -> None:
    """Write a checkpoint of ours atomically; the previous file goes to `keep` once the new one is durable.

    Tensors of a device are written as those of the CPU, so that any machine can load them.

    Raises:
        OSError: No room or no permission; nothing has changed. (On a full disk, torch.save alone raises a RuntimeError
            without errno, and leaves a part of the file.)
    """
    whole = {"format": schema.FORMAT, **map_tensors(content, lambda _, value: value.cpu())}

    def write(file: IO[bytes]) -> None:
        sink = _Sink(file)
        try:
            torch.save(whole, cast(IO[bytes], sink))
        except RuntimeError as error:
            first = sink.error or error.__context__
            if first is not None:
                raise first from None
            raise

    write_atomic(path, write, reserve=safe_load.num_bytes(whole) + RESERVE_BESIDE_TENSORS, keep=keep)


def read(path: Path) -> Checkpoint:
    """Read and check a checkpoint, without running any code in it.

    Raises:
        DamagedError: The file cannot be read.
        UserError: There is no such file, it is no checkpoint, not as swa writes one, or of another format.
    """
    if not path.is_file():
        reason = "is no regular file" if os.path.lexists(path) else "no such checkpoint"
        hint = other_formats.of_folder(path) if path.is_dir() else None
        raise UserError(
            f"{path}: {reason}",
            hint=hint or "name a .pt file, such as checkpoints/swa.pt in the folder of a run",
        )
    if path.name.endswith(".safetensors.index.json"):
        content = safe_load.read_shards(path)
    elif path.suffix == ".safetensors":
        state, metadata = safe_load.read_safetensors(path), safe_load.safetensors_metadata(path)
        content = schema.exported(state, metadata, source=str(path)) or state
    else:
        content = safe_load.read_archive(path)
    if not isinstance(content, dict):
        hint = "save a state_dict, or {'state_dict': ...}"
        if places := safe_load.find_in_list(content):
            command = safe_load.extract_command(path, places[:1])
            hint = f"write the one you mean to a file of its own, such as the first{command}"
        raise UserError(f"{path}: holds a {type(content).__name__}, and what is read is a dict", hint=hint)
    return Checkpoint(path, content, schema.kind_of(content, source=str(path)))


def read_resume_point(path: Path) -> Checkpoint:
    """Read a resume point, see `read`.

    Raises:
        UserError: There is something else in its place.
    """
    found = read(path)
    if found.kind != "resume":
        raise UserError(f"{path}: is not a resume point", hint="name a run folder that `swa train` made")
    return found


def weight_sets(checkpoint: Checkpoint, model: nn.Module) -> dict[str, WeightSet]:
    """Return every weight set of a checkpoint by name; raw weights are `last`, in a snapshot `snapshot`.

    A foreign average counts as stale: the file does not say whether its BatchNorm statistics were recomputed.

    Args:
        checkpoint: What was read.
        model: The network of the recipe; its parameters give the averages their names and shapes.

    Raises:
        UserError: An average belongs to another architecture, or a foreign file holds no weights.
    """
    content, owners = checkpoint.content, read_tensors(model).owners
    if checkpoint.kind == "foreign":
        freshness = raw_batchnorm(model)
        of_average = "stale" if is_refreshable(model) else freshness
        return {
            name: WeightSet(item.state_dict, of_average, item.count, "foreign")
            if item.is_average
            else WeightSet(item.state_dict, freshness, item.count)
            for name, item in third_party.read(content, checkpoint.path, owners=owners).sets.items()
        }
    if checkpoint.kind == "snapshot":
        return {"snapshot": WeightSet(content["state_dict"], content["batchnorm"])}
    if checkpoint.kind == "weights":
        weights, entry, kept = content["state_dict"], content["average"], content.get("posterior")
        posterior = None
        if kept is not None:
            posterior = Posterior(weights, kept["variance"], kept["deviations"], kept["diagonal"], owners)
        return {entry["name"]: WeightSet(weights, content["batchnorm"], entry["count"], entry["kind"], posterior)}
    sets = {"last": raw_weights(checkpoint, model)}
    for name, entry in content["averages"].items():
        if not entry["count"]:
            continue
        average = restore_average(entry, model)
        weights, posterior = average.averaged_state(), None
        if average.kind == "swag":  # made of the file's tensors, which may be large and stay mapped
            variance = variance_of(entry["m2"], count=average.count)
            posterior = Posterior(weights, variance, entry["deviations"], entry["diagonal"], owners)
        sets[name] = WeightSet(weights, entry["batchnorm"], average.count, average.kind, posterior)
    return sets


def raw_weights(point: Checkpoint, model: nn.Module) -> WeightSet:
    """Return the raw weights in a resume point: training continues from them, or from `trained`, which they average."""
    return WeightSet(point.content["model"], point.content.get("batchnorm") or raw_batchnorm(model))


def raw_batchnorm(model: nn.Module) -> str:
    """Return how fresh the statistics of raw weights are."""
    if not has_batchnorm(model):
        return "none"
    return "frozen" if is_frozen(model) else "running"


def weights_content(
    origin: Mapping[str, Any],
    average: Mapping[str, Any],
    state_dict: dict[str, Tensor],
    fresh: Mapping[str, Any],
    *,
    posterior: Posterior | None = None,
    sources: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return the content of a file of weights to ship, see `schema.Weights`.

    `origin` is `recipe` and `input`, and `fresh` says how fresh the statistics are: a `BatchNormUpdate.record`.
    """
    content = {**origin, "state_dict": state_dict, "average": dict(average), **fresh}
    if sources:
        content["sources"] = list(sources)
    if posterior is not None:
        content["posterior"] = {key: getattr(posterior, key) for key in ("diagonal", "variance", "deviations")}
    return content


def raw_average(name: str, *, step: int | None) -> dict[str, Any]:
    """Return what a file of raw weights says in place of an average; None if their step is not known."""
    return {"name": name, "kind": "raw", "count": None, "steps": [] if step is None else [step]}


def restore_average(entry: Mapping[str, Any], model: nn.Module) -> WeightAverage:
    """Return the average of `model` whose state an entry of `averages` holds."""
    is_shipped = KINDS[entry["kind"]].share is None
    settings = {key: entry.get(key) for key in OWNERS} if is_shipped else entry.get("share_settings") or {}
    average = WeightAverage(model, **arguments(entry["kind"], settings))
    average.load_state_dict(entry)
    return average


def map_tensors(content: Any, work: Callable[[str, Tensor], Any], *, key: str = "") -> Any:
    """Return nested dicts, lists and tuples with `work(key, tensor)` in place of each tensor.

    `key` is that of the tensor, or of the list that holds it. State dicts keep their metadata.
    """
    if isinstance(content, Tensor):
        return work(key, content)
    if isinstance(content, Mapping):
        return like(content, {name: map_tensors(value, work, key=name) for name, value in content.items()})
    if isinstance(content, list | tuple):
        return type(content)(map_tensors(value, work, key=key) for value in content)
    return content


def copy_to_cpu(content: Any) -> Any:
    """Return nested dicts, lists and tuples with each tensor copied to CPU memory of its own."""
    return map_tensors(content, lambda _, value: value.detach().to("cpu", copy=True))


class _Sink:
    """A file for torch.save that keeps the error that ended a write: of the disk, or of a signal handler.

    torch.save loses that error and reports an unexpected position in the file instead.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: BaseException | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except BaseException as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()
