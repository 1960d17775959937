"""`swa export`: write one weight set of a checkpoint as a file for other programs.

`FORMATS` maps each format to two functions: network to bytes, and bytes back to a function of images, or to weights.
The file is made in memory, and written only if it agrees with the network: a graph on random images, weights in each
bit. torch notes the source file and line of each operation; these notes are removed. Legend: B batch, C channels,
H W pixels, N images.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves  # private, but that with which torch.export takes outputs apart

from swa_cli.analysis import open
from swa_cli.analysis.compare import read_result
from swa_cli.averaging.model_state import cloned, like, metadata_of
from swa_cli.checkpoint import loading, reader
from swa_cli.checkpoint.atomic import json_text, write_atomic
from swa_cli.checkpoint.reader import Checkpoint, WeightSet
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.checkpoint.safe_load import VERSIONS_KEY
from swa_cli.data.color_jitter import normalize
from swa_cli.data.randomness import generator
from swa_cli.engine.events import Bar
from swa_cli.errors import EXIT_FAILED, UserError
from swa_cli.metrics import tasks
from swa_cli.metrics.metric import TaskMetrics
from swa_cli.recipe.schema import Recipe
from swa_cli.report.terminal import Terminal
from swa_cli.units import size_text

BATCHES = (1, 7, 92)  # N = 100 images; a graph may take one size of batch and not another
TOLERANCE = 1e-4  # of an output, relative to the largest one where that is above 1
ONNX_BYTES = 2**31  # of a protobuf message, which holds a single-file ONNX model

Metadata = Mapping[str, str]
Outputs = Callable[[Tensor], Any]  # a tensor, or several in tuples, lists and dicts


@dataclass(frozen=True)
class Format:
    """A format of files.

    `write` takes the network in eval mode, an example (B, C, H, W) of its input and the metadata. A format with a graph
    has `run`, which takes the written bytes; one without has `read`, which returns the weights, for a network.
    """

    suffixes: tuple[str, ...]
    write: Callable[[nn.Module, Tensor, Metadata], bytes]
    run: Callable[[bytes], Outputs] | None = None
    read: Callable[[bytes, nn.Module], dict[str, Tensor]] | None = None
    has_metadata: bool = True
    packages: tuple[str, ...] = ()  # in addition to those that swa needs

    @property
    def has_graph(self) -> bool:
        """Whether the file runs without the code of the network."""
        return self.run is not None


@dataclass(frozen=True)
class Request:
    """What to export, and to what; without `weights`, the checkpoint has to hold a single weight set."""

    path: Path
    target: Path
    name: str  # of the format
    version: str  # of swa, for the metadata
    weights: str | None = None
    with_normalization: bool = False
    allow_stale_bn: bool = False

    @property
    def format(self) -> Format:
        """The format of this name."""
        return FORMATS[self.name]

    def require_possible(self) -> None:
        """Refuse an impossible request before anything is read.

        Raises:
            UserError: The format cannot hold it, or the file is not one to write to.
        """
        target, suffixes = self.target, self.format.suffixes
        missing = [package for package in self.format.packages if importlib.util.find_spec(package) is None]
        if missing:
            raise UserError(
                f"--format {self.name} needs {', '.join(missing)}", hint=f"pip install 'swa-cli[{self.name}]'"
            )
        if self.with_normalization and not self.format.has_graph:
            graphs = " or ".join(name for name, item in FORMATS.items() if item.has_graph)
            raise UserError(
                f"--with-normalization: {self.name} holds weights and no graph to put it into",
                hint=f"use --format {graphs}",
            )
        if target.suffix not in suffixes:
            raise UserError(
                f"{target}: a file of {self.name} ends in {' or '.join(suffixes)}", hint=f"name a {suffixes[0]} file"
            )
        open.require_writable(target, sources=[self.path])
        open.require_no_checkpoint(target)


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
        """Return the outputs of the network for (x - mean) / std."""
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

    `overrides` change how a foreign file is read. A file of ours has its recipe and input, which the metadata tell, and
    takes none.

    Raises:
        UserError: No such weights, stale BatchNorm statistics, a network that the format cannot express, or (exit
            code 1) a file that does not compute what the network does.
    """
    request.require_possible()
    started = time.monotonic()
    found = reader.read(request.path)
    allowed = open.CHANGEABLE_KEYS if found.kind == "foreign" else ()
    about, input_, model = open.open_network(
        found, overrides, recipe=recipe, terminal=terminal, allow_code=allow_code, allowed=allowed
    )
    name, item = _chosen(reader.weight_sets(found, model), request)
    if not request.allow_stale_bn:
        batchnorm = {name: item.batchnorm}
        hint = open.how_to_refresh(found, about, batchnorm, recipe=recipe, overrides=overrides)
        open.require_fresh(batchnorm, path=request.path, hint=hint)
    loading.load_strict(model, item.state_dict, source=f"{request.path} ({name})")
    metadata = _metadata(found, name, item, about, input_, request)
    with torch.no_grad(), terminal.progress(f"{name} as {request.name}", len(BATCHES) + 1) as bar:
        data, difference = _checked_bytes(request, model, input_, metadata, source=about.model.name, bar=bar)
    write_atomic(request.target, lambda file: file.write(data), reserve=len(data))
    takes = "pixels from 0 to 1" if request.with_normalization else "normalized images"
    num_inputs = sum(BATCHES) if request.format.has_graph else 0
    agrees = f", takes {takes}): agrees with torch to {difference:.1e} on {num_inputs} random images"
    if not num_inputs:
        agrees = "): read again, its weights are the same"
    beside = "" if request.format.has_metadata else "; the format has no place for metadata"
    terminal.answer(f"{name} -> {request.target} ({request.name}, {size_text(len(data))}{agrees}{beside}")
    return {
        "command": "export",
        "checkpoint": str(request.path),
        "file": str(request.target),
        "format": request.name,
        "weights": name,
        "batchnorm": item.batchnorm,
        "normalization": metadata["normalization"],
        "max_difference": difference,
        "inputs": num_inputs,
        "metadata": sorted(metadata) if request.format.has_metadata else [],
        "bytes": len(data),
        "seconds": round(time.monotonic() - started, 3),
    }


