"""A sequence of paths in one block of bytes, against a tuple of strings."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swa_cli.data.paths import Paths

PATHS = st.lists(st.text(st.characters(exclude_characters="\0")))  # surrogates, which stand for wrong bytes, included


@given(PATHS, st.slices(8))
def test_it_is_read_as_a_tuple(paths: list[str], part: slice) -> None:
    """Length, items from both ends, slices, iteration, membership and equality."""
    expected, ours = tuple(paths), Paths(paths)
    assert (len(ours), tuple(ours)) == (len(expected), expected)
    assert [ours[place] for place in range(-len(paths), len(paths))] == [*expected, *expected]
    assert tuple(ours[part]) == expected[part]
    assert ours == expected
    assert expected == ours
    assert ours != (*expected, "more")
    assert all(path in ours for path in expected)
    for place in (len(paths), -len(paths) - 1):
        with pytest.raises(IndexError):
            ours[place]


@given(st.lists(PATHS))
def test_parts_are_joined(parts: list[list[str]]) -> None:
    """Joined parts with different starts against the list of all paths; a copy through pickle against both."""
    expected = [path for part in parts for path in part]
    joined = Paths.joined(map(Paths, parts))
    assert joined == expected
    assert pickle.loads(pickle.dumps(joined)) == expected


def test_a_path_takes_little() -> None:
    """The bytes of 10,000 paths under a long root against their last nine characters and eight more."""
    paths = Paths(f"/a/rather/long/root/of/a/dataset/class/{number:05}.jpg" for number in range(10_000))
    assert len(pickle.dumps(paths)) < 10_000 * (9 + 1 + 8) + 500


def test_more_paths_than_are_decoded_at_once() -> None:
    """Iteration over 10,000 paths against the list."""
    paths = [f"{number}/é" for number in range(10_000)]
    assert [*Paths(paths)] == paths


def test_a_null_character_is_refused() -> None:
    """A path that would become two."""
    with pytest.raises(ValueError, match="null"):
        Paths(["a", "b\0c"])


def dirtied(paths: Sequence[str], answer: Connection) -> None:
    """Read all paths in a forked process; answer the bytes of memory that it has then of its own."""
    gc.disable()
    before = own_memory()
    for row in range(len(paths)):
        paths[row]
    answer.send(own_memory() - before)


def own_memory() -> int:
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_Dirty")) * 1024


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the system does not tell whose memory it is")
def test_forked_processes_share_the_memory() -> None:
    """What a process copies while it reads 100,000 paths, against a tuple, of which it counts references."""
    as_tuple = tuple(f"/root/of/a/dataset/{number:06}.jpg" for number in range(100_000))
    copied = []
    for paths in (as_tuple, Paths(as_tuple)):
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=dirtied, args=(paths, theirs))
        process.start()
        copied.append(ours.recv())
        process.join()
    assert copied[0] > 5_000_000
    assert copied[1] < 1_000_000
