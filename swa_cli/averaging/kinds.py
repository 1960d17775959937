"""The share of each new weight set in an exponential moving average, as a function of how many came before.

One idea: the average is `avg += (w - avg) * share(n)` from the first weight set on, whatever the variant; so the
count says it all, and there is nothing else to save. Legend: n weight sets before this one, d decays.

What an average is told when it is made: its kind, and what belongs to that kind alone.

One idea: a setting has one owner. With another kind it is a mistake, never something that is quietly left unused.

The arithmetic of running averages: how wide they are kept, and how far each weight set moves them.

One idea: a dict of accumulators moves towards a dict of weights in one foreach pass for each device and type, so that
whoever keeps an average (by name, by parameter) computes the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from swa_cli.averaging.model_state import float64_device, groups
from swa_cli.errors import UserError


def share(n: int, *, decay: float, warmup: bool, bias_correction: bool) -> float:
    """The weight of the new one: 1 for the first, which replaces whatever there was.

    The decay of update n is d_n = decay, with `warmup` min(decay, (1 + n) / (10 + n)).
    Plain: 1 - d_n, so the first weight set keeps the weight d_1 d_2 ... d_n, as if it had always been there.
    With `bias_correction`: (1 - d_n) / (1 - d_0 d_1 ... d_n), which makes the average the sum of the weight sets
    taken, each with (1 - d_i) d_i+1 ... d_n, over the sum of those weights (Adam: Kingma & Ba 2015, section 3).

    Args:
        n: How many were taken before.
        decay: In [0, 1).
        warmup: Let short averages forget faster.
        bias_correction: Do not let the first weight set stand for the past that never was.
    """
    if n == 0:
        return 1.0
    new = 1 - (min(decay, (1 + n) / (10 + n)) if warmup else decay)
    return new / (1 - _product(n + 1, decay=decay, warmup=warmup)) if bias_correction else new


def _product(count: int, *, decay: float, warmup: bool) -> float:
    """The first `count` decays multiplied; of them the warm ones, (1 + i) / (10 + i) below `decay`, come first.

    Their product over i = 0 ... k - 1 is 9! / ((k + 1) ... (k + 9)).
    """
    num_warm = min(count, max(0, math.ceil((10 * decay - 1) / (1 - decay)))) if warmup else 0
    return math.factorial(9) / math.prod(range(num_warm + 1, num_warm + 10)) * decay ** (count - num_warm)


KINDS: Mapping[str, tuple[str, ...]] = {  # kind -> its own settings
    "mean": (),
    "ema": ("decay", "warmup", "bias_correction"),
    "lawa": ("window",),
    "swag": ("rank", "diagonal"),
}
OWNERS = {key: kind for kind, keys in KINDS.items() for key in keys}
MIN_RANK = 2  # deviations: their covariance is divided by one less


@dataclass(frozen=True)
class Settings:
    """A kind of average; what it has no use for is None.

    Raises:
        UserError: An unknown kind; a setting that is missing, out of range or of another kind.
    """

    kind: str
    decay: float | None = None
    warmup: bool | None = None
    bias_correction: bool | None = None
    window: int | None = None
    rank: int | None = None
    diagonal: bool | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"kind: {self.kind!r} is no kind of average", hint=f"one of {', '.join(KINDS)}")
        for key, owner in OWNERS.items():
            if self.kind != owner and getattr(self, key) is not None:
                raise self._misfit(key, hint=f"it goes with kind {owner}")
        for key, is_fit, hint in _FITS[self.kind](self):
            if not is_fit:
                raise self._misfit(key, hint=hint)

    def given(self) -> dict[str, Any]:
        """The kind and its own settings."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def require_same(self, saved: Mapping[str, Any]) -> None:
        """Refuse to go on with an average that was made otherwise.

        Raises:
            UserError: A setting of `saved` differs.
        """
        for key, own in asdict(self).items():
            if saved.get(key) != own:
                raise UserError(
                    f"the saved average has {key} {saved.get(key)}, this one {own}",
                    hint="continue it with the settings it has",
                )

    def _misfit(self, key: str, *, hint: str) -> UserError:
        return UserError(f"{key}: {getattr(self, key)} does not fit kind {self.kind}", hint=hint)


Fits = tuple[tuple[str, bool, str], ...]  # a setting, whether it can be that, and what to do if not


def _ema_fits(ema: Settings) -> Fits:
    return (("decay", ema.decay is not None and 0 <= ema.decay < 1, "ema takes a decay in [0, 1)"),)


def _lawa_fits(lawa: Settings) -> Fits:
    return (("window", lawa.window is not None and lawa.window >= 1, "lawa takes a window >= 1"),)


def _swag_fits(swag: Settings) -> Fits:
    if swag.diagonal:
        return (("rank", swag.rank is None, "a diagonal swag keeps no deviations: leave rank out"),)
    is_fit = swag.rank is not None and swag.rank >= MIN_RANK
    return (("rank", is_fit, f"swag takes a rank >= {MIN_RANK}, or diagonal"),)


_FITS: Mapping[str, Callable[[Settings], Fits]] = {
    "mean": lambda mean: (),
    "ema": _ema_fits,
    "lawa": _lawa_fits,
    "swag": _swag_fits,
}
assert _FITS.keys() == KINDS.keys(), f"not checked: {_FITS.keys() ^ KINDS.keys()}"
assert set(Settings.__dataclass_fields__) == {"kind", *OWNERS}, "a setting without an owner, or one without a field"


WIDTHS = {  # where a device has the type
    "mean": torch.float64,  # in float32 the rounding of 300 updates already passes 1e-6
    "swag": torch.float64,
    "ema": torch.float32,
    "lawa": torch.float32,
}
assert WIDTHS.keys() == KINDS.keys(), f"no type: {WIDTHS.keys() ^ KINDS.keys()}"


def accumulator_dtype(dtype: torch.dtype, *, kind: str, device: torch.device) -> torch.dtype:
    """The type in which weights of a type are averaged on a device: that of `WIDTHS`, or a better one of their own."""
    wide = WIDTHS[kind] if float64_device(device) == device else torch.float32
    return torch.promote_types(dtype, wide)


def blend(kept: Mapping[str, Tensor], offered: Mapping[str, Tensor], *, share: float) -> None:
    """Do kept += (offered - kept) * share in place, in the type of `kept`; a share of 1 copies."""
    for names in groups(kept):
        old, new = [kept[name] for name in names], [offered[name] for name in names]
        if share == 1:
            torch._foreach_copy_(old, new)
        else:
            _move_towards(old, new, share)


def _move_towards(kept: list[Tensor], offered: list[Tensor], share: float) -> None:
    if kept[0].dtype in (torch.float64, torch.complex128) and offered[0].dtype != kept[0].dtype:
        # No wide copy of the weights. In float32 the rounding of `1 - share` would add up over the updates of an EMA.
        torch._foreach_mul_(kept, 1 - share)
        torch._foreach_add_(kept, offered, alpha=share)
    else:
        torch._foreach_lerp_(kept, [new.to(old) for new, old in zip(offered, kept, strict=True)], share)
