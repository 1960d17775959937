"""Run folders of real shape without a training: recipe.yaml, result.json and metrics.csv, with scores of one's own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swa_cli.recipe import load

RECIPE = """\
name: written
model: {name: convnet, args: {width: 4}}
dataset: {name: digits}
optimizer: {lr: 0.1}
swa: {start: 50%, lr: 0.05}
train: {epochs: 4, batch_size: 64}
"""

Scores = tuple[float | None, float | None]  # accuracy and NLL
KEYS = ("accuracy", "nll")


def scores_of(scores: Scores) -> dict[str, Any]:
    """Scores of a weight set on one split, as result.json has them."""
    accuracy, nll = scores
    return {"accuracy": accuracy, "accuracy_se": 0.011, "nll": nll, "nll_se": 0.022, "top5": None} | {
        "ece": 0.1,
        "brier": 0.2,
    }


def write_run(
    path: Path,
    *changes: str,
    test: Mapping[str, Scores] | None = None,
    val: Mapping[str, Scores] | None = None,
    epochs: Sequence[Mapping[str, float]] = (),
    samples: int = 900,
    recipe: str = RECIPE,
) -> Path:
    """Write the folder of a run, finished where it has `test` scores; `epochs` are rows of metrics.csv."""
    path.mkdir(parents=True)
    (path / "base.yaml").write_text(recipe)
    (path / "recipe.yaml").write_text(load.dump(load.load(path / "base.yaml", list(changes)).recipe))
    (path / "base.yaml").unlink()
    if epochs:
        columns = list(dict.fromkeys(key for row in epochs for key in row))
        lines = [",".join(str(row.get(key, "")) for key in columns) for row in epochs]
        (path / "metrics.csv").write_text("\n".join([",".join(columns), *lines]) + "\n")
    if test is not None:
        weights: dict[str, Any] = {name: scores_of(scores) for name, scores in test.items()}
        for name, row in weights.items():
            row |= {"val": scores_of(val[name])} if val is not None else {}
            if name not in ("last", "last_bn"):
                row |= {"reference": "last", **{f"{key}_diff{end}": 0.0 for key in KEYS for end in ("", "_se")}}
        rest = {"reference": "last", "split": "test", "samples": samples, "seconds": 1.0}
        values = {"weights": weights, **rest, "device": "cpu", "precision": "fp32"}
        (path / "result.json").write_text(json.dumps(values))
    return path


def write_repeat(
    path: Path,
    *changes: str,
    swa: Sequence[tuple[Scores, Scores]],
    seeds: Sequence[int] | None = None,
) -> Path:
    """Write the folder of a repeat from the validation and test scores of swa in each seed; `last` is far worse."""
    path.mkdir(parents=True)
    (path / "repeat.json").write_text(json.dumps({"seeds": list(seeds or range(len(swa)))}))
    for seed, (val, test) in zip(seeds or range(len(swa)), swa, strict=True):
        write_run(
            path / f"seed-{seed}",
            *changes,
            f"seed={seed}",
            val={"last": (0.1, 9.0), "swa": val},
            test={"last": (0.1, 9.0), "swa": test},
            epochs=[
                {"epoch": 1, "val_loss": 2.0 + seed, "val_accuracy": 0.2},
                {"epoch": 2, "val_loss": 1.0 + seed, "val_accuracy": 0.4, "swa_val_loss": 0.5, "swa_val_accuracy": 0.8},
            ],
        )
    (path / "recipe.yaml").write_text((path / f"seed-{(seeds or [0])[0]}" / "recipe.yaml").read_text())
    return path
