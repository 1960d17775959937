"""Points of the plane and the line through weight sets, against vectors in float64; the grid against its axes.

w1, w2, w3 are weight sets as one long vector, u = w2 - w1, v = w3 - w1 less its part along u (Izmailov et al. 2018).
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import SMALL, Swa
from swa_cli.analysis import loss_surface
from swa_cli.analysis.run_data import Anchor

POINTS = [(0.0, 0.0), (1.5, 0.0), (0.0, 2.0), (-0.7, 0.4), (3.1, -1.9), (0.25, 5.0)]  # x, y


@pytest.fixture
def model() -> nn.Module:
    """Two parameters of different shapes, and BatchNorm statistics, which are no weights."""
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.fixture
def anchors(model: nn.Module) -> list[Anchor]:
    generator, found = torch.Generator().manual_seed(7), []
    for name in ("first", "second", "third"):
        state = {
            key: torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
            for key, value in model.state_dict().items()
        }
        found.append(Anchor(name, state))
    return found


def vector(state: Any, names: list[str]) -> Tensor:
    """All weights of a weight set, one after the other."""
    return torch.cat([state[name].double().flatten() for name in names])


def axes(first: Tensor, second: Tensor, third: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors along u and v: those of Gram and Schmidt."""
    u, w = second - first, third - first
    v = w - (w @ u) / (u @ u) * u
    return u / u.norm(), v / v.norm()


def test_a_point_is_that_many_units_along_both_axes(model: nn.Module, anchors: list[Anchor]) -> None:
    """Weights at (x, y), on the corners and off them, against w1 + x u/|u| + y v/|v|; statistics are those of w3."""
    found = loss_surface.plane_of(model, anchors)
    names = list(dict(model.named_parameters()))
    first, second, third = (vector(anchor.state, names) for anchor in anchors)
    along, across = axes(first, second, third)
    for x, y in POINTS:
        state = loss_surface.combined(anchors, found.coefficients(x, y), averaged=names)
        torch.testing.assert_close(vector(state, names), first + x * along + y * across, rtol=1e-12, atol=1e-12)
        assert torch.equal(state["1.running_mean"], anchors[2].state["1.running_mean"])
    for corner, expected in zip(found.corners, (first, second, third), strict=True):
        torch.testing.assert_close(first + corner[0] * along + corner[1] * across, expected, rtol=1e-12, atol=1e-12)


@pytest.fixture
def run(tmp_path: Path, swa: Swa) -> Path:
    """A finished run with snapshots."""
    (tmp_path / "small.yaml").write_text(SMALL.replace("epochs: 4", "epochs: 2") + "snapshots: {every: 0.5ep}\n")
    assert swa("train", "small.yaml", "-q").code == 0
    return tmp_path / "runs/small-001"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The weights that are scored, in order; each scores its number."""
    seen: list[dict[str, Tensor]] = []

    def score(state: dict[str, Tensor], *_: Any, **__: Any) -> dict[str, float]:
        seen.append(state)
        return dict.fromkeys(loss_surface.KEYS, float(len(seen) - 1))

    monkeypatch.setattr(loss_surface, "_measured", score)
    return seen


def weights(states: list[dict[str, Tensor]]) -> list[Tensor]:
    names = [name for name in states[0] if "running" not in name and "num_batches" not in name]
    return [vector(state, names) for state in states]


def test_a_score_of_the_grid_is_that_of_its_place(run: Path, swa: Swa, measured: list[dict[str, Tensor]]) -> None:
    """What was scored for row j and column i of `swa plot plane`, against the weights at (x[i], y[j])."""
    told = swa("plot", run, "plane", "--grid", "4", "--samples", "64", "--json", "-q").json
    first, second, third, *_ = scored = weights(measured)
    along, across = axes(first, second, third)
    assert (len(told["x"]), len(told["y"])) == (4, 4)
    for (j, y), (i, x) in itertools.product(enumerate(told["y"]), enumerate(told["x"])):
        for key in ("loss", "score"):
            found = scored[int(told[key][j][i])]
            torch.testing.assert_close(found, first + x * along + y * across, rtol=1e-6, atol=1e-6)
    for point, corner in zip(told["points"], (first, second, third), strict=True):
        expected = first + point["x"] * along + point["y"] * across
        torch.testing.assert_close(corner, expected, rtol=1e-6, atol=1e-6)
        assert told["x"][0] < point["x"] < told["x"][-1]
        assert told["y"][0] < point["y"] < told["y"][-1]


def test_a_score_of_the_line_is_that_of_its_place(run: Path, swa: Swa, measured: list[dict[str, Tensor]]) -> None:
    """What was scored for each place of `swa plot path`, against the weights so far from the first end."""
    told = swa("plot", run, "path", "--grid", "5", "--samples", "64", "--json", "-q").json
    first, second, *_ = scored = weights(measured)
    along = (second - first) / (second - first).norm()
    assert [point["name"] for point in told["points"]] == ["last_bn", "swa"]
    for x, *numbers in zip(told["x"], told["loss"], told["train_score"], strict=True):
        for number in numbers:
            torch.testing.assert_close(scored[int(number)], first + x * along, rtol=1e-6, atol=1e-6)
    assert told["points"][1]["x"] == pytest.approx(float((second - first).norm()), rel=1e-9)


def test_a_barrier_is_the_highest_rise_above_the_line_between_the_ends() -> None:
    """Rises over a line from 1 to 3 by hand; points beyond the ends and without a loss do not count."""
    ends, xs = (1.0, 3.0), [-1.0, 0.5, 1.0, 1.5, 2.5]
    found = loss_surface.barrier_of(xs, [9.0, 1.6, None, 3.0, 9.0], ends=ends, length=2.0)
    assert found == {"height": pytest.approx(0.5), "x": 1.5, "line": pytest.approx(2.5)}
    assert loss_surface.barrier_of(xs, [9.0, 1.0, 1.5, 2.0, 9.0], ends=ends, length=2.0)["height"] == 0
    assert loss_surface.barrier_of(xs, [1.0] * 5, ends=(1.0, None), length=2.0) is None
