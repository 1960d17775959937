"""Part of a dataset: in memory, or rows of a torch Dataset that is streamed; what is done to both alike.

A sample has an image and a label: a class, a mask that gives each pixel a class, or numbers.
Shapes: N samples, C channels, H W pixels, V numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from swa_cli.data import folders, pytree
from swa_cli.data.masks import MaskDataset, decode_masks
from swa_cli.data.randomness import generator
from swa_cli.data.stream import ANYWHERE, Origin, spans_of, stream
from swa_cli.errors import UserError

Target = Literal["class", "mask", "value", "own"]
Progress = Callable[[str, int, int], None]  # (what, done, total)

_STATISTICS_SAMPLES = 10_000  # for constants that are not known: as many in memory as streamed
READ_AT_ONCE = 64  # samples per streamed batch here


@dataclass(frozen=True, eq=False)
class Split:
    """Images in memory, or rows of a dataset: either `images` or `dataset` and `indices` are there."""

    labels: Any = None  # as `target` says; None where only reading the samples tells
    images: Any = (
        None  # (N, C, H, W) uint8, best channels last; floating point or no image if a user's dataset gave that
    )
    dataset: Dataset[Any] | None = None  # gives (image, label)
    indices: Tensor | None = None  # (N,) int64: the rows of `dataset` which form the split
    target: Target = "class"  # labels are (N,) int64 | mask: (N, H, W) uint8, 255 ignored | value: (N, V) float32 | own
    origin: Origin = ANYWHERE

    def __len__(self) -> int:
        held = self.images if self.images is not None else self.indices
        assert held is not None, "a split has images or indices"
        return pytree.num_samples(held)


def take(split: Split, rows: Tensor) -> Split:
    """Some samples of a split."""

    def taken(held: Any) -> Any:
        return None if held is None else pytree.rows_of(held, rows)

    return replace(split, labels=taken(split.labels), images=taken(split.images), indices=taken(split.indices))


def validation_rows(split: Split, *, number: int, seed: int, stratify: bool) -> Tensor:
    """Which samples of a training split validate, sorted: a function of the seed and, if stratified, of the labels.

    Stratified, each class gives its share of `number` (largest remainders; which of equal ones, decides the seed), and
    keeps at least one training sample as long as that is possible. Within a class it is the first samples of one
    permutation of the split, which alone decides where there are no known classes, or `stratify` is off.
    """
    order = torch.randperm(len(split), generator=generator(seed, "val"))
    if not stratify or split.target != "class" or split.labels is None:
        return order[:number].sort().values
    counts = split.labels.bincount()
    shares = _shares(counts, number=number, ties=torch.randperm(len(counts), generator=generator(seed, "val classes")))
    labels = split.labels[order]
    return torch.cat([order[labels == label][:share] for label, share in enumerate(shares.tolist())]).sort().values


def _shares(counts: Tensor, *, number: int, ties: Tensor) -> Tensor:
    """How many of each class (K,) validate; of equal remainders those come first that stand first in `ties` (K,)."""
    exact = counts.double() * number / counts.sum()
    shares, most = exact.floor().long(), (counts - 1).clamp(min=0)
    shares = shares.minimum(most)
    while int(shares.sum()) < number:
        if not bool((shares < most).any()):  # only with samples of which a class has no other one
            most = counts
        wanted = (exact - shares).where(shares < most, -torch.inf)[ties]
        shares[ties[wanted.argmax()]] += 1
    return shares


def held(split: Split, *, what: str, seed: int, workers: int, progress: Progress | None) -> Split:
    """The split with its images and labels in memory."""
    assert split.dataset is not None
    assert split.indices is not None
    if isinstance(split.dataset, folders.FolderDataset):
        images = folders.decode(split.dataset, rows=split.indices, what=what, progress=progress)
        return replace(split, images=images, dataset=None, indices=None)
    if isinstance(split.dataset, MaskDataset):
        images, labels = decode_masks(split.dataset, rows=split.indices, what=what, progress=progress)
        return replace(split, labels=labels, images=images, dataset=None, indices=None)
    batches = []
    spans = spans_of(len(split), size=READ_AT_ONCE)
    read = stream(
        split.dataset,
        rows=split.indices,
        spans=spans,
        target=split.target,
        seed=seed,
        words=("hold",),
        workers=workers,
        origin=split.origin,
    )
    for span, batch in zip(spans, read, strict=True):
        batches.append(batch)
        if progress:
            progress(what, span.stop, len(split))
    kinds = {pytree.kind_of(pytree.mapped(images, lambda values: values[0])) for images, _ in batches}
    if len(kinds) > 1:
        raise UserError(
            "images of the dataset differ: " + ", ".join(sorted(kinds)),
            hint="let the dataset resize or crop all images to one size",
        )
    images, labels = (pytree.joined(parts) for parts in zip(*batches, strict=True))
    return replace(split, labels=labels, images=images, dataset=None, indices=None)


def samples_of(split: Split, *, rows: Tensor, seed: int, workers: int) -> Iterator[tuple[Any, Any]]:
    """Batches of the images, or other inputs, and labels at some rows of a split."""
    if split.images is not None:
        num_values = sum(values[0].numel() for values in pytree.tensors(split.images).values())
        size = max(1, 2**22 // num_values)  # float64 copies of 32 MB
        parts = (take(split, rows[span]) for span in spans_of(len(rows), size=size))
        return ((part.images, part.labels) for part in parts)
    assert split.dataset is not None
    assert split.indices is not None
    spans = spans_of(len(rows), size=READ_AT_ONCE)
    return stream(
        split.dataset,
        rows=split.indices[rows],
        spans=spans,
        target=split.target,
        seed=seed,
        words=("statistics",),
        workers=workers,
        origin=split.origin,
    )


def mean_std(split: Split, *, seed: int, workers: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per channel, in float64, of evenly spaced samples of a split: the same ones in memory and streamed.

    Sums of uint8 and of their squares are exact in float64. Floating-point images get 0 and 1.
    """
    count = min(len(split), _STATISTICS_SAMPLES)
    rows = torch.arange(count) * len(split) // count
    total = square = torch.zeros(())
    num_pixels = 0
    for images, _ in samples_of(split, rows=rows, seed=seed, workers=workers):
        channels = images.shape[1]
        if images.is_floating_point():
            return (0.0,) * channels, (1.0,) * channels
        pixels = images.to(torch.float64)
        total = total + pixels.sum((0, 2, 3))
        square = square + pixels.square().sum((0, 2, 3))
        num_pixels += pixels.numel() // channels
    mean = total / num_pixels
    std = (square / num_pixels - mean.square()).clamp(min=0).sqrt().clamp(min=1)  # a constant channel: one grey level
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
