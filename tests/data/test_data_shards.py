"""WebDataset shards: names, members, labels; every way in which a tar file is wrong; places instead of a whole scan."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from swa_cli.data import shards
from swa_cli.data.photos import PhotoDataset
from swa_cli.data.shards import expand_braces
from swa_cli.data.sources import Source, load
from swa_cli.data.transforms import EvaluationView
from swa_cli.errors import UserError


def picture(level: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), level, dtype=np.uint8)).save(file, kind)
    return file.getvalue()


def write(path: Path, members: Mapping[str, bytes], **options: Any) -> Path:
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(*numbers: int, folder: str = "") -> dict[str, bytes]:
    """A picture of the level of its number, and a class of two."""
    found = {}
    for number in numbers:
        found[f"{folder}{number:03}.png"] = picture(number)
        found[f"{folder}{number:03}.cls"] = str(number % 2).encode()
    return found


def source(root: Path, **args: Any) -> Source:
    skip, trained, cache = args.pop("skip_broken", False), args.pop("trained", None), args.pop("cache", "ram")
    args = {"train": "a.tar", **args}
    return load("webdataset", root=root, val=0, workers=0, cache=cache, args=args, skip_broken=skip, classes=trained)


def refused(root: Path, **args: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        source(root, **args)
    assert caught.value.hint
    return caught.value


def levels(found: Source, split: str = "train") -> list[int]:
    return getattr(found, split).images[:, 0, 0, 0].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{000..002}.tar", ["a-000.tar", "a-001.tar", "a-002.tar"]),
        ("a-{8..11}.tar", ["a-8.tar", "a-9.tar", "a-10.tar", "a-11.tar"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("{08..10}.tar", ["08.tar", "09.tar", "10.tar"]),
        ("{9..010}.tar", ["009.tar", "010.tar"]),
        ("{10..08}.tar", ["10.tar", "09.tar", "08.tar"]),
    ],
)
def test_braces_as_in_a_shell(pattern: str, expected: list[str]) -> None:
    """Each pattern against what bash makes of it."""
    assert expand_braces(pattern) == expected


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_each_tar_format(tmp_path: Path, tar_format: int) -> None:
    """Short and long names, folders, hidden files and other members, as tar programs write them."""
    folder = "f" * 90 + "/"
    members = {**samples(1), "001.json": b"{}", **samples(2, folder=folder), "._003.png": b"?", "__meta__.cls": b"?"}
    members |= {"readme.txt": b"?"} | samples(3)
    if tar_format != tarfile.USTAR_FORMAT:
        members |= samples(4, folder="g" * 200 + "/")
    write(tmp_path / "a.tar", members, format=tar_format)
    found = source(tmp_path)
    assert levels(found) == [1, 2, 3] + [4] * (tar_format != tarfile.USTAR_FORMAT)
    assert found.train.labels.tolist() == [1, 0, 1, 0][: len(found.train)]
    assert found.class_names == ("0", "1")
    assert found.contents[-1] == "left out 2 files: 1 .json, 1 .txt"
    streamed = source(tmp_path, cache="none").train.dataset
    assert isinstance(streamed, PhotoDataset)
    name, content = streamed.photos.encoded(1)
    assert name == f"{tmp_path}/a.tar: {folder}002.png"
    assert content == members[f"{folder}002.png"]
    if tar_format != tarfile.USTAR_FORMAT:
        assert streamed.name(3) == f"{tmp_path}/a.tar: {'g' * 200}/004.png"


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("folder", ["", "größe-日本/", "ü" * 70 + "/"])
def test_names_of_members_are_whole(tmp_path: Path, tar_format: int, folder: str) -> None:
    """Names in other letters than ASCII, against those that were written."""
    write(tmp_path / "a.tar", samples(1, 2, folder=folder), format=tar_format)
    streamed = source(tmp_path, cache="none").train.dataset
    assert [streamed.name(row) for row in range(2)] == [f"{tmp_path}/a.tar: {folder}{n:03}.png" for n in (1, 2)]


def test_shards_of_several_patterns_keep_their_order(tmp_path: Path) -> None:
    """A list of patterns in its order, globs by name; each split has its own."""
    for number in range(4):
        write(tmp_path / f"{number}.tar", samples(2 * number, 2 * number + 1))
    found = source(tmp_path, train=["3.tar", "[12].tar"], test="{0..0}.tar")
    assert levels(found) == [6, 7, 2, 3, 4, 5]
    assert levels(found, "test") == [0, 1]
    assert levels(source(tmp_path / "elsewhere", train=f"{tmp_path}/[12].tar")) == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("label", "args", "names"),
    [
        (b"cat", {}, ("cat", "dog")),
        (b"0\n", {"classes": ["cat", "dog"]}, ("cat", "dog")),
        (b'{"id": 7, "kind": "cat"}', {"label": "json", "field": "kind"}, ("cat", "dog")),
        (b'{"id": 7, "kind": 1}', {"label": "json", "field": "id"}, ("7", "8")),
    ],
)
def test_labels_as_text_number_and_field(
    tmp_path: Path, label: bytes, args: dict[str, Any], names: tuple[str, ...]
) -> None:
    """Each form of a label against the classes that it names."""
    other = label.replace(b"cat", b"dog").replace(b"7", b"8").replace(b"0", b"1")
    extension = args.get("label", "cls")
    members = {"1.png": picture(1), f"1.{extension}": other, "2.png": picture(2), f"2.{extension}": label}
    write(tmp_path / "a.tar", members)
    found = source(tmp_path, **args)
    assert found.class_names == names
    assert found.train.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("members", "args", "named"),
    [
        ({**samples(1, 2), "003.png": b"x"}, {}, "003 has no label (cls)"),
        ({**samples(1, 2), "003.cls": b"1"}, {}, "003 has no image"),
        ({**samples(1, 2), "003.png": b"x", "003.txt": b"1"}, {}, "but .txt"),
        ({"1.png": b"x", "2.png": b"x", "1.cls": b"0", "2.cls": b"1"}, {}, "1 has no label"),
        ({"1.png": b"x", "1.jpg": b"x", "1.cls": b"0"}, {}, "1 has two images, .png and .jpg"),
        ({"1.png": b"x", "1.cls": b"0", "1.CLS": b"0"}, {}, "1 has two labels"),
        ({"1.png": b"x", "1.cls": b""}, {}, "1.cls: is empty"),
        ({"1.png": b"x", "1.cls": b"\xff\xfe"}, {}, "1.cls: is not a label"),
        ({"1.png": b"x", "1.cls": b"0\n1"}, {}, "1.cls: has several lines"),
        ({"1.png": b"x", "1.json": b"{"}, {"label": "json", "field": "a"}, "1.json: is not JSON"),
        ({"1.png": b"x", "1.json": b'{"b": 1}'}, {"label": "json", "field": "a"}, "1.json: 'a' is null"),
        ({"1.png": b"x", "1.json": b'{"a": [1]}'}, {"label": "json", "field": "a"}, "1.json: 'a' is [1]"),
        ({"1.txt": b"x"}, {}, "has no samples, but 1 .txt"),
        ({}, {}, "has no samples"),
        (samples(2, 4), {}, "single class"),
        (samples(1, 2), {"classes": ["a", "b", "c"], "label": "png", "image": "cls"}, "001.png: is not a label"),
        ({**samples(1, 2), "003.png": b"x", "003.cls": b"7"}, {"classes": ["a", "b"]}, "003: the label '7'"),
    ],
)
def test_samples_that_are_none(tmp_path: Path, members: dict[str, bytes], args: dict[str, Any], named: str) -> None:
    """Each sample that is wrong against the shard and the key that the error names."""
    path = write(tmp_path / "a.tar", members)
    error = refused(tmp_path, **args)
    assert named in error.message
    assert str(path) in error.message or "a.tar" in error.message


def test_extensions_in_hints_work(tmp_path: Path) -> None:
    """The hints of two errors, applied: the label and the image by other extensions."""
    members = {}
    for number in (1, 2):
        members |= {f"{number}.png": picture(number), f"{number}.b.png": b"x", f"{number}.y": str(number).encode()}
    write(tmp_path / "a.tar", members)
    assert "dataset.args.label=y" in refused(tmp_path).hint
    assert levels(source(tmp_path, label="y")) == [1, 2]
    write(tmp_path / "a.tar", {name.replace(".b.png", ".jpg"): content for name, content in members.items()})
    assert "dataset.args.image=png" in refused(tmp_path, label="y").hint
    assert levels(source(tmp_path, label="y", image="png")) == [1, 2]


def test_extensions_in_capitals(tmp_path: Path) -> None:
    """Members and arguments in capitals, and the hint of two images of which the first is: applied, it reads that."""
    members = {}
    for number in (1, 2):
        members |= {f"{number}.PNG": picture(number), f"{number}.Y": str(number).encode()}
    write(tmp_path / "a.tar", members)
    assert levels(source(tmp_path, label="Y", image=["PNG"])) == [1, 2]
    twice = {}
    for name, content in members.items():
        twice |= {name: content} | ({name.replace(".PNG", ".jpg"): b"x"} if "PNG" in name else {})
    write(tmp_path / "a.tar", twice)
    assert "dataset.args.image=png" in refused(tmp_path, label="y").hint
    assert levels(source(tmp_path, label="y", image=["png"])) == [1, 2]


def test_links_are_named_with_what_puts_the_files_in(tmp_path: Path) -> None:
    """A tar file of links to photos: the command of the hint, run as it stands, makes one that is read."""
    (tmp_path / "FOLDER").mkdir()
    for name, content in samples(1, 2).items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / "FOLDER" / name).symlink_to(tmp_path / name)
        if name.endswith(".cls"):
            (tmp_path / "FOLDER" / name).unlink()
            (tmp_path / "FOLDER" / name).write_bytes(content)
    subprocess.run(["tar", "--sort=name", "-cf", "a.tar", "FOLDER"], cwd=tmp_path, check=True)
    error = refused(tmp_path)
    assert "the link FOLDER/001.png" in error.message
    subprocess.run(error.hint.partition(": ")[2], shell=True, cwd=tmp_path, check=True)
    assert levels(source(tmp_path, train="new.tar")) == [1, 2]


def test_names_that_begin_with_two_underscores(tmp_path: Path) -> None:
    """Folders and files of such names are samples, unless they end so, too, as webdataset's `__key__`."""
    members = {f"__more/{name}": content for name, content in samples(1).items()}
    members |= {f"__{name}": content for name, content in samples(2).items()}
    members |= {f"__meta__/{name}": b"?" for name in samples(3)}
    write(tmp_path / "a.tar", members)
    assert levels(source(tmp_path)) == [1, 2]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    """Tar files cut at every kind of place, with a damaged header, compressed, or none at all."""
    path = write(tmp_path / "a.tar", samples(1, 2, 3))
    whole = path.read_bytes()
    used = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    damaged = bytearray(whole)
    damaged[2 * 1024 + 10] ^= 255
    wrong = [whole[:used], whole[: used - 512], whole[: used - 700], whole[:1000], whole[:512], whole[:100], b"no tar"]
    for content in (*wrong, bytes(damaged), b""):
        path.write_bytes(content)
        assert f"{path}: is not a whole tar file" in refused(tmp_path).message, len(content)
    for more in (whole, bytes(10_240) + whole, bytes(2 << 20) + b"x"):
        path.write_bytes(whole + more)
        assert f"{path}: has data behind its end" in refused(tmp_path).message
    path.write_bytes(whole + bytes(3 << 20))
    assert levels(source(tmp_path)) == [1, 2, 3]
    path.write_bytes(gzip.compress(whole))
    error = refused(tmp_path)
    assert "is compressed" in error.message
    assert f"gunzip -k '{path}'" in error.hint


