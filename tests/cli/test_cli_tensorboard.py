"""`output.loggers: [tensorboard]`: what TensorBoard reads, held against metrics.csv."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path

import pytest

from swa_cli.engine.events import EpochEvent
from swa_cli.engine.loggers import TensorBoard

pytestmark = pytest.mark.filterwarnings("ignore")  # of the other library
WORDS = ["output.loggers=[tensorboard]", "train.precision=fp32"]


def logged(run: Path) -> dict[str, list[tuple[int, float | str]]]:
    """Tag to (step, number or text) in the order of the file, as TensorBoard's own reader gives them."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: dict[str, list[tuple[int, float | str]]] = {}
    (path,) = (run / "tensorboard").iterdir()
    for event in EventFileLoader(str(path)).Load():
        for value in event.summary.value:
            is_text = value.metadata.plugin_data.plugin_name == "text"
            content = value.tensor.string_val[0].decode() if is_text else value.tensor.float_val[0]
            found.setdefault(value.tag, []).append((event.step, content))
    return found


def scalars(run: Path) -> dict[str, list[tuple[int, float | str]]]:
    """What was logged under the names of columns."""
    return {tag: values for tag, values in logged(run).items() if tag in measured(run)}


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


def test_the_end_is_logged_once(swa, recipe: Path, tmp_path: Path) -> None:
    """The scores of result.json at the last step, its reference and recipe.yaml as texts; after --extend-to anew."""
    run = tmp_path / "runs/small-001"
    for words in (["train", recipe, *WORDS], ["train", "--resume", run, "--extend-to", "5"]):
        assert swa(*words, "-q").code == 0
        found, result = logged(run), json.loads((run / "result.json").read_text())
        ((step, _),) = measured(run)["val_loss"][-1:]
        for split, row in ((result["split"], lambda scores: scores), ("val", lambda scores: scores["val"])):
            for name, scores in result["weights"].items():
                for key in ("accuracy", "nll"):
                    assert found[f"{split}/{name}/{key}"] == [(step, pytest.approx(row(scores)[key], rel=1e-6))]
        assert found["reference"] == [(step, result["reference"])]
        (path,) = [Path(str(text)) for _, text in found["checkpoint"]]
        assert path.is_file()
        ((begin, text),) = found["recipe"]
        assert (begin, text) == (0, f"```yaml\n{(run / 'recipe.yaml').read_text()}```")
        others = found.keys() - measured(run).keys() - {"recipe", "reference", "checkpoint"}
        assert all(tag.count("/") == 2 for tag in others)


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
