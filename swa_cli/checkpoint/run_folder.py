"""Create, open and lock run folders, and write their files.

A run folder is `runs/<name>-001`: a new one for each run, never overwritten. recipe.yaml re-runs the run verbatim;
run.json says what it ran on; metrics.csv has one row per epoch (fractions; empty = not measured); result.json holds the
final scores, checkpoints/ and snapshots/ the weights. `runs/latest` points to the newest. The folder of a repeat has
repeat.json and one run folder per seed in place of the checkpoints, that of a sweep sweep.json and one per trial.
The log is also the lock: a process that works on the folder holds it, and the lock ends with that process. Processes
share the folder of a repeat or a sweep: `.locks` has a file for each part that one of them works on.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from swa_cli import temporary
from swa_cli.checkpoint import locks, other_formats
from swa_cli.checkpoint.atomic import json_text, write_atomic
from swa_cli.errors import UserError
from swa_cli.metrics.metric import TaskMetrics
from swa_cli.recipe.scalars import is_utf8
from swa_cli.recipe.swap import number_of_worker

# Keys of the recipe that the result does not depend on: a run may continue with other values of them.
RESUMABLE_KEYS = (
    *("dataset.root", "dataset.workers", "dataset.decode"),
    *("train.device", "train.threads", "train.fsdp", "output.*"),
)
LOCKS = ".locks"
ANOTHER_COPY = "take another copy of the file"
HOW_TO_NAME_A_RUN = "name the folder of a run: `swa train` makes one in runs/, and its last lines name it"


def how_to_name(path: Path) -> str:
    """Return the hint for a path that is no run folder; a folder of another program may hold weights."""
    return other_formats.of_folder(path) or HOW_TO_NAME_A_RUN


class RunFolder:
    """Paths and files of one run. Only rank 0 `writes`; on other ranks every write method is a no-op."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = path
        self.writes = writes
        self.checkpoints = path / "checkpoints"
        self.snapshots = path / "snapshots"
        self.last = self.checkpoints / "last.pt"
        self.previous = self.checkpoints / "previous.pt"  # the save before, until the next one is durable
        self.best = self.checkpoints / "best.pt"  # with train.keep_best
        self.plateau = self.checkpoints / "plateau.pt"  # the resume point where a decay at the end of the run begins
        self.recipe = path / "recipe.yaml"
        self.about = path / "run.json"
        self.result = path / "result.json"
        self.repeat = path / "repeat.json"  # only in the folder of a repeat
        self.sweep = path / "sweep.json"  # only in the folder of a sweep
        self.budget = path / "budget.json"  # scores by budget, of `swa average --at`
        self.log = path / "log.txt"
        self.board = path / "tensorboard"  # with the logger tensorboard
        self.loggers = path / "loggers.json"  # the runs of wandb and mlflow that this run goes on with
        self.workers = path / "workers"  # of a SWAP run: one run folder per worker

    @classmethod
    def create(cls, root: Path, name: str) -> RunFolder:
        """Make the next free `<name>-NNN` under `root`."""
        folder = cls(make_next(root, name))
        folder.checkpoints.mkdir()
        return folder

    @classmethod
    def at(cls, path: Path) -> RunFolder:
        """Make a run folder at exactly this path, in which no run has begun.

        Raises:
            UserError: The path, or a folder in it, is a symbolic link.
        """
        folder = cls(path)
        folder._refuse_links(path)
        folder.checkpoints.mkdir(parents=True, exist_ok=True)  # a killed process may have made it
        return folder

    @classmethod
    def open(cls, path: Path, *, writes: bool = True) -> RunFolder:
        """Open an existing run that is to continue.

        Raises:
            UserError: It is no run folder, or not as `swa train` makes one.
        """
        folder = cls(path.resolve(), writes=writes)
        if not folder.has_begun:
            reason = "holds neither checkpoints/last.pt nor recipe.yaml: there is no run to go on with"
            raise UserError(f"{path}: {reason if path.exists() else 'no such run folder'}", hint=how_to_name(path))
        if folder.repeat.is_file():
            raise UserError(
                f"{path}: is the folder of a repeat, not of a run",
                hint="run the same `swa repeat` again, or name the folder of a seed in it",
            )
        if folder.sweep.is_file():
            raise UserError(
                f"{path}: is the folder of a sweep, not of a run",
                hint="run the same `swa sweep` again, or name the folder of a trial in it",
            )
        folder._refuse_links()
        return folder

    @classmethod
    def containing(cls, checkpoint: Path) -> RunFolder | None:
        """Return the run folder that holds a checkpoint or snapshot, or None."""
        folder = cls(checkpoint.resolve().parent.parent)
        return folder if folder.about.is_file() else None

    @property
    def display_path(self) -> Path:
        """The path to show and to use in commands: relative if the folder lies below the working directory."""
        here = Path.cwd()
        path = self.path.absolute()
        return path.relative_to(here) if path.is_relative_to(here) and path != here else self.path

    @property
    def title(self) -> str:
        """Its name in pictures and pages, after that of the repeat or the SWAP run that it is a part of."""
        path = self.path.resolve()
        own = RunFolder(path)
        above = own.run_to_resume
        if above is not own:
            return f"{above.title}/{path.parent.name}/{path.name}"
        return f"{path.parent.name}/{path.name}" if own.is_in_repeat or own.is_in_sweep else path.name

    @property
    def has_begun(self) -> bool:
        """Whether there is a run that can continue."""
        return any(file.is_file() for file in (self.last, self.previous, self.recipe))

    @property
    def resume_points(self) -> list[Path]:
        """What stands in the places of resume points, the newest first; links and folders too."""
        return [path for path in (self.last, self.previous) if os.path.lexists(path)]

    @property
    def snapshot_files(self) -> list[Path]:
        """The snapshots, in the order of their steps."""
        return sorted(path for path in self.snapshots.glob("step-*.pt") if path.stem[5:].isdecimal())

    @property
    def run_to_resume(self) -> RunFolder:
        """The folder to resume: that of the SWAP run for a worker's folder, else this one."""
        above = RunFolder(self.path.parent.parent)
        return above if self.path.parent.name == above.workers.name and above.has_begun else self

    def worker(self, number: int) -> RunFolder:
        """Return the folder of a worker of this SWAP run."""
        return RunFolder(self.workers / str(number))

    def weights_file(self, name: str) -> Path:
        """Return the file of a weight set of the final table; that of a worker is its resume point."""
        number = number_of_worker(name)
        return self.checkpoints / f"{name}.pt" if number is None else self.worker(number).last

    @property
    def is_in_repeat(self) -> bool:
        """Whether this is a seed of a repeat."""
        return RunFolder(self.path.parent).repeat.is_file()

    @property
    def is_in_sweep(self) -> bool:
        """Whether this is a trial of a sweep."""
        return RunFolder(self.path.parent).sweep.is_file()

    @property
    def command(self) -> str | None:
        """The command that made this run among others, `repeat` or `sweep`; None for a run of its own."""
        if self.is_in_sweep or (self.is_in_repeat and RunFolder(self.path.parent.parent).is_in_sweep):
            return "sweep"  # a sweep repeats its best trials in a folder below its own
        return "repeat" if self.is_in_repeat else None

    @contextmanager
    def lock(self, *, is_shared: bool = False) -> Iterator[TextIO]:
        """Lock the folder for this process while the block runs; yields the log, open for appending.

        Temporary files of crashed processes are removed first. Where processes share the folder, one of them has the
        log, and the others have a log that goes nowhere.

        Raises:
            UserError: Another process holds the lock, or the log cannot be written.
        """
        if not self.writes:
            with open(os.devnull, "w") as nowhere:
                yield nowhere
            return
        file = locks.opened(self.log)
        # Unbuffered: a log that cannot be written fails at once, not a second time when it is closed.
        with io.TextIOWrapper(file, encoding="utf-8", write_through=True) as log:
            if locks.lock(file, self.path):
                self.remove_temporary_files()
                yield log
                return
            if not is_shared:
                message = f"{self.path}: another process is working on this run{locks.holder(file)}"
                raise UserError(message, hint="wait for it, or stop it")
        with open(os.devnull, "w") as nowhere:
            yield nowhere

    def lock_of(self, part: str) -> Path:
        """Return the lock file of a part of this folder, for `locks.take` and `locks.holding`.

        Raises:
            UserError: A symbolic link is in the place of the folder of locks.
        """
        folder = self.path / LOCKS
        self._refuse_links(folder)
        folder.mkdir(exist_ok=True)
        return folder / part

    def _refuse_links(self, *more: Path) -> None:
        for part in (
            *more,
            self.checkpoints,
            self.snapshots,
            self.board,
            self.workers,
            self.path / "wandb",
            self.path / "mlflow",
        ):
            if part.is_symlink():
                raise UserError(
                    f"{part}: is a symbolic link, which is not followed for writing",
                    hint="put the folder itself there",
                )

    def remove_temporary_files(self) -> None:
        """Remove what crashed processes have left, and nothing that a process works on."""
        for folder in (self.path, self.checkpoints, self.snapshots):
            temporary.remove_leftovers(folder)

    def point_latest(self, root: Path) -> None:
        """Let the link `latest` under `root` point to this folder; a real file or folder of that name is left alone."""
        latest = root / "latest"
        if not self.writes or (latest.exists() and not latest.is_symlink()):
            return
        link = root / ".latest.tmp"  # the same name in all processes, so that none is left behind
        while True:
            root.mkdir(parents=True, exist_ok=True)  # the folder may be elsewhere, as a trial of a shared sweep is
            link.unlink(missing_ok=True)
            try:
                link.symlink_to(os.path.relpath(self.path, root), target_is_directory=True)
                os.replace(link, latest)
                return
            except (FileExistsError, FileNotFoundError):  # another process is doing the same
                continue

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the folder atomically."""
        if self.writes:
            write_atomic(self.path / name, lambda file: file.write(text.encode()))

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a JSON file of the folder atomically."""
        self.write_text(name, json_text(values, indent=2) + "\n")

    def write_metrics(self, rows: Sequence[Mapping[str, Any]], averages: Sequence[str], metrics: TaskMetrics) -> None:
        """Rewrite metrics.csv with one row per epoch, so that a resumed run repeats no row and misses none."""
        columns = ["epoch", "step", "lr", *metrics.columns([])]
        for name in averages:
            columns += [f"{name}_val_loss", f"{name}_val_{metrics.primary.key}", f"{name}_count"]
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, [*columns, "seconds"], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.write_text("metrics.csv", buffer.getvalue())

    def snapshot_path(self, step: int) -> Path:
        """Return the file of the raw weights after `step` updates; names sort by step."""
        return self.snapshots / f"step-{step:08d}.pt"


