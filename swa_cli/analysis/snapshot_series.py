"""The snapshots of one run in the order of their steps, the mean of any window of them, and averages by profile.

Between plain snapshots a window is some of them. With running means (`snapshots.cumulative`) it is every step between
two of them, and two files give its mean exactly. `averaging/profiles.py` has the arithmetic of profiles.
Legend: n stretches in the order of time; (first, last) a window, both included. A stretch is one snapshot, or with
running means the steps after one snapshot up to the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from swa_cli.analysis.sources import Mean, Source, Sources
from swa_cli.averaging import profiles, soup
from swa_cli.averaging.model_state import require_same_shapes, shapes
from swa_cli.averaging.profiles import Profile, Shares
from swa_cli.checkpoint import loading
from swa_cli.engine.events import Bar, Events
from swa_cli.errors import UserError
from swa_cli.recipe.intervals import StepClock
from swa_cli.recipe.kinds import power_exponent
from swa_cli.recipe.plan import Window, clock_of, point_on
from swa_cli.recipe.values import Duration

CUMULATIVE = "cumulative"  # a running mean, in the sources of an average


@dataclass(frozen=True)
class ProfileOption:
    """A profile as the command line has it: one of these is given."""

    half_life: Duration | None = None
    width: float | None = None
    decay: str | None = None

    @property
    def text(self) -> str:
        """The option with its value."""
        if self.half_life is not None:
            return f"--ema {self.half_life}"
        return f"--power-ema {self.width:g}" if self.width is not None else f"--decay {self.decay}"


@dataclass(frozen=True)
class SnapshotSeries:
    """Snapshots of one run by step; `points` are their steps, in which windows are written."""

    sets: list[Source]
    points: list[int]
    averaged: list[str]
    is_exact: bool
    events: Events

    def bounds(self, first: int, last: int) -> tuple[int, int]:
        """Return the steps of the first and last snapshot; where exact, (start, end] of the steps."""
        start = self.points[first] if not self.is_exact else self.points[first - 1] if first else 0
        return start, self.points[last]

    def mean(self, first: int, last: int) -> Mean:
        """Return the mean of a window; names that are not averaged come from its last snapshot."""
        if not self.is_exact:
            members, steps = self.sets[first : last + 1], self.points[first : last + 1]
            state = soup.mean((source.state for source in members), averaged=self.averaged)
            shares = [(source, 1 / len(members)) for source in members]
            age = self.points[last] - sum(steps) / len(steps) + 0.5
            return Mean("window", shares, steps, len(steps), state, mean_age=age)
        start, end = self.bounds(first, last)
        newer = self.sets[last]
        shares, older = [(_mean_of(newer), end / (end - start))], dict[str, Tensor]()
        if first:
            shares.insert(0, (_mean_of(self.sets[first - 1]), -start / (end - start)))
            older = _running(self.sets[first - 1])
        averaged = soup.between(older, _running(newer), num_earlier=start, num_later=end)
        steps, state = list(range(start + 1, end + 1)), {**newer.state, **averaged}
        return Mean("window", shares, steps, len(steps), state, mean_age=(end - start) / 2)

    def weighted(self, profile: Profile, first: int, last: int) -> Mean:
        """Return the average of a window by a profile, with an estimate of its error.

        The error is that of the weights between snapshots, as a part of the distance from the raw weights at the end of
        the window to the average.
        """
        start, end = self.bounds(first, last)
        members = self.sets[max(first - self.is_exact, 0) : last + 1]
        points = self.points[max(first - self.is_exact, 0) : last + 1]
        if self.is_exact:
            shares = profiles.of_running_means(profile, points, start=start)
        else:
            shares = profiles.of_snapshots(profile, points, start=start - 1 if first else 0)
        with self.events.progress("averaging", len(members)) as bar:
            parts = _parts(members, shares, bar)
            state, rough = profiles.weighted_sums(parts, averaged=self.averaged, number=2)
        last_state = self.sets[last].state
        away = profiles.relative_distance(state, rough, last=last_state)
        held = [
            *zip(map(_mean_of, members), shares.means, strict=True),
            *zip(members, shares.raw, strict=True),
        ]
        held = [(source, weight) for source, weight in held if weight]
        steps = (
            list(range(start + 1, end + 1)) if self.is_exact else [source.found.content["step"] for source, _ in held]
        )
        return Mean(
            profile.kind,
            held,
            steps,
            len(steps),
            {**last_state, **state},
            profile=profile,
            error=None if away is None or shares.error_factor is None else shares.error_factor * away,
            mean_age=shares.mean_age,
        )

    @cached_property
    def clock(self) -> StepClock:
        """The clock of the run; after `--extend-to` the newest snapshot alone carries the recipe as it is now."""
        newest = self.sets[-1]
        assert newest.recipe is not None, "a snapshot carries its recipe"
        return clock_of(newest.recipe, num_train=newest.found.content["num_train"])

    def profile(self, option: ProfileOption) -> Profile:
        """Return the profile of an option, with its lengths in steps of this run.

        Raises:
            UserError: A half-life without a fixed length, or without any.
        """
        if option.decay is not None:
            return profiles.decay(option.decay)
        if option.width is not None:
            return profiles.power_ema(option.width, exponent=power_exponent(option.width))
        assert option.half_life is not None, "an option names one profile"
        if option.half_life.unit == "cycle":
            raise UserError(f"{option.text}: a cycle has no fixed length", hint="write it in %, ep or step")
        half_life = float(self.clock.exact(option.half_life))
        if half_life == 0:
            raise UserError(f"{option.text}: is no length", hint="write a longer half-life, such as --ema 2ep")
        return profiles.ema(half_life)

    def step_of(self, point: Duration, *, option: str) -> int:
        """Return the updates done at a point of the run; `option` names it in errors."""
        return point_on(self.clock, point, option=option)

    def at(self, point: Duration) -> int:
        """Return the snapshot nearest to a point of the run.

        Raises:
            UserError: The run has no snapshot yet there, or none any more.
        """
        step = self.step_of(point, option="--at")
        if not self._edges[0] < step <= self.points[-1]:
            raise UserError(
                f"--at {point}: step {step:,} is not between the first snapshot, step {self.points[0]:,}, and the last,"
                f" step {self.points[-1]:,}",
                hint=f"write points from {self.points[0]}step to {self.points[-1]}step",
            )
        return min(range(len(self.points)), key=lambda index: abs(self.points[index] - step))

    def length(self, first: int, last: int) -> int:
        """Return the steps of a window."""
        return self._edges[last + 1] - self._edges[first]

    def last_share(self, percent: float, *, last: int) -> int:
        """Return the first stretch of the last part of the steps up to a snapshot; it begins at the nearest edge."""
        wanted = self.points[last] * (1 - percent / 100)
        return min(range(last + 1), key=lambda index: abs(self._edges[index] - wanted))

    @cached_property
    def _edges(self) -> list[int]:
        """The ends of the stretches; a plain snapshot stands for the steps since the one before."""
        if self.is_exact:
            return [0, *self.points]
        spacing = self.points[1] - self.points[0] if len(self.points) > 1 else 1
        return [max(0, self.points[0] - spacing), *self.points]

    def window(self, window: Window) -> tuple[int, int]:
        """Return the stretches of a window that is written in durations of the run.

        Raises:
            UserError: It holds nothing, or an exact window begins or ends between two snapshots.
        """
        newest = self.sets[-1]
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
    return SnapshotSeries(ordered, points, sources.averaged, not lacking, sources.context.events)


def _mean_of(source: Source) -> Source:
    """Return a snapshot under the name of its running mean."""
    return replace(source, name=CUMULATIVE)


def _running(source: Source) -> dict[str, Tensor]:
    assert source.running is not None, "an exact series has a running mean in each snapshot"
    state: dict[str, Tensor] = source.running["state"]
    return state


def _parts(
    members: Sequence[Source], shares: Shares, bar: Bar
) -> Iterator[tuple[dict[str, Tensor], tuple[float, float]]]:
    """Yield what the snapshots hold, with its weight in the average and in the rougher one."""
    for index, source in enumerate(members):
        if shares.means[index] or shares.rough_means[index]:
            yield _running(source), (shares.means[index], shares.rough_means[index])
        if shares.raw[index] or shares.rough_raw[index]:
            yield source.state, (shares.raw[index], shares.rough_raw[index])
        bar.advance()
