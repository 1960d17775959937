"""`swa compare` as a person uses it: rows, means, intervals, columns, formats, and how wrong requests end."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from conftest import Swa
from swa_cli.analysis.compare import Result, over_pairs
from written_runs import RECIPE, Scores, write_repeat, write_run

# Validation and test scores of swa in seeds 0 to 2; a is best on validation images, b on test images.
A: list[tuple[Scores, Scores]] = [
    ((0.91, 0.30), (0.88, 0.41)),
    ((0.93, 0.28), (0.90, 0.39)),
    ((0.92, 0.31), (0.86, 0.45)),
]
B: list[tuple[Scores, Scores]] = [
    ((0.90, 0.33), (0.92, 0.30)),
    ((0.92, 0.29), (0.93, 0.28)),
    ((0.90, 0.35), (0.91, 0.31)),
]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Repeats a and b, a run c with one seed, and d, which has not finished."""
    write_repeat(tmp_path / "runs/b-001", "swa.lr=0.02", swa=B)
    write_repeat(tmp_path / "runs/a-001", "swa.lr=0.01", swa=A)
    write_run(tmp_path / "runs/c-001", "swa=null", "seed=1", test={"last": (0.7, 0.8)}, val={"last": (0.75, 0.7)})
    rows = [{"epoch": epoch, "val_loss": 2 / epoch, "val_accuracy": epoch / 10} for epoch in (1, 2, 3)]
    write_run(tmp_path / "runs/d-001", "optimizer.lr=0.2", epochs=rows)
    return tmp_path / "runs"


def rows_of(swa: Swa, *words: str | Path) -> dict[str, dict[str, Any]]:
    """The rows of the only table, by their labels."""
    (table,) = swa("compare", *words, "--json").json["tables"]
    return {row["label"]: row for row in table["rows"]}


