"""What hostile and mistaken inputs are made of: a row of the table, and what can be put into the working folder."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

GOOD = """\
name: good
model: {name: convnet, args: {width: 4}}
dataset: {name: digits, val: 0}
optimizer: {lr: 0.1}
swa: {start: 50%, every: 0.5ep, eval_every: 1ep}
averages: {swag: {kind: swag, rank: 3, start: 1step, every: 1step}}
train: {epochs: 2, batch_size: 256, device: cpu, threads: 1, precision: fp32}
"""
ESC = "\x1b[31m"
SECONDS = 300  # far more than any row takes, on a busy machine too: what takes longer hangs
MEMORY = 2 << 30  # bytes that a row may take beyond what the process has

Make = Callable[[Path], object]
Edit = Callable[[dict[str, Any]], Any]


class Row(NamedTuple):
    """An input: `make` puts it into the working folder, `words` are run on it, stderr must hold `piece`.

    `piece` is the key or file that is wrong, or the cure; a reason only where it alone tells the row from others.

    The working folder has good.yaml, swa.pt, swag.pt, last_bn.pt and a run after the first of its two epochs.
    """

    name: str
    words: list[str]
    piece: str
    make: Make
    code: int = 2


def nothing(folder: Path) -> None:
    """The folder is good as it is."""


# What can be put into the folder.


def file(name: str, data: str | bytes) -> Make:
    def make(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)

    return make


def fifo(name: str) -> Make:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def directory(name: str) -> Make:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir(parents=True)

    return make


def link(name: str, target: str) -> Make:
    """A link at `name`; what was there goes to `target`, if there was anything."""

    def make(folder: Path) -> None:
        if (folder / name).exists():
            (folder / name).rename(folder / target)
        (folder / name).symlink_to(folder / target)

    return make


def all_of(*makes: Make) -> Make:
    def make(folder: Path) -> None:
        for one in makes:
            one(folder)

    return make


def edited(source: str, target: str, edit: Edit) -> Make:
    """What `edit` makes of the content of a checkpoint: returned, or changed in place."""

    def make(folder: Path) -> None:
        content = torch.load(folder / source, weights_only=True)
        result = edit(content)
        torch.save(content if result is None else result, folder / target)

    return make


def put(path: str, value: Any) -> Edit:
    """Set what stands at a path, such as `averages/swa/count`; a key that begins with `-` is removed."""

    def edit(content: dict[str, Any]) -> None:
        *sections, key = path.split("/")
        for section in sections:
            content = content[int(section) if section.isdigit() else section]
        if key.startswith("-"):
            del content[key[1:]]
        else:
            content[int(key) if key.isdigit() else key] = value

    return edit


def saved(content: Any, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


class Evil:
    """Unpickling it makes the file `trap`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch trap",)
