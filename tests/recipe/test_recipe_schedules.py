"""The learning rate against published tables, closed forms and torch's own schedulers, at every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from swa_cli.recipe.learning_rate import chart, learning_rate, schedule_problems
from swa_cli.recipe.plan import make_plan
from swa_cli.recipe.schema import Recipe, Snapshots
from swa_cli.recipe.variants import with_more_epochs

SPE = 10  # steps an epoch


def recipe(
    schedule: Mapping[str, Any],
    *,
    epochs: int = 30,
    lr: float = 0.1,
    swa: Mapping[str, Any] | None = None,
) -> Recipe:
    values: dict[str, Any] = {
        "model": {"name": "convnet"},
        "dataset": {"name": "digits"},
        "optimizer": {"lr": lr},
        "train": {"epochs": epochs},
        "schedule": schedule,
    }
    return Recipe.model_validate(values | ({"swa": swa} if swa is not None else {}))


def rates(a_recipe: Recipe, *, spe: int = SPE) -> list[float]:
    rate = learning_rate(a_recipe, steps_per_epoch=spe)
    return [rate(step) for step in range(a_recipe.train.epochs * spe)]


def torch_rates(
    steps: int, build: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler], *, lr: float = 0.1
) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, seen = build(optimizer), []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


# The paper's schedule.

PAPER = [
    (
        0.05,
        0.01,
        161,
        {0: 0.05, 80: 0.05, 81: 0.049689, 100: 0.037888, 120: 0.025466, 144: 0.010559, 145: 0.01},
    ),
    (
        0.1,
        0.05,
        161,
        {80: 0.1, 81: 0.099612, 100: 0.08486, 120: 0.069332, 144: 0.050699, 145: 0.05, 299: 0.05},
    ),
    (
        0.1,
        0.05,
        126,
        {63: 0.1, 64: 0.099008, 80: 0.083135, 100: 0.063294, 113: 0.050397, 114: 0.05, 130: 0.05},
    ),
]


@pytest.mark.parametrize(("lr", "swa_lr", "start", "table"), PAPER)
def test_swa_paper_is_the_published_table(lr: float, swa_lr: float, start: int, table: dict[int, float]) -> None:
    """swa_paper with averaging against the golden table of the paper's code, all steps of an epoch alike."""
    swa = {"start": f"{start}ep", "lr": swa_lr}
    rate = learning_rate(recipe({"name": "swa_paper"}, epochs=300, lr=lr, swa=swa), steps_per_epoch=390)
    for epoch, expected in table.items():
        for step in (390 * epoch, 390 * epoch + 389):
            assert rate(step) == pytest.approx(expected, abs=5.01e-7)


@pytest.mark.parametrize("swa", [None, {"start": "161ep"}])
def test_swa_paper_without_swa_lr_decays_to_a_hundredth(swa: Mapping[str, Any] | None) -> None:
    """swa_paper without a rate of its own for averaging against the golden table of plain SGD."""
    rate = learning_rate(recipe({"name": "swa_paper"}, epochs=200, swa=swa), steps_per_epoch=3)
    for epoch, expected in {0: 0.1, 100: 0.1, 101: 0.098763, 150: 0.038125, 180: 0.001, 199: 0.001}.items():
        assert rate(3 * epoch) == pytest.approx(expected, abs=5.01e-7)


# Cosine, linear, constant, multistep, one cycle.


def test_cosine_without_warmup_is_torch() -> None:
    """Cosine over the run against torch's CosineAnnealingLR."""
    ours = rates(recipe({"name": "cosine", "warmup": "0ep", "final_lr": 0.001}))
    theirs = torch_rates(300, lambda opt: lr_scheduler.CosineAnnealingLR(opt, T_max=300, eta_min=0.001))
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_linear_without_warmup_is_torch() -> None:
    """Linear over the run against torch's LinearLR."""
    ours = rates(recipe({"name": "linear", "warmup": "0ep", "final_lr": 0.02}))
    theirs = torch_rates(300, lambda opt: lr_scheduler.LinearLR(opt, 1.0, 0.2, total_iters=300))
    assert ours == pytest.approx(theirs, rel=1e-9)


FALLS: Mapping[str, Callable[[float], float]] = {
    "linear": lambda t: 1 - t,
    "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)),
    "1-sqrt": lambda t: 1 - math.sqrt(t),
}


