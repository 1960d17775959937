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


def generator(seed: int, *key: str | int) -> torch.Generator:
    """Return a CPU generator whose numbers depend on the seed and the key alone."""
    return torch.Generator().manual_seed(derive_seed(seed, *key))


def numpy_generator(seed: int, *key: str | int) -> np.random.Generator:
    """Return such a generator of numpy, for what torch draws only from its global ones, such as a Beta distribution."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, *key)))


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
