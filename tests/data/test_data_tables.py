"""Tables of photos: columns, classes, splits, paths; every mistake with its line; a million rows."""

from __future__ import annotations

import os
import tracemalloc
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from swa_cli.data import tables
from swa_cli.data.sources import Source, load
from swa_cli.data.transforms import EvaluationView
from swa_cli.errors import RecipeError, UserError


@pytest.fixture(autouse=True)
def _pictures(tmp_path: Path) -> None:
    """Nine pictures of one size, 0.png to 8.png."""
    for number in range(9):
        Image.fromarray(np.full((4, 5, 3), number, dtype=np.uint8)).save(tmp_path / f"{number}.png")


def source(root: Path, text: str | bytes, *, file: str = "a.csv", classes: Any = None, **args: Any) -> Source:
    (root / file).write_bytes(text.encode() if isinstance(text, str) else text)
    skip = args.pop("skip_broken", False)
    trained = args.pop("trained", None)
    args = {"file": file, **({"classes": classes} if classes else {}), **args}
    return load("csv", root=root, val=0, workers=0, cache="ram", args=args, skip_broken=skip, classes=trained)


def refused(root: Path, text: str | bytes, **args: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        source(root, text, **args)
    assert caught.value.hint
    return caught.value


def rows_of(found: Source, split: str = "train") -> tuple[list[int], list[int]]:
    part = getattr(found, split)
    return part.images[:, 0, 0, 0].tolist(), part.labels.tolist()


@pytest.mark.parametrize(
    ("labels", "classes", "names", "numbers"),
    [
        (["b", "a", "b", "C"], None, ("C", "a", "b"), [2, 1, 2, 0]),
        (["10", "9", "10", "-1"], None, ("-1", "9", "10"), [2, 1, 2, 0]),
        (["10", "9", "x", "9"], None, ("10", "9", "x"), [0, 1, 2, 1]),
        (["b", "a", "b", "b"], ["b", "z", "a"], ("b", "z", "a"), [0, 2, 0, 0]),
        (["1", "0", "1", "1"], ["cat", "dog", "fox"], ("cat", "dog", "fox"), [1, 0, 1, 1]),
        (["1", "0", "1", "1"], [1, 0], ("1", "0"), [0, 1, 0, 0]),
        (["2", "1", "1", "2"], [1, 2, 3], ("1", "2", "3"), [1, 0, 0, 1]),
        (["1", "0", "1", "1"], [0, 1, 7], ("0", "1", "7"), [1, 0, 1, 1]),
        ([f"1{'0' * 18}", "9" * 18, "3", "-1"], None, ("-1", "3", "9" * 18, f"1{'0' * 18}"), [3, 2, 1, 0]),
        (["e\u0301", "\u00e9", "a", "a"], None, ("a", "\u00e9"), [1, 1, 0, 0]),
        (["e\u0301", "\u00e9", "a", "a"], ["e\u0301", "a"], ("\u00e9", "a"), [0, 0, 1, 1]),
    ],
)
def test_classes_are_named_and_numbered(
    tmp_path: Path, labels: list[str], classes: list[str] | None, names: tuple[str, ...], numbers: list[int]
) -> None:
    """Texts sorted, whole numbers by value, names that are given, numbers of such names, and forms of Unicode."""
    text = "path,label\n" + "".join(f"{number}.png,{label}\n" for number, label in enumerate(labels))
    found = source(tmp_path, text, classes=classes)
    assert found.class_names == names
    assert rows_of(found) == ([0, 1, 2, 3], numbers)


@pytest.mark.parametrize("kind", ["path", "file", "folder", "three"])
def test_a_photo_stands_on_one_line(tmp_path: Path, kind: str) -> None:
    """A photo by its path in two forms, a link, a linked folder, beside a hard link: refused with its lines."""
    (tmp_path / "link.png").symlink_to("1.png")
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "hard.png").hardlink_to(tmp_path / "1.png")
    again = {"path": "./1.png", "file": "link.png", "folder": "again/1.png", "three": "hard.png,b,train\n1.png"}[kind]
    error = refused(tmp_path, f"path,label,split\n0.png,a,train\n1.png,b,train\n{again},b,val\n")
    assert f"a.csv:{5 if kind == 'three' else 4}: " in error.message
    assert "on line 3 already" in error.message


def test_a_hard_link_is_a_photo_of_its_own(tmp_path: Path) -> None:
    """Two names of one file, as programs make that save disk space, against two rows."""
    (tmp_path / "hard.png").hardlink_to(tmp_path / "1.png")
    assert rows_of(source(tmp_path, "path,label\n0.png,a\n1.png,b\nhard.png,b\n")) == ([0, 1, 1], [0, 1, 1])


