"""`swa eval RUN` and `--ensemble`: one table of a whole run, and the mean of its snapshots' predictions."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from conftest import OnStep, load, run_swa
from swa_cli import cli
from swa_cli.analysis import evaluate
from swa_cli.analysis.passes import Ensemble
from swa_cli.checkpoint.reader import Checkpoint
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.data import sources
from swa_cli.engine.events import PlanEvent, StepEvent
from swa_cli.models import build_model
from swa_cli.report.terminal import Terminal

# 22 steps an epoch, 66 in all; eight cycles of 8.25 steps, which do not divide them.
RECIPE = """\
name: cycles
model: {name: convnet, args: {width: 4}}
dataset: {name: digits, val: 0}
optimizer: {lr: 0.1}
schedule: {name: cosine_restarts, T_0: 12.5%}
swa: {start: 0ep, every: 1cycle}
averages: {ema: {kind: ema, decay: 0.9}}
snapshots: {every: 1cycle}
train: {epochs: 3, batch_size: 64, threads: 1, precision: fp32}
"""
MINIMA = [9, 17, 25, 33, 42, 50, 58, 66]  # ceil(k 66/8)

OTHER_INPUT = {"channels": 1, "size": [8, 8], "mean": [0.5], "std": [0.5], "classes": ["a"], "outputs": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "cycles.yaml").write_text(RECIPE)
    run_swa("train", folder / "cycles.yaml", "-q", "-o", folder)
    return folder / "cycles-001"


@pytest.fixture
def run(swa, trained: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change, and the recipe beside it."""
    (tmp_path / "cycles.yaml").write_text(RECIPE)
    return shutil.copytree(trained, tmp_path / "run")


def snapshots(run: Path) -> list[dict[str, Any]]:
    """Newest first."""
    return [load(path) for path in sorted((run / "snapshots").iterdir(), reverse=True)]


