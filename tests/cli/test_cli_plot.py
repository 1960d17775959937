"""`swa plot` and `swa report` as a person uses them: what is drawn, from what, and how wrong requests end."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import pytest
import torch

from conftest import SMALL, Swa, run_swa
from swa_cli.cli.shared import PICTURE_FORMATS
from swa_cli.metrics.metric import CLASSIFICATION
from swa_cli.report import plots
from swa_cli.report.page import RunOnPage, document
from swa_cli.report.tables import SettingRow, SettingTable

pytestmark = pytest.mark.pictures
RECIPE = SMALL.replace("epochs: 4", "epochs: 3, precision: fp32") + "snapshots: {every: 0.5ep}\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with snapshots; only read, or copied."""
    folder = tmp_path_factory.mktemp("plotted")
    (folder / "small.yaml").write_text(RECIPE)
    run_swa("train", folder / "small.yaml", "-q", "--out", folder)
    return folder / "small-001"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("optimizer.lrr=1", "optimizer.lrr"),
        ("optimizer.betas=x", "optimizer.betas"),
        ("model.args.wdth=4", "model.args"),
    ],
)
def test_the_schedule_of_a_wrong_recipe_is_not_drawn(tmp_path: Path, swa: Swa, word: str, key: str) -> None:
    """Options that no optimizer and no network has, in a recipe before training: exit 2 at the key, no picture."""
    (tmp_path / "small.yaml").write_text(RECIPE)
    ended = swa("plot", "small.yaml", "schedule", word)
    assert ended.code == 2
    assert f"error: {key}" in ended.err
    assert not Path("schedule.png").exists()


@pytest.mark.parametrize("kind", ["curves", "schedule", "calibration", "confusion", "window"])
def test_each_picture_lands_in_the_run_folder(kind: str, run: Path, swa: Swa) -> None:
    """A PNG named after its kind, and its path as JSON; an SVG where the name says so."""
    ended = swa("plot", run, kind, "--json", "-q", *(["--grid", "3"] if kind == "window" else []))
    assert ended.code == 0, ended.err
    assert ended.json["path"] == str(run / f"{kind}.png")
    assert (run / f"{kind}.png").read_bytes().startswith(b"\x89PNG")
    if kind == "curves":
        assert swa("plot", run, "-o", "own.svg", "-q").code == 0
        assert Path("own.svg").read_text().startswith("<?xml")


def test_a_full_disk_is_no_mistake_of_the_users_code(run: Path, swa: Swa, monkeypatch: pytest.MonkeyPatch) -> None:
    """matplotlib meets a disk without room: one line that says so, and no frame of a package."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.png")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    ended = swa("plot", run, "-o", "a.png")
    assert ended.code == 1
    assert "No space left" in ended.err
    assert "own code" not in ended.err


def test_the_page_of_a_run_of_several_processes_names_them(run: Path, swa: Swa) -> None:
    """The command of the page for a run of four processes, each with a card of its own."""
    content = torch.load(run / "checkpoints/last.pt", weights_only=True)
    content["environment"] |= {"processes": 4, "device": "cuda:0"}
    torch.save(content, run / "checkpoints/last.pt")
    assert swa("report", run, "--no-data", "-o", "page.html").code == 0
    assert "train.device=cuda --processes 4" in Path("page.html").read_text()


def test_a_picture_for_a_paper(run: Path, swa: Swa, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--format` names the default file, `--width` its inches at 150 dpi; a script that no font has is a warning."""
    ended = swa("plot", run, "schedule", "--format", "pdf", "--json", "-q")
    assert ended.json["path"] == str(run / "schedule.pdf")
    assert (run / "schedule.pdf").read_bytes().startswith(b"%PDF")
    assert swa("plot", run, "schedule", "--width", "3.3", "-o", "narrow.png", "-q").code == 0
    assert matplotlib.image.imread("narrow.png").shape[1] == 495
    monkeypatch.setattr(plots, "FONTS", ("DejaVu Sans",))
    ended = swa("plot", run.rename(run.with_name("日本-001")), "schedule", "-o", "named.png")
    assert ended.code == 0, ended.err
    assert "no installed font has 日 本" in " ".join(ended.err.split())
    assert PICTURE_FORMATS == plots.FORMATS


