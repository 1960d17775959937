"""The snapshots of a run as windows see them: the mean of any stretch, from one window's end to another's.

Plain snapshots: a window is some of them, and its mean is theirs. With the running means of a recipe that says
`snapshots.cumulative`, it is every step between two of them, and two files give its mean exactly.

n stretches in the order of time; (first, last): a window of them, both included. Without running means a stretch is
one snapshot, with them the steps after one snapshot up to the next, the first one from the beginning of the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from swa_cli.after.ingredients import Ingredients, Source, require_running_means
from swa_cli.averaging import soup
from swa_cli.errors import UserError
from swa_cli.recipe import load
from swa_cli.recipe.window import Window


@dataclass(frozen=True)
class Trail:
    """Snapshots of one run by step; `points` are the updates done at their ends, in which windows are written."""

    sources: list[Source]
    points: list[int]
    averaged: list[str]
    is_exact: bool

    @property
    def n(self) -> int:
        """How many stretches there are."""
        return len(self.sources)

    def bounds(self, first: int, last: int) -> tuple[int, int]:
        """Updates done at the ends: of the first and last snapshot; the steps (start, end] where exact."""
        start = self.points[first] if not self.is_exact else self.points[first - 1] if first else 0
        return start, self.points[last]

    def steps(self, first: int, last: int) -> list[int]:
        """Those whose weights the window holds."""
        start, end = self.bounds(first, last)
        return list(range(start + 1, end + 1)) if self.is_exact else self.points[first : last + 1]

    def shares(self, first: int, last: int) -> list[tuple[Source, float]]:
        """How much of each file goes into the mean: of its weights, or where exact of its running mean."""
        if not self.is_exact:
            members = self.sources[first : last + 1]
            return [(source, 1 / len(members)) for source in members]
        start, end = self.bounds(first, last)
        later = [(self.sources[last], end / (end - start))]
        return [(self.sources[first - 1], -start / (end - start)), *later] if first else later

    def mean(self, first: int, last: int) -> dict[str, Tensor]:
        """Of the window, in float64; what is not averaged is the last snapshot's."""
        if not self.is_exact:
            states = (source.state for source in self.sources[first : last + 1])
            return soup.mean(states, averaged=self.averaged)
        start, end = self.bounds(first, last)
        earlier: Mapping[str, Tensor] = _running(self.sources[first - 1]) if first else {}
        later = self.sources[last]
        averaged = soup.between(earlier, _running(later), num_earlier=start, num_later=end)
        return {**later.state, **averaged}

    def window(self, window: Window) -> tuple[int, int]:
        """The stretches of a window that is written in durations of the run.

        Raises:
            UserError: It holds nothing, or ends where an exact one cannot.
        """
        newest = self.sources[-1].found.content  # of a run that was given more epochs, its recipe as it is now
        recipe = load.from_values(newest["recipe"], source=self.sources[-1].file).recipe
        start, end = window.points(recipe, num_train=newest["num_train"])
        if self.is_exact:
            return self._exact(window, start, end)
        held = [index for index, point in enumerate(self.points) if start <= point <= end]
        if not held:
            raise UserError(
                f"--window {window}: holds no snapshot from step {start:,} to {end:,}; {self._nearest(start)}",
                hint="write a wider window",
            )
        return held[0], held[-1]

    def _exact(self, window: Window, start: int, end: int) -> tuple[int, int]:
        ends = [0, *self.points]
        for point in (start, end):
            if point not in ends:
                raise UserError(
                    f"--window {window}: step {point:,} is no snapshot; {self._nearest(point)}",
                    hint="end the window at a snapshot, and begin it at one or at 0ep",
                )
        if start == end:
            raise UserError(f"--window {window}: holds no step", hint="write a wider window")
        return ends.index(start), ends.index(end) - 1

    def _nearest(self, point: int) -> str:
        before = [0] * self.is_exact + [other for other in self.points if other < point]
        after = [other for other in self.points if other > point]
        nearest = [f"step {other:,}" for other in (*before[-1:], *after[:1])]
        return f"the nearest {'are' if len(nearest) > 1 else 'is'} {' and '.join(nearest)}"


def trail_of(ingredients: Ingredients, *, option: str) -> Trail:
    """The snapshots among the sources, which have to be of one run; exact if each keeps its running mean.

    Raises:
        UserError: A source is no snapshot, or they are of two runs.
    """
    sources: Sequence[Source] = ingredients.sources
    for source in sources:
        if source.found.kind != "snapshot":
            raise UserError(
                f"{source.file}: is no snapshot, and {option} chooses among the snapshots of a run",
                hint="name a run folder or its snapshots",
            )
    if len({Path(source.file).resolve().parent for source in sources}) > 1:
        raise UserError(f"{option}: the snapshots lie in two folders or more", hint="name the snapshots of one run")
    ordered = sorted(sources, key=lambda source: source.found.content["step"])
    points = [int(source.found.content["step"]) for source in ordered]
    if len(set(points)) < len(points):
        raise UserError(f"{option}: two snapshots are of one step", hint="name the snapshots of one run")
    lacking = [source for source in ordered if source.running is None]
    if lacking and len(lacking) < len(ordered):
        raise UserError(
            f"{lacking[0].file}: keeps no running mean, and others do", hint="name the snapshots of one run"
        )
    is_exact = not lacking
    if is_exact:
        require_running_means(ingredients, ordered)
    return Trail(ordered, points, ingredients.averaged, is_exact)


def _running(source: Source) -> Mapping[str, Tensor]:
    assert source.running is not None, "an exact trail has a running mean in each snapshot"
    state: Mapping[str, Tensor] = source.running["state"]
    return state
