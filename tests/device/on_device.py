"""`swa` in a process of its own in which torch has the simulated device, and what its host copied and waited for.

A process of its own, since torch keeps the device once it has it, and since it must have it before its first backward
pass.
"""

from __future__ import annotations

import io
import math
import os
import pickle
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from processes import CONTEXT, exit_codes, leave_white_curves, render_blank_figures, skip_fsync, use_one_thread
from device.simulated import DEVICE, Entry, register

Change = Callable[[], None]


@dataclass(frozen=True)
class Told:
    """What a command said, how it ended, and the journal of its host."""

    code: int
    said: str
    journal: list[Entry]

    def within(self, function: str) -> list[Entry]:
        """Return the entries that a function of the project had asked for."""
        return [entry for entry in self.journal if entry.within(function)]


def on_device(folder: Path, *commands: Sequence[str | Path], change: Change | None = None) -> list[Told]:
    """Run commands one after the other in `folder`, with `change` made to the product before; each has to succeed."""
    told = run(folder, *commands, change=change)
    for one in told:
        assert one.code == 0, one.said
    return told


def run(folder: Path, *commands: Sequence[str | Path], change: Change | None = None) -> list[Told]:
    """Run commands one after the other in `folder`, with `change` made to the product before."""
    target = folder / "told.pickle"
    words = [[str(word) for word in command] for command in commands]
    process = CONTEXT.Process(target=_work, args=(folder, words, change, target))
    process.start()
    assert exit_codes(process) == [0], "the process of the device has ended by itself"
    told: list[Told] = pickle.loads(target.read_bytes())
    target.unlink()
    return told


def _work(folder: Path, commands: list[list[str]], change: Change | None, target: Path) -> None:
    from swa_cli import cli
    from swa_cli.analysis import run_output
    from swa_cli.engine import train

    os.chdir(folder)
    os.environ["COLUMNS"] = "200"
    render_blank_figures()
    run_output._draw_curves = leave_white_curves
    skip_fsync()
    use_one_thread()
    train.READ_LOSS_EVERY_S = math.inf  # so that an epoch has one reading, however slow the machine is
    register()
    if change is not None:
        change()
    told = []
    for words in commands:
        DEVICE.journal.clear()
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            code = cli.run(["--traceback", *words])
        told.append(Told(code, said.getvalue(), list(DEVICE.journal)))
    target.write_bytes(pickle.dumps(told))
