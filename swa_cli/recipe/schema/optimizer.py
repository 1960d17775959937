"""Section `optimizer`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from swa_cli.recipe.values import Free, Multiple, Rate, Text, TextOrTexts


class Group(BaseModel):
    """Parameters with settings of their own; keys that are not listed go to the class of torch.optim for them."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Free] = Field(init=False)
    match: TextOrTexts = Field(description="norm, bias, or patterns of parameter names such as *norm*.bias")
    lr: Multiple = Field(default=1.0, description="rate in multiples of the schedule's: 64x")

    @property
    def options(self) -> dict[str, Any]:
        """What differs from the options of the other parameters."""
        return dict(self.__pydantic_extra__ or {})


SGD_DEFAULTS: Mapping[str, object] = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}


class Optimizer(BaseModel):
    """The base optimizer; keys that are not listed go to the class of torch.optim."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Free] = Field(init=False)
    name: Text = Field(default="SGD", description="any class of torch.optim")
    lr: Rate = Field(description="learning rate that the schedule scales")
    no_decay: list[Text] = Field(
        default=[], description="parameters without weight decay: norm, bias, or name patterns such as head.*"
    )
    groups: list[Group] = Field(
        default=[], description="parameters with a rate or options of their own; each goes with the first that matches"
    )

    @model_validator(mode="before")
    @classmethod
    def _sgd_defaults(cls, values: Any) -> Any:
        """Momentum .9, Nesterov, weight decay 5e-4: the usual SGD of image classification, written out."""
        if not isinstance(values, Mapping) or values.get("name", "SGD") != "SGD":
            return values
        filled = {**SGD_DEFAULTS, **values}
        no_momentum = str(filled["momentum"]) in ("0", "0.0") or "dampening" in values
        if no_momentum and "nesterov" not in values:
            filled["nesterov"] = False
        return filled

    @property
    def options(self) -> dict[str, Any]:
        """What goes to the constructor beside the parameters and the learning rate."""
        return dict(self.__pydantic_extra__ or {})
