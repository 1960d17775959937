"""The baseline of a recipe: what it keeps, what it drops, and its rate at every step against closed forms."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from swa_cli.recipe import schedules
from swa_cli.recipe.learning_rate import learning_rate, schedule_problems
from swa_cli.recipe.load import differences, dump, load
from swa_cli.recipe.plan import make_plan
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.variants import baseline_of, describe_baseline

SPE = 10  # steps an epoch
EPOCHS = 20
STEPS = EPOCHS * SPE
LR = 0.1
Rate = Callable[[int], float]


def recipe(schedule: Mapping[str, Any], **sections: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": "mine",
        "seed": 5,
        "model": {"name": "convnet", "args": {"width": 8}},
        "dataset": {"name": "digits", "val": "20%", "augment": {"crop": 1}},
        "optimizer": {"name": "SGD", "lr": LR, "weight_decay": 3e-4, "no_decay": ["*.bias"]},
        "schedule": schedule,
        "train": {"epochs": EPOCHS, "batch_size": 7, "label_smoothing": 0.1},
        "eval": {"batch_size": 33, "precision": "bf16"},
    }
    return Recipe.model_validate(values | sections)


AVERAGING: dict[str, Any] = {
    "swa": {"start": "50%", "lr": 0.05, "anneal": "1ep"},
    "averages": {"ema": {"kind": "ema"}, "late": {"kind": "mean", "start": "80%"}},
    "snapshots": {"every": "1ep"},
}


def decay(first: float, last: float, *, warmup: int, shape: Callable[[float], float]) -> Rate:
    """A straight rise over `warmup` steps to `first`, then down to `last`, which step `STEPS` would have."""

    def rate(step: int) -> float:
        if step < warmup:
            return first * (step + 1) / warmup
        return last + (first - last) * shape((step - warmup) / (STEPS - warmup))

    return rate


def half_cosine(position: float) -> float:
    return (1 + math.cos(math.pi * position)) / 2


def straight(position: float) -> float:
    return 1 - position


def in_drops(*points: int, factor: float) -> Rate:
    def rate(step: int) -> float:
        warmed = min(1.0, (step + 1) / SPE)
        return LR * warmed * factor ** sum(step >= point for point in points)

    return rate


def of_one_cycle(max_lr: float) -> Rate:
    """torch's OneCycleLR: up to step `peak - 1`, then down to lr/10,000 at the last step."""
    top = 0.3 * STEPS - 1

    def rate(step: int) -> float:
        if step <= top:
            return max_lr + (LR - max_lr) * half_cosine(step / top)
        return LR * 1e-4 + (max_lr - LR * 1e-4) * half_cosine((step - top) / (STEPS - 1 - top))

    return rate


