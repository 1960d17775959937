"""Packed images: decoded and shrunk once, stored beside the dataset, and read from there ever after.

The one idea: a view defines what is stored (`form_of`), so a file is only a faster way to the same pixels; without one
each image is brought into that form when it is read. Evaluation images are stored as evaluation shows them. Training
images are stored as their epochs show them, or, where these differ, with a bounded shorter side.

A packed file is a safetensors file: `pixels`, flat, holds each image (H, W, 3) and then its mask (H, W), if
it has one; `rows`, `offsets`, `sizes` and `crc32` say which row of the dataset lies where. Its name stands for what is
asked for, and `sources` in it for the image files that it was made from.
Shapes: N stored images, H W pixels of one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import mmap
import os
import secrets
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import filelock
import numpy as np
import torch
from torch import Tensor

from swa_cli.data.image_file import EncodedPhoto, Progress, on_all_cores, on_threads
from swa_cli.data.splits import Broken, Split
from swa_cli.data.stream import FileDataset
from swa_cli.data.transforms import Box, DrawnView, EvaluationView, Photo, Pixels, Shrunk, View, Views
from swa_cli.errors import UserError

FOLDER_SUFFIX = ".swa-packed"  # photos.swa-packed lies beside photos
FORMAT = "swa packed 1"
_SUFFIX = ".safetensors"
UNENLARGED = 0.9  # about the share of the random parts of a photo of 4:3 that keep as many pixels as are shown
_PIXELS_AT = 4096  # bytes before the pixels: the header, padded
_MEASURED = 500  # images whose headers tell the size of a file that is to be written
_CHUNK = 16  # images per task: large photos take tenths of a second, and Ctrl-C waits for the end of a task
_STAT_THREADS, _STATS = 16, 4096  # threads that wait for the file system, and files per task
_WAIT = "waiting for another run that packs these images"
_INDEX = {"rows": "<i8", "offsets": "<i8", "sizes": "<u4", "crc32": "<u4", "broken": "u1"}
_DTYPES = {"<i8": "I64", "<u4": "U32", "u1": "U8"}  # as safetensors calls them
_CURE = "free space, name a dataset.root on a larger disk, or set dataset.cache=none"
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
            pixels, *mask = _read_stored(self.photos, row, self.form)
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


# --- a file


@dataclass(frozen=True)
class StoredPhoto:
    """A `transforms.Photo` in a packed file; only the rows that are asked for are read."""

    file: PackedFile
    first: int  # its byte among the pixels
    size: tuple[int, int]  # (H, W)

    def pixels(self, *, box: Box | None = None, divisor: int = 1) -> Tensor:
        """Copy a part, or all, to (3, H, W) uint8 at full size."""
        top, left, height, width = box or (0, 0, *self.size)
        row = 3 * self.size[1]
        rows = self.file.stored(self.first + top * row, height * row).reshape(height, self.size[1], 3)
        return torch.from_numpy(rows[:, left : left + width].copy()).permute(2, 0, 1)


class PackedFile:
    """A packed file, mapped into memory. Each image is held against its checksum when it is first read in a run.

    Args:
        path: Of the file.
        checked: (N,) of the images that were read before, shared by all processes that read for a run.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged.
    """

    def __init__(self, path: Path, *, checked: Tensor | None = None) -> None:
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        content = np.frombuffer(self._map, np.uint8)
        try:
            header = json.loads(content[8:_PIXELS_AT].tobytes())
            metadata = json.loads(header["__metadata__"]["swa"])
            arrays = {}
            for name, kind in [("pixels", "u1"), *_INDEX.items()]:
                first, last = header[name]["data_offsets"]
                arrays[name] = content[_PIXELS_AT + first : _PIXELS_AT + last].view(kind).reshape(header[name]["shape"])
            self.identity: int = metadata["index_crc32"]
            is_whole = zlib.crc32(content[_PIXELS_AT + len(arrays["pixels"]) :].data) == self.identity
            if not is_whole or metadata["format"] != FORMAT:
                raise ValueError("checksum of the index")
            self.rows, self.broken = arrays["rows"], json.loads(arrays["broken"].tobytes())
            self.sources: str = metadata["sources"]
            self._planes = int(metadata["planes"])
        except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise ValueError(f"it is not as it was written: {error}") from error
        self.path, self.num_bytes, self._pixels = path, len(content), arrays["pixels"]
        self._offsets, self._sizes, self._crc32 = arrays["offsets"], arrays["sizes"], arrays["crc32"]
        self._checked = torch.zeros(len(self.rows), dtype=torch.uint8).share_memory_() if checked is None else checked

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_again, (self.path, self.identity, self._checked)

    def read(self, row: int) -> tuple[Photo | Tensor, ...]:
        """Return the image at a row of the dataset, and its mask (H, W), if it has one.

        Raises:
            UserError: The image is damaged.
        """
        place = int(np.searchsorted(self.rows, row))
        assert self.rows[place] == row, "the rows of a split are those that were packed"
        height, width = map(int, self._sizes[place])
        first, area = int(self._offsets[place]), height * width
        if not self._checked[place]:
            if zlib.crc32(self.stored(first, self._planes * area).data) != self._crc32[place]:
                raise UserError(
                    f"{self.path}: is damaged: image {place + 1:,} of {len(self.rows):,} has a wrong checksum",
                    hint=f"remove {self.path}: the next run packs its images again",
                )
            self._checked[place] = 1
        photo = StoredPhoto(self, first, (height, width))
        if self._planes == 3:
            return (photo,)
        mask = self.stored(first + 3 * area, area).reshape(height, width)
        return photo, torch.from_numpy(mask.copy())

    def stored(self, first: int, number: int) -> np.ndarray:
        """Return mapped bytes of the pixels, asked of the disk at once: 4 times as fast as page by page."""
        start = (_PIXELS_AT + first) // mmap.PAGESIZE * mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, start, _PIXELS_AT + first + number - start)
        return self._pixels[first : first + number]


def _open_again(path: Path, identity: int, checked: Tensor) -> PackedFile:
    """Open a file in a process that did not inherit it."""
    file = PackedFile(path, checked=checked)
    if file.identity != identity:
        raise UserError(f"{path}: was packed anew by another run", hint="start this run again, or resume it")
    return file


def write_file(
    path: Path,
    dataset: FileDataset,
    *,
    rows: np.ndarray,
    form: Form,
    sources: str,
    broken: Broken,
    largest: int,
    what: str,
    progress: Progress | None,
) -> None:
    """Store images in a new file, decoded on all cores; it is whole, or not there.

    Args:
        path: Of the file; an older one is replaced, and stays open where it is read.
        dataset: The images.
        rows: (N,) of those that are stored, sorted.
        form: What is stored of each image.
        sources: The checksum of the files that the images come from.
        broken: The rows that are left out as broken, and why.
        largest: Bytes that the file may take.
        what: Names the work for `progress`.
        progress: Called with (what, images done, all images).

    Raises:
        UserError: Image files are broken, or there is no room.
    """
    planes = 3 if dataset.labels is not None else 4
    offsets, sizes, crc32 = np.zeros(len(rows), "<i8"), np.zeros((len(rows), 2), "<u4"), np.zeros(len(rows), "<u4")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    lock, end = threading.Lock(), 0

    def store(place: int) -> None:
        nonlocal end
        image, *mask = _read_stored(dataset, int(rows[place]), form)
        pixels = [image.permute(1, 2, 0).contiguous().numpy(), *(part.contiguous().numpy() for part in mask)]
        with lock:
            offsets[place] = end
            end += sum(part.nbytes for part in pixels)
            if end > largest:
                raise _no_room(end, path.parent)
        sizes[place] = pixels[0].shape[:2]
        first = int(offsets[place])
        for part in pixels:
            crc32[place] = zlib.crc32(part.data, int(crc32[place]))
            with _explained(path):
                _write_at(file.fileno(), part, _PIXELS_AT + first)
            first += part.nbytes

    try:
        with open(temporary, "xb") as file:
            on_all_cores(store, len(rows), what=what, progress=progress, chunk=_CHUNK)
            end = -(-end // 8) * 8  # the index is aligned, and can be searched where it is mapped
            texts = np.frombuffer(json.dumps(broken).encode(), np.uint8)
            index = dict(zip(_INDEX, (rows.astype("<i8"), offsets, sizes, crc32, texts), strict=True))
            content = b"".join(values.tobytes() for values in index.values())
            metadata = {"format": FORMAT, "form": repr(form), "planes": planes, "sources": sources}
            metadata |= {"index_crc32": zlib.crc32(content)}
            header = _header(end, index, metadata)
            with _explained(path):
                _write_at(file.fileno(), np.frombuffer(content, np.uint8), _PIXELS_AT + end)
                _write_at(file.fileno(), np.frombuffer(header, np.uint8), 0)
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _header(num_pixels: int, index: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> bytes:
    """Return the header of a safetensors file: its length, and JSON padded with spaces."""
    entries: dict[str, Any] = {"__metadata__": {"swa": json.dumps(metadata)}}
    entries["pixels"] = {"dtype": "U8", "shape": [num_pixels], "data_offsets": [0, num_pixels]}
    first = num_pixels
    for name, values in index.items():
        last = first + values.nbytes
        entries[name] = {"dtype": _DTYPES[_INDEX[name]], "shape": [*values.shape], "data_offsets": [first, last]}
        first = last
    text = json.dumps(entries).encode()
    assert len(text) <= _PIXELS_AT - 8
    return (_PIXELS_AT - 8).to_bytes(8, "little") + text.ljust(_PIXELS_AT - 8)


def _write_at(descriptor: int, values: np.ndarray, offset: int) -> None:
    rest = values.data.cast("B")
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Explain a failure to write."""
    try:
        yield
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        cure = _CURE if is_full else f"let {path.parent} be a folder that can be written, or set dataset.cache=none"
        raise UserError(f"{path}: cannot be written ({error.strerror})", hint=cure) from error


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

    def measure(self) -> int:
        """Return the bytes of the images; where these have many sizes, evenly spaced ones tell."""
        if isinstance(self.form, EvaluationView) and self.form.size is not None:
            return math.prod(self.form.size) * (3 if self.dataset.labels is not None else 4) * len(self.rows)
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


