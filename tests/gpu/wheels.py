"""Print what `make gpu` needs beside torch and torchvision, which a machine with a GPU has: `make gpu-wheels`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

THERE = ("torch", "torchvision")
ALSO = ("pytest", "hypothesis", "setuptools>=77")

if __name__ == "__main__":
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["jpeg"], *ALSO]
    print("\n".join(each for each in needed if re.split(r"[^\w-]", each)[0] not in THERE))