@pytest.mark.parametrize("shape", [None, *FALLS])
@pytest.mark.parametrize(
    ("keys", "swa", "begin", "end", "final_lr"),
    [
        ({}, None, 240, 300, 0.0),
        ({"decay": "4.55ep", "final_lr": 0.01}, None, 255, 300, 0.01),  # 45.5 steps: from 254.5 on, rounded up
        ({"decay": "100%", "warmup": "0ep"}, None, 0, 300, 0.0),
        ({"decay": "30step"}, {"start": "75%", "lr": 0.05}, 195, 225, 0.05),
        ({"decay": "30step", "span": "run"}, {"start": "75%"}, 270, 300, 0.0),
    ],
)
def test_wsd_is_warmup_plateau_and_decay(
    shape: str | None, keys: Mapping[str, Any], swa: Mapping[str, Any] | None, begin: int, end: int, final_lr: float
) -> None:
    """Every rate against the closed form of Haegele et al. 2024; the step after the plateau still has its rate."""
    wsd = recipe({"name": "wsd", **keys, **({} if shape is None else {"shape": shape})}, swa=swa)
    course, ours = chart(wsd, steps_per_epoch=SPE), rates(wsd)
    assert (course.plateau, course.end, course.final_lr) == (begin, end, final_lr)
    assert ours[:10] == ([pytest.approx(0.1 * (s + 1) / 10) for s in range(10)] if begin else ours[:10])
    assert set(ours[10 if begin else 0 : begin + 1]) == {0.1}
    fall = FALLS[shape or "1-sqrt"]
    expected = [final_lr + (0.1 - final_lr) * fall(t / (end - begin)) for t in range(end - begin)]
    assert ours[begin:end] == pytest.approx(expected, abs=1e-15)
    assert set(ours[end:]) <= {(swa or {}).get("lr", final_lr)}


@pytest.mark.parametrize(
    ("keys", "warmup", "hold"),
    [
        ({}, 10, 10),
        ({"warmup": "2ep"}, 20, 20),
        ({"warmup": "0ep"}, 0, 10),
        ({"hold": "40%", "warmup": "25step"}, 25, 120),
    ],
)
def test_sqrt_is_the_inverse_square_root(keys: Mapping[str, Any], warmup: int, hold: int) -> None:
    """Every rate against lr sqrt(hold / max(step, hold)), behind the line of the warmup."""
    ours = rates(recipe({"name": "sqrt", **keys}))
    assert ours[:warmup] == pytest.approx([0.1 * (step + 1) / warmup for step in range(warmup)])
    assert ours[warmup:] == pytest.approx([0.1 * math.sqrt(hold / max(s, hold)) for s in range(warmup, 300)], rel=1e-15)
    assert ours[hold] == 0.1


@pytest.mark.parametrize("name", ["constant", "cosine", "linear"])
def test_warmup_is_a_line_and_the_shape_begins_after_it(name: str) -> None:
    """Warmup of 2 epochs against lr (s + 1) / w, and the shape behind it against the closed form."""
    ours = rates(recipe({"name": name, "warmup": "2ep"}))
    assert ours[:20] == pytest.approx([0.1 * (step + 1) / 20 for step in range(20)])
    position = [(step - 20) / 280 for step in range(20, 300)]
    forms = {
        "constant": lambda t: 0.1,
        "cosine": lambda t: 0.05 * (1 + math.cos(math.pi * t)),
        "linear": lambda t: 0.1 * (1 - t),
    }
    assert ours[20:] == pytest.approx([forms[name](t) for t in position], abs=1e-12)


@pytest.mark.parametrize(
    ("schedule", "warmup"),
    [
        ({"name": "constant"}, 10),
        ({"name": "wsd"}, 10),
        ({"name": "sqrt"}, 10),
        ({"name": "cosine"}, 10),
        ({"name": "linear"}, 10),
        ({"name": "multistep", "milestones": ["20ep"]}, 10),
        ({"name": "cosine", "warmup": "0ep"}, 0),
        ({"name": "cosine", "warmup": "25step"}, 25),
        ({"name": "cosine_restarts", "T_0": "10ep"}, 0),
        ({"name": "cyclic", "base_lr": 0.01, "step_size_up": "2ep"}, 0),
        ({"name": "one_cycle", "max_lr": 0.2}, 0),
        ({"name": "swa_paper"}, 0),
    ],
)
def test_default_warmup_is_an_epoch_where_the_shape_does_not_begin_itself(
    schedule: Mapping[str, Any], warmup: int
) -> None:
    """Warmup steps of every shape against the documented default."""
    assert chart(recipe(schedule), steps_per_epoch=SPE).warmup == warmup


