"""The comparison over seeds as a person sees it: the page's width, the words, the standing under each interval."""

from __future__ import annotations

import re
from typing import Any

import pytest
from rich.cells import cell_len

from swa_cli.report.seeds import Against, seed_ranges, seed_summary, seed_verdict
from swa_cli.report.terminal import Terminal


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of 80 cells, whatever terminal the tests run on."""
    monkeypatch.setenv("COLUMNS", "80")


def difference(mean: float, half: float | None, values: tuple[float, ...] = (0.1, 0.2)) -> dict[str, Any]:
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return {"mean": mean, "low": low, "high": high, "values": list(values)}


def weights_of(accuracy: dict[str, Any], nll: dict[str, Any], *, n: int = 3) -> dict[str, dict[str, Any]]:
    """`last` at 97.22 % and 0.104, and `swa` with these differences."""
    sd = None if n < 2 else 0.01
    scores = {key: {"mean": 0.05, "sd": sd} for key in ("ece", "brier")}
    scores |= {"accuracy": {"mean": 0.9722, "sd": sd}, "nll": {"mean": 0.104, "sd": sd}}
    last = {**scores, "n": 3, "accuracy_diff": None, "nll_diff": None, "reference": None}
    swa = {**scores, "n": n, "accuracy_diff": accuracy, "nll_diff": nll, "reference": "last"}
    return {"last": last, "swa": swa}


@pytest.mark.parametrize(
    ("accuracy", "nll", "said"),
    [
        (difference(0.01, 0.005), difference(-0.1, 0.05), "averaging helped ("),
        (difference(0.01, 0.02), difference(-0.1, 0.05), "averaging helped ("),
        (difference(0.01, 0.02), difference(-0.1, 0.2), "no clear difference ("),
        (difference(-0.01, 0.005), difference(0.1, 0.2), "averaging did not help ("),
        (difference(-0.01, 0.005), difference(-0.1, 0.05), "mixed result ("),
        (difference(0.01, 0.0, (0.01, 0.01)), difference(0.1, 0.2), "no clear difference ("),
        (difference(0.0, 0.0, (0.0, 0.0)), difference(0.0, 0.0, (0.0, 0.0)), "no clear difference ("),
        (difference(float("nan"), float("nan")), difference(-0.1, 0.05), "averaging helped (accuracy ·; NLL"),
        (difference(0.1, 0.2), difference(float("nan"), float("nan")), "no comparison: the scores are not finite"),
    ],
)
def test_verdict_goes_by_where_zero_lies(accuracy: dict[str, Any], nll: dict[str, Any], said: str) -> None:
    """The first words against whether the 95 % intervals hold zero; equal values in all seeds decide nothing."""
    [sentence] = seed_verdict(weights_of(accuracy, nll))
    assert sentence.startswith(f"swa vs last: {said}")


def test_verdict_of_one_seed_and_of_no_average() -> None:
    """A weight set of one seed is not judged; `last` alone gets no sentence."""
    weights = weights_of(difference(0.01, None, values=(0.01,)), difference(-0.1, None, values=(-0.1,)), n=1)
    (sentence,) = seed_verdict(weights)
    assert "one seed has no spread" in sentence
    assert seed_verdict({"last": weights["last"]}) == []


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("half", [0.004, 0.9, None])
def test_the_table_fits_its_page(
    width: int, half: float | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Table, title and verdict on stdout alone, against the width set, with narrow, wide and no intervals."""
    monkeypatch.setenv("COLUMNS", str(width))
    n = 1 if half is None else 3
    weights = weights_of(difference(0.0028, half), difference(-0.003, half), n=n)
    Terminal().print(seed_summary(weights, split="test", samples=360, seeds=[0, 1, 2]))
    out, err = capsys.readouterr()
    assert err.strip() == ""
    assert all(cell_len(line) <= width for line in out.splitlines())
    assert ("97.22" if half is None else "97.22 ± 1.00") in out
    assert "seeds 0 to 2" in " ".join(out.split())
    if half is not None:
        shown = f"+0.28 [{100 * (0.0028 - half):+.2f}, {100 * (0.0028 + half):+.2f}]".replace("-", "−")
        assert shown in out


def test_numbers_end_under_their_headings(capsys: pytest.CaptureFixture[str]) -> None:
    """Each number of every row ends in the column where its heading ends."""
    weights = weights_of(difference(0.0028, 0.004), difference(-0.003, 0.004))
    Terminal().print(seed_summary(weights, split="test", samples=360, seeds=[0, 1, 2]))
    _, header, last, swa, to_last, *_ = capsys.readouterr().out.splitlines()
    for heading, cell in (("accuracy %", "97.22 ± 1.00"), ("NLL", "0.104 ± 0.010"), ("seeds", "3")):
        end = header.index(heading) + len(heading)
        assert last[:end].endswith(cell)
        assert swa[:end].endswith(cell)
    assert re.fullmatch(r"  − last +\+0\.28 \[−0\.12, \+0\.68\] +−0\.003 \[−0\.007, \+0\.001\]", to_last)


