"""A checkpoint opened again: its recipe, data, hardware and network, and the weight sets that were asked for.

A checkpoint of ours carries its recipe; a foreign one needs it passed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from swa_cli.errors import UserError
from swa_cli.recipe import load
from swa_cli.report.terminal import Terminal
from swa_cli.training.bench import Bench, describe_model, import_from, open_bench, require_trust
from swa_cli.training.checkpoint import Checkpoint, WeightSet
from swa_cli.training.run_folder import RunFolder

CHANGEABLE_KEYS = ("dataset.*", "train.device", "train.precision", "train.eval_batch_size", "train.threads")


def open_checkpoint(
    found: Checkpoint,
    overrides: Sequence[str],
    *,
    recipe: Path | None,
    terminal: Terminal,
    allow_code: bool,
    also: Sequence[str] = (),
) -> tuple[Bench, nn.Module]:
    """The data, hardware and network of a checkpoint's recipe, or of the one that was passed."""
    allowed = (*CHANGEABLE_KEYS, *also)
    if recipe is not None:
        loaded = load.load(recipe, overrides, allowed=allowed)
        import_from(loaded.folder)
    elif found.recipe is not None:
        loaded = load.from_values(found.recipe, overrides, source=str(found.path), allowed=allowed)
        require_trust(loaded.recipe, source=str(found.path), allow_code=allow_code)
        import_from(found.path.parent)
    else:
        raise UserError(
            f"{found.path}: was not written by swa and holds no recipe", hint="say which with --recipe RECIPE"
        )
    bench = open_bench(loaded.recipe, terminal, recorded=found.content.get("input"))
    model = bench.build_model()
    terminal.note(f"{found.path}: {describe_model(loaded.recipe.model.name, model)}; {bench.hardware.describe()}")
    return bench, model


def chosen(sets: dict[str, WeightSet], weights: str, path: Path) -> dict[str, WeightSet]:
    """The weight set of a name, or all of them.

    Raises:
        UserError: There is none, or none of that name.
    """
    if not sets:
        raise UserError(f"{path}: holds no averaged weights yet", hint="let the run reach its averaging phase")
    if weights == "all":
        return sets
    if weights not in sets:
        raise UserError(f"{path}: holds no weights {weights!r}", hint=f"choose from {', '.join(sets)}, or all")
    return {weights: sets[weights]}


def run_of(path: Path) -> str | None:
    """The run folder that a checkpoint lies in."""
    folder = RunFolder.around(path)
    return None if folder is None else str(folder.path)
