"""Temporary files and folders: those of a killed process are removed by the next writer, those of a live one stay."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import filelock
import pytest

from swa_cli import temporary


def leave(place: Path, *, is_folder: bool) -> None:
    """Let a process be killed while it fills a temporary file or folder."""
    child = os.fork()
    if child == 0:
        with temporary.beside(place, is_folder=is_folder) as made:
            (made / "part" if is_folder else made).write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("is_folder", [False, True])
def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path, is_folder: bool) -> None:
    """SIGKILL in a block, and another block for the same place: nothing but what it has renamed is there."""
    place = tmp_path / "a"
    leave(place, is_folder=is_folder)
    assert len([*tmp_path.iterdir()]) == 1
    with temporary.beside(place, is_folder=is_folder) as made:
        assert not is_folder or not [*made.iterdir()]
        made.rename(place)
    assert [*tmp_path.iterdir()] == [place]
    leave(place, is_folder=is_folder)
    temporary.remove_leftovers(tmp_path)
    assert [*tmp_path.iterdir()] == [place]


@pytest.mark.parametrize("is_folder", [False, True])
def test_what_is_being_written_stays(tmp_path: Path, is_folder: bool) -> None:
    """A second writer of the same place, and a removal of leftovers, against what the first one has written."""
    with temporary.beside(tmp_path / "a", is_folder=is_folder) as made:
        (made / "part" if is_folder else made).write_text("first")
        with temporary.beside(tmp_path / "a", is_folder=is_folder) as other:
            assert other != made
        temporary.remove_leftovers(tmp_path)
        assert (made / "part" if is_folder else made).read_text() == "first"
    assert not [*tmp_path.iterdir()]


def test_what_another_writer_makes_in_the_same_place_stays(tmp_path: Path) -> None:
    """A block that has renamed its file against the file that another one makes under its name meanwhile."""
    with temporary.beside(tmp_path / "a") as made:
        made.rename(tmp_path / "a")
        made.write_text("of another")
    assert made.read_text() == "of another"


def test_only_its_own_kind_is_removed(tmp_path: Path) -> None:
    """Links, pipes and files of other names in a folder after a removal of leftovers."""
    (tmp_path / "target").write_text("x")
    (tmp_path / ".link.swa-0.tmp").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / ".pipe.swa-0.tmp")
    (tmp_path / ".notes.tmp").write_text("x")
    before = sorted(tmp_path.iterdir())
    temporary.remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == before
    with temporary.beside(tmp_path / "link") as made:
        assert made.name == ".link.swa-1.tmp"


@pytest.mark.parametrize("is_folder", [False, True])
def test_an_error_of_the_disk_names_the_place(tmp_path: Path, is_folder: bool) -> None:
    """An error without a file, as `write` raises it, and one of the temporary file: both name the place."""
    place = tmp_path / "a"
    for name in (None, "temporary"):
        with pytest.raises(OSError, match="No space") as caught, temporary.beside(place, is_folder=is_folder) as made:
            raise OSError(28, "No space left on device", *([] if name is None else [str(made)]))
        assert caught.value.filename == str(place)
    with pytest.raises(OSError, match="other") as caught, temporary.beside(place, is_folder=is_folder):
        raise OSError(2, "No such file", "other")
    assert caught.value.filename == "other"
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_file_that_another_process_has_locked_is_not_taken(
    tmp_path: Path, is_folder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process takes a new file for a leftover before its maker can lock it: the maker makes another one."""
    lock, asked = filelock.lock_descriptor, []

    def second_alone(*words: Any, **options: Any) -> bool:
        asked.append(words)
        return len(asked) > 1 and lock(*words, **options)

    monkeypatch.setattr(filelock, "lock_descriptor", second_alone)
    with temporary.beside(tmp_path / "a", is_folder=is_folder) as made:
        assert made.name == ".a.swa-1.tmp"


def test_an_error_names_the_place_where_the_folder_is_missing(tmp_path: Path) -> None:
    """And not the temporary file."""
    with pytest.raises(FileNotFoundError) as error, temporary.beside(tmp_path / "no/a"):
        pass
    assert error.value.filename == str(tmp_path / "no/a")
