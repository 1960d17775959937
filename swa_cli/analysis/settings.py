"""Find the runs in folders of runs, repeats and sweeps; group those whose recipes differ only in the seed: settings.

The one idea: whatever was trained, it lies in ordinary run folders. Everything is read from their recipe.yaml,
result.json and metrics.csv, without torch and without the code that a recipe names. A repeat is one setting; so are
single runs whose recipes differ only in the seed. A run is counted once, whichever names and links lead to it.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from swa_cli.analysis.compare import Result, read_result
from swa_cli.checkpoint.run_folder import HOW_TO_NAME_A_RUN, RESUMABLE_KEYS, RunFolder, read_json
from swa_cli.errors import UserError
from swa_cli.metrics.metric import BY_TASK, TaskMetrics, metrics_of, user_task_metrics
from swa_cli.recipe import load
from swa_cli.recipe.schema import Recipe
from swa_cli.report.terminal import Terminal
from swa_cli.units import some_of

RAW = "last"
RAN = ("complete", "pruned")  # states of the trials of a sweep that have a row
# Keys that make no other setting. Another root may hold other images, and nothing here opens them.
IGNORED = (*(key for key in RESUMABLE_KEYS if key != "dataset.root"), "seed", "name")
Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class FoundRun:
    """A run, read from the text files of its folder; one that is not finished has no `result`."""

    path: Path
    recipe: Recipe
    result: Result | None

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of metrics.csv, None where something was not measured.

        Raises:
            UserError: It is not as swa writes it.
        """
        path = self.path / "metrics.csv"
        if not path.is_file():
            return []
        try:
            with open(path, newline="", encoding="utf-8") as file:
                rows: list[Row] = [
                    {key: float(text) if text else None for key, text in row.items()}
                    for row in csv.DictReader(file, strict=True)
                ]
            if any(row.get("epoch") is None for row in rows):
                raise ValueError("a row has no epoch")
        except (OSError, ValueError, TypeError, csv.Error) as error:
            raise UserError(f"{path}: is not as swa writes it ({error})", hint="name another run folder") from error
        return rows

    @cached_property
    def metrics(self) -> TaskMetrics:
        """The metrics of its task; those of a user's task are read from its files."""
        if self.recipe.task in BY_TASK or self.result is not None:
            return metrics_of(self.recipe.task, {} if self.result is None else self.result.weights)
        columns = [key.removeprefix("val_") for key in (self.rows or [{}])[0] if key.startswith("val_")]
        others = [key for key in columns if key != "loss"]
        return user_task_metrics({**dict.fromkeys(others, "higher"), "loss": "lower"})

    @property
    def state(self) -> str:
        """How far it is: finished, or `epoch 3 of 30`."""
        if self.result is not None:
            return "finished"
        return f"epoch {int(self.rows[-1]['epoch']) if self.rows else 0} of {self.recipe.train.epochs}"

    @cached_property
    def scores(self) -> dict[str, dict[str, Row]]:
        """Weight set -> split -> scores; of an unfinished run the last ones on validation images."""
        if self.result is not None:
            return {
                name: {self.result.split: row} | ({"val": row["val"]} if row.get("val") is not None else {})
                for name, row in self.result.weights.items()
            }
        keys = {"loss": self.metrics.loss_key, self.metrics.primary.key: self.metrics.primary.key}
        names = {RAW: "", **{key.removesuffix("_count"): f"{key.removesuffix('_count')}_" for key in self._averages}}
        found: dict[str, dict[str, Row]] = {}
        for name, prefix in names.items():
            measured = [row for row in self.rows if row.get(f"{prefix}val_loss") is not None]
            if measured:
                found[name] = {"val": {key: measured[-1].get(f"{prefix}val_{column}") for column, key in keys.items()}}
        return found

    @property
    def _averages(self) -> list[str]:
        return [key for key in (self.rows or [{}])[0] if key.endswith("_count")]


