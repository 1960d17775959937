"""Folders as people have them: names of splits, levels, links, Unicode; nothing is left out without a word."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from swa_cli.data.image_file import SUFFIXES
from swa_cli.data.listing import LeftOut, images_below
from swa_cli.data.sources import Source, load
from swa_cli.errors import UserError


def picture(path: Path, level: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5, 3), level, dtype=np.uint8)).save(path, "PNG")


def pictures(folder: Path, count: int = 2) -> None:
    for number in range(count):
        picture(folder / f"{number}.png", level=number)


def classes(folder: Path, names: str = "ab", count: int = 2) -> None:
    for name in names:
        pictures(folder / name, count)


def sizes(source: Source) -> dict[str, int]:
    splits = {"train": source.train, "val": source.val, "test": source.test}
    return {name: len(split) for name, split in splits.items() if split is not None}


def refused(root: Path, *, name: str = "image_folder", **args: object) -> UserError:
    with pytest.raises(UserError) as caught:
        load(name, root=root, val=0, args=args)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("val", ["val", "valid", "validation", "eval", "Valid"])
@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("Train", "TEST"), ("Training", "Testing")])
def test_splits_by_their_other_names(tmp_path: Path, train: str, val: str, test: str) -> None:
    """Folders of other names and capitals against the splits they mean."""
    for folder, count in ((train, 3), (val, 2), (test, 1)):
        classes(tmp_path / folder, count=count)
    assert sizes(load("image_folder", root=tmp_path)) == {"train": 6, "val": 4, "test": 2}


@pytest.mark.parametrize(("one", "two"), [("val", "valid"), ("train", "Train"), ("eval", "validation")])
def test_two_folders_of_one_split_are_refused(tmp_path: Path, one: str, two: str) -> None:
    """Both names are told."""
    for folder in {"train", one, two}:
        classes(tmp_path / folder)
    error = refused(tmp_path)
    assert f"{one}/" in error.message
    assert f"{two}/" in error.message


@pytest.mark.parametrize("inside", ["pets", "pets/v2/images"])
@pytest.mark.parametrize("layout", ["splits", "classes"])
@pytest.mark.parametrize("beside", ["", "__MACOSX", ".cache"])
def test_a_root_too_high_is_refused_with_the_path_to_use(tmp_path: Path, inside: str, layout: str, beside: str) -> None:
    """One folder, with splits or classes some levels below, against the root in the hint, which then works."""
    right = tmp_path / inside
    for folder in (right / "train", right / "test") if layout == "splits" else (right,):
        classes(folder)
    if beside:
        picture(tmp_path / beside / "._0.png")
    hint = refused(tmp_path).hint
    assert f"dataset.root={right}" in hint
    assert sizes(load("image_folder", root=right, val=0))["train"] == 4


def test_other_levels_are_refused(tmp_path: Path) -> None:
    """Splits inside each class, a split among classes, one class, one class one level down: place and cure."""
    for name in "ab":
        classes(tmp_path / "by class" / name, names=("train", "test"))  # type: ignore[arg-type]
    error = refused(tmp_path / "by class")
    assert "by class/a/test" in error.message
    assert "train/<class>/" in error.hint
    classes(tmp_path / "mixed")
    classes(tmp_path / "mixed" / "test")
    error = refused(tmp_path / "mixed")
    assert "mixed has test/ beside a/, b/" in error.message
    assert "mixed/train" in error.hint
    pictures(tmp_path / "single" / "cat")
    assert "a single class, cat/" in refused(tmp_path / "single").message
    classes(tmp_path / "deep" / "train" / "pets")
    classes(tmp_path / "deep" / "test" / "pets")
    assert "deep/train/pets" in refused(tmp_path / "deep").hint
    classes(tmp_path / "twice" / "train")
    classes(tmp_path / "twice" / "train" / "val")
    assert "twice/train/val" in refused(tmp_path / "twice").message


def test_several_data_sets_and_a_training_folder_as_root(tmp_path: Path) -> None:
    """Two data sets under one root against both roots in the hint; a root that is train/ itself against a note."""
    for name in ("flowers", "pets"):
        classes(tmp_path / name / "train")
        classes(tmp_path / name / "test")
    hint = refused(tmp_path).hint
    assert all(f"dataset.root={tmp_path / name}" in hint for name in ("flowers", "pets"))
    (note,) = load("image_folder", root=tmp_path / "pets" / "train", val=0).notes
    assert "test/" in note
    assert note.endswith(f"dataset.root={tmp_path / 'pets'}")


def test_images_without_a_suffix_are_counted_where_there_are_no_others(tmp_path: Path) -> None:
    """Files as some archives have them against their number in the error."""
    for number in range(3):
        picture(tmp_path / "a" / f"n{number}")
    assert "3 without suffix" in refused(tmp_path).message


def test_a_class_may_be_called_valid(tmp_path: Path) -> None:
    """`valid` with images of its own under train/ against two classes."""
    classes(tmp_path / "train", names=("valid", "invalid"))  # type: ignore[arg-type]
    assert load("image_folder", root=tmp_path, val=0).class_names == ("invalid", "valid")


def test_links_are_followed_as_torchvision_does(tmp_path: Path) -> None:
    """A class that is a link, a link to a folder below a class, and to a file: the files against `ImageFolder`'s."""
    for name in ("a", "b"):
        pictures(tmp_path / "store" / name, 3)
    picture(tmp_path / "store" / "one.png")
    pictures(tmp_path / "set" / "a")
    (tmp_path / "set" / "a" / "more").symlink_to(tmp_path / "store" / "a")
    (tmp_path / "set" / "a" / "one.png").symlink_to(tmp_path / "store" / "one.png")
    (tmp_path / "set" / "b").symlink_to(tmp_path / "store" / "b")
    source = load("image_folder", root=tmp_path / "set", val=0, cache="none", workers=0)
    assert source.train is not None
    expected = dict(ImageFolder(tmp_path / "set").samples)
    assert dict(zip(source.train.dataset.files, source.train.labels.tolist(), strict=True)) == expected
    assert len(source.train) == 9


