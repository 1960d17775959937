"""Run a command and write down what it took: wall clock, peak memory of its process, and of its workers.

    python launch.py REPORT COMMAND...

A small program of its own for a reason: on Linux a process inherits the peak memory of the one that starts it, and the
benchmark itself, with torch inside, is as large as its contestants.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

LOOK_EVERY_S = 2.0  # looking at the workers takes time from them
STARTED = "BENCH_STARTED"  # time.monotonic() at the start of the command, for the command itself


def main() -> None:
    """Run it, and end as it ends."""
    report, *command = sys.argv[1:]
    started = time.monotonic()
    process = subprocess.Popen(command, env={**os.environ, STARTED: repr(started)})
    workers = [0]
    threading.Thread(target=_watch, args=(process.pid, workers), daemon=True).start()
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.monotonic() - started
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    measured = {"wall_s": wall_s, "peak_mb": usage.ru_maxrss * unit / 1e6, "workers_mb": max(workers) / 1e6}
    Path(report).write_text(json.dumps(measured))
    process.returncode = os.waitstatus_to_exitcode(status)
    sys.exit(process.returncode if process.returncode >= 0 else 128 - process.returncode)


def _watch(pid: int, peaks: list[int]) -> None:
    """Memory that the children of a process do not share with it, as the largest sum seen."""
    while True:
        time.sleep(LOOK_EVERY_S)
        total = 0
        try:
            for child in psutil.Process(pid).children(recursive=True):
                total += child.memory_full_info().uss
        except psutil.Error:  # ended while it was looked at
            continue
        peaks.append(total)


if __name__ == "__main__":
    main()
