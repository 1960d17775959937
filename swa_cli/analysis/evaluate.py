"""`swa eval`: score every weight set of a checkpoint or a run, draws from a swag average, or an ensemble.

Averages are judged as at the end of a run, see `engine/evaluate.py`. Averaged weights with stale statistics are
scored only if the user insists.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from swa_cli.analysis import open, outcomes, passes
from swa_cli.analysis.outcomes import Kept
from swa_cli.analysis.passes import Ensemble
from swa_cli.averaging.bn_layers import is_refreshable
from swa_cli.averaging.model_state import read as read_tensors
from swa_cli.checkpoint import loading, reader
from swa_cli.checkpoint.reader import Checkpoint, WeightSet
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.engine import evaluate as comparison
from swa_cli.engine.context import Context
from swa_cli.engine.evaluate import RAW, Keep
from swa_cli.errors import UserError
from swa_cli.metrics.tasks import SampleScores
from swa_cli.recipe.swap import number_of_worker
from swa_cli.report.scores import ensemble_summary
from swa_cli.report.terminal import Terminal


def evaluate_checkpoint(
    path: Path,
    overrides: Sequence[str],
    *,
    terminal: Terminal,
    weights: str = "all",
    split: str | None = None,
    allow_stale_bn: bool = False,
    num_draws: int | None = None,
    samples: str | None = None,
    with_ensemble: bool = False,
    with_classes: bool = False,
    predictions: Path | None = None,
    recipe: Path | None = None,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Score the weight sets of a checkpoint or a run on a split (default: test, or val where there is no test).

    Of a repeat, the ensemble of its runs is scored, see `seed_ensemble`.

    With `num_draws`, swag averages are scored by the mean prediction of that many draws; `samples` is then the
    number of training samples, or `all`, in the BatchNorm pass of each draw. `with_classes` adds the scores of each
    class; `predictions` is a csv file that gets a row for each sample.

    Raises:
        UserError: Unknown weights or split, stale BatchNorm statistics, draws from an average that is not swag, a
            checkpoint that does not fit, an ensemble of something else than the snapshots of a run, or classes where
            the task has none.
    """
    if predictions is not None:
        outcomes.require_csv(predictions, source=path)
    folder = RunFolder(path) if path.is_dir() else None
    if folder is not None and folder.repeat.is_file():
        if recipe is not None or not with_ensemble:
            what = "its runs have their recipe" if recipe is not None else "is the folder of a repeat"
            raise UserError(
                f"{path}: {what}",
                hint=f"score the ensemble of its runs with `swa eval {shlex.quote(str(path))} --ensemble`,"
                " or the folder of one of them",
            )
        from swa_cli.analysis.seed_ensemble import evaluate_repeat

        return evaluate_repeat(
            path,
            overrides,
            terminal=terminal,
            weights=weights,
            split=split,
            allow_stale_bn=allow_stale_bn,
            num_draws=num_draws,
            samples=samples,
            with_classes=with_classes,
            predictions=predictions,
            allow_code=allow_code,
        )
    found = reader.read(path) if folder is None else open.resume_point(folder)
    snapshots = _read_ensemble(folder, found, terminal) if with_ensemble else None
    limit = open.pass_of(found, samples, recipe=recipe)
    context, model = open.open_checkpoint(
        found,
        [*overrides, *limit],
        recipe=recipe,
        terminal=terminal,
        allow_code=allow_code,
        also=open.PASS_KEYS if limit else (),
    )
    if folder is None:
        every = reader.weight_sets(found, model)
    else:
        every = open.weight_sets_of_run(folder, found, model, recipe=context.recipe, terminal=terminal)
    held = set(every)
    if context.source.train is not None and is_refreshable(model):
        every = _with_reference(every, wanted=weights, with_ensemble=with_ensemble)
    sets = open.chosen(every, weights, path, takes_all=True)
    drawn = set() if num_draws is None else _drawable(sets, every, path)
    details = _details(sets, drawn, snapshots, model, num_draws)
    if not allow_stale_bn:
        batchnorm = {name: item["batchnorm"] for name, item in details.items()}
        hint = open.how_to_refresh(found, context.recipe, batchnorm, recipe=recipe, overrides=overrides)
        open.require_fresh(batchnorm, path=path, hint=hint)

    wanted = {"--per-class": with_classes, "--predictions": predictions is not None}
    for option in (option for option, is_wanted in wanted.items() if is_wanted):
        outcomes.require_classes(context.recipe.task, option=option)
    kept = {name: Kept(context.recipe.task) for name in details} if any(wanted.values()) else {}
    terminal.note(f"scored in {context.recipe.eval.precision}")
    started, on = time.monotonic(), split or context.scoring_split()
    scored, reference = _score_sets(
        sets, context, on, path=path, held=held, drawn=drawn, num_draws=num_draws, kept=kept
    )
    judged, curve = _judged(sets, reference, model), list[dict[str, Any]]()
    if snapshots is not None:
        judged["ensemble"] = None
        scored["ensemble"], curve = passes.score_ensemble(
            snapshots, context.plain_batches(on), context=context, keep=_keep(kept, "ensemble")
        )
    table = comparison.table(scored, reference=reference, judged=judged)
    rows = {name: {**row, **details[name]} for name, row in table.items()}
    num_samples, tta = len(next(iter(scored.values()))), context.recipe.eval.tta
    terminal.summary(rows, split=on, samples=num_samples, tta=tta, metrics=context.task.metrics)
    if curve:
        terminal.print(ensemble_summary(curve, metrics=context.task.metrics))
    beside: dict[str, Any] = {"ensemble": curve} if curve else {}
    if with_classes:
        shown = next((name for name in kept if name in judged), next(iter(kept)))
        beside["per_class"] = outcomes.per_class(kept, context, shown=shown, terminal=terminal)
    if predictions is not None:
        outcomes.write_predictions(predictions, kept, scored, context, on)
        terminal.answer(f"predictions of {', '.join(kept)} -> {predictions}")
        beside["predictions"] = str(predictions)
    return {
        "command": "eval",
        "checkpoint": str(path),
        "run": open.run_of(found.path),
        "split": on,
        "samples": num_samples,
        "weights": rows,
        "reference": reference,
        "seconds": round(time.monotonic() - started, 3),
        **context.eval_hardware.facts,
        "tta": tta,
        **beside,
    }