@pytest.mark.parametrize(
    ("schedule", "swa", "epochs", "warmup"),
    [
        ({"name": "cosine"}, None, 1, 10),
        ({"name": "cosine"}, {"start": "1ep", "lr": 0.05}, 4, 10),
        ({"name": "cosine"}, {"start": "3ep", "lr": 0.05, "anneal": "2.5ep"}, 4, 5),
        ({"name": "multistep", "milestones": ["0.5ep"]}, None, 4, 5),
        ({"name": "cosine"}, {"start": "0ep", "lr": 0.05}, 4, 0),
        ({"name": "wsd", "decay": "80%"}, None, 4, 8),
    ],
)
def test_a_default_warmup_that_does_not_fit_is_a_tenth(
    schedule: Mapping[str, Any], swa: Mapping[str, Any] | None, epochs: int, warmup: int
) -> None:
    """The shortened default against a tenth of what precedes the decay's end, the anneal or a drop."""
    short = recipe(schedule, epochs=epochs, swa=swa)
    assert schedule_problems(short, steps_per_epoch=100) == []
    assert chart(short, steps_per_epoch=100).warmup == warmup


@pytest.mark.parametrize(
    ("schedule", "swa", "end", "final_lr"),
    [
        ({"name": "cosine"}, None, 300, 0.0),
        ({"name": "cosine"}, {"start": "75%"}, 300, 0.0),
        ({"name": "cosine"}, {"start": "75%", "lr": 0.05}, 225, 0.05),
        ({"name": "linear"}, {"start": "75%", "lr": 0.05}, 225, 0.05),
        ({"name": "cosine", "span": "run"}, {"start": "75%", "lr": 0.05}, 300, 0.0),
        ({"name": "cosine", "span": "start"}, {"start": "75%"}, 225, 0.0),
        ({"name": "cosine", "span": "start", "final_lr": 0.02}, {"start": "75%"}, 225, 0.02),
        ({"name": "cosine", "final_lr": 0.02}, {"start": "75%", "lr": 0.05}, 225, 0.02),
    ],
)
def test_where_a_decay_ends(
    schedule: Mapping[str, Any], swa: Mapping[str, Any] | None, end: int, final_lr: float
) -> None:
    """Span and final_lr against the documented defaults; after the span the rate stays."""
    decay = recipe(schedule, swa=swa)
    course = chart(decay, steps_per_epoch=SPE)
    assert (course.end, course.final_lr) == (end, final_lr)
    after = rates(decay)[end:]
    assert set(after) <= {(swa or {}).get("lr", final_lr)}


def test_multistep_is_torch() -> None:
    """Multistep against torch's MultiStepLR, with drops out of order and one given twice."""
    ours = rates(recipe({"name": "multistep", "milestones": ["20ep", "50%", "150step"], "gamma": 0.3, "warmup": "0ep"}))
    theirs = torch_rates(300, lambda opt: lr_scheduler.MultiStepLR(opt, [200, 150, 150], gamma=0.3))
    assert ours == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize(("peak", "pct_start"), [(None, 0.3), ("45%", 0.45), ("1ep", 1 / 30), ("1step", None)])
def test_one_cycle_is_torch(peak: str | None, pct_start: float | None) -> None:
    """One cycle against torch's OneCycleLR; a peak at the first step, where torch fails, is max_lr."""
    schedule = {"name": "one_cycle", "max_lr": 0.5} | ({"pct_start": peak} if peak else {})
    ours = rates(recipe(schedule))
    if pct_start is None:
        assert ours[0] == 0.5
        assert ours[-1] == pytest.approx(1e-5)
        return
    theirs = torch_rates(
        300, lambda opt: lr_scheduler.OneCycleLR(opt, 0.5, 300, pct_start=pct_start, div_factor=5.0), lr=0.1
    )
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_one_cycle_up_to_swa_start() -> None:
    """One cycle with swa.lr against torch's OneCycleLR over the steps before swa.start."""
    ours = rates(recipe({"name": "one_cycle", "max_lr": 0.5}, swa={"start": "200step", "lr": 0.03}))
    theirs = torch_rates(200, lambda opt: lr_scheduler.OneCycleLR(opt, 0.5, 200, div_factor=5.0))
    assert ours[:200] == pytest.approx(theirs, rel=1e-9)
    assert set(ours[200:]) == {0.03}


# Cycles.


