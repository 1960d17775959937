"""Print a run to the terminal and log.txt, and draw curves.png: one listener of its events."""

from __future__ import annotations

from swa_cli.checkpoint.atomic import write_atomic
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.engine import failures
from swa_cli.engine.events import EpochEvent, PlanEvent, ResultEvent
from swa_cli.report import plots
from swa_cli.report.plots import curves
from swa_cli.report.terminal import Terminal


class RunOutput:
    """A listener that prints to a terminal, whose log becomes that of the run, and draws curves.png at the end."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.warning, self.note = terminal.warning, terminal.note
        self.progress, self.will_stop_soon = terminal.progress, terminal.will_stop_soon
        self.run: PlanEvent | None = None  # the run that is heard
        self._has_header = False  # whether the table of its epochs has one

    @property
    def wants_plots(self) -> bool:
        """Whether the recipe of the run asks for more pictures than curves.png."""
        return self.run is not None and bool(self.run.recipe["output"]["plots"])

    def part(self) -> RunOutput:
        """Return the output of a run within this one, with a log of its own."""
        return RunOutput(self.terminal.part())

    def plan(self, event: PlanEvent) -> None:
        """Print the plan, to the log of the run too."""
        self.run, self._has_header = event, False
        if event.log is not None:
            self.terminal.attach_log(event.log)
        self.terminal.plan(event.title, event.rows, warnings=event.warnings)

    def epoch(self, event: EpochEvent) -> None:
        """Print a row of the table."""
        assert self.run is not None, "a run tells its plan first"
        if not self._has_header:
            self.terminal.epoch_header(self.run.averages, metrics=self.run.metrics)
            self._has_header = True
        self.terminal.epoch_row(event.row)

    def result(self, event: ResultEvent) -> None:
        """Draw curves.png; print the scores, what to ship, and what to do next."""
        if not self.terminal.is_mute:  # elsewhere, another process draws
            with plots.telling(self.terminal.warning):
                _draw_curves(event)
        values, terminal, folder = event.values, self.terminal, RunFolder(event.folder)
        terminal.summary(
            values["weights"],
            split=values["split"],
            samples=values["samples"],
            tta=values["tta"],
            metrics=event.metrics,
        )
        for file in event.swag:
            command = failures.runnable(("swa", "eval", file, "--draws", 30), folder)
            terminal.note(f"{file.stem} is scored by its mean; `{command}` scores weights around it")
        shown = folder.display_path
        terminal.facts(
            "",
            [
                ("run", str(shown)),
                ("ship", f"{shown / event.ship.relative_to(event.folder)} ({event.ship_reason})"),
                ("next", failures.runnable(("swa", "report", shown, "-o", "report.html"), folder)),
            ],
        )


def _draw_curves(event: ResultEvent) -> None:
    shown = event.curves
    write_atomic(
        event.folder / "curves.png",
        lambda file: curves.draw(
            file,
            rows=curves.with_workers(event.history, shown.workers),
            title=shown.title,
            averaging=shown.averaging,
            steps_per_epoch=shown.steps_per_epoch,
            lr=shown.lr,
            worker_lr=shown.worker_lr,
            trained=shown.trained,
            final=event.values["weights"],
            split=event.values["split"],
            samples=event.values["samples"],
            metrics=event.metrics,
        ),
    )
