"""Splits of a dataset: as they are found, in memory or streamed; divided, read into memory, measured.

A sample is an input and a label: a class, several classes, a mask that gives each pixel a class, or numbers.
Shapes: N samples, C channels, H W pixels, V numbers, K classes.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from swa_cli.data import pytree
from swa_cli.data.image_file import Progress, decode_rows, unreadable
from swa_cli.data.randomness import generator
from swa_cli.data.samples import UNKNOWN_ORIGIN, Origin, unknown_class
from swa_cli.data.stream import FileDataset, Pass, stream
from swa_cli.data.transforms import EvaluationView, Pixels
from swa_cli.errors import UserError

Target = Literal["class", "multilabel", "mask", "value", "own"]

READ_BATCH = 64  # samples per streamed batch
_STATISTICS_SAMPLES = 10_000  # that measure mean and std: the same number in memory and streamed
_NAMED_CLASSES = 5  # that a warning lists


class Arrays(NamedTuple):
    """All samples of a split in memory."""

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # as the target says, see `Split`


Stored = Arrays | FileDataset | Dataset[Any]  # a split as it is found: in memory, or to be streamed


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the reader of a dataset returns; class names, constants and target only where its entry has None."""

    splits: Mapping[str, Stored]  # those of "train", "val" and "test" that exist
    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    target: Target | None = None
    layout: str | None = None  # "CHW" or "HWC" of images from user code; None if their shape tells
    notes: tuple[str, ...] = ()  # what a person should know and did not ask for
    warnings: tuple[str, ...] = ()
    contents: tuple[str, ...] = ()  # the files found and left out