@pytest.mark.parametrize(("epochs", "cycles", "cycle"), [(30, 5, "6ep"), (30, 4, "75step"), (30, 8, "12.5%")])
def test_cosine_restarts_are_snapshot_ensembles(epochs: int, cycles: int, cycle: str) -> None:
    """cosine_restarts against Huang et al. 2017: lr/2 (1 + cos(pi (t mod ceil(T/M)) / ceil(T/M))).

    Where M does not divide T, that formula ends off the minimum. Ours puts the k-th minimum at ceil(k T/M), so the
    last snapshot lies at one; inside each cycle it is the same cosine.
    """
    restarts = recipe({"name": "cosine_restarts", "T_0": cycle}, epochs=epochs)
    total, length = epochs * SPE, math.ceil(epochs * SPE / cycles)
    ends = [math.ceil(Fraction(k * total, cycles)) for k in range(cycles + 1)]
    assert total % cycles or ends == list(range(0, total + 1, length))  # where M divides T: the formula itself
    expected = [
        0.05 * (1 + math.cos(math.pi * (t - first) / (end - first)))
        for first, end in pairwise(ends)
        for t in range(first, end)
    ]
    assert rates(restarts) == pytest.approx(expected, abs=1e-12)
    lows = chart(restarts, steps_per_epoch=SPE).minima
    assert (lows[0], lows[-1], len(lows)) == (length, total, cycles)


@pytest.mark.parametrize(("epochs", "cycles"), [(30, 7), (20, 6), (31, 4)])
def test_cycles_of_the_rounded_length_are_the_published_formula(epochs: int, cycles: int) -> None:
    """`cycle` of ceil(T/M) steps against lr/2 (1 + cos(pi (t mod ceil(T/M)) / ceil(T/M))), T not divisible by M."""
    total, length = epochs * SPE, math.ceil(epochs * SPE / cycles)
    assert total % cycles
    restarts = recipe({"name": "cosine_restarts", "T_0": f"{length}step"}, epochs=epochs)
    expected = [0.05 * (1 + math.cos(math.pi * (t % length) / length)) for t in range(total)]
    assert rates(restarts) == pytest.approx(expected, abs=1e-12)
    assert chart(restarts, steps_per_epoch=SPE).minima == tuple(range(length, total + 1, length))


def test_snapshot_ensemble_rates_in_six_digits() -> None:
    """T = 300, M = 7, lr .1 against the formula by hand: cycles of 43 steps, which restart at 43 and 86."""
    golden = {0: 0.1, 1: 0.099867, 10: 0.087239, 21: 0.051826, 42: 0.000133, 43: 0.1, 64: 0.051826, 85: 0.000133}
    golden |= {86: 0.1, 299: 0.000533}
    ours = rates(recipe({"name": "cosine_restarts", "T_0": "43step"}))
    assert {step: round(ours[step], 6) for step in golden} == golden


def test_cosine_restarts_are_sgdr() -> None:
    """cosine_restarts with cycle_mult against torch's CosineAnnealingWarmRestarts, minima included."""
    restarts = recipe({"name": "cosine_restarts", "T_0": "2ep", "T_mult": 2, "final_lr": 0.004})
    theirs = torch_rates(300, lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 20, 2, eta_min=0.004))
    assert rates(restarts) == pytest.approx(theirs, rel=1e-9)
    assert chart(restarts, steps_per_epoch=SPE).minima == (20, 60, 140, 300)


def test_cycles_that_grow_by_a_fraction() -> None:
    """cycle_mult 1.1 against exact sums by hand: 100, 210, 331 steps, which binary floats would miss."""
    restarts = recipe({"name": "cosine_restarts", "T_0": "100step", "T_mult": 1.1}, epochs=40)
    assert chart(restarts, steps_per_epoch=SPE).minima == (100, 210, 331)


MODES = [("triangular", None), ("triangular2", None), ("exp_range", 0.99)]


@pytest.mark.parametrize(("mode", "gamma"), MODES)
@pytest.mark.parametrize(("up", "down"), [(20, 20), (7, 31), (1, 4)])
def test_cyclic_is_torch(mode: Any, gamma: float | None, up: int, down: int) -> None:
    """Cyclic against torch's CyclicLR; its minima are whole cycles."""
    schedule = {"name": "cyclic", "base_lr": 0.01, "max_lr": 0.2, "mode": mode, "gamma": gamma}
    cycles = recipe(schedule | {"step_size_up": f"{up}step", "step_size_down": f"{down}step"})
    theirs = torch_rates(
        300,
        lambda opt: lr_scheduler.CyclicLR(
            opt, 0.01, 0.2, up, down, mode=mode, gamma=gamma or 1.0, cycle_momentum=False
        ),
    )
    assert rates(cycles) == pytest.approx(theirs, rel=1e-7)
    assert chart(cycles, steps_per_epoch=SPE).minima == tuple(range(up + down, 301, up + down))


