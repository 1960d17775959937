"""What people write first and swa does not take: exit 2, the key, and a cure that works when it is pasted."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image
from torch import nn

from published import in_cache


@pytest.mark.parametrize(
    ("words", "key", "cure"),
    [
        (["optimizer.name=Muon"], "optimizer.name", "optimizer.groups=[{match: not_2d, name: AdamW, lr: 0.1x}]"),
        (["model={name: resnet18}"], "model.name", "torchvision:resnet18"),
        (["model={name: ResNet-18}"], "model.name", "torchvision:resnet18"),
        (["model={name: shufflenet_v2_x0_5}"], "model.name", "torchvision:shufflenet_v2_x0_5"),
        (["model={name: test_byobnet}"], "model.name", "timm:test_byobnet"),
        (["dataset.augment.randaugment=true"], "dataset.augment.randaugment", "policy: rand_augment"),
        (["dataset.augment.autoaugment=true"], "dataset.augment.autoaugment", "policy: auto_augment"),
    ],
)
def test_the_hint_holds_what_to_write_instead(swa, recipe: Path, words: list[str], key: str, cure: str) -> None:
    """A wrong name or key of a recipe, and the same recipe with what the hint names: exit 2, then 0."""
    ended = swa("train", recipe, *words, "--dry-run")
    assert ended.code == 2
    assert ended.err.startswith(f"error: {key}:")
    hint = " ".join(ended.err.partition("hint:")[2].split())
    assert cure in hint
    if key.startswith("dataset.augment"):
        fixed = [f"dataset.augment={{{cure}}}"]
    elif key == "model.name":
        fixed = [f"model={{name: '{cure}'}}"]
    else:
        fixed = [*words, cure]
    assert swa("train", recipe, *fixed, "--dry-run").code == 0


def test_muon_names_the_first_parameter_that_it_does_not_take(swa, recipe: Path) -> None:
    """Muon on a convolution, by name and shape; on a network of matrices alone it trains."""
    from swa_cli.engine import optimizers
    from swa_cli.models.build_model import build
    from swa_cli.recipe import schema

    ended = swa("train", recipe, "optimizer.name=Muon")
    name, parameter = next(iter(build("convnet", num_classes=10, in_channels=1, args={"width": 4}).named_parameters()))
    assert f"{name} ({' x '.join(map(str, parameter.shape))})" in " ".join(ended.err.split())
    muon = schema.Optimizer(name="Muon", lr=0.1)
    assert optimizers.build(nn.Linear(3, 2, bias=False), muon).param_groups


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("torchvision:resnet18", "pretrained"),
        ("torchvision:resnet18", "weights"),
        ("timm:test_byobnet", "pretrained"),
        ("timm:test_byobnet", "checkpoint_path"),
        ("timm:test_byobnet", "pretrained_cfg"),
    ],
)
def test_arguments_that_load_weights_name_the_key_that_does(
    swa, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, key: str
) -> None:
    """The hint of a library's own argument, taken as it says, with the weights in the library's cache."""
    ended = swa("train", recipe, f"model={{name: '{name}', args: {{{key}: true}}}}")
    assert ended.code == 2
    assert ended.err.startswith(f"error: model.args.{key}:")
    cure = re.search(r"model\.pretrained=true", ended.err)
    assert cure is not None
    in_cache(name, tmp_path, monkeypatch)
    said = swa("train", recipe, f"model={{name: '{name}'}}", cure[0], "dataset.image_size=32", "--dry-run")
    assert said.code == 0, said.err
    assert f"initial weights from {name} (" in " ".join(said.err.split())


def test_images_of_several_sizes_are_told_of_224(swa, recipe: Path, tmp_path: Path) -> None:
    """Photos of two sizes: the hint names 224, and the recipe with it is taken."""
    for index, size in enumerate([(80, 70), (70, 80)] * 4):
        folder = tmp_path / "pets/train" / ("cat", "dog")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (index, 9, 9)).save(folder / f"{index}.png")
    shutil.copytree(tmp_path / "pets/train", tmp_path / "pets/test")
    words = ["train", recipe, "dataset={name: image_folder, root: pets, val: 0, workers: 0}", "train.batch_size=4"]
    ended = swa(*words, "--dry-run")
    assert ended.code == 2
    found = re.search(r"dataset\.image_size=(\d+)", ended.err)
    assert found is not None
    assert found[1] == "224"
    assert swa(*words, found[0], "--dry-run").code == 0


def test_a_finished_run_says_what_can_be_done_with_it(swa, recipe: Path) -> None:
    """Each command in the hint after `swa train --resume` of a finished run is run as it stands: exit 0."""
    assert swa("train", recipe, "-q", "train.epochs=2", "swa.start=0%").code == 0
    ended = swa("train", "--resume", "runs/latest")
    assert ended.code == 2
    assert "runs/small-001: this run is finished" in ended.err
    lines = re.findall(r"`swa ([^`]+)`", " ".join(ended.err.split()))
    assert [line.split()[0] for line in lines] == ["eval", "train"]
    assert "--extend-to 4" in lines[1]
    for line in lines:
        assert swa(*shlex.split(line), "-q").code == 0


def test_a_finished_run_that_cannot_be_longer_is_not_offered_it(swa, recipe: Path) -> None:
    """Snapshots at an interval in %: a longer run would have kept others, so only `swa eval` is named."""
    assert swa("train", recipe, "-q", "train.epochs=2", "swa.start=0%", "snapshots.every=50%").code == 0
    ended = swa("train", "--resume", "runs/latest")
    assert ended.code == 2
    assert "swa eval runs/small-001" in ended.err
    assert "--extend-to" not in ended.err
