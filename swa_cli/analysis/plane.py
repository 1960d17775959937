"""The plane through three weight sets, and the line through two: where their points are, and what they score.

w1, w2, w3 span the plane with u = w2 - w1 and v = (w3 - w1) - <w3 - w1, u> / <u, u> u (Izmailov et al. 2018,
section 3); a point is w1 + x u/|u| + y v/|v|, so that x and y are distances of weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from swa_cli.analysis import loss_surface
from swa_cli.analysis.loss_surface import Anchor, Coefficients
from swa_cli.analysis.run_data import OpenRun
from swa_cli.engine.evaluate import RAW
from swa_cli.errors import UserError
from swa_cli.recipe.swap import name_of_worker

SPLITS = ("test", "val")
MARGIN = 0.3  # of the larger side, beyond the weight sets; the grid is a square
BEYOND = 0.4  # of the line, at both of its ends
_FLAT = 1e-4  # of |w3 - w1|: what is less beside the line spans no plane


@dataclass(frozen=True)
class Plane:
    """Lengths in the plane: of u, of v, and of w3 - w1 along u."""

    length_u: float
    length_v: float
    along: float

    @property
    def corners(self) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]]:
        """Where the three weight sets are."""
        return (0.0, 0.0), (self.length_u, 0.0), (self.along, self.length_v)

    def coefficients(self, x: float, y: float) -> Coefficients:
        """Of w1, w2, w3 at a point; they add up to 1."""
        third = y / self.length_v
        second = (x - third * self.along) / self.length_u
        return 1 - second - third, second, third


def plane_of(model: nn.Module, anchors: Sequence[Anchor]) -> Plane:
    """The plane through three weight sets.

    Raises:
        UserError: They are equal, or lie on a line.
    """
    first, second, third = anchors
    u, w = loss_surface.between(model, first, second), loss_surface.between(model, first, third)
    length_u, length_w = (math.sqrt(loss_surface.inner(model, each, each)) for each in (u, w))
    if not length_u or not length_w:
        other = second if not length_u else third
        raise UserError(
            f"{first.name} and {other.name} are the same weights: they span no plane",
            hint="name three others with --points A B C",
        )
    along = loss_surface.inner(model, w, u) / length_u
    length_v = math.sqrt(max(0.0, length_w**2 - along**2))
    if length_v < _FLAT * length_w:
        raise UserError(
            f"{first.name}, {second.name} and {third.name} lie on a line: they span no plane",
            hint="draw the line with `path`, or name three others with --points A B C",
        )
    return Plane(length_u, length_v, along)


def surface(
    run: OpenRun, words: Sequence[str] | None, *, size: int, samples: int | None
) -> tuple[dict[str, Any], Path]:
    """Scores over a grid of the plane, and the file that keeps them; see `report/plots/loss_surface.py` for its keys.

    Args:
        run: The run.
        words: Names or files of w1, w2, w3; by default the start of averaging, the last weights and the first
            average.
        size: Points of each side of the grid.
        samples: Training samples of BatchNorm and loss, and at most as many scored ones; None for all.

    Raises:
        UserError: Weight sets are missing or span no plane.
    """
    named = {word: word for word in words} if words else default_points(run)
    anchors = [_named(loss_surface.anchor_of(run, word), name, word) for name, word in named.items()]
    if len({anchor.name for anchor in anchors}) != 3:
        raise UserError("--points: names a weight set twice", hint="name three different ones")
    plane = plane_of(run.opened[1], anchors)
    columns, rows = zip(*plane.corners, strict=True)
    half = (0.5 + MARGIN) * max(max(columns) - min(columns), max(rows) - min(rows))
    xs, ys = (
        loss_surface.spaced((min(places) + max(places)) / 2 - half, (min(places) + max(places)) / 2 + half, number=size)
        for places in (columns, rows)
    )
    ground = loss_surface.ground_of(run, samples=samples)
    corners = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    points = corners + [plane.coefficients(x, y) for x, y in loss_surface.grid(xs, ys)]
    about = {"x": xs, "y": ys, "split": ground.split, "samples": ground.num_samples}
    about["points"] = [
        {"name": anchor.name, "x": x, "y": y} for anchor, (x, y) in zip(anchors, plane.corners, strict=True)
    ]
    found, path = loss_surface.scores(run, ground, anchors, points, kind="plane", about=about)
    return surface_of({**about, "rows": found}), path


def surface_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of a finished plane says, as it is drawn."""
    corners, grid = content["rows"][:3], content["rows"][3:]
    width = len(content["x"])

    def values(key: str) -> list[list[float | None]]:
        return [[row[key] for row in grid[start : start + width]] for start in range(0, len(grid), width)]

    points = [
        {**point, "loss": row["train_loss"], "score": row["score"]}
        for point, row in zip(content["points"], corners, strict=True)
    ]
    return {**content, "points": points, "loss": values("train_loss"), "score": values("score")}


