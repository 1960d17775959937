"""Means, spreads and intervals over seeds against textbook numbers, the standard library and scipy."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from swa_cli.analysis.compare import Result, interval, over_pairs, over_seeds, read_result, spread
from swa_cli.errors import UserError
from swa_cli.metrics.metric import TaskMetrics

# t(0.975; n-1) of the printed tables: by the number of values n.
TABLE = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 10: 2.262, 30: 2.045}
REST = {"split": "test", "samples": 10, "seconds": 1.0, "device": "cpu", "precision": "fp32"}
fractions = st.lists(st.floats(-10, 10), min_size=2, max_size=12)


def result(*, reference: str = "last", **weights: tuple[float | None, float | None]) -> Result:
    """A seed's scores from accuracy and NLL of each weight set; all but the raw weights are judged."""
    values = {
        name: {"accuracy": accuracy, "nll": nll, "ece": 0.1, "top5": None, "brier": 0.2}
        | ({} if name in ("last", "last_bn") else {"reference": reference})
        for name, (accuracy, nll) in weights.items()
    }
    return Result.model_validate({"weights": values, "reference": reference, **REST})


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


# The reference.


def test_each_seed_is_compared_with_its_own_reference() -> None:
    """Seeds whose references differ: differences by hand, under a word for both; one name where they agree."""
    seeds = {
        0: result(reference="last", last=(0.80, 0.50), last_bn=(0.70, 0.60), swa=(0.90, 0.40)),
        1: result(reference="last_bn", last=(0.60, 0.90), last_bn=(0.81, 0.45), swa=(0.83, 0.42)),
        2: result(reference="last_bn", last=(0.50, 0.80), last_bn=(0.80, 0.44), swa=(0.79, 0.47)),
    }
    found = over_seeds(seeds)
    assert found["swa"]["accuracy_diff"]["values"] == pytest.approx([0.10, 0.02, -0.01])
    assert found["swa"]["nll_diff"]["values"] == pytest.approx([-0.10, -0.03, 0.03])
    expected = stats.ttest_rel([0.90, 0.83, 0.79], [0.80, 0.81, 0.80]).confidence_interval(0.95)
    assert found["swa"]["accuracy_diff"]["low"] == pytest.approx(expected.low)
    assert found["swa"]["accuracy_diff"]["high"] == pytest.approx(expected.high)
    assert found["swa"]["reference"] not in seeds[0].weights
    assert found["swa"]["reference"]
    for raw in ("last", "last_bn"):
        assert found[raw]["n"] == 3
        assert found[raw]["accuracy_diff"] is found[raw]["nll_diff"] is found[raw]["reference"] is None
    assert over_seeds({seed: seeds[seed] for seed in (1, 2)})["swa"]["reference"] == "last_bn"
    assert over_seeds({0: seeds[0]})["swa"]["reference"] == "last"


@pytest.mark.parametrize("unjudged", [[0], [1], [0, 1, 2]])
def test_a_seed_without_verdict_leaves_none_over_the_seeds(unjudged: list[int]) -> None:
    """An average of one weight set in some seeds: its scores by hand, the reason, and no differences."""
    reason = "swa holds 1 weight set: nothing was averaged"
    seeds = {seed: result(last=(0.8, 0.5), swa=(0.9, 0.4 + seed / 10)) for seed in range(3)}
    for seed in unjudged:
        row = seeds[seed].weights["swa"]
        del row["reference"]
        row["no_verdict"] = reason
    found = over_seeds(seeds)
    assert found["swa"]["no_verdict"] == reason
    assert found["swa"]["accuracy_diff"] is found["swa"]["nll_diff"] is found["swa"]["reference"] is None
    assert found["swa"]["nll"]["mean"] == pytest.approx(0.5)
    assert "no_verdict" not in found["last"]


