"""A window of a run, `161ep:300ep`: two points, which become numbers of updates done."""

from __future__ import annotations

from dataclasses import dataclass

from swa_cli.errors import UserError
from swa_cli.recipe.duration import Duration, round_half_up
from swa_cli.recipe.plan import make_plan
from swa_cli.recipe.scalars import shown
from swa_cli.recipe.schedule import CYCLIC, minima, point_of
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.series import Clock


@dataclass(frozen=True)
class Window:
    """From one point of a run to a later one."""

    start: Duration
    end: Duration

    @classmethod
    def parse(cls, text: str) -> Window:
        """Read `161ep:300ep`.

        Raises:
            ValueError: No such form; the message names the value.
        """
        start, colon, end = text.partition(":")
        if not colon:
            raise ValueError(f"{shown(text)} is not a window: write two points, such as 161ep:300ep")
        return cls(Duration.parse(start), Duration.parse(end))

    def points(self, recipe: Recipe, *, num_train: int) -> tuple[int, int]:
        """Updates done at both ends, each rounded half up.

        Raises:
            RecipeError: A run of this recipe cannot be planned.
            UserError: An end that the run does not have, or nothing between them.
        """
        plan = make_plan(recipe, num_train=num_train)
        lows = minima(recipe, steps_per_epoch=plan.steps_per_epoch) if recipe.schedule.name in CYCLIC else ()
        clock = Clock(plan.steps_per_epoch, plan.total_steps, lows)
        start, end = (_point(duration, clock) for duration in (self.start, self.end))
        if start > end:
            raise UserError(f"--window {self}: ends before it starts", hint="write the earlier point first")
        return start, end

    def __str__(self) -> str:
        return f"{self.start}:{self.end}"


def _point(duration: Duration, clock: Clock) -> int:
    if duration.unit == "cycle" and duration.value > len(clock.minima):
        raise UserError(
            f"--window: {duration} is not there: the schedule of the run has {len(clock.minima)} minima",
            hint="write the point in %, ep or step",
        )
    point = point_of(duration, exact=clock.exact, low_points=clock.minima, total=clock.total)
    if point > clock.total:
        epochs = clock.total // clock.steps_per_epoch
        raise UserError(
            f"--window: {duration} is after the end of the run, epoch {epochs}", hint=f"write at most {epochs}ep"
        )
    return round_half_up(point)
