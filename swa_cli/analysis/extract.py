"""`swa average RUN --weights NAME`: an average that a resume point holds, as a file to ship.

This is how averages are rescued where the end of a run fails: what they hold is in last.pt before anything is scored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from swa_cli.analysis import open
from swa_cli.analysis.average import require_writable
from swa_cli.averaging.batchnorm import BatchNormUpdate
from swa_cli.averaging.model_state import cloned
from swa_cli.checkpoint import loading, reader
from swa_cli.checkpoint.reader import Checkpoint, WeightSet
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.engine import swap
from swa_cli.engine.context import Context
from swa_cli.engine.evaluate import RAW
from swa_cli.errors import RecipeError, UserError
from swa_cli.recipe import load
from swa_cli.recipe.swap import phase_of
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
    """Write an average of a run to `out`, atomically, with BatchNorm recomputed unless that fails.

    Args:
        path: A run folder, or its resume point.
        overrides: Changes of keys that the weights do not depend on.
        name: Of the average.
        out: A .pt file other than the resume point.
        terminal: Told of everything.
        refresh: Recompute BatchNorm; without it no data are read, and the result says `stale`.
        allow_code: Import what the recipe names.

    Raises:
        UserError: No resume point, no such average in it, or a place that cannot be written to.
    """
    started = time.monotonic()
    point = open.resume_point(RunFolder(path)) if path.is_dir() else reader.read(path)
    require_writable(out, [point.path], suffix=".pt")
    _require_held(point, name)
    folder = RunFolder.around(out)
    with folder.claimed() if folder is not None else nullcontext():
        opened = partial(open.open_checkpoint, point, overrides, recipe=None, allow_code=allow_code)
        context, model = _opened(opened, name, terminal) if refresh else (None, None)
        if model is None:
            _, _, model = open.open_network(point, overrides, recipe=None, terminal=terminal, allow_code=allow_code)
        item = reader.weight_sets(point, model)[name]
        loading.load_weights(model, item.state_dict, source=f"{point.path} ({name})")
        update = None if context is None else _refreshed(context, model, name)
        fresh = freshness(item, update)
        content = shipped(point, name, item, cloned(model.state_dict()), fresh)
        reader.save(out, content)
    _tell(terminal, out, content)
    return {
        "command": "average",
        "checkpoint": str(out),
        "run": open.run_of(out),
        **{key: content[key] for key in ("average", "batchnorm", "batchnorm_method", "samples")},
        "sources": [{"file": str(point.path), "name": name, "weight": 1.0, "step": point.content["step"]}],
        "seconds": round(time.monotonic() - started, 3),
    }


def shipped(
    point: Checkpoint, name: str, item: WeightSet, state_dict: dict[str, Tensor], fresh: Mapping[str, Any]
) -> dict[str, Any]:
    """What the file of an average holds that was taken out of a resume point.

    Args:
        point: The resume point.
        name: Of the average.
        item: The average as it stands there.
        state_dict: Its weights, with the statistics that they ship with.
        fresh: What is known of these statistics.
    """
    entry = point.content["averages"][name]
    average = {"name": name, **{key: entry[key] for key in ("kind", "count")}, "steps": list(entry["steps"])}
    content = {"recipe": point.content["recipe"], "input": point.content["input"], "state_dict": state_dict}
    content |= {"average": average, **fresh}
    if item.posterior is not None:
        content["posterior"] = {key: getattr(item.posterior, key) for key in ("diagonal", "variance", "deviations")}
    return content


def freshness(item: WeightSet, update: BatchNormUpdate | None) -> dict[str, Any]:
    """How fresh the statistics of an average are, recomputed just now or as they were."""
    if update is None:
        return {"batchnorm": item.batchnorm, "batchnorm_method": None, "samples": 0}
    return update.record


def _require_held(point: Checkpoint, name: str) -> None:
    """The resume point holds the average.

    Raises:
        UserError: It does not; raw weights and the means of SWAP workers have ways of their own.
    """
    if point.kind != "resume":
        raise UserError(
            f"{point.path}: is no resume point, and --weights NAME takes an average out of one",
            hint="name a run folder or its checkpoints/last.pt; --weights also takes numbers, such as 3,1",
        )
    held = [other for other, entry in point.content["averages"].items() if entry["count"]]
    if name in held:
        return
    recipe = load.from_values(point.content["recipe"], source=str(point.path)).recipe
    if phase_of(recipe).has_workers and name == swap.NAME:
        workers = RunFolder(point.path.parent.parent).workers / "*/checkpoints/last.pt"
        raise UserError(
            f"{point.path}: {name} is the mean of the workers, each of which has a resume point of its own",
            hint=f"average these: swa average {workers} -o FILE.pt",
        )
    if name == RAW:
        hint = f"write them to a file of their own: swa bn-update {point.path} --weights {RAW} -o FILE.pt"
        raise UserError(f"{point.path}: {RAW} are its raw weights, and no average", hint=hint)
    if not held:
        open.chosen({}, name, point.path)
    raise UserError(f"{point.path}: holds no average {name!r}", hint=f"choose from {', '.join(held)}")


def _opened(
    opened: Callable[..., tuple[Context, nn.Module]], name: str, terminal: Terminal
) -> tuple[Context | None, nn.Module | None]:
    """Data and network, or neither where a person's own dataset fails, as the end of the run may have."""
    try:
        return opened(terminal=terminal)
    except (UserError, RecipeError):
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        terminal.warning(
            f"{name}: the dataset cannot be opened ({type(error).__name__}: {reason}); BatchNorm statistics stay stale"
        )
        return None, None


def _refreshed(context: Context, model: nn.Module, name: str) -> BatchNormUpdate | None:
    """BatchNorm recomputed; where that fails, as the end of the run may have, the average is shipped as it is."""
    kept = {key: value.clone() for key, value in model.named_buffers()}
    try:
        return context.refresh_batchnorm(model, name=name)
    except Exception as error:  # of the network, the data or the machine: the average is not to be lost with it
        loading.load_buffers(model, kept)
        reason = str(error).partition("\n")[0]
        context.events.warning(
            f"{name}: BatchNorm cannot be recomputed ({type(error).__name__}: {reason}); its statistics stay stale"
        )
        return None


def _tell(terminal: Terminal, out: Path, content: Mapping[str, Any]) -> None:
    average, batchnorm, way = content["average"], content["batchnorm"], f"score it with `swa eval {out}`"
    if batchnorm == "stale":
        way = f"refresh it with `swa bn-update {out}`, then {way}"
    elif batchnorm == "recomputed":
        batchnorm = f"recomputed from {content['samples']:,} samples"
    steps = average["steps"]
    held = f"{average['name']} of {average['count']:,} weight set{'s' * (average['count'] != 1)}"
    terminal.answer(f"{out}: {held}, steps {min(steps):,} to {max(steps):,}; BatchNorm {batchnorm}; {way}")
