"""The plan of a run against the paper's counts, hand-counted points, and the texts of the design."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swa_cli.engine.plan_text import describe_averages, describe_pass, describe_schedule
from swa_cli.errors import RecipeError
from swa_cli.recipe.plan import Plan, make_plan
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.values import round_half_up

RESTARTS = {"name": "cosine_restarts", "T_0": "6ep"}


def recipe(*, epochs: int = 30, batch_size: int = 10, grad_accum_steps: int = 1, **sections: Any) -> Recipe:
    values: dict[str, Any] = {
        "model": {"name": "convnet"},
        "dataset": {"name": "digits"},
        "optimizer": {"lr": 0.1},
        "train": {"epochs": epochs, "batch_size": batch_size, "grad_accum_steps": grad_accum_steps},
    }
    return Recipe.model_validate(values | sections)


def plan(num_train: int = 1000, **sections: Any) -> Plan:
    return make_plan(recipe(**sections), num_train=num_train)


def swa_steps(**swa: Any) -> tuple[int, ...]:
    schedule = swa.pop("schedule", {"name": "constant"})
    return plan(schedule=schedule, swa=swa).averages[0].steps


def problems(num_train: int = 1000, **sections: Any) -> dict[str, str]:
    with pytest.raises(RecipeError) as raised:
        plan(num_train, **sections)
    assert all(problem.hint and problem.place is None for problem in raised.value.problems)
    return {problem.key: f"{problem.message} = {problem.hint}" for problem in raised.value.problems}


# What is averaged.

PAPER = [
    ("161ep", 300, "1ep", 140, 300),
    ("161ep", 250, "1ep", 90, 250),
    ("161ep", 200, "1ep", 40, 200),
    ("126ep", 225, "1ep", 100, 225),
    ("161ep", 300, "2ep", 70, 299),
    ("161ep", 300, "5ep", 28, 296),
]


@pytest.mark.parametrize(("start", "epochs", "every", "count", "last"), PAPER)
def test_averaged_epochs_are_the_papers(start: str, epochs: int, every: str, count: int, last: int) -> None:
    """Points against the rule of the paper's code, e >= start and (e - start) % every == 0, and counts."""
    steps = plan(2050, epochs=epochs, batch_size=128, swa={"start": start, "every": every}).averages[0].steps
    first, stride = int(start[:-2]), int(every[:-2])
    assert [step / 16 for step in steps] == [
        e for e in range(1, epochs + 1) if e >= first and (e - first) % stride == 0
    ]
    assert (len(steps), steps[0] / 16, steps[-1] / 16) == (count, first, last)


@pytest.mark.parametrize(
    ("swa", "expected"),
    [
        ({"start": "75%"}, [2300, 2400, 2500, 2600, 2700, 2800, 2900, 3000]),
        ({"start": "90%"}, [2700, 2800, 2900, 3000]),
        ({"start": "2601step", "every": "2ep"}, [2700, 2900]),
        ({"start": "0ep", "every": "7ep"}, [700, 1400, 2100, 2800]),
        ({"start": "0ep", "every": "30ep"}, [3000]),
        ({"start": "29ep", "every": "0.25ep"}, [2900, 2925, 2950, 2975, 3000]),
        ({"start": "28.6ep", "every": "0.5ep"}, [2900, 2950, 3000]),
        ({"start": "28.6ep", "every": "70step"}, [2870, 2940]),
        ({"start": "95%", "every": "2%"}, [2880, 2940, 3000]),
        ({"start": "2998step", "every": "1step"}, [2998, 2999, 3000]),
        ({"start": "2998step", "every": "0.001ep"}, [2998, 2999, 3000]),
    ],
)
def test_points_of_a_series(swa: Mapping[str, Any], expected: list[int]) -> None:
    """Points of 30 epochs of 100 steps against a count by hand, on the grid of `every` or of whole epochs."""
    assert list(swa_steps(**swa)) == expected


def test_points_do_not_drift_off_the_ends_of_epochs() -> None:
    """Four points an epoch of 351 steps against n * 351 / 4, halves up; every fourth ends an epoch."""
    steps = plan(351, batch_size=1, swa={"start": "0ep", "every": "0.25ep"}).averages[0].steps
    assert list(steps) == [math.floor(n * 351 / 4 + 0.5) for n in range(1, 121)]
    assert list(steps[3::4]) == [351 * epoch for epoch in range(1, 31)]