def parsed(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_row_for_each_setting(swa: Swa, runs: Path) -> None:
    """Numbers of every row against result.json, bit for bit, and `statistics`; sorted by the validation loss."""
    rows = rows_of(swa, *sorted(runs.iterdir()))
    assert list(rows) == ["a-001", "b-001", "d-001", "c-001"]
    for label, place in (("a-001", 0), ("b-001", 0), ("c-001", None)):
        row = rows[label]
        folders = [runs / label] if place is None else [runs / label / f"seed-{seed}" for seed in range(3)]
        assert row["runs"] == [str(folder) for folder in folders]
        results = [json.loads((folder / "result.json").read_text())["weights"][row["weights"]] for folder in folders]
        for key in ("accuracy", "nll", "ece", "brier"):
            for split, scores in (("test", results), ("val", [result["val"] for result in results])):
                values = [each[key] for each in scores]
                assert row[split][key]["values"] == values
                assert row[split][key]["mean"] == pytest.approx(statistics.fmean(values), abs=1e-15)
                sd = statistics.stdev(values) if len(values) > 1 else None
                assert row[split][key]["sd"] == (sd if sd is None else pytest.approx(sd, abs=1e-12))
        assert row["state"] == "finished"
    assert rows["c-001"]["test"]["nll"] == {"mean": 0.8, "sd": None, "values": [0.8], "se": 0.022}
    assert {label: row["seeds"] for label, row in rows.items()} == {
        "a-001": [0, 1, 2],
        "b-001": [0, 1, 2],
        "c-001": [1],
        "d-001": [0],
    }
    assert [row["best"] for row in rows.values()] == [True, False, False, False]
    assert rows["d-001"]["state"] == "epoch 3 of 4"
    assert rows["d-001"]["test"] is None
    assert (rows["d-001"]["val"]["nll"]["mean"], rows["d-001"]["val"]["accuracy"]["mean"]) == (2 / 3, 0.3)
    assert {label: row["params"] for label, row in rows.items()} == {
        "a-001": {"optimizer.lr": 0.1, "swa.lr": 0.01},
        "b-001": {"optimizer.lr": 0.1, "swa.lr": 0.02},
        "c-001": {"optimizer.lr": 0.1, "swa.lr": None},
        "d-001": {"optimizer.lr": 0.2, "swa.lr": 0.05},
    }


def test_two_settings_are_compared_seed_by_seed(swa: Swa, runs: Path) -> None:
    """The row against another: scipy's paired t test, and the intervals that `swa repeat --against` computes."""
    rows = rows_of(swa, runs / "a-001", runs / "b-001", "--against", runs / "b-001")
    assert rows["b-001"]["against"] is None
    for split, place in (("val", 0), ("test", 1)):
        for key, number in (("accuracy", 0), ("nll", 1)):
            ours, theirs = ([scores[place][number] for scores in side] for side in (A, B))
            expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
            found = rows["a-001"]["against"][split][key]
            assert found["pairs"] == 3
            assert found["mean"] == pytest.approx(statistics.fmean(ours) - statistics.fmean(theirs))
            assert (found["low"], found["high"]) == (pytest.approx(expected.low), pytest.approx(expected.high))
    results = [
        {
            seed: Result.model_validate(json.loads((runs / name / f"seed-{seed}/result.json").read_text()))
            for seed in range(3)
        }
        for name in ("a-001", "b-001")
    ]
    of_repeat = over_pairs(*results)[1]["swa"]["nll"]
    assert {key: of_repeat[key] for key in ("mean", "low", "high")} == {
        key: rows["a-001"]["against"]["test"]["nll"][key] for key in ("mean", "low", "high")
    }


def test_settings_without_common_seeds_are_not_paired(swa: Swa, tmp_path: Path) -> None:
    """Seeds 0 to 2 against 5 to 7: Welch's interval of scipy, and the word unpaired; a single run has none."""
    write_repeat(tmp_path / "a", "swa.lr=0.01", swa=A)
    write_repeat(tmp_path / "b", "swa.lr=0.02", swa=B, seeds=[5, 6, 7])
    write_run(tmp_path / "c", "swa=null", "seed=9", test={"last": (0.7, 0.8)}, val={"last": (0.75, 0.7)})
    words = ("a", "b", "c", "--against", "b")
    rows = rows_of(swa, *words)
    ours, theirs = ([test[1] for _, test in side] for side in (A, B))
    expected = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    found = rows["a"]["against"]["test"]["nll"]
    assert found["pairs"] == 0
    assert (found["low"], found["high"]) == (pytest.approx(expected.low), pytest.approx(expected.high))
    found = rows["c"]["against"]["test"]["nll"]
    assert found == {"mean": pytest.approx(0.8 - statistics.fmean(theirs)), "low": None, "high": None, "pairs": 0}
    assert "unpaired" in swa("compare", *words, "--format", "markdown").out


def test_only_common_seeds_are_paired(swa: Swa, tmp_path: Path) -> None:
    """Seeds 0 to 2 against 1 to 3: the interval of seeds 1 and 2 alone, each row has the mean of its own seeds."""
    write_repeat(tmp_path / "a", "swa.lr=0.01", swa=A)
    write_repeat(tmp_path / "b", "swa.lr=0.02", swa=B, seeds=[1, 2, 3])
    found = rows_of(swa, "a", "b", "--against", "b")["a"]
    expected = stats.ttest_rel([A[1][1][1], A[2][1][1]], [B[0][1][1], B[1][1][1]]).confidence_interval(0.95)
    assert found["against"]["test"]["nll"]["pairs"] == 2
    assert found["against"]["test"]["nll"]["low"] == pytest.approx(expected.low)
    assert found["seeds"] == [0, 1, 2]


def test_one_common_seed_is_no_pair(swa: Swa, tmp_path: Path) -> None:
    """Seeds 0 to 2 against seed 0 alone, as docs/compare.md says: the means of both rows, unpaired, no interval."""
    write_repeat(tmp_path / "a", "swa.lr=0.01", swa=A)
    write_repeat(tmp_path / "b", "swa.lr=0.02", swa=B[:1])
    rows = rows_of(swa, "a", "b", "--against", "b")
    mean = rows["a"]["test"]["nll"]["mean"] - rows["b"]["test"]["nll"]["mean"]
    assert rows["a"]["against"]["test"]["nll"] == {"mean": pytest.approx(mean), "low": None, "high": None, "pairs": 0}
    out = swa("compare", "a", "b", "--against", "b", "--format", "markdown").out
    assert "unpaired" in out
    assert "1 pair" not in out


def test_nothing_is_chosen_by_test_scores(swa: Swa, runs: Path) -> None:
    """Rows sorted by test loss because they are asked for so: the best row stays that of validation, and a warning."""
    folders = [runs / "a-001", runs / "b-001"]
    ended = swa("compare", *folders)
    assert re.search(r"Sorted by val_nll, the lowest first", ended.out)
    assert "chosen by test" not in ended.out
    asked = swa("compare", *folders, "--sort", "test_nll")
    assert asked.out.index("b-001") < asked.out.index("a-001")
    assert "chosen by test" in " ".join(asked.out.split())
    assert [row["best"] for row in rows_of(swa, *folders, "--sort", "test_nll").values()] == [False, True]
    assert list(rows_of(swa, *folders, "--sort", "test_accuracy")) == ["b-001", "a-001"]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("label", ["a-001", "b-001", "c-001", "d-001"]),
        ("swa.lr", ["a-001", "b-001", "d-001", "c-001"]),
        ("val_accuracy", ["a-001", "b-001", "c-001", "d-001"]),
        ("n", ["c-001", "d-001", "a-001", "b-001"]),
        ("test_nll", ["b-001", "a-001", "c-001", "d-001"]),
    ],
)
def test_rows_are_sorted_by_a_column(swa: Swa, runs: Path, column: str, expected: list[str]) -> None:
    """A column of CSV against the order by hand; rows without a value come last, equal ones as they were named."""
    assert (
        list(rows_of(swa, *(runs / name for name in ("a-001", "b-001", "c-001", "d-001")), "--sort", column))
        == expected
    )


