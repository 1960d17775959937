"""The events of a run, and the listeners that hear them.

The trainer emits events without knowing its listeners: the terminal, log.txt, metrics.csv, and the loggers of the
recipe. A listener is any object with some of the methods of `Listener`; it gets plain values, and changes nothing. An
error of a *logger* never ends a run: a warning names it once, and the logger hears no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from swa_cli.metrics.metric import TaskMetrics

Row = Mapping[str, Any]  # a row of metrics.csv; None where something was not measured


@dataclass(frozen=True, kw_only=True)
class PlanEvent:
    """A run begins, or continues: what it will do."""

    title: str
    rows: Sequence[tuple[str, str]]  # label and text
    recipe: Mapping[str, Any]  # complete with its defaults, as primitives
    averages: Sequence[str]
    metrics: TaskMetrics
    folder: Path | None = None  # None for a dry run
    history: Sequence[Row] = ()  # the epochs before a resumed run continues
    warnings: Sequence[str] = ()
    log: TextIO | None = None  # log.txt, open at its end


@dataclass(frozen=True, kw_only=True)
class StepEvent:
    """An optimizer update was done, and the averages and snapshots that follow it."""

    step: int  # updates done
    epoch: int
    lr: float
    loss: float | None  # of the last batch; None where reading it would wait for the GPU


@dataclass(frozen=True, kw_only=True)
class EpochEvent:
    """An epoch was trained and scored."""

    row: Row
    history: Sequence[Row]  # all epochs so far, this one included


@dataclass(frozen=True, kw_only=True)
class SavedEvent:
    """A checkpoint is complete and durable."""

    path: Path
    kind: str  # resume | snapshot | average | raw
    step: int


@dataclass(frozen=True, kw_only=True)
class Curves:
    """What a plot of the whole run shows besides the history of its epochs."""

    title: str
    workers: Mapping[str, Sequence[Row]]  # SWAP worker -> its history
    averaging: Mapping[str, Sequence[int]]  # average -> the steps whose weights it holds
    steps_per_epoch: int
    lr: Sequence[float]  # of each step
    worker_lr: Sequence[tuple[float, float]]
    trained: str | None  # the loss that is trained, if it is not that of the task


@dataclass(frozen=True, kw_only=True)
class ResultEvent:
    """All weight sets were saved and scored; result.json is written next."""

    values: Mapping[str, Any]  # the content of result.json
    folder: Path
    ship: Path  # the best checkpoint
    ship_reason: str
    swag: Sequence[Path]  # checkpoints that `swa eval --draws` can sample
    metrics: TaskMetrics
    history: Sequence[Row]
    curves: Curves


@dataclass(frozen=True, kw_only=True)
class EndEvent:
    """The run has ended, and all its files are written; after a kill nobody hears it."""

    exit_code: int  # 0 finished, 1 failed, 130 Ctrl-C, 143 SIGTERM


class Bar(Protocol):
    """The progress of one piece of work."""

    def advance(self, n: int = 1, **fields: float) -> None:
        """Count `n` more parts as done; `fields` such as a loss are shown until they are given anew."""


class Listener(Protocol):
    """What a listener may implement; it needs only the methods it wants."""

    def plan(self, event: PlanEvent) -> None:
        """Hear that a run begins or continues."""

    def step(self, event: StepEvent) -> None:
        """Hear of an optimizer update."""

    def epoch(self, event: EpochEvent) -> None:
        """Hear of a scored epoch."""

    def saved(self, event: SavedEvent) -> None:
        """Hear of a checkpoint that is complete."""

    def result(self, event: ResultEvent) -> None:
        """Hear the final scores."""

    def end(self, event: EndEvent) -> None:
        """Hear how the run ended: the last event, to close what is open. Loggers hear it only after `plan`."""

    def left_out(self) -> None:
        """Close what is open: it has raised an error, and hears nothing more of this run. Loggers alone hear this."""

    def warning(self, text: str) -> None:
        """Hear something that a person should think about."""

    def note(self, text: str) -> None:
        """Hear a remark."""

    def progress(
        self, description: str, total: int, *, unit: int | None = None, done: int = 0
    ) -> AbstractContextManager[Bar]:
        """Show the progress of work of `total` parts while a block runs.

        Args:
            description: The name of the work.
            total: The number of its parts.
            unit: Samples per part, to show a rate.
            done: The number of parts that were done before.
        """


class Stopped(BaseException):
    """Stops a run at a safe point, after a save; `ending` is the exception with which the run then ends.

    A signal raises it, and so may a listener on the event of an epoch, once all listeners have heard it.
    """

    def __init__(self, ending: BaseException) -> None:
        super().__init__(ending)
        self.ending = ending


METHOD_OF = {
    PlanEvent: "plan",
    StepEvent: "step",
    EpochEvent: "epoch",
    SavedEvent: "saved",
    ResultEvent: "result",
    EndEvent: "end",
}
METHODS = tuple(name for name in vars(Listener) if not name.startswith("_"))


class Events:
    """Passes each event to every listener that has a method for it.

    Args:
        listeners: Their errors end the run: they write what a run promises.
        loggers: By their names in the recipe. Their errors are warnings, and they are left out from then on.
    """

    def __init__(self, listeners: Sequence[object] = (), *, loggers: Mapping[str, object] | None = None) -> None:
        self._listeners = tuple(listeners)
        self._loggers = dict(loggers or {})
        self._begun = set[str]()  # the loggers that were told the plan

    def extended(self, *listeners: object, loggers: Mapping[str, object]) -> Events:
        """Return events with these listeners and loggers in addition."""
        return Events((*self._listeners, *listeners), loggers={**self._loggers, **loggers})

    def part(self) -> Events:
        """Return the events of a run within this one, heard by what the `part` method of a listener returns."""
        return Events([listener.part() for listener in self._listeners if hasattr(listener, "part")])

    def will_stop_soon(self) -> None:
        """Tell listeners, inside a signal handler, that the run stops after this step."""
        for listener in self._listeners:
            if hasattr(listener, "will_stop_soon"):
                listener.will_stop_soon()

    def emit(self, event: PlanEvent | StepEvent | EpochEvent | SavedEvent | ResultEvent | EndEvent) -> None:
        """Pass an event to the method of its kind, see `Listener`."""
        self._tell(METHOD_OF[type(event)], event)

    def warning(self, text: str) -> None:
        """Tell something that a person should think about."""
        self._tell("warning", text)

    def note(self, text: str) -> None:
        """Tell a remark."""
        self._tell("note", text)

    @contextmanager
    def progress(self, description: str, total: int, *, unit: int | None = None, done: int = 0) -> Iterator[Bar]:
        """Let listeners show the progress of work while the block runs; loggers are not told."""
        with ExitStack() as stack:
            bars = [
                stack.enter_context(listener.progress(description, total, unit=unit, done=done))
                for listener in self._listeners
                if hasattr(listener, "progress")
            ]
            yield _Bars(bars)

    @contextmanager
    def loading(self) -> Iterator[Callable[[str, int, int], None]]:
        """Show the progress of reading data: yields `report(what, done, total)`, which shows one `what` at a time."""
        with ExitStack() as stack:
            shown: dict[str, tuple[Bar, int]] = {}

            def report(what: str, done: int, total: int) -> None:
                if what not in shown:
                    stack.close()
                    shown.clear()
                    shown[what] = stack.enter_context(self.progress(what, total)), 0
                bar, before = shown[what]
                bar.advance(done - before)
                shown[what] = bar, done

            yield report

    def _tell(self, method: str, event: Any) -> None:
        stopped = None
        for listener in self._listeners:
            try:
                if hasattr(listener, method):
                    getattr(listener, method)(event)
            except Stopped as error:
                stopped = error
        for name, logger in list(self._loggers.items()):
            if name not in self._loggers:  # it failed on the warning about another one
                continue
            if method == METHOD_OF[PlanEvent]:
                self._begun.add(name)
            elif method == METHOD_OF[EndEvent] and name not in self._begun:
                continue  # the run was stopped while another one heard the plan
            try:
                if hasattr(logger, method):
                    getattr(logger, method)(event)
            except Exception as error:  # no error of a logger may end a run
                del self._loggers[name]
                with suppress(Exception):  # its first error is the one to tell
                    getattr(logger, "left_out", lambda: None)()
                reason = f"{type(error).__name__}: {error}"
                self.warning(f"output.loggers: {name} failed in `{method}` and is left out from now on ({reason})")
        if stopped is not None:
            raise stopped


@dataclass(frozen=True)
class _Bars:
    """The bars of all listeners as one."""

    bars: Sequence[Bar]

    def advance(self, n: int = 1, **fields: float) -> None:
        for bar in self.bars:
            bar.advance(n, **fields)


SILENT = Events()
