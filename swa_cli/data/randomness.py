"""Randomness without state: random numbers as a function of (seed, purpose, epoch, ...).

Each purpose has words of its own, hashed to the seed of a fresh generator. So nothing has to be saved,
drawing for one purpose never shifts another, and the global generators of the process stay as they were.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def generator(seed: int, *words: str | int) -> torch.Generator:
    """A CPU generator whose numbers depend on the seed and the words alone."""
    return torch.Generator().manual_seed(number_of(seed, *words))


def numpy_generator(seed: int, *words: str | int) -> np.random.Generator:
    """The same for what torch draws from its global generators alone, such as a Beta distribution."""
    return np.random.Generator(np.random.PCG64(number_of(seed, *words)))


@contextmanager
def global_state_kept() -> Iterator[None]:
    """Put the global generators of torch (CPU), random and numpy back as they were."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def seed_globals(seed: int, *words: str | int) -> None:
    """Seed the global generators of torch (CPU), random and numpy; use it inside `global_state_kept`."""
    number = number_of(seed, *words)
    # Not torch.manual_seed, which would also reseed every GPU.
    torch.default_generator.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)


def number_of(seed: int, *words: str | int) -> int:
    """63 bits that depend on the seed and the words; `repr` keeps ("1", 2) and (1, "2") apart."""
    digest = hashlib.blake2b(repr((seed, *words)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
