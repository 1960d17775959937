"""Image files, or samples of a torch Dataset, as stacked batches, read by loader processes.

A sample is a function of (seed, key, position): the global generators are seeded with these before each sample, so
random transforms in user code do not depend on the number of workers and repeat in a resumed run. A batch is read in
one call, so the generators of the main process are saved and restored once per batch.
An input is an image or, for a user's own network, another tensor, or a tuple or dict of tensors.
Shapes: B batch, C channels, H W pixels, V numbers.
"""

from __future__ import annotations

import math
import mmap
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from swa_cli.data import pytree, transforms
from swa_cli.data.image_file import UNREADABLE_HINT, EncodedPhoto
from swa_cli.data.randomness import generator, preserve_global_rng, seed_globals
from swa_cli.data.samples import UNKNOWN_ORIGIN, Origin, read_sample
from swa_cli.data.transforms import DrawnView, EvaluationView, Pixels, TrainingView, View, draw_views
from swa_cli.errors import UserError

PARENT_ENDS_S = 1.0  # a killed process closes its connections shortly before it is gone
READ_AHEAD = 2  # batches per loader process
CONTEXT = "fork" if sys.platform == "linux" else None  # how they start; None: the way of the system
Positions = slice | Tensor  # of the samples of a batch: a range, or each one (B,)
UNREADABLE = (UserError, OSError, SyntaxError)  # what a sample raises; SyntaxError: PIL, on broken PNG files
_DEATH, _DEATH_HINT = "a loader process died", "if memory was short, set dataset.workers=0"
MakeError = Callable[..., UserError]  # called with (message, hint=...)
Change = Callable[[Any, Any, Tensor], tuple[Any, Any]]  # of a batch: (images, labels, positions (B,)) to both


