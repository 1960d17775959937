"""`--processes N`: the same command in several processes, and what each of them leaves to the others to say."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import typer

from swa_cli.errors import EXIT_USAGE, RecipeError, UserError
from swa_cli.recipe.schema import Recipe
from swa_cli.report.terminal import Terminal


def start(
    words: Sequence[str], *, processes: str, max_restarts: int, terminal: Terminal, recipe: Recipe | None = None
) -> NoReturn:
    """Run `swa train WORDS` in several processes and end as they do.

    Args:
        words: Without what asks for processes.
        processes: Of the command line.
        max_restarts: Likewise.
        terminal: Hears of processes that were killed.
        recipe: Of a run to begin: what is started again goes on with its folder.
    """
    calm_torch()
    from swa_cli.training import launch
    from swa_cli.training.run_folder import begun_by

    number = launch.one_a_gpu() if processes == "auto" else int(processes) if processes.isdecimal() else 0
    if number < 1:
        raise typer.BadParameter(f"--processes: {processes!r} is neither auto nor a number from 1")
    flags = [word for word in words if word.startswith("--")]

    def again(name: str) -> Sequence[str]:
        begun = begun_by(name, Path(recipe.output.root), recipe.title) if recipe is not None else None
        return ["train", *words] if begun is None else ["train", "--resume", str(begun), "--allow-code", *flags]

    code = launch.launch(again, processes=number, max_restarts=max_restarts, terminal=terminal)
    raise typer.Exit(code)


def calm_torch() -> None:
    """Keep torch from telling, with a stack trace each, which connections ended with a process that has told why.

    It looks at this when it is imported.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


@contextmanager
def one_a_machine() -> Iterator[None]:
    """Of the processes that torchrun starts, let one on each machine tell what is wrong with the recipe."""
    try:
        yield
    except (RecipeError, UserError):
        if os.environ.get("LOCAL_RANK", "0") != "0":
            raise typer.Exit(EXIT_USAGE) from None
        raise
