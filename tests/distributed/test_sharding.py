"""`train.fsdp`: runs in parts against runs in which every process has everything; averages of rows by themselves."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch

import rows
from conftest import Swa
from equal_runs import assert_equal_runs, content, flat
from processes import CONTEXT, THIRD_SAVE, exit_codes, free_port, said_in, start_ranks, train

pytestmark = pytest.mark.slow

NETWORKS = """\
import torch
from torch import nn
from torch.nn import functional as F

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.norm = nn.Linear(width, width), nn.BatchNorm1d(width)

    def forward(self, x):
        return x + F.gelu(self.norm(self.up(x)))

class Deep(nn.Module):
    def __init__(self, *, num_classes, in_channels, odd=False):
        super().__init__()
        self.first = nn.Linear(64 * in_channels, 17)
        self.blocks = nn.Sequential(Block(17), nn.Sequential(Block(17), Block(17)))
        self.tied = nn.ModuleList([nn.Linear(17, 17), nn.Linear(17, 17)])
        self.tied[1].weight = self.tied[0].weight
        self.head = nn.Linear(17, num_classes)
        self.unused = nn.Linear(17, 1)
        self.blocks[0].requires_grad_(False)
        if odd:
            self.scale, self.wide = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, images):
        x = self.blocks(self.first(images.flatten(1)))
        for layer in self.tied:
            x = F.gelu(layer(x))
        return self.head(x)

class Conv(nn.Module):
    def __init__(self, *, num_classes, in_channels):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 2, 3, padding=1), nn.GELU(), nn.MaxPool2d(2),
            nn.Conv2d(2, 16, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(256, num_classes))

    def forward(self, images):
        return self.layers(images)
"""
DEEP = """\
name: run
model: {name: "networks:Deep"}
dataset: {name: digits, augment: {crop: 1, flip: true}}
optimizer: {lr: 0.05, foreach: true}
swa: {start: 50%, every: 0.5ep, eval_every: 1ep}
averages:
  ema: {kind: ema, decay: 0.9, every: 1step}
  power: {kind: power_ema, every: 2step}
  late: {kind: lawa, window: 3, every: 2step, keep: best}
  swag: {kind: swag, rank: 3, every: 3step}
snapshots: {every: 1ep, cumulative: true}
train: {epochs: 2, batch_size: 51, threads: 1, precision: fp32, keep_best: train_loss}
eval: {batch_size: 77}
"""
CONV = """\
name: run
model: {name: "networks:Conv"}
dataset: {name: digits}
optimizer: {lr: 0.05}
swa: {start: 50%, every: 0.5ep}
train: {epochs: 1, batch_size: 50, threads: 1, precision: fp32}
"""


def folder_in(path: Path) -> Path:
    """A folder with the networks and recipes of this file."""
    for name, text in (("networks.py", NETWORKS), ("deep.yaml", DEEP), ("conv.yaml", CONV)):
        (path / name).write_text(text)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same run of two processes, whole and in parts."""
    folder = folder_in(tmp_path_factory.mktemp("runs"))
    train(folder, ["train", "deep.yaml", "-o", "whole"], 2)
    said = train(folder, ["train", "deep.yaml", "train.fsdp=true", "-o", "parts"], 2)
    assert "25 or 26 samples of each batch; parameters, gradients, optimizer and averages sharded" in said
    return folder


def test_a_run_in_parts_is_the_run(runs: Path) -> None:
    """All files of two processes in parts against those of two whole ones, bit for bit.

    Of two gradients the sum is the same in any order; the optimizer and the averages work element by element.
    """
    assert_equal_runs(runs / "whole/run-001", runs / "parts/run-001")
    for path in sorted((runs / "whole/run-001/snapshots").iterdir()):
        one, two = (
            dict(flat(torch.load(runs / root / "run-001/snapshots" / path.name))) for root in ("whole", "parts")
        )
        assert one.keys() == two.keys()
        assert all(torch.equal(value, two[key]) for key, value in one.items() if isinstance(value, torch.Tensor))


