"""The recipe as a frozen value: one class per section.

The description of a field is its documentation. Values are typed here and not by YAML: the loader hands over the text
of each scalar (`scalars.Plain`), so `1e-4` is a number wherever a number is wanted and `no` is never a truth value. The
default of a key that a file leaves out stands here, or in the tables of schedules and kinds. Checks between sections,
and those that need the size of the data, are in `plan`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, field_validator

from swa_cli.recipe.schema.averages import Average, Swa, Swap
from swa_cli.recipe.schema.inputs import Augment, Dataset, Model
from swa_cli.recipe.schema.optimizer import SGD_DEFAULTS, Group, Optimizer, Schedule
from swa_cli.recipe.schema.run import Compile, Eval, Output, Snapshots, Train
from swa_cli.recipe.values import MAX_NAME, NAME_PATTERN, STRICT, AverageName, TaskName, Text, Whole

__all__ = [
    "SGD_DEFAULTS",
    "Augment",
    "Average",
    "Compile",
    "Eval",
    "Group",
    "Optimizer",
    "Output",
    "Recipe",
    "Schedule",
    "Snapshots",
    "Swap",
]


class Recipe(BaseModel):
    """A whole run. The smallest recipe has model.name, dataset.name, optimizer.lr and train.epochs."""

    model_config = STRICT
    name: Text | None = Field(
        default=None,
        pattern=rf"^{NAME_PATTERN}$",
        description=f"names the run folder: at most {MAX_NAME} letters, digits and . _ + -",
    )
    seed: Whole = Field(default=0, ge=0, lt=2**63, description="data order, augmentation and initial weights")
    task: TaskName = Field(
        default="classification",
        description="classification, segmentation, regression, or package.module:attribute",
    )
    model: Model
    dataset: Dataset
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    swa: Swa | None = None
    averages: dict[AverageName, Average] = {}
    swap: Swap | None = None
    snapshots: Snapshots | None = None
    train: Train
    eval: Eval = Eval()
    output: Output = Output()

    @field_validator("snapshots", mode="before")
    @classmethod
    def _empty_is_none(cls, values: Any) -> Any:
        """Read an empty section as no snapshots."""
        return None if isinstance(values, Mapping) and not values else values

    @property
    def title(self) -> str:
        """Return the name of the run folder: `name`, or dataset-model."""
        derived = re.sub(r"[^A-Za-z0-9_.+-]+", "-", f"{self.dataset.name}-{self.model.name}")
        return self.name or derived[:MAX_NAME].strip("-.")

    @property
    def all_averages(self) -> dict[str, Average]:
        """Return every average by name, `swa` first."""
        if self.swa is None:
            return dict(self.averages)
        return {"swa": Average(kind="mean", start=self.swa.start, every=self.swa.every), **self.averages}

    @property
    def average_scoring(self) -> Swa:
        """Return how averages are refreshed and evaluated, also for a run without the section `swa`."""
        return Swa(batchnorm=self.swap.batchnorm) if self.swap else self.swa or Swa()
