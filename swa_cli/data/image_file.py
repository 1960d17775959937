"""Image files: opened, checked and decoded to 8-bit RGB as far as a view needs it, one at a time or on all cores.

Only the formats of `FORMATS` are opened, whatever a file is called. What 8-bit RGB cannot hold is converted in one
defined way or refused, and never clipped: 16 bits become 8 as v >> 8, transparent pixels become white, the EXIF
orientation is applied, and of several frames the first is taken. JPEG files are decoded at a part of their size where a
view needs no more. (torchvision's decoder is 10 % faster than Pillow's and deprecated.)
Shapes: N images, H W pixels.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from io import BytesIO
from typing import IO, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor

from swa_cli.data.transforms import MAX_PIXELS, Box
from swa_cli.errors import UserError

# Pillow's name of a format -> suffixes of its files. Formats that run other programs (EPS, WMF) or hold no photos are
# excluded. Pillow opens MPO, which some cameras write, as JPEG.
FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "GIF": (".gif",),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    "TGA": (".tga",),
    "QOI": (".qoi",),
    "PCX": (".pcx",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
USUAL_SUFFIXES = "such as .jpg, .png, .webp, .tif, .gif, .avif"  # in messages
UNREADABLE_HINT = (  # before a run, and during one, whose recipe and list of files may not change
    "repair or replace what cannot be read, or start again with dataset.skip_broken=true, which leaves it out"
)
BACKGROUND = 255  # behind transparent pixels: white

_STAT_THREADS, _STATS = 16, 4096  # threads that wait for the file system, not for a core; files per task
# What PIL raises on files that are not images, truncated or damaged; RuntimeError: its decoder of AVIF.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
)
_DEEP_GRAY = ("I;16", "I;16L", "I;16B", "I;16N")
# Between two gray values of a PNG file of 2 or 4 bits, by Pillow's name for these: it multiplies them to fill 8 bits.
_GRAY_STEPS: dict[object, int] = {"L;2": 255 // 3, "L;4": 255 // 15}
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM")  # whose images in mode I have 16 bits
_SWAPS_SIDES = (5, 6, 7, 8)  # EXIF orientations that swap height and width
# The transposition that makes an image of an orientation upright (EXIF 2.3, 4.6.4 A).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_END_OF_JPEG = b"\xff\xd9"  # the last marker
_STILL_FORMATS = ("JPEG", "MPO")  # formats whose further frames are previews of the first
_PNG_SIGNATURE, _PNG_CHUNK, _PNG_CRC, _PNG_KEYWORD = 8, 8, 4, 22  # bytes; the last: of the longest text below
_PNG_TEXTS, _PNG_ORIENTED = (b"tEXt", b"zTXt", b"iTXt"), (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
_filters_lock = threading.Lock()  # warning filters are global
Progress = Callable[[str, int, int], None]  # (what, done, all)
T = TypeVar("T")
_CHUNK = 256  # images per task: few enough for smooth progress, many enough to keep threads busy
_MAX_NAMED = 5  # broken files that a message lists


@dataclass(frozen=True)
class Header:
    """What a file says about its image before it is decoded."""

    size: tuple[int, int]  # (H, W), upright
    orientation: int  # EXIF, of the pixels that are stored; 1 is upright
    is_16_bit: bool  # gray
    is_transparent: bool
    has_frames: bool  # more than one
    is_plain_jpeg: bool  # gray or RGB, which every decoder of libjpeg-turbo decodes to the same bits
    holds_rgb: bool  # a JPEG file that is marked as RGB, not as the usual YCbCr


@contextmanager
def open_image(
    source: str | bytes, *, name: str | None = None, formats: tuple[str, ...] = tuple(FORMATS)
) -> Iterator[Image.Image]:
    """Open an image file, given by its path or its content; its pixels are not read yet.

    Raises:
        OSError: The file is broken, or of another format; the message names it. So do errors inside the block.
        UserError: It has more than `MAX_PIXELS`.
    """
    path = name or str(source)
    try:
        with BytesIO(source) if isinstance(source, bytes) else open(source, "rb", opener=_open_regular) as file:
            with _filters_lock, warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
                image = Image.open(file, formats=formats)
            with image:
                yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        number = int(str(error).partition("(")[2].partition(" ")[0])  # Image size (N pixels) exceeds limit ...
        raise UserError(
            f"{path}: has {number:,} pixels; the limit is {MAX_PIXELS:,} pixels",
            hint="save it smaller or cut it into tiles, or remove it",
        ) from error
    except _BROKEN as error:  # whatever PIL raises on a broken file
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        reason = "cannot identify image file" if isinstance(error, UnidentifiedImageError) else reason
        raise OSError(f"{path}: {reason}") from error


def read_rgb(source: str | bytes, *, name: str | None = None, divisor: int = 1) -> Image.Image:
    """Read the upright image of a file in mode RGB; a JPEG file at 1/2, 1/4 or 1/8 of both sides, rounded up.

    Raises:
        OSError: The file is broken; the message names it.
        UserError: It cannot become 8-bit RGB, or has too many pixels.
    """
    with open_image(source, name=name) as image:
        if divisor > 1:
            image.draft(None, (image.width // divisor or 1, image.height // divisor or 1))
        return make_upright(to_rgb(image, name=name or str(source)), orientation_of(image))


def read_header(source: str | bytes, *, name: str | None = None) -> Header:
    """Read what a file says about its image; raise as `open_image` does."""
    with open_image(source, name=name) as image:
        is_upright = isinstance(image, PngImageFile) and not _may_be_turned(image.fp)
        orientation = 1 if is_upright else orientation_of(image)
        is_swapped = orientation in _SWAPS_SIDES and image.format != "TIFF"  # Pillow turns TIFF files itself
        return Header(
            size=image.size if is_swapped else (image.height, image.width),
            orientation=orientation,
            is_16_bit=image.mode in _DEEP_GRAY or (image.mode == "I" and image.format in _SIXTEEN_BIT_FORMATS),
            is_transparent=image.has_transparency_data,
            has_frames=image.format not in _STILL_FORMATS and getattr(image, "is_animated", False),
            is_plain_jpeg=image.format == "JPEG" and image.mode in ("L", "RGB"),
            holds_rgb=image.info.get("adobe_transform") == 0,
        )


def stored_size(header: Header) -> tuple[int, int]:
    """Return (H, W) of the pixels that are stored, before they are made upright."""
    return header.size[::-1] if header.orientation in _SWAPS_SIDES else header.size


class EncodedPhoto:
    """A `transforms.Photo` in a file; it is decoded when its pixels are asked for.

    Args:
        path: Of the file, or what messages call it.
        data: Its content, if that is in memory.

    Raises:
        OSError: The file cannot be read; the message names it.
    """

    def __init__(self, path: str, data: bytes | None = None) -> None:
        self._path = path
        self._data = _content(path) if data is None else data

    @cached_property
    def header(self) -> Header:
        """What the file says about its image; raises as `open_image` does."""
        return read_header(self._data, name=self._path)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W), upright."""
        return self.header.size

    @property
    def jpeg(self) -> bytes | None:
        """The content of a gray or YCbCr JPEG file that does not lack its end; None leaves a file to Pillow."""
        is_usual = self.header.is_plain_jpeg and not self.header.holds_rgb
        return self._data if is_usual and self._data.rstrip(b"\0").endswith(_END_OF_JPEG) else None

    def pixels(self, *, box: Box | None = None, divisor: int = 1) -> Tensor:
        """Decode a part, or all, to (3, H, W) uint8; a JPEG file at 1/2, 1/4 or 1/8 of both sides by a divisor.

        Raises:
            OSError: The file is broken; the message names it.
            UserError: It cannot become 8-bit RGB, or has too many pixels.
        """
        decoded = self._decode_jpeg(divisor)
        if decoded is not None:
            if box is not None:
                top, left, height, width = box // divisor
                decoded = np.ascontiguousarray(decoded[top : top + height, left : left + width])
            return torch.from_numpy(decoded).permute(2, 0, 1)
        image = read_rgb(self._data, name=self._path, divisor=divisor)
        if box is not None:
            is_smaller = image.size == tuple(-(-side // divisor) for side in reversed(self.size))  # a JPEG file
            top, left, height, width = box // (divisor if is_smaller else 1)
            image = image.crop((left, top, left + width, top + height))  # what the view hides is not converted
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def _decode_jpeg(self, divisor: int) -> np.ndarray | None:
        """Decode an upright JPEG file to (H, W, 3) by simplejpeg; None leaves it and its faults to Pillow."""
        decode = fast_jpeg_decoder()
        if decode is None or not self.header.is_plain_jpeg or self.header.orientation != 1:
            return None
        height, width = (-(-side // divisor) if divisor > 1 else 0 for side in self.size)
        try:
            return decode(self._data, min_height=height, min_width=width, min_factor=divisor)
        except ValueError:
            return None


def _content(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0, opener=_open_regular) as file:  # pathlib would take twice the time
            return file.read()
    except OSError as error:
        raise OSError(f"{path}: {error.strerror}") from error


def _open_regular(path: str, flags: int) -> int:
    """Open a regular file; a pipe, which may have taken its place since it was listed, would block for ever."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file", path)
    return descriptor


@cache
def fast_jpeg_decoder() -> Callable[..., np.ndarray] | None:
    """Return the decoder of the optional package simplejpeg: the bits of Pillow's, sooner; None without it."""
    try:
        return importlib.import_module("simplejpeg").decode_jpeg
    except ImportError:
        return None


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 is upright, and stands for a missing or damaged one."""
    with _filters_lock, warnings.catch_warnings(action="ignore"):
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        except _BROKEN:
            return 1
    return orientation if orientation in _UPRIGHT else 1


def _may_be_turned(png: IO[bytes] | None) -> bool:
    """Return whether a PNG file has a chunk that may hold an orientation: else Pillow would decode it to find none."""
    assert png is not None, "the file is open"
    begun = png.tell()
    try:
        png.seek(_PNG_SIGNATURE)
        while len(head := png.read(_PNG_CHUNK + _PNG_KEYWORD)) >= _PNG_CHUNK:
            length, kind = struct.unpack(">I4s", head[:_PNG_CHUNK])
            if kind == b"eXIf" or (kind in _PNG_TEXTS and head[_PNG_CHUNK:].startswith(_PNG_ORIENTED)):
                return True
            if kind == b"IEND":
                return False
            png.seek(length + _PNG_CRC - (len(head) - _PNG_CHUNK), os.SEEK_CUR)
        return False
    finally:
        png.seek(begun)


def make_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Return an image of an EXIF orientation upright."""
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def to_rgb(image: Image.Image, *, name: str) -> Image.Image:
    """Convert an image of any mode to RGB; errors contain `name`.

    Raises:
        UserError: Its pixels have an unknown range.
    """
    image = to_8_bit(image, name=name)
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode == "La" else "RGBA")
        ground = Image.new("RGBA", image.size, (BACKGROUND,) * 4)
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    return image.convert("RGB")


def to_8_bit(image: Image.Image, *, name: str) -> Image.Image:
    """Convert 16-bit gray to mode L by v >> 8, as torchvision and OpenCV do; return other images as they are.

    Where a color of 16 bits is transparent, its pixels become white.

    Raises:
        UserError: Its 32-bit pixels have an unknown range.
    """
    if image.mode == "F":
        raise UserError(
            f"{name}: has 32-bit floating-point pixels (mode F), whose range is unknown",
            hint="scale the pixels to 0..255 or 0..65,535, and save them with 8 or 16 bits",
        )
    image = _with_8_bit_transparency(image)
    if image.mode != "I" and image.mode not in _DEEP_GRAY:
        return image
    values = np.array(image)
    if image.mode == "I" and image.format not in _SIXTEEN_BIT_FORMATS:
        low, high = int(values.min()), int(values.max())
        if low < 0 or not 255 < high <= 65_535:
            raise UserError(
                f"{name}: has 32-bit integers (mode I) from {low:,} to {high:,}, whose range is unknown",
                hint="scale the pixels to 0..255 or 0..65,535, and save them with 8 or 16 bits",
            )
    gray = (values >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # a gray value that PNG declares transparent
        gray[values == transparent] = BACKGROUND
    return Image.fromarray(gray)


def _with_8_bit_transparency(image: Image.Image) -> Image.Image:
    """Load an image whose transparent color has 8 bits as its pixels have; Pillow leaves it as a PNG file stores it."""
    transparent = image.info.get("transparency")
    if isinstance(image, PngImageFile) and image.tile and transparent is not None:  # no tiles: loaded before
        stored = image.tile[0].args
        if stored == "RGB;16B":  # several colors of 16 bits become one of 8
            low = _low_bytes(image)
            pixels = np.array(image)
            pixels[((pixels.astype(np.uint16) << 8 | low) == transparent).all(-1)] = BACKGROUND
            return Image.fromarray(pixels)
        if stored in _GRAY_STEPS:
            step = _GRAY_STEPS[stored]
            image.info["transparency"] = (transparent & 255 // step) * step  # PNG, 11.3.1.1: other bits do not count
    image.load()
    return image


def gray_step(image: Image.Image) -> int:
    """Return the factor by which Pillow will multiply the values of an image that is not loaded yet, to fill 8 bits."""
    return _GRAY_STEPS.get(image.tile[0].args, 1) if isinstance(image, PngImageFile) and image.tile else 1


def _low_bytes(image: PngImageFile) -> np.ndarray:
    """Return the low bytes (H, W, 3) of an RGB PNG file of 16 bits, of which Pillow decodes the high ones.

    It is decoded a second time, as if the bytes of each value were swapped.
    """
    assert image.fp is not None, "the file is open"
    begun = image.fp.tell()
    try:
        image.fp.seek(0)
        swapped = Image.open(image.fp, formats=("PNG",))
        swapped.tile = [tile._replace(args="RGB;16L") for tile in swapped.tile]
        return np.array(swapped)
    finally:
        image.fp.seek(begun)


# --- many files


def decode_rows(
    read: Callable[[int], tuple[np.ndarray, ...]],
    *,
    rows: Tensor,
    into: tuple[np.ndarray, ...],
    what: str,
    progress: Progress | None = None,
) -> None:
    """Read rows of a dataset of image files into arrays, on all cores.

    Args:
        read: Returns the parts of a row; an OSError from it names a broken file.
        rows: (N,) rows, in the order of the arrays.
        into: An array (N, ...) per part.
        what: Names the work for `progress`.
        progress: Called with (what, rows done, all rows).

    Raises:
        UserError: Files are broken (all are counted, five are named), or `read` raises one.
    """

    def decode(place: int) -> None:
        for target, part in zip(into, read(int(rows[place])), strict=True):
            target[place] = part

    on_all_cores(decode, len(rows), what=what, progress=progress)


def on_all_cores(
    work: Callable[[int], object], number: int, *, what: str, progress: Progress | None, chunk: int = _CHUNK
) -> None:
    """Call `work` with 0, 1, ..., `number` - 1 on all cores, `chunk` per task; an OSError names a broken file.

    Raises:
        UserError: Files are broken (all are counted, five are named), or `work` raises one.
    """
    broken = [*_failures(work, number, what=what, progress=progress, chunk=chunk).values()]
    if broken:
        raise UserError(
            f"{len(broken)} image file{'s' * (len(broken) > 1)} cannot be read:\n  "
            + "\n  ".join(broken[:_MAX_NAMED] + ["..."] * (len(broken) > _MAX_NAMED)),
            hint=UNREADABLE_HINT,
        )


def unreadable(check: Callable[[int], None], number: int, *, what: str, progress: Progress | None) -> dict[int, str]:
    """Return the places from 0 to `number` at which `check` raises OSError, with the messages, which name the files.

    Raises:
        UserError: `check` raises one.
    """
    return _failures(check, number, what=what, progress=progress)


def _failures(
    work: Callable[[int], object], number: int, *, what: str, progress: Progress | None, chunk: int = _CHUNK
) -> dict[int, str]:
    """Call `work` with 0, 1, ... on all cores; return the messages of those that raise OSError, by their place."""

    def work_on(places: range) -> dict[int, str]:
        failed = {}
        for place in places:
            try:
                work(place)
            except OSError as error:
                failed[place] = str(error)
        return failed

    failed: dict[int, str] = {}
    for found in on_threads(work_on, number, what=what, progress=progress, chunk=chunk):
        failed |= found
    return failed


def on_threads(
    work: Callable[[range], T],
    number: int,
    *,
    what: str,
    progress: Progress | None,
    threads: int | None = None,
    chunk: int = _CHUNK,
) -> Iterator[T]:
    """Call `work` with parts of 0, 1, ..., number - 1 on several threads, and yield in order what it returns.

    Args:
        work: Gets a range of numbers.
        number: Of all parts together.
        what: Names the work for `progress`.
        progress: Called with (what, numbers done, all numbers).
        threads: By default one per core.
        chunk: Numbers per part.
    """
    parts = [range(first, min(first + chunk, number)) for first in range(0, number, chunk)]
    pool = ThreadPoolExecutor(num_cores() if threads is None else threads)
    try:
        for part, done in zip(parts, pool.map(work, parts), strict=True):
            yield done
            if progress:
                progress(what, part.stop, number)
    finally:
        pool.shutdown(cancel_futures=True)  # stop at once on Ctrl-C and on images of another size


def hash_files(
    digest: hashlib._Hash,
    paths: Sequence[str],
    describe: Callable[[str, os.stat_result | None], str],
    *,
    what: str,
    progress: Progress | None,
) -> None:
    """Add to a digest what `describe` says of each path and its status, which is None for a file that is missing."""

    def status(path: str) -> os.stat_result | None:
        try:
            return os.stat(path)
        except OSError:
            return None

    def work(part: range) -> bytes:
        texts = (describe(path, status(path)) for path in paths[part.start : part.stop])
        return "".join(texts).encode(errors="surrogateescape")

    for text in on_threads(work, len(paths), what=what, progress=progress, threads=_STAT_THREADS, chunk=_STATS):
        digest.update(text)


def require_size(image: Tensor, shape: tuple[int, int], *, path: str, first: str) -> None:
    """Refuse the image (C, H, W) of `path` if its size is not the (H, W) of the image `first`."""
    height, width = image.shape[1:]
    if (height, width) != shape:
        raise UserError(
            f"images differ in size: {first} is {shape[1]}x{shape[0]}, {path} is {width}x{height}",
            hint="show all in one size: dataset.image_size=224, which networks for photos expect, or"
            f" dataset.image_size={min(shape)} for small ones",
        )


def num_cores() -> int:
    """Return the cores that this process may use; in a container these can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
