"""Numbers of steps and epochs in words."""

from __future__ import annotations

from fractions import Fraction


def in_epochs(steps: Fraction | int, *, steps_per_epoch: int) -> str:
    """A point or length in epochs, to two digits, for people: 7898 steps of 351 are `22.5`."""
    return f"{round(float(steps) / steps_per_epoch, 2):.12g}"


def length_text(steps: int, steps_per_epoch: int) -> str:
    """`1 epoch`, `2.5 epochs`, or `12 steps` where that is less than one."""
    if steps < steps_per_epoch:
        return count_text(steps, "step")
    epochs = in_epochs(steps, steps_per_epoch=steps_per_epoch)
    return f"{epochs} epoch" if epochs == "1" else f"{epochs} epochs"


def count_text(number: int, noun: str) -> str:
    """`1 weight`, `1,200 weights`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
