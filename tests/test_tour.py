"""docs/tour.ipynb, run cell by cell."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import matplotlib
import pytest
from matplotlib import pyplot

NOTEBOOK = Path(__file__).parents[1] / "docs/tour.ipynb"
QUICK = {"train": ["train.epochs=4"]}  # more words for a command: less training, 3 snapshots at least


def test_every_cell_of_the_tour_runs(swa, capsys: pytest.CaptureFixture[str]) -> None:
    """Commands and Python in their order in one namespace: nothing fails, and the numbers are those of result.json."""
    matplotlib.use("template")  # shows nothing, and says nothing of it
    namespace: dict[str, object] = {}
    said = ""
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        assert cell["outputs"] == []
        source = "".join(cell["source"])
        if not source.startswith("!"):
            exec(compile(source, str(NOTEBOOK), "exec"), namespace)
            said += capsys.readouterr().out
            continue
        for line in source.splitlines():
            name, command, *words = shlex.split(line.removeprefix("!"))
            assert name == "swa"
            ended = swa(command, *words, *QUICK.get(command, []))
            assert ended.code == 0, ended.err
    pyplot.close("all")
    result = json.loads(Path("runs/latest/result.json").read_text())["weights"]["swa"]
    assert f"accuracy {result['accuracy']:.2%}" in said
    assert f"{result['count']} weight sets" in said
    assert "mean of 5 weight sets" in said
    assert Path("last3.pt").is_file()
