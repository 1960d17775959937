"""A recipe with several seeds: the same runs as one by one, stopped and gone on with, extended, changed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from conftest import OnStep, run_swa
from processes import exit_codes, said_in, start
from swa_cli.analysis.run_output import RunOutput
from swa_cli.engine.events import PlanEvent, StepEvent

# 6 steps an epoch, 12 in all: averages after 6, 9 and 12.
RECIPE = """\
name: few
seed: 7
model: {name: convnet, args: {width: 4, dropout: 0.3}}
dataset: {name: digits, val: 0, augment: {crop: 1}}
optimizer: {lr: 0.1}
swa: {start: 50%, every: 0.5ep, eval_every: 1ep}
train: {epochs: 2, batch_size: 256, threads: 1, precision: fp32}
"""


@pytest.fixture
def few(tmp_path: Path) -> Path:
    path = tmp_path / "few.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repeat of seeds 0 to 2 that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "few.yaml").write_text(RECIPE)
    run_swa("repeat", folder / "few.yaml", "--seeds", "0-2", "-q", "-o", folder)
    return folder / "few-repeat-001"


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> Callable[[int], Path]:
    """Put the repeat folder of the first so many seeds into `runs`, finished."""

    def make(num_seeds: int) -> Path:
        folder = tmp_path / "runs/few-repeat-001"
        shutil.copytree(whole, folder)
        for seed in range(num_seeds, 3):
            shutil.rmtree(folder / f"seed-{seed}")
        (folder / "result.json").unlink()
        return folder

    return make


@pytest.fixture
def signal_in(on_step: OnStep) -> Callable[..., None]:
    """Let this process get a signal once, after the update that makes a step of a seed."""

    def arm(seed: int, step: int, number: int = signal.SIGINT) -> None:
        def hear(run: PlanEvent, event: StepEvent) -> None:
            if (run.recipe["seed"], event.step) == (seed, step):
                on_step(lambda *_: None)
                os.kill(os.getpid(), number)

        on_step(hear)

    return arm


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the folders in which training went on or began."""
    names: list[str] = []
    plan = RunOutput.plan

    def note(output: RunOutput, event: PlanEvent) -> None:
        names.append(event.folder.name)
        plan(output, event)

    monkeypatch.setattr(RunOutput, "plan", note)
    return names


def scores(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())["weights"]


def assert_equal_runs(first: Path, second: Path) -> None:
    """Raw weights, averages, momentum and scores of two finished runs, bit for bit."""
    for name in ("last.pt", "swa.pt"):
        one, two = (torch.load(run / "checkpoints" / name, weights_only=True) for run in (first, second))
        for key in ("model", "state_dict"):
            assert one.get(key, {}).keys() == two.get(key, {}).keys()
            for tensor, value in one.get(key, {}).items():
                assert torch.equal(value, two[key][tensor]), f"{name}: {tensor}"
        for index, state in one.get("optimizer", {}).get("state", {}).items():
            assert torch.equal(state["momentum_buffer"], two["optimizer"]["state"][index]["momentum_buffer"])
    assert scores(first) == scores(second)


def recipe_of(folder: Path) -> list[str]:
    return (folder / "recipe.yaml").read_text().splitlines()


def test_seeds_are_the_runs_of_train(swa, few: Path, tmp_path: Path) -> None:
    """The files of a repeat; a seed against `swa train seed=2`: equal weights, a recipe with another seed alone."""
    ended = swa("repeat", few, "--seeds", "0,2", "--json")
    assert ended.code == 0, ended.err
    repeat = tmp_path / "runs/few-repeat-001"
    assert sorted(entry.name for entry in repeat.iterdir()) == [
        *(".locks", "log.txt", "recipe.yaml", "repeat.json", "result.json", "seed-0", "seed-2")
    ]
    assert json.loads((repeat / "repeat.json").read_text()) == {"seeds": [0, 2]}
    assert (tmp_path / "runs/latest").resolve() == repeat / "seed-2"
    assert "seed 2 (2 of 2)" in ended.err
    for seed in (0, 2):
        given, own = recipe_of(repeat), recipe_of(repeat / f"seed-{seed}")
        assert [line for line in given if line not in own] == ["seed: 7"]
        assert [line for line in own if line not in given] == [f"seed: {seed}"]
        assert ended.json["runs"][str(seed)] == json.loads((repeat / f"seed-{seed}/result.json").read_text())
    assert swa("train", few, "-q", "seed=2").code == 0
    assert_equal_runs(repeat / "seed-2", tmp_path / "runs/few-001")