def test_patterns_without_files(tmp_path: Path) -> None:
    """A shard that is missing, a glob that finds none, no pattern at all, and a shard that is read twice."""
    write(tmp_path / "a-0.tar", samples(1, 2))
    for pattern, named in (("a-{0..1}.tar", "a-1.tar is not there"), ("b*.tar", "b*.tar is not there")):
        error = refused(tmp_path, train=pattern)
        assert named in error.message
        assert "a-0.tar" in error.hint
    with pytest.raises(UserError, match=r"dataset\.args\.train: is missing"):
        load("webdataset", root=tmp_path)
    assert "is read twice" in refused(tmp_path, train=["a-0.tar", "a-*.tar"]).message
    assert "in the train split already" in refused(tmp_path, train="a-0.tar", val="a-*.tar").message


def test_an_image_that_is_broken_inside_a_shard(tmp_path: Path) -> None:
    """It is named with its shard and key; with skip_broken it is left out."""
    write(tmp_path / "a.tar", {**samples(1, 2), "003.png": picture(3)[:45], "003.cls": b"1"})
    assert "a.tar: 003.png" in refused(tmp_path).message
    found = source(tmp_path, skip_broken=True)
    assert (levels(found), found.num_broken) == ([1, 2], 1)
    assert "a.tar: 003.png" in found.notes[0]


