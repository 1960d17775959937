"""The samples of one's own dataset, looked at before a run: their labels, their layout, and what cannot be trained on.

Labels are taken from where datasets list them (`targets`, `labels`, a `TensorDataset`), and a few samples are read to
see that they are the ones that samples come with; else samples are read where there are few enough.
Letters: N samples, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from swa_cli.data import pytree
from swa_cli.data.splits import READ_AT_ONCE, Progress, Split
from swa_cli.data.stream import beyond_classes, not_finite, spans_of, stream
from swa_cli.errors import UserError

LABELS_READ = 5_000  # samples of a split that are read for their labels; of a larger one they have to be listed
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class ChannelsFirst(Dataset[Any]):
    """Images (H, W, C) of a dataset as (C, H, W)."""

    dataset: Dataset[Any]

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, row: int) -> Any:
        sample = self.dataset[row]
        image, *rest = sample
        return (image.permute(2, 0, 1) if isinstance(image, Tensor) else image, *rest)


@dataclass(frozen=True)
class _Inputs(Dataset[Any]):
    """The inputs of a dataset, each with 0."""

    dataset: Dataset[Any]

    def __getitem__(self, row: int) -> tuple[Any, int]:
        return self.dataset[row][0], 0


def with_channels_first(
    splits: Mapping[str, Split], *, layout: str | None, name: str
) -> tuple[dict[str, Split], list[str]]:
    """The splits of one's own dataset with images (C, H, W), and a warning if some were (H, W, C).

    Args:
        splits: The first sample of each is read.
        layout: "HWC" or "CHW" where the factory says it.
        name: Of the dataset, for the words.

    Raises:
        UserError: It cannot be told, or splits have images of other numbers of channels.
    """
    found, warnings, channels = {}, list[str](), dict[str, int]()
    for key, split in splits.items():
        image = _first_image(split)
        is_last = image is not None and _require_layout(image, layout=layout, name=name)
        found[key] = replace(split, dataset=ChannelsFirst(split.dataset)) if is_last else split  # type: ignore[arg-type]
        if image is None:
            continue
        channels[key] = image.shape[-1 if is_last else 0]
        if is_last and layout is None and not warnings:
            shape = " x ".join(map(str, image.shape))
            warnings.append(
                f"{name}: gives images of {shape}, taken as (H, W, C): their channels are moved to the front. "
                'Return "layout": "HWC" beside "train", or "CHW" if the first number is channels'
            )
    if len(set(channels.values())) > 1:
        told = ", ".join(f"{number} in {key}" for key, number in channels.items())
        raise UserError(f"{name}: gives images of several numbers of channels: {told}", hint="bring them to one number")
    return found, warnings


def with_labels(split: Split, *, read_all: bool, seed: int, workers: int, progress: Progress | None) -> Split:
    """The split of a dataset of one's own with the classes of its samples, where they are known or soon read.

    Args:
        split: Any.
        read_all: Read its samples however many they are.
        seed: Decides what random transforms do.
        workers: Processes that read.
        progress: Called while samples are read.

    Raises:
        UserError: A label is none of the classes, or a sample cannot be read.
    """
    if split.target != "class" or split.dataset is None or split.labels is not None:
        return split
    labels = _listed_labels(split, workers=0)
    if labels is None and (read_all or len(split) <= LABELS_READ):
        labels = _read_labels(split, seed=seed, workers=workers, progress=progress)
    return replace(split, labels=labels)


def require_classes(split: Split) -> None:
    """Each known label is one of the classes.

    Raises:
        UserError: One is not; the message names it, its sample and the split.
    """
    labels, number = split.labels, split.origin.num_classes
    if split.target != "class" or labels is None or not number:
        return
    wrong = ((labels < 0) | (labels >= number)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise beyond_classes(
            int(labels[row]), row=row, origin=split.origin, span=(int(labels.min()), int(labels.max()))
        )


def require_readable(split: Split, *, seed: int, workers: int, progress: Progress | None) -> None:
    """Read the test samples of a dataset of one's own, if they are few and their labels are masks or numbers.

    Those of classes were looked at, and training and validation samples are read in the first epoch: without this, what
    is wrong with a test sample would be told when all epochs are done.

    Raises:
        UserError: A mask has another class, a number is none, or a sample cannot be read.
    """
    if split.target in ("mask", "value") and split.origin.split == "test" and len(split) <= LABELS_READ:
        _read_labels(split, seed=seed, workers=workers, progress=progress)


def require_finite(split: Split) -> str | None:
    """No image of a dataset of tensors is NaN or infinite; of others each is looked at when it is read.

    Returns:
        A warning where inputs that are no images are NaN: they may stand for what is missing.

    Raises:
        UserError: An image is.
    """
    inputs = listed_part(split.dataset, 0) if isinstance(split.dataset, (TensorDataset, ChannelsFirst)) else None
    if inputs is None or not inputs.is_floating_point():
        return None
    for span in spans_of(len(inputs), size=1_024):
        values = inputs[span].flatten(1)
        wrong = (~torch.isfinite(values) if inputs.dim() == 4 else torch.isnan(values)).any(1).nonzero()
        if len(wrong):
            row = span.start + int(wrong[0])
            if inputs.dim() == 4:
                raise not_finite(row=row, origin=split.origin)
            return f"{split.origin.of(row)}: has inputs that are NaN, which most networks cannot take"
    return None


def _first_image(split: Split) -> Tensor | None:
    """The first sample's image as the dataset gives it; None where inputs are no images."""
    if split.target == "mask":  # which has to be of the size of the image, and that is not known yet
        split = replace(split, dataset=_Inputs(split.dataset), target="own")  # type: ignore[arg-type]
    inputs, _ = next(_read(split, rows=torch.tensor([0]), workers=0))
    image = pytree.mapped(inputs, lambda values: values[0])
    return image if pytree.is_image(image) else None


