"""Named datasets ready for use: splits with checked labels, a validation split, constants, fingerprints.

`load` is the only way in. How the splits of a dataset are read is declared in `datasets`; what follows is the same
for all of them. A run records the fingerprint of its data, so that changed data are noticed when it is resumed or
evaluated: names under the root and sizes of files, not their modification times (a copy of a dataset is the same data);
labels and pixels of data in memory; labels of a dataset that is streamed, if they are known. An edited file of the
same size is not noticed. Sizes are asked for anew each time: nothing else tells of a file that was written in place.
Shapes: N samples, C channels, H W pixels.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from swa_cli.data import arguments, datasets, pytree
from swa_cli.data.datasets import Request
from swa_cli.data.image_file import hash_files, on_all_cores
from swa_cli.data.packed import PackedDataset, Packing, Store
from swa_cli.data.samples import Origin
from swa_cli.data.splits import (
    Arrays,
    Broken,
    FileDataset,
    Found,
    Progress,
    Reading,
    Split,
    Target,
    bytes_in_memory,
    check,
    class_counts,
    fits_memory,
    load_into_memory,
    mean_std,
    num_validation,
    read_rows,
    require_classes,
    split_off_validation,
    without_broken,
)
from swa_cli.data.transforms import EvaluationView, TrainingView, Views
from swa_cli.data.user_dataset import listed_part, with_checked_samples
from swa_cli.errors import UserError

NAMED = 5  # files that a note lists
TELLING_RATIO = 10  # of the largest class to the smallest one: a plan says it from here on
AS_THEY_ARE = Views(TrainingView(EvaluationView()), EvaluationView())
Constants = Literal["auto"] | tuple[float, ...]  # per channel
PerChannel = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std


@dataclass(frozen=True, eq=False)
class Source:
    """A dataset ready for use; mean and std are per channel, of pixels scaled to [0, 1]."""

    name: str
    train: Split | None  # None if weights are only evaluated, on other splits
    val: Split | None
    test: Split | None
    num_classes: int  # or output numbers of a value; 0 if only the user's network knows
    class_names: tuple[str, ...]
    channels: int | None  # None if the inputs are not images: they have no size, mean and std
    size: tuple[int, ...]  # (H, W)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    measured: frozenset[str]  # those of mean and std that are of its own images, and not declared
    example: tuple[Any, Any]  # the first training sample, as a stored batch of one
    data: Fingerprints  # of each split, before validation samples are taken
    notes: tuple[str, ...] = ()  # what a person should know and did not ask for
    contents: tuple[str, ...] = ()  # classes and files found, and what was left out
    warnings: tuple[str, ...] = ()
    num_broken: int = 0  # files that cannot be read and were left out
    packed: Mapping[str, str] = field(default_factory=dict)  # what is stored of the images of each split

    @property
    def target(self) -> Target:
        """What a label is: a class, several, a mask with a class per pixel (255 ignored), or `num_classes` numbers."""
        return next(split.target for split in (self.train, self.val, self.test) if split is not None)

    @property
    def num_bytes(self) -> int:
        """The memory of the samples that are not streamed."""
        return sum(split.num_bytes for split in (self.train, self.val, self.test) if split is not None)

    @property
    def is_8_bit(self) -> bool:
        """Whether the inputs are 8-bit images; others are taken as normalized already."""
        return self.channels is not None and not self.example[0].is_floating_point()

    def describe_inputs(self) -> str:
        """Describe what goes into the network."""
        if self.channels is not None:
            return f"images of {' x '.join(map(str, (self.channels, *self.size)))}"
        return f"inputs {pytree.describe(pytree.first_sample(self.example[0]))}"


def known_num_train(name: str, val: str | int, *, args: Mapping[str, Any]) -> int | None:
    """Return the training samples without the validation split; None if they are unknown until the data are read."""
    entry = datasets.find(name)
    if args or entry.num_train is None:
        return None
    return entry.num_train - num_validation(val, num_train=entry.num_train)


def load(
    name: str,
    *,
    root: str | Path = "data",
    val: str | int = "10%",
    stratify: bool = True,
    seed: int = 0,
    val_seed: int | None = None,
    cache: str = "auto",
    download: bool = True,
    workers: int = 2,
    args: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    views: Views = AS_THEY_ARE,
    mean: Constants = "auto",
    std: Constants = "auto",
    expected: PerChannel | None = None,
    skip_broken: bool = False,
    packing: Packing = "read",
    tell: Callable[[str], object] = lambda text: None,
    keep_in: Path | None = None,
    progress: Progress | None = None,
) -> Source:
    """Read a dataset, check its labels, split off validation samples, and hold it in memory where asked and possible.

    Args:
        name: One of `datasets.DATASETS`, or `package.module:factory`.
        root: The folder of the files.
        val: Validation samples, "10%" or a number, taken from the training set by a seed alone; ignored for a dataset
            with a validation split of its own.
        stratify: Whether the validation samples keep the class proportions.
        seed: Decides what random transforms do to samples that are held in memory.
        val_seed: Decides which samples validate; None for `seed`.
        cache: "auto" holds image files in memory if what is not streamed anyway takes at most a quarter of the
            available memory, "ram" holds everything, "none" streams what comes from files or from user code, "packed"
            reads image files as `packed` stores them.
        download: Whether missing files may be downloaded.
        workers: Processes that read a streamed dataset.
        args: Those that the entry declares; the keyword arguments of a factory.
        classes: Those of weights that are only evaluated: a folder may then lack training images.
        views: What is shown of the images. Where training views are random, training images are streamed.
        mean: Per channel, of pixels scaled to [0, 1]; "auto": that in `expected`, that of the dataset, or measured.
        std: Likewise.
        expected: Mean and std that pretrained weights expect of 8-bit images, instead of those of the dataset.
        skip_broken: Whether to leave out image files that cannot be read, after a look at each of them.
        packing: What `cache` "packed" does where images are not packed yet: "write" packs them, "plan" says how much
            that would be, and "read" reads their files, to the same pixels.
        tell: Called with what will be packed, before that.
        keep_in: The folder where an index of many files is kept for the next time; None keeps nothing.
        progress: Called while files are listed and images are read.

    Raises:
        UserError: The name is unknown, files are missing or damaged, the layout is wrong, `val` leaves nothing to
            train, or a label is not one of the classes.
    """
    assert cache in ("auto", "ram", "none", "packed")
    views = _of_dataset(views, datasets.find(name))
    reading = Reading(seed=seed, workers=workers, progress=progress)
    found = _read(
        name,
        given=args or {},
        view=views.evaluation,
        root=Path(root),
        download=download,
        skip_broken=skip_broken,
        classes=classes,
        keep_in=keep_in,
        progress=progress,
    )
    splits = {split: _split(found, split, views) for split in found.splits}
    store = Store(Path(root), json.dumps([name, args], default=str), views) if cache == "packed" else None
    left_out: dict[str, Broken] = {}
    if skip_broken:
        known = {} if store is None else store.known(splits, progress=progress)
        splits, left_out = without_broken(splits, known=known, progress=progress)
    broken = [reason for each in left_out.values() for reason in each.values()]
    splits, more = _checked(splits, found, name=name, read_all=cache == "ram", reading=reading)
    warnings = [*found.warnings, *more]
    data, before = Fingerprints(splits, root=Path(root)), splits
    if "train" in splits and "val" not in splits:
        parts, more = split_off_validation(
            splits["train"],
            val=val,
            seed=seed if val_seed is None else val_seed,
            stratify=stratify,
            class_names=found.class_names,
        )
        splits, warnings = splits | parts, warnings + more
    to_hold = _to_hold(splits, cache=cache, views=views)
    notes = [
        *found.notes,
        *_broken_notes(broken),
        *_notes(found, splits, name=name, cache=cache, to_hold=to_hold),
    ]
    for split in to_hold:
        splits[split] = load_into_memory(splits[split], what=f"reading {split} images", reading=reading)
    if store is not None:
        splits, more = store.pack(splits, before=before, broken=left_out, packing=packing, tell=tell, progress=progress)
        notes += more
    first = next(splits[split] for split in ("train", "val", "test") if split in splits)
    example = next(read_rows(first, rows=torch.tensor([0]), reading=replace(reading, workers=0)))
    images = example[0] if pytree.is_image(pytree.first_sample(example[0])) else None
    if images is not None and images.is_floating_point() and found.mean is None:
        notes.append(f"{name} gives floating-point images: they are taken as normalized already")
    if expected is not None and images is not None and not images.is_floating_point():
        fitting = [_of_channels(values, images.shape[1]) for values in expected]
        found = replace(found, mean=fitting[0], std=fitting[1])
    declared = replace(found, mean=found.mean if mean == "auto" else mean, std=found.std if std == "auto" else std)
    constants = _constants(declared, first, images, name=name, reading=reading)
    return Source(
        name=name,
        train=splits.get("train"),
        val=splits.get("val"),
        test=splits.get("test"),
        num_classes=len(found.class_names),
        class_names=found.class_names,
        channels=None if images is None else images.shape[1],
        size=() if images is None else tuple(images.shape[2:]),
        mean=constants[0],
        std=constants[1],
        measured=frozenset(key for key in ("mean", "std") if images is not None and getattr(declared, key) is None),
        example=example,
        data=data,
        notes=tuple(notes),
        contents=(*_describe_classes(first, found.class_names), *found.contents),
        warnings=tuple(warnings),
        num_broken=len(broken),
        packed={
            split: part.dataset.form.describe()
            for split, part in splits.items()
            if isinstance(part.dataset, PackedDataset)
        },
    )


def require_readable(source: Source, *, progress: Progress | None) -> None:
    """Look at the validation and test images that stay in their files, as `skip_broken` does: they are read late.

    Raises:
        UserError: Some cannot be read.
    """
    for name, split in (("val", source.val), ("test", source.test)):
        files = None if split is None else split.dataset
        if split is None or split.indices is None or not isinstance(files, FileDataset):
            continue
        if isinstance(files, PackedDataset) and files.file is not None:
            continue  # they were read when they were packed
        look = partial(check, files, split.indices)
        on_all_cores(look, len(split), what=f"looking at {name} images", progress=progress)


def _checked(
    splits: dict[str, Split], found: Found, *, name: str, read_all: bool, reading: Reading
) -> tuple[dict[str, Split], list[str]]:
    """Check the labels of all splits, and the samples of user code; return the splits with their labels, and warnings.

    Raises:
        UserError: A label is not one of the classes, or a sample is not what it must be.
    """
    warnings: list[str] = []
    if any(part.dataset is not None for part in splits.values()):
        splits, warnings = with_checked_samples(
            splits, layout=found.layout, name=name, read_all=read_all, reading=reading
        )
    for part in splits.values():
        require_classes(part)
    return splits, warnings


def _to_hold(splits: Mapping[str, Split], *, cache: str, views: Views) -> list[str]:
    """Return the streamed splits to hold in memory; not training images of which each epoch shows other views."""
    streamed = {split: part for split, part in splits.items() if part.dataset is not None}
    if not streamed or cache in ("none", "packed"):
        return []
    is_varied = views.varies or views.training.is_random
    parts = {split: part for split, part in streamed.items() if not (split == "train" and is_varied)}
    are_files = all(isinstance(part.dataset, FileDataset) for part in streamed.values())
    fits = are_files and fits_memory(sum(map(bytes_in_memory, parts.values())))
    return list(parts) if cache == "ram" or fits else []


def _broken_notes(broken: Sequence[str]) -> list[str]:
    listed = "; ".join(broken[:NAMED]) + "; ..." * (len(broken) > NAMED)
    note = f"left out {len(broken):,} image file{'s' * (len(broken) > 1)} that cannot be read: {listed}"
    return [note] if broken else []


def _notes(
    found: Found, splits: Mapping[str, Split], *, name: str, cache: str, to_hold: Sequence[str]
) -> Iterator[str]:
    """Yield what a person should know of where samples are held, and of the validation split."""
    streamed = {split: part.dataset for split, part in splits.items() if part.dataset is not None}
    if cache in ("none", "packed") and not streamed:
        yield f"{name} is held in memory whatever dataset.cache says"
    if cache == "ram" and not all(isinstance(dataset, FileDataset) for dataset in streamed.values()):
        yield "held in memory: random transforms of the dataset were applied once, for all epochs"
    if "train" in found.splits and "val" in found.splits:
        yield f"{name} has a validation split of its own: dataset.val is not applied"
    if "train" in streamed and "train" not in to_hold and (cache == "ram" or to_hold):
        yield "training images are decoded in each epoch, which shows other views of them"


def _read(name: str, *, given: Mapping[str, Any], **request: Any) -> Found:
    """Read a dataset by its entry, whose fields complete what the reader returns."""
    entry = datasets.find(name)
    args = dict(given) if entry.args is None else arguments.complete(entry.args, given, name=name)
    found = entry.read(Request(name=name, dataset=entry, args=args, **request))
    assert entry.has_val or "val" not in found.splits, f"{name} is declared to have no validation split"
    return replace(
        found,
        class_names=entry.class_names or found.class_names,
        mean=entry.mean or found.mean,
        std=entry.std or found.std,
        target=entry.target or found.target,
    )


def _of_dataset(views: Views, entry: datasets.Dataset) -> Views:
    """Return the views with the image size of a dataset that has one of its own, where the recipe has none."""
    if entry.image_size is None or views.evaluation.size is not None:
        return views
    still = EvaluationView(entry.image_size, interpolation=views.evaluation.interpolation)
    return replace(views, training=replace(views.training, still=still), evaluation=still)


def _split(found: Found, name: str, views: Views) -> Split:
    stored, origin = found.splits[name], Origin(name, len(found.class_names))
    view = None if views.evaluation.size is None else views.evaluation
    assert found.target is not None, "the entry or its reader declares the target"
    if isinstance(stored, Arrays):
        return Split(stored.labels, stored.images, target=found.target, origin=origin, view=view)
    listed = stored.labels if isinstance(stored, FileDataset) else None
    rows = torch.arange(len(stored))  # type: ignore[arg-type]
    return Split(listed, None, stored, rows, target=found.target, origin=origin, view=view)


def _constants(
    found: Found, split: Split, images: Tensor | None, *, name: str, reading: Reading
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std: declared, or measured on the split; none where the inputs are not images.

    Raises:
        UserError: They do not fit the images.
    """
    mean, std = found.mean, found.std
    if images is None:
        if mean or std:
            raise UserError(f"{name} has a mean and std, but its inputs are not images", hint="leave them out")
        return (), ()
    if mean is None or std is None:
        measured = mean_std(split, reading=reading)
        mean, std = mean or measured[0], std or measured[1]
    channels = images.shape[1]
    if not (len(mean) == len(std) == channels and min(std) > 0 and math.isfinite(sum(mean) + sum(std))):
        raise UserError(
            f"{name} has mean {mean} and std {std} for {channels} channels",
            hint="give one number per channel, std above 0, or leave them out",
        )
    return mean, std


