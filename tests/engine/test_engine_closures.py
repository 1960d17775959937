"""Optimizers that pass a batch several times (SAM), and those around another one (Lookahead): docs/examples."""

from __future__ import annotations

import csv
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import plain_loop
from conftest import load
from equal_runs import assert_equal_runs
from swa_cli.engine import run, train
from swa_cli.errors import RecipeError
from swa_cli.recipe.load import load as load_recipe

EXAMPLE = Path(__file__).parents[2] / "docs/examples/optimizers.py"
OTHERS = """\
import torch
from optimizers import SAM

class Undeclared(SAM):
    def step(self, closure=None):
        assert closure is not None, "SAM requires a closure"
        return super().step(closure)

class Declared(Undeclared):
    needs_closure = True

class Counted(torch.optim.SGD):
    needs_closure = True
    losses = []

    def step(self, closure=None):
        before = [value.grad.clone() for group in self.param_groups for value in group["params"]]
        self.losses.append(float(closure()))
        after = [value.grad for group in self.param_groups for value in group["params"]]
        assert all(torch.equal(one, other) for one, other in zip(before, after))
        super().step()

def net(num_classes, in_channels):
    nn = torch.nn
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 10))
"""
PLAIN = ["schedule={name: constant, warmup: 0ep}", "swa=null", "train.precision=fp32", "train.epochs=2"]
RHO = 0.1


@pytest.fixture(autouse=True)
def _own_modules(tmp_path: Path) -> Iterator[None]:
    shutil.copy(EXAMPLE, tmp_path)
    (tmp_path / "others.py").write_text(OTHERS)
    path = list(sys.path)
    yield
    sys.path[:] = path
    for name in ("optimizers", "others"):
        sys.modules.pop(name, None)


def words(name: str, more: str = "") -> list[str]:
    return [f"optimizer={{name: '{name}', lr: 0.05, momentum: 0.9{more}}}", *PLAIN]


@pytest.mark.parametrize("name", ["optimizers:SAM", "others:Declared"])
def test_sam_takes_the_steps_of_its_equations(swa, recipe: Path, name: str) -> None:
    """Declared by its signature, or by an attribute: weights and statistics against the two passes written out.

    The second pass, at w + rho g / |g|, moves no running statistics.
    """
    assert swa("train", recipe, *words(name, f", rho: {RHO}"), "-q").code == 0
    point = load("runs/small-001/checkpoints/last.pt")

    def update(optimizer: Any, again: Callable[[], Tensor], _: Tensor) -> None:
        parameters = [value for group in optimizer.param_groups for value in group["params"]]
        scale = RHO / (torch.stack([value.grad.norm() for value in parameters]).norm() + 1e-12)
        before = [value.detach().clone() for value in parameters]
        buffers = {key: value.clone() for key, value in optimizer.model.named_buffers()}
        with torch.no_grad():
            for value in parameters:
                value.add_(value.grad * scale)
        again()
        with torch.no_grad():
            for value, own in zip(parameters, before, strict=True):
                value.copy_(own)
            for key, value in optimizer.model.named_buffers():
                value.copy_(buffers[key])
        optimizer.step()

    def make(model: nn.Module) -> torch.optim.SGD:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        optimizer.model = model
        return optimizer

    model, _ = plain_loop.trained(recipe, PLAIN, make, update)
    plain_loop.assert_equal_parameters(model, point["model"])
    for key, value in model.named_buffers():
        assert torch.equal(value, point["model"][key]), key


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_a_closure_is_the_whole_step(swa, recipe: Path, class_weights: str) -> None:
    """Gradients of a closure at the same weights against those that were there, with two batches per step and dropout.

    The mean of its losses is the training loss of the epoch, unless batches have weights.
    """
    own = [
        "optimizer={name: 'others:Counted', lr: 0.05}",
        "model={name: 'others:net'}",
        "train.grad_accum_steps=2",
        "train.clip_norm=1",
        f"train.class_weights={class_weights}",
        "dataset.augment.mixup=0.2",
    ]
    ended = swa("train", recipe, *own, *PLAIN[:3], "train.epochs=1", "-q")
    assert ended.code == 0, ended.err
    losses = sys.modules["others"].Counted.losses[1:]  # without that of the trial before the run
    assert len(losses) == 10
    row = next(csv.DictReader(Path("runs/small-001/metrics.csv").read_text().splitlines()))
    near = 1e-6 if class_weights == "none" else 0.05
    assert sum(losses) / len(losses) == pytest.approx(float(row["train_loss"]), abs=near)


