"""What a run has averaged is had, whatever its end fails at: the line of the message, and the same end after a resume.

The oracles are the float64 mean of the snapshots of an average's steps, and the run to which nothing happened.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from swa_cli.checkpoint import atomic
from swa_cli.engine import validate as scoring

NETS = """
import os
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

scores = {"accuracy": "higher", "loss": "lower"}


def broken(part):
    if os.path.exists(f"broken-{part}"):
        raise RuntimeError(f"the {part} is broken")


class Net(nn.Module):
    def __init__(self, num_classes=3, in_channels=1):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        if not self.training:
            broken("network")
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


class Test(TensorDataset):
    def __getitem__(self, index):
        broken("dataset")
        return super().__getitem__(index)


def data():
    def samples(count):
        labels = torch.arange(count) % 3
        return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(count)), labels

    return {"train": TensorDataset(*samples(96)), "test": Test(*samples(48)), "num_classes": 3}


class Task:
    scores = {"accuracy": "higher", "loss": "lower"}

    def loss(self, outputs, targets, *, label_smoothing):
        return nn.functional.cross_entropy(outputs, targets)

    def predict(self, outputs):
        return outputs.softmax(-1)

    def metrics(self, predictions, targets):
        broken("task")
        loss = nn.functional.nll_loss(predictions.clamp_min(1e-9).log(), targets, reduction="none")
        return {"accuracy": (predictions.argmax(-1) == targets).float(), "loss": loss}


task = Task()
"""
RECIPE = {
    "name": "rescue",
    "model": {"name": "rescue_nets:Net"},
    "dataset": {"name": "rescue_nets:data", "val": 0, "workers": 0, "cache": "none"},
    "task": "rescue_nets:task",
    "optimizer": {"lr": 0.05},
    "swa": {"start": "1ep", "every": "1ep"},
    "averages": {"ema": {"kind": "ema", "decay": 0.9}},
    "snapshots": {"every": "1ep", "start": "1ep"},
    "train": {"epochs": 3, "batch_size": 16, "threads": 1, "precision": "fp32", "device": "cpu"},
}
RUN = Path("runs/rescue-001")


@pytest.fixture
def ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Recipe and code in the folder; what is given happens when all steps are done."""
    (tmp_path / "rescue_nets.py").write_text(NETS)
    (tmp_path / "r.yaml").write_text(json.dumps(RECIPE))
    sys.modules.pop("rescue_nets", None)

    def arm(happen: Callable[[], object]) -> None:
        finish = scoring.finish

        def do(*arguments: Any) -> Any:
            monkeypatch.setattr(scoring, "finish", finish)
            happen()
            return finish(*arguments)

        monkeypatch.setattr(scoring, "finish", do)

    return arm