def probabilities(content: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """What weights say of the test digits (360, 10), and their labels, all in float64."""
    test = sources.load("digits", val=0).test
    assert test is not None
    assert test.images is not None
    assert test.labels is not None
    mean, std = (torch.tensor(content["input"][key], dtype=torch.float64) for key in ("mean", "std"))
    images = (test.images.double() / 255 - mean[:, None, None]) / std[:, None, None]
    model = build_model.build("convnet", num_classes=10, in_channels=1, args={"width": 4}).double().eval()
    model.load_state_dict(content["state_dict"])
    with torch.no_grad():
        return model(images).softmax(1), test.labels


def test_snapshots_are_different_and_the_last_is_at_the_minimum(run: Path) -> None:
    """Eight cycles in 66 steps against eight different files, at ceil(k T/M), the last being the end of the run."""
    contents = snapshots(run)[::-1]
    assert [content["step"] for content in contents] == MINIMA
    assert len({content["state_dict"]["classifier.weight"].numpy().tobytes() for content in contents}) == 8
    last = load(run / "checkpoints/last.pt")["model"]
    assert all(torch.equal(last[key], value) for key, value in contents[-1]["state_dict"].items())


def test_cycles_that_end_off_the_minimum_are_refused(swa, run: Path, tmp_path: Path) -> None:
    """Cycles of ceil(66/8) = 9 steps, whose eighth would end at 72: exit 2, it says so, nothing written."""
    ended = swa("train", "cycles.yaml", "schedule.T_0=9step")
    assert ended.code == 2
    assert "does not end at the minimum" in " ".join(ended.err.split())
    assert not (tmp_path / "runs").exists()


def test_ensemble_is_the_mean_of_the_softmax(swa, run: Path) -> None:
    """Accuracy and NLL of the last 1 to 8 snapshots against float64 means of their softmax, computed by hand."""
    ended = swa("eval", run, "--ensemble", "--json")
    assert ended.code == 0, ended.err
    curve = ended.json["ensemble"]
    assert [row["members"] for row in curve] == list(range(1, 9))
    total = torch.zeros(360, 10, dtype=torch.float64)
    for row, content in zip(curve, snapshots(run), strict=True):
        p, labels = probabilities(content)
        total += p
        mean = total / row["members"]
        assert row.keys() == {"members", "accuracy", "nll"}
        assert row["accuracy"] == pytest.approx(float((mean.argmax(1) == labels).double().mean()), abs=1e-12)
        assert row["nll"] == pytest.approx(float(-mean[torch.arange(360), labels].log().mean()), abs=1e-6)
    found = ended.json["weights"]["ensemble"]
    assert (found["accuracy"], found["nll"]) == (curve[-1]["accuracy"], curve[-1]["nll"])
    brier = (mean - F.one_hot(labels, 10)).square().sum(1).mean()
    assert found["brier"] == pytest.approx(float(brier), abs=1e-6)
    assert found["top5"] == pytest.approx(
        float((mean.topk(5).indices == labels[:, None]).any(1).double().mean()), abs=1e-12
    )
    assert (ended.json["reference"], found["reference"]) == ("last_bn", "last_bn")  # there is no validation split
    raw = -probabilities(load(run / "checkpoints/last_bn.pt"))[0][torch.arange(360), labels].log()
    difference = -mean[torch.arange(360), labels].log() - raw
    assert found["nll_diff"] == pytest.approx(float(difference.mean()), abs=2e-6)
    assert found["nll_diff_se"] == pytest.approx(float(difference.std()) / 360**0.5, abs=2e-6)


def test_eval_of_a_run_is_the_table_of_its_training(swa, run: Path) -> None:
    """Each row against result.json, exactly; the ensemble has the keys of an average and `members`."""
    trained = json.loads((run / "result.json").read_text())["weights"]
    assert [row.pop("val") for row in trained.values()] == [None] * 4  # there is no validation split
    plain = swa("eval", run, "--json").json
    assert plain["weights"] == trained
    assert "ensemble" not in plain
    assert plain["run"] == str(run.resolve())
    both = swa("eval", run, "--ensemble", "--json").json["weights"]
    assert list(both) == ["last", "last_bn", "swa", "ema", "ensemble"]
    assert both["ensemble"].keys() == {*both["swa"], "members"}
    assert {key: both["ensemble"][key] for key in ("members", "count", "batchnorm")} == {
        "members": 8, "count": None, "batchnorm": "running",
    }  # fmt: skip
    one = swa("eval", run, "--weights", "swa", "--json").json["weights"]["swa"]
    assert one == {key: value for key, value in trained["swa"].items() if key in one}


def test_the_answer_says_what_an_ensemble_costs(swa, run: Path) -> None:
    """stdout: the row, the cost in forward passes, a line for each number of members; --quiet keeps all of it."""
    ended = swa("eval", run, "--ensemble", "-q")
    said = " ".join(ended.out.split())
    assert "take 8 forward passes per image; every other row takes one" in said
    judged = "ensemble vs last_bn: "
    assert any(f"{judged}{what}" in said for what in ("ensembling", "no clear difference", "mixed"))
    lines = ended.out.splitlines()
    head = next(index for index, line in enumerate(lines) if line.startswith("members"))
    assert [line.split()[0] for line in lines[head + 1 :]] == list("12345678")


def test_a_run_that_goes_on_is_only_read(swa, run: Path, tmp_path: Path, on_step: OnStep) -> None:
    """Scored after step 30 of 66, in the instant of a save: what there is, not a byte changed, the same end."""
    seen = []

    def look(begun: PlanEvent, event: StepEvent) -> None:
        if event.step == 30:
            folder = RunFolder(begun.folder)
            for thread in threading.enumerate():
                if thread.name == "writer":
                    thread.join()  # it is at the snapshot of this step
            before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
            folder.last.rename(folder.previous)  # as in the instant of a save
            voice = Terminal(quiet=True, json=True)
            seen.append(evaluate.evaluate_checkpoint(Path("runs/latest"), [], terminal=voice, with_ensemble=True))
            folder.previous.rename(folder.last)
            assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before

    on_step(look)
    assert swa("train", "cycles.yaml", "-q").code == 0
    assert list(seen[0]["weights"]) == ["last", "last_bn", "ensemble"]
    assert seen[0]["weights"]["ensemble"]["reference"] == "last_bn"
    assert seen[0]["weights"]["ensemble"]["members"] == 3
    result = json.loads((tmp_path / "runs/latest/result.json").read_text())
    assert result["weights"] == json.loads((run / "result.json").read_text())["weights"]


def test_snapshots_before_and_after_more_epochs_are_of_one_run(swa, run: Path) -> None:
    """A run with more epochs: its older snapshots carry the shorter recipe, and are members all the same."""
    (run.parent / "long.yaml").write_text(RECIPE.replace("12.5%", "1ep"))
    assert swa("train", "long.yaml", "-q").code == 0
    assert swa("train", "--resume", "runs/latest", "--extend-to", "4", "-q").code == 0
    ended = swa("eval", "runs/latest", "--ensemble", "--json", "-q")
    assert ended.code == 0, ended.err
    assert ended.json["weights"]["ensemble"]["members"] == 4


Damage = Callable[[Path], object]


def other_run(name: str, words: str) -> Damage:
    """A file of another run takes the place of this one's."""

    def do(run: Path) -> None:
        assert cli.run(["train", "cycles.yaml", "-q", "-o", "others", *words.split()]) == 0
        shutil.copy(Path("others/latest") / name, run / name)

    return do


def edited(name: str, key: str, value: Any) -> Damage:
    def do(run: Path) -> None:
        torch.save({**load(run / name), key: value}, run / name)

    return do


def without(pattern: str) -> Damage:
    def do(run: Path) -> None:
        for path in run.glob(pattern):
            path.unlink()

    return do


SNAPSHOT = "snapshots/step-00000033.pt"


@pytest.mark.parametrize(
    ("damage", "piece"),
    [
        (without("snapshots/step*"), "0 snapshots"),
        (without("snapshots/step-000000[1-6]?.pt"), "1 snapshot,"),
        (other_run(SNAPSHOT, "optimizer.lr=0.2"), "optimizer.lr is 0.2"),
        (other_run(SNAPSHOT, "seed=1"), "seed is 1"),
        (other_run("checkpoints/swa.pt", "model.args.width=5"), "model.args.width is 5"),
        (edited(SNAPSHOT, "input", OTHER_INPUT),
         "its input"),
        (lambda run: shutil.copy(run / SNAPSHOT, run / "snapshots/step-00000034.pt"), "step 33"),
        (lambda run: shutil.copy(run / "checkpoints/swa.pt", run / SNAPSHOT), "snapshots/step-"),
        (lambda run: (run / SNAPSHOT).write_bytes(b"PK"), "snapshots/step-"),
        (lambda run: (run / "checkpoints/swa.pt").write_bytes(b""), "checkpoints/swa.pt:"),
        (lambda run: (run / "checkpoints/last.pt").write_bytes(b""), "checkpoints/last.pt:"),
        (lambda run: shutil.copy(run / "checkpoints/ema.pt", run / "checkpoints/swa.pt"), "checkpoints/swa.pt:"),
        (lambda run: shutil.copy(run / "checkpoints/ema.pt", run / "checkpoints/last.pt"), "checkpoints/last.pt:"),
        (without("checkpoints/*"), "checkpoints/last.pt"),
        (edited(SNAPSHOT, "batchnorm", "stale"), "--allow-stale-bn"),
        (edited(SNAPSHOT, "state_dict", {}), "does not fit the recipe's model"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_one_run_is_refused(swa, run: Path, damage: Damage, piece: str) -> None:
    """Damaged, missing and foreign files in the folder: exit 2, the file and the reason, no answer."""
    damage(run)
    ended = swa("eval", run, "--ensemble")
    assert ended.code == 2
    assert piece in " ".join(ended.err.split())
    assert "hint" in ended.err
    assert ended.out == ""


def test_an_ensemble_of_a_file_names_the_folder(swa, run: Path) -> None:
    """--ensemble of one snapshot: exit 2, and the hint is the folder of its run."""
    ended = swa("eval", run / SNAPSHOT, "--ensemble")
    assert ended.code == 2
    assert str(run) in "".join(ended.err.split("hint")[1].split())


def test_statistics_of_the_members() -> None:
    """`batchnorm` of an ensemble against what its members say: all alike, stale among them, or mixed."""
    for found, expected in (
        ({"running"}, "running"),
        ({"none"}, "none"),
        ({"running", "stale"}, "stale"),
        ({"running", "recomputed"}, "mixed"),
    ):
        members = [Checkpoint(Path("x.pt"), {"batchnorm": word}, "snapshot") for word in sorted(found) * 2]
        assert Ensemble(tuple(members)).batchnorm == expected
