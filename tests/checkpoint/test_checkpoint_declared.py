"""A kind of average that is declared in the table of kinds: its checkpoints are written and read with no edit here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from swa_cli.averaging.average import WeightAverage
from swa_cli.checkpoint import reader
from swa_cli.errors import UserError
from swa_cli.recipe import kinds

KIND = "linear"  # a weight set counts in proportion to its number: n / (1 + 2 + ... + n)


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more entry in the table of kinds."""
    entry = replace(kinds.KINDS["mean"], share=lambda n, settings: 2 / (n + 1))
    monkeypatch.setitem(kinds.KINDS, KIND, entry)  # type: ignore[arg-type]


def resume_point(model: nn.Module, averages: dict[str, Any]) -> dict[str, Any]:
    row = {"epoch": 1, "step": 3, "lr": 0.1, "train_loss": 1.0, "seconds": 0.5}
    return {
        "recipe": {},
        "input": {"channels": None, "size": [], "mean": [], "std": [], "classes": [], "outputs": 2},
        "num_train": 30,
        "epoch": 1,
        "step": 3,
        "model": model.state_dict(),
        "averages": averages,
        "optimizer": {},
        "scaler": {},
        "rng": {"seed": 0},
        "environment": {"threads": 1, "device": "cpu", "precision": "fp32"},
        "history": [row],
        "epoch_so_far": {"loss": 0.0, "seconds": 0.0},
        "stopped": None,
        "cumulative": None,
    }


def saved(path: Path) -> nn.Module:
    """A resume point with an average of the new kind that holds the weights 1, 2 and 3; returns its network."""
    model = nn.Linear(3, 2)
    running = WeightAverage(model, **kinds.arguments(KIND, {}))
    for value in (1.0, 2.0, 3.0):
        nn.init.constant_(model.weight, value)
        running.update(model)
    reader.save(path, resume_point(model, {"own": {**running.state_dict(), "batchnorm": "none"}}))
    return model


def test_a_declared_kind_is_saved_and_read(tmp_path: Path, declared: None) -> None:
    """Its weights, count and kind after a round trip, against (1 * 1 + 2 * 2 + 3 * 3) / 6."""
    model = saved(tmp_path / "last.pt")
    point = reader.read(tmp_path / "last.pt")
    found = reader.weight_sets(point, model)["own"]
    assert (point.kind, found.kind, found.count) == ("resume", KIND, 3)
    torch.testing.assert_close(found.state_dict["weight"], torch.full((2, 3), 14 / 6), rtol=1e-6, atol=0)


def test_a_declared_kind_continues(tmp_path: Path, declared: None) -> None:
    """The average after a round trip and one more weight set, against (1 * 1 + ... + 4 * 4) / 10."""
    model = saved(tmp_path / "last.pt")
    running = reader.restore_average(reader.read(tmp_path / "last.pt").content["averages"]["own"], model)
    nn.init.constant_(model.weight, 4.0)
    running.update(model)
    torch.testing.assert_close(running.averaged_state()["weight"], torch.full((2, 3), 3.0), rtol=1e-6, atol=0)


def test_a_kind_that_is_not_declared_is_refused(
    tmp_path: Path, declared: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same file where the entry is gone: a UserError with the place in the file and the kind."""
    saved(tmp_path / "last.pt")
    monkeypatch.delitem(kinds.KINDS, KIND)  # type: ignore[misc]
    with pytest.raises(UserError, match=rf"averages\.own\.kind: .*{KIND}"):
        reader.read(tmp_path / "last.pt")