def test_numbers_against_the_seeds_results(swa, few: Path, finished: Callable[[int], Path]) -> None:
    """JSON and table against the seeds' result.json, `statistics` and scipy's interval of a mean."""
    repeat = finished(3)
    ended = swa("repeat", few, "--seeds", "0-2", "--json", "-q")
    assert ended.err == ""
    answer = ended.json
    assert answer == json.loads((repeat / "result.json").read_text())
    assert (answer["command"], answer["run"], answer["seeds"]) == ("repeat", str(repeat), [0, 1, 2])
    assert (answer["split"], answer["samples"]) == ("test", 360)
    each = [scores(repeat / f"seed-{seed}") for seed in range(3)]
    for name, key in (("last", "accuracy"), ("swa", "nll"), ("swa", "ece"), ("last", "top5"), ("swa", "brier")):
        values = [seed[name][key] for seed in each]
        found = answer["weights"][name][key]
        assert found["values"] == values
        assert found["mean"] == pytest.approx(statistics.mean(values))
        assert found["sd"] == pytest.approx(statistics.stdev(values))
    for key in ("accuracy", "nll"):
        values = [seed["swa"][f"{key}_diff"] for seed in each]
        error = statistics.stdev(values) / 3**0.5
        low, high = stats.t.interval(0.95, df=2, loc=statistics.mean(values), scale=error)
        found = answer["weights"]["swa"][f"{key}_diff"]
        assert found["values"] == pytest.approx(values)
        assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert answer["weights"]["last"]["accuracy_diff"] is None
    table = swa("repeat", few, "--seeds", "0-2", "-q").out
    mean, low, high = (100 * answer["weights"]["swa"]["accuracy_diff"][key] for key in ("mean", "low", "high"))
    assert f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]".replace("-", "−") in table
    assert max(map(len, table.splitlines())) <= 80


def test_stopped_in_the_second_seed_goes_on_to_the_same_end(
    swa, few: Path, tmp_path: Path, whole: Path, signal_in: Callable[..., None], begun: list[str]
) -> None:
    """Ctrl-C after step 8 of 12 of seed 1: 130, the same command again, against a repeat without a stop."""
    signal_in(1, 8)
    ended = swa("repeat", few, "--seeds", "0-2", "-q")
    assert ended.code == 130
    assert ended.err.count("swa averages only 3 weights") == 1
    assert "seed 1 (2 of 3)" in ended.err
    assert "swa train --resume" not in ended.err
    repeat = tmp_path / "runs/few-repeat-001"
    assert not (repeat / "result.json").exists()
    assert torch.load(repeat / "seed-1/checkpoints/last.pt", weights_only=True)["step"] == 8
    begun.clear()
    ended = swa("repeat", few, "--seeds", "0-2", "--json")
    assert ended.code == 0, ended.err
    assert begun == ["seed-1", "seed-2"]
    assert "finished: 0; to continue: 1; to run: 2" in ended.err
    for seed in range(3):
        assert_equal_runs(repeat / f"seed-{seed}", whole / f"seed-{seed}")
    assert ended.json["weights"] == scores(whole)
    assert not (tmp_path / "runs/few-repeat-002").exists()


def test_terminated_is_told_by_the_exit_code(
    swa, few: Path, finished: Callable[[int], Path], signal_in: Callable[..., None]
) -> None:
    """SIGTERM in the last seed: 143, and what to do."""
    finished(2)
    signal_in(2, 3, signal.SIGTERM)
    ended = swa("repeat", few, "--seeds", "0-2", "-q")
    assert ended.code == 143
    assert "seed 2 (3 of 3)" in ended.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_at_the_end_of_a_seed_stops_the_repeat(
    swa, few: Path, signal_at_end: Callable[..., None], begun: list[str], number: int, code: int
) -> None:
    """A signal when the first seed is complete: its exit code, and no further seed; the same command does the rest."""
    words = ("repeat", few, "--seeds", "0-1", "-q", "train.epochs=1")
    signal_at_end("seed-0", number)
    ended = swa(*words)
    assert ended.code == code
    assert "run the same command again" in ended.err
    assert begun == ["seed-0"]
    assert swa(*words).code == 0
    assert begun == ["seed-0", "seed-1"]


