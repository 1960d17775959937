"""`swa soup` and the check for a barrier: arithmetic against numpy, choices and losses against other commands."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from conftest import load, run_swa
from swa_cli.models.build_model import build

RECIPE = """\
name: tuned
model: {name: convnet, args: {width: 4}, freeze: ["features.[01].*"]}
dataset: {name: digits, val: 20%, val_seed: 0, augment: {crop: 1}}
optimizer: {lr: 0.1}
schedule: {name: constant}
swa: {start: 1ep, every: 0.5ep}
snapshots: {every: 1ep}
train: {epochs: 3, batch_size: 115, threads: 1, precision: fp32}
"""
FROZEN, HEAD = ("features.0.", "features.1."), "classifier."
SEEDS = (0, 1, 2)


def repeated(folder: Path, *words: str) -> Path:
    """The folder of a repeat of RECIPE."""
    (folder / "tuned.yaml").write_text(RECIPE)
    seeds = f"0-{SEEDS[-1]}"
    run_swa("repeat", folder / "tuned.yaml", "--seeds", seeds, "-q", "--out", folder / "runs", *words)
    return folder / "runs/tuned-repeat-001"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the network with a head of seven classes, trained on the digits before."""
    folder = tmp_path_factory.mktemp("pretrained")
    (folder / "tuned.yaml").write_text(RECIPE)
    words = ("model.freeze=[]", "train.epochs=6", "swa=null", "snapshots=null", "optimizer.lr=0.1")
    run_swa("train", folder / "tuned.yaml", "-q", "--out", folder / "runs", *words)
    state = load(folder / "runs/latest/checkpoints/last.pt")["model"]
    other = build("convnet", num_classes=7, in_channels=1, args={"width": 4}).state_dict()
    head = {name: value for name, value in other.items() if name.startswith(HEAD)}
    torch.save({**state, **head}, folder / "seven.pth")
    return folder / "seven.pth"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, pretrained: Path) -> Path:
    """Three fine-tunings of it."""
    return repeated(tmp_path_factory.mktemp("tuned"), f"model.pretrained={pretrained}")


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs from random weights."""
    return repeated(tmp_path_factory.mktemp("set apart"), "model.freeze=[]", "train.epochs=5", "optimizer.lr=0.1")


def shipped(folder: Path) -> list[Path]:
    """The file of the lowest validation loss in the result of each seed."""
    files = []
    for seed in SEEDS:
        rows = json.loads((folder / f"seed-{seed}/result.json").read_text())["weights"]
        name = min(rows, key=lambda name: rows[name]["val"]["nll"])
        files.append(folder / f"seed-{seed}/checkpoints/{name}.pt")
    return files


def weights_of(path: Path | str) -> dict[str, Tensor]:
    found = load(path)
    return found.get("state_dict") or found["model"]


def nll(swa: Any, path: Path | str, *, key: str = "nll") -> float:
    """The validation score of the only weights, or the raw ones, in a file."""
    ended = swa("eval", path, "--split", "val", "--json")
    assert ended.code == 0, ended.err
    return next(iter(ended.json["weights"].values()))[key]


def said(ended: Any) -> str:
    return " ".join(ended.err.split())


def test_repeat_soup_eval(swa, tuned: Path) -> None:
    """The whole path: a repeat stands for what its runs ship, the file for the float64 mean of those; it is scored."""
    ended = swa("soup", tuned, "--method", "uniform", "-o", "soup.pt", "--json")
    assert ended.code == 0, ended.err
    result, files, content = ended.json, shipped(tuned), load("soup.pt")
    assert [source["file"] for source in result["sources"]] == [str(path) for path in files]
    assert result["sources"] == content["sources"]
    assert [source["weight"] for source in result["sources"]] == [pytest.approx(1 / 3)] * 3
    assert content["average"]["kind"] == "uniform"
    assert (content["average"]["count"], content["batchnorm"]) == (3, "recomputed")
    sets = [weights_of(path) for path in files]
    for name, _ in build("convnet", num_classes=10, in_channels=1, args={"width": 4}).named_parameters():
        expected = np.mean([one[name].double().numpy() for one in sets], axis=0)
        np.testing.assert_allclose(content["state_dict"][name].numpy(), expected, rtol=0, atol=1e-6)
    assert (result["command"], result["method"], result["split"]) == ("soup", "uniform", "val")
    for number, path in enumerate(files, start=1):
        row = result["weights"][f"{number} {path.stem}"]
        assert (row["file"], row["nll"]) == (str(path), nll(swa, path))
    row = result["weights"]["soup"]
    assert row["nll"] == nll(swa, "soup.pt")
    assert result["reference"] == min(result["weights"].keys() - {"soup"}, key=lambda k: result["weights"][k]["nll"])
    assert row["nll_diff"] == pytest.approx(row["nll"] - result["weights"][result["reference"]]["nll"])
    assert row["nll_diff_se"] > 0
    assert "test" in swa("eval", "soup.pt").out


def test_fine_tunings_of_one_network_lie_in_one_basin(swa, tuned: Path) -> None:
    """The barrier against scores of `swa eval`: of the mean, and of its members with recomputed statistics."""
    ended = swa("soup", tuned, "--method", "uniform", "-o", "soup.pt", "--json")
    barrier = ended.json["barrier"]
    members = [nll(swa, path) for path in shipped(tuned)]
    assert all(load(path)["batchnorm"] == "recomputed" for path in shipped(tuned))
    assert (barrier["split"], barrier["samples"]) == ("val", 287)
    assert barrier["loss_at_mean"] == pytest.approx(nll(swa, "soup.pt"), rel=1e-9)
    assert barrier["mean_of_losses"] == pytest.approx(np.mean(members), rel=1e-9)
    assert barrier["difference"] == pytest.approx(barrier["loss_at_mean"] - barrier["mean_of_losses"], rel=1e-6)
    assert barrier["difference"] <= barrier["se"]
    assert "warning" not in ended.err
    assert "one basin: val NLL" in said(ended)


def test_runs_from_random_weights_do_not(swa, apart: Path) -> None:
    """Two seeds warn with the number, of soup and average alike; the command in the warning draws a higher barrier."""
    files = shipped(apart)[:2]
    for words in (["soup", *files, "--method", "uniform"], ["average", *files]):
        ended = swa(*words, "-o", "x.pt", "--json")
        assert ended.code == 0, ended.err
        barrier = ended.json["barrier"]
        assert barrier["difference"] > 10 * barrier["se"] > 0
        assert f"val NLL {barrier['loss_at_mean']:.3f} at the mean" in said(ended)
    command = re.search(r"swa (plot .* path --between ('[^']*'|\S+) ('[^']*'|\S+))", said(ended))
    assert command, ended.err
    drawn = swa(*shlex.split(command[1]), "--grid", "5", "--samples", "200", "-o", "path.png", "--json")
    assert drawn.code == 0, drawn.err
    assert [point["name"] for point in drawn.json["points"]] == [files[0].name, f"seed-1/{files[1].name}"]
    found = drawn.json["barrier"]["train_loss"]
    assert found["height"] > 0.5
    assert found["x"] == pytest.approx(drawn.json["points"][1]["x"] / 2)


def test_members_are_refreshed_as_their_mean(swa, apart: Path) -> None:
    """Snapshots with running statistics: the mean of losses against those of `swa bn-update`, by the weights given."""
    files = [apart / f"seed-{seed}/snapshots/step-00000050.pt" for seed in (0, 1)]
    ended = swa("average", *files, "--weights", "3,1", "-o", "x.pt", "--json")
    losses = []
    for number, path in enumerate(files):
        assert swa("bn-update", path, "-o", f"{number}.pt").code == 0
        losses.append(nll(swa, f"{number}.pt"))
        assert losses[-1] != nll(swa, path)
    assert ended.json["barrier"]["mean_of_losses"] == pytest.approx(np.average(losses, weights=[3, 1]), rel=0.02)
    assert ended.json["barrier"]["loss_at_mean"] == pytest.approx(nll(swa, "x.pt"), rel=1e-9)
    assert ended.json["passes"] == 3


def test_weight_sets_of_one_run_are_not_checked(swa, apart: Path, tmp_path: Path) -> None:
    """Two snapshots of a run, also copied out of it, and a stale mean of two runs: no barrier, no warning."""
    one, two = (sorted((apart / f"seed-{seed}/snapshots").iterdir()) for seed in (0, 1))
    copies = [shutil.copy(path, tmp_path / path.name) for path in one[-2:]]
    for words in (one[-2:], copies, [one[-1], copies[0]], [one[-1], two[-1], "--no-bn"]):
        ended = swa("average", *words, "-o", "x.pt", "--json")
        assert ended.code == 0, ended.err
        assert ended.json["barrier"] is None
        assert "warning" not in ended.err
    copied = shutil.copy(two[-1], tmp_path / "other.pt")
    assert swa("average", copies[1], copied, "-o", "x.pt", "--json").json["barrier"]["difference"] > 0


def test_greedy_is_recipe_1(swa, tuned: Path) -> None:
    """--method greedy against the loop of the paper, each soup made and scored by commands of its own."""
    candidates = [*shipped(tuned), *tuned.glob("seed-*/snapshots/step-00000010.pt")]
    ended = swa("soup", *candidates, "-o", "greedy.pt", "--json")
    assert ended.code == 0, ended.err
    kept: list[Path] = []
    best = -1.0
    order = sorted(candidates, key=lambda path: -nll(swa, path, key="accuracy"))
    for path in order:
        weights = ",".join(str(int(one in [*kept, path])) for one in candidates)
        assert swa("average", *candidates, "--weights", weights, "-o", "x.pt").code == 0
        if (found := nll(swa, "x.pt", key="accuracy")) >= best:
            kept, best = [*kept, path], found
    assert 1 < len(kept) < len(candidates)
    assert [row["file"] for row in ended.json["tried"]] == [str(path) for path in order]
    assert [source["file"] for source in ended.json["sources"]] == [str(path) for path in kept]
    assert ended.json["weights"]["soup"]["accuracy"] == best == nll(swa, "greedy.pt", key="accuracy")
    assert ended.json["weights"]["soup"]["count"] == len(kept)
    by_average = swa("average", *candidates, "--greedy", "-o", "same.pt", "--json")
    assert by_average.json["tried"] == ended.json["tried"]
    first, second = weights_of("greedy.pt"), weights_of("same.pt")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_model_stock_against_numpy(swa, tuned: Path, pretrained: Path) -> None:
    """Each tensor and its t from the files; frozen ones stay, the new head is the uniform mean, shares add up to 1."""
    ended = swa("soup", tuned, "--method", "model_stock", "-o", "stock.pt", "--json")
    assert ended.code == 0, ended.err
    w0, sets, found = load(pretrained), [weights_of(path) for path in shipped(tuned)], load("stock.pt")
    names = [n for n, _ in build("convnet", num_classes=10, in_channels=1, args={"width": 4}).named_parameters()]
    moved = [name for name in names if not name.startswith((*FROZEN, HEAD))]
    assert sorted(ended.json["layers"]) == sorted(moved)
    t = dict.fromkeys((name for name in names if name.startswith(HEAD)), 1.0)
    for name in names:
        tensors = [one[name].double().numpy() for one in sets]
        expected = np.mean(tensors, axis=0)
        if name in moved:
            origin = w0[name].double().numpy()
            a, b, c = ((tensor - origin).ravel() for tensor in tensors)
            cosine = np.mean([x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in ((a, b), (a, c), (b, c))])
            t[name] = 3 * max(cosine, 0) / (1 + 2 * max(cosine, 0))
            expected = t[name] * expected + (1 - t[name]) * origin
            assert ended.json["layers"][name] == {"t": pytest.approx(t[name]), "cosine": pytest.approx(cosine)}
        np.testing.assert_allclose(found["state_dict"][name].numpy(), expected, rtol=0, atol=1e-6)
    frozen = [name for name in w0 if name.startswith(FROZEN)]
    assert len(frozen) == 6
    assert all(torch.equal(found["state_dict"][name], w0[name]) for name in frozen)
    share = np.average(list(t.values()), weights=[found["state_dict"][name].numel() for name in t])
    *runs, start = found["sources"]
    assert [source["weight"] for source in runs] == [pytest.approx(share / 3)] * 3
    assert start == {"file": str(pretrained), "name": "last", "weight": pytest.approx(1 - share), "step": None}
    assert found["average"]["kind"] == "model_stock"
    assert (found["average"]["count"], found["batchnorm"]) == (3, "recomputed")
    assert ended.json["pretrained"]["uniform"] == [f"{HEAD}weight", f"{HEAD}bias"]
    assert f"{HEAD}weight, {HEAD}bias: no pretrained tensors" in said(ended)
    assert ended.json["weights"].keys() >= {"mean", "soup"}
    assert swa("show", "stock.pt").code == 0
    assert nll(swa, "stock.pt") == ended.json["weights"]["soup"]["nll"]


def test_pretrained_weights_are_named_or_those_of_the_recipe(swa, tuned: Path, apart: Path, pretrained: Path) -> None:
    """--pretrained with the file of the recipe: the same bits; with another file: a warning; none known: exit 2."""
    stock = ["--method", "model_stock", "-o", "x.pt"]
    assert swa("soup", tuned, *stock).code == 0
    first = weights_of("x.pt")
    assert swa("soup", tuned, *stock, "--pretrained", pretrained).code == 0
    second = weights_of("x.pt")
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    other = {name: value * 0.9 if value.is_floating_point() else value for name, value in load(pretrained).items()}
    torch.save(other, "other.pth")
    ended = swa("soup", tuned, *stock, "--pretrained", "other.pth")
    assert ended.code == 0, ended.err
    assert "other weights than other.pth" in said(ended)
    for words, problem in (
        ([apart], "names no weights that it started from"),
        ([tuned, "--pretrained", "nowhere.pth"], "--pretrained nowhere.pth: nowhere.pth: no such checkpoint"),
    ):
        ended = swa("soup", *words, *stock)
        assert ended.code == 2
        assert problem in said(ended)
        assert "--pretrained FILE" in said(ended) or "with --pretrained" in said(ended)


def test_a_pretrained_file_that_has_changed_is_refused(swa, tuned: Path, pretrained: Path) -> None:
    """The file of the recipe with other numbers than when the runs began: exit 2, and nothing is written."""
    before = pretrained.read_bytes()
    torch.save({name: value + 1 for name, value in load(pretrained).items()}, pretrained)
    try:
        ended = swa("soup", tuned, "--method", "model_stock", "-o", "x.pt")
    finally:
        pretrained.write_bytes(before)
    assert ended.code == 2
    assert "its run started from other weights" in said(ended)
    assert not Path("x.pt").exists()


def test_weights_of_train_init_count_as_pretrained(swa, tmp_path: Path, apart: Path) -> None:
    """Runs that go on from a checkpoint: Model Stock lies between that and their mean."""
    (tmp_path / "tuned.yaml").write_text(RECIPE)
    start = apart / "seed-0/checkpoints/last.pt"
    words = ["model.freeze=[]", f"train.init={start}", "train.epochs=1", "swa=null", "snapshots=null"]
    for seed in (1, 2):
        assert swa("train", "tuned.yaml", "-q", *words, f"seed={seed}").code == 0
    ended = swa("soup", "runs/tuned-001", "runs/tuned-002", "--method", "model_stock", "-o", "x.pt", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["pretrained"]["source"] == str(start)
    assert ended.json["pretrained"]["uniform"] == []
    assert all(0 <= layer["t"] <= 1 for layer in ended.json["layers"].values())
    ended = swa("soup", apart / "seed-1", "runs/tuned-001", "--method", "uniform", "-o", "x.pt", "--json")
    assert ended.json["barrier"]["difference"] > 0


def test_sources_that_do_not_fit(swa, tuned: Path, apart: Path, tmp_path: Path) -> None:
    """One source, one twice, an unfinished run, another network, an option of another method: exit 2, what is wrong."""
    shutil.copytree(tuned / "seed-0", tmp_path / "stopped")
    (tmp_path / "stopped/result.json").unlink()
    first, second = tuned / "seed-0", tuned / "seed-1"
    for words, problem in (
        ([first], "at least 2"),
        ([first, first], "is named twice"),
        ([first, "stopped"], "stopped: has not finished"),
        ([first, apart / "seed-1"], "weights of two networks are not averaged"),
        ([first, second, "--pretrained", "x.pth"], "--pretrained goes with --method model_stock"),
        ([first, "nowhere.pt"], "no such checkpoint"),
    ):
        ended = swa("soup", *words, "-o", "x.pt")
        assert ended.code == 2, words
        assert problem in " ".join(said(ended).replace("│", " ").split())
        assert "--weights" not in ended.err
    assert not Path("x.pt").exists()


def test_runs_that_hold_out_other_images(swa, tmp_path: Path) -> None:
    """Validation images of a seed's own: greedy names the key, uniform is made but not scored, its barrier on train."""
    (tmp_path / "tuned.yaml").write_text(RECIPE)
    words = ["model.freeze=[]", "dataset.val_seed=null", "dataset.mean=[0.3]", "dataset.std=[0.4]", "train.epochs=1"]
    assert swa("repeat", "tuned.yaml", "--seeds", "0-1", "-q", *words, "swa=null").code == 0
    ended = swa("soup", "runs/tuned-repeat-001", "-o", "x.pt")
    assert ended.code == 2
    assert "may have been trained on the validation images" in said(ended)
    assert "dataset.val_seed=0" in said(ended)
    ended = swa("soup", "runs/tuned-repeat-001", "--method", "uniform", "-o", "x.pt", "--json")
    assert ended.code == 0, ended.err
    assert (ended.json["split"], ended.json["weights"]) == (None, {})
    assert (ended.json["barrier"]["split"], ended.json["barrier"]["samples"]) == ("train", 1150)
    assert "nothing is scored" in said(ended)


def test_a_validation_split_of_the_dataset_is_held_out_by_all_seeds(swa, tmp_path: Path) -> None:
    """A folder with val/: runs of two seeds have the same validation images, whatever dataset.val and the seed are."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 8), ("test", 8)):
        for index in range(count):
            file = tmp_path / "pets" / split / ("cat", "dog")[index % 2] / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(file)
    recipe = RECIPE.replace(
        "{name: digits, val: 20%, val_seed: 0, augment: {crop: 1}}", "{name: image_folder, root: pets}"
    )
    (tmp_path / "tuned.yaml").write_text(recipe.replace("batch_size: 115", "batch_size: 8"))
    assert swa("repeat", "tuned.yaml", "--seeds", "0-1", "-q", "model.freeze=[]", "dataset.workers=0").code == 0
    ended = swa("soup", "runs/tuned-repeat-001", "-o", "x.pt", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["split"] == "val"
    assert len(ended.json["tried"]) == 2