@pytest.mark.parametrize(
    ("swa", "expected"),
    [
        ({"start": "0ep", "every": "1cycle"}, [600, 1200, 1800, 2400, 3000]),
        ({"start": "50%", "every": "1cycle"}, [1800, 2400, 3000]),
        ({"start": "1200step", "every": "1cycle"}, [1200, 1800, 2400, 3000]),
        ({"start": "4cycle", "every": "1cycle"}, [2400, 3000]),
        ({"start": "0cycle", "every": "2cycle"}, [1200, 2400]),
        ({"start": "1cycle", "every": "2cycle"}, [600, 1800, 3000]),
        ({"start": "4cycle", "every": "2ep"}, [2400, 2600, 2800, 3000]),
    ],
)
def test_points_in_cycles_are_minima(swa: Mapping[str, Any], expected: list[int]) -> None:
    """Points at cycles of six epochs against their ends by hand."""
    assert list(swa_steps(schedule=RESTARTS, **swa)) == expected


def test_averages_of_smiths_cycles() -> None:
    """One weight a cycle of up 2000, down 2000 steps against every 4000 steps."""
    cyclic = {"name": "cyclic", "base_lr": 0.01, "step_size_up": "2000step", "step_size_down": "2000step"}
    steps = plan(10_000, epochs=20, schedule=cyclic, swa={"start": "0ep", "every": "1cycle"}).averages[0].steps
    assert steps == (4000, 8000, 12000, 16000, 20000)


def test_several_averages() -> None:
    """Kinds, values and points of three averages against their recipe; swa comes first."""
    averages = {
        "ema": {"kind": "ema"},
        "tail": {"kind": "lawa", "start": "10ep", "every": "10ep", "window": 2},
    }
    swa, ema, tail = plan(averages=averages, swa={"start": "90%"}).averages
    assert (swa.name, swa.kind, swa.settings) == ("swa", "mean", {})
    assert (ema.name, ema.kind) == ("ema", "ema")
    assert ema.settings == {"decay": 0.999, "warmup": False, "bias_correction": True}
    assert ema.steps == tuple(range(1, 3001))
    assert (tail.name, tail.kind, tail.settings) == ("tail", "lawa", {"window": 2})
    assert tail.steps == (1000, 2000, 3000)


@pytest.mark.parametrize(
    ("half_life", "every", "halvings"),
    [
        ("500step", "1step", 1 / 500),
        ("2ep", "1step", 1 / 200),
        ("10%", "1step", 1 / 300),
        ("2ep", "1ep", 1 / 2),
        ("0.5ep", "1ep", 2),
        ("1ep", "0.001ep", 1 / 100),
    ],
)
def test_half_life_is_a_decay(half_life: str, every: str, halvings: float) -> None:
    """The decay of an update against 0.5 to the half-lives that pass until the next, of 30 epochs of 100 steps."""
    (ema,) = plan(averages={"ema": {"kind": "ema", "half_life": half_life, "every": every}}).averages
    assert ema.settings["decay"] == pytest.approx(0.5**halvings, rel=1e-14)


def test_settings_of_an_average() -> None:
    """What `WeightAverage` is given of each kind against the recipe and its defaults; the rest is None."""
    averages = {
        "ema": {"kind": "ema", "warmup": True, "bias_correction": False},
        "full": {"kind": "swag"},
        "thin": {"kind": "swag", "diagonal": True},
    }
    found = [
        {key: value for key, value in item.arguments.items() if value is not None}
        for item in plan(averages=averages).averages
    ]
    assert found == [
        {"kind": "ema", "decay": 0.999, "warmup": True, "bias_correction": False},
        {"kind": "swag", "rank": 20, "diagonal": False},
        {"kind": "swag", "diagonal": True},
    ]


