"""The tables of metrics: an entry that lacks a part is an error at import, and one entry is all that a metric needs."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import swa_cli
from conftest import SMALL

PACKAGE = Path(swa_cli.__file__).parent
TABLE = "CLASSIFICATION = TaskMetrics(\n    all=(\n"
ERROR_RATE = (
    '        Metric("error_rate", "error rate", "lower", lambda correct: mean_of(~correct), ("correct",),'
    ' short_name="err", is_percent=True),\n'
)


def fresh(source: str, path: Path) -> ModuleType:
    """Import a module from its text."""
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("fresh_metric", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('Metric("f1", "F1", "higher"),\n', "compute"),
        ('Metric("f1", "F1", compute=mean_of, of=("nll",)),\n', "direction"),
        ('Metric("nll", "NLL", "lower", mean_of, ("nll",)),\n', "declared twice"),
    ],
    ids=["no computation", "no direction", "a key twice"],
)
def test_an_incomplete_metric_cannot_be_imported(entry: str, message: str, tmp_path: Path) -> None:
    """The real table with one more entry that lacks a part, or has the key of another."""
    source = (PACKAGE / "metrics" / "metric.py").read_text()
    with pytest.raises((TypeError, AssertionError), match=message):
        fresh(source.replace(TABLE, TABLE + entry), tmp_path / "metric.py")


RUN_ALL = """
import json, sys
from swa_cli import cli
for words in json.loads(sys.argv[1]):
    print("== swa", *words, flush=True)
    assert cli.run(words) == 0, words
"""


@pytest.mark.slow
def test_one_entry_is_all_that_a_metric_needs(tmp_path: Path) -> None:
    """Rows of a run, JSON and the table of `swa eval` with an error rate, against 1 - accuracy and its direction.

    A process runs the commands from a copy of the package whose one change is an error rate, as the primary metric.
    """
    shutil.copytree(PACKAGE, tmp_path / "swa_cli", ignore=shutil.ignore_patterns("__pycache__"))
    table = tmp_path / "swa_cli" / "metrics" / "metric.py"
    source = table.read_text()
    assert source.count(TABLE) == 1
    table.write_text(source.replace(TABLE, TABLE + ERROR_RATE))
    (tmp_path / "small.yaml").write_text(SMALL)
    commands = [
        ["train", "small.yaml", "train.epochs=2", "output.root=runs"],
        ["eval", "runs/latest", "--json"],
        ["eval", "runs/latest"],
    ]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "120"}
    words = [sys.executable, "-c", RUN_ALL, json.dumps(commands)]
    ended = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    _, evaluated, shown = (said.partition("\n")[2] for said in ended.stdout.split("== swa")[1:])
    assert "val err" in ended.stderr
    answer: dict[str, Any] = json.loads(evaluated)
    with open(Path(answer["run"]) / "metrics.csv", newline="") as file:
        header = next(csv.reader(file))
    assert {"val_error_rate", "swa_val_error_rate"} <= set(header)
    for row in answer["weights"].values():
        assert next(iter(row)) == "error_rate"
        assert row["error_rate"] == pytest.approx(1 - row["accuracy"], abs=1e-12)
        assert row["error_rate_se"] > 0
    averaged = answer["weights"]["swa"]
    line = next(line for line in shown.splitlines() if line.startswith("swa "))
    assert "error rate %" in shown
    assert f"{100 * averaged['error_rate']:.2f} ± {100 * averaged['error_rate_se']:.2f}" in line
    difference, error = averaged["error_rate_diff"], averaged["error_rate_diff_se"]
    word = "" if abs(difference) <= 2 * error else ", better" if difference < 0 else ", worse"
    sentence = next(line for line in shown.splitlines() if line.startswith("swa vs "))
    expected = f"error rate {100 * difference:+.2f} ± {100 * error:.2f}{word}".replace("-", "−")
    assert f"({expected};" in sentence
