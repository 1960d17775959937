"""Share arguments, options, exit codes and output between the commands.

`--processes N` runs a command in several processes; torchrun is refused for the commands that take one.
"""

from __future__ import annotations

import errno
import gc
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from swa_cli import __version__, signals
from swa_cli.errors import EXIT_USAGE, RecipeError, UserError

if TYPE_CHECKING:
    from swa_cli.report.terminal import Terminal


def exit_codes(*, way_on: str) -> str:
    """Return the end of a help text; `way_on` names the command that continues a stopped run."""
    return f"""\b
Exit codes:
  0    done
  1    the run failed
  2    wrong usage, recipe, data or checkpoint: nothing was run
  130  Ctrl-C; continue with {way_on}
  143  SIGTERM; likewise"""


# For commands that train nothing, and have nothing to continue.
LOOKING_CODES = """\b
Exit codes:
  0    done
  1    it failed
  2    wrong usage, recipe, data or checkpoint: nothing was written
  130  Ctrl-C
  143  SIGTERM"""


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # exit code 1, whoever writes
EXIT_CODES = exit_codes(way_on="`swa train --resume RUN`")

CHANGE = re.compile(r"[A-Za-z_][\w.]*=.*", re.DOTALL)
Changes = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and the answer.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
RecipeOption = Annotated[
    Path | None, typer.Option("--recipe", metavar="RECIPE", help="Recipe of a checkpoint that swa did not write.")
]
AllowCode = Annotated[
    bool,
    typer.Option("--allow-code", help="Import and run the code that the recipe inside names, because you trust it."),
]
Checkpoint = Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint (.pt, .safetensors).")]
Recipe = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Recipe (YAML).", callback=lambda recipe: no_option(recipe))
]
PICTURE_FORMATS = ("png", "svg", "pdf")
PictureFormat = Annotated[
    str | None, typer.Option("--format", metavar="|".join(PICTURE_FORMATS), help="Format of the default file.")
]
PictureWidth = Annotated[
    float | None,
    typer.Option(
        "--width",
        metavar="INCHES",
        min=2,
        max=20,
        callback=lambda width: _finite(width),
        help="Width for print, such as 3.3 for a column of a paper.",
    ),
]
NewFile = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="FILE", help="New file to write; default: stdout.")
]


def no_option(recipe: str | None) -> str | None:
    """Return the path of a recipe as commands take it anywhere: `./-x.yaml`, which no command takes for an option."""
    return f"./{recipe}" if recipe is not None and recipe.startswith("-") else recipe


def _finite(number: float | None) -> float | None:
    """Refuse NaN, which is neither below nor above a limit."""
    if number is not None and not math.isfinite(number):
        raise typer.BadParameter(f"{number} is not a number.")
    return number


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"swa {__version__}")
        raise typer.Exit


def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show the traceback of an error.")] = False,
) -> None:
    """Declare the options of every command; `run` itself looks for --traceback."""
    signals.forget()  # in a notebook, those that an earlier command ended with
    if context.invoked_subcommand not in (None, "train"):
        refuse_torchrun(f"swa {context.invoked_subcommand}")


def answer(result: dict[str, Any], *, as_json: bool) -> None:
    """Print the JSON object, if --json was given."""
    if as_json:
        from swa_cli.checkpoint.atomic import json_text

        typer.echo(json_text(result))


def require_format(form: str | None) -> None:
    """Refuse a format of pictures that there is not."""
    if form is not None and form not in PICTURE_FORMATS:
        raise typer.BadParameter(f"--format {form}: choose {', '.join(PICTURE_FORMATS)}")


@contextmanager
def importing() -> Iterator[None]:
    """Import what needs torch while the block runs, without garbage collection.

    The collector takes a fifth of the time of such imports, and finds nothing: modules live to the end. So their
    objects are also left out of all later collections. Signals wait for the end of the block: libraries turn what is
    raised inside their imports into errors of their own.
    """
    is_first, is_enabled = "torch" not in sys.modules, gc.isenabled()
    gc.disable()
    try:
        with signals.deferred():
            yield
        signals.check()
    finally:
        if is_enabled:
            gc.enable()
        if is_first:
            gc.freeze()


def sources_and_changes(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Tell files and folders from KEY=VALUE changes; a file with such a name is written ./lr=1.pt."""
    changes = [word for word in words if CHANGE.fullmatch(word)]
    sources = [Path(word) for word in words if not CHANGE.fullmatch(word)]
    if not sources:
        raise typer.BadParameter("name a run folder, snapshots or other checkpoints")
    return sources, changes


def root_change(out: Path | None) -> list[str]:
    """Return the change of output.root that `-o DIR` stands for."""
    return [] if out is None else [f"output.root={json.dumps(str(out), ensure_ascii=False)}"]


def deliver(text: str, out: Path | None) -> None:
    """Print a text, or write it to a new file.

    Raises:
        UserError: The file exists already, or cannot be written there.
        OSError: There is no room for it.
    """
    if out is None:
        typer.echo(text, nl=False)
        return
    hint = "name another file with -o"
    if os.path.lexists(out):
        raise UserError(f"{out}: already exists and is not overwritten", hint=hint)
    from swa_cli.checkpoint.atomic import write_atomic

    try:
        content = text.encode()  # fails before there is a file
        write_atomic(out, lambda file: file.write(content))
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{out}: cannot be written ({reason})", hint=hint) from error
    from swa_cli.report.terminal import Terminal

    Terminal().note(f"wrote {out}")


def start(words: Sequence[str], *, processes: str, max_restarts: int, terminal: Terminal) -> NoReturn:
    """Run `swa train WORDS` in several processes, say which were killed, and exit with their code."""
    refuse_torchrun("--processes")
    calm_torch()
    from swa_cli.engine import distributed

    number = distributed.one_a_gpu() if processes == "auto" else int(processes) if processes.isdecimal() else 0
    if number < 1:
        raise typer.BadParameter(f"--processes: {processes!r} is neither auto nor a number from 1")
    code = distributed.launch(["train", *words], processes=number, max_restarts=max_restarts, warn=terminal.warning)
    raise typer.Exit(code)


def is_rank0() -> bool:
    """Return whether this process speaks for all that torchrun has started; one process does."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def calm_torch() -> None:
    """Keep torch from printing a stack trace per connection that ends with a process; it reads this when imported."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def refuse_torchrun(what: str) -> None:
    """Refuse a command or option that is for one process where torchrun has started several; rank 0 says so.

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
