"""`swa train` inside this process: many short runs by turns, without an import of torch for each."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.jobs import RECIPE
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.engine import train
from swa_cli.recipe import load


def epochs_s(words: Sequence[str]) -> list[float]:
    """Seconds of each epoch but the first, of the recipe with these changes; what the run says is not shown."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        loaded = load.load(RECIPE, [*words, f"output.root={folder}"])
        run = train.set_up(loaded)
        train.start(run, RunFolder.create(Path(folder), "bench"), recipe_folder=loaded.folder)
    return [row["seconds"] for row in run.history[1:]]