def test_a_shard_that_shrinks_after_it_was_indexed(tmp_path: Path) -> None:
    """Reading beyond its end is an error that names it, as are shards that have gone."""
    path = write(tmp_path / "a.tar", samples(1, 2))
    photos = source(tmp_path, cache="none").train.dataset.photos
    os.truncate(path, path.stat().st_size // 8)
    with pytest.raises(OSError, match=r"a\.tar: .*ends before"):
        photos.encoded(1)
    path.unlink()
    fresh = shards.ShardPhotos(photos.files, photos.shards, photos.offsets, photos.headers, photos.sizes)
    with pytest.raises(OSError, match=r"a\.tar: No such file"):
        fresh.encoded(0)


def test_few_files_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that read 40 shards with room for three open files: every photo, and no more descriptors than that."""
    monkeypatch.setattr(shards, "_MAX_OPEN", 3)
    for number in range(40):
        write(tmp_path / f"{number:02}.tar", samples(2 * number, 2 * number + 1))
    dataset = source(tmp_path, train="*.tar", cache="none").train.dataset
    before = len(os.listdir("/proc/self/fd"))
    rows = torch.randperm(80, generator=torch.Generator().manual_seed(0)).tolist()
    with ThreadPoolExecutor(4) as pool:
        images = [*pool.map(lambda row: dataset.read(row, EvaluationView())[0], rows)]
    assert [int(image[0, 0, 0]) for image in images] == rows
    assert len(os.listdir("/proc/self/fd")) <= before + 3
    monkeypatch.setattr(shards, "_MAX_OPEN", 64)  # more than there are: each is opened once
    before = len(os.listdir("/proc/self/fd"))
    fresh = source(tmp_path, train="*.tar", cache="none").train.dataset
    for row in rows:
        fresh.read(row, EvaluationView())
    assert len(os.listdir("/proc/self/fd")) == before + 40


def test_the_index_is_small_and_its_reading_is_shown(tmp_path: Path) -> None:
    """24 bytes per photo, and progress up to the bytes of all shards."""
    paths = [write(tmp_path / f"{number}.tar", samples(*range(20))) for number in range(2)]
    calls: list[tuple[str, int, int]] = []
    args = {"train": "*.tar"}
    found = load(
        "webdataset",
        root=tmp_path,
        val=0,
        workers=0,
        cache="none",
        args=args,
        progress=lambda *call: calls.append(call),
    )
    photos = found.train.dataset.photos  # type: ignore[union-attr]
    assert sum(part.nbytes for part in (photos.shards, photos.offsets, photos.headers, photos.sizes)) == 24 * 40
    total = sum(path.stat().st_size for path in paths)
    told = [(done, of) for what, done, of in calls if what == "reading the headers of shards"]
    assert told[-1] == (total, total)
    assert told == sorted(told)


def test_classes_of_weights_stand_in_for_training_shards(tmp_path: Path) -> None:
    """Test shards alone, as for an evaluation."""
    write(tmp_path / "t.tar", {"1.png": picture(1), "1.cls": b"2"})
    found = load("webdataset", root=tmp_path, args={"test": "t.tar"}, classes=["0", "1", "2"], workers=0)
    assert found.train is None
    assert found.test is not None
    assert found.test.labels.tolist() == [2]


def test_json_labels_need_a_field(tmp_path: Path) -> None:
    """A whole JSON text is no class name."""
    write(tmp_path / "a.tar", {"1.png": picture(1), "1.json": json.dumps({"a": 1, "b": 2}).encode()})
    error = refused(tmp_path, label="json")
    assert "1.json" in error.message
    assert "dataset.args.field=FIELD, with one of a, b" in error.hint
