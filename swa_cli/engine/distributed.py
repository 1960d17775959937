"""The processes of a run, as torchrun starts them: who they are, and the few things that they do together.

The one idea: all of them do the same run, each with its part of every batch, and agree wherever one alone would decide.
A run of one process is that run too: each operation below is then the identity, and no process group is made.
N processes, `rank` 0 to N - 1; the first one writes and speaks.
"""

from __future__ import annotations

import inspect
import os
import re
import signal
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from swa_cli.errors import EXIT_FAILED, EXIT_USAGE, RecipeError, UserError


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
        """What tells the random numbers of layers here from those in the first process, such as dropout's."""
        return () if self.is_rank0 else ("rank", self.rank)

    def gathered(self, value: Any) -> list[Any]:
        """The value of every process in the order of ranks; tensors in it lie on the CPU."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast_from_rank0(self, make: Callable[[], Any]) -> Any:
        """What the first process makes, in all of them."""
        return self.gathered(make() if self.is_rank0 else None)[0]

    def largest(self, number: int) -> int:
        """The largest number that any process names."""
        return self._reduced(number, dist.ReduceOp.MAX)

    def total(self, number: int) -> int:
        """The sum of the numbers that the processes name."""
        return self._reduced(number, dist.ReduceOp.SUM)

    def _reduced(self, number: int, operation: Any) -> int:
        if self.size == 1:
            return number
        value = torch.tensor(number)
        dist.all_reduce(value, operation)
        return int(value)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Put the mean over the processes into each of these tensors of one type and device."""
        tensors = list(tensors)
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([values.flatten() for values in tensors])
        dist.all_reduce(flat)
        parts = (flat / self.size).split([values.numel() for values in tensors])
        torch._foreach_copy_(tensors, [part.view_as(values) for part, values in zip(parts, tensors, strict=True)])

    def require_equal(self, values: Any, *, what: str) -> None:
        """Compare a checksum of tensors in nested dicts and lists: each process goes on from its own copy of them.

        Raises:
            UserError: They differ.
        """
        if self.size == 1:
            return
        sums = self.gathered(checksum(values))
        if len(set(sums)) > 1:
            odd = next(rank for rank, value in enumerate(sums) if value != sums[0])
            raise UserError(
                f"{what} of processes 0 and {odd} differ: they no longer train one network",
                hint="look for what is different in the machines, or for code of yours that depends on the process",
                exit_code=EXIT_FAILED,
            )

    @contextmanager
    def local_rank0_first(self) -> Iterator[None]:
        """Let the first process of each machine pass alone: what it downloads, the others find."""
        if self.local_rank:
            self.gathered(None)
        yield
        if not self.local_rank:
            self.gathered(None)

    def arrive(self, where: str) -> None:
        """Let the others know that this process has come to a point of the run."""
        if self.size > 1:
            self.store.add(where, 1)

    def num_arrived(self, where: str) -> int:
        """How many processes have come there; unlike a collective operation it may take any time.

        Raises:
            DistError: Another process has failed.
        """
        if self.size == 1:
            return 1
        if self.store.check(["exit code"]):
            raise dist.DistError("another process has failed")
        return int(self.store.add(where, 0))

    def synchronised(self, model: nn.Module, *, sync_batchnorm: bool, make: Callable[[], nn.Module]) -> nn.Module:
        """The network with gradients that are the mean over the processes after each backward pass.

        With `sync_batchnorm` the layers of a twin, which has the very same tensors, normalise by the whole batch; those
        of `model` itself stay what they are, for whoever scores and refreshes it in this process alone. `make` makes
        another network of the same recipe.
        """
        if self.size == 1:
            return model
        if sync_batchnorm:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(sharing(model, make())).train()
        # Layers that a pass leaves out are looked for: networks have some that are not trained, or drop some at random.
        # Gradients then lie in one layout from the first step on, so a run that goes on sums them in the same order.
        options: dict[str, Any] = {_BUFFERS: False}
        return DistributedDataParallel(model, gradient_as_bucket_view=True, find_unused_parameters=True, **options)

    def backward_of(self, forward: Any, *, is_last: bool) -> AbstractContextManager[object]:
        """Around a forward and a backward pass: gradients are exchanged with the last one of a step."""
        return nullcontext() if self.size == 1 or is_last else forward.no_sync()


