"""`swa average`: means against float64 by hand, choices against loops written out, all through the command line."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from conftest import SMALL, load, run_swa
from swa_cli.analysis import open
from swa_cli.checkpoint import reader
from swa_cli.engine import evaluate
from swa_cli.models import build_model
from swa_cli.report.terminal import Terminal

RECIPE = """\
name: soup
model: {name: convnet, args: {width: 4}}
dataset: {name: digits, val: 20%, augment: {crop: 1}}
optimizer: {lr: 0.1}
schedule: {name: constant}
snapshots: {every: 0.5ep, start: 1ep, cumulative: false}
train: {epochs: 4, batch_size: 115, threads: 1, precision: fp32}
"""
POINTS = [10, 15, 20, 25, 30, 35, 40]  # 10 steps an epoch


def trained(folder: Path, *words: str) -> Path:
    """The folder of a run of RECIPE."""
    (folder / "soup.yaml").write_text(RECIPE)
    run_swa("train", folder / "soup.yaml", "-q", "--out", folder / "runs", *words)
    return (folder / "runs/latest").resolve()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a snapshot each half epoch from the first epoch's end on."""
    return trained(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with its running mean beside each snapshot."""
    return trained(tmp_path_factory.mktemp("exact"), "snapshots.cumulative=true")


@pytest.fixture(scope="module")
def every_step(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Tensor]]:
    """The weights of the same run after each of its steps."""
    folder = trained(tmp_path_factory.mktemp("steps"), "snapshots={every: 1step}")
    return {load(path)["step"]: load(path)["state_dict"] for path in (folder / "snapshots").iterdir()}


def files(run: Path) -> list[Path]:
    return sorted((run / "snapshots").iterdir())


def parameters() -> list[str]:
    return [
        name
        for name, _ in build_model.build("convnet", num_classes=10, in_channels=1, args={"width": 4}).named_parameters()
    ]


def assert_mean(path: Path | str, states: Sequence[dict[str, Tensor]], weights: Sequence[float] | None = None) -> None:
    """The parameters in a file against numpy's average in float64; it loads into the plain network."""
    found = load(path)["state_dict"]
    for name in parameters():
        stacked = np.stack([state[name].double().numpy() for state in states])
        np.testing.assert_allclose(found[name].numpy(), np.average(stacked, axis=0, weights=weights), rtol=0, atol=1e-6)
    counters = [name for name, value in found.items() if not value.is_floating_point()]
    assert counters
    assert all(torch.equal(found[name], states[-1][name]) for name in counters)
    build_model.build("convnet", num_classes=10, in_channels=1, args={"width": 4}).load_state_dict(found, strict=True)


def test_all_snapshots_alike(swa, run: Path) -> None:
    """A run folder against the float64 mean of its snapshots; what the file and the answer say of it; it is scored."""
    ended = swa("average", run, "-o", "all.pt", "--json")
    assert ended.code == 0, ended.err
    states = [load(path)["state_dict"] for path in files(run)]
    assert_mean("all.pt", states)
    content = load("all.pt")
    assert content["average"] == {"name": "soup", "kind": "uniform", "count": 7, "steps": POINTS}
    assert content["batchnorm"] == "recomputed"
    assert content["sources"] == [
        {"file": str(path), "name": "snapshot", "weight": pytest.approx(1 / 7), "step": step}
        for path, step in zip(files(run), POINTS, strict=True)
    ]
    assert ended.json["sources"] == content["sources"]
    assert ended.json["passes"] == 1
    assert ended.json["tried"] == []
    scored = swa("eval", "all.pt", "--json").json["weights"]["soup"]
    assert (scored["count"], scored["batchnorm"]) == (7, "recomputed")


def test_answer_is_one_line_that_says_how_to_go_on(swa, run: Path) -> None:
    """stdout without --json: one line, with the command that scores the file."""
    ended = swa("average", run, "--last", "2", "-o", "two.pt")
    assert len(ended.out.splitlines()) == 1
    assert "uniform mean of 2 weight sets, steps 35 to 40" in ended.out
    assert "`swa eval two.pt`" in ended.out


def test_last_and_weights(swa, run: Path) -> None:
    """--last 3 and --weights against float64 by hand; of sources of weight 0 nothing is listed."""
    assert swa("average", run, "--last", "3", "-o", "last.pt").code == 0
    chosen = files(run)[-3:]
    states = [load(path)["state_dict"] for path in chosen]
    assert_mean("last.pt", states)
    assert swa("average", *chosen, "--weights", "3,0,1e0", "-o", "weighted.pt").code == 0
    assert_mean("weighted.pt", states, [3, 0, 1])
    content = load("weighted.pt")
    assert content["average"] == {"name": "soup", "kind": "weighted", "count": 2, "steps": [30, 40]}
    assert [source["weight"] for source in content["sources"]] == [0.75, 0.25]


@pytest.mark.parametrize(
    ("window", "kept"), [("1.5ep:3ep", POINTS[1:5]), ("21step:60%", POINTS[3:3]), ("50%:100%", POINTS[2:])]
)
def test_window_holds_the_snapshots_between_its_ends(swa, run: Path, window: str, kept: list[int]) -> None:
    """--window of plain snapshots against those of the steps a to b, both included; an empty one is an error."""
    ended = swa("average", run, "--window", window, "-o", "window.pt")
    if not kept:
        assert ended.code == 2
        assert "the nearest are step 20 and step 25" in ended.err
        return
    assert ended.code == 0, ended.err
    assert_mean("window.pt", [load(path)["state_dict"] for path in files(run) if load(path)["step"] in kept])
    assert load("window.pt")["average"] == {"name": "soup", "kind": "window", "count": len(kept), "steps": kept}


def test_the_next_command_works_for_a_path_with_spaces(swa, run: Path) -> None:
    """What `swa average` says to do next, pasted."""
    ended = swa("average", run, "-o", "my soup.pt")
    said = " ".join((ended.out + ended.err).split())
    (command,) = re.findall(r"score it with `(swa eval [^`]*)`", said)
    assert swa(*shlex.split(command)[1:]).code == 0


def test_frozen_statistics_are_called_so(swa, tmp_path: Path) -> None:
    """A network whose BatchNorm is all frozen: the mark of an average with --no-bn is that of one without."""
    (tmp_path / "small.yaml").write_text(SMALL)
    words = ["model.freeze=[features*]", "snapshots.every=1ep", "train.epochs=2"]
    assert swa("train", "small.yaml", "-q", *words).code == 0
    for more in ([], ["--no-bn"]):
        ended = swa("average", "runs/latest", *more, "-o", f"a{len(more)}.pt", "--json")
        assert (ended.code, ended.json["batchnorm"]) == (0, "frozen"), ended.err


def test_stale_then_updated_equals_refreshed(swa, run: Path) -> None:
    """--no-bn: eval refuses it; after bn-update the file equals the one that was refreshed at once, bit for bit."""
    assert swa("average", run, "-o", "fresh.pt").code == 0
    ended = swa("average", run, "--no-bn", "-o", "stale.pt", "--json")
    assert (ended.json["batchnorm"], ended.json["passes"]) == ("stale", 0)
    refused = swa("eval", "stale.pt")
    assert refused.code == 2
    assert "stale" in refused.err
    assert swa("bn-update", "stale.pt").code == 0
    fresh, updated = load("fresh.pt"), load("stale.pt")
    first, second = fresh.pop("state_dict"), updated.pop("state_dict")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert fresh == updated


def test_greedy_is_recipe_1_of_model_soups(swa, run: Path) -> None:
    """--greedy against the loop of the paper, each soup made and scored by commands of its own."""

    def accuracy(*members: Path) -> float:
        assert swa("average", *members, "-o", "tried.pt").code == 0
        return swa("eval", "tried.pt", "--split", "val", "--json").json["weights"]["soup"]["accuracy"]

    def alone(path: Path) -> float:
        return swa("eval", path, "--split", "val", "--json").json["weights"]["snapshot"]["accuracy"]

    chosen = files(run)[:5]
    ended = swa("average", *chosen, "--greedy", "-o", "greedy.pt", "--json")
    assert ended.code == 0, ended.err
    soup: list[Path] = []
    best = -1.0
    order = sorted(chosen, key=alone, reverse=True)
    for path in order:
        if (found := accuracy(*soup, path)) >= best:
            soup, best = [*soup, path], found
    assert [row["file"] for row in ended.json["tried"]] == [str(path) for path in order]
    assert [source["file"] for source in ended.json["sources"]] == [str(path) for path in soup]
    assert swa("average", *soup, "-o", "again.pt").code == 0
    assert torch.equal(
        load("again.pt")["state_dict"]["classifier.weight"], load("greedy.pt")["state_dict"]["classifier.weight"]
    )
    assert swa("eval", "greedy.pt", "--split", "val", "--json").json["weights"]["soup"]["accuracy"] == best
    assert load("greedy.pt")["average"]["kind"] == "greedy"


def test_search_finds_what_all_windows_hold(swa, run: Path) -> None:
    """--search against all windows up to the end: within a paired standard error of the best, in 12 passes at most."""
    ended = swa("average", run, "--search", "-o", "best.pt", "--json")
    assert ended.code == 0, ended.err
    result = ended.json
    assert result["passes"] == len(result["tried"]) <= 12
    assert Path("best.png").read_bytes().startswith(b"\x89PNG")
    samples = {}
    for count in range(1, 8):
        assert swa("average", run, "--last", str(count), "-o", f"{count}.pt").code == 0
        samples[count] = samples_of(f"{count}.pt")
    nll = {count: float(found["nll"].double().mean()) for count, found in samples.items()}
    for row in result["tried"]:
        if row["end"] == 40 and row["shape"] == "linear":
            assert row["nll"] == nll[row["count"]]
    difference = evaluate.compare(samples_of("best.pt"), samples[min(nll, key=nll.__getitem__)])
    assert difference["nll_diff"] <= difference["nll_diff_se"]
    chosen = [row for row in result["tried"] if row["chosen"]]
    assert [row["nll"] for row in chosen] == [min(row["nll"] for row in result["tried"])]
    start = chosen[0]["start"]
    assert load("best.pt")["average"]["steps"] == [p for p in POINTS if start <= p <= chosen[0]["end"]]


def samples_of(path: str) -> Any:
    """What each validation image scores with the weights in a file."""
    found = reader.read(Path(path))
    context, model = open.open_checkpoint(found, [], recipe=None, terminal=Terminal(quiet=True), allow_code=False)
    model.load_state_dict(found.content["state_dict"])
    return evaluate.score(model, context.plain_batches("val"), task=context.task, hardware=context.hardware)


def test_search_says_what_it_tried(swa, run: Path) -> None:
    """stdout: a line a window, with accuracy and NLL, and the number of passes; the picture where it was asked for."""
    ended = swa("average", run, "--search", "-o", "best.pt", "--plot", "windows.png", "eval.batch_size=100")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert "BatchNorm passes" in lines[0]
    assert "NLL" in lines[1]
    assert any(line.startswith("10step:40step") for line in lines)
    assert sum(line.endswith("chosen") for line in lines[2:]) == 1
    assert Path("windows.png").is_file()
    assert not Path("best.png").exists()


WINDOWS = [("0ep:1ep", 0, 10), ("0ep:4ep", 0, 40), ("1ep:1.5ep", 10, 15), ("15step:75%", 15, 30), ("50%:100%", 20, 40)]


@pytest.mark.parametrize(("window", "start", "end"), WINDOWS)
def test_exact_window_is_the_mean_of_every_step(
    swa, exact: Path, every_step, window: str, start: int, end: int
) -> None:
    """--window between two running means against the float64 mean of the weights after each step in (a, b]."""
    ended = swa("average", exact, "--window", window, "-o", "window.pt", "--json")
    assert ended.code == 0, ended.err
    steps = list(range(start + 1, end + 1))
    assert_mean("window.pt", [every_step[step] for step in steps])
    assert load("window.pt")["average"] == {"name": "soup", "kind": "window", "count": end - start, "steps": steps}
    shares = {source["step"]: source["weight"] for source in ended.json["sources"]}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares.keys() == {start, end} - {0}


def test_running_mean_changes_nothing_else(run: Path, exact: Path) -> None:
    """Snapshots of the run with running means against those without: the same raw weights, bit for bit."""
    for plain, kept in zip(files(run), files(exact), strict=True):
        first, second = load(plain)["state_dict"], load(kept)["state_dict"]
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_running_mean_survives_a_stop(swa, exact: Path, tmp_path: Path, signal_at: Callable[..., None]) -> None:
    """A run stopped in the middle of an epoch and resumed against one that was not: equal running means."""
    (tmp_path / "soup.yaml").write_text(RECIPE)
    signal_at(23)
    assert swa("train", "soup.yaml", "-q", "snapshots.cumulative=true").code == 130
    assert load("runs/latest/checkpoints/last.pt")["cumulative"]["count"] == 23
    assert swa("train", "--resume", "runs/latest", "-q").code == 0
    for here, there in zip(files(Path("runs/latest")), files(exact), strict=True):
        first, second = load(here)["cumulative"], load(there)["cumulative"]
        assert first["count"] == second["count"] == load(here)["step"]
        assert all(torch.equal(first["state"][name], second["state"][name]) for name in first["state"])


def test_exact_window_ends_at_snapshots(swa, exact: Path) -> None:
    """An end that is no snapshot: exit 2, the two nearest are named."""
    ended = swa("average", exact, "--window", "12step:4ep", "-o", "x.pt")
    assert ended.code == 2
    assert "the nearest are step 10 and step 15" in ended.err
    assert "holds no step" in swa("average", exact, "--window", "1ep:1ep", "-o", "x.pt").err


def test_search_over_running_means(swa, exact: Path, every_step) -> None:
    """--search where snapshots keep running means: windows of every step, from the beginning of the run on."""
    ended = swa("average", exact, "--search", "-o", "best.pt", "--json")
    assert ended.code == 0, ended.err
    assert {row["start"] for row in ended.json["tried"]} <= {0, *POINTS}
    assert all(row["count"] == row["end"] - row["start"] for row in ended.json["tried"])
    ended = swa("average", exact, "--search", "--passes", "5", "-o", "best.pt", "--json")  # windows alone
    chosen = next(row for row in ended.json["tried"] if row["chosen"])
    assert_mean("best.pt", [every_step[step] for step in range(chosen["start"] + 1, chosen["end"] + 1)])


def test_plan_tells_of_the_running_mean(swa, tmp_path: Path) -> None:
    """The plan of a run that keeps running means says so, and `--dry-run` takes it."""
    (tmp_path / "soup.yaml").write_text(RECIPE)
    ended = swa("train", "soup.yaml", "--dry-run", "snapshots.cumulative=true")
    assert "with the running mean" in " ".join(ended.err.split())


def test_foreign_weights_with_a_recipe(swa, run: Path) -> None:
    """A plain state dict, a safetensors file and a snapshot against float64 by hand, with the recipe of the run."""
    paths = files(run)[:3]
    states = [load(path)["state_dict"] for path in paths]
    wide = {name: value.double() if value.is_floating_point() else value for name, value in states[0].items()}
    torch.save({f"module.{name}": value for name, value in wide.items()}, "plain.pt")
    save_file({name: value.contiguous() for name, value in states[1].items()}, "safe.safetensors")
    assert "--recipe" in swa("average", paths[2], "plain.pt", "-o", "x.pt").err
    recipe = run.parent.parent / "soup.yaml"
    ended = swa("average", "plain.pt", "safe.safetensors", paths[2], "--recipe", recipe, "-o", "x.pt", "--json")
    assert ended.code == 0, ended.err
    assert_mean("x.pt", states)
    assert [source["step"] for source in ended.json["sources"]] == [None, None, 20]
    assert load("x.pt")["average"]["steps"] == []
    assert swa("eval", "x.pt").code == 0


def test_resume_point_counts_with_its_raw_weights(swa, run: Path) -> None:
    """last.pt and a snapshot of the same step: their mean is that snapshot."""
    ended = swa("average", run / "checkpoints/last.pt", files(run)[-1], "-o", "x.pt", "--json")
    assert ended.code == 0, ended.err
    assert_mean("x.pt", [load(files(run)[-1])["state_dict"]])
    assert [source["name"] for source in ended.json["sources"]] == ["last", "snapshot"]


def test_network_without_batchnorm(swa, tmp_path: Path) -> None:
    """Without BatchNorm there is nothing to refresh: `none` and no pass, also in a search."""
    (tmp_path / "linear_soup.py").write_text(
        "from torch import nn\n"
        "def net(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, num_classes))\n"
    )
    (tmp_path / "soup.yaml").write_text(
        RECIPE.replace("{name: convnet, args: {width: 4}}", "{name: 'linear_soup:net'}")
    )
    assert swa("train", "soup.yaml", "-q").code == 0
    assert "--allow-code" in swa("average", "runs/latest", "-o", "x.pt").err
    ended = swa("average", "runs/latest", "--search", "-o", "x.pt", "--allow-code", "--json")
    assert ended.code == 0, ended.err
    assert (ended.json["batchnorm"], ended.json["passes"]) == ("none", 0)
    assert swa("eval", "x.pt", "--allow-code").code == 0


def test_sources_that_saw_the_validation_images(swa, run: Path) -> None:
    """Members of two seeds hold out different images, and so does another dataset.val: nothing is chosen on them."""
    first, second = files(run)[:2]
    content = load(second)
    torch.save({**content, "recipe": {**content["recipe"], "seed": 1}}, "other.pt")
    ended = swa("average", first, "other.pt", "--greedy", "-o", "x.pt")
    assert ended.code == 2
    assert "other.pt: may have been trained on the validation images" in ended.err
    for words in (["--search", "-o", "x.pt"], ["--decay", "linear", "--at", "100%", "--plot", "x.png"]):
        ended = swa("average", run, *words, "dataset.val=300")
        assert ended.code == 2
        assert "may have been trained on the validation images" in ended.err
    assert "no validation split" in swa("average", run, "--search", "-o", "x.pt", "dataset.val=0").err
    assert swa("average", first, "other.pt", "-o", "x.pt").code == 0  # nothing is chosen


def test_result_replaces_a_file_but_no_source(swa, run: Path, tmp_path: Path) -> None:
    """-o: another file is replaced, a source, a resume point of a run or a link is not."""
    Path("old.pt").write_text("old")
    assert swa("average", run, "-o", "old.pt").code == 0
    assert swa("average", "old.pt", files(run)[0], "-o", "./old.pt").code == 2
    shutil.copytree(run, tmp_path / "run")
    before = Path("run/checkpoints/last.pt").read_bytes()
    ended = swa("average", "run", "-o", "run/checkpoints/last.pt")
    assert ended.code == 2
    assert "last.pt: is the resume point" in ended.err
    assert Path("run/checkpoints/last.pt").read_bytes() == before
    assert swa("average", "run", "-o", "run/checkpoints/soup.pt").code == 0