def test_final_markers_of_the_curves_are_the_scores_of_the_run(run: Path, swa: Swa) -> None:
    """The legends of both panels in the SVG, whose text is text, against result.json: a mark per row."""
    assert swa("plot", run, "curves", "-o", "own.svg", "-q").code == 0
    marks = re.findall(r">(\S+), test: ([\d.]+)(?: %)?</text>", Path("own.svg").read_text())
    rows = json.loads((run / "result.json").read_text())["weights"]
    assert [name for name, _ in marks] == ["last", "last_bn", "swa"] * 2
    for (name, value), key in zip(marks, ["nll"] * 3 + ["accuracy"] * 3, strict=True):
        expected = rows[name][key] * (100 if key == "accuracy" else 1)
        assert float(value) == pytest.approx(expected, abs=0.00501 if key == "accuracy" else 0.000501)


def test_the_corners_of_a_plane_score_as_the_run_does(run: Path, swa: Swa) -> None:
    """With all samples: accuracy at `swa` and `last_bn`, against result.json and a BatchNorm pass of `swa average`."""
    ended = swa("plot", run, "plane", "--grid", "3", "--samples", "all", "--json", "-q")
    assert ended.code == 0, ended.err
    points = {point["name"]: point for point in ended.json["points"]}
    result = json.loads((run / "result.json").read_text())
    assert list(points) == ["epoch 1.5", "last_bn", "swa"]
    for name in ("last_bn", "swa"):
        assert points[name]["score"] == pytest.approx(result["weights"][name]["accuracy"], abs=1e-9)
    refreshed = swa("average", run / "snapshots" / "step-00000060.pt", "-o", "last.pt", "--json", "-q")
    assert refreshed.code == 0, refreshed.err
    alone = swa("eval", "last.pt", "--json", "-q").json["weights"]["soup"]
    assert points["last_bn"]["score"] == pytest.approx(alone["accuracy"], abs=1e-9)


