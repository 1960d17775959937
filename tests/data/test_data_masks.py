"""Folders of images with masks: layouts, sizes, kinds of masks, every way to be wrong; in memory and streamed."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torchvision.transforms.v2 import functional as vision

from swa_cli.data import splits
from swa_cli.data.augment import Augment
from swa_cli.data.batches import Batches, plain_batches, statistics_batches
from swa_cli.data.sources import AS_THEY_ARE, Source, Split, load
from swa_cli.data.transforms import EvaluationView, TrainingView, Views
from swa_cli.errors import RecipeError, UserError

NUM_CLASSES = 3


def picture(number: int, *, width: int = 6, height: int = 4) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8))


def values(number: int, *, width: int = 6, height: int = 4) -> np.ndarray:
    """Classes 0 to 2, and 255 here and there."""
    drawn = np.random.default_rng(1000 + number).integers(0, NUM_CLASSES + 1, (height, width), dtype=np.uint8)
    return np.where(drawn == NUM_CLASSES, 255, drawn).astype(np.uint8)


def write(root: Path, *, count: int = 3, suffix: str = ".png", first: int = 0, **size: int) -> None:
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        picture(number, **size).save(root / "images" / f"{number:03}{suffix}")
        Image.fromarray(values(number, **size)).save(root / "masks" / f"{number:03}.png")


def folder(root: Path, *, val: str | int = 0, cache: str = "auto", views: Views = AS_THEY_ARE) -> Source:
    args = {"classes": NUM_CLASSES}
    return load("mask_folder", root=root, val=val, cache=cache, workers=0, args=args, views=views)


def squeezed(height: int, width: int) -> Views:
    """Whole images resized to one size."""
    view = EvaluationView((height, width))
    return Views(TrainingView(view), view)


def test_a_folder_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """Images and masks are held against the arrays that the test wrote; `val` takes its share."""
    write(tmp_path, count=5)
    source = folder(tmp_path)
    assert source.train.images is not None
    assert source.train.labels is not None
    expected = np.stack([np.asarray(picture(number)).transpose(2, 0, 1) for number in range(5)])
    assert np.array_equal(source.train.images.numpy(), expected)
    assert np.array_equal(source.train.labels.numpy(), np.stack([values(number) for number in range(5)]))
    assert source.train.labels.dtype == torch.uint8
    assert (source.target, source.num_classes, source.class_names) == ("mask", 3, ("0", "1", "2"))
    assert (source.channels, source.size) == (3, (4, 6))
    np.testing.assert_allclose(source.mean, expected.astype(np.float64).mean((0, 2, 3)) / 255, rtol=1e-12)
    parted = load("mask_folder", root=tmp_path, val="40%", workers=0, args={"classes": ["sky", "sea", "land"]})
    assert (len(parted.train), parted.val and len(parted.val)) == (3, 2)
    assert parted.class_names == ("sky", "sea", "land")


@pytest.mark.parametrize(
    ("folders", "sizes"),
    [
        (("train",), (4, 2, None)),
        (("train", "test"), (4, 2, 2)),
        (("train", "val"), (6, 2, None)),
        (("train", "val", "test"), (6, 2, 2)),
    ],
)
def test_layouts(tmp_path: Path, folders: tuple[str, ...], sizes: tuple[int | None, ...]) -> None:
    """Each layout is held against the splits it means; a val folder replaces `val`, with a note."""
    for part in folders:
        write(tmp_path / part, count=6 if part == "train" else 2)
    source = folder(tmp_path, val=2)
    assert tuple(split and len(split) for split in (source.train, source.val, source.test)) == sizes
    assert any("dataset.val" in note for note in source.notes) == ("val" in folders)


def test_names_pair_across_suffixes_and_subfolders(tmp_path: Path) -> None:
    """JPEG images in subfolders are held against the masks of the same path; hidden files are nobody's."""
    write(tmp_path, suffix=".JPG")
    write(tmp_path / "elsewhere", count=1, first=9)
    for kind in ("images", "masks"):
        (tmp_path / kind / "a").mkdir()
        (tmp_path / kind / "._000.png").write_bytes(b"left by an archive")
        os.replace(tmp_path / "elsewhere" / kind / "009.png", tmp_path / kind / "a" / "009.png")
    source = folder(tmp_path)
    assert source.train.labels is not None
    assert np.array_equal(source.train.labels.numpy(), np.stack([values(number) for number in (0, 1, 2, 9)]))


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "1"])
def test_grey_and_palette_masks_hold_class_numbers(tmp_path: Path, mode: str) -> None:
    """Masks in each of PIL's modes with one number a pixel are held against those numbers."""
    write(tmp_path)
    for number in range(3):
        numbers = values(number) % 2 if mode == "1" else values(number)
        mask = Image.fromarray(numbers)
        if mode == "P":
            mask = mask.convert("L")
            mask.putpalette([channel for colour in range(256) for channel in (255 - colour, colour, 7)])
        elif mode == "1":
            mask = Image.fromarray(numbers * 255).convert("1")
        elif mode != "L":
            mask = Image.fromarray(numbers.astype(np.uint16))
        assert mask.mode == mode
        mask.save(tmp_path / "masks" / f"{number:03}.png")
    expected = np.stack([values(number) % 2 if mode == "1" else values(number) for number in range(3)])
    for source, times in ((folder(tmp_path), 1), (folder(tmp_path, views=squeezed(12, 18)), 3)):
        assert source.train.labels is not None
        assert np.array_equal(source.train.labels.numpy(), expected.repeat(times, axis=1).repeat(times, axis=2))


