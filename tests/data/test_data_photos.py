"""Photos of many sizes and kinds, from files to batches: against torchvision, and against themselves however read."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.models import ResNet50_Weights
from torchvision.transforms import v2

from swa_cli.data import image_file, splits
from swa_cli.data.augment import Augment, draw, erase
from swa_cli.data.batches import Batches, epoch_batches, plain_batches
from swa_cli.data.image_file import EncodedPhoto
from swa_cli.data.photos import PhotoDataset, PhotoFiles, header_of
from swa_cli.data.randomness import generator
from swa_cli.data.sources import AS_THEY_ARE, Source, load
from swa_cli.data.splits import Split
from swa_cli.data.transforms import Box, EvaluationView, RandomResizedCrop, TrainingView, Views
from swa_cli.errors import UserError

MODES = ("RGB", "L", "P", "RGBA", "CMYK", "LA", "1", "I;16")
SIZES = [(70, 50), (300, 401), (33, 260)]  # (H, W) of every mode, and 26 more photos below
FIFTY = [(mode, size) for mode in MODES for size in SIZES] + [
    (MODES[number % len(MODES)], (19 + number * 67 % 480, 19 + number * 131 % 500)) for number in range(26)
]
SUFFIX = {"RGB": ".jpg", "L": ".jfif", "CMYK": ".jpeg"}  # the others are PNG
PLAIN = Views(TrainingView(EvaluationView((32, 32), 37)), EvaluationView((32, 32), 37))
RANDOM = Views(
    TrainingView(EvaluationView((32, 32), 37), crop=RandomResizedCrop(), rotate=5, policy="trivial_augment"),
    EvaluationView((32, 32), 37),
)


def photo(number: int, *, size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """A smooth picture of (H, W)."""
    coarse = torch.randint(0, 256, (4, 5, 3), generator=generator(number, "photo"), dtype=torch.uint8).numpy()
    image = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(np.linspace(0, 255, size[0] * size[1]).reshape(size).astype(np.uint8)))
    return image.convert(mode)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Forty photos of twenty sizes in two classes, of every mode."""
    for number in range(40):
        folder = tmp_path / "pets" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        mode = MODES[number // 2 % len(MODES)]
        size = (30 + 7 * (number % 20), 90 - 3 * (number % 20))
        photo(number, size=size, mode=mode).save(folder / f"{number:02}{SUFFIX.get(mode, '.png')}")
    return tmp_path / "pets"


def source(root: Path, *, views: Views = PLAIN, cache: str = "none", **options: object) -> Source:
    return load("image_folder", root=root, val=8, workers=0, cache=cache, views=views, **options)  # type: ignore[arg-type]


def epoch(found: Source, *, views: Views = RANDOM, workers: int = 0, number: int = 1, repeats: int = 1) -> Batches:
    view = views.training if views.training.is_random else None
    return epoch_batches(
        found.train,
        seed=0,
        epoch=number,
        batch_size=8,
        augment=Augment(flip=True, vertical_flip=True, random_erasing=0.5),
        view=view,
        repeats=repeats,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        workers=workers,
    )


@pytest.mark.parametrize(("mode", "size"), FIFTY)
def test_evaluation_images_equal_torchvisions(tmp_path: Path, mode: str, size: tuple[int, int]) -> None:
    """Fifty photos of 29 sizes and 8 modes against torchvision's transforms of ResNet-50 on what Pillow decodes."""
    path = tmp_path / f"photo{SUFFIX.get(mode, '.png')}"
    photo(1, size=size, mode=mode).save(path)
    with Image.open(path) as image:
        if mode in ("LA", "RGBA"):
            decoded = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert(
                "RGB"
            )
        elif mode == "I;16":
            decoded = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
        else:
            decoded = image.convert("RGB")
    transforms = ResNet50_Weights.IMAGENET1K_V2.transforms()
    mean, std = (torch.tensor(values)[:, None, None] for values in (transforms.mean, transforms.std))
    ours = EvaluationView((224, 224), 232).image(EncodedPhoto(str(path)))
    assert ((ours.float() / 255) - (transforms(decoded) * std + mean)).abs().max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize("divisor", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(136, 208), (131, 202)])
