"""Numbers with their units, as text: sizes and short times."""

from __future__ import annotations


def size_text(num_bytes: int) -> str:
    """Return a number of bytes with its unit: `9.2 MB`."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.1f} {name}"
    return f"{num_bytes / 1e3:.1f} kB"


def short_time(seconds: float) -> str:
    """Return the seconds of a small piece of work in three digits: `0.225 ms`, `21 ms`, `1.5 s`."""
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
