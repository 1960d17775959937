"""Randomness without state: random numbers as a function of (seed, purpose, epoch, ...).

Each purpose has its own key, hashed into the seed of a fresh generator. So nothing has to be saved, drawing for one
purpose never shifts another, and the global generators of the process stay as they were.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def generator(seed: int, *key: str | int) -> torch.Generator:
    """Return a CPU generator whose numbers depend on the seed and the key alone."""
    return torch.Generator().manual_seed(derive_seed(seed, *key))


def numpy_generator(seed: int, *key: str | int) -> np.random.Generator:
    """Return such a generator of numpy, for what torch draws only from its global ones, such as a Beta distribution."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, *key)))


def uniforms(positions: Tensor, number: int, *, seed: int, key: tuple[str | int, ...]) -> Tensor:
    """Return `number` uniform numbers in [0, 1) for each position: those of a position depend on no other position.

    SplitMix64 (Steele, Lea, Flood 2014): the n-th output is a hash of n, so nothing has to be drawn in order.

    Args:
        positions: (B,) int64.
        number: Numbers per position.
        seed: Of the recipe.
        key: The purpose, and the epoch if there is one.

    Returns:
        (B, number) float64.
    """
    counters = positions.numpy().astype(np.uint64)[:, None] * np.uint64(number) + np.arange(
        1, number + 1, dtype=np.uint64
    )
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64
        bits: np.ndarray = np.uint64(derive_seed(seed, *key)) + counters * np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return torch.from_numpy((bits >> np.uint64(11)) * 2.0**-53)


@contextmanager
def preserve_global_rng() -> Iterator[None]:
    """Restore the global generators of torch (CPU), random and numpy on exit."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def seed_globals(seed: int, *key: str | int) -> None:
    """Seed the global generators of torch (CPU), random and numpy; use it inside `preserve_global_rng`."""
    number = derive_seed(seed, *key)
    # Not torch.manual_seed, which would also reseed every GPU.
    torch.default_generator.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)


def derive_seed(seed: int, *key: str | int) -> int:
    """Return 63 bits that depend on the seed and the key; `repr` keeps ("1", 2) and (1, "2") apart."""
    digest = hashlib.blake2b(repr((seed, *key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
