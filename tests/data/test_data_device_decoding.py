"""Batches of photos that the training process decodes: against torchvision's decoder, and those of loader processes.

The device here is the CPU: torchvision decodes there behind the call that runs nvJPEG on a GPU.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, read_file

from swa_cli.data import device_decoding
from swa_cli.data.augment import Augment
from swa_cli.data.batches import Batches, epoch_batches, plain_batches, statistics_batches
from swa_cli.data.image_file import EncodedPhoto
from swa_cli.data.randomness import generator
from swa_cli.data.sources import Source, load
from swa_cli.data.transforms import EvaluationView, RandomResizedCrop, TrainingView, Views
from swa_cli.errors import UserError

STILL = EvaluationView((32, 32), 37)
RANDOM = TrainingView(STILL, crop=RandomResizedCrop())
pytestmark = pytest.mark.filterwarnings("ignore:.*TorchCodec:DeprecationWarning")  # of the oracle's own calls


def photo(number: int, *, size: tuple[int, int]) -> Image.Image:
    """A smooth picture of (H, W)."""
    coarse = torch.randint(0, 256, (4, 5, 3), generator=generator(number, "photo"), dtype=torch.uint8).numpy()
    return Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)


def save(image: Image.Image, path: Path, *, orientation: int = 1, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(path, exif=exif, **options)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Thirty JPEG files of as many sizes in two classes, some of them turned, gray or progressive."""
    for number in range(30):
        image = photo(number, size=(30 + 9 * number, 300 - 8 * number))
        path = tmp_path / "pets" / ("cat", "dog")[number % 2] / f"{number:02}.jpg"
        mode = "L" if number % 7 == 3 else "RGB"
        save(image.convert(mode), path, orientation=number % 9 or 1, progressive=number % 4 == 1, quality=90)
    return tmp_path / "pets"


def opened(root: Path, *, view: EvaluationView = STILL, **options: Any) -> Source:
    return load("image_folder", root=root, val=6, workers=0, cache="none", views=Views(RANDOM, view), **options)


def epoch(found: Source, *, workers: int = 0, start: int = 0, on_device: bool = True) -> Batches:
    return epoch_batches(
        found.train,
        seed=0,
        epoch=1,
        batch_size=8,
        augment=Augment(flip=True, crop=2),
        start=start,
        view=RANDOM,
        mean=(0.0,) * 3,
        std=(1 / 255,) * 3,
        workers=workers,
        decodes_on_device=on_device,
    )


def plain(found: Source, *, on_device: bool = True) -> Batches:
    return plain_batches(found.train, batch_size=7, mean=(0.0,) * 3, std=(1 / 255,) * 3, decodes_on_device=on_device)