def test_distances_in_the_plane_are_those_of_the_weights(run: Path, swa: Swa) -> None:
    """Sides of the triangle in the picture against float64 norms of differences of the parameters."""
    ended = swa("plot", run, "plane", "--grid", "3", "--samples", "64", "--json", "-q")
    places = {
        point["name"]: torch.tensor([point["x"], point["y"]], dtype=torch.float64) for point in ended.json["points"]
    }
    states = {
        "epoch 1.5": torch.load(run / "snapshots/step-00000030.pt", weights_only=True)["state_dict"],
        "last_bn": torch.load(run / "checkpoints/last.pt", weights_only=True)["model"],
        "swa": torch.load(run / "checkpoints/swa.pt", weights_only=True)["state_dict"],
    }
    names = [name for name in states["swa"] if "running" not in name and "num_batches" not in name]
    for one, other in (("epoch 1.5", "last_bn"), ("epoch 1.5", "swa"), ("last_bn", "swa")):
        squares = [(states[one][name].double() - states[other][name].double()).square().sum() for name in names]
        expected = torch.stack(squares).sum().sqrt()
        torch.testing.assert_close((places[one] - places[other]).norm(), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", ["plane", "path"])
def test_an_interrupted_computation_goes_on(kind: str, run: Path, swa: Swa) -> None:
    """A kept file that lacks its last points: the same scores in the end, and the points it has are not measured."""
    words = ("plot", run, kind, "--grid", "3", "--samples", "64", "--json")
    first = swa(*words)
    cache = Path(first.json["cache"])
    whole = json.loads(cache.read_text())
    marked = [{**row, "loss": 7.0} for row in whole["rows"][:4]]
    cache.write_text(json.dumps({**whole, "rows": marked}))
    second = swa(*words)
    assert "4 of " in second.err
    rows = json.loads(cache.read_text())["rows"]
    assert rows == marked + whole["rows"][4:]


def test_the_line_begins_and_ends_at_its_weight_sets(run: Path, swa: Swa) -> None:
    """`--between` a file and a name: the ends, the units, and a point beyond each of them."""
    file = run / "snapshots" / "step-00000010.pt"
    ended = swa("plot", run, "path", "--between", file, "swa", "--grid", "5", "--samples", "64", "--json", "-q")
    assert ended.code == 0, ended.err
    ends = ended.json["points"]
    assert [end["name"] for end in ends] == ["step-00000010.pt, epoch 0", "swa"]
    assert ended.json["x"][0] < 0 < ends[1]["x"] < ended.json["x"][-1]


def test_a_reliability_diagram_holds_the_ece_of_the_run(run: Path, swa: Swa) -> None:
    """sum n |accuracy - confidence| / N over the bins, against the ECE in result.json."""
    weights = swa("plot", run, "calibration", "--json", "-q").json["weights"]
    result = json.loads((run / "result.json").read_text())
    assert list(weights) == list(result["weights"])
    for name, found in weights.items():
        held = [bin_ for bin_ in found["bins"] if bin_["count"]]
        assert len(found["bins"]) == 15
        assert sum(bin_["count"] for bin_ in held) == result["samples"]
        gaps = sum(bin_["count"] * abs(bin_["accuracy"] - bin_["confidence"]) for bin_ in held)
        assert gaps / result["samples"] == pytest.approx(result["weights"][name]["ece"], abs=1e-6)


def test_a_confusion_matrix_holds_the_accuracy_of_the_run(run: Path, swa: Swa) -> None:
    """The diagonal over the sum, against the accuracy in result.json."""
    found = swa("plot", run, "confusion", "--weights", "last", "--json", "-q").json
    right = sum(row[index] for index, row in enumerate(found["matrix"]))
    accuracy = json.loads((run / "result.json").read_text())["weights"]["last"]["accuracy"]
    assert right / sum(map(sum, found["matrix"])) == pytest.approx(accuracy, abs=1e-9)


def test_a_recipe_has_its_schedule_before_training(tmp_path: Path, swa: Swa) -> None:
    """Steps and averaged steps of a set of known size, against those of a dry run, which opens the data."""
    (tmp_path / "small.yaml").write_text(RECIPE)
    drawn = swa("plot", "small.yaml", "schedule", "swa.start=1ep", "--json", "-q").json
    dry = swa("train", "small.yaml", "swa.start=1ep", "--dry-run", "--json", "-q").json
    assert drawn["steps_per_epoch"] == dry["steps_per_epoch"]
    assert drawn["averages"] == {name: item["steps"] for name, item in dry["averages"].items()}
    assert Path("schedule.png").is_file()


def test_a_run_draws_its_pictures_where_the_recipe_says_so(tmp_path: Path, swa: Swa) -> None:
    """`output.plots: true` without snapshots: what can be drawn is there, the rest is named with its reason."""
    (tmp_path / "small.yaml").write_text(SMALL.replace("epochs: 4", "epochs: 2"))
    ended = swa("train", "small.yaml", "output.plots=true")
    assert ended.code == 0, ended.err
    there = {path.stem for path in Path("runs/small-001").glob("*.png")}
    assert there == {"curves", "schedule", "path", "calibration", "confusion"}
    assert re.search(r"left out: plane \(has no snapshot.*window \(has 0 snapshots", ended.err)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["RUN", "surface"], "surface: choose curves"),
        (["RUN", "curves", "--grid", "5"], "--grid goes with plane"),
        (["RUN", "plane", "--between", "last", "swa"], "--between goes with path"),
        (["RUN", "plane", "--samples", "few"], "--samples few"),
        (["RUN", "plane", "--points", "last", "last", "swa"], "twice"),
        (["RUN", "plane", "--points", "last", "swa", "nowhere.pt"], "neither a file nor a weight set"),
        (["RUN", "path", "--between", "swa", "swa"], "the same weights"),
        (["RUN", "confusion", "--weights", "ema"], "choose from last, last_bn, swa"),
        (["RUN", "-o", "curves.gif"], "PNG, SVG or PDF"),
        (["RUN", "--format", "pdf", "-o", "curves.svg"], "does not end in .pdf"),
        (["RUN", "--format", "gif"], "choose png, svg, pdf"),
        (["RUN", "--width", "0.5"], "--width"),
        (["RUN", "--width", "nan"], "--width"),
        (["RUN", "-o", "nowhere/curves.png"], "no such folder"),
        (["RUN", "curves", "optimizer.lr=0.2"], ""),
        (["small.yaml", "curves"], "is a file"),
        (["nowhere"], "no such run folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_request_ends_in_one_message(
    words: list[str], reason: str, run: Path, tmp_path: Path, swa: Swa
) -> None:
    """Exit code 2 and the reason; changes that a picture of a run does not look at are refused as everywhere."""
    (tmp_path / "small.yaml").write_text(RECIPE)
    ended = swa("plot", *(run if word == "RUN" else word for word in words))
    assert ended.code == 2, ended.err
    assert reason in " ".join(ended.err.replace("│", " ").split())


