"""Several processes on this machine against one on the same recipe: weights, statistics, scores, ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from conftest import Swa
from equal_runs import assert_equal_runs, content, flat
from processes import ENDS_WITHIN_S, SECOND_SAVE, exit_codes, free_port, said_in, start, start_ranks, train

pytestmark = pytest.mark.slow

NETWORK = """\
import os
import torch
from torch import nn

class Plain(nn.Module):
    def __init__(self, *, num_classes, in_channels, odd=False):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 8, 3, padding=1), nn.GELU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(256, num_classes))
        self.odd = odd

    def forward(self, images):
        if self.odd and self.training:
            self.layers[0].bias.data += int(os.environ["RANK"])
        return self.layers(images)

class More(Plain):
    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.layers.extend([nn.GELU(), nn.Linear(10, 10)] * int(os.environ["RANK"]))

def data(more=0, shade=0):
    rank, made = int(os.environ["RANK"]), torch.Generator().manual_seed(0)
    images = torch.randint(0, 200, (90, 1, 8, 8), generator=made, dtype=torch.uint8)
    sets = {}
    for split, number in (("train", 60 + more * rank), ("test", 20)):
        labels = torch.arange(number) % 10
        sets[split] = torch.utils.data.TensorDataset(images[:number] + shade * rank, labels)
    return {**sets, "num_classes": 10, "class_names": list("abcdefghij")}

def leave(outputs, targets):
    os._exit(7)

class Kept(nn.Module):
    def __init__(self, *, num_classes, in_channels):
        super().__init__()
        self.norm = nn.InstanceNorm2d(in_channels, track_running_stats=True)
        self.head = nn.Linear(64 * in_channels, num_classes)
        self.register_buffer("centre", torch.zeros(64 * in_channels))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images):
        values = self.norm(images).flatten(1)
        if self.training:
            self.centre = 0.9 * self.centre + 0.1 * values.detach().mean(0)
            self.seen += images.mean()
        return self.head(values - self.centre)
"""
PLAIN = """\
name: run
model: {name: "network:Plain"}
dataset: {name: digits, augment: {crop: 1, flip: true}}
optimizer: {lr: 0.05}
swa: {start: 50%, every: 0.5ep, eval_every: 1ep}
averages: {ema: {kind: ema, decay: 0.9, every: 1step}}
train: {epochs: 2, batch_size: 50, threads: 1, precision: fp32}
eval: {batch_size: 100}
"""
NORMED = PLAIN.replace('"network:Plain"', "convnet, args: {width: 4, dropout: 0.2}").replace("50,", "64,")
PARTS = """\
import torch
from torch import nn

class Spare(nn.Module):
    def __init__(self, *, num_classes, in_channels):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64 * in_channels, 16), nn.GELU(), nn.Linear(16, num_classes))
        self.spare = nn.Linear(4, 4)

    def forward(self, images):
        return self.layers(images)

class Net(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 4, 3, padding=1), nn.GELU(), nn.Conv2d(4, num_classes, 3, padding=1))
        self.aux = nn.Conv2d(in_channels, 1, 1)

    def forward(self, images):
        return {"out": self.layers(images), "edges": self.aux(images)}

def scenes(count, seed):
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    masks = (images[:, 0] > 127).long()
    masks[::3] = 255  # nothing of these is learnt
    masks[1::3, :6] = 255
    return torch.utils.data.TensorDataset(images, masks)

def data():
    return {"train": scenes(60, 0), "test": scenes(20, 1), "num_classes": 2, "target": "mask"}
"""
EVERYTHING = """\
name: run
model: {name: "parts:Spare"}
dataset: {name: digits, augment: {crop: 1, flip: true, mixup: 0.4, cutmix: 1}}
optimizer: {lr: 0.05}
swa: {start: 50%, every: 0.5ep, eval_every: 1ep}
averages:
  ema: {kind: ema, decay: 0.9, every: 1step}
  late: {kind: lawa, window: 3, every: 3step}
  swag: {kind: swag, rank: 3, every: 5step, start: 20%}
snapshots: {every: 1ep, cumulative: true}
train:
  {epochs: 2, batch_size: 25, grad_accum_steps: 2, threads: 1, precision: fp32,
   early_stopping: {patience: 9, metric: val_accuracy}}
