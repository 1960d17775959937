"""Named datasets as splits: images in memory, or a torch Dataset that is streamed.

`load` is the one door. Each kind of source only says which splits it has; checking labels, taking the validation split,
holding images in memory and the normalisation constants are then the same for all.
Shapes: N samples, C channels, H W pixels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from swa_cli.data import datasets, pytree
from swa_cli.data.datasets import Found
from swa_cli.data.fingerprint import Fingerprint, fingerprint
from swa_cli.data.samples import require_classes, require_finite, require_readable, with_channels_first, with_labels
from swa_cli.data.splits import Progress, Split, Target, held, mean_std, samples_of, take, validation_rows
from swa_cli.data.stream import Origin
from swa_cli.data.torchvision_sets import NUM_TRAIN
from swa_cli.errors import UserError

_NAMED = 5  # classes that a warning lists


@dataclass(frozen=True, eq=False)
class Source:
    """A dataset ready for use; mean and std are per channel, of pixels scaled to [0, 1]."""

    name: str
    train: Split | None  # None where weights are scored on other splits alone
    val: Split | None
    test: Split | None
    num_classes: int  # or the V numbers of a value; 0 where only one's own network knows what it gives
    class_names: tuple[str, ...]
    channels: int | None  # None where the inputs are no images: they have no size, mean and std then
    size: tuple[int, ...]  # (H, W)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    example: tuple[Any, Any]  # the first training sample, a batch of one as it is stored
    data: Mapping[str, Fingerprint]  # of each split as the dataset has it
    notes: tuple[str, ...] = ()  # what a person should know and did not ask for
    contents: tuple[str, ...] = ()  # what was found: classes, files, and what was left out
    warnings: tuple[str, ...] = ()  # what a person should think about

    @property
    def target(self) -> Target:
        """What a label is: a class, a mask with a class for each pixel (255 ignored), or `num_classes` numbers."""
        return next(split.target for split in (self.train, self.val, self.test) if split is not None)

    def describe_inputs(self) -> str:
        """What goes into the network, in words."""
        if self.channels is not None:
            return f"images of {' x '.join(map(str, (self.channels, *self.size)))}"
        return f"inputs {pytree.kind_of(pytree.mapped(self.example[0], lambda values: values[0]))}"


def known_num_train(name: str, val: str | int, *, args: Mapping[str, Any]) -> int | None:
    """Training samples that are left beside the validation split, where that is known without reading the data."""
    number = None if args else NUM_TRAIN.get(name)
    return None if number is None else number - _num_val(val, num_train=number)


def load(
    name: str,
    *,
    root: str | Path = "data",
    val: str | int = "10%",
    stratify: bool = True,
    seed: int = 0,
    cache: str = "auto",
    download: bool = True,
    workers: int = 2,
    args: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Source:
    """Find a dataset, check its labels, take its validation split and hold it in memory where asked and possible.

    Args:
        name: One of `named.names()`.
        root: The folder of the files.
        val: Validation samples, "10%" or a number, taken from the training set by the seed alone; not applied
            to a source with a validation split of its own.
        stratify: Let the validation samples keep the proportions of the classes.
        seed: Decides which samples validate.
        cache: "auto" holds images that are files in memory if their pixels take at most a quarter of the
            available memory, "ram" holds everything, "none" streams what comes from files or from a user.
        download: Whether missing files may be downloaded.
        workers: Processes that read a streamed dataset.
        args: For "image_folder" {"size": side}; for a factory its keyword arguments; for others see `settings`.
        classes: Those of weights that are only scored: a folder may then lack its training images.
        progress: Called while images are read.

    Raises:
        UserError: Unknown name, missing or damaged files, wrong layout, `val` leaves nothing to train, or a label
            that is no class.
    """
    assert cache in ("auto", "ram", "none")
    found = datasets.find(
        name, root=Path(root), cache=cache, download=download, args=dict(args or {}), classes=classes, progress=progress
    )
    reading: dict[str, Any] = {"seed": seed, "workers": workers, "progress": progress}
    splits, warnings = _checked(found, name=name, **reading)
    data = {split: fingerprint(part, root=Path(root)) for split, part in splits.items()}
    notes = list(found.notes)
    if "train" in splits and "val" in splits:
        notes.append(f"{name} has a validation split of its own: dataset.val is not applied")
    elif "train" in splits:
        splits, more = _with_validation(splits, val=val, seed=seed, stratify=stratify, class_names=found.class_names)
        warnings += more
    if found.hold:
        splits = {split: held(part, what=f"reading {split} images", **reading) for split, part in splits.items()}
    first = next(splits[split] for split in ("train", "val", "test") if split in splits)
    example = next(samples_of(first, rows=torch.tensor([0]), seed=seed, workers=0))
    inputs = example[0]
    is_image = pytree.is_image(pytree.mapped(inputs, lambda values: values[0]))
    mean, std = _constants(found, first, is_image=is_image, name=name, seed=seed, workers=workers)
    if is_image and inputs.is_floating_point() and found.mean is None:
        notes.append(f"{name} gives floating-point images: they are taken as normalised already")
    if is_image:
        _check_constants(name, mean=mean, std=std, channels=inputs.shape[1])
    return Source(
        name=name,
        train=splits.get("train"),
        val=splits.get("val"),
        test=splits.get("test"),
        num_classes=len(found.class_names),
        class_names=found.class_names,
        channels=inputs.shape[1] if is_image else None,
        size=tuple(inputs.shape[2:]) if is_image else (),
        mean=mean,
        std=std,
        example=example,
        data=data,
        notes=tuple(notes),
        contents=(*_describe_classes(first, found.class_names), *found.contents),
        warnings=tuple(warnings),
    )


def _checked(
    found: Found, *, name: str, seed: int, workers: int, progress: Progress | None
) -> tuple[dict[str, Split], list[str]]:
    """The splits with images (C, H, W) and the labels that are known, none of which is wrong; and warnings."""
    num_classes = len(found.class_names)
    splits = {split: replace(part, origin=Origin(split, num_classes)) for split, part in found.splits.items()}
    warnings = list[str]()
    if found.is_made:
        splits, warnings = with_channels_first(splits, layout=found.layout, name=name)
        if not found.hold:
            for part in splits.values():
                require_readable(part, seed=seed, workers=workers, progress=progress)
    for split, part in splits.items():
        warning = require_finite(part)
        warnings += [warning] if warning else []
        splits[split] = with_labels(part, read_all=found.hold, seed=seed, workers=workers, progress=progress)
        require_classes(splits[split])
    return splits, warnings


def _with_validation(
    splits: dict[str, Split], *, val: str | int, seed: int, stratify: bool, class_names: Sequence[str]
) -> tuple[dict[str, Split], list[str]]:
    """The splits with validation samples taken from the training ones, and warnings."""
    train = splits["train"]
    number = _num_val(val, num_train=len(train))
    if not number:
        return splits, []
    rows = validation_rows(train, number=number, seed=seed, stratify=stratify)
    rest = torch.ones(len(train), dtype=torch.bool)
    rest[rows] = False
    parts = splits | {"val": take(train, rows), "train": take(train, rest.nonzero()[:, 0])}
    warnings = []
    if train.target == "class" and train.labels is not None:
        before, after = (part.labels.bincount(minlength=len(class_names)) for part in (train, parts["train"]))
        lost = [class_names[label] for label in ((before > 0) & (after == 0)).nonzero()[:, 0].tolist()]
        if lost:
            warnings.append(
                f"dataset.val = {val} leaves no training image of {len(lost)} of the classes: {_some(lost)}"
            )
    elif train.target == "class" and stratify:
        warnings.append(
            "dataset.stratify: the labels are not known before all samples are read, so the validation samples do not "
            "keep their proportions. Give the dataset an attribute `targets`, or set dataset.stratify=false"
        )
    return parts, warnings


def _constants(
    found: Found, split: Split, *, is_image: bool, name: str, seed: int, workers: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std: those of the dataset, or measured on the split; none where the inputs are no images."""
    mean, std = found.mean, found.std
    if not is_image:
        if mean or std:
            raise UserError(f"{name} has a mean and std, and its inputs are no images", hint="leave them out")
        return (), ()
    if mean is None or std is None:
        measured = mean_std(split, seed=seed, workers=workers)
        mean, std = mean or measured[0], std or measured[1]
    return mean, std


