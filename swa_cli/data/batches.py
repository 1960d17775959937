"""The batches of an epoch as a function of (seed, epoch, position): nothing to save, nothing to drift.

The order and all random numbers of an epoch are drawn at its beginning, so a batch does not depend on the
batches before it, on the number of workers, or on whether images lie in memory or are streamed.
Shapes: S positions, B batch, C channels, H W pixels, V numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swa_cli.data import nested
from swa_cli.data.augment import Augment, Draws, crop_and_flip, crop_and_flip_masks, cut_out, draw
from swa_cli.data.randomness import generator
from swa_cli.data.splits import Split
from swa_cli.data.stream import spans_of, stream
from swa_cli.errors import EXIT_FAILED


@dataclass(frozen=True, eq=False)
class Batches:
    """Re-iterable pairs (images (B, C, H, W) float32, labels), or other inputs and targets, the same each time.

    Labels are as the split's `target` says: classes (B,) int64, masks (B, H, W) int64 in which 255 is ignored, or
    values (B, V) float32. Masks are cropped and mirrored with their images; what the crop adds is 255.
    """

    split: Split
    rows: Tensor  # (S,) which sample of the split stands at each position
    spans: tuple[slice, ...]  # the positions of each batch
    draws: Draws | None  # of the S positions
    seed: int
    words: tuple[str | int, ...]  # what random transforms of a user's dataset depend on, beside seed and position
    mean: tuple[float, ...]  # none where the inputs are no images: these are given as they are
    std: tuple[float, ...]
    device: torch.device
    workers: int

    def __len__(self) -> int:
        return len(self.spans)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for span, stored in zip(self.spans, self._stored(), strict=True):
            images, labels = (nested.mapped(values, self._moved) for values in stored)
            if not self.mean:
                yield images, labels
                continue
            draws = self.draws[span].to(self.device) if self.draws is not None else None
            if draws is not None:
                images = crop_and_flip(images, draws=draws)
                if self.split.target == "mask":
                    labels = crop_and_flip_masks(labels, draws=draws)
            images = normalize(images, mean=self.mean, std=self.std)
            if draws is not None:
                images = cut_out(images, draws=draws)
            images = images.contiguous(memory_format=torch.channels_last)
            yield images, labels.long() if self.split.target == "mask" else labels

    def _moved(self, values: Tensor) -> Tensor:
        """To the device; through pinned memory to a GPU, so that the copy overlaps with its work."""
        if self.device.type == "cuda":
            return values.pin_memory().to(self.device, non_blocking=True)
        return values.to(self.device)

    def _stored(self) -> Iterator[tuple[Any, Any]]:
        """The batches as they are stored: not augmented, not normalised, on the CPU."""
        split = self.split
        if split.dataset is not None:
            assert split.indices is not None
            yield from stream(
                split.dataset,
                rows=split.indices[self.rows],
                spans=self.spans,
                target=split.target,
                seed=self.seed,
                words=self.words,
                workers=self.workers,
                exit_code=EXIT_FAILED,
            )
            return
        assert split.images is not None
        assert split.labels is not None
        for span in self.spans:
            yield nested.rows_of(split.images, self.rows[span]), nested.rows_of(split.labels, self.rows[span])


def epoch_batches(
    split: Split,
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    augment: Augment,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device | str = "cpu",
    start: int = 0,
    workers: int = 0,
) -> Batches:
    """The training batches of an epoch, shuffled and augmented.

    Args:
        split: Training samples.
        seed: With `epoch` it decides the order, and with the position the augmentation.
        epoch: Number of the epoch.
        batch_size: Samples in a batch.
        augment: What is done to the images.
        mean: Of each channel, see `normalize`.
        std: Of each channel.
        device: Where the batches go; they are augmented there.
        start: The first batches left out, at no cost.
        workers: Processes that read a streamed split.
    """
    num_samples = len(split)
    end = num_samples - num_samples % batch_size
    return Batches(
        split=split,
        rows=torch.randperm(num_samples, generator=generator(seed, "order", epoch)),
        spans=tuple(spans_of(end, size=batch_size)[start:]),
        draws=draw(num_samples, augment=augment, generator=generator(seed, "augment", epoch)),
        seed=seed,
        words=("sample", epoch),
        mean=mean,
        std=std,
        device=torch.device(device),
        workers=workers,
    )


def plain_batches(
    split: Split,
    *,
    batch_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device | str = "cpu",
    workers: int = 0,
) -> Batches:
    """The samples in their own order for scoring: nothing drawn, nothing left out, the last batch ragged.

    Args:
        split: Any samples.
        batch_size: Samples in a batch.
        mean: Of each channel, see `normalize`.
        std: Of each channel.
        device: Where the batches go.
        workers: Processes that read a streamed split.
    """
    num_samples = len(split)
    return Batches(
        split=split,
        rows=torch.arange(num_samples),
        spans=tuple(spans_of(num_samples, size=batch_size)),
        draws=None,
        seed=0,  # for random transforms of a user's dataset: the same in every scoring
        words=("plain",),
        mean=mean,
        std=std,
        device=torch.device(device),
        workers=workers,
    )


def statistics_batches(
    split: Split,
    *,
    seed: int,
    batch_size: int,
    augment: Augment,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device | str = "cpu",
    samples: int | None = None,
    workers: int = 0,
) -> Batches:
    """Batches for BatchNorm statistics: one fixed seeded shuffle, the same in every epoch, none left out.

    Args:
        split: Training samples.
        seed: Decides the shuffle and the augmentation.
        batch_size: Samples in a batch.
        augment: What is done to the images; `Augment()` for plain ones.
        mean: Of each channel, see `normalize`.
        std: Of each channel.
        device: Where the batches go.
        samples: Only the first ones of the shuffle; None takes all.
        workers: Processes that read a streamed split.
    """
    num_samples = len(split) if samples is None else min(samples, len(split))
    return Batches(
        split=split,
        rows=torch.randperm(len(split), generator=generator(seed, "statistics order"))[:num_samples],
        spans=tuple(spans_of(num_samples, size=batch_size)),
        draws=draw(len(split), augment=augment, generator=generator(seed, "statistics augment")),
        seed=seed,
        words=("statistics sample",),
        mean=mean,
        std=std,
        device=torch.device(device),
        workers=workers,
    )


def normalize(images: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x - mean) / std per channel in float32, where uint8 images are first scaled by 1/255.

    Floating-point images that a user's dataset has normalised already come with mean 0 and std 1.
    """
    scale = 1 if images.is_floating_point() else 255
    shift, width = (
        torch.tensor(values, dtype=torch.float64, device="cpu").mul(scale).float().to(images.device)[:, None, None]
        for values in (mean, std)
    )
    return images.to(torch.float32, copy=True).sub_(shift).div_(width)
