"""The batches of an epoch as a function of (seed, epoch, position): there is no state to save.

The order and all random numbers of an epoch are drawn when it begins, so a batch does not depend on the batches
before it, on the number of workers, or on whether images are held in memory or streamed.
Shapes: S positions, B batch, C channels, H W pixels, K classes, V numbers.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any, Required, TypedDict, Unpack

import torch
from torch import Tensor

from swa_cli.data import pytree
from swa_cli.data.augment import (
    Augment,
    Draws,
    Mix,
    crop_and_flip,
    crop_and_flip_masks,
    cut_out,
    draw,
    draw_mixes,
    erase,
    mix_batch,
    one_hot,
)
from swa_cli.data.color_jitter import jitter_colors, normalize
from swa_cli.data.device_decoding import stream_decoded
from swa_cli.data.randomness import generator
from swa_cli.data.splits import Split, Target, cut_spans, show
from swa_cli.data.stream import FileDataset, MakeError, Pass, Positions, length_of, stream
from swa_cli.data.transforms import DrawnView, Pixels, TrainingView, draw_views
from swa_cli.errors import UserError

CPU = torch.device("cpu")
GROUP_BYTES = 4 << 20  # of stored images that are cropped in one call: several small batches, few enough for the cache
GROUP_BYTES_ON_DEVICE = 64 << 20  # the same of images that lie on an accelerator: each call costs the host its launch


class Delivery(TypedDict, total=False):
    """What all batches are given: how they are normalized, where they go, and how a streamed split is read."""

    mean: Required[tuple[float, ...]]  # per channel, see `normalize`; none if the inputs are not images: not changed
    std: Required[tuple[float, ...]]
    device: torch.device  # where the batches go, and are augmented
    is_resident: bool  # the samples lie on the device, too: of each group just rows and random numbers go there
    workers: int  # processes that read a streamed split
    decodes_on_device: bool  # the device, not these processes, decodes the JPEG files of a streamed split
    error: MakeError  # makes the exception for a sample that cannot be read: the caller knows whether that ends a run


@dataclass(frozen=True, eq=False)
class Batches:
    """Re-iterable pairs (images (B, C, H, W) float32, labels), or other inputs and targets, the same in each pass.

    Labels depend on the split's `target`: classes (B,) int64, several labels (B, K) float32 of 0 and 1, masks (B, H, W)
    int64 where 255 is ignored, or values (B, V) float32. Masks are cropped and flipped with their images, padded with
    255. Classes of mixed images are probabilities (B, K) float32.
    """

    split: Split
    rows: Tensor  # (S,) the row of the split at each position
    spans: tuple[Positions, ...]  # positions of each batch
    mixes: tuple[Mix | None, ...]  # of each batch
    draws: Draws | None  # of the S positions
    seed: int
    key: tuple[str | int, ...]  # decides, with seed and position, the random transforms of a user's dataset
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device = CPU
    is_resident: bool = False
    workers: int = 0
    decodes_on_device: bool = False
    num_classes: int = 0  # K, if images are mixed
    view: TrainingView | None = None  # of each image; None: as the split shows it
    error: MakeError = UserError
    mix_distance: int = 1  # an image is mixed with the one so many places before it
    is_part: bool = False  # of larger batches: a mixed one begins with the `mix_distance` images before its first

    def __len__(self) -> int:
        return len(self.spans)

    def __iter__(self) -> Generator[tuple[Any, Any], None, None]:
        groups = self._groups()
        for group, (images, labels) in zip(groups, self._stored(groups), strict=True):
            spans = self.spans[group]
            draws = None if self._image_draws is None else self._image_draws[_positions(spans)]
            images = pytree.batch_to_device(images, self.device)
            for place, mix in zip(_places(spans), self.mixes[group], strict=True):
                batch, targets = pytree.slice_batch(images, place), pytree.slice_batch(labels, place)
                if mix is not None and self.split.target == "class":
                    targets = one_hot(targets, num_classes=self.num_classes, error=self.error)
                targets = pytree.batch_to_device(targets, self.device)
                if self.split.target == "multilabel":
                    targets = targets.float()
                if self.mean:
                    batch = self._normalized(batch, draws=None if draws is None else draws[place])
                    targets = targets.long() if self.split.target == "mask" else targets
                if mix is not None:
                    batch, targets = mix_batch(batch, targets, mix=mix, distance=self.mix_distance)
                    skipped = self.mix_distance if self.is_part else 0
                    batch, targets = batch[skipped:], targets[skipped:]
                yield batch, targets

    def first(self) -> tuple[Any, Any]:
        """Return the first batch; loader processes read no others."""
        (batch,) = replace(self, spans=self.spans[:1], mixes=self.mixes[:1])
        return batch

    @property
    def _image_draws(self) -> Draws | None:
        return self.draws if self.mean else None

    def part(self, rank: int, *, size: int) -> Batches:
        """Return the part of each batch for one of `size` processes: contiguous samples, equal to the whole batch's.

        The parts of a batch differ by one sample at most. Each image is mixed with one before it in the whole batch, so
        a part is read together with the images before its first.
        """
        if size == 1:
            return self
        spans: list[Positions] = []
        for span, mix in zip(self.spans, self.mixes, strict=True):
            assert isinstance(span, slice), "a part cannot be divided"
            length = span.stop - span.start
            first, last = (span.start + length * bound // size for bound in (rank, rank + 1))
            before = torch.arange(first - self.mix_distance, first).sub_(span.start).remainder_(length).add_(span.start)
            spans.append(slice(first, last) if mix is None else torch.cat([before, torch.arange(first, last)]))
        return replace(self, spans=tuple(spans), is_part=True)

    def shares(self, size: int) -> list[Batches]:
        """Distribute whole batches over `size` processes, in order; if there are too few, each process gets all.

        A tiny last batch, which a BatchNorm pass joins to the one before it, stays with that one.
        """
        sizes = [length_of(span) for span in self.spans[-2:]]
        num_units = len(self) - (len(sizes) == 2 and 2 * sizes[1] < sizes[0])
        if size == 1 or num_units < size:
            return [self] * size
        bounds = [num_units * rank // size for rank in range(size)]
        cuts = [slice(first, last) for first, last in zip(bounds, [*bounds[1:], len(self)], strict=True)]
        return [replace(self, spans=self.spans[cut], mixes=self.mixes[cut]) for cut in cuts]

    def _normalized(self, images: Tensor, *, draws: Draws | None) -> Tensor:
        """Apply color jitter, normalization, cutout and erasing to cropped images; return them channels last."""
        if draws is not None and draws.colors is not None:
            images = jitter_colors(images, draws=draws.colors)
        images = normalize(images, mean=self.mean, std=self.std)
        if draws is not None:
            images = cut_out(images, draws=draws)
            images = erase(images, draws=draws) if draws.augment.random_erasing else images
        return images

    def _groups(self) -> list[slice]:
        """Return the batches that are read and cropped in one call; streamed ones come one by one."""
        if self.split.dataset is not None or not self.spans:
            return cut_spans(len(self), size=1)
        num_bytes = sum(part[:1].nbytes for part in pytree.named_tensors(self.split.images).values())
        limit = GROUP_BYTES_ON_DEVICE if self.is_resident else GROUP_BYTES
        return cut_spans(len(self), size=max(1, limit // (num_bytes * length_of(self.spans[0]))))

    def _stored(self, groups: Sequence[slice]) -> Iterator[tuple[Any, Any]]:
        """Yield the batches of each group, cropped and flipped: where they are read, or on the device.

        Labels other than masks stay where they lie.
        """
        split, draws = self.split, self._image_draws
        change = None if draws is None else partial(_crop_and_flip, draws=draws, target=split.target)
        if split.dataset is not None:
            assert split.indices is not None
            reading = Pass(
                rows=split.indices[self.rows],
                spans=self.spans,
                seed=self.seed,
                key=self.key,
                workers=self.workers,
                error=self.error,
                origin=split.origin,
                view=self.view or split.view,
                change=change,
            )
            if self.decodes_on_device:
                assert isinstance(split.dataset, FileDataset), "the data are checked when they are opened"
                yield from stream_decoded(split.dataset, reading, device=self.device)
            else:
                yield from stream(split.dataset, reading, target=split.target)
            return
        assert split.images is not None
        assert split.labels is not None
        stored = split.on(self.device) if self.is_resident else (split.images, split.labels)
        for group in groups:
            positions = _positions(self.spans[group])
            rows = self.rows[positions]
            rows = pytree.to_device(rows, self.device) if self.is_resident else rows
            images, labels = (pytree.select_rows(values, rows) for values in stored)
            images, labels = self._shown(images, labels, positions)
            images = pytree.batch_to_device(images, self.device)
            labels = pytree.batch_to_device(labels, self.device) if split.target == "mask" else labels
            yield change(images, labels, positions) if change else (images, labels)

    def _shown(self, images: Tensor, labels: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the views of images (B, C, H, W) that lie in memory, and of their masks."""
        if self.view is None:
            return show(images, labels, view=self.split.view, target=self.split.target)
        views = [DrawnView(self.view, draws) for draws in draw_views(positions, seed=self.seed, key=self.key)]
        shown = torch.stack([view.image(Pixels(image)) for view, image in zip(views, images, strict=True)])
        if self.split.target == "mask":
            labels = torch.stack([view.mask(mask) for view, mask in zip(views, labels, strict=True)])
        return shown.contiguous(memory_format=torch.channels_last), labels


