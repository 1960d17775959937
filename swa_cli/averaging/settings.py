"""What an average is told when it is made: its kind, and what belongs to that kind alone.

One idea: a setting has one owner. With another kind it is a mistake, never something that is quietly left unused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from swa_cli.errors import UserError

KINDS = ("mean", "ema", "latest", "swag")
OWNERS = {
    "decay": "ema",
    "warmup": "ema",
    "bias_correction": "ema",
    "window": "latest",
    "rank": "swag",
    "diagonal": "swag",
}
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
        if self.kind == "ema" and not (self.decay is not None and 0 <= self.decay < 1):
            raise self._misfit("decay", hint="ema takes a decay in [0, 1)")
        if self.kind == "latest" and not (self.window is not None and self.window >= 1):
            raise self._misfit("window", hint="latest takes a window >= 1")
        if self.kind == "swag" and self.diagonal and self.rank is not None:
            raise self._misfit("rank", hint="a diagonal swag keeps no deviations: leave rank out")
        if self.kind == "swag" and not self.diagonal and not (self.rank is not None and self.rank >= MIN_RANK):
            raise self._misfit("rank", hint=f"swag takes a rank >= {MIN_RANK}, or diagonal")

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