@pytest.mark.parametrize(
    ("link", "to"),
    [("val", "train"), ("val/a", "../train/a"), ("train/c", "a"), ("test/b/more", "../../train/b/more")],
)
def test_a_folder_that_is_shared_through_a_link_is_refused(tmp_path: Path, link: str, to: str) -> None:
    """A split, a class of another split, a second class, and a folder below one: refused with both paths."""
    for split in ("train", "test"):
        classes(tmp_path / split)
    pictures(tmp_path / "train" / "b" / "more")
    assert sizes(load("image_folder", root=tmp_path, val=0))["train"] == 6
    (tmp_path / link).parent.mkdir(exist_ok=True)
    (tmp_path / link).symlink_to(to)
    one, other = (Path(path) for path in refused(tmp_path).message.split(": is the same folder as "))
    assert one != other
    assert one.samefile(other)


def test_loops_of_links_end(tmp_path: Path) -> None:
    """Links to the folder itself, to the root and to one another against each image once, none of another class."""
    classes(tmp_path / "set")
    (tmp_path / "set" / "a" / "self").symlink_to(tmp_path / "set" / "a")
    (tmp_path / "set" / "a" / "up").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "a" / "down").mkdir()
    (tmp_path / "set" / "a" / "down" / "again").symlink_to(tmp_path / "set" / "a" / "down")
    assert sizes(load("image_folder", root=tmp_path / "set", val=0)) == {"train": 4}


