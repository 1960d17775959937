"""Whether two runs ended the same, bit for bit: what tests of stopping, killing and failing compare."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch


def content(run: Path, name: str) -> dict[str, Any]:
    """What a checkpoint of a run folder holds."""
    return torch.load(run / "checkpoints" / f"{name}.pt", weights_only=True)


def flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a checkpoint, without times, paths of this run and the environment."""
    if isinstance(value, (dict, list, tuple)):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for part, inner in parts:
            if part not in ("seconds", "environment", "recipe"):
                yield from flat(inner, f"{key}/{part}")
    else:
        yield key, value


def assert_equal_runs(first: Path, second: Path) -> None:
    """Weights, averages, optimizer, history, table and scores of two finished runs, bit for bit."""
    names = {path.name for path in (first / "checkpoints").iterdir()} - {"previous.pt"}
    assert names == {path.name for path in (second / "checkpoints").iterdir()} - {"previous.pt"}
    for name in sorted(names):
        one, two = (dict(flat(content(run, name.removesuffix(".pt")))) for run in (first, second))
        assert one.keys() == two.keys()
        for key, value in one.items():
            equal = torch.equal(value, two[key]) if isinstance(value, torch.Tensor) else value == two[key]
            assert equal, f"{name}{key}"
    tables = [list(csv.DictReader((run / "metrics.csv").read_text().splitlines())) for run in (first, second)]
    for rows in tables:
        for row in rows:
            del row["seconds"]
    assert tables[0] == tables[1]
    assert [int(row["epoch"]) for row in tables[0]] == list(range(1, len(tables[0]) + 1))
    scores = [json.loads((run / "result.json").read_text()) for run in (first, second)]
    assert scores[0]["weights"] == scores[1]["weights"]
    assert [path.name for path in sorted((first / "snapshots").glob("*"))] == [
        path.name for path in sorted((second / "snapshots").glob("*"))
    ]
