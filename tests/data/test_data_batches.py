"""Batches as functions of (seed, epoch, position): the same from anywhere, by any number of workers."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from swa_cli.data import batches
from swa_cli.data.augment import Augment, crop_and_flip
from swa_cli.data.batches import Batches, epoch_batches, plain_batches, statistics_batches
from swa_cli.data.color_jitter import ColorJitter
from swa_cli.data.randomness import generator
from swa_cli.data.splits import Split
from swa_cli.errors import EXIT_FAILED, UserError

AUGMENT = Augment(crop=2, flip=True, cutout=3)
EVERYTHING = Augment(
    translate=2, flip="alternating", cutout=3, jitter=ColorJitter(0.2, 0.2, 0.2, 0.05), mixup=0.2, cutmix=1.0
)
CONSTANTS: dict[str, Any] = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}


class Stored(Dataset[tuple[Tensor, int]]):
    """Images of a tensor, one at a time."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.images[row], int(self.labels[row])


class Dice(Dataset[tuple[Tensor, int]]):
    """Images that a user's transform makes from all three global generators."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return torch.tensor([row, torch.rand(()).item(), random.random(), np.random.rand()]).view(1, 2, 2), row


class Broken(Dataset[tuple[Any, int]]):
    """A dataset with a file that is no image at row 3, and one of another size at row 5."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __len__(self) -> int:
        return 6

    def __getitem__(self, row: int) -> tuple[Any, int]:
        side = 5 if row == 5 else 4
        return (Image.open(self.path) if row == 3 else Image.new("L", (side, side))), row


def in_memory(num_samples: int = 23) -> Split:
    images = torch.randint(0, 256, (num_samples, 3, 6, 5), generator=generator(0, "images"), dtype=torch.uint8)
    return Split(torch.arange(num_samples), images)


def streamed(dataset: Dataset[Any], num_samples: int) -> Split:
    return Split(None, None, dataset, torch.arange(num_samples))


def epoch_of(split: Split, *, seed: int = 0, epoch: int = 1, augment: Augment = AUGMENT, **more: Any) -> Batches:
    return epoch_batches(
        split, seed=seed, epoch=epoch, augment=augment, **{"batch_size": 4, "num_classes": 40, **CONSTANTS, **more}
    )


def assert_equal(ours: Iterable[tuple[Tensor, Tensor]], theirs: Iterable[tuple[Tensor, Tensor]]) -> None:
    for (images, labels), (other_images, other_labels) in zip(ours, theirs, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)
        assert images.dtype == torch.float32
        assert images.stride() == other_images.stride()


def global_state() -> tuple[Any, ...]:
    numpy_state = np.random.get_state(legacy=False)
    return torch.get_rng_state().tolist(), random.getstate(), str(numpy_state)


@pytest.mark.parametrize(("workers", "augment"), [(0, AUGMENT), (0, EVERYTHING), (2, EVERYTHING)])
def test_memory_and_stream_give_the_same_bits(workers: int, augment: Augment) -> None:
    """Streamed batches of all three makers are held against those of the same images in memory."""
    held = in_memory()
    assert held.images is not None
    assert held.labels is not None
    file_by_file = streamed(Stored(held.images, held.labels), 23)
    assert_equal(epoch_of(held, augment=augment), epoch_of(file_by_file, augment=augment, workers=workers))
    assert_equal(
        plain_batches(held, batch_size=10, **CONSTANTS),
        plain_batches(file_by_file, batch_size=10, workers=workers, **CONSTANTS),
    )
    common: dict[str, Any] = {"seed": 0, "batch_size": 10, "augment": augment, "num_classes": 23, **CONSTANTS}
    assert_equal(statistics_batches(held, **common), statistics_batches(file_by_file, workers=workers, **common))


@pytest.mark.parametrize("augment", [AUGMENT, EVERYTHING], ids=["some", "all"])
@pytest.mark.parametrize(("at_once", "times"), [(1, 5), (2, 3), (4, 2)])
def test_batches_do_not_depend_on_how_many_are_cropped_at_once(
    monkeypatch: pytest.MonkeyPatch, augment: Augment, at_once: int, times: int
) -> None:
    """Classes, masks and the part of one of three processes, in groups of batches, against all five in one go."""
    images = in_memory()
    masks = torch.randint(0, 9, (23, 6, 5), generator=generator(0, "masks"), dtype=torch.uint8)
    assert images.images is not None
    made = [epoch_of(images, augment=augment), epoch_of(images, augment=augment).part(1, size=3)]
    unmixed = replace(augment, mixup=0, cutmix=0)
    made.append(epoch_of(Split(masks, images.images, target="mask"), augment=unmixed))
    whole = [list(each) for each in made]
    crop = Mock(side_effect=crop_and_flip)
    monkeypatch.setattr(batches, "GROUP_BYTES", at_once * 4 * images.images[0].nbytes)
    monkeypatch.setattr(batches, "crop_and_flip", crop)
    assert_equal(made[0], whole[0])
    assert crop.call_count == times
    assert_equal(made[1], whole[1])
    assert_equal(made[2], whole[2])