@pytest.mark.parametrize("name", ["optimizers:SAM", "optimizers:lookahead"])
def test_a_stopped_run_ends_with_the_same_bits(
    swa, recipe: Path, tmp_path: Path, signal_at: Callable[..., None], name: str
) -> None:
    """Stopped inside an epoch and resumed, against the run to the end."""
    assert swa("train", recipe, *words(name), "-q").code == 0
    signal_at(28, signal.SIGTERM)
    assert swa("train", recipe, *words(name), "-q").code == 143
    signal_at(-1)
    assert swa("train", "--resume", "runs/small-002", "--allow-code", "-q").code == 0
    assert_equal_runs(tmp_path / "runs/small-001", tmp_path / "runs/small-002")
    state = load("runs/small-001/checkpoints/last.pt")["optimizer"]
    held = {key for entry in state["state"].values() for key in entry}
    assert held == {"momentum_buffer"} | ({"lookahead_slow_buff"} if name.endswith("lookahead") else set())


def test_lookahead_takes_the_steps_of_its_equations(swa, recipe: Path) -> None:
    """Every fifth step, slow += (fast - slow) / 2 and fast = slow, around torch's SGD, bit for bit."""
    assert swa("train", recipe, *words("optimizers:lookahead"), "-q").code == 0
    slow: list[Tensor] = []
    steps = 0

    def update(optimizer: torch.optim.SGD, again: Callable[[], Tensor], loss: Tensor) -> None:
        nonlocal steps, slow
        optimizer.step()
        steps += 1
        if steps % 5:
            return
        parameters = [value for group in optimizer.param_groups for value in group["params"]]
        with torch.no_grad():
            slow = slow or [value.clone() for value in parameters]  # the first time, timm has no earlier weights
            for value, kept in zip(parameters, slow, strict=True):
                kept.add_(value - kept, alpha=0.5)
                value.copy_(kept)

    def make(model: nn.Module) -> torch.optim.SGD:
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    model, _ = plain_loop.trained(recipe, PLAIN, make, update)
    plain_loop.assert_equal_parameters(model, load("runs/small-001/checkpoints/last.pt")["model"])


def test_what_does_not_go_with_a_closure_is_refused(swa, recipe: Path, tmp_path: Path) -> None:
    """An undeclared need, a second optimizer, and LBFGS: exit 2 at the key, and what mends it."""
    refused = swa("train", recipe, *words("others:Undeclared"), "-q")
    assert refused.code == 2
    assert "SAM requires a closure" in refused.err
    assert "needs_closure = True" in refused.err
    mixed = swa("train", recipe, *words("optimizers:SAM", ", groups: [{match: norm, name: AdamW}]"), "-q")
    assert mixed.code == 2
    assert "optimizer.name" in mixed.err
    assert "optimizers:SAM" in mixed.err
    other = swa("train", recipe, "optimizer={name: LBFGS, lr: 1}", "-q")
    assert other.code == 2
    assert "curvature" in other.err
    assert not (tmp_path / "runs").exists()


def test_the_plan_tells_of_the_passes(swa, recipe: Path) -> None:
    """The row `optimizer` of a dry run, whose step is timed with all its passes."""
    told = swa("train", recipe, *words("optimizers:SAM"), "--dry-run")
    assert told.code == 0, told.err
    assert "passes its batch several times" in " ".join(told.err.split())


@pytest.mark.parametrize(
    ("key", "precision", "fsdp"), [("train.precision", "fp16", False), ("train.fsdp", "fp32", True)]
)
def test_closures_go_with_no_scaler_and_no_shards(recipe: Path, key: str, precision: str, fsdp: bool) -> None:
    """The key of what is refused: gradients of a closure cannot be unscaled, and shards were never tried."""
    built = train.set_up(load_recipe(recipe, words("optimizers:SAM")))
    settings = built.context.recipe.train.model_copy(update={"fsdp": fsdp})
    context = replace(
        built.context,
        hardware=replace(built.context.hardware, precision=precision),
        recipe=built.context.recipe.model_copy(update={"train": settings}),
    )
    with pytest.raises(RecipeError) as caught:
        run._require_closure_possible(built.optimizer, context)
    assert [problem.key for problem in caught.value.problems] == [key]
