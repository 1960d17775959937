"""Several processes of one machine, started by torch's own elastic engine: `swa train --processes N`.

The one idea: torchrun, with what it lacks for a person. A recipe is checked before anything is started; a failure is
told once and ends with the exit code of a single process. What was killed from outside is started again and goes on
from its last save; what failed by itself would fail again.
"""

from __future__ import annotations

import logging
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from swa_cli.engine.distributed import run_id
from swa_cli.engine.signals import HANDLED_SIGNALS
from swa_cli.errors import EXIT_DONE, EXIT_FAILED, Terminated, UserError

SAVE_WITHIN_S = 300  # what processes have for their last step and save, once a signal has reached them


def one_a_gpu() -> int:
    """How many processes `auto` is: one for each GPU, one where there is none."""
    return max(torch.cuda.device_count(), 1)


def launch(words: Sequence[str], *, processes: int, max_restarts: int, warn: Callable[[str], None]) -> int:
    """Run a command in several processes until it ends, and say with which exit code.

    Args:
        words: The command line; an attempt after the first one goes on with the run folder that one has begun.
        processes: How many.
        max_restarts: How many times they are started again after one was killed.
        warn: Called with a sentence when they are started again.

    Raises:
        UserError: A process was killed, and there are no restarts left.
        KeyboardInterrupt: Ctrl-C; all have ended.
        Terminated: SIGTERM; likewise.
    """
    name = uuid.uuid4().hex
    for attempt in range(max_restarts + 1):
        number, code = _attempt(words, name=run_id(name, attempt=attempt), processes=processes)
        if number is None:
            return code
        killed = f"a process was killed ({signal.Signals(number).name})"
        if attempt < max_restarts:
            warn(f"{killed}: all start again, attempt {attempt + 2} of {max_restarts + 1}")
    hint = "if memory was short, lower train.batch_size; --resume RUN goes on, and --max-restarts N does so by itself"
    raise UserError(killed, hint=hint, exit_code=EXIT_FAILED)


def _attempt(words: Sequence[str], *, name: str, processes: int) -> tuple[int | None, int]:
    """Start the processes and wait for their end: the signal that killed one of them, if any, and the exit code."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port; nobody outside this machine reaches it
        local_addr="localhost",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(),
        shutdown_timeout=SAVE_WITHIN_S,
    )
    try:
        with _silent_engine():
            elastic_launch(config, sys.executable)("-m", "swa_cli", *words)
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        killed_by = next((-code for code in codes if code < 0), None)
        return killed_by, max(codes)
    except SignalException as end:
        raise (KeyboardInterrupt if end.sigval == signal.SIGINT else Terminated) from None
    return None, EXIT_DONE


@contextmanager
def _silent_engine() -> Iterator[None]:
    """Without the engine's own report of a failure; with the handlers of signals as they were."""
    handlers = {number: signal.getsignal(number) for number in HANDLED_SIGNALS}
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(level)
        for number, handler in handlers.items():
            signal.signal(number, handler)
