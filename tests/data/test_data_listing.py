"""The index of folders: a listing from it against a listing of the folders as they are."""

from __future__ import annotations

import gzip
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from swa_cli.data.listing import FolderIndex, Listing, images_below, splits_under
from swa_cli.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A class folder with a subfolder, a link to a folder, files that are no images, and a name that is no text."""
    root, store = tmp_path / "set", tmp_path / "store"
    for folder in (root / "a" / "b", store / "one", store / "two"):
        folder.mkdir(parents=True)
        for number in range(3):
            (folder / f"{folder.name}{number}.jpg").touch()
    for name in ("z.JPG", "é.png", "notes.txt", "b", ".hidden.jpg"):
        (root / name).touch()
    (root / os.fsdecode(b"\xff.jpg")).touch()
    (root / "broken.jpg").symlink_to("nowhere")
    (root / "more").symlink_to(store / "one")
    probe = tmp_path / "probe"
    probe.touch()
    while probe.stat().st_ctime_ns <= root.stat().st_ctime_ns:  # until the clock of the file system has moved on
        os.utime(probe)
    return root


def later() -> int:
    """Return a time at which all folders have long been as they are."""
    return time.time_ns() + 10**10


def index_of(root: Path, *, least: int = 1, clock: Callable[[], int] = later) -> FolderIndex:
    return FolderIndex(root, keep_in=root.parent / "index", least=least, clock=clock)


def listed(root: Path, **options: object) -> Listing:
    """List by the index and keep it."""
    index = index_of(root, **options)  # type: ignore[arg-type]
    listing = images_below([root], index=index)
    assert index.save() == []
    return listing


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch, root: Path) -> Iterator[list[str]]:
    """Collect the folders that are really listed."""
    seen: list[str] = []
    scandir = os.scandir

    def record(folder: str) -> object:
        seen.append(os.path.relpath(folder, root))
        return scandir(folder)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", record)
        yield seen


def test_folders_are_listed_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders listed by a second index against none; images, order and what is left out against no index."""
    expected = images_below([root])
    assert len(expected.images) == 10
    assert dict(expected.left_out.files) == {".txt": 1, "without suffix": 1}
    with recorded(monkeypatch, root) as first:
        assert listed(root) == expected
    assert sorted(first) == [".", "a", "a/b", "more"]
    with recorded(monkeypatch, root) as second:
        assert listed(root) == expected
    assert second == []


def add(root: Path) -> None:
    (root / "a" / "b" / "new.jpg").touch()


def remove(root: Path) -> None:
    (root / "a" / "b" / "b1.jpg").unlink()


def rename(root: Path) -> None:
    (root / "a" / "b" / "b1.jpg").rename(root / "a" / "b" / "c1.jpg")


def rename_with_the_old_times(root: Path) -> None:
    before = (root / "a" / "b").stat()
    rename(root)
    os.utime(root / "a" / "b", ns=(before.st_atime_ns, before.st_mtime_ns))


def touch(root: Path) -> None:
    os.utime(root / "a" / "b")


def another_folder_in_its_place(root: Path) -> None:
    before = (root / "a" / "b").stat()
    shutil.rmtree(root / "a" / "b")
    (root / "a" / "b").mkdir()
    (root / "a" / "b" / "0.jpg").touch()
    os.utime(root / "a" / "b", ns=(before.st_atime_ns, before.st_mtime_ns))


def another_link(root: Path) -> None:
    (root / "more").unlink()
    (root / "more").symlink_to(root.parent / "store" / "two")