def test_fge_rates_in_six_digits() -> None:
    """FGE of c = 4 epochs, a1 .05, a2 1e-4: the published table, and collection at t = .5 of each cycle."""
    fge = recipe({"name": "cyclic", "base_lr": 1e-4, "max_lr": 0.05, "step_size_up": "2ep", "begin": "max"}, epochs=10)
    golden = {0: 0.05, 0.5: 0.037525, 1: 0.02505, 1.5: 0.012575, 2: 0.0001, 3: 0.02505, 4: 0.05, 6: 0.0001}
    ours = rates(fge)
    assert {epoch: round(ours[int(epoch * SPE)], 6) for epoch in golden} == golden
    kept = fge.model_copy(update={"snapshots": Snapshots.model_validate({"every": "1cycle"})})
    assert make_plan(kept, num_train=SPE * 128).snapshots == (20, 60, 100)


def test_cyclic_lr_in_six_digits() -> None:
    """Smith's cycles of up 2000, down 2000 steps between .001 and .006, and its two other modes, by hand."""
    points = (0, 500, 2000, 3000, 4000, 5000, 6000, 8000, 10000)
    table = {
        ("triangular", None): (0.001, 0.00225, 0.006, 0.0035, 0.001, 0.0035, 0.006, 0.001, 0.006),
        ("triangular2", None): (0.001, 0.00225, 0.006, 0.0035, 0.001, 0.00225, 0.0035, 0.001, 0.00225),
        ("exp_range", 0.9999): (0.001, 0.002189, 0.005094, 0.002852, 0.001, 0.002516, 0.003744, 0.001, 0.002839),
    }
    for (mode, gamma), expected in table.items():
        schedule = {
            "name": "cyclic",
            "base_lr": 0.001,
            "max_lr": 0.006,
            "step_size_up": "2000step",
            "mode": mode,
            "gamma": gamma,
        }
        ours = rates(recipe(schedule, epochs=12), spe=1000)
        assert [round(ours[step], 6) for step in points] == list(expected)
        assert chart(recipe(schedule, epochs=12), steps_per_epoch=1000).minima == (4000, 8000, 12000)


def test_cyclic_from_the_peak_is_fge() -> None:
    """Cyclic with begin max against the golden values of FGE, and against its formula at every step."""
    fge = recipe({"name": "cyclic", "base_lr": 1e-4, "max_lr": 0.05, "step_size_up": "2ep", "begin": "max"}, epochs=12)
    spe = 100
    ours = rates(fge, spe=spe)
    golden = {0: 0.05, 0.5: 0.03753, 1: 0.02505, 1.5: 0.01258, 2: 0.0001, 3: 0.02505, 4: 0.05}
    for epoch, expected in golden.items():
        assert ours[int(epoch * spe)] == pytest.approx(expected, abs=5e-6)
    a1, a2 = 0.05, 1e-4
    for step, rate in enumerate(ours):
        t = step / spe % 4 / 4
        form = a1 * (1 - 2 * t) + a2 * 2 * t if t < 0.5 else a1 * (2 * t - 1) + a2 * (2 - 2 * t)
        assert rate == pytest.approx(form, abs=1e-12)
    assert chart(fge, steps_per_epoch=spe).minima == (200, 600, 1000)


def test_cycles_from_the_peak_count_from_minimum_to_minimum() -> None:
    """triangular2 from the peak against heights by hand: 1, 1/2, 1/4 at the peaks behind each minimum."""
    schedule = {"name": "cyclic", "base_lr": 0.0, "step_size_up": "1ep", "begin": "max", "mode": "triangular2"}
    ours = rates(recipe(schedule, epochs=5))
    assert [ours[step] for step in (0, 20, 40)] == pytest.approx([0.1, 0.05, 0.025])
    assert [ours[step] for step in (10, 30)] == [0, 0]


def test_fractional_cycles_do_not_drift() -> None:
    """Turning points of up 2.5 and down 1.25 steps against the ceiling of exact sums."""
    cycles = recipe({"name": "cyclic", "base_lr": 0.0, "step_size_up": "0.25ep", "step_size_down": "0.125ep"})
    assert chart(cycles, steps_per_epoch=SPE).minima == tuple(math.ceil(3.75 * k) for k in range(1, 81))
    assert max(rates(cycles)) == pytest.approx(0.1)


def test_cycles_begin_after_the_warmup() -> None:
    """Cycles behind 10 steps of warmup against the same without, moved by 10; warmup rises to their start."""
    cases: list[tuple[dict[str, Any], float]] = [
        ({"name": "cyclic", "base_lr": 0.01, "step_size_up": "3ep"}, 0.01),
        ({"name": "cosine_restarts", "T_0": "5ep"}, 0.1),
    ]
    for schedule, first in cases:
        plain, warm = recipe(schedule), recipe(schedule | {"warmup": "1ep"})
        assert rates(warm)[10:] == pytest.approx(rates(plain)[:-10])
        assert rates(warm)[:10] == pytest.approx([first * (step + 1) / 10 for step in range(10)])
        moved = [low + 10 for low in chart(plain, steps_per_epoch=SPE).minima if low + 10 <= 300]
        assert chart(warm, steps_per_epoch=SPE).minima == tuple(moved)


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "swa_paper"])
def test_other_schedules_have_no_minima(name: str) -> None:
    """Minima of a schedule without cycles against none."""
    assert chart(recipe({"name": name}), steps_per_epoch=SPE).minima == ()