def _of_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return the constants of colors for images of C channels: their mean for each where there are not three."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def _describe_classes(split: Split, class_names: Sequence[str]) -> tuple[str, ...]:
    """Return `3 classes of 12 (dog) to 400 (cat) train samples`; nothing where labels are unknown.

    Of several labels also `1.8 labels per sample, 31 train samples without any`.
    """
    if split.target not in ("class", "multilabel") or split.labels is None or not class_names:
        return ()
    counts = class_counts(split, num_classes=len(class_names))
    beside: tuple[str, ...] = ()
    if split.target == "multilabel":
        per_sample = split.labels.sum(1, dtype=torch.int64)
        none = f"{int((per_sample == 0).sum()):,} {split.origin.split} samples without any"
        beside = (f"{float(per_sample.double().mean()):.3g} labels per sample, {none}",)
    least, most = int(counts.argmin()), int(counts.argmax())
    number = f"{len(class_names):,} class{'es' * (len(class_names) > 1)} of"
    if counts[least] == counts[most]:
        return (f"{number} {int(counts[least]):,} {split.origin.split} samples each", *beside)
    ratio = int(counts[most]) // int(counts[least]) if counts[least] else 0
    times = f", {ratio:,} times as many" if ratio >= TELLING_RATIO else ""
    few, many = (f"{int(counts[label]):,} ({class_names[label]})" for label in (least, most))
    return (f"{number} {few} to {many} {split.origin.split} samples{times}", *beside)


