"""Run a command in several processes (`--processes N`), and refuse torchrun for the commands that take one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import typer

from swa_cli.errors import EXIT_USAGE, RecipeError, UserError
from swa_cli.report.terminal import Terminal


def start(words: Sequence[str], *, processes: str, max_restarts: int, terminal: Terminal) -> NoReturn:
    """Run `swa train WORDS` in several processes and exit with their code.

    Args:
        words: The arguments without --processes and --max-restarts.
        processes: The value of --processes.
        max_restarts: The value of --max-restarts.
        terminal: Shows which processes were killed.
    """
    refuse_torchrun("--processes")
    calm_torch()
    from swa_cli.engine import launch

    number = launch.one_a_gpu() if processes == "auto" else int(processes) if processes.isdecimal() else 0
    if number < 1:
        raise typer.BadParameter(f"--processes: {processes!r} is neither auto nor a number from 1")
    code = launch.launch(["train", *words], processes=number, max_restarts=max_restarts, warn=terminal.warning)
    raise typer.Exit(code)


def is_rank0() -> bool:
    """Return whether this process speaks for all that torchrun has started; one process does."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def calm_torch() -> None:
    """Keep torch from printing a stack trace per connection that ends with a process; it reads this when imported."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def refuse_torchrun(what: str) -> None:
    """Refuse a command or option that is for one process where torchrun has started several; rank 0 says so.

    Args:
        what: The command or option.

    Raises:
        UserError: torchrun has started several processes.
    """
    number, rank = os.environ.get("WORLD_SIZE", "1"), os.environ.get("RANK")
    if number == "1" or rank is None:
        return
    if rank != "0":
        raise typer.Exit(EXIT_USAGE)
    raise UserError(f"{what} is for one process, and torchrun has started {number}", hint="run it without torchrun")


@contextmanager
def one_a_machine() -> Iterator[None]:
    """Let only local rank 0 of the processes that torchrun starts report the problems of a recipe."""
    try:
        yield
    except (RecipeError, UserError):
        if os.environ.get("LOCAL_RANK", "0") != "0":
            raise typer.Exit(EXIT_USAGE) from None
        raise
