"""Commands that only look: `swa show`, `swa compare`, `swa doctor`, `swa plan`."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
import torch

from conftest import run_swa
from swa_cli.analysis import doctor
from swa_cli.engine import estimate
from swa_cli.models import build_model
from swa_cli.recipe import load
from swa_cli.recipe.plan import make_plan

RECIPE = """\
name: looked-at
model: {name: convnet, args: {width: 4}}
dataset: {name: digits, val: 0}
optimizer: {lr: 0.1}
swa: {start: 1ep, every: 2step}
averages: {g: {kind: swag, rank: 2, start: 1step, every: 1step}}
snapshots: {every: 1ep}
train: {epochs: 2, batch_size: 256, threads: 1, precision: fp32}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, of which the second has another rate and one average more."""
    folder = tmp_path_factory.mktemp("looked")
    (folder / "recipe.yaml").write_text(RECIPE)
    words = ("train", folder / "recipe.yaml", "-q", "--out", folder / "runs")
    run_swa(*words)
    run_swa(*words, "optimizer.lr=0.05", "averages.e.kind=ema")
    return folder / "runs"


def test_show_tells_what_is_in_a_resume_point(swa, trained: Path) -> None:
    """Steps, counts and sizes of last.pt against the plan of the recipe and the file itself."""
    path = trained / "looked-at-001/checkpoints/last.pt"
    told, content = swa("show", path, "--json").json, torch.load(path, weights_only=True)
    planned = make_plan(load.load(trained.parent / "recipe.yaml").recipe, num_train=content["num_train"])
    assert (told["kind"], told["epoch"], told["step"]) == ("resume", 2, planned.total_steps)
    for average in planned.averages:
        entry = told["weights"][average.name]
        assert entry["steps"] == list(average.steps)
        assert (entry["count"], entry["batchnorm"]) == (len(average.steps), "stale")
    last = told["weights"]["last"]
    assert last["tensors"] == len(content["model"])
    assert last["bytes"] == sum(value.nbytes for value in content["model"].values())
    assert told["recipe"]["optimizer"]["lr"] == 0.1
    said = " ".join(swa("show", path).out.split())
    assert "looked-at: classification, convnet on digits, SGD at 0.1, 2 epochs of batches of 256, seed 0" in said
    assert "images of 1 x 8 x 8; 10 classes" in said


def test_show_tells_shipped_averages_and_snapshots(swa, trained: Path) -> None:
    """swa.pt, the swag average with its posterior, a snapshot: kind and freshness."""
    run = trained / "looked-at-001"
    shipped = swa("show", run / "checkpoints/swa.pt", "--json").json
    assert (shipped["kind"], shipped["weights"]["swa"]["batchnorm"]) == ("weights", "recomputed")
    assert "posterior" in swa("show", run / "checkpoints/g.pt").out
    torch.save({**torch.load(run / "checkpoints/swa.pt"), "posterior": None}, "none.pt")  # as if it were not there
    assert swa("show", "none.pt", "--json").json["weights"] == shipped["weights"]
    (path, *_) = sorted(run.glob("snapshots/*.pt"))
    assert swa("show", path, "--json").json["weights"]["snapshot"]["kind"] == "raw"


def test_show_of_a_run_makes_no_network_and_no_data(swa, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run folder is told with its scores while neither can be made; the folder is only read."""
    from swa_cli.data import sources
    from swa_cli.models import build_model

    def refuse(*args: object, **more: object) -> None:
        pytest.fail("made something")

    monkeypatch.setattr(build_model, "build", refuse)
    monkeypatch.setattr(sources, "load", refuse)
    run = trained / "looked-at-001"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    told = swa("show", run, "--json").json
    assert told["finished"]
    assert told["weights"] == json.loads((run / "result.json").read_text())["weights"]
    assert told["resume_point"]["weights"]["swa"]["batchnorm"] == "recomputed"
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    ended = swa("show", run)
    assert "run, finished" in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80


