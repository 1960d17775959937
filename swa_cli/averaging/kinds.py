"""Kinds of running averages: settings, shares and the arithmetic of an update.

One idea: every kind moves its average by `avg += (w - avg) * share(n)` at the n-th weight set, so a kind is one entry
of `KINDS`: its settings, their check, the type of its accumulators, and its share in closed form. Nothing but the count
has to be saved. A running mean that is declared elsewhere brings its share along, see `WeightAverage(share=...)`.

n: number of the weight set being added, from 1; d_n: decay of update n; w: its weights.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from swa_cli.averaging.model_state import float64_device, groups
from swa_cli.errors import UserError

MIN_RANK = 2  # deviations of swag: their covariance is divided by one less


@dataclass(frozen=True)
class Settings:
    """A kind of average and its settings; those of other kinds are None."""

    kind: str
    decay: float | None = None
    warmup: bool | None = None
    bias_correction: bool | None = None
    window: int | None = None
    rank: int | None = None
    diagonal: bool | None = None
    share_settings: dict[str, Any] | None = None  # of a kind with a share of the caller's own

    def given(self) -> dict[str, Any]:
        """Return the kind and the settings that belong to it."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def require_same(self, saved: Mapping[str, Any]) -> None:
        """Refuse to continue an average that was made with other settings.

        Raises:
            UserError: A setting of `saved` differs.
        """
        for key, own in asdict(self).items():
            if saved.get(key) != own:
                raise UserError(
                    f"the saved average has {key} {saved.get(key)}, this one {own}",
                    hint="continue it with the settings it has",
                )


Misfit = tuple[str, str]  # a setting with a wrong value, and what to do about it


@dataclass(frozen=True)
class Kind:
    """What the averages of one kind have in common."""

    defaults: Mapping[str, Any]  # its own settings; None: required, or left out
    misfits: Callable[[Settings], Iterable[Misfit]]
    dtype: torch.dtype | None  # of the accumulators, on devices that have it; None: that of the weights
    share: Callable[[Settings, int], float]  # of the n-th weight set in the average of n

    def settings(self, name: str, given: Mapping[str, Any]) -> Settings:
        """Return the settings of an average of this kind.

        Args:
            name: Of the kind.
            given: A value for each setting of any kind, None if it was left out.

        Raises:
            UserError: A setting is missing, out of range or belongs to another kind.
        """
        for key, value in given.items():
            if value is not None and key not in self.defaults:
                owner = f"kind {OWNERS[key]}" if key in OWNERS else "a share of your own"
                raise _misfit(name, key, value, hint=f"{key} belongs to {owner}")
        own = {key: default if given[key] is None else given[key] for key, default in self.defaults.items()}
        settings = Settings(name, **own)
        for key, hint in self.misfits(settings):
            raise _misfit(name, key, own[key], hint=hint)
        return settings


def find(name: str, *, share: Callable[[int], float] | None = None) -> Kind:
    """Return the kind of this name, or a running mean with a share of the caller's own.

    Raises:
        UserError: The kind is unknown and has no share, or is one of `KINDS` and has one.
    """
    if share is None and name not in KINDS:
        raise UserError(f"kind: unknown kind of average {name!r}", hint=f"choose one of {', '.join(KINDS)}")
    if share is None:
        return KINDS[name]
    if name in KINDS:
        raise UserError(f"share: kind {name} has a share of its own", hint="leave share out, or use another name")
    return Kind({"share_settings": None}, _no_misfits, torch.float64, lambda settings, n: share(n))


def ema_share(n: int, *, decay: float, warmup: bool, bias_correction: bool) -> float:
    """Return the share of the n-th weight set in an exponential moving average: 1 for the first.

    The decay of update n is d_n = decay, with `warmup` min(decay, n / (n + 9)).
    Plain: 1 - d_n, so the first weight set keeps the weight d_2 ... d_n, as if it had always been there.
    With `bias_correction`: (1 - d_n) / (1 - d_1 ... d_n), which makes the average the sum of the weight sets, each
    with the weight (1 - d_i) d_i+1 ... d_n, over the sum of those weights (Adam: Kingma & Ba 2015, section 3).

    Args:
        n: At least 1.
        decay: In [0, 1).
        warmup: Use smaller decays at first, so that a short average forgets faster.
        bias_correction: Give the first weight set no more weight than its own.
    """
    if n == 1:
        return 1.0
    new = 1 - (min(decay, n / (n + 9)) if warmup else decay)
    return new / (1 - _decay_product(n, decay=decay, warmup=warmup)) if bias_correction else new


