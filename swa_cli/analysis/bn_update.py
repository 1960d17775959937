"""`swa bn-update`: recompute the BatchNorm statistics of the weight sets in a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from swa_cli.analysis import open
from swa_cli.analysis.extract import shipped
from swa_cli.averaging.batchnorm import BatchNormUpdate
from swa_cli.averaging.model_state import cloned, like
from swa_cli.checkpoint import loading, reader
from swa_cli.checkpoint.reader import Checkpoint, WeightSet
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

    In a resume point the averages are refreshed, and the raw weights keep the running statistics that training
    continues with, unless its optimizer averages inside and training continues from other weights. With `out` and a
    name, one weight set goes into a file of its own: an average as it ships, raw weights as `last_bn`, the reference
    of every comparison. A foreign file has no place to record the refresh, so its weights are written to `out` in our
    format.

    Raises:
        UserError: Unknown weights, or a place where they cannot be written.
    """
    target = out or path
    if out is not None or path.is_file():
        open.require_writable(target)
    if target.resolve() != path.resolve():
        open.require_no_checkpoint(target)
    with open.lock(target):
        found = reader.read(path)
        changes = [*overrides, *open.pass_of(found, samples, recipe=recipe)]
        context, model = open.open_checkpoint(
            found, changes, recipe=recipe, terminal=terminal, allow_code=allow_code, also=open.PASS_KEYS
        )
        sets = reader.weight_sets(found, model)
        if weights is None and _continues_from_raw(found):
            sets = {name: item for name, item in sets.items() if name != RAW}
        sets = open.chosen(sets, weights or "all", path, takes_all=True)
        _require_place(found, sets, target=target, out=out)
        started = time.monotonic()
        is_alone = weights not in (None, "all") and target.resolve() != path.resolve()
        content, updates = _updated(found, sets, context, is_alone=is_alone)
        if out is not None or content is not found.content:
            reader.save(target, content)
    for name, update in updates.items():
        if update.num_layers:
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
        **context.hardware.facts,
    }


def _continues_from_raw(found: Checkpoint) -> bool:
    """Return whether training continues from the raw weights of a checkpoint and their running statistics."""
    return found.kind == "resume" and "trained" not in found.content


def _require_place(found: Checkpoint, sets: dict[str, WeightSet], *, target: Path, out: Path | None) -> None:
    """Refuse a .safetensors file, raw weights in the resume point itself, and a foreign file in place."""
    if target.suffix == ".safetensors":
        raise UserError(f"{target}: swa writes checkpoints as .pt files", hint="name a .pt file with -o FILE")
    is_raw = _continues_from_raw(found) and RAW in sets
    if is_raw and (len(sets) > 1 or target.resolve() == found.path.resolve()):
        raise UserError(
            f"{found.path}: training continues from its raw weights and their running statistics, which stay",
            hint=f"write them to a file of their own: --weights {RAW} -o FILE.pt",
        )
    if found.kind == "foreign" and (out is None or len(sets) > 1):
        raise UserError(
            f"{found.path}: was not written by swa and has no place to record that BatchNorm is fresh",
            hint=f"write to another file with -o FILE, naming one of {', '.join(sets)} with --weights",
        )


def _updated(
    found: Checkpoint, sets: dict[str, WeightSet], context: Context, *, is_alone: bool
) -> tuple[dict[str, Any], dict[str, BatchNormUpdate]]:
    """Recompute the statistics of each weight set; return the content to write, and what was done.

    `is_alone`: a weight set that was named goes into a file of its own.
    """
    content, updates, events = found.content, dict[str, BatchNormUpdate](), context.events
    for name, item in sets.items():
        model = context.build_model()
        loading.load_strict(model, item.state_dict, source=f"{found.path} ({name})")
        update = updates[name] = context.refresh_batchnorm(model, name=name)
        if not update.num_layers:
            what = "has only frozen BatchNorm layers" if update.is_frozen else "has no BatchNorm layers"
            events.note(f"{name}: {context.recipe.model.name} {what}: nothing to update")
        for warning in warnings_of(update):
            events.warning(warning)
        if found.kind == "resume" and (is_alone or (name == RAW and _continues_from_raw(found))):
            content = _alone(found, name, item, model, update)
        elif found.kind == "foreign":
            average = {"name": name, "kind": "foreign", "count": item.count, "steps": list[int]()}
            if item.kind == "raw":
                average = reader.raw_average(recomputed(name) if update.num_layers else name, step=None)
            content = reader.weights_content(context.origin, average, cloned(model.state_dict()), update.record)
        elif update.num_layers or item.batchnorm == "stale":  # it may be found frozen
            content = _in_place(found, content, name, model, update)
    return content, updates


def _alone(found: Checkpoint, name: str, item: WeightSet, model: nn.Module, update: BatchNormUpdate) -> dict[str, Any]:
    """Return the content of a file for one weight set of a resume point."""
    state_dict = cloned(model.state_dict())
    if name != RAW:
        return shipped(found, name, item, state_dict, update.record)
    own = recomputed(RAW) if update.num_layers and _continues_from_raw(found) else RAW
    average = reader.raw_average(own, step=found.content["step"])
    return reader.weights_content(found.origin, average, state_dict, update.record)


def _in_place(
    found: Checkpoint, content: dict[str, Any], name: str, model: nn.Module, update: BatchNormUpdate
) -> dict[str, Any]:
    """Return the content of a checkpoint with the new statistics of one of its weight sets."""
    if found.kind != "resume":
        return {**content, "state_dict": cloned(model.state_dict()), **update.record}
    if name == RAW:
        return {**content, "model": cloned(model.state_dict()), "batchnorm": update.freshness}
    entry = content["averages"][name]
    buffers = {key: value.clone() for key, value in model.named_buffers() if key in entry["state"]}
    state = like(entry["state"], {**entry["state"], **buffers})
    averages = {**content["averages"], name: {**entry, "state": state, **update.record}}
    return {**content, "averages": averages}