def accuracies(lines: list[str]) -> list[tuple[str, float]]:
    """Label and accuracy, or difference of accuracies, of each row of a table of scores."""
    rows = [re.match(r" *(\S.*?)  +([−+]?[\d.]+) ±", line) for line in lines]
    return [(row[1], float(row[2].replace("−", "-"))) for row in rows if row]


def in_percent(run: Path) -> list[tuple[str, float]]:
    """The same by hand from the scores in result.json: each average is followed by its difference to last_bn."""
    rows, found = json.loads((run / "result.json").read_text())["weights"], []
    for name, row in rows.items():
        found.append((name, 100 * row["accuracy"]))
        if name not in ("last", "last_bn"):
            found.append(("− last_bn", 100 * (row["accuracy"] - rows["last_bn"]["accuracy"])))
    return found


def assert_same_table(found: list[tuple[str, float]], expected: list[tuple[str, float]]) -> None:
    """Labels in their order, and values to the digits shown."""
    assert [label for label, _ in found] == [label for label, _ in expected]
    assert [value for _, value in found] == pytest.approx([value for _, value in expected], abs=0.00501)


def test_scores_of_runs_stand_against_their_reference(swa, trained: Path) -> None:
    """Rows and differences to last_bn in `show` and `compare` of runs without validation images, by hand."""
    runs = [trained / "looked-at-001", trained / "looked-at-002"]
    assert [name for name, _ in in_percent(runs[0])][:2] == ["last", "last_bn"]
    assert_same_table(accuracies(swa("show", runs[0]).out.splitlines()), in_percent(runs[0]))
    words = ("compare", *runs, "--weights", "all", "--against", "looked-at-001:last_bn")
    rows = list(csv.DictReader(io.StringIO(swa(*words, "--format", "csv").out)))
    results = {run.name: json.loads((run / "result.json").read_text())["weights"] for run in runs}
    base = results["looked-at-001"]["last_bn"]["accuracy"]
    found = {(row["label"], row["weights"]): row for row in rows}
    assert set(found) == {(run, name) for run, weights in results.items() for name in weights}
    for (run, name), row in found.items():
        accuracy = results[run][name]["accuracy"]
        assert float(row["test_accuracy"]) == accuracy
        if (run, name) != ("looked-at-001", "last_bn"):
            assert float(row["test_accuracy_diff"]) == pytest.approx(accuracy - base)
    ended = swa(*words)
    assert ended.code == 0
    assert "no validation scores" in ended.out


def test_show_tells_a_file_of_another_program(swa, tmp_path: Path) -> None:
    """A torch AveragedModel: its layout, that it is an average, and of how many."""
    state = {"n_averaged": torch.tensor(7), "module.weight": torch.zeros(2, 3)}
    torch.save(state, tmp_path / "theirs.pt")
    told = swa("show", "theirs.pt", "--json").json
    assert told["kind"] == "foreign"
    assert told["layout"] == "state dict"
    assert told["weights"]["swa"] == {
        "kind": "average",
        "count": 7,
        "tensors": 1,
        "numbers": 6,
        "bytes": 24,
        "dtypes": ["float32"],
    }


def test_compare_shows_what_differs(swa, trained: Path) -> None:
    """Two runs: the keys that were changed and no others; every score of both result.json."""
    runs = [trained / "looked-at-001", trained / "looked-at-002"]
    (table,) = swa("compare", *runs, "--json").json["tables"]
    first, second = (row["params"] for row in table["rows"])
    assert (first["optimizer.lr"], second["optimizer.lr"]) == (0.1, 0.05)
    assert (first["averages.e"], second["averages.e"]) == (None, True)
    assert first.keys() == second.keys() == {"optimizer.lr", "averages.e"}
    (table,) = swa("compare", *runs, "--weights", "all", "--json").json["tables"]
    for run in runs:
        weights = json.loads((run / "result.json").read_text())["weights"]
        rows = {row["weights"]: row["test"] for row in table["rows"] if row["label"] == run.name}
        assert rows.keys() == weights.keys()
        for name, scores in weights.items():
            for key in ("accuracy", "top5", "nll", "ece", "brier"):
                assert rows[name][key]["values"] == [scores[key]]
            assert rows[name]["nll"]["se"] == scores["nll_se"]
    out = swa("compare", *runs, "--weights", "all", "--format", "markdown").out
    cells = [[cell.strip() for cell in line.split("|")] for line in out.splitlines()]
    for run, name in ((1, "last"), (1, "last_bn"), (1, "swa"), (2, "last"), (2, "last_bn"), (2, "e")):
        assert any(f"looked-at-00{run}" in row and name in row for row in cells)
    (table,) = swa("compare", runs[0], runs[0], "--json").json["tables"]
    assert [(row["label"], row["params"]) for row in table["rows"]] == [("looked-at-001", {})]