@runtime_checkable
class FileDataset(Protocol):
    """Image files whose layout its reader has checked."""

    @property
    def labels(self) -> Tensor | None:
        """Classes (N,); None: a sample has a mask. `read` may give another label, which is then taken."""

    @property
    def files(self) -> Sequence[str]:
        """All files that are read, the images first: with their sizes they are the fingerprint of the data."""

    @property
    def checksum(self) -> str:
        """What identifies the data besides `files` and `labels`; empty if nothing else does."""

    @property
    def tables(self) -> Sequence[str]:
        """Files that hold images besides `files`; one that is written anew may hold the same data, or others."""

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the images where nothing is drawn."""

    def __len__(self) -> int:
        """Return N."""

    def name(self, row: int) -> str:
        """Return what messages call the image of a row: its path, or its place in another file.

        Raises:
            OSError: The file that holds it cannot be read; the message names it.
        """

    def photo(self, row: int) -> EncodedPhoto:
        """Return the encoded image of a row.

        Raises:
            OSError: The file that holds it cannot be read; the message names it.
        """

    def check(self, row: int) -> None:
        """Decode what `read` decodes, at a part of its size where that is faster.

        Raises:
            OSError, UserError: As `read` does.
        """

    def read(self, row: int, view: View) -> tuple[Tensor, ...]:
        """Read the view (3, h, w) of an image and, if there are no classes, of its mask (h, w), all uint8.

        What is only known once an image is read may stand in place of its class: a tensor of one shape for all.

        Raises:
            OSError: A file is broken; the message names it.
            UserError: A file is not what the layout says, or it cannot become 8-bit RGB.
        """


@dataclass(frozen=True, eq=False)
class Pass:
    """A pass over a dataset: which samples are read, in which batches, and what is done to them there."""

    rows: Tensor  # of the dataset, at each position
    spans: Sequence[Positions]  # the positions of each batch
    seed: int  # together with `key` and the position it decides what a random transform does
    key: tuple[str | int, ...]  # the purpose of the pass, and the epoch if there is one
    workers: int = 0  # processes that read; 0 reads in this one
    error: MakeError = UserError  # makes the exception to raise: the caller knows whether a failure ends a run
    origin: Origin = UNKNOWN_ORIGIN  # what the dataset is a split of, and the range of its classes
    view: TrainingView | EvaluationView | None = None  # what is shown of each image; None: the image as it is
    change: Change | None = None  # applied to each batch by the process that reads it


def stream(dataset: Dataset[Any] | FileDataset, reading: Pass, *, target: str = "class") -> Iterator[tuple[Any, Any]]:
    """Yield (images (B, C, H, W), labels), or other inputs and targets, for each batch of a pass.

    Views of files that loader processes read lie in memory that later batches overwrite: use them before the next.

    Args:
        dataset: Image files, or a dataset that gives (image, label); an image is a uint8 or float tensor (C, H, W), a
            PIL image, any other tensor, or a tuple or dict of tensors.
        reading: The pass.
        target: What labels are and become: `class`, a number, (B,) int64; `multilabel`, K zeros and ones, (B, K)
            uint8; `mask`, integers (H, W) or a gray or palette PIL image, (B, H, W) uint8; `value`, one or V numbers,
            (B, V) float32; `own`, a tensor or number, or a tuple or dict of them.

    Raises:
        UserError: A sample cannot be read, is not an image of the common size, is not finite, or has a wrong label.
    """
    view, spans = reading.view, reading.spans
    if view is not None and view != EvaluationView():
        transforms.import_operators()
    slots = None
    if reading.workers and spans and isinstance(dataset, FileDataset):
        size = (view and view.size) or dataset.shape
        workers = min(reading.workers, len(spans))
        slots = _Slots.allocate(dataset, size, workers=workers, batch_size=max(length_of(span) for span in spans))
    reader = _BatchReader(dataset, target, reading.seed, reading.key, reading.origin, view, reading.change, slots)
    loaded = load_batches(reader, reading)
    yield from loaded if slots is None else (slots.read(*batch) for batch in loaded)


def load_batches(reader: Dataset[Any], reading: Pass) -> Iterator[Any]:
    """Yield what a reader of batches gives for each batch of a pass, in order; its processes read ahead.

    Args:
        reader: Indexed by (number of the batch, positions, rows); it returns a `Failure` where it fails.
        reading: The pass.

    Raises:
        UserError: The reader has failed, or a loader process has died.
    """
    workers, error = min(reading.workers, len(reading.spans)), reading.error
    with warnings.catch_warnings():
        # The plan warns of more workers than cores, once; torch would at each pass over the data.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        loader = DataLoader(
            reader,
            batch_size=None,  # the sampler already gives whole batches
            sampler=(
                (number, _numbers(span), reading.rows[span].tolist()) for number, span in enumerate(reading.spans)
            ),
            num_workers=workers,
            multiprocessing_context=CONTEXT if workers else None,
            prefetch_factor=READ_AHEAD if workers else None,
            collate_fn=_identity,
            worker_init_fn=_start_worker,
            generator=generator(reading.seed, "workers"),  # otherwise the loader draws from the global one
        )
        batches = iter(loader)
    if workers and threading.current_thread() is threading.main_thread():
        # torch's SIGCHLD handler raises wherever the main process happens to be (in a save, in a destructor). Its check
        # while it waits for a batch also notices a dead worker, and raises here.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        for batch in batches:
            if isinstance(batch, Failure):
                raise error(batch.message, hint=batch.hint)
            yield batch
    except (OSError, EOFError) as cause:
        if not workers:
            raise
        raise error(f"{_DEATH}: {type(cause).__name__} while it sent a batch", hint=_DEATH_HINT) from cause
    except RuntimeError as cause:
        if not str(cause).startswith("DataLoader worker"):
            raise
        raise error(f"{_DEATH}: {str(cause).splitlines()[0]}", hint=_DEATH_HINT) from cause
    finally:
        del batches  # ends its processes now: a garbage collection that finds them later waits 5 s for each


@dataclass(frozen=True, eq=False)
class _Slots:
    """Shared memory for the views of files: batch n lies in slot n modulo their number.

    It is allocated once: a batch in memory of its own would cost a page fault per 4 KiB in both processes (measured on
    50 views of 224 x 224: a sixth of the time). torch's DataLoader reads `READ_AHEAD` batches per process ahead, so the
    slot of the last batch that it gave is not written to before the next one is asked for.
    """

    images: Tensor  # (slots, B, h, w, 3) uint8
    masks: Tensor | None  # (slots, B, h, w) uint8; None: labels are classes

    @classmethod
    def allocate(cls, dataset: FileDataset, size: tuple[int, int], *, workers: int, batch_size: int) -> _Slots:
        """Allocate for batches of views of one size (h, w)."""
        shape = (READ_AHEAD * workers + 1, batch_size, *size)
        return cls(_shared_memory(*shape, 3), _shared_memory(*shape) if dataset.labels is None else None)

    def stack(self, number: int, images: list[Tensor]) -> Tensor:
        """Stack the views (3, h, w) of a batch in its slot."""
        into = self.images[number % len(self.images), : len(images)]
        return pytree.to_nchw(torch.stack([image.permute(1, 2, 0) for image in images], out=into))

    def write(self, number: int, images: Tensor, labels: Tensor) -> tuple[int, int, np.ndarray | None]:
        """Write what was not changed in place, and masks; return what `read` needs."""
        slot, size = number % len(self.images), len(images)
        into = pytree.to_nchw(self.images[slot, :size])
        if images.data_ptr() != into.data_ptr():
            into.copy_(images)
        if self.masks is None:
            return slot, size, labels.numpy()
        self.masks[slot, :size] = labels
        return slot, size, None

    def read(self, slot: int, size: int, classes: np.ndarray | None) -> tuple[Tensor, Tensor]:
        """Return the batch of a slot."""
        images = pytree.to_nchw(self.images[slot, :size])
        if self.masks is None:
            assert classes is not None
            return images, torch.from_numpy(classes)
        return images, self.masks[slot, :size]


def _shared_memory(*shape: int) -> Tensor:
    """Allocate uint8 that loader processes share."""
    if CONTEXT == "fork":  # anonymous: containers often allow no more than 64 MiB of named shared memory
        return torch.frombuffer(mmap.mmap(-1, math.prod(shape)), dtype=torch.uint8).view(shape)
    return torch.empty(shape, dtype=torch.uint8).share_memory_()


@dataclass(frozen=True)
class Failure:
    """A UserError sent from a loader process: exceptions lose their fields on the way."""

    message: str
    hint: str

    @classmethod
    def of(cls, error: Exception, *, sample: str, is_file: bool = True) -> Failure:
        """Return the failure of a sample that cannot be read: of an image file, or of user code."""
        if isinstance(error, UserError):
            return cls(error.message, error.hint)
        hint = UNREADABLE_HINT if is_file else "repair or replace what the dataset cannot read there"
        return cls(f"{sample} cannot be read: {error}", hint)


@dataclass(frozen=True)
class _BatchReader(Dataset[Any]):
    """A dataset of batches, indexed by (number of the batch, positions, rows)."""

    dataset: Any
    target: str
    seed: int
    key: tuple[str | int, ...]
    origin: Origin
    view: TrainingView | EvaluationView | None
    change: Change | None
    slots: _Slots | None

    def __getitem__(self, batch: tuple[int, list[int], list[int]]) -> tuple[Any, ...] | Failure:
        number, positions, rows = batch
        images: list[Any] = []
        labels: list[Any] = []
        is_file = isinstance(self.dataset, FileDataset)  # a slow check: once
        read = self._read_file if is_file else self._read_sample
        with preserve_global_rng():
            for position, row, view in zip(positions, rows, self._views(positions), strict=True):
                try:
                    image, label = read(row, position, view)
                    _require_same_kind(image, row, images, rows, what="images")
                    _require_same_kind(label, row, labels, rows, what="labels")
                except UNREADABLE as error:
                    return Failure.of(error, sample=self.origin.describe(row), is_file=is_file)
                images.append(image)
                labels.append(label)
        if self.slots:
            inputs = self.slots.stack(number, images)
        elif pytree.is_image(images[0]) and images[0].stride(0) == 1:  # decoded channels last: whole rows are copied
            inputs = pytree.to_nchw(torch.stack([image.permute(1, 2, 0) for image in images]))
        else:
            inputs = pytree.stack(images)
        targets = pytree.stack(labels)
        if self.change:
            inputs, targets = self.change(inputs, targets, torch.tensor(positions))
        return self.slots.write(number, inputs, targets) if self.slots else (inputs, targets)

    def _views(self, positions: list[int]) -> Sequence[View | None]:
        if self.view is None:
            return [None] * len(positions)
        return views_at(positions, view=self.view, seed=self.seed, key=self.key)

    def _read_file(self, row: int, position: int, view: View | None) -> tuple[Any, Any]:
        """Read an image file, and its label: the mask or what else comes with it, or else its class."""
        image, *label = self.dataset.read(row, view or EvaluationView())
        return image, label[0] if label else self.dataset.labels[row]

    def _read_sample(self, row: int, position: int, view: View | None) -> tuple[Any, Any]:
        """Read a sample of user code, whose random transforms depend on the seed and the position."""
        seed_globals(self.seed, *self.key, position)
        value, label = read_sample(self.dataset, row, target=self.target, origin=self.origin)
        if view is None:
            return value, label
        if not (pytree.is_image(value) and value.dtype == torch.uint8 and len(value) in (1, 3)):
            raise UserError(
                f"{self.origin.describe(row)}: dataset.image_size and the augmentations of single images need 8-bit"
                f" gray or RGB images, and it is {pytree.describe(value)}",
                hint="leave them out: the dataset may resize and augment its own samples",
            )
        return view.image(Pixels(value)), view.mask(label) if self.target == "mask" else label


def views_at(
    positions: Sequence[int], *, view: TrainingView | EvaluationView, seed: int, key: tuple[str | int, ...]
) -> Sequence[View]:
    """Return the view of each position: drawn from (seed, key, position) in training."""
    if not isinstance(view, TrainingView):
        return [view] * len(positions)
    return [DrawnView(view, draws) for draws in draw_views(torch.tensor(positions), seed=seed, key=key)]


def _require_same_kind(value: Any, row: int, values: list[Any], rows: Sequence[int], *, what: str) -> None:
    """Check that the images, or labels, of a batch agree in shape and type, as they are stacked."""
    if values and (kind := pytree.describe(value)) != (first := pytree.describe(values[0])):
        raise UserError(
            f"samples {rows[0]} and {row} of the dataset differ: {first} and {kind}",
            hint=f"let the dataset resize all {what} to one size",
        )


def _start_worker(_: int) -> None:
    """Ignore SIGINT, so that prefetched batches survive Ctrl-C; stay silent if the main process was killed.

    Without the second, multiprocessing would print a traceback for a connection that no longer answers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def report(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        until = time.monotonic() + PARENT_ENDS_S
        while os.getppid() == parent and time.monotonic() < until:
            time.sleep(0.01)
        if os.getppid() == parent:
            sys.__excepthook__(kind, error, traceback)

    sys.excepthook = report


def length_of(span: Positions) -> int:
    """Return the number of positions."""
    return span.stop - span.start if isinstance(span, slice) else len(span)


def _numbers(span: Positions) -> list[int]:
    return [*range(span.start, span.stop)] if isinstance(span, slice) else span.tolist()


def _identity(batch: Any) -> Any:
    return batch
