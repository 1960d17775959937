"""Score and predict with the weight sets of a checkpoint, one by one or as the mean of several.

Each pass shows its progress, and names the batch size to halve where memory runs out. The mean prediction of several
networks, softmax or numbers, is summed member by member, so one network is in memory at a time. Snapshots (Huang et
al. 2017) are summed newest first, and their mean is scored after each: one pass over M networks gives the ensembles of
the last 1 to M snapshots. Draw i from a swag average (Bayesian model averaging) is a function of (seed, i), so thirty
draws begin with the same ten as ten do; each has BatchNorm statistics of its own, as those of the mean belong to other
weights. Legend: N samples, M members.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from swa_cli.analysis import open
from swa_cli.averaging.model_state import read, require_same_shapes, shapes
from swa_cli.averaging.swag import Posterior
from swa_cli.checkpoint import loading, reader
from swa_cli.checkpoint.reader import Checkpoint
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.data.batches import Batches
from swa_cli.data.randomness import generator
from swa_cli.engine import evaluate, failures
from swa_cli.engine.context import Context
from swa_cli.engine.evaluate import Keep
from swa_cli.engine.events import Bar
from swa_cli.errors import UserError
from swa_cli.metrics.tasks import SampleScores, Task
from swa_cli.report.terminal import Terminal
from swa_cli.units import count_text

FEWEST = 2  # members of an ensemble

Loader = Batches | list[Any]  # inputs and targets, batch by batch


def score(
    model: nn.Module,
    loader: Loader,
    *,
    context: Context,
    name: str = "",
    bar: Bar | None = None,
    task: Task | None = None,
    keep: Keep | None = None,
) -> SampleScores:
    """Score every sample of some batches; by default, `task` has the test-time augmentation of final scores.

    `name` stands beside a progress bar of this pass alone; `bar` is that of a longer pass. `keep` gets predictions and
    targets.
    """
    with _pass(context, loader, name=name, bar=bar) as shown:
        return evaluate.score(
            model,
            loader,
            task=task or context.final_task,
            hardware=context.eval_hardware,
            advance=shown.advance,
            keep=keep,
        )


def predict(
    model: nn.Module, loader: Loader, *, context: Context, name: str = "", bar: Bar | None = None
) -> tuple[Tensor, Any]:
    """Return the predictions (N, ...) of some batches and their targets; the arguments are those of `score`."""
    with _pass(context, loader, name=name, bar=bar) as shown:
        return evaluate.predict(
            model, loader, task=context.final_task, hardware=context.eval_hardware, advance=shown.advance
        )


@contextmanager
def _pass(context: Context, loader: Loader, *, name: str, bar: Bar | None) -> Iterator[Bar]:
    with failures.memory("eval.batch_size", context.recipe.eval.batch_size):
        if bar is not None:
            yield bar
            return
        with context.events.progress(f"scoring {name}", len(loader)) as own:
            yield own


@dataclass(frozen=True)
class Ensemble:
    """Snapshots of one run, newest first; their files stay mapped until it is their turn.

    `refreshes` says that members with stale statistics are refreshed before they predict.
    """

    members: tuple[Checkpoint, ...]
    refreshes: bool = False

    @property
    def batchnorm(self) -> str:
        """How fresh the statistics of the members are; `mixed` if only some were recomputed."""
        found = {member.content["batchnorm"] for member in self.members}
        found = {"recomputed" if self.refreshes and each == "stale" else each for each in found}
        return found.pop() if len(found) == 1 else "stale" if "stale" in found else "mixed"


def read_ensemble(folder: RunFolder, point: Checkpoint, terminal: Terminal, *, refreshes: bool = False) -> Ensemble:
    """Read the snapshots of a run, whose resume point is `point`.

    Raises:
        UserError: There are fewer than two, or a file that cannot be read or is not of this run.
    """
    paths, members = folder.snapshot_files, []
    with terminal.progress("reading snapshots", len(paths)) as bar:
        for path in paths:
            found = reader.read(path)
            _require_snapshot(folder, found)
            open.require_same_run(found, point)
            members.append(found)
            bar.advance()
    if len(members) < FEWEST:
        has = count_text(len(members), "snapshot")
        raise UserError(
            f"{folder.path}: has {has}, and an ensemble takes at least {FEWEST}",
            hint="train with snapshots.every=1ep, or 1cycle for a schedule with cycles",
        )
    return Ensemble(tuple(sorted(members, key=lambda member: -member.content["step"])), refreshes)


def _require_snapshot(folder: RunFolder, found: Checkpoint) -> None:
    """Refuse a file that is not a snapshot, or not of the step that it is named after."""
    if found.kind != "snapshot":
        raise UserError(f"{found.path}: is not a snapshot", hint="remove it from the folder of the run")
    step = found.content["step"]
    if found.path != folder.snapshot_path(step):
        raise UserError(
            f"{found.path}: holds the weights of step {step}", hint="remove it, or give it the name of its step"
        )


def score_ensemble(
    ensemble: Ensemble, loader: Batches, *, context: Context, keep: Keep | None = None
) -> tuple[SampleScores, list[dict[str, Any]]]:
    """Score the whole ensemble, and the last 1 to M members by the metrics that averages are judged by.

    Raises:
        UserError: A member does not fit the network.
    """
    num_members, total = len(ensemble.members), torch.zeros(())  # (N, ...) from the first member on
    curve: list[dict[str, Any]] = []
    for number, member in enumerate(ensemble.members, start=1):
        model = context.build_model()
        loading.load_strict(model, member.content["state_dict"], source=str(member.path))
        if ensemble.refreshes and member.content["batchnorm"] == "stale":
            context.refresh_batchnorm(model, name=f"member {number} of {num_members}")
        p, targets = predict(model, loader, context=context, name=f"member {number} of {num_members}")
        total = total + p
        scores = context.task.score_predictions(total / number, targets)
        compared = {each.key: scores.metric(each.key).value for each in context.task.metrics.compared}
        curve.append({"members": number, **compared})
    if keep is not None:
        keep(total / num_members, targets)
    return scores, curve


def score_swag(
    posterior: Posterior,
    model: nn.Module,
    *,
    num_draws: int,
    name: str,
    context: Context,
    split: str,
    keep: Keep | None = None,
) -> SampleScores:
    """Score the mean prediction of draws from a swag average, each with its own BatchNorm statistics.

    The recipe in `context` has the seed, and the samples of each BatchNorm pass.

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
            context.refresh_batchnorm(model, name=name, bar=bar)
            p, targets = predict(model, loader, context=context, bar=bar)
            total = total + p
    if keep is not None:
        keep(total / num_draws, targets)
    return context.task.score_predictions(total / num_draws, targets)
