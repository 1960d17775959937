"""`train.keep_best`, `averages.X.keep: best` and early stopping on any column, at the end and after kills."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Swa, copy_runs, load, run_swa
from equal_runs import assert_equal_runs, content
from processes import exit_codes, start
from swa_cli.engine import evaluate, validate
from swa_cli.engine.run import Run

# The rate is so high that the last epochs are not the best ones.
RECIPE = """\
name: run
model: {name: convnet, args: {width: 4}}
dataset: {name: digits, augment: {crop: 1}}
seed: 1
optimizer: {lr: 1}
schedule: {name: constant}
swa: {start: 1ep, every: 0.5ep, eval_every: 1ep}
averages:
  ema: {kind: ema, decay: 0.5, every: 1step, keep: best}
  late: {kind: lawa, window: 3, every: 9step, start: 1ep, keep: best}
train: {epochs: 5, batch_size: 64, threads: 1, precision: fp32, keep_best: val_loss}
"""
PLAIN = RECIPE.replace(", keep: best", "").replace(", keep_best: val_loss", "")
RUN = Path("runs/run-001")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `runs` after the recipe was trained."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "recipe.yaml").write_text(RECIPE)
    run_swa("train", folder / "recipe.yaml", "-q", "-o", folder / "runs")
    return folder / "runs"


@pytest.fixture
def finished(trained: Path, tmp_path: Path) -> Path:
    """The finished run of the recipe in runs/run-001: a copy of one training."""
    return copy_runs(trained, tmp_path / "runs")


@pytest.fixture
def whole(trained: Path, tmp_path: Path) -> Path:
    """The same run in whole/run-001."""
    return copy_runs(trained, tmp_path / "whole")


@pytest.fixture
def train(swa: Swa, tmp_path: Path) -> Callable[..., Path]:
    """Train the recipe with changes, under a root, and return the run folder."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "plain.yaml").write_text(PLAIN)

    def run(root: str = "runs", *words: str, name: str = "recipe.yaml", code: int = 0) -> Path:
        ended = swa("train", name, *words, "-o", root)
        assert ended.code == code, ended.err
        return Path(root) / "run-001"

    return run


def rows_of(run: Path) -> list[dict[str, Any]]:
    return list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))


def best_epoch(run: Path, column: str, *, highest: bool = False) -> int:
    values = {int(row["epoch"]): float(row[column]) for row in rows_of(run) if row[column]}
    return (max if highest else min)(values, key=lambda epoch: values[epoch])


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.slow
def test_what_is_kept_is_the_best_epoch(train, swa: Swa, finished: Path) -> None:
    """best.pt and the averages against those of a run that ends in that epoch; neither is the last epoch."""
    run = finished
    result = json.loads((run / "result.json").read_text())["weights"]
    for name, column in (("best", "val_loss"), ("ema", "ema_val_loss"), ("late", "late_val_loss")):
        epoch = best_epoch(run, column)
        assert epoch == result[name]["epoch"] < 5, "this recipe tests nothing"
        # The same run, ended there: the schedule is constant, and starts are written in epochs.
        short = train(f"until-{name}", f"train.epochs={epoch}", name="plain.yaml")
        saved = content(run, name)
        if name == "best":
            assert_same_weights(saved["state_dict"], content(short, "last")["model"])
            assert saved["average"]["steps"] == [int(rows_of(run)[epoch - 1]["step"])]
        else:
            assert_same_weights(saved["state_dict"], content(short, name)["state_dict"])
            assert saved["average"] == content(short, name)["average"]
        row = rows_of(run)[epoch - 1]
        assert result[name]["val"]["nll"] == pytest.approx(float(row[column]), rel=1e-12)
        scored = swa("eval", run / f"checkpoints/{name}.pt", "--json").json["weights"][name]
        assert scored["nll"] == result[name]["nll"]
    assert set(swa("eval", run, "--json").json["weights"]) >= {"last", "best", "ema", "late", "swa"}


