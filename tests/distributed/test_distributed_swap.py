"""SWAP in several processes: each worker against a run of its own from the common weights, bit for bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from conftest import Swa
from distributed.test_distributed import train
from equal_runs import assert_equal_runs, content, flat
from processes import exit_codes, said_in, start_ranks

pytestmark = pytest.mark.slow

RECIPE = """\
name: run
model: {name: convnet, args: {width: 4, dropout: 0.2}}
dataset: {name: digits, augment: {crop: 1}}
optimizer: {lr: 0.2}
swap: {workers: 2, start: 50%}
train: {epochs: 4, batch_size: 128, threads: 1, precision: fp32}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "swap.yaml").write_text(RECIPE)
    return tmp_path


@pytest.mark.parametrize(("size", "workers"), [(2, 2), (2, 3), (3, 2)])
def test_workers_and_their_mean(folder: Path, swa: Swa, size: int, workers: int) -> None:
    """Workers of 2 processes with 2 or 3 of them, and of 3 with one to spare; the mean against float64; one voice."""
    said = train(folder, ["train", "swap.yaml", f"swap.workers={workers}", "--json"], size)
    run = folder / "runs/run-001"
    states = []
    for number in range(1, workers + 1):
        words = [f"swap.workers={workers}", f"swap.worker={number}", f"train.init={run}/checkpoints/last.pt"]
        assert swa("train", "swap.yaml", *words, "-o", "alone").code == 0
        one, two = (
            dict(flat(content(path, "last")))
            for path in (run / "workers" / str(number), folder / f"alone/run-{number:03d}")
        )
        assert one.keys() == two.keys()
        for key, value in one.items():
            assert torch.equal(value, two[key]) if isinstance(value, torch.Tensor) else value == two[key], key
        states.append(content(run / "workers" / str(number), "last")["model"])
        assert "epochs 3 to 4" in (run / "workers" / str(number) / "log.txt").read_text()
    shipped = content(run, "swa")["state_dict"]
    for name, value in shipped.items():
        if "running" not in name and "num_batches" not in name:
            mean = torch.stack([state[name].double() for state in states]).mean(0)
            torch.testing.assert_close(value.double(), mean, rtol=0, atol=1e-7)
    assert said.count('"command": "train"') == 1
    elsewhere = [number for number in range(1, workers + 1) if (number - 1) % size]
    assert "workers of other processes" in said
    assert all(f"{number}: {Path('runs/run-001/workers', str(number), 'log.txt')}" in said for number in elsewhere)
    assert all(f"worker {number} of {workers}" not in said for number in elsewhere)
    scores = json.loads((run / "result.json").read_text())["weights"]
    assert swa("eval", run, "--json").json["weights"]["swa"]["nll"] == pytest.approx(scores["swa"]["nll"], rel=1e-6)


def test_kills_in_workers_are_gone_on_from(folder: Path) -> None:
    """SIGKILL to both processes, each in its worker, then --resume, against the undisturbed run, bit for bit."""
    words = ["train", "swap.yaml", "swap.start=1ep", "train.epochs=6"]
    train(folder, [*words, "-o", "whole"], 2)
    words += ["output.save_every=5step"]
    processes = start_ranks(folder, words, 2, kill_at=20, within="/workers/")  # after some saves there
    assert exit_codes(*processes) == [-signal.SIGKILL] * 2, said_in(folder)
    points = (folder / "runs/run-001/workers").glob("*/checkpoints/*.pt")  # last.pt, or previous.pt
    assert {path.parts[-3] for path in points} == {"1", "2"}
    train(folder, ["train", "--resume", "runs/run-001"], 2)
    assert_equal_runs(folder / "whole/run-001", folder / "runs/run-001")
