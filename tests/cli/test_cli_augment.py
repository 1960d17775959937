"""Runs with every augmentation on: what the plan says of them, going on inside an epoch, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from equal_runs import assert_equal_runs

DATA = """\
import torch

def tinted(count, seed):
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randint(0, 160, (count, 3, 8, 8), generator=random, dtype=torch.uint8)
    images[torch.arange(count), labels] += 60
    return list(zip(images, labels))

def colours():
    return {"train": tinted(96, 0), "test": tinted(32, 1), "num_classes": 3}

def floats():
    return {"train": [(image / 255, label) for image, label in tinted(96, 0)], "num_classes": 3}
"""
RECIPE = """\
name: bright
model: {name: convnet, args: {width: 4}}
dataset:
  name: tinted_data:colours
  cache: ram
  augment:
    translate: 2
    flip: alternating
    cutout: 3
    jitter: {brightness: 0.2, contrast: 0.2, saturation: 0.2, hue: 0.05}
    mixup: 0.2
    cutmix: 1.0
optimizer: {lr: 0.1}
swa: {start: 50%, every: 0.5ep, eval_every: 1ep}
train: {epochs: 3, batch_size: 16, threads: 1, precision: fp32, label_smoothing: 0.1}
"""
SAID = (
    "translate 2, alternating flip, cutout 3, jitter (brightness 0.2, contrast 0.2, saturation 0.2, hue 0.05), "
    "mixup 0.2 or cutmix 1"
)


@pytest.fixture
def bright(tmp_path: Path) -> Path:
    """A recipe on RGB images with every augmentation on."""
    (tmp_path / "tinted_data.py").write_text(DATA)
    path = tmp_path / "bright.yaml"
    path.write_text(RECIPE)
    return path


def test_everything_on_and_stopped_inside_an_epoch(
    swa, bright: Path, tmp_path: Path, signal_at: Callable[..., None]
) -> None:
    """A run stopped in its second epoch and resumed is held against one to the end, and the plan against the recipe."""
    whole = swa("train", bright)
    assert whole.code == 0
    assert SAID in " ".join(whole.err.split())
    signal_at(8)
    assert swa("train", bright, "-q").code == 130
    assert swa("train", "-r", "runs/bright-002", "-q", "--allow-code").code == 0
    assert_equal_runs(tmp_path / "runs/bright-001", tmp_path / "runs/bright-002")


def test_grey_images_are_said_to_have_no_colours(swa, recipe: Path) -> None:
    """The plan of a recipe for colours on grey digits is held against what it says is left out."""
    ended = swa("train", recipe, "-n", "dataset.augment.jitter={brightness: 0.2, hue: 0.1}")
    assert ended.code == 0
    assert "crop 1, jitter (brightness 0.2, the images are grey: no saturation, no hue)" in " ".join(ended.err.split())


@pytest.mark.parametrize(
    ("word", "message", "action"),
    [
        (
            "dataset.augment.crop=1",
            "dataset.augment.translate: crop and translate are mutually exclusive",
            "write one of the two",
        ),
        ("dataset.augment.translate=8", "translate: 8 pixels are more than the 8x8 images", "at most 7"),
        ("dataset.augment.flip=maybe", "`maybe` is not a way to flip", "true, false or alternating"),
        ("dataset.augment.flip=yes", "`yes` is not a truth value", "write true"),
        ("dataset.augment.jitter.hue=0.6", "`0.6` is above 0.5", "write 0.5 or less"),
        ("dataset.name=tinted_data:floats", "gives 3 channels of float32", "leave it out"),
    ],
)
def test_what_cannot_be_done_is_refused(
    swa, bright: Path, tmp_path: Path, word: str, message: str, action: str
) -> None:
    """Each misfit is held against its message and action; nothing is run."""
    ended = swa("train", bright, word)
    assert ended.code == 2
    assert message in " ".join(ended.err.split())
    assert action in " ".join(ended.err.split())
    assert not (tmp_path / "runs").exists()


def test_mixing_is_for_classes_alone(swa, recipe: Path, tmp_path: Path) -> None:
    """Mixtures of numbers to be predicted are held against a problem for each key, with its place."""
    words = ("task=regression", "dataset.name=rotated_digits", "dataset.augment={mixup: 0.2, cutmix: 1.0}")
    ended = swa("train", recipe, *words)
    assert ended.code == 2
    for key in ("mixup", "cutmix"):
        assert f"dataset.augment.{key}: mixes the classes of two images, and the task is regression" in ended.err
    assert ended.err.count("set task: classification") == 2
    assert ended.err.count("--> command line: dataset.augment=") == 2
    assert not (tmp_path / "runs").exists()


def test_a_label_that_is_no_class_is_named_where_images_are_mixed(swa, bright: Path, tmp_path: Path) -> None:
    """A dataset with too many labels for its classes against the label, its split and no run."""
    (tmp_path / "mislabelled_data.py").write_text(DATA.replace('"num_classes": 3', '"num_classes": 2'))
    ended = swa("train", bright, "-q", "dataset.name=mislabelled_data:colours")
    assert ended.code == 2
    assert "sample 2 of the train split: label 2 is not one of the 2 classes" in ended.err
    assert not (tmp_path / "runs").exists()
    assert "Traceback" not in ended.err
