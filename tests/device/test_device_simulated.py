"""The simulated device against what CUDA does: what makes the host wait, what is refused, what is computed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import swa_cli
from device import observed
from device.on_device import there

PRODUCT = Path(swa_cli.__file__).parent
# What no simulated device runs: each function that asks for CUDA by name, and why.
CUDA_ONLY = {
    "analysis/doctor.py _described": "name and memory of a GPU",
    "analysis/sweep_trials.py launch": "CUDA_VISIBLE_DEVICES gives each process of a sweep one GPU",
    "data/device_decoding.py _decode": "the decoder needs a stream that is idle",
    "data/pytree.py _own_stream": "the stream of copies and of the decoder, beside that of the step",
    "data/pytree.py beside_the_step": "what computes waits for that stream; tests/data/test_data_streams.py",
    "engine/distributed.py join_processes": "processes exchange gradients over nccl",
    "engine/distributed.py one_a_gpu": "one process per GPU",
    "engine/hardware.py __init__": "the copy of a loss whose end an event tells",
    "engine/hardware.py _in_tf32": "what a GPU rounds to TF32",
    "engine/hardware.py _device_of_process": "one GPU per process",
    "engine/hardware.py _gains_by_bf16": "whether a GPU computes in bf16 natively",
    "engine/hardware.py require_precision": "fp16 scales its gradients: GradScaler",
    "engine/plan_text.py _describe_processes": "what processes exchange gradients over",
    "engine/step.py _uses_graphs": "CUDA graphs",
    "engine/run.py _problems_of_processes": "SyncBatchNorm by train.sync_batchnorm",
}


def test_waits_and_copies_are_those_of_cuda(tmp_path: Path) -> None:
    """Entries of single operations: kind, whether the host waits, whether the memory is pinned."""
    found = there(tmp_path, observed.journals)
    waiting, upload = ("wait", True, False), ("to device", True, False)
    expected: dict[str, list[tuple[str, bool, bool]]] = {
        "arithmetic": [],
        "view in place": [],
        "fill of a mask": [],
        "pageable": [("to device", False, False)],
        "pinned": [("to device", False, True)],
        "blocking": [upload],
        "item": [waiting],
        "bool": [waiting],
        "tolist": [("to host", True, False)],
        "cpu": [("to host", True, False)],
        "mask": [waiting],
        "nonzero": [waiting],
        "indices of the host": [upload],
        "values where a mask is": [waiting],
    }
    assert {name: [(one.kind, one.waits, one.is_pinned) for one in found[name]] for name in found} == expected
    assert {name: entries[0].num_bytes for name, entries in found.items() if name in ("cpu", "pinned")} == {
        "cpu": 24,
        "pinned": 24,
    }


def test_operands_of_the_host_are_refused(tmp_path: Path) -> None:
    """Errors of operands in the wrong memory, and of pinned memory that is written to too early."""
    *of_operands, of_numpy, of_pinned = there(tmp_path, observed.refused)
    for error in of_operands:
        assert "same device" in error
    assert "can't convert" in of_numpy
    assert "pinned memory was changed" in of_pinned


def test_training_is_that_of_the_cpu(tmp_path: Path) -> None:
    """Losses and types of three steps on the device against the CPU, in fp32 and under autocast."""
    found = there(tmp_path, observed.trainings)
    assert found["device"] == (pytest.approx(found["cpu"][0], rel=1e-5), "torch.float32")
    assert found["fused"] == (pytest.approx(found["cpu"][0], rel=1e-5), "torch.float32")
    assert found["bf16"] == (pytest.approx(found["cpu bf16"][0], rel=0.02), "torch.bfloat16")


def test_random_numbers_are_the_devices_own(tmp_path: Path) -> None:
    """Numbers after the same seed, with the generator of the host between; which they leave as it is."""
    first, second, is_same = there(tmp_path, observed.random_numbers)
    assert first == second
    assert is_same


def test_functions_that_ask_for_cuda_by_name_are_listed() -> None:
    """Each function of the product with `torch.cuda` or "cuda" in it against the list above."""
    found = {
        f"{path.relative_to(PRODUCT)} {function}"
        for path in PRODUCT.rglob("*.py")
        for function in _asks_for_cuda(ast.parse(path.read_text()), "")
    }
    assert found == CUDA_ONLY.keys()


def _asks_for_cuda(node: ast.AST, function: str) -> Iterator[str]:
    """Yield the innermost function around each use."""
    if isinstance(node, ast.FunctionDef):
        function = node.name
    is_module = isinstance(node, ast.Attribute) and node.attr == "cuda"
    if is_module or (isinstance(node, ast.Constant) and node.value == "cuda"):
        yield function
    for child in ast.iter_child_nodes(node):
        yield from _asks_for_cuda(child, function)
