"""Samples of a torch Dataset as stacked batches, read by worker processes.

A sample is a function of (seed, words, position): before each one the global generators are seeded with just
that, so a user's random transforms give the same in any number of workers and in a resumed run. Whole batches
are read in one call, so the generators of the main process are saved and restored once a batch.
An input is an image, or for a network of one's own another tensor, or a tuple or dict of tensors.
Shapes: B batch, C channels, H W pixels, V numbers.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from swa_cli.data import pytree
from swa_cli.data.image_file import to_8_bit, to_rgb
from swa_cli.data.masks import IGNORED
from swa_cli.data.randomness import generator, global_state_kept, seed_globals
from swa_cli.errors import EXIT_USAGE, UserError

PARENT_ENDS_S = 1.0  # a process that is killed closes its connections a moment before it is gone
Positions = slice | Tensor  # of a batch: a run of them, or each one (B,)


@dataclass(frozen=True)
class Origin:
    """Where samples come from, for the words about them, and what their labels may be."""

    split: str = ""  # train, val or test
    num_classes: int | None = None  # None or 0 where labels are no classes, or only the network knows

    def of(self, row: int) -> str:
        """A sample in words."""
        return f"sample {row} of the {f'{self.split} split' if self.split else 'dataset'}"


ANYWHERE = Origin()


def stream(
    dataset: Dataset[Any],
    *,
    rows: Tensor,
    spans: Sequence[Positions],
    target: str = "class",
    seed: int,
    words: tuple[str | int, ...],
    workers: int = 0,
    exit_code: int = EXIT_USAGE,
    origin: Origin = ANYWHERE,
) -> Iterator[tuple[Any, Any]]:
    """Yield (images (B, C, H, W), labels), or other inputs and targets, for each span of positions.

    Args:
        dataset: Gives (image, label); an image is a uint8 or float tensor (C, H, W) or a PIL image. In its place
            there may be any other tensor, or a tuple or dict of tensors.
        rows: Which sample of the dataset stands at each position.
        spans: The positions of each batch.
        target: What labels are and become: `class`, a number, (B,) int64; `mask`, integers (H, W) or a grey or
            palette PIL image, (B, H, W) uint8; `value`, one or V numbers, (B, V) float32; `own`, a tensor or number,
            or a tuple or dict of them.
        seed: Together with `words` and the position it decides what a random transform does.
        words: The purpose of the reading, and the epoch if there is one.
        workers: Number of processes that read; 0 reads in this one.
        exit_code: The exit code of an error: whether something was already run is known by the caller.
        origin: What the dataset is a split of, and the range of its classes.

    Raises:
        UserError: A sample cannot be read, is no image of the common size, is not finite, or has another kind of label.
    """
    every = torch.arange(len(rows))
    loader = DataLoader(
        _Reader(dataset, target, seed, words, origin),
        batch_size=None,  # the sampler already gives whole batches
        sampler=[(every[span].tolist(), rows[span].tolist()) for span in spans],
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_begin_worker,
        generator=generator(seed, "workers"),  # else the loader draws from the global one
    )
    batches = iter(loader)
    if workers and threading.current_thread() is threading.main_thread():
        # torch raises in its handler of SIGCHLD, wherever the main process happens to be (in a save, in a destructor).
        # Its own check while it waits for a batch notices as well, and at this place.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        for batch in batches:
            if isinstance(batch, _Failure):
                raise UserError(batch.message, hint=batch.hint, exit_code=exit_code)
            yield batch
    except (OSError, EOFError) as error:
        if not workers:
            raise
        raise _death(f"{type(error).__name__} while it sent a batch", exit_code=exit_code) from error
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise _death(str(error).splitlines()[0], exit_code=exit_code) from error
    finally:
        del batches  # ends its processes now: a garbage collection that finds them later waits 5 s for each


def _death(reason: str, *, exit_code: int) -> UserError:
    """The words for it, if a loader process was killed."""
    return UserError(
        f"a process that reads images died: {reason}",
        hint="if memory was short, set dataset.workers=0",
        exit_code=exit_code,
    )


def spans_of(num_samples: int, *, size: int) -> list[slice]:
    """Cut 0..num_samples into spans of `size`; the last one may be shorter."""
    return [slice(first, min(first + size, num_samples)) for first in range(0, num_samples, size)]


def image_tensor(image: object) -> Tensor:
    """(C, H, W): PIL images become uint8 with 1 or 3 channels; tensors are taken as they are, images or not.

    Raises:
        UserError: It is something else.
    """
    if isinstance(image, Image.Image):
        image = to_8_bit(image, name="its image")
        grey = image.mode in ("1", "L") and not image.has_transparency_data
        pixels = np.array(image.convert("L") if grey else to_rgb(image, name="its image"))
        return torch.from_numpy(pixels[None] if grey else pixels.transpose(2, 0, 1).copy())
    if isinstance(image, Tensor):
        return image
    raise UserError(
        f"the dataset gave an image of the wrong kind: {_kind(image)}",
        hint="give a PIL image, a tensor such as (C, H, W), uint8 or floating point, or a tuple or dict of tensors",
    )


def input_of(value: Any) -> Any:
    """What goes into the network: an image or other tensor, or a tuple or dict of tensors.

    Raises:
        UserError: It is something else.
    """
    return pytree.mapped(value, _part) if isinstance(value, (tuple, Mapping)) and value else image_tensor(value)


def _part(value: Any) -> Tensor:
    """One tensor of several: arrays and numbers too, in float32 where Python and numpy count in float64."""
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the dataset gave {_kind(value)} as a part of a sample",
            hint="let each part be a tensor, an array or a number",
        ) from error
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def label_tensor(label: Any, *, target: str, shape: tuple[int, ...]) -> Any:
    """() int64 of a class, (H, W) uint8 of a mask, (V,) float32 of numbers, or what one's own task takes.

    Args:
        label: What the dataset gave.
        target: `class`, `mask`, `value` or `own`.
        shape: (H, W) of the image, which a mask must have too; () where there is no image.

    Raises:
        UserError: It is no such label.
    """
    if target == "mask":
        return _mask(label, shape=shape)
    if target == "own":
        return pytree.mapped(label, _part)
    try:
        if target == "value":
            return torch.as_tensor(label, dtype=torch.float32).reshape(-1)
        if int(label) != label:
            raise ValueError("a class is a whole number")
        return torch.tensor(int(label))
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the dataset gave a label that is no {target}: {_kind(label)}",
            hint='give a number; a factory whose labels are masks returns "target": "mask" beside "train", one whose '
            'labels are numbers to be predicted "target": "value"',
        ) from error


def _mask(label: Any, *, shape: tuple[int, ...]) -> Tensor:
    """(H, W) uint8."""
    mask = torch.from_numpy(np.array(label)) if isinstance(label, Image.Image) else label
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.is_floating_point():
        raise UserError(
            f"the dataset gave a mask of the wrong kind: {_kind(mask)}",
            hint="give the class of each pixel: a grey or palette PIL image, or integers of shape (H, W)",
        )
    if shape and mask.shape != shape:
        raise UserError(
            f"the dataset gave an image of {shape[1]}x{shape[0]} pixels with a mask of {mask.shape[1]}x{mask.shape[0]}",
            hint="bring both to one size, the mask with nearest neighbours",
        )
    first, last = int(mask.min()), int(mask.max())
    if not 0 <= first <= last <= 255:
        raise UserError(
            f"the dataset gave a mask with classes from {first} to {last}",
            hint="number the classes from 0; pixels to be ignored are 255",
        )
    return mask.to(torch.uint8)


def _kind(value: object) -> str:
    if isinstance(value, float) or (isinstance(value, Tensor) and not value.dim()):
        return f"{float(value):g}"
    return f"{value.dtype} tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


@dataclass(frozen=True)
class _Failure:
    """A UserError on its way out of a worker: exceptions lose their fields there."""

    message: str
    hint: str


@dataclass(frozen=True)
class _Reader(Dataset[Any]):
    """A dataset of batches: the key is (positions, rows)."""

    dataset: Dataset[Any]
    target: str
    seed: int
    words: tuple[str | int, ...]
    origin: Origin

    def __getitem__(self, key: tuple[list[int], list[int]]) -> tuple[Any, Any] | _Failure:
        positions, rows = key
        images: list[Any] = []
        labels: list[Any] = []
        with global_state_kept():
            for position, row in zip(positions, rows, strict=True):
                seed_globals(self.seed, *self.words, position)
                try:
                    image, label = _sample(self.dataset, row, target=self.target, origin=self.origin)
                    _check_same_kind(image, row, images, rows, what="images")
                    _check_same_kind(label, row, labels, rows, what="labels")
                except UserError as error:
                    return _Failure(error.message, error.hint)
                except (OSError, SyntaxError) as error:  # SyntaxError: what PIL raises on broken PNG files
                    return _Failure(
                        f"{self.origin.of(row)} cannot be read: {error}",
                        "repair the file, or remove it and start again",
                    )
                images.append(image)
                labels.append(label)
        return pytree.stacked(images), pytree.stacked(labels)


def _sample(dataset: Dataset[Any], row: int, *, target: str, origin: Origin) -> tuple[Any, Any]:
    sample = dataset[row]
    if not (isinstance(sample, Sequence) and len(sample) == 2):
        raise UserError(
            f"{origin.of(row)} is not a pair but {type(sample).__name__}",
            hint="let the dataset's __getitem__ return (image, label)",
        )
    try:
        value = input_of(sample[0])
        is_image = pytree.is_image(value)
        label = label_tensor(sample[1], target=target, shape=tuple(value.shape[1:]) if is_image else ())
    except UserError as error:
        raise UserError(f"{origin.of(row)}: {error.message}", hint=error.hint) from error
    if is_image and value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise not_finite(row=row, origin=origin)
    _require_possible(label, row=row, target=target, origin=origin)
    return value, label


def not_finite(*, row: int, origin: Origin) -> UserError:
    """An image has NaN or infinite pixels."""
    return UserError(
        f"{origin.of(row)}: the image has pixels that are NaN or infinite",
        hint="replace them, such as with torch.nan_to_num, or leave the sample out",
    )


def beyond_classes(label: int, *, row: int, origin: Origin, span: tuple[int, int] | None = None) -> UserError:
    """A label is none of the classes; `span` is the smallest and the largest one of the split, where that is known."""
    number = origin.num_classes
    classes = f"0 to {(number or 1) - 1}"
    hint = f"let labels be {classes}, or correct num_classes"
    if span == (1, number):
        hint = f"the labels of this split go from 1 to {number}: subtract 1"
    return UserError(f"{origin.of(row)}: label {label} is none of the {number} classes, {classes}", hint=hint)


def _require_possible(label: Any, *, row: int, target: str, origin: Origin) -> None:
    """A class is one of those there are, in a mask too, and a number to be learned is finite."""
    number = origin.num_classes
    if target == "class" and number and not 0 <= int(label) < number:
        raise beyond_classes(int(label), row=row, origin=origin)
    if target == "mask" and number and bool((wrong := (label >= number) & (label != IGNORED)).any()):
        raise UserError(
            f"{origin.of(row)}: its mask has the class {int(label[wrong][0])}, and there are {number}",
            hint=f"let masks hold 0 to {number - 1}, and {IGNORED} where a pixel shall not count",
        )
    if target == "value" and not bool(torch.isfinite(label).all()):
        raise UserError(
            f"{origin.of(row)}: its target is {label.tolist()}", hint="leave samples out whose target is not a number"
        )


def _check_same_kind(value: Any, row: int, values: list[Any], rows: Iterable[int], *, what: str) -> None:
    """Images of a batch are stacked, so they must agree in shape and type; labels likewise."""
    if values and (kind := pytree.kind_of(value)) != (first := pytree.kind_of(values[0])):
        raise UserError(
            f"samples {next(iter(rows))} and {row} of the dataset differ: {first} and {kind}",
            hint=f"let the dataset bring all {what} to one size",
        )


def _begin_worker(_: int) -> None:
    """Ctrl-C reaches every process of a terminal, but the batches on their way are still wanted.

    Of a main process that was killed there is nothing to say: multiprocessing would tell that it no longer answers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def tell(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        until = time.monotonic() + PARENT_ENDS_S
        while os.getppid() == parent and time.monotonic() < until:
            time.sleep(0.01)
        if os.getppid() == parent:
            sys.__excepthook__(kind, error, traceback)

    sys.excepthook = tell


def _as_it_is(batch: Any) -> Any:
    return batch
