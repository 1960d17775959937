"""Golden runs: hashes of everything that small runs produce, to hold a refactoring to the same bits.

    python tests/golden_runs.py store golden.json     # before
    python tests/golden_runs.py check golden.json     # after; exit code 1 and the names of what differs

Bits depend on the processor, the threads and the version of torch: a file of hashes is for one machine and is not kept
in the repository. A hash covers the values, never the names of recipe keys, so keys may be renamed in between.
"""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

RECIPES = Path(__file__).parents[1] / "recipes"
COMMON = ("train.threads=1", "train.precision=fp32", "dataset.val=100")
VARYING = {"seconds", "environment", "recipe", "run", "checkpoint", "file", "path", "training"}
# Sends SIGTERM to itself after the 17th step of the optimizer that follows the start of the run folder.
STOPPED_AT_17 = """
import os, pathlib, signal, sys
from torch.optim.optimizer import register_optimizer_step_post_hook
done = 0
def count(*_):
    global done
    done += any(pathlib.Path("runs").glob("*/run.json"))
    if done == 17:
        os.kill(os.getpid(), signal.SIGTERM)
register_optimizer_step_post_hook(count)
from swa_cli.cli import main
sys.argv = ["swa", *sys.argv[1:]]
main()
"""


class Case(NamedTuple):
    """Commands of one golden run, each the words after `swa` and the exit code that it ends with."""

    commands: tuple[tuple[str, ...], ...]
    stopped_first: bool = False  # the first command is stopped by SIGTERM after step 17


def _train(recipe: str, *changes: str) -> tuple[str, ...]:
    return ("train", str(RECIPES / f"{recipe}.yaml"), *COMMON, *changes)


DIGITS = _train("digits", "train.epochs=4", "snapshots.every=1ep")
CASES: Mapping[str, Case] = {
    "digits": Case((DIGITS,)),
    "averages": Case(
        (
            _train(
                "digits",
                "train.epochs=4",
                "averages={ema: {kind: ema, decay: 0.9, start: 0ep, every: 1step}, "
                "swag: {kind: swag, rank: 4, start: 25%, every: 4step}}",
                "swa.batchnorm.method=exact",
                "optimizer={name: AdamW, lr: 0.01}",
                "swa.lr=0.005",
                "snapshots={every: 1ep, cumulative: true}",
            ),
        )
    ),
    "swap": Case((_train("digits_swap", "train.epochs=6", "swap.workers=2"),)),
    "rotated": Case((_train("rotated_digits_regression", "train.epochs=4"),)),
    "segmentation": Case(
        (
            _train(
                "shapes_unet_cyclic",
                "train.epochs=3",
                "swa.start=1ep",
                "swa.eval_every=3ep",
                "dataset.val=20",
                "dataset.args={size: 32, train: 120, test: 40, classes: 2}",
            ),
        )
    ),
    "fge": Case(
        (
            DIGITS,
            _train(
                "cifar10_fge",
                "name=fge",
                "dataset={name: digits, val: 100, augment: {crop: 1}}",
                "model={name: convnet, args: {width: 16}}",
                "train.init=runs/digits-convnet-001/checkpoints/last.pt",
                "train.epochs=5",
                "swa.eval_every=5ep",
            ),
        )
    ),
    "resumed": Case(
        (
            _train(
                "digits",
                "train.epochs=6",
                "model.args={width: 16, dropout: 0.3}",
                "train.grad_accum_steps=2",
                "train.clip_norm=1",
            ),
            ("train", "--resume", "runs/digits-convnet-001"),
        ),
        stopped_first=True,
    ),
    "processes": Case(((*DIGITS, "--processes", "2"),)),
}


def run(case: Case, folder: Path) -> None:
    """Run the commands of a case in `folder`; runs are made under `folder/runs`."""
    for index, words in enumerate(case.commands):
        stopped = case.stopped_first and index == 0
        program = ["-c", STOPPED_AT_17] if stopped else ["-m", "swa_cli"]
        ended = subprocess.run([sys.executable, *program, *words], cwd=folder, capture_output=True, text=True)
        if ended.returncode != (143 if stopped else 0):
            raise SystemExit(f"{' '.join(words)} ended with {ended.returncode}:\n{ended.stderr}")


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every tensor and value of the checkpoints under `folder`, and of the tables, without times."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*.pt")):
        content = torch.load(path, weights_only=True)
        for key, value in _leaves(content):
            found[f"{path.relative_to(folder)}{key}"] = _hash(value)
    for path in sorted(folder.rglob("metrics.csv")):
        rows = [{**row, "seconds": ""} for row in csv.DictReader(path.read_text().splitlines())]
        found[str(path.relative_to(folder))] = _hash(rows)
    for path in sorted(folder.rglob("result.json")):
        found[str(path.relative_to(folder))] = _hash(sorted(map(repr, _leaves(json.loads(path.read_text())))))
    return found


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested dicts and lists with its path, without what varies from run to run."""
    if isinstance(value, (dict, list, tuple)):
        for part, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if part not in VARYING:
                yield from _leaves(inner, f"{key}/{part}")
    else:
        yield key, value


def _hash(value: Any) -> str:
    """The hash of a tensor's type, shape and bytes, or of the text of another value."""
    if not isinstance(value, torch.Tensor):
        return hashlib.sha256(repr(value).encode()).hexdigest()
    head = f"{value.dtype} {tuple(value.shape)} ".encode()
    return hashlib.sha256(head + value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def main(command: str, file: str, *names: str) -> None:
    """Store or check the hashes of all cases, or of those named."""
    found = {}
    for name in names or CASES:
        with tempfile.TemporaryDirectory() as folder:
            run(CASES[name], Path(folder))
            found[name] = hashes(Path(folder))
            print(f"{name}: {len(found[name])} hashes")
    if command == "store":
        Path(file).write_text(json.dumps(found, indent=1))
        return
    stored = json.loads(Path(file).read_text())
    differing = [
        f"{name} {key}"
        for name, ours in found.items()
        for key in sorted(ours.keys() | stored[name].keys())
        if ours.get(key) != stored[name].get(key)
    ]
    print("\n".join(differing) or "equal")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main(*sys.argv[1:])
