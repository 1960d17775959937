"""A folder of a million images: the seconds and the memory of `swa plan`, against those of a folder of 2,000."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.torture

RECIPE = """\
name: many
model: {name: convnet, args: {width: 4}}
dataset: {name: image_folder, root: ROOT, image_size: 64, mean: imagenet, std: imagenet, augment: {flip: true}}
train: {epochs: 2, batch_size: 64, threads: 1, precision: fp32}
eval: {batch_size: 64}
optimizer: {lr: 0.1}
schedule: {name: cosine}
swa: {start: 75%}
"""
# `swa`, and what it took: seconds of processors, so that other work on the machine does not count, and memory without
# that of loader processes.
MEASURED = """\
import json, os, pathlib, sys
from swa_cli.cli import main
try:
    main()
finally:
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    times = os.times()
    pathlib.Path("used.json").write_text(json.dumps([sum(times[:4]), int(peak.split()[1]) / 1e6]))
"""


class Used(NamedTuple):
    seconds: float
    gigabytes: float
    data: str  # what the plan says of them


@pytest.fixture
def roots(tmp_path: Path) -> Iterator[dict[int, Path]]:
    """Folders by their number of images: in each class, links to one file."""
    found = {}
    for number, num_classes in ((2_000, 2), (1_000_000, 1_000)):
        found[number] = tmp_path / f"of-{number}"
        for label in range(num_classes):
            folder = found[number] / f"n{label:08}"
            folder.mkdir(parents=True)
            first = folder / "00000.jpg"
            Image.fromarray(np.full((48, 64, 3), label % 256, np.uint8)).save(first)
            for each in range(1, number // num_classes):
                os.link(first, folder / f"{each:05}.jpg")
    yield found
    for root in found.values():
        shutil.rmtree(root)


def plan(folder: Path, root: Path) -> Used:
    (folder / "many.yaml").write_text(RECIPE.replace("ROOT", json.dumps(str(root))))
    words = [sys.executable, "-c", MEASURED, "plan", "many.yaml"]
    ended = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    seconds, gigabytes = json.loads((folder / "used.json").read_text())
    (data,) = (line for line in (ended.stdout + ended.stderr).splitlines() if "image_folder:" in line)
    return Used(seconds, gigabytes, data.strip())


def test_a_million_files(tmp_path: Path, roots: dict[int, Path]) -> None:
    """Listed in under 60 s and 1 GB; a plan from the index takes under 5 s; both against a folder of 2,000 images."""
    few = plan(tmp_path, roots[2_000])
    listed = plan(tmp_path, roots[1_000_000])
    (index,) = (tmp_path / "runs" / ".index").iterdir()
    made = index.stat().st_mtime_ns
    again = plan(tmp_path, roots[1_000_000])
    print(few, listed, again)
    assert "900,000 train, 100,000 val" in again.data
    assert again.data == listed.data
    assert index.stat().st_mtime_ns == made, "it is made once"
    assert listed.seconds - few.seconds < 60
    assert again.seconds - few.seconds < 5
    assert again.seconds < listed.seconds
    assert max(listed.gigabytes, again.gigabytes) < 1
    assert again.gigabytes - few.gigabytes < 0.15
