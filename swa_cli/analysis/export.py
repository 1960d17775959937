"""`swa export`: one weight set of a checkpoint as a file for other programs.

The file is made in memory, run again, and compared with the network on random images; it is written once they agree.
Legend: B batch, C channels, H W pixels, N images.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swa_cli.analysis import open
from swa_cli.analysis.export_formats import FORMATS, Format, Outputs
from swa_cli.analysis.seed_statistics import read_result
from swa_cli.checkpoint import loading, reader
from swa_cli.checkpoint.atomic import json_text, write_atomic
from swa_cli.checkpoint.reader import Checkpoint, WeightSet
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.data.color_jitter import normalize
from swa_cli.data.randomness import generator
from swa_cli.errors import EXIT_FAILED, UserError
from swa_cli.metrics import tasks
from swa_cli.metrics.metric import TaskMetrics
from swa_cli.recipe.schema import Recipe
from swa_cli.report.terminal import Bar, Terminal

BATCHES = (1, 7, 92)  # N = 100 images; a graph may take one size of batch and not another
TOLERANCE = 1e-4  # of an output, relative to the largest one where that is above 1


@dataclass(frozen=True)
class Request:
    """What is asked for.

    `name` is that of a format, `version` that of swa, which goes into the metadata; no `weights` are the only ones
    of the checkpoint.
    """

    path: Path
    target: Path
    name: str
    version: str
    weights: str | None = None
    with_normalization: bool = False
    allow_stale_bn: bool = False

    @property
    def format(self) -> Format:
        """The functions of the format."""
        return FORMATS[self.name]

    def require_possible(self) -> None:
        """Refuse what cannot be written, before anything is read.

        Raises:
            UserError: The format cannot hold it, or the file is not one to write to.
        """
        target, suffixes = self.target, self.format.suffixes
        self.format.require_packages(self.name)
        if self.with_normalization and not self.format.has_graph:
            graphs = " or ".join(name for name, item in FORMATS.items() if item.has_graph)
            raise UserError(
                f"--with-normalization: {self.name} holds weights and no graph to put it into",
                hint=f"use --format {graphs}",
            )
        if target.suffix not in suffixes:
            raise UserError(f"{target}: is no name for a file of {self.name}", hint=f"name a {suffixes[0]} file")
        if not target.parent.is_dir():
            raise UserError(f"{target.parent}: no such folder", hint="make it, or name another file with -o")
        if target.is_symlink() or (target.exists() and not target.is_file()):
            raise UserError(f"{target}: is no regular file", hint="name another file with -o")
        if target.exists() and self.path.exists() and os.path.samefile(target, self.path):
            raise UserError(f"{target}: is the checkpoint itself", hint="name another file with -o")
        if target.suffix == ".pt" and target.exists() and RunFolder.around(target) is not None:
            raise UserError(f"{target}: is a checkpoint of a run", hint="name another file with -o")


class Normalized(nn.Module):
    """A network that takes pixels from 0 to 1, float32 (B, C, H, W)."""

    mean: Tensor  # (C, 1, 1)
    std: Tensor

    def __init__(self, network: nn.Module, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None])

    def forward(self, images: Tensor) -> Any:
        """The outputs of the network for (x - mean) / std."""
        return self.network((images - self.mean) / self.std)


def export_checkpoint(
    request: Request,
    overrides: Sequence[str],
    *,
    terminal: Terminal,
    recipe: Path | None = None,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Write one weight set in another format.

    Raises:
        UserError: No such weights, stale BatchNorm statistics, a network that the format cannot express, or (exit
            code 1) a file that does not compute what the network does.
    """
    request.require_possible()
    started = time.monotonic()
    found = reader.read(request.path)
    about, input_, model = open.open_network(found, overrides, recipe=recipe, terminal=terminal, allow_code=allow_code)
    name, item = _chosen(found, reader.weight_sets(found, model), request)
    loading.load_weights(model, item.state_dict, source=f"{request.path} ({name})")
    metadata = _metadata(found, name, item, about, input_, request)
    with torch.no_grad(), terminal.progress(f"{name} as {request.name}", len(BATCHES) + 1) as bar:
        data, difference = _made(request, model, input_, metadata, source=about.model.name, bar=bar)
    write_atomic(request.target, lambda file: file.write(data), reserve=len(data))
    terminal.answer(_answer(request, name, difference, size=len(data)))
    return {
        "command": "export",
        "checkpoint": str(request.path),
        "file": str(request.target),
        "format": request.name,
        "weights": name,
        "batchnorm": item.batchnorm,
        "normalization": metadata["normalization"],
        "max_difference": difference,
        "inputs": sum(BATCHES),
        "metadata": sorted(metadata) if request.format.has_metadata else [],
        "bytes": len(data),
        "seconds": round(time.monotonic() - started, 3),
    }