@settings(max_examples=300)
@given(
    start=st.integers(0, 2400).map(lambda n: f"{n / 100:g}ep") | st.integers(0, 100).map(lambda n: f"{n}%"),
    every=st.integers(1, 900).map(lambda n: f"{n / 100:g}ep") | st.integers(1, 90).map(lambda n: f"{n}step"),
    epochs=st.integers(1, 24),
    spe=st.integers(1, 37),
)
def test_points_lie_in_the_run(start: str, every: str, epochs: int, spe: int) -> None:
    """Points of any accepted recipe against the run: increasing, none before start or after the end."""
    drawn = recipe(epochs=epochs, batch_size=1, schedule={"name": "constant"}, swa={"start": start, "every": every})
    assert drawn.swa is not None
    total = epochs * spe
    refused: set[str] = set()
    steps: tuple[int, ...] = ()
    try:
        steps = make_plan(drawn, num_train=spe).averages[0].steps
    except RecipeError as error:
        refused = {problem.key for problem in error.problems}
    assert refused <= {"swa.start", "swa.every"}
    if refused:
        return
    assert steps
    assert all(left < right for left, right in pairwise(steps))
    assert max(1, round_half_up(drawn.swa.start.exact_steps(steps_per_epoch=spe, total_steps=total))) <= steps[0]
    assert steps[-1] <= total


# The shape of the run.


def test_steps_an_epoch_leave_the_ragged_rest() -> None:
    """Steps against 45,000 // (128 x 2), times 30."""
    run = plan(45_000, batch_size=128, grad_accum_steps=2)
    assert (run.num_train, run.epochs, run.steps_per_epoch, run.total_steps) == (45_000, 30, 175, 5250)


def test_learning_rate_of_the_plan() -> None:
    """The plan's rate against values by hand: warmup of 100 steps, swa.lr from start on."""
    rate = plan(swa={"start": "75%", "lr": 0.05}).learning_rate
    assert rate(0) == pytest.approx(0.001)
    assert rate(100) == pytest.approx(0.1)
    assert rate(2250) == rate(2999) == 0.05


@pytest.mark.parametrize(
    ("every", "start", "expected"),
    [
        ("5ep", "0ep", {5, 10, 15, 20, 25}),
        ("5ep", "75%", {25}),
        ("1ep", "90%", {27, 28, 29}),
        ("2.5ep", "50%", {15, 18, 20, 23, 25, 28}),
        ("150step", "26ep", {26, 27, 29}),
        ("30%", "0ep", {9, 18, 27}),
        ("40ep", "0ep", set()),
        ("0.1ep", "28ep", {28, 29}),
    ],
)
def test_epochs_at_which_averages_are_scored(every: str, start: str, expected: set[int]) -> None:
    """Scored epochs against a count by hand: a multiple of eval_every in (e - 1, e], a weight to score."""
    assert plan(swa={"start": start, "eval_every": every}).score_epochs == expected


def test_scoring_waits_for_the_first_weight_of_any_average() -> None:
    """Scored epochs without swa, or without any average, against the default of 5 epochs."""
    assert plan(averages={"ema": {"kind": "ema", "start": "12ep"}}).score_epochs == {15, 20, 25}
    assert plan().score_epochs == frozenset()


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        ("10ep", {1000, 2000, 3000}),
        ("8ep", {800, 1600, 2400, 3000}),
        ("70ep", {3000}),
        ("1step", set(range(1, 3001))),
        ("900step", {900, 1800, 2700, 3000}),
        ("7.5ep", {750, 1500, 2250, 3000}),
        ("10min", {3000}),
    ],
)
def test_points_at_which_the_run_is_saved(every: str, expected: set[int]) -> None:
    """Saved points against multiples of save_every, inside epochs too; the end always; a time has no point."""
    assert plan(output={"save_every": every}).saves == expected


def test_stop_takes_a_column_that_the_run_measures() -> None:
    """Metrics of `train.early_stopping` against the columns of metrics.csv of just this run."""
    assert (
        plan(train={"epochs": 30, "early_stopping": {"patience": 3, "metric": "swa_val_loss"}}, swa={}).total_steps
        == 210
    )
    found = problems(train={"epochs": 30, "early_stopping": {"patience": 3, "metric": "swa_val_loss"}})
    assert "choose from train_loss, train_accuracy, val_loss, val_accuracy" in found["train.early_stopping.metric"]


def test_snapshots() -> None:
    """Snapshot points against ends of cycles and of epochs; none without the section."""
    assert plan().snapshots == ()
    assert plan(snapshots={"every": "10ep"}).snapshots == (1000, 2000, 3000)
    assert plan(snapshots={"every": "1cycle", "start": "2cycle"}, schedule=RESTARTS).snapshots == (
        1200,
        1800,
        2400,
        3000,
    )


# Texts.