def packed_png(values: np.ndarray, *, bits: int) -> bytes:
    """A gray PNG file of 1, 2 or 4 bits, by its specification: Pillow writes none."""
    height, width = values.shape
    rows = np.zeros((height, -(-width * bits // 8) * 8 // bits), dtype=np.uint8)
    rows[:, :width] = values
    flags = np.unpackbits(rows[:, :, None], axis=2)[:, :, 8 - bits :].reshape(height, -1)
    lines = np.insert(np.packbits(flags, axis=1), 0, 0, axis=1)  # each begins with its filter: none

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(lines.tobytes())), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_gray_masks_of_few_bits_hold_class_numbers(tmp_path: Path, bits: int) -> None:
    """Each value of a gray PNG of few bits against the class of this number, and one above the classes."""
    write(tmp_path)
    numbers = (np.arange(24, dtype=np.uint8) % (1 << bits)).reshape(4, 6)
    for number in range(3):
        (tmp_path / "masks" / f"{number:03}.png").write_bytes(packed_png(numbers, bits=bits))
    found = load("mask_folder", root=tmp_path, val=0, workers=0, args={"classes": 16})
    assert found.train.labels is not None
    assert np.array_equal(found.train.labels.numpy(), np.stack([numbers] * 3))
    if bits > 1:
        with pytest.raises(UserError, match=r"has the value 3, but classes are 0 to 2"):
            folder(tmp_path)


def turned(root: Path, number: int, orientation: int, *, own: int = 1, width: int = 6, height: int = 4) -> None:
    """A pair whose image has an EXIF orientation, and whose mask, with that of its own, has the size of the pixels."""
    for kind, orient in (("images", orientation), ("masks", own)):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orient
        drawn = picture(number, width=width, height=height)
        (drawn if kind == "images" else Image.fromarray(values(number, width=width, height=height))).save(
            root / kind / f"{number:03}.png", **({} if orient == 1 else {"exif": exif})
        )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("side", [4, 6])
def test_masks_of_unknown_orientation_are_told(tmp_path: Path, orientation: int, side: int) -> None:
    """Orientations that leave the size, and any in a square image, against a warning, unless the mask has its own."""
    write(tmp_path, height=side)
    turned(tmp_path, 0, orientation, height=side)
    is_unknown = orientation in (2, 3, 4) or (orientation > 4 and side == 6)
    views = squeezed(8, 8)
    assert [("masks of 1 image " in each) for each in folder(tmp_path, views=views).warnings] == [True] * is_unknown
    turned(tmp_path, 0, orientation, own=orientation, height=side)
    assert not folder(tmp_path, views=views).warnings


def test_masks_that_tell_are_named_beside_those_that_do_not(tmp_path: Path) -> None:
    """Masks of the size of the stored image alone, against their number in the warning on two that do not tell."""
    write(tmp_path, count=6)
    for number, orientation in enumerate((3, 4, 6, 8, 5)):
        turned(tmp_path, number, orientation)
    (warning,) = folder(tmp_path, views=squeezed(8, 8)).warnings
    assert "masks of 2 images" in warning
    assert "3 others have the size of the stored one" in warning


@pytest.mark.parametrize("shape", [(8, 8), (8, 4), (4, 6)])
def test_size_brings_images_and_masks_to_one_size(tmp_path: Path, shape: tuple[int, int]) -> None:
    """Pictures of two sizes are held against torchvision's resize, masks against nearest by its definition."""
    write(tmp_path, count=2)
    write(tmp_path, count=2, first=2, width=13, height=7)
    source = folder(tmp_path, views=squeezed(*shape))
    assert source.size == shape
    assert source.train.images is not None
    assert source.train.labels is not None
    for number, (image, mask) in enumerate(zip(source.train.images, source.train.labels, strict=True)):
        full = {"width": 13, "height": 7} if number > 1 else {}
        whole = vision.pil_to_tensor(picture(number, **full))
        assert torch.equal(image, vision.resize(whole, list(shape)))
        original = values(number, **full)
        rows, columns = (
            ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(shape, original.shape, strict=True)
        )
        assert np.array_equal(mask.numpy(), original[rows][:, columns])


def test_image_and_mask_stay_aligned_when_resized(tmp_path: Path) -> None:
    """A scene of two halves is held against its mask after resizing: the edge lies at the same column."""
    write(tmp_path, count=0)
    for number in range(3):
        cut = 20 + 9 * number
        half = np.zeros((40, 60), dtype=np.uint8)
        half[:, cut:] = 1
        Image.fromarray(np.repeat(half[:, :, None] * 255, 3, axis=2)).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(half).save(tmp_path / "masks" / f"{number}.png")
    source = folder(tmp_path, views=squeezed(16, 24))
    assert source.train.images is not None
    assert source.train.labels is not None
    assert torch.equal(source.train.images[:, 0] > 127, source.train.labels == 1)


def test_streamed_folder_equals_the_one_in_memory(tmp_path: Path) -> None:
    """Batches and constants of the streamed folder are held against those from memory."""
    write(tmp_path / "train", count=6)
    write(tmp_path / "test", count=2)
    held, streamed = (folder(tmp_path, val=3, cache=cache, views=squeezed(5, 7)) for cache in ("ram", "none"))
    assert streamed.train.images is None
    assert streamed.target == "mask"
    assert (held.mean, held.std) == (streamed.mean, streamed.std)
    for name in ("train", "val", "test"):
        first, second = (
            next(iter(plain_batches(part(source, name), batch_size=20, mean=held.mean, std=held.std)))
            for source in (held, streamed)
        )
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])
        assert first[1].dtype == torch.int64


