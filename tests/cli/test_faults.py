"""Faults while a run goes on: one clear message, exit 1, the last good checkpoint intact, and the same end after it."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from conftest import OnStep, copy_runs, run_swa
from equal_runs import assert_equal_runs, content
from processes import failing, said_in, start
from swa_cli.checkpoint import atomic
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.engine.events import PlanEvent, StepEvent

# 22 steps an epoch, saved at the end of each; averages from step 33 on.
RECIPE = """\
name: faulty
model: {name: convnet, args: {width: 4}}
dataset: {name: digits, val: 0}
optimizer: {lr: 0.1}
swa: {start: 50%, every: 0.5ep, eval_every: 1ep}
averages: {ema: {kind: ema, decay: 0.9}}
snapshots: {every: 0.5ep}
train: {epochs: 3, batch_size: 64, threads: 1, precision: fp32}
"""
STREAMED = [
    "dataset={name: image_folder, root: images, val: 8, cache: none, workers: 1, image_size: 8}",
    *("train.batch_size=8", "train.epochs=2"),  # 4 steps an epoch
    *("averages={}", "snapshots=null"),
]
At = Callable[[int, Callable[[], object]], None]


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    path = tmp_path / "faulty.yaml"
    path.write_text(RECIPE)
    generator = torch.Generator().manual_seed(0)
    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for index in range(20):
            pixels = torch.randint(256, (12, 12, 3), generator=generator, dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{index}.png")
    return path


@pytest.fixture(scope="module")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "faulty.yaml").write_text(RECIPE)
    run_swa("train", folder / "faulty.yaml", "-q", "-o", folder / "runs")
    return folder / "runs"


@pytest.fixture
def undisturbed(_trained: Path, tmp_path: Path) -> Path:
    """The run to which nothing happened, in runs/faulty-001: a copy of one training."""
    return copy_runs(_trained, tmp_path / "runs")


@pytest.fixture
def at(on_step: OnStep) -> At:
    """Let something happen once, after the update that makes a step."""

    def arm(step: int, happen: Callable[[], object]) -> None:
        def hear(_: PlanEvent, event: StepEvent) -> None:
            if event.step == step:
                on_step(lambda *_: None)
                happen()

        on_step(hear)

    return arm


def no_write_of(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> Callable[[], None]:
    """From now on the file system refuses to make a file that is to become `name`."""

    def begin() -> None:

        def refuse(path: Path, mode: str) -> Any:
            if path.name.startswith(f".{name}"):
                raise OSError(number, os.strerror(number))
            return open(path, mode)

        monkeypatch.setattr(atomic, "open", refuse, raising=False)

    return begin


@pytest.mark.parametrize(
    ("name", "number", "said"),
    [
        ("last.pt", errno.ENOSPC, "no room to write (No space left on device)"),
        ("last.pt", errno.EDQUOT, "no room to write (Disk quota exceeded)"),
        ("last.pt", errno.EROFS, "cannot be written (Read-only file system)"),
        ("last.pt", errno.EACCES, "cannot be written (Permission denied)"),
        ("last.pt", errno.EIO, "Input/output error"),
        ("step-", errno.ENOSPC, "no room to write"),
        ("metrics.csv", errno.ENOSPC, "no room to write"),
        ("swa.pt", errno.ENOSPC, "no room to write"),
        ("curves.png", errno.ENOSPC, "no room to write"),
        ("result.json", errno.ENOSPC, "no room to write"),
    ],
)
def test_a_file_that_cannot_be_written(
    swa,
    faulty: Path,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: At,
    name: str,
    number: int,
    said: str,
) -> None:
    """Each file of a run, refused by the disk from step 30 on, against the run to which nothing happened."""
    with monkeypatch.context() as patched:
        at(30, no_write_of(patched, name, number))
        ended = swa("train", faulty, "-q")
    run = tmp_path / "runs/faulty-002"
    assert ended.code == 1
    assert said in " ".join(ended.err.split())
    assert "continue with `swa train --resume runs/faulty-002`" in " ".join(ended.err.split())
    assert ended.err.count("error:") == 1
    assert not list(run.rglob("*.tmp"))
    assert content(run, "last")["step"] in (22, 66)
    assert swa("train", "--resume", run, "-q").code == 0
    assert_equal_runs(undisturbed, run)


def test_log_on_a_full_disk(swa, faulty: Path, undisturbed: Path, tmp_path: Path, at: At) -> None:
    """The log becomes /dev/full (ENOSPC) in epoch 2: exit 1; the run goes on to the undisturbed end."""
    log = tmp_path / "runs/faulty-002/log.txt"

    def fill() -> None:
        (number,) = [int(entry.name) for entry in Path("/proc/self/fd").iterdir() if entry.resolve() == log]
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, number)
        os.close(full)

    at(30, fill)
    ended = swa("train", faulty)
    assert ended.code == 1
    assert "no room to write (No space left on device)" in " ".join(ended.err.split())
    assert swa("train", "--resume", "runs/faulty-002", "-q").code == 0
    assert_equal_runs(undisturbed, tmp_path / "runs/faulty-002")


@pytest.mark.parametrize(("stream", "kind"), [("stderr", "gone"), ("stderr", "full"), ("stdout", "gone")])
def test_a_stream_that_fails(
    swa,
    faulty: Path,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: At,
    stream: str,
    kind: str,
) -> None:
    """The reader goes, or the disk is full, in epoch 2: the undisturbed end, exit 0, and one warning in log.txt."""
    with open(os.devnull, "w", buffering=1) as file, failing(kind) as number:
        at(30, lambda: os.dup2(number, file.fileno()))
        with monkeypatch.context() as patched:
            patched.setattr(sys, stream, file)
            assert swa("train", faulty).code == 0
        assert os.path.samestat(os.fstat(file.fileno()), os.stat(os.devnull))  # what it still held is gone too
    run = tmp_path / "runs/faulty-002"
    assert_equal_runs(undisturbed, run)
    log = (run / "log.txt").read_text()
    assert log.count("can no longer be written") == 1
    assert str(RunFolder(run).display_path / "checkpoints") in log.splitlines()[-2]  # what to ship


@pytest.mark.parametrize("largest_file", [20_000, 60_000], ids=["first-save", "save-with-averages"])
def test_a_real_limit_on_the_size_of_files(faulty: Path, tmp_path: Path, largest_file: int) -> None:
    """RLIMIT_FSIZE below the first checkpoint and below one with averages: exit 1; without it the run goes on."""
    process = start(tmp_path, ["train", "faulty.yaml"], largest_file=largest_file)
    process.join()
    said = said_in(tmp_path)
    assert process.exitcode == 1, said
    assert "no room to write (File too large)" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "runs").rglob("*.tmp"))
    process = start(tmp_path, ["train", "--resume", "runs/faulty-001"])
    process.join()
    assert process.exitcode == 0, said_in(tmp_path)


@pytest.mark.parametrize("words", ["schema", "new", "recipes digits"])
def test_a_text_that_has_no_room(tmp_path: Path, words: str) -> None:
    """RLIMIT_FSIZE below the size of a text, twice: exit 1, the place is named, and nothing is left."""
    for _ in range(2):
        process = start(tmp_path, [*words.split(), "-o", "out.yaml"], largest_file=100)
        process.join()
        said = said_in(tmp_path)
        assert process.exitcode == 1, said
        assert "out.yaml: File too large" in said
        assert not [*tmp_path.glob("*.yaml"), *tmp_path.glob(".*.tmp")]


@pytest.mark.torture
@pytest.mark.parametrize("kilobytes", [8, 100, 200, 300])
def test_a_full_disk(swa, faulty: Path, tmp_path: Path, kilobytes: int) -> None:
    """A tmpfs of this size (needs root), which fills up at different files; enlarged, the run goes on to the end."""
    disk = tmp_path / "disk"
    disk.mkdir()
    assert os.system(f"mount -t tmpfs -o size={kilobytes}k swa-test {disk}") == 0
    try:
        ended = swa("train", faulty, "-q", "--out", disk)
        assert ended.code in (1, 2), ended.err
        assert "No space left on device" in " ".join(ended.err.split())
        assert not list(disk.rglob("*.tmp"))
        assert os.system(f"mount -o remount,size=100m {disk}") == 0
        again = ["train", "--resume", disk / "faulty-001"] if (disk / "faulty-001/recipe.yaml").exists() else None
        assert swa(*(again or ["train", faulty, "--out", disk]), "-q").code == 0
        assert swa("train", faulty, "-q").code == 0
        assert_equal_runs(tmp_path / "runs/faulty-001", sorted(disk.glob("faulty-0*"))[-1])
    finally:
        assert os.system(f"umount {disk}") == 0


def test_folder_removed(swa, faulty: Path, tmp_path: Path, at: At) -> None:
    """The run folder is deleted in epoch 2: exit 1 says so, and nothing is made in its place."""
    at(30, lambda: shutil.rmtree(tmp_path / "runs/faulty-001"))
    ended = swa("train", faulty, "-q")
    assert ended.code == 1
    assert "was removed during the run" in " ".join(ended.err.split())
    assert not (tmp_path / "runs/faulty-001").exists()


@pytest.mark.slow
def test_image_that_becomes_unreadable(swa, faulty: Path, tmp_path: Path, at: At) -> None:
    """A streamed image damaged in epoch 2: exit 1 names it; mended, the run goes on to the undisturbed end."""
    assert swa("train", faulty, "-q", *STREAMED).code == 0
    pictures = sorted((tmp_path / "images").glob("*/*.png"))
    kept = [picture.read_bytes() for picture in pictures]
    at(5, lambda: [picture.write_bytes(b"x") for picture in pictures])
    ended = swa("train", faulty, "-q", *STREAMED)
    assert ended.code == 1
    assert "cannot be read" in ended.err
    assert "Traceback" not in ended.err
    for picture, data in zip(pictures, kept, strict=True):
        picture.write_bytes(data)
    assert content(tmp_path / "runs/faulty-002", "last")["step"] == 4
    assert swa("train", "--resume", "runs/faulty-002", "-q").code == 0
    assert_equal_runs(tmp_path / "runs/faulty-001", tmp_path / "runs/faulty-002")


@pytest.mark.slow
def test_loader_process_killed(swa, faulty: Path, tmp_path: Path, at: At) -> None:
    """SIGKILL to the process that reads images: exit 1 says what died; the run goes on to the undisturbed end."""
    assert swa("train", faulty, "-q", *STREAMED).code == 0

    def kill() -> None:
        for child in multiprocessing.active_children():
            if "Process-" in child.name:  # those of torch's DataLoader
                os.kill(child.pid or 0, signal.SIGKILL)

    at(5, kill)
    ended = swa("train", faulty, "-q", *STREAMED)
    assert ended.code == 1
    assert "a loader process died" in " ".join(ended.err.split())
    assert "--resume" in ended.err
    assert swa("train", "--resume", "runs/faulty-002", "-q").code == 0
    assert_equal_runs(tmp_path / "runs/faulty-001", tmp_path / "runs/faulty-002")


def test_out_of_memory(faulty: Path, tmp_path: Path) -> None:
    """A batch for which the machine has no memory: exit 2 names it, and what halving it would be; no folder."""
    images = "dataset={name: image_folder, root: images, val: 8, image_size: 256}"
    words = ["train", "faulty.yaml", "-q", images, "model.args.width=64", "train.batch_size=32"]
    process = start(tmp_path, words, memory=512 << 20)  # the first convolution makes 512 MiB, and its BatchNorm again
    process.join()
    said = " ".join(said_in(tmp_path).split())
    assert process.exitcode == 2, said
    assert "out of memory with a batch of 32 images" in said
    assert "train.batch_size=16" in said
    assert not (tmp_path / "runs").exists()


def test_out_of_memory_before_a_run(faulty: Path, tmp_path: Path) -> None:
    """Not even two images go through the network: exit 2 says so, not that they are of a wrong size; no folder."""
    images = "dataset={name: image_folder, root: images, val: 8, image_size: 1024}"  # 40 images of 3 MiB
    words = ["train", "faulty.yaml", "-q", images, "model.args.width=64", "train.batch_size=2"]
    process = start(tmp_path, words, memory=512 << 20)  # the first convolution makes 512 MiB of two
    process.join()
    said = " ".join(said_in(tmp_path).split())
    assert process.exitcode == 2, said
    assert "out of memory before the first batch. Nothing was run." in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_not_finite(
    swa, faulty: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: At, value: float
) -> None:
    """One loss of step 41, in the averaging phase: exit 1 before its update; gone on with, the undisturbed end."""
    with monkeypatch.context() as patched:

        def poison() -> None:
            loss = F.cross_entropy
            patched.setattr(F, "cross_entropy", lambda *args, **options: loss(*args, **options) * value)

        at(40, poison)
        ended = swa("train", faulty, "-q", "output.save_every=1step")
    assert ended.code == 1
    assert "epoch 2" in ended.err
    assert content(tmp_path / "runs/faulty-002", "last")["step"] == 40
    assert swa("train", "--resume", "runs/faulty-002", "-q").code == 0
    assert_equal_runs(undisturbed, tmp_path / "runs/faulty-002")


def test_second_process_on_one_folder_is_refused(swa, faulty: Path, undisturbed: Path, tmp_path: Path, at: At) -> None:
    """A resume and a bn-update while the run goes on: exit 2, and the run ends as if nothing had been tried."""
    codes = []

    def intrude() -> None:
        for words in (["train", "--resume", "runs/faulty-002"], ["bn-update", "runs/faulty-002/checkpoints/last.pt"]):
            process = start(tmp_path, words)
            process.join()
            codes.append((process.exitcode, "another process is working on this run" in said_in(tmp_path)))

    at(50, intrude)
    assert swa("train", faulty, "-q").code == 0
    assert codes == [(2, True), (2, True)]
    assert_equal_runs(undisturbed, tmp_path / "runs/faulty-002")