def test_weight_sets_that_are_asked_for(swa: Swa, runs: Path) -> None:
    """One name, all names, and a comparison within a setting against the values by hand."""
    last = rows_of(swa, runs / "a-001", runs / "b-001", "--weights", "last")
    assert [row["test"]["nll"]["mean"] for row in last.values()] == [9.0, 9.0]
    (table,) = swa("compare", runs / "a-001", "--weights", "all", "--against", "a-001:last", "--json").json["tables"]
    assert [row["weights"] for row in table["rows"]] == ["swa", "last"]
    expected = stats.ttest_rel([test[1] for _, test in A], [9.0] * 3).confidence_interval(0.95)
    assert table["rows"][0]["against"]["test"]["nll"]["high"] == pytest.approx(expected.high)
    ended = swa("compare", *sorted(runs.iterdir()), "--weights", "swa", "--json")
    assert [row["label"] for row in ended.json["tables"][0]["rows"]] == ["a-001", "b-001"]
    assert "c-001" in ended.err
    assert "d-001" in ended.err


def test_csv_has_every_number(swa: Swa, runs: Path) -> None:
    """Each number of the JSON in the cell of its name, with all its digits; mean, deviation and seeds apart."""
    words = (*sorted(runs.iterdir()), "--against", "b-001")
    rows = parsed(swa("compare", *words, "--format", "csv").out)
    for row, expected in zip(rows, rows_of(swa, *words).values(), strict=True):
        assert (row["label"], row["weights"], row["state"]) == (
            expected["label"],
            expected["weights"],
            expected["state"],
        )
        assert (int(row["n"]), row["seeds"]) == (len(expected["seeds"]), " ".join(map(str, expected["seeds"])))
        for key, value in expected["params"].items():
            assert row[key] == ("" if value is None else str(value))
        for split in ("val", "test"):
            for key in ("accuracy", "nll", "ece", "brier"):
                found = (expected[split] or {}).get(key, {})
                for end, name in (("", "mean"), ("_sd", "sd"), ("_se", "se")):
                    value = found.get(name)
                    assert row[f"{split}_{key}{end}"] == ("" if value is None else repr(value))
                difference = ((expected["against"] or {}).get(split) or {}).get(key, {})
                for end, name in (("", "mean"), ("_low", "low"), ("_high", "high")):
                    value = difference.get(name)
                    assert row[f"{split}_{key}_diff{end}"] == ("" if value is None else repr(value))


def test_weights_that_tell_rows_apart_stay(swa: Swa, runs: Path) -> None:
    """80 columns and several weight sets of a setting: their names are shown; of one each they are the first to go."""
    for words, is_shown in ((["--weights", "all"], True), ([], False)):
        out = swa("compare", runs / "a-001", runs / "b-001", "--against", "b-001:swa", *words).out
        heading = next(line for line in out.splitlines() if line.startswith("run "))
        assert ("weights" in heading.split()) is is_shown, out


