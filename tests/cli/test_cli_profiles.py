"""`swa average --ema, --power-ema, --decay, --at`: against averages kept in training, and sums over files by hand."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import load, run_swa
from swa_cli.analysis import budgets, sources
from swa_cli.analysis.snapshot_series import SnapshotSeries, snapshot_series
from swa_cli.averaging import profiles
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.cli import average as cli_average
from swa_cli.errors import UserError
from swa_cli.metrics import tasks
from swa_cli.models import build_model
from swa_cli.recipe.curves import SHAPES
from swa_cli.report.terminal import Terminal

RECIPE = """\
name: budgets
model: {name: convnet, args: {width: 4}}
dataset: {name: digits, val: 20%, augment: {crop: 1}}
optimizer: {lr: 0.1}
schedule: {name: constant}
snapshots: {every: 0.5ep, cumulative: true}
train: {epochs: 4, batch_size: 115, threads: 1, precision: fp32}
"""
POINTS = list(range(5, 41, 5))  # 10 steps an epoch
ONLINE = """\
name: online
task: classification
model: {name: convnet, args: {width: 4}}
dataset: {name: digits, augment: {crop: 1}}
optimizer: {lr: 0.1}
schedule: {name: constant}
averages:
  one: {kind: ema, half_life: 1ep}
  two: {kind: ema, half_life: 2ep}
  four: {kind: ema, half_life: 4ep}
  power: {kind: power_ema, width: 0.1}
