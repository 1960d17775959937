"""Data of a run, as a person meets them: told in the plan, checked before it, and recorded for after it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from swa_cli.engine import train
from swa_cli.recipe import load

RECIPE = """\
name: pets
model: {name: convnet, args: {width: 4}}
dataset: {name: image_folder, root: pets, val: 4}
optimizer: {lr: 0.05}
swa: {start: 50%, every: 1ep}
train: {epochs: 2, batch_size: 8, threads: 1, precision: fp32}
"""
CHANGED = "data have changed"


def write(folder: Path, *, count: int, level: int) -> None:
    folder.mkdir(parents=True)
    drawn = np.random.default_rng(level)
    for number in range(count):
        pixels = (level + drawn.integers(-20, 20, (8, 8, 3))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png", compress_level=0)  # so that all are of one size


@pytest.fixture
def run(swa: Any, tmp_path: Path) -> Path:
    """A finished run on two classes of 14 and 18 training images, in the working folder."""
    for name, count, level in (("cat", 14, 40), ("dog", 18, 200)):
        write(tmp_path / "pets/train" / name, count=count, level=level)
        write(tmp_path / "pets/test" / name, count=5, level=level + 1)
    (tmp_path / "pets/train/cat/photo.heic").write_bytes(b"")
    (tmp_path / "pets.yaml").write_text(RECIPE)
    ended = swa("train", "pets.yaml", "-o", "runs")
    assert ended.code == 0, ended.err
    told = " ".join(ended.err.split())
    for piece in ("28 train, 4 val, 10 test", "2 classes of 12 (cat) to 16 (dog)", "8x8 pixels", "1 file: 1 .heic"):
        assert piece in told
    return tmp_path / "runs/pets-001"


def test_changed_data_are_told_by_every_command_that_reads_them(swa: Any, run: Path, tmp_path: Path) -> None:
    """A file more, another one of another size, and one renamed, against warnings with split and numbers."""
    files = {name: run / "checkpoints" / f"{name}.pt" for name in ("swa", "last")}
    for path in files.values():
        stored = torch.load(path, weights_only=True)["input"]["data"]
        assert {split: found["samples"] for split, found in stored.items()} == {"train": 32, "test": 10}
    assert CHANGED not in swa("eval", run).err
    shutil.copy(tmp_path / "pets/test/cat/0.png", tmp_path / "pets/test/cat/more.png")
    ended = swa("eval", run)
    assert ended.code == 0
    assert f"warning: image_folder: the test {CHANGED}: 10 samples then, 11 now" in " ".join(ended.err.split())
    (tmp_path / "pets/test/cat/more.png").unlink()
    (tmp_path / "pets/train/dog/0.png").rename(tmp_path / "pets/train/dog/a.png")
    for words in (["eval", files["swa"]], ["bn-update", files["swa"]], ["train", "--resume", run, "--extend-to", "3"]):
        ended = swa(*words)
        assert ended.code == 0
        told = " ".join(ended.err.split())
        assert f"the train {CHANGED}: 32 samples as before, but not the same ones" in told
        assert f"the test {CHANGED}" not in told


def test_a_split_that_is_gone_is_told(swa: Any, run: Path, tmp_path: Path) -> None:
    """Without test images, a warning beside the scores of validation; a folder to be scored needs no other split."""
    (tmp_path / "pets/test").rename(tmp_path / "test")
    ended = swa("eval", run, "--json")
    assert ended.json["split"] == "val"
    assert f"the test {CHANGED}: 10 samples then, none now" in " ".join(ended.err.split())
    (tmp_path / "new").mkdir()
    (tmp_path / "test").rename(tmp_path / "new/test")
    ended = swa("eval", run / "checkpoints/swa.pt", "dataset.root=new", "--json")
    assert ended.json["split"] == "test"
    assert CHANGED not in ended.err


class GrowsAFile:
    """A listener that makes a file longer once the plan is told; the image in it stays as it is."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def plan(self, _: object) -> None:
        self.path.write_bytes(self.path.read_bytes() + b"more")