def test_compare_of_a_run_that_is_not_finished(swa, trained: Path, tmp_path: Path) -> None:
    """A folder with a recipe alone: told as not finished, the recipes compared."""
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/recipe.yaml").write_text(RECIPE.replace("0.1", "0.3"))
    (table,) = swa("compare", trained / "looked-at-001", "begun", "--json").json["tables"]
    assert [row["state"] for row in table["rows"]] == ["finished", "epoch 0 of 2"]
    assert [row["params"] for row in table["rows"]] == [{"optimizer.lr": 0.1}, {"optimizer.lr": 0.3}]
    assert "epoch 0 of 2" in swa("compare", trained / "looked-at-001", "begun").out


def test_doctor_never_fails_because_something_is_missing(swa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing packages, a missing folder of runs, data that are not there or whose code breaks: told, exit 0."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "broken_data.py").write_text("1 / 0\n")
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    told = swa("doctor", "--json").json
    assert told["packages"] == {"torch": told["packages"]["torch"], "no-such-package": None}
    assert told["data"] is None
    assert told["bf16"]["speed"] > 0
    assert swa("doctor", "recipe.yaml", "output.root=a/b/c", "--json").json["data"]["there"]
    missing = swa("doctor", "recipe.yaml", "dataset.name=cifar10", "dataset.root=nowhere")
    assert missing.code == 0
    assert f"cifar10, looked for in {tmp_path / 'nowhere'}: not there" in " ".join(missing.out.split())
    broken = swa("doctor", "recipe.yaml", "dataset.name=broken_data:make")
    assert broken.code == 0
    assert "not there" in " ".join(broken.out.split())
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["broken_data.py", "recipe.yaml"]


def test_plan_is_that_of_the_run(swa, tmp_path: Path) -> None:
    """Rates, steps of each average and snapshots against `make_plan`; the table has a row an epoch; nothing written.

    The rate of the last step of an epoch is that which a run has in metrics.csv.
    """
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    words = ["plan", "recipe.yaml", "train.epochs=5"]
    told = swa(*words, "--json").json
    planned = make_plan(load.load("recipe.yaml", ["train.epochs=5"]).recipe, num_train=1437)
    per_epoch = planned.steps_per_epoch
    assert told["learning_rates"] == [planned.learning_rate(epoch * per_epoch) for epoch in range(5)]
    assert told["averages"]["swa"]["steps"] == list(planned.averages[0].steps)
    assert told["snapshots"] == list(planned.snapshots)
    ended = swa(*words)
    rows = [line.split() for line in ended.out.splitlines() if line[:5].strip().isdigit()]
    assert [int(row[0]) for row in rows] == [1, 2, 3, 4, 5]
    firsts, lasts = told["learning_rates"], told["last_learning_rates"]
    assert [float(row[1]) for row in rows] == pytest.approx(firsts, abs=5e-5)
    assert [float(row[2]) for row in rows] == pytest.approx(lasts, abs=5e-5)
    taken = [0 if row[3] == "·" else int(row[3]) for row in rows]
    expected = [
        sum(epoch * per_epoch < step <= (epoch + 1) * per_epoch for step in planned.averages[0].steps)
        for epoch in range(5)
    ]
    assert taken == expected
    assert "steps timed now" in " ".join(ended.out.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml"]
    assert swa("train", "recipe.yaml", "-q", "train.epochs=5", "name=r").code == 0
    trained = list(csv.DictReader((tmp_path / "runs/r-001/metrics.csv").read_text().splitlines()))
    assert [float(row["lr"]) for row in trained] == lasts


def test_estimated_time_counts_steps_samples_and_batches(swa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of each part with a pace of whole seconds, against the counts by hand."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.setattr(estimate, "measure", lambda run: estimate.StepTimes(3, 1.0, 1.0, 1.0))
    told = swa("plan", "recipe.yaml", "dataset.val=37", "swa.eval_every=1ep", "--json").json
    # 1,400 training samples: 2 epochs of 5 steps. At the end of epoch 1 only g has weights: swa takes steps 6, 8, 10.
    assert told["seconds_of"] == {
        "training": 10,
        "scoring": 37 * (2 + 1 + 2 + 1) + 360 * 4,  # last_bn once, at the end
        "BatchNorm": (1 + 2 + 1) * 6,  # 1,400 samples in batches of 256
    }


def test_time_of_several_processes(swa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step by the two terms of the model, by hand, with a pace of whole seconds; which samples were timed."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    sizes = set()

    def timed(run, batches) -> tuple[int, float]:
        sizes.update(len(labels) for _, labels in batches)
        return 3, 2.0

    monkeypatch.setattr(estimate, "measure", lambda run: estimate.StepTimes(3, 7.0, 1.0, 1.0))
    monkeypatch.setattr(estimate, "time_steps", timed)
    words = ["--processes", "3", "--machines", "2", "--gigabits", "0.001", "train.batch_size=256", "dataset.val=37"]
    told = swa("plan", "recipe.yaml", *words, "--json").json
    network = build_model.build("convnet", num_classes=10, in_channels=1, args={"width": 4})
    parameters = sum(values.numel() for values in network.parameters())
    exchange_s = 2 * 2 / 3 * 4 * parameters * 8 / 1e6
    assert sizes == {86} == {told["processes"]["samples"]}  # 256 are parts of 85, 85 and 86
    assert told["processes"]["exchange_seconds"] == pytest.approx(exchange_s)
    assert told["step_seconds"] == pytest.approx(2.0 + exchange_s)
    assert told["processes"]["speedup"] == pytest.approx(7.0 / (2.0 + exchange_s))
    assert told["seconds_of"]["training"] == pytest.approx(10 * (2.0 + exchange_s), abs=1e-3)
    assert told["seconds_of"]["scoring"] == (37 * (2 + 2 + 1) + 360 * 4) / 2  # both machines score half of the samples
    shown = " ".join(swa("plan", "recipe.yaml", *words).out.split())
    assert "processes 3 on 2 machines, 86 samples each: a step of 2 s and" in shown


def test_a_plan_of_processes_leaves_sharding_out(swa, tmp_path: Path) -> None:
    """`train.fsdp`, which one process cannot do: planned whole with a word for 2 processes, refused for this one."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    several, alone = (
        swa("plan", "recipe.yaml", "train.fsdp=true", "--json", *more) for more in (["--processes=2"], [])
    )
    assert several.code == 0, several.err
    assert several.json["processes"]["number"] == 2
    assert alone.code == 2
    assert "swa train --processes 2" in " ".join(alone.err.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--machines", "2"], "go with --processes"),
        (["--gigabits", "25"], "go with --processes"),
        (["--processes", "2", "--machines", "3"], "--machines: 3"),
        (["--processes", "2", "--gigabits", "inf"], "--gigabits"),
        (["--processes", "0"], "a number of at least 1"),
        (["--processes", "300"], "300 are more than the 256 samples of a batch"),
    ],
)
def test_wrong_clusters_are_refused(swa, tmp_path: Path, words: list[str], message: str) -> None:
    """Processes without a machine, or without samples: one message and exit code 2."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    ended = swa("plan", "recipe.yaml", *words)
    assert ended.code == 2
    assert message in " ".join(ended.err.replace("│", " ").split())
