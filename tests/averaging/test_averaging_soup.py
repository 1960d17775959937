"""Averages of saved weight sets: means against numpy in float64, choices against loops written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swa_cli.averaging import soup
from swa_cli.errors import UserError


def sets(number: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "weight": torch.randn(3, 4, generator=generator),
            "half": torch.randn(5, generator=generator).half(),
            "running": torch.randn(3, generator=generator),
            "counter": torch.tensor(index),
        }
        for index in range(number)
    ]


def in_float64(found: list[dict[str, torch.Tensor]], name: str) -> np.ndarray:
    return np.stack([one[name].double().numpy() for one in found])


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.0, 5.0, 0.5], [0.0, 0.0, 0.0, 0.0, 1e-9]])
def test_mean_is_that_of_numpy(weights: list[float] | None) -> None:
    """A (weighted) mean of five sets against numpy.average in float64; what is not averaged is the last set's."""
    found = sets(5)
    result = soup.mean(found, averaged=["weight", "half"], weights=weights)
    for name in ("weight", "half"):
        assert result[name].dtype == torch.float64
        expected = np.average(in_float64(found, name), axis=0, weights=weights)
        np.testing.assert_allclose(result[name].numpy(), expected, rtol=0, atol=1e-12)
    for name in ("running", "counter"):
        assert torch.equal(result[name], found[-1][name])
    assert list(result) == list(found[0])


def test_equal_sets_come_out_bit_exact() -> None:
    """The mean of a hundred equal sets against one of them: no bit differs, and the set itself is left alone."""
    one = {"w": torch.tensor([0.1, 1 / 3], dtype=torch.float64)}
    before = one["w"].clone()
    assert torch.equal(soup.mean([one] * 100, averaged=["w"])["w"], before)
    assert torch.equal(one["w"], before)


def test_other_architecture_is_told_with_examples() -> None:
    """A set that lacks a tensor and has another of another shape: counted, with examples."""
    wrong = {"weight": torch.ones(4, 4), "half": torch.ones(5), "running": torch.ones(3)}
    with pytest.raises(UserError, match=r"weight set 2 .* 1 missing \(counter\); 1 of another shape"):
        soup.mean([sets(1)[0], wrong], averaged=["weight"])


@pytest.mark.parametrize(("found", "weights"), [([], None), (sets(2), [0.0, 0.0])])
def test_nothing_to_average_is_told(found: list[dict[str, torch.Tensor]], weights: list[float] | None) -> None:
    """No set, or none that counts: an error."""
    with pytest.raises(UserError, match="no weights"):
        soup.mean(found, averaged=["weight"], weights=weights)


@given(st.integers(0, 60), st.integers(1, 60))
def test_window_from_two_running_means(start: int, length: int) -> None:
    """The mean of steps (a, b] from the running means at a and b against the mean of exactly those."""
    values = np.random.default_rng(start).normal(size=(start + length, 3))

    def running(number: int) -> dict[str, torch.Tensor]:
        return {"w": torch.from_numpy(values[:number].mean(0))} if number else {}

    found = soup.between(running(start), running(start + length), num_earlier=start, num_later=start + length)
    np.testing.assert_allclose(found["w"].numpy(), values[start:].mean(0), rtol=0, atol=1e-12)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_greedy_keeps_what_does_not_lower_the_score(order: list[int], random) -> None:
    """The greedy soup against Recipe 1 written out, with scores that are drawn for each soup."""
    members = list(range(len(order)))
    scores: dict[tuple[int, ...], float] = {}

    def score(tried: list[int]) -> float:
        return scores.setdefault(tuple(tried), random.randint(0, 3))

    found = soup.greedy(members, score)
    ingredients: list[int] = []
    for member in members:
        if not ingredients or score([*ingredients, member]) >= score(ingredients):
            ingredients = [*ingredients, member]
    assert found == ingredients


