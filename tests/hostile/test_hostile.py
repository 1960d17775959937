"""Hostile and mistaken inputs, one row each: exit code 2, what is wrong and a cure on stderr, not a byte written."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from hostile.averages import AVERAGES, as_is, snapshots
from hostile.contents import CONTENTS, POSTERIORS
from hostile.exports import AS_GRAPH, EXPORTS
from hostile.files import FILES
from hostile.images import IMAGES
from hostile.looking import LOOKING
from hostile.making import Row
from hostile.recipes import CHANGES, RECIPES
from hostile.repeats import REPEATS
from hostile.runs import RESUMED
from hostile.starts import STARTS
from hostile.theirs import LAYOUTS, THEIRS
from hostile.usage import USAGE

ROWS = [
    *RECIPES,
    *CHANGES,
    *FILES,
    *CONTENTS,
    *POSTERIORS,
    *THEIRS,
    *LAYOUTS,
    *EXPORTS,
    *RESUMED,
    *IMAGES,
    *STARTS,
    *USAGE,
    *REPEATS,
    *AVERAGES,
    *LOOKING,
]


def tree(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything in a folder: kind, time of the last change, and content."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        held: bytes | str = b""
        if stat.S_ISREG(about.st_mode):
            held = path.read_bytes()
        elif stat.S_ISLNK(about.st_mode):
            held = os.readlink(path)
        found[str(path.relative_to(folder))] = (about.st_mode, about.st_mtime_ns, about.st_ino, held)
    return found


def named(rows: Iterable[Row]) -> list[Any]:
    return [pytest.param(row, id=row.name) for row in rows]


@pytest.mark.parametrize("row", named(ROWS))
def test_refused_in_one_message_and_nothing_written(swa, trained: Path, tmp_path: Path, row: Row) -> None:
    """Exit code, named key or file, a cure, silence on stdout, and the folder before the command against after it."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    row.make(tmp_path)
    before = tree(tmp_path)
    ended = swa(*row.words)
    said = " ".join(ended.err.split())
    assert row.piece in said
    assert "= hint: " in said or "Usage: swa " in said
    assert ended.code == row.code, ended.err
    assert "Traceback" not in ended.err
    assert "`weights_only` set to `False`" not in said  # torch's advice at a file that it cannot read
    assert "\x1b" not in ended.err
    assert ended.out == ""
    assert tree(tmp_path) == before


def test_untouched_folder_is_accepted(swa, trained: Path, tmp_path: Path) -> None:
    """What the rows above start from is good: each command that refuses them there takes it as it is."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    assert swa("eval", "swa.pt", "dataset.mean=auto", "dataset.std=auto").code == 0
    assert swa("eval", "swag.pt", "--draws", "2").code == 0
    assert swa("eval", "last_bn.pt").code == 0
    assert swa("bn-update", "swa.pt", "-o", "bad.pt").code == 0
    assert swa("export", "swa.pt", *AS_GRAPH.split()).code == 0
    assert swa("train", "good.yaml", "--dry-run").code == 0
    assert swa("plan", "good.yaml").code == 0
    assert swa("show", "run").code == 0
    assert swa("compare", "run", "run").code == 0
    assert swa("eval", "run").code == 0
    assert swa("train", "good.yaml", "train.init=swa.pt", "--dry-run").code == 0
    assert swa("train", "--resume", "run").code == 0


def test_untouched_snapshots_are_accepted(swa, trained: Path, tmp_path: Path) -> None:
    """What the rows of `swa average` start from is good: an exact window of the run, and a mean with another file."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    snapshots(as_is, as_is, cumulative=True)(tmp_path)
    assert swa("average", "run", "--window", "5step:10step", "-o", "out.pt").code == 0
    assert swa("average", "swa.pt", "out.pt", "-o", "out-2.pt").code == 0