def test_the_terminal_names_what_does_not_fit(swa: Swa, runs: Path) -> None:
    """80 columns: no longer line, plain text, each column in the heading or named as too wide."""
    ended = swa("compare", *sorted(runs.iterdir()))
    lines = ended.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in ended.out
    heading = next(line for line in lines if line.startswith("run "))
    named = " ".join(ended.out.split()).partition("Too wide for this page: ")[2].partition("`--format csv`")[0]
    for column in (
        "optimizer.lr",
        "swa.lr",
        "weights",
        "state",
        "seeds",
        "val accuracy",
        "val NLL",
        "test accuracy",
        "test NLL",
    ):
        assert (column in heading) != (column in named), column
    assert "--format csv" in ended.out
    values = [test[0] for _, test in A]
    cell = f"{100 * statistics.fmean(values):.2f} ± {100 * statistics.stdev(values):.2f}"
    assert cell in next(line for line in lines if line.startswith("a-001"))
    assert "70.00 (1.10)" in next(line for line in lines if line.startswith("c-001"))


def test_long_labels_lose_what_they_share(swa: Swa, tmp_path: Path) -> None:
    """Two long labels where a column does not fit: without their common words, which --against takes; whole in CSV."""
    for name, scores in (("repeat-001", A), ("baseline-repeat-001", B)):
        write_repeat(tmp_path / f"cifar10-preresnet20-{name}", f"swa.lr={len(name) / 1000}", swa=scores)
    paths = sorted(tmp_path.iterdir())
    lines = swa("compare", *paths, "--against", "…baseline-repeat-001").out.splitlines()
    labels = [line.partition("  ")[0] for line in lines if line.startswith("…")]
    assert labels == ["…repeat-001", "…baseline-repeat-001"]
    assert any(line.startswith("  difference") for line in lines)
    rows = parsed(swa("compare", *paths, "--format", "csv").out)
    assert {row["label"] for row in rows} == {path.name for path in paths}


def test_markdown_is_a_table_of_github(swa: Swa, tmp_path: Path) -> None:
    """A name with a pipe and a star is escaped, every line has as many cells, the best row by validation is bold."""
    write_run(tmp_path / "a|b*c", "swa=null", test={"last": (0.7, 0.8)}, val={"last": (0.75, 0.7)})
    write_run(tmp_path / "d", "swa=null", "optimizer.lr=0.2", test={"last": (0.8, 0.6)}, val={"last": (0.7, 0.9)})
    out = swa("compare", "a|b*c", "d", "--format", "markdown").out
    lines = [re.split(r"(?<!\\)\|", line) for line in out.splitlines() if line.startswith("|")]
    assert len({len(cells) for cells in lines}) == 1
    assert [cells[1].strip() for cells in lines] == ["run", ":---", r"**a\|b\*c**", "d"]
    assert [cells[-2].strip() for cells in lines][2:] == ["**0.800 (0.022)**", "0.600 (0.022)"]


def test_latex_is_a_table_of_booktabs(swa: Swa, tmp_path: Path) -> None:
    """Rules of booktabs, a comment that names it, escaped characters, as many cells in each line, the best row bold."""
    write_repeat(tmp_path / "50%_a&b", "swa.lr=0.01", swa=A)
    write_repeat(tmp_path / "[c]", "swa.lr=0.02", swa=B)
    out = swa("compare", "50%_a&b", "[c]", "--against", "[c]", "--format", "latex").out
    assert "booktabs" in out.splitlines()[0]
    assert all(f"\\{rule}" in out for rule in ("toprule", "midrule", "bottomrule"))
    body = out[out.index("\\toprule") :]
    assert body.isascii()
    lines = [re.split(r"(?<!\\)&", line) for line in body.splitlines() if line.endswith(r"\\")]
    columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", out)
    assert columns is not None
    assert {len(cells) for cells in lines} == {len(columns[1])}
    assert [cells[0].strip() for cells in lines] == ["run", r"\textbf{50\%\_a\&b}", r"\quad difference", "{}[c]"]
    assert r"\textbf{92.00 $\pm$ 1.00}" in out
    assert not re.search(r"(?<![\\$])%", body)


def test_other_tasks_and_samples_have_tables_of_their_own(swa: Swa, tmp_path: Path) -> None:
    """Scores on 900 and on 90 samples: two tables and a warning, one CSV with both; a run without scores joins one."""
    write_run(tmp_path / "a", test={"last": (0.7, 0.8)}, val={"last": (0.75, 0.7)})
    write_run(tmp_path / "b", "optimizer.lr=0.2", test={"last": (0.8, 0.6)}, val={"last": (0.7, 0.9)}, samples=90)
    write_run(tmp_path / "c", "optimizer.lr=0.3")
    ended = swa("compare", "c", "a", "b", "--json")
    assert [[row["label"] for row in table["rows"]] for table in ended.json["tables"]] == [["a", "c"], ["b"]]
    assert [table["samples"] for table in ended.json["tables"]] == [{"test": 900}, {"test": 90}]
    assert "different samples" in ended.err
    rows = parsed(swa("compare", "a", "b", "--format", "csv").out)
    assert [(row["label"], row["samples"], row["optimizer.lr"]) for row in rows] == [
        ("a", "900", "0.1"),
        ("b", "90", "0.2"),
    ]