def _chosen(sets: dict[str, WeightSet], request: Request) -> tuple[str, WeightSet]:
    """Return the weight set to export; the only one, if none was named."""
    sets = open.chosen(sets, request.weights or "all", request.path)
    if len(sets) > 1:
        raise UserError(
            f"{request.path}: holds {', '.join(sets)}, and only one can be exported",
            hint="choose it with --weights NAME",
        )
    return next(iter(sets.items()))


def _checked_bytes(
    request: Request, model: nn.Module, input_: Mapping[str, Any], metadata: dict[str, str], *, source: str, bar: Bar
) -> tuple[bytes, float]:
    """Return the content of the file, and the largest difference of its outputs to those of the network."""
    mean, std = input_["mean"], input_["std"]
    network = Normalized(model, mean=mean, std=std) if request.with_normalization else model
    network.eval()
    if request.format.has_graph and not takes_images(input_):
        raise UserError(
            f"{source}: takes no images, with which {request.name} would be written and checked",
            hint="export the weights alone with --format safetensors",
        )
    try:
        if request.format.run is None:
            return _compared_bytes(request.format, network, metadata), 0.0
        shape = (input_["channels"], *input_["size"])
        batches = [torch.rand(size, *shape, generator=generator(0, "export images", size)) for size in BATCHES]
        if not request.with_normalization:
            batches = [normalize(batch, mean=mean, std=std) for batch in batches]
        data = request.format.write(network, batches[-1][:2], metadata)
        bar.advance()
        difference = _difference(network, request.format.run(data), batches, bar)
    except UserError:
        raise
    except Exception as error:  # exporters raise many types of error
        reason = str(error).partition("\n")[0] or type(error).__name__
        other = (
            "export the weights alone with --format safetensors" if request.format.has_graph else "use another --format"
        )
        raise UserError(
            f"{source}: cannot be exported as {request.name}: {reason}",
            hint=f"see the whole error with `swa --traceback`, or {other}",
        ) from error
    return data, difference


def takes_images(input_: Mapping[str, Any]) -> bool:
    """Return whether the inputs of a checkpoint are images."""
    return input_["channels"] is not None


def _compared_bytes(format_: Format, network: nn.Module, metadata: Metadata) -> bytes:
    """Return the content of a file of weights, which hold the bits of those of the network."""
    assert format_.read is not None, "it has no graph"
    data, weights = format_.write(network, torch.empty(0), metadata), network.state_dict()
    read = format_.read(data, network)
    different = [name for name in weights if name not in read or not _same_bits(read[name], weights[name])]
    if different or len(read) != len(weights):
        raise _differs(f"other weights ({(different or [*read])[0]})")
    return data


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    first, second = (value.contiguous().reshape(-1).view(torch.uint8) for value in (one, other))
    return torch.equal(first, second)


def _difference(network: nn.Module, outputs: Outputs, batches: Sequence[Tensor], bar: Bar) -> float:
    """Return the largest absolute difference between the outputs of two networks; refuse one beyond the tolerance."""
    largest, scale = 0.0, 1.0
    for batch in batches:
        expected, found = _tensors(network(batch)), _tensors(outputs(batch))
        shapes, expected_shapes = ([tuple(value.shape) for value in values] for values in (found, expected))
        if shapes != expected_shapes:
            raise _differs(f"{shapes} instead of {expected_shapes}")
        for value, own in zip(found, expected, strict=True):
            if not bool(value.isfinite().all()):
                raise _differs("values that are not finite")
            largest = max(largest, float((value - own).abs().max()))
            scale = max(scale, float(own.abs().max()))
        bar.advance()
    if largest > TOLERANCE * scale:
        raise _differs(f"values that differ by up to {largest:.2g}")
    return largest