@pytest.mark.parametrize("augment", [AUGMENT, EVERYTHING], ids=["some", "all"])
def test_samples_that_lie_on_the_device_give_the_same_bits(augment: Augment) -> None:
    """Of all three makers, of masks and of a part of a batch, against samples that go there batch by batch."""
    held = in_memory()
    masks = torch.randint(0, 9, (23, 6, 5), generator=generator(0, "masks"), dtype=torch.uint8)
    unmixed = replace(augment, mixup=0, cutmix=0)
    common: dict[str, Any] = {"seed": 0, "batch_size": 10, "augment": augment, "num_classes": 23, **CONSTANTS}

    def made(**more: Any) -> list[Batches]:
        return [
            epoch_of(held, augment=augment, **more),
            epoch_of(held, augment=augment, **more).part(1, size=3),
            epoch_of(Split(masks, held.images, target="mask"), augment=unmixed, **more),
            plain_batches(held, batch_size=10, **CONSTANTS, **more),
            statistics_batches(held, **common, **more),
        ]

    stored = held.images.clone()
    for ours, theirs in zip(made(is_resident=True), made(), strict=True):
        assert_equal(ours, theirs)
    assert torch.equal(held.on(torch.device("cpu"))[0], stored)


def test_same_epoch_same_batches_other_epoch_or_seed_others() -> None:
    """Two makings and iterations of an epoch are held against each other; other epochs and seeds differ."""
    split, first = in_memory(), epoch_of(in_memory())
    assert_equal(first, first)
    assert_equal(first, epoch_of(split))
    for other in (epoch_of(split, epoch=2), epoch_of(split, seed=1)):
        assert not torch.equal(torch.cat([y for _, y in first]), torch.cat([y for _, y in other]))
    # The crops of a sample differ too: one sample, so the order cannot.
    lone = in_memory(1)
    seen = {next(iter(epoch_of(lone, epoch=e, batch_size=1)))[0].numpy().tobytes() for e in range(1, 9)}
    assert len(seen) > 4


@settings(max_examples=30)
@given(
    num_samples=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    start=st.integers(0, 5),
    augment=st.sampled_from((AUGMENT, EVERYTHING)),
)
def test_start_skips_and_each_sample_comes_once(
    num_samples: int, batch_size: int, start: int, augment: Augment
) -> None:
    """An epoch from `start` is held against the epoch less its first batches, that against all samples."""
    split = in_memory(num_samples)
    whole = epoch_of(split, batch_size=batch_size, augment=augment)
    late = epoch_of(split, batch_size=batch_size, augment=augment, start=start)
    assert_equal(late, islice(whole, start, None))
    assert len(late) == max(0, len(whole) - start)
    unmixed = epoch_of(split, batch_size=batch_size, augment=replace(augment, mixup=0, cutmix=0))
    labels = [label for _, batch in unmixed for label in batch.tolist()]
    assert len(labels) == len(set(labels)) == num_samples - num_samples % batch_size


@pytest.mark.parametrize(("workers", "start"), [(0, 1), (2, 0), (2, 2)])
def test_a_users_random_transforms_depend_on_seed_epoch_and_position(workers: int, start: int) -> None:
    """Random transforms in workers and from a later start are held against one process from the beginning."""
    split = streamed(Dice(), 12)
    common: dict[str, Any] = {"augment": Augment(), "mean": (0.0,), "std": (1.0,)}
    whole = list(epoch_of(split, **common))
    assert_equal(islice(whole, start, None), epoch_of(split, workers=workers, start=start, **common))
    numbers = torch.cat([images for images, _ in whole]).flatten(1)[:, 1:]
    assert len(numbers.unique()) == numbers.numel()
    other = torch.cat([images for images, _ in epoch_of(split, epoch=2, **common)]).flatten(1)[:, 1:]
    assert not set(numbers.flatten().tolist()) & set(other.flatten().tolist())


@pytest.mark.parametrize("workers", [0, 1])
def test_global_random_state_is_never_touched(workers: int) -> None:
    """The global generators after all kinds of batches are held against the state before."""
    before = global_state()
    common: dict[str, Any] = {"mean": (0.0,), "std": (1.0,), "workers": workers}
    list(epoch_of(in_memory()))
    split = streamed(Dice(), 12)
    list(epoch_of(split, **common))
    list(islice(epoch_of(split, **common), 1))
    list(plain_batches(split, batch_size=5, **common))
    list(statistics_batches(split, seed=0, batch_size=5, augment=AUGMENT, **common))
    assert global_state() == before


