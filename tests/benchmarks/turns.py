"""Contestants by turns: whatever else the machine does, and however warm it gets, falls on all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

from benchmarks.voice import Voice

T = TypeVar("T")


def by_turns(contestants: Mapping[str, Callable[[], T]], *, rounds: int, voice: Voice) -> dict[str, list[T]]:
    """What each contestant gave in each round; who begins changes from round to round.

    Args:
        contestants: Each measures itself once a call.
        rounds: How many times.
        voice: Told whose turn it is.
    """
    names = list(contestants)
    measured: dict[str, list[T]] = {name: [] for name in names}
    for index in range(rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            voice.turn(name, number=index + 1, rounds=rounds)
            measured[name].append(contestants[name]())
    return measured


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes, with all that it has started on an accelerator."""
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def wait() -> None:
    """Wait for the accelerator, if there is one."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
