"""What a run scores: the raw weights and its averages on validation images, and all of them at the end.

Scores only read: averages are put into a copy of the network, and no random number is drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from torch import nn

from swa_cli.report.measures import Measures
from swa_cli.report.plots import curves
from swa_cli.training import checkpoint, evaluate, faults, saving
from swa_cli.training.files import write_atomic
from swa_cli.training.hardware import release_memory
from swa_cli.training.run_folder import RunFolder
from swa_cli.training.setup import Refreshed, Run
from swa_cli.training.tasks import SampleScores, Task


def validate(run: Run) -> dict[str, Any]:
    """The validation half of a row: the raw weights, and each average when it is due and at the end."""
    bench, plan = run.bench, run.plan
    measures, row = bench.task.measures, dict[str, Any]()
    is_last = run.epoch == plan.epochs or run.stopped is not None
    has_val = bench.source.val is not None
    row |= _columns("val", measures, _score(run, _raw_model(run), "val", task=bench.task) if has_val else None)
    for name, average in run.averages.items():
        is_due = has_val and average.count and (run.epoch in plan.score_epochs or is_last)
        scores = _score(run, _averaged_model(run, name), "val", task=bench.task) if is_due else None
        row |= {**_columns(f"{name}_val", measures, scores), f"{name}_count": average.count}
    return row


def _columns(prefix: str, measures: Measures, scores: SampleScores | None) -> dict[str, float | None]:
    """Loss and own score of the task, None where not measured."""
    names = {f"{prefix}_loss": measures.loss.key, f"{prefix}_{measures.own.key}": measures.own.key}
    return {name: None if scores is None else scores.measure(key).value for name, key in names.items()}


def finish(run: Run, folder: RunFolder) -> dict[str, Any]:
    """Ship every average, score every weight set on the same samples, tell."""
    bench, terminal = run.bench, run.bench.terminal
    split = bench.scoring_split()
    samples = {"last": _score(run, _raw_model(run), split, task=bench.final_task)}
    details: dict[str, dict[str, Any]] = {"last": {"count": None, "batchnorm": checkpoint.raw_batchnorm(run.model)}}
    held = {name: average for name, average in run.averages.items() if average.count}
    for name in run.averages.keys() - held.keys():
        terminal.warning(f"{name} holds nothing: the run ended before its first weights")
    for worker in run.workers:
        samples[worker.name] = _score(
            run, run.parts.network(run.model, worker.state_dict), split, task=bench.final_task
        )
        details[worker.name] = {**details["last"], "worker": worker.number}
    for name, average in held.items():
        model = _averaged_model(run, name)
        samples[name] = _score(run, model, split, task=bench.final_task)
        refreshed = run.refreshed[name]
        details[name] = {"count": average.count, "batchnorm": refreshed.batchnorm}
        saving.save_average(run, folder, name, model.state_dict())
    rows = itertools.chain(run.history, *(worker.history for worker in run.workers))
    weights = {name: {**row, **details[name]} for name, row in evaluate.table(samples).items()}
    shipped = folder.checkpoints / f"{next(iter(held), 'last')}.pt"
    result = {
        "command": "train",
        "checkpoint": str(shipped.resolve()),
        "run": str(folder.path.resolve()),
        "split": split,
        "samples": len(samples["last"]),
        "weights": weights,
        "seconds": round(sum(row["seconds"] for row in rows), 3),
        "device": str(bench.hardware.device),
        "precision": bench.hardware.precision,
        "tta": bench.recipe.train.tta,
        "stopped": run.stopped,
    }
    _draw(run, folder, weights)
    folder.write_json("result.json", result)
    terminal.summary(
        weights, split=split, samples=result["samples"], tta=bench.recipe.train.tta, measures=bench.task.measures
    )
    for name, average in held.items():
        if average.kind == "swag" and average.count > 1:
            shipped = folder.checkpoints / f"{name}.pt"
            terminal.note(f"{name} is scored by its mean; `swa eval {shipped} --draws 30` scores weights around it")
    return result


def _draw(run: Run, folder: RunFolder, weights: Mapping[str, Mapping[str, Any]]) -> None:
    """Write curves.png."""
    if not folder.writes:
        return
    release_memory()  # the library that draws takes 100 MB
    plan = run.plan
    workers = {worker.name: worker.history for worker in run.workers}
    averaging = {item.name: [step for step in item.steps if step <= run.step] for item in plan.averages}
    averaging |= {name: [] for name in (*run.averages, *workers)} if workers else {}
    write_atomic(
        folder.path / "curves.png",
        lambda file: curves.draw(
            file,
            rows=curves.with_workers(run.history, workers),
            title=run.bench.recipe.title,
            averaging=averaging,
            steps_per_epoch=plan.steps_per_epoch,
            lr=[plan.learning_rate(step) for step in range(run.step)],
            worker_lr=plan.worker_rates,
            final=weights,
            measures=run.bench.task.measures,
        ),
    )


def _raw_model(run: Run) -> nn.Module:
    """The network as it is trained, with whole weights."""
    return run.parts.network(run.model)


def _averaged_model(run: Run, name: str) -> nn.Module:
    """A copy of the network with an average in it; BatchNorm is recomputed once for each state of the average."""
    average = run.averages[name]
    model = run.parts.network(run.model, average.averaged_state())
    known = run.refreshed.get(name)
    if known is not None and known.step == average.steps[-1]:
        model.load_state_dict(known.statistics, strict=False)
        return model
    with faults.memory("train.batch_size", run.bench.recipe.train.batch_size):
        update = run.bench.refresh_batchnorm(model, name=name, check=run.interrupt.check)
    run.refreshed[name] = Refreshed(
        average.steps[-1],
        {key: value.clone() for key, value in model.named_buffers()},
        "none" if update is None else "recomputed",
        None if update is None else update.method,
        0 if update is None else update.num_samples,
    )
    return model


def _score(run: Run, model: nn.Module, split: str, *, task: Task) -> SampleScores:
    bench, share = run.bench, run.bench.share(run.bench.plain_batches(split))
    with (
        bench.terminal.progress(f"scoring {split}", share.rounds) as bar,
        faults.memory("train.eval_batch_size", bench.recipe.train.eval_batch_size),
    ):

        def advance() -> None:
            bar.advance()
            run.interrupt.check()

        def gathered(own: Any) -> list[Any]:
            share.finish(run.interrupt.check)
            return share.gathered(own)

        return evaluate.score(
            model, share.batches, task=task, hardware=bench.hardware, advance=advance, gathered=gathered
        )
