"""Score weights on the plane through three weight sets and on the line through two.

w1, w2, w3 span the plane with u = w2 - w1 and v = (w3 - w1) - <w3 - w1, u> / <u, u> u (Izmailov et al. 2018,
section 3); a point is w1 + x u/|u| + y v/|v|, so that x and y are distances of weights. Every point is a sum of the
anchors, whose coefficients add up to 1, and gets BatchNorm statistics of its own. Scores are kept in a file of the
run folder, so an interrupted computation continues, and a finished one is only read. Legend: A anchors, P points.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swa_cli.analysis import open, passes
from swa_cli.analysis.passes import Loader
from swa_cli.analysis.run_data import Anchor, OpenRun, anchor_of
from swa_cli.analysis.sources import averaged_names
from swa_cli.averaging import model_state
from swa_cli.checkpoint import loading
from swa_cli.checkpoint.atomic import json_text, write_atomic
from swa_cli.engine.context import Context
from swa_cli.engine.evaluate import RAW
from swa_cli.engine.events import Bar
from swa_cli.errors import UserError
from swa_cli.recipe.swap import name_of_worker

Coefficients = tuple[float, ...]  # (A,)
Row = dict[str, float | None]  # the scores of a point: `KEYS`, None where not finite
KEYS = ("train_loss", "train_score", "loss", "score", "score_se")
SAVE_EVERY_S = 5.0
SPLITS = ("test", "val")
MARGIN = 0.3  # of the larger side, beyond the weight sets; the grid is a square
BEYOND = 0.4  # of the line, at both ends
FLAT = 1e-4  # of |w3 - w1|: with a shorter v, the three lie on a line


@dataclass(frozen=True)
class Plane:
    """Lengths in the plane: of u, of v, and of w3 - w1 along u."""

    length_u: float
    length_v: float
    along: float

    @property
    def corners(self) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]]:
        """The places of w1, w2, w3."""
        return (0.0, 0.0), (self.length_u, 0.0), (self.along, self.length_v)

    def coefficients(self, x: float, y: float) -> Coefficients:
        """Return the coefficients of w1, w2, w3 at a point."""
        third = y / self.length_v
        second = (x - third * self.along) / self.length_u
        return 1 - second - third, second, third


@dataclass(frozen=True)
class Samples:
    """The training samples and the scored samples of every point."""

    context: Context
    model: nn.Module
    split: str
    num_samples: int  # of that split
    num_train: int  # training samples
    train: Loader
    scored: Loader

    @property
    def batches_per_point(self) -> int:
        """How far a progress bar moves per point."""
        return self.context.refresh_length(self.model) + len(self.train) + len(self.scored)


def score_plane(
    run: OpenRun, words: Sequence[str] | None, *, size: int, samples: int | None
) -> tuple[dict[str, Any], Path]:
    """Score a grid of the plane; return what `report/plots/loss_surface.py` draws, and the file that keeps it.

    Args:
        run: The run.
        words: Names or files of w1, w2, w3; by default those of `default_points`.
        size: Points per side of the grid.
        samples: Training samples of BatchNorm and loss, and at most as many scored ones; None for all.

    Raises:
        UserError: Weight sets are missing or span no plane.
    """
    named = {word: word for word in words} if words else default_points(run)
    anchors = [anchor_of(run, word) for word in named.values()]
    pairs = zip(anchors, named.items(), strict=True)
    anchors = [anchor if name == word else replace(anchor, name=name) for anchor, (name, word) in pairs]
    if len({anchor.name for anchor in anchors}) != 3:
        raise UserError("--points: names a weight set twice", hint="name three different ones")
    plane = plane_of(run.opened[1], anchors)
    columns, rows = zip(*plane.corners, strict=True)
    half = (0.5 + MARGIN) * max(max(columns) - min(columns), max(rows) - min(rows))
    middles = [(min(places) + max(places)) / 2 for places in (columns, rows)]
    xs, ys = (_spaced(middle - half, middle + half, number=size) for middle in middles)
    grid = [plane.coefficients(x, y) for y, x in itertools.product(ys, xs)]
    places = [{"name": anchor.name, "x": x, "y": y} for anchor, (x, y) in zip(anchors, plane.corners, strict=True)]
    content, path = _scores(
        run, anchors, grid, kind="plane", samples=samples, about={"x": xs, "y": ys, "points": places}
    )
    return surface_of(content), path


def score_line(
    run: OpenRun, words: Sequence[str] | None, *, size: int, samples: int | None
) -> tuple[dict[str, Any], Path]:
    """Score points along the line through two weight sets; arguments and results as of `score_plane`.

    Raises:
        UserError: Weight sets are missing or the same.
    """
    words = words or (RAW, _first_average(run, options="--between last"))
    ends = [anchor_of(run, word) for word in words]
    step = _difference(run.opened[1], *ends)
    length = math.sqrt(_inner(run.opened[1], step, step))
    if not length:
        raise UserError(f"{words[0]} and {words[1]} are the same weights", hint="name others with --between A B")
    shares = _spaced(-BEYOND, 1 + BEYOND, number=size)
    points = [(1 - share, share) for share in shares]
    places = [{"name": ends[0].name, "x": 0.0}, {"name": ends[1].name, "x": length}]
    about = {"x": [share * length for share in shares], "points": places}
    content, path = _scores(run, ends, points, kind="path", samples=samples, about=about)
    rows = content.pop("rows")
    line = {**content, **{key: [row[key] for row in rows[2:]] for key in KEYS}}
    barriers = {
        key: barrier_of(line["x"], line[key], ends=(rows[0][key], rows[1][key]), length=length)
        for key in ("train_loss", "loss")
    }
    return {**line, "barrier": barriers}, path


def barrier_of(
    xs: Sequence[float], losses: Sequence[float | None], *, ends: tuple[float | None, float | None], length: float
) -> dict[str, float] | None:
    """Return how far the loss between two weight sets rises above the straight line from loss to loss, and where.

    This is the barrier of Frankle et al. 2020, Linear mode connectivity: 0 where it nowhere rises above that line.

    Args:
        xs: Distances from the first end.
        losses: The loss at each, None where it is not finite, which counts as no rise.
        ends: The losses of the two ends; without them there is no barrier.
        length: The distance of the second end.

    Returns:
        `height` and `x` of the highest rise, and `line`, the loss of the straight line there.
    """
    first, second = ends
    if first is None or second is None:
        return None
    rises = [{"height": 0.0, "x": 0.0, "line": first}]
    for x, loss in zip(xs, losses, strict=True):
        if loss is not None and 0 < x < length:
            straight = first + (second - first) * x / length
            rises.append({"height": loss - straight, "x": x, "line": straight})
    return max(rises, key=lambda rise: rise["height"])


def plane_of(model: nn.Module, anchors: Sequence[Anchor]) -> Plane:
    """Return the plane through three weight sets.

    Raises:
        UserError: Two are equal, or they lie on a line.
    """
    first, second, third = anchors
    u, w = _difference(model, first, second), _difference(model, first, third)
    length_u, length_w = (math.sqrt(_inner(model, each, each)) for each in (u, w))
    if not length_u or not length_w:
        other = second if not length_u else third
        raise UserError(
            f"{first.name} and {other.name} are the same weights: they span no plane",
            hint="name three others with --points A B C",
        )
    along = _inner(model, w, u) / length_u
    length_v = math.sqrt(max(0.0, length_w**2 - along**2))
    if length_v < FLAT * length_w:
        raise UserError(
            f"{first.name}, {second.name} and {third.name} lie on a line: they span no plane",
            hint="draw the line with `path`, or name three others with --points A B C",
        )
    return Plane(length_u, length_v, along)


def surface_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a complete plane file as it is drawn."""
    corners, grid = content["rows"][:3], content["rows"][3:]
    width = len(content["x"])

    def values(key: str) -> list[list[float | None]]:
        return [[row[key] for row in grid[start : start + width]] for start in range(0, len(grid), width)]

    points = [
        {**point, "loss": row["train_loss"], "score": row["score"]}
        for point, row in zip(content["points"], corners, strict=True)
    ]
    found = {"loss": values("train_loss"), "score": values("score"), "score_se": values("score_se")}
    return {**content, "points": points, **found}


