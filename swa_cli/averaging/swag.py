"""SWAG: a Gaussian over weights, fitted along a trajectory.

One idea (Maddox et al. 2019, arXiv:1902.02476): everything follows from d = w - mean, computed once the mean includes
w. Its square gives the variance, which is never negative, and the last K of them span a covariance of low rank.

n weight sets so far; M2 sum of squared distances from the mean, in the type of the mean; K deviations held, each of the
shape of its parameter and in float32. Shared parameters are kept once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swa_cli.averaging.kinds import MIN_RANK
from swa_cli.averaging.model_state import cloned, comparable, groups, like, require_same_shapes, shapes
from swa_cli.errors import UserError


class SwagMoments:
    """Second moments and last deviations of weight sets, which SWAG keeps beside the mean.

    Args:
        rank: The number of deviations to keep; 0 for none.
    """

    def __init__(self, *, rank: int) -> None:
        self._rank = rank
        self._m2: dict[str, Tensor] = {}
        self._columns: list[dict[str, Tensor]] = []  # from old to new

    @torch.no_grad()
    def take(self, offered: Mapping[str, Tensor], *, mean: Mapping[str, Tensor], count: int) -> None:
        """Add weight set number `count`, which `mean` includes already."""
        if count == 1:
            self._m2 = {name: torch.zeros_like(value) for name, value in mean.items()}
        column = self._next_column(mean)
        for names in groups(mean):
            distances = torch._foreach_sub([offered[name] for name in names], [mean[name] for name in names])
            if count > 1:  # Welford: the distance from the mean before is n / (n - 1) as long
                m2 = [self._m2[name] for name in names]
                torch._foreach_addcmul_(m2, distances, distances, value=count / (count - 1))
            if column:
                torch._foreach_copy_([column[name] for name in names], distances)

    def variance(self, count: int) -> dict[str, Tensor]:
        """Return the variance of each weight over `count` weight sets."""
        return variance_of(self._m2, count=count)

    def deviations(self) -> dict[str, Tensor]:
        """Return stacks (K, *shape) from old to new; empty if none are kept."""
        names = self._columns[0] if self._columns else {}
        return {name: torch.stack([column[name] for column in self._columns]) for name in names}

    def state_dict(self, *, copy: bool = True) -> dict[str, dict[str, Tensor]]:
        """Return all it takes to continue; without `copy`, the next weight set changes the M2 returned."""
        return {"m2": cloned(self._m2) if copy else dict(self._m2), "deviations": self.deviations()}

    def require_fit(self, state: Mapping[str, Any], *, expected: Mapping[str, tuple[int, ...]], count: int) -> None:
        """Refuse a state that does not have the shapes of `count` weight sets, or that no weights lead to.

        Raises:
            UserError: The state is refused.
        """
        held = min(count, self._rank)
        stacked = {name: (held, *shape) for name, shape in expected.items()}
        for key, wanted in (("m2", expected if count else {}), ("deviations", stacked if held else {})):
            if not isinstance(state.get(key), Mapping):
                raise UserError(f"the saved average lacks {key}", hint="load what WeightAverage.state_dict() returned")
            require_same_shapes(shapes(state[key]), wanted, what=f"saved average ({key})")
            for name, value in state[key].items():
                if not is_spread(value, squared=key == "m2"):
                    raise UserError(
                        f"the saved average has values in {key} of {name} that no weights lead to",
                        hint="take another copy of the file",
                    )

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any], *, mean: Mapping[str, Tensor]) -> None:
        """Continue from a state that fits; the tensors are copied into the memory format of `mean`."""
        self._m2 = {name: torch.empty_like(mean[name]).copy_(value) for name, value in state["m2"].items()}
        self._columns = []
        for index in range(len(next(iter(state["deviations"].values()), ()))):
            for name, value in self._next_column(mean).items():
                value.copy_(state["deviations"][name][index])

    def itemsize(self, count: int, *, wide: torch.dtype) -> int:
        """Return the bytes per weight after `count` weight sets with a mean of type `wide`."""
        return wide.itemsize + torch.float32.itemsize * min(count, self._rank)

    def _next_column(self, mean: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return memory for the next deviations, new or that of the oldest ones; empty if none are kept."""
        if not self._rank:
            return {}
        full = len(self._columns) == self._rank
        fresh = self._columns.pop(0) if full else {}
        if not full:
            fresh = {name: torch.empty_like(value, dtype=torch.float32) for name, value in mean.items()}
        self._columns.append(fresh)
        return fresh


def variance_of(m2: Mapping[str, Tensor], *, count: int) -> dict[str, Tensor]:
    """Return M2 / n = E[w^2] - E[w]^2 in float32."""
    return {name: (value / count).float() for name, value in m2.items()}


def is_spread(value: Tensor, *, squared: bool) -> bool:
    """Whether the values can be distances, or squared distances: real, finite, squares not negative."""
    if not comparable(value).is_floating_point() or not bool(value.isfinite().all()):
        return False
    return not squared or bool((value >= 0).all())


@dataclass(frozen=True)
class Posterior:
    """The Gaussian over weights: N(mean, diag(variance) / 2 + D D^T / (2 (K - 1))), or N(mean, diag(variance)).

    D has the deviations as its columns (equation 1 of the paper).
    """

    mean: dict[str, Tensor]  # a complete state_dict
    variance: dict[str, Tensor]  # of the weights, shared ones once
    deviations: dict[str, Tensor]  # (K, *shape); empty if diagonal
    diagonal: bool
    owners: Mapping[str, str]  # every name of the state_dict -> the name in `variance`, if it is a weight

    @property
    def num_deviations(self) -> int:
        """K."""
        return len(next(iter(self.deviations.values()), ()))

    def require_drawable(self) -> None:
        """Refuse a posterior without enough deviations to draw from.

        Raises:
            UserError: There are fewer than two deviations, and it is not diagonal.
        """
        if not self.diagonal and self.num_deviations < MIN_RANK:
            raise UserError(
                f"the number of deviations is {self.num_deviations}, and a covariance of low rank needs {MIN_RANK}",
                hint="average more weight sets: set an earlier start, or a shorter every",
            )

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw weights w = mean + sqrt(variance / 2) z1 + D z2 / sqrt(2 (K - 1)); diagonal: mean + sqrt(variance) z1.

        z1 has a normal number for each weight, z2 one for each deviation, the same for all parameters. All other
        tensors are those of the mean, so BatchNorm statistics have to be measured again.

        Args:
            generator: On the CPU, so that a seed draws the same weights for every device.

        Raises:
            UserError: There are fewer than two deviations, and the posterior is not diagonal.
        """
        self.require_drawable()
        z2 = torch.randn(self.num_deviations, generator=generator)
        drawn = {}
        for name, variance in self.variance.items():
            z1 = torch.randn(variance.shape, generator=generator).to(variance.device)
            offset = z1 * (variance if self.diagonal else variance / 2).sqrt()
            if not self.diagonal:
                scaled = (z2 / math.sqrt(2 * (self.num_deviations - 1))).to(variance.device)
                offset += torch.tensordot(scaled, self.deviations[name].float(), dims=1)
            mean = self.mean[name]
            drawn[name] = (mean + offset.to(mean.device)).to(mean.dtype)
        return like(self.mean, {name: drawn.get(owner, self.mean[name]) for name, owner in self.owners.items()})
