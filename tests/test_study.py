"""The study: its page is what its stored results make, and its arithmetic is right on numbers done by hand."""

from __future__ import annotations

import base64
import json
import runpy
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_is_made_from_the_stored_results(tmp_path: Path) -> None:
    """Writing the tables again changes nothing."""
    shutil.copytree(DOCS / "study", tmp_path / "study")
    shutil.copy(DOCS / "study.md", tmp_path)
    subprocess.run([sys.executable, "study/study.py", "tables"], cwd=tmp_path, check=True)
    assert (tmp_path / "study.md").read_text() == (DOCS / "study.md").read_text()


def test_tables_by_hand(tmp_path: Path) -> None:
    """Two seeds of a cosine run and of a merge: means, deviations, the paired interval, and the churn."""
    shutil.copy(DOCS / "study/tables.py", tmp_path)
    folder = tmp_path / "results/toy"
    folder.mkdir(parents=True)
    labels = [base64.b64encode(zlib.compress(bytes(values))).decode() for values in ([0, 1, 2, 3], [0, 1, 2, 0])]
    for seed, (cosine, merged) in enumerate([(0.90, 0.92), (0.92, 0.93)]):
        for run, method, accuracy in (("cosine2", "last", cosine), ("constant", "linear2", merged)):
            row = {"method": method, "test": {"accuracy": accuracy, "nll": 0.5 - accuracy / 2, "ece": 0.01}}
            stored = {"seed": seed, "reference": "last", "rows": [row], "labels": {method: labels[seed]}}
            (folder / f"{run}-s{seed}.json").write_text(json.dumps(stored))
    tables = runpy.run_path(str(tmp_path / "tables.py"))
    rows = [line.split(" | ") for line in tables["methods_table"]("toy", 2, share=40)][2:]
    assert [row[1] for row in rows] == ["91.00 ± 1.41", "92.50 ± 0.71"]
    assert [row[4] for row in rows] == ["25.0", "25.0"], "one of four images"
    center, half = 1.5, 12.706 * 0.70710678 / 2**0.5
    assert rows[1][5] == f"{center:+.2f} [{center - half:+.2f}, {center + half:+.2f}]"
    budgets = [line.split(" | ") for line in tables["budgets_table"]("toy", [2])][2:]
    assert budgets[0][1:3] == ["91.00 ± 1.41", "92.50 ± 0.71"]
    with pytest.raises(AssertionError, match="no place for x"):
        tables["fill"]("", {"x": iter([])})