eval: {batch_size: 100, tta: flip}
output: {loggers: [tensorboard]}
"""
SCENES = """\
name: run
task: segmentation
model: {name: "parts:Net"}
dataset: {name: "parts:data", cache: ram, val: 10, augment: {crop: 1, flip: true}}
optimizer: {lr: 0.1}
swa: {start: 50%, every: 0.5ep, eval_every: 1ep}
train: {epochs: 2, batch_size: 5, clip_norm: 1, threads: 1, precision: fp32}
eval: {batch_size: 4}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "network.py").write_text(NETWORK)
    (tmp_path / "plain.yaml").write_text(PLAIN)
    (tmp_path / "normed.yaml").write_text(NORMED)
    return tmp_path


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {key: value for key, value in content(run, "last")["model"].items() if value.is_floating_point()}


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (2, []),
        (3, ["train.clip_norm=1"]),
        (2, ["train.grad_accum_steps=3", "dataset.augment.mixup=0.4"]),
        (3, ["dataset.augment.cutmix=1", "optimizer.name=AdamW", "optimizer.lr=0.002"]),
        (
            2,
            ["train.grad_accum_steps=3", "train.class_weights=[1,1,1,1,1,0.5,1,1,1,30]", "train.label_smoothing=0.1"],
        ),
        (3, ["train.loss=bce", "train.class_weights=[1,1,1,1,1,0.5,1,1,1,30]", "dataset.sampler=balanced"]),
    ],
    ids=str,
)
def test_weights_are_those_of_one_process(folder: Path, size: int, words: list[str]) -> None:
    """Weights, averages and losses after 2 epochs of 25 samples and less a process against one process."""
    for root, number in (("one", 1), ("many", size)):
        train(folder, ["train", "plain.yaml", *words, "-o", root], number)
    one, many = folder / "one/run-001", folder / "many/run-001"
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(many)[name], value, rtol=1e-4, atol=2e-5)
    assert content(many, "last")["averages"]["swa"]["steps"] == content(one, "last")["averages"]["swa"]["steps"]
    for row, other in zip(content(many, "last")["history"], content(one, "last")["history"], strict=True):
        for key in ("train_loss", "val_loss", "swa_val_loss"):
            assert row[key] == pytest.approx(other[key], rel=1e-4)


@pytest.mark.parametrize(("method", "batch_size"), [("pooled", 64), ("exact", 64), ("pooled", 163), ("exact", 163)])
def test_passes_are_those_of_one_process(folder: Path, swa: Swa, method: str, batch_size: int) -> None:
    """Statistics and scores of 3 processes, last batches ragged, against `bn-update` and `eval` of the same weights.

    With batches of 163 the processes have 2, 3 and 3 batches in a pass.
    """
    words = [f"swa.batchnorm.method={method}", f"train.batch_size={batch_size}"]
    said = train(folder, ["train", "normed.yaml", *words], 3)
    parts = f"{batch_size // 3} or {batch_size // 3 + 1}"
    assert f"3 over gloo: {parts} samples of each batch; BatchNorm normalises each part of a batch by itself" in said
    run = folder / "runs/run-001"
    scores = json.loads((run / "result.json").read_text())["weights"]
    assert swa("eval", run / "checkpoints/swa.pt", "--json").json["weights"]["swa"]["nll"] == scores["swa"]["nll"]
    shipped = content(run, "swa")["state_dict"]
    assert swa("bn-update", run / "checkpoints/swa.pt", "-o", "alone.pt").code == 0
    alone = torch.load(folder / "alone.pt", weights_only=True)["state_dict"]
    for name, value in alone.items():
        if method == "exact":
            assert torch.equal(shipped[name], value), name
        else:
            torch.testing.assert_close(shipped[name], value, rtol=1e-6, atol=1e-6)


def test_compiled_processes_train_the_same_network(folder: Path) -> None:
    """Two processes that compile, each on its part of a batch, against two that do not, after an epoch."""
    words = ["train", "normed.yaml", "train.epochs=1", "swa.start=0ep"]
    train(folder, [*words, "-o", "eager"], 2)
    said = train(folder, [*words, "train.compile=aot_eager", "-o", "compiled"], 2)
    assert said.count("torch.compile took") == 1
    compiled = weights(folder / "compiled/run-001")
    for name, value in weights(folder / "eager/run-001").items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-4)


def test_statistics_of_other_layers_are_the_mean_over_processes(folder: Path) -> None:
    """InstanceNorm, a buffer that is replaced and one that counts, in two processes that have to agree on all."""
    (folder / "kept.yaml").write_text(PLAIN.replace("network:Plain", "network:Kept"))
    said = train(folder, ["train", "kept.yaml"], 2)
    assert "centre: training moves" in " ".join(said.split())
    shipped = content(folder / "runs/run-001", "swa")
    assert (shipped["batchnorm"], shipped["samples"] > 0) == ("partial", True)


def test_one_speaks(folder: Path) -> None:
    """What three processes say: one plan, one row an epoch, one summary; and one run folder is there."""
    said = train(folder, ["train", "plain.yaml", "--json"], 3)
    assert said.count("  schedule") == said.count('"command": "train"') == 1
    assert said.count('"accuracy_se"') == 3 * 2  # last, swa and ema, on two splits
    assert [path.name for path in sorted((folder / "runs").iterdir())] == ["latest", "run-001"]