def test_the_texts_of_the_design() -> None:
    """Both plan rows of the design's example, verbatim."""
    example = recipe(epochs=30, batch_size=128, swa={"start": "75%", "lr": 0.05})
    run = make_plan(example, num_train=45_000)
    schedule = "30 epochs x 351 steps: warmup 1 epoch to 0.1, cosine to 0.05 at epoch 22.5, then flat"
    assert describe_schedule(example, run) == schedule
    averaging = "swa: 8 weights, ends of epochs 23 to 30 (from 75 %); BatchNorm recomputed at the end"
    assert describe_averages(example, run) == [averaging]
    assert run.warnings == ()


def test_the_papers_preresnet() -> None:
    """PreResNet164 on 50,000 images against the paper: ends of 126 to 225, 100 weights, its golden rates."""
    paper = recipe(epochs=225, batch_size=128, schedule={"name": "swa_paper"}, swa={"start": "126ep", "lr": 0.05})
    run = make_plan(paper, num_train=50_000)
    assert describe_averages(paper, run) == [
        "swa: 100 weights, ends of epochs 126 to 225; BatchNorm recomputed at the end"
    ]
    assert describe_schedule(paper, run) == (
        "225 epochs x 390 steps: 0.1 to epoch 63, linear to 0.05 at epoch 113.4, then flat"
    )
    for epoch, rate in {63: 0.1, 64: 0.099008, 80: 0.083135, 100: 0.063294, 113: 0.050397, 114: 0.05}.items():
        assert run.learning_rate(epoch * 390) == pytest.approx(rate, abs=5e-7)


@pytest.mark.parametrize(
    ("schedule", "swa", "text"),
    [
        ({"name": "constant", "warmup": "0ep"}, None, "constant 0.1"),
        (
            {"name": "constant"},
            {"start": "20ep", "lr": 0.02},
            "warmup 1 epoch to 0.1, constant 0.1, 0.02 from epoch 20 on",
        ),
        ({"name": "linear", "warmup": "30step"}, None, "warmup 30 steps to 0.1, linear to 0 at epoch 30"),
        (
            {"name": "cosine", "span": "run"},
            {"start": "20ep", "lr": 0.02},
            "warmup 1 epoch to 0.1, cosine to 0 at epoch 30, 0.02 from epoch 20 on",
        ),
        (
            {"name": "cosine", "span": "start", "final_lr": 0.01, "warmup": "2ep"},
            {"start": "20ep"},
            "warmup 2 epochs to 0.1, cosine to 0.01 at epoch 20, then flat",
        ),
        (
            {"name": "multistep", "milestones": ["10ep", "20ep"], "warmup": "0ep"},
            {"start": "25ep", "lr": 0.02, "anneal": "2ep"},
            "steps from 0.1, times 0.1 at epoch 10, 20, linear anneal of 2 epochs to 0.02 at epoch 25, then flat",
        ),
        (RESTARTS, None, "cosine cycles of 6 epochs from 0.1 to 0"),
        (RESTARTS | {"T_mult": 1.5}, None, "cosine cycles of 6 epochs from 0.1 to 0, each 1.5 x longer"),
        (
            {
                "name": "cyclic",
                "base_lr": 0.01,
                "step_size_up": "1ep",
                "step_size_down": "50step",
                "mode": "triangular2",
            },
            None,
            "cycles between 0.01 and 0.1, 1 epoch up and 50 steps down, triangular2",
        ),
        (
            {"name": "cyclic", "base_lr": 0.0001, "max_lr": 0.05, "step_size_up": "2ep", "begin": "max"},
            None,
            "cycles between 0.0001 and 0.05, 2 epochs down and 2 epochs up",
        ),
        (
            {"name": "one_cycle", "max_lr": 0.5},
            None,
            "one cycle from 0.1 up to 0.5 at epoch 9, down to 1e-05 at epoch 30",
        ),
    ],
)
def test_schedule_texts(schedule: Mapping[str, Any], swa: Mapping[str, Any] | None, text: str) -> None:
    """The row of each shape against its rates in words."""
    sections: dict[str, Any] = {"schedule": schedule} | ({"swa": swa} if swa else {})
    described = recipe(**sections)
    assert describe_schedule(described, make_plan(described, num_train=1000)) == f"30 epochs x 100 steps: {text}"