def test_more_seeds_run_only_what_is_missing(swa, few: Path, finished: Callable[[int], Path], begun: list[str]) -> None:
    """0-2 where 0-1 are finished, then 1-2: one more run, none more, and reports of just what was asked for."""
    folder = finished(2)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("seed-*/**/*")}
    ended = swa("repeat", few, "--seeds", "0-2", "--json")
    assert begun == ["seed-2"]
    assert ended.json["seeds"] == [0, 1, 2]
    assert ended.json["weights"]["swa"]["n"] == 3
    assert "few-repeat-001" in ended.err
    ended = swa("repeat", few, "--seeds", "2,1", "--json")
    assert begun == ["seed-2"]
    assert ended.json["seeds"] == [1, 2]
    assert ended.json["runs"].keys() == {"1", "2"}
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_changed_recipe_gets_a_new_folder(
    swa, few: Path, tmp_path: Path, finished: Callable[[int], Path], begun: list[str]
) -> None:
    """Another rate: a new folder with the reason. The first recipe again, with keys that do not matter: the old one."""
    finished(2)
    ended = swa("repeat", few, "--seeds", "0-1", "optimizer.lr=0.2")
    said = " ".join(ended.err.split())
    assert "few-repeat-001 has another recipe (optimizer.lr is 0.1 there and 0.2 here)" in said
    assert (tmp_path / "runs/few-repeat-002/seed-1/result.json").is_file()
    few.write_text(RECIPE.replace("seed: 7", "seed: 8"))
    begun.clear()
    ended = swa("repeat", few, "--seeds", "0-1", "output.save_every=2ep", "dataset.root=elsewhere", "--json")
    assert ended.json["run"].endswith("few-repeat-001")
    assert begun == []
    assert "elsewhere holds the same images is not compared" in " ".join(ended.err.split())


def test_keys_that_may_differ_reach_a_seed_that_goes_on(
    swa, few: Path, tmp_path: Path, signal_in: Callable[..., None]
) -> None:
    """A stopped seed with another dataset.root and threads left open: the new root, the threads it was begun with."""
    few.write_text(RECIPE.replace("threads: 1, ", ""))
    signal_in(1, 3)
    assert swa("repeat", few, "--seeds", "0-1", "-q", "train.threads=1").code == 130
    assert swa("repeat", few, "--seeds", "0-1", "-q", "dataset.root=else where").code == 0
    lines = recipe_of(tmp_path / "runs/few-repeat-001/seed-1")
    assert "  root: else where" in lines
    assert "  threads: 1" in lines


