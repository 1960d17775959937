"""`swa predict` in a process of its own, timed once all is imported; called with CHECKPOINT CSV FILE..."""

from __future__ import annotations

import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import torchvision.models  # noqa: F401 - the command imports it while it builds the network

from swa_cli.analysis.predict import Request, predict_files
from swa_cli.report.terminal import Terminal


def main() -> None:
    """Predict, and print the seconds."""
    checkpoint, out, *files = map(Path, sys.argv[1:])
    started = time.perf_counter()
    with redirect_stdout(sys.stderr):  # what the command answers
        told = predict_files(Request(checkpoint, files, out=out), [], terminal=Terminal(quiet=True))
    assert told["images"] == len(files)
    print(time.perf_counter() - started)


if __name__ == "__main__":
    main()
