"""The examples in docs, run as they stand."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from conftest import Swa

EXAMPLES = Path(__file__).parents[2] / "docs/examples"


def test_a_network_dataset_and_task_of_ones_own(swa: Swa) -> None:
    """The example trains to more than guessing gives, and its shipped file is evaluated to the scores of the run."""
    trained = swa("train", EXAMPLES / "larger_digit.yaml", "train.epochs=6", "train.threads=1", "--json")
    assert trained.code == 0, trained.err
    scores = trained.json["weights"]["swa"]
    assert scores["accuracy"] > 0.8
    assert {"accuracy", "loss", "brier"} <= scores.keys()
    ship = "runs/larger-digit-001/checkpoints/swa.pt"
    assert swa("eval", ship).code == 2, "code that a checkpoint names is not run unasked"
    evaluated = swa("eval", ship, "--allow-code", "--json")
    assert evaluated.code == 0, evaluated.err
    assert evaluated.json["weights"]["swa"]["loss"] == scores["loss"]


def test_photos_are_enlarged_once_each(swa: Swa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script on 20 images per class: counts, sizes and ratios by its text; the recipe beside it reads them."""
    for label in ("cat", "dog"):
        (tmp_path / "cifar" / label).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (32, 32), (9 * number, 0, 0)).save(tmp_path / f"cifar/{label}/{number}.png")
    monkeypatch.setattr(sys, "argv", ["enlarged_photos.py", "cifar", "photos64"])
    script = runpy.run_path(str(EXAMPLES / "enlarged_photos.py"))
    script["SPLITS"].update(train=20, val=6, test=10)
    script["main"]()
    files = sorted(tmp_path.glob("photos64/*/*/*.jpg"))
    counts = {split: len(list(tmp_path.glob(f"photos64/{split}/*/*.jpg"))) for split in ("train", "val", "test")}
    assert counts == {"train": 20, "val": 6, "test": 10}
    assert len({(path.parent.name, path.name) for path in files}) == 36, "no image twice"
    for path in files:
        with Image.open(path) as image:
            assert 80 <= min(image.size) <= 320
            assert min(abs(image.width / image.height - ratio) for ratio in script["RATIOS"]) < 0.03
    planned = swa("train", EXAMPLES / "enlarged_photos.yaml", "--dry-run", "train.batch_size=10", "model.name=convnet")
    assert planned.code == 0, planned.err
    assert "20 train, 6 val, 10 test" in " ".join(planned.err.split())
    with pytest.raises(SystemExit, match="photos64 exists"):
        script["main"]()


def test_fine_tuning_of_published_weights(swa: Swa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script writes weights that the recipe beside it takes: all but the head come from them."""
    for split in ("train", "val", "test"):
        for label in ("cat", "dog"):
            (tmp_path / "photos64" / split / label).mkdir(parents=True)
            Image.new("RGB", (120, 100)).save(tmp_path / f"photos64/{split}/{label}/0.png")
    monkeypatch.setattr(sys, "argv", ["transfer_weights.py"])
    runpy.run_path(str(EXAMPLES / "transfer_weights.py"), run_name="__main__")
    planned = swa("plan", EXAMPLES / "transfer.yaml", "train.batch_size=2")
    assert planned.code == 0, planned.err
    assert "fresh: classifier.weight, classifier.bias" in " ".join((planned.out + planned.err).split())
