"""`swa average --weights NAME`: the average that a resume point holds, in a file of its own, ready to ship.

It rescues an average where the end of a run fails: last.pt holds it before anything is scored.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from swa_cli import units
from swa_cli.analysis import open
from swa_cli.analysis.average import answer, require_writable
from swa_cli.averaging.batchnorm import BatchNormUpdate
from swa_cli.averaging.model_state import cloned
from swa_cli.checkpoint import loading, reader
from swa_cli.checkpoint.reader import Checkpoint, WeightSet
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.engine import keep, swap
from swa_cli.engine.context import Context
from swa_cli.engine.evaluate import RAW
from swa_cli.errors import RecipeError, UserError
from swa_cli.recipe.swap import has_workers
from swa_cli.report.terminal import Terminal


def extract_average(
    path: Path,
    overrides: Sequence[str],
    *,
    name: str,
    out: Path,
    terminal: Terminal,
    refresh: bool = True,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Write an average that a resume point holds to `out`, atomically; its BatchNorm stays stale where that fails.

    Weights that the run keeps of their best epoch have their statistics, and are written as they are.
    `path` is a run folder or its resume point. Without `refresh` no data are read, and the result says `stale`.

    Raises:
        UserError: No resume point, no such average in it, or a place that cannot be written to.
    """
    started = time.monotonic()
    point = open.resume_point(RunFolder(path)) if path.is_dir() else reader.read(path)
    require_writable(out, [point.path], suffix=".pt")
    _require_held(point, name)
    source = {"file": str(point.path), "name": name, "weight": 1.0, "step": point.content["step"]}
    with open.lock(out):
        if name in (kept := point.content.get("kept", {})):
            best = keep.from_entry(kept[name])
            content = best.content(point.origin)
            reader.save(out, content)
            what = f"{name} of epoch {best.epoch}"
            written = answer(out, content, open.recipe_of(point), what=what, started=started, terminal=terminal)
            return {**written, "sources": [source]}
        context = model = None
        if refresh:
            context, model = _opened(point, overrides, name, terminal=terminal, allow_code=allow_code)
        if model is None:
            _, _, model = open.open_network(point, overrides, recipe=None, terminal=terminal, allow_code=allow_code)
        item = reader.weight_sets(point, model)[name]
        loading.load_strict(model, item.state_dict, source=f"{point.path} ({name})")
        update = None if context is None else _refreshed(context, model, name)
        entry = point.content["averages"][name]  # which `swa bn-update` may have recomputed
        fresh = {
            "batchnorm": item.batchnorm,
            "batchnorm_method": entry.get("batchnorm_method"),
            "samples": entry.get("samples", 0),
        }
        content = shipped(point, name, item, cloned(model.state_dict()), fresh if update is None else update.record)
        reader.save(out, content)
    written = answer(out, content, open.recipe_of(point), what=name, started=started, terminal=terminal)
    return {**written, "sources": [source]}


def shipped(
    point: Checkpoint, name: str, item: WeightSet, state_dict: dict[str, Tensor], fresh: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of the file of an average that a resume point holds.

    `state_dict` has the statistics that the average ships with, and `fresh` says how fresh they are.
    """
    steps = list(point.content["averages"][name]["steps"])
    average = {"name": name, "kind": item.kind, "count": item.count, "steps": steps}
    return reader.weights_content(point.origin, average, state_dict, fresh, posterior=item.posterior)


def _require_held(point: Checkpoint, name: str) -> None:
    """Require the average in a resume point; the hint says how to get raw weights and the mean of SWAP workers."""
    if point.kind != "resume":
        raise UserError(
            f"{point.path}: is not a resume point, and --weights NAME takes an average out of one",
            hint="name a run folder or its checkpoints/last.pt; --weights also takes numbers, such as 3,1",
        )
    held = [other for other, entry in point.content["averages"].items() if entry["count"]]
    if name in held or name in point.content.get("kept", {}):
        return
    if name == swap.NAME and has_workers(open.recipe_of(point)):
        workers = RunFolder(point.path.parent.parent).workers / "*/checkpoints/last.pt"
        raise UserError(
            f"{point.path}: {name} is the mean of the workers, each of which has a resume point of its own",
            hint=f"average these: swa average {workers} -o FILE.pt",
        )
    if name == RAW:
        words = ("swa", "bn-update", point.path, "--weights", RAW, "-o", "FILE.pt")
        hint = f"write them to a file of their own: {units.command(words)}"
        raise UserError(f"{point.path}: {RAW} are its raw weights, and no average", hint=hint)
    if not held:
        open.chosen({}, name, point.path)
    raise UserError(f"{point.path}: holds no average {name!r}", hint=f"choose from {', '.join(held)}")


def _opened(
    point: Checkpoint, overrides: Sequence[str], name: str, *, terminal: Terminal, allow_code: bool
) -> tuple[Context | None, nn.Module | None]:
    """Open data and network; return neither where the user's own dataset fails, as at the end of the run."""
    try:
        return open.open_checkpoint(point, overrides, recipe=None, terminal=terminal, allow_code=allow_code)
    except (UserError, RecipeError):
        raise
    except Exception as error:
        terminal.warning(f"{name}: the dataset cannot be opened ({_reason(error)}); BatchNorm statistics stay stale")
        return None, None


def _refreshed(context: Context, model: nn.Module, name: str) -> BatchNormUpdate | None:
    """Recompute BatchNorm; keep the statistics where that fails, as at the end of the run."""
    kept = {key: value.clone() for key, value in model.named_buffers()}
    try:
        return context.refresh_batchnorm(model, name=name)
    except Exception as error:  # in the network, the data or the machine: the average must not be lost with it
        loading.load_buffers(model, kept)
        context.events.warning(f"{name}: BatchNorm cannot be recomputed ({_reason(error)}); its statistics stay stale")
        return None


def _reason(error: Exception) -> str:
    first_line = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {first_line}"
