"""Packed images: against the image files that they are made from, however they are read; and what becomes of damage."""

from __future__ import annotations

import errno
import math
import os
import pickle
import shutil
import threading
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from torchvision.transforms.v2 import functional

from swa_cli.data import image_file, packed
from swa_cli.data.augment import Augment
from swa_cli.data.batches import epoch_batches, plain_batches
from swa_cli.data.image_file import EncodedPhoto
from swa_cli.data.packed import PackedDataset, folder_of, form_of
from swa_cli.data.packed_file import PackedFile
from swa_cli.data.randomness import generator
from swa_cli.data.sources import AS_THEY_ARE, Source, load
from swa_cli.data.splits import Split
from swa_cli.data.transforms import EvaluationView, RandomResizedCrop, Shrunk, TrainingView, Views
from swa_cli.errors import UserError

CENTER = EvaluationView((24, 24), 28)
PLAIN = Views(TrainingView(CENTER), CENTER)
RANDOM = Views(TrainingView(CENTER, crop=RandomResizedCrop(), policy="trivial_augment"), CENTER)
BOUND = 51  # of RANDOM


def picture(number: int, size: tuple[int, int]) -> Image.Image:
    """A smooth picture of (H, W)."""
    coarse = torch.randint(0, 256, (5, 6, 3), generator=generator(number, "packed"), dtype=torch.uint8).numpy()
    return Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Thirty photos of fifteen sizes in two classes, with a shorter side of 20 to 85 pixels."""
    for number in range(30):
        folder = tmp_path / "pets" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        size = (20 + 5 * (number % 15), 90 - 2 * (number % 15))
        picture(number, size).save(folder / f"{number:02}.{('jpg', 'png')[number % 3 == 0]}")
    return tmp_path / "pets"


def source(root: Path, *, views: Views = PLAIN, cache: str = "packed", packing: str = "write", **more: Any) -> Source:
    options: dict[str, Any] = {"val": 6, "workers": 0, "mean": (0.0,) * 3, "std": (1.0,) * 3, **more}
    return load("image_folder", root=root, cache=cache, views=views, packing=packing, **options)


def shown(split: Split | None) -> Tensor:
    """All images of a split as evaluation shows them."""
    assert split is not None
    return torch.cat([images for images, _ in plain_batches(split, batch_size=7, mean=(0.0,) * 3, std=(1.0,) * 3)])


def trained(found: Source, *, views: Views = RANDOM, epoch: int = 1, workers: int = 0) -> Tensor:
    """All images of an epoch."""
    assert found.train is not None
    batches = epoch_batches(
        found.train,
        seed=0,
        epoch=epoch,
        batch_size=8,
        augment=Augment(flip=True),
        view=views.training,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        workers=workers,
    )
    return torch.cat([images for images, _ in batches])


def file_of(found: Source, split: str) -> PackedFile:
    dataset = getattr(found, split).dataset
    assert isinstance(dataset, PackedDataset)
    assert dataset.file is not None
    return dataset.file


def files_in(root: Path) -> list[str]:
    """The names of everything in the folder of packed images, but for the lock."""
    return sorted(path.name for path in folder_of(root).glob("*") if path.name != ".lock")


@pytest.mark.parametrize(
    "view",
    [
        CENTER,
        EvaluationView((20, 32), 40, "bicubic"),
        EvaluationView((24, 30)),
        EvaluationView((60, 60), 64),
    ],
    ids=["center", "rectangle", "whole", "padded"],
)
def test_evaluation_images_are_those_of_the_files(pets: Path, view: EvaluationView) -> None:
    """Validation images, and training images that no epoch changes: packed, and about to be, bit for bit."""
    views = Views(TrainingView(view), view)
    expected = source(pets, views=views, cache="none")
    before = source(pets, views=views, packing="read")
    assert not folder_of(pets).exists()
    for found in (before, source(pets, views=views), source(pets, views=views, packing="read")):
        for split in ("train", "val"):
            assert torch.equal(shown(getattr(found, split)), shown(getattr(expected, split)))
    random = Views(TrainingView(view, crop=RandomResizedCrop()), view)
    assert torch.equal(shown(source(pets, views=random).val), shown(expected.val))


def test_still_training_views_are_those_of_the_files(pets: Path) -> None:
    """A policy and a rotation on images that are framed as in evaluation, against the image files, bit for bit."""
    views = Views(TrainingView(CENTER, rotate=10, policy="trivial_augment"), CENTER)
    expected = trained(source(pets, views=views, cache="none"), views=views)
    assert torch.equal(trained(source(pets, views=views), views=views), expected)


@pytest.mark.parametrize("workers", [1, 2])
def test_random_parts_are_the_same_however_they_are_read(pets: Path, workers: int) -> None:
    """An epoch from files that are shrunk as they are read, against packed ones, with loader processes too."""
    expected = trained(source(pets, views=RANDOM, packing="read"))
    found = source(pets, views=RANDOM)
    assert file_of(found, "train").rows.tolist() == list(range(30))
    assert torch.equal(trained(found), expected)
    assert torch.equal(trained(found, workers=workers), expected)
    assert not torch.equal(trained(found, epoch=2), expected)


def test_training_images_have_a_bounded_shorter_side(pets: Path) -> None:
    """What is stored, against torchvision's resizing of each image; those that are small are the files themselves."""
    found = source(pets, views=RANDOM)
    assert found.train is not None
    file, paths = file_of(found, "train"), found.train.dataset.files
    small = 0
    for row, path in enumerate(paths):
        pixels = EncodedPhoto(path).pixels()
        if min(pixels.shape[1:]) > BOUND:
            pixels = functional.resize(pixels, [BOUND], antialias=True)
        else:
            small += 1
        assert torch.equal(file.read(row)[0].pixels(), pixels)
    assert 0 < small < 30
    assert found.packed == {"train": "a shorter side of at most 51 pixels", "val": "24 x 24 pixels"}