def test_every_suffix_is_read(tmp_path: Path) -> None:
    """A file of each suffix, in capitals too, against the number of files."""
    for number, suffix in enumerate(SUFFIXES):
        picture(tmp_path / f"{number}{suffix.upper() if number % 2 else suffix}")
    assert len(images_below([tmp_path]).images) == len(SUFFIXES)
    assert {".jfif", ".gif", ".jpe", ".avif", ".jp2"} <= set(SUFFIXES)


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    """Files of other kinds, images beside the classes and folders beside the splits, against one line of counts."""
    classes(tmp_path / "train", count=3)
    classes(tmp_path / "test")
    for number in range(4):
        (tmp_path / "train" / "a" / f"{number}.heic").write_bytes(b"")
    for path in ("train/a/sub/notes.txt", "readme.TXT", "train/LICENSE", "extra/0.png", "train/loose.jpg"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    source = load("image_folder", root=tmp_path, val=0)
    (said,) = [text for text in source.contents if text.startswith("left out")]
    assert said.startswith("left out 8 files: 4 .heic, 2 .txt, ")
    assert "1 without suffix" in said
    assert "1 .jpg outside of class folders" in said
    assert said.endswith("; folder extra/")
    assert "2 classes of 3 train samples each" in source.contents
    assert "image files of 5x4 pixels" in source.contents


def test_clutter_is_passed_over_without_a_word(tmp_path: Path) -> None:
    """Hidden files and folders and what systems leave behind against a source that is as without them."""
    classes(tmp_path / "train")
    before = load("image_folder", root=tmp_path, val=0).contents
    for path in (
        ".DS_Store",
        "Thumbs.db",
        "train/a/._0.png",
        "train/a/.ipynb_checkpoints/0.png",
        "train/.hidden/0.png",
        "__MACOSX/train/a/._0.png",
        "train/@eaDir/0.png",
    ):
        picture(tmp_path / path)
    source = load("image_folder", root=tmp_path, val=0)
    assert source.contents == before
    assert sizes(source) == {"train": 4}


def test_a_class_in_two_unicode_forms_is_one(tmp_path: Path) -> None:
    """Folders in NFC and NFD, in splits of their own and in one, against one class in NFC with a note."""
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    pictures(tmp_path / "train" / composed)
    pictures(tmp_path / "train" / "tea")
    pictures(tmp_path / "test" / decomposed, 1)
    source = load("image_folder", root=tmp_path, val=0)
    assert source.class_names == (composed, "tea")
    assert source.test is not None
    assert source.test.labels.tolist() == [0]
    assert not source.notes
    pictures(tmp_path / "train" / decomposed, 3)
    source = load("image_folder", root=tmp_path, val=0)
    assert sizes(source) == {"train": 7, "test": 1}
    assert any("Unicode" in note for note in source.notes)


def test_an_empty_class_says_what_is_in_it(tmp_path: Path) -> None:
    """A class folder of photographs that are not read against their kind and number."""
    classes(tmp_path)
    (tmp_path / "c").mkdir()
    for number in range(12):
        (tmp_path / "c" / f"{number}.heic").write_bytes(b"")
    assert "12 .heic" in refused(tmp_path).message


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder below a class without the right to be read against an error that names it."""
    classes(tmp_path)
    pictures(tmp_path / "a" / "locked")
    scandir = os.scandir

    def locked(folder: str | Path) -> object:
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", locked)
    assert f"{tmp_path / 'a' / 'locked'}: cannot be listed: Permission denied" in refused(tmp_path).message


def test_a_test_folder_alone_is_for_weights_that_know_their_classes(tmp_path: Path) -> None:
    """A root without train/ against the classes that are given: their order gives the labels; else it is refused."""
    classes(tmp_path / "test", names="bc")
    source = load("image_folder", root=tmp_path, classes=("a", "b", "c"))
    assert sizes(source) == {"test": 4}
    assert source.test is not None
    assert source.test.labels.tolist() == [1, 1, 2, 2]
    with pytest.raises(UserError, match="training folder lacks: c"):
        load("image_folder", root=tmp_path, classes=("a", "b"))
    assert "has test/" in refused(tmp_path).message


def test_a_root_of_masks_too_high_is_refused_with_the_path(tmp_path: Path) -> None:
    """One folder with images/ and masks/ below the root against the hint."""
    for kind in ("images", "masks"):
        picture(tmp_path / "scenes" / kind / "0.png")
    error = refused(tmp_path, name="mask_folder", classes=2)
    assert f"dataset.root={tmp_path / 'scenes'}" in error.hint


def test_left_out_as_one_line() -> None:
    """The text against DESIGN's example; many folders are cut short."""
    left_out = LeftOut(((".heic", 15), (".txt", 6)), ("extra",))
    assert left_out.describe() == ["left out 21 files: 15 .heic, 6 .txt; folder extra/"]
    assert LeftOut((), tuple("abcdefg")).describe() == ["left out folders a/, b/, c/, d/, e/, ..."]
    assert (left_out + LeftOut(((".txt", 20),))).describe()[0].startswith("left out 41 files: 26 .txt, 15 .heic")


def test_a_link_to_itself_is_listed(tmp_path: Path) -> None:
    """An image that links to itself among the files, so that it is told with the broken ones."""
    link = tmp_path / "0.png"
    link.symlink_to(link)
    assert images_below([tmp_path]).images == (str(link),)
