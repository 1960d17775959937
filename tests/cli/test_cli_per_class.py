"""`swa eval --per-class --predictions`: against the scores of the same command, and what the files show."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import Swa, run_swa
from swa_cli.analysis import run_data
from swa_cli.data.image_file import EncodedPhoto
from swa_cli.data.randomness import generator
from swa_cli.data.transforms import EvaluationView
from swa_cli.report.plots.samples import draw_samples
from swa_cli.report.terminal import Terminal

RECIPE = """\
name: photos
model: {name: convnet, args: {width: 4}}
dataset: {name: image_folder, root: ROOT, image_size: 8, val: 0, workers: 0, cache: CACHE}
optimizer: {lr: 0.05}
swa: {start: 1ep, every: 1ep}
snapshots: {every: 1ep}
train: {epochs: 3, batch_size: 12, threads: 1, precision: fp32}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small photos of three classes, and the run of a network on them."""
    folder = tmp_path_factory.mktemp("trained")
    for split, label in ((split, label) for split in ("train", "test") for label in range(3)):
        path = folder / "pets" / split / ("ant", "bee", "cow")[label]
        path.mkdir(parents=True)
        for number in range(6 * (label + 2)):
            pixels = torch.randint(0, 200, (9, 9, 3), generator=generator(number, split, label))
            pixels[:, :, label] += 30
            Image.fromarray(pixels.to(torch.uint8).numpy()).save(path / f"{number:02}.png")
    for cache in ("ram", "none"):
        recipe = RECIPE.replace("ROOT", str(folder / "pets")).replace("CACHE", cache)
        (folder / f"{cache}.yaml").write_text(recipe)
        run_swa("train", folder / f"{cache}.yaml", "-q", "-o", folder / cache)
    return folder


@pytest.mark.parametrize("cache", ["ram", "none"])
def test_rows_of_samples_and_scores_of_classes_agree(swa: Swa, trained: Path, cache: str) -> None:
    """The csv by hand: its accuracy, NLL and recalls are those of the table, for every weight set; paths are files."""
    run = trained / cache / "photos-001"
    words = ("eval", run, "--per-class", "--predictions", "s.csv", "--ensemble")
    ended = swa(*words, "--json")
    assert ended.code == 0, ended.err
    scores, per_class = ended.json["weights"], ended.json["per_class"]
    assert list(per_class) == list(scores)
    assert {"last", "last_bn", "swa", "ensemble"} <= scores.keys()
    with open("s.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert list(rows[0]) == ["weights", "path", "label", "prediction", "probability", "loss"]
    by_weights = defaultdict(list)
    for row in rows:
        by_weights[row["weights"]].append(row)
        assert Path(row["path"]).parent.name == row["label"]
        assert Path(row["path"]).is_file()
    for name, found in by_weights.items():
        assert len({row["path"] for row in found}) == len(found) == 54
        right = Counter(row["label"] for row in found if row["prediction"] == row["label"])
        assert sum(right.values()) / 54 == scores[name]["accuracy"]
        assert sum(float(row["loss"]) for row in found) / 54 == pytest.approx(scores[name]["nll"], abs=1e-6)
        for item, support in zip(per_class[name]["classes"], (12, 18, 24), strict=True):
            assert item["support"] == support
            assert item["recall"] == pytest.approx(right[item["class"]] / support)
            assert item["recall_se"] is not None
    assert swa("eval", run, "--ensemble", "--json").json["weights"] == scores
    told = swa(*words[:3]).out
    assert "classes of swa" in told
    assert "balanced accuracy %" in told
    assert all(name in told for name in ("ant", "bee", "cow"))


def test_predictions_agree_with_predict(swa: Swa, trained: Path) -> None:
    """The csv of eval against that of `swa predict` on the same files: class and probability, digit by digit."""
    run, found = trained / "ram/photos-001", []
    assert swa("eval", run, "--weights", "swa", "--predictions", "s.csv").code == 0
    assert swa("predict", run, trained / "pets/test", "-o", "p.csv").code == 0
    for name, key in (("s.csv", "prediction"), ("p.csv", "class")):
        with open(name, newline="") as file:
            found.append([(row["path"], row[key], float(row["probability"])) for row in csv.DictReader(file)])
    assert found[0] == found[1]


@pytest.mark.parametrize("cache", ["ram", "none"])
def test_the_hardest_images_are_those_of_the_highest_loss(swa: Swa, trained: Path, cache: str) -> None:
    """The contact sheet of the page against the csv of eval: files, classes and losses in order, pixels of the file."""
    run = trained / cache / "photos-001"
    assert swa("eval", run, "--weights", "swa", "--predictions", "s.csv").code == 0
    with open("s.csv", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: -float(row["loss"]))
    name, samples = run_data.hardest(run_data.OpenRun(run, terminal=Terminal(quiet=True)))
    assert name == "swa"
    assert len(samples) == run_data.NUM_HARDEST
    view = EvaluationView((8, 8), 9)
    for sample, row in zip(samples, rows, strict=False):
        assert (sample.name, sample.label, sample.predicted) == (row["path"], row["label"], row["prediction"])
        assert sample.loss == pytest.approx(float(row["loss"]), abs=1e-5)
        assert (view.image(EncodedPhoto(row["path"])).permute(1, 2, 0).numpy() == sample.pixels).all()
    draw_samples("sheet.png", samples=samples[:7], title="sheet")
    assert Path("sheet.png").read_bytes().startswith(b"\x89PNG")


def test_a_sheet_shows_images_of_any_shape(swa: Swa, trained: Path) -> None:
    """Images of 4 x 600 pixels, whose height is below the factor that makes them small: 1 x 120 on the sheet."""
    changes = ("dataset.image_size=[4,600]", "train.epochs=1", "swa.start=0ep")
    assert swa("train", trained / "ram.yaml", "-q", "-o", "flat", *changes).code == 0
    _, samples = run_data.hardest(run_data.OpenRun(Path("flat/photos-001"), terminal=Terminal(quiet=True)))
    assert {sample.pixels.shape for sample in samples} == {(1, 120, 3)}


def test_samples_that_are_no_files_have_rows(swa: Swa, recipe: Path) -> None:
    """Digits in memory: the column `row` counts from 0."""
    assert swa("train", recipe, "-q").code == 0
    assert swa("eval", "runs/latest", "--weights", "swa", "--predictions", "s.csv").code == 0
    with open("s.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [int(row["row"]) for row in rows] == [*range(len(rows))]
    assert len(rows) > 300


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--per-class"], "--per-class: the task is regression"),
        (["--predictions", "s.csv"], "--predictions: the task is regression"),
        (["--predictions", "s.json"], "s.csv"),
        (["--predictions", "nowhere/s.csv"], "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_told_before_any_pass(swa: Swa, words: list[str], part: str) -> None:
    """Another task, another format, no folder: exit 2 and no file."""
    Path("r.yaml").write_text(
        "name: turned\ntask: regression\nmodel: {name: convnet, args: {width: 4}}\ndataset: {name: rotated_digits}\n"
        "optimizer: {lr: 0.01}\ntrain: {epochs: 1, batch_size: 512, threads: 1, precision: fp32}\n"
    )
    assert swa("train", "r.yaml", "-q").code == 0
    ended = swa("eval", "runs/latest", *words)
    assert ended.code == 2
    assert part in " ".join(ended.err.split())
    assert not Path("s.csv").exists()