def stock_by_hand(w0: np.ndarray, tuned: list[np.ndarray]) -> tuple[np.ndarray, float, float]:
    """Model Stock of one tensor, written out pair by pair; the tensor, t and the cosine."""
    cosines = []
    for i, first in enumerate(tuned):
        for second in tuned[i + 1 :]:
            a, b = (first - w0).ravel(), (second - w0).ravel()
            length = math.sqrt(float(a @ a) * float(b @ b))
            cosines.append(float(a @ b) / length if length else 0.0)
    cosine, n = float(np.mean(cosines)), len(tuned)
    t = n * max(cosine, 0) / (1 + (n - 1) * max(cosine, 0))
    return t * np.mean(tuned, axis=0) + (1 - t) * w0, t, cosine


@pytest.mark.parametrize("number", [2, 3, 5])
def test_model_stock_is_that_of_numpy(number: int) -> None:
    """Each tensor, t and cosine against loops over pairs in float64; one moved by all, one by some, one by none."""
    generator = torch.Generator().manual_seed(number)

    def drawn() -> dict[str, torch.Tensor]:
        return {name: torch.randn(4, 3, generator=generator) for name in ("moved", "partly", "fixed", "head", "buffer")}

    w0, common = drawn(), drawn()
    tuned = []
    for index in range(number):
        noise = drawn()
        one = {name: w0[name] + common[name] + noise[name] for name in w0}
        one |= {"fixed": w0["fixed"].clone(), "partly": w0["partly"] if index == 1 else one["partly"]}
        tuned.append(one)
    averaged = ["moved", "partly", "fixed", "head"]
    without_head = {name: value for name, value in w0.items() if name != "head"}
    state, ratios = soup.model_stock(without_head, tuned, averaged=averaged)
    assert list(ratios) == ["moved", "partly"]
    for name in ratios:
        sets = [one[name].double().numpy() for one in tuned]
        expected, t, cosine = stock_by_hand(w0[name].double().numpy(), sets)
        np.testing.assert_allclose(state[name].numpy(), expected, rtol=0, atol=1e-12)
        assert ratios[name].t == pytest.approx(t, abs=1e-12)
        assert ratios[name].cosine == pytest.approx(cosine, abs=1e-12)
    assert 0 < ratios["moved"].t < 1
    assert torch.equal(state["fixed"], w0["fixed"].double())
    np.testing.assert_allclose(state["head"].numpy(), in_float64(tuned, "head").mean(0), rtol=0, atol=1e-12)
    assert torch.equal(state["buffer"], tuned[-1]["buffer"])


def test_model_stock_at_the_ends() -> None:
    """Equal differences give the mean (t = 1), orthogonal and opposite ones w0 (t = 0), by the formula of the paper."""
    w0 = {"w": torch.tensor([1.0, 2.0])}
    for moves, cosine, t in (
        ([[3.0, 1.0], [3.0, 1.0]], 1.0, 1.0),
        ([[1.0, 0.0], [0.0, 1.0]], 0.0, 0.0),
        ([[1.0, 0.0], [-1.0, 0.0]], -1.0, 0.0),
    ):
        tuned = [{"w": w0["w"] + torch.tensor(move)} for move in moves]
        state, ratios = soup.model_stock(w0, tuned, averaged=["w"])
        assert (ratios["w"].cosine, ratios["w"].t) == pytest.approx((cosine, t), abs=1e-12)
        expected = w0["w"].double() + t * torch.tensor(moves, dtype=torch.float64).mean(0)
        torch.testing.assert_close(state["w"], expected, rtol=0, atol=1e-12)
    assert w0["w"].tolist() == [1.0, 2.0]


def test_model_stock_of_complex_weights_counts_both_parts() -> None:
    """A complex tensor against the same numbers as pairs of real ones."""
    generator = torch.Generator().manual_seed(0)
    real = [torch.randn(5, 2, generator=generator, dtype=torch.float64) for _ in range(3)]
    before = real[0].clone()
    state, ratios = soup.model_stock(
        {"w": torch.view_as_complex(real[0])}, [{"w": torch.view_as_complex(one)} for one in real[1:]], averaged=["w"]
    )
    expected, found = soup.model_stock({"w": real[0]}, [{"w": one} for one in real[1:]], averaged=["w"])
    torch.testing.assert_close(torch.view_as_real(state["w"]), expected["w"], rtol=0, atol=1e-12)
    assert ratios["w"].cosine == pytest.approx(found["w"].cosine)
    assert torch.equal(real[0], before)


