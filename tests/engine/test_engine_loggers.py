"""Loggers of a user, by import path: what they hear, what their errors do, and what is refused."""

from __future__ import annotations

import csv
import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from swa_cli.engine import events
from swa_cli.engine.events import EndEvent, Events, PlanEvent, StepEvent
from swa_cli.metrics import tasks

DOCS = (Path(__file__).parents[2] / "docs/loggers.md").read_text()
EXAMPLE = re.search(r"```python\n(import json\n.*?)```", DOCS.partition("## A logger of your own")[2], re.DOTALL)
HEARS = """\
from pathlib import Path
class Hears:
    def plan(self, event): self.say(f"plan {event.folder is not None} {len(event.history)}")
    def step(self, event): self.say(f"step {event.step} {event.loss is not None}")
    def epoch(self, event): self.say(f"epoch {event.row['epoch']} {len(event.history)}")
    def saved(self, event): self.say(f"saved {event.kind} {event.path.name} {event.path.is_file()}")
    def result(self, event): self.say(f"result {sorted(event.values['weights'])}")
    def end(self, event): self.say(f"end {event.exit_code}")
    def say(self, text):
        with open("heard.txt", "a") as file:
            file.write(text + "\\n")
"""


@pytest.fixture(autouse=True)
def _own_modules() -> Iterator[None]:
    path = list(sys.path)
    yield
    sys.path[:] = path
    sys.modules.pop("own", None)


def write(folder: Path, text: str, name: str = "Own") -> list[str]:
    """A module with a logger, and the words that name it."""
    (folder / "own.py").write_text(text)
    return ["output.loggers=[" + f"'own:{name}'" + "]", "-q"]


def rows(path: Path) -> list[dict[str, str]]:
    with open(path) as file:
        return list(csv.DictReader(file))


def test_the_example_of_the_page_writes_every_epoch_once(
    swa, recipe: Path, tmp_path: Path, signal_at: Callable[..., None]
) -> None:
    """The logger of docs/loggers.md, the run stopped in epoch 3 and resumed: the rows of metrics.csv."""
    assert EXAMPLE is not None
    words = write(tmp_path, EXAMPLE[1], "JsonLines")
    signal_at(2 * 23 + 5, signal.SIGTERM)
    assert swa("train", recipe, *words).code == 143
    signal_at(-1)
    run = tmp_path / "runs/small-001"
    assert len((run / "epochs.jsonl").read_text().splitlines()) in (1, 2)
    assert (run / "exit_code.txt").read_text() == "143"
    refused = swa("train", "--resume", run)
    assert refused.code == 2
    assert "output.loggers.0 own:JsonLines" in " ".join(refused.err.split())
    assert "--allow-code" in refused.err
    assert swa("train", "--resume", run, "--allow-code", "-q").code == 0
    assert (run / "exit_code.txt").read_text() == "0"
    logged = [json.loads(line) for line in (run / "epochs.jsonl").read_text().splitlines()]
    written = rows(run / "metrics.csv")
    assert [row["epoch"] for row in logged] == [1, 2, 3, 4]
    for one, other in zip(logged, written, strict=True):
        assert {key: "" if value is None else str(value) for key, value in one.items()} == other


def test_each_event_is_heard_in_its_order(swa, recipe: Path, tmp_path: Path) -> None:
    """A logger with six methods: the plan first, then each step, save and epoch, the result, the end last."""
    words = write(tmp_path, HEARS, "Hears")
    assert swa("train", recipe, *words, "train.epochs=2", "snapshots.every=1ep").code == 0
    heard = Path("heard.txt").read_text().splitlines()
    num_steps = int(rows(tmp_path / "runs/small-001/metrics.csv")[-1]["step"])
    assert heard[0] == "plan True 0"
    assert [line for line in heard if line.startswith("step")] == [f"step {n + 1} True" for n in range(num_steps)]
    assert [line for line in heard if line.startswith("epoch")] == ["epoch 1 1", "epoch 2 2"]
    saved = [line for line in heard if line.startswith("saved")]
    assert all(line.endswith("True") for line in saved)
    assert {line.split()[1] for line in saved} == {"resume", "snapshot", "average", "raw"}
    assert heard[-2:] == ["result ['last', 'last_bn', 'swa']", "end 0"]
    Path("heard.txt").unlink()
    assert swa("train", recipe, *words, "--dry-run").code == 0
    assert Path("heard.txt").read_text() == "plan False 0\n"


