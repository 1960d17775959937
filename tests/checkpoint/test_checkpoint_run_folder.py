"""The JSON files of a run folder, as full disks and other programs leave them."""

from __future__ import annotations

from pathlib import Path

import pytest

from swa_cli.checkpoint.run_folder import about, folder_of_launch, read_json
from swa_cli.errors import UserError

DAMAGED = [b"", b"{", b"[]", b"3", b"\xe9", b"\0" * 9, b"[" * 3000, b'{"a":' * 3000, None]


@pytest.mark.parametrize("content", DAMAGED)
def test_what_is_no_json_object_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    """Cut, of another type, no UTF-8, nested too deeply, a folder: an error with the file; a launch passes it over."""
    path = tmp_path / "run-001" / "run.json"
    path.parent.mkdir()
    path.mkdir() if content is None else path.write_bytes(content)
    for read in (read_json, about):
        with pytest.raises(UserError) as caught:
            read(path)
        assert str(path) in caught.value.message
    assert folder_of_launch("1", tmp_path, "run") is None


@pytest.mark.parametrize(("text", "lack"), [('{"threads": 1}', "recipe"), ('{"recipe_folder": "/"}', "threads")])
def test_run_json_says_where_and_how(tmp_path: Path, text: str, lack: str) -> None:
    """run.json without one of the two keys that a run needs: refused by that."""
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match=lack):
        about(tmp_path / "run.json")