@pytest.mark.parametrize("reference", [None, "swa", 3])
def test_a_result_names_its_reference(tmp_path: Path, reference: object) -> None:
    """result.json without a reference, or with one that is none of its weights, against being refused there."""
    values: dict[str, object] = {"weights": {"last": {}}, **REST}
    file, unknown = tmp_path / "result.json", TaskMetrics((), loss_key="", training_key="")
    file.write_text(json.dumps(values | {"reference": "last"}))
    assert read_result(file, metrics=unknown)[1].reference == "last"
    file.write_text(json.dumps(values | ({} if reference is None else {"reference": reference})))
    with pytest.raises(UserError, match=r"is not as swa writes it \(reference: "):
        read_result(file, metrics=unknown)


def test_what_a_run_is_judged_by() -> None:
    """The outcome against the first average, judged or not, and without any against the reference."""
    averaged = result(reference="last_bn", last=(0.8, 0.5), last_bn=(0.8, 0.4), ema=(0.7, 0.6), swa=(0.9, 0.3))
    assert averaged.averages == ["ema", "swa"]
    assert averaged.outcome == "ema"
    for reference in ("last", "last_bn"):
        raw = result(reference=reference, last=(0.8, 0.5), last_bn=(0.8, 0.4))
        assert raw.averages == []
        assert raw.outcome == reference
    row = averaged.weights["ema"]
    del row["reference"]
    row["no_verdict"] = "ema holds 1 weight set: nothing was averaged"
    assert averaged.outcome == "ema"


# Two recipes.


def test_two_recipes_are_compared_seed_by_seed() -> None:
    """Three seeds of a recipe and of its baseline, whose references differ: by hand, and scipy's paired t test."""
    own = {
        0: result(last=(0.10, 9.0), swa=(0.90, 0.40), ema=(0.85, 0.41)),
        1: result(last=(0.20, 9.0), swa=(0.93, 0.35), ema=(0.86, 0.42)),
        2: result(last=(0.30, 9.0), swa=(0.92, 0.30), ema=(0.87, 0.43)),
    }
    others = {
        0: result(reference="last", last=(0.88, 0.44), last_bn=(0.50, 2.0)),
        1: result(reference="last_bn", last=(0.50, 2.0), last_bn=(0.90, 0.42)),
        2: result(reference="last_bn", last=(0.60, 3.0), last_bn=(0.87, 0.36)),
    }
    row, pairs = over_pairs(own, others)
    assert row["n"] == 3
    assert row["names"] == {"0": "last", "1": "last_bn", "2": "last_bn"}
    assert row["accuracy"]["values"] == [0.88, 0.90, 0.87]
    assert row["accuracy"]["sd"] == pytest.approx(statistics.stdev([0.88, 0.90, 0.87]))
    assert row["nll"]["mean"] == pytest.approx((0.44 + 0.42 + 0.36) / 3)
    assert row["ece"]["mean"] == pytest.approx(0.1)
    assert list(pairs) == ["swa", "ema"]
    assert pairs["swa"]["accuracy"]["values"] == pytest.approx([0.02, 0.03, 0.05])
    assert pairs["swa"]["nll"]["values"] == pytest.approx([-0.04, -0.07, -0.06])
    assert pairs["ema"]["accuracy"]["values"] == pytest.approx([-0.03, -0.04, 0.0])
    paired = {
        ("swa", "accuracy"): ([0.90, 0.93, 0.92], [0.88, 0.90, 0.87]),
        ("swa", "nll"): ([0.40, 0.35, 0.30], [0.44, 0.42, 0.36]),
        ("ema", "accuracy"): ([0.85, 0.86, 0.87], [0.88, 0.90, 0.87]),
        ("ema", "nll"): ([0.41, 0.42, 0.43], [0.44, 0.42, 0.36]),
    }
    for (name, key), (ours, theirs) in paired.items():
        expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        assert pairs[name][key]["low"] == pytest.approx(expected.low)
        assert pairs[name][key]["high"] == pytest.approx(expected.high)


def test_another_recipe_with_averages_counts_with_its_first() -> None:
    """A recipe whose runs have averages too: differences to the first of them, not to its raw weights, by hand."""
    own = {seed: result(last=(0.1, 9.0), swa=(0.90, 0.40 + seed / 10)) for seed in (0, 1)}
    others = {seed: result(last=(0.2, 8.0), ema=(0.80, 0.50), swa=(0.99, 0.01)) for seed in (0, 1)}
    row, pairs = over_pairs(own, others)
    assert row["names"] == {"0": "ema", "1": "ema"}
    assert row["accuracy"]["mean"] == pytest.approx(0.80)
    assert pairs["swa"]["accuracy"]["values"] == pytest.approx([0.1, 0.1])
    assert pairs["swa"]["nll"]["values"] == pytest.approx([-0.1, 0.0])


