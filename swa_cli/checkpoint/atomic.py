"""Files that are whole or not there: written beside their place, made durable, then renamed.

Whenever the process or the machine stops, a path holds its old content or its new one, never a part.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

LEFTOVER = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")  # what a crash between two lines below leaves


def write_atomic(
    path: Path, write: Callable[[IO[bytes]], object], *, reserve: int = 0, keep: Path | None = None
) -> None:
    """Let `write` fill a temporary file in the same folder, then fsync, rename and fsync the folder.

    Args:
        path: Where the content goes; a symbolic link there is replaced, not followed.
        write: Gets the open file.
        reserve: Bytes that are claimed first, so that a full disk is noticed before anything is written.
        keep: Where the old content goes once the new one is durable.

    Raises:
        OSError: No room or no permission; `path` is as it was, and no temporary file is left.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            _reserve(descriptor, reserve)
            write(file)
            file.truncate()  # what was reserved and not needed
            file.flush()
            os.fsync(descriptor)
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only the owner can read
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _reserve(descriptor: int, num_bytes: int) -> None:
    if num_bytes and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, num_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that cannot reserve
                raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
