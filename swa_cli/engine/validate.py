"""Validate after each epoch; score, judge and ship every weight set at the end.

At the end the raw weights are scored with recomputed BatchNorm statistics too: `evaluate.py` explains why. Scores only
read: averages are put into a second network, see `network.Replica`, and no random number is drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from swa_cli.averaging.model_state import cloned
from swa_cli.averaging.model_state import read as read_tensors
from swa_cli.checkpoint import loading, reader
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.engine import evaluate, failures, keep, preflight, state
from swa_cli.engine.evaluate import RAW
from swa_cli.engine.events import Curves, ResultEvent
from swa_cli.engine.hardware import release_memory
from swa_cli.engine.run import Refreshed, Run, Worker
from swa_cli.metrics.metric import TaskMetrics
from swa_cli.metrics.tasks import SampleScores, Task


def validate(run: Run) -> dict[str, Any]:
    """Return the validation half of a row: the raw weights, and each average when due and at the end."""
    context, plan = run.context, run.plan
    metrics, row = context.task.metrics, dict[str, Any]()
    is_last = run.epoch == plan.epochs or run.stopped is not None
    has_val = context.source.val is not None
    run.validated.clear()
    if has_val or (is_last and run.averages_inside):  # last.pt then has the statistics of its weights
        with _raw(run) as model:
            if has_val:
                run.validated[RAW] = _score(run, model, RAW, "val", task=context.task)
    for name, average in run.averages.items():
        if has_val and average.count and (run.epoch in plan.score_epochs or is_last):
            with _averaged(run, name) as model:
                run.validated[name] = _score(run, model, name, "val", task=context.task)
    row |= _columns("val", metrics, run.validated.get(RAW))
    for name, average in run.averages.items():
        row |= {**_columns(f"{name}_val", metrics, run.validated.get(name)), f"{name}_count": average.count}
    return row


def _columns(prefix: str, metrics: TaskMetrics, scores: SampleScores | None) -> dict[str, float | None]:
    """Return the loss and the primary score of the task; None if not measured."""
    names = {f"{prefix}_loss": metrics.loss.key, f"{prefix}_{metrics.primary.key}": metrics.primary.key}
    return {name: None if scores is None else scores.metric(key).value for name, key in names.items()}


def keep_best(run: Run) -> None:
    """Keep a copy of each weight set whose best epoch is the one that has just ended."""
    epoch = len(run.history)
    for name in keep.due(run):
        if name == keep.BEST:
            with _raw(run) as model:
                fresh = {"batchnorm": reader.raw_batchnorm(model), "batchnorm_method": None, "samples": 0}
                fresh = run.refreshed[RAW].update.record if run.averages_inside else fresh
                average = reader.raw_average(name, step=run.step)
                run.kept[name] = keep.copy_of(model, average, fresh, epoch=epoch)
        else:
            with _averaged(run, name) as model:
                fresh = run.refreshed[name].update.record
                run.kept[name] = keep.copy_of(model, state.average_facts(run, name), fresh, epoch=epoch)


@dataclass
class _Board:
    """The weight sets that were scored at the end, in the order of the table."""

    samples: dict[str, SampleScores] = field(default_factory=dict)  # of the split of the final scores
    val: dict[str, SampleScores] = field(default_factory=dict)  # of the validation split, if there is one
    details: dict[str, dict[str, Any]] = field(default_factory=dict)
    judged: dict[str, str | None] = field(default_factory=dict)  # average -> why it gets no verdict, or None


def finish(run: Run, folder: RunFolder) -> dict[str, Any]:
    """Ship every average, score every weight set on the same samples, and judge the averages."""
    context, board = run.context, _Board()
    for name in run.kept:  # the scores of the last epoch may be of other weights
        run.validated.pop(name, None)
    split = context.scoring_split()
    raw = _score_raw(run, folder, board, split)
    if keep.BEST in run.kept:
        with _kept(run, keep.BEST) as model:
            _add(run, board, keep.BEST, model, split, count=None, **_details(run.kept[keep.BEST]))
    _warn_of_hidden_state(run, split)
    losses = {name: board.val[name].metric(context.task.metrics.loss_key).value for name in board.val}
    against = evaluate.reference(list(raw), losses)
    for name, average in run.averages.items():
        if not average.count:
            context.events.warning(f"{name} holds no weights: the run ended before its first weights")
            continue
        kept = run.kept.get(name)
        with _averaged(run, name) if kept is None else _kept(run, name) as model:
            count = average.count if kept is None else kept.average["count"]
            if kept is None:
                _add(run, board, name, model, split, count=count, batchnorm=run.refreshed[name].update.freshness)
            else:
                _add(run, board, name, model, split, count=count, **_details(kept))
            weights, names = model.state_dict(), list(read_tensors(model).weights)
            reason = evaluate.unjudged(name, count=count, weights=weights, raw=raw[against], names=names)
            board.judged[name] = reason
            if kept is None:
                state.save_average(run, folder, name, weights)
            else:
                state.save_kept(run, folder, name)
    if run.kept:
        told = ", ".join(f"{name} of epoch {kept.epoch}" for name, kept in run.kept.items())
        context.events.note(f"kept as the best: {told}")
    for name, column in keep.columns(context.recipe).items():
        if name not in run.kept and (name == keep.BEST or name in run.filled):
            lacked = "measured" if all(row[column] is None for row in run.history) else "finite"
            left = "there is no best.pt" if name == keep.BEST else f"{name}.pt is that of the end"
            context.events.warning(f"{column} was never {lacked}: {left}")
    rows = evaluate.table(board.samples, reference=against, judged=board.judged)
    for name, row in rows.items():
        val = board.val.get(name)
        row |= {**board.details[name], "val": None if val is None else evaluate.summarize(val)}
    result = _result(run, folder, rows, split) | {"reference": against}
    _announce(run, folder, result)  # first: a run with result.json is finished, and all its files are there
    folder.write_json("result.json", result)
    return result


def _score_raw(run: Run, folder: RunFolder, board: _Board, split: str) -> dict[str, Mapping[str, Tensor]]:
    """Score the raw weights, as they are and with BatchNorm recomputed as for an average.

    Returns:
        The weight sets that averages may be judged against. In a SWAP run these are the workers, whose mean the average
        is; `last` is the end of the common phase.
    """
    raw: dict[str, Mapping[str, Tensor]] = {}
    sets: list[tuple[str, Worker | None]] = [(RAW, None), *((worker.name, worker) for worker in run.workers)]
    for name, worker in sets:
        weights = None if worker is None else worker.state_dict
        known = {"count": None} | ({} if worker is None else {"worker": worker.number})
        is_judge = worker is not None or not run.workers
        with _raw(run) if worker is None else run.replica.holding(weights) as model:
            fresh = reader.raw_batchnorm(model)
            if run.averages_inside and worker is None:
                fresh = run.refreshed[RAW].update.freshness
            elif worker is not None:
                fresh = worker.batchnorm or fresh
            _add(run, board, name, model, split, batchnorm=fresh, **known)
            if is_judge:
                raw[name] = cloned(model.state_dict())
        if not run.statistics.num_layers or run.averages_inside:
            continue
        twin = evaluate.recomputed(name)
        with run.replica.refreshing(weights) as model:
            refreshed = _refresh(run, model, name=twin, step=run.step if worker is None else worker.step)
            _add(run, board, twin, model, split, batchnorm=refreshed.update.freshness, **known)
            state.save_recomputed(run, folder, twin, model.state_dict(), refreshed)
        if is_judge:
            raw[twin] = raw[name]
    return raw


def _warn_of_hidden_state(run: Run, split: str) -> None:
    """Warn if a network with the same weights gives other outputs than the trained one."""
    context, replica = run.context, run.replica
    if replica.borrows or run.sharding.is_used:
        return
    if not preflight.is_made_anew(replica, context.plain_batches(split).first()):
        context.events.warning(
            f"{context.recipe.model.name} keeps state that training changes outside its state dict: {RAW} is"
            " evaluated as it was trained, averages and files without that state"
        )


def _add(run: Run, board: _Board, name: str, model: nn.Module, split: str, **details: Any) -> None:
    """Score a weight set on the split of the final scores, and on validation images."""
    context, task = run.context, run.context.final_task
    board.samples[name] = scores = _score(run, model, name, split, task=task)
    if context.source.val is not None:
        known = run.validated.get(name) if task.tta == "none" else None
        if known is None:
            known = scores if split == "val" else _score(run, model, name, "val", task=task)
        board.val[name] = known
    board.details[name] = details


def _result(run: Run, folder: RunFolder, weights: dict[str, dict[str, Any]], split: str) -> dict[str, Any]:
    """Return what `--json` prints and result.json holds."""
    context = run.context
    rows = itertools.chain(run.history, *(worker.history for worker in run.workers))
    broken = {"broken_files": context.source.num_broken} if context.recipe.dataset.skip_broken else {}
    return {
        "command": "train",
        "checkpoint": str((folder.checkpoints / f"{next(iter(run.filled), RAW)}.pt").resolve()),
        "run": str(folder.path.resolve()),
        "split": split,
        "samples": len(context.split(split)),
        **broken,
        "weights": weights,
        "seconds": round(sum(row["seconds"] for row in rows), 3),
        **context.hardware.facts,
        "eval_precision": context.recipe.eval.precision,
        "tta": context.recipe.eval.tta,
        "stopped": run.stopped,
    }


def _announce(run: Run, folder: RunFolder, result: Mapping[str, Any]) -> None:
    """Announce the scores, the weight set to ship, and all that a plot of the run shows."""
    context, plan = run.context, run.plan
    loss_key = context.task.metrics.loss_key
    name, why = evaluate.to_ship(result["weights"], loss_key=loss_key, averages=run.filled)
    workers = {worker.name: worker.history for worker in run.workers}
    averaging = {item.name: [step for step in item.steps if step <= run.step] for item in plan.averages}
    averaging |= {name: [] for name in (*run.averages, *workers)} if workers else {}
    swag = [name for name, average in run.averages.items() if average.kind == "swag" and average.count > 1]
    release_memory()  # a listener that draws needs 100 MB
    context.events.emit(
        ResultEvent(
            values=result,
            folder=folder.path,
            ship=folder.weights_file(name),
            ship_reason=why,
            swag=[folder.checkpoints / f"{name}.pt" for name in swag],
            metrics=context.task.metrics,
            history=run.history,
            curves=Curves(
                title=context.recipe.title,
                workers=workers,
                averaging=averaging,
                steps_per_epoch=plan.steps_per_epoch,
                lr=[plan.learning_rate(step) for step in range(run.step)],
                worker_lr=plan.worker_rates,
                trained=context.recipe.train.loss_text,
            ),
        )
    )


def _raw(run: Run) -> AbstractContextManager[nn.Module]:
    """Hold the raw weights as they are scored: as trained, or averaged inside the optimizer and with own statistics."""
    if not run.averages_inside:
        return run.replica.holding()
    return _refreshed(run, RAW, cloned(run.model.state_dict()), step=run.step)


def _averaged(run: Run, name: str) -> AbstractContextManager[nn.Module]:
    """Hold an average with its own statistics."""
    average = run.averages[name]
    return _refreshed(run, name, average.averaged_state(), step=average.steps[-1])


@contextmanager
def _refreshed(run: Run, name: str, weights: Mapping[str, Tensor], *, step: int) -> Iterator[nn.Module]:
    """Yield a network with a weight set of some step; BatchNorm is recomputed once for each step."""
    with run.replica.holding(weights) as model:
        known = run.refreshed.get(name)
        if known is not None and known.step == step:
            loading.load_buffers(model, known.buffers)
        else:
            run.refreshed[name] = _refresh(run, model, name=name, step=step)
        yield model


@contextmanager
def _kept(run: Run, name: str) -> Iterator[nn.Module]:
    """Yield a network with weights in it that were kept."""
    with run.replica.holding(run.sharding.local_rows(run.kept[name].state_dict)) as model:
        yield model


def _details(kept: keep.Kept) -> dict[str, Any]:
    return {"batchnorm": kept.fresh["batchnorm"], "epoch": kept.epoch}


def _refresh(run: Run, model: nn.Module, *, name: str, step: int) -> Refreshed:
    update = run.context.refresh_batchnorm(model, name=name, check=run.interrupt.check)
    return Refreshed(step, {key: value.clone() for key, value in model.named_buffers()}, update)


def _score(run: Run, model: nn.Module, name: str, split: str, *, task: Task) -> SampleScores:
    context, share = run.context, run.context.world.share(run.context.plain_batches(split))
    with (
        context.events.progress(f"scoring {name} on {split}", share.rounds) as bar,
        failures.memory("eval.batch_size", context.recipe.eval.batch_size),
    ):
        own = share.counted(bar, run.interrupt.check)
        return evaluate.score(model, own, task=task, hardware=context.eval_hardware, gathered=share.gathered)
