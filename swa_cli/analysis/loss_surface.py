"""Scores of weights that lie between, and beyond, given weight sets: each point with BatchNorm measured anew.

A point is a sum of the anchors with coefficients that add up to 1. What has been measured is kept in a file beside the
run, so an interrupted computation goes on where it was, and a finished one is only read. Legend: A anchors, P points.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swa_cli.analysis.run_data import OpenRun, read_json
from swa_cli.averaging import model_state
from swa_cli.checkpoint import loading, reader
from swa_cli.checkpoint.atomic import json_text, write_atomic
from swa_cli.data import batches
from swa_cli.data.augment import Augment
from swa_cli.engine import evaluate, failures
from swa_cli.engine.context import Context
from swa_cli.engine.evaluate import recomputed
from swa_cli.errors import UserError
from swa_cli.report.progress import Bar

Coefficients = tuple[float, ...]  # (A,)
SAVE_EVERY_S = 5.0
KEYS = ("train_loss", "train_score", "loss", "score", "score_se")  # of a point; None where not finite


@dataclass(frozen=True)
class Anchor:
    """A weight set that others are made of; `state` stays mapped to its file."""

    name: str
    state: Mapping[str, Tensor]


@dataclass(frozen=True)
class Ground:
    """What points are scored on: some training and some scored samples, the same for each."""

    context: Context
    model: nn.Module
    split: str
    num_samples: int  # of that split
    train: Sequence[Any]
    scored: Sequence[Any]

    @property
    def batches_a_point(self) -> int:
        """How far the bar moves with each."""
        return self.context.refresh_length(self.model) + len(self.train) + len(self.scored)


def anchor_of(run: OpenRun, word: str) -> Anchor:
    """A weight set by its name in the run, or else the one in a file.

    Every point has statistics of its own, so raw weights are called as they are in tables with such: `last_bn`.

    Raises:
        UserError: There is none, or it does not fit the network of the run.
    """
    if word in run.sets:
        item, twin = run.sets[word], recomputed(word)
        is_raw = item.kind == "raw" and item.batchnorm == "running"
        return Anchor(twin if is_raw else word, item.state_dict)
    path = Path(word)
    if not path.exists():
        raise UserError(
            f"{word}: is neither a file nor a weight set of {run.folder.path}",
            hint=f"name a .pt file, or one of {', '.join(run.sets)}",
        )
    found, model = reader.read(path), run.opened[1]
    sets = reader.weight_sets(found, model)
    if "last" not in sets and len(sets) != 1:
        raise UserError(f"{path}: holds {len(sets)} weight sets", hint="name a file with one of them")
    state = (sets.get("last") or next(iter(sets.values()))).state_dict
    state = loading.load_weights(model, state, source=str(path))
    return Anchor(f"{path.name}, epoch {found.content['epoch']}" if found.kind == "snapshot" else path.name, state)


def ground_of(run: OpenRun, *, samples: int | None) -> Ground:
    """The samples that points are scored on: the first ones of a fixed shuffle, or None for all.

    Raises:
        UserError: The data are missing.
    """
    context, model = run.opened
    split = context.scoring_split()

    def some(name: str) -> Sequence[Any]:
        found = batches.statistics_batches(
            context.split(name),
            seed=context.recipe.seed,
            batch_size=context.recipe.eval.batch_size,
            augment=Augment(),
            samples=samples,
            mean=context.source.mean,
            std=context.source.std,
            device=context.hardware.device,
            workers=context.recipe.dataset.workers,
            error=failures.run_error,
        )
        return found if samples is None else list(found)  # type: ignore[return-value]  # a few stay in memory

    size = len(context.split(split))
    return Ground(context, model, split, size if samples is None else min(samples, size), some("train"), some(split))


def inner(model: nn.Module, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """<first, second> over the parameters, shared ones once, in float64."""
    return math.fsum(
        float((first[name].double() * second[name].double()).sum()) for name in model_state.read(model).weights
    )


def between(model: nn.Module, origin: Anchor, end: Anchor) -> dict[str, Tensor]:
    """The vector from one weight set to another, parameters only, in float64."""
    return {
        name: end.state[name].double() - origin.state[name].double().to(end.state[name].device)
        for name in model_state.read(model).weights
    }


def scores(
    run: OpenRun,
    ground: Ground,
    anchors: Sequence[Anchor],
    points: Sequence[Coefficients],
    *,
    kind: str,
    about: Mapping[str, Any],
) -> tuple[list[dict[str, float | None]], Path]:
    """The scores of P points, measured or read, and the file that keeps them.

    Args:
        run: Whose folder keeps them.
        ground: What they are scored on.
        anchors: What the points are made of.
        points: Coefficients; the first A are the anchors themselves.
        kind: Of the picture; the file is named after it.
        about: What the file says of the points beside their scores.

    Raises:
        UserError: The folder cannot be written to, or a file in it is not as swa writes it.
    """
    path = run.folder.path / f"{kind}-{_fingerprint(ground, anchors, points)}.json"
    rows = _read(path, num_points=len(points)) if path.is_file() else []
    done = len(rows)
    if done == len(points):
        return rows, path
    if done:
        run.terminal.note(f"{path}: {done:,} of {len(points):,} points were measured before")
    each = ground.batches_a_point
    averaged = _averaged(ground.model)
    with (
        _kept(path, rows, about=about) as keep,
        run.terminal.progress(kind, each * len(points), done=each * done) as bar,
        failures.memory("eval.batch_size", ground.context.recipe.eval.batch_size),
    ):
        for index in range(done, len(points)):
            state = combined(anchors, points[index], averaged=averaged)
            rows.append(_measured(state, ground, bar=bar, is_anchor=index < len(anchors)))
            keep()
    lost = sum(row["loss"] is None for row in rows)
    if lost:
        run.terminal.warning(f"{kind}: {lost:,} of {len(points):,} points have no finite scores and are left blank")
    return rows, path


def combined(anchors: Sequence[Anchor], coefficients: Coefficients, *, averaged: Sequence[str]) -> dict[str, Tensor]:
    """The sum of the anchors in float64; what is no parameter is the last one's."""
    state = dict(anchors[-1].state)
    for name in averaged:
        terms = (share * anchor.state[name].double() for anchor, share in zip(anchors, coefficients, strict=True))
        state[name] = torch.stack(list(terms)).sum(0)
    return state