def read_plane(path: Path) -> dict[str, Any] | None:
    """Read a plane file as it is drawn; None where it is not complete.

    Raises:
        UserError: It is not as swa writes it.
    """
    content = _read(path)
    try:
        if len(content["rows"]) < 3 + len(content["x"]) * len(content["y"]):
            return None
        places = [*content["x"], *content["y"], *(point[key] for point in content["points"] for key in ("x", "y"))]
        if not all(isinstance(place, float) and math.isfinite(place) for place in places):
            raise ValueError("has places that are no numbers")
        if not all(isinstance(point["name"], str) for point in content["points"]) or content["split"] not in SPLITS:
            raise ValueError("has wrong names")
        return surface_of(content)
    except (KeyError, TypeError, ValueError) as error:
        raise _unlike_ours(path) from error


def default_points(run: OpenRun) -> dict[str, str]:
    """Return the titles of w1, w2, w3, each with a name or a file.

    The start of averaging is the first snapshot that the first average has taken, or the first one after its start;
    where all snapshots lie before that, the last of them. A SWAP run has no such start: its plane goes through the
    end of its common phase and its first two workers.

    Raises:
        UserError: The run has no average, or no snapshot before its end.
    """
    average = _first_average(run, options="--points START.pt last")
    if run.plan.worker is not None:
        return {name: name for name in (RAW, name_of_worker(1), name_of_worker(2))}
    start = run.averaging[average][0]
    before_the_end = snapshots_of_plane(run)
    step = next((step for step in before_the_end if step >= start), before_the_end[-1])
    epoch = f"{step / run.plan.steps_per_epoch:.4g}"
    name = f"epoch {epoch}" if step >= start else f"epoch {epoch}, before averaging"
    return {name: str(run.folder.snapshot_path(step)), RAW: RAW, average: average}