@dataclass(frozen=True, eq=False)
class Setting:
    """Runs of one recipe with different seeds, in the order of their seeds; `folder` is that of their repeat."""

    runs: Sequence[FoundRun]
    folder: Path | None
    label: str = ""

    @cached_property
    def counted(self) -> dict[int, FoundRun]:
        """Seed -> run: those that have finished, or else all."""
        finished = {run.recipe.seed: run for run in self.runs if run.result is not None}
        return finished or {run.recipe.seed: run for run in self.runs}

    @property
    def first(self) -> FoundRun:
        """The run that stands for what all have in common."""
        return next(iter(self.counted.values()))

    @property
    def state(self) -> str:
        """How far it is: finished, `epoch 3 of 30`, or `2 of 3 seeds finished`."""
        states = list(dict.fromkeys(run.state for run in self.runs))
        if len(states) == 1:
            return states[0]
        number = sum(run.result is not None for run in self.runs)
        return f"{number} of {len(self.runs)} seeds finished"

    @property
    def path(self) -> Path:
        """The folder that its label names."""
        return self.folder or self.runs[0].path

    @cached_property
    def names(self) -> list[str]:
        """The weight sets that any of its runs has."""
        return list(dict.fromkeys(name for run in self.counted.values() for name in run.scores))

    def scores(self, name: str) -> dict[str, dict[int, Row]]:
        """Return split -> seed -> scores of a weight set."""
        found: dict[str, dict[int, Row]] = {}
        for seed, run in self.counted.items():
            for split, row in run.scores.get(name, {}).items():
                found.setdefault(split, {})[seed] = row
        return found

    @cached_property
    def best(self) -> str:
        """The weight set of the lowest mean validation loss over the seeds: with one seed the one that the run ships.

        Without validation scores it is the first average, or else the reference.
        """
        key, losses = self.first.metrics.loss_key, {}
        for name in self.names:
            rows = self.scores(name).get("val", {})
            values = [math.nan if row[key] is None else row[key] for row in rows.values()]
            if len(values) == len(self.counted) and math.isfinite(sum(values)):
                losses[name] = math.fsum(values) / len(values)
        if losses:
            return min(losses, key=lambda name: losses[name])
        return RAW if self.first.result is None else self.first.result.outcome


def read_run(path: Path) -> FoundRun:
    """Read a run folder, without its checkpoints.

    Raises:
        UserError: It is none, or not as swa writes it.
    """
    folder = RunFolder.open(path)
    if not folder.recipe.is_file():
        raise UserError(f"{path}: has no recipe.yaml to compare", hint="name another run folder")
    recipe = load.load(folder.recipe).recipe
    result = None
    if folder.result.is_file():
        hint = "name another run folder, or score its checkpoints with `swa eval`"
        unknown = TaskMetrics((), loss_key="", training_key="")  # a user's task is not imported here
        _, result = read_result(folder.result, metrics=BY_TASK.get(recipe.task, unknown), hint=hint)
    return FoundRun(path, recipe, result)


def find(paths: Sequence[Path], *, terminal: Terminal, may_be_one: bool = True) -> list[Setting]:
    """Return the settings of all runs in folders of runs, repeats and sweeps, in the order of the folders.

    What is no run is left out, with one warning. `may_be_one`: whether one run alone will do.

    Raises:
        UserError: A folder is missing, no run is among them, or one cannot be read.
    """
    members: dict[Path, Path | None] = {}  # folder of a run -> that of its repeat
    named: dict[Path, Path] = {}  # resolved folder -> as it was named
    others, single = [], []
    elsewhere: list[str] = []
    for path in paths:
        if not os.path.lexists(path):
            raise UserError(f"{path}: no such run folder", hint=HOW_TO_NAME_A_RUN)
        found = list(_runs_in(path))
        if missing := _missing_in(path):
            elsewhere.append(f"{path}: holds no folder of {some_of(missing, most=8)}, which its result.json counts")
        elif not found:
            others.append(path)
        for run, repeat in found:
            real = run.resolve()
            named.setdefault(real, run)
            if repeat is not None or real not in members:  # a seed that is also named alone stays with its repeat
                members[real] = repeat
        single += [path] if [run for run, _ in found] == [path] else []
    if elsewhere and not members:
        raise UserError(elsewhere[0], hint="name the folder on the machine that ran them, or copy them into this one")
    for reason in elsewhere:
        terminal.warning(reason)
    if others:
        reason = "is no folder of a run, a repeat or a sweep" if len(others) == 1 else _reason(len(others))
        if not members:
            raise UserError(
                f"{some_of(others, most=8)}: {reason}",
                hint=f"name run folders, such as {others[0]}/*" if _has_runs(others[0]) else "name run folders",
            )
        terminal.warning(f"{some_of(others, most=8)}: {reason}, and left out")
    if len(members) == len(single) == 1 and not may_be_one:
        raise UserError(
            f"{single[0]}: is one run: name at least two, or a repeat or a sweep",
            hint=f"`swa show {shlex.quote(str(single[0]))}` shows one",
        )
    runs = []
    with terminal.progress("reading runs", len(members)) as bar:
        for real, repeat in members.items():
            runs.append((read_run(named[real]), repeat))
            bar.advance()
    return _labeled(_grouped(runs, terminal.warning))