def test_a_shortened_warmup_is_visible() -> None:
    """The row of a run of one epoch against the tenth to which its default warmup is cut."""
    short = recipe(epochs=1)
    text = "1 epoch x 100 steps: warmup 10 steps to 0.1, cosine to 0 at epoch 1"
    assert describe_schedule(short, make_plan(short, num_train=1000)) == text


@pytest.mark.parametrize(
    ("schedule", "swa", "text"),
    [
        ("cosine", {"start": "22.75ep", "every": "0.25ep"}, "30 weights, 4 per epoch, epochs 22.75 to 30"),
        ("cosine", {"start": "28ep", "every": "60step"}, "4 weights, every 60 steps, epochs 28.2 to 30"),
        ("cosine", {"start": "0ep", "every": "2.5ep"}, "12 weights, every 2.5 epochs, epochs 2.5 to 30"),
        ("cosine", {"start": "28ep", "every": "1step"}, "201 weights, every step from epoch 28"),
        ("cosine", {"start": "30ep", "every": "1ep"}, None),
        ("cosine", {"start": "29.5ep", "every": "1ep"}, "1 weight, end of epoch 30"),
        ("cosine", {"start": "29.1ep", "every": "0.7ep"}, "1 weight, at epoch 29.4"),
        ("cosine", {"start": "29ep", "every": "1ep"}, "2 weights, ends of epochs 29 and 30"),
        ("cosine", {"start": "20ep", "every": "5ep"}, "3 weights, ends of epochs 20, 25, ..., 30"),
        ("cosine", {"start": "2850step"}, "2 weights, ends of epochs 29 and 30 (from step 2850)"),
        ("restarts", {"start": "0ep", "every": "1cycle"}, "5 weights, at the minima of the cycles"),
        (
            "restarts",
            {"start": "3cycle", "every": "1cycle"},
            "3 weights, at the minima of the cycles (from cycle 3)",
        ),
    ],
)
def test_averaging_texts(schedule: str, swa: Mapping[str, Any], text: str | None) -> None:
    """The row of the average against its points in words."""
    described = recipe(schedule=RESTARTS if schedule == "restarts" else {"name": schedule}, swa=swa)
    if text is None:
        assert problems(swa=swa).keys() == {"swa.start"}
        return
    run = make_plan(described, num_train=1000)
    assert describe_averages(described, run) == [f"swa: {text}; BatchNorm recomputed at the end"]


def test_texts_of_several_averages_and_snapshots() -> None:
    """A row for each average, then the snapshots, against words by hand."""
    described = recipe(
        averages={"ema": {"kind": "ema"}, "tail": {"kind": "lawa", "window": 3}},
        snapshots={"every": "10ep", "keep": 2},
        swa={"start": "80%"},
    )
    assert describe_averages(described, make_plan(described, num_train=1000)) == [
        "swa: 7 weights, ends of epochs 24 to 30 (from 80 %); BatchNorm recomputed at the end",
        "ema: EMA 0.999, every step from epoch 1; BatchNorm recomputed at the end",
        "tail: LAWA, last 3 of 8 weights, ends of epochs 23 to 30 (from 75 %); BatchNorm recomputed at the end",
        "snapshots: 3, ends of epochs 10, 20, ..., 30; the last 2 kept",
    ]
    assert describe_averages(recipe(), plan()) == []


@pytest.mark.parametrize(
    ("samples", "num_train", "number"),
    [
        ("auto", 50, 50),
        ("auto", 100_000, 100_000),
        ("auto", 100_001, 10_001),
        ("auto", 1_281_167, 128_117),
        ("all", 1_281_167, 1_281_167),
        (640, 1_281_167, 640),
        (640, 500, 500),
    ],
)
@pytest.mark.parametrize("section", ["swa", "swap"])
def test_samples_of_a_batchnorm_pass(section: str, samples: str | int, num_train: int, number: int) -> None:
    """The number of samples against the rule by hand; the plan tells those of a part, and at most 10 % of an epoch."""
    values: dict[str, Any] = {"swa": {}, "swap": {"workers": 2}}
    described = recipe(**{section: values[section] | {"batchnorm": {"samples": samples}}})
    assert described.average_scoring.batchnorm.num_samples(num_train) == number
    text = describe_pass(described, make_plan(described, num_train=num_train))
    if number == num_train:
        assert text == ""
        return
    assert f"{number:,} of {num_train:,} training samples" in text
    cost = float(text.partition("about ")[2].partition(" %")[0])
    assert cost == pytest.approx(100 / 3 * number / num_train, rel=0.05)
    assert cost < 10
    assert text.endswith(f"({section}.batchnorm.samples: {samples})")


