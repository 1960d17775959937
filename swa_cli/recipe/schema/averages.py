"""Sections `swa`, `averages` and `swap`: which weights are averaged, and their BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from swa_cli.recipe.schema.exclusive_keys import INTERNAL, STRICT, Misfit, refuse
from swa_cli.recipe.values import Count, CountOrAll, Duration, DurationField, Flag, Multiple, Number, Rate, Whole


class BatchNorm(BaseModel):
    """How the BatchNorm statistics of averaged weights are recomputed."""

    model_config = STRICT
    method: Literal["pooled", "exact"] = Field(
        default="pooled", description="pooled: one pass; exact: layer by layer, independent of the batches"
    )
    samples: CountOrAll = Field(default="all", description="training samples of the pass: all, or a number")
    augment: Flag = Field(default=True, description="images augmented as in training (weights fit those statistics)")


class Swa(BaseModel):
    """The average named swa: the mean of the weights along the trajectory (Izmailov et al. 2018)."""

    model_config = STRICT
    start: DurationField = Field(default=Duration.parse("75%"), description="nothing before this point is averaged")
    every: DurationField = Field(
        default=Duration.parse("1ep"),
        description="between two weights of the average; 1cycle: at each minimum",
    )
    lr: Rate | None = Field(default=None, description="constant rate from start on; left out: the schedule's")
    anneal: DurationField = Field(
        default=Duration.parse("0ep"),
        description="bridge from the schedule's rate to swa.lr, ending at start",
    )
    anneal_shape: Literal["linear", "cosine"] = Field(default="linear", description="shape of that bridge")
    batchnorm: BatchNorm = BatchNorm()
    eval_every: DurationField = Field(
        default=Duration.parse("5ep"),
        description="how often averages are scored; each costs a BatchNorm pass",
    )


AVERAGE_KINDS: Mapping[str, Mapping[str, Any]] = {  # kind -> the keys it takes, with their defaults
    "mean": {"start": "75%", "every": "1ep"},
    "ema": {
        "start": "0ep",
        "every": "1step",
        "decay": 0.999,
        "half_life": None,  # in place of decay
        "warmup": False,
        "bias_correction": True,
    },
    "lawa": {"start": "75%", "every": "1ep", "window": 5},
    "swag": {"start": "75%", "every": "1ep", "rank": 20, "diagonal": False},
}
AVERAGE_KEYS: Mapping[str, str] = {  # key -> the only kind of average that takes it
    key: kind for kind, keys in AVERAGE_KINDS.items() for key in keys if key not in AVERAGE_KINDS["mean"]
}


class Average(BaseModel):
    """One more average of the same run."""

    model_config = STRICT
    kind: Literal["mean", "ema", "lawa", "swag"] = Field(
        description="mean, exponential moving average, mean of the last k, or mean with a Gaussian around it"
    )
    start: DurationField | None = Field(default=None, description="default 75%; ema: 0ep")
    every: DurationField | None = Field(default=None, description="default 1ep; ema: 1step")
    decay: Number | None = Field(default=None, gt=0, lt=1, description="ema: weight of the past; default 0.999")
    half_life: DurationField | None = Field(
        default=None, description="ema: in place of decay, after what time a weight set counts half"
    )
    warmup: Flag | None = Field(
        default=None, description="ema: decay of update n at most (1 + n) / (10 + n); default false"
    )
    bias_correction: Flag | None = Field(
        default=None, description="ema: the first weight set counts as one like the others; default true"
    )
    window: Count | None = Field(default=None, description="lawa: number of weight sets; default 5")
    rank: Whole | None = Field(
        default=None, ge=2, description="swag: how many deviations from the mean are kept; default 20"
    )
    diagonal: Flag | None = Field(default=None, description="swag: variances alone, no deviations; default false")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_this_kind(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        defaults = {**AVERAGE_KINDS.get(str(values.get("kind")), AVERAGE_KINDS["mean"])}
        if values.get("half_life") is not None:
            defaults.pop("decay", None)
        if _is_true(values.get("diagonal")):
            defaults.pop("rank", None)
        return {key: value for key, value in defaults.items() if value is not None} | {**values}

    @model_validator(mode="after")
    def _keys_of_this_kind(self) -> Average:
        refuse(average_misfits({key: getattr(self, key) for key in self.model_fields_set}))
        return self


def average_misfits(values: Mapping[str, object]) -> list[Misfit]:
    """Keys that an average of this kind does not take, or not beside another; values are looked at no further."""
    kind = str(values.get("kind"))
    given = [key for key in AVERAGE_KEYS if values.get(key) is not None]
    found = [
        Misfit(key, f"an average of kind {kind} has no such key", f"`{key}` goes with `kind: {AVERAGE_KEYS[key]}`")
        for key in given
        if kind in AVERAGE_KINDS and kind != AVERAGE_KEYS[key]
    ]
    if kind == "ema" and {"decay", "half_life"} <= set(given):
        found.append(Misfit("half_life", "stands beside decay, and is another way to say it", "write one of the two"))
    if kind == "swag" and "rank" in given and _is_true(values.get("diagonal")):
        hint = "leave `rank` out, or write `diagonal: false`"
        found.append(Misfit("rank", "a diagonal swag keeps no deviations", hint))
    return found


def _is_true(value: object) -> bool:
    """Whether a flag is set, also before it was read."""
    return str(value).lower() == "true"


class Swap(BaseModel):
    """SWAP (Gupta et al. 2020): a common phase, then workers that each train alone; swa is their mean."""

    model_config = STRICT
    workers: Whole = Field(ge=2, description="how many go on from the common weights; on fewer processes in turn")
    start: DurationField = Field(
        default=Duration.parse("70%"), description="end of the common phase, rounded to whole epochs"
    )
    batch_size: Count | None = Field(
        default=None, description="samples of a worker's step; default those of a common step over the workers"
    )
    lr: Multiple | None = Field(
        default=None, description="a worker's rate in multiples of the schedule's: 0.5x; default as its batch shrinks"
    )
    batchnorm: BatchNorm = BatchNorm()
    worker: Count | None = Field(
        default=None,
        description="this run is that worker alone: train.init names the common weights",
        json_schema_extra=INTERNAL,
    )
