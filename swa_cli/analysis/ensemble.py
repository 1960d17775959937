"""Score the mean prediction of several networks: the snapshots of a run, or draws from a swag average.

The one idea: predictions, softmax or numbers, are summed member by member, so one network is in memory at a time.
Snapshots (Huang et al. 2017) are summed newest first, and their mean is scored after each: one pass over M networks
gives the ensembles of the last 1 to M snapshots. Draw i from a swag average (Bayesian model averaging) is a function
of (seed, i), so thirty draws begin with the same ten as ten do; each has BatchNorm statistics of its own, as those
of the mean belong to other weights. Legend: N samples, M members.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from swa_cli.analysis import open, passes
from swa_cli.averaging.model_state import read, require_same_shapes, shapes
from swa_cli.averaging.swag import Posterior
from swa_cli.checkpoint import loading, reader
from swa_cli.checkpoint.reader import Checkpoint
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.data.batches import Batches
from swa_cli.data.randomness import generator
from swa_cli.engine.context import Context
from swa_cli.errors import UserError
from swa_cli.metrics.tasks import SampleScores
from swa_cli.report.terminal import Terminal

FEWEST = 2


@dataclass(frozen=True)
class Ensemble:
    """Snapshots of one run, newest first; their files stay mapped until it is their turn."""

    members: tuple[Checkpoint, ...]

    @property
    def batchnorm(self) -> str:
        """How fresh the statistics of the members are; `mixed` if only some were recomputed."""
        found = {member.content["batchnorm"] for member in self.members}
        return found.pop() if len(found) == 1 else "stale" if "stale" in found else "mixed"


def of_run(folder: RunFolder, point: Checkpoint, terminal: Terminal) -> Ensemble:
    """Read the snapshots of a run.

    Args:
        folder: The run.
        point: Its resume point.
        terminal: Shows progress.

    Raises:
        UserError: There are fewer than two, or a file that cannot be read or is not of this run.
    """
    paths, members, recipes = list(folder.snapshots.glob("step-*.pt")), [], open.Recipes()
    with terminal.progress("reading snapshots", len(paths)) as bar:
        for path in paths:
            found = reader.read(path)
            _require_snapshot(folder, found)
            open.require_same_run(found, point, recipes=recipes)
            members.append(found)
            bar.advance()
    if len(members) < FEWEST:
        has = f"{len(members)} snapshot{'' if len(members) == 1 else 's'}"
        raise UserError(
            f"{folder.path}: has {has}, and an ensemble takes at least {FEWEST}",
            hint="train with snapshots.every=1ep, or 1cycle for a schedule with cycles",
        )
    return Ensemble(tuple(sorted(members, key=lambda member: -member.content["step"])))


def _require_snapshot(folder: RunFolder, found: Checkpoint) -> None:
    """Refuse a file that is not a snapshot, or not of the step that it is named after."""
    if found.kind != "snapshot":
        raise UserError(f"{found.path}: is not a snapshot", hint="remove it from the folder of the run")
    step = found.content["step"]
    if found.path != folder.snapshot_path(step):
        raise UserError(
            f"{found.path}: holds the weights of step {step}", hint="remove it, or give it the name of its step"
        )


def score(ensemble: Ensemble, loader: Batches, *, context: Context) -> tuple[SampleScores, list[dict[str, Any]]]:
    """Score the whole ensemble, and the last 1 to M members by the metrics that averages are judged by.

    Args:
        ensemble: The snapshots.
        loader: The batches of a split, the same in each pass.
        context: Hardware and terminal.

    Raises:
        UserError: A member does not fit the network.
    """
    num_members, total = len(ensemble.members), torch.zeros(())  # (N, ...) from the first member on
    curve: list[dict[str, Any]] = []
    for number, member in enumerate(ensemble.members, start=1):
        model = context.build_model()
        loading.load_weights(model, member.content["state_dict"], source=str(member.path))
        p, targets = passes.predict(model, loader, context=context, name=f"member {number} of {num_members}")
        total = total + p
        scores = context.task.score_predictions(total / number, targets)
        compared = {each.key: scores.metric(each.key).value for each in context.task.metrics.compared}
        curve.append({"members": number, **compared})
    return scores, curve


def score_swag(
    posterior: Posterior, model: nn.Module, *, num_draws: int, name: str, context: Context, split: str
) -> SampleScores:
    """Score the mean prediction of draws from a swag average, each with its own BatchNorm statistics.

    Args:
        posterior: The distribution of weights.
        model: A network of the recipe, whose names the posterior has to have.
        num_draws: At least 1.
        name: The name of the average.
        context: Data and hardware; its recipe has the seed, and the samples of each BatchNorm pass.
        split: The split to score.

    Raises:
        UserError: The posterior is not one of this network, or holds too little to draw from.
    """
    require_same_shapes(shapes(posterior.variance), shapes(read(model).weights), what="posterior")
    posterior.require_drawable()
    loader = context.plain_batches(split)
    total, targets = torch.zeros(()), None  # (N, ...) from the first draw on
    length = num_draws * (context.refresh_length(model) + len(loader))
    with context.events.progress(f"{num_draws} draws of {name}", length) as bar:
        for index in range(num_draws):
            model = context.build_model()
            model.load_state_dict(posterior.draw(generator(context.recipe.seed, "swag draw", index)))
            passes.refresh(model, context=context, name=name, bar=bar)
            p, targets = passes.predict(model, loader, context=context, bar=bar)
            total = total + p
    return context.task.score_predictions(total / num_draws, targets)
