"""`swa bn-update`: the BatchNorm statistics of the weight sets in a checkpoint, measured anew."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from swa_cli.analysis import extract, open
from swa_cli.averaging.batchnorm import BatchNormUpdate
from swa_cli.averaging.model_state import cloned, like
from swa_cli.checkpoint import loading, reader
from swa_cli.checkpoint.reader import Checkpoint, WeightSet
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.engine import failures
from swa_cli.engine.context import Context
from swa_cli.engine.evaluate import RAW, recomputed
from swa_cli.engine.preflight import warnings_of
from swa_cli.errors import UserError
from swa_cli.report.terminal import Terminal


def update_checkpoint(
    path: Path,
    overrides: Sequence[str],
    *,
    terminal: Terminal,
    out: Path | None = None,
    weights: str | None = None,
    samples: str | None = None,
    recipe: Path | None = None,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Recompute the BatchNorm statistics in a checkpoint, in place and atomically, or into `out`.

    Of a resume point the averages are refreshed and the raw weights left alone: training goes on from them and their
    running statistics. With `out` a set that is named goes into a file of its own: an average as it ships, raw weights
    as `last_bn`, the reference of every comparison.
    A foreign file has no place to record the refresh, so its weights are written to `out` in our format.

    Raises:
        UserError: Unknown weights, or weights that cannot be written where they were asked for.
    """
    target = out or path
    if target.is_symlink():
        raise UserError(
            f"{target}: is a symbolic link, which is not followed for writing", hint="name the file itself, or -o FILE"
        )
    folder = RunFolder.around(target)
    with folder.claimed() if folder is not None else nullcontext():  # a run that goes on would lose an epoch
        return _update(
            path,
            overrides,
            terminal=terminal,
            target=target,
            out=out,
            weights=weights,
            samples=samples,
            recipe=recipe,
            allow_code=allow_code,
        )


def _update(
    path: Path,
    overrides: Sequence[str],
    *,
    terminal: Terminal,
    target: Path,
    out: Path | None,
    weights: str | None,
    samples: str | None,
    recipe: Path | None,
    allow_code: bool,
) -> dict[str, Any]:
    found = reader.read(path)
    changes = [*overrides, *open.pass_of(found, samples, recipe=recipe)]
    context, model = open.open_checkpoint(
        found, changes, recipe=recipe, terminal=terminal, allow_code=allow_code, also=open.PASS_KEYS
    )
    sets = reader.weight_sets(found, model)
    if weights is None and found.kind == "resume":
        sets = {name: item for name, item in sets.items() if name != RAW}
    sets = open.chosen(sets, weights or "all", path)
    _require_writable(found, sets, target=target, out=out)
    is_shipped = found.kind == "resume" and weights not in (None, "all", RAW) and target.resolve() != path.resolve()
    started = time.monotonic()
    updates: dict[str, BatchNormUpdate] = {}
    content = found.content
    for name, item in sets.items():
        model = context.build_model()
        loading.load_weights(model, item.state_dict, source=f"{path} ({name})")
        with failures.memory("train.batch_size", context.recipe.train.batch_size):
            update = context.refresh_batchnorm(model, name=name)
        updates[name] = update
        if not update.num_layers:
            what = "has only frozen BatchNorm layers" if update.is_frozen else "has no BatchNorm layers"
            terminal.note(f"{name}: {context.recipe.model.name} {what}: nothing to update")
        for warning in warnings_of(update):
            terminal.warning(warning)
        if update.num_layers or found.kind == "foreign" or is_shipped or _is_raw_part(found, name):
            content = _with_statistics(found, content, name, item, model, update, context, is_shipped=is_shipped)
    refreshed = {name: update for name, update in updates.items() if update.num_layers}
    if refreshed or out is not None:
        reader.save(target, content)
    for name, update in refreshed.items():
        terminal.answer(
            f"{name}: {update.num_layers} BatchNorm layers recomputed from {update.num_samples:,} samples"
            f" ({update.method}) -> {target}"
        )
    return {
        "command": "bn-update",
        "checkpoint": str(target),
        "run": open.run_of(path),
        "weights": {
            name: {
                "batchnorm": update.freshness,
                "layers": update.num_layers,
                "samples": update.num_samples,
                "method": update.record["batchnorm_method"],
            }
            for name, update in updates.items()
        },
        "seconds": round(time.monotonic() - started, 3),
        "device": str(context.hardware.device),
        "precision": context.hardware.precision,
    }


def _is_raw_part(found: Checkpoint, name: str) -> bool:
    """Whether these are the raw weights of a resume point, which get a file of their own."""
    return found.kind == "resume" and name == RAW


def _require_writable(found: Checkpoint, sets: dict[str, WeightSet], *, target: Path, out: Path | None) -> None:
    if out is not None and not out.parent.is_dir():
        raise UserError(f"{out.parent}: no such folder", hint="make it, or name another file with -o")
    other = out is not None and out.exists() and not out.is_file()  # a folder, a pipe
    if other or (out or found.path).suffix == ".safetensors":
        raise UserError(f"{out or found.path}: is no name for a checkpoint", hint="name a .pt file with -o FILE")
    if any(_is_raw_part(found, name) for name in sets) and (len(sets) > 1 or target.resolve() == found.path.resolve()):
        raise UserError(
            f"{found.path}: training goes on from its raw weights and their running statistics, which stay as they are",
            hint=f"write them to a file of their own: --weights {RAW} -o FILE.pt",
        )
    if found.kind == "foreign" and (out is None or len(sets) > 1):
        raise UserError(
            f"{found.path}: was not written by swa and has no place to record that BatchNorm is fresh",
            hint=f"write to another file with -o FILE, naming one of {', '.join(sets)} with --weights",
        )


def _with_statistics(
    found: Checkpoint,
    content: dict[str, Any],
    name: str,
    item: WeightSet,
    model: nn.Module,
    update: BatchNormUpdate,
    context: Context,
    *,
    is_shipped: bool,
) -> dict[str, Any]:
    """The content of a checkpoint with the statistics that `model` has now for the weight set `name`.

    `is_shipped`: an average of a resume point gets a file of its own.
    """
    fresh = update.record
    if _is_raw_part(found, name):
        state_dict = cloned(model.state_dict())
        own = reader.raw_content(recomputed(RAW) if update.num_layers else RAW, state_dict, step=content["step"])
        return {"recipe": content["recipe"], "input": content["input"], **own, **fresh}
    if found.kind == "resume" and is_shipped:
        return extract.shipped(found, name, item, cloned(model.state_dict()), fresh)
    if found.kind == "resume":
        entry = content["averages"][name]
        buffers = {key: value.clone() for key, value in model.named_buffers() if key in entry["state"]}
        state = like(entry["state"], {**entry["state"], **buffers})
        averages = {**content["averages"], name: {**entry, "state": state, **fresh}}
        return {**content, "averages": averages}
    state_dict = cloned(model.state_dict())
    if found.kind == "foreign":
        recipe = context.recipe.model_dump(mode="json", exclude_none=True)
        average: dict[str, Any] = {"name": name, "kind": "foreign", "count": item.count, "steps": []}
        content = {"recipe": recipe, "input": context.input, "average": average}
    return {**content, "state_dict": state_dict, **fresh}
