"""`swa` in a process of its own, that may be killed and limited without harm to the tests.

The processes are forked from one that has imported what `swa train` needs: a kill costs no seconds of imports.
"""

from __future__ import annotations

import functools
import gc
import math
import multiprocessing
import os
import random
import resource
import signal
import socket
import sys
import tempfile
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing.context import ForkServerProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swa_cli.engine.events import ResultEvent

FILE_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.symlink", "os.truncate", "fcntl.flock")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as `cli.main` has it, before torch is imported
OF_A_TERMINAL = ("COLUMNS", "LINES", "TERM", "CI", "NO_COLOR", "FORCE_COLOR", "COLORTERM")
OF_A_TERMINAL += ("TTY_COMPATIBLE", "TTY_INTERACTIVE")  # of rich
NOTHING: Mapping[str, str] = {}
WHITE_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
SECOND_SAVE, THIRD_SAVE = 4, 7  # `kill_at` within "checkpoints/.last": a save makes, opens and renames that file
DRAWN: set[str] = set()  # kinds of curves that this process has drawn
ENDS_WITHIN_S = 600  # far more than any takes, on a busy machine too
PRELOADED = [
    "swa_cli.cli",
    "swa_cli.analysis.run_output",
    "swa_cli.engine.train",
    "matplotlib.figure",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.launcher.api",
]  # the last three are imported late
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(PRELOADED)  # before any test can make the server, which is one for all of them


def start(
    folder: Path,
    words: Sequence[str],
    *,
    kill_at: int = 0,
    within: str = "",
    by: signal.Signals = signal.SIGKILL,
    counted: Path | None = None,
    largest_file: int | None = None,
    memory: int | None = None,
    terminal: str | None = None,
    environment: Mapping[str, str] = NOTHING,
) -> ForkServerProcess:
    """Start `swa WORDS...` in `folder`.

    Args:
        folder: Where it works; what it says goes to a file there, see `said_in`.
        words: The command line.
        kill_at: It kills itself when it opens, renames, removes ... a file there for the so-many-th time; 0: never.
        within: Only of files whose path has this part.
        by: The signal that it gives itself then.
        counted: Where the number of these events is written.
        largest_file: Bytes that a file may have, as if the disk had no more room.
        memory: Bytes of addresses that it may take beside those it begins with, as if the machine had no more.
        terminal: The device that it is run on, in place of a file.
        environment: What is set there beside what this process has; of a terminal nothing is inherited.
    """
    process = CONTEXT.Process(
        target=_work,
        args=(folder, list(words), kill_at, within, by, counted, largest_file, memory, terminal, dict(environment)),
    )
    process.start()
    return process


