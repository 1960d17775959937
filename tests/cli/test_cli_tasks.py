"""Segmentation and regression from the command line: files, rows, scores by hand, BatchNorm, other networks."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib.image
import pytest
import torch
from torch import nn

from conftest import load
from swa_cli.data import sources
from swa_cli.models import build_model

# Discs on noise; the first pixel of every mask is ignored.
BLOBS = """\
import torch
from torch import nn

def scenes(count, seed):
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    centre = torch.randint(2, 10, (count, 2, 1, 1), generator=generator)
    masks = ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 <= 9).long()
    images = 80 + 60 * masks[:, None] + 40 * torch.randn(count, 1, 12, 12, generator=generator)
    masks[:, 0, 0] = 255
    return images.clamp(0, 255).to(torch.uint8), masks

def blobs():
    train, test = (torch.utils.data.TensorDataset(*scenes(count, seed)) for count, seed in ((120, 0), (40, 1)))
    return {"train": train, "test": test, "num_classes": 2, "target": "mask"}

class Net(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.net = nn.Sequential(nn.BatchNorm2d(in_channels), nn.Conv2d(in_channels, num_classes, 5, padding=2))

    def forward(self, images):
        return {"out": self.net(images), "edges": images}
"""
SEGMENTATION = """\
name: blobs
task: segmentation
model: {name: "blobs:Net"}
dataset: {name: "blobs:blobs", cache: ram, augment: {crop: 1, flip: true}}
optimizer: {lr: 0.1}
swa: {start: 50%, every: 0.5ep, eval_every: 1ep}
averages: {swag: {kind: swag, rank: 2, every: 0.2ep}}
snapshots: {every: 1ep}
train: {epochs: 4, batch_size: 12, threads: 1, precision: fp32}
"""
REGRESSION = """\
name: turned
task: regression
model: {name: convnet, args: {width: 4}}
dataset: {name: rotated_digits}
optimizer: {lr: 0.01}
swa: {start: 50%, every: 0.5ep, eval_every: 1ep}
train: {epochs: 2, batch_size: 64, threads: 1, precision: fp32}
"""


@pytest.fixture
def blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of segmentation beside the module of its network and data."""
    (tmp_path / "blobs.py").write_text(BLOBS)
    (tmp_path / "blobs.yaml").write_text(SEGMENTATION)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "blobs", raising=False)
    return tmp_path / "blobs.yaml"


@pytest.fixture
def turned(tmp_path: Path) -> Path:
    path = tmp_path / "turned.yaml"
    path.write_text(REGRESSION)
    return path


def rows_of(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))


@pytest.mark.pictures
def test_segmentation_by_hand(swa, blobs: Path, tmp_path: Path) -> None:
    """Columns, scores of the shipped average from its weights in float64, and a picture."""
    ended = swa("train", blobs, "--json", "-q")
    assert ended.code == 0, ended.err
    run = tmp_path / "runs/blobs-001"
    assert list(rows_of(run)[0]) == [
        "epoch", "step", "lr", "train_loss", "train_pixel_accuracy", "val_loss", "val_mean_iou",
        "swa_val_loss", "swa_val_mean_iou", "swa_count", "swag_val_loss", "swag_val_mean_iou", "swag_count", "seconds",
    ]  # fmt: skip
    import blobs as module

    images, masks = module.scenes(40, 1)
    shipped = load(run / "checkpoints/swa.pt")
    model = module.Net(2, 1)
    model.load_state_dict(shipped["state_dict"])
    mean, std = shipped["input"]["mean"][0], shipped["input"]["std"][0]
    with torch.no_grad():
        logits = model.double().eval()((images.double() / 255 - mean) / std)["out"]
    counted = masks != 255
    found, labels = logits.argmax(1)[counted], masks[counted]
    ious = [((found == k) & (labels == k)).sum() / ((found == k) | (labels == k)).sum() for k in (0, 1)]
    scores = ended.json["weights"]["swa"]
    assert scores["mean_iou"] == pytest.approx(float(sum(ious)) / 2, abs=1e-4)
    assert scores["pixel_accuracy"] == pytest.approx(float((found == labels).double().mean()), abs=1e-4)
    assert scores["nll"] == pytest.approx(float(nn.functional.cross_entropy(logits, masks, ignore_index=255)), rel=1e-4)
    assert 0.5 < scores["mean_iou"] < scores["dice"] < 1  # half is what one class everywhere gives at most
    assert scores["batchnorm"] == "recomputed"
    assert matplotlib.image.imread(run / "curves.png").std() > 0.02


