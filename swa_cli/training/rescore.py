"""`swa eval`: the scores of every weight set in a checkpoint, or of a whole run and its snapshot ensemble.

Averaged weights with stale statistics are never scored unless the caller insists.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from swa_cli.data.batches import Batches
from swa_cli.errors import UserError
from swa_cli.report.terminal import Terminal
from swa_cli.training import checkpoint, ensemble, evaluate, faults, revisit
from swa_cli.training.bench import Bench
from swa_cli.training.run_folder import RunFolder
from swa_cli.training.tasks import SampleScores


def evaluate_checkpoint(
    path: Path,
    overrides: Sequence[str],
    *,
    terminal: Terminal,
    weights: str = "all",
    split: str | None = None,
    allow_stale_bn: bool = False,
    recipe: Path | None = None,
    allow_code: bool = False,
    with_ensemble: bool = False,
) -> dict[str, Any]:
    """Score the weight sets of a checkpoint or a run on a split (default: test, or val where there is no test).

    Raises:
        UserError: Unknown weights or split, stale BatchNorm statistics, a checkpoint that does not fit, or an ensemble
            of something else than the snapshots of a run.
    """
    folder = RunFolder(path) if path.is_dir() else None
    found = checkpoint.read(path) if folder is None else revisit.resume_point(folder)
    snapshots = _ensemble(folder, found, terminal) if with_ensemble else None
    bench, model = revisit.open_checkpoint(found, overrides, recipe=recipe, terminal=terminal, allow_code=allow_code)
    sets = checkpoint.weight_sets(found, model) if folder is None else revisit.weight_sets_of_run(folder, found, model)
    sets = revisit.chosen(sets, weights, path)
    details: dict[str, dict[str, Any]] = {
        name: {"count": item.count, "batchnorm": item.batchnorm} for name, item in sets.items()
    }
    if snapshots is not None:
        members = len(snapshots.members)
        details["ensemble"] = {"count": None, "batchnorm": snapshots.batchnorm, "members": members}
    _require_fresh(path, details, allow_stale_bn=allow_stale_bn)
    name_of_split = split or bench.scoring_split()
    loader = bench.plain_batches(name_of_split)
    started = time.monotonic()
    samples = {name: _score(name, item, model, loader, bench=bench, path=path) for name, item in sets.items()}
    curve: list[dict[str, Any]] = []
    if snapshots is not None:
        samples["ensemble"], curve = ensemble.score(snapshots, model, loader, bench=bench)
    rows = {name: {**row, **details[name]} for name, row in evaluate.table(samples).items()}
    num_samples = len(next(iter(samples.values())).correct)
    terminal.summary(rows, split=name_of_split, samples=num_samples)
    if snapshots is not None:
        terminal.ensemble(curve)
    result = {
        "command": "eval",
        "checkpoint": str(path),
        "run": revisit.run_of(found.path),
        "split": name_of_split,
        "samples": num_samples,
        "weights": rows,
        "seconds": round(time.monotonic() - started, 3),
        "device": str(bench.hardware.device),
        "precision": bench.hardware.precision,
    }
    return result if snapshots is None else {**result, "ensemble": curve}


def _score(
    name: str, item: checkpoint.WeightSet, model: nn.Module, loader: Batches, *, bench: Bench, path: Path
) -> SampleScores:
    checkpoint.load_weights(model, item.state_dict, source=f"{path} ({name})")
    with (
        bench.terminal.progress(f"scoring {name}", len(loader)) as bar,
        faults.memory("train.eval_batch_size", bench.recipe.train.eval_batch_size),
    ):
        return evaluate.score(model, loader, hardware=bench.hardware, advance=bar.advance)


def _ensemble(folder: RunFolder | None, found: checkpoint.Checkpoint, terminal: Terminal) -> ensemble.Ensemble:
    if folder is None:
        raise UserError(
            f"{found.path}: is a file, and an ensemble is made of the snapshots of a run",
            hint=f"name the folder of its run, such as {revisit.run_of(found.path) or 'runs/latest'}",
        )
    return ensemble.of_run(folder, found, terminal)


def _require_fresh(path: Path, details: Mapping[str, Mapping[str, Any]], *, allow_stale_bn: bool) -> None:
    stale = [name for name, item in details.items() if item["batchnorm"] == "stale"]
    if stale and not allow_stale_bn:
        raise UserError(
            f"{path}: {', '.join(stale)} has stale BatchNorm statistics: its scores would mean nothing",
            hint=f"run `swa bn-update {path if path.is_file() else 'FILE'}` first, or insist with --allow-stale-bn",
        )
