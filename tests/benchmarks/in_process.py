"""`swa train` inside this process: many short runs by turns, without an import of torch for each."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.jobs import RECIPE
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.engine import train
from swa_cli.recipe import load


def epochs_s(words: Sequence[str]) -> list[float]:
    """Seconds of each epoch but the first, of the recipe of the benchmark with these changes."""
    history, _ = trained(RECIPE, words)
    return [row["seconds"] for row in history[1:]]


def trained(recipe: Path, words: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Train by a recipe with these changes; return the rows of its epochs and result.json; it prints nothing."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        loaded = load.load(recipe, [*words, f"output.root={folder}"])
        run = train.set_up(loaded)
        run.context.fingerprints()  # looks at each file, which is not training
        run.clock = time.monotonic()
        result = train.start(run, RunFolder.create(Path(folder), "bench"), recipe_folder=loaded.folder)
    return run.history, result