def test_a_recipe_without_averages_is_compared_by_its_raw_weights() -> None:
    """No averages on either side: a difference for each raw weight set, by hand."""
    own = {seed: result(last=(0.9, 0.4), last_bn=(0.7, 0.6)) for seed in (0, 1)}
    others = {seed: result(last=(0.8, 0.5)) for seed in (0, 1)}
    _, pairs = over_pairs(own, others)
    assert list(pairs) == ["last", "last_bn"]
    assert pairs["last"]["accuracy"]["mean"] == pytest.approx(0.1)
    assert pairs["last_bn"]["accuracy"]["mean"] == pytest.approx(-0.1)


def test_only_seeds_that_both_have_are_compared() -> None:
    """Seeds 0 to 2 against 1 to 3, and an average that seed 1 lacks: those of both, by hand."""
    own = {0: result(last=(0.1, 9.0), swa=(0.2, 8.0)), 1: result(last=(0.8, 0.5), ema=(0.7, 0.6))}
    own[2] = result(last=(0.8, 0.5), swa=(0.9, 0.4))
    others = {seed: result(last=(0.5 + seed / 10, 0.5)) for seed in (1, 2, 3)}
    row, pairs = over_pairs(own, others)
    assert row["n"] == 2
    assert row["accuracy"]["values"] == pytest.approx([0.6, 0.7])
    assert pairs["swa"]["accuracy"] == {"mean": pytest.approx(0.2), "low": None, "high": None, "values": [0.9 - 0.7]}
    assert pairs["ema"]["accuracy"]["values"] == pytest.approx([0.1])


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(-0.1, 0.1), st.booleans()), min_size=2, max_size=9))
def test_two_recipes_against_the_paired_t_test(pairs: list[tuple[float, float, bool]]) -> None:
    """Any seeds, whichever of the baseline's raw weights is the reference: scipy's interval of the paired t test."""
    theirs = [value for value, _, _ in pairs]
    ours = [value + gain for value, gain, _ in pairs]
    differences = [own - other for own, other in zip(ours, theirs, strict=True)]
    if statistics.stdev(differences) < 1e-6:
        return  # scipy's test has no answer for equal differences
    own = {seed: result(last=(0.3, 1.0), swa=(value, 1.0)) for seed, value in enumerate(ours)}
    others = {
        seed: result(
            reference="last_bn" if recomputed else "last",
            last=(0.5 if recomputed else value, 1.0),
            last_bn=(value if recomputed else 0.5, 1.0),
        )
        for seed, (value, _, recomputed) in enumerate(pairs)
    }
    _, found = over_pairs(own, others)
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found["swa"]["accuracy"]["low"] == pytest.approx(expected.low, rel=1e-6, abs=1e-9)
    assert found["swa"]["accuracy"]["high"] == pytest.approx(expected.high, rel=1e-6, abs=1e-9)


def test_a_score_that_is_not_finite_is_told_of_both_recipes() -> None:
    """A null in a seed of either recipe: the difference is no number, and no seed is left out."""
    own = {0: result(last=(0.8, 0.5), swa=(0.9, None)), 1: result(last=(0.8, 0.5), swa=(0.9, 0.4))}
    others = {seed: result(last=(0.8, 0.5)) for seed in (0, 1)}
    row, pairs = over_pairs(own, others)
    assert math.isnan(pairs["swa"]["nll"]["mean"])
    assert len(pairs["swa"]["nll"]["values"]) == 2
    row, pairs = over_pairs(dict.fromkeys((0, 1), own[1]), others | {0: result(last=(0.8, None))})
    assert math.isnan(row["nll"]["mean"])
    assert math.isnan(pairs["swa"]["nll"]["mean"])
    assert pairs["swa"]["accuracy"]["mean"] == pytest.approx(0.1)