def test_columns_by_other_names_quotes_and_spaces(tmp_path: Path) -> None:
    """Columns in another order, quoted values, a byte order mark, blank lines, a path that is absolute."""
    rows = ['"a, b",1, 0.png ,Train', "", f'c,,"{tmp_path}/2.png",valid', "c,,1.png,train", ""]
    text = "\r\n".join(['\ufeff"kind", more, image,part', *rows])
    found = source(tmp_path, text, path="image", label="kind", split="part")
    assert found.class_names == ("a, b", "c")
    assert found.contents[-1] == "left out columns: more"
    assert rows_of(found) == ([0, 1], [0, 1])
    assert rows_of(found, "val") == ([2], [1])
    assert found.test is None


def test_spaces_behind_quotes_do_not_count(tmp_path: Path) -> None:
    """Behind names of columns and values, against a value that has quotes, spaces and a delimiter inside."""
    rows = [
        '"path" ,"label"  , "note" ',
        '"0.png" ,"a "" , b" ,"two',
        ' lines" ',
        '1.png , "b" , "" ',
        '"2.png","b","" ',
    ]
    for end in ("\n", "\r\n"):
        found = source(tmp_path, end.join(rows))
        assert found.class_names == ('a " , b', "b")
        assert rows_of(found) == ([0, 1, 2], [0, 1, 1])
    for wrong in ('"0.png" "1.png",a', '"0.png" x,a'):
        assert "a.csv:2" in refused(tmp_path, f"path,label\n{wrong}\n").message


