"""`train.compile`: the run it leaves against the same run without it, backends of the user, and what is refused."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from equal_runs import assert_equal_runs

BACKEND = """\
calls = []

def count(graph_module, example_inputs):
    def run(*inputs):
        calls.append(len(inputs))
        return graph_module.forward(*inputs)
    return run

def broken(graph_module, example_inputs):
    raise RuntimeError("no code for this graph")

def nothing(graph_module, example_inputs):
    return None

def lonely(graph_module):
    return graph_module.forward

number = 3
"""


@pytest.fixture(autouse=True)
def _nothing_stays_compiled() -> Iterator[None]:
    """Forget compiled code and the user's module; torch compiles a function only so many times per process."""
    path = list(sys.path)
    yield
    sys.path[:] = path
    sys.modules.pop("my_backend", None)
    torch.compiler.reset()


@pytest.fixture
def beside(recipe: Path) -> Path:
    """The recipe, with the module `my_backend` beside it."""
    (recipe.parent / "my_backend.py").write_text(BACKEND)
    return recipe


def weights(run: Path) -> dict[str, torch.Tensor]:
    content: dict[str, Any] = torch.load(run / "checkpoints/last.pt", weights_only=True)
    return content["model"]


def test_a_users_backend_runs_every_step_and_changes_no_bit(swa, beside: Path, tmp_path: Path) -> None:
    """Calls of its graph against the steps, and the run with dropout and BatchNorm against one without: equal bits."""
    words = ["model.args={width: 4, dropout: 0.3}", "train.precision=fp32"]
    assert swa("train", beside, "-q", *words).code == 0
    assert "my_backend" not in sys.modules
    ended = swa("train", beside, *words, "train.compile=my_backend:count")
    assert ended.code == 0, ended.err
    assert "torch.compile took" in ended.err
    step = torch.load(tmp_path / "runs/small-002/checkpoints/last.pt", weights_only=True)["step"]
    assert len(sys.modules["my_backend"].calls) == 1 + step  # the pass that compiles, and each step
    assert_equal_runs(tmp_path / "runs/small-001", tmp_path / "runs/small-002")


@pytest.mark.slow
def test_a_recipe_names_a_backend_and_a_resumed_run_ends_the_same(
    swa, recipe: Path, tmp_path: Path, signal_at: Callable[..., None]
) -> None:
    """A compiled run that is stopped inside an epoch and resumed, against one to the end: equal bits."""
    recipe.write_text(recipe.read_text().replace("threads: 1}", "threads: 1, compile: aot_eager}"))
    words = ["model.args={width: 4, dropout: 0.3}"]
    assert swa("train", recipe, "-q", *words).code == 0
    signal_at(30, signal.SIGTERM)
    assert swa("train", recipe, "-q", *words).code == 143
    ended = swa("train", "--resume", "runs/small-002")
    assert ended.code == 0, ended.err
    assert "torch.compile took" in ended.err
    assert_equal_runs(tmp_path / "runs/small-001", tmp_path / "runs/small-002")


def test_inductor_trains_the_same_network(swa, recipe: Path, tmp_path: Path) -> None:
    """Weights and statistics of a run that inductor compiled against one that is not compiled, of one layer each."""
    (tmp_path / "single.py").write_text(
        "from torch import nn\n"
        "def net(num_classes, in_channels):\n"
        "    layers = [nn.Conv2d(in_channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]\n"
        "    return nn.Sequential(*layers, nn.Linear(144, num_classes))\n"
    )
    words = [
        "train",
        recipe,
        "-q",
        "model={name: 'single:net'}",
        "train.precision=fp32",
        "train.epochs=1",
        "schedule.warmup=0ep",
        "optimizer.lr=0.01",
    ]
    assert swa(*words).code == 0
    ended = swa(*words, "train.compile=true")
    assert ended.code == 0, ended.err
    plain, compiled = (weights(tmp_path / f"runs/small-00{number}") for number in (1, 2))
    assert plain.keys() == compiled.keys()
    for key, tensor in plain.items():
        torch.testing.assert_close(compiled[key], tensor, rtol=1e-3, atol=1e-4)


def test_inductor_without_a_cpp_compiler_is_refused_before_a_run(
    swa, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiling for the CPU with a compiler that is not there: exit 2, a cure, no folder."""
    import torch._inductor.config

    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "/nowhere/g++"))
    ended = swa("train", recipe, "train.compile=true")
    assert ended.code == 2
    assert "error: train.compile: inductor needs a C++ compiler" in ended.err
    assert "train.compile=false" in ended.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("value", "key", "cure"),
    [
        ("aot_eagr", "train.compile", "did you mean aot_eager?"),
        ("nothing_like_it", "train.compile", "inductor"),
        ("{backend: aot_eagr}", "train.compile", "did you mean aot_eager?"),
        ("yes", "train.compile", "write true"),
        ("[eager]", "train.compile", "write one value"),
        ("{backend: eager, mode: max-autotune}", "train.compile.mode", "write backend: inductor"),
        ("{mode: max-autotun}", "train.compile.mode", "did you mean `max-autotune`?"),
        ("{backends: eager}", "train.compile.backends", "did you mean `train.compile.backend`?"),
        ("nowhere:backend", "train.compile", "put nowhere.py beside the recipe"),
        ("my_backend:cont", "train.compile", "did you mean count?"),
        ("my_backend:number", "train.compile", "backend(graph_module, example_inputs)"),
        ("my_backend:lonely", "train.compile", "backend(graph_module, example_inputs)"),
    ],
)
def test_what_cannot_compile_is_refused_before_a_run(
    swa, beside: Path, tmp_path: Path, value: str, key: str, cure: str
) -> None:
    """A wrong value of the key: exit 2, the key, the cure, no folder."""
    ended = swa("train", beside, f"train.compile={value}")
    assert ended.code == 2
    assert f"error: {key}: " in ended.err
    assert cure in ended.err
    assert not (tmp_path / "runs").exists()


def test_a_backend_without_checkpointing_is_named(swa, recipe: Path) -> None:
    """Activations computed again, whose BatchNorm the backend eager cannot follow: exit 1, its name, the way out."""
    words = ["model={name: timm:test_resnet}", "dataset.image_size=32", "train.grad_checkpointing=true"]
    ended = swa("train", recipe, "-q", *words, "train.compile=eager")
    assert ended.code == 1
    assert "train.compile: eager cannot compile the network: " in ended.err
    assert "train.compile=false" in ended.err


def test_a_backend_that_fails_is_named(swa, beside: Path) -> None:
    """A backend that is not installed, one that returns nothing, and an error in the user's own: exit 1, no mistake."""
    missing = swa("train", beside, "-q", "train.compile=tvm")  # which no extra of swa installs
    assert missing.code == 1
    assert "train.compile: tvm cannot compile the network: " in missing.err
    assert "train.compile=false" in missing.err
    empty = swa("train", beside, "-q", "train.compile=my_backend:nothing")
    assert empty.code == 1
    assert "train.compile: my_backend:nothing returned NoneType" in empty.err
    own = swa("train", beside, "-q", "train.compile=my_backend:broken")
    assert own.code == 1
    assert "no code for this graph" in own.err
    assert "this is in your own code" in own.err
