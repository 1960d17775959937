"""Fingerprints of data, recorded by a run, to notice changed data when it is resumed or evaluated.

Files are represented by their names under the root and their sizes, not their modification times: a copy of a dataset
is the same data. Data in memory are represented by labels and pixels; a dataset that is streamed by its labels, if they
are known. An edited file of the same size is not noticed.
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
from swa_cli.data.splits import FileDataset, Split
from swa_cli.data.user_dataset import listed_part


@dataclass(frozen=True)
class Fingerprint:
    """The number of samples, and a checksum; empty if only reading every sample would give one."""

    samples: int
    sha256: str


def fingerprint(split: Split, *, root: Path) -> Fingerprint:
    """Return the fingerprint of a split, before validation samples are taken from it."""
    return Fingerprint(len(split), _checksum(split, root=root))


def changes(recorded: Mapping[str, Mapping[str, Any]], now: Mapping[str, Fingerprint], *, name: str) -> list[str]:
    """Return a sentence for each split that has changed."""
    sentences = []
    for split, found in now.items():
        before = recorded.get(split)
        if before is None:
            continue
        if before["samples"] != found.samples:
            sentences.append(
                f"{name}: the {split} data have changed: {before['samples']:,} samples then, {found.samples:,} now"
            )
        elif before["sha256"] != found.sha256 and before["sha256"] and found.sha256:
            sentences.append(
                f"{name}: the {split} data have changed: {found.samples:,} samples as before, but not the same ones"
            )
    return sentences


def _checksum(split: Split, *, root: Path) -> str:
    if isinstance(split.dataset, FileDataset):
        return _hash_files(split.dataset.files, root=root)
    inputs, labels = split.images, split.labels
    if split.dataset is not None:
        inputs = listed_part(split.dataset, 0)
        labels = listed_part(split.dataset, 1) if labels is None else labels
    values = (inputs, labels)
    return _hash_tensors(
        tensor for value in values if value is not None for tensor in pytree.named_tensors(value).values()
    )


def _hash_files(paths: Iterable[str], *, root: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        name = unicodedata.normalize("NFC", path.removeprefix(f"{root}{os.sep}"))
        try:
            size = os.stat(path).st_size
        except OSError:
            size = -1  # the error names it when it is read
        digest.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _hash_tensors(tensors: Iterable[Tensor]) -> str:
    """Hash values and shapes; return an empty text if there are no tensors."""
    digest = hashlib.sha256()
    is_empty = True
    for tensor in tensors:
        is_empty = False
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        values = pytree.to_nhwc(tensor) if pytree.is_channels_last(tensor) else tensor.contiguous()
        if values.numel():
            digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return "" if is_empty else digest.hexdigest()
