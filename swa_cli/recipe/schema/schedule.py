"""Section `schedule`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, Field, model_validator

from swa_cli.recipe.schema.exclusive_keys import STRICT, Misfit, refuse
from swa_cli.recipe.values import Duration, DurationField, Number, Rate

SCHEDULE_KEYS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    # name: (required keys, optional keys) beside `name`
    "constant": (frozenset(), frozenset({"warmup"})),
    "cosine": (frozenset(), frozenset({"warmup", "span", "final_lr"})),
    "linear": (frozenset(), frozenset({"warmup", "span", "final_lr"})),
    "cosine_restarts": (frozenset({"T_0"}), frozenset({"warmup", "T_mult", "final_lr"})),
    "cyclic": (
        frozenset({"base_lr", "step_size_up"}),
        frozenset({"warmup", "max_lr", "step_size_down", "begin", "mode", "gamma"}),
    ),
    "multistep": (frozenset({"milestones"}), frozenset({"warmup", "gamma"})),
    "one_cycle": (frozenset({"max_lr"}), frozenset({"pct_start", "span"})),
    "swa_paper": (frozenset(), frozenset()),
}


class Schedule(BaseModel):
    """The learning rate; each name takes its own keys.

    They are in `SCHEDULE_KEYS`.
    """

    model_config = STRICT
    name: Literal[
        "constant", "cosine", "cosine_restarts", "cyclic", "linear", "multistep", "one_cycle", "swa_paper"
    ] = Field(default="cosine", description="shape of the learning rate over the run")
    warmup: DurationField | None = Field(
        default=None,
        description="linear rise from 0 at the beginning; default 1ep, 0ep where the shape begins itself",
    )
    span: Literal["auto", "start", "run"] | None = Field(
        default=None, description="what a decay spans; auto: to swa.start if swa.lr is given, else the run"
    )
    final_lr: Rate | None = Field(
        default=None, description="end of the decay; default swa.lr if the span ends at swa.start, else 0"
    )
    T_0: DurationField | None = Field(default=None, description="cosine_restarts: length of the first cycle")
    T_mult: Number | None = Field(default=None, ge=1, description="cosine_restarts: growth of the cycles")
    base_lr: Rate | None = Field(default=None, description="cyclic: the minimum of a cycle")
    max_lr: Rate | None = Field(default=None, description="cyclic (default optimizer.lr), one_cycle: the peak")
    step_size_up: DurationField | None = Field(default=None, description="cyclic: length of the rise")
    step_size_down: DurationField | None = Field(
        default=None, description="cyclic: length of the fall; default step_size_up"
    )
    begin: Literal["base", "max"] | None = Field(
        default=None, description="cyclic: rate of the first step; max is the cycle of FGE; default base"
    )
    mode: Literal["triangular", "triangular2", "exp_range"] | None = Field(
        default=None, description="cyclic: amplitude constant, halved each cycle, or times gamma^step"
    )
    milestones: list[DurationField] | None = Field(
        default=None, description="multistep: points at which the rate drops"
    )
    gamma: Number | None = Field(
        default=None,
        gt=0,
        description="multistep: factor of each drop, default 0.1; cyclic with exp_range: factor of each step",
    )
    pct_start: DurationField | None = Field(
        default=None, description="one_cycle: point of the highest rate; default 30%"
    )

    @property
    def lengths(self) -> list[tuple[str, Duration]]:
        """Every duration that is given, with its key; of a list each one."""
        values = [(key, getattr(self, key)) for key in type(self).model_fields]
        items = [(key, item) for key, value in values for item in (value if isinstance(value, list) else [value])]
        return [(key, item) for key, item in items if isinstance(item, Duration)]

    @model_validator(mode="after")
    def _keys_of_this_shape(self) -> Schedule:
        refuse(schedule_misfits({key: getattr(self, key) for key in self.model_fields_set}))
        return self


def schedule_misfits(values: Mapping[str, object]) -> list[Misfit]:
    """Keys that a schedule of this name lacks or does not take; values are looked at no further."""
    name = str(values.get("name", "cosine"))
    if name not in SCHEDULE_KEYS:
        return []
    required, optional = SCHEDULE_KEYS[name]
    given = {key for key, value in values.items() if value is not None and key in Schedule.model_fields} - {"name"}
    takes = ", ".join(sorted(required | optional)) or "no further keys"
    foreign = [
        Misfit(key, f"the schedule {name} has no such key", f"{name} takes {takes}")
        for key in sorted(given - required - optional)
    ]
    missing = [
        Misfit(
            key,
            f"is missing, the schedule {name} needs it",
            f"add `{key}:` to the section `schedule` ({Schedule.model_fields[key].description})",
        )
        for key in sorted(required - given)
    ]
    return foreign + missing
