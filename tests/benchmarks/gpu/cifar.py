"""CIFAR-10 as a folder of JPEG files: of the 50,000 training images a tenth of each class is kept to score."""

from __future__ import annotations

import os
import random
import tarfile
from pathlib import Path

SPLITS = ("train", "test")
TEST_SHARE = 10  # one in so many


def folder(source: Path, out: Path) -> Path:
    """Return a folder with train/ and test/, links of a choice that is always the same; it is made once.

    Args:
        source: A folder `CLASS/*.jpg`, perhaps within others, or an archive (.tar, .tar.gz, .tar.xz) of one.
        out: Where the files of an archive and the links are kept.
    """
    made = out / "cifar"
    if made.exists():
        return made
    out.mkdir(parents=True, exist_ok=True)
    images = _unpacked(source, out) if source.is_file() else source
    classes = sorted({path.parent for path in images.rglob("*.jpg")})
    unfinished = out / f"cifar.{os.getpid()}"
    rng = random.Random(0)
    for each in classes:
        files = sorted(each.glob("*.jpg"))
        rng.shuffle(files)
        count = len(files) // TEST_SHARE
        for split, chosen in zip(SPLITS, (files[count:], files[:count]), strict=True):
            target = unfinished / split / each.name
            target.mkdir(parents=True)
            for path in chosen:
                (target / path.name).symlink_to(path.resolve())
    unfinished.rename(made)
    return made


def _unpacked(archive: Path, out: Path) -> Path:
    target = out / "cifar_files"
    if not target.exists():
        unfinished = out / f"cifar_files.{os.getpid()}"
        with tarfile.open(archive) as opened:
            opened.extractall(unfinished, filter="data")
        unfinished.rename(target)
    return target
