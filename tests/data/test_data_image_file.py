"""Image files of every kind as 8-bit RGB: against Pillow, v >> 8, a white ground; what cannot be converted is named."""

from __future__ import annotations

import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, PngImagePlugin, features

from swa_cli.data.image_file import FORMATS, MAX_PIXELS, read_header, read_rgb, to_8_bit, to_rgb
from swa_cli.data.masks import MaskDataset
from swa_cli.data.photos import PhotoFiles, describe, sampled_headers
from swa_cli.data.sources import load
from swa_cli.data.transforms import EvaluationView
from swa_cli.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
DEEP = np.random.default_rng(1).integers(0, 65_536, (4, 6)).astype(np.uint16)


def exif(orientation: int) -> Image.Exif:
    values = Image.Exif()
    values[0x0112] = orientation
    return values


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, bits: int = 8, colour: int = 2, chunks: bytes = b"", data: bytes = b"") -> bytes:
    """A PNG by its specification; without data it is a header that announces pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunks + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["nothing", "title", "XMP", "profile"])
def test_a_png_is_decoded_for_its_orientation_only_if_it_may_have_one(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size and orientation of files with texts of several kinds, before the pixels and behind them."""
    texts, behind = PngImagePlugin.PngInfo(), {"nothing": b"", "title": b"tEXtTitle\0a cat"}
    if kind == "XMP":
        texts.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>')
    elif kind == "profile":
        data = b"Exif\0\0" + exif(6).tobytes().removeprefix(b"Exif\0\0")
        texts.add_text("Raw profile type exif", f"\nexif\n{len(data):8d}\n{data.hex()}\n", zip=True)
    path = tmp_path / "image.png"
    Image.fromarray(PIXELS).save(path, pnginfo=texts)
    if text := behind.get(kind):
        content = path.read_bytes()
        end = content.rindex(b"IEND") - 4
        path.write_bytes(content[:end] + chunk(text[:4], text[4:]) + content[end:])
    loads: list[None] = []
    load_pixels = PngImagePlugin.PngImageFile.load
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: (loads.append(None), load_pixels(self))[1])
    header = read_header(str(path))
    assert bool(loads) == (kind in ("XMP", "profile"))
    assert (header.size, header.orientation) == (((6, 4), 6) if loads else ((4, 6), 1))


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_turned_as_pillow_turns_them(tmp_path: Path, kind: str, orientation: int) -> None:
    """Pixels and size of each EXIF orientation, 0 being none at all, against `ImageOps.exif_transpose`."""
    path = str(tmp_path / "image")
    Image.fromarray(PIXELS).save(path, kind, exif=exif(orientation))
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(np.asarray(read_rgb(path)), expected)
    assert read_header(path).size == expected.shape[:2]


def test_a_turned_cmyk_photograph(tmp_path: Path) -> None:
    """Size and colour of a CMYK JPEG of orientation 6 against Pillow's conversion."""
    path = str(tmp_path / "image.jpg")
    Image.new("CMYK", (3, 5), (10, 20, 30, 40)).save(path, exif=exif(6))
    found = read_rgb(path)
    assert (found.mode, found.size) == ("RGB", (5, 3))
    assert found.getpixel((0, 0)) == Image.open(path).convert("RGB").getpixel((0, 0))


def test_damaged_exif_leaves_the_image_as_it_lies(tmp_path: Path) -> None:
    """A JPEG whose EXIF is no TIFF header against its pixels; Python's warnings are errors here."""
    path = str(tmp_path / "image.jpg")
    Image.fromarray(PIXELS).save(path, exif=b"Exif\x00\x00nothing of the kind")
    assert np.array_equal(np.asarray(read_rgb(path)), np.asarray(Image.open(path)))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000", "PPM"])
def test_16_bits_become_8(tmp_path: Path, kind: str) -> None:
    """Grey values of 16 bits in each format that has them against v >> 8, in memory as on disk."""
    path = str(tmp_path / "image")
    Image.fromarray(DEEP).save(path, kind)
    assert np.array_equal(np.asarray(read_rgb(path)), (DEEP >> 8).astype(np.uint8)[..., None].repeat(3, axis=2))
    assert read_header(path).is_16_bit