def test_other_datasets_have_tables_of_their_own(swa: Swa, tmp_path: Path) -> None:
    """Two datasets with as many test images: no common best row, and no pairs of seeds."""
    for folder, dataset in (("a", "mnist"), ("b", "fashion_mnist")):
        write_run(tmp_path / folder, f"dataset.name={dataset}", test={"last": (0.7, 0.8)}, val={"last": (0.75, 0.7)})
    ended = swa("compare", "a", "b", "--json")
    assert [[row["label"] for row in table["rows"]] for table in ended.json["tables"]] == [["a"], ["b"]]
    assert "datasets" in ended.err


def test_runs_of_a_task_of_ones_own(swa: Swa, tmp_path: Path) -> None:
    """A task whose code is not there, finished and not: its metrics from the files, its loss sorted as a loss."""
    recipe = RECIPE.replace("name: written", "name: own\ntask: nowhere.at:all")
    for name, loss in (("a", 0.7), ("b", 0.5)):
        row = {"far": 0.25, "far_se": 0.01, "loss": loss, "loss_se": 0.02, "val": {"far": 0.5, "loss": loss}}
        folder = write_run(tmp_path / name, f"optimizer.lr={loss}", recipe=recipe)
        rest = {
            "reference": "last",
            "split": "test",
            "samples": 9,
            "seconds": 1.0,
            "device": "cpu",
            "precision": "fp32",
        }
        (folder / "result.json").write_text(json.dumps({"weights": {"last": row}, **rest}))
    write_run(tmp_path / "c", epochs=[{"epoch": 1, "val_loss": 0.6, "val_far": 0.4}], recipe=recipe)
    rows = rows_of(swa, "a", "b", "c")
    assert list(rows) == ["b", "c", "a"]
    assert rows["b"]["test"]["far"] == {"mean": 0.25, "sd": None, "values": [0.25], "se": 0.01}
    assert rows["c"]["val"]["far"]["mean"] == 0.4


def test_a_column_of_one_table_sorts_that_one(swa: Swa, tmp_path: Path) -> None:
    """Two tasks with other columns: one table by the column, the other by its loss; a column of none: exit 2."""
    recipe = RECIPE.replace("name: written", "name: own\ntask: nowhere.at:all")
    for name, loss, accuracy in (("a", 0.7, 0.8), ("b", 0.5, 0.7)):
        scores = {"last": (accuracy, loss)}
        write_run(tmp_path / f"own-{name}", epochs=[{"epoch": 1, "val_loss": loss, "val_far": accuracy}], recipe=recipe)
        write_run(tmp_path / f"plain-{name}", f"optimizer.lr={loss}", test=scores, val=scores)
    folders = ("own-a", "own-b", "plain-a", "plain-b")
    for column, expected in (("val_accuracy", ["plain-a", "plain-b"]), ("val_nll", ["plain-b", "plain-a"])):
        ended = swa("compare", *folders, "--sort", column, "--json")
        assert ended.code == 0, ended.err
        labels = {table["task"]: [row["label"] for row in table["rows"]] for table in ended.json["tables"]}
        assert labels == {"nowhere.at:all": ["own-b", "own-a"], "classification": expected}
    refused = swa("compare", *folders, "--sort", "val_nil")
    assert refused.code == 2
    assert "val_nll" in refused.err
    assert "val_loss" in refused.err


def test_runs_that_have_only_begun(swa: Swa, tmp_path: Path) -> None:
    """Recipes alone, of a known task and of one's own: rows without scores in every format."""
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", recipe=RECIPE.replace("name: written", "name: own\ntask: nowhere.at:all"))
    for form in ("table", "csv", "markdown", "latex"):
        ended = swa("compare", "a", "b", "--format", form)
        assert (ended.code, ended.out.count("epoch 0 of 4")) == (0, 2), ended.err