def _chosen(found: Checkpoint, sets: dict[str, WeightSet], request: Request) -> tuple[str, WeightSet]:
    """The one weight set that is exported.

    Raises:
        UserError: There is more than one to choose from, none of that name, or it is stale.
    """
    sets = open.chosen(sets, request.weights or "all", request.path)
    if len(sets) > 1:
        raise UserError(
            f"{request.path}: holds {', '.join(sets)}, and one of them is exported",
            hint="choose it with --weights NAME",
        )
    ((name, item),) = sets.items()
    if item.batchnorm == "stale" and not request.allow_stale_bn:
        raise UserError(
            f"{request.path}: {name} has stale BatchNorm statistics: it would predict nothing sensible",
            hint=f"run `{open.refresh_command(found)}` first, or insist with --allow-stale-bn",
        )
    return name, item


def _made(
    request: Request, model: nn.Module, input_: Mapping[str, Any], metadata: dict[str, str], *, source: str, bar: Bar
) -> tuple[bytes, float]:
    """The content of the file, and the largest difference of its outputs to those of the network.

    Raises:
        UserError: It cannot be made, or it differs.
    """
    mean, std = input_["mean"], input_["std"]
    network = (Normalized(model, mean=mean, std=std) if request.with_normalization else model).eval()
    try:
        shape = (input_["channels"], *input_["size"])
        batches = [torch.rand(size, *shape, generator=generator(0, "export images", size)) for size in BATCHES]
        if not request.with_normalization:
            batches = [normalize(batch, mean=mean, std=std) for batch in batches]
        data = request.format.write(network, batches[-1][:2], metadata)
        bar.advance()
        difference = _difference(network, request.format.run(data, network), batches, bar)
    except UserError:
        raise
    except Exception as error:  # exporters raise whatever their dozens of passes meet
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{source}: cannot be exported as {request.name}: {reason}",
            hint="see the whole error with `swa --traceback`, or export the weights alone with --format safetensors",
        ) from error
    return data, difference


def _difference(network: nn.Module, outputs: Outputs, batches: Sequence[Tensor], bar: Bar) -> float:
    """The largest absolute difference of two networks' outputs.

    Raises:
        UserError: It is not within the tolerance.
    """
    largest, scale = 0.0, 1.0
    for batch in batches:
        expected, found = network(batch), outputs(batch)
        if found.shape != expected.shape:
            raise _differs(f"{tuple(found.shape)} instead of {tuple(expected.shape)}")
        if not bool(found.isfinite().all()):
            raise _differs("values that are not finite")
        largest = max(largest, float((found - expected).abs().max()))
        scale = max(scale, float(expected.abs().max()))
        bar.advance()
    if largest > TOLERANCE * scale:
        raise _differs(f"values that differ by up to {largest:.2g}")
    return largest


def _differs(what: str) -> UserError:
    return UserError(
        f"the exported network gives {what}: nothing was written",
        hint="export the weights alone with --format safetensors",
        exit_code=EXIT_FAILED,
    )


def _metadata(
    found: Checkpoint, name: str, item: WeightSet, recipe: Recipe, input_: Mapping[str, Any], request: Request
) -> dict[str, str]:
    """What the file says of itself: texts, and JSON where there is more to a key."""
    values: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json", exclude_none=True),
        "input": input_,
        "average": _average(found, name, item),
        "scores": _scores(request.path, name, item, metrics=tasks.find(recipe.task).metrics),
    }
    return {
        "swa_version": request.version,
        "weights": name,
        "batchnorm": item.batchnorm,
        "normalization": "inside" if request.with_normalization else "outside",
        **{key: json_text(value) for key, value in values.items() if value is not None},
    }


def _average(found: Checkpoint, name: str, item: WeightSet) -> dict[str, Any] | None:
    """What an average is, as in its checkpoint; None for raw weights."""
    if item.kind == "raw":
        return None
    if found.kind == "weights":
        return dict(found.content["average"])
    steps = found.content["averages"][name]["steps"] if found.kind == "resume" else []
    return {"name": name, "kind": item.kind, "count": item.count, "steps": steps}


def _scores(path: Path, name: str, item: WeightSet, *, metrics: TaskMetrics) -> dict[str, Any] | None:
    """The final scores of these weights, if the run that they lie in has measured them."""
    folder = RunFolder.around(path)
    if folder is None or not folder.result.is_file():
        return None
    try:
        values, result = read_result(folder.result, metrics=metrics)
    except UserError as error:
        raise UserError(error.message, hint="move result.json elsewhere: there are no scores then") from error
    row = values["weights"].get(name, {})
    if (row.get("count"), row.get("batchnorm")) != (item.count, item.batchnorm):
        return None
    return {"split": result.split, "samples": result.samples, **row}


def _answer(request: Request, name: str, difference: float, *, size: int) -> str:
    extent = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
    takes = "pixels from 0 to 1" if request.with_normalization else "normalised images"
    beside = "" if request.format.has_metadata else "; the format has no place for metadata"
    return (
        f"{name} -> {request.target} ({request.name}, {extent}, takes {takes}): agrees with torch to {difference:.1e}"
        f" on {sum(BATCHES)} random images{beside}"
    )
