"""Atomic writes, also by a thread: order, permissions, copies, and errors raised where the run can report them."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
import torch

from swa_cli.checkpoint.atomic import BackgroundWriter, write_atomic
from swa_cli.checkpoint.reader import copy_to_cpu


def test_writes_are_in_order_and_one_at_a_time() -> None:
    """Three writes of which the first one waits: begun in order, never two at once."""
    seen: list[str] = []
    gate = threading.Event()

    def first() -> None:
        gate.wait()
        seen.append("first")

    with BackgroundWriter() as writer:
        writer.begin(first)
        assert seen == []
        gate.set()
        writer.begin(lambda: seen.append("second"))
        writer.begin(lambda: seen.append("third"))
    assert seen == ["first", "second", "third"]


def test_a_fault_is_raised_once_by_the_next_call() -> None:
    """A write that meets a full disk: the next `wait` raises it, the one after does not."""

    def fail() -> None:
        raise OSError(28, "No space left on device")

    writer = BackgroundWriter()
    writer.begin(fail)
    with pytest.raises(OSError, match="No space"):
        writer.wait()
    writer.wait()


def test_another_fault_is_not_covered() -> None:
    """The fault of the run against that of a write in its block: the run's is raised, after the write has ended."""
    ended: list[bool] = []

    def fail() -> None:
        ended.append(True)
        raise OSError("of the write")

    def run() -> None:
        with BackgroundWriter() as writer:
            writer.begin(fail)
            raise ValueError("of the run")

    with pytest.raises(ValueError, match="of the run"):
        run()
    assert ended == [True]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_file_has_the_mode_of_any_new_file(tmp_path: Path, umask: int) -> None:
    """The permissions of an atomic write against those that the umask gives to `open`."""
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "a.pt", lambda file: file.write(b"x"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.pt").stat().st_mode) == 0o666 & ~umask


def test_a_copy_stays_as_it_was() -> None:
    """Nested tensors against their values before a change in place; everything else is handed on."""
    weights = torch.ones(3)
    copy = copy_to_cpu({"a": [weights, (weights, 1)], "b": "text"})
    weights.zero_()
    assert copy["b"] == "text"
    assert torch.equal(copy["a"][0], torch.ones(3))
    assert torch.equal(copy["a"][1][0], torch.ones(3))
    assert copy["a"][1][1] == 1
