"""Signals: noted when they arrive, and raised where a command can stop, whatever became of what the handler raised."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from swa_cli import cli, signals
from swa_cli.cli.shared import importing
from swa_cli.errors import Terminated

# Sends a signal as a module is looked for.
PROGRAM = """
import os, runpy, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1] and not os.environ.pop("SENT", None):
            os.environ["SENT"] = "1"
            os.kill(os.getpid(), int(sys.argv[2]))
sys.meta_path.insert(0, Finder())
runpy.run_module("swa_cli", run_name="__main__")
"""


@pytest.fixture(autouse=True)
def _handled() -> Iterator[None]:
    with signals.handled():
        yield
    signals.forget()


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "ending"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_that_was_lost_is_raised_by_the_next_check(number: int, ending: type[BaseException]) -> None:
    """What the handler raises is dropped, as in a callback: `check` raises it."""
    with pytest.raises(ending):
        send(number)
    with pytest.raises(ending):
        signals.check()
    signals.forget()
    signals.check()


def test_the_first_is_deferred_and_the_second_raised_at_once() -> None:
    """Signals inside `deferred` against the rule; what was noted is raised by `check` after the block."""
    heard = []
    with signals.deferred(lambda: heard.append(1)):
        send(signal.SIGINT)
        signals.check()
        with pytest.raises(Terminated):
            send(signal.SIGTERM)
    assert heard == [1]
    with pytest.raises(Terminated):
        signals.check()


def test_imports_are_finished_first() -> None:
    """SIGINT inside a block of imports: raised at its end."""
    imported = []

    def imports() -> None:
        with importing():
            send(signal.SIGINT)
            imported.append(True)

    with pytest.raises(KeyboardInterrupt):
        imports()
    assert imported == [True]


@pytest.mark.parametrize("what", ["turned into an error", "dropped"])
def test_the_exit_code_is_that_of_the_signal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """A command in which a library swallows SIGTERM, or makes an ImportError of it: 143, and no mistake is told."""

    def command(*_: object, **__: object) -> None:
        try:
            send()
        except Terminated:
            if what != "dropped":
                raise ImportError("a library failed to load") from None

    monkeypatch.setattr(cli, "_command", lambda: command)
    assert cli.run(["show"]) == 143
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(cli, "_command", lambda: lambda *_, **__: None)
    assert cli.run(["show"]) == 0  # another command


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_the_command_line_is_imported(number: int, code: int) -> None:
    """A signal as typer is imported: the exit code of the signal, and not a word."""
    words = [sys.executable, "-c", PROGRAM, "typer", str(int(number))]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", "")


def test_a_command_does_not_hear_what_ended_another_one() -> None:
    """As in a notebook, where the commands are called without `cli.run`."""
    with pytest.raises(Terminated):
        send()
    assert CliRunner().invoke(cli.app, ["recipes"]).exit_code == 0
    signals.check()


def test_what_a_process_leaves_to_another_one_is_not_handled_in_a_run() -> None:
    """A worker of a sweep hears SIGTERM alone, also while it trains: the terminal sends Ctrl-C to all processes."""
    with signals.handlers_kept():
        signals.ignore([signal.SIGINT])
        with signals.handled():
            send(signal.SIGINT)
            assert not signals.noted()
            assert signal.getsignal(signal.SIGTERM) is signals.hear
    signals.forget()
    with signals.handled():
        assert signal.getsignal(signal.SIGINT) is signals.hear
