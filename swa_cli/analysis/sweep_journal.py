"""The journal of a sweep: a file with a line of JSON per operation on its Optuna study, which processes share.

A full disk, a kill or a power failure leaves a last line that is no whole record. Optuna's own backend of this format
appends behind it, which joins two records in one line that nobody can read. Here every append mends the end first,
under the lock that Optuna takes as well; reading takes no lock and writes nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileOpenLock

from swa_cli.errors import UserError

HOW_TO_MEND = "move it elsewhere: the same `swa sweep` command makes it again, from the trials that are finished"


def open_journal(path: Path) -> JournalStorage:
    """Open a journal, which is made by the first append.

    Raises:
        UserError: It is not as swa writes it.
    """
    journal = _Journal(path)
    try:
        return JournalStorage(journal)
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:  # a record as Optuna has none
        raise journal.damage() from error


class _Journal(BaseJournalBackend):
    """Reads and appends the records of a file."""

    def __init__(self, path: Path) -> None:
        self._shown, self._path = path, path.absolute()
        # Not the lock that is a link: Optuna would wait forever for one that was left behind and points nowhere here.
        self._lock = JournalFileOpenLock(str(self._path))
        self._offsets = [0]  # of each record that was read, and of what follows

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Iterate over the records from a number on; a last line that is torn, or just being written, is left out.

        Raises:
            UserError: A line before the last is no record.
        """
        del self._offsets[log_number_from + 1 :]
        if not self._path.exists():
            return
        with open(self._path, "rb") as file:
            file.seek(self._offsets[-1])
            lines = file.read().splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            record = _record(line)
            if record is None and number == len(lines):
                return
            self._offsets.append(self._offsets[-1] + len(line))
            if record is None:
                raise self.damage()
            yield record

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append records to the last one that is whole: complete its newline, or cut off what is behind it."""
        text = "".join(f"{json.dumps(log, separators=(',', ':'))}\n" for log in logs)
        self._lock.acquire()
        try:
            with open(self._path, "a+b") as file:  # which writes at the end only
                file.seek(self._offsets[-1])
                last = b"".join(file.read().splitlines(keepends=True)[-1:])
                if last and _record(last) is None:
                    if _record(last + b"\n") is None:
                        file.truncate(file.tell() - len(last))
                    else:
                        file.write(b"\n")
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        finally:
            self._lock.release()

    def damage(self) -> UserError:
        """Return the error that the line that was read last is no record."""
        number = len(self._offsets) - 1
        return UserError(f"{self._shown}: line {number} is not as swa writes it", hint=HOW_TO_MEND)


def _record(line: bytes) -> dict[str, Any] | None:
    """Return the record in a line; None if it is not a whole one."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return values if line.endswith(b"\n") and isinstance(values, dict) and "op_code" in values else None