def test_a_signal_to_one_process_stops_all_at_one_step(folder: Path) -> None:
    """SIGTERM to the last of three processes: all end, and go on to the undisturbed end, bit for bit."""
    train(folder, ["train", "normed.yaml", "train.epochs=4", "-o", "whole"], 3)
    processes = start_ranks(folder, ["train", "normed.yaml", "train.epochs=4", "output.save_every=3step"], 3)
    last = folder / "runs/run-001/checkpoints/last.pt"
    while not last.is_file():
        time.sleep(0.01)
        assert processes[0].is_alive(), said_in(folder)
    assert processes[2].pid is not None
    os.kill(processes[2].pid, signal.SIGTERM)
    assert exit_codes(*processes) == [143] * 3, said_in(folder)
    assert said_in(folder).count("which is saved") == 1
    train(folder, ["train", "--resume", "runs/run-001"], 3)
    assert_equal_runs(folder / "whole/run-001", folder / "runs/run-001")


@pytest.mark.parametrize("size", [1, 2])
def test_another_number_of_processes_goes_on(folder: Path, size: int) -> None:
    """A run of three processes, stopped by its time in an epoch, goes on in others to the weights of one process."""
    train(folder, ["train", "plain.yaml", "-o", "whole"], 1)
    words = ["train", "plain.yaml", "output.save_every=7step"]
    processes = start_ranks(folder, words, 3, kill_at=SECOND_SAVE, within="checkpoints/.last")
    assert -signal.SIGKILL in exit_codes(*processes), said_in(folder)
    said = train(folder, ["train", "--resume", "runs/run-001", "--allow-code"], size)
    assert f"processes was 3 and is {size}: the result will not be bit-identical" in said
    for name, value in weights(folder / "whole/run-001").items():
        torch.testing.assert_close(weights(folder / "runs/run-001")[name], value, rtol=1e-4, atol=2e-5)
    rows = [content(folder / root / "run-001", "last")["history"] for root in ("whole", "runs")]
    assert rows[0][0]["train_loss"] == pytest.approx(rows[1][0]["train_loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["optimizer.lr=1e20"], 1, "the loss is"),
        (["optimizer.lrr=1"], 2, "optimizer.lrr"),
        (["dataset={name: image_folder, root: nowhere}"], 2, "nowhere"),
        (["train.batch_size=1"], 2, "1 samples leave some of 2 processes without one"),
        (["train.sync_batchnorm=true"], 2, "torch has it for GPUs only, and this run is on cpu"),
        (["model.args.odd=true"], 1, "of processes 0 and 1 differ"),
        (["model.name=network:More"], 1, "the parameters of processes 0 and 1 differ"),
        (["dataset={name: 'network:data', args: {more: 1}}"], 2, "processes 0 and 1 have 60 and 61 train samples"),
        (["dataset={name: 'network:data', args: {shade: 1}}"], 2, "60 train samples each, but not the same ones"),
    ],
)
def test_one_tells_of_a_failure(folder: Path, words: list[str], code: int, message: str) -> None:
    """What two processes say of a failure of one or of both: one message, with the exit code of one process."""
    said = train(folder, ["train", "plain.yaml", *words], 2, code)
    assert message in said
    assert said.count("error:") == 1, said
    assert "Traceback" not in said


def test_a_kill_is_gone_on_from(folder: Path) -> None:
    """SIGKILL to one of `--processes 2 --max-restarts 1` after the first save, against the undisturbed run, by bits."""
    train(folder, ["train", "normed.yaml", "train.epochs=4", "-o", "whole"], 2)
    words = ["train", "normed.yaml", "train.epochs=4", "output.save_every=5step", "--max-restarts=1", "--processes=2"]
    launcher = start(folder, words)
    while not (folder / "runs/run-001/checkpoints/last.pt").is_file():
        time.sleep(0.01)
        assert launcher.is_alive(), said_in(folder)
    assert launcher.pid is not None
    os.kill(second_process_of(launcher.pid), signal.SIGKILL)
    assert exit_codes(launcher) == [0], said_in(folder)
    said = said_in(folder)
    assert "a process was killed (SIGKILL): all start again, attempt 2 of 2" in said
    assert said.count("continued after step") == 1
    assert_equal_runs(folder / "whole/run-001", folder / "runs/run-001")