snapshots: {every: 1ep, cumulative: true}
train: {epochs: 12, batch_size: 64, threads: 1, precision: fp32}
"""
ROTATED = (
    ONLINE.replace("classification", "regression")
    .replace("{name: digits, augment: {crop: 1}}", "{name: rotated_digits}")
    .replace("lr: 0.1", "lr: 0.01")
)


def trained(folder: Path, recipe: str, *words: str) -> Path:
    """The folder of a run."""
    (folder / "recipe.yaml").write_text(recipe)
    run_swa("train", folder / "recipe.yaml", "-q", "--out", folder / "runs", *words)
    return (folder / "runs/latest").resolve()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its running mean beside each snapshot."""
    return trained(tmp_path_factory.mktemp("exact"), RECIPE)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with plain snapshots."""
    return trained(tmp_path_factory.mktemp("plain"), RECIPE, "snapshots.cumulative=false")


def parameters() -> list[str]:
    network = build_model.build("convnet", num_classes=10, in_channels=1, args={"width": 4})
    return [name for name, _ in network.named_parameters()]


def flat(state: dict[str, Tensor]) -> np.ndarray:
    return np.concatenate([state[name].double().numpy().ravel() for name in state if name in parameters()])


def files(run: Path) -> list[Path]:
    return sorted((run / "snapshots").iterdir())


def series_of(run: Path) -> SnapshotSeries:
    gathered = sources.gather(files(run), [], recipe=None, terminal=Terminal(quiet=True), allow_code=False)
    return snapshot_series(gathered, option="--decay linear")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [ONLINE, ROTATED], ids=["digits", "rotated digits"])
def test_ema_after_the_run_is_the_one_of_the_run(swa, recipe: str, tmp_path: Path) -> None:
    """Against `kind: ema` and `power_ema` of the same run: within 5, 2, 2, 5 % of |last - true|, told by the file."""
    trained(tmp_path, recipe)
    last = load("runs/latest/checkpoints/last.pt")["model"]
    for name, option, value, bar in (
        ("one", "--ema", "1ep", 0.05),
        ("two", "--ema", "2ep", 0.02),
        ("four", "--ema", "4ep", 0.02),
        ("power", "--power-ema", "0.1", 0.05),
    ):
        ended = swa("average", "runs/latest", option, value, "--no-bn", "-o", "ema.pt", "--json")
        assert ended.code == 0, ended.err
        true, found = (load(path)["state_dict"] for path in (f"runs/latest/checkpoints/{name}.pt", "ema.pt"))
        names = [key for key in true if key.endswith(("weight", "bias"))]
        off = sum(float((found[key].double() - true[key]).square().sum()) for key in names) ** 0.5
        away = sum(float((last[key].double() - true[key]).square().sum()) for key in names) ** 0.5
        assert off < bar * away
        assert off / away < 1.5 * ended.json["average"]["error"] < 3 * bar, "an estimate, and no bound"


@pytest.mark.parametrize("bounds", [(0, 7), (0, 2), (3, 6), (7, 7)])
def test_linear_merge_equals_the_mean_of_the_window(run: Path, bounds: tuple[int, int]) -> None:
    """`--decay linear` against `--window` in float64, from running means: 1e-12, and no error."""
    series = series_of(run)
    merged, mean = series.weighted(profiles.decay("linear"), *bounds), series.mean(*bounds)
    np.testing.assert_allclose(flat(merged.state), flat(mean.state), rtol=0, atol=1e-12)
    assert merged.steps == mean.steps
    assert [source.step for source, _ in merged.shares] == [source.step for source, _ in mean.shares]
    assert merged.error == pytest.approx(0, abs=1e-12)
    assert merged.mean_age == pytest.approx(mean.mean_age)


def test_linear_merge_of_plain_snapshots(plain: Path) -> None:
    """Evenly spaced: all weigh the same, as in WSM; the error is half of what every second snapshot changes."""
    series = series_of(plain)
    merged = series.weighted(profiles.decay("linear"), 2, 7)
    states = np.stack([flat(load(path)["state_dict"]) for path in files(plain)])
    np.testing.assert_allclose(flat(merged.state), states[2:].mean(0), rtol=0, atol=1e-12)
    rough, away = states[[3, 5, 7]].mean(0), np.linalg.norm(states[7] - states[2:].mean(0))
    assert merged.error == pytest.approx(np.linalg.norm(rough - states[2:].mean(0)) / away / 2, rel=1e-9)


@pytest.mark.parametrize(
    ("words", "kind", "settings", "steps"),
    [
        (["--ema", "2ep"], "ema", {"half_life": 20.0}, range(1, 41)),
        (["--ema", "50%", "--window", "1ep:3ep"], "ema", {"half_life": 20.0}, range(11, 31)),
        (["--power-ema", "0.1"], "power_ema", {"width": 0.1}, range(1, 41)),
        (["--decay", "cosine", "--window", "1ep:4ep"], "decay", {"decay": "cosine"}, range(11, 41)),
        (["--decay", "1-sqrt", "--share", "30%"], "decay", {"decay": "1-sqrt"}, range(31, 41)),
    ],
)
def test_file_tells_what_it_is_made_of(
    swa, run: Path, words: list[str], kind: str, settings: Any, steps: range
) -> None:
    """The sum over `sources`, done by hand, against the weights; kind, settings, steps and error of the average."""
    ended = swa("average", run, *words, "--no-bn", "-o", "x.pt", "--json")
    assert ended.code == 0, ended.err
    content = load("x.pt")
    average = content["average"]
    assert (average["kind"], average["profile"], average["count"]) == (kind, settings, len(steps))
    assert average["steps"] == list(steps)
    assert 0 < average["error"] < 0.5
    assert ended.json["average"] == average
    total = 0
    for source in content["sources"]:
        held = load(source["file"])
        state = {"cumulative": held["cumulative"]["state"], "snapshot": held["state_dict"]}[source["name"]]
        total = total + source["weight"] * flat(state)
    np.testing.assert_allclose(flat(content["state_dict"]), total, rtol=0, atol=1e-6)
    assert sum(source["weight"] for source in content["sources"]) == pytest.approx(1, abs=1e-9)


def test_error_is_told_beside_the_result(swa, run: Path) -> None:
    """The one line on stdout: the error in percent, of a plain mean of every step none."""
    ended = swa("average", run, "--ema", "1ep", "--no-bn", "-o", "x.pt")
    assert "EMA of half-life 10 steps" in ended.out
    assert "ema 10 of 40 weights" in " ".join(swa("show", "x.pt").out.split())
    assert f"usually less than {100 * load('x.pt')['average']['error']:.2g} %" in ended.out
    assert "; exact; " in swa("average", run, "--decay", "linear", "--no-bn", "-o", "x.pt").out


def test_network_of_each_budget(swa, run: Path) -> None:
    """--at: each row against `--window` of its steps, scored by `swa eval`; the files, the kept rows, the pictures."""
    ended = swa("average", run, "--decay", "linear", "--at", "50%,4ep", "--share", "50%", "-o", "m.pt", "--json")
    assert ended.code == 0, ended.err
    result = ended.json
    assert [(row["epochs"], row["steps"]) for row in result["rows"]] == [(2, [10, 20]), (4, [20, 40])]
    assert result["passes"] == 2
    for row, name in zip(result["rows"], ("m-2ep.pt", "m-4ep.pt"), strict=True):
        start, end = row["steps"]
        assert swa("average", run, "--window", f"{start}step:{end}step", "-o", "w.pt").code == 0
        for split in ("val", "test"):
            answer = swa("eval", "w.pt", "--split", split, "--json").json
            scored = {**answer["weights"]["soup"], "samples": answer["samples"]}
            assert row[split] == pytest.approx({key: scored[key] for key in row[split]}, rel=1e-5)
            assert {"accuracy", "accuracy_se", "nll"} <= row[split].keys()
        assert swa("eval", name, "--split", "val", "--json").json["weights"]["soup"]["nll"] == row["val"]["nll"]
    assert Path("m.png").is_file()
    kept = json.loads((run / "budget.json").read_text())
    assert [each["name"] for each in kept["series"]] == ["--decay linear --share 50%"]
    assert [row["steps"] for row in kept["series"][0]["rows"]] == [[10, 20], [20, 40]]
    again = swa("average", run, "--power-ema", "0.2", "--at", "47%,100%")
    assert again.code == 0, again.err
    assert "47%: the nearest snapshot is step 20" in again.err
    assert again.out.splitlines()[1].split()[0] == "epochs"
    assert (run / "budget.png").is_file()
    drawn = swa("plot", run, "budget", "-o", "b.svg", "--json")
    assert drawn.code == 0, drawn.err
    assert [each["name"] for each in drawn.json["series"]] == ["--decay linear --share 50%", "--power-ema 0.2"]
    assert swa("report", run, "-o", "page.html", "--no-data").code == 0
    assert "Scores by budget, --power-ema 0.2" in Path("page.html").read_text()


def test_default_share_of_a_merge(swa, run: Path) -> None:
    """--at without --share: the last 40 % of each budget, from the nearest snapshot on; scores without validation."""
    before = (run / "budget.json").read_bytes() if (run / "budget.json").exists() else None
    ended = swa("average", run, "--decay", "linear", "--at", "100%", "--json", "dataset.val=0", "--plot", "x.png")
    assert ended.code == 0, ended.err
    row = ended.json["rows"][0]
    assert row["steps"] == [25, 40]  # 24 is nearest to 25
    assert row["val"] is None
    assert row["test"]["nll"] > 0
    assert "keeps no scores of a changed recipe" in ended.err
    assert ((run / "budget.json").read_bytes() if (run / "budget.json").exists() else None) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--at", "100%", "--share", "1%"], "4 epochs: 1 weight set, nothing was averaged: a larger --share"),
        (["--at", "5step"], "0.5 epochs: 1 weight set, nothing was averaged: there is no snapshot before it"),
    ],
)
def test_a_budget_of_one_weight_set_is_no_average(swa, plain: Path, words: list[str], message: str) -> None:
    """--at with a share below the distance of snapshots, and at the first: the warning, n and error of table and file.

    No share takes more than the first snapshot there.
    """
    ended = swa("average", plain, "--decay", "linear", *words)
    kept = json.loads((plain / "budget.json").read_text())["series"][0]["rows"][0]
    (plain / "budget.json").unlink()
    assert ended.code == 0, ended.err
    assert message in " ".join(ended.err.split())
    assert (kept["count"], kept["error"]) == (1, None)
    heading, row = (line.split() for line in ended.out.splitlines()[1:3])
    assert dict(zip(heading, row, strict=False))["n"] == "1"


def test_budgets_are_made_first(swa, plain: Path) -> None:
    """plot of a run without scores by budget: the command that makes them; a broken file is refused, or left out."""
    refused = swa("plot", plain, "budget")
    assert refused.code == 2
    written = re.search(r"`swa (average .* --at \S+)` first", " ".join(refused.err.split()))
    assert written is not None
    made = swa(*shlex.split(written[1]), "--json")
    assert made.code == 0, made.err
    steps = sorted(int(file.stem[5:]) for file in files(plain))
    assert [row["steps"][1] for row in made.json["rows"]] == [
        steps[-(-len(steps) // 4) - 1],
        steps[-(-len(steps) // 2) - 1],
        steps[-1],
    ]
    (plain / "budget.json").write_text('{"format": 2, "series": [{"name": "x", "rows": [{"epochs": "1"}]}]}')
    broken, page = swa("plot", plain, "budget"), swa("report", plain, "-o", "page.html", "--no-data")
    (plain / "budget.json").unlink()
    assert broken.code == 2
    assert "budget.json: is not as swa writes it" in broken.err
    assert page.code == 0, page.err
    assert "Left out: scores by budget" in Path("page.html").read_text()


@pytest.mark.parametrize(
    ("steps", "hint"), [([6, 12, 18], "--at 6step,12step,18step` first"), ([9], "--at 9step`"), ([], "snapshots.every")]
)
def test_budgets_that_a_run_has(tmp_path: Path, steps: list[int], hint: str) -> None:
    """The points of the command for few snapshots, against their steps: each once, and none where there is none."""
    folder = RunFolder(tmp_path)
    folder.snapshots.mkdir()
    for step in steps:
        folder.snapshot_path(step).touch()
    with pytest.raises(UserError) as caught:
        budgets.require(folder, metrics=tasks.find("classification").metrics)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ema", "2"], "has no unit"),
        (["--ema", "0ep"], "write a longer half-life"),
        (["--ema", "1cycle"], "no fixed length"),
        (["--power-ema", "0.3"], "at most 0.28"),
        (["--power-ema", "nan"], "at most 0.28"),
        (["--decay", "sqrt"], "choose linear, cosine, 1-sqrt"),
        (["--decay", "linear", "--ema", "2ep"], "exclude each other"),
        (["--decay", "linear", "--last", "3"], "exclude each other"),
        (["--decay", "linear", "--share", "40"], "such as 40%"),
        (["--decay", "linear", "--share", "0%"], "such as 40%"),
        (["--decay", "linear", "--share", "40%", "--window", "0ep:1ep"], "exclude each other"),
        (["--share", "40%"], "goes with --decay"),
        (["--at", "50%"], "goes with --decay"),
        (["--passes", "3"], "goes with --search"),
        (["--decay", "linear", "--at", "50%", "--no-bn"], "leave out --no-bn"),
        (["--decay", "linear", "--at", "50%,51%"], "both nearest to step 20"),
        (["--decay", "linear", "--at", "50%,51%"], "of the steps 5, 10, 15, 20, 25, 30, 35, 40"),
        (["--decay", "linear", "--at", "101step"], "after the end of the run"),
        (["--decay", "linear", "--at", "0ep"], "write points from 5step to 40step"),
        (["--decay", "linear", "--window", "12step:4ep"], "nearest are step 10 and step 15"),
    ],
)
def test_usage(swa, run: Path, words: Sequence[str], message: str) -> None:
    """What cannot be: exit 2, and what to write."""
    ended = swa("average", run, *words, "-o", "x.pt")
    assert ended.code == 2
    assert message in " ".join(ended.err.split())
    assert not list(Path().glob("x*"))


def test_one_file_or_budgets(swa, run: Path) -> None:
    """Without --at a file has to be named; --at takes a run folder, not snapshots."""
    assert "-o FILE.pt" in swa("average", run, "--decay", "linear").err
    ended = swa("average", files(run)[0], "--decay", "linear", "--at", "100%")
    assert ended.code == 2
    assert "is not a run folder" in ended.err


def test_words_of_the_command_line_are_those_of_the_arithmetic() -> None:
    """Shapes of decays, which the command line knows without torch, and those that `wsd` trains."""
    assert tuple(profiles.DECAYS) == cli_average.DECAYS
    assert set(profiles.DECAYS) == set(SHAPES)


@pytest.mark.parametrize("shape", SHAPES)
def test_merge_stands_for_the_decay_of_wsd(shape: str) -> None:
    """What the first x of L steps have counted against the rate that `wsd` has lost there, for each shape."""
    steps = torch.arange(101, dtype=torch.float64)
    lost = [1 - SHAPES[shape](step / 100, first=1.0, last=0.0) for step in range(101)]
    assert profiles.decay(shape).share(steps, 100).tolist() == pytest.approx(lost, abs=1e-12)


def test_search_over_shapes(swa, run: Path) -> None:
    """--search --passes 10: windows, decays and an EMA of one mean age; each row can be made again from its words."""
    ended = swa("average", run, "--search", "--passes", "10", "-o", "best.pt", "--json")
    assert ended.code == 0, ended.err
    tried = ended.json["tried"]
    assert ended.json["passes"] == len(tried) <= 10
    assert {row["shape"] for row in tried} == {"linear", "cosine", "1-sqrt", "ema"}
    of_four = {row["shape"]: row for row in tried if row["shape"] != "linear"}
    assert of_four["ema"]["mean_age"] == pytest.approx(of_four["ema"]["half_life"] / np.log(2), rel=0.1)
    for row in tried:
        window = ["--window", f"{row['start']}step:{row['end']}step"]
        profile = ["--ema", f"{row['half_life']}step"] if row["half_life"] else ["--decay", row["shape"]]
        assert swa("average", run, *profile, *window, "-o", "again.pt").code == 0
        scored = swa("eval", "again.pt", "--split", "val", "--json").json["weights"]["soup"]
        assert scored["nll"] == pytest.approx(row["nll"], rel=1e-5)
    chosen = [row for row in tried if row["chosen"]]
    assert [row["nll"] for row in chosen] == [min(row["nll"] for row in tried)]


def test_only_one_trial(swa, plain: Path) -> None:
    """--passes 1: the mean of all snapshots, and a table of one line."""
    ended = swa("average", plain, "--search", "--passes", "1", "-o", "best.pt", "--json")
    assert ended.code == 0, ended.err
    assert [(row["shape"], row["start"], row["end"]) for row in ended.json["tried"]] == [("linear", 5, 40)]
