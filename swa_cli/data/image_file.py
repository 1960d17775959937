"""An image file opened and brought to 8-bit RGB: the one place where files are decoded.

Only the formats of `FORMATS` are opened, whatever a file is called. What 8-bit RGB cannot hold is converted in one
stated way or refused by name, and never clipped: 16 bits become 8 as v >> 8, transparent pixels lie on white, the
orientation of a camera is applied, and of several frames the first is taken.
Shapes: H W pixels.
"""

from __future__ import annotations

import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image

from swa_cli.errors import UserError

# Pillow's name of a format -> suffixes of its files. Formats that run other programs (EPS, WMF) or hold no photographs
# are left out. Pillow opens MPO, which some cameras write, as JPEG.
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
USUAL = "such as .jpg, .png, .webp, .tif, .gif, .avif"  # in messages
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485  # a file with more may be a decompression bomb
BACKGROUND = 255  # what transparent pixels lie on: white

# What PIL raises on files that are no images, cut short or damaged.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, struct.error, zlib.error)
_DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N")
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM")  # whose images of mode I have 16 bits
_SWAPS_SIDES = (5, 6, 7, 8)  # orientations
# What brings an image of such an orientation upright (EXIF 2.3, 4.6.4 A).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STILLS = ("JPEG", "MPO")  # formats whose further frames are previews of the first
_filters_lock = threading.Lock()  # the filters of warnings are global


@dataclass(frozen=True)
class Header:
    """What a file says of its image before it is decoded."""

    size: tuple[int, int]  # (H, W), upright
    stored: tuple[int, int]  # (H, W), as the pixels lie in the file
    orientation: int  # of EXIF; 1 is upright
    is_deep: bool  # 16 bits per channel, of one channel
    is_transparent: bool
    has_frames: bool  # beside the first


@contextmanager
def opened(path: str, *, formats: tuple[str, ...] = tuple(FORMATS)) -> Iterator[Image.Image]:
    """Open an image file; its pixels are not read yet.

    Raises:
        OSError: The file is broken, or of another format; the message names it. So do errors inside the block.
        UserError: It has more than `MAX_PIXELS`.
    """
    with _broken_named(path), _open(path, formats) as image:
        if (num_pixels := image.width * image.height) > MAX_PIXELS:
            raise _too_large(path, f"{image.width}x{image.height}, {num_pixels:,} pixels")
        yield image


def read_rgb(path: str) -> Image.Image:
    """The upright image of a file in mode RGB.

    Raises:
        OSError: The file is broken; the message names it.
        UserError: It holds what cannot become 8-bit RGB, or too many pixels.
    """
    with opened(path) as image:
        image.load()
        return turned(to_rgb(image, name=path), orientation_of(image))


def header(path: str) -> Header:
    """What a file says of its image.

    Raises:
        OSError: The file is broken; the message names it.
        UserError: It has more than `MAX_PIXELS`.
    """
    with opened(path) as image:
        orientation = 1 if image.format == "TIFF" else orientation_of(image)  # Pillow turns TIFF files itself
        stored = image.height, image.width
        return Header(
            size=stored[::-1] if orientation in _SWAPS_SIDES else stored,
            stored=stored,
            orientation=orientation,
            is_deep=image.mode in _DEEP_GREY or (image.mode == "I" and image.format in _SIXTEEN_BIT_FORMATS),
            is_transparent=image.has_transparency_data,
            has_frames=image.format not in _STILLS and getattr(image, "is_animated", False),
        )


def orientation_of(image: Image.Image) -> int:
    """The orientation that EXIF gives an image, 1 to 8; 1 is upright, also where there is none or it is damaged."""
    with _filters_lock, warnings.catch_warnings(action="ignore"):
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        except _BROKEN:
            return 1
    return orientation if orientation in _UPRIGHT else 1


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """An image of such an orientation, upright."""
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def to_rgb(image: Image.Image, *, name: str) -> Image.Image:
    """An image of any mode as RGB; `name` stands in errors.

    Raises:
        UserError: Its numbers have no range that 0 to 255 could stand for.
    """
    image = to_8_bit(image, name=name)
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode == "La" else "RGBA")
        ground = Image.new("RGBA", image.size, (BACKGROUND,) * 4)
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    return image.convert("RGB")


def to_8_bit(image: Image.Image, *, name: str) -> Image.Image:
    """An image of 16-bit grey as mode L, v >> 8 as torchvision and OpenCV do; others as they are.

    Raises:
        UserError: It holds 32-bit numbers.
    """
    if image.mode == "F":
        raise UserError(
            f"{name}: holds 32-bit floating-point pixels (mode F), whose range is not known",
            hint="scale the pixels to 0..255 or 0..65,535, and save them with 8 or 16 bits",
        )
    if image.mode != "I" and image.mode not in _DEEP_GREY:
        return image
    values = np.array(image)
    if image.mode == "I" and image.format not in _SIXTEEN_BIT_FORMATS:
        low, high = int(values.min()), int(values.max())
        if low < 0 or not 255 < high <= 65_535:
            raise UserError(
                f"{name}: holds 32-bit integers (mode I) from {low:,} to {high:,}, whose range is not known",
                hint="scale the pixels to 0..255 or 0..65,535, and save them with 8 or 16 bits",
            )
    grey = (values >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # one value of PNG's grey that is not painted
        grey[values == transparent] = BACKGROUND
    return Image.fromarray(grey)


@contextmanager
def _open(path: str, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """`Image.open`, whose warning of many pixels is an error."""
    with _filters_lock, warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
        try:
            image = Image.open(path, formats=formats)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            reason = str(error).partition("(")[2].partition(" ")[0]  # Image size (N pixels) exceeds limit ...
            raise _too_large(path, f"{int(reason):,} pixels") from error
    with image:
        yield image


def _too_large(path: str, what: str) -> UserError:
    return UserError(
        f"{path}: has {what}; images of up to {MAX_PIXELS:,} pixels are opened",
        hint="save it smaller or cut it into tiles, or remove it",
    )


@contextmanager
def _broken_named(path: str) -> Iterator[None]:
    """Turn whatever PIL raises on a broken file into an OSError that names it."""
    try:
        yield
    except _BROKEN as error:
        reason = str(error).replace(f" '{path}'", "").replace(f" {path!r}", "") or type(error).__name__
        raise OSError(f"{path}: {reason}") from error
