"""What each of several processes takes of batches: parts of every one, or whole ones of a pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swa_cli.data.augment import Augment
from swa_cli.data.batches import Batches, epoch_batches, plain_batches, statistics_batches
from swa_cli.data.sources import Split

MEAN, STD = (0.5,), (0.25,)
MIXED = Augment(crop=1, flip=True, mixup=0.4, cutmix=1.0)


def split(count: int) -> Split:
    """Images that tell each other apart, each of a class of its own."""
    images = torch.arange(count * 16).remainder(251).to(torch.uint8).view(count, 1, 4, 4)
    return Split(images=images, labels=torch.arange(count))


@settings(max_examples=40)
@given(
    count=st.integers(4, 30),
    batch_size=st.integers(4, 9),
    size=st.integers(1, 4),
    start=st.integers(0, 2),
    is_mixed=st.booleans(),
    repeats=st.integers(1, 4),
)
def test_parts_are_the_whole_batch(
    count: int, batch_size: int, size: int, start: int, is_mixed: bool, repeats: int
) -> None:
    """Parts of all processes, put together in order, against the whole batch to the bit, its partners included."""
    whole = epoch_batches(
        split(count),
        seed=1,
        epoch=2,
        batch_size=batch_size,
        augment=MIXED if is_mixed else Augment(crop=1),
        mean=MEAN,
        std=STD,
        start=start,
        num_classes=count if is_mixed else 0,
        repeats=repeats,
    )
    parts = [list(whole.part(rank, size=size)) for rank in range(size)]
    assert [len(part) for part in parts] == [len(whole)] * size
    for index, (images, labels) in enumerate(whole):
        sizes = [len(part[index][0]) for part in parts]
        assert sum(sizes) == batch_size
        assert max(sizes) - min(sizes) <= 1
        assert torch.equal(torch.cat([part[index][0] for part in parts]), images)
        assert torch.equal(torch.cat([part[index][1] for part in parts]), labels)


@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_an_image_is_not_mixed_with_another_view_of_itself(repeats: int) -> None:
    """Two classes in the target of each sample, where each image has a class of its own, and their shares as drawn."""
    batches = epoch_batches(
        split(30),
        seed=0,
        epoch=1,
        batch_size=12,
        augment=Augment(mixup=1.0),
        mean=MEAN,
        std=STD,
        num_classes=30,
        repeats=repeats,
    )
    for (_, targets), span, mix in zip(batches, batches.spans, batches.mixes, strict=True):
        assert ((targets > 0).sum(1) == 2).all()
        torch.testing.assert_close(targets[torch.arange(12), batches.rows[span]], torch.full((12,), mix.share))


@settings(max_examples=60)
@given(count=st.integers(1, 40), batch_size=st.integers(1, 9), size=st.integers(1, 5), is_pass=st.booleans())
def test_shares_are_the_whole_pass(count: int, batch_size: int, size: int, is_pass: bool) -> None:
    """Each sample is in the share of one process, or every sample in all of them where batches are too few."""
    if is_pass:
        whole = statistics_batches(split(count), seed=3, batch_size=batch_size, augment=Augment(), mean=MEAN, std=STD)
    else:
        whole = plain_batches(split(count), batch_size=batch_size, mean=MEAN, std=STD)
    shares = whole.shares(size)
    assert len(shares) == size
    assert all(len(share) for share in shares)
    seen = [labels_of(share) for share in shares]
    if len(whole) < size:
        assert seen == [labels_of(whole)] * size
        return
    if seen != [labels_of(whole)] * size:  # one batch for each, were there not a tiny last one
        assert [label for labels in seen for label in labels] == labels_of(whole)
        lengths = [len(share) for share in shares]
        assert max(lengths) - min(lengths) <= 2


def test_a_tiny_last_batch_goes_with_the_one_before() -> None:
    """9 samples in batches of 4 are two units, the second of 5: for 2 processes 4 and 5, for 3 all to each."""
    whole = plain_batches(split(9), batch_size=4, mean=MEAN, std=STD)
    assert [labels_of(share) for share in whole.shares(2)] == [[0, 1, 2, 3], [4, 5, 6, 7, 8]]
    assert [labels_of(share) for share in whole.shares(3)] == [list(range(9))] * 3
    half = replace(whole, spans=(slice(0, 4), slice(4, 6)), mixes=(None, None))
    assert [labels_of(share) for share in half.shares(2)] == [[0, 1, 2, 3], [4, 5]]


def labels_of(batches: Batches) -> list[int]:
    return [label for _, labels in batches for label in labels.tolist()]
