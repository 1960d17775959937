"""Running averages of a model's weights: the mean, an exponential moving average, the last k, or SWAG.

One idea: parameters are averaged by name, each kind in a type wide enough for it (`accumulator_dtype`), in one
foreach pass an update; buffers (BatchNorm statistics, counters) are copied from the model, so they never mix into
an average. A weight set that is not finite, or that belongs to another model, changes nothing.

n: weight sets averaged so far; k: how many `lawa` holds now, whose stacks are (k, *shape of the parameter).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from swa_cli.averaging import kinds
from swa_cli.averaging.kinds import KINDS, Settings, accumulator_dtype, blend
from swa_cli.averaging.model_state import (
    Tensors,
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

    mean:   avg += (w - avg) / (n + 1), the arithmetic mean of all of them (Izmailov et al. 2018, SWA)
    ema:    avg += (w - avg) * share, see `ema.share`; from the first weight set on: initial weights never enter
    lawa: the arithmetic mean of the last `window`, or of as many as there are
    swag:   as mean, and what it takes to draw weights around it (`posterior`)

    Shared parameters are accumulated once and come out under each of their names. Names are those of the
    plain model, also if it comes wrapped by DistributedDataParallel or torch.compile. Memory is taken by the
    first update, for `lawa` by each of the first `window`.

    Args:
        model: What will be averaged; only its names, shapes and types are read here.
        kind: `mean`, `ema`, `lawa` or `swag`.
        decay: For `ema`, in [0, 1).
        warmup: For `ema`, a smaller decay at first; default no.
        bias_correction: For `ema`, whether the first weight set counts as one like the others; default yes.
        window: For `lawa`, at least 1.
        rank: For `swag`, how many deviations from the mean to keep, at least 2.
        diagonal: For `swag` instead of a rank: keep variances alone.

    Attributes:
        steps: Optimizer updates that had been done when each of the weight sets held was taken.

    Raises:
        UserError: An unknown kind; a setting that is missing, out of range or of another kind; complex weights
            for swag.
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
    ) -> None:
        if kind == "ema":
            warmup, bias_correction = bool(warmup), bias_correction is None or bias_correction
        elif kind == "swag":
            diagonal = bool(diagonal)
        self.settings = Settings(kind, decay, warmup, bias_correction, window, rank, diagonal)
        self.window = window
        self.steps: list[int] = []
        self._num_taken = 0  # `lawa` writes slot `_num_taken % window` next
        self._weights: dict[str, Tensor] = {}  # empty for `lawa`
        self._slots: list[dict[str, Tensor]] = []  # the weight sets of `lawa`
        self._buffers: dict[str, Tensor] = {}
        self._spread = SwagMoments(rank=rank or 0) if kind == "swag" else None
        present = read(model)
        if kind == "swag":
            _require_real(present.weights)
        self._devices = {name: value.device for name, value in present.all().items()}
        # What the model's tensors look like: shapes, strides and types without memory.
        self._layout = Tensors(on_meta(present.weights), on_meta(present.buffers), present.owners, present.metadata)

    @property
    def kind(self) -> str:
        """`mean`, `ema`, `lawa` or `swag`."""
        return self.settings.kind

    @property
    def count(self) -> int:
        """How many weight sets the average holds."""
        return len(self.steps)

    def update(self, model: nn.Module, *, step: int | None = None) -> None:
        """Take the present parameters of `model` into the average and copy its buffers.

        Args:
            model: Its tensors are matched by name.
            step: Optimizer updates done so far; by default one more than at the last update.

        Raises:
            NonFiniteWeights: A parameter holds NaN or infinity; the average stays as it was.
            UserError: A tensor is missing, new or of another shape; the average stays as it was.
        """
        update_all([self], model, step=step)

    @torch.no_grad()
    def averaged_state(self) -> dict[str, Tensor]:
        """A complete state_dict of the plain model, in its types and in fresh memory; it loads strictly.

        Raises:
            UserError: Nothing was averaged yet.
        """
        if not self.steps:
            raise UserError("the average holds no weights yet", hint="update it before its weights are used")
        fresh = {name: value.clone() for name, value in self._buffers.items()}
        for name, like in self._layout.weights.items():
            mean = self._weights[name] if self.window is None else _mean([slot[name] for slot in self._slots])
            fresh[name] = in_memory(like, device=mean.device).copy_(mean)
        state = {name: fresh[owner] for name, owner in self._layout.owners.items()}
        return with_metadata(state, self._layout.metadata)

    def posterior(self) -> Posterior:
        """The Gaussian over weights of a swag average, in fresh memory.

        Raises:
            UserError: Another kind of average, or nothing was averaged yet.
        """
        if self._spread is None:
            raise UserError(f"an average of kind {self.kind} has no posterior", hint="make it of kind swag")
        mean, variance = self.averaged_state(), self._spread.variance(self.count)
        diagonal = bool(self.settings.diagonal)
        return Posterior(mean, variance, self._spread.deviations(), diagonal, self._layout.owners)

    def num_bytes(self, num_updates: int) -> int:
        """The memory that the average takes after so many updates."""
        if not num_updates:
            return 0
        held = sum(value.nbytes for value in self._layout.buffers.values())
        for name, like in self._layout.weights.items():
            if self.window is not None:
                held += like.nbytes * min(num_updates, self.window)
                continue
            wide = accumulator_dtype(like.dtype, kind=self.kind, device=self._devices[name])
            held += like.numel() * wide.itemsize
            if self._spread is not None:
                held += like.numel() * self._spread.itemsize(num_updates, wide=wide)
        return held

    def state_dict(self, *, copy: bool = True) -> dict[str, Any]:
        """All it takes to continue: primitives and tensors; `lawa` stacks run from old to new.

        Args:
            copy: Give copies of the tensors. Otherwise they are the average's own, which its next update changes.
        """
        weights, buffers = self._weights, self._buffers
        if copy:
            weights, buffers = cloned(weights), cloned(buffers)
        if self._slots:
            oldest = self._num_taken % len(self._slots)
            slots = self._slots[oldest:] + self._slots[:oldest]
            weights = {name: torch.stack([slot[name] for slot in slots]) for name in slots[0]}
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
            UserError: It is of another kind of average, or of another model; this one stays as it was.
        """
        _require_whole(state)
        self.settings.require_same(state)
        saved: Mapping[str, Tensor] = state["state"]
        count = len(state["steps"])
        stacked = () if self.window is None else (count,)
        expected = {name: (*stacked, *like.shape) for name, like in self._layout.weights.items()}
        expected |= {name: tuple(saved[name].shape) for name in self._layout.buffers if name in saved}
        expected |= {name: tuple(like.shape) for name, like in self._layout.buffers.items() if name not in saved}
        require_same_shapes(shapes(saved), expected if count else {}, what="saved average")
        if self._spread is not None:
            self._spread.require_fit(state, expected=shapes(self._layout.weights), count=count)
        self._weights, self._slots, self._buffers = {}, [], {}
        for index in range(count if self.window is not None else min(count, 1)):
            for name, value in self._allocate(self._devices).items():
                value.copy_(saved[name] if self.window is None else saved[name][index])
        if count:
            for name, like in self._layout.buffers.items():
                same = like.shape == saved[name].shape
                place = in_memory(like if same else saved[name], device=self._devices[name], dtype=like.dtype)
                self._buffers[name] = place.copy_(saved[name])
        if self._spread is not None:
            self._spread.load_state_dict(state, mean=self._weights)
        self.steps = list(state["steps"])
        self._num_taken = count

    def _allocate(self, devices: Mapping[str, torch.device]) -> dict[str, Tensor]:
        """An accumulator, or one more slot, that keeps the order of the parameters in memory (channels_last)."""
        fresh = {}
        for name, like in self._layout.weights.items():
            dtype = like.dtype
            if self.window is None:
                dtype = accumulator_dtype(dtype, kind=self.kind, device=devices[name])
            fresh[name] = in_memory(like, device=devices[name], dtype=dtype)
        if self.window is None:
            self._weights = fresh
        else:
            self._slots.append(fresh)
        return fresh

    def _take(self, present: Tensors, step: int | None) -> None:
        """One update with tensors that were found to be finite and of the right names and shapes."""
        if len(self.steps) < (self.window or 1):
            target, is_fresh = self._allocate({name: value.device for name, value in present.weights.items()}), True
        elif self.window is not None:
            target, is_fresh = self._slots[self._num_taken % self.window], True
        else:
            target, is_fresh = self._weights, False
        blend(target, present.weights, share=1 if is_fresh else _SHARES[self.kind](self.settings, self.count))
        if self._spread is not None:
            self._spread.take(present.weights, mean=target, count=self.count + 1)
        self._buffers = {name: value.clone() for name, value in present.buffers.items()}
        self._num_taken += 1
        if step is None:
            step = self.steps[-1] + 1 if self.steps else 1
        self.steps.append(step)
        if self.window is not None:
            del self.steps[: -self.window]