def test_its_files_are_those_of_any_run(runs: Path, swa: Swa, monkeypatch: pytest.MonkeyPatch) -> None:
    """swa.pt and last.pt of a run in parts: scored by one process as by those of the run."""
    monkeypatch.chdir(runs)
    run = runs / "parts/run-001"
    scores = json.loads((run / "result.json").read_text())["weights"]
    again = swa("eval", run / "checkpoints/last.pt", "--allow-stale-bn", "--allow-code", "--json").json["weights"]
    assert again["last"]["nll"] == scores["last"]["nll"]
    shipped = swa("eval", run / "checkpoints/swa.pt", "--allow-code", "--json").json["weights"]
    assert shipped["swa"]["nll"] == scores["swa"]["nll"]


def killed(folder: Path, words: list[str], size: int, *, in_parts: bool = True) -> Path:
    """A run, of so many processes, that was killed as it began its third save."""
    words = ["train", *words, *(["train.fsdp=true"] if in_parts else []), "output.save_every=3step"]
    processes = start_ranks(folder, words, size, kill_at=THIRD_SAVE, within="checkpoints/.last")
    assert -signal.SIGKILL in exit_codes(*processes), said_in(folder)
    run = folder / "runs/run-001"
    assert (run / "checkpoints/previous.pt").is_file()
    assert not (run / "result.json").exists()
    return run


def test_what_was_killed_goes_on(runs: Path, tmp_path: Path) -> None:
    """A run in parts, killed, goes on in parts and in whole processes: against the undisturbed run, bit for bit."""
    folder = folder_in(tmp_path)
    run = killed(folder, ["deep.yaml"], 2)
    for name, words in (("parts", []), ("whole", ["train.fsdp=false"])):
        shutil.copytree(run, folder / name)
        said = train(folder, ["train", "--resume", name, "--allow-code", "output.save_every=1ep", *words], 2)
        assert "continued after step" in said
        assert ("shards was 2 and is 1: the result will not be bit-identical" in said) is bool(words)
        assert_equal_runs(runs / "whole/run-001", folder / name)


def test_one_process_goes_on_with_parts(tmp_path: Path) -> None:
    """A run of three processes in parts, killed, goes on in one: against one process, to the rounding of float32."""
    folder = folder_in(tmp_path)
    run = killed(folder, ["conv.yaml"], 3)
    train(folder, ["train", "--resume", str(run), "--allow-code", "output.save_every=1ep", "train.fsdp=false"], 1)
    train(folder, ["train", "conv.yaml", "-o", "one"], 1)
    assert_close(folder / "one/run-001", run)


def test_parts_go_on_with_a_whole_run(tmp_path: Path) -> None:
    """A run of one process, whose kernels parts lack, goes on in parts of two: against one, to the rounding."""
    folder = folder_in(tmp_path)
    run = killed(folder, ["conv.yaml"], 1, in_parts=False)
    assert content(run, "last")["optimizer"]["param_groups"][0]["fused"]
    train(folder, ["train", "--resume", str(run), "--allow-code", "output.save_every=1ep", "train.fsdp=true"], 2)
    assert not content(run, "last")["optimizer"]["param_groups"][0]["fused"]
    train(folder, ["train", "conv.yaml", "-o", "one"], 1)
    assert_close(folder / "one/run-001", run)