ONE = {"linear": 1.0}
FOUR = {"linear": 1.0, "cosine": 1.0, "1-sqrt": 0.75, "ema": 1.0}


@given(st.integers(1, 60), st.integers(0, 59), st.integers(1, 16), st.sampled_from([ONE, FOUR]))
def test_search_keeps_to_its_budget(n: int, lowest: int, budget: int, lengths: dict[str, float]) -> None:
    """Every window is inside the run, none is tried twice, there are no more than the budget, the best is returned."""
    tried: dict[tuple[str, int, int], float] = {}

    def score(shape: str, first: int, last: int) -> float:
        assert 0 <= first <= last < n
        assert (shape, first, last) not in tried
        tried[shape, first, last] = abs(first - lowest) + 0.1 * (n - last) + 0.01 * len(shape)
        return tried[shape, first, last]

    found = soup.search(n, score, lengths=lengths, budget=budget)
    assert 1 <= len(tried) <= budget
    assert tried[found] == min(tried.values())


@given(st.integers(1, 60), st.integers(0, 59), st.floats(0.1, 10))
def test_search_finds_the_one_minimum(n: int, lowest: int, steepness: float) -> None:
    """With trials enough, the start of a score with one minimum is found exactly, whatever its two slopes."""
    lowest = min(lowest, n - 1)

    def score(shape: str, first: int, last: int) -> float:
        side = first - lowest
        return (side * steepness if side > 0 else -side) + 100 * (n - 1 - last)

    assert soup.search(n, score, lengths=ONE, budget=60) == ("linear", lowest, n - 1)


@given(st.integers(8, 60), st.sampled_from(list(FOUR)))
def test_search_finds_the_best_shape(n: int, best: str) -> None:
    """One shape is better at the length of the same mean age: it is found, and its start is narrowed down exactly."""
    lowest = {shape: n - round(n / 2 * length) for shape, length in FOUR.items()}

    def score(shape: str, first: int, last: int) -> float:
        return abs(first - lowest[shape]) + (shape != best) * n + 100 * (n - 1 - last)

    assert soup.search(n, score, lengths=FOUR, budget=60) == (best, lowest[best], n - 1)


def test_half_of_the_trials_go_to_windows() -> None:
    """12 trials over 30 sets: six windows of the first shape, one of each other at its length, three to narrow."""
    tried: list[tuple[str, int, int]] = []

    def score(shape: str, first: int, last: int) -> float:
        tried.append((shape, first, last))
        return abs(first - 14) - 8 * (shape == "1-sqrt")

    soup.search(30, score, lengths=FOUR, budget=12)
    assert [shape for shape, _, _ in tried] == ["linear"] * 6 + ["cosine", "1-sqrt", "ema"] + ["1-sqrt"] * 3
    assert [first for shape, first, _ in tried[:5]] == [0, 15, 23, 27, 29]
    assert tried[6:9] == [("cosine", 15, 29), ("1-sqrt", 19, 29), ("ema", 15, 29)]


def test_search_closes_in_on_the_end() -> None:
    """Trials that are left go to the end of the window: the last weights are bad, and are left out."""
    bad_end = {(first, last): (5.0 if last == 7 else 0.0) + abs(first - 2) for first in range(8) for last in range(8)}
    _, first, last = soup.search(8, lambda shape, *window: bad_end[window], lengths=ONE, budget=20)
    assert first == 2
    assert last < 7


def test_nan_is_the_worst_score() -> None:
    """A window whose score is nan is never chosen while another has a score."""
    found = soup.search(4, lambda shape, first, last: math.nan if first != 1 else 9.0, lengths=ONE, budget=8)
    assert found[1] == 1
