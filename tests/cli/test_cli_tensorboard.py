"""`output.loggers: [tensorboard]`: what TensorBoard reads, held against metrics.csv."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import pytest

from swa_cli.engine.events import EpochEvent
from swa_cli.engine.loggers import TensorBoard

pytestmark = pytest.mark.filterwarnings("ignore")  # of the other library
WORDS = ["output.loggers=[tensorboard]", "train.precision=fp32"]


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag to (step, value) in the order of the file, as TensorBoard's own reader gives them."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: dict[str, list[tuple[int, float]]] = {}
    (path,) = (run / "tensorboard").iterdir()
    for event in EventFileLoader(str(path)).Load():
        for value in event.summary.value:
            number = value.tensor.float_val[0] if value.HasField("tensor") else value.simple_value
            found.setdefault(value.tag, []).append((event.step, number))
    return found


def measured(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The same from metrics.csv, whose empty cells were not measured."""
    found: dict[str, list[tuple[int, float]]] = {}
    with open(run / "metrics.csv") as file:
        for row in csv.DictReader(file):
            for key, cell in row.items():
                if key not in ("epoch", "step") and cell:
                    found.setdefault(key, []).append((int(row["step"]), pytest.approx(float(cell), rel=1e-6)))
    return found


def test_every_row_is_there(swa, recipe: Path, tmp_path: Path) -> None:
    """Every number of metrics.csv, the rate included, at its step; without the key no folder."""
    assert swa("train", recipe, "-q", *WORDS).code == 0
    run = tmp_path / "runs/small-001"
    assert {"lr", "train_loss", "val_accuracy", "swa_val_loss"} <= measured(run).keys()
    assert scalars(run) == measured(run)
    assert swa("train", recipe, "-q", "train.epochs=1").code == 0
    assert not (tmp_path / "runs/small-002/tensorboard").exists()


def test_a_resumed_run_repeats_no_row(swa, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after the row of epoch 3 and before its save, then resumed: every row once, as in metrics.csv."""
    run, write = tmp_path / "runs/small-001", TensorBoard.epoch

    def stop(board: TensorBoard, event: EpochEvent) -> None:
        write(board, event)
        if event.row["epoch"] == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TensorBoard, "epoch", stop)
        assert swa("train", recipe, "-q", *WORDS).code == 130
    assert len(scalars(run)["lr"]) == 3
    assert swa("train", "--resume", run, "-q").code == 0
    assert scalars(run) == measured(run)
    assert len(scalars(run)["lr"]) == 4


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_missing_package_is_told_before_the_run(
    swa, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    """Without tensorboard: exit 2, the place, the command that mends it, and no folder."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "tensorboard" else find(name, *a))
    ended = swa("train", recipe, *WORDS, *more)
    assert ended.code == 2
    assert "output.loggers: the package tensorboard is not installed" in ended.err
    assert "command line: output.loggers=[tensorboard]" in ended.err
    assert "pip install 'swa-cli[tensorboard]'" in ended.err
    assert not (tmp_path / "runs").exists()