def assert_close(one: Path, many: Path) -> None:
    """Every tensor of last.pt, where sums over processes round in another order; 25 steps of a smooth network."""
    first, second = (dict(flat(content(run, "last"))) for run in (one, many))
    kept = {key for key in first if key.startswith(("/model", "/averages", "/optimizer/state"))}
    assert kept == {key for key in second if key.startswith(("/model", "/averages", "/optimizer/state"))}
    for key in kept:
        if isinstance(first[key], torch.Tensor):
            torch.testing.assert_close(second[key], first[key], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    "words",
    [["train.grad_accum_steps=2", "train.clip_norm=0.5"], ["optimizer.name=AdamW", "optimizer.lr=0.002"]],
    ids=str,
)
def test_three_processes_in_parts_are_one(tmp_path: Path, words: list[str]) -> None:
    """Three processes, of which one has no rows of a layer, against one: weights, averages, state of the optimizer."""
    folder = folder_in(tmp_path)
    for root, size, more in (("one", 1, []), ("many", 3, ["train.fsdp=true"])):
        train(folder, ["train", "conv.yaml", "-o", root, *words, *more], size)
    assert_close(folder / "one/run-001", folder / "many/run-001")


def test_what_cannot_be_in_parts_is_refused(tmp_path: Path, swa: Swa) -> None:
    """One process, optimizers that need whole parameters; parameters without rows and of two types."""
    folder_in(tmp_path)
    alone = swa("train", "conv.yaml", "train.fsdp=true", "optimizer.name=Rprop")
    assert alone.code == 2
    assert "train.fsdp: one process cannot shard a network" in alone.err
    assert "optimizer.name: torch's Rprop needs whole parameters" in alone.err
    said = train(tmp_path, ["train", "deep.yaml", "train.fsdp=true", "model.args.odd=true"], 2, 2)
    assert "train.fsdp: scale is a number, which has no rows to shard" in said
    assert "parameters of one real type, and these are float32 and float64" in said
    assert not (tmp_path / "runs").exists()


def test_averages_of_rows_are_rows_of_averages(tmp_path: Path) -> None:
    """DTensors of two processes, averaged without communication, against float64 arithmetic on whole tensors.

    It needs no FSDP2, whatever becomes of that on gloo.
    """
    port, path = free_port(), tmp_path / "averages.pt"
    processes = [CONTEXT.Process(target=rows.average, args=(rank, port, path)) for rank in range(2)]
    for process in processes:
        process.start()
    assert exit_codes(*processes) == [0, 0]
    found = torch.load(path)
    for name in rows.weights_of(1):
        sets = torch.stack([rows.weights_of(step)[name].double() for step in range(1, 6)])
        means = torch.stack([sets[: count + 1].mean(0) for count in range(5)])
        ages = 0.7 ** torch.arange(4.0, -1.0, -1.0, dtype=torch.float64)
        ema = torch.tensordot(ages / ages.sum(), sets, dims=1)
        deviations = (sets - means)[-2:]
        torch.testing.assert_close(found["mean"]["state"][name], means[-1], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found["ema"]["state"][name].double(), ema, rtol=1e-6, atol=1e-6)
        assert torch.equal(found["latest"]["state"][name].double(), sets[-3:])
        torch.testing.assert_close(found["swag"]["m2"][name], (sets - means[-1]).square().sum(0), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found["swag"]["deviations"][name].double(), deviations, rtol=1e-6, atol=1e-6)


CHANGING = """
import itertools
from torch import nn
from torch.nn import functional as F

COUNT = itertools.count(1)

class Changing(nn.Module):
    def __init__(self, *, num_classes, in_channels):
        super().__init__()
        self.gain = next(COUNT)  # beyond the state dict
        self.head = nn.Linear(64 * in_channels, num_classes)

    def forward(self, images):
        return self.gain * self.head(images.flatten(1))
"""


def test_a_network_that_is_made_otherwise_each_time_is_not_sharded(tmp_path: Path) -> None:
    """A constructor with a state of its own: exit 2 in every process, the key, the cure, and no run folder."""
    (folder_in(tmp_path) / "changing.py").write_text(CHANGING)
    words = ["train", "conv.yaml", "model.name=changing:Changing", "train.fsdp=true"]
    said = train(tmp_path, words, 2, code=2)
    assert "train.fsdp" in said
    assert "changing:Changing" in said
    assert "train.fsdp=false" in said
    assert not (tmp_path / "runs").exists()
