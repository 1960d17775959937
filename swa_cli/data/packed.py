"""Packed images: decoded and shrunk once, stored beside the dataset, and read from there ever after.

The one idea: a view defines what is stored (`form_of`), so a file is only a faster way to the same pixels; without one
each image is brought into that form when it is read. Evaluation images are stored as evaluation shows them. Training
images are stored as their epochs show them, or, where these differ, with a bounded shorter side.

The name of a packed file stands for what is asked for, and `sources` in it for the image files that it was made from.
Shapes: N stored images, H W pixels of one.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shlex
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import filelock
import numpy as np
import torch
from torch import Tensor

from swa_cli.data.image_file import EncodedPhoto, Progress, hash_files
from swa_cli.data.packed_file import SUFFIX, PackedFile, explained, no_room, size_text, write_file
from swa_cli.data.splits import Broken, Split
from swa_cli.data.stream import FileDataset
from swa_cli.data.transforms import DrawnView, EvaluationView, Photo, Pixels, Shrunk, View, Views
from swa_cli.errors import UserError

FOLDER_SUFFIX = ".swa-packed"  # photos.swa-packed lies beside photos
UNENLARGED = 0.9  # about the share of the random parts of a photo of 4:3 that keep as many pixels as are shown
_MEASURED = 500  # images whose headers tell the size of a file that is to be written
_NAMED = 5  # files that are not used, by name
_WAIT = "waiting for another run that packs these images"
Form = EvaluationView | Shrunk
Packing = Literal["read", "plan", "write"]


def folder_of(root: Path) -> Path:
    """Return where packed images of a dataset lie: not inside its folder, where other programs would see a class."""
    named = root.resolve() if root.name in ("", "..") else root
    return named.with_name(named.name + FOLDER_SUFFIX)


def form_of(views: Views, *, split: str) -> Form:
    """Return what is stored of the images of a split.

    Training images that epochs show differently keep the shorter side of the largest size. For random parts it is so
    large that `UNENLARGED` of those of a photo of 4:3 have as many pixels as are shown: 468 for 224 and shares of the
    area from 0.08 to 1.
    """
    training = views.training
    if split != "train":
        return views.evaluation
    if training.crop is None and not views.varies:
        return training.still
    sides = []
    for still in (training.still, *views.others):
        assert still.size is not None, "the recipe is checked: a random crop has a size"
        sides.append(still.resize or max(still.size))
        if training.crop is not None:
            low, high = training.crop.scale
            share = high - UNENLARGED * (high - low)
            sides.append(math.ceil(max(still.size) * math.sqrt(3 / 4 / share)))
    return Shrunk(max(sides), training.interpolation)


@dataclass(frozen=True, eq=False)
class PackedDataset:
    """A `stream.FileDataset` whose images are read from a packed file, or brought into its form as they are read."""

    photos: FileDataset
    form: Form
    file: PackedFile | None

    @property
    def labels(self) -> Tensor | None:
        """Classes (N,); None: a sample has a mask."""
        return self.photos.labels

    @property
    def files(self) -> Sequence[str]:
        """The image files."""
        return self.photos.files

    @property
    def checksum(self) -> str:
        """What identifies the images besides their files and labels."""
        return self.photos.checksum

    @property
    def tables(self) -> Sequence[str]:
        """Files that hold images besides `files`."""
        return self.photos.tables

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the images where nothing is drawn."""
        return self.photos.shape

    def __len__(self) -> int:
        return len(self.photos)

    def name(self, row: int) -> str:
        """Return what messages call an image; see `stream.FileDataset`."""
        return self.photos.name(row)

    def photo(self, row: int) -> EncodedPhoto:
        """Return an encoded image, which is not that of the packed file; see `stream.FileDataset`."""
        return self.photos.photo(row)

    def check(self, row: int) -> None:
        """Decode an image file; see `stream.FileDataset`."""
        self.photos.check(row)

    def read(self, row: int, view: View) -> tuple[Tensor, ...]:
        """Read the view (3, h, w) of an image, and of its mask (h, w); see `stream.FileDataset`."""
        photo: Photo
        if self.file is None:
            pixels, *mask = _read_stored(self.photos, row, form=self.form)
            photo = Pixels(pixels)
        else:
            photo, *mask = self.file.read(row)  # type: ignore[assignment]
        rest = _rest_of(view, self.form)
        return rest.image(photo), *map(rest.mask, mask)


def _rest_of(view: View, form: Form) -> View:
    """Return what is left to do of a view for images that are stored in a form."""
    if view == form:
        return EvaluationView()
    if isinstance(view, DrawnView) and view.view.crop is None and view.view.still == form:
        return replace(view, view=replace(view.view, still=EvaluationView()))
    return view


# --- the files of a dataset


