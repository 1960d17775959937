"""What an average is told when it is made: its kind, and what belongs to that kind alone.

One idea: a setting has one owner. With another kind it is a mistake, never something that is quietly left unused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from swa_cli.errors import UserError

KINDS: Mapping[str, tuple[str, ...]] = {  # kind -> its own settings
    "mean": (),
    "ema": ("decay", "warmup", "bias_correction"),
    "latest": ("window",),
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


def _latest_fits(latest: Settings) -> Fits:
    return (("window", latest.window is not None and latest.window >= 1, "latest takes a window >= 1"),)


def _swag_fits(swag: Settings) -> Fits:
    if swag.diagonal:
        return (("rank", swag.rank is None, "a diagonal swag keeps no deviations: leave rank out"),)
    is_fit = swag.rank is not None and swag.rank >= MIN_RANK
    return (("rank", is_fit, f"swag takes a rank >= {MIN_RANK}, or diagonal"),)


_FITS: Mapping[str, Callable[[Settings], Fits]] = {
    "mean": lambda mean: (),
    "ema": _ema_fits,
    "latest": _latest_fits,
    "swag": _swag_fits,
}
assert _FITS.keys() == KINDS.keys(), f"not checked: {_FITS.keys() ^ KINDS.keys()}"
assert set(Settings.__dataclass_fields__) == {"kind", *OWNERS}, "a setting without an owner, or one without a field"