def test_16_bits_of_three_channels_become_8(tmp_path: Path) -> None:
    """An RGB PNG of 16 bits, made by the specification, against v >> 8."""
    values = np.random.default_rng(2).integers(0, 65_536, (4, 6, 3)).astype(">u2")
    path = tmp_path / "image.png"
    path.write_bytes(png(6, 4, bits=16, data=b"".join(b"\0" + row.tobytes() for row in values)))
    assert np.array_equal(np.asarray(read_rgb(str(path))), values >> 8)


def test_integers_of_32_bits_in_the_range_of_16(tmp_path: Path) -> None:
    """A TIFF of 32-bit integers up to 65,535 against v >> 8; PIL reads what some programs call 16 bits so."""
    path = str(tmp_path / "image.tif")
    Image.fromarray(DEEP.astype(np.int32)).save(path)
    assert np.array_equal(np.asarray(read_rgb(path))[..., 0], DEEP >> 8)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (DEEP.astype(np.float32), "mode F"),
        (DEEP.astype(np.int32) * 9, "mode I"),
        (DEEP.astype(np.int32) - 70_000, "mode I"),
        (np.ones((4, 6), np.int32), "mode I"),
    ],
)
def test_numbers_without_a_known_range_are_refused(tmp_path: Path, values: np.ndarray, named: str) -> None:
    """Floating point, and integers that no 16 bits hold or that may be of 8: the file, the mode, and a cure."""
    path = str(tmp_path / "image.tif")
    Image.fromarray(values).save(path)
    with pytest.raises(UserError, match=rf"image\.tif: .*{named}") as caught:
        read_rgb(path)
    assert "8 or 16 bits" in caught.value.hint


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_lie_on_white(tmp_path: Path, mode: str) -> None:
    """Each value against alpha * v + (1 - alpha) * 255 of float64, to one rounding; opaque ones exactly."""
    alpha = np.array([[0, 255, 128, 51, 255, 7]] * 4, np.uint8)
    image = Image.fromarray(np.dstack([PIXELS, alpha])).convert(mode)
    path = str(tmp_path / "image.png")
    image.save(path)
    values = np.asarray(image.convert("RGBA")).astype(np.float64)
    expected = values[..., :3] * values[..., 3:] / 255 + 255 - values[..., 3:]
    found = np.asarray(read_rgb(path)).astype(np.float64)
    assert np.abs(found - expected).max() <= 1
    assert np.array_equal(found[:, 1], values[:, 1, :3])
    assert np.array_equal(found[:, 0], np.full((4, 3), 255.0))
    assert read_header(path).is_transparent


def test_a_transparent_entry_of_a_palette_is_white(tmp_path: Path) -> None:
    """Pixels of the transparent index of a PNG and of a GIF against white, the others against the palette."""
    palette = Image.fromarray(np.array([[0, 1, 2], [2, 1, 0]], np.uint8))
    palette.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    for suffix in ("png", "gif"):
        path = str(tmp_path / f"image.{suffix}")
        palette.save(path, transparency=0)
        found = np.asarray(read_rgb(path))
        assert found[0].tolist() == [[255, 255, 255], [200, 0, 0], [0, 200, 0]]


def packed(values: np.ndarray, bits: int) -> bytes:
    """The rows of a PNG without filters: big-endian values of 1 to 16 bits, each row filled up to whole bytes."""
    each = (values.reshape(len(values), -1, 1).astype(np.int64) >> np.arange(bits)[::-1]) & 1
    rows = np.packbits(each.reshape(len(values), -1).astype(np.uint8), axis=1)
    return b"".join(b"\0" + row.tobytes() for row in rows)