@torch.no_grad()
def update_all(averages: Sequence[WeightAverage], model: nn.Module, *, step: int | None = None) -> None:
    """`update` several averages of one model; its weights are read and checked once, and all change or none.

    Raises:
        NonFiniteWeights: A parameter holds NaN or infinity.
        UserError: A tensor is missing, new or of another shape.
    """
    if not averages:
        return
    present = read(model)
    for average in averages:
        layout = average._layout
        require_same_shapes(shapes(present.weights), shapes(layout.weights), what="model")
        if present.buffers.keys() != layout.buffers.keys():  # they are copied, so their shapes may change
            require_same_shapes(shapes(present.buffers), shapes(layout.buffers), what="model")
    require_finite(present.weights)
    for average in averages:
        average._take(present, step)


def _equal_share(settings: Settings, count: int) -> float:
    return 1 / (count + 1)


def _ema_share(settings: Settings, count: int) -> float:
    decay, warmup, corrected = settings.decay, settings.warmup, settings.bias_correction
    assert decay is not None, "its settings were checked"
    return kinds.share(count, decay=decay, warmup=bool(warmup), bias_correction=bool(corrected))


# The weight of the next weight set in the average that includes it, after `count` others.
_SHARES: Mapping[str, Callable[[Settings, int], float]] = {
    "mean": _equal_share,
    "swag": _equal_share,
    "ema": _ema_share,
    "lawa": lambda settings, count: 1.0,  # a weight set has its slot to itself
}
assert _SHARES.keys() == KINDS.keys(), f"no arithmetic: {_SHARES.keys() ^ KINDS.keys()}"


def _mean(values: Sequence[Tensor]) -> Tensor:
    """Mean in float64, as an offset from the first: equal ones come out bit-exact."""
    stack = torch.stack(list(values))
    wide = stack.to(float64_device(stack.device)).to(torch.promote_types(stack.dtype, torch.float64))
    return wide[0] + (wide - wide[0]).mean(0)


def _require_whole(state: Mapping[str, Any]) -> None:
    missing = [key for key in ("kind", "count", "steps", "state") if key not in state]
    if missing or state["count"] != len(state["steps"]):
        problem = f"lacks {', '.join(missing)}" if missing else "holds another number of steps than it counts"
        raise UserError(f"the saved average {problem}", hint="load what WeightAverage.state_dict() returned")


def _require_real(weights: Mapping[str, Tensor]) -> None:
    for name, value in weights.items():
        if value.is_complex():
            raise UserError(f"{name}: is complex, and swag knows the spread of real weights", hint="use kind mean")
