"""Snapshot ensembles: the averaged predictions, softmax or numbers, of a run's snapshots (Huang et al. 2017).

The one idea: the predictions of the members are summed, newest first, and their mean is scored after each member,
so one pass over M networks gives the scores of the ensembles of the last 1 to M snapshots, and one network is in
memory at a time. Legend: N samples, M members.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from swa_cli.after import revisit
from swa_cli.data.batches import Batches
from swa_cli.errors import UserError
from swa_cli.report.terminal import Terminal
from swa_cli.training import checkpoint, evaluate, faults, loading
from swa_cli.training.bench import Bench
from swa_cli.training.checkpoint import Checkpoint
from swa_cli.training.run_folder import RunFolder
from swa_cli.training.tasks import SampleScores

FEWEST = 2


@dataclass(frozen=True)
class Ensemble:
    """Snapshots of one run, newest first; their files stay mapped, and none is copied before its turn."""

    members: tuple[Checkpoint, ...]

    @property
    def batchnorm(self) -> str:
        """How fresh the statistics of the members are; `mixed` if some were recomputed."""
        found = {member.content["batchnorm"] for member in self.members}
        return found.pop() if len(found) == 1 else "stale" if "stale" in found else "mixed"


def of_run(folder: RunFolder, point: Checkpoint, terminal: Terminal) -> Ensemble:
    """The snapshots of a run, each checked to be its own.

    Args:
        folder: The run.
        point: Its resume point.
        terminal: Sees how far the files have been verified.

    Raises:
        UserError: There are fewer than two, or a file that cannot be read, or is not of this run.
    """
    paths, members = list(folder.snapshots.glob("step-*.pt")), []
    with terminal.progress("reading snapshots", len(paths)) as bar:
        for path in paths:
            members.append(_member(folder, checkpoint.read(path), point))
            bar.advance()
    if len(members) < FEWEST:
        has = f"{len(members)} snapshot{'' if len(members) == 1 else 's'}"
        raise UserError(
            f"{folder.path}: has {has}, and an ensemble takes at least {FEWEST}",
            hint="train with snapshots.every=1ep, or 1cycle for a schedule with cycles",
        )
    return Ensemble(tuple(sorted(members, key=lambda member: -member.content["step"])))


def score(ensemble: Ensemble, loader: Batches, *, bench: Bench) -> tuple[SampleScores, list[dict[str, Any]]]:
    """Scores of the whole ensemble, and those that averages are judged by of the last 1 to M members.

    Args:
        ensemble: What to score.
        loader: The batches of a split, the same in each pass.
        bench: Hardware and terminal.

    Raises:
        UserError: A member does not fit the network.
    """
    num_members, total = len(ensemble.members), torch.zeros(())  # (N, ...) from the first member on
    curve: list[dict[str, Any]] = []
    for number, member in enumerate(ensemble.members, start=1):
        model = bench.build_model()
        loading.load_weights(model, member.content["state_dict"], source=str(member.path))
        with (
            bench.terminal.progress(f"scoring member {number} of {num_members}", len(loader)) as bar,
            faults.memory("eval.batch_size", bench.recipe.eval.batch_size),
        ):
            p, targets = evaluate.predict(
                model, loader, task=bench.final_task, hardware=bench.eval_hardware, advance=bar.advance
            )
        total = total + p
        scores = bench.task.metrics(total / number, targets)
        compared = {each.key: scores.measure(each.key).value for each in bench.task.measures.compared}
        curve.append({"members": number, **compared})
    return scores, curve


def _member(folder: RunFolder, found: Checkpoint, point: Checkpoint) -> Checkpoint:
    """A snapshot, if it is one of this run, and of the step that it is named after."""
    if found.kind != "snapshot":
        raise UserError(f"{found.path}: is no snapshot", hint="remove it from the folder of the run")
    step = found.content["step"]
    if found.path != folder.snapshot_path(step):
        raise UserError(
            f"{found.path}: holds the weights of step {step}", hint="remove it, or give it the name of its step"
        )
    revisit.require_same_run(found, point)
    return found
