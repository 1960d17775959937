"""A change to the product in the process of a GPU: what waits for it within a step is an error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from swa_cli.engine import step, train


def refuse_waits() -> None:
    """Let each step run with torch's mode in which an operation that waits for the GPU raises."""
    train_step = train.train_step

    def changed(*args: Any) -> Iterator[step.StepResult]:
        results = train_step(*args)
        while True:
            torch.cuda.set_sync_debug_mode("error")
            try:
                result = next(results, None)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            if result is None:
                return
            yield result

    train.train_step = changed


def refuse_waits_and_read_loss() -> None:
    """The same with a step that reads its loss, which waits."""
    from device import changes

    changes.read_loss()
    refuse_waits()
