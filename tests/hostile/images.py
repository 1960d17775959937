"""Folders of images that cannot be read."""

from __future__ import annotations

import io
import struct
import tarfile
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


def source(name: str, words: list[str], make: Make, piece: str) -> Row:
    base = ["train", "good.yaml", "dataset.root=pets", "dataset.val=1", "train.batch_size=2", *words]
    return Row(name, base, piece, make)


def table(name: str, make: Make, piece: str) -> Row:
    return source(f"table-{name}", ["dataset.name=csv", "dataset.args.file=a.csv"], make, piece)


def shards(name: str, make: Make, piece: str) -> Row:
    return source(f"shards-{name}", ["dataset.name=webdataset", "dataset.args.train=a.tar"], make, piece)


def hugging_face(name: str, make: Make, piece: str) -> Row:
    return source(f"hugging-face-{name}", ["dataset.name=hf"], make, piece)


def rows(last: str, *, header: str = "path,label\ncat/0.png,a\ndog/0.png,b\n") -> Make:
    """A table with two good rows, or another header, and a last one."""
    return file("pets/a.csv", f"{header or 'path,label'}\n{last}\n".replace("\n\n", "\n"))


def tar(members: dict[str, bytes], *, size: int | None = None) -> Make:
    """A tar file whose headers may state another size than there is."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    data = bytearray(buffer.getvalue())
    if size is not None:
        info.size = size
        data[:512] = info.tobuf(tarfile.GNU_FORMAT)
    return file("pets/a.tar", bytes(data))


pets = all_of(*(picture(f"{label}/{index}.png") for label in ("cat", "dog") for index in range(3)))
PNG = b"\x89PNG\r\n\x1a\n"
GIGAPIXELS = PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)) + chunk(b"IEND", b"")
IMAGES = [
    images("missing", nothing, "pets: there is no such folder"),
    images("is-file", file("pets", "x"), "pets: is not a folder"),
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
    table("missing", pets, "cannot be read"),
    table("fifo", all_of(pets, fifo("pets/a.csv")), "pets/a.csv:"),
    table("directory", all_of(pets, directory("pets/a.csv")), "pets/a.csv:"),
    table("binary", all_of(pets, file("pets/a.csv", bytes(range(128, 256)))), "pets/a.csv:1:"),
    table("zeros", all_of(pets, file("pets/a.csv", bytes(5000))), "pets/a.csv:1:"),
    table("image-is-fifo", all_of(pets, rows("cat/9.png,a"), fifo("pets/cat/9.png")), "pets/a.csv:4: pets/cat/9.png"),
    table("image-is-folder", all_of(pets, rows("cat,a")), "pets/a.csv:4: pets/cat"),
    table("image-is-text", all_of(pets, rows("a.csv,a")), "1 image file cannot be read"),
    table("long-value", all_of(pets, rows("x" * 200_000 + ",a")), "pets/a.csv:4:"),
    table("long-number", all_of(pets, rows("cat/1.png," + "7" * 9999, header="")), "a single class"),
    table("escapes", all_of(pets, rows(f"cat/1.png,a,{ESC}", header="path,label,split\n")), "is not a split"),
    shards("missing", pets, "a.tar is not there"),
    shards("fifo", all_of(pets, fifo("pets/a.tar")), "a.tar is not there"),
    shards("text", all_of(pets, file("pets/a.tar", "hello " * 999)), "pets/a.tar: is not a whole tar file"),
    shards("zeros", all_of(pets, file("pets/a.tar", bytes(10_240))), "pets/a.tar: has no samples"),
    shards("negative-size", all_of(pets, tar({"1.png": b"x"}, size=-1024)), "pets/a.tar: is not a whole tar file"),
    shards("giant-size", all_of(pets, tar({"1.png": b"x"}, size=1 << 60)), "pets/a.tar: is not a whole tar file"),
    shards("deep-json", all_of(pets, tar({"1.png": b"x", "1.cls": b"{" * 99_999})), "pets/a.tar: 1.cls"),
    shards("long-label", all_of(pets, tar({"1.png": b"x", "1.cls": b"7" * (1 << 21)})), "pets/a.tar: 1.cls"),
    shards("escapes", all_of(pets, tar({f"{ESC}.png": b"x"})), "has no label"),
    hugging_face("missing", pets, "no .parquet or .arrow files"),
    hugging_face("damaged", file("pets/a.parquet", b"PAR1" + bytes(999) + b"PAR1"), "pets:"),
    hugging_face("state", file("pets/state.json", "{}"), "pets:"),
    hugging_face("state-list", all_of(file("pets/dataset_dict.json", "[1]")), "pets:"),
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
