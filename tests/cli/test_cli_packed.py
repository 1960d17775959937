"""`dataset.cache: packed` through the commands: what a plan says, and what later runs read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from conftest import Swa
from equal_runs import assert_equal_runs
from swa_cli.data import image_file
from swa_cli.data.packed import folder_of
from swa_cli.data.randomness import generator

RECIPE = """\
name: pets
model: {name: convnet, args: {width: 4}}
dataset:
  name: image_folder
  root: pets
  val: 8
  image_size: 16
  cache: packed
  workers: 0
  augment: {random_resized_crop: true, flip: true}
optimizer: {lr: 0.05}
swa: {start: 50%, every: 2step, batchnorm: {augment: true}}
train: {epochs: 2, batch_size: 8, threads: 1, precision: fp32}
"""


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Forty photos of ten sizes in two classes."""
    (tmp_path / "r.yaml").write_text(RECIPE)
    for number in range(40):
        folder = tmp_path / "pets" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        coarse = torch.randint(0, 256, (3, 4, 3), generator=generator(number, "pets"), dtype=torch.uint8).numpy()
        size = (40 + 5 * (number % 10), 100 - 3 * (number % 10))
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(folder / f"{number:02}.jpg")
    return tmp_path / "pets"


def refuse_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an image file is decoded")

    monkeypatch.setattr(image_file, "read_rgb", refuse)


def weights(run: str) -> Tensor:
    state = torch.load(Path(run) / "checkpoints/last.pt", weights_only=True)["model"]
    return torch.cat([value.flatten().double() for value in state.values()])