def _averaged(model: nn.Module) -> list[str]:
    present = model_state.read(model)
    return [name for name, owner in present.owners.items() if owner in present.weights]


def _measured(state: Mapping[str, Tensor], ground: Ground, *, bar: Bar, is_anchor: bool) -> dict[str, float | None]:
    """The scores of a point; far from the anchors a network may overflow, which leaves it without."""
    context, metrics, model = ground.context, ground.context.task.metrics, ground.context.build_model()
    loading.load_unchecked(model, state)
    try:
        context.refresh_batchnorm(model, name="a point", bar=bar)
    except UserError:
        if is_anchor:
            raise  # then it is not the distance
        bar.advance(ground.batches_a_point)
        return dict.fromkeys(KEYS)
    train, scored = (
        evaluate.score(model, part, task=context.task, hardware=context.eval_hardware, advance=bar.advance)
        for part in (ground.train, ground.scored)
    )
    own, loss = metrics.primary.key, metrics.loss.key
    found = {
        "train_loss": train.metric(loss).value,
        "train_score": train.metric(own).value,
        "loss": scored.metric(loss).value,
        "score": scored.metric(own).value,
        "score_se": scored.metric(own).error,
    }
    return {key: value if value is not None and math.isfinite(value) else None for key, value in found.items()}


def _fingerprint(ground: Ground, anchors: Sequence[Anchor], points: Sequence[Coefficients]) -> str:
    """What the scores depend on, in twelve digits."""
    context, sha = ground.context, hashlib.sha256()
    recipe = context.recipe.model_dump(mode="json")
    settings = {key: recipe[key] for key in ("seed", "task", "model", "dataset")}
    settings |= {"batchnorm": context.recipe.average_scoring.batchnorm.model_dump(mode="json")}
    settings |= {"batch_size": context.recipe.train.batch_size, "samples": ground.num_samples}
    settings |= {"precision": [context.hardware.precision, context.recipe.eval.precision]}
    settings |= {"split": ground.split, "points": [list(point) for point in points]}
    sha.update(json.dumps(settings, sort_keys=True).encode())
    for anchor in anchors:
        for name in sorted(model_state.read(ground.model).owners):
            value = anchor.state[name].detach().cpu().contiguous()
            sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            sha.update(value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return sha.hexdigest()[:12]


def _read(path: Path, *, num_points: int) -> list[dict[str, float | None]]:
    """What the file keeps, as far as it goes.

    Raises:
        UserError: It is not as swa writes it.
    """
    try:
        rows = rows_of(read_json(path))
        if len(rows) > num_points:
            raise ValueError("has too many rows")
        return rows
    except ValueError as error:
        raise UserError(f"{path}: {error}", hint="remove it: the points are measured anew") from error


def rows_of(content: Mapping[str, Any]) -> list[dict[str, float | None]]:
    """The scores in a file.

    Raises:
        ValueError: It is not as swa writes it.
    """
    rows = content.get("rows")
    if not isinstance(rows, list) or not all(map(_is_row, rows)):
        raise ValueError("is not as swa writes it")
    return rows


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and all(key in row and isinstance(row[key], float | int | None) for key in KEYS)


@contextmanager
def _kept(path: Path, rows: Sequence[Mapping[str, Any]], *, about: Mapping[str, Any]) -> Iterator[Any]:
    """Write the rows every few seconds, and when the block ends, however it does."""
    saved_at, written = time.monotonic(), len(rows)

    def save() -> None:
        nonlocal saved_at, written
        write_atomic(path, lambda file: file.write((json_text({**about, "rows": list(rows)}) + "\n").encode()))
        saved_at, written = time.monotonic(), len(rows)

    def keep() -> None:
        if time.monotonic() - saved_at > SAVE_EVERY_S:
            save()

    try:
        yield keep
    finally:
        if len(rows) > written:
            save()


def spaced(low: float, high: float, *, number: int) -> list[float]:
    """Equally spaced numbers, both ends among them."""
    return [low + (high - low) * index / (number - 1) for index in range(number)]


def grid(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    """All points of a grid, row by row."""
    return [(x, y) for y, x in itertools.product(ys, xs)]