def test_an_exact_pass_tells_no_cost() -> None:
    """Method exact runs a partial pass per layer, and the plan does not name the cost of one."""
    described = recipe(swa={"batchnorm": {"method": "exact", "samples": 100}})
    text = describe_pass(described, make_plan(described, num_train=1000))
    assert "100 of 1,000" in text
    assert " %" not in text


@pytest.mark.parametrize(
    ("average", "text"),
    [
        ({"kind": "ema", "decay": 0.9, "warmup": True}, "EMA 0.9, warmed up, every step from epoch 1"),
        ({"kind": "ema", "bias_correction": False}, "EMA 0.999, no bias correction, every step from epoch 1"),
        ({"kind": "ema", "half_life": "2ep"}, "EMA of half-life 2ep (0.99654), every step from epoch 1"),
        ({"kind": "power_ema"}, "power EMA of width 0.1 (exponent 6.937), every step from epoch 1"),
        (
            {"kind": "power_ema", "half_life": "10%", "start": "3ep", "every": "16step"},
            "power EMA of half-life 10% of the elapsed run (exponent 6.579), every 16 steps, epochs 3.04 to 29.92",
        ),
        ({"kind": "swag"}, "SWAG of 8 weights, rank 20, ends of epochs 23 to 30 (from 75 %)"),
        ({"kind": "swag", "diagonal": True}, "SWAG of 8 weights, diagonal, ends of epochs 23 to 30 (from 75 %)"),
    ],
)
def test_texts_of_every_kind(average: Mapping[str, Any], text: str) -> None:
    """The row of an average against its settings in words; what is as usual is not mentioned."""
    described = recipe(averages={"a": average})
    lines = describe_averages(described, make_plan(described, num_train=1000))
    assert lines == [f"a: {text}; BatchNorm recomputed at the end"]


# What is refused.

CYCLES_NEEDED = "needs a schedule with cycles, and cosine has none"


@pytest.mark.parametrize(
    ("sections", "key", "words"),
    [
        (
            {"swa": {"start": "31ep"}},
            "swa.start",
            "31ep is after the end of the run, epoch 30: nothing would be av",
        ),
        ({"swa": {"start": "100%"}}, "swa.start", "100% is not before the end of the run"),
        ({"swa": {"start": "6cycle"}, "schedule": RESTARTS}, "swa.start", "6cycle is not before the end"),
        (
            {"swa": {"start": "0ep", "every": "31ep"}},
            "swa.every",
            "31ep has no point between 0ep and the end",
        ),
        ({"swa": {"start": "20ep", "every": "17.5ep"}}, "swa.every", "17.5ep has no point"),
        ({"swa": {"every": "0ep"}}, "swa.every", "0ep is not an interval"),
        ({"swa": {"every": "1cycle"}}, "swa.every", CYCLES_NEEDED),
        ({"swa": {"start": "1cycle"}}, "swa.start", CYCLES_NEEDED),
        ({"swa": {"every": "1cycle", "lr": 0.05}, "schedule": RESTARTS}, "swa.every", "leave swa.lr out"),
        ({"swa": {"eval_every": "0ep"}}, "swa.eval_every", "0ep is not an interval"),
        ({"swa": {"eval_every": "1cycle"}, "schedule": RESTARTS}, "swa.eval_every", "no fixed length"),
        ({"output": {"save_every": "0step"}}, "output.save_every", "0step is not an interval"),
        ({"output": {"save_every": "1cycle"}}, "output.save_every", "no fixed length"),
        ({"averages": {"a": {"kind": "mean", "start": "40ep"}}}, "averages.a.start", "40ep is after the end"),
        ({"averages": {"a": {"kind": "mean", "every": "1cycle"}}}, "averages.a.every", CYCLES_NEEDED),
        ({"averages": {"a": {"kind": "ema", "half_life": "0ep"}}}, "averages.a.half_life", "0ep is too short"),
        ({"averages": {"a": {"kind": "ema", "half_life": "1cycle"}}}, "averages.a.half_life", "no fixed length"),
        (
            {"averages": {"a": {"kind": "ema", "half_life": "1ep", "every": "1cycle"}}, "schedule": RESTARTS},
            "averages.a.half_life",
            "1ep is not a number of updates, which come every 1cycle",
        ),
        (
            {"averages": {"a": {"kind": "ema", "half_life": "999999999999999ep"}}},
            "averages.a.half_life",
            "so long that nothing would ever be forgotten",
        ),
        ({"averages": {"a": {"kind": "power_ema", "width": 0.29}}}, "averages.a.width", "0.29 is above 0.28"),
        ({"averages": {"a": {"kind": "power_ema", "half_life": "2ep"}}}, "averages.a.half_life", "kind: ema"),
        ({"averages": {"a": {"kind": "power_ema", "half_life": "0%"}}}, "averages.a.half_life", "0% is not between"),
        ({"averages": {"a": {"kind": "power_ema", "half_life": "100%"}}}, "averages.a.half_life", "100% is not be"),
        ({"snapshots": {"every": "1cycle"}}, "snapshots.every", CYCLES_NEEDED),
        ({"snapshots": {"every": "1ep", "start": "40ep"}}, "snapshots.start", "nothing would be kept"),
        ({"snapshots": {"every": "40ep"}}, "snapshots.every", "nothing would be kept"),
        ({"schedule": {"name": "cosine", "warmup": "30ep"}}, "schedule.warmup", "30ep is too long"),
    ],
)
def test_problems(sections: Mapping[str, Any], key: str, words: str) -> None:
    """Each mistake against exactly one problem, with its key, its value and an action."""
    found = problems(**sections)
    assert list(found) == [key]
    assert words in found[key]


