"""Choose device, precision, threads and determinism once, before a run, with the reasons.

`auto` takes the first GPU, and bf16 only where the hardware computes in it natively and faster: emulated bf16 is
several times slower than fp32. The flags of a processor are not enough: without its matrix unit (AMX, which a virtual
machine may hide) a recent Xeon has bf16 instructions at half the speed of fp32.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import time
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swa_cli.data.image_file import num_cores
from swa_cli.data.randomness import seed_globals
from swa_cli.engine.distributed import ALONE, World
from swa_cli.errors import UserError
from swa_cli.units import count_text

MIN_SPEEDUP = 1.2  # bf16 keeps 8 bits of 24: a gain within the noise of a measurement is not worth it
BF16_FLAGS = {"amx_bf16": "AMX-BF16", "avx512_bf16": "AVX512-BF16", "bf16": "BF16"}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # see mallopt(3)
KEEP = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}  # no block gets its own mapping, and the heap is never trimmed
GIVE_BACK = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 1 << 17, M_TRIM_THRESHOLD: 1 << 17}  # the defaults, made constant
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Hardware:
    """The hardware that a run computes on; `reason` explains the precision."""

    device: torch.device
    precision: str
    threads: int
    deterministic: bool
    reason: str
    processes: int = 1  # of the run
    shards: int = 1  # of its parameters

    @property
    def facts(self) -> dict[str, str]:
        """Device and precision, as the answers of commands have them."""
        return {"device": str(self.device), "precision": self.precision}

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of mixed precision for a forward pass; a no-op in fp32."""
        return torch.autocast(self.device.type, dtype=DTYPES[self.precision], enabled=self.precision != "fp32")

    def seed(self, seed: int, *words: str | int) -> None:
        """Seed the global generators that layers draw from (dropout) by a purpose and a step.

        Called before every step: random numbers become a function of (seed, step), so a resumed run needs no
        saved generator and nothing between two steps can change the second.
        """
        # Not torch.manual_seed: without a GPU it formats a stack trace per call.
        seed_globals(seed, *words)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(torch.initial_seed())

    def describe(self) -> str:
        """Return one line of the plan: `cpu, 2 threads, fp32 (the processor has no native bf16)`."""
        deterministic = ", deterministic" if self.deterministic else ""
        rounded = f", fp32 {' and '.join(names)} in TF32" if (names := _in_tf32(self.device)) else ""
        what = f"{self.device}, {count_text(self.threads, 'thread')}, {self.precision} ({self.reason})"
        return f"{what}{rounded}{deterministic}"


