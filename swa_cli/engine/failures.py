"""Explain failures of disk, memory and user code; stop at signals; say how to continue the run.

A failure never touches the last good checkpoint, so each message ends with the command that continues from it. Of
Ctrl-C and SIGTERM, the first waits for a safe point, where all state is consistent: between two updates, or anywhere in
validation, which only reads. The second stops at once.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import torch

from swa_cli import signals, units
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.engine import user_code
from swa_cli.engine.events import Stopped
from swa_cli.errors import EXIT_FAILED, EXIT_USAGE, NOTHING_WAS_RUN, RecipeError, UserError
from swa_cli.recipe import load

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
# What torch says where the machine, not a GPU, is out of memory; it has no class for that.
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory")


def run_error(message: str, *, hint: str) -> UserError:
    """Return the error for a failure after something was run: exit code 1."""
    return UserError(message, hint=hint, exit_code=EXIT_FAILED)


def diverged(what: str) -> UserError:
    """Return the error of a run whose loss or weights are not finite."""
    hint = "start again with a lower optimizer.lr, or with train.clip_norm=1"
    return UserError(what, hint=hint, exit_code=EXIT_FAILED)


@contextmanager
def explain(folder: RunFolder, *, ways: Callable[[], Sequence[str]] = tuple) -> Iterator[None]:
    """Turn failures of disk and memory into one message and exit code 1; say how to continue the run.

    `ways` returns a sentence for each other thing that can be done with what is saved.
    """

    def others() -> Sequence[str]:
        return ways() if _has_saved(folder.run_to_resume) else ()

    try:
        yield
    except UserError as error:
        error.exit_code = EXIT_FAILED  # whatever it was, something was run
        if _has_saved(folder.run_to_resume):
            error.hint = "; ".join((error.hint, how_to_continue(folder), *ways()))
        raise
    except OSError as error:
        explained = _explain_os_error(error, folder)
        explained.hint = "; ".join((explained.hint, *others()))
        raise explained from error
    except BaseException as error:  # in a person's own code, most likely
        for way in (how_to_continue(folder), *others()):
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
            remedy += " and twice the train.grad_accum_steps, for the same optimizer step"
        raise UserError(
            f"out of memory with a batch of {batch_size} images", hint=remedy, exit_code=EXIT_FAILED
        ) from error


def _has_saved(folder: RunFolder) -> bool:
    return folder.last.is_file() or folder.previous.is_file()


def how_to_continue(folder: RunFolder) -> str:
    """Return how to continue a run from its last good state."""
    folder = folder.run_to_resume
    if not _has_saved(folder):
        return "nothing was saved yet: start it again"
    good = folder.last if folder.last.is_file() else folder.previous
    command = f"`{runnable(('swa', 'train', '--resume', folder.path), folder)}`"
    if folder.command is not None:
        command = f"the same `swa {folder.command}`"
    return f"its last good state is {good}: continue with {command}"


def runnable(words: Iterable[object], folder: RunFolder) -> units.Command:
    """Return a command on a run that works as printed: with --allow-code if the recipe names code."""
    words = [*words]
    with suppress(RecipeError, UserError, OSError):  # a recipe that cannot be read any more
        return user_code.command(words, load.load(folder.recipe).recipe)
    return units.command(words)


def _explain_os_error(error: OSError, folder: RunFolder) -> UserError:
    reason = error.strerror or str(error)
    if not folder.path.is_dir():
        return UserError(f"{folder.path}: was removed during the run", hint="start it again", exit_code=EXIT_FAILED)
    if error.errno in FULL:
        message, remedy = f"{folder.path}: no room to write ({reason})", "free space"
    elif error.errno in FORBIDDEN:
        message, remedy = f"{folder.path}: cannot be written ({reason})", "make it writable"
    else:
        message, remedy = f"{error.filename or folder.path}: {reason}", "correct that"
    return UserError(message, hint=f"{remedy}; {how_to_continue(folder)}", exit_code=EXIT_FAILED)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the machine or a GPU ran out of memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error) for words in OUT_OF_MEMORY)


class Interrupt:
    """Defers the first signal while its block runs, until `check`; a second one is raised at once, see `signals`.

    The signal handler calls `announce` for the first one. `agree` returns the largest number that any process of the
    run passes to it, so that all stop at the same point; each passes every safe point. A signal that comes after the
    last `check` stays noted: it is of no account to a run that is complete, and stops what would follow that run.
    """

    def __init__(self, announce: Callable[[], None], *, agree: Callable[[int], int] = lambda number: number) -> None:
        self._announce = announce
        self._agree = agree
        self._deferral = ExitStack()

    def __enter__(self) -> Interrupt:
        self._deferral.enter_context(signals.deferred(self._announce))
        self._deferral.enter_context(signals.handled())
        return self

    def __exit__(self, *_: object) -> None:
        self._deferral.close()

    def check(self) -> None:
        """Stop at this safe point if a signal has arrived.

        Raises:
            Stopped: A signal has arrived, here or in another process.
        """
        if number := self._agree(signals.noted()):
            raise Stopped(signals.ending(number))