@dataclass(frozen=True, eq=False)
class Split:
    """Either inputs in memory (`images`), or rows (`indices`) of files or of a torch Dataset that is streamed."""

    labels: Any = None  # as `target` says; None if unknown until the samples are read
    images: Any = None  # (N, C, H, W) uint8, best channels last; another type or no image if user code gives that
    dataset: FileDataset | Dataset[Any] | None = None
    indices: Tensor | None = None  # (N,) int64 rows of `dataset`
    target: Target = "class"  # labels: class (N,) int64, multilabel (N, K) uint8 of 0 and 1, mask (N, H, W) uint8 with
    # 255 ignored, value (N, V) float32
    origin: Origin = UNKNOWN_ORIGIN
    view: EvaluationView | None = None  # what is shown of each image; None: the image as it is
    read_from: tuple[FileDataset, Tensor] | None = None  # the files and their rows (N,) that `images` were read from

    @property
    def names(self) -> Iterator[str] | None:
        """The path of each sample, or its place in another file; None where samples are no image files."""
        files, rows = self.read_from or (self.dataset, self.indices)
        if not isinstance(files, FileDataset) or rows is None:
            return None
        return map(files.name, rows.tolist())

    def __len__(self) -> int:
        rows = self.images if self.images is not None else self.indices
        assert rows is not None, "a split has images or indices"
        return pytree.batch_size(rows)

    @property
    def num_bytes(self) -> int:
        """The memory of the samples that lie in it, labels included; 0 where they are streamed."""
        held = (self.images, self.labels) if self.images is not None else ()
        return sum(part.nbytes for values in held for part in pytree.named_tensors(values).values())

    @cached_property
    def _copies(self) -> dict[torch.device, tuple[Any, Any]]:
        return {}

    def on(self, device: torch.device) -> tuple[Any, Any]:
        """Return `images` and `labels` on a device, to which they are copied once; images stay channels last."""
        if device not in self._copies:
            images, labels = (
                pytree.map_tensors(values, lambda part: part.to(device)) for values in (self.images, self.labels)
            )
            self._copies[device] = images, labels
        return self._copies[device]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How samples are read before a run."""

    seed: int = 0  # decides what random transforms do
    workers: int = 0  # processes that read a streamed split
    progress: Progress | None = None


def take(split: Split, rows: Tensor) -> Split:
    """Return the samples at some rows as a split."""

    def select(values: Any) -> Any:
        return None if values is None else pytree.select_rows(values, rows)

    files = split.read_from and (split.read_from[0], select(split.read_from[1]))
    return replace(
        split,
        labels=select(split.labels),
        images=select(split.images),
        indices=select(split.indices),
        read_from=files,
    )


Broken = dict[int, str]  # what is wrong with the image files that cannot be read, by their places in a split


def without_broken(
    splits: Mapping[str, Split], *, known: Mapping[str, Broken], progress: Progress | None
) -> tuple[dict[str, Split], dict[str, Broken]]:
    """Leave out the samples whose files cannot be read; decode each once for it, JPEG files at 1/8 of their size.

    `known` are the broken files of splits that need no look.

    Returns:
        The splits, and the files that are left out of each.

    Raises:
        UserError: A split has no readable files.
    """
    found, broken = dict(splits), dict[str, Broken]()
    for name, split in splits.items():
        if isinstance(split.dataset, FileDataset) and split.indices is not None:
            errors = known.get(name)
            if errors is None:
                look = partial(check, split.dataset, split.indices)
                errors = unreadable(look, len(split), what=f"looking at {name} images", progress=progress)
            broken[name] = errors
            is_readable = torch.ones(len(split), dtype=torch.bool)
            is_readable[list(errors)] = False
            if not bool(is_readable.any()):
                reason = errors[len(split) - 1]
                raise UserError(f"no image of the {name} split can be read: {reason}", hint="repair the files")
            found[name] = take(split, is_readable.nonzero()[:, 0])
    return found, broken


def check(dataset: FileDataset, rows: Tensor, place: int) -> None:
    """Decode the image file at a place of the rows (N,), see `FileDataset.check`."""
    dataset.check(int(rows[place]))


# --- the validation split


def split_off_validation(
    train: Split, *, val: str | int, seed: int, stratify: bool, class_names: Sequence[str]
) -> tuple[dict[str, Split], list[str]]:
    """Split `train` into "train" and "val"; return them (train alone if `val` is 0) and warnings."""
    number = num_validation(val, num_train=len(train))
    if not number:
        return {"train": train}, []
    rows = validation_rows(train, number=number, seed=seed, stratify=stratify)
    is_left = torch.ones(len(train), dtype=torch.bool)
    is_left[rows] = False
    parts = {"val": take(train, rows), "train": take(train, is_left.nonzero()[:, 0])}
    if train.target not in ("class", "multilabel"):
        return parts, []
    if train.labels is None:
        unknown = (
            "dataset.stratify: the labels are unknown until all samples are read, so the validation samples do not "
            "keep the class proportions. Give the dataset an attribute `targets`, or set dataset.stratify=false"
        )
        return parts, [unknown] if stratify else []
    before, after = (class_counts(part, num_classes=len(class_names)) for part in (train, parts["train"]))
    lost = [class_names[label] for label in ((before > 0) & (after == 0)).nonzero()[:, 0].tolist()]
    listed = ", ".join(lost[:_NAMED_CLASSES]) + ", ..." * (len(lost) > _NAMED_CLASSES)
    return parts, [
        f"dataset.val = {val} leaves no training image of {len(lost)} of the classes: {listed}"
    ] if lost else []


def num_validation(val: str | int, *, num_train: int) -> int:
    """Return the number of validation samples for `dataset.val`; a percentage above 0 gives at least one.

    Raises:
        UserError: `val` is neither a percentage nor a number, or leaves no training samples.
    """
    percent = re.fullmatch(r"(\d+(?:\.\d+)?)%", val) if isinstance(val, str) else None
    if (isinstance(val, str) and percent is None) or (isinstance(val, int) and val < 0):
        raise UserError(f"dataset.val = {val!r} is not a share", hint="write 10%, or a number of samples, or 0")
    count = val if isinstance(val, int) else 0
    if percent and float(percent[1]):
        count = max(1, round(num_train * float(percent[1]) / 100))
    if count >= num_train:
        raise UserError(
            f"dataset.val = {val} leaves nothing to train: the training set has {num_train:,} samples",
            hint="make dataset.val smaller",
        )
    return count


def validation_rows(split: Split, *, number: int, seed: int, stratify: bool) -> Tensor:
    """Return the sorted rows of the validation samples: a function of the seed and, if stratified, of the labels.

    With `stratify` each class gives its share of `number` (largest remainders; the seed breaks ties) and keeps at
    least one training sample where possible. The samples of a class are the first ones in one permutation of the
    split. Without `stratify` or known classes they are the first ones of the permutation itself. A sample with several
    labels counts as one of the class that is rarest among them; samples without any are a class of their own.
    """
    order = torch.randperm(len(split), generator=generator(seed, "val"))
    if not stratify or split.target not in ("class", "multilabel") or split.labels is None:
        return order[:number].sort().values
    classes = split.labels if split.target == "class" else _rarest(split.labels)
    counts = classes.bincount()
    shares = _shares(counts, number=number, ties=torch.randperm(len(counts), generator=generator(seed, "val classes")))
    by_class = order[classes[order].argsort(stable=True)]
    place = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)  # of each in its class
    return by_class[place < shares.repeat_interleave(counts)].sort().values


def class_counts(split: Split, *, num_classes: int) -> Tensor:
    """Return the number of samples (K,) of each class; one with several labels counts for each of them."""
    assert split.labels is not None, "the caller knows the labels"
    if split.target == "multilabel":
        return split.labels.sum(0, dtype=torch.int64)
    return split.labels.bincount(minlength=num_classes)


def _rarest(labels: Tensor) -> Tensor:
    """Return of each sample (N, K) the class that the fewest samples have, K without labels."""
    counts = labels.sum(0, dtype=torch.int64)
    by_count = counts.argsort(stable=True)
    ordered = torch.cat([labels[:, by_count], labels.new_ones(len(labels), 1)], dim=1)
    return torch.cat([by_count, by_count.new_tensor([len(counts)])])[ordered.argmax(1)]  # the first 1


def _shares(counts: Tensor, *, number: int, ties: Tensor) -> Tensor:
    """Return the validation samples per class (K,); `ties` (K,) is the order of classes with equal remainders."""
    exact = counts.double() * number / counts.sum()
    shares, most = exact.floor().long(), (counts - 1).clamp(min=0)
    shares = shares.minimum(most)
    while (missing := number - int(shares.sum())) > 0:
        if not bool((shares < most).any()):  # every class is down to its last training sample
            most = counts
        remainders = (exact - shares).where(shares < most, -torch.inf)[ties]
        largest = ties[remainders.argsort(stable=True, descending=True)]
        shares[largest[: min(missing, int((shares < most).sum()))]] += 1
    return shares


# --- in memory


def bytes_in_memory(split: Split) -> int:
    """Return the bytes of the decoded samples of a split of image files."""
    assert isinstance(split.dataset, FileDataset)
    return (3 if split.labels is not None else 4) * math.prod(split.dataset.shape) * len(split)


def fits_memory(num_bytes: int) -> bool:
    """Return whether `cache: auto` holds this much in memory: at most a quarter of what is available."""
    return num_bytes <= available_memory() / 4


def available_memory() -> int:
    """Return the bytes that can be allocated without swapping; all memory where the system does not tell."""
    try:
        meminfo = Path("/proc/meminfo").read_text()
        return int(re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)[1]) * 1024  # type: ignore[index]
    except (OSError, TypeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def load_into_memory(split: Split, *, what: str, reading: Reading) -> Split:
    """Read all samples of a streamed split; `what` names the work for the progress.

    Raises:
        UserError: A sample cannot be read, or images differ in size.
    """
    assert split.dataset is not None
    assert split.indices is not None
    if isinstance(split.dataset, FileDataset):
        files, view = split.dataset, split.view or EvaluationView()
        number, shape = len(split), files.shape
        images = torch.empty((number, 3, *shape), dtype=torch.uint8, memory_format=torch.channels_last)
        labels = torch.empty((number, *shape), dtype=torch.uint8) if split.labels is None else split.labels
        into = (images.numpy(), labels.numpy()) if split.labels is None else (images.numpy(),)
        decode_rows(
            lambda row: tuple(part.numpy() for part in files.read(row, view)),
            rows=split.indices,
            into=into,
            what=what,
            progress=reading.progress,
        )
        read_from = (files, split.indices)
        return replace(split, labels=labels, images=images, dataset=None, indices=None, view=None, read_from=read_from)
    batches: list[tuple[Any, Any]] = []
    num_read = 0
    for images, labels in stream_rows(split, rows=torch.arange(len(split)), key=("hold",), reading=reading):
        batches.append((images, labels))
        num_read += pytree.batch_size(images)
        if reading.progress:
            reading.progress(what, num_read, len(split))
    kinds = {pytree.describe(pytree.first_sample(images)) for images, _ in batches}
    if len(kinds) > 1:
        raise UserError(
            f"the images of the dataset differ: {', '.join(sorted(kinds))}",
            hint="let the dataset resize or crop all images to one size",
        )
    images, labels = (pytree.concatenate(parts) for parts in zip(*batches, strict=True))
    return replace(split, labels=labels, images=images, dataset=None, indices=None, view=None)


# --- some samples


def read_rows(split: Split, *, rows: Tensor, reading: Reading) -> Iterator[tuple[Any, Any]]:
    """Yield batches of (inputs, labels) at some rows of a split, as they are stored."""
    if split.images is None:
        yield from stream_rows(split, rows=rows, key=("statistics",), reading=reading)
        return
    num_values = sum(values[0].numel() for values in pytree.named_tensors(split.images).values())
    size = max(1, 2**22 // num_values)  # float64 copies of 32 MB
    for span in cut_spans(len(rows), size=size):
        part = take(split, rows[span])
        yield show(part.images, part.labels, view=split.view, target=split.target)


def show(images: Any, labels: Any, *, view: EvaluationView | None, target: Target) -> tuple[Any, Any]:
    """Return the views of a batch that lies in memory, of its masks too; None shows it as it is."""
    if view is None:
        return images, labels
    return view.image(Pixels(images)), view.mask(labels) if target == "mask" else labels


def stream_rows(
    split: Split, *, rows: Tensor, key: tuple[str | int, ...], reading: Reading
) -> Iterator[tuple[Any, Any]]:
    """Yield batches of (inputs, labels) at some rows of a streamed split; `key` names the purpose (see `stream`)."""
    assert split.dataset is not None
    assert split.indices is not None
    batches = Pass(
        rows=split.indices[rows],
        spans=cut_spans(len(rows), size=READ_BATCH),
        seed=reading.seed,
        key=key,
        workers=reading.workers,
        origin=split.origin,
        view=split.view,
    )
    return stream(split.dataset, batches, target=split.target)


def mean_std(split: Split, *, reading: Reading) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure mean and std per channel in float64 on evenly spaced samples: the same ones in memory and streamed.

    Sums of uint8 values and of their squares are exact in float64. Floating-point images get 0 and 1.
    """
    count = min(len(split), _STATISTICS_SAMPLES)
    rows = torch.arange(count) * len(split) // count
    total = square = torch.zeros(())
    num_pixels = 0
    for images, _ in read_rows(split, rows=rows, reading=reading):
        channels = images.shape[1]
        if images.is_floating_point():
            return (0.0,) * channels, (1.0,) * channels
        pixels = images.to(torch.float64)
        total = total + pixels.sum((0, 2, 3))
        square = square + pixels.square().sum((0, 2, 3))
        num_pixels += pixels.numel() // channels
    mean = total / num_pixels
    std = (square / num_pixels - mean.square()).clamp(min=0).sqrt().clamp(min=1)  # constant channel: one gray level
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def require_classes(split: Split) -> None:
    """Check that each known label is one of the classes.

    Raises:
        UserError: One is not; the message names it, its sample and the split.
    """
    labels, number = split.labels, split.origin.num_classes
    if split.target != "class" or labels is None or not number:
        return
    wrong = ((labels < 0) | (labels >= number)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise unknown_class(int(labels[row]), row=row, origin=split.origin, span=(int(labels.min()), int(labels.max())))


def cut_spans(num_samples: int, *, size: int) -> list[slice]:
    """Cut 0..num_samples into spans of `size`; the last one may be shorter."""
    return [slice(first, min(first + size, num_samples)) for first in range(0, num_samples, size)]