def _decay_product(n: int, *, decay: float, warmup: bool) -> float:
    """Return d_1 ... d_n. The decays of the warmup, i / (i + 9) below `decay`, come first.

    Their product over i = 1 ... k is 9! / ((k + 1) ... (k + 9)).
    """
    num_warm = min(n, max(0, math.ceil((10 * decay - 1) / (1 - decay)))) if warmup else 0
    return math.factorial(9) / math.prod(range(num_warm + 1, num_warm + 10)) * decay ** (n - num_warm)


def _share_of_ema(settings: Settings, n: int) -> float:
    decay, warmup, bias_correction = settings.decay, settings.warmup, settings.bias_correction
    assert decay is not None, "settings were checked"
    return ema_share(n, decay=decay, warmup=bool(warmup), bias_correction=bool(bias_correction))


def _no_misfits(settings: Settings) -> Iterable[Misfit]:
    return ()


def _ema_misfits(settings: Settings) -> Iterable[Misfit]:
    if settings.decay is None or not 0 <= settings.decay < 1:
        yield "decay", "ema takes a decay in [0, 1)"


def _window_misfits(settings: Settings) -> Iterable[Misfit]:
    if settings.window is None or settings.window < 1:
        yield "window", f"{settings.kind} takes a window >= 1"


def _swag_misfits(settings: Settings) -> Iterable[Misfit]:
    if settings.diagonal and settings.rank is not None:
        yield "rank", "leave rank out: a diagonal swag keeps no deviations"
    if not settings.diagonal and (settings.rank is None or settings.rank < MIN_RANK):
        yield "rank", f"swag takes a rank >= {MIN_RANK}, or diagonal"


KINDS: Mapping[str, Kind] = {
    # In float32 the rounding of 300 updates of a mean already passes 1e-6.
    "mean": Kind({}, _no_misfits, torch.float64, lambda settings, n: 1 / n),
    "ema": Kind({"decay": None, "warmup": False, "bias_correction": True}, _ema_misfits, torch.float32, _share_of_ema),
    # Each weight set has its own slot; `averaged_state` takes the mean.
    "lawa": Kind({"window": None}, _window_misfits, None, lambda settings, n: 1.0),
    "swag": Kind({"rank": None, "diagonal": False}, _swag_misfits, torch.float64, lambda settings, n: 1 / n),
}
OWNERS = {key: name for name, kind in KINDS.items() for key in kind.defaults}
assert set(Settings.__dataclass_fields__) == {"kind", "share_settings", *OWNERS}, (
    "a setting without an owner, or one without a field"
)


def accumulator_dtype(dtype: torch.dtype, *, wide: torch.dtype | None, device: torch.device) -> torch.dtype:
    """Return the type that accumulates weights of type `dtype`: `wide` where the device has it, or a wider own one."""
    if wide is None:
        return dtype
    return torch.promote_types(dtype, wide if float64_device(device) == device else torch.float32)


def blend(kept: Mapping[str, Tensor], offered: Mapping[str, Tensor], *, share: float) -> None:
    """Do kept += (offered - kept) * share in place, see `blend_all`."""
    blend_all([kept], offered, shares=[share])


def blend_all(
    averages: Sequence[Mapping[str, Tensor]], offered: Mapping[str, Tensor], *, shares: Sequence[float]
) -> None:
    """Do kept += (offered - kept) * share in place for each average, in the type of `kept`; a share of 1 copies.

    One foreach pass over all averages whose type is that of the weights: parameter after parameter, so a parameter that
    was read for one average is still in the cache for the next. An average has the same bits alone and among others.
    """
    for names in groups(offered):
        new = [offered[name] for name in names]
        moves: dict[tuple[torch.device, torch.dtype], list[tuple[list[Tensor], float]]] = defaultdict(list)
        for average, share in zip(averages, shares, strict=True):
            old = [average[name] for name in names]
            if share == 1:
                torch._foreach_copy_(old, new)
            elif old[0].dtype in (torch.float64, torch.complex128) and new[0].dtype != old[0].dtype:
                # No wide copy of the weights. In float32 the rounding of `1 - share` would add up over many updates.
                torch._foreach_mul_(old, 1 - share)
                torch._foreach_add_(old, new, alpha=share)
            else:
                moves[old[0].device, old[0].dtype].append((old, share))
        for (device, dtype), some in moves.items():
            same = [value.to(device, dtype) for value in new]
            kept = [value for values in zip(*(old for old, _ in some), strict=True) for value in values]
            repeated = [value for value in same for _ in some]
            torch._foreach_lerp_(kept, repeated, [share for _, share in some] * len(names))


def _misfit(kind: str, key: str, value: Any, *, hint: str) -> UserError:
    return UserError(f"{key}: {value} does not fit kind {kind}", hint=hint)