def test_a_batch_larger_than_the_training_set() -> None:
    """No step in an epoch against a problem that names the product and a batch size that works."""
    found = problems(100, batch_size=256)
    assert found == {"train.batch_size": "256 x 1 is more than the 100 training samples = write at most 100"}
    assert problems(100, batch_size=30, grad_accum_steps=4)["train.batch_size"].endswith("write at most 25")
    assert problems(100, grad_accum_steps=101)["train.batch_size"].endswith("lower train.grad_accum_steps")
    assert plan(100, batch_size=25, grad_accum_steps=4).steps_per_epoch == 1


@pytest.mark.parametrize(
    ("schedule", "epochs", "mended"),
    [
        (RESTARTS | {"T_0": "7ep"}, 30, 28),
        (RESTARTS | {"T_0": "2ep", "T_mult": 2}, 20, 14),
        (RESTARTS | {"T_0": "50ep"}, 30, 50),
        (RESTARTS | {"warmup": "1ep"}, 30, 31),
        ({"name": "cyclic", "base_lr": 0.0, "step_size_up": "2ep", "begin": "max"}, 12, 14),
        ({"name": "cyclic", "base_lr": 0.0, "step_size_up": "150step"}, 10, 9),
    ],
)
def test_snapshots_off_the_minimum(schedule: Mapping[str, Any], epochs: int, mended: int) -> None:
    """Cycles that do not divide the run against a problem whose number of epochs does end at a minimum."""
    found = problems(schedule=schedule, epochs=epochs, snapshots={"every": "1cycle"})
    assert list(found) == ["snapshots.every"]
    assert found["snapshots.every"].endswith(f"set train.epochs to {mended}")
    run = plan(schedule=schedule, epochs=mended, snapshots={"every": "1cycle"})
    assert run.snapshots[-1] == run.total_steps


def test_snapshots_off_the_minimum_of_cycles_in_percent() -> None:
    """Cycles of 30 %, which no number of epochs mends, against an interval that works."""
    found = problems(schedule=RESTARTS | {"T_0": "30%"}, snapshots={"every": "1cycle"})
    assert found["snapshots.every"].endswith("write an interval such as 1ep")


def test_all_problems_at_once() -> None:
    """Mistakes in five sections against one error that lists them all."""
    found = problems(
        schedule={"name": "cosine", "warmup": "1cycle"},
        swa={"start": "31ep", "every": "1cycle", "eval_every": "0ep"},
        averages={"tail": {"kind": "lawa", "start": "1cycle"}},
        snapshots={"every": "40ep"},
        output={"save_every": "2cycle"},
    )
    assert set(found) == {
        "schedule.warmup",
        "swa.start",
        "swa.every",
        "swa.eval_every",
        "averages.tail.start",
        "snapshots.every",
        "output.save_every",
    }