def test_loader_processes_crop_and_flip_masks_with_their_images(tmp_path: Path) -> None:
    """Batches of two sizes, from one and two loader processes, against those in memory."""
    write(tmp_path / "train", count=7)
    held, streamed = (folder(tmp_path, cache=cache, views=squeezed(5, 7)) for cache in ("ram", "none"))

    def batches(source: Source, workers: int) -> Batches:
        options: dict[str, Any] = {
            "seed": 1,
            "batch_size": 2,
            "augment": Augment(crop=2, flip=True, vertical_flip=True),
        }
        return statistics_batches(source.train, mean=held.mean, std=held.std, workers=workers, **options)

    expected = list(batches(held, 0))
    assert [len(images) for images, _ in expected] == [2, 2, 2, 1]
    for workers in (1, 2):
        for (images, masks), (others, found) in zip(expected, batches(streamed, workers), strict=True):
            assert torch.equal(images, others)
            assert torch.equal(masks, found)


def part(source: Source, name: str) -> Split:
    split = getattr(source, name)
    assert split is not None
    return split


def test_auto_cache_counts_images_and_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice is held against 3 pairs of 24 pixels in 4 bytes, and memory one byte short."""
    write(tmp_path)
    for available, held in ((4 * 288, True), (4 * 288 - 1, False)):
        monkeypatch.setattr(splits, "available_memory", lambda available=available: available)
        assert (folder(tmp_path).train.images is not None) == held


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    """The calls are held against (what, done, total) of each split."""
    write(tmp_path, count=6)
    calls: list[tuple[str, int, int]] = []
    load("mask_folder", root=tmp_path, val=2, args={"classes": 3}, progress=lambda *call: calls.append(call))
    listed = [("listing train images and masks", done, 2) for done in (1, 2)]
    assert calls == [*listed, ("reading train images", 4, 4), ("reading val images", 2, 2)]


def mask(root: Path, name: str, numbers: Any, mode: str | None = None) -> None:
    image = Image.fromarray(np.asarray(numbers, dtype=np.uint8))
    (image.convert(mode) if mode else image).save(root / "masks" / name)


def full(value: int) -> np.ndarray:
    return np.full((4, 6), value, dtype=np.uint8)


def only_0_and_255(root: Path) -> None:
    for number in range(3):
        mask(root, f"{number:03}.png", np.where(values(number) > 1, 255, 0))


def a_pipe(root: Path) -> None:
    (root / "images" / "000.png").unlink()
    os.mkfifo(root / "images" / "000.png")


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing mask": (
        lambda r: (r / "masks/001.png").unlink(),
        r"images/001\.png: its mask .*masks/001\.png is missing",
    ),
    "missing masks": (
        lambda r: [(r / f"masks/00{n}.png").unlink() for n in (0, 2)],
        r"images/000\.png: .* is missing, and 1 more",
    ),
    "missing image": (
        lambda r: (r / "images/001.png").unlink(),
        r"masks/001\.png: its image .*images/001\.\* is missing",
    ),
    "no masks": (lambda r: os.rename(r / "masks", r / "labels"), "no images/ and masks/ in"),
    "no images": (lambda r: [path.unlink() for path in (r / "images").iterdir()], "no images in .*images"),
    "two images": (
        lambda r: picture(0).save(r / "images/001.jpg"),
        r"images/001\.jpg and .*images/001\.png have the same name",
    ),
    "JPEG mask": (lambda r: os.rename(r / "masks/001.png", r / "masks/001.jpg"), r"masks/001\.jpg: is not a PNG"),
    "other size": (
        lambda r: mask(r, "001.png", full(1)[:, :5]),
        r"masks/001\.png: is 5x4, its image .*images/001\.png 6x4",
    ),
    "class too large": (
        lambda r: mask(r, "001.png", full(3)),
        r"masks/001\.png: has the value 3, but classes are 0 to 2",
    ),
    "RGB mask": (lambda r: mask(r, "001.png", full(1), "RGB"), r"masks/001\.png: is a color image \(RGB\)"),
    "RGBA mask": (lambda r: mask(r, "001.png", full(1), "RGBA"), r"masks/001\.png: is a color image \(RGBA\)"),
    "only 0 and 255": (only_0_and_255, r"masks beside .*masks/000\.png have only the values 0 and 255"),
    "broken image": (lambda r: (r / "images/001.png").write_bytes(b"no"), r"cannot be read:?\s.*images/001\.png"),
    "broken first image": (lambda r: (r / "images/000.png").write_bytes(b""), r"cannot be read:?\s.*images/000\.png"),
    "broken mask": (
        lambda r: (r / "masks/001.png").write_bytes((r / "masks/000.png").read_bytes()[:50]),
        r"cannot be read:?\s.*masks/001\.png",
    ),
    "image of another size": (
        lambda r: write(r, count=1, first=2, width=9),
        r"images/000\.png is 6x4, .*images/002\.png is 9x4",
    ),
    "a pipe": (a_pipe, r"images/000\.png: is not a regular file"),
}


@pytest.mark.parametrize("cache", ["ram", "none"])
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_folders_are_refused_with_the_file(tmp_path: Path, wrong: str, cache: str) -> None:
    """Each damage to a good folder is held against a message that names the file, in memory and streamed."""
    write(tmp_path)
    damage, message = WRONG[wrong]
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        read_all(tmp_path, cache=cache)
    assert caught.value.hint


def read_all(root: Path, *, cache: str) -> None:
    source = folder(root, cache=cache)
    list(plain_batches(source.train, batch_size=2, mean=source.mean, std=source.std))


@pytest.mark.parametrize("layout", ["empty", "test alone", "train without masks"])
def test_other_layouts_are_refused(tmp_path: Path, layout: str) -> None:
    """Each folder that cannot be meant is held against an error with the layout to have."""
    root = tmp_path / "root"
    root.mkdir()
    if layout == "test alone":
        write(root / "test")
    if layout == "train without masks":
        (root / "train" / "images").mkdir(parents=True)
    with pytest.raises(UserError, match="no images/ and masks/ in") as caught:
        folder(root)
    assert str(root) in caught.value.message
    assert "train/masks/*.png" in caught.value.hint


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, r"args\.classes: is missing"),
        ({"classes": 1}, r"args\.classes: 1 is not 2 to 255"),
        ({"classes": 256}, r"args\.classes: 256 is not"),
        ({"classes": 10**12}, r"args\.classes: 10+ is not"),
        ({"classes": "cat"}, r"args\.classes: 'cat' is not"),
        ({"classes": ["a", "a"]}, r"args\.classes: .* is not"),
        ({"classes": 3, "size": 4}, r"args\.size: unknown argument of mask_folder"),
        ({"classes": 3, "sise": 4}, r"args\.sise: unknown argument of mask_folder"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, args: dict[str, Any], message: str) -> None:
    """Each wrong argument is held against a message with its key and value, and an action."""
    write(tmp_path)
    with pytest.raises(RecipeError, match=message) as caught:
        load("mask_folder", root=tmp_path, args=args)
    assert all(problem.hint for problem in caught.value.problems)


# --- published sets


def write_pets(root: Path) -> None:
    """The layout and the lists of Oxford-IIIT Pet: trimaps of 1 pet, 2 background, 3 not classified."""
    base = root / "oxford-iiit-pet"
    for inside in ("images", "annotations/trimaps"):
        (base / inside).mkdir(parents=True)
    for split, numbers in (("trainval", range(4)), ("test", range(4, 6))):
        names = [f"Abyssinian_{number}" for number in numbers]
        (base / "annotations" / f"{split}.txt").write_text("".join(f"{name} 1 1 1\n" for name in names))
        for number, name in zip(numbers, names, strict=True):
            picture(number, width=12 + number).save(base / "images" / f"{name}.jpg")
            Image.fromarray(trimap(number)).save(base / "annotations" / "trimaps" / f"{name}.png")


def trimap(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(1, 4, (4, 12 + number), dtype=np.uint8)


def write_voc(root: Path) -> None:
    """The layout and the lists of VOC 2012, palette masks."""
    base = root / "VOCdevkit" / "VOC2012"
    for inside in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / inside).mkdir(parents=True)
    for split, numbers in (("train", range(3)), ("val", range(3, 5))):
        (base / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"2007_{n}\n" for n in numbers))
        for number in numbers:
            picture(number).save(base / "JPEGImages" / f"2007_{number}.jpg")
            indices = Image.fromarray(np.where(values(number) == 2, 20, values(number)).astype(np.uint8))
            indices.putpalette([channel for index in range(256) for channel in (index, 0, 255 - index)])
            indices.save(base / "SegmentationClass" / f"2007_{number}.png")


def test_pets_are_read_through_torchvision(tmp_path: Path) -> None:
    """A folder in the published layout is held against its trimaps: pet 1, background 0, not classified 255."""
    write_pets(tmp_path)
    source = load("oxford_iiit_pet", root=tmp_path, val=0, download=False, views=squeezed(4, 12))
    assert (len(source.train), source.test and len(source.test)) == (4, 2)
    assert (source.target, source.class_names, source.size) == ("mask", ("background", "pet"), (4, 12))
    assert source.train.labels is not None
    expected = np.choose(trimap(0) - 1, [1, 0, 255])
    assert np.array_equal(source.train.labels[0].numpy(), expected)
    assert load("oxford_iiit_pet", root=tmp_path).size == (128, 128)


def test_voc_is_read_through_torchvision(tmp_path: Path) -> None:
    """A folder in the published layout is held against its palette indices; its val set is the test split."""
    write_voc(tmp_path)
    source = load("voc", root=tmp_path, val=0, views=squeezed(4, 6))
    assert (len(source.train), source.test and len(source.test)) == (3, 2)
    assert (source.target, source.num_classes, source.class_names[20]) == ("mask", 21, "tvmonitor")
    assert any("validation set is the test split" in note for note in source.notes)
    assert source.train.labels is not None
    expected = [np.where(values(number) == 2, 20, values(number)) for number in range(3)]
    assert np.array_equal(source.train.labels.numpy(), np.stack(expected))


@pytest.mark.parametrize(
    ("name", "looked_for"), [("oxford_iiit_pet", "oxford-iiit-pet/annotations/"), ("voc", "VOCdevkit/VOC2012/")]
)
def test_missing_published_sets_are_named_with_place_and_cure(
    tmp_path: Path, name: str, looked_for: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message of an empty folder is held against what is looked for, where, and the ways to get it."""
    with pytest.raises(UserError, match=f"files of {name} are missing.*{looked_for}.*{tmp_path}") as caught:
        load(name, root=tmp_path, download=False)
    assert "dataset.download=true" in caught.value.hint
    assert "dataset.root" in caught.value.hint
    assert capsys.readouterr().out == ""


