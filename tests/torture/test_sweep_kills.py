"""A sweep killed with SIGKILL and continued, and one in two processes, against the undisturbed sweep."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from equal_runs import assert_equal_runs
from processes import said_in, start

pytestmark = pytest.mark.torture
RECIPE = """\
name: killed
model: {name: convnet, args: {width: 4}}
dataset: {name: digits, val: 50%}
optimizer: {lr: 0.1}
swa: {start: 50%, every: 1step}
train: {epochs: 2, batch_size: 128, threads: 1, precision: fp32}
output: {save_every: 1step}
"""
GRID = ["swa.lr=0.05,0.1,0.5", "swa.start=0ep,50%,75%"]
DRAWN = ["optimizer.lr=log(1e-3,1)", "swa=null,{start: 50%}", "--trials", "14"]  # TPE draws 10 at random first
RATES = ["optimizer.lr=log(1e-2,1)", "swa.start=30%..80%", "--trials", "12"]
PRUNED = [*RATES, "train.epochs=4", "--pruner", "asha", "--metric", "val_loss"]
NUM_KILLS = 5


def _trials(folder: Path) -> list[dict[str, Any]]:
    result = json.loads((folder / "runs/killed-sweep-001/result.json").read_text())
    return [{key: trial.get(key) for key in ("number", "state", "params", "value")} for trial in result["trials"]]


@pytest.mark.parametrize("words", [GRID, DRAWN, PRUNED], ids=["grid", "tpe", "asha"])
def test_a_sweep_killed_five_times(tmp_path: Path, words: list[str]) -> None:
    """Five kills at random file operations: the same trials, parameters and values, and the same bits; prints the seed.

    A kill counts if the process died of it, so each is inside the sweep.
    """
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in (undisturbed, killed):
        folder.mkdir()
        (folder / "killed.yaml").write_text(RECIPE)
    command = ["sweep", "killed.yaml", *words]
    process = start(undisturbed, command, counted=undisturbed / "events.txt")
    process.join()
    assert process.exitcode == 0, said_in(undisturbed)
    num_events = int((undisturbed / "events.txt").read_text())
    seed = random.SystemRandom().randrange(10**6)
    generator = random.Random(seed)
    for _ in range(NUM_KILLS):
        process = start(killed, command, kill_at=generator.randint(num_events // 50, num_events // (NUM_KILLS + 1)))
        process.join()
        assert process.exitcode == -signal.SIGKILL, said_in(killed)
    process = start(killed, command)
    process.join()
    assert process.exitcode == 0, said_in(killed)
    assert _trials(killed) == _trials(undisturbed)
    assert [path.name for path in (killed / "runs").glob("killed-sweep-*")] == ["killed-sweep-001"]
    for trial in _trials(undisturbed):
        if trial["state"] != "complete":
            assert (words, trial["state"]) == (PRUNED, "pruned")
            continue
        name = f"runs/killed-sweep-001/trial-{trial['number']:03d}"
        assert_equal_runs(undisturbed / name, killed / name)
    print(f"{words[0]}: {NUM_KILLS} kills, {len(_trials(killed))} trials, seed {seed}: 0 differences")


def test_two_processes_share_a_sweep(tmp_path: Path) -> None:
    """`--processes 2`: each trial is run once, by one of two processes, and all are finished."""
    (tmp_path / "two").mkdir()
    (tmp_path / "two/killed.yaml").write_text(RECIPE)
    process = start(tmp_path / "two", ["sweep", "killed.yaml", *RATES, "--processes", "2", "--sampler", "random"])
    process.join()
    assert process.exitcode == 0, said_in(tmp_path / "two")
    assert [trial["number"] for trial in _trials(tmp_path / "two")] == list(range(12))
    journal = (tmp_path / "two/runs/killed-sweep-001/journal.log").read_text()
    # The process that launches them writes to the journal, too.
    finished = [entry for entry in map(json.loads, journal.splitlines()) if entry["op_code"] == 6]
    workers = [entry["worker_id"].split("-")[0] for entry in finished]
    assert len(workers) == 12
    assert len(set(workers)) == 2
