"""Samples of a torch Dataset as stacked batches, read by worker processes.

A sample is a function of (seed, words, position): before each one the global generators are seeded with just
that, so a user's random transforms give the same in any number of workers and in a resumed run. Whole batches
are read in one call, so the generators of the main process are saved and restored once a batch.
Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from swa_cli.data.randomness import generator, global_state_kept, seed_globals
from swa_cli.errors import EXIT_USAGE, UserError


def stream(
    dataset: Dataset[Any],
    *,
    rows: Tensor,
    spans: Sequence[slice],
    seed: int,
    words: tuple[str | int, ...],
    workers: int = 0,
    exit_code: int = EXIT_USAGE,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images (B, C, H, W), labels (B,) int64) for each span of positions.

    Args:
        dataset: Gives (image, label); an image is a uint8 or float tensor (C, H, W) or a PIL image.
        rows: Which sample of the dataset stands at each position.
        spans: The positions of each batch.
        seed: Together with `words` and the position it decides what a random transform does.
        words: The purpose of the reading, and the epoch if there is one.
        workers: Number of processes that read; 0 reads in this one.
        exit_code: The exit code of an error: whether something was already run is known by the caller.

    Raises:
        UserError: A sample cannot be read, or is no image of the common size.
    """
    loader = DataLoader(
        _Reader(dataset, seed, words),
        batch_size=None,  # the sampler already gives whole batches
        sampler=[(span.start, rows[span].tolist()) for span in spans],
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals_to_parent,
        generator=generator(seed, "workers"),  # else the loader draws from the global one
    )
    died = None
    try:
        for batch in loader:
            if isinstance(batch, _Failure):
                raise UserError(batch.message, hint=batch.hint, exit_code=exit_code)
            yield batch
    except (OSError, EOFError) as error:
        if not workers:
            raise
        died = _death(f"{type(error).__name__} while it sent a batch", exit_code=exit_code)
    except RuntimeError as error:
        died = worker_death(error, exit_code=exit_code)
        if died is None:
            raise
    if died is not None:
        raise died  # here the frames of the loader are gone, so it has forgotten its processes and warns of none later


def worker_death(error: RuntimeError, *, exit_code: int) -> UserError | None:
    """The words for it, if a loader process was killed: torch raises that wherever the main process happens to be."""
    if not str(error).startswith("DataLoader worker"):
        return None
    return _death(str(error).splitlines()[0], exit_code=exit_code)


def _death(reason: str, *, exit_code: int) -> UserError:
    return UserError(
        f"a process that reads images died: {reason}",
        hint="if memory was short, set dataset.workers=0",
        exit_code=exit_code,
    )


def spans_of(num_samples: int, *, size: int) -> list[slice]:
    """Cut 0..num_samples into spans of `size`; the last one may be shorter."""
    return [slice(first, min(first + size, num_samples)) for first in range(0, num_samples, size)]


def image_tensor(image: object) -> Tensor:
    """(C, H, W): PIL images become uint8 with 1 or 3 channels, tensors are taken as they are.

    Raises:
        UserError: It is something else.
    """
    if isinstance(image, Image.Image):
        grey = image.mode in ("1", "L")
        pixels = np.array(image.convert("L" if grey else "RGB"))
        return torch.from_numpy(pixels[None] if grey else pixels.transpose(2, 0, 1).copy())
    if isinstance(image, Tensor) and image.dim() == 3 and (image.dtype == torch.uint8 or image.is_floating_point()):
        return image
    kind = f"{image.dtype} tensor {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
    raise UserError(
        f"the dataset gave an image of the wrong kind: {kind}",
        hint="give a PIL image, or a tensor of shape (C, H, W), uint8 or floating point",
    )


@dataclass(frozen=True)
class _Failure:
    """A UserError on its way out of a worker: exceptions lose their fields there."""

    message: str
    hint: str


@dataclass(frozen=True)
class _Reader(Dataset[Any]):
    """A dataset of batches: the key is (first position, rows)."""

    dataset: Dataset[Any]
    seed: int
    words: tuple[str | int, ...]

    def __getitem__(self, key: tuple[int, list[int]]) -> tuple[Tensor, Tensor] | _Failure:
        first, rows = key
        images: list[Tensor] = []
        labels: list[int] = []
        with global_state_kept():
            for position, row in enumerate(rows, start=first):
                seed_globals(self.seed, *self.words, position)
                try:
                    image, label = _sample(self.dataset, row)
                    _check_same_kind(image, row, images, rows)
                except UserError as error:
                    return _Failure(error.message, error.hint)
                except (OSError, SyntaxError) as error:  # SyntaxError: what PIL raises on broken PNG files
                    return _Failure(
                        f"sample {row} of the dataset cannot be read: {error}",
                        "repair the file, or remove it and start again",
                    )
                images.append(image)
                labels.append(label)
        return torch.stack(images), torch.tensor(labels)


def _sample(dataset: Dataset[Any], row: int) -> tuple[Tensor, int]:
    sample = dataset[row]
    if not (isinstance(sample, Sequence) and len(sample) == 2):
        raise UserError(
            f"sample {row} of the dataset is not a pair but {type(sample).__name__}",
            hint="let the dataset's __getitem__ return (image, label)",
        )
    return image_tensor(sample[0]), int(sample[1])


def _check_same_kind(image: Tensor, row: int, images: list[Tensor], rows: Iterable[int]) -> None:
    """Images of a batch are stacked, so they must agree in shape and type."""
    if images and (image.shape != images[0].shape or image.dtype != images[0].dtype):
        raise UserError(
            f"samples {next(iter(rows))} and {row} of the dataset differ: "
            f"{images[0].dtype} {tuple(images[0].shape)} and {image.dtype} {tuple(image.shape)}",
            hint="let the dataset resize or crop all images to one size",
        )


def _leave_signals_to_parent(_: int) -> None:
    """Ctrl-C reaches every process of a terminal; the batches on their way are still wanted."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_it_is(batch: Any) -> Any:
    return batch