def _reason(number: int) -> str:
    return f"these {number} are no folders of a run, a repeat or a sweep"


def _has_runs(path: Path) -> bool:
    return path.is_dir() and any(True for entry in path.iterdir() for _ in _runs_in(entry))


def _runs_in(path: Path) -> Iterator[tuple[Path, Path | None]]:
    """Yield the folder of each run that a path leads to, with the folder of its repeat."""
    folder = RunFolder(path)
    if folder.sweep.is_file():
        for trial in _numbered(path, "trial-"):
            yield from _runs_in(trial)
        for repeat in _numbered(path / "seeds", "trial-"):
            yield from _runs_in(repeat)
    elif folder.repeat.is_file():
        yield from ((seed, path) for seed in _numbered(path, "seed-") if RunFolder(seed).recipe.is_file())
    elif any(file.is_file() for file in (folder.recipe, folder.last, folder.previous)):
        yield path, None


def _missing_in(path: Path) -> list[str]:
    """Return the trials or seeds that the result of a sweep or a repeat counts and whose folders are not there.

    They may lie on another machine that shared the work.
    """
    folder = RunFolder(path)
    is_sweep = folder.sweep.is_file()
    if not (is_sweep or folder.repeat.is_file()):
        return []
    with suppress(UserError, KeyError, TypeError, AttributeError):  # not there yet, or damaged
        stored = read_json(folder.result)
        if is_sweep:
            names = [trial["run"] for trial in stored["trials"] if trial["state"] in RAN]
        else:
            names = [f"seed-{seed}" for seed in stored["seeds"]]
        return [name for name in names if not RunFolder(path / name).recipe.is_file()]
    return []


def _numbered(path: Path, prefix: str) -> list[Path]:
    """Return the entries of a folder whose names are a prefix and a number, in the order of the numbers."""
    found = [entry for entry in path.glob(f"{prefix}*") if entry.name.removeprefix(prefix).isdecimal()]
    return sorted(found, key=lambda entry: int(entry.name.removeprefix(prefix)))


def _grouped(runs: Sequence[tuple[FoundRun, Path | None]], warn: Callable[[str], None]) -> list[Setting]:
    """Group runs that differ only in the seed, within each repeat and among the single runs.

    A second run with the same seed is a setting of its own: as a seed more it would make the spread too small.
    """
    groups: dict[str, list[list[FoundRun]]] = {}
    folders: dict[str, Path | None] = {}
    for run, repeat in runs:
        ignored = IGNORED if repeat is None else (*IGNORED, "dataset.root")  # its seeds may lie on several machines
        key = json.dumps([str(repeat), load.leaves(run.recipe, ignored=ignored)], sort_keys=True)
        folders[key], alike = repeat, groups.setdefault(key, [])
        twin = next((other for group in alike for other in group if other.recipe.seed == run.recipe.seed), None)
        if twin is not None:
            warn(f"{run.path} has the recipe and the seed of {twin.path}: it is a row of its own, and no further seed")
        for group in alike:
            if all(_may_join(run, other) for other in group):
                group.append(run)
                break
        else:
            alike.append([run])
    found = [(folders[key], group) for key, alike in groups.items() for group in alike]
    every = [folder for folder, _ in found]
    return [  # a folder of a repeat that holds several settings names none of them
        Setting(sorted(group, key=lambda run: run.recipe.seed), folder if every.count(folder) == 1 else None)
        for folder, group in found
    ]


