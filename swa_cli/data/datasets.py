"""Each named dataset as the splits that it has, before anything is taken from them or held in memory.

`find` knows every name; what all datasets have in common is done by `sources.load`.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from swa_cli.data import dataset_args, folders, user_dataset
from swa_cli.data.listing import LeftOut
from swa_cli.data.masks import MaskDataset, find_masks
from swa_cli.data.splits import Progress, Split, Target
from swa_cli.data.synthetic import CLASSES, draw_scenes, read_rotated_digits
from swa_cli.data.torchvision_sets import (
    DIGITS,
    NUM_DIGITS,
    NUM_TEST_DIGITS,
    PUBLISHED,
    PUBLISHED_MASKS,
    Arrays,
    read_digits,
    read_published,
    read_published_masks,
)
from swa_cli.errors import UserError

_SIZE_OF_PHOTOGRAPHS = 128  # published images with masks are of many sizes
_MEMORY_SHARE = 1 / 4  # of the available memory that `cache: auto` may fill


@dataclass(frozen=True)
class Found:
    """The splits of a source as they come; `hold` says that streamed ones shall be read into memory."""

    splits: dict[str, Split]
    class_names: tuple[str, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    hold: bool = False
    notes: tuple[str, ...] = ()  # what a person should know and did not ask for
    contents: tuple[str, ...] = ()
    is_made: bool = False  # by a factory
    layout: str | None = None  # as the factory says it


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


def find(
    name: str,
    *,
    root: Path,
    cache: str,
    download: bool,
    args: dict[str, Any],
    classes: Sequence[str] | None,
    progress: Progress | None,
) -> Found:
    """Find a dataset by its name; arguments as of `sources.load`.

    Raises:
        UserError: There is none of this name, or its files are missing, damaged or laid out in another way.
    """
    if ":" in name:
        return _find_made(name, root=root, cache=cache, args=args)
    if name == "image_folder":
        return _find_folder(root, cache=cache, args=args, classes=classes)
    if name == "mask_folder":
        return _find_masks(root, cache=cache, args=args, needs_training=classes is None)
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
        return Found(*_drawn(args, progress=progress), notes=notes)
    if name in ("digits", "rotated_digits"):
        num_test = dataset_args.num_test_digits(name, args, num_images=NUM_DIGITS, default=NUM_TEST_DIGITS)
        if name == "digits":
            return Found(_in_memory(*read_digits(num_test=num_test)), DIGITS, notes=notes)
        splits = _in_memory(*read_rotated_digits(num_test=num_test), target="value")
        return Found(splits, ("tens of degrees",), notes=notes)
    if args:
        raise UserError(f"{name} takes no arguments, but got {', '.join(args)}", hint="remove dataset.args")
    train, test, class_names = read_published(name, root=root, download=download)
    known = PUBLISHED[name]
    return Found(_in_memory(train, test), class_names, known.mean, known.std, notes=notes)


def _find_folder(root: Path, *, cache: str, args: dict[str, Any], classes: Sequence[str] | None) -> Found:
    size = args.get("size")
    if set(args) - {"size"} or not (size is None or (isinstance(size, int) and 0 < size <= dataset_args.MAX_SIDE)):
        raise UserError(f"image_folder does not take {args}", hint="dataset.args is {size: S}: images of S x S pixels")
    found = folders.find(root, resize=size, classes=classes)
    splits = {
        split: Split(dataset.labels, None, dataset, torch.arange(len(dataset)))
        for split, dataset in found.datasets.items()
    }
    num_bytes = sum(3 * math.prod(dataset.shape) * len(dataset) for dataset in found.datasets.values())
    return Found(
        splits,
        found.class_names,
        hold=_fits(num_bytes, cache=cache),
        notes=found.notes,
        contents=_contents(found.facts, found.left_out),
    )


def _find_masks(root: Path, *, cache: str, args: dict[str, Any], needs_training: bool) -> Found:
    dataset_args.require_keys("mask_folder", args, takes=("size", "classes"))
    class_names = dataset_args.class_names("mask_folder", args.get("classes"))
    resize = dataset_args.height_and_width("mask_folder", args["size"]) if "size" in args else None
    found = find_masks(root, num_classes=len(class_names), resize=resize, needs_training=needs_training)
    contents = _contents(found.facts, found.left_out)
    return replace(_with_masks(found.datasets, class_names, cache=cache), contents=contents)


def _find_published_masks(name: str, *, root: Path, cache: str, download: bool, args: dict[str, Any]) -> Found:
    dataset_args.require_keys(name, args, takes=("size",))
    resize = dataset_args.height_and_width(name, args.get("size", _SIZE_OF_PHOTOGRAPHS))
    known = PUBLISHED_MASKS[name]
    found = _with_masks(
        read_published_masks(name, root=root, download=download, resize=resize), known.class_names, cache=cache
    )
    notes = ("voc keeps its test masks to itself: its validation set is the test split here",) if name == "voc" else ()
    return replace(found, mean=known.mean, std=known.std, notes=notes)


def _with_masks(datasets: Mapping[str, MaskDataset], class_names: tuple[str, ...], *, cache: str) -> Found:
    splits = {
        split: Split(None, None, dataset, torch.arange(len(dataset)), "mask") for split, dataset in datasets.items()
    }
    num_bytes = sum(4 * math.prod(dataset.shape) * len(dataset) for dataset in datasets.values())
    return Found(splits, class_names, hold=_fits(num_bytes, cache=cache))


def _drawn(args: dict[str, Any], *, progress: Progress | None) -> tuple[dict[str, Split], tuple[str, ...]]:
    chosen = dataset_args.shapes(args)
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


def _find_made(name: str, *, root: Path, cache: str, args: dict[str, Any]) -> Found:
    made = user_dataset.make(name, root=str(root), args=args)
    splits = {
        split: Split(None, None, dataset, torch.arange(len(dataset)), made.target)  # type: ignore[arg-type]
        for split, dataset in made.splits.items()
    }
    hold = cache == "ram"
    notes = ("held in memory: random transforms of the dataset were applied once, for all epochs",) if hold else ()
    return Found(
        splits, made.class_names, made.mean, made.std, hold=hold, notes=notes, is_made=True, layout=made.layout
    )


def _in_memory(train: Arrays, test: Arrays, *, target: Target = "class") -> dict[str, Split]:
    arrays = {"train": train, "test": test}
    return {split: Split(labels, images, target=target) for split, (images, labels) in arrays.items()}


def _contents(facts: Sequence[str], left_out: LeftOut) -> tuple[str, ...]:
    return (*facts, *([str(left_out)] if left_out else []))


def available_memory() -> int:
    """Bytes that can be taken without swapping; where the system does not tell, all of the memory."""
    try:
        meminfo = Path("/proc/meminfo").read_text()
        return int(re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)[1]) * 1024  # type: ignore[index]
    except (OSError, TypeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
