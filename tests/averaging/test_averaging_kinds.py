"""The shares of running averages against the weighted sums that define them."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from swa_cli.averaging.average import WeightAverage, update_all
from swa_cli.averaging.kinds import KINDS, ema_share
from swa_cli.errors import UserError


def weights_of(num: int, *, decay: float, warmup: bool, bias_correction: bool) -> list[float]:
    """What each of `num` weight sets weighs in their average, straight from the definition."""
    decays = [min(decay, (1 + n) / (10 + n)) if warmup else decay for n in range(num)]
    own = [1 - d for d in decays]
    if not bias_correction:
        own[0] = 1.0  # the average starts as the first one
    found = [own[i] * math.prod(decays[i + 1 :]) for i in range(num)]
    return [weight / math.fsum(found) for weight in found]


VARIANTS = [{"warmup": warmup, "bias_correction": corrected} for warmup in (False, True) for corrected in (False, True)]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(key for key, value in v.items() if value))
@pytest.mark.parametrize("decay", [0.05, 0.5, 0.7, 0.9, 0.999])
def test_average_is_the_weighted_sum(variant: dict[str, bool], decay: float) -> None:
    """60 weight sets averaged one by one, against the sum with explicit weights in float64, after every update."""
    model = nn.Linear(3, 2, dtype=torch.float64)
    average, history = WeightAverage(model, kind="ema", decay=decay, **variant), []
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        nn.init.normal_(model.weight, generator=generator)
        history.append(model.weight.detach().clone())
        average.update(model)
        weights = torch.tensor(weights_of(len(history), decay=decay, **variant), dtype=torch.float64)
        exact = torch.tensordot(weights, torch.stack(history), dims=1)
        torch.testing.assert_close(average.averaged_state()["weight"], exact, rtol=0, atol=1e-12)


@given(
    decay=st.floats(0, 0.99999),
    num=st.integers(1, 300),
    warmup=st.booleans(),
    bias_correction=st.booleans(),
)
def test_shares_give_the_weights(decay: float, num: int, warmup: bool, bias_correction: bool) -> None:
    """Weights that the shares lead to, share_i (1 - share_i+1) ..., against the definition; they sum to 1."""
    variant = {"decay": decay, "warmup": warmup, "bias_correction": bias_correction}
    shares = [ema_share(n, **variant) for n in range(1, num + 1)]
    found = [shares[i] * math.prod(1 - later for later in shares[i + 1 :]) for i in range(num)]
    assert found == pytest.approx(weights_of(num, **variant), rel=1e-6, abs=1e-12)
    assert math.fsum(found) == pytest.approx(1, abs=1e-9)


def test_first_weight_set_is_not_over_weighted() -> None:
    """Decay .999 after 10 updates: corrected, all ten weigh nearly the same; plain, the first has .991 of all."""
    corrected = weights_of(10, decay=0.999, warmup=False, bias_correction=True)
    assert max(corrected) / min(corrected) == pytest.approx(0.999**-9)
    plain = [ema_share(n, decay=0.999, warmup=False, bias_correction=False) for n in range(1, 11)]
    assert math.prod(1 - later for later in plain[1:]) == pytest.approx(0.999**9)


def test_long_runs() -> None:
    """Shares after ten million updates against their limit, 1 - decay; they fall all the way."""
    for warmup in (False, True):
        found = [ema_share(10**k + 1, decay=0.9999, warmup=warmup, bias_correction=True) for k in range(8)]
        assert all(later < former for former, later in pairwise(found[:6]))
        assert found[-1] == pytest.approx(1e-4, rel=1e-9)


POLYNOMIAL = 3.0  # power of the weights below


def polynomial_share(n: int) -> float:
    """The share (p + 1) / (n + p) of polynomial-decay averaging (Shamir & Zhang 2013)."""
    return (POLYNOMIAL + 1) / (n + POLYNOMIAL)


def polynomial_weights(num: int) -> list[float]:
    """What each of `num` weight sets weighs in closed form: binomials C(i + p, p), over their sum."""
    found = [math.comb(i + int(POLYNOMIAL), int(POLYNOMIAL)) for i in range(num)]
    return [weight / sum(found) for weight in found]


def power_weights(num: int) -> list[float]:
    """Weight set i weighs i^2, over the sum of all."""
    return [i**2 / sum(k**2 for k in range(1, num + 1)) for i in range(1, num + 1)]


OWN_KINDS = {
    "polynomial": (polynomial_share, polynomial_weights),
    "power": (lambda n: n**2 / (n * (n + 1) * (2 * n + 1) / 6), power_weights),
    "first_alone": (lambda n: 0.0, lambda num: [1.0] + [0.0] * (num - 1)),
}


@pytest.mark.parametrize("kind", OWN_KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_kind_of_ones_own_is_the_weighted_mean(kind: str, dtype: torch.dtype) -> None:
    """A running mean with a share of the caller's own against the weighted mean in float64, after every update.

    Half way it goes on from its state dict, to the bits of the one that was never interrupted.
    """
    share, weights_of_kind = OWN_KINDS[kind]
    model = nn.Linear(3, 2, dtype=dtype)
    average, history = WeightAverage(model, kind=kind, share=share), []
    resumed = average
    for n in range(1, 41):
        nn.init.normal_(model.weight, generator=torch.Generator().manual_seed(n))
        history.append(model.weight.detach().double())
        for each in {id(item): item for item in (average, resumed)}.values():
            each.update(model, step=10 * n)
        exact = torch.tensordot(torch.tensor(weights_of_kind(n), dtype=torch.float64), torch.stack(history), dims=1)
        accumulator = average.state_dict()["state"]["weight"]
        assert accumulator.dtype == torch.float64
        torch.testing.assert_close(accumulator, exact, rtol=0, atol=1e-12)
        assert torch.equal(average.averaged_state()["weight"], accumulator.to(dtype))
        if n == 20:
            saved = average.state_dict()
            assert (saved["kind"], saved["count"], saved["steps"][-1]) == (kind, 20, 200)
            resumed = WeightAverage(model, kind=kind, share=share)
            resumed.load_state_dict(saved)
    assert torch.equal(resumed.state_dict()["state"]["weight"], accumulator)
    assert (resumed.kind, resumed.count, resumed.steps) == (kind, 40, [10 * n for n in range(1, 41)])
    assert average.num_bytes(40) == 8 * sum(value.numel() for value in model.parameters())


@pytest.mark.parametrize(
    ("share", "value"), [(lambda n: 1.5, "1.5"), (lambda n: -0.1, "-0.1"), (lambda n: math.nan, "nan")]
)
def test_a_share_out_of_range_changes_nothing(share: Callable[[int], float], value: str) -> None:
    """A share that is no weight against an average before it, and another one that is updated with it."""
    model = nn.Linear(3, 2)
    wrong, mean = WeightAverage(model, kind="own", share=share), WeightAverage(model)
    update_all([mean, wrong], model)
    before = [average.state_dict()["state"]["weight"] for average in (mean, wrong)]
    nn.init.zeros_(model.weight)
    with pytest.raises(UserError, match=f"own.*weight set 2 is {value}"):
        update_all([mean, wrong], model)
    for average, weight in zip((mean, wrong), before, strict=True):
        assert average.count == 1
        assert torch.equal(average.state_dict()["state"]["weight"], weight)


def test_kinds_and_shares_belong_together() -> None:
    """A name without arithmetic, a share beside a kind that has one, and a setting of another kind: refused."""
    model = nn.Linear(3, 2)
    for name in KINDS:
        with pytest.raises(UserError, match="share: kind"):
            WeightAverage(model, kind=name, share=polynomial_share)
    with pytest.raises(UserError, match="unknown kind of average 'own'"):
        WeightAverage(model, kind="own")
    with pytest.raises(UserError, match="decay"):
        WeightAverage(model, kind="own", share=polynomial_share, decay=0.9)
    own = WeightAverage(model, kind="own", share=polynomial_share)
    with pytest.raises(UserError, match="kind mean, this one own"):
        own.load_state_dict(WeightAverage(model).state_dict())