def against_of(accuracy: dict[str, Any], nll: dict[str, Any], *, label: str = "baseline") -> Against:
    """A recipe at 96.50 % and 0.120 in three seeds, from which `swa` differs by this."""
    scores: dict[str, Any] = {key: {"mean": 0.05, "sd": 0.01} for key in ("ece", "brier")}
    scores |= {"accuracy": {"mean": 0.965, "sd": 0.02}, "nll": {"mean": 0.12, "sd": 0.03}, "n": 3}
    return Against(label, scores, {"swa": {"accuracy": accuracy, "nll": nll}})


@pytest.mark.parametrize("width", [40, 80, 120])
def test_another_recipe_has_its_lines_in_the_table(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines `− baseline` and `baseline` on stdout, in their places and by hand, against the width set."""
    monkeypatch.setenv("COLUMNS", str(width))
    weights = weights_of(difference(0.0028, 0.004), difference(-0.003, 0.004))
    against = against_of(difference(0.0072, 0.003), difference(-0.016, 0.005))
    Terminal().print(seed_summary(weights, split="test", samples=360, seeds=[0, 1, 2], against=against))
    out, err = capsys.readouterr()
    assert err.strip() == ""
    lines = out.splitlines()
    assert all(cell_len(line) <= width for line in lines)
    head = next(number for number, line in enumerate(lines) if line.startswith("weights"))
    labels = [line[:12].rstrip() for line in lines[head + 1 : head + 6]]
    assert labels == ["last", "swa", "  − last", "  − baseline", "baseline"]
    to_baseline, baseline = lines[head + 4], lines[head + 5]
    assert "+0.72 [+0.42, +1.02]" in to_baseline
    assert "96.50 ± 2.00" in baseline
    assert ("−0.016 [−0.021, −0.011]" in to_baseline) == ("0.120 ± 0.030" in baseline) == (width >= 80)


@pytest.mark.parametrize("label", ["baseline", "a-rather-long-name-of-a-recipe"])
@pytest.mark.parametrize(
    ("accuracy", "nll", "said"),
    [
        (difference(0.01, 0.005), difference(-0.1, 0.05), "better than {}"),
        (difference(0.01, 0.02), difference(-0.1, 0.05), "better than {}"),
        (difference(0.01, 0.02), difference(-0.1, 0.2), "no clear difference"),
        (difference(-0.01, 0.005), difference(0.1, 0.2), "worse than {}"),
        (difference(-0.01, 0.005), difference(-0.1, 0.05), "mixed result"),
        (difference(0.01, 0.0, (0.01, 0.01)), difference(0.1, 0.2), "no clear difference"),
        (difference(float("nan"), float("nan")), difference(-0.1, 0.05), "better than {}"),
        (difference(0.1, 0.2), difference(float("nan"), float("nan")), "no comparison: the scores are not finite"),
    ],
)
def test_verdict_against_another_recipe(accuracy: dict[str, Any], nll: dict[str, Any], said: str, label: str) -> None:
    """A second sentence beside that of the reference, against whether the paired intervals hold zero."""
    weights = weights_of(difference(0.0, 0.02), difference(0.0, 0.2))
    own, other = seed_verdict(weights, against=against_of(accuracy, nll, label=label))
    assert own.startswith("swa vs last: no clear difference (")
    assert other.startswith(f"swa vs {label}: {said.format(label)}")


def test_an_average_without_verdict_is_still_held_against_another_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    """One weight set in each seed: exactly its sentence and no line to a reference, yet both of the other recipe."""
    weights = weights_of(difference(0.0, 0.1), difference(0.0, 0.1))
    reason = "swa holds 1 weight set: nothing was averaged"
    weights["swa"] |= {"accuracy_diff": None, "nll_diff": None, "reference": None, "no_verdict": reason}
    assert seed_verdict(weights) == [reason]
    against = against_of(difference(0.0072, 0.003), difference(-0.016, 0.005))
    first, second = seed_verdict(weights, against=against)
    assert first == reason
    assert second.startswith("swa vs baseline: better than baseline (")
    Terminal().print(seed_summary(weights, split="test", samples=360, seeds=[0, 1, 2], against=against))
    lines = capsys.readouterr().out.splitlines()
    labels = [line[:12].rstrip() for line in lines[1:6]]
    assert labels == ["weights", "last", "swa", "  − baseline", "baseline"]
    assert reason in lines


def test_seeds_with_different_references_say_so() -> None:
    """The name under which differences stand against that of the row: one of the weights, or the word for both."""
    for reference in ("last", "last_bn", "reference"):
        weights = weights_of(difference(0.01, 0.005), difference(-0.1, 0.05))
        weights["swa"]["reference"] = reference
        (sentence,) = seed_verdict(weights)
        assert sentence.startswith(f"swa vs {reference}: averaging helped (")


@pytest.mark.parametrize(
    ("seeds", "text"),
    [([0, 1], "0, 1"), ([0, 1, 2], "0 to 2"), ([3], "3"), ([0, 1, 2, 5, 7, 8, 9], "0 to 2, 5, 7 to 9")],
)
def test_seeds_as_a_person_says_them(seeds: list[int], text: str) -> None:
    """Lists of seeds against the words by hand."""
    assert seed_ranges(seeds) == text
