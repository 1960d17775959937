"""Which part of a run goes into which file, and back: resume point, shipped average, snapshot.

What a step draws is a function of (seed, step), so `rng` holds the seed and no generator's state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swa_cli.training import checkpoint
from swa_cli.training.hardware import environment
from swa_cli.training.run_folder import RunFolder
from swa_cli.training.setup import Run


def save_resume_point(run: Run, folder: RunFolder, *, epoch: int) -> None:
    """Write last.pt: everything that the rest of the run depends on."""
    stale = "none" if checkpoint.raw_batchnorm(run.model) == "none" else "stale"
    content = {
        "recipe": recipe_values(run),
        "input": run.bench.input,
        "epoch": epoch,
        "step": epoch * run.plan.steps_per_epoch,
        "model": run.model.state_dict(),
        "averages": {name: {**average.state_dict(), "batchnorm": stale} for name, average in run.averages.items()},
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "rng": {"seed": run.bench.recipe.seed, "scheme": "seeded anew at each step"},
        "environment": environment(run.bench.hardware),
        "history": run.history,
    }
    checkpoint.save(folder.last, content)


def restore(run: Run, content: Mapping[str, Any], *, source: str) -> None:
    """Put the content of a resume point back into a run that was prepared from the same recipe."""
    checkpoint.load_weights(run.model, content["model"], source=source)
    run.optimizer.load_state_dict(content["optimizer"])
    run.scaler.load_state_dict(content["scaler"])
    for name, entry in content["averages"].items():
        run.averages[name].load_state_dict(checkpoint.without_batchnorm(entry))
    run.history = content["history"]


def save_average(run: Run, folder: RunFolder, name: str) -> None:
    """Write <name>.pt: the average as it ships, with recomputed statistics."""
    average, refreshed = run.averages[name], run.refreshed[name]
    content = {
        "recipe": recipe_values(run),
        "input": run.bench.input,
        "state_dict": refreshed.state_dict,
        "average": {"name": name, "kind": average.kind, "count": average.count, "steps": average.steps},
        "batchnorm": refreshed.batchnorm,
        "batchnorm_method": refreshed.method,
        "samples": refreshed.num_samples,
    }
    checkpoint.save(folder.checkpoints / f"{name}.pt", content)


def save_snapshot(run: Run, folder: RunFolder, *, epoch: int, done: int) -> None:
    """Write the raw weights after `done` updates; of more than `keep`, the oldest goes."""
    content = {
        "recipe": recipe_values(run),
        "input": run.bench.input,
        "state_dict": run.model.state_dict(),
        "epoch": epoch,
        "step": done,
        "batchnorm": checkpoint.raw_batchnorm(run.model),
    }
    folder.snapshots.mkdir(exist_ok=True)
    checkpoint.save(folder.snapshot_path(done), content)
    settings = run.bench.recipe.snapshots
    assert settings is not None, "the plan has snapshot steps only where the recipe has the section"
    if settings.keep != "all":
        kept = [step for step in run.plan.snapshots if step <= done]
        for step in kept[: -int(settings.keep)]:
            folder.snapshot_path(step).unlink(missing_ok=True)


def recipe_values(run: Run) -> dict[str, Any]:
    """The recipe as primitives, complete with its defaults."""
    return run.bench.recipe.model_dump(mode="json", exclude_none=True)