def test_later_runs_read_what_the_first_has_packed(swa: Swa, pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan, dry run, two runs and what follows: written by the first run alone, and decoded never after it."""
    for words in (("plan", "r.yaml"), ("train", "r.yaml", "--dry-run")):
        planned = swa(*words)
        assert planned.code == 0, planned.err
        told = " ".join((planned.out + planned.err).split())
        assert "`swa train` packs 40 train, 8 val images in pets.swa-packed: about" in told
        assert not folder_of(pets).exists()
    first = swa("train", "r.yaml")
    assert first.code == 0, first.err
    told = " ".join(first.err.split())
    assert told.index("packing 40 train, 8 val images") < told.index("40 train, 8 val images are packed")
    about = json.loads(Path("runs/pets-001/run.json").read_text())
    assert about["packed"] == {"train": "a shorter side of at most 34 pixels", "val": "16 x 16 pixels"}
    files = {path: path.stat().st_mtime_ns for path in folder_of(pets).glob("*.safetensors")}
    assert len(files) == 2

    refuse_decoding(monkeypatch)
    second = swa("train", "r.yaml", "dataset.workers=1", "--json")
    assert second.code == 0, second.err
    assert torch.equal(weights("runs/pets-001"), weights("runs/pets-002"))
    assert {path: path.stat().st_mtime_ns for path in files} == files
    updated = swa("bn-update", "runs/pets-002/checkpoints/swa.pt", "-o", "again.pt")
    assert updated.code == 0, updated.err
    scored = swa("eval", "again.pt", "--split", "val", "--json")
    assert scored.code == 0, scored.err
    assert scored.json["weights"]["swa"]["nll"] == pytest.approx(second.json["weights"]["swa"]["nll"], abs=1e-6)


def test_evaluation_needs_no_packed_images(swa: Swa, pets: Path) -> None:
    """Without the packed files, `swa eval` and `swa bn-update` give the same numbers, and write none."""
    trained = swa("train", "r.yaml", "--json")
    assert trained.code == 0, trained.err
    packed = swa("bn-update", "runs/latest/checkpoints/swa.pt", "-o", "a.pt")
    folder_of(pets).rename(pets.parent / "packed")
    files = swa("bn-update", "runs/latest/checkpoints/swa.pt", "-o", "b.pt")
    assert packed.code == files.code == 0, files.err
    first, second = (torch.load(path, weights_only=True)["state_dict"] for path in ("a.pt", "b.pt"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    scored = swa("eval", "b.pt", "--split", "val", "--json")
    assert scored.json["weights"]["swa"]["nll"] == pytest.approx(trained.json["weights"]["swa"]["nll"], abs=1e-6)
    assert not folder_of(pets).exists()


@pytest.mark.slow
def test_a_stopped_run_packs_again_and_goes_on(swa: Swa, pets: Path, tmp_path: Path, signal_at: Any) -> None:
    """Stopped in the middle of an epoch, its packed images removed: resumed to the undisturbed run, bit for bit."""
    words = ("-q", "dataset.workers=1", "output.save_every=1step")
    assert swa("train", "r.yaml", *words).code == 0
    signal_at(3)
    assert swa("train", "r.yaml", *words).code == 130
    for path in folder_of(pets).glob("*"):
        path.unlink()
    assert swa("train", "--resume", "runs/latest", "-q").code == 0
    assert_equal_runs(tmp_path / "runs/pets-001", tmp_path / "runs/pets-002")
    assert len(list(folder_of(pets).glob("*.safetensors"))) == 2


def test_damaged_images_are_refused_with_the_way_on(swa: Swa, pets: Path) -> None:
    """Flipped bits in the packed training images: exit 2, the file is named, and removing it helps."""
    assert swa("train", "r.yaml", "-q").code == 0
    path = next(folder_of(pets).glob("train-*"))
    content = bytearray(path.read_bytes())
    for place in range(4096, len(content) - 4096, 1000):
        content[place] ^= 1
    path.write_bytes(content)
    ended = swa("train", "r.yaml", "-q")
    assert ended.code == 2
    told = "".join(ended.err.split())
    assert f"remove{path.relative_to(pets.parent)}" in told
    path.unlink()
    assert swa("train", "r.yaml", "-q").code == 0


def test_too_little_room_is_told_before_anything_is_written(
    swa: Swa, pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less than twice the size is free: plan and run end with exit 2, the numbers, and a cure that works."""
    import shutil

    usage = shutil.disk_usage(pets)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    for words in (("plan", "r.yaml"), ("train", "r.yaml")):
        ended = swa(*words)
        assert ended.code == 2
        assert "more than half" in " ".join(ended.err.split())
        assert "dataset.cache=none" in ended.err
        assert not folder_of(pets).exists()
    assert not Path("runs").exists()
    assert swa("train", "r.yaml", "-q", "dataset.cache=none").code == 0


def test_the_seeds_of_a_repeat_share_the_training_images(swa: Swa, pets: Path) -> None:
    """Two seeds: all training images are packed once, and the validation images of each seed."""
    ended = swa("repeat", "r.yaml", "--seeds", "0,1", "train.epochs=1", "swa=null", "-q")
    assert ended.code == 0, ended.err
    names = sorted(path.name.partition("-")[0] for path in folder_of(pets).glob("*.safetensors"))
    assert names == ["train", "val", "val"]


def test_files_that_are_no_longer_read_are_named_with_the_way_to_remove_them(swa: Swa, pets: Path) -> None:
    """Another size in a folder whose name has a space: the files of the first size, and a command that removes them."""
    import subprocess

    pets.rename(pets.with_name("my pets"))
    words = ("r.yaml", "dataset.root=my pets")
    assert swa("train", *words, "-q").code == 0
    old = set(folder_of(Path("my pets")).glob("*.safetensors"))
    other = (*words, "dataset.image_size=20")
    planned, ended = swa("plan", *other), swa("train", *other)
    for told in (planned.err + planned.out, ended.err):
        lines = "".join(told.split())
        assert all(f"{path.name}({path.stat().st_size / 1e6:.1f}MB)" in lines for path in old)
    told = " ".join(ended.err.split())
    command = told[told.index("free their space: rm") :].removeprefix("free their space: ")
    command = command[: command.rindex(".safetensors'") + len(".safetensors'")]
    subprocess.run(["sh", "-c", command.replace("- ", "-")], check=True)
    left = set(folder_of(Path("my pets")).glob("*.safetensors"))
    assert len(left) == 2
    assert not left & old
    assert swa("train", *words, "-q").code == 0
    assert "packed files of" not in swa("plan", *words).err
