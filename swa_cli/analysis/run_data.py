"""Read a run folder for pictures and pages: rows, plan, weight sets, predictions, calibration and confusion.

The one idea: every part is read once, and only when it is asked for. Curves and schedule take the resume point alone;
what has to be scored opens data, hardware and network once. The run may still train. Legend: N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swa_cli.analysis import open, passes, sources
from swa_cli.analysis.compare import read_result
from swa_cli.analysis.outcomes import delimiter_of, label_texts
from swa_cli.checkpoint import loading, reader
from swa_cli.checkpoint.reader import WeightSet
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.data.splits import Reading, read_rows, take
from swa_cli.engine import swap, user_code
from swa_cli.engine.context import Context
from swa_cli.engine.evaluate import RAW, recomputed
from swa_cli.errors import UserError
from swa_cli.metrics import tasks
from swa_cli.metrics.metric import ECE_BINS, TaskMetrics
from swa_cli.metrics.per_class import OUTCOMES, LabelOutcomes
from swa_cli.recipe.plan import Plan, make_plan
from swa_cli.recipe.schema import Recipe
from swa_cli.report.plots.curves import with_workers
from swa_cli.report.plots.samples import Sample
from swa_cli.report.terminal import Terminal


@dataclass(frozen=True)
class Anchor:
    """A weight set of a plane or a line; `state` stays mapped to its file."""

    name: str
    state: Mapping[str, Tensor]


class OpenRun:
    """A run folder, opened; `overrides` change keys that the weights do not depend on.

    `samples` are the training samples of a BatchNorm pass, None for those of the recipe.

    Raises:
        UserError: It is not a run folder, or cannot be read.
    """

    def __init__(
        self,
        path: Path,
        overrides: Sequence[str] = (),
        *,
        terminal: Terminal,
        samples: int | None = None,
        allow_code: bool = False,
    ) -> None:
        self.folder = RunFolder(path)
        if self.folder.repeat.is_file():
            raise UserError(
                f"{path}: is the folder of a repeat", hint=f"name the folder of a seed in it, such as {path}/seed-0"
            )
        self.point = open.resume_point(self.folder)
        self.terminal = terminal
        self._loaded = open.carried_recipe(self.point, overrides, allowed=open.CHANGEABLE_KEYS)
        self._overrides = overrides
        self._samples = samples
        self._allow_code = allow_code

    @property
    def recipe(self) -> Recipe:
        """The recipe of the run, with the overrides."""
        return self._loaded.recipe

    @property
    def title(self) -> str:
        """The title of its pictures."""
        return self.folder.title

    @property
    def step(self) -> int:
        """Optimizer updates done."""
        return int(self.point.content["step"])

    @cached_property
    def plan(self) -> Plan:
        """The plan of its recipe."""
        return make_plan(self.recipe, num_train=self.point.content["num_train"])

    @property
    def averaging(self) -> dict[str, list[int]]:
        """Each average with the steps that it has averaged; the mean of SWAP workers has none."""
        taken = {item.name: [step for step in item.steps if step <= self.step] for item in self.plan.averages}
        return taken | ({name: [] for name in (swap.NAME, *self._workers)} if self.plan.worker else {})

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """The rows of metrics.csv, then the scores of the workers of a SWAP run."""
        return with_workers(self.point.content["history"], self._workers)

    @cached_property
    def _workers(self) -> dict[str, list[Mapping[str, Any]]]:
        points = open.points_of_workers(self.folder, self.point, self.recipe)
        return {name: point.content["history"] for name, point in points.items()}

    @cached_property
    def metrics(self) -> TaskMetrics:
        """The metrics of its task."""
        path = self.point.path
        user_code.admit(self._loaded, source=str(path), folder=path.parent, allow_code=self._allow_code)
        return tasks.find(self.recipe.task).metrics

    @cached_property
    def result(self) -> Mapping[str, Any] | None:
        """The content of result.json; None until the run has ended.

        Raises:
            UserError: It is not as swa writes it.
        """
        if not self.folder.result.is_file():
            return None
        return read_result(self.folder.result, metrics=self.metrics, hint="take another copy of the file")[0]

    @cached_property
    def opened(self) -> tuple[Context, nn.Module]:
        """Data and hardware, and the network, in the precision of the run and with the samples that were asked for.

        Under `auto` another machine may choose another precision, which kept planes and paths do not fit.
        """
        precision = self.point.content["environment"]["precision"]
        of_run = [] if precision == "fp16" else [f"train.precision={precision}"]
        samples = open.pass_of(self.point, None if self._samples is None else str(self._samples))
        return open.open_checkpoint(
            self.point,
            [*of_run, *self._overrides, *samples],
            recipe=None,
            terminal=self.terminal,
            allow_code=self._allow_code,
            also=open.PASS_KEYS,
        )

    @cached_property
    def sets(self) -> dict[str, WeightSet]:
        """The raw weights as `last`, and each average that was shipped.

        Raises:
            UserError: One has stale BatchNorm statistics.
        """
        sets = open.weight_sets_of_run(
            self.folder, self.point, self.opened[1], recipe=self.recipe, terminal=self.terminal
        )
        for name, item in sets.items():
            path = self.folder.checkpoints / f"{name}.pt"
            refresh = user_code.command(("swa", "bn-update", path), self.recipe)
            open.require_fresh({name: item.batchnorm}, path=path, hint=f"run `{refresh}` first")
        return sets

    @property
    def best(self) -> str:
        """The first average of the run; its raw weights where it has none."""
        return next((name for name, item in self.sets.items() if item.kind != "raw"), RAW)

    @cached_property
    def predictions(self) -> dict[str, tuple[Tensor, Any]]:
        """For each weight set, its predictions (N, ...) on the split of the final scores, and the targets."""
        (context, _), found = self.opened, {}
        loader = context.plain_batches(context.scoring_split())
        for name, item in self.sets.items():
            model = context.build_model()
            loading.load_strict(model, item.state_dict, source=f"{self.folder.path} ({name})")
            found[name] = passes.predict(model, loader, context=context, name=name)
        return found


def anchor_of(run: OpenRun, word: str) -> Anchor:
    """Return a weight set by its name in the run, or the one in a file.

    Every point has statistics of its own, so raw weights are called `last_bn`, as in tables with such.

    Raises:
        UserError: There is none, or it does not fit the network of the run, or its inputs.
    """
    if word in run.sets:
        item = run.sets[word]
        is_raw = item.kind == "raw" and item.batchnorm == "running"
        return Anchor(recomputed(word) if is_raw else word, item.state_dict)
    path = Path(word)
    if not path.exists():
        raise UserError(
            f"{word}: is neither a file nor a weight set of {run.folder.path}",
            hint=f"name a .pt file, or one of {', '.join(run.sets)}",
        )
    found, model = reader.read(path), run.opened[1]
    sets = reader.weight_sets(found, model)
    if RAW not in sets and len(sets) != 1:
        raise UserError(f"{path}: holds {len(sets)} weight sets", hint="name a file with one of them")
    sources.require_same_inputs(found, run.opened[0])
    state = (sets.get(RAW) or next(iter(sets.values()))).state_dict
    state = loading.load_weights(model, state, source=str(path))
    folder, name = RunFolder.containing(path), path.name
    if folder is not None and folder.path != run.folder.path.resolve():  # another run has files of the same names
        name = f"{folder.path.name}/{name}"
    return Anchor(f"{name}, epoch {found.content['epoch']}" if found.kind == "snapshot" else name, state)


def _require_classes(run: OpenRun, kind: str) -> None:
    """Refuse a run of another task than classification.

    Raises:
        UserError: It is one.
    """
    if run.recipe.task != "classification":
        raise UserError(
            f"{run.folder.path}: its task is {run.recipe.task}, and {kind} needs classification",
            hint="draw curves, schedule, plane, path or window of it",
        )


def reliability(run: OpenRun) -> dict[str, dict[str, Any]]:
    """Return the `ece` and the `bins` of each weight set, see `bins_of`.

    Raises:
        UserError: The task is not classification.
    """
    _require_classes(run, "calibration")
    found = {}
    for name, (p, labels) in run.predictions.items():
        ece = run.opened[0].task.score_predictions(p, labels).metric("ece").value
        found[name] = {"ece": ece, "bins": bins_of(p, labels)}
    return found


def bins_of(p: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """Group samples with probabilities (N, K) and labels (N,) by confidence, in bins of equal width as for the ECE.

    Return `count`, mean `confidence` and `accuracy` of each bin; the last two are None where it is empty.
    """
    confidence, predicted = p.double().max(dim=1)
    edges = torch.linspace(0, 1, ECE_BINS + 1, dtype=torch.float64)
    index = (torch.bucketize(confidence, edges, right=True) - 1).clamp(0, ECE_BINS - 1)
    rows = []
    for number in range(ECE_BINS):
        inside = index == number
        count = int(inside.sum())
        rows.append(
            {
                "count": count,
                "confidence": float(confidence[inside].mean()) if count else None,
                "accuracy": float((predicted == labels)[inside].double().mean()) if count else None,
            }
        )
    return rows


def confusion(run: OpenRun, name: str | None = None) -> tuple[str, list[list[int]]]:
    """Count the samples of a weight set, by default of the first average: (K, K), row true class, column predicted.

    Raises:
        UserError: The task is not classification, or there is no such weight set.
    """
    _require_classes(run, "confusion")
    name = name or run.best
    if name not in run.predictions:
        raise UserError(f"{run.folder.path}: has no weights {name!r}", hint=f"choose from {', '.join(run.predictions)}")
    p, labels = run.predictions[name]
    number = p.shape[1]
    return name, torch.bincount(labels * number + p.argmax(1), minlength=number**2).view(number, number).tolist()


NUM_HARDEST = 18  # three rows of a contact sheet
_SHOWN_PIXELS = 128  # the longer side of an image on a sheet


def hardest(run: OpenRun) -> tuple[str, list[Sample]]:
    """Return the samples on which the best weight set has the highest loss, the worst first.

    Raises:
        UserError: The inputs are not gray or RGB images.
    """
    name, (context, _) = run.best, run.opened
    p, labels = run.predictions[name]
    losses = context.task.score_predictions(p, labels)[context.task.metrics.loss_key]
    rows = losses.topk(min(NUM_HARDEST, len(losses))).indices
    split, classes = context.split(context.scoring_split()), context.source.class_names
    if context.source.channels not in (1, 3):
        raise UserError(f"{run.folder.path}: its inputs are not gray or RGB images", hint="nothing is to be done")
    images = torch.cat([images for images, _ in read_rows(split, rows=rows, reading=Reading())])
    shown = take(split, rows).names
    names = [f"row {row}" for row in rows.tolist()] if shown is None else [*shown]
    outcomes = OUTCOMES[run.recipe.task](p[rows], labels[rows])
    probabilities: Sequence[float | None] = [None] * len(rows)
    if isinstance(outcomes, LabelOutcomes):
        of_labels, of_predictions = (
            [text or "no label" for text in label_texts(flags, classes, delimiter=delimiter_of(run.recipe))]
            for flags in (outcomes.positive, outcomes.predicted_labels)
        )
    else:
        of_labels, of_predictions = (
            [classes[number] for number in numbers.tolist()] for numbers in (outcomes.labels, outcomes.p.argmax(1))
        )
        probabilities = outcomes.p.max(1).values.tolist()
    return name, [
        Sample(
            _shown(image),
            names[place],
            label=of_labels[place],
            predicted=of_predictions[place],
            probability=probabilities[place],
            loss=float(losses[row]),
        )
        for place, (row, image) in enumerate(zip(rows.tolist(), images, strict=True))
    ]


def _shown(image: Tensor) -> np.ndarray:
    """Return an image (C, H, W) as uint8 (H, W) or (H, W, 3), not larger than a sheet shows; floats fill the range."""
    if image.is_floating_point():
        low, high = image.aminmax()
        image = 255 * (image - low) / (high - low).clamp(min=1e-12)
    divisor = -(-max(image.shape[1:]) // _SHOWN_PIXELS)
    kernel = [min(divisor, side) for side in image.shape[1:]]
    pixels = F.avg_pool2d(image.float(), kernel) if divisor > 1 else image
    return pixels.to(torch.uint8).permute(1, 2, 0).squeeze(2).numpy()
