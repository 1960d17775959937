"""The recipe of segmentation, on drawn scenes and on a folder of the same scenes as files."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from equal_runs import content
from swa_cli.data.synthetic import draw_scenes

RECIPE = Path(__file__).parents[2] / "recipes/shapes_unet_cyclic.yaml"
SMALL = ["train.epochs=3", "swa.start=1ep", "swa.eval_every=3ep", "train.threads=1", "train.precision=fp32"]
SMALL += ["model.args={depth: 2, width: 4}", "dataset.val=8"]


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """A folder of images and masks in PNG files: 40 scenes to train, 8 to test."""
    root = tmp_path / "scenes"
    for split, count in (("train", 40), ("test", 8)):
        images, classes = draw_scenes(split, count=count, size=32, classes=2, channels=3, seed=0)
        for part in ("images", "masks"):
            (root / split / part).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(images[index].permute(1, 2, 0).numpy()).save(root / split / f"images/{index:03d}.png")
            Image.fromarray(classes[index].numpy()).save(root / split / f"masks/{index:03d}.png")
    return root


@pytest.mark.parametrize(
    "data", ["dataset.args={size: 32, train: 40, test: 8}", "dataset.name=mask_folder"], ids=["drawn", "files"]
)
def test_the_recipe_averages_at_the_minima(swa, masks: Path, tmp_path: Path, data: str) -> None:
    """A short run of the shipped recipe: steps of the average against the lowest rates, and the rows of the table."""
    folder = [f"dataset.root={masks}", "dataset.args={classes: 2}"] if "folder" in data else []
    ended = swa("train", RECIPE, *SMALL, data, *folder, "train.batch_size=4", "--json")
    assert ended.code == 0, ended.err
    weights = ended.json["weights"]
    assert weights.keys() == {"last", "last_bn", "swa"}
    assert weights["swa"]["batchnorm"] == "recomputed"
    assert 0 < weights["swa"]["mean_iou"] < 1
    run = tmp_path / "runs/shapes-unet-cyclic-001"
    assert content(run, "swa")["average"]["steps"] == [8, 12, 16, 20, 24]  # 8 steps an epoch, cycles of 4 steps
    rates = [float(row["lr"]) for row in csv.DictReader((run / "metrics.csv").read_text().splitlines())]
    assert max(rates) < 0.4 / 1.9  # of the step before a minimum: half-way down, in so short a cycle


def test_files_give_what_the_drawing_gives(swa, masks: Path, tmp_path: Path) -> None:
    """Weights after training on the files against weights after training on the scenes themselves, bit for bit."""
    common = [*SMALL, "train.batch_size=4", "-q"]
    assert swa("train", RECIPE, *common, "dataset.args={size: 32, train: 40, test: 8}").code == 0
    words = ["dataset.name=mask_folder", f"dataset.root={masks}", "dataset.args={classes: [background, object]}"]
    assert swa("train", RECIPE, *common, *words).code == 0
    first, second = (
        content(tmp_path / f"runs/shapes-unet-cyclic-{number}", "last")["model"] for number in ("001", "002")
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())