@dataclass(frozen=True)
class _Wanted:
    """A file that is asked for."""

    path: Path
    split: str
    dataset: FileDataset
    form: Form
    rows: np.ndarray
    sources: str
    broken: Broken

    def open(self) -> tuple[PackedFile | None, str]:
        """Return the file, or None and, if there is one that cannot be used, why."""
        file, reason = _open(self.path, self.sources)
        if file is not None and not np.array_equal(file.rows, self.rows):
            return None, f"{self.path} was packed with other broken files"
        return file, reason

    @property
    def planes(self) -> int:
        """Bytes per pixel."""
        return 3 if self.dataset.labels is not None else 4

    def measure(self) -> int:
        """Return the bytes of the images; where these have many sizes, evenly spaced ones tell."""
        if isinstance(self.form, EvaluationView) and self.form.size is not None:
            return math.prod(self.form.size) * self.planes * len(self.rows)
        number = min(len(self.rows), _MEASURED)
        measured = []
        for row in self.rows[np.arange(number) * len(self.rows) // number]:
            with contextlib.suppress(OSError):  # a broken file is named when it is decoded
                parts = self.dataset.read(int(row), _OfAnySize(self.form, is_measured=True))
                measured.append(sum(part.numel() for part in parts))
        return round(sum(measured) / max(len(measured), 1) * len(self.rows))


@dataclass
class _OfAnySize:
    """What is stored of one image as a `View`, which has the size of that image; with `is_measured` without pixels."""

    form: Form
    is_measured: bool = False
    size: tuple[int, int] | None = None

    def image(self, photo: Photo) -> Tensor:
        pixels = self._empty(photo.size, 3) if self.is_measured else self.form.image(photo)
        self.size = pixels.shape[1], pixels.shape[2]
        return pixels

    def mask(self, mask: Tensor) -> Tensor:
        return self._empty((mask.shape[0], mask.shape[1]), 1)[0] if self.is_measured else self.form.mask(mask)

    def _empty(self, size: tuple[int, int], planes: int) -> Tensor:
        size = self.form.size_of(size) if isinstance(self.form, Shrunk) else self.form.size or size
        return torch.empty((planes, *size), dtype=torch.uint8, device="meta")


def _read_stored(dataset: FileDataset, row: int, *, form: Form) -> tuple[Tensor, ...]:
    """Read what is stored of an image file, and of its mask; images that are not resized must have one size."""
    return dataset.read(row, _OfAnySize(form) if isinstance(form, Shrunk) else form)


@dataclass(frozen=True)
class Store:
    """The packed files of a dataset.

    Args:
        root: The folder of the dataset.
        request: What else decides which images a split has: the name of the dataset and its arguments.
        views: How images are shown.
    """

    root: Path
    request: str
    views: Views

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return folder_of(self.root)

    def known(self, splits: Mapping[str, Split], *, progress: Progress | None) -> dict[str, Broken]:
        """Return the broken image files of the splits, as they are found, that are packed already."""
        found = {}
        for split, part in splits.items():
            if isinstance(part.dataset, FileDataset):
                path = self._path(split, form_of(self.views, split=split), rows=None)
                file, _ = _open(path, _checksum(part.dataset, self.root, progress))
                if file is not None:
                    found[split] = {int(row): reason for row, reason in file.broken.items()}
        return found

    def pack(
        self,
        splits: Mapping[str, Split],
        *,
        before: Mapping[str, Split],
        broken: Mapping[str, Broken],
        packing: Packing,
        tell: Callable[[str], object],
        progress: Progress | None,
    ) -> tuple[dict[str, Split], list[str]]:
        """Let splits read packed images; return them and notes.

        Args:
            splits: Those to read.
            before: The splits before validation images were taken from the training images: all of these are packed
                in one file, whatever the seed.
            broken: The files that were left out.
            packing: `write` packs what is not there; `plan` says how much that would be; `read` only reads.
            tell: Is told what will be written before that.
            progress: Called while images are packed.

        Raises:
            UserError: Image files are broken, the packed ones would take more than half of the free space, or they
                cannot be written.
        """
        wanted = self._wanted(splits, before=before, broken=broken, progress=progress)
        opened = {split: item.open() for split, item in wanted.items()}
        notes = [f"{reason}: it is packed anew" for _, reason in opened.values() if reason and packing != "read"]
        files = {split: file for split, (file, _) in opened.items()}
        missing = [wanted[split] for split, file in files.items() if file is None]
        if missing and packing != "read":
            room = self._room()
            num_bytes = sum(item.measure() for item in missing)
            about, free = size_text(num_bytes), size_text(2 * room)
            plan = f"{_listed(missing)} images in {self.folder}: about {about}, {free} are free"
            if num_bytes > room:
                raise no_room(num_bytes, self.folder)
            unused = self._describe_unused({item.path for item in wanted.values()})
            if packing == "plan":
                notes += [f"`swa train` packs {plan}", *unused]
            else:
                for text in (f"packing {plan}", *unused):
                    tell(text)
                files |= self._write(missing, room=room, progress=progress)
        there = [wanted[split] for split, file in files.items() if file is not None]
        if there:
            size = size_text(sum(file.num_bytes for file in files.values() if file is not None))
            notes.append(f"{_listed(there)} images are packed in {self.folder} ({size})")
        if "train" in wanted and isinstance(form := wanted["train"].form, Shrunk):
            notes.append(f"training images are read with {form.describe()}")
        packed = {
            split: replace(splits[split], dataset=PackedDataset(item.dataset, item.form, files[split]))
            for split, item in wanted.items()
        }
        return {**splits, **packed}, notes

    def _describe_unused(self, used: Collection[Path]) -> list[str]:
        """Return a sentence on the files that no split reads: those of other recipes, seeds or images, which stay."""
        others = {path: path.stat().st_size for path in self.folder.glob(f"*{SUFFIX}") if path not in used}
        if not others:
            return []
        largest = sorted(others, key=lambda path: -others[path])[:_NAMED]
        listed = ", ".join(f"{path.name} ({size_text(others[path])})" for path in largest)
        more = ", ..." if len(largest) < len(others) else ""
        count = f"{len(others)} packed file{'s' if len(others) > 1 else ''}"
        return [
            f"{count} of other recipes, seeds or images there take {size_text(sum(others.values()))}: {listed}{more};"
            f" where no other recipe reads them, free their space: rm {shlex.join(map(str, largest))}"
        ]

    def _wanted(
        self,
        splits: Mapping[str, Split],
        *,
        before: Mapping[str, Split],
        broken: Mapping[str, Broken],
        progress: Progress | None,
    ) -> dict[str, _Wanted]:
        checksums: dict[int, str] = {}
        wanted = {}
        for split, part in splits.items():
            dataset = part.dataset
            if dataset is None:
                continue  # in memory, as is said elsewhere
            if not isinstance(dataset, FileDataset):
                raise UserError(
                    "dataset.cache: packed stores image files, and this dataset reads its samples in code",
                    hint="set dataset.cache=none, or ram if its samples are the same in each epoch",
                )
            if id(dataset) not in checksums:
                checksums[id(dataset)] = _checksum(dataset, self.root, progress)
            whole = before.get(split)
            indices = part.indices if whole is None else whole.indices
            assert indices is not None
            form, rows = form_of(self.views, split=split), indices.numpy()
            wanted[split] = _Wanted(
                path=self._path(split, form, rows=rows if whole is None else None),
                split=split,
                dataset=dataset,
                form=form,
                rows=rows,
                sources=checksums[id(dataset)],
                broken=broken.get(split, {}) if whole is not None else {},
            )
        return wanted

    def _path(self, split: str, form: Form, *, rows: np.ndarray | None) -> Path:
        """Return the file of a split; `rows` are those of validation images that were taken from others."""
        digest = hashlib.sha256(f"{self.request}\0{split}\0{form!r}".encode())
        if rows is not None:
            digest.update(rows.tobytes())
        size = f"{form.side}px" if isinstance(form, Shrunk) else "x".join(map(str, form.size or ("whole",)))
        return self.folder / f"{split}-{size}-{digest.hexdigest()[:12]}{SUFFIX}"

    def _write(self, missing: list[_Wanted], *, room: int, progress: Progress | None) -> dict[str, PackedFile | None]:
        """Write the files that are missing, unless another process has done so meanwhile."""
        files: dict[str, PackedFile | None] = {}
        with self._alone(progress):
            for leftover in self.folder.glob(".*.tmp"):  # of a process that was killed
                leftover.unlink(missing_ok=True)
            for item in missing:
                found, _ = item.open()
                if found is None:
                    write_file(
                        item.path,
                        partial(_read_stored, item.dataset, form=item.form),
                        rows=item.rows,
                        planes=item.planes,
                        form=repr(item.form),
                        sources=item.sources,
                        broken=item.broken,
                        largest=room,
                        what=f"packing {item.split} images",
                        progress=progress,
                    )
                    found = PackedFile(item.path)
                    room -= found.num_bytes
                files[item.split] = found
        return files

    @contextlib.contextmanager
    def _alone(self, progress: Progress | None) -> Iterator[None]:
        """Make the folder, and wait until no other process writes in it."""
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.folder / ".lock")
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                if progress:
                    progress(_WAIT, 0, 1)
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _room(self) -> int:
        """Return the bytes that may be written: half of those that are free."""
        folder = self.root.absolute()
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free // 2


def _open(path: Path, sources: str) -> tuple[PackedFile | None, str]:
    try:
        file = PackedFile(path)
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError) as error:
        return None, f"{path} is damaged ({error})"
    if file.sources != sources:
        return None, f"{path} is stale (image files have changed since)"
    return file, ""


def _checksum(dataset: FileDataset, root: Path, progress: Progress | None) -> str:
    """Return a checksum of the names, sizes and modification times of all files of a dataset."""

    def describe(path: str, status: os.stat_result | None) -> str:
        state = "missing" if status is None else f"{status.st_size} {status.st_mtime_ns}"
        return f"{path.removeprefix(f'{root}{os.sep}')}\0{state}\0"

    digest = hashlib.sha256(dataset.checksum.encode())
    for paths in (dataset.files, dataset.tables):
        hash_files(digest, paths, describe, what="looking at the files of packed images", progress=progress)
    return digest.hexdigest()


def _listed(items: list[_Wanted]) -> str:
    """Return `1,080 train, 120 val`."""
    return ", ".join(f"{len(item.rows):,} {item.split}" for item in items)
