"""Atomic writes, safe reads and strict loading of checkpoints, against what a crash or a hostile file does."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from swa_cli.checkpoint import loading, reader, safe_load
from swa_cli.errors import UserError


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize(("name", "cut"), [("0", 4), ("1", 4), ("2", 8), ("0", 0)])
def test_a_part_that_is_shorter_than_its_tensors_is_refused(tmp_path: Path, name: str, cut: int) -> None:
    """A file rewritten by zipfile, with right checksums, one part short of its last number: torch refuses it too.

    Whole, it is read: also views of one storage, and tensors without numbers.
    """
    wide = torch.arange(12.0).reshape(3, 4)
    content = {"a": wide, "view": wide[1:], "b": torch.ones(3), "c": torch.ones(2).double(), "none": torch.ones(0)}
    torch.save(content, tmp_path / "whole.pt")
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(tmp_path / "whole.pt") as source, zipfile.ZipFile(path, "w") as target:
        for part in source.namelist():
            data = source.read(part)
            target.writestr(part, data[: len(data) - cut] if part.endswith(f"/data/{name}") else data)
    if cut:
        with pytest.raises(RuntimeError):
            torch.load(path, weights_only=True)
        with pytest.raises(safe_load.DamagedError, match="is damaged"):
            reader.read(path)
    else:
        found = reader.read(path).content
        assert all(torch.equal(found[key], value) for key, value in content.items())


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    """The file after a write that raises half-way against the old content; no temporary file is left."""
    path = tmp_path / "a.pt"
    path.write_bytes(b"old")

    def write(file: object) -> None:
        file.write(b"ne")  # type: ignore[attr-defined]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        reader.write_atomic(path, write)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pt"]


def test_order_is_write_fsync_rename_fsync_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls of one atomic write against the order that survives a power cut."""
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (calls.append(f"fsync {os.path.isdir(f'/proc/self/fd/{fd}')}"), fsync(fd))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), replace(a, b)))
    reader.write_atomic(tmp_path / "a", lambda file: file.write(b"x"))
    assert calls == ["fsync False", "rename", "fsync True"]


@pytest.mark.parametrize("error", [OSError(28, "disk full"), KeyboardInterrupt(), RuntimeError("a process died")])
def test_what_ended_a_save_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """An error of the disk, or one that a signal handler raises inside a write, against what `save` raises."""

    class File(io.BytesIO):
        def write(self, data: bytes) -> int:
            if self.tell() > 500:
                raise error
            return super().write(data)

    monkeypatch.setattr(reader, "write_atomic", lambda path, write, **_: write(File()))
    with pytest.raises(type(error)) as caught:
        reader.save(tmp_path / "a.pt", {"w": torch.zeros(100)})
    assert caught.value is error


def test_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    """A checkpoint whose pickle would create a file: refused, and the file does not exist."""
    trap = tmp_path / "trap"
    for name, write in (("zip.pt", torch.save), ("raw.pt", lambda o, p: p.write_bytes(pickle.dumps(o)))):
        write({"format": 1, "recipe": Evil(trap)}, tmp_path / name)
        with pytest.raises(UserError, match="cannot be read"):
            reader.read(tmp_path / name)
    assert not trap.exists()


def test_flipped_bit_is_found(tmp_path: Path) -> None:
    """One changed byte of a tensor, which torch.load accepts, against the archive's checksum."""
    path = tmp_path / "a.pt"
    torch.save({"w": torch.full((1000,), 1.5)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((8,), 1.5).numpy().tobytes()) + 2] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["w"].ne(1.5).any()  # torch does not notice
    with pytest.raises(UserError, match=r"damaged|checksum"):
        reader.read(path)


@pytest.mark.parametrize("content", [b"", b"hello\n", b"PK\x03\x04", b"\x80\x02K\x01."])
def test_other_files_get_one_message(tmp_path: Path, content: bytes) -> None:
    """Files that are no checkpoint against a UserError, never a traceback of torch."""
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(UserError):
        reader.read(path)


def test_later_format_is_refused(tmp_path: Path) -> None:
    """A checkpoint of format 99 against the one format this version reads."""
    torch.save({"format": 99, "recipe": {}}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="99"):
        reader.read(tmp_path / "a.pt")


def test_mismatch_counts_and_shows_names() -> None:
    """Weights of another network against a message with counts and examples."""
    state = small().state_dict()
    del state["1.bias"]
    state["extra"] = torch.zeros(1)
    state["0.weight"] = torch.zeros(5, 3)
    with pytest.raises(UserError, match=r"1 tensors missing, 1 unexpected, 1 of another shape.*0\.weight"):
        loading.load_weights(small(), state, source="x.pt")


@pytest.mark.parametrize("about", [None, "{", '{"channels": 3}', "[" * 100_000])
def test_metadata_of_an_export_are_checked(tmp_path: Path, about: str | None) -> None:
    """A safetensors file that says `swa export` wrote it, with other metadata than that writes: refused by its key."""
    metadata = {"swa_version": "1", "recipe": "{}", **({} if about is None else {"input": about})}
    path = tmp_path / "a.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata)
    with pytest.raises(UserError, match=r"is not as swa writes it: input"):
        reader.read(path)
    save_file({"weight": torch.zeros(2)}, path, {"input": "of another program"})
    assert reader.read(path).trained_on is None
