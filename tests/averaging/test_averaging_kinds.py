"""The shares of an exponential moving average against the weighted sums that define its variants."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from swa_cli.averaging.average import WeightAverage
from swa_cli.averaging.kinds import share


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
    shares = [share(n, **variant) for n in range(num)]
    found = [shares[i] * math.prod(1 - later for later in shares[i + 1 :]) for i in range(num)]
    assert found == pytest.approx(weights_of(num, **variant), rel=1e-6, abs=1e-12)
    assert math.fsum(found) == pytest.approx(1, abs=1e-9)


def test_first_weight_set_is_not_over_weighted() -> None:
    """Decay .999 after 10 updates: corrected, all ten weigh nearly the same; plain, the first has .991 of all."""
    corrected = weights_of(10, decay=0.999, warmup=False, bias_correction=True)
    assert max(corrected) / min(corrected) == pytest.approx(0.999**-9)
    plain = [share(n, decay=0.999, warmup=False, bias_correction=False) for n in range(10)]
    assert math.prod(1 - later for later in plain[1:]) == pytest.approx(0.999**9)


def test_long_runs() -> None:
    """Shares after ten million updates against their limit, 1 - decay; they fall all the way."""
    for warmup in (False, True):
        found = [share(10**k, decay=0.9999, warmup=warmup, bias_correction=True) for k in range(8)]
        assert all(later < former for former, later in pairwise(found[:6]))
        assert found[-1] == pytest.approx(1e-4, rel=1e-9)
