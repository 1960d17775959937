"""The batches of an epoch as a function of (seed, epoch, position): nothing to save, nothing to drift.

The order and all random numbers of an epoch are drawn at its beginning, so a batch does not depend on the
batches before it, on the number of workers, or on whether images lie in memory or are streamed.
Shapes: S positions, B batch, C channels, H W pixels, K classes, V numbers.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from swa_cli.data import pytree
from swa_cli.data.augment import Augment, Draws, draw
from swa_cli.data.color_jitter import change_colours, normalize
from swa_cli.data.crop_flip import crop_and_flip, crop_and_flip_masks, cut_out
from swa_cli.data.mixing import Mix, draw_mixes, mixed, one_hot
from swa_cli.data.pytree import moved
from swa_cli.data.randomness import generator
from swa_cli.data.splits import Split
from swa_cli.data.stream import Positions, spans_of, stream
from swa_cli.errors import EXIT_FAILED

GROUP_BYTES = 4 << 20  # of stored images: several small batches cost hardly more calls than one, and stay in the cache


@dataclass(frozen=True, eq=False)
class Batches:
    """Re-iterable pairs (images (B, C, H, W) float32, labels), or other inputs and targets, the same each time.

    Labels are as the split's `target` says: classes (B,) int64, masks (B, H, W) int64 in which 255 is ignored, or
    values (B, V) float32. Masks are cropped and mirrored with their images; what the crop adds is 255. Classes of mixed
    images are probabilities (B, K) float32.
    """

    split: Split
    rows: Tensor  # (S,) which sample of the split stands at each position
    spans: tuple[Positions, ...]  # those of each batch
    mixes: tuple[Mix | None, ...]  # of each batch
    draws: Draws | None  # of the S positions
    seed: int
    words: tuple[str | int, ...]  # what random transforms of a user's dataset depend on, beside seed and position
    mean: tuple[float, ...]  # none where the inputs are no images: these are given as they are
    std: tuple[float, ...]
    device: torch.device
    workers: int
    num_classes: int = 0  # K, where images are mixed
    is_part: bool = False  # of larger batches: where they are mixed, each is preceded by the image it begins with

    def __len__(self) -> int:
        return len(self.spans)

    def __iter__(self) -> Generator[tuple[Any, Any], None, None]:
        groups = self._groups()
        for group, (images, labels) in zip(groups, self._stored(groups), strict=True):
            spans = self.spans[group]
            draws = self.draws[_positions(spans)] if self.draws is not None and self.mean else None
            images = self._moved(images)
            if draws is not None:
                images = crop_and_flip(images, draws=draws)
                if self.split.target == "mask":
                    labels = crop_and_flip_masks(self._moved(labels), draws=draws)
            for place, mix in zip(_places(spans), self.mixes[group], strict=True):
                batch, targets = pytree.span_of(images, place), pytree.span_of(labels, place)
                if mix is not None:
                    targets = one_hot(targets, num_classes=self.num_classes)
                targets = self._moved(targets)
                if self.mean:
                    batch = self._normalized(batch, draws=None if draws is None else draws[place])
                    targets = targets.long() if self.split.target == "mask" else targets
                if mix is not None:
                    batch, targets = mixed(batch, targets, mix=mix)
                    batch, targets = (batch[1:], targets[1:]) if self.is_part else (batch, targets)
                yield batch, targets

    def part(self, rank: int, *, size: int) -> Batches:
        """What one of `size` processes takes of each batch: a run of its samples, the same as in the whole batch.

        The parts of a batch differ by one sample at most. Each image is mixed with the one before it in the whole
        batch, so a part is read together with the image before its first.
        """
        if size == 1:
            return self
        spans: list[Positions] = []
        for span, mix in zip(self.spans, self.mixes, strict=True):
            assert isinstance(span, slice), "a part has no parts"
            first, last = (span.start + (span.stop - span.start) * bound // size for bound in (rank, rank + 1))
            before = first - 1 if rank else span.stop - 1
            spans.append(slice(first, last) if mix is None else torch.tensor([before, *range(first, last)]))
        return replace(self, spans=tuple(spans), is_part=True)

    def shares(self, size: int) -> list[Batches]:
        """Whole batches for each of `size` processes, in order; all for everyone where there are too few of them.

        A tiny last batch, which a BatchNorm pass joins to the one before it, goes with that one.
        """
        sizes = [_length(span) for span in self.spans[-2:]]
        num_units = len(self) - (len(sizes) == 2 and 2 * sizes[1] < sizes[0])
        if size == 1 or num_units < size:
            return [self] * size
        bounds = [num_units * rank // size for rank in range(size)]
        cuts = [slice(first, last) for first, last in zip(bounds, [*bounds[1:], len(self)], strict=True)]
        return [replace(self, spans=self.spans[cut], mixes=self.mixes[cut]) for cut in cuts]

    def _normalized(self, images: Tensor, *, draws: Draws | None) -> Tensor:
        """Windows of images as the network takes them: with their colours, normalised, cut out, channels last."""
        if draws is not None and draws.colours is not None:
            images = change_colours(images, colours=draws.colours)
        images = normalize(images, mean=self.mean, std=self.std).contiguous(memory_format=torch.channels_last)
        return images if draws is None else cut_out(images, draws=draws)

    def _moved(self, values: Any) -> Any:
        return pytree.mapped(values, lambda part: moved(part, self.device))

    def _groups(self) -> list[slice]:
        """Which batches are read and cropped in one go; streamed ones come one by one."""
        if self.split.dataset is not None or not self.spans:
            return spans_of(len(self), size=1)
        num_bytes = sum(part[:1].nbytes for part in pytree.tensors(self.split.images).values())
        return spans_of(len(self), size=max(1, GROUP_BYTES // (num_bytes * _length(self.spans[0]))))

    def _stored(self, groups: Sequence[slice]) -> Iterator[tuple[Any, Any]]:
        """The batches of each group as they are stored: not augmented, not normalised, on the CPU."""
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
                origin=split.origin,
            )
            return
        assert split.images is not None
        assert split.labels is not None
        for group in groups:
            rows = self.rows[_positions(self.spans[group])]
            yield pytree.rows_of(split.images, rows), pytree.rows_of(split.labels, rows)


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
    num_classes: int = 0,
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
        num_classes: What mixed classes are probabilities of.
    """
    num_samples = len(split)
    rows = torch.randperm(num_samples, generator=generator(seed, "order", epoch))
    spans = tuple(spans_of(num_samples - num_samples % batch_size, size=batch_size))
    words = ("augment", epoch)
    return Batches(
        split=split,
        rows=rows,
        spans=spans[start:],
        mixes=_mixes(len(spans), augment=augment, seed=seed, words=words)[start:],
        draws=draw(rows, augment=augment, seed=seed, words=words, epoch=epoch),
        seed=seed,
        words=("sample", epoch),
        mean=mean,
        std=std,
        device=torch.device(device),
        workers=workers,
        num_classes=num_classes,
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
    spans = tuple(spans_of(num_samples, size=batch_size))
    return Batches(
        split=split,
        rows=torch.arange(num_samples),
        spans=spans,
        mixes=(None,) * len(spans),
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
    num_classes: int = 0,
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
        num_classes: What mixed classes are probabilities of.
    """
    rows = torch.randperm(len(split), generator=generator(seed, "statistics order"))
    spans = tuple(spans_of(len(split) if samples is None else min(samples, len(split)), size=batch_size))
    words = ("statistics augment",)
    return Batches(
        split=split,
        rows=rows,
        spans=spans,
        mixes=_mixes(len(spans), augment=augment, seed=seed, words=words),
        draws=draw(rows, augment=augment, seed=seed, words=words),
        seed=seed,
        words=("statistics sample",),
        mean=mean,
        std=std,
        device=torch.device(device),
        workers=workers,
        num_classes=num_classes,
    )


def _length(span: Positions) -> int:
    return span.stop - span.start if isinstance(span, slice) else len(span)


def _positions(spans: Sequence[Positions]) -> Tensor:
    """Those of all spans, one after the other."""
    return torch.cat([torch.arange(span.start, span.stop) if isinstance(span, slice) else span for span in spans])


def _places(spans: Sequence[Positions]) -> list[slice]:
    """Where the samples of each span lie among those of all of them."""
    ends = list(accumulate(map(_length, spans)))
    return [slice(first, last) for first, last in zip([0, *ends[:-1]], ends, strict=True)]


def _mixes(num_batches: int, *, augment: Augment, seed: int, words: tuple[str | int, ...]) -> tuple[Mix | None, ...]:
    """How each batch of an epoch is mixed."""
    return draw_mixes(num_batches, mixup=augment.mixup, cutmix=augment.cutmix, seed=seed, words=words)
