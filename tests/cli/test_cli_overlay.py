"""The curves of several settings: `swa plot RUN... curves` and the page of `swa report`, from files alone."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import pytest

from conftest import Swa
from swa_cli.analysis.overlay import overlaid
from swa_cli.analysis.settings import find
from swa_cli.analysis.table import tabulate
from swa_cli.metrics.metric import CLASSIFICATION
from swa_cli.report.plots.overlay import MOST, Curve, SettingCurves, draw
from swa_cli.report.terminal import Terminal
from written_runs import Scores, write_repeat, write_run

pytestmark = pytest.mark.pictures
GOOD: Scores = (0.9, 0.3)
BAD: Scores = (0.8, 0.6)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two repeats of three seeds, and a run with one epoch more than they have."""
    write_repeat(tmp_path / "runs/a-001", "swa.lr=0.01", swa=[(GOOD, GOOD)] * 3)
    write_repeat(tmp_path / "runs/b-001", "swa.lr=0.02", swa=[(BAD, BAD)] * 3)
    rows = [{"epoch": epoch, "val_loss": 2 / epoch, "val_accuracy": epoch / 10} for epoch in (1, 2, 3)]
    write_run(tmp_path / "runs/c-001", "swa=null", epochs=rows)
    return tmp_path / "runs"


def curves_of(*paths: Path) -> tuple[list[SettingCurves], list[str]]:
    found = find(paths, terminal=Terminal(quiet=True))
    (table,) = tabulate(found, warn=pytest.fail)
    return overlaid(found, table)


def test_mean_and_deviation_at_each_epoch(runs: Path) -> None:
    """Three seeds against `statistics` of what was written, and each seed as it is; an average where it was scored."""
    curves, left_out = curves_of(runs / "a-001")
    (found,) = curves
    assert left_out == []
    assert found.raw["nll"].mean == [(1, 3.0), (2, 2.0)]
    assert found.raw["nll"].sd == [statistics.stdev([2, 3, 4]), statistics.stdev([1, 2, 3])]
    assert found.raw["nll"].seeds == [[(1, 2.0 + seed), (2, 1.0 + seed)] for seed in range(3)]
    assert found.raw["accuracy"].mean == [(1, pytest.approx(0.2)), (2, pytest.approx(0.4))]
    assert (found.average, found.averaged["nll"].mean) == ("swa", [(2, 0.5)])


def test_a_seed_that_is_shorter_counts_as_far_as_it_goes(tmp_path: Path) -> None:
    """Seeds of two and of three epochs: the third epoch is that of one seed, without a deviation."""
    for seed, number in ((0, 2), (1, 3)):
        rows = [{"epoch": epoch, "val_loss": 1.0 + seed, "val_accuracy": 0.5} for epoch in range(1, number + 1)]
        write_run(tmp_path / f"s{seed}", f"seed={seed}", epochs=rows)
    ((found,), _) = curves_of(tmp_path / "s0", tmp_path / "s1")
    assert found.raw["nll"].mean == [(1, 1.5), (2, 1.5), (3, 2.0)]
    assert found.raw["nll"].sd[2] is None


def test_curves_of_several_settings_are_one_picture(swa: Swa, runs: Path) -> None:
    """Repeats and a run: one SVG with a name and the keys of each setting, and both axes named."""
    ended = swa("plot", runs / "a-001", runs / "b-001", runs / "c-001", "curves", "-o", "o.svg", "--json")
    assert ended.code == 0, ended.err
    assert [(each["label"], each["seeds"]) for each in ended.json["settings"]] == [
        ("a-001", [0, 1, 2]),
        ("b-001", [0, 1, 2]),
        ("c-001", [0]),
    ]
    said = re.findall(r"<text[^>]*>(.*?)</text>", Path("o.svg").read_text())
    for text in ("a-001 (swa.lr 0.01)", "b-001 (swa.lr 0.02)", "c-001", "validation loss", "validation accuracy"):
        assert any(text in each for each in said), text
    assert swa("plot", runs / "a-001").code == 0
    assert (runs / "a-001/curves.png").is_file()


