"""`swa eval REPEAT --ensemble`: the mean prediction of the runs of a repeat, and MultiSWAG, against both by hand."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import load, run_swa
from swa_cli.averaging.swag import Posterior
from swa_cli.data import sources
from swa_cli.data.randomness import generator

RECIPE = """\
name: lines
model: {name: 'flat_net:net'}
dataset: {name: digits, val: 10%}
optimizer: {lr: 0.1}
swa: {start: 25%, every: 0.5ep}
averages: {swag: {kind: swag, rank: 3, start: 25%, every: 0.5ep}}
train: {epochs: 3, batch_size: 64, threads: 1, precision: fp32}
"""
NET = """\
from torch import nn
def net(num_classes, in_channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, num_classes))
"""
DRAWS = 4


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a repeat of three seeds."""
    folder = tmp_path_factory.mktemp("repeated")
    (folder / "lines.yaml").write_text(RECIPE)
    (folder / "flat_net.py").write_text(NET)
    run_swa("repeat", folder / "lines.yaml", "--seeds", "0-2", "-q", "-o", folder)
    return folder / "lines-repeat-001"


@pytest.fixture
def repeat(swa, repeated: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    (tmp_path / "flat_net.py").write_text(NET)
    return shutil.copytree(repeated, tmp_path / "repeat")


def softmax_of(weights: dict[str, Tensor], content: dict) -> Tensor:
    """What a line says of the test digits (360, 10), in float64."""
    pixels = sources.load("digits", val=0).test.images.double() / 255
    images = (pixels - content["input"]["mean"][0]) / content["input"]["std"][0]
    return (images.flatten(1) @ weights["1.weight"].double().T + weights["1.bias"].double()).softmax(1)


def assert_scores(row: dict, p: Tensor) -> None:
    labels = sources.load("digits", val=0).test.labels
    assert row["accuracy"] == pytest.approx(float((p.argmax(1) == labels).double().mean()), abs=1e-9)
    assert row["nll"] == pytest.approx(float(-p[torch.arange(len(labels)), labels].log().mean()), abs=1e-5)
    one_hot = torch.nn.functional.one_hot(labels, 10)
    assert row["brier"] == pytest.approx(float((p - one_hot).square().sum(1).mean()), abs=1e-5)


def test_multiswag_is_the_mean_over_draws_of_all_runs(swa, repeat: Path) -> None:
    """Twelve draws, four from the Gaussian of each run by its own seed, softmax averaged; and each run by itself."""
    ended = swa("eval", repeat, "--ensemble", "--draws", str(DRAWS), "--allow-code", "--json")
    assert ended.code == 0, ended.err
    told = ended.json
    total = torch.zeros(())
    for seed in range(3):
        content = load(repeat / f"seed-{seed}/checkpoints/swag.pt")
        kept, mean = content["posterior"], content["state_dict"]
        posterior = Posterior(
            mean, kept["variance"], kept["deviations"], kept["diagonal"], {name: name for name in mean}
        )
        drawn = [posterior.draw(generator(seed, "swag draw", index)) for index in range(DRAWS)]
        own = torch.stack([softmax_of(weights, content) for weights in drawn]).mean(0)
        assert_scores(told["weights"][f"seed-{seed}"], own)
        total = total + own / 3
    assert_scores(told["weights"]["ensemble"], total)
    assert list(told["weights"]) == ["seed-0", "seed-1", "seed-2", "ensemble"]
    assert (told["weight_set"], told["seeds"], told["split"], told["samples"]) == ("swag", [0, 1, 2], "test", 360)
    ensemble = told["weights"]["ensemble"]
    assert (ensemble["members"], ensemble["draws"], ensemble["batchnorm"]) == (3, DRAWS, "none")
    assert [row["members"] for row in told["ensemble"]] == [1, 2, 3]
    assert told["ensemble"][0]["nll"] == pytest.approx(told["weights"]["seed-0"]["nll"], abs=1e-9)
    assert told["ensemble"][2]["nll"] == pytest.approx(ensemble["nll"], abs=1e-9)
    said = " ".join(ended.err.split())
    assert "12 forward passes per image" in said
    alone = swa("eval", repeat / "seed-1/checkpoints/swag.pt", "--draws", str(DRAWS), "--allow-code", "--json").json
    assert alone["weights"]["swag"]["nll"] == pytest.approx(told["weights"]["seed-1"]["nll"], abs=1e-9)


def test_a_deep_ensemble_is_the_mean_over_runs(swa, repeat: Path, tmp_path: Path) -> None:
    """The first average of each run, judged against the seed of the lowest validation loss; also its predictions."""
    file = tmp_path / "samples.csv"
    ended = swa("eval", repeat, "--ensemble", "--per-class", "--predictions", file, "--allow-code", "--json")
    assert ended.code == 0, ended.err
    told = ended.json
    contents = [load(repeat / f"seed-{seed}/checkpoints/swa.pt") for seed in range(3)]
    p = torch.stack([softmax_of(content["state_dict"], content) for content in contents]).mean(0)
    assert_scores(told["weights"]["ensemble"], p)
    results = [json.loads((repeat / f"seed-{seed}/result.json").read_text()) for seed in range(3)]
    losses = [result["weights"]["swa"]["val"]["nll"] for result in results]
    assert told["reference"] == told["weights"]["ensemble"]["reference"] == f"seed-{losses.index(min(losses))}"
    for seed, result in enumerate(results):
        assert told["weights"][f"seed-{seed}"]["nll"] == pytest.approx(result["weights"]["swa"]["nll"], abs=1e-6)
    assert "ensemble vs seed-" in ended.err
    assert list(told["per_class"]) == list(told["weights"])
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert len(rows) == 4 * 360
    raw = swa("eval", repeat, "--ensemble", "--weights", "last", "--allow-code", "--json").json
    assert raw["weight_set"] == "last"
    last = [load(repeat / f"seed-{seed}/checkpoints/last.pt") for seed in range(3)]
    assert_scores(
        raw["weights"]["ensemble"], torch.stack([softmax_of(content["model"], content) for content in last]).mean(0)
    )


def test_seeds_that_are_not_finished_are_left_out_with_a_word(swa, repeat: Path) -> None:
    """Of three seeds one without result.json, then two."""
    (repeat / "seed-1/result.json").unlink()
    ended = swa("eval", repeat, "--ensemble", "--allow-code", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["seeds"] == [0, 2]
    assert "seed 1 left out" in " ".join(ended.err.split())
    (repeat / "seed-2/result.json").unlink()
    refused = swa("eval", repeat, "--ensemble", "--allow-code")
    assert refused.code == 2
    assert "1 finished seed" in refused.err
    assert "swa repeat" in refused.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--ensemble"),
        (["--draws", "2"], "--ensemble"),
        (["--ensemble", "--split", "val"], "held out"),
        (["--ensemble", "--draws", "2", "--weights", "swa"], "--weights swag"),
        (["--ensemble", "--weights", "nobody"], "holds no weights 'nobody'"),
        (["--ensemble", "--recipe", "lines.yaml"], "recipe"),
    ],
)
def test_what_cannot_be_scored_is_refused(swa, repeat: Path, words: list[str], said: str) -> None:
    """Exit 2 with what to write: no ensemble, images that other seeds were trained on, weights that are not swag."""
    ended = swa("eval", repeat, *words, "--allow-code")
    assert ended.code == 2
    assert said in " ".join(ended.err.split())


