"""How often commands after a run validate recipes, against one time per distinct recipe; the networks they build."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import SMALL, Swa, run_swa
from swa_cli.analysis import open
from swa_cli.recipe import load
from swa_cli.recipe.schema import Recipe

RUN = "runs/small-001"
LAST, SHIPPED = f"{RUN}/checkpoints/last.pt", f"{RUN}/checkpoints/swa.pt"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder of a finished run with snapshots, an average and a second average."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = SMALL.replace("epochs: 4", "epochs: 2") + "snapshots: {every: 0.5ep}\naverages: {ema: {kind: ema}}\n"
    (folder / "small.yaml").write_text(recipe)
    run_swa("train", folder / "small.yaml", "-q", "--out", folder / "runs")
    return folder


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch, trained: Path, swa: Swa) -> Callable[..., int]:
    """Run a command on the trained run, and say how often it has validated a recipe."""
    monkeypatch.chdir(trained)
    validate, number = Recipe.model_validate, 0

    def counted(*args: Any, **kwargs: Any) -> Recipe:
        nonlocal number
        number += 1
        return validate(*args, **kwargs)

    monkeypatch.setattr(Recipe, "model_validate", counted)

    def run(*words: str) -> int:
        nonlocal number
        number = 0
        open._validated.cache_clear()  # as in a process of its own
        ended = swa(*words)
        assert ended.code == 0, ended.err
        return number

    return run


@pytest.mark.parametrize(
    "words",
    [
        f"eval {RUN}",
        f"eval {RUN} --ensemble",
        f"eval {RUN} eval.batch_size=64",
        f"eval {SHIPPED}",
        f"bn-update {SHIPPED} -o bn.pt",
        f"bn-update {LAST} --samples 64 -o bn.pt",
        f"average {RUN} -o soup.pt",
        f"average {RUN} --last 2 --no-bn -o soup.pt",
        f"average {RUN} --window 0.5ep:2ep -o soup.pt",
        f"average {RUN} --weights swa -o swa.pt",
        f"plot {RUN} curves -o curves.png",
        f"report {RUN} --no-data -o page.html",
        f"show {LAST}",
        f"compare {RUN} {RUN}",
        f"export {SHIPPED} --format safetensors -o swa.safetensors",
    ],
)
def test_a_command_validates_a_recipe_once(count: Callable[..., int], words: str) -> None:
    """Validated recipes, against one: all files of a run carry the same recipe, and a run named twice is read once."""
    assert count(*words.split()) == 1


@pytest.mark.parametrize(
    "words", ["plot {} plane --grid 3 --samples 64 -o plane.png", "plot {} window --grid 3 -o window.png", "show {}"]
)
def test_recipe_yaml_and_a_checkpoint_are_validated_once_each(count: Callable[..., int], words: str) -> None:
    """Commands that read the text of the recipe beside the resume point, against one validation of each."""
    assert count(*words.format(RUN).split()) == 2


def test_changes_are_validated_beside_what_the_files_carry(count: Callable[..., int]) -> None:
    """Snapshots are held against their own recipe, and the average is refreshed by the changed one: two recipes."""
    assert count("average", RUN, "eval.batch_size=64", "-o", "soup.pt") == 2


def test_a_file_of_another_run_is_still_refused(trained: Path, tmp_path: Path, swa: Swa) -> None:
    """The recipe of a copied file differs from that of the run: exit 2, and the key that differs."""
    other = SMALL.replace("epochs: 4", "epochs: 2").replace("lr: 0.1", "lr: 0.2") + "averages: {ema: {kind: ema}}\n"
    Path("small.yaml").write_text(other)
    assert swa("train", "small.yaml", "-q").code == 0
    Path(SHIPPED).write_bytes((trained / SHIPPED).read_bytes())
    ended = swa("eval", RUN, "--json")
    assert ended.code == 2
    assert "optimizer.lr" in ended.err
    assert SHIPPED in ended.err


def test_a_run_with_changes_draws_by_them(trained: Path, tmp_path: Path, swa: Swa) -> None:
    """`swa plot RUN KEY=VALUE`: a key that weights depend on is refused, one for scoring is taken."""
    words = ["plot", str(trained / RUN), "calibration", "-o", "c.png", "--json", "-q"]
    assert "optimizer.lr" in swa(*words, "optimizer.lr=1").err
    plain, in_batches = (json.loads(swa(*words, *more).out) for more in ([], ["eval.batch_size=64"]))
    for name, found in plain["weights"].items():
        assert in_batches["weights"][name]["ece"] == pytest.approx(found["ece"], abs=1e-6)


def test_images_give_lazy_layers_their_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lazy InstanceNorm, which torch cannot run without its own size, against (batch, classes)."""
    (tmp_path / "lazy_net.py").write_text(
        "from torch import nn\n"
        "def make(num_classes):\n"
        "    norm = nn.LazyInstanceNorm2d(affine=True)\n"
        "    return nn.Sequential(norm, nn.Flatten(), nn.LazyLinear(num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = "model: {name: 'lazy_net:make'}\ndataset: {name: digits}\noptimizer: {lr: 0.1}\ntrain: {epochs: 1}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    recipe = load.load(tmp_path / "recipe.yaml").recipe
    network = open.network_of(recipe, {"channels": 2, "size": [4, 5], "outputs": 3})
    assert network(torch.rand(6, 2, 4, 5)).shape == (6, 3)
