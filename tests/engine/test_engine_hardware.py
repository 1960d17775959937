"""Which precision is chosen: by what the hardware says and by what it does."""

from __future__ import annotations

import ctypes
import resource
import subprocess
import sys
from typing import Any

import pytest
import torch

from swa_cli.engine import hardware
from swa_cli.engine.distributed import World
from swa_cli.errors import UserError


def chosen(**options: Any) -> hardware.Hardware:
    settings: dict[str, Any] = {"device": "cpu", "precision": "auto", "threads": 1, "deterministic": False}
    return hardware.choose(**settings | options)


@pytest.mark.parametrize(
    ("flags", "speed", "precision", "reason"),
    [
        ({"amx_bf16", "avx512_bf16"}, 5.2, "bf16", "the processor's AMX-BF16 is 5.2 times as fast as fp32"),
        ({"avx512_bf16"}, 1.8, "bf16", "the processor's AVX512-BF16 is 1.8 times as fast as fp32"),
        ({"avx512_bf16"}, 0.52, "fp32", "the processor's AVX512-BF16 is at 0.5 of the speed of fp32"),
        ({"avx512f"}, 9.0, "fp32", "the processor has no native bf16"),
    ],
)
def test_auto_takes_bf16_where_it_is_native_and_faster(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], speed: float, precision: str, reason: str
) -> None:
    """The choice on four processors, two of which have the flag for bf16 but not the speed, or not the flag."""
    monkeypatch.setattr(hardware, "_cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(hardware, "speed_of_bf16", lambda: speed)
    found = chosen()
    assert (found.precision, found.reason) == (precision, reason)
    assert chosen(precision="bf16").precision == "bf16"
    assert ("expect it to be slow" in chosen(precision="bf16").reason) == (precision == "fp32")


def test_speed_of_bf16_is_that_of_a_matrix_product() -> None:
    """The measured ratio on this processor is a positive number, and the same when it is asked again."""
    speed = hardware.speed_of_bf16()
    assert speed > 0
    assert hardware.speed_of_bf16() == speed


def test_a_run_goes_on_in_the_precision_it_was_begun_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` of a resumed run against the recorded precision, which is taken on the same kind of device alone."""
    monkeypatch.setattr(hardware, "_cpu_flags", lambda: frozenset({"avx512_bf16"}))
    monkeypatch.setattr(hardware, "speed_of_bf16", lambda: 0.5)
    assert chosen(begun={"device": "cpu", "precision": "bf16"}).precision == "bf16"
    assert chosen(begun={"device": "cuda:0", "precision": "bf16"}).precision == "fp32"
    assert chosen(begun={"device": "cpu", "precision": "bf16"}, precision="fp32").precision == "fp32"


def test_auto_takes_all_cores_and_shares_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads of `auto` on five cores: all of them, or an even share for each process of this machine."""
    monkeypatch.setattr(hardware, "num_cores", lambda: 5)
    assert chosen(threads="auto").threads == torch.get_num_threads() == 5
    assert chosen(threads="auto", world=World(local_size=2)).threads == torch.get_num_threads() == 2
    assert chosen(threads="auto", world=World(local_size=8)).threads == 1
    assert chosen(threads=3).threads == torch.get_num_threads() == 3


def test_half_precision_needs_a_gpu() -> None:
    """fp16 on a processor is refused with the way out."""
    with pytest.raises(UserError, match="fp16 needs a CUDA device"):
        chosen(precision="fp16")


def test_choosing_does_not_import_the_compiler() -> None:
    """torch.use_deterministic_algorithms imports torch's compiler, a second: only where it changes anything."""
    assert not torch.are_deterministic_algorithms_enabled()
    chosen(deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    chosen()
    assert not torch.are_deterministic_algorithms_enabled()


# Each line of the command is measured in a fork of a process that has imported torch and chosen nothing.
MEMORY = """
import os, resource, sys, torch
from swa_cli.engine import hardware
from swa_cli.engine.distributed import World

def choose(**words):
    hardware.choose(device="cpu", precision="fp32", threads=1, deterministic=False, **words)

def faults(megabytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(megabytes << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1])

def released():
    choose()
    blocks = [torch.ones(5 << 18) for _ in range(16)]
    last = torch.ones(1 << 18)  # it holds the end of the heap
    del blocks
    kept = resident()
    hardware.release_memory()
    return kept - resident()

def fewest_faults(megabytes, chosen_for):
    if chosen_for != "nothing":
        choose(shard=chosen_for == "parts")
    return min(faults(megabytes) for _ in range(10))  # the system moves pages too, and a small block may take its place

for line in sys.argv[1:]:
    if os.fork():
        os.wait()
        continue
    megabytes, chosen_for = line.split()
    found = released() if chosen_for == "released" else fewest_faults(int(megabytes), chosen_for)
    print(line, found, flush=True)
    os._exit(0)
"""
BLOCKS = [(80, "nothing", False), (80, "whole", True), (20, "nothing", True), (20, "parts", False)]


@pytest.fixture(scope="module")
def measured() -> dict[str, int]:
    """What was measured in a process of its own for each line."""
    lines = [f"{size_mb} {chosen_for}" for size_mb, chosen_for, _ in BLOCKS]
    words = [sys.executable, "-c", MEMORY, *lines, "80 released"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return {line: int(found) for line, _, found in (row.rpartition(" ") for row in said.splitlines())}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="of another C library nothing is asked")
@pytest.mark.parametrize(("size_mb", "chosen_for", "is_kept"), BLOCKS)
def test_what_becomes_of_memory_that_is_freed(
    measured: dict[str, int], size_mb: int, chosen_for: str, is_kept: bool
) -> None:
    """Fewest page faults of taking a block, with hardware chosen or not: glibc itself keeps up to 32 MB."""
    found = measured[f"{size_mb} {chosen_for}"]
    all_pages = (size_mb << 20) // resource.getpagesize()
    if is_kept:
        assert found < all_pages / 1024
    else:
        assert found >= all_pages / 512  # pages may be huge, 512 in one


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="of another C library nothing is asked")
def test_memory_that_is_kept_can_be_released(measured: dict[str, int]) -> None:
    """Resident pages of 80 MB in blocks that were freed, before and after their release."""
    assert measured["80 released"] * resource.getpagesize() > 0.9 * (80 << 20)
