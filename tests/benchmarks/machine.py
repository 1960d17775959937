"""What the figures were measured on and with."""

from __future__ import annotations

import datetime
import os
import platform
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "torchvision", "lightning")


def describe() -> dict[str, str | int]:
    """Processor, cores, versions, date."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "date": datetime.date.today().isoformat(),
    }


def in_words(machine: dict[str, str | int]) -> str:
    """One line of it."""
    versions = ", ".join(f"{name} {machine[name]}" for name in PACKAGES)
    return f"{machine['processor']}, {machine['cores']} cores, {versions}, {machine['date']}"


def _processor() -> str:
    """Its name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
