"""`swa show`: show what a checkpoint or a run folder holds.

Everything comes from the files, which are read as untrusted input; no network is built and no data are opened. A
foreign file is described by its layout and its tensors.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from swa_cli.analysis.open import is_of, recipe_of, shipped_by
from swa_cli.analysis.settings import FoundRun, read_run
from swa_cli.checkpoint import reader, third_party
from swa_cli.checkpoint.reader import Checkpoint
from swa_cli.checkpoint.run_folder import RunFolder, about
from swa_cli.checkpoint.schema import ENDED_BY
from swa_cli.metrics.metric import BY_TASK
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.swap import describe_swap
from swa_cli.report.terminal import Terminal
from swa_cli.units import count_text, size_text, some_of

Rows = list[tuple[str, str]]
STATES = ("state", "m2", "deviations")  # tensors of an average that takes more weights
KINDS = {
    "resume": "resume point: a run continues from here",
    "weights": "weights to ship",
    "snapshot": "snapshot: raw weights of a run",
    "foreign": "written by another program",
}


def show(path: Path, *, terminal: Terminal) -> dict[str, Any]:
    """Show what a file or a run folder holds.

    Raises:
        UserError: It is neither, or not as swa writes it.
    """
    if path.is_dir():
        return _show_run(path, terminal=terminal)
    found = reader.read(path)
    facts = _facts(found)
    terminal.facts(str(path), [("kind", KINDS[found.kind]), *_rows(found, facts)])
    return {"command": "show", "path": str(path), "kind": found.kind, **facts}


def _facts(found: Checkpoint) -> dict[str, Any]:
    """Return what a checkpoint holds, as plain values."""
    content = found.content
    if found.kind == "foreign":
        known = third_party.read(content, found.path, owners={})
        found_sets = {
            name: {"kind": "average" if item.is_average else "raw", "count": item.count, **_sizes(item.state_dict)}
            for name, item in known.sets.items()
        }
        return {"layout": known.layout, "weights": found_sets}
    keys = ("epoch", "step", "stopped", "num_train", "environment", "sources")
    kept: dict[str, Any] = {key: content[key] for key in keys if key in content}
    return {
        "format": content["format"],
        "recipe": recipe_of(found).values(),
        "input": content["input"],
        **kept,
        "weights": _weights(found),
    }


def _weights(found: Checkpoint) -> dict[str, Any]:
    """Return the kind, content, BatchNorm freshness and size of every weight set by name."""
    content = found.content
    if found.kind == "weights":
        average = content["average"]
        more = {"batchnorm": content["batchnorm"], "samples": content["samples"]}
        rest = {key: average[key] for key in ("kind", "count", "steps", "profile", "error") if key in average}
        shipped = {average["name"]: {**rest, **more, **_sizes(content["state_dict"])}}
        kept = content.get("posterior")
        return shipped | ({} if kept is None else {"posterior": _posterior(kept)})
    if found.kind == "snapshot":
        raw = {"kind": "raw", "batchnorm": content["batchnorm"], **_sizes(content["state_dict"])}
        running = content["cumulative"]
        mean = {"kind": "mean", "count": running["count"], **_sizes(running["state"])} if running else None
        return {"snapshot": raw} | ({"running mean": mean} if mean else {})
    raw = content["model"]
    batchnorm = "running" if any(name.endswith("running_mean") for name in raw) else "none"
    batchnorm = content.get("batchnorm") or batchnorm
    sets: dict[str, Any] = {"last": {"kind": "raw", "batchnorm": batchnorm, **_sizes(raw)}}
    for name, entry in content["averages"].items():
        state = {f"{part}.{key}": value for part in STATES for key, value in (entry.get(part) or {}).items()}
        rest = {key: entry[key] for key in ("kind", "count", "steps", "batchnorm")}
        sets[name] = {**rest, **_sizes(state)}
    for name, entry in content.get("kept", {}).items():
        if name in sets:
            sets[name]["kept_epoch"] = entry["epoch"]
        else:
            raw = {"kind": "raw", "epoch": entry["epoch"], "batchnorm": entry["batchnorm"]}
            sets[name] = {**raw, **_sizes(entry["state_dict"])}
    return sets


def _posterior(kept: Mapping[str, Any]) -> dict[str, Any]:
    state = {f"{part}.{key}": value for part in ("variance", "deviations") for key, value in kept[part].items()}
    return {"kind": "diagonal" if kept["diagonal"] else "low rank", **_sizes(state)}


def _sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "tensors": len(state),
        "numbers": sum(value.numel() for value in state.values()),
        "bytes": sum(value.numel() * value.element_size() for value in state.values()),
        "dtypes": sorted({str(value.dtype).removeprefix("torch.") for value in state.values()}),
    }


def _rows(found: Checkpoint, facts: Mapping[str, Any]) -> Rows:
    rows: Rows = []
    if found.kind == "foreign":
        rows.append(("layout", facts["layout"]))
    else:
        rows += [("recipe", _recipe_text(recipe_of(found))), ("input", _input_text(facts["input"]))]
        if "step" in facts:
            rows.append(_reached(facts))
    rows += [(name, _weights_text(values)) for name, values in facts["weights"].items()]
    if facts.get("sources"):
        rows.append(("made of", some_of([source["file"] for source in facts["sources"]], most=4)))
    if "environment" in facts:
        rows.append(("made with", _environment_text(facts["environment"])))
    return rows


def _show_run(path: Path, *, terminal: Terminal) -> dict[str, Any]:
    """Show the state, recipe, files and scores of a run."""
    folder = RunFolder(path)
    run = read_run(path)
    values = run.recipe.values()
    facts: dict[str, Any] = {"finished": run.result is not None, "resume_point": None, "files": {}}
    if folder.resume_points:
        found = reader.read(folder.resume_points[0])
        facts["resume_point"] = _facts(found)
        for name in dict.fromkeys([*facts["resume_point"]["weights"], *shipped_by(found, run.recipe)]):
            shipped = folder.checkpoints / f"{name}.pt"
            # Refreshed, unlike in the resume point.
            if name != "last" and os.path.lexists(shipped) and is_of(found, item := reader.read(shipped)):
                facts["resume_point"]["weights"] |= _weights(item)
    for file in _files_of(folder):
        facts["files"][str(file.relative_to(path))] = file.stat().st_size
    environment = about(folder.about) if folder.about.is_file() else {}
    terminal.facts(str(path), _run_rows(run, facts, environment))
    if run.result is not None:
        scores, split, samples = run.result.weights, run.result.split, run.result.samples
        shown = scores
        if run.recipe.task not in BY_TASK:  # which way is better, only the code of the task says
            shown = {
                name: {key: value for key, value in row.items() if key not in ("reference", "no_verdict")}
                for name, row in scores.items()
            }
        terminal.summary(shown, split=split, samples=samples, tta=run.recipe.eval.tta, metrics=run.metrics)
        facts["weights"] = scores
    return {"command": "show", "path": str(path), "kind": "run", "recipe": values, "environment": environment, **facts}


def _files_of(folder: RunFolder) -> list[Path]:
    files = [
        *folder.checkpoints.glob("*.pt"),
        *folder.snapshots.glob("*.pt"),
        *folder.workers.glob("*/checkpoints/*.pt"),
    ]
    return sorted(file for file in files if file.is_file())


def _run_rows(run: FoundRun, facts: Mapping[str, Any], environment: Mapping[str, Any]) -> Rows:
    folder = RunFolder(run.path.resolve())
    state = "finished" if run.result is not None else "not finished"
    rows = [
        ("kind", f"run, {state}" if folder.run_to_resume is folder else f"part of the run {folder.run_to_resume.path}")
    ]
    rows.append(("recipe", _recipe_text(run.recipe)))
    if (phases := describe_swap(run.recipe)) is not None:
        rows.append(("swap", phases.partition("; BatchNorm")[0]))
    point = facts["resume_point"]
    if point is None:
        rows.append(("reached", "nothing saved yet"))
    else:
        rows.append(_reached(point))
        rows += [(name, _weights_text(values)) for name, values in point["weights"].items()]
    files = facts["files"]
    rows.append(
        ("files", f"{len(files)} checkpoints, {size_text(sum(files.values()))}: {some_of(list(files), most=4)}")
    )
    return rows + ([("made with", _environment_text(environment))] if environment else [])


def _reached(facts: Mapping[str, Any]) -> tuple[str, str]:
    stopped = f", ended by {ENDED_BY[facts['stopped']]}" if facts.get("stopped") else ""
    return "reached", f"step {facts['step']:,}, epoch {facts['epoch']}{stopped}"


def _recipe_text(recipe: Recipe) -> str:
    optimizer, train = recipe.optimizer, recipe.train
    return (
        f"{recipe.title}: {recipe.task}, {recipe.model.name} on {recipe.dataset.name}, {optimizer.name}"
        f" at {optimizer.lr:g}, {train.epochs} epochs of batches of {train.batch_size}, seed {recipe.seed}"
    )


def _input_text(values: Mapping[str, Any]) -> str:
    classes = f"{len(values['classes'])} classes ({some_of(values['classes'], most=4)})"
    if values["channels"] is None:
        return f"no images; {classes}"
    resize = values.get("resize")
    framing = f" from a shorter side of {resize}" if resize else ""
    return f"images of {' x '.join(map(str, (values['channels'], *values['size'])))}{framing}; {classes}"


def _weights_text(values: Mapping[str, Any]) -> str:
    """Return `mean of 17 weights, steps 480 to 800; BatchNorm recomputed; 42 tensors, 71,018 numbers, 0.3 MB`."""
    kind, count, steps = values["kind"], values.get("count"), values.get("steps")
    settings = "".join(  # of an average by a profile
        f" {value:g}" if isinstance(value, float) else f" {value}" for value in (values.get("profile") or {}).values()
    )
    what = kind if count is None else f"{kind}{settings} of {count:,} weights"
    if steps:
        what += f", steps {steps[0]:,} to {steps[-1]:,}" if len(steps) > 1 else f", step {steps[0]:,}"
    parts = [what, *([f"BatchNorm {values['batchnorm']}"] if "batchnorm" in values else [])]
    numbers = f"{values['numbers']:,} numbers ({', '.join(values['dtypes'])})"
    tensors = count_text(values["tensors"], "tensor")
    return "; ".join([*parts, f"{tensors}, {numbers}, {size_text(values['bytes'])}"])


def _environment_text(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if key != "recipe_folder")