def all_of(batches: Batches) -> tuple[Tensor, Tensor]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def refuse(self: EncodedPhoto, **_: Any) -> Tensor:
    raise AssertionError("decoded by Pillow")


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_those_of_torchvisions_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """Whole images of each EXIF orientation, each bit, against `decode_jpeg` of each file; Pillow decodes none."""
    for number in range(16):
        image = photo(number, size=(23, 23)).convert(mode)
        save(image, tmp_path / f"{'ab'[number % 2]}/{number:02}.jpg", orientation=number // 2 + 1)
    found = opened(tmp_path, view=EvaluationView((23, 23), 23))
    monkeypatch.setattr(EncodedPhoto, "pixels", refuse)
    images, _ = all_of(plain(found))
    assert found.train.names is not None
    expected = [
        decode_jpeg(read_file(name), mode=ImageReadMode.RGB, apply_exif_orientation=True) for name in found.train.names
    ]
    assert torch.equal(images, torch.stack(expected).float())


@pytest.mark.parametrize("kind", [epoch, plain])
def test_views_are_near_those_of_loader_processes(pets: Path, monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    """Random crops with flips and windows, and middles: near those of Pillow's pixels, whose bits they are unless
    Pillow decodes at a part of the size; labels in the same order.
    """
    found, pixels = opened(pets), EncodedPhoto.pixels
    expected, labels = all_of(kind(found, on_device=False))
    monkeypatch.setattr(EncodedPhoto, "pixels", lambda photo, *, box=None, divisor=1: pixels(photo, box=box))
    exact, _ = all_of(kind(found, on_device=False))
    monkeypatch.setattr(EncodedPhoto, "pixels", refuse)
    images, also = all_of(kind(found))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(labels, also)
    assert len(labels.unique()) == 2
    assert torch.equal(images, exact)
    assert (images - expected).abs().mean() < 1


def test_batches_of_statistics_are_decoded_there(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batches of a BatchNorm pass against those of Pillow's pixels."""
    found = opened(pets)
    batches = statistics_batches(
        found.train, seed=0, batch_size=8, augment=Augment(), view=RANDOM, mean=(0.0,) * 3, std=(1 / 255,) * 3
    )
    expected, labels = all_of(batches)
    monkeypatch.setattr(EncodedPhoto, "pixels", refuse)
    images, also = all_of(replace(batches, decodes_on_device=True))
    assert torch.equal(labels, also)
    assert (images - expected).abs().mean() < 1


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_depend_on_seed_epoch_and_position_alone(pets: Path, workers: int) -> None:
    """Batches of files that loader processes read, from the first and from the second on, against this process."""
    (pets / "cat/other.png").write_bytes(b"")
    photo(50, size=(40, 50)).save(pets / "cat/other.png")
    found = opened(pets)
    expected = list(epoch(found))
    assert len(expected) == 3
    for start in (0, 1):
        batches = list(epoch(found, workers=workers, start=start))
        for (images, labels), (others, also) in zip(expected[start:], batches, strict=True):
            assert torch.equal(images, others)
            assert torch.equal(labels, also)


def test_other_files_are_left_to_pillow(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PNG, CMYK, RGB as it is, and JPEG with bytes after its end: Pillow's bits, beside files of the decoder."""
    others = {"png.png", "cmyk.jpg", "rgb.jpg", "tail.jpg"}
    image = photo(60, size=(90, 70))
    image.save(pets / "cat/png.png")
    image.convert("CMYK").save(pets / "cat/cmyk.jpg")
    image.save(pets / "cat/rgb.jpg", keep_rgb=True)
    image.save(pets / "cat/tail.jpg")
    with (pets / "cat/tail.jpg").open("ab") as file:
        file.write(b"a thumbnail")
    found = opened(pets)
    expected, _ = all_of(plain(found, on_device=False))
    decode, num_decoded = device_decoding._decode, 0

    def counted(files: Any, device: torch.device) -> list[Tensor]:
        nonlocal num_decoded
        num_decoded += len(files)
        return decode(files, device)

    monkeypatch.setattr(device_decoding, "_decode", counted)
    images, _ = all_of(plain(found))
    assert found.train.names is not None
    is_other = torch.tensor([Path(name).name in others for name in found.train.names])
    assert is_other.any()
    assert num_decoded == len(is_other) - int(is_other.sum())
    assert torch.equal(images[is_other], expected[is_other])
    assert (images - expected).abs().mean() < 1


def test_a_file_that_the_decoder_refuses_is_left_to_pillow(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file fails together with its batch and by itself: Pillow's bits of it, the decoder's of all others."""
    found = opened(pets)
    assert found.train.names is not None
    names = [*found.train.names]
    refused = read_file(names[9])
    as_decoded, _ = all_of(plain(found))
    by_pillow, _ = all_of(plain(found, on_device=False))
    decode = device_decoding._decode

    def fails_at_one(files: Any, device: torch.device) -> list[Tensor]:
        if any(torch.equal(file, refused) for file in files):
            raise RuntimeError("Failed to decode jpeg stream: 5")
        return decode(files, device)

    monkeypatch.setattr(device_decoding, "_decode", fails_at_one)
    images, _ = all_of(plain(found))
    is_refused = torch.arange(len(names)) == 9
    assert torch.equal(images[is_refused], by_pillow[is_refused])
    assert torch.equal(images[~is_refused], as_decoded[~is_refused])


def test_memory_that_runs_out_is_no_fault_of_a_file(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's error of memory ends the reading as it is: nothing is decoded elsewhere."""

    def runs_out(files: Any, device: torch.device) -> list[Tensor]:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(device_decoding, "_decode", runs_out)
    with pytest.raises(torch.OutOfMemoryError):
        all_of(plain(opened(pets)))


@pytest.mark.parametrize("limit", [1, 150_000])
def test_large_batches_are_decoded_in_parts(pets: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """With less memory: the same images, and no call decodes more than that unless it is of a single file."""
    found = opened(pets)
    expected, _ = all_of(plain(found))
    decode, sizes = device_decoding._decode, []

    def noted(files: Any, device: torch.device) -> list[Tensor]:
        decoded = decode(files, device)
        sizes.append([pixels.nbytes for pixels in decoded])
        return decoded

    monkeypatch.setattr(device_decoding, "_decode", noted)
    monkeypatch.setattr(device_decoding, "MAX_DECODED", limit)
    images, _ = all_of(plain(found))
    assert torch.equal(images, expected)
    assert all(sum(call) <= limit or len(call) == 1 for call in sizes)
    assert sum(map(len, sizes)) == len(images)
    assert any(len(call) > 1 for call in sizes) == (limit > 1)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["cut", "no image", "marker"])
def test_a_broken_file_is_the_same_error(pets: Path, kind: str, workers: int) -> None:
    """A file without its end, one that is none, and one that no decoder knows: message and hint of loader processes."""
    path = pets / "dog/29.jpg"
    content = path.read_bytes()
    assert content.count(b"\xff\xda") > 1, "a progressive file, of several scans"
    second = content.rindex(b"\xff\xda")
    changed = {
        "cut": content[: len(content) // 2],
        "no image": b"no image",
        "marker": content[:second] + b"\xff\xbf" + content[second + 2 :],
    }
    found = opened(pets, seed=1)
    path.write_bytes(changed[kind])
    assert str(path) in [*(found.train.names or ())]
    errors = []
    for on_device in (False, True):
        with pytest.raises(UserError) as caught:
            list(replace(plain(found, on_device=on_device), workers=workers))
        errors.append((caught.value.message, caught.value.hint))
    assert errors[0] == errors[1]
    assert re.search(r"sample \d+ of the train split .*dog/29\.jpg: ", errors[1][0])
    assert "dataset.skip_broken=true" in errors[1][1]


def test_a_device_without_a_decoder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU, a device whose images torchvision leaves on the host, and a torchvision without nvJPEG: each by name."""

    def fails(files: Any, device: torch.device) -> list[Tensor]:
        raise RuntimeError("not compiled with nvJPEG support\nmore of it")

    for device, reason in (("cpu", ""), ("meta", ""), ("meta", "not compiled with nvJPEG support")):
        if reason:
            monkeypatch.setattr(device_decoding, "_decode", fails)
        with pytest.raises(UserError, match=rf"dataset\.decode.*{device}.*{reason}") as caught:
            device_decoding.require_decoder(torch.device(device))
        assert "more of it" not in caught.value.message
        assert "dataset.decode=cpu" in caught.value.hint
