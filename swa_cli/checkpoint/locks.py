"""Lock files, so that one process works on a run, or on a part of a folder, at a time.

A lock belongs to an open file and ends with its process, also where the process was killed. So nothing is left behind
that would keep others out, and machines that share a file system may share the work: the system has to pass locks on.
"""

from __future__ import annotations

import io
import os
import re
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import filelock

from swa_cli.errors import UserError

# A link in the place of the file is not followed. Windows has neither of the last two.
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


def lock(file: io.FileIO, path: Path, *, blocking: bool = False) -> bool:
    """Lock an open file until it is closed or this process ends; return False if another process holds it.

    Args:
        file: It is open for writing, which locks over NFS require.
        path: What an error names.
        blocking: Wait for other processes.

    Raises:
        UserError: The file system has no locks.
    """
    try:
        is_ours = filelock.lock_descriptor(file.fileno(), blocking=blocking)
    except OSError as error:
        message = f"{path}: cannot be locked against other processes ({error.strerror})"
        raise UserError(message, hint="use a folder on another file system") from error
    if is_ours and hasattr(os, "register_at_fork"):  # loader processes would keep the lock of a killed run
        os.register_at_fork(after_in_child=partial(_close, weakref.ref(file)))
    return is_ours


def take(path: Path) -> io.FileIO | None:
    """Open and lock a file, which is made if there is none; None if another process holds it.

    Raises:
        UserError: It cannot be opened or locked.
    """
    file = opened(path)
    if lock(file, path):
        return file
    file.close()
    return None


@contextmanager
def holding(path: Path) -> Iterator[None]:
    """Wait for the lock of a file, which is made if there is none, and hold it while the block runs.

    Raises:
        UserError: It cannot be opened or locked.
    """
    with opened(path) as file:
        lock(file, path, blocking=True)
        yield


def holder(file: io.FileIO) -> str:
    """Return the process that holds the lock of a file, such as ` (process 42)`, if the system tells it."""
    try:
        inode, lines = os.fstat(file.fileno()).st_ino, Path("/proc/locks").read_text().splitlines()
    except OSError:
        return ""
    found = (re.search(rf" FLOCK .* (\d+) \w+:\w+:{inode} ", line) for line in lines)
    return next((f" (process {match[1]})" for match in found if match and match[1] != "0"), "")


def opened(path: Path) -> io.FileIO:
    """Open a file to be locked, for appending; it is made if there is none.

    Raises:
        UserError: It cannot be opened.
    """
    try:
        return io.FileIO(os.open(path, _FLAGS, 0o666), "a")
    except OSError as error:
        reason = "is a symbolic link" if path.is_symlink() else error.strerror
        raise UserError(f"{path}: cannot be written ({reason})", hint="let it be a file of yours") from error


def _close(file: weakref.ref[io.FileIO]) -> None:
    if (found := file()) is not None:
        found.close()
