"""The packed file: decoded images of one split in one file, mapped into memory, each with its checksum.

It is a safetensors file: `pixels`, flat, holds each image (H, W, 3) and then its mask (H, W), if it has one; `rows`,
`offsets`, `sizes` and `crc32` say which row of the dataset lies where. `sources` in its metadata stands for the image
files that it was made from. It is written whole, or not at all.
Shapes: N stored images, H W pixels of one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import secrets
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swa_cli.data.image_file import Progress, on_all_cores
from swa_cli.data.splits import Broken
from swa_cli.data.transforms import Box, Photo
from swa_cli.errors import UserError

FORMAT = "swa packed 1"
SUFFIX = ".safetensors"
_PIXELS_AT = 4096  # bytes before the pixels: the header, padded
_CHUNK = 16  # images per task: large photos take tenths of a second, and Ctrl-C waits for the end of a task
_INDEX = {"rows": "<i8", "offsets": "<i8", "sizes": "<u4", "crc32": "<u4", "broken": "u1"}
_DTYPES = {"<i8": "I64", "<u4": "U32", "u1": "U8"}  # as safetensors calls them
_CURE = "free space, name a dataset.root on a larger disk, or set dataset.cache=none"


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
    read: Callable[[int], tuple[Tensor, ...]],
    *,
    rows: np.ndarray,
    planes: int,
    form: str,
    sources: str,
    broken: Broken,
    largest: int,
    what: str,
    progress: Progress | None,
) -> None:
    """Store images in a new file, decoded on all cores; it is whole, or not there.

    Args:
        path: Of the file; an older one is replaced, and stays open where it is read.
        read: Returns the image (3, H, W) at a row of the dataset, and its mask (H, W), if it has one.
        rows: (N,) of those that are stored, sorted.
        planes: Bytes per pixel: 3, or 4 with a mask.
        form: What is stored of each image, for people who look into the file.
        sources: The checksum of the files that the images come from.
        broken: The rows that are left out as broken, and why.
        largest: Bytes that the file may take.
        what: Names the work for `progress`.
        progress: Called with (what, images done, all images).

    Raises:
        UserError: Image files are broken, or there is no room.
    """
    offsets, sizes, crc32 = np.zeros(len(rows), "<i8"), np.zeros((len(rows), 2), "<u4"), np.zeros(len(rows), "<u4")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    lock, end = threading.Lock(), 0

    def store(place: int) -> None:
        nonlocal end
        image, *mask = read(int(rows[place]))
        pixels = [image.permute(1, 2, 0).contiguous().numpy(), *(part.contiguous().numpy() for part in mask)]
        with lock:
            offsets[place] = end
            end += sum(part.nbytes for part in pixels)
            if end > largest:
                raise no_room(end, path.parent)
        sizes[place] = pixels[0].shape[:2]
        first = int(offsets[place])
        for part in pixels:
            crc32[place] = zlib.crc32(part.data, int(crc32[place]))
            with explained(path):
                _write_at(file.fileno(), part, _PIXELS_AT + first)
            first += part.nbytes

    try:
        with open(temporary, "xb") as file:
            on_all_cores(store, len(rows), what=what, progress=progress, chunk=_CHUNK)
            end = -(-end // 8) * 8  # the index is aligned, and can be searched where it is mapped
            texts = np.frombuffer(json.dumps(broken).encode(), np.uint8)
            index = dict(zip(_INDEX, (rows.astype("<i8"), offsets, sizes, crc32, texts), strict=True))
            content = b"".join(values.tobytes() for values in index.values())
            metadata = {"format": FORMAT, "form": form, "planes": planes, "sources": sources}
            metadata |= {"index_crc32": zlib.crc32(content)}
            header = _header(end, index, metadata)
            with explained(path):
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
def explained(path: Path) -> Iterator[None]:
    """Explain a failure to write."""
    try:
        yield
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        cure = _CURE if is_full else f"let {path.parent} be a folder that can be written, or set dataset.cache=none"
        if isinstance(error, FileExistsError):
            cure = f"remove {path}, which is no folder, or set dataset.cache=none"
        raise UserError(f"{path}: cannot be written ({error.strerror})", hint=cure) from error


def no_room(num_bytes: int, folder: Path) -> UserError:
    """Return the error for packed images that would take too many bytes."""
    return UserError(
        f"dataset.cache: packed images would take {size_text(num_bytes)} in {folder}, more than half of the free space",
        hint=f"{_CURE}; the files in {folder} can be removed: those that are needed are packed again",
    )


def size_text(num_bytes: int) -> str:
    """Return `1.2 GB` or `3.4 MB`."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"