@pytest.mark.parametrize(
    ("words", "piece"),
    [
        (["a-001", "plane"], "a-001/seed-0"),
        (["a-001", "b-001", "confusion"], "name one run"),
        (["a-001", "b-001", "dataset.root=x"], "dataset.root=x"),
        (["a-001", "curvs"], "unknown picture curvs"),
        (["a-001", "b-001", "curves", "plane"], "name one picture"),
        (["a-001", "x/nowhere"], "x/nowhere"),
        (["a-001", "-o", "x.gif"], "x.gif"),
    ],
)
def test_wrong_requests_are_refused(swa: Swa, runs: Path, words: list[str], piece: str) -> None:
    """Other pictures, changes, two kinds, a folder that is missing: exit 2, what is wrong or what to name."""
    ended = swa("plot", *(runs / word if word in ("a-001", "b-001") else word for word in words))
    assert ended.code == 2
    assert piece in ended.err
    assert not list(Path().glob("*.png"))


def test_what_is_not_drawn_is_named(swa: Swa, tmp_path: Path) -> None:
    """A run without an epoch and more settings than can be told apart: drawn are the best by validation."""
    for number in range(MOST + 1):
        rows = [{"epoch": 1, "val_loss": 1.0 + number, "val_accuracy": 0.5}]
        write_run(tmp_path / f"r{number}", f"optimizer.lr={0.01 * (number + 1)}", epochs=rows)
    write_run(tmp_path / "begun", "optimizer.lr=0.9")
    ended = swa("plot", *sorted(tmp_path.iterdir()), "-o", "o.svg", "--json")
    assert ended.json["left_out"] == [f"r{MOST}", "begun"]
    assert all(name in ended.err for name in ended.json["left_out"])
    assert len(ended.json["settings"]) == MOST


def test_axes_end_where_the_metric_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accuracies of 100 % and losses near 0 of a long run: no percent above 100, no loss below 0."""
    from matplotlib.figure import Figure

    limits: list[tuple[float, float]] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: limits.extend(axes.get_ylim() for axes in self.axes))
    points = {"nll": [(n, 3 / n**2) for n in range(1, 31)], "accuracy": [(n, 1 - 0.9 / n**3) for n in range(1, 31)]}
    raw = {key: Curve(values, [None] * 30, [values]) for key, values in points.items()}
    draw(tmp_path / "x.png", settings=[SettingCurves("a", raw, {})], title="", metrics=CLASSIFICATION)
    (bottom, top), (low, high) = limits
    assert bottom == 0
    assert top < 0.2  # the steep start is cut off
    assert low > 50
    assert high == 100


def test_a_page_of_repeats_begins_with_their_table(swa: Swa, runs: Path) -> None:
    """Means as in `compare`, the curves of all, one warning for each kind of part that the runs lack."""
    ended = swa("report", *sorted(runs.iterdir()), "-o", "page.html", "--json")
    assert ended.code == 0, ended.err
    text = Path("page.html").read_text()
    cells = re.findall(r"<tr[^>]*><td>(a-001|b-001|c-001)</td>(.*?)</tr>", text)
    assert [label for label, _ in cells] == ["a-001", "b-001", "c-001"]
    assert "<td>0.01</td>" in cells[0][1]
    assert "<td>0.300 ± 0.000</td>" in cells[0][1]
    assert text.count("<img ") == 2
    assert len(ended.json["runs"]) == 7
    assert len([line for line in ended.err.splitlines() if line.startswith("warning: ")]) == 1
    assert "every run" in ended.err
    assert "<title>7 runs of 3 settings</title>" in text
    assert swa("report", runs / "a-001", "-o", "page.html", "-q").code == 0
    assert "<title>a-001: 3 runs</title>" in Path("page.html").read_text()
    assert all(len(notes) == 1 for notes in ended.json["left_out"].values())
