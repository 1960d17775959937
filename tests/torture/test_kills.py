"""Runs killed with SIGKILL at random instants and resumed, against the undisturbed run, bit for bit."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from equal_runs import assert_equal_runs
from processes import said_in, start

RECIPE = """\
name: killed
model: {name: convnet, args: {width: 4, dropout: 0.3}}
dataset: {name: digits, val: 100, augment: {crop: 1}}
optimizer: {lr: 0.1}
schedule: {name: cosine}
swa: {start: 50%, every: 0.25ep, lr: 0.05, anneal: 0.5ep, eval_every: 1ep}
averages:
  ema: {kind: ema, decay: 0.9, start: 0ep, every: 1step}
  warm: {kind: ema, half_life: 10step, warmup: true, start: 0ep, every: 3step}
  tail: {kind: lawa, window: 3, start: 25%, every: 5step}
  power: {kind: power_ema, half_life: 20%, every: 2step}
  swag: {kind: swag, rank: 4, start: 25%, every: 4step}
  thin: {kind: swag, diagonal: true, start: 0ep, every: 7step}
snapshots: {every: 1ep, keep: 2, cumulative: true}
train: {epochs: 4, batch_size: 64, threads: 1, precision: fp32}
"""
STREAMED = "dataset={name: image_folder, root: images, val: 8, cache: none, workers: 1, image_size: 8}"
PHOTOS = (
    "dataset={{name: image_folder, root: photos, val: 8, workers: {workers}, image_size: 16, augment: {{flip: true,"
    " random_resized_crop: true, policy: trivial_augment, random_erasing: 0.5, mixup: 0.2}}}}"
)
SEVERAL_LABELS = (
    "dataset={name: csv, root: images, val: 8, workers: 0, args: {file: tags.csv, label_delimiter: '|'},"
    " augment: {mixup: 0.5, cutmix: 1.0}}"
)
VARIANTS = {
    "plain": [],
    "several labels": [
        *("task=multilabel", SEVERAL_LABELS, "train.class_weights=balanced", "train.keep_best=val_map"),
        *("train.batch_size=8", "train.grad_accum_steps=2", "train.loss=focal", "output.save_every=1step"),
    ],
    "every-step": ["output.save_every=1step", "train.epochs=2"],
    "accumulate": ["train.grad_accum_steps=3", "train.clip_norm=1", "output.save_every=3step"],
    "adam": ["optimizer={name: AdamW, lr: 0.01}", "swa.lr=0.005", "output.save_every=0.1s"],
    "kept": [
        *("train.keep_best=val_loss", "averages.ema.keep=best", "averages.tail.keep=best", "output.save_every=5step"),
        *("dataset.sampler=balanced", "train.loss=bce", "train.class_weights=balanced", "train.grad_accum_steps=2"),
    ],
    "frozen": [
        *('model.freeze=["*", "!features.12.*", "!classifier.*"]', "model.unfreeze=50%", "output.save_every=5step"),
        "optimizer={name: AdamW, lr: 0.01, layer_decay: 0.75, no_decay: [norm], groups: [{match: bias, lr: 2x}]}",
        *("swa.lr=0.005", "averages.ema.keep=best"),
    ],
    "automatic": ["train.threads=auto"],
    "exact": ["swa.batchnorm.method=exact", "output.save_every=7step", "snapshots.keep=all"],
    "streamed": [STREAMED, "train.batch_size=8", "output.save_every=1step"],
    **{
        f"photos, workers: {workers}": [PHOTOS.format(workers=workers), "train.batch_size=8", "output.save_every=1step"]
        for workers in (0, 1, 2)
    },
}


class Kill(NamedTuple):
    """When a run is killed: at its `event`-th file operation, or after a share of the undisturbed time."""

    event: int = 0
    share: float = 0.0


class Undisturbed(NamedTuple):
    """The undisturbed run: its folder, seconds, and file operations."""

    folder: Path
    seconds: float
    num_events: int


def _killed(folder: Path, words: list[str], kill: Kill, undisturbed: Undisturbed) -> int | None:
    """Run until it is killed or ends; its exit code, None if it was killed."""
    process = start(folder, words, kill_at=kill.event)
    process.join(kill.share * undisturbed.seconds if kill.share else None)
    process.kill()
    process.join()
    return None if process.exitcode == -signal.SIGKILL else process.exitcode


def _prepare(folder: Path) -> None:
    folder.mkdir()
    (folder / "killed.yaml").write_text(RECIPE)
    generator = torch.Generator().manual_seed(0)
    for label in ("cat", "dog"):
        (folder / "images" / label).mkdir(parents=True)
        for index in range(20):
            pixels = torch.randint(256, (12, 12, 3), generator=generator, dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(folder / "images" / label / f"{index}.png")
            photo = Image.fromarray(pixels).resize((20 + 9 * index, 200 - 7 * index), Image.Resampling.BICUBIC)
            (folder / "photos" / label).mkdir(parents=True, exist_ok=True)
            photo.save(folder / "photos" / label / f"{index}.jpg")
    tags = [f"{label}/{index}.png,{label}{'|odd' * (index % 2)}" for label in ("cat", "dog") for index in range(20)]
    (folder / "images/tags.csv").write_text("\n".join(["path,label", *tags]))


def _run_undisturbed(folder: Path, words: list[str]) -> Undisturbed:
    _prepare(folder)
    process = start(folder, words, counted=folder / "events.txt")
    process.join()
    assert process.exitcode == 0, said_in(folder)
    run = folder / "runs/killed-001"
    seconds = json.loads((run / "result.json").read_text())["seconds"]
    return Undisturbed(run, seconds + 0.5, int((folder / "events.txt").read_text()))


def _chain(folder: Path, words: list[str], kills: Iterator[Kill], undisturbed: Undisturbed) -> int:
    """Start a run, kill and resume it until it ends; returns the number of kills."""
    _prepare(folder)
    num_kills, command, begun = 0, words, 0
    while True:
        kill = next(kills, None)
        code = _killed(folder, command, kill or Kill(), undisturbed)
        said = said_in(folder)
        assert "Traceback" not in said, said
        if code is None:
            num_kills += 1
        elif code == 0:
            break
        elif "is finished" in said:  # killed between the last word and the end of the process
            assert code == 2, said
            break
        else:
            # Killed before its recipe was on disk: there is nothing of it, and a new folder is begun.
            assert code == 2, said
            assert "there is no run to go on with" in said, said
            assert not list((folder / f"runs/killed-{begun:03d}").glob("**/*.pt"))
        runs = sorted((folder / "runs").glob("killed-*"))
        begun = len(runs)
        resumable = bool(runs) and any((runs[-1] / name).is_file() for name in ("recipe.yaml", "checkpoints/last.pt"))
        command = ["train", "--resume", str(runs[-1])] if resumable else words
    run = sorted((folder / "runs").glob("killed-*"))[-1]
    assert not [path for path in run.rglob("*") if path.name.endswith(".tmp")]
    assert_equal_runs(undisturbed.folder, run)
    shutil.rmtree(folder)
    return num_kills


def _instants(generator: random.Random, undisturbed: Undisturbed, number: int) -> Iterator[Kill]:
    """Alternately at a file operation, where a file may be incomplete, and at any time."""
    for index in range(number):
        if index % 2:
            yield Kill(share=generator.uniform(0.02, 1))
        else:
            yield Kill(event=generator.randint(1, undisturbed.num_events))


@pytest.mark.slow
def test_five_kills(tmp_path: Path) -> None:
    """Five kills at instants that are the same in every run of this test, against the undisturbed run."""
    words = ["train", "killed.yaml", "output.save_every=10step", "train.epochs=3"]
    undisturbed = _run_undisturbed(tmp_path / "undisturbed", words)
    events = iter([Kill(event=undisturbed.num_events * part // 100) for part in (12, 25, 20, 15, 9)])
    assert _chain(tmp_path / "killed", words, events, undisturbed) == 5


@pytest.mark.torture
@pytest.mark.parametrize("variant", VARIANTS)
def test_random_kills(tmp_path: Path, variant: str) -> None:
    """At least nine kills at random instants, at most four per run, against the undisturbed run; prints the seed."""
    words = ["train", "killed.yaml", *VARIANTS[variant]]
    undisturbed = _run_undisturbed(tmp_path / "undisturbed", words)
    seed = random.SystemRandom().randrange(10**6)
    generator = random.Random(seed)
    num_kills = num_chains = 0
    while num_kills < 9:
        instants = _instants(generator, undisturbed, 4)
        num_kills += _chain(tmp_path / f"chain-{num_chains}", words, instants, undisturbed)
        num_chains += 1
    print(f"{variant}: {num_kills} kills in {num_chains} runs, seed {seed}: 0 differences")
