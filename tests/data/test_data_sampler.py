"""The balanced sampler: each class equally often, as a function of (seed, epoch, position)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from swa_cli.data.augment import Augment
from swa_cli.data.batches import epoch_batches, statistics_batches
from swa_cli.data.splits import Split
from swa_cli.errors import UserError

PLAIN: dict[str, Any] = {"augment": Augment(), "mean": (0.5,), "std": (0.5,)}


def split_of(labels: list[int]) -> Split:
    """Samples of one pixel whose value is their row."""
    rows = torch.arange(len(labels), dtype=torch.uint8)
    return Split(torch.tensor(labels), rows.view(-1, 1, 1, 1))


def rows_of(split: Split, *, seed: int = 0, epoch: int = 1, **options: Any) -> Tensor:
    """The rows of an epoch, in their order; without a last batch that is not full there are batches of one."""
    made = epoch_batches(split, seed=seed, epoch=epoch, batch_size=1, balanced=True, **PLAIN, **options)
    return torch.cat([((image * 0.5 + 0.5) * 255).round().long().flatten() for image, _ in made])


@settings(max_examples=60)
@given(labels=st.lists(st.sampled_from([0, 0, 0, 0, 1, 1, 4]), min_size=1, max_size=200), seed=st.integers(0, 99))
def test_classes_and_their_samples_are_drawn_equally_often(labels: list[int], seed: int) -> None:
    """Counts of an epoch: as many as samples; of classes, and of the samples of a class, equal to within one."""
    split = split_of(labels)
    rows = rows_of(split, seed=seed)
    assert len(rows) == len(labels)
    present = sorted(set(labels))
    drawn = split.labels[rows].bincount(minlength=5)[present]
    assert int(drawn.max() - drawn.min()) <= 1
    times = rows.bincount(minlength=len(labels))
    for label in present:
        own = times[split.labels == label]
        assert int(own.max() - own.min()) <= 1


def test_an_epoch_is_a_function_of_seed_and_epoch() -> None:
    """The same seed and epoch against the same rows, another of either against others, and a start inside it."""
    split = split_of([0] * 90 + [1] * 10)
    rows = rows_of(split)
    assert torch.equal(rows, rows_of(split))
    assert not torch.equal(rows, rows_of(split, epoch=2))
    assert not torch.equal(rows, rows_of(split, seed=1))
    assert torch.equal(rows[37:], rows_of(split, start=37))
    first = split.labels[rows][:50].float().mean()  # shuffled over the epoch: no class comes first
    assert 0.3 < first < 0.7


def test_over_epochs_every_sample_of_a_large_class_is_seen() -> None:
    """The samples of the larger class in 8 epochs, each of which shows 5 of 9 parts of them, against all of them."""
    split = split_of([0] * 90 + [1] * 10)
    seen = torch.cat([rows_of(split, epoch=epoch) for epoch in range(1, 9)]).unique()
    assert len(seen) >= 99


@pytest.mark.parametrize("repeats", [2, 3])
def test_repeats_show_drawn_images_in_a_row(repeats: int) -> None:
    """Repeated augmentation of balanced draws: runs of equal rows, and as many samples as without."""
    split = split_of([0] * 80 + [1] * 10)
    rows = rows_of(split, repeats=repeats)
    assert len(rows) == 90
    assert torch.equal(rows.view(-1, repeats), rows.view(-1, repeats)[:, :1].expand(-1, repeats))
    assert abs(int((split.labels[rows] == 1).sum()) - 45) < repeats


def test_unknown_labels_are_refused() -> None:
    """A split whose labels are read with its samples, and one of masks, against the key to change."""
    images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    for split in (Split(None, images), Split(torch.zeros(4, 2, 2, dtype=torch.uint8), images, target="mask")):
        with pytest.raises(UserError, match=r"dataset\.sampler"):
            rows_of(split)


def test_batchnorm_statistics_see_what_training_sees() -> None:
    """The labels of a statistics pass against the proportions of the sampler; without it, of the training set."""
    split = split_of([0] * 90 + [1] * 10)
    for balanced, expected in ((True, 50), (False, 10)):
        made = statistics_batches(split, seed=0, batch_size=20, balanced=balanced, **PLAIN)
        assert int(torch.cat([labels for _, labels in made]).sum()) == expected