def _require_layout(image: Tensor, *, layout: str | None, name: str) -> bool:
    """Whether an image is (H, W, C), if that can be told."""
    is_last = _is_channels_last(image) if layout is None else layout == "HWC"
    if is_last is None:
        raise UserError(
            f"{name}: gives images of {' x '.join(map(str, image.shape))}, which may be (H, W, C) or (C, H, W)",
            hint='return "layout": "HWC" or "layout": "CHW" beside "train"',
        )
    return is_last


def _is_channels_last(image: Tensor) -> bool | None:
    """Whether (a, b, c) is (H, W, C); None where it cannot be told.

    A last dimension of 1, 3 or 4 behind two larger ones means channels. Alone a floating-point (C, T, 1), as networks
    for sequences take, looks like a grey (H, W, 1) that is not square.
    """
    first, middle, last = image.shape
    if last not in _CHANNELS or min(first, middle) <= max(_CHANNELS):
        return False
    return None if last == 1 and image.is_floating_point() and first != middle else True


def _listed_labels(split: Split, *, workers: int) -> Tensor | None:
    """The labels that the dataset lists (N,), if those of a few samples that are read are the same."""
    assert split.dataset is not None
    listed = listed_part(split.dataset, 1)
    if listed is None or listed.shape != (len(split),):
        return None
    values = listed.double()
    number = split.origin.num_classes or np.inf
    wrong = ((values != values.floor()) | (values < 0) | (values >= number)).nonzero()
    rows = torch.tensor(sorted({0, len(split) // 2, len(split) - 1, *wrong[:1, 0].tolist()}))
    plain = replace(split, origin=replace(split.origin, num_classes=None))
    read = torch.cat([labels for _, labels in _read(plain, rows=rows, workers=workers)])
    return listed.long() if torch.equal(values[rows], read.double()) else None


def listed_part(dataset: Dataset[Any], part: int) -> Tensor | None:
    """What a dataset lists of all its samples without reading them, (N, ...): inputs (part 0) or labels (part 1)."""
    if isinstance(dataset, ChannelsFirst):
        return listed_part(dataset.dataset, part)
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[part] if len(dataset.tensors) == 2 else None
    if isinstance(dataset, Subset):
        whole = listed_part(dataset.dataset, part)
        return None if whole is None else whole[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, ConcatDataset):
        parts = [listed_part(each, part) for each in dataset.datasets]
        return None if any(each is None for each in parts) else torch.cat(parts)  # type: ignore[arg-type]
    found = next((getattr(dataset, name) for name in ("targets", "labels") if hasattr(dataset, name)), None)
    if part == 0 or not isinstance(found, (list, tuple, np.ndarray, Tensor)):
        return None
    is_regular = not isinstance(found, (list, tuple)) or all(isinstance(value, (int, float)) for value in found)
    values = np.asarray(found) if is_regular else None
    return torch.from_numpy(values.copy()) if values is not None and values.dtype.kind in "iufb" else None


def _read_labels(split: Split, *, seed: int, workers: int, progress: Progress | None) -> Tensor:
    """The labels (N,) of all samples, which are read."""
    parts: list[Tensor] = []
    for _, labels in _read(split, rows=torch.arange(len(split)), workers=workers, seed=seed):
        parts.append(labels)
        if progress:
            progress(f"reading {split.origin.split} labels", sum(map(len, parts)), len(split))
    return torch.cat(parts)


def _read(split: Split, *, rows: Tensor, workers: int, seed: int = 0) -> Any:
    assert split.dataset is not None
    assert split.indices is not None
    return stream(
        split.dataset,
        rows=split.indices[rows],
        spans=spans_of(len(rows), size=READ_AT_ONCE),
        target=split.target,
        seed=seed,
        words=("labels",),
        workers=workers,
        origin=split.origin,
    )
