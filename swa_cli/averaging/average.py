"""Running averages of a model's weights: the mean, an EMA, the last k weight sets, or SWAG.

One idea: parameters are averaged by name, in accumulators wide enough for the kind, in one foreach pass per update;
buffers (BatchNorm statistics, counters) are copied from the model and never averaged. A weight set that is not finite
or that belongs to another model changes nothing.

n: weight sets averaged so far; k: weight sets that `lawa` holds, stored as stacks (k, *shape of the parameter).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from swa_cli.averaging import kinds
from swa_cli.averaging.kinds import accumulator_dtype, blend_all
from swa_cli.averaging.model_state import (
    Tensors,
    all_finite,
    cloned,
    float64_device,
    in_memory,
    on_meta,
    read,
    require_finite,
    require_same_shapes,
    shapes,
    with_metadata,
)
from swa_cli.averaging.swag import Posterior, SwagMoments
from swa_cli.errors import UserError


class WeightAverage:
    """The average of the weight sets that a model had at each `update`.

    mean: avg += (w - avg) / n, the arithmetic mean of all weight sets (Izmailov et al. 2018, SWA)
    ema:  avg += (w - avg) * share, see `kinds.ema_share`; it starts at the first weight set, never at initial weights
    lawa: the arithmetic mean of the last `window` weight sets, or of as many as there are (Kaddour 2022)
    swag: as mean, with the deviations needed to draw weights around it, see `posterior` (Maddox et al. 2019)

    A name that is none of these makes a running mean of the caller's own, avg += (w - avg) * share(n).

    Shared parameters are accumulated once and returned under each of their names. Names are those of the plain model,
    also if DistributedDataParallel or torch.compile wraps it. The first update allocates memory, for `lawa` each of
    the first `window` updates.

    Args:
        model: Only its names, shapes and types are read.
        kind: `mean`, `ema`, `lawa`, `swag`, or a name of your own.
        decay: For `ema`, in [0, 1).
        warmup: For `ema`, use smaller decays at first; default no.
        bias_correction: For `ema`, weigh the first weight set like the others; default yes.
        window: For `lawa`, at least 1.
        rank: For `swag`, the number of deviations from the mean to keep, at least 2.
        diagonal: For `swag` instead of `rank`: keep variances alone.
        share: For a name of your own: share(n), the weight in [0, 1] of the n-th weight set (from 1) in the average of
            n. The first one always has all the weight. It is not part of `state_dict`.
        share_settings: For a name of your own: the plain values that `share` depends on. They are part of `state_dict`,
            and an average with other values is not continued.
        device: Where the average lies; default: where the parameters lie. On the CPU it takes no memory of a GPU, and
            each update copies the weights to the host, which waits for that.

    Attributes:
        steps: Optimizer updates that had been done when each of the weight sets held was taken.

    Raises:
        UserError: The kind is unknown; a setting is missing, out of range or belongs to another kind; weights for swag
            are complex.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        kind: str = "mean",
        decay: float | None = None,
        warmup: bool | None = None,
        bias_correction: bool | None = None,
        window: int | None = None,
        rank: int | None = None,
        diagonal: bool | None = None,
        share: Callable[[int], float] | None = None,
        share_settings: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self._kind = kinds.find(kind, share=share)
        given: dict[str, Any] = {"decay": decay, "warmup": warmup, "bias_correction": bias_correction}
        given |= {"window": window, "rank": rank, "diagonal": diagonal, "share_settings": share_settings}
        self.settings = self._kind.settings(kind, given)
        self.window = window
        self.steps: list[int] = []
        self._slots: list[dict[str, Tensor]] = []  # the accumulators; for `lawa` its weight sets, from old to new
        self._buffers: dict[str, Tensor] = {}
        self._spread = SwagMoments(rank=rank or 0) if kind == "swag" else None
        present = read(model)
        for name, value in present.weights.items():
            if kind == "swag" and value.is_complex():
                raise UserError(f"{name}: is complex, which swag does not support", hint="use kind mean")
        self._device = None if device is None else torch.device(device)
        self._devices = {
            name: self._device or value.device for name, value in (present.weights | present.buffers).items()
        }
        # The model's tensors on the meta device: shapes, strides and types without memory.
        self._layout = Tensors(on_meta(present.weights), on_meta(present.buffers), present.owners, present.metadata)
        self._shapes = shapes(self._layout.weights)

    @property
    def kind(self) -> str:
        """The name of the kind."""
        return self.settings.kind

    @property
    def count(self) -> int:
        """The number of weight sets that the average holds."""
        return len(self.steps)

    def update(self, model: nn.Module, *, step: int | None = None) -> None:
        """Add the present parameters of `model`, matched by name, to the average and copy its buffers.

        `step` counts the optimizer updates done so far; by default it is one more than at the last update. After an
        error the average is unchanged, see `update_all`.
        """
        update_all([self], model, step=step)

    @torch.no_grad()
    def averaged_state(self) -> dict[str, Tensor]:
        """Return a complete state_dict of the plain model, in its types and in new memory; it loads strictly.

        Raises:
            UserError: The average holds no weights yet.
        """
        if not self.steps:
            raise UserError("the average holds no weights yet", hint="update it before its weights are used")
        fresh = {name: value.clone() for name, value in self._buffers.items()}
        for name, like in self._layout.weights.items():
            mean = self._slots[0][name] if self.window is None else _mean([slot[name] for slot in self._slots])
            fresh[name] = in_memory(like, device=mean.device).copy_(mean)
        state = {name: fresh[owner] for name, owner in self._layout.owners.items()}
        return with_metadata(state, self._layout.metadata)

    def posterior(self) -> Posterior:
        """Return the Gaussian over weights of a swag average, in new memory.

        Raises:
            UserError: The average is of another kind, or holds no weights yet.
        """
        if self._spread is None:
            raise UserError(f"an average of kind {self.kind} has no posterior", hint="make it of kind swag")
        mean, variance = self.averaged_state(), self._spread.variance(self.count)
        diagonal = bool(self.settings.diagonal)
        return Posterior(mean, variance, self._spread.deviations(), diagonal, self._layout.owners)

    def num_bytes(self, num_updates: int) -> int:
        """Return the memory that the average takes after `num_updates` updates."""
        if not num_updates:
            return 0
        total = sum(value.nbytes for value in self._layout.buffers.values())
        for name, like in self._layout.weights.items():
            wide = accumulator_dtype(like.dtype, wide=self._kind.dtype, device=self._devices[name])
            total += like.numel() * wide.itemsize * min(num_updates, self.window or 1)
            if self._spread is not None:
                total += like.numel() * self._spread.itemsize(num_updates, wide=wide)
        return total

    def state_dict(self, *, copy: bool = True) -> dict[str, Any]:
        """Return all it takes to continue: primitives and tensors; stacks of `lawa` run from old to new.

        Without `copy` the tensors are the average's own, which its next update changes.
        """
        weights = self._slots[0] if self._slots else {}
        if self.window is not None:
            weights = {name: torch.stack([slot[name] for slot in self._slots]) for name in weights}
        elif copy:
            weights = cloned(weights)
        buffers = cloned(self._buffers) if copy else self._buffers
        return {
            **self.settings.given(),
            "count": self.count,
            "steps": list(self.steps),
            "state": with_metadata({**weights, **buffers}, self._layout.metadata),
            **({} if self._spread is None else self._spread.state_dict(copy=copy)),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the average that `state_dict` described; the tensors are copied.

        Raises:
            UserError: The state is of another kind of average or of another model; this average is unchanged.
        """
        _require_complete(state)
        self.settings.require_same(state)
        saved: Mapping[str, Tensor] = state["state"]
        count = len(state["steps"])
        require_same_shapes(shapes(saved), self._expected_shapes(saved, count=count), what="saved average")
        if self._spread is not None:
            self._spread.require_fit(state, expected=shapes(self._layout.weights), count=count)
        self._slots, self._buffers = [], {}
        for index in range(min(count, self.window or 1)):
            for name, value in self._next_slot(self._devices).items():
                value.copy_(saved[name] if self.window is None else saved[name][index])
        if count:
            for name, like in self._layout.buffers.items():
                layout = like if like.shape == saved[name].shape else saved[name]
                place = in_memory(layout, device=self._devices[name], dtype=like.dtype)
                self._buffers[name] = place.copy_(saved[name])
        if self._spread is not None:
            self._spread.load_state_dict(state, mean=self._slots[0] if self._slots else {})
        self.steps = list(state["steps"])

    def _expected_shapes(self, saved: Mapping[str, Tensor], *, count: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a saved state of `count` weight sets; buffers are copied, so theirs may change."""
        if not count:
            return {}
        stacked = () if self.window is None else (count,)
        weights = {name: (*stacked, *like.shape) for name, like in self._layout.weights.items()}
        buffers = {name: saved.get(name, like) for name, like in self._layout.buffers.items()}
        return weights | shapes(buffers)

    def _next_slot(self, devices: Mapping[str, torch.device]) -> dict[str, Tensor]:
        """Return the accumulators of the next weight set; new ones have the memory format of the parameters."""
        if len(self._slots) == (self.window or 1):
            slot = self._slots.pop(0)
        else:
            slot = {}
            for name, like in self._layout.weights.items():
                dtype = accumulator_dtype(like.dtype, wide=self._kind.dtype, device=devices[name])
                slot[name] = in_memory(like, device=devices[name], dtype=dtype)
        self._slots.append(slot)
        return slot

    def _next_share(self) -> float:
        """Return the share of the next weight set; the first one replaces whatever there is."""
        if not self.steps:
            return 1.0
        share = self._kind.share(self.settings, self.count + 1)
        if not 0 <= share <= 1:
            raise UserError(
                f"kind {self.kind}: the share of weight set {self.count + 1} is {share}",
                hint="return a share in [0, 1]",
            )
        return share

    def _count_taken(self, target: Mapping[str, Tensor], present: Tensors, *, step: int | None) -> None:
        """Count the weight set that has just been blended into `target`."""
        if self._spread is not None:
            self._spread.take(present.weights, mean=target, count=self.count + 1)
        if step is None:
            step = self.steps[-1] + 1 if self.steps else 1
        self.steps.append(step)
        if self.window is not None:
            del self.steps[: -self.window]


@torch.no_grad()
def update_all(
    averages: Sequence[WeightAverage], model: nn.Module, *, step: int | None = None, finite: Tensor | None = None
) -> None:
    """Update several averages of one model: read, check and copy its state once, change all averages or none.

    Args:
        averages: They change.
        model: The network.
        step: See `WeightAverage.update`.
        finite: A bool tensor on the device of the weights, which becomes false where a weight is not finite, so that
            the host does not wait for the device. The averages then hold what is not finite, too: read this tensor
            before they are used.

    Raises:
        NonFiniteWeightsError: A parameter holds NaN or infinity, and there is no `finite` to tell it.
        UserError: A tensor is missing, unexpected or of another shape, or a `share` is out of range.
    """
    if not averages:
        return
    present = read(model)
    found = shapes(present.weights)
    for average in averages:
        layout = average._layout
        require_same_shapes(found, average._shapes, what="model")
        if present.buffers.keys() != layout.buffers.keys():  # they are copied, so their shapes may change
            require_same_shapes(shapes(present.buffers), shapes(layout.buffers), what="model")
    if finite is None:
        require_finite(present.weights)
    else:
        finite.logical_and_(all_finite(present.weights).to(finite.device))
    shares = [average._next_share() for average in averages]
    taken = {place: _copied_to(place, present) for place in {average._device for average in averages}}
    targets = [
        average._next_slot({name: value.device for name, value in taken[average._device].weights.items()})
        for average in averages
    ]
    for place, there in taken.items():
        mine = [number for number, average in enumerate(averages) if average._device == place]
        blend_all([targets[number] for number in mine], there.weights, shares=[shares[number] for number in mine])
    for average, target in zip(averages, targets, strict=True):
        there = taken[average._device]
        average._count_taken(target, there, step=step)
        average._buffers = there.buffers  # nothing writes into them


def _copied_to(device: torch.device | None, present: Tensors) -> Tensors:
    """Return the weights on a device, or as they lie, and copies of the buffers there."""
    if device is None:
        return replace(present, buffers={name: value.clone() for name, value in present.buffers.items()})
    weights = {name: value.to(device) for name, value in present.weights.items()}
    return replace(
        present, weights=weights, buffers={name: value.to(device, copy=True) for name, value in present.buffers.items()}
    )


def _mean(values: Sequence[Tensor]) -> Tensor:
    """Return the mean in float64, as an offset from the first value: equal values come out bit-exact."""
    stack = torch.stack(list(values))
    wide = stack.to(float64_device(stack.device)).to(torch.promote_types(stack.dtype, torch.float64))
    return wide[0] + (wide - wide[0]).mean(0)


def _require_complete(state: Mapping[str, Any]) -> None:
    missing = [key for key in ("kind", "count", "steps", "state") if key not in state]
    if missing or state["count"] != len(state["steps"]):
        problem = f"lacks {', '.join(missing)}" if missing else "holds another number of steps than it counts"
        raise UserError(f"the saved average {problem}", hint="load what WeightAverage.state_dict() returned")
