"""`swa train` as a person runs it: files, promises about the trajectory, resume, and what the average holds."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import SMALL, copy_runs, load, run_swa
from swa_cli.data.randomness import seed_globals
from swa_cli.engine import hardware, state
from swa_cli.models import build_model


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_run_leaves_every_file(swa, recipe: Path, tmp_path: Path) -> None:
    """The run folder against DESIGN 5, and the JSON against the keys it promises."""
    ended = swa("train", recipe, "--json")
    assert ended.code == 0, ended.err
    run = tmp_path / "runs" / "small-001"
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert files == {
        "recipe.yaml", "run.json", "metrics.csv", "log.txt", "result.json", "curves.png",
        "checkpoints/last.pt", "checkpoints/last_bn.pt", "checkpoints/previous.pt", "checkpoints/swa.pt",
    }  # fmt: skip
    assert (tmp_path / "runs" / "latest").resolve() == run
    result = ended.json
    assert result == json.loads((run / "result.json").read_text())
    assert result.keys() == {
        "command", "checkpoint", "run", "split", "samples", "weights", "reference", "seconds", "device", "precision",
        "eval_precision", "tta", "stopped",
    }  # fmt: skip
    assert result["stopped"] is None
    assert result["split"] == "test"
    assert result["samples"] == 360
    assert set(result["weights"]) == {"last", "last_bn", "swa"}
    scores = {"accuracy", "accuracy_se", "top5", "nll", "ece", "brier"}
    for row in result["weights"].values():
        assert scores | {"count", "batchnorm"} <= row.keys()
        assert scores <= row["val"].keys()
    compared = {"reference", "accuracy_diff", "accuracy_diff_se", "nll_diff", "nll_diff_se"}
    assert compared <= result["weights"]["swa"].keys()
    assert result["weights"]["swa"]["count"] == 5
    assert result["weights"]["swa"]["batchnorm"] == "recomputed"
    assert result["weights"]["last"]["accuracy"] > 0.5  # it learns: chance is .1


def test_metrics_have_the_promised_columns(swa, recipe: Path, tmp_path: Path) -> None:
    """metrics.csv against DESIGN 5: columns in order, a row an epoch, fractions, empty where not measured."""
    assert swa("train", recipe, "swa.eval_every=2ep", "averages.ema.kind=ema", "-q").code == 0
    with open(tmp_path / "runs/latest/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "epoch", "step", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy",
        "swa_val_loss", "swa_val_accuracy", "swa_count", "ema_val_loss", "ema_val_accuracy", "ema_count", "seconds",
    ]  # fmt: skip
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["swa_val_loss"] != "" for row in rows] == [False, True, False, True]
    assert [row["ema_val_loss"] != "" for row in rows] == [False, True, False, True]
    assert [row["swa_count"] for row in rows] == ["0", "1", "3", "5"]
    assert all(0 <= float(row["val_accuracy"]) <= 1 for row in rows)


@pytest.mark.slow
def test_averages_and_scores_and_saves_never_change_the_raw_weights(swa, recipe: Path, tmp_path: Path) -> None:
    """Raw weights at the end, bit for bit: without any average against every way to average, score and save."""
    text = recipe.read_text().replace("args: {width: 4}", "args: {width: 4, dropout: 0.3}")
    plain = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("swa:"))
    recipe.write_text(plain)
    assert swa("train", recipe, "-q").code == 0
    expected = load(tmp_path / "runs/small-001/checkpoints/last.pt")
    recipe.write_text(text)
    changes = [
        [],
        ["swa.eval_every=1ep", "output.save_every=3ep"],
        [
            "swa.eval_every=0.5ep",
            "averages.ema.kind=ema",
            "averages.late.kind=lawa",
            "swa.batchnorm.method=exact",
        ],
        ["snapshots.every=1ep", "swa.every=1step"],
    ]
    for number, words in enumerate(changes, start=2):
        assert swa("train", recipe, "-q", *words).code == 0
        found = load(tmp_path / f"runs/small-{number:03d}/checkpoints/last.pt")
        assert same(found["model"], expected["model"]), words


def test_average_is_the_float64_mean_of_the_recorded_steps(swa, recipe: Path, tmp_path: Path) -> None:
    """swa.pt to 1e-6 against the float64 mean of the snapshots at exactly its recorded steps; M different files."""
    assert swa("train", recipe, "-q", "snapshots.every=0.5ep", "snapshots.start=50%").code == 0
    run = tmp_path / "runs/latest"
    shipped = load(run / "checkpoints/swa.pt")
    snapshots = [load(path) for path in sorted((run / "snapshots").iterdir())]
    assert [item["step"] for item in snapshots] == shipped["average"]["steps"]
    name = next(iter(shipped["state_dict"]))
    for key, value in shipped["state_dict"].items():
        if "running" in key or "num_batches" in key:
            continue
        mean = torch.stack([item["state_dict"][key].double() for item in snapshots]).mean(0)
        assert (value.double() - mean).abs().max() < 1e-6, key
    assert len({float(item["state_dict"][name].double().sum()) for item in snapshots}) == len(snapshots)
    # The last one is the end of the run (Lightning never averages it), and not an alias of it.
    assert same(snapshots[-1]["state_dict"], load(run / "checkpoints/last.pt")["model"])
    assert not same(snapshots[0]["state_dict"], snapshots[-1]["state_dict"])


@pytest.mark.parametrize(
    ("keep", "kept"), [("1", [40]), ("2", [30, 40]), ("3", [20, 30, 40]), ("9", None), ("all", None)]
)
def test_as_many_snapshots_are_kept_as_the_recipe_says(
    keep: str, kept: list[int] | None, swa, recipe: Path, tmp_path: Path
) -> None:
    """Names of the files after 2 epochs of 20 steps, two snapshots each, against the last `keep` of all four."""
    words = ["train.epochs=2", "snapshots={start: 0ep, every: 0.5ep}", f"snapshots.keep={keep}"]
    assert swa("train", recipe, "-q", *words).code == 0
    names = sorted(path.name for path in (tmp_path / "runs/latest/snapshots").iterdir())
    assert names == [f"step-{step:08d}.pt" for step in kept or range(10, 41, 10)]
    assert load(tmp_path / "runs/latest/checkpoints/last.pt")["step"] == 40


def test_window_moves_between_two_scores(swa, recipe: Path, tmp_path: Path) -> None:
    """A full `latest` window that was scored before its last update, against the float64 mean of its own steps."""
    words = ["averages.late={kind: lawa, window: 2, every: 1ep, start: 1ep}", "snapshots.every=1ep"]
    assert swa("train", recipe, "-q", "swa.eval_every=1ep", *words).code == 0
    run = tmp_path / "runs/latest"
    shipped = load(run / "checkpoints/late.pt")
    assert shipped["average"]["steps"] == [60, 80]
    held = [load(run / f"snapshots/step-{step:08d}.pt")["state_dict"] for step in (60, 80)]
    for key, value in shipped["state_dict"].items():
        if "running" not in key and "num_batches" not in key:
            assert (value.double() - (held[0][key].double() + held[1][key].double()) / 2).abs().max() < 1e-6, key


def test_average_with_long_interval_is_refreshed_and_scored(swa, recipe: Path) -> None:
    """`every: 5ep`, over 2 weights: recomputed and close to `last` (timgaripov/swa never refreshed it)."""
    ended = swa("train", recipe, "--json", "swa.every=5ep", "swa.start=1ep", "train.epochs=8")
    weights = ended.json["weights"]
    assert weights["swa"]["count"] == 2
    assert weights["swa"]["batchnorm"] == "recomputed"
    assert "averages only 2 weights" in ended.err
    assert weights["swa"]["accuracy"] > 0.5


def test_ema_is_not_scored_before_its_first_update(swa, recipe: Path, tmp_path: Path) -> None:
    """Rows before the first update of a late EMA: empty, never the random initial weights (Lightning #21724)."""
    words = [
        "averages.ema.kind=ema",
        "averages.ema.start=3ep",
        "averages.ema.every=1ep",
        "swa.eval_every=1ep",
    ]
    assert swa("train", recipe, "-q", *words).code == 0
    with open(tmp_path / "runs/latest/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["ema_val_loss"] == "" for row in rows] == [True, True, False, False]
    assert [row["ema_count"] for row in rows] == ["0", "0", "1", "2"]


def test_swa_lr_is_used_from_start_on(swa, recipe: Path, tmp_path: Path) -> None:
    """The rate of every epoch's last step against the recipe's swa.lr (Composer ignores the user's)."""
    assert swa("train", recipe, "-q", "swa.lr=0.03", "train.epochs=6").code == 0
    with open(tmp_path / "runs/latest/metrics.csv") as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    assert rates[3:] == [0.03, 0.03, 0.03]
    assert rates[0] > rates[1] > 0.03


class Killed(BaseException):
    """Stands for a kill after an epoch's end."""


DROPPING = SMALL.replace("args: {width: 4}", "args: {width: 4, dropout: 0.3}")
AVERAGING = ["averages.ema.kind=ema", "averages.late={kind: lawa, start: 25%}", "train.grad_accum_steps=2"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    (folder / "small.yaml").write_text(DROPPING)
    run_swa("train", folder / "small.yaml", "-q", "-o", folder / "runs", *AVERAGING)
    return folder / "runs"


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_resume_ends_bit_identical(
    swa, recipe: Path, tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    """Stopped before and inside the averaging phase and resumed, against the uninterrupted run, bit for bit."""
    recipe.write_text(DROPPING)
    whole = json.loads((copy_runs(uninterrupted, tmp_path / "runs") / "result.json").read_text())
    save = state.save_resume_point

    def save_then_stop(run: Any, folder: Any) -> None:
        save(run, folder)
        if len(run.history) == stop_after:
            raise Killed

    monkeypatch.setattr(state, "save_resume_point", save_then_stop)
    with pytest.raises(Killed):
        swa("train", recipe, *AVERAGING)
    monkeypatch.setattr(state, "save_resume_point", save)
    run = tmp_path / "runs/small-002"
    # A refresh of the unfinished file's averages must not leak into the rest of the run.
    assert swa("bn-update", run / "checkpoints/last.pt", "-q").code == 0
    resumed = swa("train", "--resume", run, "--json")
    assert resumed.code == 0, resumed.err
    for name in ("last", "swa", "ema", "late"):
        first, second = (load(tmp_path / f"runs/small-{n}/checkpoints/{name}.pt") for n in ("001", "002"))
        assert same(first.get("model", first.get("state_dict")), second.get("model", second.get("state_dict"))), name
        if name == "last":
            for key, average in first["averages"].items():
                assert same(average["state"], second["averages"][key]["state"])
                assert average["steps"] == second["averages"][key]["steps"]
    assert resumed.json["weights"] == whole["weights"]
    tables = [(tmp_path / f"runs/small-{n}/metrics.csv").read_text().splitlines() for n in ("001", "002")]
    assert [line.rpartition(",")[0] for line in tables[0]] == [line.rpartition(",")[0] for line in tables[1]]


@pytest.mark.usefixtures("finished")
def test_a_finished_run_says_so(swa) -> None:
    """Resuming a finished run: exit 2 and the place of its result."""
    ended = swa("train", "--resume", "runs/latest")
    assert ended.code == 2
    assert "finished" in ended.err


@pytest.mark.usefixtures("finished")
def test_resume_refuses_what_would_change_the_result(swa) -> None:
    """An override of the optimizer on resume: exit 2, nothing run."""
    ended = swa("train", "--resume", "runs/latest", "optimizer.lr=3")
    assert ended.code == 2
    assert "optimizer.lr" in ended.err


def test_folders_are_never_overwritten(swa, recipe: Path, tmp_path: Path) -> None:
    """Two runs of a recipe and a foreign folder of the next name: three folders, the old bytes untouched."""
    swa("train", recipe, "-q", "train.epochs=1", "swa.start=0%")
    before = (tmp_path / "runs/small-001/result.json").read_bytes()
    (tmp_path / "runs/small-007").mkdir()
    swa("train", recipe, "-q", "train.epochs=1", "swa.start=0%")
    assert (tmp_path / "runs/latest").resolve().name == "small-008"
    assert (tmp_path / "runs/small-001/result.json").read_bytes() == before


def test_written_recipe_re_runs_verbatim(swa, recipe: Path, tmp_path: Path) -> None:
    """The run of runs/.../recipe.yaml against the first run: equal weights."""
    swa("train", recipe, "-q", "optimizer.lr=0.05", "averages.ema={kind: ema, decay: 0.9}")
    shutil.copy(tmp_path / "runs/latest/recipe.yaml", tmp_path / "again.yaml")
    assert swa("train", "again.yaml", "-q").code == 0
    first, second = (load(tmp_path / f"runs/small-{n}/checkpoints/ema.pt") for n in ("001", "002"))
    assert same(first["state_dict"], second["state_dict"])


def test_dry_run_writes_nothing(swa, recipe: Path, tmp_path: Path) -> None:
    """The folder after --dry-run against before; the plan was printed and a step was done."""
    before = sorted(tmp_path.rglob("*"))
    ended = swa("train", recipe, "--dry-run")
    assert ended.code == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert "4 epochs" in ended.err
    assert "loss" in ended.err


@pytest.mark.parametrize("words", [[], ["swa=null"]], ids=str)
def test_dry_run_that_diverges_says_so(swa, recipe: Path, tmp_path: Path, words: list[str]) -> None:
    """A rate after which no weight is finite, with and without averages: exit 2, the cure, and no file."""
    ended = swa("train", recipe, "--dry-run", "optimizer.lr=1e300", *words)
    assert ended.code == 2
    assert "not finite" in ended.err
    assert "optimizer.lr" in ended.err
    assert "mistake of swa" not in ended.err
    assert sorted(tmp_path.iterdir()) == [recipe]


def test_nan_loss_fails_and_names_the_last_good_state(swa, recipe: Path, tmp_path: Path) -> None:
    """A rate that explodes in epoch 3: exit 1, the epoch and a file that still scores; no traceback."""
    cycle = "step_size_up: 1ep, step_size_down: 50step, warmup: 2ep"
    rates = f"schedule={{name: cyclic, base_lr: 0.01, max_lr: 1.0e+30, {cycle}}}"
    ended = swa("train", recipe, rates, "optimizer.lr=0.01", "train.epochs=4")
    assert ended.code == 1
    assert "epoch 3" in ended.err
    assert "checkpoints/last.pt" in ended.err
    assert "Traceback" not in ended.err
    last = tmp_path / "runs/latest/checkpoints/last.pt"
    assert load(last)["epoch"] == 2
    assert swa("eval", last, "--weights", "last", "--json").json["weights"]["last"]["nll"] < 3


def test_weights_that_diverge_in_the_last_step_fail(swa, recipe: Path, tmp_path: Path) -> None:
    """A last step into infinity, whose loss nobody sees any more: exit 1, no checkpoint of it."""
    words = ["train.epochs=1", "train.batch_size=1024", "optimizer.lr=1e38", "schedule={name: constant, warmup: 0ep}"]
    recipe.write_text("".join(line for line in recipe.read_text().splitlines(True) if not line.startswith("swa")))
    ended = swa("train", recipe, *words, "optimizer.weight_decay=1e4")
    assert ended.code == 1
    assert "not finite" in ended.err
    assert not (tmp_path / "runs/latest/checkpoints/last.pt").exists()


@pytest.mark.slow
def test_shipped_weights_load_strictly_into_the_plain_model(swa, recipe: Path, tmp_path: Path) -> None:
    """swa.pt of a torchvision:resnet18 recipe into torchvision's own network with strict=True."""
    import torchvision

    recipe.write_text(recipe.read_text().replace("{name: convnet, args: {width: 4}}", "{name: 'torchvision:resnet18'}"))
    words = ["train.epochs=1", "swa.start=0%", "swa.every=1step", "dataset.args={test: 1600}", "train.batch_size=64"]
    ended = swa("train", recipe, "-q", *words)
    assert ended.code == 0, ended.err
    model = torchvision.models.resnet18(num_classes=10)
    model.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    model.load_state_dict(load(tmp_path / "runs/latest/checkpoints/swa.pt")["state_dict"], strict=True)


def test_no_gradients_that_torch_leaves_undefined(swa, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """resnet18 on 8 x 8 pixels, whose last stages see 1 x 1: auto is fp32 where bf16 is native, and bf16 is refused."""
    monkeypatch.setattr(hardware, "_cpu_flags", lambda: frozenset({"avx512_bf16"}))
    monkeypatch.setattr(hardware, "speed_of_bf16", lambda: 2.0)
    recipe.write_text(recipe.read_text().replace("{name: convnet, args: {width: 4}}", "{name: 'torchvision:resnet18'}"))
    ended = swa("train", recipe, "--dry-run", "train.batch_size=8")
    assert ended.code == 0, ended.err
    said = " ".join(ended.err.split())
    assert "fp32 (torch has no bf16 gradient of layer3.0.conv1 for images so small)" in said
    ended = swa("train", recipe, "--dry-run", "train.batch_size=8", "train.precision=bf16")
    assert ended.code == 2
    assert "layer3.0.conv1" in ended.err
    few = ("train", recipe, "--dry-run", "train.batch_size=8")
    sizes = {
        "evaluated": ["dataset.image_size=8", "eval.image_size=64"],
        "grown": ["dataset.image_size={0ep: 8, 50%: 64}"],
    }
    for words in sizes.values():  # what trains decides, whatever is evaluated
        assert "no bf16 gradient of layer3.0.conv1" in " ".join(swa(*few, *words).err.split())
    assert "no bf16 gradient" not in swa(*few, "dataset.image_size=64", "eval.image_size=8").err


def test_gradients_of_accumulated_batches_make_one_step(swa, recipe: Path, tmp_path: Path) -> None:
    """Two batches of 32 accumulated against one of 64: the same weights to rounding, without BatchNorm."""
    module = tmp_path / "plain_net.py"
    module.write_text(
        "from torch import nn\n"
        "def net(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, num_classes))\n"
    )
    recipe.write_text(recipe.read_text().replace("{name: convnet, args: {width: 4}}", "{name: 'plain_net:net'}"))
    assert swa("train", recipe, "-q", "train.precision=fp32").code == 0
    words = ["train.batch_size=32", "train.grad_accum_steps=2", "train.precision=fp32"]
    assert swa("train", recipe, "-q", *words).code == 0
    first, second = (load(tmp_path / f"runs/small-{n}/checkpoints/last.pt")["model"] for n in ("001", "002"))
    for key in first:
        assert torch.allclose(first[key], second[key], atol=1e-5), key


def test_clipping_bounds_the_gradient(swa, recipe: Path, tmp_path: Path) -> None:
    """The change of one plain SGD step against lr x clip_norm."""
    words = [
        "train.epochs=1",
        "train.batch_size=1024",
        "dataset.augment={}",
        "optimizer.lr=0.1",
        "optimizer.momentum=0",
        "optimizer.weight_decay=0",
        "schedule={name: constant, warmup: 0ep}",
        "swa={start: 0%, every: 1step}",
        "train.clip_norm=0.01",
    ]
    assert swa("train", recipe, "-q", *words).code == 0
    last = load(tmp_path / "runs/latest/checkpoints/last.pt")
    assert last["step"] == 1
    seed_globals(0, "initial weights")
    initial = build_model.build("convnet", num_classes=10, in_channels=1, args={"width": 4})
    moved = [last["model"][key] - value.detach() for key, value in initial.named_parameters()]
    norm = torch.linalg.vector_norm(torch.cat([value.flatten() for value in moved]))
    assert float(norm) == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_a_network_sets_its_first_weights_by_the_training_images(swa, tmp_path: Path) -> None:
    """The frozen first layer of a speednet after a run: mean squares of patches of the data, 1."""
    generator = torch.Generator().manual_seed(0)
    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for index in range(40):
            pixels = torch.randint(256, (12, 12, 3), generator=generator, dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{index}.png")
    (tmp_path / "white.yaml").write_text(
        "{name: white, model: {name: speednet, args: {width: 4}}, train: {epochs: 1, batch_size: 16, threads: 1},"
        " dataset: {name: image_folder, root: images, val: 16}, optimizer: {lr: 0.01}}"
    )
    assert swa("train", "white.yaml", "-q").code == 0
    content = load(tmp_path / "runs/white-001/checkpoints/last.pt")
    weight, mean, std = content["model"]["whiten.weight"], content["input"]["mean"], content["input"]["std"]
    files = sorted((tmp_path / "images").rglob("*.png"))
    images = torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in files]) / 255
    images = (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    # 64 of the 80 are the training images.
    answers = torch.nn.functional.conv2d(images, weight).transpose(0, 1).flatten(1)
    torch.testing.assert_close(answers.square().mean(1), torch.ones(24), rtol=0, atol=0.15)