def _score_sets(
    sets: dict[str, WeightSet],
    context: Context,
    split: str,
    *,
    path: Path,
    held: set[str],
    drawn: set[str],
    num_draws: int | None,
    kept: Mapping[str, Kept],
) -> tuple[dict[str, SampleScores], str | None]:
    """Score the weight sets, which get the names and shapes of the network, and choose what averages are judged by.

    Those that the checkpoint has not `held` are refreshed first; `drawn` are scored by `num_draws` draws. What is
    `kept` gets the predictions.
    """
    scored: dict[str, SampleScores] = {}
    losses: dict[str, float | None] = {}  # on validation images, of what averages may be judged against
    candidates = _candidates(sets)
    for name, item in sets.items():
        model = context.build_model()  # a new one: a network may keep what it has computed from other weights
        loaded = loading.load_weights(model, item.state_dict, source=f"{path} ({name})")
        sets[name] = replace(item, state_dict=loaded)
        if num_draws is not None and name in drawn:
            scored[name] = _score_draws(item, model, name, context, split, num_draws, keep=_keep(kept, name))
            continue
        if name not in held:
            context.refresh_batchnorm(model, name=name)
        scored[name] = _score(model, name, context, split, keep=_keep(kept, name))
        if name in candidates and len(candidates) > 1 and context.source.val is not None:
            val = scored[name] if split == "val" else _score(model, name, context, "val")
            losses[name] = val.metric(context.task.metrics.loss_key).value
    return scored, comparison.reference(candidates, losses) if candidates else None


def _read_ensemble(folder: RunFolder | None, found: Checkpoint, terminal: Terminal) -> Ensemble:
    if folder is None:
        raise UserError(
            f"{found.path}: is a file, and an ensemble needs the snapshots of a run",
            hint=f"name the folder of its run, such as {open.run_of(found.path) or 'runs/latest'}",
        )
    averages_inside = "trained" in found.content  # its optimizer: the statistics of training are of other weights
    return passes.read_ensemble(folder, found, terminal, refreshes=averages_inside)


