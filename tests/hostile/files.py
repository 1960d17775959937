"""Files that are no archive of plain tensors: each command that reads a checkpoint refuses them."""

from __future__ import annotations

import gzip
import io
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hostile.making import ESC, GOOD, Evil, Make, Row, directory, fifo, file, link, nothing, saved

# Files that are no archive of plain tensors: each command that reads a checkpoint refuses them.

COMMANDS = {
    "eval bad.pt": "bad.pt",
    "show bad.pt": "bad.pt",
    "bn-update bad.pt": "bad.pt",
    "average bad.pt -o out.pt": "bad.pt",
    "train --resume run": "run/checkpoints/last.pt",
}

BEFORE_A_NAME = (["show"], ["eval"], ["bn-update"], ["train", "--resume"])


def everywhere(name: str, piece: str, make: Callable[[str], Make]) -> Iterator[Row]:
    """A row a command; `make` is told where the command looks."""
    for command, target in COMMANDS.items():
        yield Row(f"{command.split()[0]}-{name}", command.split(), piece, make(target))


def unreadable(name: str, data: bytes, piece: str = "cannot be read as a checkpoint") -> Iterator[Row]:
    return everywhere(name, piece, lambda target: file(target, data))


def damaged(name: str, piece: str, damage: Callable[[bytes], bytes]) -> Iterator[Row]:
    """What `damage` makes of a good checkpoint."""
    return everywhere(
        name, piece, lambda target: lambda folder: file(target, damage((folder / "swa.pt").read_bytes()))(folder)
    )


def flipped(data: bytes) -> bytes:
    """One bit of one weight."""
    weight = torch.load(io.BytesIO(data), weights_only=True)["state_dict"]["classifier.weight"]
    place = data.index(weight.numpy().tobytes())
    return data[: place + 2] + bytes([data[place + 2] ^ 1]) + data[place + 3 :]


def archive(method: int, parts: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in parts.items():
            file.writestr(name, data)
    return buffer.getvalue()


def deflated() -> bytes:
    """16 MB of zeros that take 16 kB."""
    with zipfile.ZipFile(io.BytesIO(saved({"w": torch.zeros(1 << 22)}))) as plain:
        return archive(zipfile.ZIP_DEFLATED, {part: plain.read(part) for part in plain.namelist()})


def numpy_archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, w=np.zeros(3))
    return buffer.getvalue()


def torchscript() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), buffer)
    return buffer.getvalue()


def dangling(folder: Path) -> None:
    """The last good state of the run is on a disk that is not there now."""
    (folder / "run/checkpoints/last.pt").unlink()
    (folder / "run/checkpoints/last.pt").symlink_to("/nowhere/last.pt")


FILES = [
    *unreadable("empty", b"", "it is empty"),
    *unreadable("text", b"hello\n", "torch.save has not written it"),
    *unreadable("web-page", b"<!DOCTYPE html><html>404</html>"),
    *unreadable("noise", bytes(range(256)) * 8),
    *unreadable("recipe", GOOD.encode()),
    *unreadable("zip-signature", b"PK\x03\x04", "take another copy of the file"),
    *unreadable("gzip", gzip.compress(b"hello", mtime=0)),
    *unreadable(
        "other-zip",
        archive(zipfile.ZIP_STORED, {"readme": b"hello"}),
        "is a zip archive that torch.save has not written",
    ),
    *unreadable("escapes-in-zip", archive(zipfile.ZIP_STORED, {f"{ESC}/data.pkl": b"\x80\x02K\x01."})),
    *unreadable("numpy", numpy_archive(), "is an archive of NumPy arrays"),
    *unreadable("torchscript", torchscript(), "torch.jit.load("),
    *unreadable("whole-model", saved(nn.Linear(2, 2))),
    *unreadable("code", saved({"format": 1, "recipe": Evil()})),
    *unreadable("code-legacy", saved({"format": 1, "recipe": Evil()}, zipped=False)),
    *unreadable("code-pickle", pickle.dumps({"format": 1, "recipe": Evil()})),
    *unreadable("code-old-protocol", pickle.dumps(Evil(), protocol=0)),
    *unreadable("truncated-legacy", saved({"w": torch.zeros(100)}, zipped=False)[:-100]),
    *unreadable("deflated", deflated(), ".pt: "),
    *damaged("truncated", "its end is missing", lambda data: data[:-100]),
    *damaged("truncated-early", "its end is missing", lambda data: data[:1000]),
    *damaged("flipped-bit", "the checksum of", flipped),
    *everywhere("fifo", ".pt: ", fifo),
    Row("eval-directory", ["eval", "bad.pt"], "bad.pt:", directory("bad.pt")),
    Row("bn-update-directory", ["bn-update", "bad.pt"], "bad.pt:", directory("bad.pt")),
    Row(
        "resume-directory",
        ["train", "--resume", "run"],
        "run/checkpoints/last.pt:",
        directory("run/checkpoints/last.pt"),
    ),
    Row("eval-dangling-link", ["eval", "bad.pt"], "bad.pt:", link("bad.pt", "gone")),
    Row("bn-update-dangling-link", ["bn-update", "bad.pt"], "bad.pt:", link("bad.pt", "gone")),
    Row("resume-dangling-link", ["train", "--resume", "run"], "run/checkpoints/last.pt:", dangling),
    Row("eval-device", ["eval", "/dev/zero"], "/dev/zero:", nothing),
    Row("eval-missing", ["eval", "bad.pt"], "no such checkpoint", nothing),
    Row(
        "eval-predictions-nowhere", ["eval", "swa.pt", "--predictions", "no/x.csv"], "with --predictions FILE", nothing
    ),
    Row("bn-update-run", ["bn-update", "run"], "name a .pt file", nothing),
    *(Row(f"{words[0]}-long-name", [*words, "a" * 300], "shorter name", nothing) for words in BEFORE_A_NAME),
    Row("eval-nul-in-path", ["eval", "a\0b.pt"], "embedded null byte", nothing),
    Row("eval-escapes-in-path", ["eval", f"{ESC}.pt"], "no such checkpoint", nothing),
    Row("bn-update-missing", ["bn-update", "bad.pt"], "no such checkpoint", nothing),
]