def test_keeping_does_not_change_the_trajectory(train, finished: Path) -> None:
    """Raw weights, averages in the resume point and all columns against the run that keeps nothing, bit for bit."""
    kept, plain = finished, train("plain", name="plain.yaml")
    for part in ("model", "averages", "optimizer"):
        one, other = (content(run, "last")[part] for run in (kept, plain))
        assert str(one) == str(other)
    for row, other in zip(rows_of(kept), rows_of(plain), strict=True):
        assert {**row, "seconds": ""} == {**other, "seconds": ""}


@pytest.mark.parametrize("column", ["val_accuracy", "train_loss", "swa_val_loss", "ema_val_accuracy"])
def test_any_column_decides(train, column: str) -> None:
    """The epoch of best.pt against the best value of the column, highest for an accuracy."""
    run = train("runs", f"train.keep_best={column}")
    expected = best_epoch(run, column, highest=column.endswith("accuracy"))
    assert json.loads((run / "result.json").read_text())["weights"]["best"]["epoch"] == expected


def test_the_plan_says_what_ships(swa: Swa, train) -> None:
    """The plan of the recipe against the files that it will write."""
    said = " ".join(swa("plan", "recipe.yaml").out.split()) + " ".join(swa("plan", "recipe.yaml").err.split())
    assert "best.pt ships the raw weights of the epoch of the best val_loss" in said
    assert "ema.pt ships its lowest ema_val_loss" in said


def test_what_was_kept_is_taken_out_of_a_resume_point(swa: Swa, finished: Path) -> None:
    """Averages and raw weights that last.pt has kept against the files of the run."""
    run = finished
    for name in ("best", "ema"):
        ended = swa("average", run, "--weights", name, "-o", f"{name}.pt", "--json")
        assert ended.code == 0, ended.err
        out = load(f"{name}.pt")
        assert_same_weights(out["state_dict"], content(run, name)["state_dict"])
        for key in ("average", "batchnorm", "samples"):
            assert out[key] == content(run, name)[key]
    assert swa("average", run, "--weights", "swa", "-o", "swa.pt").code == 0
    shown = swa("show", run / "checkpoints/last.pt", "--json").json["weights"]
    assert shown["best"]["kind"] == "raw"
    assert shown["best"]["epoch"] == content(run, "last")["kept"]["best"]["epoch"]
    assert shown["ema"]["kept_epoch"] == content(run, "last")["kept"]["ema"]["epoch"]


# Events 16 to 18 make, open and rename best.pt of epoch 1, after the resume point of its end.
@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [15, 16, 17, 18, 19, 35])
@pytest.mark.usefixtures("train")
def test_a_kill_at_any_file_leads_to_the_same_end(swa: Swa, tmp_path: Path, whole: Path, kill_at: int) -> None:
    """A run killed as it opens or renames a checkpoint, and continued, against the run without a kill, bit for bit."""
    words = ["train", "recipe.yaml", "output.save_every=5step"]
    process = start(tmp_path, words, kill_at=kill_at, within="checkpoints/")
    assert exit_codes(process) == [-9]
    if kill_at in (16, 17, 18):
        assert content(RUN, "last")["kept"]["best"]["epoch"] == 1
        assert not (RUN / "checkpoints/best.pt").exists()
    assert swa("train", "--resume", RUN).code == 0
    assert_equal_runs(whole, RUN)


def test_what_a_killed_process_left_in_best_is_forgotten(swa: Swa, finished: Path) -> None:
    """best.pt of an epoch after the resume point against what the resume point has kept, as soon as the run goes on."""
    run = finished
    epoch = content(run, "last")["kept"]["best"]["epoch"]
    saved = load(run / "checkpoints/best.pt")
    for name in ("result.json", "checkpoints/ema.pt"):
        (run / name).unlink()
    wrong = load(run / "checkpoints/best.pt")
    wrong["average"]["steps"] = [999]
    torch.save(wrong, run / "checkpoints/best.pt")
    assert swa("train", "--resume", run).code == 0
    assert load(run / "checkpoints/best.pt")["average"] == saved["average"]
    assert json.loads((run / "result.json").read_text())["weights"]["best"]["epoch"] == epoch


