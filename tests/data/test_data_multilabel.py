"""Several labels per sample: tables, lists of Hugging Face, vectors of own datasets; validation, batches, mistakes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset

from swa_cli.data.augment import Augment
from swa_cli.data.batches import epoch_batches, plain_batches
from swa_cli.data.sources import Source, load
from swa_cli.data.splits import Split, split_off_validation
from swa_cli.errors import UserError


@pytest.fixture(autouse=True)
def _pictures(tmp_path: Path) -> None:
    """Nine pictures of one size, 0.png to 8.png."""
    for number in range(9):
        Image.fromarray(np.full((4, 5, 3), number, dtype=np.uint8)).save(tmp_path / f"{number}.png")


def source(root: Path, text: str, **args: Any) -> Source:
    (root / "a.csv").write_text(text)
    trained = args.pop("trained", None)
    return load("csv", root=root, val=0, workers=0, cache="ram", args={"file": "a.csv", **args}, classes=trained)


def refused(root: Path, text: str, **args: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        source(root, text, **args)
    assert caught.value.hint
    return caught.value


def table(*labels: str, head: str = "path,label") -> str:
    return "".join(f"{line}\n" for line in [head, *(f"{number}.png,{label}" for number, label in enumerate(labels))])


BOTH = [[1, 1], [0, 1], [0, 0], [1, 0]]  # of cat and dog


@pytest.mark.parametrize(
    ("text", "args"),
    [
        (table("dog|cat", "dog", "", "cat"), {"label_delimiter": "|"}),
        (table("dog cat", " dog  dog ", "", "cat"), {"label_delimiter": " "}),
        (table('"cat, dog"', "dog", "", '"cat,"'), {"label_delimiter": ","}),
        (table("1|0", "1", "", "0"), {"label_delimiter": "|", "classes": ["cat", "dog"]}),
        (table("1,1", "1,0.0", "0,0", "FALSE,True", head="path,dog,cat"), {"labels": ["cat", "dog"]}),
    ],
    ids=["bars", "spaces", "commas in quotes", "numbers of classes", "columns"],
)
def test_the_labels_of_a_table(tmp_path: Path, text: str, args: dict[str, Any]) -> None:
    """One column with a delimiter, or a column per class, against the labels by hand; an empty cell is no label."""
    found = source(tmp_path, text, **args)
    assert (found.target, found.class_names) == ("multilabel", ("cat", "dog"))
    assert found.train is not None
    assert found.train.labels.dtype == torch.uint8
    assert found.train.labels.tolist() == BOTH
    assert found.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert found.contents[:2] == (
        "2 classes of 2 train samples each",
        "1 labels per sample, 1 train samples without any",
    )


def test_a_single_class_and_other_columns(tmp_path: Path) -> None:
    """One column of 0 and 1; the columns that are not read are told."""
    found = source(tmp_path, table("1,x", "0,y", "1,z", head="path,tumor,label"), labels="tumor")
    assert found.class_names == ("tumor",)
    assert found.contents[0] == "1 class of 2 train samples each"
    assert found.contents[-1] == "left out columns: label"


def test_splits_and_classes_of_weights(tmp_path: Path) -> None:
    """Classes are those of the training split; a test split without any label is left out with a word."""
    head = "path,label,split"
    text = table("a|b,train", "b,val", ",val", ",test", ",test", head=head)
    found = source(tmp_path, text, label_delimiter="|")
    assert found.class_names == ("a", "b")
    assert found.val is not None
    assert found.val.labels.tolist() == [[0, 1], [0, 0]]
    assert found.test is None
    assert "left out test: 2 rows without labels" in found.contents
    alone = source(tmp_path, table("b,test", head=head), label_delimiter="|", trained=("a", "b"))
    assert alone.test is not None
    assert alone.test.labels.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("text", "args", "where", "named"),
    [
        (table("a", ""), {}, "a.csv:3:", "label is empty"),
        (table("", ""), {"label_delimiter": "|"}, "a.csv:", "has no labels"),
        (table("0", "0", head="path,a"), {"labels": "a"}, "a.csv:", "has no labels"),
        (table("1,0", "1,2", head="path,a,b"), {"labels": ["a", "b"]}, "a.csv:3:", "'2' in the column 'b'"),
        (table("1,0", "1,", head="path,a,b"), {"labels": ["a", "b"]}, "a.csv:3:", "'' in the column 'b'"),
        (table("1,0", head="path,a,b"), {"labels": ["a", "c"]}, "a.csv:1:", "no column 'c'"),
        (table("1,0", head="path,a,a"), {"labels": ["a"]}, "a.csv:1:", "2 columns 'a'"),
        (table("a|b,train", "a|c,val", head="path,label,split"), {"label_delimiter": "|"}, "a.csv:3:", "'c'"),
        (table("a|b", "a|bb"), {"label_delimiter": "|", "classes": ["a", "b"]}, "a.csv:3:", "'bb'"),
        (table("a|b", "x,c"), {"label_delimiter": "|"}, "a.csv:3:", "has 3 values"),
        (table("1", head="path,a"), {"labels": "a", "label_delimiter": "|"}, "args.label_delimiter", "labels"),
        (table("1", head="path,a"), {"labels": "a", "classes": ["x", "y"]}, "args.classes", "labels"),
        (table("1", head="path,a"), {"labels": "a", "label": "a"}, "args.label:", "labels"),
    ],
)
def test_mistakes_are_told_with_their_line(
    tmp_path: Path, text: str, args: dict[str, Any], where: str, named: str
) -> None:
    """Each wrong table against the line and the value that the error names."""
    error = refused(tmp_path, text, **args)
    assert where in error.message
    assert named in error.message


def test_fingerprints_know_the_labels(tmp_path: Path) -> None:
    """Another label of one photo changes the checksum of the split."""
    sums = [source(tmp_path, table(*labels), label_delimiter="|").data()["train"].sha256 for labels in ("ab", "ba")]
    assert sums[0] != sums[1]


# --- Hugging Face


def parquet(root: Path, labels: dict[str, list[Any]], **features: Any) -> Source:
    import datasets

    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 5, 3), dtype=np.uint8)).save(file, "PNG")
    root.mkdir()
    args = features.pop("args", {})
    for split, name in (("train", "train"), ("test", "test")):
        columns = {key: values if split == "train" else values[:1] for key, values in labels.items()}
        images = [{"bytes": file.getvalue(), "path": "0.png"}] * len(next(iter(columns.values())))
        types = datasets.Features({"image": datasets.Image(), **features})
        datasets.Dataset.from_dict({"image": images, **columns}, features=types).to_parquet(
            str(root / f"{name}.parquet")
        )
    return load("hf", root=root, val=0, workers=0, cache="ram", args=args)


@pytest.mark.parametrize("kind", ["numbers", "texts", "delimiter", "columns"])
def test_the_labels_of_hugging_face(tmp_path: Path, kind: str) -> None:
    """A list of ClassLabel, which is found by its type, of texts, a text with a delimiter, columns of truth values."""
    import datasets

    names = ["cat", "dog"]
    text, found = datasets.Value("string"), None
    if kind == "numbers":
        features = {"tags": datasets.List(datasets.ClassLabel(names=names))}
        found = parquet(tmp_path / "set", {"tags": [[1, 0], [1], [], [0]]}, **features)
    elif kind == "texts":
        tags = [["dog", "cat"], ["dog"], None, ["cat"]]
        found = parquet(tmp_path / "set", {"tags": tags}, tags=datasets.List(text), args={"label": "tags"})
    elif kind == "delimiter":
        args = {"label": "tags", "label_delimiter": " "}
        found = parquet(tmp_path / "set", {"tags": ["dog cat", "dog", None, "cat"]}, tags=text, args=args)
    else:
        columns = {"cat": [True, False, False, True], "dog": [1, 1, 0, 0]}
        types = {"cat": datasets.Value("bool"), "dog": datasets.Value("int8")}
        found = parquet(tmp_path / "set", columns, **types, args={"labels": names})
    assert (found.target, found.class_names) == ("multilabel", ("cat", "dog"))
    assert found.train is not None
    assert found.test is not None
    assert found.train.labels.tolist() == BOTH
    assert found.test.labels.tolist() == BOTH[:1]


@pytest.mark.parametrize(
    ("values", "args", "named"),
    [
        ([[0, 1], [-1]], {}, "train, row 1: the label -1 is not one of 2 classes"),
        ([[0, 1], [0]], {"label_delimiter": "|"}, "holds no texts to divide"),
        ([1, 3], {"labels": "tags"}, "train, row 1: 3 in the column 'tags'"),
        ([1, 0], {"labels": ["tags", "tag"]}, "has no column 'tag'"),
    ],
)
def test_mistakes_of_hugging_face(tmp_path: Path, values: list[Any], args: dict[str, Any], named: str) -> None:
    """A class that is not there, a delimiter in a list, a column that is not 0 and 1, or is not there."""
    import datasets

    is_list, kinds = isinstance(values[0], list), datasets.ClassLabel(names=["a", "b"])
    feature = datasets.List(kinds) if is_list else datasets.Value("int64")
    with pytest.raises(UserError) as caught:
        parquet(tmp_path / "set", {"tags": values}, tags=feature, args=args)
    assert named in caught.value.message
    assert caught.value.hint


# --- own datasets


def own(labels: Tensor | list[Any], *, num_classes: int = 3, monkeypatch: pytest.MonkeyPatch) -> Source:
    """Load a dataset of user code whose labels are vectors; a list has no attribute that lists them."""
    import sys
    import types

    images = torch.arange(len(labels) * 48, dtype=torch.uint8).view(-1, 3, 4, 4)
    train = TensorDataset(images, labels) if isinstance(labels, Tensor) else [*zip(images, labels, strict=True)]
    module = types.ModuleType("own_vectors")
    module.make = lambda: {"train": train, "num_classes": num_classes, "target": "multilabel"}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_vectors", module)
    return load("own_vectors:make", val=0, workers=0)


VECTORS = [[1, 0, 1], [0, 0, 0], [0, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("kind", ["floats", "bools", "arrays", "lists"])
def test_vectors_of_own_datasets(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Floats and bools that a dataset lists, arrays and lists that are read from its samples: labels are known."""
    labels: Any = torch.tensor(VECTORS, dtype=torch.bool if kind == "bools" else torch.float32)
    labels = [np.array(each, dtype=np.float64) for each in VECTORS] if kind == "arrays" else labels
    found = own(VECTORS if kind == "lists" else labels, monkeypatch=monkeypatch)
    assert found.train is not None
    assert found.train.labels.dtype == torch.uint8
    assert found.train.labels.tolist() == VECTORS
    (batch,) = plain_batches(found.train, batch_size=4, mean=found.mean, std=found.std)
    assert batch[1].dtype == torch.float32
    assert batch[1].tolist() == VECTORS


