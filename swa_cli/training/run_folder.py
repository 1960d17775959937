"""The folder of a run: `runs/<name>-001`, never an existing one, never overwritten.

recipe.yaml re-runs the run verbatim; run.json says on what it ran; metrics.csv has a row an epoch (fractions,
empty = not measured); result.json holds the final scores; checkpoints/ and snapshots/ the weights.
`runs/latest` points to the newest.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swa_cli.errors import UserError
from swa_cli.report.answer import json_text
from swa_cli.training.checkpoint import write_atomic


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.snapshots = path / "snapshots"
        self.last = self.checkpoints / "last.pt"
        self.result = path / "result.json"
        self.log = path / "log.txt"

    @classmethod
    def create(cls, root: Path, name: str) -> RunFolder:
        """Make the next free `<name>-NNN` under `root` and let `latest` point to it."""
        try:
            root.mkdir(parents=True, exist_ok=True)
            if not os.access(root, os.W_OK):
                raise PermissionError("not writable")
        except OSError as error:
            raise UserError(
                f"output.root: {root} cannot hold run folders ({error.strerror or error})",
                hint="name another with -o DIR",
            ) from error
        taken = [
            int(match[1])
            for entry in root.iterdir()
            if (match := re.fullmatch(re.escape(name) + r"-(\d+)", entry.name))
        ]
        number = max(taken, default=0) + 1
        while True:
            path = root / f"{name}-{number:03d}"
            try:
                path.mkdir()
                break
            except FileExistsError:  # another process was faster
                number += 1
        folder = cls(path)
        folder.checkpoints.mkdir()
        _point_latest(root, path.name)
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run, to go on with.

        Raises:
            UserError: There is no run with a resume point.
        """
        folder = cls(path.resolve())
        if not folder.last.is_file():
            raise UserError(
                f"{path}: holds no checkpoints/last.pt to resume from",
                hint="name a run folder, such as runs/latest",
            )
        return folder

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the folder atomically."""
        write_atomic(self.path / name, lambda file: file.write(text.encode()))

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a JSON file of the folder atomically."""
        self.write_text(name, json_text(values, indent=2) + "\n")

    def write_metrics(self, rows: Sequence[Mapping[str, Any]], averages: Sequence[str]) -> None:
        """Write metrics.csv anew: a row an epoch, so a resumed run repeats none and misses none."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, metric_columns(averages), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
        self.write_text("metrics.csv", buffer.getvalue())

    def snapshot_path(self, step: int) -> Path:
        """Where the raw weights after `step` updates are kept; names sort by step."""
        return self.snapshots / f"step-{step:08d}.pt"


def metric_columns(averages: Sequence[str]) -> list[str]:
    """Columns of metrics.csv for averages of these names."""
    columns = ["epoch", "step", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy"]
    for name in averages:
        columns += [f"{name}_val_loss", f"{name}_val_accuracy", f"{name}_count"]
    return [*columns, "seconds"]


def _point_latest(root: Path, name: str) -> None:
    """Replace the link `latest` in one step; a real file or folder of that name is left alone."""
    latest = root / "latest"
    if latest.exists() and not latest.is_symlink():
        return
    temporary = root / f".latest.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name, target_is_directory=True)
    os.replace(temporary, latest)