# The constant rate of swa.lr and the bridge to it.

EVERY_SHAPE: list[dict[str, Any]] = [
    {"name": "constant"},
    {"name": "cosine"},
    {"name": "linear", "span": "run"},
    {"name": "cosine_restarts", "T_0": "7ep"},
    {"name": "cyclic", "base_lr": 0.01, "step_size_up": "2ep"},
    {"name": "multistep", "milestones": ["10ep", "25ep"]},
    {"name": "one_cycle", "max_lr": 0.4},
    {"name": "swa_paper"},
]


@pytest.mark.parametrize("schedule", EVERY_SHAPE, ids=lambda schedule: schedule["name"])
@pytest.mark.parametrize("anneal_shape", ["linear", "cosine"])
def test_anneal_ends_with_swa_lr_before_the_start(schedule: Mapping[str, Any], anneal_shape: str) -> None:
    """The bridge against its closed form, f = (s - (start - A) + 1) / A: update start - 1 has swa.lr."""
    swa = {"start": "22.5ep", "lr": 0.03}
    plain = rates(recipe(schedule, swa=swa))
    ours = rates(recipe(schedule, swa=swa | {"anneal": "5ep", "anneal_shape": anneal_shape}))
    begin, start = 175, 225
    assert ours[:begin] == plain[:begin]
    assert ours[start - 1 :] == [0.03] * 76
    for step in range(begin, start):
        f = (step - begin + 1) / 50
        f = (1 - math.cos(math.pi * f)) / 2 if anneal_shape == "cosine" else f
        assert ours[step] == pytest.approx(plain[begin] * (1 - f) + 0.03 * f, abs=1e-12)


def test_swa_lr_from_a_minimum_on() -> None:
    """swa.start in cycles against the step of the second minimum."""
    swa = {"start": "2cycle", "lr": 0.03}
    ours = rates(recipe({"name": "cosine_restarts", "T_0": "7ep"}, swa=swa))
    assert ours[139] < 0.001
    assert set(ours[140:]) == {0.03}


IN_PERCENT: list[dict[str, Any]] = [
    {"name": "constant", "warmup": "15%"},
    {"name": "cosine", "warmup": "40%"},
    {"name": "wsd"},  # its decay is 20% where the recipe leaves it out
    {"name": "wsd", "decay": "35%", "warmup": "5%"},
    {"name": "sqrt", "hold": "25%"},
    {"name": "cosine_restarts", "T_0": "7.5%"},
    {"name": "cyclic", "base_lr": 0.01, "step_size_up": "5%", "step_size_down": "3step"},
    {"name": "multistep", "milestones": ["20%", "10ep", "45%"]},
    {"name": "one_cycle", "max_lr": 0.4, "pct_start": "45%"},
]


@pytest.mark.parametrize("schedule", IN_PERCENT, ids=lambda schedule: schedule["name"])
def test_more_epochs_leave_a_schedule_that_is_over(schedule: Mapping[str, Any]) -> None:
    """The rates of every step before and after, for lengths in % of a run that has reached swa.lr."""
    swa = {"start": "50%", "lr": 0.03, "anneal": "5%"} | ({"anneal": "0ep"} if schedule["name"] == "wsd" else {})
    before = recipe(schedule, epochs=20, swa=swa)
    values, notes = with_more_epochs(before, 50, num_train=128 * SPE, step=20 * SPE)
    after = rates(Recipe.model_validate(values))
    assert after == [*rates(before), *[0.03] * 30 * SPE]
    assert not any("moves" in note for note in notes)
    assert all(note in " ".join(notes) for note in ("swa.start stays at 10ep", "schedule."))


def test_more_epochs_move_a_schedule_that_goes_on() -> None:
    """A run that has not reached swa.lr: lengths in % stay in %, and the sentence that the past had other rates."""
    before = recipe({"name": "cosine", "warmup": "10%"}, epochs=20, swa={"start": "50%", "lr": 0.03})
    values, notes = with_more_epochs(before, 40, num_train=128 * SPE, step=5 * SPE)
    assert (values["schedule"]["warmup"], values["swa"]["start"]) == ("10%", "50%")
    assert any("the schedule spans the run and moves" in note for note in notes)


