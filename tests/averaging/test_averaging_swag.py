"""SWAG against float64 arithmetic on the same weight sets, and its draws against the Gaussian they come from."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import Tensor, nn

from swa_cli.averaging.average import WeightAverage
from swa_cli.averaging.swag import Posterior
from swa_cli.errors import UserError


class Pair(nn.Module):
    """Two layers with a shared weight, and BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight


def trajectory(model: nn.Module, num: int, *, seed: int = 0) -> list[dict[str, Tensor]]:
    """Let the weights walk at random and tell where they were; each step is correlated between the parameters."""
    generator, history = torch.Generator().manual_seed(seed), []
    for _ in range(num):
        push = torch.randn((), generator=generator)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator) + 0.1 * push)
        history.append({name: value.detach().clone() for name, value in model.named_parameters()})
    return history


def taken(model: nn.Module, history: list[dict[str, Tensor]], **settings_: Any) -> WeightAverage:
    average = WeightAverage(model, kind="swag", **settings_)
    for weights in history:
        model.load_state_dict(weights, strict=False)
        average.update(model)
    return average


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.detach().double().flatten() for value in tensors.values()])


def draw(posterior: Posterior, seed: int) -> dict[str, Tensor]:
    return posterior.draw(torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num", [1, 2, 3, 9])
def test_mean_variance_and_deviations(num: int) -> None:
    """Of 1 to 9 weight sets with rank 3 against float64: E[w], E[w^2] - E[w]^2, w_i - mean of w_1 to w_i."""
    model = nn.Linear(4, 2)
    history = trajectory(model, num)
    posterior = taken(model, history, rank=3).posterior()
    wide = torch.stack([weights["weight"].double() for weights in history])
    torch.testing.assert_close(posterior.mean["weight"].double(), wide.mean(0), rtol=0, atol=1e-7)
    exact = wide.var(0, correction=0)
    torch.testing.assert_close(posterior.variance["weight"].double(), exact, rtol=1e-6, atol=1e-12)
    means = torch.stack([wide[: i + 1].mean(0) for i in range(num)])
    torch.testing.assert_close(posterior.deviations["weight"].double(), (wide - means)[-3:], rtol=1e-6, atol=1e-9)
    assert posterior.deviations["weight"].dtype == torch.float32
    assert posterior.num_deviations == min(num, 3)


def test_mean_is_that_of_kind_mean() -> None:
    """The mean of a swag average against that of kind mean over the same weight sets, to the bit."""
    model = Pair()
    history = trajectory(model, 7)
    plain = WeightAverage(model)
    for weights in history:
        model.load_state_dict(weights, strict=False)
        plain.update(model)
    for settings_ in ({"rank": 2}, {"diagonal": True}):
        found, exact = taken(model, history, **settings_).averaged_state(), plain.averaged_state()
        assert all(torch.equal(found[name], exact[name]) for name in exact)


@given(
    centre=st.floats(-1e4, 1e4),
    spread=st.floats(0, 1e-2),
    num=st.integers(1, 30),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_variance_is_never_negative(centre: float, spread: float, num: int, seed: int) -> None:
    """Weights far from 0 that hardly differ: M2 / n against the variance in float64, where E[w^2] - E[w]^2 fails."""
    model, generator = nn.Linear(5, 1, bias=False), torch.Generator().manual_seed(seed)
    average, history = WeightAverage(model, kind="swag", diagonal=True), []
    for _ in range(num):
        with torch.no_grad():
            model.weight.copy_(centre + spread * torch.randn(1, 5, generator=generator))
        history.append(model.weight.detach().double().clone())
        average.update(model)
    found = average.state_dict()["m2"]["weight"] / num
    assert (found >= 0).all()
    torch.testing.assert_close(found, torch.stack(history).var(0, correction=0), rtol=1e-6, atol=1e-20 * centre**2)
    assert (average.posterior().variance["weight"] >= 0).all()


@pytest.mark.parametrize("settings_", [{"rank": 5}, {"diagonal": True}], ids=str)
def test_draws_come_from_the_gaussian(settings_: dict[str, Any]) -> None:
    """2,000 draws: 95 % lie in the ellipsoid that holds 95 % of N(mean, diag(var)/2 + D D^T / (2 (K - 1)))."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    average = taken(model, trajectory(model, 12), **settings_)
    state, posterior = average.state_dict(), average.posterior()
    variance = flat(state["m2"]) / 12
    covariance = torch.diag(variance)
    if "rank" in settings_:
        stacks = [stack.double().flatten(1) for stack in state["deviations"].values()]
        columns = torch.cat(stacks, dim=1).T  # (11 parameters, K)
        covariance = covariance / 2 + columns @ columns.T / (2 * (columns.shape[1] - 1))
    mean = flat({name: state["state"][name] for name in state["m2"]})
    offsets = torch.stack([flat(draw(posterior, seed)) for seed in range(2000)]) - mean
    distances = (offsets * torch.linalg.solve(covariance, offsets.T).T).sum(1)
    inside = float((distances < chi2.ppf(0.95, df=len(mean))).double().mean())
    assert 0.94 <= inside <= 0.96
    assert float(distances.mean()) == pytest.approx(len(mean), rel=0.05)


def test_deviations_are_drawn_together() -> None:
    """Weights that only ever move together, against draws: so do theirs, as z2 is one for all parameters."""
    model = nn.ModuleList([nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)])
    average = WeightAverage(model, kind="swag", rank=4)
    for value in (0.1, 0.7, -0.4, 0.3):
        for layer in model:
            nn.init.constant_(layer.weight, value)
        average.update(model)
    posterior = average.posterior()
    still = replace(posterior, variance={name: torch.zeros_like(value) for name, value in posterior.variance.items()})
    for seed in range(5):
        drawn = draw(still, seed)
        assert torch.equal(drawn["0.weight"], drawn["1.weight"])
        assert not torch.equal(drawn["0.weight"], posterior.mean["0.weight"])


def test_draws_are_functions_of_the_generator() -> None:
    """The same seed twice, another seed, and the global random state before and after."""
    model = Pair()
    posterior = taken(model, trajectory(model, 5), rank=3).posterior()
    before = torch.get_rng_state()
    first, again, other = draw(posterior, 1), draw(posterior, 1), draw(posterior, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["first.weight"], other["first.weight"])


def test_draws_are_complete_states_of_the_model() -> None:
    """A draw against its model: loads strictly, shared weights stay shared, buffers are those of the mean."""
    model = Pair()
    posterior = taken(model, trajectory(model, 5), rank=3).posterior()
    drawn = draw(posterior, 0)
    model.load_state_dict(drawn, strict=True)
    assert torch.equal(drawn["first.weight"], drawn["second.weight"])
    assert torch.equal(model.first.weight, drawn["first.weight"])
    assert "second.weight" not in posterior.variance
    assert all(torch.equal(drawn[name], posterior.mean[name]) for name, _ in model.named_buffers())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_types_of_parameters(dtype: torch.dtype) -> None:
    """Variance of parameters of other types against float64; draws are of the model's type."""
    model = nn.Linear(3, 2).to(dtype)
    history = trajectory(model, 6)
    posterior = taken(model, history, rank=3).posterior()
    exact = torch.stack([weights["bias"].double() for weights in history]).var(0, correction=0)
    torch.testing.assert_close(posterior.variance["bias"].double(), exact, rtol=1e-6, atol=1e-12)
    drawn = draw(posterior, 0)
    assert {value.dtype for value in drawn.values()} == {dtype}
    wide = {name: value.double() for name, value in posterior.deviations.items()}  # as another program may keep them
    assert torch.equal(draw(replace(posterior, deviations=wide), 0)["bias"], drawn["bias"])


@pytest.mark.parametrize("settings_", [{"rank": 3}, {"diagonal": True}], ids=str)
@pytest.mark.parametrize("num", [0, 1, 2, 7])
def test_draws_after_a_file(settings_: dict[str, Any], num: int) -> None:
    """An average continued from a file (weights_only) against one that was not: variance and draws, to the bit."""
    model = Pair()
    history = trajectory(model, 12)
    whole, file = taken(model, history, **settings_), io.BytesIO()
    torch.save(taken(model, history[:num], **settings_).state_dict(), file)
    file.seek(0)
    resumed = WeightAverage(Pair(), kind="swag", **settings_)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for weights in history[num:]:
        model.load_state_dict(weights, strict=False)
        resumed.update(model)
    one, two = whole.posterior(), resumed.posterior()
    assert all(torch.equal(one.variance[name], two.variance[name]) for name in one.variance)
    assert all(torch.equal(value, draw(two, 3)[name]) for name, value in draw(one, 3).items())


def test_too_few_deviations_are_refused() -> None:
    """One weight set against the two that a covariance of low rank needs; a diagonal one draws its mean."""
    model = nn.Linear(2, 2)
    history = trajectory(model, 1)
    with pytest.raises(UserError, match="number of deviations is 1"):
        draw(taken(model, history, rank=3).posterior(), 0)
    drawn = draw(taken(model, history, diagonal=True).posterior(), 0)
    assert torch.equal(drawn["weight"], model.weight)


def test_what_has_no_posterior() -> None:
    """Another kind, an average that holds nothing, and complex weights: refused with the reason."""
    model = nn.Linear(2, 2)
    with pytest.raises(UserError, match="kind mean has no posterior"):
        WeightAverage(model).posterior()
    with pytest.raises(UserError, match="no weights yet"):
        WeightAverage(model, kind="swag", rank=2).posterior()
    with pytest.raises(UserError, match="weight: is complex"):
        WeightAverage(nn.Linear(2, 2, dtype=torch.complex64), kind="swag", rank=2)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("m2", lambda value: value - 9, "no weights lead to"),
        ("m2", lambda value: value * math.nan, "no weights lead to"),
        ("m2", lambda value: value + 0j, "no weights lead to"),
        ("m2", lambda value: value[:1], "1 of another shape"),
        ("deviations", lambda value: value * math.inf, "no weights lead to"),
        ("deviations", lambda value: value[:2], r"weight \[2, 2, 2\] instead of \[3, 2, 2\]"),
    ],
)
def test_states_that_no_weights_lead_to(key: str, change: Any, message: str) -> None:
    """Tensors changed in a saved state: refused, and the average stays as it was."""
    model = nn.Linear(2, 2)
    average = taken(model, trajectory(model, 4), rank=3)
    before, state = average.state_dict(), average.state_dict()
    state[key]["weight"] = change(state[key]["weight"])
    with pytest.raises(UserError, match=message):
        average.load_state_dict(state)
    for part in ("state", "m2", "deviations"):
        assert all(torch.equal(value, average.state_dict()[part][name]) for name, value in before[part].items())
    del state[key]
    with pytest.raises(UserError, match=f"lacks {key}"):
        average.load_state_dict(state)