@pytest.mark.parametrize("typed", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_names_of_columns_in_both_forms_of_unicode(tmp_path: Path, written: str, typed: str) -> None:
    """A column with an accent, as two programs write it, against its labels."""
    header = unicodedata.normalize(written, "path,Qualit\u00e9")
    found = source(tmp_path, f"{header}\n0.png,a\n1.png,b\n", label=unicodedata.normalize(typed, "Qualit\u00e9"))
    assert rows_of(found) == ([0, 1], [0, 1])


def test_another_delimiter(tmp_path: Path) -> None:
    """Semicolons, named by the hint of the error, against the table that they separate."""
    text = "path;label\n0.png;a\n1.png;b\n"
    error = refused(tmp_path, text)
    assert "a.csv:1: has no column 'path'" in error.message
    assert "'dataset.args.delimiter=;'" in error.hint
    assert source(tmp_path, text, delimiter=";").class_names == ("a", "b")


@pytest.mark.parametrize(
    ("text", "where", "named"),
    [
        ("", "a.csv:1:", "is empty"),
        ("path,label\n", "a.csv:", "no rows"),
        ("path,labels\n0.png,a\n", "a.csv:1:", "'label'"),
        ("path,label,path\n0.png,a,1.png\n", "a.csv:1:", "2 columns 'path'"),
        ("path,label\n0.png,a\n1.png,\n", "a.csv:3:", "label is empty"),
        ("path,label\n0.png,a\n,b\n", "a.csv:3:", "path is empty"),
        ("path,label\n0.png,a\n1.png\n", "a.csv:3:", "has 1 values"),
        ("path,label\n0.png,a\n1,5.png,b\n", "a.csv:3:", "has 3 values"),
        ("path,label,split\n0.png,a,train\n1.png,b,trian\n", "a.csv:3:", "'trian'"),
        ("path,label,split\n0.png,a,train\n1.png,b,\n", "a.csv:3:", "split is empty"),
        ("path,label\n0.png,a\n1.png,b\n\n0.png,a\n", "a.csv:5:", "line 2"),
        ("path,label,split\n0.png,a,train\n1.png,b,train\n./0.png,a,test\n", "a.csv:4:", "line 2"),
        ("path,label\n0.png,a\n1.png,b\n.//1.png,b\n", "a.csv:4:", "line 3"),
        ('path,label\n0.png,a\n"1.png,b\n', "a.csv:3:", "unexpected end"),
        ("path,label\n0.png,a\n1.png,a\n", "a.csv:", "single class"),
        ("path,label,split\n0.png,a,train\n1.png,b,train\n2.png,c,val\n", "a.csv:4:", "'c'"),
        ("path,label,split\n0.png,a,train\n1.png,b,train\n2.png,c,test\n", "a.csv:4:", "'c'"),
        ("path,label,split\n0.png,a,val\n", "a.csv:", "no training"),
        ("path,label\n0.png,a\n1\0.png,b\n", "a.csv:3:", "null character"),
        ("path,label\n0.png,caf\u00e9\n".encode("latin1"), "a.csv:2:", "UTF-8"),
        ("path,label\n0.png,a\n".encode("utf-16"), "a.csv:1:", "UTF-8"),
    ],
)
def test_mistakes_are_told_with_their_line(tmp_path: Path, text: str | bytes, where: str, named: str) -> None:
    """Each wrong table against the line and the value that the error names."""
    error = refused(tmp_path, text)
    assert where in error.message
    assert named in error.message


def test_encodings_have_a_command(tmp_path: Path) -> None:
    """The hint names the encoding, as far as the file tells."""
    assert "iconv -f utf-16" in refused(tmp_path, "path,label\n0.png,a\n".encode("utf-16")).hint
    assert "iconv -f latin1" in refused(tmp_path, "path,label\n0.png,\u00e9\n".encode("latin1")).hint


def test_labels_outside_of_the_given_classes(tmp_path: Path) -> None:
    """A name, and a number, that is not one of the classes; the first place is named, and the nearest class."""
    for labels, wrong in ((["cat", "dgo"], "'dgo'"), (["0", "2"], "'2'")):
        text = "path,label\n" + "".join(f"{number}.png,{label}\n" for number, label in enumerate(labels))
        error = refused(tmp_path, text, classes=["cat", "dog"])
        assert f"a.csv:3: the label {wrong}" in error.message
    error = refused(tmp_path, "path,label\n1.png,1\n2.png,2\n0.png,0\n", classes=["1", "2", "3"])
    assert "a.csv:4" in error.message, "0 would be a number, and 1 and 2 are names without it"
    assert "did you mean dog?" in refused(tmp_path, "path,label\n0.png,cat\n1.png,dgo\n", classes=["cat", "dog"]).hint


def test_missing_photos_are_counted_and_named(tmp_path: Path) -> None:
    """Seven rows without files: five are named with their lines; with skip_broken they are left out and counted."""
    text = "path,label\n" + "".join(f"{number}.png,{'ab'[number % 2]}\n" for number in range(2, 16))
    error = refused(tmp_path, text)
    assert "7 of 14 photos" in error.message
    assert f"a.csv:9: {tmp_path}/9.png" in error.message
    assert "14.png" not in error.message
    assert "dataset.skip_broken=true" in error.hint
    found = source(tmp_path, text, skip_broken=True)
    assert found.num_broken == 7
    assert rows_of(found)[0] == [2, 3, 4, 5, 6, 7, 8]
    long = "x" * 300
    error = refused(tmp_path, f"path,label\n0.png,a\n1.png,b\n{long},b\n")
    assert "1 of 3 photos" in error.message
    assert f"a.csv:4: {tmp_path}/{long}" in error.message
    assert "dataset.root=" not in error.hint


def test_paths_relative_to_the_table_are_recognized(tmp_path: Path) -> None:
    """A table in a subfolder with the paths that hold there: the hint has the root that is meant."""
    (tmp_path / "set").mkdir()
    for number in range(2):
        (tmp_path / f"{number}.png").rename(tmp_path / "set" / f"{number}.png")
    error = refused(tmp_path, "path,label\n0.png,a\n1.png,b\n", file="set/a.csv")
    assert f"dataset.root={tmp_path}/set dataset.args.file=a.csv" in error.hint


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    """Tables beside it are named; arguments that are wrong, too."""
    source(tmp_path, "path,label\n0.png,a\n1.png,b\n", file="labels.csv")
    with pytest.raises(UserError, match=r"label\.csv: cannot be read") as caught:
        load("csv", root=tmp_path, args={"file": "label.csv"})
    assert "dataset.args.file=labels.csv" in caught.value.hint
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    for name in ("folder.csv", "pipe.csv", "x" * 300):
        with pytest.raises(UserError, match="cannot be read") as caught:
            load("csv", root=tmp_path, args={"file": name})
        assert "file=labels.csv" in caught.value.hint
        assert "folder.csv" not in caught.value.hint
        assert "pipe.csv" not in caught.value.hint
    with pytest.raises(RecipeError) as wrong:
        load("csv", root=tmp_path, args={"fil": "a.csv", "delimiter": ";;"})
    keys = ["dataset.args.fil", "dataset.args.file", "dataset.args.delimiter"]  # all of them at once
    assert [problem.key for problem in wrong.value.problems] == keys


def test_classes_of_weights_stand_in_for_training_rows(tmp_path: Path) -> None:
    """A table with a test split alone, as for an evaluation: its labels by the classes that were trained."""
    found = source(tmp_path, "path,label,split\n0.png,b,test\n", trained=["a", "b", "c"])
    assert found.train is None
    assert found.class_names == ("a", "b", "c")
    assert rows_of(found, "test") == ([0], [1])


def test_memory_per_row_is_that_of_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 rows against 120 bytes each while they are read; nothing is kept per row but path, class and line."""
    monkeypatch.setattr(tables, "_identity", lambda path: (0, hash(path)))
    number = 20_000
    lines = (f"some/folder/{index:07}.jpg,{index % 100}\n" for index in range(number))
    (tmp_path / "a.csv").write_text("path,label\n" + "".join(lines))
    columns = tables.Columns("path", "label", "split")
    view = EvaluationView((4, 4))
    calls: list[tuple[str, int, int]] = []
    tracemalloc.start()
    found = tables.find(
        tmp_path / "a.csv",
        root=tmp_path,
        columns=columns,
        delimiter=None,
        view=view,
        progress=lambda *call: calls.append(call),
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.splits["train"]) == number  # type: ignore[arg-type]
    assert peak < 120 * number
    size = (tmp_path / "a.csv").stat().st_size
    assert calls[-1] == ("reading a.csv", size, size)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