def _tensors(outputs: Any) -> list[Tensor]:
    """Return the tensors among the outputs of a network, in the order in which torch writes them into a graph."""
    return [value for value in tree_leaves(outputs) if isinstance(value, Tensor)]


def _differs(what: str) -> UserError:
    return UserError(
        f"the exported network gives {what}: nothing was written",
        hint="export the weights alone with --format safetensors",
        exit_code=EXIT_FAILED,
    )


def _metadata(
    found: Checkpoint, name: str, item: WeightSet, recipe: Recipe, input_: Mapping[str, Any], request: Request
) -> dict[str, str]:
    """Return the metadata of the file: texts, and JSON texts for structured values."""
    values: dict[str, Any] = {
        "recipe": recipe.values() if found.kind == "foreign" else found.recipe,
        "input": input_,
        "average": _average(found, name, item),
        "batchnorm_samples": _samples_of_pass(found, name),
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
    if item.kind == "raw":
        return None
    if found.kind == "weights":
        return dict(found.content["average"])
    steps = found.content["averages"][name]["steps"] if found.kind == "resume" else []
    return {"name": name, "kind": item.kind, "count": item.count, "steps": steps}


def _samples_of_pass(found: Checkpoint, name: str) -> int | None:
    """Return the number of samples that the BatchNorm statistics were recomputed from, where a file of ours says it."""
    entry = found.content if found.kind == "weights" else found.content.get("averages", {}).get(name, {})
    return entry.get("samples") or None


def _scores(path: Path, name: str, item: WeightSet, *, metrics: TaskMetrics) -> dict[str, Any] | None:
    """Return the final scores of these weights, if they lie in a run that has measured them."""
    folder = RunFolder.containing(path)
    if folder is None or not folder.result.is_file():
        return None
    hint = "move result.json elsewhere to export without scores"
    values, result = read_result(folder.result, metrics=metrics, hint=hint)
    row = values["weights"].get(name, {})
    if (row.get("count"), row.get("batchnorm")) != (item.count, item.batchnorm):
        return None
    return {"split": result.split, "samples": result.samples, **row}


def _write_state_dict(model: nn.Module, example: Tensor, metadata: Metadata) -> bytes:
    file = io.BytesIO()
    torch.save(cloned(model.state_dict()), file)
    return file.getvalue()


def _read_state_dict(data: bytes, model: nn.Module) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = torch.load(io.BytesIO(data), weights_only=True)
    return weights


def _write_safetensors(model: nn.Module, example: Tensor, metadata: Metadata) -> bytes:
    from safetensors.torch import save

    tensors = {name: value.contiguous().clone() for name, value in model.state_dict().items()}  # shared ones apart
    versions = {VERSIONS_KEY: json.dumps(metadata_of(model.state_dict()))}
    return save(tensors, {"format": "pt", **versions, **metadata})


def _read_safetensors(data: bytes, model: nn.Module) -> dict[str, Tensor]:
    from safetensors.torch import load

    return like(model.state_dict(), load(data))


def _write_torch_export(model: nn.Module, example: Tensor, metadata: Metadata) -> bytes:
    file = io.BytesIO()
    with _silent():
        torch.export.save(_traced(model, example), file, extra_files=dict(metadata))
    return file.getvalue()


def _run_torch_export(data: bytes) -> Outputs:
    with _silent():
        module = torch.export.load(io.BytesIO(data)).module()
    outputs: Outputs = module
    return outputs


def _write_onnx(model: nn.Module, example: Tensor, metadata: Metadata) -> bytes:
    num_bytes = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    if num_bytes >= ONNX_BYTES:
        raise UserError(
            f"{num_bytes:,} bytes of weights do not fit into one ONNX file", hint="use --format torch-export"
        )
    with _silent():
        program = torch.onnx.export(
            _traced(model, example),
            (example,),
            dynamo=True,
            input_names=["images"],
            output_names=["outputs"],  # the first, where a network has several
            dynamic_shapes=({0: "batch"},),
            verbose=False,
        )
        assert program is not None, "the exporter of dynamo=True returns what it made"
        program.model.metadata_props.update(metadata)
        data: bytes = program.model_proto.SerializeToString()
    return data


def _run_onnx(data: bytes) -> Outputs:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors: it warns of what its own optimizer does
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(value) for value in session.run(None, {"images": images.numpy()})]


FORMATS: Mapping[str, Format] = {
    "safetensors": Format((".safetensors",), _write_safetensors, read=_read_safetensors),
    "state-dict": Format((".pt", ".pth"), _write_state_dict, read=_read_state_dict, has_metadata=False),
    "torch-export": Format((".pt2",), _write_torch_export, _run_torch_export),
    "onnx": Format((".onnx",), _write_onnx, _run_onnx, packages=("onnx", "onnxscript", "onnxruntime")),
}


def _traced(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """Trace the network for any B, and remove the notes about its source."""
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


@contextmanager
def _silent() -> Iterator[None]:
    """Silence the warnings and logs of exporters about their own work, whose result is checked afterwards."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(level)