@pytest.mark.parametrize(("colour", "bits"), [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16)])
@pytest.mark.parametrize("of_user_code", [False, True])
def test_a_transparent_color_is_white_at_any_depth(colour: int, bits: int, of_user_code: bool) -> None:
    """Gray and RGB of every depth of PNG: white where all bits agree with its tRNS, else v * 255 / most, or v >> 8."""
    most = (1 << bits) - 1
    values = np.random.default_rng(bits).integers(0, most + 1, (9, 21, 3 if colour else 1))
    for transparent in (values[2, 3], np.full(values.shape[-1], most), np.zeros(values.shape[-1], int)):
        values[4] = values[5] = transparent
        values[5, ::2, 0] ^= 1  # the last bit
        expected = values >> 8 if bits == 16 else values * 255 // most
        expected = np.where((values == transparent).all(-1, keepdims=True), 255, expected)
        chunks = chunk(b"tRNS", transparent.astype(">u2").tobytes())
        content = png(21, 9, bits=bits, colour=colour, chunks=chunks, data=packed(values, bits))
        image = Image.open(BytesIO(content))
        found = to_rgb(to_8_bit(image, name="a"), name="a") if of_user_code else read_rgb(content, name="a")
        assert np.array_equal(np.asarray(found), np.broadcast_to(expected, (9, 21, 3)))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["several", "last", "short"])
def test_an_alpha_for_each_entry_of_a_palette(bits: int, kind: str) -> None:
    """Palettes of every depth whose tRNS has several values, a transparent last entry, or fewer values than entries."""
    generator, number = np.random.default_rng(bits), 1 << bits
    colors, values = generator.integers(0, 256, (number, 3)), generator.integers(0, number, (9, 21))
    alpha = np.full(number, 255)
    alpha[: number - (kind == "short")] = generator.integers(0, 256, number - (kind == "short"))
    if kind == "last":
        alpha = np.where(np.arange(number) < number - 1, 255, 0)
    listed = alpha[: number - (kind == "short")].astype(np.uint8).tobytes()
    chunks = chunk(b"PLTE", colors.astype(np.uint8).tobytes()) + chunk(b"tRNS", listed)
    content = png(21, 9, bits=bits, colour=3, chunks=chunks, data=packed(values, bits))
    expected = colors[values] * (alpha[values][..., None] / 255) + 255 - alpha[values][..., None]
    assert np.abs(np.asarray(read_rgb(content, name="a")) - expected).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(("suffix", "options"), [("gif", {}), ("tif", {}), ("webp", {"lossless": True})])
def test_of_several_frames_the_first_is_read(tmp_path: Path, suffix: str, options: dict[str, Any]) -> None:
    """An animation, or pages, against the first one alone."""
    first, second = Image.new("RGB", (5, 4), (0, 0, 0)), Image.new("RGB", (5, 4), (255, 255, 255))
    path = str(tmp_path / f"image.{suffix}")
    first.save(path, save_all=True, append_images=[second], **options)
    assert np.asarray(read_rgb(path)).max() == 0
    assert read_header(path).has_frames


def test_a_page_of_one_bit(tmp_path: Path) -> None:
    """A TIFF of one bit against 0 and 255."""
    bits = PIXELS[..., 0] > 127
    path = str(tmp_path / "image.tif")
    Image.fromarray(bits).save(path, compression="group4")
    assert np.array_equal(np.asarray(read_rgb(path))[..., 0], bits * np.uint8(255))


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (9_500, 9_500), (MAX_PIXELS, 2)])
def test_too_many_pixels_are_told_with_their_number(tmp_path: Path, width: int, height: int) -> None:
    """What PIL warns of and what it refuses: one error with file and pixels, and no warning of Python."""
    path = tmp_path / "image.png"
    path.write_bytes(png(width, height))
    with warnings.catch_warnings(record=True, action="always") as caught:
        with pytest.raises(UserError) as error:
            read_rgb(str(path))
        assert not caught
    assert str(path) in error.value.message
    assert f"{width * height:,}" in error.value.message


@pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")
def test_a_damaged_avif_file_is_named(tmp_path: Path) -> None:
    """A file of zeros, which Pillow refuses with RuntimeError: by name as others, and left out if asked."""
    for name in "abc":
        Image.fromarray(np.tile(PIXELS, (10, 10, 1))).save(tmp_path / f"{name}.avif")
    whole = (tmp_path / "b.avif").read_bytes()
    begin = whole.index(b"mdat") + 4
    (tmp_path / "b.avif").write_bytes(whole[:begin] + bytes(16) + whole[begin + 16 :])
    with pytest.raises(OSError, match=r"b\.avif: "):
        read_rgb(str(tmp_path / "b.avif"))
    (tmp_path / "table.csv").write_text("path,label\na.avif,0\nb.avif,1\nc.avif,1\n")
    words = {"root": tmp_path, "val": 0, "cache": "ram", "workers": 0, "args": {"file": "table.csv"}}
    with pytest.raises(UserError, match=r"b\.avif"):
        load("csv", **words)
    found = load("csv", **words, skip_broken=True)
    assert (len(found.train), found.num_broken) == (2, 1)


