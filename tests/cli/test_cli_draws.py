"""`swa eval --draws`: weights drawn around a swag average, against the formula, and its file against the run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import load
from swa_cli.analysis import evaluate
from swa_cli.data import sources
from swa_cli.data.randomness import generator

SWAG = "averages.around={kind: swag, rank: 3, start: 25%, every: 0.5ep}"


@pytest.fixture
def run(swa, recipe: Path, tmp_path: Path) -> Path:
    """The checkpoints of a finished run with a swag average of 7 weight sets."""
    ended = swa("train", recipe, "-q", SWAG, "train.precision=fp32")
    assert ended.code == 0, ended.err
    return tmp_path / "runs/latest/checkpoints"


@pytest.fixture
def linear(swa, recipe: Path, tmp_path: Path) -> Path:
    """The same with a network without BatchNorm, whose predictions are one line."""
    (tmp_path / "flat_net.py").write_text(
        "from torch import nn\n"
        "def net(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, num_classes))\n"
    )
    recipe.write_text(recipe.read_text().replace("{name: convnet, args: {width: 4}}", "{name: 'flat_net:net'}"))
    assert swa("train", recipe, "-q", SWAG, "train.precision=fp32", "seed=3").code == 0
    return tmp_path / "runs/latest/checkpoints"


def test_shipped_file_holds_the_mean_and_the_posterior(swa, run: Path) -> None:
    """around.pt against the resume point: its mean, M2 / n, the last three deviations; scored like any average."""
    shipped, kept = load(run / "around.pt"), load(run / "last.pt")["averages"]["around"]
    assert shipped["average"]["kind"] == "swag"
    assert (kept["rank"], kept["diagonal"], kept["count"]) == (3, False, 7)
    posterior = shipped["posterior"]
    assert posterior.keys() == {"diagonal", "variance", "deviations"}
    assert posterior["variance"].keys() == posterior["deviations"].keys() == kept["m2"].keys()
    for name, variance in posterior["variance"].items():
        torch.testing.assert_close(variance, (kept["m2"][name] / 7).float(), rtol=0, atol=0)
        assert torch.equal(posterior["deviations"][name], kept["deviations"][name])
        assert torch.equal(shipped["state_dict"][name], kept["state"][name].float())
    scores = swa("eval", run / "around.pt", "--json").json["weights"]["around"]
    assert "draws" not in scores
    assert scores["count"] == 7


def test_score_of_draws_is_that_of_their_mean_prediction(swa, linear: Path, tmp_path: Path) -> None:
    """Five draws by the paper's formula in float64, softmax averaged: accuracy, NLL and Brier of the answer."""
    shipped = load(linear / "around.pt")
    posterior, mean = shipped["posterior"], shipped["state_dict"]
    digits = sources.load(
        "digits", root="", val="10%", seed=3, cache="auto", download=False, workers=0, args={}, progress=print
    )
    pixels, labels = digits.test.images.double() / 255, digits.test.labels
    images = (pixels - shipped["input"]["mean"][0]) / shipped["input"]["std"][0]
    total = torch.zeros(len(labels), 10, dtype=torch.float64)
    for index in range(5):
        source = generator(3, "swag draw", index)
        z2 = torch.randn(3, generator=source).double()
        drawn: dict[str, Tensor] = {}
        for name, variance in posterior["variance"].items():
            z1 = torch.randn(variance.shape, generator=source).double()
            columns = posterior["deviations"][name].double()
            low_rank = torch.einsum("k,k...->...", z2, columns) / math.sqrt(2 * (3 - 1))
            drawn[name] = mean[name].double() + (variance.double() / 2).sqrt() * z1 + low_rank
        total += (images.flatten(1) @ drawn["1.weight"].T + drawn["1.bias"]).softmax(1)
    p = total / 5
    ended = swa("eval", linear / "around.pt", "--draws", "5", "--allow-code", "--json")
    assert ended.code == 0, ended.err
    scores = ended.json["weights"]["around"]
    assert (scores["draws"], scores["batchnorm"]) == (5, "none")
    assert scores["accuracy"] == pytest.approx(float((p.argmax(1) == labels).double().mean()), abs=1e-9)
    assert scores["nll"] == pytest.approx(float(-p[torch.arange(len(labels)), labels].log().mean()), abs=1e-5)
    one_hot = torch.nn.functional.one_hot(labels, 10)
    assert scores["brier"] == pytest.approx(float((p - one_hot).square().sum(1).mean()), abs=1e-5)


def test_draws_without_spread_are_the_mean(swa, run: Path, tmp_path: Path) -> None:
    """Variance and deviations set to 0, BatchNorm of each draw recomputed: the scores of the mean, as shipped."""
    content = load(run / "around.pt")
    for part in ("variance", "deviations"):
        for value in content["posterior"][part].values():
            value.zero_()
    torch.save(content, tmp_path / "still.pt")
    drawn = swa("eval", "still.pt", "--draws", "2", "--json").json["weights"]["around"]
    mean = swa("eval", run / "around.pt", "--json").json["weights"]["around"]
    assert drawn["batchnorm"] == "recomputed"
    for key in ("accuracy", "nll", "ece", "brier"):
        assert drawn[key] == pytest.approx(mean[key], abs=1e-6), key