def finished(content: Mapping[str, Any], *, source: Path) -> dict[str, Any] | None:
    """What a file keeps of a plane, as it is drawn; None where it was not measured to its end.

    Raises:
        UserError: It is not as swa writes it.
    """
    try:
        rows, width, height = loss_surface.rows_of(content), len(content["x"]), len(content["y"])
        if len(rows) < 3 + width * height:
            return None
        places = [*content["x"], *content["y"], *(point[key] for point in content["points"] for key in ("x", "y"))]
        if not all(isinstance(place, float) and math.isfinite(place) for place in places):
            raise ValueError("has places that are no numbers")
        if not all(isinstance(point["name"], str) for point in content["points"]) or content["split"] not in SPLITS:
            raise ValueError("has names that are none")
        return surface_of({**content, "rows": rows})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{source}: is not as swa writes it", hint="remove it, and measure the plane anew") from error


def line(run: OpenRun, words: Sequence[str] | None, *, size: int, samples: int | None) -> tuple[dict[str, Any], Path]:
    """Scores along the line through two weight sets, and the file that keeps them; arguments as of `surface`.

    Raises:
        UserError: Weight sets are missing or the same.
    """
    if not words:
        words = (RAW, _first_average(run))
    ends = [loss_surface.anchor_of(run, word) for word in words]
    step = loss_surface.between(run.opened[1], *ends)
    length = math.sqrt(loss_surface.inner(run.opened[1], step, step))
    if not length:
        raise UserError(f"{words[0]} and {words[1]} are the same weights", hint="name others with --between A B")
    places = loss_surface.spaced(-BEYOND, 1 + BEYOND, number=size)
    ground = loss_surface.ground_of(run, samples=samples)
    points = [(1.0, 0.0), (0.0, 1.0), *((1 - place, place) for place in places)]
    about = {"x": [place * length for place in places], "split": ground.split, "samples": ground.num_samples}
    about["points"] = [{"name": ends[0].name, "x": 0.0}, {"name": ends[1].name, "x": length}]
    rows, path = loss_surface.scores(run, ground, ends, points, kind="path", about=about)
    columns = {key: [row[key] for row in rows[2:]] for key in loss_surface.KEYS}
    return {**about, **columns}, path


def default_points(run: OpenRun) -> dict[str, str]:
    """What to call w1, w2, w3, and what they are.

    The start of averaging is the first snapshot that the first average has taken, or the first one after its start;
    of a run whose snapshots all lie before that, the last of them.

    A SWAP run has no such start: there they are the end of its common phase and its first two workers.

    Raises:
        UserError: The run has no average, or no snapshot before its end.
    """
    average = _first_average(run)
    if run.plan.worker is not None:
        return {name: name for name in (RAW, name_of_worker(1), name_of_worker(2))}
    start = run.averaging[average][0]
    steps = sorted(int(path.stem.removeprefix("step-")) for path in run.folder.snapshots.glob("step-????????.pt"))
    before_the_end = [step for step in steps if step < run.step]
    if not before_the_end:
        raise UserError(
            f"{run.folder.path}: has no snapshot from before its end, and the plane takes one where averaging starts",
            hint="train with snapshots.every=1ep, or name three weight sets with --points A.pt last swa",
        )
    step = next((step for step in before_the_end if step >= start), before_the_end[-1])
    epoch = f"{step / run.plan.steps_per_epoch:.4g}"
    name = f"epoch {epoch}" if step >= start else f"epoch {epoch}, before averaging"
    return {name: str(run.folder.snapshot_path(step)), RAW: RAW, average: average}


def _first_average(run: OpenRun) -> str:
    if run.best == RAW:
        raise UserError(
            f"{run.folder.path}: has no average yet",
            hint="let the run end, or train with a section `swa` in the recipe",
        )
    return run.best


def _named(anchor: Anchor, name: str, word: str) -> Anchor:
    """A weight set under a name that says more than the word it was found by, if there is one."""
    return anchor if name == word else Anchor(name, anchor.state)
