"""`swa eval REPEAT --ensemble`: score the mean prediction of the runs of a repeat.

Each seed that is finished predicts with one weight set (deep ensembles, Lakshminarayanan et al. 2017,
arXiv:1612.01474), or with the mean of N draws from its swag average: MultiSWAG (Wilson and Izmailov 2020,
arXiv:2002.08791). A run is opened by its own recipe, so its draws and BatchNorm passes are those of `swa eval` of this
run alone; one run's data and one network are in memory at a time. Legend: N samples.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swa_cli.analysis import open, outcomes, passes
from swa_cli.analysis.compare import read_result
from swa_cli.analysis.outcomes import Kept
from swa_cli.averaging.bn_layers import is_refreshable
from swa_cli.checkpoint import loading
from swa_cli.checkpoint.reader import Checkpoint, WeightSet
from swa_cli.checkpoint.run_folder import RESUMABLE_KEYS, RunFolder
from swa_cli.engine import evaluate as comparison
from swa_cli.engine import user_code
from swa_cli.engine.context import Context
from swa_cli.engine.evaluate import RAW
from swa_cli.errors import UserError
from swa_cli.recipe import load
from swa_cli.report.scores import ensemble_summary
from swa_cli.report.terminal import Terminal
from swa_cli.units import count_text


@dataclass(frozen=True)
class Member:
    """A finished seed of a repeat and its resume point."""

    seed: int
    folder: RunFolder
    point: Checkpoint

    @property
    def name(self) -> str:
        """The key of its scores."""
        return f"seed-{self.seed}"


@dataclass(frozen=True)
class Predicted:
    """What a member predicts on a split, and what was scored."""

    context: Context
    p: Tensor  # (N, ...)
    targets: Any
    weights: str
    details: dict[str, Any]
    val_loss: float | None  # of its weights on the images that its run held out


def evaluate_repeat(
    path: Path,
    overrides: Sequence[str],
    *,
    terminal: Terminal,
    weights: str = "all",
    split: str | None = None,
    allow_stale_bn: bool = False,
    num_draws: int | None = None,
    samples: str | None = None,
    with_classes: bool = False,
    predictions: Path | None = None,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Score each finished seed of a repeat and the mean of their predictions; see `evaluate_checkpoint`.

    `weights` is a weight set of each run, by default its first average; with `num_draws` a swag average. The reference
    is the seed of the lowest validation loss, or the first one without validation images.

    Raises:
        UserError: There are fewer than two finished seeds, they are of different recipes, or were not all kept from
            the images of the split.
    """
    members = _members(path, terminal)
    started, chosen = time.monotonic(), None if weights == "all" else weights
    total = torch.zeros(())  # (N, ...) from the first member on
    found: Predicted | None = None
    scored, details, losses, curve = {}, dict[str, Any](), dict[str, float | None](), list[dict[str, Any]]()
    kept: dict[str, Kept] = {}
    for number, member in enumerate(members, start=1):
        found = None  # the data of one run at a time
        found = _predict(
            member,
            [*overrides, *(limit := open.pass_of(member.point, samples))],
            also=open.PASS_KEYS if limit else (),
            members=members,
            terminal=terminal,
            weights=chosen,
            split=split,
            allow_stale_bn=allow_stale_bn,
            num_draws=num_draws,
            options={"--per-class": with_classes, "--predictions": predictions is not None},
            allow_code=allow_code,
        )
        task, chosen = found.context.task, found.weights
        total = total + found.p
        scored[member.name] = task.score_predictions(found.p, found.targets)
        details[member.name], losses[member.name] = found.details, found.val_loss
        whole = task.score_predictions(total / number, found.targets)
        curve.append({"members": number, **{each.key: whole.metric(each.key).value for each in task.metrics.compared}})
        if with_classes or predictions is not None:
            kept[member.name] = Kept(found.context.recipe.task)
            kept[member.name].add(found.p, found.targets)
    assert found is not None, "there are members"
    if kept:
        kept["ensemble"] = Kept(found.context.recipe.task)
        kept["ensemble"].add(total / len(members), found.targets)
    context, on = found.context, split or found.context.scoring_split()
    reference = comparison.lowest(losses) or members[0].name
    scored["ensemble"] = whole
    fresh = {row["batchnorm"] for row in details.values()}
    details["ensemble"] = {"count": None, "batchnorm": fresh.pop() if len(fresh) == 1 else "mixed"}
    details["ensemble"] |= {"members": len(members)} | ({} if num_draws is None else {"draws": num_draws})
    table = comparison.table(scored, reference=reference, judged={"ensemble": None})
    rows = {name: {**row, **details[name]} for name, row in table.items()}
    num_samples, tta = len(scored["ensemble"]), context.recipe.eval.tta
    terminal.note(f"{path}: {chosen} of {', '.join(member.name for member in members)}")
    terminal.summary(rows, split=on, samples=num_samples, tta=tta, metrics=task.metrics)
    terminal.print(ensemble_summary(curve, of="runs", draws=num_draws or 1, metrics=task.metrics))
    beside: dict[str, Any] = {}
    if with_classes:
        beside["per_class"] = outcomes.per_class(kept, context, shown="ensemble", terminal=terminal)
    if predictions is not None:
        outcomes.write_predictions(predictions, kept, scored, context, on)
        terminal.answer(f"predictions of {', '.join(kept)} -> {predictions}")
        beside["predictions"] = str(predictions)
    return {
        "command": "eval",
        "checkpoint": str(path),
        "run": str(path.resolve()),
        "split": on,
        "samples": num_samples,
        "seeds": [member.seed for member in members],
        "weight_set": chosen,
        "weights": rows,
        "reference": reference,
        "ensemble": curve,
        "seconds": round(time.monotonic() - started, 3),
        **context.eval_hardware.facts,
        "tta": tta,
        **beside,
    }


