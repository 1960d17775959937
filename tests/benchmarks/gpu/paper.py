"""Two networks of the paper on CIFAR-10: SGD and SWA with its settings, in as many epochs as the time allows.

Izmailov et al. 2018, table 1 and its repository: batch 128, momentum 0.9, crops and flips; the rate of SGD is constant
for half of the run and falls linearly to a hundredth of it at 0.9; SWA begins at a share of the run at a rate of its
own. The epochs are chosen once, from an epoch that is timed, and kept in paper.json: a call that was stopped is given
again, until all runs are done.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.gpu import cifar
from benchmarks.gpu.results import KINDS

START_S = 35.0  # of a run, beside its epochs: imports, images, BatchNorm, scores
FEWEST = 4  # epochs
GRACE_S = 30.0  # of a run that is stopped, for its step and its resume point


@dataclass(frozen=True)
class Network:
    """A network with the paper's settings, and its published accuracy (CIFAR-10, 3 runs)."""

    name: str
    lr: float
    weight_decay: float
    swa_lr: float
    swa_start: int  # percent of the run
    published: str

    def words(self, kind: str) -> list[str]:
        """The changes to paper.yaml: without an average `swa_paper` falls to a hundredth of the rate."""
        words = [
            f"model={{name: {self.name}}}",
            f"optimizer.lr={self.lr}",
            f"optimizer.weight_decay={self.weight_decay}",
        ]
        average = [f"swa={{start: {self.swa_start}%, every: 1ep, lr: {self.swa_lr}}}"]
        return words + average if kind == "swa" else words


NETWORKS = (  # starts 161 of 200 epochs and 126 of 150
    Network("vgg16", 0.05, 5e-4, 0.01, 80, "93.25 ± 0.16, 93.59 ± 0.16 in 200 epochs"),
    Network("preresnet110", 0.1, 3e-4, 0.01, 84, "95.03 ± 0.05, 95.51 ± 0.10 in 150 epochs"),
)
SEED = 0
TRAIN = (sys.executable, "-m", "swa_cli", "train")
RECIPE = Path(__file__).with_name("paper.yaml")


def measure(options: Namespace) -> Iterator[dict[str, Any]]:
    """Go on with the runs until the time is over; yield, after each network, the rows of those whose runs are done.

    A run that fails takes no other along: it is named among those that are not finished.
    """
    ends = time.monotonic() + 60 * options.minutes
    out = options.out / "paper"
    root = cifar.folder(options.cifar, options.out)
    common = [f"dataset.root={root}", f"train.device={options.device}", f"seed={SEED}", "-q", "--json"]
    epochs = _epochs(out, common, options, ends=ends)
    about = machine.describe(options.device)
    train, test = (sum(1 for _ in (root / split).rglob("*.jpg")) for split in cifar.SPLITS)
    data = f"{train:,} training images of CIFAR-10 as JPEG files, scored on {test:,} others of them"
    rows: list[dict[str, Any]] = []
    unfinished: list[str] = []
    for number, network in enumerate(NETWORKS):
        scores = {}
        for kind in KINDS:
            name = f"{network.name}, {kind}"
            words = [*network.words(kind), f"train.epochs={epochs[network.name]}", *common]
            try:
                result = _run(out / network.name / kind, words, seconds=ends - time.monotonic())
            except subprocess.CalledProcessError as error:
                unfinished.append(f"{name} (it failed with exit code {error.returncode})")
                continue
            if result is None:
                unfinished.append(name)
            else:
                scores[kind] = result["weights"]["swa" if kind == "swa" else "last"]
        if len(scores) == len(KINDS):
            row = {"network": network.name, "epochs": epochs[network.name], "published": network.published}
            rows.append(row | scores)
        later = [f"{waiting.name}, {kind}" for waiting in NETWORKS[number + 1 :] for kind in KINDS]
        section = {"machine": about, "seed": SEED, "data": data, "rows": [*rows], "unfinished": [*unfinished, *later]}
        yield section


def _epochs(out: Path, common: Sequence[str], options: Namespace, *, ends: float) -> dict[str, int]:
    """Return the epochs of each network: as given, as chosen by an earlier call, or as many as fit into the time."""
    path = out / "epochs.json"
    if path.exists():
        known: dict[str, int] = json.loads(path.read_text())
        return known
    if options.epochs is not None:
        chosen = {network.name: options.epochs for network in NETWORKS}
    else:
        epoch_s = {
            network.name: _epoch_s(out / "timed" / network.name, network, common, ends=ends) for network in NETWORKS
        }
        left_s = ends - time.monotonic() - GRACE_S
        share_s = left_s / (len(NETWORKS) * len(KINDS)) - START_S  # of a run: the slower network has fewer epochs
        chosen = {name: max(FEWEST, int(share_s / each)) for name, each in epoch_s.items()}
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(chosen) + "\n")
    return chosen


def _epoch_s(out: Path, network: Network, common: Sequence[str], *, ends: float) -> float:
    """Return the seconds of the second epoch of a run."""
    result = _run(out, [*network.words("sgd"), "train.epochs=2", *common], seconds=ends - time.monotonic())
    if result is None:
        raise TimeoutError(f"{network.name}: two epochs take longer than there is time: give more --minutes")
    with Path(result["run"], "metrics.csv").open(newline="") as stream:
        return float(list(csv.DictReader(stream))[-1]["seconds"])


def _run(out: Path, words: Sequence[str], *, seconds: float) -> dict[str, Any] | None:
    """Train, or go on with the run in `out`; return what `--json` prints, or None if the time was too short.

    Raises:
        subprocess.CalledProcessError: The run failed; its messages are on the terminal.
    """
    answer = out / "answer.json"
    if answer.exists():
        known: dict[str, Any] = json.loads(answer.read_text())
        return known
    if seconds <= GRACE_S:
        return None
    latest = out / "latest"
    asked = ["--resume", str(latest), "-q", "--json"] if latest.exists() else [str(RECIPE), *words, "-o", str(out)]
    command = [*TRAIN, *asked]
    print(f"{out.parent.name}, {out.name}", file=sys.stderr, flush=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            said, _ = process.communicate(timeout=seconds - GRACE_S)
        except subprocess.TimeoutExpired:
            process.terminate()  # it saves, and the next call goes on
            process.communicate()
            return None
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    answer.write_text(said)
    found: dict[str, Any] = json.loads(said)
    return found
