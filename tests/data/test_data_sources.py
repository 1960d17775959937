"""Named datasets: what is found where, what is said when it is not, and the splits and constants of all."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from swa_cli.data.datasets import DATASETS
from swa_cli.data.sources import load
from swa_cli.errors import RecipeError, UserError

NUM_TRAIN, NUM_TEST = 50, 10


def idx(values: np.ndarray) -> bytes:
    """The idx format, from its description on the MNIST page."""
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def write_mnist(folder: Path, *, compress: bool) -> None:
    """Tiny images of which each tells its row in all pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("train", NUM_TRAIN), ("t10k", NUM_TEST)):
        rows = np.arange(count, dtype=np.uint8)
        files = {
            f"{prefix}-images-idx3-ubyte": np.broadcast_to(rows[:, None, None], (count, 3, 4)),
            f"{prefix}-labels-idx1-ubyte": rows % 10,
        }
        for name, values in files.items():
            content = idx(values)
            (folder / (name + ".gz" * compress)).write_bytes(gzip.compress(content) if compress else content)


def rows_of(split: Any) -> list[int]:
    return split.images[:, 0, 0, 0].tolist()


def test_digits_are_the_published_ones() -> None:
    """Class counts and one digit are held against scikit-learn's copy, the constants against float64."""
    source = load("digits", val=0)
    assert source.train.images is not None
    assert source.test is not None
    assert source.test.images is not None
    assert source.train.labels is not None
    assert source.test.labels is not None
    assert source.val is None
    assert (len(source.train), len(source.test)) == (1437, 360)
    assert (source.channels, source.size, source.num_classes) == (1, (8, 8), 10)
    labels = torch.cat([source.train.labels, source.test.labels])
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    # The first digit, as printed in scikit-learn's documentation of `load_digits`.
    top = [[0, 0, 5, 13, 9, 1, 0, 0], [0, 0, 13, 15, 10, 15, 5, 0], [0, 3, 15, 2, 0, 11, 8, 0]]
    assert source.train.images[0, 0, :3].tolist() == [[value * 255 // 16 for value in row] for row in top]
    assert source.train.images.max() == 255
    pixels = source.train.images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(source.mean, [pixels.mean()], rtol=1e-12)
    np.testing.assert_allclose(source.std, [pixels.std()], rtol=1e-12)


def test_digits_with_a_larger_test_split_are_the_same_digits() -> None:
    """897 and 900 of 1,797: the file in its order, cut elsewhere; the constants against float64 of the 897."""
    usual, source = load("digits", val=0), load("digits", val=0, args={"test": 900})
    assert (len(source.train), len(source.test)) == (897, 900)
    for part in ("images", "labels"):
        one, two = (torch.cat([getattr(each.train, part), getattr(each.test, part)]) for each in (usual, source))
        assert torch.equal(one, two)
    pixels = source.train.images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(source.mean, [pixels.mean()], rtol=1e-12)
    np.testing.assert_allclose(source.std, [pixels.std()], rtol=1e-12)
    assert len(load("digits", args={"test": 900}).val) == 90  # a tenth of 897
    turned = load("rotated_digits", val=7, args={"test": 900})
    assert [len(split) for split in (turned.train, turned.val, turned.test)] == [890, 7, 900]


@pytest.mark.parametrize("name", ["digits", "rotated_digits"])
@pytest.mark.parametrize("value", [0, -1, 1797, 0.5, True, "x", None, [900]])
def test_a_test_split_of_no_size_is_refused(name: str, value: Any) -> None:
    """The message has the key, and the hint the largest size, which leaves one digit to train on."""
    with pytest.raises(RecipeError, match=r"dataset\.args\.test") as caught:
        load(name, val=0, args={"test": value})
    assert "1,796" in caught.value.problems[0].hint


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("inside", ["", "MNIST/raw"])
def test_idx_files_are_read_where_they_lie(tmp_path: Path, compress: bool, inside: str) -> None:
    """Images and labels are held against those written by the format's description."""
    write_mnist(tmp_path / inside, compress=compress)
    source = load("mnist", root=tmp_path, val=0, download=False)
    assert source.train.images is not None
    assert source.train.labels is not None
    assert source.test is not None
    assert source.train.images.shape == (NUM_TRAIN, 1, 3, 4)
    assert rows_of(source.train) == list(range(NUM_TRAIN))
    assert rows_of(source.test) == list(range(NUM_TEST))
    assert source.train.labels.tolist() == [row % 10 for row in range(NUM_TRAIN)]
    assert source.train.labels.dtype == torch.int64
    assert (source.mean, source.std) == ((0.1307,), (0.3081,))


@pytest.mark.parametrize(("val", "count"), [("10%", 5), ("0.1%", 1), (7, 7), (49, 49), (0, 0), ("0%", 0)])
def test_validation_split_is_disjoint_and_complete(tmp_path: Path, val: str | int, count: int) -> None:
    """The rows of both parts together are held against all rows; the same seed gives the same parts."""
    write_mnist(tmp_path, compress=False)
    source, again = (load("mnist", root=tmp_path, val=val, seed=3) for _ in range(2))
    val_rows = rows_of(source.val) if source.val else []
    assert len(val_rows) == count
    assert sorted(val_rows + rows_of(source.train)) == list(range(NUM_TRAIN))
    assert rows_of(again.train) == rows_of(source.train)
    if count in (5, 7):
        assert rows_of(load("mnist", root=tmp_path, val=val, seed=4).val) != val_rows


@pytest.mark.parametrize("val", ["100%", 50, 51, "ten", "-1%", -1])
def test_a_validation_split_that_cannot_be(tmp_path: Path, val: str | int) -> None:
    """The error is held against the setting that a person must change."""
    write_mnist(tmp_path, compress=False)
    with pytest.raises(UserError, match=r"dataset\.val"):
        load("mnist", root=tmp_path, val=val)


def test_missing_files_are_named_with_place_and_cure(tmp_path: Path) -> None:
    """The message is held against the four files, both folders and the ways to get them."""
    with pytest.raises(UserError) as caught:
        load("fashion_mnist", root=tmp_path, download=False)
    for part in (
        "train-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
        ".gz",
        f"{tmp_path}",
        "FashionMNIST/raw",
    ):
        assert part in caught.value.message
    for part in (
        "dataset.download=true",
        "dataset-fashion-mnist",
        "dataset.root=/usr/share/datasets/fashion-mnist",
    ):
        assert part in caught.value.hint


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_missing_torchvision_files_are_named(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """torchvision's complaint about an empty folder is held against a message with folder and cure."""
    with pytest.raises(UserError, match=f"{name} are missing.*{tmp_path}") as caught:
        load(name, root=tmp_path, download=False)
    assert "dataset.download=true" in caught.value.hint
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
@pytest.mark.parametrize("failure", [URLError("no route"), RuntimeError("bad md5"), OSError("disk full")])
def test_a_failed_download_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, failure: Exception
) -> None:
    """Whatever a download raises is held against a message with its reason."""

    def failing(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(torchvision.datasets, name.upper(), failing)
    with pytest.raises(UserError, match=r"could not be downloaded.*(no route|bad md5|disk full)"):
        load(name, root=tmp_path)


def test_a_download_is_read_and_stdout_stays_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stand-in that downloads as torchvision does is held against what is then read."""

    def downloading(root: str, *, train: bool, download: bool) -> None:
        assert download
        print("Downloading ...")
        write_mnist(Path(root) / "KMNIST" / "raw", compress=False)

    monkeypatch.setattr(torchvision.datasets, "KMNIST", downloading)
    assert len(load("kmnist", root=tmp_path, val=0).train) == NUM_TRAIN
    assert capsys.readouterr().out == ""


def test_damaged_idx_files_are_named(tmp_path: Path) -> None:
    """Files cut short, of another format or of unequal lengths are held against a message naming them."""
    write_mnist(tmp_path, compress=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for content in (
        whole[:-20],
        b"<html>",
        gzip.compress(b"<html>"),
        gzip.compress(idx(np.zeros((3, 2, 2), np.uint8))),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz is damaged"):
            load("mnist", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "labels"), [("cifar10", (6, 5, 4, 3), "targets"), ("svhn", (6, 3, 5, 4), "labels")]
)
def test_torchvision_arrays_become_channels_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, shape: tuple[int, ...], labels: str
) -> None:
    """Arrays in each of torchvision's two layouts are held against (N, C, H, W)."""
    data = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    stand_in = SimpleNamespace(data=data, classes=list("abcdefghij"), **{labels: [1, 2, 3, 4, 5, 6]})
    monkeypatch.setattr(torchvision.datasets, name.upper(), lambda root, **_: stand_in)
    source = load(name, root=tmp_path, val=0)
    expected = data.transpose(0, 3, 1, 2) if shape[-1] == 3 else data
    assert source.train.images is not None
    assert source.train.labels is not None
    assert np.array_equal(source.train.images.numpy(), expected)
    assert source.train.labels.tolist() == [1, 2, 3, 4, 5, 6]
    assert (source.num_classes, source.channels, source.size) == (10, 3, (5, 4))


def test_unknown_name_gets_a_suggestion() -> None:
    """The hint is held against the nearest name and the list of all."""
    with pytest.raises(UserError, match="'cifar_10'") as caught:
        load("cifar_10")
    assert "did you mean cifar10?" in caught.value.hint
    assert all(name in caught.value.hint for name in DATASETS)


def test_arguments_and_cache_that_have_no_effect_are_told() -> None:
    """Arguments of a set without any are an error, `cache: none` where it cannot be is a note."""
    with pytest.raises(RecipeError, match="size"):
        load("digits", args={"size": 8})
    assert any("dataset.cache" in note for note in load("digits", cache="none").notes)


class Pixels(Dataset[tuple[Tensor, int]]):
    """(image, label) pairs that know their classes."""

    classes = ("even", "odd")

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.images[row], row % 2


@pytest.fixture
def use_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], str]:
    """Makes an importable module with a factory in it."""

    def use(factory: Any) -> str:
        (tmp_path / "own_data.py").write_text("")
        monkeypatch.syspath_prepend(str(tmp_path))
        import own_data

        monkeypatch.setattr(own_data, "factory", factory, raising=False)
        return "own_data:factory"

    return use


def colored(num_samples: int) -> Tensor:
    return torch.arange(num_samples * 12).remainder(256).to(torch.uint8).view(num_samples, 3, 2, 2)


def test_factory_with_a_dict_streams(use_factory: Callable[[Any], str]) -> None:
    """A factory's datasets are held against its source: streamed, split by the recipe, constants computed."""
    images = colored(20)
    seen: dict[str, Any] = {}

    def factory(*, root: str, depth: int) -> dict[str, Any]:
        seen.update(root=root, depth=depth)
        return {"train": Pixels(images), "num_classes": 2}

    source = load(use_factory(factory), root="here", val="25%", args={"depth": 3})
    assert seen == {"root": "here", "depth": 3}
    assert source.train.images is None
    assert source.train.labels is not None
    assert source.train.indices is not None
    assert source.val is not None
    assert source.val.indices is not None
    assert source.test is None
    assert sorted(source.train.indices.tolist() + source.val.indices.tolist()) == list(range(20))
    assert (source.num_classes, source.class_names, source.size) == (2, ("even", "odd"), (2, 2))
    pixels = images[source.train.indices].numpy() / 255.0
    np.testing.assert_allclose(source.mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(source.std, pixels.std((0, 2, 3)), rtol=1e-12)


def test_factory_with_a_pair_in_memory(use_factory: Callable[[Any], str]) -> None:
    """A pair (train, test) held in memory is held against its tensors; a factory need not take `root`."""
    source = load(use_factory(lambda: (Pixels(colored(20)), Pixels(colored(4)))), val=0, cache="ram", workers=0)
    assert source.train.images is not None
    assert source.train.labels is not None
    assert source.test is not None
    assert torch.equal(source.train.images, colored(20))
    assert source.train.labels.tolist() == [0, 1] * 10
    assert len(source.test) == 4
    assert any("transforms" in note for note in source.notes)


@pytest.mark.parametrize("count", [2, 6])
def test_a_split_may_be_any_sequence_of_samples(use_factory: Callable[[Any], str], count: int) -> None:
    """Samples in a tuple are held against the same ones in a list."""
    samples = [(image, row % 2) for row, image in enumerate(colored(count))]
    first, second = (
        load(use_factory(lambda split=split: {"train": split, "num_classes": 2}), val=0, workers=0)
        for split in (samples, tuple(samples))
    )
    assert first.train.labels.tolist() == second.train.labels.tolist() == [0, 1] * (count // 2)
    assert first.mean == second.mean


def test_factory_with_its_own_validation_split_and_constants(use_factory: Callable[[Any], str]) -> None:
    """What a factory gives is held against what the recipe would have computed or split."""
    made = {
        "train": Pixels(colored(20)),
        "val": Pixels(colored(3)),
        "num_classes": 5,
        "class_names": list("abcde"),
        "mean": [0.1, 0.2, 0.3],
        "std": [1, 2, 3],
    }
    source = load(use_factory(lambda: made), val="50%")
    assert (len(source.train), source.val and len(source.val)) == (20, 3)
    assert (source.class_names, source.mean, source.std) == (tuple("abcde"), (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert any("dataset.val" in note for note in source.notes)


def test_float_images_are_taken_as_they_are(use_factory: Callable[[Any], str]) -> None:
    """The constants of floating-point images are held against those that change nothing; a note says so."""
    source = load(use_factory(lambda: {"train": Pixels(colored(20).float()), "num_classes": 2}))
    assert (source.mean, source.std) == ((0.0,) * 3, (1.0,) * 3)
    assert any("normalized" in note for note in source.notes)


def test_a_constant_channel_has_a_standard_deviation(use_factory: Callable[[Any], str]) -> None:
    """Images of one colour are held against a std above 0."""
    flat = torch.full((10, 3, 2, 2), 7, dtype=torch.uint8)
    source = load(use_factory(lambda: {"train": Pixels(flat), "num_classes": 2}))
    assert source.std == (1 / 255,) * 3


class Stream(IterableDataset[tuple[Tensor, int]]):
    """Samples in an order of their own."""

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return ((image, row % 2) for row, image in enumerate(colored(12)))


class Counted(Stream):
    """The same, with their number."""

    def __len__(self) -> int:
        return 12


def test_an_iterable_dataset_is_held_as_a_list(use_factory: Callable[[Any], str]) -> None:
    """What the message of `Counted` below advises: the images and labels in their order."""
    found = load(use_factory(lambda: {"train": list(Counted()), "num_classes": 2}), val=0, cache="ram")
    assert torch.equal(found.train.images, colored(12))
    assert found.train.labels.tolist() == [0, 1] * 6


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "returned None"),
        ([1, 2], r"returned \[1, 2\]"),
        ({"test": 1}, r"keys \['test'\]"),
        ({"train": Pixels(colored(4)), "classes": 2}, r"keys \['classes', 'train'\]"),
        ({"train": 3, "num_classes": 2}, "int as 'train'"),
        ({"train": Stream(), "num_classes": 2}, "Stream as 'train'"),
        ({"train": Counted(), "num_classes": 2}, "Counted as 'train'"),
        ({"train": Pixels(colored(4)), "val": Subset(Counted(), [0]), "num_classes": 2}, "Subset as 'val'"),
        ({"train": Pixels(colored(0)), "num_classes": 2}, "empty"),
        ({"train": TensorDataset(colored(4))}, "number of classes"),
        ({"train": TensorDataset(colored(4)), "target": "value"}, "number of outputs, num_outputs"),
        ({"train": Pixels(colored(4)), "num_classes": 3}, "2 class names"),
        ({"train": Pixels(colored(4)), "target": "value", "num_outputs": 3}, "names for num_outputs = 3"),
        ({"train": TensorDataset(colored(4)), "num_classes": 3}, "not a pair|sample 0"),
        ({"train": [("x", 0), ("y", 1)] * 4, "num_classes": 2}, "image of the wrong kind: str"),
        ({"train": Pixels(colored(4)), "num_classes": 2, "mean": [0.5], "std": [0.5]}, "3 channels"),
    ],
)
def test_a_factory_that_returns_something_else(use_factory: Callable[[Any], str], returned: Any, message: str) -> None:
    """Each wrong return is held against a message that says what came."""
    with pytest.raises(UserError, match=message) as caught:
        load(use_factory(lambda: returned))
    assert caught.value.hint
    assert ("does not return" in caught.value.message) <= ("num_outputs" in caught.value.hint)


def test_a_factory_that_cannot_be_called(use_factory: Callable[[Any], str]) -> None:
    """Wrong modules, names and arguments are held against errors that name them."""
    name = use_factory(lambda size: None)
    for wrong, args, message in (
        ("no_such_module:factory", {}, "no_such_module"),
        (":factory", {}, "is not a name of a dataset"),
        ("own_data:fabrik", {}, "has no attribute 'fabrik'"),
        ("own_data:__doc__", {}, "is not callable"),
        (name, {"sise": 3}, "sise"),
    ):
        with pytest.raises(UserError, match=message):
            load(wrong, args=args)
