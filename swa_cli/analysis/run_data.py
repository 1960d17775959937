"""A run folder that pictures and pages are made of: read once, and its data only when something asks for them.

Curves and schedule need the resume point alone; what has to be scored opens data, hardware and network, one time for
all of it. The folder may be that of a run that still goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from swa_cli.analysis import open
from swa_cli.analysis.seed_statistics import read_result
from swa_cli.checkpoint import loading
from swa_cli.checkpoint.reader import WeightSet
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.engine import evaluate, failures, swap
from swa_cli.engine.context import Context
from swa_cli.engine.evaluate import RAW
from swa_cli.engine.user_code import admit
from swa_cli.errors import UserError
from swa_cli.metrics import tasks
from swa_cli.metrics.metric import TaskMetrics
from swa_cli.recipe import load
from swa_cli.recipe.plan import Plan, make_plan
from swa_cli.recipe.swap import name_of_worker
from swa_cli.report.plots.curves import with_workers
from swa_cli.report.terminal import Terminal


class OpenRun:
    """A run folder, opened.

    Args:
        path: The folder.
        overrides: Changes of keys that the weights do not depend on.
        terminal: Told of anything slow.
        samples: Training samples of a BatchNorm pass, a number or `all`; None for the recipe's.
        allow_code: Import what the recipe names.

    Raises:
        UserError: It is no run folder, or one that cannot be read.
    """

    def __init__(
        self,
        path: Path,
        overrides: Sequence[str] = (),
        *,
        terminal: Terminal,
        samples: str | None = None,
        allow_code: bool = False,
    ) -> None:
        self.folder = RunFolder(path)
        if self.folder.repeat.is_file():
            raise UserError(f"{path}: is the folder of a repeat", hint="name the folder of a seed in it")
        self.point = open.resume_point(self.folder)
        values, source = self.point.content["recipe"], str(self.point.path)
        self.recipe = load.from_values(values, source=source).recipe
        # A change that is not allowed is told, whatever is drawn.
        self._changed = load.from_values(values, overrides, source=source, allowed=open.CHANGEABLE_KEYS)
        self.terminal = terminal
        self._overrides = list(overrides)
        self._samples = samples
        self._allow_code = allow_code

    @property
    def title(self) -> str:
        """What pictures of it say on top."""
        return self.folder.path.resolve().name

    @property
    def step(self) -> int:
        """Updates done."""
        return int(self.point.content["step"])

    @cached_property
    def plan(self) -> Plan:
        """What its recipe comes to."""
        return make_plan(self.recipe, num_train=self.point.content["num_train"])

    @property
    def averaging(self) -> dict[str, list[int]]:
        """Average to the steps whose weights it has taken; of a SWAP run the mean of workers, which took no step's."""
        taken = {item.name: [step for step in item.steps if step <= self.step] for item in self.plan.averages}
        return taken | ({name: [] for name in (swap.NAME, *self._workers)} if self.plan.worker else {})

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """Those of metrics.csv, and behind them what the workers of a SWAP run have scored."""
        return with_workers(self.point.content["history"], self._workers)

    @cached_property
    def _workers(self) -> dict[str, list[Mapping[str, Any]]]:
        """Worker to its rows."""
        points = open.points_of_workers(self.folder, self.point)
        return {name_of_worker(number): point.content["history"] for number, point in points.items()}

    @cached_property
    def metrics(self) -> TaskMetrics:
        """What its task scores."""
        path = self.point.path
        admit(self._changed, source=str(path), folder=path.parent, allow_code=self._allow_code)
        return tasks.find(self.recipe.task).metrics

    @cached_property
    def result(self) -> Mapping[str, Any] | None:
        """result.json; None where the run has not ended.

        Raises:
            UserError: It is not as swa writes it.
        """
        if not self.folder.result.is_file():
            return None
        try:
            return read_result(self.folder.result, metrics=self.metrics)[0]
        except UserError as error:
            raise UserError(error.message, hint="take another copy of the file") from error

    @cached_property
    def opened(self) -> tuple[Context, nn.Module]:
        """Data, hardware and network."""
        limit = open.pass_of(self.point, self._samples)
        precision = self.point.content["environment"]["precision"]
        # That of the run: `auto` may choose otherwise from one day to the next, and what is kept would not fit.
        as_before = [f"train.precision={precision}"] if precision != "fp16" else []
        return open.open_checkpoint(
            self.point,
            [*as_before, *self._overrides, *limit],
            recipe=None,
            terminal=self.terminal,
            allow_code=self._allow_code,
            also=open.PASS_KEYS if limit else (),
        )

    @cached_property
    def sets(self) -> dict[str, WeightSet]:
        """The raw weights as `last`, and each average that was shipped.

        Raises:
            UserError: One has stale BatchNorm statistics.
        """
        sets = open.weight_sets_of_run(self.folder, self.point, self.opened[1])
        stale = [name for name, item in sets.items() if item.batchnorm == "stale"]
        if stale:
            path = self.folder.checkpoints / f"{stale[0]}.pt"
            raise UserError(
                f"{path}: has stale BatchNorm statistics: its scores would mean nothing",
                hint=f"run `swa bn-update {path}` first",
            )
        return sets

    @property
    def best(self) -> str:
        """What the run has come to: its first average, or else its raw weights."""
        return next((name for name, item in self.sets.items() if item.kind != "raw"), RAW)

    @cached_property
    def predictions(self) -> dict[str, tuple[Tensor, Any]]:
        """Weight set to its predictions (N, ...) of the split that final scores come from, and the targets."""
        (context, _), found = self.opened, {}
        loader = context.plain_batches(context.scoring_split())
        for name, item in self.sets.items():
            model = context.build_model()
            loading.load_weights(model, item.state_dict, source=f"{self.folder.path} ({name})")
            with (
                self.terminal.progress(f"scoring {name}", len(loader)) as bar,
                failures.memory("eval.batch_size", context.recipe.eval.batch_size),
            ):
                found[name] = evaluate.predict(
                    model, loader, task=context.final_task, hardware=context.eval_hardware, advance=bar.advance
                )
        return found


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON file that swa has written.

    Raises:
        UserError: It is something else.
    """
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError("is no object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: is not as swa writes it ({error})", hint="remove it, or take another copy of the file"
        ) from error
    return values