def test_scores_that_are_not_finite_are_said(swa: Swa, tmp_path: Path) -> None:
    """A run that diverged: its row comes last and says so; null in JSON."""
    write_run(tmp_path / "a", test={"last": (0.1, None)}, val={"last": (0.1, None)})
    write_run(tmp_path / "b", "optimizer.lr=0.2", test={"last": (0.8, 0.6)}, val={"last": (0.7, 0.9)})
    rows = rows_of(swa, "a", "b")
    assert list(rows) == ["b", "a"]
    assert rows["a"]["val"]["nll"]["mean"] is None
    assert "not finite" in swa("compare", "a", "b").out


@pytest.mark.parametrize(
    ("words", "piece"),
    [
        (["--sort", "val_nil"], "val_nll"),
        (["--against", "nothing"], "a-001"),
        (["--against", "-001"], "choose from a-001, b-001"),
        (["--against", "…b-001"], None),
        (["--weights", "ema"], "swa"),
        (["--weights", "all", "--against", "a-001"], None),
        (["--split", "train"], "val or test"),
        (["--format", "html"], "markdown"),
        (["--format", "csv", "--json"], "choose one"),
    ],
)
def test_wrong_requests_name_what_there_is(swa: Swa, runs: Path, words: list[str], piece: str | None) -> None:
    """A column, row, weight set, split or format that is none: exit 2 and what to choose; a label is its best set."""
    ended = swa("compare", runs / "a-001", runs / "b-001", *words)
    assert ended.code == (0 if piece is None else 2), ended.err
    assert piece is None or piece in ended.err


def test_split_limits_the_columns(swa: Swa, runs: Path) -> None:
    """Validation columns alone: none of the test split, also in CSV."""
    out = swa("compare", runs / "a-001", runs / "b-001", "--split", "val", "--format", "csv").out
    assert "val_nll" in out
    assert not any(name.startswith("test_") for name in parsed(out)[0])
    assert math.isclose(float(parsed(out)[0]["val_nll"]), statistics.fmean(val[1] for val, _ in A))


def test_the_best_row_is_that_of_validation_also_where_test_is_shown(swa: Swa, runs: Path) -> None:
    """Test columns alone: sorted by the validation loss, the best row marked, no other scores; sorting by val_nll."""
    folders = [runs / "b-001", runs / "a-001"]
    for words in ([], ["--sort", "val_nll"]):
        rows = rows_of(swa, *folders, "--split", "test", *words)
        assert list(rows) == ["a-001", "b-001"]
        assert [row["best"] for row in rows.values()] == [True, False]
        assert all(row["val"] is None for row in rows.values())
        ended = swa("compare", *folders, "--split", "test", *words)
        assert "Sorted by val_nll" in ended.out
        assert "val NLL" not in ended.out
    names = parsed(swa("compare", *folders, "--split", "test", "--format", "csv").out)[0]
    assert not any(name.startswith("val_") for name in names)


@pytest.mark.parametrize(("width", "is_against"), [(24, False), (36, True)])
def test_a_narrow_terminal_keeps_the_validation_loss(
    swa: Swa, runs: Path, monkeypatch: pytest.MonkeyPatch, width: int, is_against: bool
) -> None:
    """Labels of 32 characters and a key that differs: the ends of labels, and the first score of each row."""
    monkeypatch.setenv("COLUMNS", str(width))
    for name in ("a", "b"):
        (runs / f"{name}-001").rename(runs / f"with-a-name-of-many-characters-{name}")
    words = ["--against", "with-a-name-of-many-characters-a"] if is_against else []
    ended = swa("compare", *sorted(runs.glob("with*")), *words)
    heading, *lines = ended.out[ended.out.index("run ") :].splitlines()
    assert heading.split() == ["run", "val", "NLL"]
    assert [line.split() for line in lines[:2]] == [
        ["…a", *["0.297", "±", "0.015"]],
        ["…b", *["0.323", "±", "0.031"]],
    ]
    assert ("+0.027 [" in lines[2]) == is_against
    assert max(map(len, [heading, *lines[: 2 + is_against]])) <= width


def test_a_difference_without_a_number_has_no_line(swa: Swa, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 columns, into which no score fits beside a label: a line per row."""
    monkeypatch.setenv("COLUMNS", "20")
    ended = swa("compare", *sorted(runs.glob("[ab]-001")), "--against", "a-001")
    assert sum(line.startswith(("a-001", "b-001")) for line in ended.out.splitlines()) == 2
    assert "difference\n" not in ended.out
