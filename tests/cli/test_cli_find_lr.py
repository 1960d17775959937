"""The learning rate range test: its loss against a loop written by hand, its suggestion against known curves."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from swa_cli.analysis import sweep as sweeping
from swa_cli.analysis import sweep_trials
from swa_cli.analysis.find_lr import smooth, steepest
from swa_cli.engine import distributed


def test_the_smoothed_loss_is_the_corrected_moving_average() -> None:
    """The recursion against the weighted sum that it stands for, in float64."""
    losses = np.random.default_rng(0).normal(2, 1, 30)
    for end in range(1, 31):
        weights = 0.9 ** np.arange(end)[::-1]
        assert smooth(losses[:end])[-1] == pytest.approx((weights * losses[:end]).sum() / weights.sum(), rel=1e-12)


def test_the_suggestion_is_the_steepest_descent() -> None:
    """A logistic curve in log(rate), which is steepest at 0.01, and then rises; a rising line has no descent."""
    rates = np.geomspace(1e-5, 10, 200)
    loss = 1 / (1 + (rates / 0.01)) + np.where(rates > 1, rates, 0)
    assert steepest(list(rates), list(loss), skipped=10) == pytest.approx(0.01, rel=0.1)
    assert steepest(list(rates), list(np.arange(200.0)), skipped=10) is None


def test_rates_grow_by_one_factor_until_training_diverges(swa, recipe: Path) -> None:
    """A test on digits: the rates, where it ends, a picture, the next command, and no run."""
    ended = swa("find-lr", recipe, "--min", "1e-4", "--max", "1000", "--steps", "60", "-o", "lr.svg", "--json")
    assert ended.code == 0, ended.err
    found = ended.json
    ratios = np.diff(np.log(found["rates"]))
    assert ratios == pytest.approx(np.full(len(ratios), np.log(1e7) / 59))
    assert found["steps"] == len(found["losses"]) == len(found["smoothed"])
    assert 1e-3 < found["suggested"] < found["diverges"] <= 1000
    assert Path("lr.svg").read_text().startswith(("<?xml", "<svg"))
    assert not Path("runs").exists()
    assert f"optimizer.lr={found['suggested']:g}" in ended.err


def test_the_next_command_can_be_pasted(swa, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe whose name begins with a dash, at 60 columns: the last line is the whole command, and trains."""
    monkeypatch.setenv("COLUMNS", "60")
    shutil.copy(recipe, "-x.yaml")
    changes = ("train.epochs=1", "train.batch_size=256", "optimizer.momentum=0.5")
    ended = swa("find-lr", "--steps", "30", "--", "-x.yaml", *changes)
    assert ended.code == 0, ended.err
    label, *words = shlex.split(ended.out.splitlines()[-1])
    assert (label, words[:2], words[-1].split("=")[0]) == ("next", ["swa", "train"], "optimizer.lr")
    assert words[3:-1] == list(changes)
    assert swa(*words[1:], "--dry-run", "-q").code == 0


@pytest.mark.parametrize("command", ["sweep", "train"])
def test_processes_are_started_with_a_recipe_whose_name_begins_with_a_dash(
    swa, recipe: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """`--processes 2 -- -x.yaml`: the words that they are started with are those of a recipe, not of options."""
    started: list[Sequence[str]] = []
    monkeypatch.setattr(distributed, "launch", lambda words, **_: started.append(words[1:]) or 0)
    monkeypatch.setattr(sweep_trials, "launch", lambda _, words, **__: started.append(words[1:]))
    monkeypatch.setattr(sweeping, "launch", sweep_trials.launch)
    shutil.copy(recipe, "-x.yaml")
    swa(command, "--processes", "2", "--", "-x.yaml", "swa.lr=0.05" + ",0.1" * (command == "sweep"))
    assert len(started) == 1
    assert swa(command, *started[0], "--dry-run", "-q").code == 0


def test_a_negative_loss_may_fall(swa, recipe: Path, tmp_path: Path) -> None:
    """Cross entropy less 10, whose lowest value times any factor is below it: the same test as without the offset."""
    code = "def loss(outputs, targets):\n    return F.cross_entropy(outputs, targets) - 10\n"
    (tmp_path / "offset.py").write_text(f"import torch.nn.functional as F\n{code}")
    words = ("find-lr", recipe, "--min", "1e-4", "--max", "0.1", "--steps", "40", "--json")
    plain, moved = swa(*words), swa(*words, "train.loss=offset:loss")
    assert moved.code == 0, moved.err
    assert moved.json["steps"] == plain.json["steps"] == 40
    assert moved.json["smoothed"] == pytest.approx([value - 10 for value in plain.json["smoothed"]], abs=1e-3)


def test_a_picture_is_as_wide_as_for_a_paper(swa, recipe: Path, drawn: list[Figure]) -> None:
    """--width and --format without -o, against the figure that is drawn and the file in the working directory."""
    ended = swa("find-lr", recipe, "--steps", "30", "--width", "3.3", "--format", "pdf", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["picture"] == "find-lr.pdf"
    assert Path("find-lr.pdf").read_bytes().startswith(b"%PDF")
    assert [figure.get_figwidth() for figure in drawn] == [3.3]


def test_groups_keep_their_multiples(swa, recipe: Path) -> None:
    """A group with rate 0x, against the whole network: with all of it frozen so, the loss falls at no rate."""
    words = ("find-lr", recipe, "--steps", "30", "--min", "1e-3", "--max", "0.5", "--json")
    frozen = swa(*words, 'optimizer.groups=[{match: "*", lr: 0x}]')
    trained = swa(*words)
    assert frozen.code == trained.code == 0, frozen.err
    assert min(trained.json["smoothed"]) < min(frozen.json["smoothed"]) - 0.2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--min", "1", "--max", "0.1"), "the smaller one first"),
        (("--min", "nan"), "the smaller one first"),
        (("-o", "lr.gif"), "PNG, SVG or PDF"),
        (("--format", "gif"), "choose png, svg, pdf"),
        (("--format", "pdf", "-o", "lr.svg"), "does not end in .pdf"),
        (("--width", "1"), "--width"),
        (("optimizer.lrr=1",), "optimizer.lr"),
        (("--steps", "3"), "--steps"),
    ],
)
def test_wrong_options_are_refused(swa, recipe: Path, words: tuple[str, ...], said: str) -> None:
    """A wrong option or recipe: exit code 2, and no picture."""
    ended = swa("find-lr", recipe, *words)
    assert ended.code == 2
    assert said in " ".join(ended.err.split())
    assert json.dumps(sorted(path.name for path in Path.cwd().iterdir())) == '["small.yaml"]'