def snapshots_of_plane(run: OpenRun) -> list[int]:
    """Return the steps of the snapshots at which a plane may begin; none for a SWAP run, which needs none.

    Weights and data are not opened.

    Raises:
        UserError: The run has no average, or no snapshot before its end.
    """
    _require_averaging(run)
    if run.plan.worker is not None:
        return []
    steps = [int(path.stem.removeprefix("step-")) for path in run.folder.snapshot_files]
    before_the_end = [step for step in steps if step < run.step]
    if not before_the_end:
        raise UserError(
            f"{run.folder.path}: has no snapshot before its end, and the plane needs one at the start of averaging",
            hint="train with snapshots.every=1ep, or name three weight sets:"
            f" swa plot RUN plane --points A.pt {RAW} {next(iter(run.averaging))}",
        )
    return before_the_end


def _require_averaging(run: OpenRun) -> None:
    if not run.averaging:
        raise UserError(f"{run.folder.path}: has no average", hint="train with a section `swa` in the recipe")


def _first_average(run: OpenRun, *, options: str) -> str:
    """Return the name of the first average; with `options` and a file, another average is named.

    Raises:
        UserError: The run has shipped none.
    """
    if run.best != RAW:
        return run.best
    _require_averaging(run)
    how = open.how_to_take_average(run.folder, run.point, run.recipe)
    hint = "let the run reach its averaging phase, and end"
    if how is not None:
        hint = f"let the run end, or run `{how[0]}` for its average so far and add {options} {how[1]}"
    raise UserError(f"{run.folder.path}: has shipped no average of step {run.step:,}", hint=hint)


def combined(anchors: Sequence[Anchor], coefficients: Coefficients, *, averaged: Sequence[str]) -> dict[str, Tensor]:
    """Return the sum of the anchors in float64; names that are not averaged come from the last anchor."""
    state = dict(anchors[-1].state)
    for name in averaged:
        terms = (share * anchor.state[name].double() for anchor, share in zip(anchors, coefficients, strict=True))
        state[name] = torch.stack(list(terms)).sum(0)
    return state


def _scores(
    run: OpenRun,
    anchors: Sequence[Anchor],
    points: Sequence[Coefficients],
    *,
    kind: str,
    samples: int | None,
    about: Mapping[str, Any],
) -> tuple[dict[str, Any], Path]:
    """Return the content of the file of some points, and its path; measure the rows that it lacks.

    The first A rows are the scores of the anchors themselves. `kind` names the file, `about` stands in it.

    Raises:
        UserError: The folder cannot be written to, or a file in it is not as swa writes it.
    """
    ground = _samples_of(run, samples=samples)
    corners = [tuple(float(index == other) for other in range(len(anchors))) for index in range(len(anchors))]
    points = [*corners, *points]
    about = {**about, "split": ground.split, "samples": ground.num_samples}
    path = run.folder.path / f"{kind}-{_fingerprint(ground, anchors, points)}.json"
    rows: list[Row] = _read(path, most=len(points))["rows"] if path.is_file() else []
    done, saved_at = len(rows), time.monotonic()

    def save() -> None:
        write_atomic(path, lambda file: file.write((json_text({**about, "rows": rows}) + "\n").encode()))

    if 0 < done < len(points):
        run.terminal.note(f"{path}: {done:,} of {len(points):,} points were measured before")
    if done < len(points):
        each, averaged = ground.batches_per_point, averaged_names(ground.model)
        try:
            with run.terminal.progress(kind, each * len(points), done=each * done) as bar:
                for index in range(done, len(points)):
                    state = combined(anchors, points[index], averaged=averaged)
                    rows.append(_measured(state, ground, bar=bar, is_anchor=index < len(anchors)))
                    if time.monotonic() - saved_at > SAVE_EVERY_S:
                        save()
                        saved_at = time.monotonic()
        finally:
            if len(rows) > done:
                save()
        lost = sum(row["loss"] is None for row in rows)
        if lost:
            run.terminal.warning(f"{kind}: {lost:,} of {len(points):,} points have no finite scores and are left blank")
    return {**about, "rows": rows}, path