def another_folder_behind_the_link(root: Path) -> None:
    (root.parent / "store" / "one").rename(root.parent / "store" / "old")
    (root.parent / "store" / "two").rename(root.parent / "store" / "one")


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (add, {"a/b"}),
        (remove, {"a/b"}),
        (rename, {"a/b"}),
        (rename_with_the_old_times, {"a/b"}),
        (touch, {"a/b"}),
        (another_folder_in_its_place, {"a", "a/b"}),
        (another_link, {".", "more"}),
        (another_folder_behind_the_link, {"more"}),
    ],
)
def test_changed_folders_alone_are_listed_again(
    root: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], changed: set[str]
) -> None:
    """After a change, the listing against one without an index, and the folders listed against those that changed."""
    before = listed(root)
    change(root)
    with recorded(monkeypatch, root) as seen:
        found = listed(root)
    assert found == images_below([root])
    assert found != before or change is touch
    assert set(seen) == changed
    with recorded(monkeypatch, root) as seen:
        assert listed(root) == found
    assert seen == [], "the new contents are kept"


def test_a_folder_that_has_just_changed_is_not_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the true clock, folders made a moment ago are listed each time: a change could give the same times."""
    listed(root, clock=time.time_ns)
    with recorded(monkeypatch, root) as seen:
        listed(root, clock=time.time_ns)
    assert sorted(seen) == [".", "a", "a/b", "more"]
    assert not (root.parent / "index").exists()


def cut_short(content: bytes) -> bytes:
    return content[: len(content) // 2]


def one_bit_flipped(content: bytes) -> bytes:
    return content[:40] + bytes([content[40] ^ 1]) + content[41:]


def other_letters(content: bytes) -> bytes:
    """A change that is valid in itself, under the old checksum."""
    changed = bytearray(gzip.compress(gzip.decompress(content).replace(b"b1.jpg", b"c1.jpg")))
    changed[-8:-4] = content[-8:-4]
    return bytes(changed)


@pytest.mark.parametrize(
    "damage",
    [
        cut_short,
        one_bit_flipped,
        other_letters,
        lambda content: b"",
        lambda content: b"not gzip",
        lambda content: gzip.compress(b"[0, []]\n"),
        lambda content: gzip.compress(b"\xff"),
        lambda content: gzip.compress(b"[" * 100_000),
        lambda content: gzip.compress(gzip.decompress(content).splitlines()[0] + b"\n[]\n"),
        lambda content: gzip.compress(gzip.decompress(content) + b'["x", 1]\n'),
    ],
)
def test_a_damaged_index_is_made_anew(root: Path, damage: Callable[[bytes], bytes]) -> None:
    """The listing after damage against one without an index, and the file against the one before the damage."""
    expected = listed(root)
    (file,) = (root.parent / "index").iterdir()
    intact = file.read_bytes()
    file.write_bytes(damage(intact))
    assert listed(root) == expected
    assert gzip.decompress(file.read_bytes()) == gzip.decompress(intact)
    assert [each.name for each in file.parent.iterdir()] == [file.name], "no temporary file is left"


def test_another_dataset_has_another_index(root: Path) -> None:
    """A copy of a root, and its index under the name of another root, against the copy's own listing."""
    listed(root)
    copy = root.parent / "copy"
    shutil.copytree(root, copy, symlinks=True)
    (copy / "a" / "b" / "b1.jpg").unlink()
    assert listed(copy) == images_below([copy])
    first, second = sorted((root.parent / "index").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    shutil.copy(first, second)
    assert listed(copy) == images_below([copy])


def test_few_images_are_not_kept(root: Path) -> None:
    """Ten images against the number from which on an index pays, and against one more."""
    listed(root, least=11)
    assert not (root.parent / "index").exists()
    listed(root, least=10)
    assert (root.parent / "index").exists()


def test_a_place_that_cannot_be_written_is_noted(root: Path) -> None:
    """A file where the folder of the index should be: the listing is right, and one note names the file."""
    (root.parent / "index").touch()
    index = index_of(root)
    assert images_below([root], index=index) == images_below([root])
    (note,) = index.save()
    assert str(root.parent / "index") in note


@pytest.mark.parametrize(("name", "message"), [("nowhere", "there is no such folder"), ("file", "is not a folder")])
def test_a_root_that_is_no_folder(tmp_path: Path, name: str, message: str) -> None:
    """A root that is missing, or a file, is named itself, and not a folder inside it."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as caught:
        splits_under(tmp_path / name)
    assert caught.value.message == f"{tmp_path / name}: {message}"
