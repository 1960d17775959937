"""A sweep killed with SIGKILL, and one in two processes, against the undisturbed sweep."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from equal_runs import assert_equal_runs

pytestmark = pytest.mark.torture
RECIPE = """\
name: few
model: {name: convnet, args: {width: 4, dropout: 0.3}}
dataset: {name: digits, val: 200}
optimizer: {lr: 0.1}
swa: {start: 50%, every: 0.5ep, eval_every: 1ep}
train: {epochs: 6, batch_size: 64, threads: 1, precision: fp32}
output: {save_every: 3step}
"""
WORDS = ["few.yaml", "optimizer.lr=log(1e-2,1)", "swa.start=30%..80%", "--pruner", "asha", "--metric", "val_loss"]
TRIALS = 12  # beyond the ten with which TPE starts


def start(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "swa_cli", "sweep", *WORDS, "--trials", str(TRIALS), "-q", *more]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)


def undisturbed(folder: Path, *more: str) -> dict[str, Any]:
    folder.mkdir()
    (folder / "few.yaml").write_text(RECIPE)
    assert start(folder, *more).wait() == 0
    return result(folder)


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "runs/few-sweep-001/result.json").read_text())


def test_five_kills_leave_the_trials_of_an_undisturbed_sweep(tmp_path: Path) -> None:
    """SIGKILL at five random instants of a serial sweep with TPE and ASHA: trials, values and weights, bit for bit."""
    started = time.monotonic()
    whole = undisturbed(tmp_path / "whole")
    seconds, draw = time.monotonic() - started, random.Random(0)
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / "few.yaml").write_text(RECIPE)
    for _ in range(5):
        process = start(killed)
        try:
            process.wait(timeout=seconds * draw.uniform(0.2, 0.6))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert start(killed).wait() == 0
    again = result(killed)
    for trial, other in zip(again["trials"], whole["trials"], strict=True):
        assert {**trial, "seconds": 0} == {**other, "seconds": 0}
        if trial["state"] == "complete":
            folders = [folder / "runs/few-sweep-001" / trial["run"] for folder in (tmp_path / "whole", killed)]
            assert_equal_runs(*folders)


def test_two_processes_share_a_sweep(tmp_path: Path) -> None:
    """`--processes 2`: each trial is begun once, by one of two processes, and all are finished."""
    found = undisturbed(tmp_path / "two", "--processes", "2", "--sampler", "random")
    assert found["finished"]
    assert [trial["number"] for trial in found["trials"]] == list(range(TRIALS))
    owners = (tmp_path / "two/runs/few-sweep-001/journal.log").read_text()
    workers = {json.loads(line)["worker_id"].split("-")[0] for line in owners.splitlines()}
    assert len(workers) >= 2