@pytest.mark.parametrize("method", ["plan", "step", "epoch", "saved", "result", "end"])
def test_a_logger_that_fails_ends_no_run(swa, recipe: Path, tmp_path: Path, finished: Path, method: str) -> None:
    """An error in each method: exit 0, one warning that names the logger, the scores of a run without it."""
    words = write(tmp_path, f"class Own:\n    def {method}(self, event): raise RuntimeError('no network')\n")
    ended = swa("train", recipe, *words)
    assert ended.code == 0
    said = " ".join(ended.err.split())
    assert said.count("own:Own") == 1
    assert f"`{method}`" in said
    assert "RuntimeError: no network" in said
    results = [json.loads((run / "result.json").read_text())["weights"] for run in (finished, Path("runs/small-002"))]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no attribute"),
        ("Own = 3", "not a logger"),
        ("class Own:\n    def __init__(self, project): pass", "other arguments"),
        ("class Own: pass", "none of the methods"),
    ],
)
def test_what_is_no_logger_is_refused_before_the_run(swa, recipe: Path, tmp_path: Path, text: str, said: str) -> None:
    """Exit 2 at output.loggers, and no run folder."""
    ended = swa("train", recipe, *write(tmp_path, text))
    assert ended.code == 2
    assert "output.loggers: " in ended.err
    assert said in " ".join(ended.err.split())
    assert not (tmp_path / "runs").exists()


def test_two_loggers_that_fail_are_each_warned_about_once() -> None:
    """Loggers whose `warning` fails as well, beside a listener that hears: two warnings, and no call after that."""
    calls, warnings = [], []

    class Broken:
        def step(self, event: StepEvent) -> None:
            calls.append(event.step)
            raise ValueError

        def warning(self, text: str) -> None:
            raise ValueError

    class Hears:
        def warning(self, text: str) -> None:
            warnings.append(text)

    told = Events([Hears()], loggers={"a": Broken(), "b": Broken()})
    for step in (1, 2):
        told.emit(StepEvent(step=step, epoch=1, lr=0.1, loss=None))
    assert calls == [1]
    assert len(warnings) == 2
    assert {"a", "b"} == {text.split()[1] for text in warnings}


def test_a_listener_that_fails_ends_the_run() -> None:
    """What writes the files of a run is no logger: its error passes through."""

    class Full:
        def step(self, event: StepEvent) -> None:
            raise OSError

    with pytest.raises(OSError):
        Events([Full()]).emit(StepEvent(step=1, epoch=1, lr=0.1, loss=None))


def test_loggers_that_heard_no_plan_hear_no_end() -> None:
    """Three loggers, of which a signal stops the second in `plan`: the calls of each by hand."""
    calls: list[str] = []

    class Logger:
        def __init__(self, name: str) -> None:
            self.name = name

        def plan(self, event: PlanEvent) -> None:
            calls.append(f"{self.name} plan")
            if self.name == "b":
                raise KeyboardInterrupt

        def end(self, event: EndEvent) -> None:
            calls.append(f"{self.name} end")

    told = Events(loggers={name: Logger(name) for name in "abc"})
    plan = PlanEvent(title="", rows=(), recipe={}, averages=(), metrics=tasks.TASKS["classification"].metrics)
    with pytest.raises(KeyboardInterrupt):
        told.emit(plan)
    told.emit(EndEvent(exit_code=130))
    assert calls == ["a plan", "b plan", "a end", "b end"]


def test_a_protocol_of_ten_methods() -> None:
    """The methods that a listener may have."""
    of_a_run = ("plan", "step", "epoch", "saved", "result", "end", "left_out")
    assert (*of_a_run, "warning", "note", "progress") == events.METHODS