def epoch_batches(
    split: Split,
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    augment: Augment,
    start: int = 0,
    num_classes: int = 0,
    view: TrainingView | None = None,
    repeats: int = 1,
    balanced: bool = False,
    **delivery: Unpack[Delivery],
) -> Batches:
    """Return the training batches of an epoch, shuffled and augmented; a last one that is not full is dropped.

    With `repeats` an epoch has as many samples, and each of its images that many times in a row, augmented otherwise:
    Hoffer et al. 2019 (arXiv:1901.09335). Mixed images are different ones then, too.

    Args:
        split: Training samples.
        seed: With `epoch` it decides the order, and with the position the augmentation.
        epoch: From 1.
        batch_size: Samples per batch.
        augment: The settings.
        start: Number of batches to skip, at no cost.
        num_classes: K of the probabilities of mixed classes.
        view: What is shown of each image.
        repeats: How often an image stands in an epoch.
        balanced: Draw each class equally often, see `_balanced_rows`.
        delivery: See `Delivery`.
    """
    num_samples = len(split)
    number, draw_rows = -(-num_samples // repeats), _balanced_rows if balanced else _shuffled_rows
    rows = draw_rows(split, number, seed=seed, key=("order", epoch)).repeat_interleave(repeats)[:num_samples]
    spans = tuple(cut_spans(num_samples - num_samples % batch_size, size=batch_size))
    key = ("augment", epoch)
    return Batches(
        split=split,
        rows=rows,
        spans=spans[start:],
        mixes=draw_mixes(len(spans), augment=augment, seed=seed, key=key)[start:],
        draws=draw(rows, augment=augment, seed=seed, key=key, epoch=epoch),
        seed=seed,
        key=("sample", epoch),
        num_classes=num_classes,
        view=view,
        mix_distance=repeats,
        **delivery,
    )


def plain_batches(split: Split, *, batch_size: int, **delivery: Unpack[Delivery]) -> Batches:
    """Return all samples in their own order for evaluation: nothing is drawn, the last batch may be smaller."""
    spans = tuple(cut_spans(len(split), size=batch_size))
    return Batches(
        split=split,
        rows=torch.arange(len(split)),
        spans=spans,
        mixes=(None,) * len(spans),
        draws=None,
        seed=0,  # random transforms of a user's dataset are the same in every evaluation
        key=("plain",),
        **delivery,
    )


def statistics_batches(
    split: Split,
    *,
    seed: int,
    batch_size: int,
    augment: Augment,
    samples: int | None = None,
    num_classes: int = 0,
    view: TrainingView | None = None,
    balanced: bool = False,
    **delivery: Unpack[Delivery],
) -> Batches:
    """Return the batches for BatchNorm statistics: one seeded shuffle, the same in every epoch, nothing dropped.

    `samples` is their number, the first ones of the shuffle, or None for all; the others are as in `epoch_batches`.
    With `balanced`, they are drawn as in training: weights fit the distribution that they were trained on.
    """
    draw_rows = _balanced_rows if balanced else _shuffled_rows
    rows = draw_rows(split, len(split), seed=seed, key=("statistics order",))
    spans = tuple(cut_spans(len(split) if samples is None else min(samples, len(split)), size=batch_size))
    key = ("statistics augment",)
    return Batches(
        split=split,
        rows=rows,
        spans=spans,
        mixes=draw_mixes(len(spans), augment=augment, seed=seed, key=key),
        draws=draw(rows, augment=augment, seed=seed, key=key),
        seed=seed,
        key=("statistics sample",),
        num_classes=num_classes,
        view=view,
        **delivery,
    )


def _shuffled_rows(split: Split, number: int, *, seed: int, key: tuple[str | int, ...]) -> Tensor:
    """Return the first `number` rows of a permutation of the split."""
    return torch.randperm(len(split), generator=generator(seed, *key))[:number]


def _balanced_rows(split: Split, number: int, *, seed: int, key: tuple[str | int, ...]) -> Tensor:
    """Return `number` rows in random order, of each class that has samples equally many, or one more.

    The rows of a class are those of a permutation, and of further ones where they are not enough: no sample of a class
    is drawn twice more than another. Which classes get one more is random.

    Raises:
        UserError: The labels are unknown, or no classes.
    """
    labels, source = split.labels, generator(seed, *key)
    if split.target != "class" or not isinstance(labels, Tensor):  # a run is refused before, data of a checkpoint here
        raise UserError(
            f"dataset.sampler: the classes of the {split.origin.split} samples are not known, as balanced needs them",
            hint="write dataset.sampler=uniform",
        )
    counts = labels.bincount()
    present = counts.nonzero()[:, 0]
    shares = torch.full((len(present),), number // len(present))
    shares[torch.randperm(len(present), generator=source)[: number % len(present)]] += 1
    sizes = counts[present]
    # All copies of all rows that are needed: whole permutations of each class, of which the last one is cut.
    by_class = labels.argsort(stable=True)
    copies = torch.div(shares + sizes - 1, sizes, rounding_mode="floor").repeat_interleave(sizes)  # of each row
    rows = by_class.repeat_interleave(copies)
    group = labels[rows]
    turn = torch.arange(len(rows)) - (copies.cumsum(0) - copies).repeat_interleave(copies)  # 0, 1, ... of each row
    order = torch.rand(len(rows), generator=source, dtype=torch.float64).argsort()
    order = order[turn[order].argsort(stable=True)]
    order = order[group[order].argsort(stable=True)]  # by class, then by permutation, then at random
    totals = copies.new_zeros(len(counts)).index_add_(0, labels[by_class], copies)[present]
    place = torch.arange(len(rows)) - (totals.cumsum(0) - totals).repeat_interleave(totals)  # of each in its class
    drawn = rows[order[place < shares.repeat_interleave(totals)]]
    return drawn[torch.randperm(number, generator=source)]


def _crop_and_flip(images: Any, labels: Any, positions: Tensor, *, draws: Draws, target: Target) -> tuple[Any, Any]:
    draws = draws[positions]
    if target == "mask":
        labels = crop_and_flip_masks(labels, draws=draws)
    return crop_and_flip(images, draws=draws), labels


def _positions(spans: Sequence[Positions]) -> Tensor:
    """Concatenate the positions of all spans."""
    return torch.cat([torch.arange(span.start, span.stop) if isinstance(span, slice) else span for span in spans])


def _places(spans: Sequence[Positions]) -> list[slice]:
    """Return the place of each span's samples among the concatenated ones."""
    ends = list(accumulate(map(length_of, spans)))
    return [slice(first, last) for first, last in zip([0, *ends[:-1]], ends, strict=True)]
