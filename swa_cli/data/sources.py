"""Named datasets as splits: images in memory, or a torch Dataset that is streamed.

`load` is the one door. Each kind of source only says which splits it has; taking the validation split,
holding images in memory and the normalisation constants are then the same for all.
Shapes: N samples, C channels, H W pixels.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from swa_cli.data import factory, folder, nested, settings
from swa_cli.data.masks import MaskDataset, find_masks
from swa_cli.data.published import (
    DIGITS,
    NUM_DIGITS,
    NUM_TEST_DIGITS,
    NUM_TRAIN,
    PUBLISHED,
    Arrays,
    read_digits,
    read_published,
)
from swa_cli.data.published_masks import PUBLISHED_MASKS, read_published_masks
from swa_cli.data.randomness import generator
from swa_cli.data.rotated import read_rotated_digits
from swa_cli.data.shapes import CLASSES, draw_scenes
from swa_cli.data.splits import Progress, Split, Target, held, mean_std, samples_of, take
from swa_cli.errors import UserError

_SIZE_OF_PHOTOGRAPHS = 128  # published images with masks are of many sizes
_MEMORY_SHARE = 1 / 4  # of the available memory that `cache: auto` may fill


@dataclass(frozen=True, eq=False)
class Source:
    """A dataset ready for use; mean and std are per channel, of pixels scaled to [0, 1]."""

    name: str
    train: Split
    val: Split | None
    test: Split | None
    num_classes: int  # or the V numbers of a value; 0 where only one's own network knows what it gives
    class_names: tuple[str, ...]
    channels: int | None  # None where the inputs are no images: they have no size, mean and std then
    size: tuple[int, ...]  # (H, W)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    example: tuple[Any, Any]  # the first training sample, a batch of one as it is stored
    notes: tuple[str, ...] = ()  # what a person should know and did not ask for

    @property
    def target(self) -> Target:
        """What a label is: a class, a mask with a class for each pixel (255 ignored), or `num_classes` numbers."""
        return self.train.target

    def describe_inputs(self) -> str:
        """What goes into the network, in words."""
        if self.channels is not None:
            return f"images of {' x '.join(map(str, (self.channels, *self.size)))}"
        return f"inputs {nested.kind_of(nested.mapped(self.example[0], lambda values: values[0]))}"


def names() -> tuple[str, ...]:
    """What `load` takes."""
    return (
        "digits",
        "rotated_digits",
        *PUBLISHED,
        "image_folder",
        "shapes",
        *PUBLISHED_MASKS,
        "mask_folder",
        "package.module:factory",
    )


def known_num_train(name: str, val: str | int, *, args: Mapping[str, Any]) -> int | None:
    """Training samples that are left beside the validation split, where that is known without reading the data."""
    number = None if args else NUM_TRAIN.get(name)
    return None if number is None else number - _num_val(val, num_train=number)


def load(
    name: str,
    *,
    root: str | Path = "data",
    val: str | int = "10%",
    seed: int = 0,
    cache: str = "auto",
    download: bool = True,
    workers: int = 2,
    args: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Source:
    """Find a dataset, take its validation split and hold it in memory where asked and possible.

    Args:
        name: One of `names()`.
        root: The folder of the files.
        val: Validation samples, "10%" or a number, taken from the training set by the seed alone; not applied
            to a source with a validation split of its own.
        seed: Decides which samples validate.
        cache: "auto" holds images that are files in memory if their pixels take at most a quarter of the
            available memory, "ram" holds everything, "none" streams what comes from files or from a user.
        download: Whether missing files may be downloaded.
        workers: Processes that read a streamed dataset.
        args: For "image_folder" {"size": side}; for a factory its keyword arguments; for others see `settings`.
        progress: Called while images are read.

    Raises:
        UserError: Unknown name, missing or damaged files, wrong layout, `val` leaves nothing to train.
    """
    assert cache in ("auto", "ram", "none")
    found = _find(name, root=Path(root), cache=cache, download=download, args=dict(args or {}), progress=progress)
    splits, notes = dict(found.splits), list(found.notes)
    if "val" in splits:
        notes.append(f"{name} has a validation split of its own: dataset.val is not applied")
    elif num_val := _num_val(val, num_train=len(splits["train"])):
        order = torch.randperm(len(splits["train"]), generator=generator(seed, "val"))
        splits["val"] = take(splits["train"], order[:num_val].sort().values)
        splits["train"] = take(splits["train"], order[num_val:].sort().values)
    if found.hold:
        splits = {
            split: held(part, what=f"reading {split} images", seed=seed, workers=workers, progress=progress)
            for split, part in splits.items()
        }
    example = next(samples_of(splits["train"], rows=torch.tensor([0]), seed=seed, workers=0))
    first, mean, std = example[0], found.mean, found.std
    is_image = nested.is_image(nested.mapped(first, lambda values: values[0]))
    if not is_image:
        if mean or std:
            raise UserError(f"{name} has a mean and std, and its inputs are no images", hint="leave them out")
        mean, std = (), ()
    elif mean is None or std is None:
        measured = mean_std(splits["train"], seed=seed, workers=workers)
        mean, std = mean or measured[0], std or measured[1]
    if is_image and first.is_floating_point() and found.mean is None:
        notes.append(f"{name} gives floating-point images: they are taken as normalised already")
    if is_image:
        _check_constants(name, mean=mean, std=std, channels=first.shape[1])
    return Source(
        name=name,
        train=splits["train"],
        val=splits.get("val"),
        test=splits.get("test"),
        num_classes=len(found.class_names),
        class_names=found.class_names,
        channels=first.shape[1] if is_image else None,
        size=tuple(first.shape[2:]) if is_image else (),
        mean=mean,
        std=std,
        example=example,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Found:
    """The splits of a source as they come; `hold` says that streamed ones shall be read into memory."""

    splits: dict[str, Split]
    class_names: tuple[str, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    hold: bool = False
    notes: tuple[str, ...] = ()


def _find(
    name: str, *, root: Path, cache: str, download: bool, args: dict[str, Any], progress: Progress | None
) -> _Found:
    if ":" in name:
        return _find_made(name, root=root, cache=cache, args=args)
    if name == "image_folder":
        return _find_folder(root, cache=cache, args=args)
    if name == "mask_folder":
        return _find_masks(root, cache=cache, args=args)
    if name in PUBLISHED_MASKS:
        return _find_published_masks(name, root=root, cache=cache, download=download, args=args)
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=1)
        raise UserError(
            f"unknown dataset {name!r}",
            hint=(f"did you mean {close[0]!r}? " if close else "") + f"There are {', '.join(names())}",
        )
    notes = (f"{name} is held in memory whatever dataset.cache says",) if cache == "none" else ()
    if name == "shapes":
        return _Found(*_drawn(args, progress=progress), notes=notes)
    if name in ("digits", "rotated_digits"):
        num_test = settings.num_test_digits(name, args, num_images=NUM_DIGITS, default=NUM_TEST_DIGITS)
        if name == "digits":
            return _Found(_in_memory(*read_digits(num_test=num_test)), DIGITS, notes=notes)
        splits = _in_memory(*read_rotated_digits(num_test=num_test), target="value")
        return _Found(splits, ("tens of degrees",), notes=notes)
    if args:
        raise UserError(f"{name} takes no arguments, but got {', '.join(args)}", hint="remove dataset.args")
    train, test, class_names = read_published(name, root=root, download=download)
    known = PUBLISHED[name]
    return _Found(_in_memory(train, test), class_names, known.mean, known.std, notes=notes)


def _find_folder(root: Path, *, cache: str, args: dict[str, Any]) -> _Found:
    size = args.get("size")
    if set(args) - {"size"} or not (size is None or (isinstance(size, int) and 0 < size <= settings.MAX_SIDE)):
        raise UserError(f"image_folder does not take {args}", hint="dataset.args is {size: S}: images of S x S pixels")
    datasets, class_names = folder.find(root, resize=size)
    splits = {
        split: Split(dataset.labels, None, dataset, torch.arange(len(dataset))) for split, dataset in datasets.items()
    }
    num_bytes = sum(3 * math.prod(dataset.shape) * len(dataset) for dataset in datasets.values())
    return _Found(splits, class_names, hold=_fits(num_bytes, cache=cache))


def _find_masks(root: Path, *, cache: str, args: dict[str, Any]) -> _Found:
    settings.require_keys("mask_folder", args, takes=("size", "classes"))
    class_names = settings.class_names("mask_folder", args.get("classes"))
    resize = settings.height_and_width("mask_folder", args["size"]) if "size" in args else None
    return _with_masks(find_masks(root, num_classes=len(class_names), resize=resize), class_names, cache=cache)


def _find_published_masks(name: str, *, root: Path, cache: str, download: bool, args: dict[str, Any]) -> _Found:
    settings.require_keys(name, args, takes=("size",))
    resize = settings.height_and_width(name, args.get("size", _SIZE_OF_PHOTOGRAPHS))
    known = PUBLISHED_MASKS[name]
    found = _with_masks(
        read_published_masks(name, root=root, download=download, resize=resize), known.class_names, cache=cache
    )
    notes = ("voc keeps its test masks to itself: its validation set is the test split here",) if name == "voc" else ()
    return replace(found, mean=known.mean, std=known.std, notes=notes)


def _with_masks(datasets: Mapping[str, MaskDataset], class_names: tuple[str, ...], *, cache: str) -> _Found:
    splits = {
        split: Split(None, None, dataset, torch.arange(len(dataset)), "mask") for split, dataset in datasets.items()
    }
    num_bytes = sum(4 * math.prod(dataset.shape) * len(dataset) for dataset in datasets.values())
    return _Found(splits, class_names, hold=_fits(num_bytes, cache=cache))


def _drawn(args: dict[str, Any], *, progress: Progress | None) -> tuple[dict[str, Split], tuple[str, ...]]:
    chosen = settings.shapes(args)
    num_bytes = sum(chosen.counts.values()) * chosen.size**2 * (chosen.channels + 1)
    if num_bytes > available_memory():
        raise UserError(
            f"dataset.args: {sum(chosen.counts.values()):,} scenes of {chosen.size}x{chosen.size} pixels take "
            f"{num_bytes / 2**30:.1f} GiB, there are {available_memory() / 2**30:.1f}",
            hint="make train, test or size smaller",
        )
    splits = {}
    for split, count in chosen.counts.items():
        images, masks = draw_scenes(
            split,
            count=count,
            size=chosen.size,
            classes=chosen.classes,
            channels=chosen.channels,
            seed=chosen.seed,
            progress=progress,
        )
        splits[split] = Split(masks, images, target="mask")
    return splits, CLASSES[chosen.classes]


def _fits(num_bytes: int, *, cache: str) -> bool:
    """Whether pixels of files shall be held in memory."""
    return cache == "ram" or (cache == "auto" and num_bytes <= _MEMORY_SHARE * available_memory())


def _find_made(name: str, *, root: Path, cache: str, args: dict[str, Any]) -> _Found:
    made = factory.make(name, root=str(root), args=args)
    splits = {
        split: Split(None, None, dataset, torch.arange(len(dataset)), made.target)  # type: ignore[arg-type]
        for split, dataset in made.splits.items()
    }
    hold = cache == "ram"
    notes = ("held in memory: random transforms of the dataset were applied once, for all epochs",) if hold else ()
    return _Found(splits, made.class_names, made.mean, made.std, hold=hold, notes=notes)


def _in_memory(train: Arrays, test: Arrays, *, target: Target = "class") -> dict[str, Split]:
    arrays = {"train": train, "test": test}
    return {split: Split(labels, images, target=target) for split, (images, labels) in arrays.items()}


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


def available_memory() -> int:
    """Bytes that can be taken without swapping; where the system does not tell, all of the memory."""
    try:
        meminfo = Path("/proc/meminfo").read_text()
        return int(re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)[1]) * 1024  # type: ignore[index]
    except (OSError, TypeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