def test_large_jpeg_files_are_shrunk_as_they_are_decoded(tmp_path: Path) -> None:
    """An image of many times the bound: its size is exact, and its pixels are near those of the whole image."""
    picture(1, (331, 442)).save(tmp_path / "a.jpg", quality=95)
    photo = EncodedPhoto(str(tmp_path / "a.jpg"))
    found = Shrunk(60).image(photo)
    assert Shrunk(60).size_of((331, 442)) == tuple(found.shape[1:]) == (60, 80)
    expected = functional.resize(photo.pixels(), [60], antialias=True)
    assert (found.float() - expected.float()).abs().mean() < 2
    assert Shrunk(60).mask(torch.zeros(331, 442, dtype=torch.uint8)).shape == (60, 80)


def test_the_bound_leaves_most_random_parts_their_pixels() -> None:
    """The share of random parts of a 4:3 photo with fewer pixels than are shown; sizes by points take the largest."""
    still = EvaluationView((224, 224), 256)
    for scale in ((0.08, 1.0), (0.35, 1.0)):
        crop = RandomResizedCrop(scale)
        form = form_of(Views(TrainingView(still, crop=crop), still), split="train")
        assert isinstance(form, Shrunk)
        boxes = [
            crop.box(form.size_of((3000, 4000)), torch.rand(22, generator=generator(n, "box"), dtype=torch.float64))
            for n in range(2_000)
        ]
        enlarged = sum(box.height * box.width < 224**2 for box in boxes) / len(boxes)
        assert 0.05 < enlarged < 0.15
    smaller = EvaluationView((128, 128), 146)
    varied = Views(TrainingView(smaller), still, (still,))
    assert form_of(varied, split="train") == Shrunk(256)
    assert form_of(varied, split="val") == still