def of_the_paper(step: int) -> float:
    """FACTS 1 without averaging: t = e / epochs, r = 0.01."""
    t = (step // SPE) / EPOCHS
    return LR * (1 if t <= 0.5 else 1 - 0.99 * (t - 0.5) / 0.4 if t <= 0.9 else 0.01)


def stable(last: float, *, length: int, shape: Callable[[float], float]) -> Rate:
    """An epoch of warmup, LR, and a decay over the last `length` steps."""

    def rate(step: int) -> float:
        if step < SPE:
            return LR * (step + 1) / SPE
        return last + (LR - last) * shape(max(0.0, (step - STEPS + length) / length))

    return rate


# name -> (section, the rate of its baseline at each step, where its decay begins and ends as the plan says it)
COURSES: dict[str, list[tuple[dict[str, Any], Rate, float, float]]] = {
    "constant": [
        ({}, decay(LR, 0, warmup=SPE, shape=half_cosine), LR, 0),
        ({"warmup": "2ep"}, decay(LR, 0, warmup=2 * SPE, shape=half_cosine), LR, 0),
        ({"warmup": "0ep"}, decay(LR, 0, warmup=0, shape=half_cosine), LR, 0),
    ],
    "cosine": [
        ({}, decay(LR, 0, warmup=SPE, shape=half_cosine), LR, 0),
        ({"span": "start"}, decay(LR, 0, warmup=SPE, shape=half_cosine), LR, 0),
        ({"span": "run", "final_lr": 0.002}, decay(LR, 0.002, warmup=SPE, shape=half_cosine), LR, 0.002),
        ({"span": "start", "final_lr": 0.002}, decay(LR, 0.002, warmup=SPE, shape=half_cosine), LR, 0.002),
    ],
    "linear": [
        ({}, decay(LR, 0, warmup=SPE, shape=straight), LR, 0),
        ({"final_lr": 0.04}, decay(LR, 0.04, warmup=SPE, shape=straight), LR, 0.04),
        ({"span": "start", "final_lr": 0.04}, decay(LR, 0.04, warmup=SPE, shape=straight), LR, 0.04),
    ],
    "wsd": [
        ({}, stable(0, length=STEPS // 5, shape=lambda t: 1 - math.sqrt(t)), LR, 0),
        (
            {"decay": "7ep", "shape": "linear", "span": "start", "final_lr": 0.02},
            stable(0.02, length=7 * SPE, shape=straight),
            LR,
            0.02,
        ),
    ],
    "sqrt": [
        ({}, decay(LR, 0, warmup=SPE, shape=half_cosine), LR, 0),
        ({"hold": "40%", "warmup": "2ep"}, decay(LR, 0, warmup=2 * SPE, shape=half_cosine), LR, 0),
    ],
    "cosine_restarts": [
        ({"T_0": "5ep"}, decay(LR, 0, warmup=SPE, shape=half_cosine), LR, 0),
        (
            {"T_0": "3ep", "T_mult": 2, "final_lr": 0.01, "warmup": "0ep"},
            decay(LR, 0.01, warmup=0, shape=half_cosine),
            LR,
            0.01,
        ),
    ],
    "cyclic": [
        (
            {"base_lr": 0.01, "max_lr": 0.3, "step_size_up": "1ep", "mode": "exp_range", "gamma": 0.99},
            decay(0.3, 0.01, warmup=SPE, shape=half_cosine),
            0.3,
            0.01,
        ),
        (
            {"base_lr": 0.02, "step_size_up": "1ep", "step_size_down": "2ep", "begin": "max", "warmup": "0ep"},
            decay(LR, 0.02, warmup=0, shape=half_cosine),
            LR,
            0.02,
        ),
    ],
    "multistep": [
        ({"milestones": ["50%", "15ep"]}, in_drops(STEPS // 2, 15 * SPE, factor=0.1), LR, 0.001),
        ({"milestones": ["160step"], "gamma": 0.2}, in_drops(160, factor=0.2), LR, 0.02),
    ],
    "one_cycle": [
        ({"max_lr": 0.4}, of_one_cycle(0.4), 0.4, 1e-5),
        ({"max_lr": 0.4, "span": "start"}, of_one_cycle(0.4), 0.4, 1e-5),
    ],
    "swa_paper": [({}, of_the_paper, LR, 0.001)],
}
CASES = [
    pytest.param({"name": name, **section}, rate, first, last, id=f"{name}-{number}")
    for name, cases in COURSES.items()
    for number, (section, rate, first, last) in enumerate(cases)
]
ENDS = [
    pytest.param({"name": name, **section}, first, last, id=f"{name}-{number}")
    for name, cases in COURSES.items()
    for number, (section, _, first, last) in enumerate(cases)
]
SCHEDULES = [{"name": name, **section} for name, cases in COURSES.items() for section, *_ in cases]


def test_every_schedule_has_a_baseline_here() -> None:
    """The closed forms of this file against all that the schema declares."""
    assert sorted(schedules.SCHEDULES) == sorted(COURSES)


@pytest.mark.parametrize(("schedule", "expected", "first", "last"), CASES)
def test_the_rate_of_every_step(schedule: dict[str, Any], expected: Rate, first: float, last: float) -> None:
    """The baseline's rate over the whole run, its end included, against closed forms; swa.lr leaves no trace."""
    baseline = baseline_of(recipe(schedule, **AVERAGING))
    assert schedule_problems(baseline, steps_per_epoch=SPE) == []
    rate = learning_rate(baseline, steps_per_epoch=SPE)
    expected_rates = [expected(step) for step in range(STEPS)]
    assert [rate(step) for step in range(STEPS)] == pytest.approx(expected_rates, rel=1e-9, abs=1e-12)
    assert rate(STEPS - 1) == pytest.approx(last, abs=2 * first / (STEPS // 5 if schedule["name"] == "wsd" else STEPS))
    assert max(expected_rates) == pytest.approx(first)


@pytest.mark.parametrize("epochs", [200, 300])
def test_the_baseline_of_the_paper_is_its_plain_sgd(epochs: int) -> None:
    """swa_paper with averaging from epoch 161: its baseline against FACTS 1, whatever swa.lr is."""
    averaged = recipe({"name": "swa_paper"}, swa={"start": "161ep", "lr": 0.05}, train={"epochs": epochs})
    rate = learning_rate(baseline_of(averaged), steps_per_epoch=3)
    table = {0: 0.1, 100: 0.1, 101: 0.098763, 150: 0.038125, 180: 0.001, 199: 0.001}
    if epochs == 300:  # the same shape, stretched
        table = {0: 0.1, 150: 0.1, 225: 0.038125, 270: 0.001, 299: 0.001}
    for epoch, expected in table.items():
        assert rate(3 * epoch) == rate(3 * epoch + 2) == pytest.approx(expected, abs=5.01e-7)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule["name"])
@pytest.mark.parametrize(
    "averaging", [AVERAGING, {"swap": {"workers": 4, "start": "70%"}}, {}], ids=["averages", "swap", "none"]
)
def test_all_but_averaging_and_rate_is_kept(schedule: dict[str, Any], averaging: dict[str, Any]) -> None:
    """The values of both recipes: no averaging section, and each other one equal, but for schedule, name and rate."""
    before = recipe(schedule, **averaging)
    baseline = baseline_of(before)
    assert baseline.swa is baseline.swap is baseline.snapshots is None
    assert baseline.averages == baseline.all_averages == {}
    changed = {"name", "schedule", "swa", "averages", "swap", "snapshots"}
    was, now = (each.model_dump(mode="json", exclude=changed) for each in (before, baseline))
    if schedule["name"] == "cyclic":  # a cosine begins at the highest rate of the cycles
        was["optimizer"]["lr"] = schedule.get("max_lr", LR)
    assert now == was
    assert baseline.seed == 5
    assert baseline.train.epochs == EPOCHS
    assert baseline.title != before.title


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule["name"])
def test_the_baseline_can_be_written_and_is_its_own(schedule: dict[str, Any], tmp_path: Path) -> None:
    """The text of a baseline against the baseline, and the baseline of that against it but for the name."""
    baseline = baseline_of(recipe(schedule, **AVERAGING))
    (tmp_path / "baseline.yaml").write_text(dump(baseline))
    assert load(tmp_path / "baseline.yaml").recipe == baseline
    assert differences(baseline, baseline_of(baseline), ignored=["name"]) == []
    make_plan(baseline, num_train=1000)


def test_the_recipe_itself_is_left_alone() -> None:
    """A recipe whose baseline is made against a copy from before."""
    before = recipe({"name": "cyclic", "base_lr": 0.01, "max_lr": 0.3, "step_size_up": "1ep"}, **AVERAGING)
    copy = before.model_copy(deep=True)
    baseline_of(before)
    assert before == copy


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("swa_val_loss", "val_loss"),
        ("swa_val_accuracy", "val_accuracy"),
        ("ema_val_loss", "val_loss"),
        ("late_val_accuracy", "val_accuracy"),
        ("val_loss", "val_loss"),
        ("val_accuracy", "val_accuracy"),
        ("train_loss", "train_loss"),
    ],
)
def test_what_is_watched_on_an_average_is_watched_on_raw_weights(metric: str, expected: str) -> None:
    """train.early_stopping of the baseline against the same column of the raw weights, which its own plan takes."""
    train = {"epochs": EPOCHS, "early_stopping": {"patience": 3, "metric": metric}}
    before = recipe({"name": "cosine"}, train=train, **AVERAGING)
    make_plan(before, num_train=1000)
    baseline = baseline_of(before)
    assert baseline.train.early_stopping is not None
    assert (baseline.train.early_stopping.metric, baseline.train.early_stopping.patience) == (expected, 3)
    make_plan(baseline, num_train=1000)
    assert baseline.train.model_copy(update={"early_stopping": before.train.early_stopping}) == before.train


@pytest.mark.parametrize(("schedule", "first", "last"), ENDS)
def test_the_baseline_in_words(schedule: dict[str, Any], first: float, last: float) -> None:
    """Schedule, highest and final rate and epochs in the text of the plan against values by hand."""
    baseline = baseline_of(recipe(schedule, **AVERAGING))
    said = describe_baseline(baseline)
    name = "cosine" if schedule["name"] in ("constant", "sqrt", "cyclic", "cosine_restarts") else schedule["name"]
    found = re.search(r"(\w+) from (\S+) to (\S+) over all (\d+) epochs", said)
    assert found
    assert found[1] == name
    assert float(found[2]) == first
    assert float(found[3]) == pytest.approx(last, rel=0.05, abs=0 if last else 1e-4 * first)
    if name == "cosine" and last == 0:
        assert found[3] == "0"
    assert int(found[4]) == EPOCHS