def _describe_classes(split: Split, class_names: Sequence[str]) -> tuple[str, ...]:
    """`3 classes of 12 (dog) to 400 (cat) train samples`; nothing where labels are not known."""
    if split.target != "class" or split.labels is None or not class_names:
        return ()
    counts = split.labels.bincount(minlength=len(class_names))
    least, most = int(counts.argmin()), int(counts.argmax())
    of = f"{len(class_names):,} classes of"
    if counts[least] == counts[most]:
        return (f"{of} {int(counts[least]):,} {split.origin.split} samples each",)
    few, many = (f"{int(counts[label]):,} ({class_names[label]})" for label in (least, most))
    return (f"{of} {few} to {many} {split.origin.split} samples",)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + ", ..." * (len(names) > _NAMED)


def _num_val(val: str | int, *, num_train: int) -> int:
    """Samples in the validation split; a percentage above 0 gives at least one."""
    percent = re.fullmatch(r"(\d+(?:\.\d+)?)%", val) if isinstance(val, str) else None
    if (isinstance(val, str) and percent is None) or (isinstance(val, int) and val < 0):
        raise UserError(f"dataset.val = {val!r} is no share", hint="write 10%, or a number of samples, or 0")
    count = val if isinstance(val, int) else 0
    if percent and float(percent[1]):
        count = max(1, round(num_train * float(percent[1]) / 100))
    if count >= num_train:
        raise UserError(
            f"dataset.val = {val} leaves nothing to train: the training set has {num_train:,} samples",
            hint="make dataset.val smaller",
        )
    return count


def _check_constants(name: str, *, mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> None:
    if not (len(mean) == len(std) == channels and min(std) > 0 and math.isfinite(sum(mean) + sum(std))):
        raise UserError(
            f"{name} has mean {mean} and std {std} for {channels} channels",
            hint="give one number per channel, std above 0, or leave them out",
        )