def test_jpeg_files_are_decoded_at_a_part_of_their_size(tmp_path: Path, divisor: int, size: tuple[int, int]) -> None:
    """The size is rounded up; pixels are near those of the whole image, resized by torchvision."""
    photo(2, size=size).save(tmp_path / "a.jpg", quality=95)
    encoded = EncodedPhoto(str(tmp_path / "a.jpg"))
    found, whole = encoded.pixels(divisor=divisor), encoded.pixels()
    assert encoded.size == size
    assert tuple(found.shape) == (3, math.ceil(size[0] / divisor), math.ceil(size[1] / divisor))
    full = found[:, : size[0] // divisor, : size[1] // divisor]  # the last row may stand for less
    covered = whole[:, : full.shape[1] * divisor, : full.shape[2] * divisor]
    assert (full.float() - v2.functional.resize(covered, list(full.shape[1:])).float()).abs().mean() < 3


@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True, "subsampling": 1}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("divisor", [1, 2, 4, 8])
def test_simplejpeg_gives_the_bits_of_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], mode: str, divisor: int
) -> None:
    """Whole files and parts of them, of odd sides, by each decoder."""
    photo(3, size=(131, 202), mode=mode).save(tmp_path / "a.jpg", quality=90, **(options if mode == "RGB" else {}))
    box = Box(8, 16, 104, 136)
    assert image_file.fast_jpeg_decoder() is not None
    fast = [EncodedPhoto(str(tmp_path / "a.jpg")).pixels(box=part, divisor=divisor) for part in (None, box)]
    monkeypatch.setattr(image_file, "fast_jpeg_decoder", lambda: None)
    slow = [EncodedPhoto(str(tmp_path / "a.jpg")).pixels(box=part, divisor=divisor) for part in (None, box)]
    assert fast[1].shape[1:] == (104 // divisor, 136 // divisor)
    for ours, theirs in zip(fast, slow, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("decoder", ["simplejpeg", "Pillow"])
@pytest.mark.parametrize("mode", ["RGB", "CMYK", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_parts_of_a_decoded_part_lie_where_they_lie_in_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: int, mode: str, decoder: str
) -> None:
    """Parts of ramps at 1/8, 1/4 and 1/2: as large as promised, and less than a decoded pixel from their place."""
    if decoder == "Pillow":
        monkeypatch.setattr(image_file, "fast_jpeg_decoder", lambda: None)
    turned = Image.Exif()
    turned[0x0112] = orientation
    for height, width in ((65, 300), (71, 130), (129, 67)):
        ramp = np.stack([*np.mgrid[:height, :width] * (255 / 300), np.zeros((height, width))], axis=-1)
        whole = Image.fromarray(ramp.astype(np.uint8))
        if orientation != 1:  # 6 and 8 undo each other, the others themselves
            whole = image_file.make_upright(whole, {6: 8, 8: 6}.get(orientation, orientation))
        path = tmp_path / f"{height}.{'png' if mode == 'png' else 'jpg'}"
        options = {} if mode == "png" else {"quality": 98, "subsampling": 0}
        whole.convert("RGB" if mode == "png" else mode).save(path, exif=turned, **options)
        encoded = EncodedPhoto(str(path))
        assert encoded.size == (height, width)
        for divisor in (2, 4, 8):
            for box in (Box(0, 0, 64, 64), Box(0, width // 8 * 8 - 64, 64, 64), Box(height // 8 * 8 - 64, 0, 64, 64)):
                found, expected = encoded.pixels(box=box, divisor=divisor), encoded.pixels(box=box)
                side = 64 if mode == "png" else 64 // divisor
                assert tuple(found.shape) == (3, side, side)
                moved = (found[:2].float().mean((1, 2)) - expected[:2].float().mean((1, 2))).abs() * (300 / 255)
                assert moved.max() < divisor


def test_a_damaged_jpeg_file_is_named_whichever_decoder_finds_it(tmp_path: Path) -> None:
    """A file whose second half is missing has a good header; Pillow says what is wrong."""
    path = tmp_path / "half.jpg"
    photo(3, size=(131, 202)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    encoded = EncodedPhoto(str(path))
    assert encoded.size == (131, 202)
    with pytest.raises(OSError, match=r"half\.jpg: .*truncated"):
        encoded.pixels()


def test_files_in_memory_and_streamed_are_the_same(pets: Path) -> None:
    """Every split, held in memory and read anew, bit for bit."""
    held, streamed = source(pets, cache="ram"), source(pets)
    assert held.size == streamed.size == (32, 32)
    assert held.mean == streamed.mean
    for split in ("train", "val"):
        first, second = (getattr(each, split) for each in (held, streamed))
        assert first.images is not None
        assert second.images is None
        held_batches, read_batches = (
            plain_batches(part, batch_size=5, mean=held.mean, std=held.std) for part in (first, second)
        )
        for (images, labels), (others, also) in zip(held_batches, read_batches, strict=True):
            assert torch.equal(images, others)
            assert torch.equal(labels, also)


@pytest.mark.parametrize("workers", [1, 2])
def test_views_depend_on_seed_epoch_and_position_alone(pets: Path, workers: int) -> None:
    """Batches read by loader processes, from any start, against those of this process; another epoch differs."""
    found = source(pets, views=RANDOM)
    expected = list(epoch(found))
    batches = list(epoch(found, workers=workers))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(expected, batches, strict=True))
    assert len(expected) == 4
    others = list(epoch(found, number=2))
    assert not any(torch.equal(a, b) for (a, _), (b, _) in zip(expected, others, strict=True))


def test_random_views_are_not_held(pets: Path) -> None:
    """With random training views a source in memory holds validation images alone, and says so."""
    found = source(pets, views=RANDOM, cache="ram")
    assert found.train is not None
    assert found.train.images is None
    assert found.val is not None
    assert found.val.images is not None
    assert any("each epoch" in note for note in found.notes)


@pytest.mark.parametrize(("available", "is_held"), [(4 * 8 * 3 * 32 * 32, True), (4 * 8 * 3 * 32 * 32 - 1, False)])
def test_auto_counts_only_what_it_would_hold(
    pets: Path, monkeypatch: pytest.MonkeyPatch, available: int, is_held: bool
) -> None:
    """Memory just large enough for the 8 validation images, and one byte short; training views are random."""
    monkeypatch.setattr(splits, "available_memory", lambda: available)
    found = source(pets, views=RANDOM, cache="auto")
    assert found.train.images is None
    assert found.val is not None
    assert (found.val.images is not None) == is_held
    assert any("each epoch" in note for note in found.notes) == is_held


@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_repeated_images_stand_in_a_row(pets: Path, repeats: int) -> None:
    """An epoch has as many samples, each image `repeats` times in a row, every time seen otherwise."""
    found = source(pets, views=RANDOM)
    rows = epoch(found, repeats=repeats).rows
    assert len(rows) == len(found.train)
    groups = rows[: len(rows) // repeats * repeats].view(-1, repeats)
    assert (groups == groups[:, :1]).all()
    assert len(groups[:, 0].unique()) == len(groups)
    images = torch.cat([images for images, _ in epoch(found, repeats=repeats)])
    assert len(images.flatten(1).unique(dim=0)) == len(images)


def test_broken_files_are_left_out_on_request(pets: Path) -> None:
    """Files cut short or no images: named without the option; with it left out, counted and named in the notes."""
    whole = (pets / "cat/00.jpg").read_bytes()
    (pets / "cat/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (pets / "dog/none.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"2 image files cannot be read") as caught:
        source(pets, cache="ram")
    assert "dataset.skip_broken=true" in caught.value.hint
    found = source(pets, cache="ram", skip_broken=True)
    assert len(found.train) + len(found.val) == 40
    note = next(note for note in found.notes if "left out 2 image files" in note)
    assert "cat/cut.jpg" in note
    assert "dog/none.png" in note


@pytest.mark.parametrize("content", [None, b"", b"no image"])
def test_a_broken_first_file_is_left_out_too(tmp_path: Path, content: bytes | None) -> None:
    """A dangling link or a damaged file before all others, where the photos give the size: the others are read."""
    folder = tmp_path / "train" / "a"
    for name in ("a/1.png", "b/2.png", "b/3.png"):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(int(name[2]), size=(6, 8)).save(path)
    if content is None:
        (folder / "0.png").symlink_to("gone.png")
    else:
        (folder / "0.png").write_bytes(content)
    words = {"root": tmp_path, "val": 0, "workers": 0, "views": AS_THEY_ARE}
    for cache in ("none", "ram"):
        found = load("image_folder", **words, cache=cache, skip_broken=True)
        assert (found.size, len(found.train), found.num_broken) == ((6, 8), 3, 1)
        with pytest.raises(UserError, match=r"a/0\.png") as caught:
            load("image_folder", **words, cache=cache)
        assert "skip_broken" in caught.value.hint
    photo(4, size=(6, 6)).save(tmp_path / "train/b/4.png")
    with pytest.raises(UserError, match=r"differ in size: \S+a/1\.png is 8x6, \S+b/4\.png is 6x6"):
        load("image_folder", **words, cache="ram", skip_broken=True)
    for path in (tmp_path / "train").rglob("*.png"):
        path.unlink()
        path.symlink_to("gone.png")
    with pytest.raises(UserError, match="none of") as caught:
        load("image_folder", **words, skip_broken=True)
    assert "Errno" not in caught.value.message


@pytest.mark.parametrize("has_writer", [False, True])
def test_a_pipe_in_place_of_a_listed_file_does_not_block(tmp_path: Path, has_writer: bool) -> None:
    """It is named as what it is when it is read, checked, and asked for its size."""
    path = tmp_path / "1.png"
    os.mkfifo(path)
    ends = [os.open(path, os.O_RDONLY | os.O_NONBLOCK), os.open(path, os.O_WRONLY)] if has_writer else []
    dataset = PhotoDataset(PhotoFiles([str(path)]), torch.zeros(1, dtype=torch.int64), (6, 8))
    for work in (dataset.photo, dataset.check, lambda row: header_of(dataset.photos, row)):
        with pytest.raises(OSError, match=r"1\.png") as caught:
            work(0)
        assert "not a regular file" in str(caught.value)
    for end in ends:
        os.close(end)


def test_erased_rectangles_are_distributed_as_torchvisions() -> None:
    """Shares of the area and places of the rectangles in 4,000 images against torchvision's RandomErasing."""
    number, size = 4_000, (40, 60)
    images = torch.ones((number, 1, *size))
    drawn = draw(torch.arange(number), augment=Augment(random_erasing=0.5), seed=0, key=("erasing", 1))
    ours = erase(images, draws=drawn) == 0
    theirs = v2.RandomErasing(p=0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = torch.stack([theirs(torch.ones((1, *size))) for _ in range(number)]) == 0
    assert abs(ours.flatten(1).any(1).float().mean() - 0.5) < 4 * 0.5 / number**0.5
    for measure in (area, ratio, center):
        samples = [np.sort(measure(hidden[hidden.flatten(1).any(1), 0])) for hidden in (ours, expected)]
        grid = np.concatenate(samples)
        shares = [np.searchsorted(sample, grid, side="right") / len(sample) for sample in samples]
        bound = 1.95 * math.sqrt(sum(1 / len(sample) for sample in samples))  # KS, its 0.999 quantile
        assert np.abs(shares[0] - shares[1]).max() < bound, measure.__name__


def sides(hidden: Tensor) -> tuple[Tensor, Tensor]:
    return hidden.any(2).sum(1), hidden.any(1).sum(1)


def area(hidden: Tensor) -> np.ndarray:
    rows, columns = sides(hidden)
    assert torch.equal(rows * columns, hidden.flatten(1).sum(1)), "rectangles"
    return (rows * columns).numpy()


def ratio(hidden: Tensor) -> np.ndarray:
    rows, columns = sides(hidden)
    return (rows / columns).numpy()


def center(hidden: Tensor) -> np.ndarray:
    return (hidden.any(2).float().argmax(1) + sides(hidden)[0] / 2).numpy()


def test_vertical_flips_turn_half_of_the_images() -> None:
    """Each image of 400 is as it was or upside down, its mask alike, about half of each."""
    images = torch.randint(0, 256, (400, 3, 6, 5), generator=generator(0, "flips"), dtype=torch.uint8)
    masks = images[:, 0]
    split = Split(masks, images, target="mask")
    augment = Augment(vertical_flip=True)
    constants = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}
    batches = epoch_batches(split, seed=0, epoch=1, batch_size=400, augment=augment, **constants)
    (found, found_masks), rows = next(iter(batches)), batches.rows
    turned = torch.tensor([not torch.equal(a.round(), b.float()) for a, b in zip(found, images[rows], strict=True)])
    expected = torch.where(turned[:, None, None, None], images[rows].flip(2), images[rows])
    assert torch.equal(found.round(), expected.float())
    assert torch.equal(found_masks, expected[:, 0].long())
    assert 150 < turned.sum() < 250


def test_images_in_memory_have_views_too() -> None:
    """A view of images that lie in memory: random ones repeat, still ones are torchvision's resize of the batch."""
    images = torch.randint(0, 256, (16, 1, 8, 8), generator=generator(0, "memory"), dtype=torch.uint8)
    still = EvaluationView((12, 12), 12)
    split = Split(torch.arange(16), images, view=still)
    constants = {"mean": (0.0,), "std": (1 / 255,)}
    (found, _), *_ = plain_batches(split, batch_size=16, **constants)
    assert torch.equal(found.round(), v2.functional.resize(images, [12]).float())
    view = TrainingView(still, crop=RandomResizedCrop(), policy="rand_augment")
    drawn = [
        torch.cat(
            [
                x
                for x, _ in epoch_batches(
                    split, seed=0, epoch=e, batch_size=4, augment=Augment(), view=view, **constants
                )
            ]
        )
        for e in (1, 1, 2)
    ]
    assert drawn[0].shape == (16, 1, 12, 12)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_pipe_among_the_photos_is_left_out_with_the_broken_ones(tmp_path: Path) -> None:
    """A pipe named as an image in a class folder: named and refused, or left out with `skip_broken`."""
    for number in range(4):
        path = tmp_path / "train" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(number, size=(8, 6)).save(path)
    os.mkfifo(tmp_path / "train/a/pipe.png")
    words: dict[str, Any] = {"root": tmp_path, "val": 0, "workers": 0, "cache": "ram"}
    with pytest.raises(UserError, match=r"a/pipe\.png: is not a regular file"):
        load("image_folder", **words)
    found = load("image_folder", **words, skip_broken=True)
    assert (len(found.train), found.num_broken) == (4, 1)
