"""Verdicts at their thresholds: two paired standard errors, the last digit shown, and rows that get none."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from swa_cli.metrics.metric import CLASSIFICATION, REGRESSION, SEGMENTATION, Metric
from swa_cli.report.scores import difference, difference_text, score_table, score_with_error, standing, verdict
from swa_cli.report.terminal import Terminal

ACCURACY, NLL, MSE = CLASSIFICATION.primary, CLASSIFICATION.loss, REGRESSION.loss
COMPARED = [*CLASSIFICATION.compared, *SEGMENTATION.compared, *REGRESSION.compared]
UNCLEAR = "no clear difference"
RAW: dict[str, Any] = {
    "accuracy": 0.916,
    "accuracy_se": 0.0028,
    "top5": None,
    "nll": 0.233,
    "nll_se": 0.004,
    "ece": 0.021,
    "brier": 0.13,
    "count": None,
    "batchnorm": "running",
}
REASON = "swa holds 1 weight set: nothing was averaged"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of 80 cells, whatever terminal the tests run on."""
    monkeypatch.setenv("COLUMNS", "80")


def row_of(metric: Metric, value: float, *, diff: float, error: float) -> dict[str, Any]:
    """What a verdict reads of a weight set."""
    return {metric.key: value, f"{metric.key}_diff": diff, f"{metric.key}_diff_se": error}


def scores_of(*, reference: str = "last_bn", **differences: float) -> dict[str, dict[str, Any]]:
    """`last`, `last_bn` and an `swa` with these differences to its reference."""
    raw = {"last": RAW, "last_bn": RAW | {"batchnorm": "recomputed"}}
    gained = {"accuracy": 0.916 + differences["accuracy_diff"], "nll": 0.233 + differences["nll_diff"]}
    swa = raw["last_bn"] | gained | {"count": 40, "reference": reference} | differences
    return {**raw, "swa": swa}


def table_of(scores: dict[str, dict[str, Any]], *, width: int = 120) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    return [line.plain for line in score_table(scores)(console)]


# Two standard errors.


@pytest.mark.parametrize(
    ("errors", "expected"),
    [(2.01, "better"), (1.99, UNCLEAR), (0.0, UNCLEAR), (-1.99, UNCLEAR), (-2.01, "worse")],
)
@pytest.mark.parametrize("metric", COMPARED, ids=lambda metric: metric.key)
@pytest.mark.parametrize("error", [0.002, 0.05])
def test_two_standard_errors_make_a_difference(metric: Metric, error: float, errors: float, expected: str) -> None:
    """A gain of 2.01 standard errors is one and 1.99 are none, on both sides, against DESIGN's two errors."""
    downwards = metric.key in ("nll", "mse")
    diff = (-errors if downwards else errors) * error
    assert standing(row_of(metric, 0.8, diff=diff, error=error), metric) == expected


@pytest.mark.parametrize(
    ("accuracy", "nll", "conclusion"),
    [
        (2.01, 1.99, "averaging helped"),
        (1.99, 2.01, "averaging helped"),
        (1.99, 1.99, UNCLEAR),
        (-1.99, -1.99, UNCLEAR),
        (-2.01, -1.99, "averaging did not help"),
        (-1.99, -2.01, "averaging did not help"),
        (2.01, -1.99, "averaging helped"),
        (2.01, -2.01, "mixed result"),
        (-2.01, 2.01, "mixed result"),
    ],
)
def test_the_sentence_follows_two_standard_errors(accuracy: float, nll: float, conclusion: str) -> None:
    """Gains in standard errors of accuracy and NLL against the conclusion and the words that a person expects."""
    scores = scores_of(accuracy_diff=0.002 * accuracy, accuracy_diff_se=0.002, nll_diff=-0.01 * nll, nll_diff_se=0.01)
    (sentence,) = verdict(scores)
    assert sentence.startswith(f"swa vs last_bn: {conclusion} (accuracy ")
    gains = (accuracy, nll)
    assert sentence.count(", better") == sum(gain > 2 for gain in gains)
    assert sentence.count(", worse") == sum(gain < -2 for gain in gains)


def test_colours_follow_two_standard_errors() -> None:
    """The styles of the line of differences against green beyond two errors, red beyond minus two, none between."""
    console = Console(file=io.StringIO(), width=120, color_system=None)
    for accuracy, nll, expected in ((2.01, -2.01, {"green", "red"}), (1.99, -1.99, set()), (2.01, 1.99, {"green"})):
        scores = scores_of(
            accuracy_diff=0.002 * accuracy, accuracy_diff_se=0.002, nll_diff=-0.01 * nll, nll_diff_se=0.01
        )
        styles = {str(span.style) for line in score_table(scores)(console) for span in line.spans}
        assert styles & {"green", "red"} == expected


