"""Sections `swa`, `averages` and `swap`: which weights are averaged, and their BatchNorm statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field, create_model, model_validator

from swa_cli.recipe import kinds
from swa_cli.recipe.kinds import KINDS
from swa_cli.recipe.values import (
    INTERNAL,
    STRICT,
    Count,
    CountAutoOrAll,
    Duration,
    DurationField,
    Flag,
    Multiple,
    Rate,
    Whole,
    fields_of,
    refuse,
)

MAX_WHOLE_PASS = 100_000  # training samples, all of which a pass reads
PART_OF_LARGE_SETS = 10  # one sample in so many; a tenth leaves statistics an error that docs/batchnorm.md states


class BatchNorm(BaseModel):
    """How the BatchNorm statistics of averaged weights are recomputed."""

    model_config = STRICT
    method: Literal["pooled", "exact"] = Field(
        default="pooled", description="pooled: one pass; exact: layer by layer, independent of the batches"
    )
    samples: CountAutoOrAll = Field(
        default="auto",
        description="training samples of the pass: all, a number, or auto: all of up to 100,000, a tenth of more",
    )
    augment: Flag = Field(default=True, description="augment images as in training (the weights fit those statistics)")

    def num_samples(self, num_train: int) -> int:
        """Return the number of samples of a pass over `num_train` training samples."""
        if self.samples == "auto":
            return num_train if num_train <= MAX_WHOLE_PASS else -(-num_train // PART_OF_LARGE_SETS)
        return num_train if self.samples == "all" else min(int(self.samples), num_train)


class Swa(BaseModel):
    """The average named swa: the mean of the weights along the trajectory (Izmailov et al. 2018)."""

    model_config = STRICT
    start: DurationField = Field(default=Duration.parse("75%"), description="nothing before this point is averaged")
    every: DurationField = Field(
        default=Duration.parse("1ep"), description="interval between weight sets; 1cycle: at each minimum"
    )
    lr: Rate | None = Field(default=None, description="constant rate from start on; left out: the schedule's")
    anneal: DurationField = Field(
        default=Duration.parse("0ep"), description="bridge from the schedule's rate to swa.lr, ending at start"
    )
    anneal_shape: Literal["linear", "cosine"] = Field(default="linear", description="shape of that bridge")
    batchnorm: BatchNorm = BatchNorm()
    eval_every: DurationField = Field(
        default=Duration.parse("5ep"),
        description="interval between evaluations of the averages; each costs a BatchNorm pass",
    )


def _default_text(values: Mapping[str, str]) -> str:
    """Write the default of a key that depends on the kind: `default 75%; ema: 0ep`."""
    (usual, _), *_ = Counter(values.values()).most_common()
    others = [f"; {name}: {value}" for name, value in values.items() if value != usual]
    return f"default {usual}{''.join(others)}"


class _Average(BaseModel):
    """One more average of the same run."""

    model_config = STRICT
    kind: str
    start: DurationField | None = Field(
        default=None, description=_default_text({name: kind.start for name, kind in KINDS.items()})
    )
    every: DurationField | None = Field(
        default=None, description=_default_text({name: kind.every for name, kind in KINDS.items()})
    )
    keep: Literal["last", "best"] = Field(
        default="last", description="what is shipped: the average at the end, or at its evaluation of the lowest loss"
    )
    if TYPE_CHECKING:

        def __getattr__(self, key: str) -> Any:
            """Return the value of a key that the table of kinds declares."""

    @property
    def own(self) -> dict[str, Any]:
        """Return the values of the keys that belong to this kind alone."""
        return {key: getattr(self, key) for key in KINDS[self.kind].keys}

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_this_kind(cls, values: Any) -> Any:
        return kinds.with_defaults(values) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _keys_of_this_kind(self) -> _Average:
        refuse(kinds.misplaced({key: getattr(self, key) for key in self.model_fields_set}))
        return self


if TYPE_CHECKING:
    Average = _Average
else:  # with the kinds and keys of the table
    _SUMMARY = "; ".join(f"{name}: {kind.summary}" for name, kind in KINDS.items())
    Average = create_model(
        "Average",
        __base__=_Average,
        __doc__=_Average.__doc__,
        kind=(Literal[tuple(KINDS)], Field(description=_SUMMARY)),
        **fields_of(KINDS),
    )


class Swap(BaseModel):
    """SWAP (Gupta et al. 2020): a common phase, then workers that each train alone; swa is their mean."""

    model_config = STRICT
    workers: Whole = Field(ge=2, description="number of runs from the common weights; fewer processes take turns")
    start: DurationField = Field(
        default=Duration.parse("70%"), description="end of the common phase, rounded to whole epochs"
    )
    batch_size: Count | None = Field(
        default=None, description="samples of a worker's step; default those of a common step over the workers"
    )
    lr: Multiple | None = Field(
        default=None, description="rate of a worker in multiples of the schedule's: 0.5x; default as its batch shrinks"
    )
    batchnorm: BatchNorm = BatchNorm()
    worker: Count | None = Field(
        default=None,
        description="number of the worker that this run is; train.init names the common weights",
        json_schema_extra=INTERNAL,
    )