def test_scoring_in_between_changes_no_training_batch() -> None:
    """An epoch with scoring and statistics between its batches is held against one without."""
    split = in_memory()

    def disturbed() -> Iterable[tuple[Tensor, Tensor]]:
        for batch in epoch_of(split):
            list(plain_batches(split, batch_size=3, **CONSTANTS))
            list(statistics_batches(split, seed=0, batch_size=3, augment=AUGMENT, **CONSTANTS))
            yield batch

    assert_equal(epoch_of(split), disturbed())


def test_plain_batches_hold_all_samples_in_order() -> None:
    """Plain batches are held against (x / 255 - mean) / std of the stored images, in float64."""
    split = in_memory()
    assert split.images is not None
    batches = plain_batches(split, batch_size=10, **CONSTANTS)
    assert [len(labels) for _, labels in batches] == [10, 10, 3]
    assert torch.cat([labels for _, labels in batches]).tolist() == list(range(23))
    mean, std = (torch.tensor(CONSTANTS[key], dtype=torch.float64).view(3, 1, 1) for key in ("mean", "std"))
    expected = (split.images.double() / 255 - mean) / std
    ours = torch.cat([images for images, _ in batches]).double()
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_statistics_batches_are_one_shuffle_cut_anywhere() -> None:
    """The first samples in other batch sizes are held against the beginning of the whole shuffle."""
    split = in_memory()
    common: dict[str, Any] = {"seed": 3, "augment": AUGMENT, **CONSTANTS}
    whole = list(statistics_batches(split, batch_size=23, **common))
    assert sorted(whole[0][1].tolist()) == list(range(23))
    assert whole[0][1].tolist() != list(range(23))
    some = list(statistics_batches(split, batch_size=4, samples=10, **common))
    assert [len(labels) for _, labels in some] == [4, 4, 2]
    assert torch.equal(torch.cat([images for images, _ in some]), whole[0][0][:10])


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_changes_of_a_sample_do_not_depend_on_the_batches(batch_size: int) -> None:
    """An epoch in batches of other sizes is held against the same one in one batch; mixing alone is a batch's own."""
    split, augment = in_memory(30), replace(EVERYTHING, mixup=0, cutmix=0)
    whole = next(iter(epoch_of(split, batch_size=30, augment=augment)))
    parts = list(epoch_of(split, batch_size=batch_size, augment=augment))
    torch.testing.assert_close(torch.cat([images for images, _ in parts]), whole[0])
    assert torch.equal(torch.cat([labels for _, labels in parts]), whole[1])


def test_statistics_see_images_changed_as_in_training() -> None:
    """Classes of statistics are held against mixed ones, and the share of mirrored images against a half."""
    images = torch.tensor([[0, 255]], dtype=torch.uint8).expand(400, 1, 1, 2)
    split = Split(torch.arange(400) % 2, images)
    common: dict[str, Any] = {"seed": 0, "batch_size": 20, "mean": (0.0,), "std": (1.0,), "num_classes": 2}
    ways = [x[:, 0, 0, 0] for x, _ in statistics_batches(split, augment=Augment(flip="alternating"), **common)]
    assert 160 < torch.cat(ways).sum() < 240  # four standard deviations
    targets = torch.cat([y for _, y in statistics_batches(split, augment=Augment(mixup=1.0), **common)])
    torch.testing.assert_close(targets.sum(1), torch.ones(400))
    assert len(targets.unique()) > 10


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_streamed_file_is_named(workers: int, tmp_path: Any) -> None:
    """The error from a worker is held against what a person needs: file, cure, and the exit code of the caller."""
    path = tmp_path / "damaged.png"
    path.write_bytes(b"no image")
    split, error = streamed(Broken(str(path)), 6), partial(UserError, exit_code=EXIT_FAILED)
    with pytest.raises(UserError, match=r"sample 3 .*damaged\.png") as caught:
        list(plain_batches(split, batch_size=4, mean=(0.0,), std=(1.0,), workers=workers, error=error))
    assert caught.value.exit_code == EXIT_FAILED
    assert "repair" in caught.value.hint


def test_streamed_images_of_different_size_are_named() -> None:
    """The error is held against the rows of the two images that differ."""
    rows = torch.tensor([4, 5])
    with pytest.raises(UserError, match=r"samples 4 and 5 .*\(1, 4, 4\).*\(1, 5, 5\)"):
        list(plain_batches(Split(None, None, Broken(""), rows), batch_size=4, mean=(0.0,), std=(1.0,)))


def test_images_come_channels_last() -> None:
    """The strides of the images are held against the memory format that convolutions are fastest in."""
    images, _ = next(iter(epoch_of(in_memory())))
    assert images.is_contiguous(memory_format=torch.channels_last)
