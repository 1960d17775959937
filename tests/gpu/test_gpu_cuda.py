"""What no simulated device runs: scaled gradients, compiled networks, processes over nccl, waits as CUDA sees them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import swa_cli
from gpu import changes
from gpu.recipes import OnCard, facts, require_done, rows

pytestmark = [pytest.mark.gpu, pytest.mark.cuda]
FIXED = "model.args.dropout=0"  # a compiled network draws other numbers
PATHS = os.pathsep.join((str(Path(swa_cli.__file__).parents[1]), str(Path(__file__).parents[1])))


HANGS_AFTER_S = 150  # a rendezvous or a collective that nobody joins


def torchrun(folder: Path, *words: str) -> str:
    """Run a module under torchrun, in one process; return what it printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "-m", *words]
    environment = os.environ | {"PYTHONPATH": PATHS}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=HANGS_AFTER_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_fp16_scales_its_gradients(folder: Path, on_card: OnCard) -> None:
    """Losses of training in fp16 against fp32."""
    words = ["train", "digits.yaml", FIXED, "--json"]
    told = on_card(folder, *([*words, f"train.precision={precision}"] for precision in ("fp16", "fp32")))
    require_done(*told)
    assert [facts(one)["precision"] for one in told] == ["fp16", "fp32"]
    half, whole = (rows(folder / "runs" / f"digits-00{number}") for number in (1, 2))
    for row, other in zip(half, whole, strict=True):
        assert float(row["train_loss"]) == pytest.approx(float(other["train_loss"]), rel=0.05)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
def test_compiled_training_is_that_of_the_plain_network(folder: Path, on_card: OnCard, mode: str) -> None:
    """Losses of a compiled network against the plain one, and the note that it was compiled."""
    compiled, plain = on_card(
        folder, ["train", "digits.yaml", FIXED, f"train.compile.mode={mode}"], ["train", "digits.yaml", FIXED]
    )
    require_done(compiled, plain)
    assert "torch.compile took" in compiled.said
    assert "torch.compile took" not in plain.said
    first, second = (rows(folder / "runs" / f"digits-00{number}") for number in (1, 2))
    for row, other in zip(first, second, strict=True):
        assert float(row["train_loss"]) == pytest.approx(float(other["train_loss"]), rel=0.02)


def test_gradients_accumulate_outside_of_a_graph(folder: Path, on_card: OnCard) -> None:
    """Losses of a network in CUDA graphs with two batches in a step, against the plain one."""
    words = ["train", "digits.yaml", FIXED, "train.grad_accum_steps=2"]
    require_done(*on_card(folder, [*words, "train.compile.mode=reduce-overhead"], words))
    first, second = (rows(folder / "runs" / f"digits-00{number}") for number in (1, 2))
    for row, other in zip(first, second, strict=True):
        assert float(row["train_loss"]) == pytest.approx(float(other["train_loss"]), rel=0.02)


def test_one_process_of_torchrun_is_a_plain_run(folder: Path, on_card: OnCard) -> None:
    """metrics.csv of a run under torchrun with `train.sync_batchnorm`, against that of a plain process."""
    words = ["train", "digits.yaml", "train.deterministic=true"]
    torchrun(folder, "swa_cli", *words, "train.sync_batchnorm=true", "-o", "launched")
    require_done(*on_card(folder, [*words, "-o", "plain"]))
    assert rows(folder / "launched/latest") == rows(folder / "plain/latest")


def test_gradients_through_nccl(folder: Path, device: str) -> None:
    """Gradients and statistics of one process with DDP, nccl and SyncBatchNorm, against those without them."""
    found = json.loads(torchrun(folder, "gpu.one_process", device, "nccl"))
    assert len(found) > 20
    assert max(found.values()) < 1e-4, found


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["dataset.on_device=false"],
        ["train.precision=bf16", "dataset.augment.mixup=0.2", "dataset.augment.cutout=2", "train.clip_norm=1"],
        ["train.grad_accum_steps=2", "train.class_weights=balanced"],
    ],
    ids=["resident", "from the host", "mixed and clipped in bf16", "accumulated"],
)
def test_no_step_waits(folder: Path, on_card: OnCard, words: list[str]) -> None:
    """Runs in whose steps torch refuses every operation that waits for the GPU."""
    require_done(*on_card(folder, ["train", "digits.yaml", *words], change=changes.refuse_waits))


def test_a_step_that_waits_is_refused(folder: Path, on_card: OnCard) -> None:
    """A step that reads its loss, which the tests above would not let pass."""
    (told,) = on_card(folder, ["train", "digits.yaml"], change=changes.refuse_waits_and_read_loss)
    assert told.code != 0
    assert "synchronizing" in told.said