def _with_reference(every: Mapping[str, WeightSet], *, wanted: str, with_ensemble: bool) -> dict[str, WeightSet]:
    """Add the raw weights that averages are judged against, whose statistics are still to be recomputed.

    Each goes behind the raw weights that it is made of; `wanted` is its name, or `all`.
    """
    is_judged = with_ensemble or any(item.kind != "raw" for item in every.values())
    sets: dict[str, WeightSet] = {}
    for name, item in every.items():
        sets[name] = item
        twin = comparison.recomputed(name)
        is_raw = name == RAW or number_of_worker(name) is not None
        is_raw &= item.batchnorm == "running"  # else its statistics are recomputed, or to be: it is its own twin
        if is_raw and twin not in every and (wanted == twin or (wanted == "all" and is_judged)):
            sets[twin] = replace(item, batchnorm="recomputed")
    return sets


def _candidates(sets: Mapping[str, WeightSet]) -> list[str]:
    """Return the weight sets that averages may be judged against; in a SWAP run, its workers."""
    workers = [name for name in sets if number_of_worker(name.removesuffix("_bn")) is not None]
    return workers or [name for name in (RAW, comparison.recomputed(RAW)) if name in sets]


def _judged(sets: Mapping[str, WeightSet], reference: str | None, model: nn.Module) -> dict[str, str | None]:
    """Return each average with the reason why it gets no verdict, if there is one."""
    if reference is None:
        return {}
    raw, names = sets[reference].state_dict, list(read_tensors(model).weights)
    return {
        name: comparison.unjudged(name, count=item.count, weights=item.state_dict, raw=raw, names=names)
        for name, item in sets.items()
        if item.kind != "raw"
    }


def _details(
    sets: Mapping[str, WeightSet],
    drawn: set[str],
    snapshots: Ensemble | None,
    model: nn.Module,
    num_draws: int | None,
) -> dict[str, dict[str, Any]]:
    details: dict[str, dict[str, Any]] = {}
    for name, item in sets.items():
        details[name] = {"count": item.count, "batchnorm": item.batchnorm}
        if (number := number_of_worker(name.removesuffix("_bn"))) is not None:
            details[name]["worker"] = number
        if name in drawn:
            details[name] |= {"batchnorm": "recomputed" if is_refreshable(model) else "none", "draws": num_draws}
    if snapshots is not None:
        members = len(snapshots.members)
        details["ensemble"] = {"count": None, "batchnorm": snapshots.batchnorm, "members": members}
    return details


def _drawable(sets: Mapping[str, WeightSet], every: Mapping[str, WeightSet], path: Path) -> set[str]:
    """Return the chosen `sets` that are swag averages; there has to be one."""
    drawn = {name for name, item in sets.items() if item.posterior is not None}
    if not drawn:
        kinds = ", ".join(f"{name} is {item.kind}" for name, item in sets.items())
        others = [name for name, item in every.items() if item.posterior is not None]
        hint = f"choose --weights {' or '.join(others)}" if others else "train with averages.swag.kind=swag"
        raise UserError(f"{path}: --draws takes an average of kind swag: {kinds}", hint=hint)
    return drawn


def _keep(kept: Mapping[str, Kept], name: str) -> Keep | None:
    """Return what takes the predictions of a weight set, if any are kept."""
    return kept[name].add if name in kept else None


def _score(model: nn.Module, name: str, context: Context, split: str, *, keep: Keep | None = None) -> SampleScores:
    return passes.score(model, context.plain_batches(split), context=context, name=f"{name} on {split}", keep=keep)


def _score_draws(
    item: WeightSet,
    model: nn.Module,
    name: str,
    context: Context,
    split: str,
    num_draws: int,
    *,
    keep: Keep | None,
) -> SampleScores:
    assert item.posterior is not None, "only swag averages are drawn from"
    scores = passes.score_swag(
        item.posterior, model, num_draws=num_draws, name=name, context=context, split=split, keep=keep
    )
    statistics = "no BatchNorm"
    if is_refreshable(model):
        num_train = len(context.split("train"))
        number = context.recipe.average_scoring.batchnorm.num_samples(num_train)
        count = "all" if number == num_train else f"{number:,}"
        statistics = f"BatchNorm of each from {count} training samples"
    context.events.note(f"{name}: the mean prediction of {num_draws} draws, {statistics}")
    return scores
