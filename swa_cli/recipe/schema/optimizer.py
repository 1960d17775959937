"""Sections `optimizer` and `schedule`: how a step is done, and its learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from swa_cli.errors import Problem
from swa_cli.recipe.schedules import SCHEDULES
from swa_cli.recipe.values import STRICT, Duration, Free, Multiple, Rate, Text, TextOrTexts, fields_of, refuse


class Group(BaseModel):
    """Parameters with their own settings; keys that are not listed are options of the optimizer for them."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Free] = Field(init=False)
    match: TextOrTexts = Field(description="norm, bias, or patterns of parameter names such as *norm*.bias")
    lr: Multiple = Field(default=1.0, description="rate in multiples of the schedule's: 64x")

    @property
    def options(self) -> dict[str, Any]:
        """Return the options that differ from those of the other parameters."""
        return dict(self.__pydantic_extra__ or {})


SGD_DEFAULTS: Mapping[str, object] = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}


class Optimizer(BaseModel):
    """The base optimizer; keys that are not listed are options of the class of torch.optim."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Free] = Field(init=False)
    name: Text = Field(default="SGD", description="any class of torch.optim")
    lr: Rate = Field(description="learning rate that the schedule scales")
    no_decay: list[Text] = Field(
        default=[], description="parameters without weight decay: norm, bias, or name patterns such as head.*"
    )
    groups: list[Group] = Field(
        default=[],
        description="parameters with their own rate or options; a parameter belongs to the first group that matches",
    )

    @model_validator(mode="before")
    @classmethod
    def _sgd_defaults(cls, values: Any) -> Any:
        """Fill in the usual SGD of image classification: momentum 0.9, Nesterov, weight decay 5e-4."""
        if not isinstance(values, Mapping) or values.get("name", "SGD") != "SGD":
            return values
        filled = {**SGD_DEFAULTS, **values}
        no_momentum = str(filled["momentum"]) in ("0", "0.0") or "dampening" in values
        if no_momentum and "nesterov" not in values:
            filled["nesterov"] = False
        return filled

    @property
    def options(self) -> dict[str, Any]:
        """Return the arguments of the constructor beside parameters and learning rate."""
        return dict(self.__pydantic_extra__ or {})


DEFAULT_SCHEDULE = "cosine"


class _Schedule(BaseModel):
    """The learning rate; each name takes its own keys, see `schedules.SCHEDULES`."""

    model_config = STRICT
    name: str = DEFAULT_SCHEDULE
    if TYPE_CHECKING:

        def __getattr__(self, key: str) -> Any:
            """Return the value of a key that the table of schedules declares."""

    @property
    def settings(self) -> dict[str, Any]:
        """Return the keys of this schedule with their values; a key that is left out has its default."""
        given = {name: (getattr(self, name), key.default) for name, key in SCHEDULES[self.name].keys.items()}
        return {name: default if value is None else value for name, (value, default) in given.items()}

    @property
    def lengths(self) -> list[tuple[str, Duration]]:
        """Return every duration that is given, with its key; of a list each item."""
        values = [(key, getattr(self, key)) for key in type(self).model_fields]
        items = [(key, item) for key, value in values for item in (value if isinstance(value, list) else [value])]
        return [(key, item) for key, item in items if isinstance(item, Duration)]

    @model_validator(mode="after")
    def _keys_of_this_schedule(self) -> _Schedule:
        refuse(misplaced_in_schedule({key: getattr(self, key) for key in self.model_fields_set}))
        return self


if TYPE_CHECKING:
    Schedule = _Schedule
else:  # with the names and keys of the table
    _NAME = Field(default=DEFAULT_SCHEDULE, description="shape of the learning rate over the run")
    Schedule = create_model(
        "Schedule",
        __base__=_Schedule,
        __doc__=_Schedule.__doc__,
        name=(Literal[tuple(SCHEDULES)], _NAME),
        **fields_of(SCHEDULES),
    )


def misplaced_in_schedule(values: Mapping[str, object]) -> list[Problem]:
    """Return a problem for each key that this schedule lacks or does not take; compare `kinds.misplaced`."""
    name = str(values.get("name", DEFAULT_SCHEDULE))
    if name not in SCHEDULES:
        return []
    kind = SCHEDULES[name]
    given = [key for key, value in values.items() if value is not None and key in Schedule.model_fields]
    takes = ", ".join(sorted(kind.keys)) or "no further keys"
    found = [
        Problem(key, f"the schedule {name} has no such key", f"{name} takes {takes}")
        for key in sorted(given)
        if key not in kind.keys and key != "name"
    ]
    for key in sorted(kind.required.keys() - given):
        hint = f"add `{key}:` to the section `schedule` ({kind.required[key].description})"
        found.append(Problem(key, f"is missing, the schedule {name} needs it", hint))
    return found
