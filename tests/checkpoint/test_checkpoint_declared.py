"""Checkpoints of a kind of average that is only declared in the table of kinds: written, read and continued."""

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
from swa_cli.recipe.values import Duration, Key, Number

KIND = "linear"  # a weight set counts in proportion to its number: n / (1 + 2 + ... + n)


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more entry in the table of kinds."""
    entry = replace(kinds.KINDS["mean"], share=lambda n, settings: 2 / (n + 1))
    monkeypatch.setitem(kinds.KINDS, KIND, entry)  # type: ignore[arg-type]


@pytest.fixture
def declared_with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, with a key of its own: n ** power instead of n."""
    entry = replace(
        kinds.KINDS["mean"],
        keys={"power": Key(Number, 1.0, "exponent of a weight set's number")},
        share=lambda n, settings: n ** settings["power"] / sum(i ** settings["power"] for i in range(1, n + 1)),
    )
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


def saved(path: Path, **settings: Any) -> nn.Module:
    """A resume point with an average of the new kind that holds the weights 1, 2 and 3; returns its network."""
    model = nn.Linear(3, 2)
    running = WeightAverage(model, **kinds.arguments(KIND, settings))
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


def test_a_key_of_a_declared_kind_comes_back(tmp_path: Path, declared_with_a_key: None) -> None:
    """A share that reads its key, after a round trip, against (1 * 1 + 2^2 * 2 + 3^2 * 3 + 4^2 * 4) / 30."""
    model = saved(tmp_path / "last.pt", power=2.0)
    entry = reader.read(tmp_path / "last.pt").content["averages"]["own"]
    assert entry["share_settings"] == {"power": 2.0}
    running = reader.restore_average(entry, model)
    nn.init.constant_(model.weight, 4.0)
    running.update(model)
    torch.testing.assert_close(running.averaged_state()["weight"], torch.full((2, 3), 100 / 30), rtol=1e-6, atol=0)


def test_a_changed_key_of_a_declared_kind_is_refused(tmp_path: Path, declared_with_a_key: None) -> None:
    """A saved average with the key 2 against one that is to continue it with 3: a UserError with both."""
    model = saved(tmp_path / "last.pt", power=2.0)
    entry = reader.read(tmp_path / "last.pt").content["averages"]["own"]
    other = WeightAverage(model, **kinds.arguments(KIND, {"power": 3.0}))
    with pytest.raises(UserError, match=r"share_settings .*2\.0.*3\.0"):
        other.load_state_dict(entry)


def test_settings_of_a_share_beside_a_shipped_kind_are_refused(tmp_path: Path, declared_with_a_key: None) -> None:
    """`share_settings` in an average of kind mean: in a file, and as an argument."""
    model = saved(tmp_path / "last.pt", power=2.0)
    entry = reader.read(tmp_path / "last.pt").content["averages"]["own"]
    with pytest.raises(UserError, match="share_settings"):
        reader.restore_average({**entry, "kind": "mean"}, model)
    with pytest.raises(UserError, match="share_settings"):
        WeightAverage(model, kind="mean", share_settings={"power": 2.0})


def test_shipped_kinds_store_no_settings_of_a_share() -> None:
    """The state of each kind of the table as it is shipped: the key of declared kinds is in none."""
    for kind, settings in (("mean", {}), ("ema", {"decay": 0.9}), ("lawa", {"window": 2}), ("swag", {"rank": 2})):
        assert "share_settings" not in WeightAverage(nn.Linear(3, 2), kind=kind, **settings).state_dict()


def test_a_value_that_no_file_can_hold_is_refused(declared_with_a_key: None) -> None:
    """A duration among the settings of a declared kind: refused before anything is trained."""
    with pytest.raises(AssertionError, match="power"):
        kinds.arguments(KIND, {"power": Duration.parse("1ep")})


def test_a_kind_that_is_not_declared_is_refused(
    tmp_path: Path, declared: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same file where the entry is gone: a UserError with the place in the file and the kind."""
    saved(tmp_path / "last.pt")
    monkeypatch.delitem(kinds.KINDS, KIND)  # type: ignore[misc]
    with pytest.raises(UserError, match=rf"averages\.own\.kind: .*{KIND}"):
        reader.read(tmp_path / "last.pt")