# What rounds to zero.


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("error", [0.0, 1e-12, 1e-6])
@pytest.mark.parametrize(
    ("metric", "value", "nothing", "something"),
    [(ACCURACY, 0.9, 0.49e-4, 0.51e-4), (NLL, 0.3, 0.49e-3, 0.51e-3), (NLL, 9.0, 0.49e-3, 0.51e-3)],
    ids=["accuracy", "nll", "large nll"],
)
def test_what_rounds_to_zero_is_no_difference(
    metric: Metric, value: float, nothing: float, something: float, error: float, sign: int
) -> None:
    """Differences on either side of half of the last digit shown, with tiny errors, against what is printed."""
    row = row_of(metric, value, diff=sign * nothing, error=error)
    assert set(difference(row, metric).split()[0]) <= set("+0.")
    assert standing(row, metric) == UNCLEAR
    row = row_of(metric, value, diff=sign * something, error=error)
    assert set(difference(row, metric).split()[0]) & set("123456789")
    gain = sign if metric is ACCURACY else -sign
    assert standing(row, metric) == ("better" if gain > 0 else "worse")


@given(
    st.sampled_from([(ACCURACY, 0.01), (NLL, 0.1), (MSE, 0.1), (REGRESSION.primary, 0.1)]),
    st.floats(0, 1),
    st.floats(-0.003, 0.003),
)
def test_no_zero_is_called_better_or_worse(case: tuple[Metric, float], position: float, diff: float) -> None:
    """Any difference without an error, of scores that are not tiny: no clear one where its printed digits are zeros."""
    metric, least = case
    value = least + position * (1 - least)
    row = row_of(metric, value, diff=diff, error=0.0)
    if not set(difference_text(metric, diff, scale=value)) & set("123456789"):
        assert standing(row, metric) == UNCLEAR
    else:
        assert standing(row, metric) == ("better" if (diff > 0) != metric.is_lower_better else "worse")


@pytest.mark.parametrize(
    ("diff", "error", "expected"),
    [
        (-1e-5, 1e-6, "better"),
        (1e-5, 1e-6, "worse"),
        (-1e-5, 0.51e-5, UNCLEAR),
        (-1e-5, 0.49e-5, "better"),
        (-0.4e-6, 1e-9, UNCLEAR),  # 0.4 % of the value
        (-0.6e-6, 1e-9, "better"),
    ],
)
def test_small_values_still_get_a_verdict(diff: float, error: float, expected: str) -> None:
    """An MSE of 1e-4, whose differences are shown, against two errors and half a percent of its value."""
    values = row_of(MSE, 1e-4, diff=diff, error=error) | row_of(REGRESSION.primary, 0.99, diff=0.0, error=0.001)
    assert standing(values, MSE) == expected
    assert bool(set(difference(values, MSE).split()[0]) & set("123456789")) == (abs(diff) >= 0.5e-6)
    (sentence,) = verdict({"last": {}, "swa": values | {"reference": "last"}}, metrics=REGRESSION)
    assert sentence.count("better") == (expected == "better")
    assert sentence.count("worse") == (expected == "worse")


@pytest.mark.parametrize(
    ("width", "headings"),
    [
        (45, ["weights", "accuracy %", "NLL", "ECE"]),
        (50, ["weights", "accuracy %", "NLL", "ECE", "n"]),
        (62, ["weights", "accuracy %", "NLL", "ECE", "n", "BatchNorm"]),
        (71, ["weights", "accuracy %", "top-5 %", "NLL", "ECE", "n", "BatchNorm"]),
        (78, ["weights", "accuracy %", "top-5 %", "NLL", "ECE", "Brier", "n", "BatchNorm"]),
    ],
)
def test_a_narrow_page_keeps_the_headline_metrics(width: int, headings: list[str]) -> None:
    """The headings on pages of several widths against the order in which columns give way."""
    head, _ = table_of({"last": RAW | {"top5": 0.99}}, width=width)
    assert re.findall(r"\S+(?: %)?", head) == headings


def regression_scores(scale: float) -> dict[str, dict[str, Any]]:
    """Scores of targets of a scale; R2 does not depend on it, and that of the raw weights is far off."""
    shared = {"count": None, "batchnorm": "running"}
    raw = {"r2": -23456.7 if scale > 1 else -0.0001, "mse": 3.14686 * scale**2, "mae": 1.5 * scale}
    differences = {"r2_diff": 0.02, "r2_diff_se": 0.01, "mse_diff": -0.2 * scale**2, "mse_diff_se": 0.05 * scale**2}
    errors = {"r2_se": 0.032, "mse_se": 0.32274 * scale**2, "mae_se": 0.05 * scale}
    swa = {"r2": 0.8, "mse": 2.94686 * scale**2, "mae": 1.4 * scale, "reference": "last", **differences}
    return {"last": {**shared, **raw, **errors}, "swa": {**shared, **swa, **errors}}


