"""The comparison over seeds as a person sees it: the page's width, the words, the standing under each interval."""

from __future__ import annotations

import re
from typing import Any

import pytest
from rich.cells import cell_len

from swa_cli.report.repeats import repeat_verdict, spelled
from swa_cli.report.terminal import Terminal


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of 80 cells, whatever terminal the tests run on."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


def difference(mean: float, half: float | None, values: tuple[float, ...] = (0.1, 0.2)) -> dict[str, Any]:
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return {"mean": mean, "low": low, "high": high, "values": list(values)}


def weights_of(accuracy: dict[str, Any], nll: dict[str, Any], *, n: int = 3) -> dict[str, dict[str, Any]]:
    """`last` at 97.22 % and 0.104, and `swa` with these differences."""
    sd = None if n < 2 else 0.01
    scores = {key: {"mean": 0.05, "sd": sd} for key in ("ece", "brier")}
    scores |= {"accuracy": {"mean": 0.9722, "sd": sd}, "nll": {"mean": 0.104, "sd": sd}}
    last = {**scores, "n": 3, "accuracy_diff": None, "nll_diff": None}
    return {"last": last, "swa": {**scores, "n": n, "accuracy_diff": accuracy, "nll_diff": nll}}


@pytest.mark.parametrize(
    ("accuracy", "nll", "said"),
    [
        (difference(0.01, 0.005), difference(-0.1, 0.05), "averaging helped"),
        (difference(0.01, 0.02), difference(-0.1, 0.05), "averaging helped"),
        (difference(0.01, 0.02), difference(-0.1, 0.2), "no clear difference to last"),
        (difference(-0.01, 0.005), difference(0.1, 0.2), "averaging did not help"),
        (difference(-0.01, 0.005), difference(-0.1, 0.05), "mixed result"),
        (difference(0.01, 0.0, (0.01, 0.01)), difference(0.1, 0.2), "no clear difference to last"),
        (difference(0.0, 0.0, (0.0, 0.0)), difference(0.0, 0.0, (0.0, 0.0)), "no clear difference to last"),
        (difference(float("nan"), float("nan")), difference(0.1, 0.2), "the scores are not finite"),
    ],
)
def test_verdict_goes_by_where_zero_lies(accuracy: dict[str, Any], nll: dict[str, Any], said: str) -> None:
    """The first words against whether the 95 % intervals hold zero; equal values in all seeds decide nothing."""
    [sentence] = repeat_verdict(weights_of(accuracy, nll))
    assert sentence.startswith("swa: ")
    assert said in sentence


def test_verdict_of_one_seed_and_of_no_average() -> None:
    """A weight set of one seed is not judged; `last` alone gets no sentence."""
    weights = weights_of(difference(0.01, None), difference(-0.1, None), n=1)
    assert "one seed has no spread" in repeat_verdict(weights)[0]
    assert repeat_verdict({"last": weights["last"]}) == []


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("half", [0.004, 0.9, None])
def test_the_table_fits_its_page(
    width: int, half: float | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Table, title and verdict on stdout alone, against the width set, with narrow, wide and no intervals."""
    monkeypatch.setenv("COLUMNS", str(width))
    n = 1 if half is None else 3
    weights = weights_of(difference(0.0028, half), difference(-0.003, half), n=n)
    Terminal().summary_over_seeds(weights, split="test", samples=360, seeds=[0, 1, 2])
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
    Terminal().summary_over_seeds(weights, split="test", samples=360, seeds=[0, 1, 2])
    _, header, last, swa, to_last, *_ = capsys.readouterr().out.splitlines()
    for heading, cell in (("accuracy %", "97.22 ± 1.00"), ("NLL", "0.104 ± 0.010"), ("seeds", "3")):
        end = header.index(heading) + len(heading)
        assert last[:end].endswith(cell)
        assert swa[:end].endswith(cell)
    assert re.fullmatch(r"  − last +\+0\.28 \[−0\.12, \+0\.68\] +−0\.003 \[−0\.007, \+0\.001\]", to_last)


@pytest.mark.parametrize(
    ("seeds", "text"),
    [([0, 1], "0, 1"), ([0, 1, 2], "0 to 2"), ([3], "3"), ([0, 1, 2, 5, 7, 8, 9], "0 to 2, 5, 7 to 9")],
)
def test_seeds_as_a_person_says_them(seeds: list[int], text: str) -> None:
    """Lists of seeds against the words by hand."""
    assert spelled(seeds) == text