def _members(path: Path, terminal: Terminal) -> list[Member]:
    """Return the finished seeds of a repeat.

    Raises:
        UserError: There are fewer than two, or their recipes differ in more than the seed.
    """
    numbers = [each.name.removeprefix("seed-") for each in path.glob("seed-*")]
    seeds = sorted(int(number) for number in numbers if number.isascii() and number.isdigit())
    folders = {seed: RunFolder(path / f"seed-{seed}") for seed in seeds}
    if unfinished := [f"seed {seed}" for seed, folder in folders.items() if not folder.result.is_file()]:
        terminal.warning(f"{path}: {', '.join(unfinished)} left out: not finished")
    finished = {seed: folder for seed, folder in folders.items() if folder.result.is_file()}
    if len(finished) < passes.FEWEST:
        raise UserError(
            f"{path}: has {count_text(len(finished), 'finished seed')}, and an ensemble takes at least {passes.FEWEST}",
            hint="run `swa repeat RECIPE --seeds 0-4`, which runs the seeds that are missing",
        )
    members = [Member(seed, folder, open.resume_point(folder)) for seed, folder in finished.items()]
    first = open.recipe_of(members[0].point)
    for member in members[1:]:
        ignored = (*RESUMABLE_KEYS, "seed")
        for key, before, now in load.differences(first, open.recipe_of(member.point), ignored=ignored):
            raise UserError(
                f"{member.folder.path}: {key} is {now}, and {before} in {members[0].name}",
                hint="remove the folder of the seed that is not of this repeat",
            )
    return members


def _predict(
    member: Member,
    overrides: Sequence[str],
    *,
    also: Sequence[str],
    members: Sequence[Member],
    terminal: Terminal,
    weights: str | None,
    split: str | None,
    allow_stale_bn: bool,
    num_draws: int | None,
    options: Mapping[str, bool],
    allow_code: bool,
) -> Predicted:
    """Return the predictions of a member, by a weight set or by draws from it."""
    point = member.point
    context, model = open.open_checkpoint(
        point, overrides, recipe=None, terminal=terminal, allow_code=allow_code, also=also
    )
    for option in (option for option, is_wanted in options.items() if is_wanted):
        outcomes.require_classes(context.recipe.task, option=option)
    on = split or context.scoring_split()
    _require_same_images(members, on)
    sets = open.weight_sets_of_run(member.folder, point, model, recipe=context.recipe, terminal=terminal)
    name = _choose(sets, weights, draws=num_draws is not None, path=member.folder.path)
    item = sets[name]
    known = read_result(member.folder.result, metrics=context.task.metrics)[1].weights.get(name, {}).get("val") or {}
    details: dict[str, Any] = {"count": item.count, "batchnorm": item.batchnorm}
    if num_draws is None:
        if not allow_stale_bn:
            file = member.folder.checkpoints / f"{name}.pt"
            refresh = user_code.command(("swa", "bn-update", file), context.recipe)
            open.require_fresh({name: item.batchnorm}, path=file, hint=f"run `{refresh}` first")
        loading.load_strict(model, item.state_dict, source=f"{member.folder.path} ({name})")
        p, targets = passes.predict(
            model, context.plain_batches(on), context=context, name=f"{name} of {member.name} on {on}"
        )
    else:
        assert item.posterior is not None, "only swag averages are chosen"
        drawn: list[tuple[Tensor, Any]] = []
        passes.score_swag(
            item.posterior,
            model,
            num_draws=num_draws,
            name=f"{name} of {member.name}",
            context=context,
            split=on,
            keep=lambda predictions, targets: drawn.append((predictions, targets)),
        )
        ((p, targets),) = drawn
        details |= {"batchnorm": "recomputed" if is_refreshable(model) else "none", "draws": num_draws}
    return Predicted(context, p, targets, name, details, known.get(context.task.metrics.loss_key))


def _choose(sets: Mapping[str, WeightSet], name: str | None, *, draws: bool, path: Path) -> str:
    """Return the weight set that was named, or that which stands for a run.

    Raises:
        UserError: There is none of that name, or draws are wanted from one that is not swag.
    """
    if name is not None:
        open.chosen(dict(sets), name, path, takes_all=True)
    if not draws:
        return name or next((key for key, item in sets.items() if item.kind != "raw"), RAW)
    able = [key for key, item in sets.items() if item.posterior is not None]
    if name in able:
        return str(name)
    if name is None and len(able) == 1:
        return able[0]
    kinds = ", ".join(f"{key} is {item.kind}" for key, item in sets.items())
    hint = f"choose --weights {' or '.join(able)}" if able else "train with averages.swag.kind=swag"
    raise UserError(f"{path}: --draws takes one average of kind swag: {kinds}", hint=hint)


def _require_same_images(members: Sequence[Member], split: str) -> None:
    """Refuse a split whose images differ between the seeds: some runs were trained on what others held out.

    Raises:
        UserError: It is one, or it cannot be told.
    """
    every = [member.point.content["input"]["data"] for member in members]
    held = {open.held_out(open.recipe_of(m.point), splits=data) for m, data in zip(members, every, strict=True)}
    taken_from = "train" if split == "val" and "val" not in every[0] else split
    data = [each.get(taken_from) for each in every]
    is_known = data[0] is not None and bool(data[0]["sha256"])
    if all(each == data[0] for each in data) and (split == "test" or (is_known and len(held) == 1)):
        return
    raise UserError(
        f"split {split}: it is not known that the seeds have the same images there: runs are trained on what others"
        " held out, unless dataset.val_seed is one number for all",
        hint="score them on images that no run has seen (--split test), or train the seeds with dataset.val_seed=0",
    )
