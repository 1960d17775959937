"""The journal of a sweep against what full disks, kills and other programs leave of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from optuna.storages.journal import JournalFileOpenLock

from swa_cli.analysis.sweep_study import COMPLETE, JOURNAL, RUNNING, Settings, SweepStudy, open_storage
from swa_cli.errors import UserError
from swa_cli.recipe.space import Choices, Parameter, Space

SPACE = Space((Parameter("optimizer.lr", Choices(("0.1", "0.2", "0.3")), ""),))


def study(folder: Path, *, reads_only: bool = False) -> SweepStudy:
    settings = Settings(SPACE, "val_loss", True, "grid", 3, "none", 16)
    return SweepStudy(folder, settings, reads_only=reads_only)


def finish(opened: SweepStudy, *, trials: int) -> None:
    """Run what is left of the first trials."""
    while (claim := opened.claim(limit=trials)) is not None:
        with claim:
            claim.finish(COMPLETE, value=float(claim.texts["optimizer.lr"]))


def journal_of(folder: Path, *, trials: int) -> bytes:
    """Return the journal of finished trials."""
    finish(study(folder), trials=trials)
    return (folder / JOURNAL).read_bytes()


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    """The journal of two trials; another one stands in its place in each test."""
    return journal_of(tmp_path, trials=2)


@pytest.mark.parametrize("removed", [1, 2, 40, 10_000])
@pytest.mark.parametrize("end", [b"", b"\0" * 50, b"\n", b"null\n", b"\xe9\n"])
@pytest.mark.parametrize("is_open", [False, True])
def test_a_torn_end_is_mended_before_the_next_record(tmp_path, whole: bytes, removed: int, end: bytes, is_open) -> None:
    """The end of the last line lost, or of all, and other bytes there: trials as without, and nothing but records.

    A process that has the journal open already meets the same end, where that is not read yet.
    """
    opened = study(tmp_path) if is_open and removed < 10_000 else None
    path = tmp_path / JOURNAL
    with open(path, "ab") as file:
        more = whole.splitlines(keepends=True)[-1] if opened else b""
        file.write(more[: max(len(more) - removed, 0)])
    if opened is None:
        path.write_bytes(whole[: max(len(whole) - removed, 0)])
    with open(path, "ab") as file:
        file.write(end)
    finish(opened or study(tmp_path), trials=3)
    lines = path.read_bytes().splitlines(keepends=True)
    assert all(line.endswith(b"\n") and "op_code" in json.loads(line) for line in lines)
    records = study(tmp_path).records()
    assert [(record.state, record.value) for record in records] == [(COMPLETE, value) for value in (0.1, 0.2, 0.3)]


def test_a_line_that_another_process_writes_just_now_is_no_torn_one(
    tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of a line appears until the lock of the journal is free: both records are there."""
    opened, path = study(tmp_path), tmp_path / JOURNAL
    line = whole.splitlines(keepends=True)[-1]
    acquire = JournalFileOpenLock.acquire
    rest = [line[20:]]

    def wait(lock: JournalFileOpenLock) -> bool:
        with open(path, "ab") as file:
            file.write(rest.pop() if rest else b"")
        return acquire(lock)

    monkeypatch.setattr(JournalFileOpenLock, "acquire", wait)
    before = path.read_bytes()
    path.write_bytes(before + line[:20])
    opened.study.set_user_attr("key", 1)
    after = path.read_bytes()
    assert after.startswith(before + line)
    assert json.loads(after.removeprefix(before + line))["user_attr"] == {"key": 1}


@pytest.mark.parametrize(
    "line",
    [b"\0" * 9, b"", b"null", b"[]", b"{}", b'{"op_code": 99}', b'{"op_code": 4}', b"caf\xe9", b"[" * 3000],
)
def test_damage_before_the_end_names_the_line(tmp_path: Path, whole: bytes, line: bytes) -> None:
    """A line in the fourth place that is no record: an error with its number and a cure, and the file as it was."""
    lines = whole.splitlines()
    damaged = b"\n".join([*lines[:3], line, *lines[3:], b""])
    (tmp_path / JOURNAL).write_bytes(damaged)
    for reads_only in (False, True):
        with pytest.raises(UserError, match="line 4 ") as caught:
            study(tmp_path, reads_only=reads_only)
        assert str(tmp_path / JOURNAL) in caught.value.message
        assert "swa sweep" in caught.value.hint
    assert (tmp_path / JOURNAL).read_bytes() == damaged


@pytest.mark.parametrize(("removed", "states"), [(0, [COMPLETE, COMPLETE]), (1, [COMPLETE, RUNNING]), (10_000, [])])
def test_reading_writes_nothing(tmp_path: Path, whole: bytes, removed: int, states: list[str]) -> None:
    """A study that only reads a whole journal, a cut one and none: the trials of the whole records, and no new byte."""
    folder, path = tmp_path / "copy", tmp_path / "copy" / JOURNAL
    folder.mkdir()
    if removed < len(whole):
        path.write_bytes(whole[: len(whole) - removed])
    before = {file: file.read_bytes() for file in folder.iterdir()}
    opened = study(folder, reads_only=True)
    assert [record.state for record in opened.records()] == states
    assert bool(opened.importances()) == (states == [COMPLETE, COMPLETE])
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_two_open_journals_see_each_other(tmp_path: Path, whole: bytes) -> None:
    """Records that two storages append in turn, read by both."""
    first, second = open_storage(tmp_path, None), open_storage(tmp_path, None)
    for number, storage in enumerate([first, second, second, first]):
        storage.set_study_user_attr(0, f"key {number}", number)
    assert first.get_study_user_attrs(0) == second.get_study_user_attrs(0)
    assert len(first.get_study_user_attrs(0)) == 4
