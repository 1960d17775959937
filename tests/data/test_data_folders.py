"""Folders of images: layouts, sizes, broken files; in memory and streamed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as vision

from swa_cli.data import splits
from swa_cli.data.batches import plain_batches
from swa_cli.data.sources import load
from swa_cli.data.transforms import EvaluationView, TrainingView, Views
from swa_cli.errors import RecipeError, UserError


def picture(seed: int, *, width: int = 5, height: int = 4, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def write(root: Path, *, classes: str = "ab", count: int = 3, **kind: Any) -> None:
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture(ord(name) * 100 + number, **kind).save(root / name / f"{number}.png")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def test_class_folders_alone_are_split_by_the_recipe(tmp_path: Path) -> None:
    """One folder of classes is held against its pictures; `val` takes its share; there is no test split."""
    write(tmp_path, count=5)
    source = load("image_folder", root=tmp_path, val=0)
    assert source.train.images is not None
    assert source.train.labels is not None
    expected = [pixels(picture(ord(name) * 100 + number)) for name in "ab" for number in range(5)]
    assert np.array_equal(source.train.images.numpy(), np.stack(expected))
    assert source.train.labels.tolist() == [0] * 5 + [1] * 5
    assert (source.class_names, source.size, source.channels) == (("a", "b"), (4, 5), 3)
    assert source.val is None
    assert source.test is None
    mean = np.stack(expected).astype(np.float64).mean((0, 2, 3)) / 255
    np.testing.assert_allclose(source.mean, mean, rtol=1e-12)
    split = load("image_folder", root=tmp_path, val="20%")
    assert (len(split.train), split.val and len(split.val)) == (8, 2)


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
    for folder in folders:
        write(tmp_path / folder, count=3 if folder == "train" else 1)
    source = load("image_folder", root=tmp_path, val=2)
    assert tuple(split and len(split) for split in (source.train, source.val, source.test)) == sizes
    assert any("dataset.val" in note for note in source.notes) == ("val" in folders)


def test_a_split_may_lack_classes_but_not_have_others(tmp_path: Path) -> None:
    """Labels of a test folder that lacks a class are held against the training ones; a new class is named."""
    write(tmp_path / "train", classes="abc")
    write(tmp_path / "test", classes="ac", count=1)
    source = load("image_folder", root=tmp_path, val=0)
    assert source.test is not None
    assert source.test.labels is not None
    assert source.test.labels.tolist() == [0, 2]
    write(tmp_path / "test", classes="x", count=1)
    with pytest.raises(UserError, match="training folder lacks: x"):
        load("image_folder", root=tmp_path)


@pytest.mark.parametrize("layout", ["empty", "test only", "files only", "empty class", "empty test"])
def test_other_layouts_are_refused(tmp_path: Path, layout: str) -> None:
    """Each folder that cannot be meant is held against an error with the layout to have."""
    root = tmp_path / "root"
    root.mkdir()
    if layout == "test only":
        write(root / "test")
    if layout == "files only":
        picture(0).save(root / "0.png")
    if layout == "empty class":
        write(root)
        (root / "c").mkdir()
    if layout == "empty test":
        write(root / "train")
        (root / "test" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no (class folders with )?images in|no class folders") as caught:
        load("image_folder", root=root)
    assert str(root) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(("width", "height"), [(9, 6), (6, 9), (3, 4), (4, 4), (7, 7), (5, 4), (101, 30)])
def test_size_resizes_and_crops_as_torchvision_does(tmp_path: Path, width: int, height: int) -> None:
    """Pictures of other sizes are held against torchvision's resize of the shorter side and center crop."""
    write(tmp_path, count=2, width=width, height=height)
    view = EvaluationView((4, 4), 4)
    source = load("image_folder", root=tmp_path, val=0, views=Views(TrainingView(view), view))
    whole = vision.pil_to_tensor(picture(9700, width=width, height=height))
    expected = vision.center_crop(vision.resize(whole, [4]), [4])
    assert source.size == (4, 4)
    assert source.train.images is not None
    assert torch.equal(source.train.images[0], expected)


@pytest.mark.parametrize("cache", ["ram", "none"])
def test_two_sizes_without_size_are_named(tmp_path: Path, cache: str) -> None:
    """The error is held against both files and their sizes."""
    write(tmp_path)
    picture(0, width=8, height=6).save(tmp_path / "b" / "9.png")
    with pytest.raises(UserError, match=r"a/0\.png is 5x4, .*b/9\.png is 8x6") as caught:
        load("image_folder", root=tmp_path, val=0, cache=cache)
    assert "dataset.image_size" in caught.value.hint


