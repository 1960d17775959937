"""Optimizers that average inside (Schedule-Free): what is scored and saved are their eval weights."""

from __future__ import annotations

import csv
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from schedulefree import SGDScheduleFree
from torch import nn

import plain_loop
from conftest import load
from equal_runs import assert_equal_runs
from swa_cli.engine import optimizers, train
from swa_cli.recipe import load as recipes

FREE = "optimizer={name: 'schedulefree:SGDScheduleFree', lr: 1, weight_decay: 5e-4}"
WORDS = [FREE, "schedule={name: constant, warmup: 0ep}", "train.precision=fp32", "train.epochs=2"]
ALONE = [*WORDS, "swa=null"]


def test_scored_weights_are_those_of_the_plain_loop(swa, recipe: Path, tmp_path: Path) -> None:
    """Raw weights of last.pt and of a snapshot against the package's own loop and its eval(), bit for bit.

    Their statistics are those of the training images: of the first layer, against the mean of its inputs in float64.
    """
    assert swa("train", recipe, *ALONE, "snapshots={every: 1ep}", "-q").code == 0
    run = tmp_path / "runs/small-001"
    point = load(run / "checkpoints/last.pt")

    def make(model: nn.Module) -> SGDScheduleFree:
        optimizer = SGDScheduleFree(model.parameters(), lr=1, weight_decay=5e-4)
        optimizer.train()
        return optimizer

    model, optimizer = plain_loop.trained(recipe, ALONE, make)
    plain_loop.assert_equal_parameters(model, point["trained"])
    for name, value in model.named_buffers():
        assert torch.equal(value, point["trained"][name]), name
    optimizer.eval()
    plain_loop.assert_equal_parameters(model, point["model"])
    assert point["batchnorm"] == "recomputed"
    snapshot = load(sorted((run / "snapshots").iterdir())[-1])
    plain_loop.assert_equal_parameters(model, snapshot["state_dict"])
    assert snapshot["batchnorm"] == "stale"
    built = train.set_up(recipes.load(recipe, ALONE))
    convolution = model.features[0].double()
    seen = torch.cat([convolution(inputs.double()) for inputs, _ in built.context.statistics_batches()])
    torch.testing.assert_close(
        point["model"]["features.1.running_mean"].double(), seen.mean((0, 2, 3)), rtol=0, atol=1e-6
    )


def test_reading_weights_changes_none(swa, recipe: Path, tmp_path: Path) -> None:
    """Averages and a running mean of every step, with scores in between, against a run without: the same weights."""
    often = ["swa={every: 1step, start: 0ep, eval_every: 1ep}", "snapshots={every: 5step, cumulative: true}"]
    assert swa("train", recipe, *ALONE, "-q").code == 0
    assert swa("train", recipe, *WORDS, *often, "output.save_every=3step", "-q").code == 0
    few, many = (load(tmp_path / f"runs/small-00{number}/checkpoints/last.pt") for number in (1, 2))
    for part in ("model", "trained"):
        assert all(torch.equal(value, many[part][name]) for name, value in few[part].items())


def test_a_stopped_run_ends_with_the_same_bits(
    swa, recipe: Path, tmp_path: Path, signal_at: Callable[..., None]
) -> None:
    """Stopped inside an epoch, its weights scored and refreshed, and resumed, against the run to the end."""
    words = [*WORDS, "snapshots={every: 7step, cumulative: true}", "train.keep_best=val_loss", "-q"]
    assert swa("train", recipe, *words).code == 0
    signal_at(30, signal.SIGTERM)
    assert swa("train", recipe, *words).code == 143
    signal_at(-1)
    stopped = tmp_path / "runs/small-002"
    last = stopped / "checkpoints/last.pt"
    assert load(last)["batchnorm"] == "stale"
    refused = swa("eval", last, "--weights", "last", "--allow-code")
    assert refused.code == 2
    assert f"swa bn-update {last}" in " ".join(refused.err.split())
    assert swa("bn-update", last, "--allow-code", "-q").code == 0
    assert load(last)["batchnorm"] == "recomputed"
    assert swa("eval", last, "--weights", "last", "--allow-code", "-q").code == 0
    assert swa("train", "--resume", stopped, "--allow-code", "-q").code == 0
    assert_equal_runs(tmp_path / "runs/small-001", stopped)


def test_commands_read_what_the_run_scored(swa, recipe: Path, tmp_path: Path) -> None:
    """metrics.csv, result.json, best.pt, `swa eval` of the run, and its ensemble against that of refreshed members."""
    told = swa("train", recipe, *ALONE, "snapshots={every: 1ep}", "train.keep_best=val_loss", "--json")
    assert told.code == 0, told.err
    assert "averages inside" in told.err
    assert "warning" not in told.err
    weights = told.json["weights"]
    assert told.json["reference"] == "last"
    assert {name: row["batchnorm"] for name, row in weights.items()} == {"last": "recomputed", "best": "recomputed"}
    run = tmp_path / "runs/small-001"
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    assert float(rows[-1]["val_loss"]) == pytest.approx(weights["last"]["val"]["nll"], abs=1e-9)
    ended = swa("eval", run, "--ensemble", "--allow-code", "--json")
    assert ended.code == 0, ended.err
    again = ended.json["weights"]
    assert list(again) == ["last", "best", "ensemble"]
    assert again["last"]["nll"] == pytest.approx(weights["last"]["nll"], abs=1e-6)
    assert again["ensemble"]["batchnorm"] == "recomputed"
    for file in (run / "snapshots").iterdir():
        assert swa("bn-update", file, "--allow-code", "-q").code == 0
    refreshed = swa("eval", run, "--ensemble", "--allow-code", "--json").json["weights"]["ensemble"]
    assert refreshed["nll"] == pytest.approx(again["ensemble"]["nll"], abs=1e-9)
    assert load(run / "checkpoints/best.pt")["batchnorm"] == "recomputed"


def test_without_a_validation_split_the_last_weights_are_fresh(swa, recipe: Path, tmp_path: Path) -> None:
    """last.pt of a run that scores nothing before its end: recomputed, so `swa eval` and `swa predict` take it."""
    assert swa("train", recipe, *ALONE, "dataset.val=0", "-q").code == 0
    assert load(tmp_path / "runs/small-001/checkpoints/last.pt")["batchnorm"] == "recomputed"
    assert swa("eval", "runs/small-001", "--allow-code", "-q").code == 0


def test_the_plan_warns_of_a_decay_and_of_averages_of_averages(swa, recipe: Path) -> None:
    """The default schedule and `swa` beside an optimizer that averages inside."""
    ended = swa("train", recipe, FREE, "--dry-run")
    assert ended.code == 0, ended.err
    said = " ".join(ended.err.split())
    assert "schedule.name: cosine" in said
    assert "`schedule: {name: constant}`" in said
    assert "swa: the optimizer averages inside" in said


def test_weights_come_back_after_an_error() -> None:
    """Parameters and mode of the optimizer after a block that fails, against before."""
    layer = nn.Linear(2, 2)
    optimizer = SGDScheduleFree(layer.parameters(), lr=1)
    optimizer.train()
    for _ in range(3):
        layer(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    before = layer.weight.detach().clone()
    with optimizers.eval_weights(optimizer):
        assert not torch.equal(layer.weight, before)
    assert torch.equal(layer.weight, before)
    with pytest.raises(RuntimeError), optimizers.eval_weights(optimizer):
        layer(torch.ones(1, 3))
    assert torch.equal(layer.weight, before)
    optimizer.step()
