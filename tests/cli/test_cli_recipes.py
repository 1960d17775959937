"""The recipes we ship: all of them load, and the paper's have its settings."""

from __future__ import annotations

import math
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torchvision.utils import save_image

from published import in_cache
from swa_cli.models import build_model
from swa_cli.recipe import load
from swa_cli.recipe.plan import make_plan

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_load_and_begin_with_their_command(path: Path) -> None:
    """Every recipe against the loader; its first line against the command that runs it."""
    load.load(path)
    command = path.read_text().splitlines()[0]
    assert command == f"# swa train recipes/{path.relative_to(RECIPES)}"


@pytest.mark.parametrize(
    ("name", "epochs", "count", "first", "lr", "swa_lr", "weight_decay"),
    [
        ("vgg16", 300, 140, 161, 0.05, 0.01, 5e-4),
        ("preresnet164", 225, 100, 126, 0.1, 0.05, 3e-4),
        ("wrn28x10", 300, 140, 161, 0.1, 0.05, 5e-4),
    ],
)
def test_paper_recipes_have_the_settings_of_the_paper(
    name: str, epochs: int, count: int, first: int, lr: float, swa_lr: float, weight_decay: float
) -> None:
    """Plan and options on 50,000 images against the settings in FACTS 4 and the counts in FACTS 1."""
    recipe = load.load(RECIPES / "paper" / f"cifar100_{name}.yaml").recipe
    plan = make_plan(recipe, num_train=50_000)
    assert plan.epochs == epochs
    [average] = plan.averages
    ends = [step / plan.steps_per_epoch for step in average.steps]
    assert ends == list(range(first, epochs + 1))
    assert len(ends) == count
    assert plan.learning_rate(0) == lr
    assert plan.learning_rate(plan.total_steps - 1) == pytest.approx(swa_lr, abs=1e-12)
    assert recipe.optimizer.options == {"momentum": 0.9, "nesterov": False, "weight_decay": weight_decay}
    assert recipe.train.batch_size == 128


def stand_in(folder: Path, *, classes: int, train: int) -> list[str]:
    """Noise in the shape of CIFAR as an image folder, and the words that take it."""
    generator = torch.Generator().manual_seed(0)
    for split, number in (("train", train), ("test", 1)):
        for label in range(classes):
            (folder / "stand-in" / split / f"c{label:02d}").mkdir(parents=True)
            for index in range(number):
                path = folder / "stand-in" / split / f"c{label:02d}" / f"{index}.png"
                save_image(torch.rand(3, 32, 32, generator=generator), path)
    return ["dataset.name=image_folder", "dataset.root=stand-in", "train.batch_size=4", "eval.batch_size=4"]


def test_dry_run_of_snapshot_ensembles_shows_five_cycles(swa, tmp_path: Path) -> None:
    """15 epochs against the plan: five snapshots, and an average of the same weights; rates by Huang's formula."""
    words = [*stand_in(tmp_path, classes=10, train=3), "dataset.val=10"]
    ended = swa("train", RECIPES / "cifar10_snapshot_ensemble.yaml", "--dry-run", "--json", *words)
    assert ended.code == 0, ended.err
    said = " ".join(ended.err.split())
    assert "cosine cycles of 3 epochs from 0.1 to 0" in said
    assert "swa: 5 weights, at the minima of the cycles" in said
    assert "snapshots: 5, at the minima of the cycles; all kept" in said
    assert "warning" not in said
    assert ended.json["averages"]["swa"]["steps"] == [15, 30, 45, 60, 75]
    golden = [0.05 * (1 + math.cos(math.pi * (epoch % 3) / 3)) for epoch in range(15)]
    assert ended.json["learning_rates"] == pytest.approx(golden, abs=1e-12)
    assert not (tmp_path / "runs").exists()


def test_dry_run_of_fge_starts_from_a_network(swa, tmp_path: Path) -> None:
    """Refused without the network to start from; with it 7 epochs, four snapshots, the golden rates of FACTS 2."""
    words = [*stand_in(tmp_path, classes=10, train=3), "dataset.val=10"]
    command = ["train", RECIPES / "cifar10_fge.yaml", "--dry-run", "--json", *words]
    assert "train.init: runs/cifar10-preresnet20-001/checkpoints/last.pt: no such checkpoint" in swa(*command).err
    torch.save(build_model.build("preresnet20", num_classes=10, in_channels=3).state_dict(), "start.pt")
    ended = swa(*command, "train.init=start.pt")
    assert ended.code == 0, ended.err
    said = " ".join(ended.err.split())
    assert "initial weights from start.pt (last)" in said
    assert "cycles between 0.0001 and 0.05, 1 epoch down and 1 epoch up" in said
    assert "snapshots: 4, at the minima of the cycles; all kept" in said
    assert ended.json["averages"]["swa"]["steps"] == [5, 15, 25, 35]
    golden = [0.05, 0.0001]
    assert ended.json["learning_rates"] == pytest.approx((golden * 4)[:7], abs=1e-12)
    assert not (tmp_path / "runs").exists()


def test_dry_run_of_the_paper_shows_its_plan(swa, tmp_path: Path) -> None:
    """--dry-run of PreResNet-164 on a stand-in of 100 classes: 225 epochs, ends of 126..225, the golden rates."""
    words = stand_in(tmp_path, classes=100, train=2)
    ended = swa("train", RECIPES / "paper/cifar100_preresnet164.yaml", "--dry-run", "--json", *words)
    assert ended.code == 0, ended.err
    said = " ".join(ended.err.split())
    assert "225 epochs x 50 steps" in said
    assert "100 weights, ends of epochs 126 to 225" in said
    golden = {0: 0.1, 63: 0.1, 64: 0.099008, 80: 0.083135, 100: 0.063294, 113: 0.050397, 114: 0.05, 224: 0.05}
    rates = ended.json["learning_rates"]
    assert {epoch: round(rates[epoch], 6) for epoch in golden} == golden
    assert not (tmp_path / "runs").exists()


def test_dry_run_of_fine_tuning_takes_the_weights_of_the_cache(
    swa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the file a run ends, a dry run tells name and folder; with it four weight sets per epoch from 2 on."""
    words = [*stand_in(tmp_path, classes=2, train=9), "dataset.workers=0"]
    name = "torchvision:shufflenet_v2_x0_5"
    command = ["train", RECIPES / "finetune.yaml", "--json", *words, f"model.name={name}"]

    def fail(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    ended = swa(*command)
    assert ended.code == 2
    said = " ".join(ended.err.split())
    assert f"model.pretrained: IMAGENET1K_V1 of {name} cannot be downloaded" in said
    assert f"shufflenetv2_x0.5-f707e7126e.pth into {tmp_path}/hub/checkpoints" in said
    command.append("--dry-run")
    ended = swa(*command)
    assert ended.code == 0, ended.err
    said = " ".join(ended.err.split())
    assert "shufflenetv2_x0.5-f707e7126e.pth" in said
    assert f"{tmp_path}/hub/checkpoints" in said
    assert "with weights of the seed" in said
    in_cache(name, tmp_path, monkeypatch)
    ended = swa(*command, "dataset.image_size=32")
    assert ended.code == 0, ended.err
    said = " ".join(ended.err.split())
    assert "evaluated at 32 x 32 after resizing the shorter side to 37" in said
    assert "fresh: fc.weight, fc.bias" in said
    assert "optimizer fc.*: lr 10x" in said
    assert ended.json["averages"]["swa"]["steps"] == list(range(8, 41))
    assert not (tmp_path / "runs").exists()
