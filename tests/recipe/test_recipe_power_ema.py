"""Power-function EMAs (Karras et al. 2024) from their recipe, against the closed forms that define them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swa_cli.averaging.average import WeightAverage
from swa_cli.recipe.kinds import AveragePlan, power_exponent, power_share
from swa_cli.recipe.plan import make_plan
from swa_cli.recipe.schema import Recipe


def planned(epochs: int = 12, **keys: Any) -> AveragePlan:
    """The average of a run with 100 steps per epoch."""
    values = {"model": {"name": "convnet"}, "dataset": {"name": "digits"}, "optimizer": {"lr": 0.1}}
    values |= {"train": {"epochs": epochs, "batch_size": 10}, "averages": {"own": {"kind": "power_ema", **keys}}}
    (average,) = make_plan(Recipe.model_validate(values), num_train=1000).averages
    return average


def weights_of(steps: Sequence[int], *, every: int, exponent: float) -> Tensor:
    """The profile g tau^g over the interval before each step, in steps since one interval before the first of them."""
    ends = torch.tensor(steps, dtype=torch.float64) - (steps[0] - every)
    ends, begins = ends / ends[-1], (ends - every) / ends[-1]
    return ends ** (exponent + 1) - begins ** (exponent + 1)


@pytest.mark.parametrize("size", [{}, {"width": 0.25}, {"half_life": "10%"}], ids=str)
@pytest.mark.parametrize(
    ("start", "every", "steps"),
    [
        ("0ep", "1step", 1),
        ("0ep", "16step", 16),
        ("25%", "16step", 16),
        ("304step", "16step", 16),
        ("3ep", "0.1ep", 10),
    ],
)
def test_average_is_the_closed_form(size: dict[str, str | float], start: str, every: str, steps: int) -> None:
    """Averages along a random walk against the integral of the profile, in float64, at any interval and start."""
    plan = planned(start=start, every=every, **size)
    model = nn.Linear(3, 2, dtype=torch.float64)
    average, history = WeightAverage(model, **plan.arguments), []
    generator = torch.Generator().manual_seed(0)
    for step in plan.steps:
        with torch.no_grad():
            model.weight += torch.randn(2, 3, generator=generator, dtype=torch.float64)
        average.update(model, step=step)
        history.append(model.weight.detach().clone())
        if len(history) in (1, 2, 7, 33, plan.count):
            taken = plan.steps[: len(history)]
            weights = weights_of(taken, every=steps, exponent=plan.settings["exponent"])
            exact = torch.tensordot(weights, torch.stack(history), dims=1)
            torch.testing.assert_close(average.averaged_state()["weight"], exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("width", [1e-4, 0.02, 0.05, 0.1, 0.2, 0.28])
def test_width_is_the_standard_deviation_of_the_profile(width: float) -> None:
    """The exponent of a width against both forms of EDM2, and against the spread of the weights themselves."""
    g = power_exponent(width)
    assert math.sqrt((g + 1) / ((g + 2) ** 2 * (g + 3))) == pytest.approx(width, rel=1e-14)
    assert (g**3 + 7 * g**2 + 16 * g + 12) * width**2 == pytest.approx(g + 1, rel=1e-13)
    times = (torch.arange(1, 200_001, dtype=torch.float64) - 0.5) / 200_000
    weights = weights_of(range(1, 200_001), every=1, exponent=g)
    mean = float(weights @ times)
    assert math.sqrt(float(weights @ (times - mean) ** 2)) == pytest.approx(width, rel=1e-3)


@pytest.mark.parametrize(("half_life", "share"), [("10%", 0.1), ("0.5%", 0.005), ("50%", 0.5), ("90%", 0.9)])
def test_half_life_is_a_share_of_the_elapsed_run(half_life: str, share: float) -> None:
    """The density of the profile at this share before the present against the newest, early and late in the run."""
    exponent = planned(half_life=half_life).settings["exponent"]
    assert (1 - share) ** exponent == pytest.approx(0.5, rel=1e-12)
    for num in (10_000, 1_000_000):
        weights = weights_of(range(1, num + 1), every=1, exponent=exponent)
        assert float(weights[round(num * (1 - share)) - 1] / weights[-1]) == pytest.approx(0.5, rel=0.02)


def test_longer_runs_have_the_same_shares() -> None:
    """A power EMA of 12 epochs against one of 40: a half-life in % is of the elapsed run, not of the whole."""
    short, long = planned(12, half_life="10%"), planned(40, half_life="10%")
    assert short.settings == long.settings
    assert power_share(1, exponent=5.0) == 1
    assert power_share(2, exponent=1.0) == pytest.approx(0.75, rel=1e-15)