@pytest.mark.parametrize(
    ("labels", "num_classes", "named"),
    [
        ([[1, 0, 0.5]], 3, "the label 0.5, which is neither 0 nor 1"),
        ([[1, 0, float("nan")]], 3, "the label nan"),
        ([[1, 0]], 3, "has 2 labels, there are 3 classes"),
        ([1], 3, "labels of the wrong kind"),
        (["cat"], 3, "labels of the wrong kind"),
    ],
)
def test_wrong_vectors_are_told_with_their_sample(
    labels: list[Any], num_classes: int, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A share, a missing value, too few labels, a class, a text: the second sample is named."""
    with pytest.raises(UserError) as caught:
        own([[1] * num_classes, *labels], num_classes=num_classes, monkeypatch=monkeypatch)
    assert named in caught.value.message
    assert "sample 1 of the train split" in caught.value.message
    assert caught.value.hint


# --- validation and batches


def random_split(number: int = 400) -> Split:
    random = torch.Generator().manual_seed(0)
    labels = (torch.rand(number, 4, generator=random) < torch.tensor([0.6, 0.3, 0.1, 0.02])).to(torch.uint8)
    images = torch.randint(0, 256, (number, 3, 4, 4), generator=random, dtype=torch.uint8)
    return Split(labels, images, target="multilabel")


def test_validation_samples_keep_the_rarest_class() -> None:
    """Each sample counts as its rarest class: those shares are kept to the sample, and every class is trained."""
    split = random_split()
    counts = split.labels.sum(0)
    assert counts.tolist() == sorted(counts.tolist(), reverse=True)
    rarest = torch.where(split.labels.sum(1) > 0, 3 - split.labels.flip(1).argmax(1), 4)
    parts, warnings = split_off_validation(split, val="25%", seed=1, stratify=True, class_names=[*"abcd"])
    assert not warnings
    val = {tuple(image.flatten().tolist()) for image in parts["val"].images}
    is_val = torch.tensor([tuple(image.flatten().tolist()) in val for image in split.images])
    shares = rarest[is_val].bincount(minlength=5) / rarest.bincount(minlength=5)
    assert int(is_val.sum()) == 100
    assert shares.tolist() == pytest.approx([0.25] * 5, abs=0.1)
    assert bool((parts["train"].labels.sum(0) > 0).all())
    plain, _ = split_off_validation(split, val="25%", seed=1, stratify=False, class_names=[*"abcd"])
    assert not torch.equal(plain["val"].images, parts["val"].images)


def test_a_class_that_validation_takes_whole_is_told() -> None:
    """The only sample of a class in a plain validation split, against the warning that names it."""
    labels = torch.zeros(10, 2, dtype=torch.uint8)
    labels[:, 0] = 1
    found = set()
    for row in range(10):
        labels[:, 1] = 0
        labels[row, 1] = 1
        split = Split(labels.clone(), torch.zeros(10, 3, 4, 4, dtype=torch.uint8), target="multilabel")
        _, warnings = split_off_validation(split, val=5, seed=0, stratify=False, class_names=["a", "rare"])
        found |= set(warnings)
    assert found == {"dataset.val = 5 leaves no training image of 1 of the classes: rare"}


@pytest.mark.parametrize("streamed", [False, True])
def test_batches_mix_their_labels(tmp_path: Path, streamed: bool) -> None:
    """mixup against the shares of the images: labels are mixed as constant images are, in memory and streamed."""
    labels = ["a", "b", "a|b", "", "b", "a", "", "a|b", "b"]
    (tmp_path / "a.csv").write_text(table(*labels))
    args = {"file": "a.csv", "label_delimiter": "|"}
    found = load("csv", root=tmp_path, val=0, workers=0, cache="none" if streamed else "ram", args=args)
    assert found.train is not None
    options: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    batches = epoch_batches(
        found.train, seed=0, epoch=1, batch_size=9, augment=Augment(mixup=1.0), num_classes=2, **options
    )
    ((images, targets),) = batches
    order = batches.rows
    (mix,) = batches.mixes
    assert mix is not None
    plain = found.train.labels[order].float()
    torch.testing.assert_close(targets, mix.share * plain + (1 - mix.share) * plain.roll(1, 0))
    levels = order.float() / 255
    torch.testing.assert_close(images[:, 0, 0, 0], mix.share * levels + (1 - mix.share) * levels.roll(1, 0))


def test_several_labels_without_a_delimiter_have_a_hint(tmp_path: Path) -> None:
    """A combination that training lacks, in a table of one class per row: the argument is named, and works."""
    text = table("a|b,train", "a,train", "b,val", head="path,label,split").replace("b,val", "b|a,val")
    for delimiter, words in (("|", text), (" ", text.replace("|", " "))):
        error = refused(tmp_path, words)
        assert "a.csv:4:" in error.message
        assert f"""'dataset.args.label_delimiter="{delimiter}"'""" in error.hint
        assert source(tmp_path, words, label_delimiter=delimiter).class_names == ("a", "b")
    assert "label_delimiter" not in refused(tmp_path, text.replace("b|a,val", "c,val")).hint
