"""The lock of a run folder: it keeps other processes out and ends with the process that holds it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.errors import UserError

# Claims the folder, forks a child that lives on as a loader process may, says so, and waits.
HOLDER = """\
import os, sys, time
from pathlib import Path
from swa_cli.checkpoint.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).lock():
    child = os.fork()
    if child == 0:
        sys.stdout.close()
        os.close(1)
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""


def test_the_lock_names_its_process_and_dies_with_it(tmp_path: Path) -> None:
    """A claim from another process, by its number; after it was killed the folder is free, though a child lives on."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        with pytest.raises(UserError) as refused, RunFolder(tmp_path).lock():
            pass
        assert f"{tmp_path}: another process is working on this run (process {holder.pid})" in refused.value.message
        assert (tmp_path / "log.txt").read_text() == ""
        holder.kill()
        holder.wait()
        try:
            os.kill(child, 0)  # it is there
            with RunFolder(tmp_path).lock() as log:
                log.write("free")
        finally:
            os.kill(child, signal.SIGKILL)
    assert (tmp_path / "log.txt").read_text() == "free"


def test_a_log_that_was_left_locks_nothing(tmp_path: Path) -> None:
    """Claims one after the other, the second after an error: the log is the only file, and grows at its end."""
    with contextlib.suppress(ZeroDivisionError), RunFolder(tmp_path).lock() as log:
        log.write("first\n")
        raise ZeroDivisionError
    with RunFolder(tmp_path).lock() as log:
        log.write("second\n")
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]
    assert (tmp_path / "log.txt").read_text() == "first\nsecond\n"


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`No locks available`, as some network file systems answer: the folder and the reason, and not another process."""

    def refuse(descriptor: int, *, blocking: bool) -> bool:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(filelock, "lock_descriptor", refuse)
    with pytest.raises(UserError, match="cannot be locked") as refused, RunFolder(tmp_path).lock():
        pass
    assert str(tmp_path) in refused.value.message
    assert "No locks available" in refused.value.message
    assert "another process" not in refused.value.message