def test_a_resume_point_whose_kept_weights_are_not_of_its_history(swa: Swa, finished: Path) -> None:
    """Kept weights of another epoch, or none, against the refusal to go on from them."""
    run = finished
    (run / "result.json").unlink()
    (run / "checkpoints/previous.pt").unlink()
    whole = load(run / "checkpoints/last.pt")
    for kept in ({}, {**whole["kept"], "ema": {**whole["kept"]["ema"], "epoch": 5}}):
        torch.save({**whole, "kept": kept}, run / "checkpoints/last.pt")
        ended = swa("train", "--resume", run)
        assert ended.code == 2
        assert "not the best of its history" in " ".join(ended.err.split())


def test_more_epochs_go_on_with_what_was_kept(train, swa: Swa, whole: Path) -> None:
    """A run that was extended against one of as many epochs from the start."""
    run = train("runs", "train.epochs=3")
    assert swa("train", "--resume", run, "--extend-to", "5").code == 0
    for name in ("best", "ema", "late"):
        assert_same_weights(content(run, name)["state_dict"], content(whole, name)["state_dict"])


def test_patience_for_an_average(train) -> None:
    """Early stopping on ema_val_loss against the epoch that the values themselves say."""
    run = train("runs", "train.epochs=20", "train.early_stopping={metric: ema_val_loss, patience: 2}")
    rows = rows_of(run)
    assert len(rows) < 20
    assert len(rows) - best_epoch(run, "ema_val_loss") == 2
    assert json.loads((run / "result.json").read_text())["stopped"] == "patience"


def test_a_metric_that_is_never_finite_keeps_nothing_and_says_so(
    swa: Swa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs that are NaN in evaluation: no best.pt, a warning of each that keeps, and the reason of `ship`."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    outputs_of = evaluate.outputs_of
    monkeypatch.setattr(evaluate, "outputs_of", lambda *words, **options: outputs_of(*words, **options) * math.nan)
    ended = swa("train", "recipe.yaml", "train.epochs=2")
    assert ended.code == 0
    said = " ".join(ended.err.split())
    for column, left in (("val_loss", "no best.pt"), ("ema_val_loss", "ema.pt"), ("late_val_loss", "late.pt")):
        assert re.search(rf"warning: {column} was never finite: [^:]*{left}", said)
    assert not (Path("runs/run-001") / "checkpoints/best.pt").exists()
    assert "swa.pt (no validation loss is finite)" in " ".join(ended.out.split())


@pytest.mark.parametrize(
    ("words", "key", "message"),
    [
        (["train.keep_best=loss"], "train.keep_best", "measures no"),
        (["train.keep_best=other_val_loss"], "train.keep_best", "measures no"),
        (["dataset.val=0"], "train.keep_best", "no validation split"),
        (["dataset.val=0"], "averages.ema.keep", "no validation split"),
        (["averages.ema.kind=swag", "averages.ema.decay=null"], "averages.ema.keep", "posterior"),
        (["averages.best.kind=ema"], "averages.best", "cannot name an average"),
        (["averages.ema.keep=first"], "averages.ema.keep", "best"),
    ],
)
def test_what_cannot_be_kept(train, swa: Swa, words: list[str], key: str, message: str) -> None:
    """A column or an average that cannot decide against its key and the reason; nothing is run."""
    ended = swa("train", "recipe.yaml", *words)
    assert ended.code == 2
    said = " ".join(ended.err.split())
    assert f"error: {key}" in said
    assert message in said
    assert not Path("runs").exists()


def test_stopped_while_the_best_is_kept(
    train: Callable[..., Path], whole: Path, swa: Swa, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGINT when a row of history is there and its weights are not kept yet, then --resume, bit for bit."""
    keep, calls = validate.keep_best, []

    def stopped(run: Run) -> None:
        calls.append(run.epoch)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGINT)
            run.interrupt.check()
        keep(run)

    monkeypatch.setattr(validate, "keep_best", stopped)
    train(code=130)
    ended = swa("train", "--resume", RUN)
    assert ended.code == 0, ended.err
    assert_equal_runs(whole, RUN)