def test_a_plane_takes_snapshots(run: Path, swa: Swa) -> None:
    """A run without any: the message names the key that keeps them and the option that does without."""
    shutil.rmtree(run / "snapshots")
    ended = swa("plot", run, "plane")
    assert ended.code == 2
    assert "snapshots.every=1ep" in ended.err
    assert "--points" in ended.err


def test_a_damaged_cache_is_told(run: Path, swa: Swa) -> None:
    """Scores that are text: one message that says to remove the file."""
    words = ("plot", run, "path", "--grid", "3", "--samples", "64", "--json", "-q")
    cache = Path(swa(*words).json["cache"])
    cache.write_text('{"rows": [{"loss": "low"}]}')
    ended = swa(*words)
    assert ended.code == 2
    assert "remove it" in ended.err


class Links(HTMLParser):
    """What a page would fetch, and what it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.rows: list[list[str]] = []  # of tables, their cells

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag == "td":
            self.rows[-1].append("")
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "td":
            self.rows[-1][-1] += data


@pytest.mark.slow
def test_a_page_needs_nothing_else(run: Path, swa: Swa) -> None:
    """Every address in the page is a data URI; scores, recipe and the way to run it again are there."""
    swa("plot", run, "plane", "--grid", "3", "--samples", "64", "-q")
    ended = swa("report", run, "-o", "page.html", "--json", "-q")
    assert ended.code == 0, ended.err
    assert ended.json["left_out"] == {str(run): []}
    text = Path("page.html").read_text()
    page = Links()
    page.feed(text)
    assert page.links
    assert all(link.startswith("data:") for link in page.links)
    assert page.tags.count("img") == 2 + 3 + 1 + 1  # plane, calibration of three weight sets, confusion, images
    result = json.loads((run / "result.json").read_text())
    assert f"{100 * result['weights']['swa']['accuracy']:.2f} ±" in text
    for words in ("swa train recipe.yaml", "batch_size: 64", "torch"):
        assert words in text
    rows = [row for row in page.rows if row and (row[0] in result["weights"] or row[0].startswith("−"))]
    assert [row[0] for row in rows] == ["last", "last_bn", "swa", f"− {result['reference']}"]
    for name, accuracy, *_ in rows[:3]:
        assert accuracy.startswith(f"{100 * result['weights'][name]['accuracy']:.2f} ±")
    classes = {row[0]: row for row in page.rows if len(row) == 6}
    recalls = {name: float(row[3].split()[0]) for name, row in classes.items()}
    assert recalls["mean"] == pytest.approx(sum(recalls[str(number)] for number in range(10)) / 10, abs=0.011)
    assert sum(int(classes[str(number)][1]) for number in range(10)) == result["samples"]
    gain = result["weights"]["swa"]["accuracy"] - result["weights"][result["reference"]]["accuracy"]
    assert float(rows[3][1].split()[0].replace("−", "-")) == pytest.approx(100 * gain, abs=0.00501)


def test_a_page_says_why_there_is_no_plane(run: Path, swa: Swa) -> None:
    """A run whose only snapshot is that of its end: no command is told that fails, and `--plane` says the same."""
    for file in sorted((run / "snapshots").glob("*.pt"))[:-1]:
        file.unlink()
    for words in ([], ["--plane"]):
        ended = swa("report", run, "--no-data" if not words else "-q", *words, "-o", "page.html", "--json")
        [*_, note] = ended.json["left_out"][str(run)]
        assert "no snapshot before its end" in note
        assert "--plane" not in note


def test_two_runs_stand_side_by_side(run: Path, trained: Path, swa: Swa) -> None:
    """A run and its copy, without data: one table with both, and what was left out is said once, also of a blank."""
    run = run.rename(run.with_name("a run"))
    ended = swa("report", run, trained, "--no-data", "-o", "page.html", "--json")
    assert ended.code == 0, ended.err
    text = Path("page.html").read_text()
    assert text.count("<article>") == 2
    assert "Left out: plane" in text
    assert ended.err.count("plane is left out") == 1
    assert "`swa plot RUN plane`" in " ".join(ended.err.split())
    assert "<details><summary><h2>" not in text


def test_runs_of_a_page_have_names_of_their_own(trained: Path, tmp_path: Path, swa: Swa) -> None:
    """Seeds of two repeats, and runs of one name under two roots, against titles and picture titles that tell them."""
    places = ("runs/a-001/seed-0", "runs/a-001/seed-1", "runs/b-001/seed-0", "runs/c-001", "others/c-001")
    for place in places:
        shutil.copytree(trained, tmp_path / place)
    for repeat in ("a", "b"):
        (tmp_path / f"runs/{repeat}-001/repeat.json").write_text("{}")
    assert swa("report", *places, "--no-data", "-o", "page.html", "-q").code == 0
    titles = ["a-001/seed-0", "a-001/seed-1", "b-001/seed-0", "runs/c-001", "others/c-001"]
    text = Path("page.html").read_text()
    assert re.findall(r"<h2>(\S*)</h2>", text) == titles
    assert text.count("<details><summary><h2>") == len(titles)  # more than three runs are folded
    assert swa("report", "runs/a-001/seed-1", "--no-data", "-o", "one.html", "-q").code == 0
    assert "<title>a-001/seed-1</title>" in Path("one.html").read_text()
    assert swa("plot", "runs/b-001/seed-0", "schedule", "-o", "s.svg", "-q").code == 0
    assert "b-001/seed-0" in Path("s.svg").read_text()


def test_text_of_a_user_is_escaped() -> None:
    """Names and values that are HTML: none of their tags is in the page."""
    hostile = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    rows = [{"epoch": 1, "lr": 0.1, "train_loss": 1.0, f"{hostile}_val_loss": 0.5}]
    scores = {"accuracy": 0.5, "nll": 1.0, "batchnorm": hostile, "count": 1}
    page = RunOnPage(
        title=hostile,
        facts=[(hostile, hostile)],
        metrics=CLASSIFICATION,
        rows=rows,
        averaging={hostile: [1]},
        steps_per_epoch=1,
        lr=[0.1],
        split=hostile,
        samples=1,
        weights={"last": scores, hostile: scores},
        verdict=[hostile],
        drawings=[],
        recipe=hostile,
        versions=[(hostile, hostile)],
        commands=[hostile],
    )
    of = {"label": hostile, "runs": [hostile], "seeds": [0], "params": {hostile: hostile}, "weights": hostile}
    row = SettingRow(**of, state=hostile, scores={}, against={}, is_best=True)
    table = SettingTable(hostile, CLASSIFICATION, {hostile: 1}, [hostile], {hostile: hostile}, [row], hostile, hostile)
    text = document([page, page], title=hostile, tables=[table], notes=[hostile])
    found = Links()
    found.feed(text)
    assert found.tags.count("script") == 1
    assert "img" not in found.tags