def test_seed_that_fails_is_named_and_the_finished_ones_are_kept(
    swa, few: Path, finished: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that is not finite in seed 1: exit 1 with the seed, and seed 0 as it was."""
    repeat = finished(1)
    loss = F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", lambda *words, **options: loss(*words, **options) * float("nan"))
    ended = swa("repeat", few, "--seeds", "0-2", "-q")
    assert ended.code == 1
    assert ended.out == ""
    assert "error: seed 1 (2 of 3): epoch 1, step 1: the loss is nan" in ended.err
    assert "seed 0: finished and kept" in ended.err
    assert (repeat / "seed-0/result.json").is_file()
    assert not (repeat / "seed-1/result.json").exists()
    assert not (repeat / "seed-2").exists()


def test_seed_that_was_killed_before_it_began_is_run(
    swa, few: Path, whole: Path, finished: Callable[[int], Path]
) -> None:
    """What a process leaves that was killed just after it made a seed's folder: the seed is run in it."""
    repeat = finished(2)
    (repeat / "seed-2/checkpoints").mkdir(parents=True)
    (repeat / "seed-2/run.json").write_text("{}")  # recipe.yaml comes after it
    assert swa("repeat", few, "--seeds", "0-2", "-q").code == 0
    assert_equal_runs(repeat / "seed-2", whole / "seed-2")


def test_seed_is_a_run_like_any_other(swa, few: Path, tmp_path: Path, signal_in: Callable[..., None]) -> None:
    """A seed's checkpoint is scored, its recipe runs anew in output.root, and `train --resume` ends a stopped one."""
    signal_in(1, 8)
    assert swa("repeat", few, "--seeds", "0-1", "-q").code == 130
    repeat = tmp_path / "runs/few-repeat-001"
    evaluated = swa("eval", repeat / "seed-0/checkpoints/swa.pt", "--json").json
    assert evaluated["weights"]["swa"]["nll"] == scores(repeat / "seed-0")["swa"]["nll"]
    assert swa("train", "--resume", "runs/latest", "-q").code == 0
    assert swa("train", repeat / "seed-1/recipe.yaml", "-q").code == 0
    assert_equal_runs(repeat / "seed-1", tmp_path / "runs/few-001")
    ended = swa("repeat", few, "--seeds", "0-1")
    assert "finished: 0, 1" in ended.err
    assert ended.code == 0


def test_dry_run_writes_nothing(swa, few: Path, tmp_path: Path, signal_in: Callable[..., None]) -> None:
    """Before anything was run, and after a stop: the plan, which seeds are in which state, and no file changed."""
    ended = swa("repeat", few, "--seeds", "0-2", "-n", "--json")
    assert ended.code == 0
    assert ended.json["run"] is None
    assert ended.json["new"] == [0, 1, 2]
    assert ended.json["plan"]["epochs"] == 2
    assert list(tmp_path.iterdir()) == [few]
    signal_in(1, 3)
    assert swa("repeat", few, "--seeds", "0-1", "-q").code == 130
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    ended = swa("repeat", few, "--seeds", "0-2", "--dry-run", "--json")
    assert [ended.json[state] for state in ("finished", "stopped", "new")] == [[0], [1], [2]]
    assert "averaging" in ended.err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_weights_that_a_seed_lacks_are_said(swa, few: Path, finished: Callable[[int], Path]) -> None:
    """A seed without an average, in bf16: the average over the other seeds with its n, and a warning of each."""
    path = finished(3) / "seed-1/result.json"
    values = json.loads(path.read_text())
    del values["weights"]["swa"]
    values["precision"] = "bf16"
    path.write_text(json.dumps(values))
    ended = swa("repeat", few, "--seeds", "0-2", "--json", "-q")
    assert ended.code == 0
    assert "swa is missing in seed 1" in ended.err
    assert "precision fp32 and bf16" in ended.err
    assert ended.json["weights"]["swa"]["n"] == 2
    assert ended.json["weights"]["swa"]["seeds"] == [0, 2]
    assert ended.json["weights"]["last"]["n"] == 3


def test_a_seed_of_another_process_is_waited_for(
    swa, few: Path, whole: Path, finished: Callable[[int], Path], begun: list[str], on_step: OnStep
) -> None:
    """Another process holds seed 1 and is killed while seed 2 is trained here: then seed 1 is run, to the same end."""
    repeat = finished(1)
    log = (repeat / "log.txt").read_text()
    program = (
        "import filelock, sys; files = [open(path, 'a') for path in sys.argv[1:]];"
        " [filelock.lock_descriptor(file.fileno()) for file in files]; print(flush=True); input()"
    )
    words = [sys.executable, "-c", program, str(repeat / ".locks/seed-1"), str(repeat / "log.txt")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        on_step(lambda *_: process.kill())
        ended = swa("repeat", few, "--seeds", "0-2", "--json")
    assert ended.code == 0, ended.err
    assert begun == ["seed-2", "seed-1"]
    assert "other processes work on seed 1 (2 of 3)" in " ".join(ended.err.split())
    assert (repeat / "log.txt").read_text() == log, "the log is that of the process which has locked it"
    assert scores(repeat) == scores(whole)
    for seed in (1, 2):
        assert_equal_runs(repeat / f"seed-{seed}", whole / f"seed-{seed}")


def test_two_processes_share_four_seeds(few: Path, finished: Callable[[int], Path], tmp_path: Path) -> None:
    """The same command twice at once with one output.root: one folder, each seed run once, one process's result."""
    alone = finished(3)
    run_swa("repeat", few, "--seeds", "0-3", "-q", "-o", tmp_path / "runs")
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        shutil.copy(few, folder)
    words = ["repeat", "few.yaml", "--seeds", "0-3", "--json", "-q", "-o", str(tmp_path / "shared")]
    processes = [start(folder, words) for folder in folders]
    assert exit_codes(*processes) == [0, 0], [said_in(folder) for folder in folders]
    (repeat,) = (tmp_path / "shared").glob("few-repeat-*")
    for seed in range(4):
        assert_equal_runs(repeat / f"seed-{seed}", alone / f"seed-{seed}")
        assert (repeat / f"seed-{seed}/log.txt").read_text().count("train loss") == 1  # the head of its table
    assert scores(repeat) == scores(alone)
    answer = json.loads((repeat / "result.json").read_text())
    assert [json.loads(said_in(folder).splitlines()[-1]) for folder in folders] == [answer, answer]


def test_the_result_is_written_once(swa, few: Path, finished: Callable[[int], Path]) -> None:
    """result.json after a second process has come to the same end: the same file; with a seed less, another one."""
    result = finished(3) / "result.json"
    files = []
    for seeds in ("0-2", "0-2", "0-1"):
        assert swa("repeat", few, "--seeds", seeds, "-q").code == 0
        files.append((result.stat().st_ino, result.stat().st_mtime_ns))
    assert files[0] == files[1] != files[2]


def test_unreadable_recipe_of_an_older_repeat_is_said(swa, few: Path, finished: Callable[[int], Path]) -> None:
    """A repeat whose recipe.yaml is no recipe any more: a warning, and a new folder."""
    (finished(2) / "recipe.yaml").write_text("model: 3\n")
    ended = swa("repeat", few, "--seeds", "0-1", "-q", "--json")
    assert ended.code == 0
    assert "few-repeat-001 is not continued" in ended.err
    assert ended.json["run"].endswith("few-repeat-002")