def choose(
    *,
    device: str,
    precision: str,
    threads: int | str,
    deterministic: bool,
    begun: Mapping[str, Any] | None = None,
    world: World = ALONE,
    shard: bool = False,
) -> Hardware:
    """Choose and set up the hardware: number of threads, memory, deterministic algorithms.

    Args:
        device: `train.device`.
        precision: `train.precision`; `auto` keeps that of a run that continues on the same kind of device.
        threads: `train.threads`.
        deterministic: `train.deterministic`.
        begun: The `environment` of the run that continues.
        world: The processes of the run, which share the GPUs and cores of a machine evenly.
        shard: `train.fsdp`.

    Raises:
        UserError: The device is absent, or cannot compute in the precision that was asked for.
    """
    chosen = _device(device) if world.size == 1 else _device_of_process(device, world)
    if chosen.index is not None:
        torch.accelerator.set_device_index(chosen.index)  # whose generator `Hardware.seed` seeds
    if precision == "auto" and begun is not None and begun["device"].partition(":")[0] == chosen.type:
        chosen_precision, reason = str(begun["precision"]), "as the run was begun"
    else:
        # Rank 0 decides, since `auto` measures.
        chosen_precision, reason = world.broadcast_from_rank0(lambda: _precision(precision, chosen))
    count = max(num_cores() // world.local_size, 1) if threads == "auto" else int(threads)
    torch.set_num_threads(count)
    if chosen.type == "cpu":
        manage_memory(keep=not shard)
    if deterministic:
        # Read by cuBLAS when its first handle is made; without it deterministic matrix products raise.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if deterministic != torch.are_deterministic_algorithms_enabled():  # setting it imports the compiler: a second
        torch.use_deterministic_algorithms(deterministic)
    return Hardware(chosen, chosen_precision, count, deterministic, reason, world.size, world.size if shard else 1)


def require_precision(key: str, precision: str, device: torch.device, *, instead: str) -> None:
    """Refuse fp16 without a GPU; `key` is its place in the recipe, `instead` what to set there.

    Raises:
        UserError: The device does not compute in the precision.
    """
    if precision == "fp16" and device.type != "cuda":
        raise UserError(f"{key}: fp16 needs a CUDA device, not {device}", hint=f"set {key}={instead}")


class HostCopy:
    """A copy of a few numbers on the device for the host, which does not wait for it where the device can tell."""

    def __init__(self, values: Tensor) -> None:
        self._values = values.detach()
        self._done: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values = pinned.copy_(self._values, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(values.device))

    def read(self) -> list[float] | None:
        """Return the numbers; None while the device has not come that far."""
        if self._done is not None and not self._done.query():
            return None
        numbers: list[float] = self._values.tolist()
        return numbers


def environment(hardware: Hardware) -> dict[str, str | int]:
    """Return what the bits of a run depend on besides its recipe."""
    return {
        "torch": str(torch.__version__),  # its own class would not load with weights_only
        "threads": hardware.threads,
        "processes": hardware.processes,
        "shards": hardware.shards,
        **hardware.facts,
        "processor": processor(),
    }


def _device(name: str) -> torch.device:
    present = accelerators()
    if name == "auto":
        return present[0] if present else torch.device("cpu")
    kind, _, index = name.partition(":")
    if name != "cpu" and (kind not in {device.type for device in present} or int(index or 0) >= len(present)):
        found = ", ".join(map(str, present)) or "no accelerator"
        raise UserError(
            f"train.device: {name} is not available: torch sees {found}",
            hint="set train.device=auto, or install a torch build that fits your GPU's driver",
        )
    return torch.device(name)


def accelerators() -> list[torch.device]:
    """Return the devices beside the CPU: those of the one kind of accelerator that torch has here, or none."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    return [] if kind is None else [torch.device(kind.type, index) for index in range(torch.accelerator.device_count())]


def _device_of_process(name: str, world: World) -> torch.device:
    """Return the device of one of several processes: one GPU each, else the CPU."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if name not in ("auto", "cuda"):
        raise UserError(f"train.device: {name} is one device for {world.size} processes", hint="set train.device=auto")
    if world.local_size > torch.cuda.device_count():
        raise UserError(
            f"train.device: {world.local_size} processes on a machine where torch sees {torch.cuda.device_count()} "
            "CUDA devices",
            hint="start one process per GPU, or set train.device=cpu",
        )
    return torch.device("cuda", world.local_rank)


def _precision(name: str, device: torch.device) -> tuple[str, str]:
    require_precision("train.precision", name, device, instead="auto")
    if name in ("fp32", "fp16"):
        return name, "as the recipe says"
    gains, reason = _gains_by_bf16(device)
    if name == "auto":
        return ("bf16" if gains else "fp32"), reason
    return name, "as the recipe says" if gains else f"as the recipe says, though {reason}: expect it to be slow"


def _gains_by_bf16(device: torch.device) -> tuple[bool, str]:
    """Return whether the hardware multiplies faster in bf16, and a sentence that says so."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return native, f"the GPU has {'' if native else 'no '}native bf16"
    if device.type != "cpu":
        return False, f"fp32 on {device.type}"
    features = bf16_features()
    if not features:
        return False, "the processor has no native bf16"
    gain = speed_of_bf16()
    compared = f"{gain:.1f} times as fast as fp32" if gain >= 1 else f"at {gain:.1f} of the speed of fp32"
    return gain >= MIN_SPEEDUP, f"the processor's {features[0]} is {compared}"


def bf16_features() -> list[str]:
    """Return the bf16 features of the processor, the fastest first."""
    flags = _cpu_flags()
    return [name for flag, name in BF16_FLAGS.items() if flag in flags]


@functools.cache
def speed_of_bf16() -> float:
    """Measure how many times as fast as fp32 a bf16 matrix product is; takes 20 ms once per process.

    Processors lie far apart, so the choice is the same each time: about 0.5 where the instructions are emulated, 1.8
    and more where they are native, 4 and more with a matrix unit.
    """
    matrix = torch.linspace(-1, 1, 256 * 256).reshape(256, 256)
    by_type = {"fp32": matrix, "bf16": matrix.bfloat16()}
    best = dict.fromkeys(by_type, float("inf"))
    torch.set_num_threads(1)  # two threads wait for each other where other programs run
    with torch.inference_mode():
        for _ in range(15):  # by turns, the best of each, whatever else the machine does
            for name, values in by_type.items():
                started = time.perf_counter()
                values @ values
                best[name] = min(best[name], time.perf_counter() - started)
    return best["fp32"] / best["bf16"]


def manage_memory(*, keep: bool) -> None:
    """Let glibc keep all memory that this process frees for the next step, or return each large block at once.

    By default glibc returns large blocks and requests them anew: then the kernel clears each page again, 10,000 to
    250,000 pages per step of a small network. For sharded networks it keeps just the blocks that whole weights leave
    behind: 50 M parameters in two shards took as much of each process as the whole network.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # macOS and musl have none
    if mallopt is not None:
        for name, value in (KEEP if keep else GIVE_BACK).items():
            mallopt(name, value)


def release_memory() -> None:
    """Return all free memory to the system, once the steps are done."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _in_tf32(device: torch.device) -> list[str]:
    """Return what a GPU computes in TF32, of 10 bits, where fp32 is asked for, as torch is set."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return []
    with warnings.catch_warnings(action="ignore"):  # torch 2.9 warns of these, and its new ones hide the defaults
        settings = {
            "convolutions": torch.backends.cudnn.allow_tf32,
            "matrix products": torch.backends.cuda.matmul.allow_tf32,
        }
    return [name for name, is_on in settings.items() if is_on]


def free_memory(device: torch.device) -> int | None:
    """Return the free bytes of an accelerator; None where torch does not tell."""
    memory = getattr(torch.get_device_module(device), "mem_get_info", None)
    return None if memory is None else int(memory(device)[0])


def _cpu_flags() -> frozenset[str]:
    return frozenset(_cpuinfo("flags", "Features").split())


def processor() -> str:
    """Return the name of the processor."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(*keys: str) -> str:
    """Return the first value of these keys that Linux tells of its processors; empty where it tells none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(keys)), "")
