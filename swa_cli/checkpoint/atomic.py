"""Write files that are either whole or absent, also in a background thread.

The one idea: content goes to a temporary file beside its place, is made durable, and is then renamed. Whenever the
process or the machine stops, a path holds its old content or its new content, never a part. A file that the background
thread writes keeps this promise, but it is saved only once `BackgroundWriter.wait` has returned.
"""

from __future__ import annotations

import errno
import json
import math
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from swa_cli import temporary


def write_atomic(
    path: Path, write: Callable[[IO[bytes]], object], *, reserve: int = 0, keep: Path | None = None
) -> None:
    """Let `write` fill a temporary file in the same folder, then fsync, rename and fsync the folder.

    Args:
        path: Where the content goes; a symbolic link there is replaced, not followed.
        write: Gets the open file.
        reserve: Bytes to allocate first, so that a full disk is noticed before anything is written.
        keep: Where the old content goes once the new content is durable.

    Raises:
        OSError: No room or no permission: the error names `path`, which is unchanged, and no temporary file is left.
    """
    with temporary.beside(path) as made:
        with open(made, "wb") as file:
            _reserve(file.fileno(), reserve)
            write(file)
            file.truncate()  # drops reserved bytes that were not needed
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(made, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def json_text(values: Mapping[str, Any], *, indent: int | None = None) -> str:
    """Return standard JSON: a number that is not finite becomes null, a byte that is no character becomes `?`."""
    text = json.dumps(_finite(values), indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode(errors="replace").decode()


class BackgroundWriter:
    """A thread that runs one write at a time; leaving the `with` block waits for the last one."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join()  # the error that ended the block says more than that of the write

    def begin(self, write: Callable[[], None]) -> None:
        """Wait for the write before, then start this one, on values that nobody changes any more.

        Raises:
            OSError: The write before failed.
        """
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(write,), name="writer")
        self._thread.start()

    def wait(self) -> None:
        """Return once everything is written.

        Raises:
            OSError: The write failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, write: Callable[[], None]) -> None:
        try:
            write()
        except BaseException as error:  # raised later, in the thread that trains
            self._error = error


def _reserve(descriptor: int, num_bytes: int) -> None:
    if num_bytes and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, num_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # the file system cannot reserve
                raise


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
