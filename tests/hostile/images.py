"""Folders of images that cannot be read."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image

from hostile.making import ESC, Make, Row, all_of, directory, fifo, file, link, nothing

# Folders of images: `swa train good.yaml dataset.name=image_folder`.


def picture(name: str, size: tuple[int, int] = (8, 8)) -> Make:
    buffer = io.BytesIO()
    Image.new("RGB", size, (9, 9, 9)).save(buffer, "png")
    return file(f"pets/{name}", buffer.getvalue())


def laid_out(*names: str) -> Make:
    return all_of(*(picture(f"{name}.png") for name in names))


def numbers(mode: str) -> bytes:
    """A TIFF of 32-bit numbers."""
    buffer = io.BytesIO()
    Image.new(mode, (8, 8), 70_000).save(buffer, "tiff")
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def images(name: str, make: Make, piece: str, *words: str) -> Row:
    base = ["train", "good.yaml", "dataset.name=image_folder", "dataset.root=pets", "dataset.val=1"]
    return Row(f"images-{name}", [*base, "train.batch_size=2", *words], piece, make)


pets = all_of(*(picture(f"{label}/{index}.png") for label in ("cat", "dog") for index in range(3)))
PNG = b"\x89PNG\r\n\x1a\n"
GIGAPIXELS = PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)) + chunk(b"IEND", b"")
IMAGES = [
    images("missing", nothing, "no class folders with images in pets"),
    images("is-file", file("pets", "x"), "no class folders with images in pets"),
    images("no-classes", file("pets/readme.txt", "x"), "no class folders with images in pets"),
    images("no-images", file("pets/cat/readme.txt", "x"), "no class folders with images in pets"),
    images("empty-class", all_of(pets, directory("pets/eel")), "no images in pets/eel"),
    images("escapes-in-class", all_of(pets, directory(f"pets/{ESC}")), "no images in pets/"),
    images("broken-first", all_of(pets, file("pets/cat/0.png", b"\x89PNG\r\n")), "1 image file cannot be read"),
    images("broken-later", all_of(pets, file("pets/dog/1.png", b"\x89PNG\r\n")), "1 image file cannot be read"),
    images("text", all_of(pets, file("pets/dog/1.png", "hello")), "1 image file cannot be read"),
    images("empty-file", all_of(pets, file("pets/dog/1.png", "")), "1 image file cannot be read"),
    images("dangling", all_of(pets, link("pets/dog/9.png", "gone")), "1 image file cannot be read"),
    images("fifo", all_of(pets, fifo("pets/cat/0.png")), "pets/cat/0.png"),
    images("gigapixels", all_of(pets, file("pets/dog/1.png", GIGAPIXELS)), "pets/dog/1.png:"),
    images("floats", all_of(pets, file("pets/dog/9.tif", numbers("F"))), "pets/dog/9.tif:"),
    images("integers", all_of(pets, file("pets/dog/9.tif", numbers("I"))), "pets/dog/9.tif:"),
    images("postscript", all_of(pets, file("pets/dog/1.png", b"%!PS-Adobe-3.0 EPSF\n")), "1 image file cannot be read"),
    images("sizes", all_of(pets, picture("dog/1.png", (9, 8))), "images differ in size"),
    images("new-class", laid_out("train/a/1", "train/b/1", "test/c/1"), "has classes that"),
    images("one-class", laid_out("cat/1", "cat/2"), "a single class, cat/"),
    images("one-level-up", laid_out("v1/train/a/1", "v1/train/b/1"), "write dataset.root=pets/v1"),
    images("split-in-class", laid_out("a/train/1", "a/test/1", "b/train/1"), "pets/a/test:"),
    images("two-val", laid_out("train/a/1", "train/b/1", "val/a/1", "valid/a/1"), "pets:"),
    images("link-to-itself", all_of(pets, link("pets/dog/9.png", "pets/dog/9.png")), "1 image file cannot be read"),
    images("size-as-argument", pets, "dataset.args.size: unknown argument", "dataset.args={size: 8}"),
    images("unknown-argument", pets, "dataset.args.color: unknown argument", "dataset.args={color: gray}"),
    images("other-dataset", pets, "did you mean digits?", "dataset.name=digit"),
    images("not-downloaded", nothing, "the files of mnist are missing", "dataset.name=mnist", "dataset.download=false"),
    images("no-factory", pets, "dataset.name: cannot import no_such_module", "dataset.name=no_such_module:make"),
]
