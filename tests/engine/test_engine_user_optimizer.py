"""`optimizer.name: package.module:Class`: a user's optimizer, trained, resumed, allowed and refused."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from equal_runs import assert_equal_runs

SIGNS = """\
import torch

class Signs(torch.optim.Optimizer):
    def __init__(self, params, lr, beta=0.9, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "beta": beta, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["mean"], state["norms"] = torch.zeros_like(parameter), torch.zeros(2)
                state["mean"].lerp_(parameter.grad, 1 - group["beta"])
                state["norms"][0] += parameter.grad.norm()
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(state["mean"].sign(), alpha=-group["lr"])

def make(params, lr, **options):
    return Signs(params, lr, **options)

def wrong(params, lr):
    return object()

class Inherited(torch.optim.SGD):
    pass

class Passed(torch.optim.SGD):
    def __init__(self, params, lr, maximize):
        super().__init__(params, lr, fused=True, maximize=maximize)

class Batched(Signs):
    def step(self, batch):
        return batch

class Flat(Signs):
    def __init__(self, params, lr):
        super().__init__([value for group in params for value in group["params"]], lr)
"""


@pytest.fixture(autouse=True)
def _own_modules(tmp_path: Path) -> Iterator[None]:
    (tmp_path / "own_optimizers.py").write_text(SIGNS)
    path = list(sys.path)
    yield
    sys.path[:] = path
    sys.modules.pop("own_optimizers", None)


def words(name: str, more: str = "") -> list[str]:
    return [f"optimizer={{name: 'own_optimizers:{name}', lr: 0.01{more}}}", "train.precision=fp32", "-q"]


@pytest.mark.parametrize("name", ["Signs", "make"])
def test_a_run_resumes_to_the_same_bits(
    swa, recipe: Path, tmp_path: Path, signal_at: Callable[..., None], name: str
) -> None:
    """A class, and a function that returns one: stopped inside an epoch and resumed, against the run to the end."""
    more = ", beta: 0.8, no_decay: [norm], weight_decay: 0.01, groups: [{match: bias, lr: 2x}]"
    assert swa("train", recipe, *words(name, more)).code == 0
    signal_at(30, signal.SIGTERM)
    assert swa("train", recipe, *words(name, more)).code == 143
    signal_at(-1)
    resumed = tmp_path / "runs/small-002"
    refused = swa("train", "--resume", resumed)
    assert refused.code == 2
    assert f"optimizer.name own_optimizers:{name}" in " ".join(refused.err.split())
    assert "--allow-code" in refused.err
    assert swa("train", "--resume", resumed, "--allow-code", "-q").code == 0
    assert_equal_runs(tmp_path / "runs/small-001", resumed)
    state = torch.load(resumed / "checkpoints/last.pt", weights_only=True)["optimizer"]
    assert {key for entry in state["state"].values() for key in entry} == {"mean", "norms"}
    assert json.loads((resumed / "result.json").read_text())["weights"]["last_bn"]["accuracy"] > 0.5


def test_a_checkpoint_of_it_needs_permission(swa, recipe: Path, tmp_path: Path) -> None:
    """The second hop: `swa eval` on its average imports nothing without --allow-code."""
    assert swa("train", recipe, *words("Signs"), "train.epochs=1").code == 0
    sys.modules.pop("own_optimizers")
    file = tmp_path / "runs/small-001/checkpoints/swa.pt"
    refused = swa("eval", file)
    assert refused.code == 2
    assert "--allow-code" in refused.err
    assert "own_optimizers" not in sys.modules
    assert swa("eval", file, "--allow-code", "-q").code == 0


@pytest.mark.parametrize(
    ("name", "more", "key", "said"),
    [
        ("Nobody", "", "optimizer.name", "no attribute"),
        ("torch", "", "optimizer.name", "not an optimizer"),
        ("wrong", "", "optimizer.name", "not a torch.optim.Optimizer"),
        ("Batched", "", "optimizer.name", "other arguments"),
        ("Flat", "", "optimizer.name", "parameter groups"),
        ("Signs", ", betta: 0.8", "optimizer.betta", "optimizer.beta"),
        ("Signs", ", beta: wide", "", ""),
        ("Inherited", ", dampening: wide, momentum: 0.9", "optimizer.dampening", "'wide'"),
        ("Passed", ", maximize: x", "optimizer:", "cannot do a step"),
    ],
)
def test_what_is_no_optimizer_is_refused_before_the_run(
    swa, recipe: Path, tmp_path: Path, name: str, more: str, key: str, said: str
) -> None:
    """Exit 2 at the key, and no run folder."""
    ended = swa("train", recipe, *words(name, more))
    assert ended.code == 2
    assert key in ended.err
    assert said in " ".join(ended.err.split())
    assert not (tmp_path / "runs").exists()


def test_adafactor_is_resumed(swa, recipe: Path, tmp_path: Path, signal_at: Callable[..., None]) -> None:
    """torch's Adafactor, whose moments have one size of 1: stopped and resumed, against the run to the end."""
    adafactor = ["optimizer={name: Adafactor, lr: 0.01}", "train.precision=fp32", "-q"]
    assert swa("train", recipe, *adafactor).code == 0
    signal_at(30)
    assert swa("train", recipe, *adafactor).code == 130
    signal_at(-1)
    assert swa("train", "--resume", "runs/latest", "-q").code == 0
    assert_equal_runs(tmp_path / "runs/small-001", tmp_path / "runs/small-002")