def no_write_of(monkeypatch: pytest.MonkeyPatch, name: str) -> Callable[[], None]:
    """The file system has no room for a file that is to become `name`."""

    def refuse(path: Path, mode: str) -> Any:
        if path.name.startswith(f".{name}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return open(path, mode)

    return lambda: monkeypatch.setattr(atomic, "open", refuse, raising=False)


def read(path: Path | str) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def require_mean_of_snapshots(path: str) -> dict[str, Any]:
    content = read(path)
    states = [read(RUN / f"snapshots/step-{step:08d}.pt")["state_dict"] for step in content["average"]["steps"]]
    assert len(states) > 1
    for key in states[0]:
        if not key.startswith("norm.running") and not key.endswith("num_batches_tracked"):
            mean = torch.stack([state[key].double() for state in states]).mean(0)
            torch.testing.assert_close(content["state_dict"][key].double(), mean, atol=1e-6, rtol=0)
    return content


def lines_of(said: str) -> list[list[str]]:
    """The commands in backticks, as words without `swa`."""
    return [shlex.split(line)[1:] for line in re.findall(r"`(swa (?:train|average) [^`]*)`", " ".join(said.split()))]


@pytest.mark.parametrize("part", ["network", "dataset", "task"])
def test_an_end_that_ones_own_code_fails_at(swa, ending, part: str) -> None:
    """The network in evaluation mode, the test split, a metric: no fault of swa, and both pasted lines work."""
    ending(lambda: Path(f"broken-{part}").touch())
    ended = swa("train", "r.yaml", "-q")
    assert ended.code == 1
    assert f"the {part} is broken" in ended.err
    assert "this is in your own code" in ended.err
    assert "mistake of swa" not in ended.err
    resume, take = lines_of(ended.err)
    assert swa(*take).code == 0
    expected = "recomputed" if part == "task" else "stale"  # data are looked at as they are opened
    assert require_mean_of_snapshots("swa.pt")["batchnorm"] == expected
    Path(f"broken-{part}").unlink()
    assert swa(*resume, "-q").code == 0
    shipped = require_mean_of_snapshots(str(RUN / "checkpoints/swa.pt"))
    assert swa(*take, "-q").code == 0  # on a finished run, too
    taken = read("swa.pt")
    for key, value in shipped["state_dict"].items():
        assert torch.equal(taken["state_dict"][key], value)
    assert (taken["average"], taken["samples"]) == (shipped["average"], shipped["samples"])


@pytest.mark.parametrize("name", ["last_bn.pt", "swa.pt", "curves.png", "result.json"])
def test_an_end_on_a_full_disk(swa, ending, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """No room for a file of the end: the averages are taken out elsewhere, and the resumed run comes to its end."""
    with monkeypatch.context() as patched:
        ending(no_write_of(patched, name))
        ended = swa("train", "r.yaml", "-q")
    assert ended.code == 1
    assert "no room to write" in ended.err
    resume, take = lines_of(ended.err)
    take[take.index("swa.pt")] = "rescued.pt"
    assert swa(*take).code == 0
    require_mean_of_snapshots("rescued.pt")
    assert swa(*resume, "-q").code == 0


def test_validation_that_fails_loses_no_step(swa, ending, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network fails in the last validation, before the last save of its epoch: every step is in last.pt."""
    validate = scoring.validate

    def fail_at_the_end(run: Any) -> Any:
        if run.epoch == 3:
            Path("broken-network").touch()
        return validate(run)

    monkeypatch.setattr(scoring, "validate", fail_at_the_end)
    ended = swa("train", "r.yaml", "-q", "dataset.val=16")
    assert ended.code == 1
    steps = read(RUN / "checkpoints/last.pt")["averages"]["swa"]["steps"]
    assert len(steps) == 3
    resume, take = lines_of(ended.err)
    assert swa(*take).code == 0
    assert require_mean_of_snapshots("swa.pt")["average"]["steps"] == steps
    monkeypatch.setattr(scoring, "validate", validate)
    Path("broken-network").unlink()
    assert swa(*resume, "-q").code == 0
    assert json.loads((RUN / "result.json").read_text())["weights"]["swa"]["count"] == 3


BN_RECORD = ("batchnorm", "batchnorm_method", "samples")


def test_a_stopped_run_gives_its_average(swa, ending) -> None:
    """A run ended by train.max_time: --weights ema --no-bn, bn-update on last.pt and --weights swa agree."""
    ending(lambda: None)
    assert (
        swa(
            "train", "r.yaml", "-q", "train.early_stopping={metric: train_loss, patience: 1}", "optimizer.lr=1e-12"
        ).code
        == 0
    )
    ended = swa("average", RUN, "--weights", "ema", "-o", "ema.pt", "--no-bn", "--allow-code")
    assert ended.code == 0
    said = " ".join((ended.out + ended.err).split())
    assert "`swa bn-update ema.pt --allow-code`, then score it with `swa eval ema.pt --allow-code`" in said
    entry = read(RUN / "checkpoints/last.pt")["averages"]["ema"]
    taken = read("ema.pt")
    assert (taken["batchnorm"], taken["average"]["steps"]) == ("stale", entry["steps"])
    for key, value in entry["state"].items():
        assert torch.equal(taken["state_dict"][key], value)
    words = [RUN / "checkpoints/last.pt", "--weights", "ema", "--allow-code"]
    assert swa("bn-update", *words, "-o", "updated.pt").code == 0
    assert swa("average", *words, "-o", "again.pt").code == 0
    updated, again = read("updated.pt"), read("again.pt")
    assert updated["batchnorm"] == again["batchnorm"] == "recomputed"
    assert all(torch.equal(again["state_dict"][key], value) for key, value in updated["state_dict"].items())
    assert swa("eval", "updated.pt", "--allow-code").code == 0
    assert swa("bn-update", RUN / "checkpoints/last.pt", "--allow-code").code == 0  # in place, and its record with it
    assert swa("average", RUN, "--weights", "ema", "-o", "kept.pt", "--no-bn", "--allow-code").code == 0
    kept = read("kept.pt")
    assert [kept[key] for key in BN_RECORD] == [updated[key] for key in BN_RECORD]
    assert kept["samples"] > 0
    scored = swa("bn-update", RUN / "checkpoints/swa.pt", "-o", "plain.pt", "--allow-code")
    assert scored.code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([RUN, "--weights", "lawa"], "choose from swa, ema"),
        ([RUN, "--weights", "last"], "--weights last -o FILE.pt"),
        ([RUN / "checkpoints/swa.pt", "--weights", "swa"], "name a run folder"),
        ([RUN, RUN, "--weights", "swa"], "--recipe"),
        ([RUN, "--weights", "swa", "--last", "2"], "--last and --weights"),
    ],
)
def test_what_cannot_be_taken_out(swa, ending, words: list[Any], said: str) -> None:
    """Each with exit 2, the way that works, and no file."""
    ending(lambda: None)
    assert swa("train", "r.yaml", "-q", "train.epochs=2").code == 0
    ended = swa("average", *words, "-o", "x.pt", "--allow-code")
    assert ended.code == 2
    assert said in " ".join(ended.err.replace("│", "").split())
    assert not Path("x.pt").exists()
