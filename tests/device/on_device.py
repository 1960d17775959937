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
from functools import partial
from pathlib import Path
from typing import Any

from device.simulated import DEVICE, Entry, register
from processes import CONTEXT, exit_codes, leave_white_curves, render_blank_figures, skip_fsync, use_one_thread

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


def on_device(
    folder: Path, *commands: Sequence[str | Path], change: Change | None = None, simulated: bool = True
) -> list[Told]:
    """Run commands of swa one after the other in `folder`, with `change` made to the product before."""
    words = [[str(word) for word in command] for command in commands]
    told: list[Told] = there(folder, partial(_run, words, change), simulated=simulated)
    return told


def there(folder: Path, work: Callable[[], Any], *, simulated: bool = True) -> Any:
    """Return what a function of a module returns in a process that works in `folder`.

    The process has the simulated device, or else only the devices of this machine, whose journal stays empty.
    """
    target = folder / "returned.pickle"
    process = CONTEXT.Process(target=_work, args=(folder, work, target, simulated))
    process.start()
    assert exit_codes(process) == [0], "the process of the device has failed"
    returned = pickle.loads(target.read_bytes())
    target.unlink()
    return returned


def _work(folder: Path, work: Callable[[], Any], target: Path, simulated: bool) -> None:
    os.chdir(folder)
    if simulated:
        register()
    target.write_bytes(pickle.dumps(work()))


def _run(commands: list[list[str]], change: Change | None) -> list[Told]:
    from swa_cli import cli
    from swa_cli.analysis import run_output
    from swa_cli.engine import train

    os.environ["COLUMNS"] = "200"
    render_blank_figures()
    run_output._draw_curves = leave_white_curves
    skip_fsync()
    use_one_thread()
    train.READ_EVERY_S = math.inf  # an epoch has one reading, that of its first batch, however slow the machine is
    if change is not None:
        change()
    told = []
    for words in commands:
        DEVICE.journal.clear()
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            code = cli.run(words)
        told.append(Told(code, said.getvalue(), list(DEVICE.journal)))
    return told
