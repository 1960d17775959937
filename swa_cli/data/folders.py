"""Folders of images with one subfolder per class: found and checked.

A layout that must be a mistake is refused: a root one level too high, a single class, a split among the classes.
Shapes: N images, H W pixels.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from swa_cli.data.image_file import USUAL_SUFFIXES, Progress
from swa_cli.data.listing import (
    NAMED,
    FolderIndex,
    LeftOut,
    Listing,
    images_below,
    left_out_of,
    require_different,
    split_folders,
    split_of,
    splits_under,
    subfolders,
)
from swa_cli.data.paths import Paths
from swa_cli.data.photos import PhotoFiles, found
from swa_cli.data.splits import Found
from swa_cli.data.transforms import EvaluationView
from swa_cli.errors import UserError


def find(
    root: Path,
    *,
    view: EvaluationView,
    classes: Sequence[str] | None = None,
    keep_in: Path | None = None,
    progress: Progress | None = None,
) -> Found:
    """Find the splits under a folder and the class names.

    The layout is root/train with optional root/val and root/test (`listing.SPLITS` has their other names), or class
    folders directly under root, which are the training split. Class names are compared in the Unicode form NFC.

    Args:
        root: The folder.
        view: Of each image, where nothing is drawn.
        classes: Those of trained weights: they name the classes of root/val and root/test without root/train.
        keep_in: Where the index of a large folder is kept, see `listing.FolderIndex`.
        progress: Called while the class folders are listed.

    Raises:
        UserError: The layout is wrong, a class has no images, a split has classes that training lacks, or a link
            makes two classes or splits share a folder.
    """
    folders, beside = splits_under(root)
    index = FolderIndex(root, keep_in=keep_in)
    parts = {
        split: _list_classes(folder, split=split, index=index, progress=progress) for split, folder in folders.items()
    }
    notes = index.save()
    del index  # it takes as much memory as the files
    if "train" in parts:
        class_names = tuple(parts["train"].listings)
        _require_classes(parts["train"], root=root)
    elif classes is not None:
        class_names = tuple(classes)
    else:
        raise _no_training(root, folders)
    require_different(listing for part in parts.values() for listing in part.listings.values())
    files = {split: part.files(class_names) for split, part in parts.items()}
    notes += [note for part in parts.values() for note in part.notes]
    return found(
        {split: PhotoFiles(paths) for split, (paths, _) in files.items()},
        {split: labels for split, (_, labels) in files.items()},
        class_names=class_names,
        view=view,
        left_out=sum((part.left_out for part in parts.values()), beside).describe(),
        notes=(*notes, *(_siblings(root) if folders.get("train") == root else [])),
    )


def _siblings(root: Path) -> list[str]:
    """Return a note on the other splits beside a root that is a training folder itself."""
    folder = root.absolute()
    others = split_folders(folder.parent) if split_of(folder.name) == "train" else {}
    unread = [f"{path.name}/" for split, path in others.items() if split != "train"]
    note = f"{' and '.join(unread)} beside {root} are not read: to read them, write dataset.root={root.parent}"
    return [note] if unread else []


@dataclass(frozen=True)
class _Part:
    """The class folders of a split."""

    folder: Path
    listings: Mapping[str, Listing]  # by class name in NFC, sorted
    left_out: LeftOut
    notes: tuple[str, ...]

    def files(self, classes: Sequence[str]) -> tuple[Paths, Tensor]:
        """Return the images, sorted by class and path, and their labels (N,).

        Raises:
            UserError: There are none, or some of another class.
        """
        unknown = [name for name in self.listings if name not in classes]
        if unknown:
            raise UserError(
                f"{self.folder} has classes that the training folder lacks: {', '.join(unknown[:NAMED])}",
                hint=f"the training folder has {', '.join(classes[:NAMED])}...: name the class folders alike",
            )
        images = [self.listings[name].images if name in self.listings else Paths() for name in classes]
        if not any(images):
            raise _no_images(self.folder, self.left_out)
        labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([*map(len, images)]))
        return Paths.joined(images), labels


def _list_classes(folder: Path, *, split: str, index: FolderIndex, progress: Progress | None) -> _Part:
    """List the images in and below the class folders, whose names may be there in several Unicode forms."""
    by_name: dict[str, list[Path]] = {}
    for name in subfolders(folder):
        by_name.setdefault(unicodedata.normalize("NFC", name), []).append(folder / name)
    listings = dict[str, Listing]()
    for name in sorted(by_name):
        listings[name] = images_below(by_name[name], index=index)
        if progress:
            progress(f"listing {split} images", len(listings), len(by_name))
    used = [part.name for parts in by_name.values() for part in parts]
    directly = left_out_of(folder, used=used, where="outside of class folders")
    notes = (
        f"{folder / name} exists {len(parts)} times, in several Unicode forms: all are the class {name}"
        for name, parts in sorted(by_name.items())
        if len(parts) > 1
    )
    return _Part(folder, listings, sum((each.left_out for each in listings.values()), directly), tuple(notes))


def _require_classes(train: _Part, *, root: Path) -> None:
    """Check the classes of the training folder, which may be the root itself.

    Raises:
        UserError: It has none, a single one, one without images, or split folders among or below the classes.
    """
    if not any(listing.images for listing in train.listings.values()):
        raise _no_images(train.folder, train.left_out)
    _require_no_splits(train, root=root)
    if len(train.listings) == 1:
        raise _single_class(train.folder, next(iter(train.listings)), root=root)
    for name, listing in train.listings.items():
        if not listing.images:
            others = "; ".join(f"{count:,} {kind}" for kind, count in listing.left_out.files)
            raise UserError(
                f"no images in {train.folder / name}{f', but {others}' if others else ''}",
                hint=f"a class needs images ({USUAL_SUFFIXES}): add some, or remove its folder",
            )


def _require_no_splits(train: _Part, *, root: Path) -> None:
    """Check that there are no split folders among or below the class folders."""
    folder = train.folder
    nested = [
        folder / name / below for name, each in train.listings.items() for below in each.folders if split_of(below)
    ]
    tops = sorted({path.parent for path in nested})
    if nested:
        are_datasets = len(tops) == 1 or any(map(_subfolders_if_any, nested))
        raise UserError(
            f"{nested[0]}: is a split inside a class folder; dataset.root is {root}",
            hint=f"write dataset.root={' or dataset.root='.join(map(str, tops[:NAMED]))}"
            if are_datasets
            else f"move the images to {root / 'train'}/<class>/ and {root / 'test'}/<class>/",
        )
    splits = [name for name, listing in train.listings.items() if split_of(name) and listing.folders]
    if splits:
        raise UserError(
            f"{folder / splits[0]}: is a split among the class folders",
            hint=f"move it to {root / splits[0]}, or rename it if it is a class",
        )


def _single_class(folder: Path, name: str, *, root: Path) -> UserError:
    """Return the error for a single class; the classes may be some levels further down."""
    better = folder / name
    while len(below := _subfolders_if_any(better)) == 1:
        better = better / below[0]
    if not below:
        hint = f"add the folders of the other classes to {folder}"
    elif folder == root:
        hint = f"write dataset.root={better}"
    else:
        hint = f"move the class folders of {better} into {folder}"
    return UserError(f"{folder}: has a single class, {name}/: there is nothing to classify", hint=hint)


def _subfolders_if_any(folder: Path) -> list[str]:
    """Return the subfolder names; none if the path, such as a name in another Unicode form, is not a folder."""
    return subfolders(folder) if folder.is_dir() else []


def _no_training(root: Path, folders: Mapping[str, Path]) -> UserError:
    """Return the error for a root with other splits only, and perhaps classes."""
    used = [folder.name for folder in folders.values()]
    splits = ", ".join(f"{name}/" for name in used)
    others = [f"{name}/" for name in subfolders(root) if name not in used]
    beside = f" beside {', '.join(others[:NAMED])}" if others else ""
    return UserError(
        f"no class folders with images in {root / 'train'}: {root} has {splits}{beside}",
        hint=f"move the class folders into {root / 'train'}, or rename {splits} if it is a class",
    )


def _no_images(folder: Path, left_out: LeftOut | None = None) -> UserError:
    """Return the error for no images in class folders; `left_out` is what the folder contains instead."""
    others = ", ".join(f"{number:,} {kind}" for kind, number in (left_out or LeftOut()).files)
    return UserError(
        f"no class folders with images in {folder}{f' (there are {others})' if others else ''}",
        hint="image_folder reads dataset.root/train/<class>/*.jpg (and test/, val/ beside train/), "
        "or dataset.root/<class>/*.jpg",
    )
