"""Means, spreads and intervals over seeds against textbook numbers, the standard library and scipy."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from swa_cli.after.spread import Result, interval, over_seeds, spread

# t(0.975; n-1) of the printed tables: by the number of values n.
TABLE = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 10: 2.262, 30: 2.045}
fractions = st.lists(st.floats(-10, 10), min_size=2, max_size=12)


def result(**weights: tuple[float | None, float | None]) -> Result:
    """A seed's scores from accuracy and NLL of each weight set."""
    values = {
        name: {"accuracy": accuracy, "nll": nll, "ece": 0.1, "top5": None, "brier": 0.2}
        for name, (accuracy, nll) in weights.items()
    }
    rest = {"split": "test", "samples": 10, "seconds": 1.0, "device": "cpu", "precision": "fp32"}
    return Result.model_validate({"weights": values, **rest})


@pytest.mark.parametrize("n", TABLE)
def test_interval_against_the_printed_table(n: int) -> None:
    """1 to n: mean (n+1)/2, variance n(n+1)/12 in closed form, quantile from the table of Student's t."""
    found = interval([float(value) for value in range(1, n + 1)])
    half = TABLE[n] * math.sqrt(n * (n + 1) / 12) / math.sqrt(n)
    assert found["mean"] == (n + 1) / 2
    assert found["low"] == pytest.approx((n + 1) / 2 - half, rel=1e-3)
    assert found["high"] == pytest.approx((n + 1) / 2 + half, rel=1e-3)


def test_interval_by_hand() -> None:
    """Differences 0.02, 0.04, 0.03: mean 0.03, sd 0.01, so 0.03 ± 4.30265 x 0.01 / sqrt(3) = 0.03 ± 0.024841."""
    found = interval([0.02, 0.04, 0.03])
    assert found["mean"] == pytest.approx(0.03, abs=1e-15)
    assert found["low"] == pytest.approx(0.005159, abs=1e-6)
    assert found["high"] == pytest.approx(0.054841, abs=1e-6)


@given(fractions)
def test_mean_and_deviation_against_the_standard_library(values: list[float]) -> None:
    """Any values: mean and sample standard deviation against `statistics`, which is exact."""
    found = spread(values)
    assert found["mean"] == pytest.approx(statistics.mean(values), rel=1e-12, abs=1e-12)
    assert found["sd"] == pytest.approx(statistics.stdev(values), rel=1e-9, abs=1e-12)
    assert found["values"] == values


@given(fractions)
def test_interval_against_scipy(values: list[float]) -> None:
    """Any values: the interval against scipy.stats.t around mean and standard error."""
    found = interval(values)
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = stats.t.ppf(0.975, len(values) - 1) * error
    assert found["high"] - found["mean"] == pytest.approx(half, rel=1e-6, abs=1e-9)
    assert found["mean"] - found["low"] == pytest.approx(half, rel=1e-6, abs=1e-9)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(-0.1, 0.1)), min_size=2, max_size=9))
def test_paired_difference_against_the_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    """Zero lies outside the interval exactly where scipy's paired t test has a p-value below 0.05."""
    last = [value for value, _ in pairs]
    swa = [value + gain for value, gain in pairs]
    differences = [own - other for own, other in zip(swa, last, strict=True)]
    if statistics.stdev(differences) < 1e-6:
        return  # scipy's test has no answer for equal differences
    seeds = {seed: result(last=(a, 1.0), swa=(b, 1.0)) for seed, (a, b) in enumerate(zip(last, swa, strict=True))}
    found = over_seeds(seeds)["swa"]["accuracy_diff"]
    p = stats.ttest_rel(swa, last).pvalue
    if abs(p - 0.05) > 1e-6:
        assert (found["low"] > 0 or found["high"] < 0) == (p < 0.05)


def test_single_value_has_no_spread() -> None:
    """One seed: its value is the mean, and there is neither a deviation nor an interval."""
    assert spread([0.5]) == {"mean": 0.5, "sd": None, "values": [0.5]}
    assert interval([0.5]) == {"mean": 0.5, "low": None, "high": None, "values": [0.5]}


def test_weights_that_a_seed_lacks_are_compared_over_the_others() -> None:
    """swa in seeds 0 and 2 of three: its own numbers and those of `last` in the same seeds alone, by hand."""
    seeds = {
        0: result(last=(0.8, 0.5), swa=(0.9, 0.4)),
        1: result(last=(0.1, 9.0)),
        2: result(last=(0.6, 0.7), swa=(0.8, 0.3)),
    }
    found = over_seeds(seeds)
    assert found["last"]["n"] == 3
    assert found["last"]["accuracy"]["mean"] == pytest.approx(0.5)
    assert found["last"]["accuracy_diff"] is None
    assert found["swa"]["n"] == 2
    assert found["swa"]["seeds"] == [0, 2]
    assert found["swa"]["accuracy"]["mean"] == pytest.approx(0.85)
    assert found["swa"]["accuracy_diff"]["values"] == pytest.approx([0.1, 0.2])
    assert found["swa"]["nll_diff"]["mean"] == pytest.approx(-0.25)


def test_scores_that_are_not_finite_stay_so() -> None:
    """A null in one seed: mean, deviation and difference are no numbers, and nothing is left out."""
    found = over_seeds({0: result(last=(0.8, None), swa=(0.9, 0.4)), 1: result(last=(0.8, 0.5), swa=(0.9, 0.4))})
    assert math.isnan(found["last"]["nll"]["mean"])
    assert math.isnan(found["swa"]["nll_diff"]["mean"])
    assert found["swa"]["nll"]["mean"] == pytest.approx(0.4)
