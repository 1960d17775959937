"""Averaging profiles against sums over every step of a path in float64, written out."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swa_cli.averaging import profiles
from swa_cli.averaging.kinds import ema_share
from swa_cli.averaging.profiles import Profile, Shares
from swa_cli.recipe.kinds import power_exponent

LENGTH = 240


def power_ema(width: float) -> Profile:
    """The profile of a relative width."""
    return profiles.power_ema(width, exponent=power_exponent(width))


def counts(profile: Profile, length: int) -> np.ndarray:
    """How much each step counts."""
    return profile.share(torch.arange(length + 1, dtype=torch.float64), length).diff().numpy()


ALL = [
    profiles.ema(7.5),
    profiles.ema(1e4),
    power_ema(0.05),
    power_ema(0.28),
    *map(profiles.decay, profiles.DECAYS),
]
NAMES = [f"{profile.kind} {next(iter(profile.settings.values()))}" for profile in ALL]


@pytest.mark.parametrize("half_life", [0.5, 3.0, 40.0, 1e5])
def test_ema_is_the_one_that_training_keeps(half_life: float) -> None:
    """The count of every step against the updates of `kind: ema` with bias correction, done one after the other."""
    weights = np.zeros(LENGTH)
    for n in range(1, LENGTH + 1):
        share = ema_share(n, decay=0.5 ** (1 / half_life), warmup=False, bias_correction=True)
        weights *= 1 - share
        weights[n - 1] = share
    np.testing.assert_allclose(counts(profiles.ema(half_life), LENGTH), weights, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_power_ema_has_its_width(width: float) -> None:
    """EDM2: the exponent inverts s(g), the counts have that standard deviation, and are those of its update."""
    g = power_exponent(width)
    assert math.sqrt((g + 1) / ((g + 2) ** 2 * (g + 3))) == pytest.approx(width, rel=1e-9)
    found = counts(power_ema(width), 100_000)
    place = (np.arange(100_000) + 0.5) / 100_000
    assert math.sqrt(found @ place**2 - (found @ place) ** 2) == pytest.approx(width, rel=1e-3)
    weights = np.zeros(LENGTH)
    for t in range(1, LENGTH + 1):
        share = 1 - (1 - 1 / t) ** (g + 1)
        weights *= 1 - share
        weights[t - 1] = share
    np.testing.assert_allclose(counts(power_ema(width), LENGTH), weights, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("width", [0.05, 0.1])
def test_exponents_of_the_paper(width: float) -> None:
    """EDM2, table of appendix C: relative widths of 5 % and 10 % have the exponents 16.97 and 6.94."""
    assert power_exponent(width) == pytest.approx({0.05: 16.97, 0.1: 6.94}[width], abs=0.005)


@pytest.mark.parametrize(
    ("shape", "rate"),
    [
        ("linear", lambda t: 1 - t),
        ("cosine", lambda t: (1 + np.cos(np.pi * t)) / 2),
        ("1-sqrt", lambda t: 1 - np.sqrt(t)),
    ],
)
def test_merge_weighs_updates_as_the_decay_would(shape: str, rate) -> None:
    """WSM: the mean with these counts holds update i as often as the decayed rate w(i / k) would have applied it."""
    found, updates = counts(profiles.decay(shape), LENGTH), np.random.default_rng(0).normal(size=LENGTH)
    merged = found @ np.cumsum(updates)
    np.testing.assert_allclose(merged, rate(np.arange(LENGTH) / LENGTH) @ updates, rtol=0, atol=1e-12)


@pytest.mark.parametrize("profile", ALL, ids=NAMES)
def test_counts_sum_to_one(profile: Profile) -> None:
    """All steps together count 1, and none less than 0."""
    found = counts(profile, LENGTH)
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1, abs=1e-12)


def path(rough: float) -> np.ndarray:
    """Weights after each of 240 steps: a curve in five dimensions, and noise."""
    t = np.linspace(0, 1, LENGTH)[:, None]
    noise = np.random.default_rng(1).normal(size=(LENGTH, 5))
    return np.sin(3 * t + np.arange(5)) + 2 * t**2 + rough * noise


def averaged(shares: Shares, points: list[int], path: np.ndarray) -> np.ndarray:
    means = np.stack([path[:point].mean(0) for point in points])
    raw = np.stack([path[point - 1] for point in points])
    return np.array(shares.means) @ means + np.array(shares.raw) @ raw


@pytest.mark.parametrize("profile", ALL, ids=NAMES)
@pytest.mark.parametrize("start", [0, 80])
def test_segments_with_first_order_correction(profile: Profile, start: int) -> None:
    """Running means against the loop: w m + mu (theta_b - theta_a) summed over segments, mu from every step."""
    points, steps = [point for point in range(20, LENGTH + 1, 20) if point >= max(start, 20)], path(0.3)
    expected, edges = np.zeros(5), points if start else [0, *points]
    weights = np.concatenate([np.zeros(start), counts(profile, LENGTH - start)])
    for a, b in pairwise(edges):
        own, place = weights[a:b], (np.arange(a, b) + 0.5 - a) / (b - a) - 0.5
        slope = steps[b - 1] - steps[a - 1] if a else 2 * (steps[b - 1] - steps[:b].mean(0))
        expected += own.sum() * steps[a:b].mean(0) + (own @ place) * slope
    shares = profiles.of_running_means(profile, points, start=start)
    np.testing.assert_allclose(averaged(shares, points, steps), expected, rtol=0, atol=1e-12)
    assert sum(shares.means) + sum(shares.raw) == pytest.approx(1, abs=1e-12)
    assert sum(shares.rough_means) == pytest.approx(1, abs=1e-12)
    assert shares.mean_age == pytest.approx(weights @ (LENGTH - np.arange(LENGTH) - 0.5), rel=1e-9)


@pytest.mark.parametrize("profile", ALL, ids=NAMES)
def test_snapshots_of_every_step_are_exact(profile: Profile) -> None:
    """With a snapshot after each step, both sums are the sum over all steps."""
    points, steps = list(range(1, LENGTH + 1)), path(1.0)
    expected = counts(profile, LENGTH) @ steps
    found = averaged(profiles.of_running_means(profile, points, start=0), points, steps)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)
    for first in (0, 80):
        nearest = profiles.of_snapshots(profile, points[first:], start=first)
        weights = counts(profile, LENGTH - first)
        expected = weights @ steps[first:]
        np.testing.assert_allclose(averaged(nearest, points[first:], steps), expected, rtol=0, atol=1e-11)
        assert nearest.error_factor == 0
        assert profiles.of_snapshots(profile, points[first:-2] + points[-1:], start=first).error_factor == 0.5
        assert nearest.mean_age == pytest.approx(weights @ (LENGTH - first - np.arange(LENGTH - first) - 0.5), rel=1e-9)


@given(st.integers(0, 11), st.integers(1, 12), st.integers(1, 50))
def test_linear_merge_is_the_mean_of_the_window(first: int, number: int, spacing: int) -> None:
    """Linear: of running means the two at the ends of the window alone; of even snapshots the plain mean."""
    points = [spacing * (first + index) for index in range(number + 1)]
    shares = profiles.of_running_means(profiles.decay("linear"), points[1:] if first == 0 else points, start=points[0])
    end, length = points[-1], points[-1] - points[0]
    held = [0.0] * len(shares.means)
    held[-1] = end / length
    if first:
        held[0] = -points[0] / length
    assert shares.means == pytest.approx(held, rel=1e-12)
    assert [weight != 0 for weight in shares.means] == [weight != 0 for weight in held]
    assert not any(shares.raw)
    plain = profiles.of_snapshots(profiles.decay("linear"), [point + spacing for point in points], start=0)
    assert plain.raw == pytest.approx([1 / (number + 1)] * (number + 1), rel=1e-12)


def test_correction_and_its_estimate() -> None:
    """A curve with noise, half-life of a segment: the estimate is the uncorrected error; the correction lowers it."""
    profile, points, steps = profiles.ema(20), list(range(20, LENGTH + 1, 20)), path(0.02)
    true, shares = counts(profile, LENGTH) @ steps, profiles.of_running_means(profile, points, start=0)
    found, last = averaged(shares, points, steps), steps[-1]
    means = np.stack([steps[:point].mean(0) for point in points])
    rough = np.array(shares.rough_means) @ means
    away = np.linalg.norm(last - true)
    corrected, constant = np.linalg.norm(found - true) / away, np.linalg.norm(rough - true) / away
    assert corrected < 0.3 * constant
    assert np.linalg.norm(found - rough) / away == pytest.approx(constant, rel=0.3)


def test_plain_snapshots_stand_for_the_nearest_steps() -> None:
    """An EMA over snapshots at 10, 20, 40: each for the steps nearest to it; every second one: 10 and 40 alone."""
    profile = profiles.ema(8)
    shares = profiles.of_snapshots(profile, [10, 20, 40], start=0)

    def expected(*edges: float) -> list[float]:
        return profile.share(torch.tensor([0, *edges], dtype=torch.float64), 40).diff().tolist()

    assert shares.raw == pytest.approx(expected(14.5, 29.5, 40))  # step 15 is half in each
    first, last = expected(24.5, 40)
    assert shares.rough_raw == pytest.approx([first, 0, last])
    assert profiles.of_snapshots(profile, [40], start=0).error_factor is None


@pytest.mark.parametrize("profile", [profiles.ema(8), profiles.power_ema(0.1, exponent=6.94), profiles.decay("linear")])
def test_a_window_of_one_plain_snapshot_is_that_snapshot(profile: profiles.Profile) -> None:
    """A window that begins where its only snapshot lies, as that of a late one does: its weight is 1, not 0 / 0."""
    shares = profiles.of_snapshots(profile, [40], start=40)
    assert shares.raw == shares.rough_raw == [1.0]


def test_sums_and_distances() -> None:
    """Two weighted sums of mixed types against float64 by hand, and their distance in units of that to the last set."""
    generator = torch.Generator().manual_seed(0)
    sets = [
        {
            "w": torch.randn(3, generator=generator),
            "h": torch.randn(2, generator=generator).half(),
            "n": torch.tensor(1),
        }
        for _ in range(3)
    ]
    weights = [(0.5, 1.0), (-0.25, 0.0), (0.75, 0.5)]
    found = profiles.weighted_sums(zip(sets, weights, strict=True), averaged=["w", "h"], number=2)
    for number, one in enumerate(found):
        assert list(one) == ["w", "h"]
        for name, value in one.items():
            expected = sum(weight[number] * each[name].double() for each, weight in zip(sets, weights, strict=True))
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-15)
    flat = [torch.cat([one[name].double() for name in ("w", "h")]) for one in (*found, sets[-1])]
    expected = float((flat[0] - flat[1]).norm() / (flat[2] - flat[0]).norm())
    assert profiles.relative_distance(found[0], found[1], last=sets[-1]) == pytest.approx(expected)
    assert profiles.relative_distance(found[0], found[1], last=found[0]) is None
