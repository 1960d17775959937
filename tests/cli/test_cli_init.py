"""`train.init`: what a run starts from, that it is recorded, and that it is read once."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from conftest import load, run_swa
from swa_cli.engine import train

FIRST = """\
name: first
model: {name: convnet, args: {width: 4}}
dataset: {name: digits, val: 0}
optimizer: {lr: 0.1}
swa: {start: 1ep, every: 0.5ep, eval_every: 1ep}
snapshots: {every: 1ep}
train: {epochs: 2, batch_size: 128, threads: 1, precision: fp32}
"""
SECOND = """\
name: second
model: {name: convnet, args: {width: 4}}
dataset: {name: digits, val: 0}
optimizer: {lr: 0.05}
schedule: {name: cyclic, begin: max, base_lr: 1e-4, step_size_up: 3step}
snapshots: {every: 1cycle}
train: {init: first/checkpoints/last.pt, epochs: 3, batch_size: 128, threads: 1, precision: fp32}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run to start from."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "first.yaml").write_text(FIRST)
    run_swa("train", folder / "first.yaml", "-q", "-o", folder)
    return folder / "first-001"


@pytest.fixture
def second(swa, trained: Path, tmp_path: Path) -> Path:
    """A recipe of FGE from a copy of it: 11 steps an epoch, 33 in all, cycles of 6."""
    shutil.copytree(trained, tmp_path / "first")
    path = tmp_path / "second.yaml"
    path.write_text(SECOND)
    return path


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The weights of each run before its first step."""
    start, seen = train.start, []

    def look(run: Any, *args: Any, **options: Any) -> Any:
        seen.append({key: value.clone() for key, value in run.model.state_dict().items()})
        return start(run, *args, **options)

    monkeypatch.setattr(train, "start", look)
    return seen


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


LAST, SWA, SNAPSHOT = (
    f"first/{name}.pt" for name in ("checkpoints/last", "checkpoints/swa", "snapshots/step-00000011")
)


def shipped(path: str = SWA) -> dict[str, torch.Tensor]:
    return load(path)["state_dict"]


def safetensors() -> dict[str, torch.Tensor]:
    save_file({key: value.contiguous() for key, value in shipped().items()}, "their.safetensors")
    return shipped()


def theirs(content: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, torch.Tensor]]:
    def make() -> dict[str, torch.Tensor]:
        torch.save(content(), "their.pt")
        return shipped()

    return make


@pytest.mark.parametrize(
    ("words", "name", "expected"),
    [
        ([f"train.init={LAST}"], "last", lambda: load(LAST)["model"]),
        ([f"train.init={SWA}"], "swa", shipped),
        ([f"train.init={SNAPSHOT}"], "snapshot", lambda: shipped(SNAPSHOT)),
        ([f"train.init={LAST}", "train.init_weights=last"], "last", lambda: load(LAST)["model"]),
        (["train.init=their.pt"], "last", theirs(shipped)),
        (["train.init=their.pt"], "last",
         theirs(lambda: {"state_dict": shipped(), "swa_state_dict": shipped(SNAPSHOT)})),
        (["train.init=their.pt", "train.init_weights=swa"], "swa",
         theirs(lambda: {"state_dict": shipped(SNAPSHOT), "swa_state_dict": shipped(), "swa_n": 3})),
        (["train.init=their.pt"], "swa",
         theirs(lambda: {"n_averaged": torch.tensor(2), **{f"module.{key}": v for key, v in shipped().items()}})),
        (["train.init=their.safetensors"], "last", safetensors),
    ],
)  # fmt: skip
def test_a_run_begins_with_the_weights_of_the_file(
    swa, second: Path, begun: list[Any], words: list[str], name: str, expected: Callable[[], dict[str, torch.Tensor]]
) -> None:
    """Weights and statistics before the first step against those of the file, bit for bit; the plan names both."""
    weights = expected()
    ended = swa("train", second, "train.epochs=1", "snapshots={}", *words)
    assert ended.code == 0, ended.err
    assert same(begun[0], weights)
    path = words[0].removeprefix("train.init=")
    assert f"initial weights from {path} ({name})" in " ".join(ended.err.split())


def test_an_average_of_a_resume_point_begins_with_its_mean(swa, second: Path, begun: list[Any]) -> None:
    """init_weights swa of last.pt against the weights of swa.pt; its statistics are stale, which is said."""
    ended = swa("train", second, f"train.init={LAST}", "train.init_weights=swa")
    assert ended.code == 0, ended.err
    weights = {key for key in begun[0] if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert all(torch.equal(begun[0][key], shipped()[key]) for key in weights)
    assert "warning: train.init: swa of first/checkpoints/last.pt has stale BatchNorm" in " ".join(ended.err.split())


def test_the_start_is_recorded(swa, second: Path, tmp_path: Path) -> None:
    """recipe.yaml and run.json against the path and a checksum by hand; last.pt of another run has another."""
    assert swa("train", second, "-q").code == 0
    run = tmp_path / "runs/latest"
    assert "init: first/checkpoints/last.pt" in (run / "recipe.yaml").read_text()
    assert load(run / "checkpoints/last.pt")["recipe"]["train"]["init"] == "first/checkpoints/last.pt"
    digest = hashlib.sha256()
    for name, value in load(LAST)["model"].items():
        digest.update(name.encode() + value.numpy().tobytes())
    assert json.loads((run / "run.json").read_text())["init_sha256"] == digest.hexdigest()
    assert swa("train", second, "-q", f"train.init={SWA}").code == 0
    assert json.loads((run / "run.json").read_text())["init_sha256"] != digest.hexdigest()
    assert "init_sha256" not in json.loads(Path("first/run.json").read_text())


@pytest.mark.parametrize("at", [3, 20])
def test_a_resumed_run_does_not_read_it_again(
    swa, second: Path, tmp_path: Path, signal_at: Callable[..., None], at: int
) -> None:
    """Stopped in the first epoch and later, the file then removed: the run to the end, bit for bit."""
    assert swa("train", second, "-q").code == 0
    signal_at(at, signal.SIGTERM)
    assert swa("train", second, "-q").code == 143
    signal_at(-1)
    shutil.rmtree("first")
    ended = swa("train", "--resume", "runs/latest")
    assert ended.code == 0, ended.err
    assert "initial weights" not in ended.err
    one, two = (tmp_path / f"runs/second-00{number}" for number in (1, 2))
    points = [load(run / "checkpoints/last.pt") for run in (one, two)]
    assert same(points[0]["model"], points[1]["model"])
    names = [path.name for path in sorted((one / "snapshots").iterdir())]
    assert len(names) == 6
    assert all(same(shipped(one / f"snapshots/{name}"), shipped(two / f"snapshots/{name}")) for name in names)
    assert swa("eval", two, "--ensemble").code == 0


def test_a_run_without_a_save_begins_anew_from_the_same_weights_only(swa, second: Path, tmp_path: Path) -> None:
    """Nothing saved: resumed to the same end; other weights in the file, or no file: exit 2, nothing written."""
    assert swa("train", second, "-q").code == 0
    run = tmp_path / "runs/second-001"
    expected = load(run / "checkpoints/last.pt")["model"]
    for path in [run / "result.json", *(run / "checkpoints").iterdir()]:
        path.unlink()
    shutil.copy(LAST, "kept.pt")
    for damage, piece in (
        (lambda: shutil.copy(SWA, LAST), "holds other weights than when the run began"),
        (lambda: Path(LAST).unlink(), "train.init: first/checkpoints/last.pt: no such checkpoint"),
    ):
        damage()
        ended = swa("train", "--resume", run)
        assert ended.code == 2
        assert piece in " ".join(ended.err.split())
        assert list((run / "checkpoints").iterdir()) == []
    shutil.copy("kept.pt", LAST)
    assert swa("train", "--resume", run, "-q").code == 0
    assert same(load(run / "checkpoints/last.pt")["model"], expected)


def test_fge_from_a_trained_network(swa, second: Path, tmp_path: Path) -> None:
    """Cycles of 6 steps from the peak on: weights kept at t = .5 of each, all different, the last at the end."""
    assert swa("train", second, "-q").code == 0
    contents = [load(path) for path in sorted((tmp_path / "runs/latest/snapshots").iterdir())]
    assert [content["step"] for content in contents] == [3, 9, 15, 21, 27, 33]
    assert len({content["state_dict"]["classifier.weight"].numpy().tobytes() for content in contents}) == 6


def test_problems_of_the_start_come_with_the_others(swa, second: Path) -> None:
    """A missing file and a rate that cannot be: both at once, at their keys."""
    second.write_text(second.read_text().replace(LAST, "nowhere.pt").replace("up: 3step", "up: 0step"))
    ended = swa("train", second)
    assert ended.code == 2
    assert "error: train.init: nowhere.pt: no such checkpoint" in ended.err
    assert "error: schedule.step_size_up: 0step is shorter than one step" in ended.err
    assert "2 problems in" in ended.err