def test_validation_images_that_all_seeds_held_out(swa, tmp_path: Path) -> None:
    """With one val_seed for all, the ensemble is scored on 90 of the 900 digits as each seed alone is."""
    (tmp_path / "lines.yaml").write_text(RECIPE)
    (tmp_path / "flat_net.py").write_text(NET)
    assert swa("repeat", "lines.yaml", "--seeds", "0-1", "dataset.val_seed=3", "-q").code == 0
    folder = tmp_path / "runs/lines-repeat-001"
    ended = swa("eval", folder, "--ensemble", "--split", "val", "--allow-code", "--json")
    assert ended.code == 0, ended.err
    assert (ended.json["split"], ended.json["seeds"]) == ("val", [0, 1])
    assert swa("eval", folder, "--ensemble", "--split", "val", "--allow-code", "dataset.val_seed=4").code == 2
    single = json.loads((folder / "seed-0/result.json").read_text())["weights"]["swa"]["val"]
    assert ended.json["weights"]["seed-0"]["nll"] == pytest.approx(single["nll"], rel=1e-5)


def test_a_seed_of_another_recipe_is_refused(swa, repeat: Path) -> None:
    """Another rate in one resume point; and without --allow-code, nothing of a user's is imported."""
    refused = swa("eval", repeat, "--ensemble")
    assert refused.code == 2
    assert "--allow-code" in refused.err
    last = repeat / "seed-2/checkpoints/last.pt"
    content = load(last)
    content["recipe"]["optimizer"]["lr"] = 0.2
    torch.save(content, last)
    ended = swa("eval", repeat, "--ensemble", "--allow-code")
    assert ended.code == 2
    assert "optimizer.lr is 0.2" in ended.err