def _samples_of(run: OpenRun, *, samples: int | None) -> Samples:
    """Take the first samples of a fixed shuffle of both splits, or all of them."""
    context, model = run.opened
    split = context.scoring_split()
    sizes = [len(context.split(name)) for name in (split, "train")]
    num_scored, num_train = sizes if samples is None else (min(samples, size) for size in sizes)
    found = [context.fixed_batches(name, samples=samples) for name in ("train", split)]
    train, scored = found if samples is None else map(list, found)  # a few stay in memory
    return Samples(context, model, split, num_scored, num_train, train, scored)


def _measured(state: Mapping[str, Tensor], ground: Samples, *, bar: Bar, is_anchor: bool) -> Row:
    """Score a point; a network may overflow far from the anchors, and then has no scores."""
    context, metrics, model = ground.context, ground.context.task.metrics, ground.context.build_model()
    loading.load_unchecked(model, state)
    try:
        context.refresh_batchnorm(model, name="a point", bar=bar)
    except UserError:
        if is_anchor:
            raise  # the reason is not the distance
        bar.advance(ground.batches_per_point)
        return dict.fromkeys(KEYS)
    train, scored = (
        passes.score(model, part, context=context, bar=bar, task=context.task) for part in (ground.train, ground.scored)
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


def _fingerprint(ground: Samples, anchors: Sequence[Anchor], points: Sequence[Coefficients]) -> str:
    """Return twelve hex digits of a hash of everything that the scores depend on."""
    context, sha = ground.context, hashlib.sha256()
    recipe = context.recipe.model_dump(mode="json")
    settings = {key: recipe[key] for key in ("seed", "task", "model", "dataset")}
    settings |= {"batchnorm": context.recipe.average_scoring.batchnorm.model_dump(mode="json")}
    settings |= {"batch_size": context.recipe.train.batch_size, "samples": [ground.num_train, ground.num_samples]}
    settings |= {"precision": [context.hardware.precision, context.recipe.eval.precision]}
    settings |= {"split": ground.split, "points": [list(point) for point in points]}
    sha.update(json.dumps(settings, sort_keys=True).encode())
    for anchor in anchors:
        for name in sorted(model_state.read(ground.model).owners):
            value = anchor.state[name].detach().cpu().contiguous()
            sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            sha.update(value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return sha.hexdigest()[:12]


def _inner(model: nn.Module, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Return <first, second> over the parameters in float64; shared parameters count once."""
    return math.fsum(
        float((first[name].double() * second[name].double()).sum()) for name in model_state.read(model).weights
    )


def _difference(model: nn.Module, origin: Anchor, end: Anchor) -> dict[str, Tensor]:
    """Return the vector from one weight set to another: parameters only, in float64."""
    return {
        name: end.state[name].double() - origin.state[name].double().to(end.state[name].device)
        for name in model_state.read(model).weights
    }


def _read(path: Path, *, most: float = math.inf) -> Mapping[str, Any]:
    """Read a file of at most so many rows.

    Raises:
        UserError: It is not as swa writes it.
    """
    try:
        content: Mapping[str, Any] = json.loads(path.read_text())
        rows = content["rows"]
        if not isinstance(rows, list) or not all(map(_is_row, rows)) or len(rows) > most:
            raise ValueError("has wrong rows")
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise _unlike_ours(path) from error
    return content


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and all(key in row and isinstance(row[key], float | int | None) for key in KEYS)


def _unlike_ours(path: Path) -> UserError:
    return UserError(f"{path}: is not as swa writes it", hint="remove it, and measure the points again")


def _spaced(low: float, high: float, *, number: int) -> list[float]:
    return [low + (high - low) * index / (number - 1) for index in range(number)]