# What is refused.


@pytest.mark.parametrize(
    ("schedule", "swa", "key", "words"),
    [
        ({"name": "cosine", "warmup": "30ep"}, None, "schedule.warmup", "30ep is too long"),
        ({"name": "cosine", "warmup": "20ep"}, {"start": "20ep", "lr": 0.1}, "schedule.warmup", "epoch 20"),
        (
            {"name": "cosine", "warmup": "8ep"},
            {"start": "10ep", "lr": 0.1, "anneal": "2ep"},
            "schedule.warmup",
            "8",
        ),
        ({"name": "multistep", "milestones": ["2ep"], "warmup": "2ep"}, None, "schedule.warmup", "epoch 2"),
        ({"name": "cosine", "warmup": "1cycle"}, None, "schedule.warmup", "1cycle"),
        ({"name": "cosine_restarts", "T_0": "1cycle"}, None, "schedule.T_0", "no fixed length"),
        ({"name": "cosine_restarts", "T_0": "0ep"}, None, "schedule.T_0", "shorter than one step"),
        (
            {"name": "cyclic", "base_lr": 0.01, "step_size_up": "0.05ep"},
            None,
            "schedule.step_size_up",
            "shorter than one step",
        ),
        (
            {"name": "cyclic", "base_lr": 0.01, "step_size_up": "1ep", "step_size_down": "0step"},
            None,
            "schedule.step_size_down",
            "0step",
        ),
        ({"name": "cyclic", "base_lr": 0.2, "step_size_up": "1ep"}, None, "schedule.base_lr", "0.2 is above the peak"),
        (
            {"name": "cyclic", "base_lr": 0.01, "step_size_up": "1ep", "mode": "exp_range"},
            None,
            "schedule.mode",
            "exp_range needs gamma",
        ),
        (
            {"name": "cyclic", "base_lr": 0.01, "step_size_up": "1ep", "gamma": 0.9},
            None,
            "schedule.gamma",
            "only exp_range",
        ),
        ({"name": "multistep", "milestones": ["10ep", "2cycle"]}, None, "schedule.milestones", "2cycle"),
        ({"name": "wsd", "decay": "31ep"}, None, "schedule.decay", "31ep is longer than the run up to the end"),
        ({"name": "wsd", "decay": "60%"}, {"start": "50%", "lr": 0.1}, "schedule.decay", "of the decay, epoch 15"),
        ({"name": "wsd", "decay": "0.04ep"}, None, "schedule.decay", "shorter than one step"),
        ({"name": "wsd", "decay": "1cycle"}, None, "schedule.decay", "no fixed length"),
        ({"name": "wsd", "decay": "20ep", "warmup": "10ep"}, None, "schedule.warmup", "before epoch 10"),
        (
            {"name": "sqrt", "hold": "1ep", "warmup": "2ep"},
            None,
            "schedule.hold",
            "1ep is before the end of the warmup",
        ),
        ({"name": "sqrt", "hold": "0ep", "warmup": "0ep"}, None, "schedule.hold", "0ep is before the first step"),
        ({"name": "one_cycle", "max_lr": 0.05}, None, "schedule.max_lr", "0.05 is below optimizer.lr, 0.1"),
        ({"name": "one_cycle", "max_lr": 0.2, "pct_start": "100%"}, None, "schedule.pct_start", "100% is not before"),
        (
            {"name": "one_cycle", "max_lr": 0.2, "pct_start": "60%"},
            {"start": "50%", "lr": 0.1},
            "schedule.pct_start",
            "epoch 15",
        ),
        ({"name": "cosine", "span": "start"}, None, "schedule.span", "needs the section swa"),
        ({"name": "cosine"}, {"lr": 0.1, "start": "5ep", "anneal": "6ep"}, "swa.anneal", "6ep is longer"),
        ({"name": "cosine"}, {"lr": 0.1, "anneal": "1cycle"}, "swa.anneal", "1cycle"),
        ({"name": "cosine"}, {"anneal": "1ep"}, "swa.anneal", "swa.lr, which is not given"),
    ],
)
def test_problems(schedule: Mapping[str, Any], swa: Mapping[str, Any] | None, key: str, words: str) -> None:
    """Each mistake in the rate against exactly one problem with its key, its value and an action."""
    problems = schedule_problems(recipe(schedule, swa=swa), steps_per_epoch=SPE)
    assert [problem.key for problem in problems] == [key]
    assert words in problems[0].message
    assert problems[0].hint
    assert problems[0].place is None


