"""Make temporary files and folders beside their place, and remove what killed processes have left of them.

One rule: who makes one holds its lock until it is renamed or removed, and the lock ends with the process, also where
that was killed. So one that can be locked is a leftover, wherever its maker ran, and may be removed by whoever meets
it: the next writer of the same file, and who locks the run folder. Names are counted, so that this writer meets it. On
a file system without locks leftovers stay.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import filelock

_NAME = re.compile(r"\..+\.swa-\d+\.tmp", re.DOTALL)
# Windows has none of these, but for O_CREAT and O_EXCL.
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


@contextmanager
def beside(place: Path, *, is_folder: bool = False) -> Iterator[Path]:
    """Yield a new temporary file, or folder, beside `place`, for the block to fill and to rename.

    What the block does not rename is removed.

    Raises:
        OSError: It cannot be made or filled; the error names `place`.
    """
    temporary = place
    try:
        temporary, descriptor = _make(place, is_folder=is_folder)
        try:
            yield temporary
        finally:
            if _is_at(temporary, descriptor):
                _remove(temporary)
            os.close(descriptor)
    except OSError as error:
        name = error.filename  # a path, or the number of an open file
        if error.errno is not None and (name is None or _NAME.fullmatch(Path(str(name)).name)):
            error.filename = str(place)
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders in a folder that no process works on."""
    for path in folder.glob(".*.tmp"):
        if _NAME.fullmatch(path.name):
            _remove_leftover(path)


def _make(place: Path, *, is_folder: bool) -> tuple[Path, int]:
    """Return a new temporary file or folder, and its descriptor, which holds the lock."""
    for number in count():
        path = place.with_name(f".{place.name}.swa-{number}.tmp")
        _remove_leftover(path)
        try:
            if is_folder:
                path.mkdir()
                try:
                    descriptor = os.open(path, os.O_RDONLY | _FLAGS)
                except FileNotFoundError:  # another process has taken it for a leftover
                    continue
            else:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666)
        except FileExistsError:  # another process works on it
            continue
        is_ours = True
        with suppress(OSError):  # without locks nobody takes it for a leftover
            is_ours = filelock.lock_descriptor(descriptor, blocking=False)
        if is_ours and _is_at(path, descriptor):  # else another process has taken it for a leftover before the lock
            return path, descriptor
        os.close(descriptor)
    raise AssertionError("there is always another number")


def _remove_leftover(path: Path) -> None:
    """Remove a temporary file or folder unless a process works on it; what cannot be removed stays."""
    with suppress(OSError):
        is_folder = stat.S_ISDIR(os.lstat(path).st_mode)
        descriptor = os.open(path, (os.O_RDONLY if is_folder else os.O_WRONLY) | _FLAGS)
        try:
            if filelock.lock_descriptor(descriptor, blocking=False) and _is_at(path, descriptor):
                _remove(path)
        finally:
            os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    """Return whether what is open is what stands at a path."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except OSError:
        return False


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
