"""Explain failures of disk, memory and user code, and how to continue the run.

A failure never touches the last good checkpoint, so each message ends with the command that continues from it.
"""

from __future__ import annotations

import errno
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch

from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.engine.user_code import named_code
from swa_cli.errors import EXIT_FAILED, EXIT_USAGE, NOTHING_WAS_RUN, RecipeError, UserError
from swa_cli.recipe import load

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
# What torch says when the memory of the machine is at its end; it has no class for it, as it has for a GPU.
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory")


def run_error(message: str, *, hint: str) -> UserError:
    """Return the error for a failure after something was run: exit code 1."""
    return UserError(message, hint=hint, exit_code=EXIT_FAILED)


@contextmanager
def explain(folder: RunFolder, *, ways: Callable[[], Sequence[str]] = tuple) -> Iterator[None]:
    """Turn failures of disk and memory into one message and exit code 1; say how to continue the run.

    Args:
        folder: Of the run.
        ways: What else can be done with what is saved, a sentence each.
    """
    try:
        yield
    except UserError as error:
        error.exit_code = EXIT_FAILED  # whatever it was, something was run
        if has_saved(folder.run_to_resume):
            error.hint = "; ".join((error.hint, how_to_continue(folder), *ways()))
        raise
    except OSError as error:
        told_error = _of_files(error, folder)
        told_error.hint = "; ".join((told_error.hint, *(ways() if has_saved(folder.run_to_resume) else ())))
        raise told_error from error
    except BaseException as error:  # in a person's own code, most likely
        for way in (how_to_continue(folder), *(ways() if has_saved(folder.run_to_resume) else ())):
            error.add_note(way)
        raise


@contextmanager
def before_a_run() -> Iterator[None]:
    """Note on any error, a user's own too, that nothing was run; explain a lack of memory."""
    try:
        yield
    except UserError as error:
        error.exit_code = EXIT_USAGE
        error.add_note(NOTHING_WAS_RUN)
        raise
    except BaseException as error:
        if is_out_of_memory(error):
            hint = "free memory, or choose a smaller network, fewer averages, fewer or smaller images"
            raise UserError(f"out of memory before the first batch. {NOTHING_WAS_RUN}", hint=hint) from error
        error.add_note(NOTHING_WAS_RUN)
        raise


@contextmanager
def memory(key: str, batch_size: int) -> Iterator[None]:
    """Name the batch that did not fit into memory, and what halves it; `key` is its size in the recipe."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        half = max(batch_size // 2, 1)
        remedy = f"start again with {key}={half}"
        if key == "train.batch_size":
            remedy += " and twice the train.grad_accum_steps, which makes the same step of the optimizer"
        raise UserError(
            f"out of memory with a batch of {batch_size} images", hint=remedy, exit_code=EXIT_FAILED
        ) from error


def has_saved(folder: RunFolder) -> bool:
    """Return whether the run can be continued from a save."""
    return folder.last.is_file() or folder.previous.is_file()


def how_to_continue(folder: RunFolder) -> str:
    """Return how to continue a run from its last good state."""
    folder = folder.run_to_resume
    if not has_saved(folder):
        return "nothing was saved yet: start it again"
    good = folder.last if folder.last.is_file() else folder.previous
    command = "the same `swa repeat`" if folder.is_in_repeat else f"`{_resume(folder)}`"
    return f"its last good state is {good}: continue with {command}"


def _resume(folder: RunFolder) -> str:
    return runnable(("swa", "train", "--resume", folder.path), folder)


def runnable(words: Iterable[object], folder: RunFolder) -> str:
    """Return a command on a run that works as printed: with --allow-code if the recipe names code."""
    is_own = False
    with suppress(RecipeError, UserError, OSError):  # a recipe that cannot be read any more
        is_own = bool(named_code(load.load(folder.recipe).recipe))
    return shlex.join(map(str, (*words, *["--allow-code"] * is_own)))


def _of_files(error: OSError, folder: RunFolder) -> UserError:
    reason = error.strerror or str(error)
    if not folder.path.is_dir():
        return UserError(
            f"{folder.path}: was removed while the run went on", hint="start it again", exit_code=EXIT_FAILED
        )
    if error.errno in FULL:
        message, remedy = f"{folder.path}: no room to write ({reason})", "free space"
    elif error.errno in FORBIDDEN:
        message, remedy = f"{folder.path}: cannot be written ({reason})", "let it be written"
    else:
        message, remedy = f"{error.filename or folder.path}: {reason}", "mend it"
    return UserError(message, hint=f"{remedy}; {how_to_continue(folder)}", exit_code=EXIT_FAILED)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the machine or a GPU ran out of memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error) for words in OUT_OF_MEMORY)