def _read_stored(dataset: FileDataset, row: int, form: Form) -> tuple[Tensor, ...]:
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
            plan = f"{_listed(missing)} images in {self.folder}: about {_size(num_bytes)}, {_size(2 * room)} are free"
            used = {item.path for item in wanted.values()}
            if others := [path.stat().st_size for path in self.folder.glob(f"*{_SUFFIX}") if path not in used]:
                plan += (
                    f"; {len(others)} packed files of other recipes, seeds or images there take {_size(sum(others))}"
                )
            if num_bytes > room:
                raise _no_room(num_bytes, self.folder)
            if packing == "plan":
                notes.append(f"`swa train` packs {plan}")
            else:
                tell(f"packing {plan}")
                files |= self._write(missing, room=room, progress=progress)
        there = [wanted[split] for split, file in files.items() if file is not None]
        if there:
            size = _size(sum(file.num_bytes for file in files.values() if file is not None))
            notes.append(f"{_listed(there)} images are packed in {self.folder} ({size})")
        if "train" in wanted and isinstance(form := wanted["train"].form, Shrunk):
            notes.append(f"training images are read with {form.describe()}")
        packed = {
            split: replace(splits[split], dataset=PackedDataset(item.dataset, item.form, files[split]))
            for split, item in wanted.items()
        }
        return {**splits, **packed}, notes

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
        return self.folder / f"{split}-{size}-{digest.hexdigest()[:12]}{_SUFFIX}"

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
                        item.dataset,
                        rows=item.rows,
                        form=item.form,
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
        with _explained(self.folder):
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
    paths = dataset.files

    def describe(part: range) -> bytes:
        return b"".join(map(_state, paths[part.start : part.stop]))

    def _state(path: str) -> bytes:
        try:
            status = os.stat(path)
            state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            state = "missing"
        return f"{path.removeprefix(f'{root}{os.sep}')}\0{state}\0".encode(errors="surrogateescape")

    digest = hashlib.sha256(dataset.checksum.encode())
    what = "looking at the files of packed images"
    for text in on_threads(describe, len(paths), what=what, progress=progress, threads=_STAT_THREADS, chunk=_STATS):
        digest.update(text)
    return digest.hexdigest()


def _no_room(num_bytes: int, folder: Path) -> UserError:
    return UserError(
        f"dataset.cache: packed images would take {_size(num_bytes)} in {folder}, more than half of the free space",
        hint=f"{_CURE}; the files in {folder} can be removed: those that are needed are packed again",
    )


def _listed(items: list[_Wanted]) -> str:
    """Return `1,080 train, 120 val`."""
    return ", ".join(f"{len(item.rows):,} {item.split}" for item in items)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"