def test_draws_of_a_run_and_of_its_file_are_the_same(swa, run: Path) -> None:
    """last.pt, whose average is stale, against around.pt: the same scores; fewer samples for BatchNorm give others."""
    first = swa("eval", run / "last.pt", "--weights", "around", "--draws", "3", "--json")
    assert first.code == 0, first.err
    second = swa("eval", run / "around.pt", "--draws", "3", "--json")
    assert first.json["weights"] == second.json["weights"]
    assert "the mean prediction of 3 draws, BatchNorm of each from all training samples" in second.err
    fewer = swa("eval", run / "around.pt", "--draws", "3", "--samples", "300", "--json")
    assert "BatchNorm of each from 300 training samples" in fewer.err
    assert fewer.json["weights"]["around"]["nll"] != second.json["weights"]["around"]["nll"]


def test_draws_are_compared_with_the_reference(swa, run: Path) -> None:
    """All weight sets at once: only the swag average is drawn from; its difference is to the reference of the run."""
    assert swa("bn-update", run / "last.pt", "-q").code == 0
    told = swa("eval", run / "last.pt", "--draws", "2", "--json").json
    weights, reference = told["weights"], told["reference"]
    drawn = {name: row.get("draws") for name, row in weights.items()}
    assert drawn == {"last": None, "last_bn": None, "swa": None, "around": 2}
    assert reference == json.loads((run.parent / "result.json").read_text())["reference"]
    assert weights["around"]["reference"] == reference
    difference = weights["around"]["nll"] - weights[reference]["nll"]
    assert weights["around"]["nll_diff"] == pytest.approx(difference, abs=1e-6)
    refused = swa("eval", run / "last.pt", "--weights", "swa", "--draws", "2")
    assert refused.code == 2
    assert "--draws takes an average of kind swag: swa is mean = hint: choose --weights around" in " ".join(
        refused.err.split()
    )


def test_progress_spans_all_draws(swa, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that the bar advances against the length it was given: one bar for all passes of all draws."""
    told: list[tuple[str, int]] = []
    progress = evaluate.Terminal.progress

    def noted(self: Any, description: str, total: int, **more: Any) -> Any:
        told.append((description, total))
        return progress(self, description, total, **more)

    advanced = []
    monkeypatch.setattr(evaluate.Terminal, "progress", noted)
    monkeypatch.setattr("swa_cli.report.terminal.Bar.advance", lambda self, n=1, **more: advanced.append(n))
    assert swa("eval", run / "around.pt", "--draws", "3").code == 0
    assert told == [("3 draws of around", sum(advanced))]


def test_refreshed_file_keeps_its_posterior(swa, run: Path) -> None:
    """around.pt after bn-update against before: the same posterior."""
    before = load(run / "around.pt")["posterior"]
    assert swa("bn-update", run / "around.pt", "--samples", "200", "-q").code == 0
    after = load(run / "around.pt")["posterior"]
    for part in ("variance", "deviations"):
        assert all(torch.equal(value, after[part][name]) for name, value in before[part].items())


def test_plan_tells_the_memory_that_is_taken(swa, recipe: Path, tmp_path: Path) -> None:
    """The row `memory` against the tensors of the averages in the last resume point, which holds just what they do."""
    words = [SWAG, "averages.late={kind: lawa, window: 2}", "averages.ema={kind: ema}"]
    ended = swa("train", recipe, *words, "averages.thin={kind: swag, diagonal: true}")
    assert ended.code == 0, ended.err
    last = load(tmp_path / "runs/latest/checkpoints/last.pt")
    unit = sum(value.numel() * 4 for value in last["averages"]["ema"]["state"].values() if value.is_floating_point())
    unit -= sum(value.numel() * 4 for name, value in last["model"].items() if "running" in name)
    held = {}
    for name, entry in last["averages"].items():
        parts = [entry["state"], entry.get("m2", {}), entry.get("deviations", {})]
        held[name] = sum(value.nbytes for part in parts for value in part.values())
    said = " ".join(ended.err.split())
    assert f"swa {held['swa'] / 1e3:.1f} kB;" in said
    assert f"around rank 3: {round(held['around'] / unit, 1):g} x {unit / 1e3:.1f} kB;" in said
    assert f"late lawa 2: {round(held['late'] / unit, 1):g} x {unit / 1e3:.1f} kB;" in said
    assert f"ema {held['ema'] / 1e3:.1f} kB;" in said
    assert f"thin diagonal: {round(held['thin'] / unit, 1):g} x {unit / 1e3:.1f} kB;" in said
    assert f"{sum(held.values()) / 1e3:.1f} kB in all" in said
    assert f"`swa eval {Path('runs/small-001/checkpoints/around.pt')} --draws 30`" in said