def test_a_start_after_the_end_gives_the_result(folder: Path) -> None:
    """Processes that torchrun starts again, of a run and of its extension that are finished: the same JSON, no more."""
    run, launch = folder / "runs/run-001", {"TORCHELASTIC_RUN_ID": "job"}
    for words, rows in ((["plain.yaml"], 2), (["--resume", "runs/run-001", "--extend-to=3", "--allow-code"], 3)):
        words = ["train", *words, "swa={start: 1ep, every: 1ep}"] if rows == 2 else ["train", *words]
        told = train(folder, [*words, "-q", "--json"], 2, **launch)
        table = (run / "metrics.csv").read_text()
        again = train(folder, [*words, "-q", "--json"], 2, **launch, TORCHELASTIC_RESTART_COUNT="1")
        assert json.loads(again[again.index("{") :]) == json.loads(told[told.index("{") :])
        assert (run / "metrics.csv").read_text() == table
        assert len(table.splitlines()) == 1 + rows
    assert [path.name for path in sorted((folder / "runs").iterdir())] == ["latest", "run-001"]


@pytest.mark.parametrize("name", ["everything", "scenes"])
def test_all_that_a_run_keeps_is_that_of_one_process(folder: Path, name: str) -> None:
    """Averages of every kind, rows and scores of 3 processes against one: mixed images; masks mostly ignored, to 255.

    Some layers of both networks are never trained.
    """
    (folder / "parts.py").write_text(PARTS)
    (folder / f"{name}.yaml").write_text({"everything": EVERYTHING, "scenes": SCENES}[name])
    for root, size in (("one", 1), ("many", 3)):
        train(folder, ["train", f"{name}.yaml", "-o", root], size)
    one, many = folder / "one/run-001", folder / "many/run-001"
    states = [dict(flat(content(run, "last"))) for run in (one, many)]
    kept = {key for key in states[0] if key.startswith(("/model", "/averages", "/history", "/cumulative", "/step"))}
    assert kept <= states[1].keys()
    for key in kept:
        mine, theirs = (state[key] for state in states)
        if isinstance(mine, float | torch.Tensor):
            torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=2e-5)
        else:
            assert theirs == mine, key
    scores = [json.loads((run / "result.json").read_text())["weights"] for run in (one, many)]
    assert [row["nll"] for row in scores[1].values()] == pytest.approx([row["nll"] for row in scores[0].values()], 1e-4)
    made = [sorted(str(path.relative_to(run)).partition("events")[0] for path in run.rglob("*")) for run in (one, many)]
    assert made[0] == made[1]


def second_process_of(launcher: int) -> int:
    """The process with rank 1 among the children of this one."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            is_child = entry.name.isdigit() and f"\nPPid:\t{launcher}\n" in (entry / "status").read_text()
            if is_child and b"\0RANK=1\0" in (entry / "environ").read_bytes():
                return int(entry.name)
    raise AssertionError("there is none")


TERMINATED = """
import os, signal
from swa_cli import cli
from swa_cli.report import errors as problems

tell = problems.print_user_error

def tell_late(*args, **words):
    os.kill(os.getpid(), signal.SIGTERM)
    tell(*args, **words)

problems.print_user_error = tell_late
cli.main()
"""


def test_the_one_that_tells_is_not_ended_before(folder: Path) -> None:
    """SIGTERM to a process that is about to tell why the run failed, as of a launcher that saw another one end."""
    words = [sys.executable, "-c", TERMINATED, "train", "plain.yaml", "optimizer.lr=1e20"]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            words,
            cwd=folder,
            env={**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    said = "".join(process.communicate(timeout=ENDS_WITHIN_S)[1] for process in ranks)
    assert [process.returncode for process in ranks] == [1, 1], said
    assert said.count("error:") == 1, said
    assert "Traceback" not in said


def test_a_signal_ends_a_process_that_waits_for_others(folder: Path) -> None:
    """SIGTERM to the first of two processes, while the second has not begun: it ends at once, and does not wait on."""
    port = free_port()
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    environment = {**os.environ, **ranks, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    words = [sys.executable, "-m", "swa_cli", "train", "plain.yaml"]
    with subprocess.Popen(words, cwd=folder, env=environment) as process:
        try:
            while not is_listening(port):
                time.sleep(0.01)
                assert process.poll() is None
            time.sleep(0.5)  # between the port and the wait, which nothing tells
            process.terminate()
            assert process.wait(5) == -signal.SIGTERM
        finally:
            process.kill()


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", port)) == 0


def test_the_launcher_ends_as_one_process(folder: Path) -> None:
    """A failure in the processes, a recipe that is wrong before any, and an exit by other code: one message each.

    Of the launch nothing stays in the folder of temporary files.
    """
    temporary = folder / "tmp"
    temporary.mkdir()
    for word, code in (("optimizer.lr=1e20", 1), ("optimizer.lrr=1", 2), ("train.loss=network:leave", 1)):
        words = ["train", "plain.yaml", word, "--processes=2", "--max-restarts=2"]
        assert exit_codes(start(folder, words, environment={"TMPDIR": str(temporary)})) == [code]
        assert not list(temporary.iterdir())
        said = said_in(folder)
        assert said.count("error:") == 1, said
        assert "Traceback" not in said