@pytest.mark.parametrize("scale", [1e-6, 1e-4, 0.01, 0.1, 1, 10, 100, 1e4])
def test_values_of_any_size_stand_apart_and_show_digits(scale: float) -> None:
    """Targets of many scales: as many cells as headings, nothing runs together, and no digits that are all zeros."""
    console = Console(file=io.StringIO(), width=120, color_system=None)
    table = score_table(regression_scores(scale), metrics=REGRESSION)(console)
    head, last, swa, under = (re.split(r" {2,}", line.plain.strip()) for line in table)
    assert head == ["weights", "R2", "MSE", "MAE", "n", "BatchNorm"]
    for cells in (last, swa):
        assert len(cells) == len(head)
        assert all(cell.count("±") == 1 for cell in cells[1:4])
        assert all(set(number) & set("123456789") for cell in cells[2:4] for number in cell.split(" ± "))
    mse = under[-1].replace("−", "-").split(" ± ")
    assert [float(number) for number in mse] == pytest.approx(
        [-0.2 * scale**2, 0.05 * scale**2], rel=0.1, abs=0.5001e-3 if scale > 0.05 else 0
    )
    assert "-0.000" not in " ".join(line.plain for line in table)


# Rows without a verdict.


def test_what_is_not_known_is_a_dot_also_after_json() -> None:
    """An undefined score, unknown errors, as a run has them and as JSON does, against dots; a score without any."""
    nan = float("nan")
    run = {"r2": None, "r2_se": nan, "mse": 1.5, "mse_se": nan, "r2_diff": nan, "mse_diff": -0.5, "mse_diff_se": nan}
    read = {key: None if value != value else value for key, value in run.items()}
    for row in (run, read):
        assert score_with_error(row, REGRESSION.primary) == "·"
        assert score_with_error(row, MSE) == "1.500 ± ·"
        assert score_with_error({"mse": 1.5}, MSE) == "1.500"
        assert difference(row, REGRESSION.primary) == "·"
        assert difference(row, MSE) == "−0.500 ± ·"
        assert standing(row, REGRESSION.primary) == standing(row, MSE) == UNCLEAR


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_row_without_verdict_says_why(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An average of one weight set on a page: exactly its sentence, no line of differences, no word of judgement."""
    monkeypatch.setenv("COLUMNS", str(width))
    scores = {"last": RAW, "last_bn": RAW, "swa": RAW | {"count": 1, "no_verdict": REASON}}
    assert verdict(scores) == [REASON]
    Terminal().summary(scores, split="test", samples=360)
    out = capsys.readouterr().out
    assert all(cell_len(line) <= width for line in out.splitlines())
    said = " ".join(out.split())
    assert said.endswith(f" {REASON}")
    assert said.count(REASON) == 1
    assert not any(word in out for word in ("better", "worse", "helped", UNCLEAR, "vs", "−"))
    names = [line.split()[0] for line in table_of(scores)]
    assert names == ["weights", "last", "last_bn", "swa"]


def test_each_average_has_its_own_sentence() -> None:
    """A judged average, one without a verdict and raw weights against the sentences and lines of each, in order."""
    scores = scores_of(accuracy_diff=0.017, accuracy_diff_se=0.002, nll_diff=-0.043, nll_diff_se=0.003)
    scores["ema"] = RAW | {"no_verdict": "ema equals the raw weights: averaging changed nothing"}
    judged, unjudged = verdict(scores)
    assert judged.startswith("swa vs last_bn: averaging helped (")
    assert unjudged == scores["ema"]["no_verdict"]
    labels = [line[:11].rstrip() for line in table_of(scores)]
    assert labels == ["weights", "last", "last_bn", "swa", "  − last_bn", "ema"]


@pytest.mark.parametrize("reference", ["last", "last_bn"])
def test_differences_stand_under_the_name_of_their_reference(reference: str) -> None:
    """The line under an average against the reference of its row and its numbers by hand."""
    differences = {"accuracy_diff": 0.0167, "accuracy_diff_se": 0.0078, "nll_diff": -0.045, "nll_diff_se": 0.013}
    scores = scores_of(reference=reference, **differences)
    *_, line = table_of(scores)
    assert line.split() == ["−", reference, "+1.67", "±", "0.78", "−0.045", "±", "0.013"]
    (sentence,) = verdict(scores)
    assert sentence == (
        f"swa vs {reference}: averaging helped (accuracy +1.67 ± 0.78, better; NLL −0.045 ± 0.013, better)"
    )
