"""The snapshots of one run in the order of their steps, and the mean of any window of them.

Between plain snapshots a window is some of them. With running means (`snapshots.cumulative`) it is every step between
two of them, and two files give its mean exactly. Legend: n stretches in the order of time; (first, last) a window, both
included. A stretch is one snapshot, or with running means the steps after one snapshot up to the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from swa_cli.analysis.sources import Mean, Source, Sources
from swa_cli.averaging import soup
from swa_cli.averaging.model_state import require_same_shapes, shapes
from swa_cli.checkpoint import loading
from swa_cli.errors import UserError
from swa_cli.recipe.plan import Window


@dataclass(frozen=True)
class SnapshotSeries:
    """Snapshots of one run by step; `points` are their steps, in which windows are written."""

    sets: list[Source]
    points: list[int]
    averaged: list[str]
    is_exact: bool

    def bounds(self, first: int, last: int) -> tuple[int, int]:
        """Return the steps of the first and last snapshot; where exact, (start, end] of the steps."""
        start = self.points[first] if not self.is_exact else self.points[first - 1] if first else 0
        return start, self.points[last]

    def mean(self, first: int, last: int) -> Mean:
        """Return the mean of a window; names that are not averaged come from its last snapshot."""
        if not self.is_exact:
            members, steps = self.sets[first : last + 1], self.points[first : last + 1]
            state = soup.mean((source.state for source in members), averaged=self.averaged)
            return Mean("window", [(source, 1 / len(members)) for source in members], steps, len(steps), state)
        start, end = self.bounds(first, last)
        newer = self.sets[last]
        shares, older = [(newer, end / (end - start))], dict[str, Tensor]()
        if first:
            shares.insert(0, (self.sets[first - 1], -start / (end - start)))
            older = _running(self.sets[first - 1])
        averaged = soup.between(older, _running(newer), num_earlier=start, num_later=end)
        return Mean("window", shares, list(range(start + 1, end + 1)), end - start, {**newer.state, **averaged})

    def window(self, window: Window) -> tuple[int, int]:
        """Return the stretches of a window that is written in durations of the run.

        Raises:
            UserError: It holds nothing, or an exact window begins or ends between two snapshots.
        """
        newest = self.sets[-1]  # after `--extend-to` it alone carries the recipe as it is now
        assert newest.recipe is not None, "a snapshot carries its recipe"
        start, end = window.points(newest.recipe, num_train=newest.found.content["num_train"])
        if self.is_exact:
            ends = [0, *self.points]
            for point in (start, end):
                if point not in ends:
                    raise UserError(
                        f"--window {window}: step {point:,} is not a snapshot; {self._nearest(point)}",
                        hint="end the window at a snapshot, and begin it at one or at 0ep",
                    )
            if start == end:
                raise UserError(f"--window {window}: holds no step", hint="write a wider window")
            return ends.index(start), ends.index(end) - 1
        held = [index for index, point in enumerate(self.points) if start <= point <= end]
        if not held:
            raise UserError(
                f"--window {window}: holds no snapshot from step {start:,} to {end:,}; {self._nearest(start)}",
                hint="write a wider window",
            )
        return held[0], held[-1]

    def _nearest(self, point: int) -> str:
        before = [0] * self.is_exact + [other for other in self.points if other < point]
        after = [other for other in self.points if other > point]
        nearest = [f"step {other:,}" for other in (*before[-1:], *after[:1])]
        return f"the nearest {'are' if len(nearest) > 1 else 'is'} {' and '.join(nearest)}"


def snapshot_series(sources: Sources, *, option: str) -> SnapshotSeries:
    """Put the sources, which have to be snapshots of one run, in the order of their steps.

    The series is exact if each snapshot keeps its running mean.

    Raises:
        UserError: A source is not a snapshot, or they are of two runs, or a running mean does not fit the model.
    """
    hint = "name the snapshots of one run"
    for source in sources.sets:
        if source.found.kind != "snapshot":
            raise UserError(
                f"{source.file}: is not a snapshot, and {option} chooses among the snapshots of a run",
                hint="name a run folder or its snapshots",
            )
    if len({Path(source.file).resolve().parent for source in sources.sets}) > 1:
        raise UserError(f"{option}: the snapshots lie in two folders or more", hint=hint)
    ordered = sorted(sources.sets, key=lambda source: source.found.content["step"])
    points = [int(source.found.content["step"]) for source in ordered]
    if len(set(points)) < len(points):
        raise UserError(f"{option}: two snapshots are of one step", hint=hint)
    lacking = [source for source in ordered if source.running is None]
    if lacking and len(lacking) < len(ordered):
        raise UserError(f"{lacking[0].file}: keeps no running mean, and others do", hint=hint)
    if not lacking:
        state = sources.model.state_dict()
        expected = shapes({name: state[name] for name in sources.averaged})
        for source in ordered:
            means = _running(source)
            require_same_shapes(shapes(means), expected, what=f"running mean in {source.file}")
            loading.require_numbers(means, like=state, source=f"{source.file} (running mean)")
    return SnapshotSeries(ordered, points, sources.averaged, is_exact=not lacking)


def _running(source: Source) -> dict[str, Tensor]:
    assert source.running is not None, "an exact series has a running mean in each snapshot"
    state: dict[str, Tensor] = source.running["state"]
    return state
