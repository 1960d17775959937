"""A whole job of a contestant and its parts, so that a job of another size can be told from the one that was run."""

from __future__ import annotations

import csv
import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import processes
from benchmarks.contestants.job import first_averaged
from benchmarks.data import num_test

RECIPE = Path(__file__).with_name("recipe.yaml")


@dataclass(frozen=True)
class Job:
    """Seconds and memory of a job; `finish_s` are BatchNorm pass and test scores."""

    images: int
    wall_s: float
    epochs_s: tuple[float, ...]
    finish_s: float
    peak_mb: float
    workers_mb: float
    phases: dict[str, Any]  # what a contestant tells beside that

    @property
    def steady_s(self) -> float:
        """An epoch after the first, in which a network is compiled and memory is taken."""
        return statistics.median(self.epochs_s[1:])

    def seconds(self, *, images: int, epochs: int) -> float:
        """What a job of another size takes: epochs and finish grow with the images, start and end do not."""
        fixed = self.wall_s - sum(self.epochs_s) - self.finish_s
        first = self.epochs_s[0] - self.steady_s
        return fixed + first + images / self.images * (epochs * self.steady_s + self.finish_s)


def theirs(name: str, *, images: int, epochs: int, options: tuple[str, ...] = ()) -> Job:
    """Run a script of `contestants/`.

    Raises:
        ContestantError: It ended with an error.
    """
    words = ["-m", f"benchmarks.contestants.{name}", f"--images={images}", f"--epochs={epochs}", *options]
    ended = processes.run(words)
    told = json.loads(ended.out.splitlines()[-1])
    finish_s = told["batchnorm_s"] + told["scores_s"]
    return Job(images, ended.wall_s, tuple(told["epochs_s"]), finish_s, ended.peak_mb, ended.workers_mb, told)


def ours(*, images: int, epochs: int, precision: str = "auto", compiled: bool = False) -> Job:
    """Run `swa train`, and read its phases off what it leaves.

    `seconds` in metrics.csv is the training of an epoch, and the save of the one before. The time from the last row of
    metrics.csv to swa.pt is one save, the BatchNorm pass and the scores of both weight sets.

    Raises:
        ContestantError: It ended with an error.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = ["-m", "swa_cli", "train", RECIPE, *changes(images=images, epochs=epochs), f"--out={folder}"]
        words += [f"train.precision={precision}", f"train.compile={str(compiled).lower()}"]
        # Compiled code of earlier runs would hide what compiling costs.
        ended = processes.run(words, environment={"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"})
        run = Path(folder, "bench-001")
        with (run / "metrics.csv").open() as rows:
            epochs_s = tuple(float(row["seconds"]) for row in csv.DictReader(rows))
        finish_s = (run / "checkpoints/swa.pt").stat().st_mtime - (run / "metrics.csv").stat().st_mtime
        told = json.loads((run / "result.json").read_text())
    phases = {"precision": told["precision"], "count": told["weights"]["swa"]["count"]}
    return Job(images, ended.wall_s, epochs_s, finish_s, ended.peak_mb, ended.workers_mb, phases)


def changes(*, images: int, epochs: int) -> list[str]:
    """The recipe for so many images and epochs, the last ones averaged as the other contestants do."""
    sizes = [f"dataset.args.train={images}", f"dataset.args.test={num_test(images)}", f"train.epochs={epochs}"]
    return [*sizes, f"swa.start={first_averaged(epochs)}ep", "swa.every=1ep", "swa.lr=0.02"]
