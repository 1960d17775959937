"""Uniform numbers by position against SplitMix64 as its authors publish it, and against what they promise."""

from __future__ import annotations

import numpy as np
import torch

from swa_cli.data.randomness import derive_seed, uniforms

WORD = 2**64 - 1


def splitmix64(state: int, number: int) -> list[int]:
    """The reference: one output after another (Steele, Lea, Flood 2014, figure 17)."""
    outputs = []
    for _ in range(number):
        state = (state + 0x9E3779B97F4A7C15) & WORD
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
        outputs.append(z ^ (z >> 31))
    return outputs


def test_the_reference_gives_the_published_numbers() -> None:
    """The reference of this file against the first outputs for the seed 1234567 that implementations agree on."""
    assert splitmix64(1234567, 2) == [6457827717110365317, 3203168211198807973]


def test_uniform_numbers_are_those_of_splitmix64() -> None:
    """Numbers of ten positions against the outputs of the generator, in order, as 53-bit fractions."""
    found = uniforms(torch.arange(10), 7, seed=3, key=("purpose", 5))
    expected = [value >> 11 for value in splitmix64(derive_seed(3, "purpose", 5), 70)]
    assert found.shape == (10, 7)
    assert (found * 2**53).long().flatten().tolist() == expected


def test_numbers_depend_on_their_own_position_alone() -> None:
    """Any order and any part of the positions gives the same rows; another seed, key or epoch gives others."""
    whole = uniforms(torch.arange(1000), 3, seed=0, key=("a", 1))
    some = torch.tensor([999, 0, 17, 17])
    assert torch.equal(uniforms(some, 3, seed=0, key=("a", 1)), whole[some])
    for seed, key in ((1, ("a", 1)), (0, ("b", 1)), (0, ("a", 2))):
        assert not torch.isin(uniforms(torch.arange(1000), 3, seed=seed, key=key), whole).any()


def test_numbers_are_uniform_and_unrelated() -> None:
    """Means, variances, shares of 16 bins and correlations of 20 columns at 50,000 positions."""
    values = uniforms(torch.arange(50_000), 20, seed=0, key=("uniform",)).numpy()
    assert 0 <= values.min() < values.max() < 1
    assert np.abs(values.mean(0) - 0.5).max() < 5 * (1 / 12 / 50_000) ** 0.5
    counts = np.histogram(values, bins=16, range=(0, 1))[0]
    assert ((counts - 62_500) ** 2 / 62_500).sum() < 37.7  # chi-square of 15 degrees, its 0.999 quantile
    correlations = np.corrcoef(values.T)[~np.eye(20, dtype=bool)]
    assert np.abs(correlations).max() < 5 / 50_000**0.5
