"""Define the command line: each command parses its arguments, calls one function and prints one answer.

Nothing is computed here. The commands import torch and what needs it inside their functions, so `--help` and recipe
errors come without it. Only `run` turns exceptions into messages and exit codes.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import sys
import traceback as traceback_module
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, NoReturn

import typer
import typer.core

from swa_cli import signals
from swa_cli.cli import (
    average,
    bn_update,
    compare,
    doctor,
    evaluate,
    export,
    find_lr,
    plan,
    plot,
    predict,
    recipes,
    repeat,
    report,
    show,
    soup,
    sweep,
    train,
)
from swa_cli.cli.shared import EXIT_CODES, NO_ROOM, calm_torch, options
from swa_cli.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    EXIT_USAGE,
    NOTHING_WAS_RUN,
    RecipeError,
    Terminated,
    UserError,
)

# What is said of an option's value, by the kind of error that pydantic finds for typer.
EXPECTED = {
    "int_parsing": "{input}: write a whole number.",
    "float_parsing": "{input}: write a number.",
    "greater_than_equal": "{input}: write a number of at least {ge:g}.",
    "less_than_equal": "{input}: write a number of at most {le:g}.",
    "value_error": "{error}",
}


class Commands(typer.core.TyperGroup):
    """The commands, listed in the help each with its whole sentence; typer cuts it at the end of the line."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; say what is wrong with a value of an option in words for people."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            if isinstance(error.__cause__, ValueError) and hasattr(error.__cause__, "errors"):
                [found, *_] = error.__cause__.errors()
                if words := EXPECTED.get(found["type"]):
                    error.message = words.format(input=found["input"], **found.get("ctx", {}))
            raise

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the names of the commands and the first sentences of their help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, each.get_short_help_str(limit=1000)) for name, each in self.commands.items()])


app = typer.Typer(
    name="swa",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train image models with Stochastic Weight Averaging, from one YAML recipe.",
    epilog=f"""\b
Examples:
  swa train digits
  swa train digits optimizer.lr=0.2 train.epochs=30
  swa eval runs/latest/checkpoints/swa.pt

{EXIT_CODES}""",
)
app.callback()(options)
app.command("new", epilog=recipes.NEW_EPILOG)(recipes.new)
app.command("recipes", epilog=recipes.RECIPES_EPILOG)(recipes.recipes)
app.command("plan", epilog=plan.EPILOG)(plan.plan)
app.command("train", epilog=train.EPILOG)(train.train)
app.command("repeat", epilog=repeat.EPILOG)(repeat.repeat)
app.command("find-lr", epilog=find_lr.EPILOG)(find_lr.find_lr)
app.command("sweep", epilog=sweep.EPILOG)(sweep.sweep)
app.command("bn-update", epilog=bn_update.EPILOG)(bn_update.bn_update)
app.command("eval", epilog=evaluate.EPILOG)(evaluate.evaluate)
app.command("predict", epilog=predict.EPILOG)(predict.predict)
app.command("average", epilog=average.EPILOG)(average.average)
app.command("soup", epilog=soup.EPILOG)(soup.soup)
app.command("export", epilog=export.EPILOG)(export.export)
app.command("show", epilog=show.EPILOG)(show.show)
app.command("compare", epilog=compare.EPILOG)(compare.compare)
app.command("doctor", epilog=doctor.EPILOG)(doctor.doctor)
app.command("schema", epilog=recipes.SCHEMA_EPILOG)(recipes.schema)
app.command("plot", epilog=plot.EPILOG)(plot.plot)
app.command("report", epilog=report.EPILOG)(report.report)


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    _occupy_streams()
    signals.install()
    # Its warnings are not for people who run a command: of a home folder that is read-only, of fonts that are searched.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    if "WORLD_SIZE" in os.environ:  # started by torchrun
        calm_torch()
    code = run(sys.argv[1:])
    signals.ignore()  # all output is done, and they would only raise during interpreter shutdown
    if "WORLD_SIZE" in os.environ:
        # Threads of gloo that still hold tensors abort Python during interpreter shutdown (torch 2.14).
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # it was closed
                stream.flush()
        os._exit(code)
    gc.freeze()  # the collections at shutdown take up to a second over the million objects of torch
    sys.exit(code)


def _occupy_streams() -> None:
    """Open os.devnull where stdin, stdout or stderr is closed.

    Otherwise the next file that is opened would take its number, and a checkpoint what is written to stderr.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the lowest number that is free is this one
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def run(words: list[str]) -> int:
    """Run one command and return its exit code; show a traceback only with --traceback."""
    try:
        code = _run(words)
        return signals.exit_code() or code  # a signal may have been lost on its way to here
    finally:
        signals.forget()


def _run(words: list[str]) -> int:
    try:
        command = _command()
        if "_SWA_COMPLETE" in os.environ:  # the shell asks for completions
            from swa_cli.cli.complete import attach

            attach(command)
        command(words, prog_name="swa")
        return EXIT_DONE
    except SystemExit as end:  # from typer: help, wrong usage (2), Ctrl-C (130)
        return end.code if isinstance(end.code, int) else EXIT_DONE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Terminated:
        return EXIT_TERMINATED
    except Exception as error:
        if signals.exit_code():  # what the handler raised has become this error
            return EXIT_FAILED
        return _report(error, with_traceback="--traceback" in words)


def _report(error: Exception, *, with_traceback: bool) -> int:
    """Print an error and return its exit code; only here is what prints it imported, which help does not need."""
    from swa_cli.report.errors import notes_of, print_problems, print_user_code_error, print_user_error
    from swa_cli.user_frames import user_frames

    untold = error.__context__
    if isinstance(error, OSError) and hasattr(untold, "format_message"):  # stderr did not take typer's words
        return EXIT_USAGE
    if with_traceback:
        with suppress(OSError):  # likewise
            traceback_module.print_exception(error)
    if isinstance(error, RecipeError):
        print_problems(error.problems, source=error.source)
        return EXIT_USAGE
    if isinstance(error, UserError):
        print_user_error(error.message, hint=error.hint)
        return error.exit_code
    frames = user_frames(error)
    if frames and not (isinstance(error, OSError) and error.errno in NO_ROOM):
        print_user_code_error(error, frames)
        return EXIT_USAGE if NOTHING_WAS_RUN in notes_of(error) else EXIT_FAILED
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        print_user_error(
            f"{error.filename or 'file'}: {error.strerror}", hint="name a file or a folder by a shorter name"
        )
        return EXIT_USAGE
    if isinstance(error, OSError) and error.strerror:
        print_user_error(f"{error.filename or 'file'}: {error.strerror}", hint="free space, or use another folder")
        return EXIT_FAILED
    hint = "; ".join(("this is a mistake of swa: see `swa --traceback ...`", *notes_of(error)))
    print_user_error(f"{type(error).__name__}: {error}", hint=hint)
    return EXIT_FAILED


@cache
def _command() -> Callable[..., Any]:
    """Build the commands and their options once per process: typer takes 15 ms to read all signatures."""
    return typer.main.get_command(app)
