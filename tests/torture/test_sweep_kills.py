"""A sweep and a repeat, killed with SIGKILL and continued, also in two processes, against undisturbed ones."""

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
    """`--processes 2`: each trial, and each seed of the best, is run once, by one of two processes."""
    (tmp_path / "two").mkdir()
    (tmp_path / "two/killed.yaml").write_text(RECIPE)
    words = ["sweep", "killed.yaml", *RATES, "--processes", "2", "--sampler", "random", "--seeds", "0-1", "--top", "2"]
    process = start(tmp_path / "two", words)
    process.join()
    assert process.exitcode == 0, said_in(tmp_path / "two")
    assert [trial["number"] for trial in _trials(tmp_path / "two")] == list(range(12))
    journal = (tmp_path / "two/runs/killed-sweep-001/journal.log").read_text()
    # The process that launches them writes to the journal, too.
    finished = [entry for entry in map(json.loads, journal.splitlines()) if entry["op_code"] == 6]
    workers = [entry["worker_id"].split("-")[0] for entry in finished]
    assert len(workers) == 12
    assert len(set(workers)) == 2
    logs = [path.read_text() for path in (tmp_path / "two").glob("runs/*/seeds/trial-*/seed-*/log.txt")]
    assert [log.count("train loss") for log in logs] == [1] * 4  # the head of the table: no seed was begun twice


def test_a_repeat_that_two_processes_share_and_are_killed_in(tmp_path: Path) -> None:
    """Two processes share eight seeds and are killed at random file operations: the result of one process.

    A killed one is started again while the other goes on; prints the seed.
    """
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    for folder in (alone, shared):
        folder.mkdir()
        (folder / "killed.yaml").write_text(RECIPE)
    words = ["repeat", "killed.yaml", "--seeds", "0-7"]
    process = start(alone, words, counted=alone / "events.txt")
    process.join()
    assert process.exitcode == 0, said_in(alone)
    num_events = int((alone / "events.txt").read_text())
    seed = random.SystemRandom().randrange(10**6)
    generator, num_killed = random.Random(seed), 0

    def begin() -> Any:
        return start(shared, words, kill_at=generator.randint(1, num_events // 8) if num_killed < NUM_KILLS else 0)

    running = [begin(), begin()]
    while running:
        process = running.pop(0)
        process.join(0.1)
        if process.exitcode is None:
            running.append(process)
        elif process.exitcode == -signal.SIGKILL:
            num_killed += 1
            running.append(begin())
        else:
            assert process.exitcode == 0, said_in(shared)
    assert num_killed >= NUM_KILLS
    folders = [folder / "runs/killed-repeat-001" for folder in (shared, alone)]
    for number in range(8):
        assert_equal_runs(*(folder / f"seed-{number}" for folder in folders))
    results = [json.loads((folder / "result.json").read_text())["weights"] for folder in folders]
    assert results[0] == results[1]
    print(f"repeat: {num_killed} kills, seed {seed}: 0 differences")