def make_root(root: Path) -> None:
    """Make the folder of run folders, if there is none.

    Raises:
        UserError: No folder can be made there.
    """
    try:
        if not is_utf8(str(root.absolute())):
            raise OSError("its path has bytes that are not UTF-8")
        root.mkdir(parents=True, exist_ok=True)
        if not os.access(root, os.W_OK):
            raise PermissionError("not writable")
    except OSError as error:
        raise UserError(
            f"output.root: {root} cannot hold run folders ({error.strerror or error})",
            hint="name another with -o DIR",
        ) from error


def make_next(root: Path, name: str) -> Path:
    """Make the next free folder `<name>-NNN` under `root`.

    Raises:
        UserError: No folder can be made there.
    """
    make_root(root)
    number = max((number for number, _ in numbered(root, name)), default=0) + 1
    while True:
        path = root / f"{name}-{number:03d}"
        try:
            path.mkdir()
            return path
        except FileExistsError:  # another process was faster
            number += 1


def read_json(path: Path, *, hint: str = ANOTHER_COPY) -> dict[str, Any]:
    """Return the object in a JSON file of a run folder.

    Raises:
        UserError: It cannot be read, or is not as swa writes it.
    """
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not as swa writes it ({error})", hint=hint) from error
    return values


def about(record: Path) -> dict[str, Any]:
    """Return the content of a run.json.

    Raises:
        UserError: It is not as swa writes it.
    """
    values = read_json(record)
    for key, kind, lack in [("recipe_folder", str, "where the recipe lay"), ("threads", int, "the number of threads")]:
        if not isinstance(values.get(key), kind):
            raise UserError(f"{record}: is not as swa writes it (it does not say {lack})", hint=ANOTHER_COPY)
    return values


def folder_of_launch(launch: str, root: Path, name: str) -> Path | None:
    """Return the run folder `<name>-NNN` that an earlier attempt of this launch has begun, or None."""
    for _, path in reversed(numbered(root, name)):
        with suppress(OSError, UserError):  # no run has begun there, or it is another program's folder
            folder = RunFolder(path)
            if read_json(folder.about).get("launch") == launch and folder.has_begun:
                return path
    return None


def numbered(root: Path, name: str) -> list[tuple[int, Path]]:
    """Return every `<name>-NNN` under `root` with its number, the newest last."""
    pattern = re.compile(re.escape(name) + r"-(\d+)")
    entries = root.iterdir() if root.is_dir() else ()
    return sorted((int(match[1]), entry) for entry in entries if (match := pattern.fullmatch(entry.name)))
