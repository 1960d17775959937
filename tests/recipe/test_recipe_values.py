"""Durations: what is read, what is refused, and how lengths become steps."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swa_cli.recipe.values import Duration, round_half_up


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("75%", Fraction(75), "%"),
        ("12.5%", Fraction(25, 2), "%"),
        ("23ep", Fraction(23), "ep"),
        ("0.25ep", Fraction(1, 4), "ep"),
        (".1ep", Fraction(1, 10), "ep"),
        ("200step", Fraction(200), "step"),
        ("1cycle", Fraction(1), "cycle"),
        ("  3 ep ", Fraction(3), "ep"),
    ],
)
def test_forms_that_are_read(text: str, value: Fraction, unit: str) -> None:
    """Each form is held against its exact fraction: .1 is a tenth, not the nearest binary number."""
    assert Duration.parse(text) == Duration(value, unit)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("75", "has no unit"),
        ("0.5", "has no unit"),
        ("", "is not a duration"),
        ("3 epochs", "is not a duration"),
        ("-1ep", "is not a duration"),
        ("1e2step", "is not a duration"),
        ("٣ep", "is not a duration"),
        ("9" * 5000 + "ep", "is not a duration"),
        ("101%", "more than the whole run"),
        ("1.5step", "is not divided"),
        ("0.5cycle", "is not divided"),
    ],
)
def test_forms_that_are_refused(text: str, message: str) -> None:
    """Each refusal is held against its reason, and names an action after the last colon."""
    with pytest.raises(ValueError, match=message) as caught:
        Duration.parse(text)
    assert caught.value.args[0].rpartition(": ")[2].startswith("write ")


def test_lengths_in_steps() -> None:
    """Steps are held against sums done by hand: 351 steps an epoch, 30 epochs."""
    run = {"steps_per_epoch": 351, "total_steps": 10530}
    assert Duration.parse("23ep").exact_steps(**run) == 8073
    assert round_half_up(Duration.parse("75%").exact_steps(**run)) == 7898  # 7897.5: halves go up
    assert Duration.parse("0.25ep").exact_steps(**run) == Fraction(351, 4)
    assert Duration.parse("200step").exact_steps(**run) == 200


@settings(max_examples=100)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["%", "ep", "step", "cycle"]),
    st.sampled_from(["", ".5", ".25", ".125", ".1", ".007"]),
)
def test_text_of_a_duration_reads_back(whole: int, unit: str, decimals: str) -> None:
    """`str` is held against `parse`: a duration that is written down is the same when read again."""
    number = whole % 100 if unit == "%" else whole
    text = f"{number}{decimals if unit in ('%', 'ep') else ''}{unit}"
    duration = Duration.parse(text)
    assert Duration.parse(str(duration)) == duration


@settings(max_examples=100)
@given(st.fractions(min_value=0, max_value=10**9))
def test_rounding_is_to_the_nearest(value: Fraction) -> None:
    """Rounding is held against its definition: at most a half away, a half goes up."""
    assert Fraction(-1, 2) < round_half_up(value) - value <= Fraction(1, 2)
