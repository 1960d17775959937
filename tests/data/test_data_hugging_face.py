"""Datasets of Hugging Face: splits, columns and their types; what is said when one is missing or cannot be had."""

from __future__ import annotations

import builtins
import io
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from swa_cli.data import packed
from swa_cli.data.sources import Source, fingerprint, load
from swa_cli.data.splits import Reading, read_rows
from swa_cli.errors import UserError


def picture(level: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), level, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def bitmap(level: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), level, dtype=np.uint8)).save(file, "BMP")
    return file.getvalue()


def images(*levels: int) -> list[dict[str, Any]]:
    return [{"bytes": picture(level), "path": f"{level}.png"} for level in levels]


PHOTOS = datasets.Image()
KINDS = datasets.ClassLabel(names=["cat", "dog"])


def table(columns: dict[str, list[Any]], **features: Any) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def save(root: Path, **splits: datasets.Dataset) -> Path:
    root.mkdir(exist_ok=True)
    for name, part in splits.items():
        part.to_parquet(str(root / f"{name}.parquet"))
    return root


def source(root: Path, **args: Any) -> Source:
    trained, skip = args.pop("trained", None), args.pop("skip_broken", False)
    return load("hf", root=root, val=0, workers=0, cache="ram", args=args, classes=trained, skip_broken=skip)