def test_the_data_of_the_start_are_recorded(swa: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that grows in place before the first save of a run, against a warning when the run is evaluated."""
    monkeypatch.chdir(tmp_path)
    for name, level in (("cat", 40), ("dog", 200)):
        write(tmp_path / "pets" / name, count=16, level=level)
    (tmp_path / "pets.yaml").write_text(RECIPE)
    train.train(
        load.load("pets.yaml", ["train.epochs=1", "swa=null"]), listeners=[GrowsAFile(tmp_path / "pets/cat/0.png")]
    )
    assert f"the train {CHANGED}" in swa("eval", tmp_path / "runs/pets-001").err


def test_a_copy_of_the_data_is_the_same(swa: Any, run: Path, tmp_path: Path) -> None:
    """The folder copied elsewhere, with new times of change, against silence; so is another share of validation."""
    shutil.copytree(tmp_path / "pets", tmp_path / "elsewhere/pets", copy_function=shutil.copyfile)
    for words in (["eval", run, "--weights", "swa"], ["bn-update", run / "checkpoints/swa.pt"]):
        ended = swa(*words, "dataset.root=elsewhere/pets", "dataset.val=2")
        assert ended.code == 0
        assert CHANGED not in ended.err


def test_data_in_memory_are_recorded_by_their_content(swa: Any, recipe: Path, tmp_path: Path) -> None:
    """The digits against other digits of the same number: a warning; against themselves: none."""
    assert swa("train", recipe, "train.epochs=1", "swa=null", "-o", "runs").code == 0
    path = tmp_path / "runs/small-001/checkpoints/last.pt"
    assert CHANGED not in swa("eval", path).err
    content = torch.load(path, weights_only=True)
    content["input"]["data"]["train"]["sha256"] = "0" * 64
    torch.save(content, path)
    assert f"digits: the train {CHANGED}" in swa("eval", path).err


def test_a_test_folder_alone_can_be_scored(swa: Any, run: Path, tmp_path: Path) -> None:
    """Scores without train/ against those with it: by the classes of the weights, and their normalisation."""
    shutil.copytree(tmp_path / "pets/test", tmp_path / "held/test")
    for words in ((run / "checkpoints/swa.pt",), (run,)):
        whole, alone = (swa("eval", *words, *more, "--json", "-q") for more in ((), ("dataset.root=held",)))
        assert alone.code == 0, alone.err
        assert alone.json["weights"]["swa"]["nll"] == pytest.approx(whole.json["weights"]["swa"]["nll"], abs=1e-7)
    shutil.rmtree(tmp_path / "held/test/cat")
    assert swa("eval", run, "dataset.root=held").code == 0
    ended = swa("bn-update", run / "checkpoints/swa.pt", "dataset.root=held")
    assert (ended.code, "has no train split" in ended.err) == (2, True)
    write(tmp_path / "held/test/eel", count=1, level=9)
    ended = swa("eval", run, "dataset.root=held")
    assert (ended.code, "lacks: eel" in ended.err) == (2, True)


BAD_SAMPLES = """\
import torch
from torch.utils.data import TensorDataset

def make(kind):
    images, labels = torch.zeros(30, 1, 8, 8), torch.arange(30) % 3
    train = TensorDataset(images.clone(), labels.clone())
    if kind == "pixel":
        images[4, 0, 1, 1] = float("nan")
    else:
        labels[5] = kind
    return {"train": train, "test": TensorDataset(images, labels), "num_classes": 3}
"""


@pytest.mark.parametrize(
    ("kind", "pieces"),
    [
        ("7", ("label 7", "test split", "sample 5")),
        ("-1", ("label -1", "test split", "sample 5")),
        ("pixel", ("sample 4", "test split", "NaN")),
    ],
)
def test_bad_samples_are_told_before_anything_is_made(
    swa: Any, tmp_path: Path, kind: str, pieces: tuple[str, ...]
) -> None:
    """A label and a pixel of the test split alone against exit code 2, what is named, and no folder."""
    (tmp_path / "bad_samples.py").write_text(BAD_SAMPLES)
    (tmp_path / "bad.yaml").write_text(RECIPE.replace("name: image_folder, root: pets", "name: bad_samples:make"))
    ended = swa("train", "bad.yaml", f"dataset.args={{kind: {kind}}}", "-o", "runs")
    assert ended.code == 2
    assert all(piece in ended.err for piece in pieces), ended.err
    assert "mistake of swa" not in ended.err
    assert not (tmp_path / "runs").exists()


def test_missing_values_of_a_table_are_told_and_trained_on(swa: Any, tmp_path: Path) -> None:
    """A NaN that the network replaces against a finished run with a warning that names the sample."""
    (tmp_path / "tables.py").write_text(
        "import torch\nfrom torch.utils.data import TensorDataset\n"
        "def make():\n"
        "    table = torch.randn(40, 3)\n    table[7, 1] = float('nan')\n"
        "    return {'train': TensorDataset(table, torch.arange(40) % 2), 'num_classes': 2}\n"
        "class Net(torch.nn.Linear):\n"
        "    def __init__(self, num_classes):\n        super().__init__(3, num_classes)\n"
        "    def forward(self, x):\n        return super().forward(x.nan_to_num())\n"
    )
    (tmp_path / "tables.yaml").write_text(
        RECIPE.replace("name: image_folder, root: pets", "name: tables:make").replace(
            "name: convnet, args: {width: 4}", "name: tables:Net"
        )
    )
    ended = swa("train", "tables.yaml", "-o", "runs")
    assert ended.code == 0, ended.err
    told = " ".join(ended.err.split())
    assert "2 classes of 18 train samples each" in told
    assert "warning: sample 7 of the train split: has inputs that are NaN" in told
