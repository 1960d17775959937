"""`swa eval`: the scores of every weight set in a checkpoint.

Averaged weights with stale statistics are never scored unless the caller insists.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swa_cli.errors import UserError
from swa_cli.report.terminal import Terminal
from swa_cli.training import checkpoint, evaluate, faults, revisit


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
) -> dict[str, Any]:
    """Score the weight sets of a checkpoint on a split (default: test, or val where there is no test).

    Raises:
        UserError: Unknown weights or split, stale BatchNorm statistics, or a checkpoint that does not fit.
    """
    found = checkpoint.read(path)
    bench, model = revisit.open_checkpoint(found, overrides, recipe=recipe, terminal=terminal, allow_code=allow_code)
    sets = revisit.chosen(checkpoint.weight_sets(found, model), weights, path)
    stale = [name for name, item in sets.items() if item.batchnorm == "stale"]
    if stale and not allow_stale_bn:
        raise UserError(
            f"{path}: {', '.join(stale)} has stale BatchNorm statistics: its scores would mean nothing",
            hint=f"run `swa bn-update {path}` first, or insist with --allow-stale-bn",
        )
    name_of_split = split or bench.scoring_split()
    loader = bench.plain_batches(name_of_split)
    started = time.monotonic()
    samples = {}
    for name, item in sets.items():
        checkpoint.load_weights(model, item.state_dict, source=f"{path} ({name})")
        with (
            terminal.progress(f"scoring {name}", len(loader)) as bar,
            faults.memory("train.eval_batch_size", bench.recipe.train.eval_batch_size),
        ):
            samples[name] = evaluate.score(model, loader, hardware=bench.hardware, advance=bar.advance)
    table = evaluate.table(samples)
    rows = {name: {**table[name], "count": item.count, "batchnorm": item.batchnorm} for name, item in sets.items()}
    num_samples = len(next(iter(samples.values())).correct)
    terminal.summary(rows, split=name_of_split, samples=num_samples)
    return {
        "command": "eval",
        "checkpoint": str(path),
        "run": revisit.run_of(path),
        "split": name_of_split,
        "samples": num_samples,
        "weights": rows,
        "seconds": round(time.monotonic() - started, 3),
        "device": str(bench.hardware.device),
        "precision": bench.hardware.precision,
    }