def test_the_actions_of_problems_work() -> None:
    """The value that a hint names against the check that refused the old one."""
    cases: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
        ({"name": "cosine", "warmup": "30ep"}, None),
        ({"name": "one_cycle", "max_lr": 0.2, "pct_start": "60%"}, {"start": "50%", "lr": 0.1}),
        ({"name": "cosine"}, {"lr": 0.1, "start": "5ep", "anneal": "6ep"}),
        ({"name": "wsd", "decay": "31ep"}, None),
        ({"name": "wsd", "decay": "0step"}, None),
    ]
    for schedule, swa in cases:
        (problem,) = schedule_problems(recipe(schedule, swa=swa), steps_per_epoch=SPE)
        section, key = problem.key.split(".")
        value = problem.hint.split()[-1]
        mended = {"schedule": dict(schedule), "swa": dict(swa or {})}
        mended[section][key] = value
        again = recipe(mended["schedule"], swa=mended["swa"] if swa else None)
        assert schedule_problems(again, steps_per_epoch=SPE) == []


# Whatever the recipe.

_lengths = st.one_of(
    st.integers(0, 40).map(lambda n: f"{n}step"),
    st.integers(0, 800).map(lambda n: f"{n / 100:g}ep"),
    st.integers(0, 1000).map(lambda n: f"{n / 10:g}%"),
)
_rate = st.floats(0, 1).map(lambda x: round(x, 4))
_warm = {"warmup": st.none() | _lengths}
_span = {"span": st.none() | st.sampled_from(["auto", "run", "start"])}
_schedules = st.one_of(
    st.fixed_dictionaries({"name": st.just("constant")} | _warm),
    st.fixed_dictionaries(
        {"name": st.sampled_from(["cosine", "linear"]), "final_lr": st.none() | _rate} | _warm | _span
    ),
    st.fixed_dictionaries(
        {"name": st.just("wsd"), "decay": _lengths, "final_lr": st.none() | _rate} | _warm | _span,
        optional={"shape": st.sampled_from(["linear", "cosine", "1-sqrt"])},
    ),
    st.fixed_dictionaries({"name": st.just("sqrt"), "hold": st.none() | _lengths} | _warm),
    st.fixed_dictionaries(
        {"name": st.just("cosine_restarts"), "T_0": _lengths, "final_lr": st.none() | _rate} | _warm,
        optional={"T_mult": st.sampled_from([1, 1.1, 1.5, 2])},
    ),
    st.fixed_dictionaries(
        {"name": st.just("cyclic"), "base_lr": _rate, "max_lr": st.none() | _rate, "step_size_up": _lengths} | _warm,
        optional={
            "step_size_down": _lengths,
            "begin": st.sampled_from(["base", "max"]),
            "mode": st.sampled_from(["triangular", "triangular2"]),
        },
    ),
    st.fixed_dictionaries(
        {"name": st.just("multistep"), "milestones": st.lists(_lengths), "gamma": st.floats(0.01, 1)} | _warm
    ),
    st.fixed_dictionaries({"name": st.just("one_cycle"), "max_lr": _rate, "pct_start": st.none() | _lengths} | _span),
    st.just({"name": "swa_paper"}),
)
_swa = st.none() | st.fixed_dictionaries(
    {
        "start": _lengths,
        "lr": st.none() | _rate,
        "anneal": st.just("0ep") | _lengths,
        "anneal_shape": st.sampled_from(["linear", "cosine"]),
    }
)


@settings(max_examples=300)
@given(schedule=_schedules, swa=_swa, epochs=st.integers(1, 8), spe=st.integers(1, 13), lr=_rate)
def test_rates_are_finite_and_within_the_rates_of_the_recipe(
    schedule: dict[str, Any], swa: dict[str, Any] | None, epochs: int, spe: int, lr: float
) -> None:
    """Every rate of any accepted recipe against 0 and the largest rate it names; minima within the run."""
    drawn = recipe(schedule, epochs=epochs, lr=lr, swa=swa)
    assume(not schedule_problems(drawn, steps_per_epoch=spe))
    # The plan refuses a start that is not before the end; without averaging it stands for the end.
    assume(swa is None or chart(drawn, steps_per_epoch=spe).start < epochs * spe)
    named = [schedule.get(key) for key in ("final_lr", "base_lr", "max_lr")] + [(swa or {}).get("lr"), lr]
    largest = max(rate for rate in named if rate is not None)
    for rate in rates(drawn, spe=spe):
        assert math.isfinite(rate)
        assert 0 <= rate <= largest * (1 + 1e-12)
    lows = chart(drawn, steps_per_epoch=spe).minima
    assert all(0 < low <= epochs * spe for low in lows)
    assert all(left < right for left, right in pairwise(lows))