@pytest.mark.parametrize("args", [{"sise": 3}, {"size": 32}])
def test_wrong_arguments_are_refused(tmp_path: Path, args: dict[str, Any]) -> None:
    """The dataset has no arguments."""
    write(tmp_path)
    with pytest.raises(RecipeError, match=r"dataset\.args\.(sise|size)"):
        load("image_folder", root=tmp_path, args=args)


def test_broken_files_are_named_in_one_error(tmp_path: Path) -> None:
    """Seven broken files, cut short or no images, are held against five names and the count."""
    write(tmp_path, count=20)
    for number in range(3):
        path = tmp_path / "a" / f"{number + 1}.png"
        path.write_bytes(path.read_bytes()[:60])
    for number in range(4):
        (tmp_path / "b" / f"{number}.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match="7 image files") as caught:
        load("image_folder", root=tmp_path)
    datasets = [f"{name}{os.sep}{number}.png" in caught.value.message for name in "ab" for number in range(4)]
    assert sum(datasets) == 5
    assert caught.value.message.endswith("...")


def test_broken_first_and_streamed_files_are_named(tmp_path: Path) -> None:
    """A broken file that is read first, or while streaming, is held against an error naming it."""
    write(tmp_path)
    (tmp_path / "a" / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"a/1\.png"):
        load("image_folder", root=tmp_path, cache="none", workers=0)
    (tmp_path / "a" / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"a/0\.png"):
        load("image_folder", root=tmp_path)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA"])
def test_all_kinds_of_images_become_rgb(tmp_path: Path, mode: str) -> None:
    """Grey, palette and transparent pictures are held against PIL's own conversion."""
    write(tmp_path, count=2, mode=mode)
    source = load("image_folder", root=tmp_path, val=0)
    assert source.channels == 3
    assert source.train.images is not None
    assert np.array_equal(source.train.images[0].numpy(), pixels(Image.open(tmp_path / "a" / "0.png")))


def test_streamed_folder_equals_the_one_in_memory(tmp_path: Path) -> None:
    """Batches, labels and constants of the streamed folder are held against those from memory."""
    write(tmp_path / "train", count=6)
    write(tmp_path / "test", count=2)
    held, streamed = (load("image_folder", root=tmp_path, val=3, cache=cache) for cache in ("ram", "none"))
    assert streamed.train.images is None
    assert (held.mean, held.std) == (streamed.mean, streamed.std)
    for ours, theirs in zip(
        (held.train, held.val, held.test), (streamed.train, streamed.val, streamed.test), strict=True
    ):
        assert ours is not None
        assert theirs is not None
        assert ours.labels is not None
        assert theirs.labels is not None
        assert torch.equal(ours.labels, theirs.labels)
        first, second = (
            next(iter(plain_batches(split, batch_size=20, mean=held.mean, std=held.std))) for split in (ours, theirs)
        )
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])


def test_auto_cache_holds_what_takes_a_quarter_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice is held against 6 pictures of 60 bytes and memory just large enough, and one byte short."""
    write(tmp_path)
    for available, held in ((4 * 360, True), (4 * 360 - 1, False)):
        monkeypatch.setattr(splits, "available_memory", lambda available=available: available)
        source = load("image_folder", root=tmp_path, val=0, workers=0)
        assert (source.train.images is not None) == held


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    """The calls are held against (what, done, total), rising to the numbers of classes and of images of each split."""
    write(tmp_path, count=200)
    calls: list[tuple[str, int, int]] = []
    load("image_folder", root=tmp_path, val=40, progress=lambda *call: calls.append(call))
    assert calls == [
        ("listing train images", 1, 2),
        ("listing train images", 2, 2),
        ("reading train images", 256, 360),
        ("reading train images", 360, 360),
        ("reading val images", 40, 40),
    ]


def test_files_are_looked_at_once_when_their_fingerprint_is_asked_for(tmp_path: Path) -> None:
    """A file that grows after loading, and again after the fingerprint, against the fingerprint of another loading."""
    write(tmp_path)
    file = next(tmp_path.rglob("*.png"))
    sources = [load("image_folder", root=tmp_path, val=1) for _ in range(2)]
    before = sources[0].data()
    file.write_bytes(file.read_bytes() + b"more")
    calls: list[tuple[str, int, int]] = []
    after = sources[1].data(lambda *call: calls.append(call))
    assert before["train"].samples == after["train"].samples == 6
    assert before["train"].sha256 != after["train"].sha256
    assert sources[0].data() == before
    assert calls == [("looking at train files", 6, 6)]
    assert load("image_folder", root=tmp_path, val=1).data() == after
