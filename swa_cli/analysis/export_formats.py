"""What a network can be written as for other programs, and how what was written is run again, to check it.

Each format is a pair of functions: to bytes, and from these bytes back to something that maps images to outputs.
Nothing of the machine goes along: torch notes the file and line of each operation, and these notes are removed.
Legend: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from swa_cli.averaging.model_state import cloned, like, metadata_of
from swa_cli.checkpoint import loading
from swa_cli.checkpoint.safe_load import VERSIONS_KEY
from swa_cli.errors import UserError

ONNX_BYTES = 2**31  # of one message of protobuf, in which an ONNX file without further files has to fit

Metadata = Mapping[str, str]
Outputs = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """A format of files.

    `write` takes the network in eval mode, an example (B, C, H, W) of its input and the metadata; `run` takes what
    was written and a network of the same kind, whose weights a format without a graph needs to be put into.
    """

    suffixes: tuple[str, ...]
    write: Callable[[nn.Module, Tensor, Metadata], bytes]
    run: Callable[[bytes, nn.Module], Outputs]
    has_graph: bool
    has_metadata: bool = True
    packages: tuple[str, ...] = ()  # beside those that swa itself needs

    def require_packages(self, name: str) -> None:
        """Refuse a format whose packages are not installed.

        Raises:
            UserError: One is missing.
        """
        missing = [package for package in self.packages if importlib.util.find_spec(package) is None]
        if missing:
            raise UserError(f"--format {name} needs {', '.join(missing)}", hint=f"pip install 'swa-cli[{name}]'")


def _write_state_dict(model: nn.Module, example: Tensor, metadata: Metadata) -> bytes:
    file = io.BytesIO()
    torch.save(cloned(model.state_dict()), file)
    return file.getvalue()


def _run_state_dict(data: bytes, model: nn.Module) -> Outputs:
    return _with_weights(model, torch.load(io.BytesIO(data), weights_only=True))


def _write_safetensors(model: nn.Module, example: Tensor, metadata: Metadata) -> bytes:
    from safetensors.torch import save

    tensors = {name: value.contiguous().clone() for name, value in model.state_dict().items()}  # shared ones apart
    versions = {VERSIONS_KEY: json.dumps(metadata_of(model.state_dict()))}
    return save(tensors, {"format": "pt", **versions, **metadata})


def _run_safetensors(data: bytes, model: nn.Module) -> Outputs:
    from safetensors.torch import load

    return _with_weights(model, like(model.state_dict(), load(data)))


def _write_torch_export(model: nn.Module, example: Tensor, metadata: Metadata) -> bytes:
    file = io.BytesIO()
    with _silent():
        torch.export.save(_traced(model, example), file, extra_files=dict(metadata))
    return file.getvalue()


def _run_torch_export(data: bytes, model: nn.Module) -> Outputs:
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
            output_names=["outputs"],
            dynamic_shapes=({0: "batch"},),
            verbose=False,
        )
        assert program is not None, "the exporter of dynamo=True returns what it made"
        program.model.metadata_props.update(metadata)
        data: bytes = program.model_proto.SerializeToString()
    return data


def _run_onnx(data: bytes, model: nn.Module) -> Outputs:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors: it warns of what its own optimizer does
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


FORMATS: Mapping[str, Format] = {
    "safetensors": Format((".safetensors",), _write_safetensors, _run_safetensors, has_graph=False),
    "state-dict": Format((".pt", ".pth"), _write_state_dict, _run_state_dict, has_graph=False, has_metadata=False),
    "torch-export": Format((".pt2",), _write_torch_export, _run_torch_export, has_graph=True),
    "onnx": Format((".onnx",), _write_onnx, _run_onnx, has_graph=True, packages=("onnx", "onnxscript", "onnxruntime")),
}


def _with_weights(model: nn.Module, weights: dict[str, Tensor]) -> Outputs:
    """The network while nothing but these weights is in it; its own come back after each call."""

    def outputs(images: Tensor) -> Tensor:
        kept = cloned(model.state_dict())
        try:
            for value in model.state_dict().values():
                value.zero_()
            loading.load_strict(model, weights, source="the exported file")
            given: Tensor = model(images)
            return given
        finally:
            model.load_state_dict(kept)

    return outputs


def _traced(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The graph of the network for any B, without the places of its source."""
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


@contextmanager
def _silent() -> Iterator[None]:
    """Exporters warn and log of what they do themselves; whether that was right is checked on what they made."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(level)