def render_blank_figures(setattr_: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let matplotlib build every figure as usual, and write a white pixel or an empty SVG in place of its rendering.

    The curves of a run are built for the first run of their kind: the same columns, averages and scores.
    """
    from matplotlib.figure import Figure

    from swa_cli.analysis import run_output

    draw_curves = run_output._draw_curves

    @functools.wraps(Figure.savefig)
    def savefig(figure: Figure, target: Any, *, format: str = "png", **options: Any) -> None:
        pictures = {
            "png": b64decode(WHITE_PIXEL),
            "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
            "pdf": b"%PDF-1.4",
        }
        with nullcontext(target) if hasattr(target, "write") else open(target, "wb") as file:
            file.write(pictures[format])

    @functools.wraps(draw_curves)
    def draw_first_of_kind(event: ResultEvent) -> None:
        if (kind := _kind_of_curves(event)) in DRAWN:
            leave_white_curves(event)
        else:
            DRAWN.add(kind)
            draw_curves(event)

    setattr_(Figure, "savefig", savefig)
    setattr_(run_output, "_draw_curves", draw_first_of_kind)


def render_real_figures(setattr_: Callable[[Any, str, Any], None]) -> None:
    """Take back what `render_blank_figures` has done."""
    from matplotlib.figure import Figure

    from swa_cli.analysis import run_output

    for owner, name in ((Figure, "savefig"), (run_output, "_draw_curves")):
        setattr_(owner, name, getattr(owner, name).__wrapped__)


def leave_white_curves(event: ResultEvent) -> None:
    """Write a white pixel as the curves of a run."""
    from swa_cli.checkpoint.atomic import write_atomic

    write_atomic(event.folder / "curves.png", lambda file: file.write(b64decode(WHITE_PIXEL)))


def _kind_of_curves(event: ResultEvent) -> str:
    """What decides how curves are drawn, but for the numbers."""

    def numbers(row: Mapping[str, Any]) -> list[str]:
        return sorted(key for key, value in row.items() if isinstance(value, float) and math.isfinite(value))

    shown, rows = event.curves, [numbers(row) for row in event.history]
    workers = {name: [numbers(row) for row in own] for name, own in shown.workers.items()}
    averaging = {name: len(steps) for name, steps in shown.averaging.items()}
    scores = {name: numbers(row) for name, row in event.values["weights"].items()}
    return repr((event.metrics, rows, workers, averaging, scores, len(shown.lr), shown.worker_lr, shown.trained))


def skip_fsync(setattr_: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let `os.fsync` return at once: it waits milliseconds for the disk, and only a loss of power can tell.

    What is checked is its argument, so that a closed file is still an error.
    """
    setattr_(os, "fsync", lambda file: os.fstat(file) and None)


def use_one_thread(setattr_: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let `train.threads: auto` stand for one thread: several wait for each other while other tests use the cores."""
    from swa_cli.engine import hardware

    setattr_(hardware, "num_cores", lambda: 1)


def exit_codes(*processes: BaseProcess) -> list[int | None]:
    """The exit codes of processes once they have ended; None for one that does not end, which is killed."""
    until = time.monotonic() + ENDS_WITHIN_S
    for process in processes:
        process.join(max(0, until - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def said_in(folder: Path) -> str:
    """What the last command there has said."""
    path = _said(folder)
    return path.read_text() if path.exists() else ""


def _said(folder: Path) -> Path:
    return folder.parent / f"{folder.name}-said.txt"  # beside it: it is no event in the folder


def start_ranks(
    folder: Path,
    words: Sequence[str],
    size: int,
    *,
    kill_at: int = 0,
    within: str = "",
    environment: Mapping[str, str] = NOTHING,
) -> list[ForkServerProcess]:
    """Start `swa WORDS...` in `folder` in several processes, as torchrun does; they say what they say in one file.

    Each counts its own dealings with files, and kills itself if it comes to `kill_at`.
    """
    common = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
    _said(folder).unlink(missing_ok=True)
    return [
        start(
            folder,
            words,
            kill_at=kill_at,
            within=within,
            environment={**environment, **{key: str(value) for key, value in (common | ranks).items()}},
        )
        for ranks in ({"RANK": rank, "LOCAL_RANK": rank} for rank in range(size))
    ]


@contextmanager
def failing(kind: str) -> Iterator[int]:
    """The number of an open file that takes nothing: a `full` disk, or a pipe whose reader has `gone`."""
    if kind == "full":
        number = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, number = os.pipe()
        os.close(reader)
    try:
        yield number
    finally:
        os.close(number)


def free_port() -> int:
    """A port that nobody listens at, and none that the system gives away by itself until a run listens there."""
    while True:
        port = random.SystemRandom().randrange(10_000, 30_000)  # by itself Linux gives from 32768 on
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", port)):
                return port


def train(folder: Path, words: list[str], size: int, code: int = 0, **environment: str) -> str:
    """Run `swa WORDS...` in so many processes to this end; what all of them said."""
    processes = start_ranks(folder, words, size, environment=environment)
    codes = exit_codes(*processes)
    said = said_in(folder)
    assert code in codes, said
    assert None not in codes, "a process does not end"
    return said


def _work(
    folder: Path,
    words: list[str],
    kill_at: int,
    within: str,
    by: signal.Signals,
    counted: Path | None,
    largest_file: int | None,
    memory: int | None,
    terminal: str | None,
    environment: dict[str, str],
) -> None:
    from swa_cli import cli
    from swa_cli.analysis import run_output

    gc.freeze()  # a collection would write to the pages of a million objects, and so copy them
    multiprocessing.set_start_method("fork", force=True)  # its loader processes are made as those of a plain `swa`
    os.chdir(folder)
    if terminal is None:
        os.environ["COLUMNS"] = "200"
        ranked = "RANK" in environment
        output = os.open(_said(folder), os.O_WRONLY | os.O_CREAT | (os.O_APPEND if ranked else os.O_TRUNC), 0o666)
    else:
        for name in OF_A_TERMINAL:
            os.environ.pop(name, None)
        os.setsid()  # the device becomes that of the new session
        output = os.open(terminal, os.O_RDWR)
        os.dup2(output, 0)
    os.environ |= environment
    tempfile.tempdir = None  # it is that of the environment again
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, encoding="utf-8") for number in (1, 2))
    num_events, itself = 0, os.getpid()

    def notice(event: str, args: tuple[object, ...]) -> None:
        nonlocal num_events
        if (
            event in FILE_EVENTS
            and os.getpid() == itself
            and (path := os.path.join(folder, str(args[0]))).startswith(str(folder))
            and within in path
        ):
            num_events += 1
            if num_events == kill_at:
                os.kill(os.getpid(), by)

    sys.addaudithook(notice)
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does by itself: then a write fails with EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if memory is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    render_blank_figures()
    run_output._draw_curves = leave_white_curves
    skip_fsync()
    use_one_thread()
    code = cli.run(words)
    if counted is not None:
        counted.write_text(str(num_events))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
