"""Processes that read samples, and what they say when the one that they read for is gone."""

from __future__ import annotations

import subprocess
import sys

import pytest

# multiprocessing hands batches over in a thread of the reading process; a connection that ends before a request is what
# it meets of a main process that was killed.
READING = """
import os, signal, sys, threading, time
from multiprocessing import connection, current_process, resource_sharer
import torch
from swa_cli.data import stream as reading

is_killed = sys.argv[1] == "killed"
reading.PARENT_ENDS_S = 60 if is_killed else 0.1

class Images(torch.utils.data.Dataset):
    def __getitem__(self, row):
        tell, has_told = sys.excepthook, threading.Event()
        sys.excepthook = lambda *error: (tell(*error), has_told.set())
        address, _ = resource_sharer.DupFd(0)._id
        connection.Client(address, authkey=current_process().authkey).close()
        if is_killed:
            os.kill(os.getppid(), signal.SIGKILL)
        if not has_told.wait(30):
            os._exit(1)
        if is_killed:
            os._exit(0)
        return torch.zeros(1, 2, 2), 7

one = reading.Pass(rows=torch.arange(1), spans=[slice(0, 1)], seed=0, key=(), workers=1)
batches = reading.stream(Images(), one)
print([labels.tolist() for _, labels in batches])
"""


@pytest.mark.parametrize(
    ("parent", "code", "said"), [("alive", 0, "[[7]]\n"), ("killed", -9, "")], ids=["alive", "killed"]
)
def test_only_a_process_that_is_alive_is_complained_of(parent: str, code: int, said: str) -> None:
    """A connection that ends in a reading process: a traceback, and none once the main process was killed."""
    ended = subprocess.run([sys.executable, "-c", READING, parent], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (code, said)
    assert ("EOFError" in ended.stderr) == (parent == "alive"), ended.stderr
    assert bool(ended.stderr) == (parent == "alive"), ended.stderr
