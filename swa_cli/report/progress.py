"""The live bar of one piece of work."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bar:
    """The live bar of one piece of work; without a terminal it does nothing."""

    def __init__(self, progress: Progress | None, *, task: TaskID | None = None, unit: int | None = None) -> None:
        self._progress = progress
        self._task = task
        self._unit = unit
        self._done = 0
        self._fields: dict[str, float] = {}
        self._started = time.monotonic()

    def advance(self, n: int = 1, **fields: float) -> None:
        """Move on by `n` steps; `fields` (a loss) are shown by their names until they are given anew."""
        if self._progress is None or self._task is None:
            return
        self._done += n
        self._fields |= fields
        state = [f"{name} {value:.3f}" for name, value in self._fields.items()]
        elapsed_s = time.monotonic() - self._started
        if self._unit is not None and elapsed_s > 0:
            state.append(f"{self._done * self._unit / elapsed_s:,.0f} images/s")
        self._progress.update(self._task, advance=n, state="  ".join(state))


def live(console: Console, *, redirect_stdout: bool) -> Progress:
    """Bars under the lines of a console, gone when they end; rich's part for them is imported only here."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    def text(template: str) -> TextColumn:
        return TextColumn(template, markup=False, table_column=Column(no_wrap=True, overflow="crop"))

    return Progress(
        text("{task.description}"),
        BarColumn(bar_width=10 if console.width < 80 else 24),
        text("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(compact=True),
        text("left  {task.fields[state]}"),
        console=console,
        transient=True,
        refresh_per_second=4,
        redirect_stdout=redirect_stdout,
    )
