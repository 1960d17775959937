"""The processes of a run: launch them, join them, and what they do together.

All processes train one network, each on its part of every batch, and agree on every decision. In a run of one process
each operation below is the identity, and no process group is made. `launch` starts several on one machine with torch's
elastic engine (`swa train --processes N`); torchrun does so on several machines. A failure is reported once, and gives
the exit code of a single process.
Legend: N processes, `rank` 0 to N - 1; rank 0 writes the run folder and prints.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
import signal
import struct
import sys
import time
import uuid
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from swa_cli import signals
from swa_cli.averaging.bn_layers import gather_single_process
from swa_cli.data.batches import Batches
from swa_cli.engine.events import Bar
from swa_cli.errors import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, OWN_EXIT_CODES, RecipeError, Terminated, UserError
from swa_cli.models import freezing

POLL_S = 0.05  # between two looks at what other processes have reached
SAVE_WITHIN_S = 300  # what processes have for their last step and save, once a signal has reached them


@dataclass(frozen=True)
class Share:
    """The batches of a pass that this process works on, and how the results of all processes are gathered in order."""

    batches: Batches
    rounds: int  # the most batches that any process has
    gathered: Callable[[Any], list[Any]]
    after_batch: Callable[[], None] = lambda: None
    check: Callable[[], None] = signals.check  # called as often in all processes

    def counted(self, bar: Bar, check: Callable[[], None]) -> Share:
        """Return the same batches, after each of which `bar` advances and `check` is called."""
        return replace(self, after_batch=bar.advance, check=check)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for batch in self.batches:
            yield batch
            self.after_batch()
            self.check()
        for _ in range(self.rounds - len(self.batches)):
            self.check()


@dataclass(frozen=True)
class World:
    """All processes of a run, seen from the one with this `rank`; `local_` counts those of its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    store: Any = field(default=None, compare=False)  # a dictionary that all of them see

    @property
    def is_rank0(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    @property
    def words(self) -> tuple[str | int, ...]:
        """The part of a random key that makes dropout on this rank differ from that on rank 0."""
        return () if self.is_rank0 else ("rank", self.rank)

    def gathered(self, value: Any) -> list[Any]:
        """Return the value of every process in the order of ranks; its tensors are on the CPU."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def share(self, whole: Batches) -> Share:
        """Return the batches of a pass that this process works on."""
        shares = whole.shares(self.size)
        is_shared = any(share is not whole for share in shares)
        return Share(shares[self.rank], max(map(len, shares)), self.gathered if is_shared else gather_single_process)

    def broadcast_from_rank0(self, make: Callable[[], Any]) -> Any:
        """Return what rank 0 makes, on every rank."""
        return self.gathered(make() if self.is_rank0 else None)[0]

    def largest(self, number: int) -> int:
        """Return the largest number of all processes."""
        return int(self._reduced(number, dist.ReduceOp.MAX))

    def total(self, number: float) -> float:
        """Return the sum of the numbers of all processes."""
        return self._reduced(number, dist.ReduceOp.SUM)

    def _reduced(self, number: float, operation: Any) -> float:
        if self.size == 1:
            return number
        value = torch.tensor(number, dtype=torch.float64)
        dist.all_reduce(value, operation)
        return float(value)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each of these tensors, of one type and device, by its mean over the processes."""
        tensors = list(tensors)
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([values.flatten() for values in tensors])
        dist.all_reduce(flat)
        parts = (flat / self.size).split([values.numel() for values in tensors])
        torch._foreach_copy_(tensors, [part.view_as(values) for part, values in zip(parts, tensors, strict=True)])

    def require_equal(self, values: Any, *, what: str) -> None:
        """Compare a checksum of tensors in nested dicts and lists: each process continues from its own copy.

        Raises:
            UserError: They differ.
        """
        if self.size == 1:
            return
        self._require_one(self.gathered(checksum(values)), what=what)

    @staticmethod
    def _require_one(found: Sequence[object], *, what: str) -> None:
        odd = next((rank for rank, value in enumerate(found) if value != found[0]), None)
        if odd is not None:
            raise UserError(
                f"{what} of processes 0 and {odd} differ: they do not train one network",
                hint="look for differences between the machines, and for code of yours that depends on the process",
                exit_code=EXIT_FAILED,
            )

    @contextmanager
    def local_rank0_first(self) -> Iterator[None]:
        """Let local rank 0 run the block first, so that the others find what it downloads or packs, however long."""
        where = f"the block of rank {self.rank - self.local_rank}"
        while self.local_rank and not self.num_arrived(where):
            time.sleep(POLL_S)
        yield
        if not self.local_rank:
            self.arrive(where)

    def arrive(self, where: str) -> None:
        """Tell the other processes that this one has reached a point of the run."""
        if self.size > 1:
            self.store.add(where, 1)

    def num_arrived(self, where: str) -> int:
        """Return how many processes have reached a point; unlike a collective operation it never times out.

        Raises:
            DistError: Another process has failed.
        """
        if self.size == 1:
            return 1
        if self.store.check(["exit code"]):
            raise dist.DistError("another process has failed")
        return int(self.store.add(where, 0))

    def synchronised(self, model: nn.Module, *, sync_batchnorm: bool, make: Callable[[], nn.Module]) -> nn.Module:
        """Return the network with gradients that are averaged over the processes after each backward pass.

        With `sync_batchnorm`, a second network from `make` with the very same tensors normalises the whole batch. The
        layers of `model` itself stay as they are: it is scored and refreshed in this process alone.

        Raises:
            UserError: The networks of the processes have other parameters.
        """
        if self.size == 1:
            return model
        layouts = [(name, value.shape, value.requires_grad) for name, value in model.named_parameters()]
        self._require_one(self.gathered(layouts), what="the parameters")
        if sync_batchnorm:
            second = sharing(model, make())
            second.train()
            model = with_sync_batchnorm(second, kept=freezing.kept_layers(model))
        # Find unused parameters: networks leave some layers untrained, or drop some at random. Gradients then have one
        # layout from the first step on, so a resumed run sums them in the same order.
        options: dict[str, Any] = {_BUFFERS: False}
        return DistributedDataParallel(model, gradient_as_bucket_view=True, find_unused_parameters=True, **options)

    def backward_of(self, forward: Any, *, is_last: bool) -> AbstractContextManager[object]:
        """Exchange gradients only in the last forward and backward pass of a step."""
        return nullcontext() if self.size == 1 or is_last else forward.no_sync()


ALONE = World()
# Rank 0 must not overwrite the buffers of the others at each step; torch 2.14 has renamed the option.
_NAMES = inspect.signature(DistributedDataParallel).parameters
_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _NAMES else "broadcast_buffers"


def with_sync_batchnorm(model: nn.Module, *, kept: Collection[str]) -> nn.Module:
    """Return the network with SyncBatchNorm in place of BatchNorm; the layers `kept` stay in eval mode."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for name in kept:
        freezing.keep(model.get_submodule(name))
    return model


def sharing(model: nn.Module, other: nn.Module) -> nn.Module:
    """Return the network `other`, of the same layers, with the parameters and buffers of `model` themselves."""
    for name, layer in other.named_modules():
        own = model.get_submodule(name)
        layer._parameters.update(own._parameters)
        layer._buffers.update(own._buffers)
    return other


def checksum(values: Any) -> int:
    """Return a checksum of tensors in nested dicts and lists on any device; equal bits give equal checksums."""
    return zlib.crc32(b"".join(struct.pack("<q", number) for number in _bit_sums(values)))


def _bit_sums(values: Any) -> Iterator[int]:
    if isinstance(values, Mapping):
        for key in values:
            yield from _bit_sums(values[key])
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _bit_sums(value)
    elif isinstance(values, Tensor):
        whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32}.get(values.element_size(), torch.int64)
        bits = torch.view_as_real(values) if values.is_complex() else values
        yield int(bits.detach().contiguous().view(whole).sum(dtype=torch.int64))


def launched() -> World:
    """Return the world that torchrun describes in the environment of this process, without its store."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if any(name not in os.environ for name in (*names, "MASTER_ADDR", "MASTER_PORT")):
        return World()
    return World(*(int(os.environ[name]) for name in names))


def run_id(launch: str, *, attempt: int) -> str:
    """Return the name that torchrun gets for an attempt of `swa train --processes`, counted from 0."""
    return f"{launch}-attempt-{attempt}"


def name_of_launch() -> str | None:
    """Return the name that all attempts of one launch share; None without a launch.

    torchrun's own name for them may be `none`, so that of the agent, which outlives them all, is added.
    """
    name, _ = _launch_and_attempt()
    return f"none-{os.getppid()}" if name == "none" else name


def is_restarted() -> bool:
    """Return whether these processes replace others that died."""
    return _launch_and_attempt()[1] > 0


def _launch_and_attempt() -> tuple[str | None, int]:
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name is not None and (own := re.fullmatch(r"([0-9a-f]{32})-attempt-(\d+)", name)):
        return own[1], int(own[2])
    return name, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextmanager
def join_processes() -> Iterator[World]:
    """Join the processes of a launch while the block runs; of several that fail, one reports.

    Gradients on GPUs are exchanged over nccl, all else over gloo.
    """
    world = launched()
    if world.size == 1:
        yield world
        return
    has_gpus = torch.cuda.is_available()
    if has_gpus and world.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(world.local_rank)
    with signals.undefended():  # nothing is there to be saved
        store, _, _ = next(rendezvous("env://"))
    world = World(world.rank, world.size, world.local_rank, world.local_size, store)
    with _one_voice(store):
        with signals.undefended():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if has_gpus else "gloo",
                store=dist.PrefixStore("group", store),
                rank=world.rank,
                world_size=world.size,
            )
        yield world
        dist.destroy_process_group()


