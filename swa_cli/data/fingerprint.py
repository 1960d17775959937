"""What a run records of its data, so that changed data are noticed when it goes on or is scored again.

Of files: their names under the root and their sizes. Times of change are left out: a copy of a data set, or a second
unpacking of its archive, has other ones and is the same data. Of data in memory: labels and pixels. Of a dataset that
is read sample by sample: the labels, where they are known. A file that was edited and kept its size is not noticed.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swa_cli.data import pytree
from swa_cli.data.folders import FolderDataset
from swa_cli.data.masks import MaskDataset
from swa_cli.data.pytree import lies_channels_last, pixels_of
from swa_cli.data.samples import listed_part
from swa_cli.data.splits import Split


@dataclass(frozen=True)
class Fingerprint:
    """The number of samples, and a checksum; empty where only reading every sample would give one."""

    samples: int
    sha256: str


def fingerprint(split: Split, *, root: Path) -> Fingerprint:
    """What is recorded of a split as the dataset has it, before validation samples are taken from it."""
    return Fingerprint(len(split), _checksum(split, root=root))


def changes(recorded: Mapping[str, Mapping[str, Any]], now: Mapping[str, Fingerprint], *, name: str) -> list[str]:
    """What is not as it was, a sentence for each split that is there both times."""
    told = []
    for split, found in now.items():
        before = recorded.get(split)
        if before is None:
            continue
        if before["samples"] != found.samples:
            told.append(
                f"{name}: the {split} data have changed: {before['samples']:,} samples then, {found.samples:,} now"
            )
        elif before["sha256"] != found.sha256 and before["sha256"] and found.sha256:
            told.append(
                f"{name}: the {split} data have changed: {found.samples:,} samples as before, but not the same ones"
            )
    return told


def _checksum(split: Split, *, root: Path) -> str:
    if isinstance(split.dataset, FolderDataset):
        return _of_files(split.dataset.paths, root=root)
    if isinstance(split.dataset, MaskDataset):
        return _of_files((*split.dataset.images, *split.dataset.masks), root=root)
    inputs, labels = split.images, split.labels
    if split.dataset is not None:
        inputs = listed_part(split.dataset, 0)
        labels = listed_part(split.dataset, 1) if labels is None else labels
    values = (inputs, labels)
    return _of_tensors(tensor for value in values if value is not None for tensor in pytree.tensors(value).values())


def _of_files(paths: Iterable[str], *, root: Path) -> str:
    found = hashlib.sha256()
    for path in paths:
        name = unicodedata.normalize("NFC", path.removeprefix(f"{root}{os.sep}"))
        try:
            size = os.stat(path).st_size
        except OSError:
            size = -1  # it is named when it is read
        found.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
    return found.hexdigest()


def _of_tensors(tensors: Iterable[Tensor]) -> str:
    """Of values and shapes; empty where there are none."""
    found = hashlib.sha256()
    is_empty = True
    for tensor in tensors:
        is_empty = False
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        values = pixels_of(tensor) if lies_channels_last(tensor) else tensor.contiguous()
        if values.numel():
            found.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return "" if is_empty else found.hexdigest()