ALONE = World()
# Buffers are not overwritten by those of the first process at each step; torch 2.14 has given that another name.
_NAMES = inspect.signature(DistributedDataParallel).parameters
_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _NAMES else "broadcast_buffers"


def sharing(model: nn.Module, other: nn.Module) -> nn.Module:
    """Another network of the same layers, `other`, with the very parameters and buffers of `model`."""
    for name, layer in other.named_modules():
        own = model.get_submodule(name)
        layer._parameters.update(own._parameters)
        layer._buffers.update(own._buffers)
    return other


def checksum(values: Any) -> int:
    """Of tensors in nested dicts and lists, whatever device they are on; equal for equal bits."""
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
    """The world that torchrun describes in the environment of this process, still without its store."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if any(name not in os.environ for name in (*names, "MASTER_ADDR", "MASTER_PORT")):
        return World()
    return World(*(int(os.environ[name]) for name in names))


def run_id(launch: str, *, attempt: int) -> str:
    """What torchrun knows an attempt of `swa train --processes` by, counted from 0."""
    return f"{launch}-attempt-{attempt}"


def name_of_launch() -> str | None:
    """What the attempts of one launch have in common; None where there is none.

    torchrun's own name for them may be `none`, so that of the agent, which outlives them all, is added.
    """
    name, _ = _launch_and_attempt()
    return f"none-{os.getppid()}" if name == "none" else name


def is_restarted() -> bool:
    """Whether these processes were started in the place of others that died."""
    return _launch_and_attempt()[1] > 0


def _launch_and_attempt() -> tuple[str | None, int]:
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name is not None and (own := re.fullmatch(r"([0-9a-f]{32})-attempt-(\d+)", name)):
        return own[1], int(own[2])
    return name, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextmanager
def join_processes() -> Iterator[World]:
    """Be one of the processes of a launch while the block runs; of a failure of several, one tells.

    Gradients on GPUs are exchanged over nccl, all else over gloo.
    """
    world = launched()
    if world.size == 1:
        yield world
        return
    has_gpus = torch.cuda.is_available()
    if has_gpus and world.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(world.local_rank)
    store, _, _ = next(rendezvous("env://"))
    world = World(world.rank, world.size, world.local_rank, world.local_size, store)
    with _one_voice(store):
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
    """Let one process tell why the run failed; the others, and those that only lost another one, end in silence."""
    try:
        yield
    except Exception as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher ends all once it sees one end, this one as it speaks
        code = _exit_code(error)
        if not _is_lost_process(error) and _is_first_to_fail(store, code):
            raise
        raise SystemExit(_code_that_was_told(store) or code) from error


def _is_lost_process(error: Exception) -> bool:
    """Whether this is what is seen of the end of another process; gloo has no class for it."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _is_first_to_fail(store: Any, code: int) -> bool:
    try:
        return store.compare_set("exit code", "", str(code)) == str(code).encode() and store.add("failures", 1) == 1
    except RuntimeError:  # the first process holds the store, and has ended
        return False


def _code_that_was_told(store: Any) -> int | None:
    """The exit code of the process that tells, so that all end with it; None where none does."""
    try:
        return int(store.get("exit code")) if store.check(["exit code"]) else None
    except RuntimeError:
        return None


def _exit_code(error: Exception) -> int:
    if isinstance(error, UserError):
        return error.exit_code
    return EXIT_USAGE if isinstance(error, RecipeError) else EXIT_FAILED