def _may_join(run: FoundRun, other: FoundRun) -> bool:
    """Return whether runs of one recipe have different seeds, and scores on as many samples of one split."""
    if run.recipe.seed == other.recipe.seed:
        return False
    if run.result is None or other.result is None:
        return True
    return (run.result.split, run.result.samples) == (other.result.split, other.result.samples)


def _labeled(settings: Sequence[Setting]) -> list[Setting]:
    labels = titles([setting.path for setting in settings])
    return [
        Setting(
            setting.runs,
            setting.folder,
            f"{label} +{len(setting.runs) - 1}" if setting.folder is None and len(setting.runs) > 1 else label,
        )
        for setting, label in zip(settings, labels, strict=True)
    ]


def titles(paths: Sequence[Path]) -> list[str]:
    """Return a title for each folder, with as many of the folders above it as tell it from the others."""
    resolved = [path.resolve() for path in paths]
    ends: dict[tuple[str, ...], int] = {}
    for path in resolved:
        for number in range(1, len(path.parts) + 1):
            ends[path.parts[-number:]] = ends.get(path.parts[-number:], 0) + 1
    found = []
    for path in resolved:
        number = RunFolder(path).title.count("/") + 1
        while number < len(path.parts) and ends[path.parts[-number:]] > 1:
            number += 1
        found.append("/".join(path.parts[-number:]))
    return found


def differing(recipes: Sequence[Recipe]) -> dict[str, list[Any]]:
    """Return the keys that tell recipes apart, with the value in each recipe; None where a recipe has no such key.

    A section of several keys that some recipes lack is one key, true where it is there; where its own keys differ among
    the recipes that have it, these take its place.
    """
    flats = [{k: v for k, v in load.leaves(recipe, ignored=IGNORED).items() if v != {}} for recipe in recipes]
    columns = {key: [flat.get(key) for flat in flats] for key in dict.fromkeys(key for flat in flats for key in flat)}
    different = {key: values for key, values in columns.items() if any(value != values[0] for value in values)}
    full = {key: values for key, values in different.items() if not _is_presence(values)}
    found: dict[str, list[Any]] = {}
    for key, values in different.items():
        if key in full:
            found[key] = values
            continue
        there = [value is not None for value in values]
        section = next((name for name in _sections(key) if _presence(name, columns) == there), None)
        if section is not None:
            below = [name for name in columns if name.startswith(f"{section}.")]
            if len(below) == 1:
                found[key] = values
            elif not any(name in full for name in below):
                found[section] = [True if is_there else None for is_there in there]
        else:
            found[key] = values
    return found


def _is_presence(values: Sequence[Any]) -> bool:
    """Return whether a key is missing in some recipes, and the same in all others."""
    there = [value for value in values if value is not None]
    return len(there) < len(values) and all(value == there[0] for value in there)


def _sections(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:number]) for number in range(1, len(parts))]


def _presence(section: str, columns: Mapping[str, Sequence[Any]]) -> list[bool]:
    below = [values for key, values in columns.items() if key.startswith(f"{section}.")]
    return [any(value is not None for value in values) for values in zip(*below, strict=True)]


def short_names(keys: Sequence[str]) -> list[str]:
    """Return the last two words of each key, such as `swa.lr`, or more where two keys end in the same."""
    found = []
    for key in keys:
        parts, number = key.split("."), 2
        while sum(f".{other}".endswith("." + ".".join(parts[-number:])) for other in keys) > 1 and number < len(parts):
            number += 1
        found.append(".".join(parts[-number:]))
    return found