@pytest.mark.slow
def test_segmentation_through_every_command(swa, blobs: Path, tmp_path: Path) -> None:
    """dry run, eval, draws, ensemble, bn-update, resume and repeat: done, and the same scores where they must be."""
    assert swa("train", blobs, "--dry-run").code == 0
    trained = swa("train", blobs, "--json", "-q", "train.early_stopping={patience: 9, metric: val_mean_iou}")
    run = tmp_path / "runs/blobs-001"
    before = swa("eval", run, "--allow-code", "--json", "-q", "--ensemble").json
    assert before["reference"] == trained.json["reference"]
    for name, row in trained.json["weights"].items():
        assert before["weights"][name] == {key: value for key, value in row.items() if key != "val"}
    assert [row.keys() for row in before["ensemble"]] == [{"members", "mean_iou", "nll"}] * 4
    assert swa("bn-update", run / "checkpoints/last.pt", "--allow-code", "-q").code == 0
    fresh = swa("eval", run / "checkpoints/last.pt", "--allow-code", "--json", "-q").json
    for key in ("mean_iou", "dice", "nll_se", "mean_iou_diff_se"):
        assert fresh["weights"]["swa"][key] == pytest.approx(before["weights"]["swa"][key], rel=1e-6)
    drawn = swa("eval", run / "checkpoints/swag.pt", "--draws", "2", "--allow-code", "--json", "-q").json
    assert 0 < drawn["weights"]["swag"]["mean_iou"] < 1
    extended = swa("train", "--resume", run, "--extend-to", "5", "--allow-code", "-q")
    assert extended.code == 0, extended.err
    assert len(rows_of(run)) == 5
    both = swa("repeat", blobs, "--seeds", "0-1", "train.epochs=2", "-q")
    assert both.code == 0, both.err
    assert "mean IoU %" in both.out
    assert "averaging" in both.out or "no clear difference" in both.out


def test_a_run_of_segmentation_goes_on_to_the_same_end(swa, blobs: Path, tmp_path: Path) -> None:
    """Gone on with from a save inside the last epoch, against the undisturbed end: weights and rows to the bit."""
    assert swa("train", blobs, "-q", "output.save_every=4step").code == 0
    run = tmp_path / "runs/blobs-001"
    whole, rows = load(run / "checkpoints/last.pt"), rows_of(run)
    point = load(run / "checkpoints/previous.pt")
    assert (point["epoch"], point["step"]) == (3, 32)
    assert point["epoch_so_far"].keys() == {"loss", "pixel_accuracy", "seconds"}
    (run / "checkpoints/last.pt").unlink()
    (run / "result.json").unlink()
    ended = swa("train", "--resume", run, "--allow-code", "-q")
    assert ended.code == 0, ended.err
    again = load(run / "checkpoints/last.pt")
    assert all(torch.equal(again["model"][key], value) for key, value in whole["model"].items())
    assert [{**row, "seconds": ""} for row in rows_of(run)] == [{**row, "seconds": ""} for row in rows]