def test_cycles_are_not_counted_while_the_schedule_is_wrong() -> None:
    """A wrong cycle against its own problem alone: what counts in cycles cannot be judged."""
    swa = {"start": "2cycle", "every": "1cycle"}
    assert list(problems(schedule=RESTARTS | {"T_0": "0ep"}, swa=swa)) == ["schedule.T_0"]


# What is warned of.


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (
            {"swa": {"start": "27ep"}},
            "swa averages only 4 weights: an earlier swa.start or a shorter swa.every",
        ),
        ({"swa": {"start": "29.5ep"}}, "swa averages only 1 weight:"),
        (
            {"averages": {"a": {"kind": "mean", "start": "27ep"}}},
            "a averages only 4 weights: an earlier averages.a.",
        ),
        ({"swa": {"lr": 0.2}}, "swa.lr 0.2 is above optimizer.lr 0.1"),
        ({"swa": {"lr": 0}}, "the learning rate is 0 from swa.start on"),
        (
            {"swa": {}, "schedule": {"name": "cosine", "span": "start"}},
            "the learning rate is 0 from swa.start on",
        ),
        (
            {"schedule": RESTARTS | {"T_0": "4ep"}, "swa": {"start": "0ep", "every": "1cycle"}},
            "swa takes nothing in the last 2 epochs",
        ),
        (
            {"averages": {"t": {"kind": "lawa", "window": 9}}},
            "t holds the last 9 weights, but takes only 8",
        ),
        (
            {"averages": {"ema": {"kind": "ema", "decay": 0.9999}}},
            "ema looks back over 10,000 updates, but has 3,000: lower averages.ema.decay",
        ),
        (
            {"averages": {"ema": {"kind": "ema", "half_life": "21ep"}}},
            "ema looks back over 3,030 updates, but has 3,000: shorten averages.ema.half_life",
        ),
        (
            {"averages": {"p": {"kind": "power_ema", "every": "3ep"}}},
            "p is mostly its newest weight set (57% at the end): shorten averages.p.every or raise its width",
        ),
        (
            {"averages": {"p": {"kind": "power_ema", "every": "2ep", "half_life": "5%"}}},
            "shorten averages.p.every or raise its half_life",
        ),
        (
            {"averages": {"s": {"kind": "swag", "rank": 9}}},
            "s keeps the last 9 deviations, but takes only 8",
        ),
        (
            {"averages": {"s": {"kind": "swag", "diagonal": True, "start": "27ep"}}},
            "s averages only 4 weights: an earlier averages.s.start",
        ),
        (
            {"schedule": {"name": "multistep", "milestones": ["20ep", "30ep"]}},
            "schedule.milestones has a point at or after the end",
        ),
    ],
)
def test_warnings(sections: Mapping[str, Any], words: str) -> None:
    """Each doubtful recipe against exactly one warning; it runs all the same."""
    (warning,) = plan(**sections).warnings
    assert words in warning


def test_no_warnings_at_the_bounds() -> None:
    """Recipes just good enough against silence: 5 weights, rates equal, window and horizon just reached."""
    bounds: dict[str, Any] = {
        "swa": {"start": "26ep", "lr": 0.1},
        "averages": {
            "ema": {"kind": "ema", "decay": 0.999, "start": "2001step"},
            "tail": {"kind": "lawa", "window": 8},
            "few": {"kind": "lawa", "window": 2, "start": "29ep"},
            "late": {"kind": "ema", "decay": 0.9999, "warmup": True},
            "spread": {"kind": "swag", "rank": 8},
        },
    }
    assert plan(**bounds).warnings == ()


@pytest.mark.parametrize("every", ["0.02ep", "0.3%", "0.03%", "1step"])
def test_intervals_below_a_step_take_every_step(every: str) -> None:
    """Points of `every` shorter than a step against all steps of the run, the last one included."""
    values = {
        "model": {"name": "convnet"},
        "dataset": {"name": "digits"},
        "optimizer": {"lr": 0.1},
        "swa": {"start": "0ep", "every": every},
        "train": {"epochs": 3, "batch_size": 10},
    }
    plan = make_plan(Recipe.model_validate(values), num_train=200)
    assert plan.averages[0].steps == tuple(range(1, 61))