# --- fingerprints


@dataclass(frozen=True)
class Fingerprint:
    """The number of samples, and a checksum; empty if only reading every sample would give one."""

    samples: int
    sha256: str


class Fingerprints:
    """The fingerprint of each split; those of files are taken when they are first asked for: a plan does without them.

    Args:
        splits: By name.
        root: The folder that names of files are relative to.
    """

    def __init__(self, splits: Mapping[str, Split], *, root: Path) -> None:
        self._root = root
        self._splits: dict[str, Split | None] = dict(splits)
        self._taken: dict[str, Fingerprint] = {}
        for name, split in splits.items():
            if not isinstance(split.dataset, FileDataset):
                self._take(name, None)  # of samples in memory, which may be let go of

    @property
    def splits(self) -> frozenset[str]:
        """The names of the splits."""
        return frozenset(self._splits)

    def __call__(self, progress: Progress | None = None) -> dict[str, Fingerprint]:
        """Return them by the name of the split; `progress` is called while files are looked at."""
        return {name: self._take(name, progress) for name in self._splits}

    def _take(self, name: str, progress: Progress | None) -> Fingerprint:
        split = self._splits[name]
        if split is not None:
            self._taken[name] = fingerprint(split, root=self._root, progress=progress)
            self._splits[name] = None
        return self._taken[name]