def test_masks_are_packed_with_their_images(tmp_path: Path) -> None:
    """Random parts and evaluation views of images and masks, against the files."""
    for number in range(8):
        size = (40 + number, 60)
        for kind, values in (("images", picture(number, size)), ("masks", picture(number, size).convert("1"))):
            (tmp_path / kind).mkdir(exist_ok=True)
            (values if kind == "images" else Image.fromarray(np.asarray(values).astype(np.uint8))).save(
                tmp_path / kind / f"{number}.png"
            )

    def pairs(cache: str, packing: str) -> list[Tensor]:
        found = load(
            "mask_folder",
            root=tmp_path,
            val=2,
            cache=cache,
            packing=packing,
            workers=0,
            args={"classes": 2},
            views=RANDOM,
        )
        assert found.train is not None
        assert found.val is not None
        view = RANDOM.training
        batches = [
            *plain_batches(found.val, batch_size=2, mean=(), std=()),
            *epoch_batches(found.train, seed=0, epoch=1, batch_size=2, augment=Augment(), view=view, mean=(), std=()),
        ]
        return [part for batch in batches for part in batch]

    shrunk, stored, files = (pairs(*how) for how in (("packed", "read"), ("packed", "write"), ("none", "read")))
    assert all(torch.equal(a, b) for a, b in zip(shrunk, stored, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(files, stored, strict=True)), "they are smaller than the bound"
    assert stored[1].unique().tolist() == [0, 1]


def test_images_of_one_size_are_packed_as_they_are(tmp_path: Path) -> None:
    """Without an image size: against the files; and images of two sizes are refused before any file is there."""
    root = tmp_path / "set"
    for number in range(6):
        (root / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        picture(number, (9, 7)).save(root / "ab"[number % 2] / f"{number}.png")
    expected = source(root, views=AS_THEY_ARE, cache="none", val=2)
    found = source(root, views=AS_THEY_ARE, val=2)
    for split in ("train", "val"):
        assert torch.equal(shown(getattr(found, split)), shown(getattr(expected, split)))
    picture(0, (9, 8)).save(root / "a/9.png")
    shutil.rmtree(folder_of(root))
    with pytest.raises(UserError, match="images differ in size"):
        source(root, views=AS_THEY_ARE, val=2)
    assert not files_in(root)


def test_packed_images_are_not_decoded_again(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second source with another seed for augmentation: no pixel of an image file is read."""
    first = source(pets, views=RANDOM, mean="auto", std="auto")
    expected = trained(first), shown(first.val)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an image file is decoded")

    monkeypatch.setattr(image_file, "read_rgb", refuse)
    again = source(pets, views=RANDOM, mean="auto", std="auto")
    assert again.mean == first.mean
    assert torch.equal(trained(again), expected[0])
    assert torch.equal(shown(again.val), expected[1])


def test_a_plan_writes_nothing_and_tells_the_size(pets: Path) -> None:
    """The size that the plan names, against that of the files, and what is told before they are written."""
    told: list[str] = []
    note = next(note for note in source(pets, views=RANDOM, packing="plan").notes if "swa train" in note)
    assert not folder_of(pets).exists()
    source(pets, views=RANDOM, tell=told.append)
    assert "30 train, 6 val" in note
    assert told == [note.replace("`swa train` packs", "packing")]
    pixels = [file_of(source(pets, views=RANDOM), split)._pixels.size for split in ("train", "val")]
    assert f"about {sum(pixels) / 1e6:.1f} MB" in note
    assert not any("swa train" in note for note in source(pets, views=RANDOM, packing="plan").notes)
    note = next(note for note in source(pets, packing="plan", seed=1).notes if "other recipes" in note)
    size = sum(path.stat().st_size for path in folder_of(pets).glob("*.safetensors"))
    assert f"2 packed files of other recipes, seeds or images there take {size / 1e6:.1f} MB" in note


@pytest.mark.parametrize("packing", ["plan", "write"])
def test_no_more_than_half_of_the_free_space_is_taken(
    pets: Path, monkeypatch: pytest.MonkeyPatch, packing: str
) -> None:
    """A disk with too little room: refused with numbers and a cure before anything is written; reading is not."""
    usage = shutil.disk_usage(pets)._replace(free=200_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"would take 0\.\d MB .* more than half") as caught:
        source(pets, views=RANDOM, packing=packing)
    assert "dataset.cache=none" in caught.value.hint
    assert not folder_of(pets).exists()
    source(pets, views=RANDOM, packing="read")


@pytest.mark.parametrize("kind", ["estimate", "full", "read-only", "file"])
def test_a_file_that_cannot_be_written_leaves_nothing(pets: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """More pixels than expected, a full disk, one without permission, a file in the way: told, and nothing is left."""
    number = {"full": errno.ENOSPC, "read-only": errno.EROFS}.get(kind, 0)

    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    if kind == "estimate":
        monkeypatch.setattr(packed._Wanted, "measure", lambda _: 0)
        usage = shutil.disk_usage(pets)._replace(free=200_000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    elif kind == "file":
        folder_of(pets).write_text("in the way")
        with pytest.raises(UserError, match="cannot be written") as caught:
            source(pets, views=RANDOM)
        assert f"remove {folder_of(pets)}" in caught.value.hint
        folder_of(pets).unlink()
        folder_of(pets).symlink_to("gone")
    else:
        monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(UserError, match="free space" if kind == "estimate" else "cannot be written") as caught:
        source(pets, views=RANDOM)
    assert ("free space" in caught.value.hint) == (kind in ("estimate", "full"))
    assert not files_in(pets)


def test_an_interrupted_packing_leaves_nothing(pets: Path) -> None:
    """Ctrl-C between two images, and the file of a process that was killed: gone after the next packing."""

    def interrupt(what: str, done: int, number: int) -> None:
        if what.startswith("packing"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        source(pets, progress=interrupt)
    assert not files_in(pets)
    (folder_of(pets) / ".train-24x24-0.safetensors.01234567.tmp").write_bytes(b"half")
    found = source(pets)
    assert len(files_in(pets)) == 2
    assert not list(folder_of(pets).glob(".*.tmp"))
    assert torch.equal(shown(found.train), shown(source(pets, cache="none").train))


def test_two_runs_pack_once(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that finds another one packing waits, says so, and reads what that has written."""
    other = source(pets)
    names = files_in(pets)
    folder_of(pets).rename(pets / ".elsewhere")
    folder_of(pets).mkdir()
    waits, found = threading.Event(), list[Source]()

    def report(what: str, done: int, number: int) -> None:
        assert not what.startswith("packing")
        waits.set()

    with filelock.FileLock(folder_of(pets) / ".lock"):
        run = threading.Thread(target=lambda: found.append(source(pets, progress=report)))
        run.start()
        assert waits.wait(30)
        for name in names:
            (pets / ".elsewhere" / name).rename(folder_of(pets) / name)
    run.join(30)
    assert torch.equal(shown(found[0].train), shown(other.train))


@pytest.mark.parametrize("place", ["header", "index", "end", "start"])
def test_a_damaged_file_is_packed_anew(pets: Path, place: str) -> None:
    """Flipped bytes in header and index, a file cut short, an empty one: told, and the images are the same."""
    expected = shown(source(pets).train)
    path = file_of(source(pets), "train").path
    content = bytearray(path.read_bytes())
    if place == "header":
        content[20] ^= 1
    if place == "index":
        content[-9] ^= 16
    path.write_bytes(content[: {"end": -1, "start": 0}.get(place, len(content))])
    reading = source(pets, packing="read")
    assert torch.equal(shown(reading.train), expected)
    found = source(pets)
    assert any(f"{path} is damaged" in note and "packed anew" in note for note in found.notes)
    assert torch.equal(shown(found.train), expected)
    assert file_of(found, "train").path == path
    assert not any("packed anew" in note for note in source(pets).notes)


def test_a_damaged_image_is_an_error_once_it_is_read(pets: Path) -> None:
    """A flipped bit of a pixel: the file and the way out are named, and that way works."""
    expected = shown(source(pets).train)
    file = file_of(source(pets), "train")
    path, content = file.path, bytearray(file.path.read_bytes())
    content[4096 + int(file._offsets[4]) + 100] ^= 1
    path.write_bytes(content)
    for workers in (0, 1):
        found = source(pets)
        with pytest.raises(UserError, match="is damaged: image 5 of 30") as caught:
            list(plain_batches(found.train, batch_size=7, mean=(), std=(), workers=workers))
        assert str(path) in caught.value.message
        assert f"remove {path}" in caught.value.hint
    path.unlink()
    assert torch.equal(shown(source(pets).train), expected)


@given(st.data())
def test_no_flipped_bit_is_silent(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any bit of a file: it is damaged, or stale, or an image is, or all pixels are as they were."""
    folder = tmp_path_factory.getbasetemp() / "flipped"
    if not folder.exists():
        for number in range(4):
            (folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
            picture(number, (3, 4)).save(folder / "ab"[number % 2] / f"{number}.png")
    whole = file_of(source(folder, views=AS_THEY_ARE, val=0), "train")
    content = bytearray(whole.path.read_bytes())
    used = len(content[:4096].rstrip())
    place = data.draw(st.one_of(st.integers(0, used - 1), st.integers(4096, len(content) - 1)))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    other = folder / "other.safetensors"
    other.write_bytes(content)
    try:
        found = PackedFile(other)
    except ValueError:
        return
    if found.sources != whole.sources or not np.array_equal(found.rows, whole.rows):
        return
    try:
        images = [found.read(row)[0].pixels() for row in range(4)]
    except UserError:
        return
    assert all(torch.equal(a, whole.read(row)[0].pixels()) for row, a in enumerate(images))


@pytest.mark.parametrize("change", ["pixels", "more", "fewer"])
def test_changed_image_files_are_packed_anew(pets: Path, change: str) -> None:
    """An image replaced by one of the same size in bytes, one more, one fewer: told, and against the files."""
    source(pets)
    names = files_in(pets)
    path = pets / "cat/04.jpg"
    if change == "pixels":
        status, content = path.stat(), bytearray(path.read_bytes())
        content[-20] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    elif change == "more":
        shutil.copy(path, pets / "dog/new.jpg")
    else:
        path.unlink()
    found, expected = source(pets), source(pets, cache="none")
    assert any("changed since" in note for note in found.notes)
    for split in ("train", "val"):
        assert torch.equal(shown(getattr(found, split)), shown(getattr(expected, split)))
    assert names[0] in files_in(pets), "the file of the training images is replaced"
    assert len([name for name in files_in(pets) if name.startswith("train")]) == 1


def test_seeds_share_the_training_images(pets: Path) -> None:
    """Three seeds, and validation images of each: one file of training images, of all images."""
    for seed in (0, 1, 2):
        found, expected = (source(pets, seed=seed, cache=cache) for cache in ("packed", "none"))
        assert torch.equal(shown(found.val), shown(expected.val))
        assert torch.equal(shown(found.train), shown(expected.train))
    assert [name.partition("-")[0] for name in files_in(pets)] == ["train", "val", "val", "val"]


def test_broken_files_are_named_or_left_out_once(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As without packing: an error that names them, or left out and told; packed, they are known without a look."""
    (pets / "cat/cut.jpg").write_bytes((pets / "cat/02.jpg").read_bytes()[:200])
    with pytest.raises(UserError, match=r"1 image file cannot be read") as caught:
        source(pets)
    assert "cat/cut.jpg" in caught.value.message
    assert not files_in(pets)
    first, expected = source(pets, skip_broken=True), source(pets, skip_broken=True, cache="none")
    assert torch.equal(shown(first.train), shown(expected.train))
    monkeypatch.setattr(image_file, "read_rgb", lambda *_, **__: pytest.fail("an image file is decoded"))
    again = source(pets, skip_broken=True)
    assert again.num_broken == first.num_broken == 1
    assert again.data() == first.data()
    told = [next(note for note in found.notes if "cut.jpg" in note) for found in (first, again)]
    assert told[0] == told[1]
    assert torch.equal(shown(again.val), shown(first.val))
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"1 image file cannot be read"):
        source(pets)
    source(pets, skip_broken=True)


def test_a_dataset_reaches_processes_that_inherit_nothing(pets: Path) -> None:
    """Pickled and opened again: the same pixels; and an error once another run has packed other images there."""
    found = source(pets)
    assert found.train is not None
    stored = pickle.dumps(found.train.dataset)
    again = pickle.loads(stored)
    assert torch.equal(again.read(3, CENTER)[0], found.train.dataset.read(3, CENTER)[0])
    shutil.copy(pets / "cat/04.jpg", pets / "dog/new.jpg")
    source(pets)
    assert torch.equal(again.read(3, CENTER)[0], found.train.dataset.read(3, CENTER)[0])
    with pytest.raises(UserError, match="packed anew by another run"):
        pickle.loads(stored)


def test_other_programs_open_the_file(pets: Path) -> None:
    """Its images read with the library of safetensors, against ours."""
    file = file_of(source(pets), "val")
    with safe_open(file.path, framework="numpy") as opened:
        rows, offsets, sizes = (opened.get_tensor(name) for name in ("rows", "offsets", "sizes"))
        for row, first, size in zip(rows, offsets, sizes, strict=True):
            height, width = map(int, size)
            pixels = opened.get_slice("pixels")[int(first) : int(first) + 3 * math.prod((height, width))]
            assert np.array_equal(
                pixels.reshape(height, width, 3),
                file.read(row)[0].pixels().permute(1, 2, 0).numpy(),
            )


def test_what_cannot_be_packed_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A dataset in memory stays there; samples that code gives are refused."""
    assert any("dataset.cache" in note for note in load("digits", cache="packed", packing="write").notes)
    (tmp_path / "own_samples.py").write_text(
        "import torch\nclass Samples(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 8\n"
        "    def __getitem__(self, row): return torch.zeros(3, 4, 4), row % 2\n"
        "def make(root): return {'train': Samples(), 'test': Samples(), 'num_classes': 2}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"dataset\.cache") as caught:
        load("own_samples:make", cache="packed", val=0, workers=0)
    assert "dataset.cache=none" in caught.value.hint