def refused(root: Path, **args: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        source(root, **args)
    assert caught.value.hint
    return caught.value


def rows_of(found: Source, split: str = "train") -> tuple[list[int], list[int]]:
    part = getattr(found, split)
    return part.images[:, 0, 0, 0].tolist(), part.labels.tolist()


def test_splits_and_classes_of_a_folder(tmp_path: Path) -> None:
    """The only column of each type, whatever they are called; other splits are left out with a word."""
    rows = {"pixel": images(1, 2, 3), "id": [7, 8, 9], "kind": [1, 0, 1]}
    features = {"pixel": PHOTOS, "id": datasets.Value("int64"), "kind": KINDS}
    part = table(rows, **features)
    found = source(save(tmp_path / "set", train=part, validation=part.select([1]), test=part.select([2, 1])))
    assert rows_of(found) == ([1, 2, 3], [1, 0, 1])
    assert rows_of(found, "val") == ([2], [0])
    assert rows_of(found, "test") == ([3, 2], [1, 0])
    assert found.class_names == ("cat", "dog")


@pytest.mark.parametrize("is_dict", [True, False])
def test_what_save_to_disk_wrote(tmp_path: Path, is_dict: bool) -> None:
    """A dict of splits, one of them unknown and left out, or a single table, which is the training split."""
    part = table({"image": images(1, 2), "label": [1, 0]}, image=PHOTOS, label=KINDS)
    saved: Any = datasets.DatasetDict({"train": part, "unlabeled": part}) if is_dict else part
    saved.save_to_disk(str(tmp_path / "set"))
    found = source(tmp_path / "set")
    assert rows_of(found) == ([1, 2], [1, 0])
    assert ("left out split unlabeled: 2 rows" in found.contents) == is_dict


def test_selected_and_shuffled_tables_keep_their_rows(tmp_path: Path) -> None:
    """A table with an index over its rows, against the rows that it shows."""
    part = table({"image": images(1, 2, 3, 4), "label": [1, 0, 1, 0]}, image=PHOTOS, label=KINDS)
    part.select([3, 0, 2]).save_to_disk(str(tmp_path / "set"))
    assert rows_of(source(tmp_path / "set")) == ([4, 1, 3], [0, 1, 1])


@pytest.mark.parametrize(
    ("kind", "labels", "names", "numbers"),
    [
        ("string", ["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        ("int64", [10, 9, 10], ("9", "10"), [1, 0, 1]),
        ("bool", [True, False, True], ("False", "True"), [1, 0, 1]),
    ],
)
def test_labels_that_are_no_class_labels(
    tmp_path: Path, kind: str, labels: list[Any], names: tuple[str, ...], numbers: list[int]
) -> None:
    """Texts, numbers and truth values by a column that is named, against the classes as in a table."""
    part = table({"image": images(1, 2, 3), "y": labels}, image=PHOTOS, y=datasets.Value(kind))
    root = save(tmp_path / "set", train=part)
    error = refused(root)
    assert "no columns of the type ClassLabel" in error.message
    assert "dataset.args.label=COLUMN" in error.hint
    found = source(root, label="y")
    assert found.class_names == names
    assert rows_of(found) == ([1, 2, 3], numbers)


@pytest.mark.parametrize("kind", ["structs", "bytes", "paths"])
def test_images_that_other_programs_wrote(tmp_path: Path, kind: str) -> None:
    """Parquet files without the metadata of the package: structs, plain bytes, and paths of files."""
    (tmp_path / "set").mkdir()
    for level in (1, 2):
        (tmp_path / f"{level}.png").write_bytes(picture(level))
    values: dict[str, list[Any]] = {
        "structs": images(1, 2),
        "bytes": [picture(1), picture(2)],
        "paths": [f"{tmp_path}/1.png", "../2.png"],
    }
    pq.write_table(pa.table({"photo": values[kind], "y": ["b", "a"]}), tmp_path / "set/train.parquet")
    error = refused(tmp_path / "set").message
    listed = {"structs": "a struct of bytes, path", "bytes": "binary", "paths": "string"}[kind]
    assert error.endswith(f"no columns of the type Image; its columns are photo ({listed}), y (string)")
    found = source(tmp_path / "set", image="photo", label="y")
    assert rows_of(found) == ([1, 2], [1, 0])
    assert found.data()["train"].sha256


@pytest.mark.parametrize("kind", ["png", "bitmaps", "nameless", "paths"])
def test_what_identifies_photos(tmp_path: Path, kind: str) -> None:
    """Photos in another order, or others, against the same again: of one length, and in files of their own, too."""

    def known(*levels: int) -> tuple[str, str]:
        root = tmp_path / "set"
        root.mkdir(exist_ok=True)
        for level in (1, 2, 3):
            (root / f"{level}.png").write_bytes(picture(level))
        rows: list[Any] = images(*levels)
        if kind == "bitmaps":
            rows = [{"bytes": bitmap(level), "path": None} for level in levels]
        elif kind == "nameless":
            rows = [{"bytes": picture(level), "path": None} for level in levels]
        elif kind == "paths":
            rows = [f"{level}.png" for level in levels]
        pq.write_table(pa.table({"photo": rows, "y": ["a", "b", "a"]}), root / "train.parquet")
        dataset = load("hf", root=root, val=0, workers=0, cache="none", args={"image": "photo", "label": "y"})
        part = dataset.train
        return fingerprint(part, root=root).sha256, packed._checksum(part.dataset, root, None)

    first = known(1, 2, 3)
    again, other, more = known(1, 2, 3), known(2, 1, 3), known(1, 2, 2)
    assert first[0] == again[0]
    assert len({first, other, more}) == 3
    assert len({first[0], other[0], more[0]}) == len({first[1], other[1], more[1]}) == 3


@pytest.mark.parametrize("is_saved", [True, False], ids=["save_to_disk", "parquet"])
def test_tables_that_are_written_anew_make_packed_photos_stale(tmp_path: Path, is_saved: bool) -> None:
    """Bitmaps that differ where the checksum does not look, packed, against the photos of the new table."""
    root = tmp_path / "set"

    def write(level: int) -> None:
        rows = []
        for number in range(2):
            pixels = np.full((120, 120, 3), number, dtype=np.uint8)
            pixels[24:48] = level
            Image.fromarray(pixels).save(file := io.BytesIO(), "BMP")
            rows.append({"bytes": file.getvalue(), "path": None})
        part = table({"image": rows, "label": [0, 1]}, image=PHOTOS, label=KINDS)
        if not is_saved:
            save(root, train=part)
            return
        shutil.rmtree(root, ignore_errors=True)
        part.save_to_disk(str(root))

    def packed_photos() -> tuple[Source, torch.Tensor]:
        found = load("hf", root=root, val=0, workers=0, cache="packed", packing="write")
        return found, next(iter(read_rows(found.train, rows=torch.arange(2), reading=Reading())))[0]

    write(100)
    first, _ = packed_photos()
    write(200)
    found, photos = packed_photos()
    assert any("changed since" in note for note in found.notes)
    assert photos[:, :, 30].eq(200).all()
    assert found.data() == first.data(), "the fingerprint is that of the photos, not of the tables"
    if is_saved:
        datasets.load_from_disk(str(root)).filter(lambda row: row["label"] == 0)  # leaves a file beside the table
        assert list(root.glob("cache-*.arrow"))
    assert not any("changed since" in note for note in packed_photos()[0].notes)


def test_splits_that_lack_labels_or_have_others(tmp_path: Path) -> None:
    """A test split without the column is left out with a word; one with numbers in place of classes is refused."""
    part = table({"image": images(1, 2), "label": [1, 0]}, image=PHOTOS, label=KINDS)
    hidden = table({"image": images(3, 4)}, image=PHOTOS)
    datasets.DatasetDict({"train": part, "test": hidden}).save_to_disk(str(tmp_path / "hidden"))
    found = source(tmp_path / "hidden")
    assert found.test is None
    assert "left out split test: 2 rows without the column 'label'" in found.contents
    numbers = table({"image": images(3), "label": [0]}, image=PHOTOS, label=datasets.Value("int64"))
    datasets.DatasetDict({"train": part, "test": numbers}).save_to_disk(str(tmp_path / "numbers"))
    assert "test has int64 in the column 'label', and train ClassLabel" in refused(tmp_path / "numbers").message


def test_a_label_that_is_missing_in_a_list(tmp_path: Path) -> None:
    """Lists of texts, one of them with a null: refused with its row; an empty one is a photo without labels."""
    texts = datasets.Sequence(datasets.Value("string"))
    for name, labels in (("null", [["a"], ["b", None]]), ("empty", [["a", "b"], []])):
        save(tmp_path / name, train=table({"image": images(1, 2), "label": labels}, image=PHOTOS, label=texts))
    assert "train, row 1: a label of the list is missing" in refused(tmp_path / "null", label="label").message
    assert source(tmp_path / "empty", label="label").train.labels.tolist() == [[1, 1], [0, 0]]


def test_test_sets_without_labels_are_left_out(tmp_path: Path) -> None:
    """All labels -1: the split is left out with a word; a single one is refused with its row."""
    part = table({"image": images(1, 2), "label": [1, 0]}, image=PHOTOS, label=KINDS)
    hidden = table({"image": images(3, 4), "label": [-1, -1]}, image=PHOTOS, label=KINDS)
    found = source(save(tmp_path / "set", train=part, test=hidden))
    assert found.test is None
    assert "left out test: 2 rows without labels" in found.contents
    mixed = table({"image": images(3, 4), "label": [0, -1]}, image=PHOTOS, label=KINDS)
    assert "sample 1 of the test split: label -1" in refused(save(tmp_path / "two", train=part, test=mixed)).message
    assert "has no labels" in refused(save(tmp_path / "three", train=hidden)).message


def test_columns_that_are_wrong(tmp_path: Path) -> None:
    """Several columns of a type, none of that name, one of another type, an empty value; the columns are listed."""
    features = {"image": PHOTOS, "mirror": PHOTOS, "label": KINDS, "score": datasets.Value("float32")}
    rows = {"image": images(1, 2), "mirror": images(1, 2), "label": [1, 0], "score": [0.5, 1.5]}
    root = save(tmp_path / "set", train=table(rows, **features))
    error = refused(root)
    assert "2 columns of the type Image" in error.message
    assert "image (Image), mirror (Image), label (ClassLabel)" in error.message
    assert "dataset.args.image=image" in error.hint
    error = refused(root, image="imgae")
    assert "no column 'imgae'" in error.message
    assert "score (float32)" in error.message
    assert "did you mean image?" in error.hint
    assert "does not hold images" in refused(root, image="score").message
    assert "is float32, not classes" in refused(root, image="image", label="score").message
    assert "has 3 names" in refused(root, image="image", classes=["a", "b", "c"]).message
    holes = table({"image": images(1, 2), "y": ["a", None]}, image=PHOTOS, y=datasets.Value("string"))
    assert "train, row 1: has no y" in refused(save(tmp_path / "holes", train=holes), label="y").message


def test_broken_and_missing_images_are_named(tmp_path: Path) -> None:
    """One cut short and one that is not there: named by split, row and path; with skip_broken they are left out."""
    rows = [*images(1, 2), {"bytes": picture(3)[:45], "path": "3.png"}, None]
    part = table({"image": rows, "label": [0, 1, 0, 1]}, image=PHOTOS, label=KINDS)
    root = save(tmp_path / "set", train=part)
    error = refused(root)
    assert "train, row 2 (3.png)" in error.message
    assert "train, row 3: has no image" in error.message
    found = source(root, skip_broken=True)
    assert rows_of(found) == ([1, 2], [0, 1])
    assert found.num_broken == 2


@pytest.mark.parametrize("is_list", [False, True])
def test_splits_that_were_encoded_one_by_one(tmp_path: Path, is_list: bool) -> None:
    """Numbers that count the names of their own split, against the names; a name that training lacks is refused."""

    def part(names: list[str], labels: list[int]) -> datasets.Dataset:
        kind: Any = datasets.ClassLabel(names=names)
        columns = {"image": images(1, 2), "y": [[label] for label in labels] if is_list else labels}
        return table(columns, image=PHOTOS, y=datasets.Sequence(kind) if is_list else kind)

    def saved(name: str, names: list[str]) -> Path:
        parts = {"train": part(["cat", "dog", "fox"], [2, 0]), "test": part(names, [1, 0])}
        datasets.DatasetDict(parts).save_to_disk(str(tmp_path / name))
        return tmp_path / name

    found = source(saved("some", ["dog", "fox"]), label="y")
    assert found.class_names == ("cat", "dog", "fox")
    for split, expected in (("train", [2, 0]), ("test", [2, 1])):
        labels = getattr(found, split).labels
        assert (labels.argmax(1) if is_list else labels).tolist() == expected
    error = refused(saved("more", ["dog", "owl"]), label="y")
    assert "test: has a class 'owl'" in error.message


def test_names_given_for_class_labels(tmp_path: Path) -> None:
    """The dataset's own in another order number the labels anew; other names rename them; a mixture is refused."""
    root = save(tmp_path / "set", train=table({"image": images(1, 2), "label": [0, 1]}, image=PHOTOS, label=KINDS))
    for classes, numbers in ((["dog", "cat"], [1, 0]), (["cat", "dog"], [0, 1]), (["Katze", "Hund"], [0, 1])):
        found = source(root, classes=classes)
        assert found.class_names == tuple(classes)
        assert rows_of(found) == ([1, 2], numbers)
    assert "'cat'" in refused(root, classes=["Hund", "cat"]).message


def test_texts_are_read_as_in_a_table(tmp_path: Path) -> None:
    """Spaces around labels do not count, and an empty one is named with its row."""
    parts = [
        table({"image": images(1, 2, 3), "y": labels}, image=PHOTOS, y=datasets.Value("string"))
        for labels in (["b", " a ", "b\n"], ["a", "b", " "])
    ]
    found = source(save(tmp_path / "set", train=parts[0]), label="y")
    assert (found.class_names, rows_of(found)) == (("a", "b"), ([1, 2, 3], [1, 0, 1]))
    assert "train, row 2: the y is empty" in refused(save(tmp_path / "holes", train=parts[1]), label="y").message


def test_other_classes_in_a_test_split(tmp_path: Path) -> None:
    """A text label that training lacks: named with its row."""
    parts = {
        name: table({"image": images(1, 2), "y": labels}, image=PHOTOS, y=datasets.Value("string"))
        for name, labels in (("train", ["a", "b"]), ("test", ["a", "c"]))
    }
    error = refused(save(tmp_path / "set", **parts), label="y")
    assert "test, row 1: the test split has the class 'c'" in error.message


def test_two_splits_of_one_meaning(tmp_path: Path) -> None:
    """Both names are told."""
    part = table({"image": images(1, 2), "label": [1, 0]}, image=PHOTOS, label=KINDS)
    datasets.DatasetDict({"train": part, "val": part, "validation": part}).save_to_disk(str(tmp_path / "set"))
    assert "has val and validation" in refused(tmp_path / "set").message


@pytest.mark.parametrize("layout", ["nothing", "empty", "text", "damaged"])
def test_folders_that_are_none(tmp_path: Path, layout: str) -> None:
    """No folder, no tables in it, or damaged ones: the folder is named, and the files that are read."""
    root = tmp_path / "set"
    if layout != "nothing":
        root.mkdir()
    if layout == "text":
        (root / "train.txt").write_text("a")
    if layout == "damaged":
        (root / "train.parquet").write_bytes(b"PAR1 and no more")
    error = refused(root)
    assert str(root) in error.message
    if layout in ("empty", "text"):
        assert "dataset.root/train*.parquet" in error.hint


@pytest.mark.parametrize("download", [True, False])
def test_a_dataset_of_the_hub_that_cannot_be_had(download: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline and not in the cache: both are said, with the command or the key that helps; the switch is put back."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", download)
    with pytest.raises(UserError, match=r"somebody/pets: is not in the cache") as caught:
        load("hf:somebody/pets", download=download)
    assert (
        "hf download --repo-type dataset somebody/pets" if download else "dataset.download=true"
    ) in caught.value.hint
    assert download == huggingface_hub.constants.HF_HUB_OFFLINE


def test_the_hub_is_asked_for_configuration_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes to the package, and what it warns of becomes a note, against a stand-in for the hub."""
    asked: list[Any] = []

    def stand_in(*words: object, **options: object) -> datasets.DatasetDict:
        asked.append((words, options))
        logging.getLogger("datasets.load").warning("Using the latest cached version of the dataset")
        return datasets.DatasetDict(
            {"train": table({"image": images(1, 2), "label": [1, 0]}, image=PHOTOS, label=KINDS)}
        )

    monkeypatch.setattr(datasets, "load_dataset", stand_in)
    found = load("hf:somebody/pets", val=0, workers=0, args={"config": "small", "revision": "v1"})
    assert asked == [(("somebody/pets", "small"), {"revision": "v1"})]
    assert rows_of(found) == ([1, 2], [1, 0])
    assert any("latest cached version" in note for note in found.notes)


def test_bars_of_the_package_become_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A bar of tqdm, one without a total and a word, while the package loads: progress up to 100 %, and the word."""
    from tqdm import tqdm

    part = table({"image": images(1, 2), "label": [1, 0]}, image=PHOTOS, label=KINDS)

    def stand_in(*words: object, **options: object) -> datasets.DatasetDict:
        for _ in tqdm(range(50), desc="Downloading data", mininterval=0):
            pass
        for _ in tqdm(iter(range(50)), desc="Generating", mininterval=0):
            pass
        print("a word", file=sys.stderr)
        return datasets.DatasetDict({"train": part})

    monkeypatch.setattr(datasets, "load_dataset", stand_in)
    calls: list[tuple[str, int, int]] = []
    load("hf:somebody/pets", val=0, workers=0, progress=lambda *call: calls.append(call))
    told = [(done, of) for what, done, of in calls if what == "Downloading data"]
    assert told == sorted(told)
    assert told[-1] == (100, 100)
    assert len(told) > 20
    assert [call for call in calls if call[0].startswith("loading")] == [
        ("loading somebody/pets", 0, 1),
        ("loading somebody/pets", 1, 1),
    ]
    assert capsys.readouterr().err == "a word\n"


def test_a_name_that_is_a_folder_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package would read the folder: it is refused with the words that mean it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets").mkdir()
    with pytest.raises(UserError) as caught:
        load("hf:pets")
    assert "dataset.name=hf dataset.root=pets" in caught.value.hint


def test_a_prefix_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hf:` names no dataset; the working directory, which an empty path means, is not told of."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"dataset\.name: hf: names no dataset") as caught:
        load("hf:")
    assert "hf:NAME" in caught.value.hint


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An import that fails against the command that installs it."""
    imported = builtins.__import__

    def fail(name: str, *rest: Any) -> Any:
        if name == "datasets":
            raise ModuleNotFoundError(f"No module named {name!r}")
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(UserError, match="needs the package datasets") as caught:
        load("hf", root=tmp_path)
    assert caught.value.hint == 'pip install "swa-cli[hf]"'


def test_reading_changes_no_random_state(tmp_path: Path) -> None:
    """The generators of torch, numpy and Python before and after, and two reads of one row."""
    part = table({"image": images(1, 2), "label": [1, 0]}, image=PHOTOS, label=KINDS)
    root = save(tmp_path / "set", train=part)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    source(root)
    assert torch.equal(torch.get_rng_state(), before)