def changes(recorded: Mapping[str, Mapping[str, Any]], now: Mapping[str, Fingerprint], *, name: str) -> list[str]:
    """Return a sentence for each split that has changed or is gone.

    Data without training images are scored and nothing else: they need not have the other splits.
    """
    sentences = []
    for split, found in now.items():
        before = recorded.get(split, {"samples": found.samples, "sha256": ""})
        counts = f"{before['samples']:,} samples then, {found.samples:,} now"
        if before["samples"] == found.samples:
            counts = f"{found.samples:,} samples as before, but not the same ones"
            if before["sha256"] == found.sha256 or not (before["sha256"] and found.sha256):
                continue
        sentences.append(f"{name}: the {split} data have changed: {counts}")
    gone = [split for split in recorded if split not in now] if "train" in now else []
    for split in gone:
        samples = recorded[split]["samples"]
        sentences.append(f"{name}: the {split} data have changed: {samples:,} samples then, none now")
    return sentences


def fingerprint(split: Split, *, root: Path, progress: Progress | None = None) -> Fingerprint:
    """Return the fingerprint of a split, before validation samples are taken from it."""
    if isinstance(split.dataset, FileDataset):
        what = f"looking at {split.origin.split} files"
        files = _hash_files(split.dataset, labels=split.labels, root=root, what=what, progress=progress)
        return Fingerprint(len(split), files)
    inputs, labels = split.images, split.labels
    if split.dataset is not None:
        inputs = listed_part(split.dataset, 0)
        labels = listed_part(split.dataset, 1) if labels is None else labels
    known = [pytree.named_tensors(values) for values in (inputs, labels) if values is not None]
    return Fingerprint(len(split), _hash_tensors([tensor for tensors in known for tensor in tensors.values()]))


def _hash_files(
    dataset: FileDataset, *, labels: Tensor | None, root: Path, what: str, progress: Progress | None
) -> str:
    """Hash names and sizes of files, and the labels, which a table may give.

    Of a file outside the root, such as one in the cache of a library, the folder does not count.
    """
    inside = f"{root}{os.sep}"

    def describe(path: str, status: os.stat_result | None) -> str:
        name = path.removeprefix(inside) if path.startswith(inside) else os.path.basename(path)
        name = unicodedata.normalize("NFC", name)
        return f"{name}\0{-1 if status is None else status.st_size}\0"  # a missing one is named when it is read

    digest = hashlib.sha256(dataset.checksum.encode())
    hash_files(digest, dataset.files, describe, what=what, progress=progress)
    if labels is not None:
        digest.update(labels.numpy().data)
    return digest.hexdigest()


def _hash_tensors(tensors: Sequence[Tensor]) -> str:
    """Hash values and shapes; return an empty text if there are no tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        values = pytree.to_nhwc(tensor) if pytree.is_channels_last(tensor) else tensor.contiguous()
        if values.numel():
            digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest() if tensors else ""
