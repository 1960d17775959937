"""The recipe as a frozen value: one class a section, and a field's description is its documentation.

Values are typed here and not by YAML: the loader hands over the text of each scalar (`scalars.Plain`), so
`1e-4` is a number wherever a number is wanted and `no` is never a truth value. Whatever the file leaves out
has its default here and nowhere else. Checks between sections live in `checks.py`, those that need the size
of the data in `plan.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, field_validator

from swa_cli.recipe.schema.averages import AVERAGE_KEYS, AVERAGE_KINDS, Average, Swa, Swap, average_misfits
from swa_cli.recipe.schema.exclusive_keys import STRICT
from swa_cli.recipe.schema.inputs import Augment, Dataset, Model
from swa_cli.recipe.schema.optimizer import SGD_DEFAULTS, Optimizer
from swa_cli.recipe.schema.run import Compile, Eval, Output, Snapshots, Train
from swa_cli.recipe.schema.schedule import SCHEDULE_KEYS, Schedule, schedule_misfits
from swa_cli.recipe.values import MAX_NAME, NAME_PATTERN, AverageName, TaskName, Text, Whole

__all__ = [
    "AVERAGE_KEYS",
    "AVERAGE_KINDS",
    "SCHEDULE_KEYS",
    "SGD_DEFAULTS",
    "Augment",
    "Average",
    "Compile",
    "Eval",
    "Optimizer",
    "Output",
    "Recipe",
    "Schedule",
    "Snapshots",
    "Swap",
    "average_misfits",
    "schedule_misfits",
]


class Recipe(BaseModel):
    """All of a run. The smallest recipe is model.name, dataset.name, optimizer.lr and train.epochs."""

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
    def _nothing_is_kept(cls, values: Any) -> Any:
        """An empty section asks for no snapshots."""
        return None if isinstance(values, Mapping) and not values else values

    @property
    def title(self) -> str:
        """The name of the run folder: `name`, or dataset-model."""
        derived = re.sub(r"[^A-Za-z0-9_.+-]+", "-", f"{self.dataset.name}-{self.model.name}")
        return self.name or derived[:MAX_NAME].strip("-.")

    @property
    def all_averages(self) -> dict[str, Average]:
        """Every average by name, `swa` first."""
        if self.swa is None:
            return dict(self.averages)
        return {"swa": Average(kind="mean", start=self.swa.start, every=self.swa.every), **self.averages}

    @property
    def average_scoring(self) -> Swa:
        """How averages are refreshed and scored, also in a run that has averages but no `swa`."""
        return Swa(batchnorm=self.swap.batchnorm) if self.swap else self.swa or Swa()