def test_other_formats_are_not_opened(tmp_path: Path) -> None:
    """EPS, which PIL gives to Ghostscript, under the name of a JPEG; and the table against Pillow's own."""
    path = tmp_path / "image.jpg"
    Image.fromarray(PIXELS).save(path, "EPS")
    with pytest.raises(OSError, match=r"image\.jpg"):
        read_rgb(str(path))
    known = Image.registered_extensions()
    for kind, suffixes in FORMATS.items():
        assert {known[suffix] for suffix in suffixes} <= {kind, "MPO", "DIB"}
    assert not FORMATS.keys() & {"EPS", "WMF", "PSD", "FITS", "HDF5", "GRIB"}


def test_what_is_told_of_files(tmp_path: Path) -> None:
    """Sizes as seen upright, and numbers of files that are converted, against the files that were written."""
    Image.fromarray(PIXELS[:2]).save(tmp_path / "0.jpg", exif=exif(6))
    Image.fromarray(DEEP).save(tmp_path / "1.png")
    Image.new("RGBA", (30, 20)).save(tmp_path / "2.png")
    (tmp_path / "3.png").write_bytes(b"no image")
    photos = [PhotoFiles([str(path)]) for path in sorted(tmp_path.iterdir())]
    facts = describe(photos, sampled_headers(photos))
    assert facts == [
        "image files of 2x6 to 30x20 pixels",
        "1 of 16 bits (65,535 becomes 255)",
        "1 with transparency (put on white)",
        "1 turned upright by EXIF",
    ]


MASK = np.arange(24, dtype=np.uint8).reshape(4, 6)


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("drawn_on", ["upright", "stored", "own orientation"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_mask_lies_on_its_upright_image(tmp_path: Path, kind: str, orientation: int, drawn_on: str) -> None:
    """A mask drawn on the image as it is shown, as it is stored, or with the same EXIF: against the image turned.

    Half a turn leaves the size, so a mask without EXIF is then taken as drawn on what is shown.
    """
    marked = np.repeat(MASK[:, :, None] * 10, 3, axis=2)
    Image.fromarray(marked).save(tmp_path / "image.png", kind, exif=exif(orientation))
    stored = Image.fromarray(MASK)
    upright = Image.fromarray(np.asarray(read_rgb(str(tmp_path / "image.png")))[..., 0] // 10)
    if drawn_on == "upright":
        upright.save(tmp_path / "mask.png")
    elif drawn_on == "own orientation":
        stored.save(tmp_path / "mask.png", exif=exif(orientation))
    else:
        (upright if orientation == 3 else stored).save(tmp_path / "mask.png")
    paths = (str(tmp_path / "image.png"),), (str(tmp_path / "mask.png"),)
    image, mask = MaskDataset(*paths, tuple(range(24)), upright.size[::-1]).read(0, EvaluationView())
    assert np.array_equal(image[0] // 10, mask)


def test_images_that_a_dataset_opens_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL images of 16 bits and with alpha from a dataset of one's own: one grey channel of v >> 8, RGB on white."""
    (tmp_path / "own_pictures.py").write_text(
        "import numpy as np\nfrom PIL import Image\n"
        "deep = Image.fromarray(np.arange(0, 24_000, 1_000, dtype=np.uint16).reshape(4, 6))\n"
        "clear = Image.new('RGBA', (6, 4))\n"
        "def make(kind):\n"
        "    image = deep if kind == 'deep' else clear\n"
        "    return {'train': [(image, 0), (image, 1)] * 4, 'num_classes': 2}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    deep, clear = (
        load("own_pictures:make", val=0, cache="ram", workers=0, args={"kind": kind}).train
        for kind in ("deep", "clear")
    )
    assert deep is not None
    assert clear is not None
    assert torch.equal(deep.images[0, 0].flatten(), torch.arange(0, 24_000, 1_000).div(256).floor().byte())
    assert clear.images.shape[1] == 3
    assert int(clear.images.min()) == 255