def test_a_damaged_list_of_pets_is_told(tmp_path: Path) -> None:
    """A list cut short in the middle of a line is held against a message instead of torchvision's traceback."""
    write_pets(tmp_path)
    (tmp_path / "oxford-iiit-pet" / "annotations" / "test.txt").write_text("Abyssinian_1 1\n")
    with pytest.raises(UserError, match="oxford_iiit_pet are missing or damaged"):
        load("oxford_iiit_pet", root=tmp_path, download=False)


def test_only_missing_sets_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads that torchvision starts are held against none where the files lie there already."""
    import torchvision

    started: list[str] = []
    for module in (torchvision.datasets.voc, torchvision.datasets.oxford_iiit_pet):
        monkeypatch.setattr(module, "download_and_extract_archive", lambda url, *_, **__: started.append(url))
    write_voc(tmp_path)
    load("voc", root=tmp_path, val=0)
    assert not started
    with pytest.raises(UserError, match="could not be downloaded"):
        load("voc", root=tmp_path / "elsewhere")
    assert len(started) == 1


def test_broken_masks_are_left_out_on_request(tmp_path: Path) -> None:
    """A mask cut short and an image cut short are named and left out; a mask of another size is still an error."""
    write(tmp_path, count=6)
    for path in (tmp_path / "masks" / "001.png", tmp_path / "images" / "003.png"):
        path.write_bytes(path.read_bytes()[:60])
    args = {"classes": NUM_CLASSES}
    source = load("mask_folder", root=tmp_path, val=0, workers=0, args=args, skip_broken=True)
    assert source.num_broken == 2
    assert source.train.labels is not None
    assert np.array_equal(source.train.labels.numpy(), np.stack([values(number) for number in (0, 2, 4, 5)]))
    (note,) = source.notes
    assert "masks/001.png" in note
    assert "images/003.png" in note
    Image.fromarray(values(5, width=3)).save(tmp_path / "masks" / "005.png")
    with pytest.raises(UserError, match=r"masks/005\.png: is 3x4"):
        load("mask_folder", root=tmp_path, val=0, workers=0, args=args, skip_broken=True)


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_broken_first_pair_is_left_out_too(tmp_path: Path, kind: str) -> None:
    """Its image or its mask is cut short, and the images give the size: the others are read."""
    write(tmp_path, count=4)
    path = tmp_path / kind / "000.png"
    path.write_bytes(path.read_bytes()[:30])
    args = {"classes": NUM_CLASSES}
    source = load("mask_folder", root=tmp_path, val=0, workers=0, args=args, skip_broken=True)
    assert (len(source.train), source.num_broken) == (3, 1)


def test_images_that_two_splits_share_through_a_link_are_refused(tmp_path: Path) -> None:
    """A link to the training folder that stands for val, against the paths of both."""
    write(tmp_path / "train")
    (tmp_path / "val").symlink_to("train")
    with pytest.raises(UserError, match=r"val/images: is the same folder as .*train/images"):
        folder(tmp_path)
