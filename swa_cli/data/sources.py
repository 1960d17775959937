"""Named datasets ready for use: splits with checked labels, a validation split, constants, fingerprints.

`load` is the only way in. How the splits of a dataset are read is declared in `datasets`; what follows is the same
for all of them. A run records the fingerprint of its data, so that changed data are noticed when it is resumed or
evaluated: names under the root and sizes of files, not their modification times (a copy of a dataset is the same data);
labels and pixels of data in memory; labels of a dataset that is streamed, if they are known. An edited file of the
same size is not noticed.
Shapes: N samples, C channels, H W pixels.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from swa_cli.data import datasets, pytree
from swa_cli.data.datasets import Request, complete_args
from swa_cli.data.packed import PackedDataset, Packing, Store
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
    fits_memory,
    load_into_memory,
    mean_std,
    num_validation,
    read_rows,
    require_classes,
    split_off_validation,
    without_broken,
)
from swa_cli.data.stream import Origin
from swa_cli.data.transforms import EvaluationView, TrainingView, Views
from swa_cli.data.user_dataset import listed_part, with_checked_samples
from swa_cli.errors import UserError

NAMED = 5  # files that a note lists
AS_THEY_ARE = Views(TrainingView(EvaluationView()), EvaluationView())
Constants = Literal["auto"] | tuple[float, ...]  # per channel


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
    example: tuple[Any, Any]  # the first training sample, as a stored batch of one
    data: Mapping[str, Fingerprint]  # of each split, before validation samples are taken
    notes: tuple[str, ...] = ()  # what a person should know and did not ask for
    contents: tuple[str, ...] = ()  # classes and files found, and what was left out
    warnings: tuple[str, ...] = ()
    num_broken: int = 0  # files that cannot be read and were left out
    packed: Mapping[str, str] = field(default_factory=dict)  # what is stored of the images of each split

    @property
    def target(self) -> Target:
        """What a label is: a class, a mask with a class per pixel (255 ignored), or `num_classes` numbers."""
        return next(split.target for split in (self.train, self.val, self.test) if split is not None)

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
    cache: str = "auto",
    download: bool = True,
    workers: int = 2,
    args: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    views: Views = AS_THEY_ARE,
    mean: Constants = "auto",
    std: Constants = "auto",
    skip_broken: bool = False,
    packing: Packing = "read",
    tell: Callable[[str], object] = lambda text: None,
    progress: Progress | None = None,
) -> Source:
    """Read a dataset, check its labels, split off validation samples, and hold it in memory where asked and possible.

    Args:
        name: One of `datasets.DATASETS`, or `package.module:factory`.
        root: The folder of the files.
        val: Validation samples, "10%" or a number, taken from the training set by the seed alone; ignored for a
            dataset with a validation split of its own.
        stratify: Whether the validation samples keep the class proportions.
        seed: Decides which samples validate.
        cache: "auto" holds image files in memory if their pixels take at most a quarter of the available memory,
            "ram" holds everything, "none" streams what comes from files or from user code, "packed" reads image files
            as `packed` stores them.
        download: Whether missing files may be downloaded.
        workers: Processes that read a streamed dataset.
        args: Those that the entry declares; the keyword arguments of a factory.
        classes: Those of weights that are only evaluated: a folder may then lack training images.
        views: What is shown of the images. Where training views are random, training images are streamed.
        mean: Per channel, of pixels scaled to [0, 1]; "auto": that of the dataset, or measured.
        std: Likewise.
        skip_broken: Whether to leave out image files that cannot be read, after a look at each of them.
        packing: What `cache` "packed" does where images are not packed yet: "write" packs them, "plan" says how much
            that would be, and "read" reads their files, to the same pixels.
        tell: Called with what will be packed, before that.
        progress: Called while images are read.

    Raises:
        UserError: The name is unknown, files are missing or damaged, the layout is wrong, `val` leaves nothing to
            train, or a label is not one of the classes.
    """
    assert cache in ("auto", "ram", "none", "packed")
    views = _of_dataset(views, datasets.find(name))
    request: dict[str, Any] = {"root": Path(root), "download": download, "classes": classes, "progress": progress}
    found = _read(name, given=args or {}, view=views.evaluation, **request)
    notes = [*found.notes]
    splits = {split: _split(found, split, views) for split in found.splits}
    store = Store(Path(root), json.dumps([name, args], default=str), views) if cache == "packed" else None
    left_out: dict[str, Broken] = {}
    if skip_broken:
        known = {} if store is None else store.known(splits)
        splits, left_out = without_broken(splits, known=known, progress=progress)
    broken = [reason for each in left_out.values() for reason in each.values()]
    if broken:
        listed = "; ".join(broken[:NAMED]) + "; ..." * (len(broken) > NAMED)
        notes.append(f"left out {len(broken):,} image file{'s' * (len(broken) > 1)} that cannot be read: {listed}")
    streamed = [part.dataset for part in splits.values() if part.dataset is not None]
    files = [dataset for dataset in streamed if isinstance(dataset, FileDataset)]
    is_user_code = len(files) < len(streamed)
    hold = bool(streamed) and cache == "ram"
    if streamed and cache == "auto" and not is_user_code:
        hold = fits_memory(sum(map(bytes_in_memory, files)))
    if store is not None and is_user_code:
        raise UserError(
            f"dataset.cache: {name} reads its samples in code, and only image files can be packed",
            hint="set dataset.cache=none, or ram if its samples are the same in each epoch",
        )
    if cache in ("none", "packed") and not streamed:
        notes.append(f"{name} is held in memory whatever dataset.cache says")
    if hold and is_user_code:
        notes.append("held in memory: random transforms of the dataset were applied once, for all epochs")
    reading = Reading(seed=seed, workers=workers, progress=progress)
    warnings: list[str] = []
    if any(part.dataset is not None for part in splits.values()):
        splits, warnings = with_checked_samples(splits, layout=found.layout, name=name, read_all=hold, reading=reading)
    for part in splits.values():
        require_classes(part)
    data = {split: fingerprint(part, root=Path(root)) for split, part in splits.items()}
    before = dict(splits)
    if "train" in splits and "val" in splits:
        notes.append(f"{name} has a validation split of its own: dataset.val is not applied")
    elif "train" in splits:
        parts, more = split_off_validation(
            splits["train"], val=val, seed=seed, stratify=stratify, class_names=found.class_names
        )
        splits |= parts
        warnings += more
    is_varied = bool(streamed) and (views.varies or views.training.is_random)
    if hold and is_varied and "train" in splits:
        notes.append("training images are decoded in each epoch, which shows other views of them")
    if hold:
        for split, part in splits.items():
            if part.dataset is not None and not (split == "train" and is_varied):
                splits[split] = load_into_memory(part, what=f"reading {split} images", reading=reading)
    if store is not None:
        splits, more = store.pack(splits, before=before, broken=left_out, packing=packing, tell=tell, progress=progress)
        notes += more
    first = next(splits[split] for split in ("train", "val", "test") if split in splits)
    example = next(read_rows(first, rows=torch.tensor([0]), reading=replace(reading, workers=0)))
    is_image = pytree.is_image(pytree.first_sample(example[0]))
    if is_image and example[0].is_floating_point() and found.mean is None:
        notes.append(f"{name} gives floating-point images: they are taken as normalized already")
    constants = _constants(
        replace(found, mean=found.mean if mean == "auto" else mean, std=found.std if std == "auto" else std),
        first,
        example[0] if is_image else None,
        name=name,
        reading=reading,
    )
    return Source(
        name=name,
        train=splits.get("train"),
        val=splits.get("val"),
        test=splits.get("test"),
        num_classes=len(found.class_names),
        class_names=found.class_names,
        channels=example[0].shape[1] if is_image else None,
        size=tuple(example[0].shape[2:]) if is_image else (),
        mean=constants[0],
        std=constants[1],
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


def _read(name: str, *, given: Mapping[str, Any], **request: Any) -> Found:
    """Read a dataset by its entry, whose fields complete what the reader returns."""
    entry = datasets.find(name)
    args = dict(given) if entry.args is None else complete_args(entry.args, given, name=name)
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


def _describe_classes(split: Split, class_names: Sequence[str]) -> tuple[str, ...]:
    """Return `3 classes of 12 (dog) to 400 (cat) train samples`; nothing where labels are unknown."""
    if split.target != "class" or split.labels is None or not class_names:
        return ()
    counts = split.labels.bincount(minlength=len(class_names))
    least, most = int(counts.argmin()), int(counts.argmax())
    number = f"{len(class_names):,} classes of"
    if counts[least] == counts[most]:
        return (f"{number} {int(counts[least]):,} {split.origin.split} samples each",)
    few, many = (f"{int(counts[label]):,} ({class_names[label]})" for label in (least, most))
    return (f"{number} {few} to {many} {split.origin.split} samples",)


# --- fingerprints


@dataclass(frozen=True)
class Fingerprint:
    """The number of samples, and a checksum; empty if only reading every sample would give one."""

    samples: int
    sha256: str


def changes(recorded: Mapping[str, Mapping[str, Any]], now: Mapping[str, Fingerprint], *, name: str) -> list[str]:
    """Return a sentence for each split that has changed."""
    sentences = []
    for split, found in now.items():
        before = recorded.get(split, {"samples": found.samples, "sha256": ""})
        counts = f"{before['samples']:,} samples then, {found.samples:,} now"
        if before["samples"] == found.samples:
            counts = f"{found.samples:,} samples as before, but not the same ones"
            if before["sha256"] == found.sha256 or not (before["sha256"] and found.sha256):
                continue
        sentences.append(f"{name}: the {split} data have changed: {counts}")
    return sentences


def fingerprint(split: Split, *, root: Path) -> Fingerprint:
    """Return the fingerprint of a split, before validation samples are taken from it."""
    if isinstance(split.dataset, FileDataset):
        return Fingerprint(len(split), _hash_files(split.dataset.files, root=root))
    inputs, labels = split.images, split.labels
    if split.dataset is not None:
        inputs = listed_part(split.dataset, 0)
        labels = listed_part(split.dataset, 1) if labels is None else labels
    known = [pytree.named_tensors(values) for values in (inputs, labels) if values is not None]
    return Fingerprint(len(split), _hash_tensors([tensor for tensors in known for tensor in tensors.values()]))


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


def _hash_tensors(tensors: Sequence[Tensor]) -> str:
    """Hash values and shapes; return an empty text if there are no tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        values = pytree.to_nhwc(tensor) if pytree.is_channels_last(tensor) else tensor.contiguous()
        if values.numel():
            digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest() if tensors else ""