@contextmanager
def _one_voice(store: Any) -> Iterator[None]:
    """Let one process report why the run failed; the others, and those that only lost a peer, end silently."""
    try:
        yield
    except Exception as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher ends all once it sees one end, this one as it speaks
        code = error.exit_code if isinstance(error, UserError) else EXIT_FAILED
        code = EXIT_USAGE if isinstance(error, RecipeError) else code
        # gloo has no class for the loss of a process.
        is_lost = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
        if not is_lost and _is_first_to_fail(store, code):
            raise
        raise SystemExit(_code_that_was_told(store) or code) from error


def _is_first_to_fail(store: Any, code: int) -> bool:
    try:
        return store.compare_set("exit code", "", str(code)) == str(code).encode() and store.add("failures", 1) == 1
    except RuntimeError:  # the first process holds the store, and has ended
        return False


def _code_that_was_told(store: Any) -> int | None:
    """Return the exit code of the process that reports, which all end with; None if none does."""
    try:
        return int(store.get("exit code")) if store.check(["exit code"]) else None
    except RuntimeError:
        return None


def one_a_gpu() -> int:
    """Return the number of processes that `auto` stands for: one per GPU, at least one."""
    return max(torch.cuda.device_count(), 1)


def launch(words: Sequence[str], *, processes: int, max_restarts: int, warn: Callable[[str], None]) -> int:
    """Run a command in several processes until it ends, and return its exit code.

    Processes that were killed from outside are started again, at most `max_restarts` times, and continue the run folder
    that the first attempt has begun. A run that failed by itself would fail again.

    Raises:
        UserError: A process was killed, and there are no restarts left; or one was ended by other code than swa.
        KeyboardInterrupt: Ctrl-C; all have ended.
        Terminated: SIGTERM; likewise.
    """
    name = uuid.uuid4().hex
    for attempt in range(max_restarts + 1):
        number, code = _attempt(words, name=run_id(name, attempt=attempt), processes=processes)
        if number is None and code not in OWN_EXIT_CODES:
            message = f"a process ended with exit code {code}, and did not say why"
            hint = "look for what ends Python in code of yours or in a library; --resume RUN continues"
            raise UserError(message, hint=hint, exit_code=EXIT_FAILED)
        if number is None:
            return code
        killed = f"a process was killed ({signal.Signals(number).name})"
        if attempt < max_restarts:
            warn(f"{killed}: all start again, attempt {attempt + 2} of {max_restarts + 1}")
    hint = "if memory was short, lower train.batch_size; --resume RUN continues, and --max-restarts N does so by itself"
    raise UserError(killed, hint=hint, exit_code=EXIT_FAILED)


def _attempt(words: Sequence[str], *, name: str, processes: int) -> tuple[int | None, int]:
    """Run the processes to their end; return the signal that killed one of them, if any, and the exit code."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The variable, not `shutdown_timeout`, which torch 2.11 refuses: there the processes have 30 s.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SAVE_WITHIN_S))
    try:
        with _silent_engine(), TemporaryDirectory(prefix="swa-launch-") as logs:  # torch leaves a folder of its own
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=processes,
                run_id=name,
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",  # any free port; nobody outside this machine reaches it
                local_addr="localhost",
                max_restarts=0,
                logs_specs=DefaultLogsSpecs(logs),
            )
            elastic_launch(config, sys.executable)("-m", "swa_cli", *words)
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        return next((-code for code in codes if code < 0), None), max(codes)
    except SignalException as end:
        raise (KeyboardInterrupt if end.sigval == signal.SIGINT else Terminated) from None
    return None, EXIT_DONE


@contextmanager
def _silent_engine() -> Iterator[None]:
    """Silence the engine's own report of a failure, and restore the signal handlers afterwards."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with signals.handlers_kept():
            yield
    finally:
        logging.disable(level)
