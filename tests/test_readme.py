"""What README says, held against what is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
OWN_LOOPS = re.findall(r"```python\n(.*?)```", README.partition("## In your own loop")[2], re.DOTALL)


def test_each_promise_names_tests_that_exist() -> None:
    """Every `test_...` in README against the functions in tests/."""
    names = {
        node.name
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    promised = set(re.findall(r"`(test_\w+)`", README))
    assert len(promised) > 15
    assert promised <= names, promised - names


def test_the_tree_has_every_file() -> None:
    """The names in README's tree against the files of swa_cli, room by room."""
    tree = README.partition("## The house")[2]
    told = set(re.findall(r"\b(\w+\.py)\b", tree))
    there = {path.name for path in (ROOT / "swa_cli").rglob("*.py")} - {"__init__.py", "__main__.py"}
    assert told == there


def needs_no_other_trainer(example: str) -> bool:
    """Whether it imports torch and this project alone; Lightning and accelerate are no part of the tests."""
    nodes = ast.walk(ast.parse(example))
    names = [getattr(node, "module", None) or node.names[0].name for node in nodes if hasattr(node, "names")]
    return all(name.split(".")[0] in ("torch", "swa_cli") for name in names)


def test_loops_of_ones_own_are_short() -> None:
    """Every example of the section: at most 15 lines."""
    assert OWN_LOOPS
    assert all(len(example.splitlines()) <= 15 for example in OWN_LOOPS)


@pytest.mark.parametrize("example", [example for example in OWN_LOOPS if needs_no_other_trainer(example)])
def test_each_loop_of_ones_own_runs(example: str) -> None:
    """README's loops on 100 batches against the float64 mean of the weights, and the data's mean and variance."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    inputs = torch.randn(400, 3)
    loader = DataLoader(TensorDataset(inputs, torch.randint(2, (400,))), batch_size=4, shuffle=True)
    trained: list[Tensor] = []

    def train_one_epoch(model: nn.Module) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for samples, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(samples), labels).backward()
            optimizer.step()
        trained.append(model[0].weight.detach().double())  # type: ignore[index]

    example_names: dict[str, Any] = {
        "model": model,
        "train_loader": loader,
        "loss_function": nn.functional.cross_entropy,
        "train_one_epoch": train_one_epoch,
        "epochs": 3,
        "start": 2,
    }
    exec(example, example_names)
    if trained:
        torch.testing.assert_close(model[0].weight.double(), (trained[1] + trained[2]) / 2, rtol=1e-6, atol=1e-7)
    else:
        assert example_names["optimizer"].param_groups[0]["n_avg"] == 5
        assert "sgd_buffer" in example_names["optimizer"].state[model[0].weight]
    expected = model[0](inputs).detach().double()
    torch.testing.assert_close(model[1].running_mean.double(), expected.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[1].running_var.double(), expected.var(0), rtol=1e-5, atol=1e-6)
