"""Runs on photos of any size: sizes by points of the run, what a checkpoint stores of them, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import Swa, load
from equal_runs import assert_equal_runs

RECIPE = """\
name: pets
model: {name: convnet, args: {width: 4}}
dataset:
  name: image_folder
  root: pets
  val: 8
  workers: 0
  image_size: {0ep: 12, 40%: [14, 18], 80%: 16}
  repeats: 2
  mean: imagenet
  augment: {random_resized_crop: {scale: [0.5, 1]}, policy: trivial_augment, random_erasing: 0.25, vertical_flip: true}
optimizer: {lr: 0.05}
swa: {start: 50%, eval_every: 1ep}
averages: {ema: {kind: ema, half_life: 10%}}
snapshots: {every: 1ep}
train: {epochs: 4, batch_size: 8, threads: 1, precision: fp32}
"""


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A recipe on photos of many sizes in two classes, red and blue."""
    random = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 6)):
        for channel, name in ((0, "cat"), (2, "dog")):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 120, (*random.integers(15, 40, 2), 3), dtype=np.uint8)
                pixels[..., channel] += 100
                Image.fromarray(pixels).save(tmp_path / "pets" / split / name / f"{number}.png")
    path = tmp_path / "pets.yaml"
    path.write_text(RECIPE)
    return path


def test_a_run_whose_images_grow(swa: Swa, pets: Path, signal_at: Callable[..., None]) -> None:
    """The plan, the shapes that the network sees, the stored preprocessing; stopped inside an epoch and resumed."""
    whole = swa("train", pets)
    assert whole.code == 0
    words = " ".join(whole.err.split())
    assert "random_resized_crop (scale 0.5 to 1, ratio 0.75 to 1.33), vertical_flip, trivial_augment" in words
    sizes = "trained at 12 x 12 in epochs 1 to 2, 14 x 18 in epoch 3, 16 x 16 in epoch 4"
    assert f"{sizes} (points are rounded to the start of an epoch); evaluated at 16 x 16 after resizing" in words
    assert "shorter side to 18; mean imagenet" in words
    stored = load("runs/pets-001/checkpoints/swa.pt")["input"]
    keys = ("size", "resize", "crop", "interpolation", "mean")
    assert [stored[key] for key in keys] == [[16, 16], 18, "center", "bilinear", [0.485, 0.456, 0.406]]
    signal_at(11)  # of 4 epochs of 4 steps
    assert swa("train", pets).code == 130
    signal_at(-1)
    assert swa("train", "--resume", "runs/pets-002").code == 0
    assert_equal_runs(Path("runs/pets-001"), Path("runs/pets-002"))


def test_scores_of_another_frame(swa: Swa, pets: Path) -> None:
    """`swa eval` with other keys of `eval` against the scores of the run, and a mistake against its place."""
    assert swa("train", pets, "-q", "train.epochs=2", "dataset.image_size=16").code == 0
    first = swa("eval", "runs/latest", "--json").json["weights"]["last"]
    again = swa("eval", "runs/latest", "--json", "eval.resize=18", "eval.interpolation=bilinear").json["weights"][
        "last"
    ]
    other = swa("eval", "runs/latest", "--json", "eval.image_size=24").json["weights"]["last"]
    assert first["nll"] == again["nll"] != other["nll"]
    wrong = swa("eval", "runs/latest", "eval.resize=15")
    assert wrong.code == 2
    assert "eval.resize: a shorter side of 15 is smaller than the crop of 16 x 16" in wrong.err
    assert "command line: eval.resize=15" in wrong.err
    shown = " ".join(swa("show", "runs/latest/checkpoints/swa.pt").out.split())
    assert "images of 3 x 16 x 16 from a shorter side of 18" in shown


def test_a_run_that_goes_on_keeps_its_sizes(swa: Swa, pets: Path) -> None:
    """Sizes in % of 4 epochs against the recipe of the run that is extended to 6, whose snapshots stay its own."""
    assert swa("train", pets, "-q").code == 0
    longer = swa("train", "--resume", "runs/pets-001", "--extend-to", "6")
    assert longer.code == 0
    assert "dataset.image_size [14, 18] stays at 1.6ep (40% of 4 epochs)" in " ".join(longer.err.split())
    sizes = load("runs/pets-001/checkpoints/last.pt")["recipe"]["dataset"]["image_size"]
    assert sizes == {"0ep": 12, "1.6ep": [14, 18], "3.2ep": 16}
    assert swa("eval", "runs/pets-001", "--ensemble").code == 0


def test_mistakes_are_told_before_the_data_are_read(swa: Swa, pets: Path) -> None:
    """Mistakes between keys, with one of the optimizer, against a folder of images that is not there."""
    words = ["dataset.root=nowhere", "dataset.image_size=null", "optimizer.momentun=1", "eval.crop=none"]
    ended = swa("train", pets, *words)
    assert ended.code == 2
    for key in ("dataset.augment.random_resized_crop", "eval.crop", "optimizer.momentun"):
        assert f"error: {key}: " in ended.err
    assert "nowhere" not in ended.err
    assert "3 problems" in ended.err


def test_the_time_of_a_run_is_that_of_all_sizes(swa: Swa, pets: Path) -> None:
    """`swa plan` of three sizes against the steps that it times."""
    planned = swa("plan", pets, "--json")
    assert planned.code == 0
    assert planned.json["timed_steps"] == 3 * 3  # of the 4 steps of an epoch, the first sets things up


def test_a_network_has_to_take_every_size(swa: Swa, pets: Path) -> None:
    """A network of one size, whose images grow in the last epochs of a SWAP run: nothing is run."""
    (pets.parent / "own_net.py").write_text(
        "from torch import nn\n"
        "def net(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, num_classes))\n"
    )
    words = ["model={name: own_net:net}", "swa=null", "averages=null", "snapshots=null"]
    words += ["dataset.image_size={0ep: 12, 90%: 16}", "train.epochs=8", "eval.image_size=12"]
    for more in ([], ["swap={workers: 2, start: 50%}"]):
        ended = swa("train", pets, *words, *more)
        assert ended.code != 0
        assert "768" in ended.err  # values of 16 x 16 pixels
        assert not (pets.parent / "runs").exists()
    assert swa("train", pets, "-q", *words, "dataset.image_size=12").code == 0