def test_a_resume_point_of_another_task_is_refused(swa, blobs: Path, tmp_path: Path) -> None:
    """Sums and rows with the names of classification in a run of segmentation: exit 2 and the missing one."""
    assert swa("train", blobs, "-q").code == 0
    run = tmp_path / "runs/blobs-001"
    point = load(run / "checkpoints/last.pt")
    (run / "result.json").unlink()
    renamed = {"loss": 0.0, "accuracy": 0.0, "seconds": 0.0}
    short = [{key: value for key, value in row.items() if key != "val_mean_iou"} for row in point["history"]]
    for change, said in (
        ({"epoch_so_far": renamed}, "has no epoch_so_far.pixel_accuracy"),
        ({"history": short}, "its history is not that of its recipe"),
    ):
        torch.save({**point, **change}, run / "checkpoints/last.pt")
        ended = swa("train", "--resume", run, "--allow-code", "-q")
        assert ended.code == 2
        assert said in ended.err


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
def test_torchvisions_networks_of_segmentation(swa, blobs: Path, name: str) -> None:
    """A dry run with one grey channel: one step of the loss on their `out`, with fresh weights and no download."""
    ended = swa("train", blobs, "--dry-run", "--json", f"model={{name: 'torchvision:{name}'}}", "train.batch_size=2")
    assert ended.code == 0, ended.err
    assert 0 < ended.json["loss"] < 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task=classification"], "learns labels that are class, and those of blobs:blobs are mask"),
        (["model={name: convnet}"], "returns (2, 2) for 2 images, not (2, 2, 12, 12)"),
        (["model={name: 'torchvision:resnet18'}"], "torchvision has no segmentation network 'resnet18'"),
        (["train.early_stopping={patience: 1, metric: val_accuracy}"], "choose from train_loss, train_pixel_accuracy"),
        (["dataset={name: digits}"], "segmentation learns labels that are mask, and those of digits are class"),
    ],
)
def test_what_does_not_go_with_segmentation(swa, blobs: Path, words: list[str], said: str) -> None:
    """Data, networks and columns of another task: exit 2 and the value."""
    ended = swa("train", blobs, *words)
    assert ended.code == 2
    assert said in " ".join(ended.err.split())


def test_regression_by_hand(swa, turned: Path, tmp_path: Path) -> None:
    """Columns, and scores of the shipped average from its weights in float64."""
    ended = swa("train", turned, "--json", "-q")
    assert ended.code == 0, ended.err
    run = tmp_path / "runs/turned-001"
    assert list(rows_of(run)[0])[3:9] == [
        "train_loss", "train_mae", "val_loss", "val_r2", "swa_val_loss", "swa_val_r2"
    ]  # fmt: skip
    shipped = load(run / "checkpoints/swa.pt")
    test = sources.load("rotated_digits").test
    model = build_model.build("convnet", num_classes=1, in_channels=1, args={"width": 4})
    model.load_state_dict(shipped["state_dict"])
    mean, std = shipped["input"]["mean"][0], shipped["input"]["std"][0]
    with torch.no_grad():
        error = model.double().eval()((test.images.double() / 255 - mean) / std) - test.labels
    scores = ended.json["weights"]["swa"]
    assert scores["mse"] == pytest.approx(float(error.square().mean()), rel=1e-4)
    assert scores["mse_se"] == pytest.approx(float(error.square().std()) / 360**0.5, rel=1e-4)
    assert scores["mae"] == pytest.approx(float(error.abs().mean()), rel=1e-4)
    spread = test.labels.double().var(correction=0)
    assert scores["r2"] == pytest.approx(1 - float(error.square().mean() / spread), rel=1e-4)
    again = swa("eval", run, "--json", "-q").json["weights"]["swa"]
    assert again == {key: value for key, value in scores.items() if key != "val"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.label_smoothing=0.1"], "regression has no classes that a target could be spread over"),
        (["task=classification"], "learns labels that are class, and those of rotated_digits are value"),
        (["task=segmentation", "model={name: convnet}"], "learns labels that are mask"),
        (
            ["train.early_stopping={patience: 1, metric: swa_val_mse}"],
            "choose from train_loss, train_mae, val_loss, val_r2",
        ),
    ],
)
def test_what_does_not_go_with_regression(swa, turned: Path, words: list[str], said: str) -> None:
    """Settings, tasks and columns: exit 2 and the reason."""
    ended = swa("train", turned, *words)
    assert ended.code == 2
    assert said in " ".join(ended.err.split())


@pytest.mark.parametrize(("metric", "direction"), [("val_r2", "higher"), ("val_loss", "lower"), ("train_mae", "lower")])
def test_patience_knows_which_way_is_better(swa, turned: Path, tmp_path: Path, metric: str, direction: str) -> None:
    """The epoch a run is stopped in against the rows: `patience` scorings after the best value of the column."""
    words = ["train.epochs=12", "optimizer.lr=0.05", f"train.early_stopping={{patience: 2, metric: {metric}}}"]
    ended = swa("train", turned, "-q", "--json", *words, "swa.start=0%")
    values = [float(row[metric]) for row in rows_of(tmp_path / "runs/turned-001")]
    best = values.index(max(values) if direction == "higher" else min(values))
    assert len(values) == (best + 3 if ended.json["stopped"] == "patience" else 12)
    assert len(values) - 1 - best <= 2
