"""Samples of one's own before a run: labels found and checked, layouts, pixels; the stratified validation split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from swa_cli.data.batches import plain_batches
from swa_cli.data.randomness import generator
from swa_cli.data.sources import Source, load
from swa_cli.data.splits import Split, validation_rows
from swa_cli.data.transforms import EvaluationView, TrainingView, Views
from swa_cli.data.user_dataset import LABELS_READ, listed_part
from swa_cli.errors import UserError

Use = Callable[..., Source]


class Plain(Dataset[Any]):
    """(image, label) pairs that tell nothing before they are read; counts what is read."""

    def __init__(self, labels: Any, image: Tensor | None = None) -> None:
        self.given = labels
        self.image = torch.zeros(1, 6, 6) if image is None else image
        self.num_reads = 0

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, row: int) -> tuple[Tensor, Any]:
        self.num_reads += 1
        return self.image, self.given[row]


class Listing(Plain):
    """The same, with a list of the labels."""

    def __init__(self, labels: Any, targets: Any) -> None:
        super().__init__(labels)
        self.targets = targets


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Use:
    """Load what a factory returns."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_samples.py").write_text("")
    module: ModuleType = __import__("own_samples")

    def loaded(made: dict[str, Any], **options: Any) -> Source:
        monkeypatch.setattr(module, "make", lambda: made, raising=False)
        return load("own_samples:make", **{"val": 0, "workers": 0, **options})

    return loaded


GOOD = [0, 1, 2] * 4


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("label", [7, 3, -1, -100])
@pytest.mark.parametrize("kind", ["tensors", "plain", "listed", "pairs", "subset"])
def test_a_label_beyond_the_classes_is_named(use: Use, kind: str, label: int, split: str) -> None:
    """A label in one split of datasets of all kinds against the label, the split and the sample in the error."""
    labels = GOOD.copy()
    labels[5] = label
    tensors = TensorDataset(torch.zeros(12, 1, 6, 6), torch.tensor(labels))
    bad = {
        "tensors": tensors,
        "plain": Plain(labels),
        "listed": Listing(labels, np.array(labels)),
        "pairs": [(torch.zeros(1, 6, 6), value) for value in labels],
        "subset": Subset(tensors, range(12)),
    }[kind]
    with pytest.raises(UserError) as caught:
        use({"train": Plain(GOOD), split: bad, "num_classes": 3})
    for piece in (f"label {label} ", f"the {split} split", "sample 5", "3 classes"):
        assert piece in caught.value.message


@pytest.mark.parametrize(
    "label",
    [
        1.5,
        float("nan"),
        float("inf"),
        torch.tensor(torch.inf),
        torch.tensor(0.5),
        np.float32(0.25),
        "1",
        torch.zeros(3),
    ],
)
def test_a_label_that_is_no_whole_number_is_named(use: Use, label: Any) -> None:
    """Each against its sample and split; whole floating-point numbers are classes."""
    labels: list[Any] = [*GOOD, label]
    with pytest.raises(UserError, match=r"sample 12 of the train split: .* not a class"):
        use({"train": Plain(labels), "num_classes": 3})
    with pytest.raises(UserError, match=r"sample 12 of the train split: .* not a class"):
        use({"train": Listing(labels, None), "num_classes": 3})
    with pytest.raises(UserError, match=r"sample 12 of the train split: .* not a class"):
        use({"train": Listing(labels, labels), "num_classes": 3})
    assert use({"train": Plain([0.0, 1.0, torch.tensor(2.0)] * 3), "num_classes": 3}).train.labels.tolist()[2] == 2


def test_floating_labels_of_tensors_are_looked_at(use: Use) -> None:
    """One half of a `TensorDataset` against its sample."""
    labels = torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0])
    with pytest.raises(UserError, match=r"sample 3 of the train split: .*0\.5"):
        use({"train": TensorDataset(torch.zeros(5, 1, 6, 6), labels), "num_classes": 3})


def test_labels_from_1_get_their_cure(use: Use) -> None:
    """Classes counted from 1 against the hint."""
    labels = torch.tensor([1, 2, 3] * 4)
    with pytest.raises(UserError, match="label 3") as caught:
        use({"train": TensorDataset(torch.zeros(12, 1, 6, 6), labels), "num_classes": 3})
    assert "from 1 to 3: subtract 1" in caught.value.hint


def test_lists_of_labels_are_believed_if_samples_agree(use: Use) -> None:
    """A list that a transform of labels has outdated against the labels that samples come with."""
    outdated = Listing(GOOD, [label + 1 for label in GOOD])
    source = use({"train": outdated, "num_classes": 3})
    assert source.train is not None
    assert source.train.labels.tolist() == GOOD
    right = Listing(GOOD * 9, GOOD * 9)
    use({"train": right, "num_classes": 3, "mean": [0.5], "std": [0.5]})
    assert right.num_reads < len(right)


def test_labels_of_many_samples_are_not_read(use: Use) -> None:
    """One sample more than are read: no labels, no stratified split, and a warning with both ways out."""
    many = Plain([0, 1, 2, 3] * (LABELS_READ // 4) + [0])
    source = use({"train": many, "num_classes": 4, "mean": [0.5], "std": [0.5]}, val=10)
    assert source.train is not None
    assert source.train.labels is None
    assert many.num_reads < 10
    (warning,) = source.warnings
    assert "`targets`" in warning
    assert "dataset.stratify=false" in warning
    assert not use({"train": many, "num_classes": 4, "mean": [0.5], "std": [0.5]}, val=10, stratify=False).warnings


def test_labels_that_are_only_read_later_are_checked_then(use: Use) -> None:
    """A bad label behind the ones that are looked at against an error of the batch, which names it."""
    labels = [0, 1, 2, 3] * (LABELS_READ // 4) + [9, 0]
    source = use({"train": Plain(labels), "num_classes": 4, "mean": [0.5], "std": [0.5]})
    assert source.train is not None
    with pytest.raises(UserError, match=rf"sample {LABELS_READ} of the train split: label 9 "):
        list(plain_batches(source.train, batch_size=1000, mean=(0.5,), std=(0.5,)))


def test_what_datasets_list() -> None:
    """Labels of nested datasets against those of their samples; nothing where a part lists nothing."""
    tensors = TensorDataset(torch.zeros(4, 1, 2, 2), torch.tensor([3, 2, 1, 0]))
    nested: Dataset[Any] = ConcatDataset([Subset(tensors, [3, 0]), Listing([5], (5,))])
    found = listed_part(nested, 1)
    assert found is not None
    assert found.tolist() == [nested[row][1] for row in range(3)]
    for kind in (">i4", "<i2", "u1", np.longdouble, np.float16):
        found = listed_part(Listing([2, 1], np.array([2, 1], dtype=kind)), 1)
        assert found is not None
        assert found.tolist() == [2, 1]
    other = TensorDataset(torch.zeros(2, 1, 3, 3), torch.tensor([3, 2]))
    sizes: Dataset[Any] = ConcatDataset([tensors, other])
    found = listed_part(sizes, 1)
    assert found is not None
    assert found.tolist() == [3, 2, 1, 0, 3, 2]
    for nothing in (sizes, Subset(tensors, [0, 9])):
        assert listed_part(nothing, 0) is None
    for nothing in (Plain([1]), ConcatDataset([tensors, Plain([1])]), Listing([1], [[1]]), Listing([1], ["a"])):
        assert listed_part(nothing, 1) is None


@pytest.mark.parametrize(
    ("target", "label", "message"),
    [
        ("mask", torch.full((6, 6), 3), "mask has the class 3"),
        ("value", float("nan"), "target is .nan"),
        ("value", [1.0, float("inf")], "target is .*inf"),
        ("value", 10**400, "label that is not a value"),
    ],
)
def test_masks_and_numbers_are_checked_when_they_are_read(use: Use, target: str, label: Any, message: str) -> None:
    """A class beyond the others in a mask, and numbers that are none, against sample and split; 255 is ignored."""
    good: Any = (
        torch.full((6, 6), 255) if target == "mask" else ([0.5] * len(label) if isinstance(label, list) else 0.5)
    )
    with pytest.raises(UserError, match=rf"sample 2 of the train split: .*{message}"):
        use({"train": Plain([good, good, label]), "num_classes": 3, "target": target}, cache="ram")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", ["tensors", "plain"])
def test_pixels_that_are_no_numbers_are_named(use: Use, value: float, kind: str) -> None:
    """One pixel of a test image against the split and the sample, before anything is trained."""
    images = torch.zeros(9, 1, 6, 6)
    images[4, 0, 2, 3] = value
    labels = torch.tensor(GOOD[:9])
    bad = TensorDataset(images, labels) if kind == "tensors" else list(zip(images, labels.tolist(), strict=True))
    with pytest.raises(UserError, match=r"sample 4 of the test split: .* NaN or infinite"):
        use({"train": Plain(GOOD), "test": bad, "num_classes": 3})


def test_other_inputs_may_be_infinite(use: Use) -> None:
    """A mask of attention in a dict, and a table with missing values, against a source."""
    for sample in ({"ids": torch.arange(3), "mask": torch.tensor([0.0, -torch.inf])}, torch.tensor([1.0, torch.nan])):
        assert len(use({"train": [(sample, label) for label in GOOD], "num_classes": 3}).train) == 12


SHAPES: list[tuple[tuple[int, ...], torch.dtype, bool]] = [  # shape, dtype, whether the channels are the last
    ((32, 32, 3), torch.uint8, True),
    ((32, 24, 1), torch.uint8, True),
    ((32, 24, 4), torch.uint8, True),
    ((32, 32, 3), torch.float32, True),
    ((28, 28, 1), torch.float32, True),
    ((3, 32, 32), torch.uint8, False),
    ((1, 28, 28), torch.float32, False),
    ((3, 32, 3), torch.uint8, False),
    ((12, 9, 9), torch.uint8, False),
    ((3, 4, 4), torch.float32, False),
    ((2, 100, 1), torch.float32, False),
]


@pytest.mark.parametrize(("shape", "dtype", "is_last"), SHAPES)
@pytest.mark.parametrize("cache", ["none", "ram"])
def test_images_with_their_channels_last(
    use: Use, shape: tuple[int, ...], dtype: torch.dtype, is_last: bool, cache: str
) -> None:
    """Images (H, W, C) against the same ones transposed, with a warning; others against themselves, without one."""
    image = torch.randint(0, 200, shape, generator=generator(0, "image")).to(dtype)
    source = use({"train": Plain(GOOD, image), "test": Plain(GOOD, image), "num_classes": 3}, cache=cache)
    expected = torch.from_numpy(np.ascontiguousarray(image.numpy().transpose(2, 0, 1))) if is_last else image
    assert (source.channels, *source.size) == tuple(expected.shape)
    assert any("(H, W, C)" in warning for warning in source.warnings) == is_last
    for split in (source.train, source.test):
        images, _ = next(
            iter(plain_batches(split, batch_size=2, mean=(0.0,) * len(expected), std=(1.0,) * len(expected)))
        )
        assert torch.allclose(images[0] * (255 if dtype == torch.uint8 else 1), expected.float(), atol=1e-4)


def test_a_layout_that_cannot_be_told_is_asked_for(use: Use) -> None:
    """A grey image that is not square, or a sequence: refused, and each answer in the hint against its shape."""
    made = {"train": Plain(GOOD, torch.zeros(64, 100, 1)), "num_classes": 3}
    with pytest.raises(UserError, match="64 x 100 x 1") as caught:
        use(made)
    for layout, channels in (("HWC", 1), ("CHW", 64)):
        assert f'"layout": "{layout}"' in caught.value.hint
        source = use({**made, "layout": layout})
        assert (source.channels, source.warnings) == (channels, ())
    with pytest.raises(UserError, match="'NHWC' as 'layout'"):
        use({**made, "layout": "NHWC"})


@pytest.mark.parametrize("layout", [None, "HWC"])
@pytest.mark.parametrize("target", ["class", "mask"])
def test_images_with_their_channels_last_are_resized(use: Use, layout: str | None, target: str) -> None:
    """With an image size, against the same images with their channels first."""
    image = torch.randint(0, 256, (3, 8, 8), generator=generator(0, "image"), dtype=torch.uint8)
    labels: list[Any] = GOOD if target == "class" else [torch.ones(8, 8, dtype=torch.uint8)] * 12
    sized = Views(TrainingView(EvaluationView((6, 6))), EvaluationView((6, 6)))
    pixels = []
    for shown in (image, image.permute(1, 2, 0).contiguous()):
        made = {"train": Plain(labels, shown), "test": Plain(labels, shown), "num_classes": 3, "target": target}
        source = use({**made, "layout": None if shown is image else layout}, views=sized)
        assert (source.channels, source.size) == (3, (6, 6))
        pixels.append(next(iter(plain_batches(source.test, batch_size=2, mean=(0.0,) * 3, std=(1.0,) * 3)))[0])
    assert torch.equal(*pixels)


def test_samples_of_several_sizes_have_one_size_and_a_fingerprint(use: Use) -> None:
    """Concatenated tensors of 8x8 and 10x10 pixels, shown in 6x6."""
    parts = [TensorDataset(torch.zeros(6, 3, side, side).byte(), torch.arange(6) % 2) for side in (8, 10)]
    sized = Views(TrainingView(EvaluationView((6, 6))), EvaluationView((6, 6)))
    source = use({"train": ConcatDataset(parts), "num_classes": 2}, views=sized)
    assert (source.size, len(source.train)) == ((6, 6), 12)
    assert source.data()["train"].samples == 12


class Long(Plain):
    """A length that is no whole number."""

    def __len__(self) -> Any:
        return 12.0


NAMED = np.array(["a", "b", "c"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"class_names": NAMED}, None),
        ({"num_classes": np.int64(3), "class_names": NAMED}, None),
        ({"num_classes": 3, "mean": torch.tensor(0.5), "std": np.float32(0.5)}, None),
        ({"num_classes": 3, "mean": "abc", "std": 0.5}, "'abc' as 'mean'"),
        ({"num_classes": 3, "mean": [0.5], "std": [None, "x"]}, "as 'std'"),
        ({"num_classes": 3.0}, "number of classes"),
        ({"class_names": 3}, "names of the classes"),
        ({"num_classes": 3, "train": Long(GOOD)}, "__len__"),
        (
            {"num_classes": 3, "target": "mask", "train": Plain([torch.zeros(0, 0).byte()], torch.zeros(3, 0, 0))},
            "without pixels",
        ),
    ],
)
def test_what_a_factory_returns_is_understood_or_refused(
    use: Use, changed: dict[str, Any], message: str | None
) -> None:
    """Arrays and numbers of numpy and torch against their values; what is wrong is named as the user's."""
    made = {"train": Plain(GOOD, torch.zeros(1, 6, 6, dtype=torch.uint8)), **changed}
    if message is not None:
        with pytest.raises(UserError, match=message):
            use(made, cache="ram")
        return
    source = use(made)
    assert source.class_names == (("a", "b", "c") if "class_names" in changed else ("0", "1", "2"))
    assert "mean" not in changed or (source.mean, source.std) == ((0.5,), (0.5,))


def test_each_split_has_a_layout_of_its_own(use: Use) -> None:
    """Training images (C, H, W) and test images (H, W, C) against one shape; other channels are refused."""
    first, last = torch.zeros(3, 9, 8, dtype=torch.uint8), torch.zeros(9, 8, 3, dtype=torch.uint8)
    source = use({"train": Plain(GOOD, first), "test": Plain(GOOD, last), "num_classes": 3})
    assert source.test is not None
    assert (
        next(iter(plain_batches(source.test, batch_size=1, mean=(0.0,) * 3, std=(1.0,) * 3)))[0].shape[1:]
        == first.shape
    )
    with pytest.raises(UserError, match="3 in train, 1 in test"):
        use({"train": Plain(GOOD, first), "test": Plain(GOOD, first[:1]), "num_classes": 3})


def test_masks_of_images_with_their_channels_last(use: Use) -> None:
    """Masks (H, W) of images (H, W, C), PIL ones too, against themselves."""
    image, mask = torch.zeros(9, 8, 3, dtype=torch.uint8), torch.ones(9, 8, dtype=torch.uint8)
    for label in (mask, Image.fromarray(mask.numpy()), Image.fromarray(mask.numpy().astype("uint16"))):
        source = use({"train": Plain([label] * 4, image), "num_classes": 2, "target": "mask"})
        assert source.size == (9, 8)
        assert torch.equal(
            next(iter(plain_batches(source.train, batch_size=1, mean=(0.0,) * 3, std=(1.0,) * 3)))[1][0], mask.long()
        )


@pytest.mark.parametrize(
    ("target", "good", "bad"), [("mask", torch.ones(6, 6).byte(), torch.full((6, 6), 9)), ("value", 0.5, float("nan"))]
)
def test_test_samples_of_masks_and_numbers_are_looked_at_first(use: Use, target: str, good: Any, bad: Any) -> None:
    """What is wrong with the last test sample against an error before anything is trained."""
    with pytest.raises(UserError, match="sample 3 of the test split"):
        use({"train": Plain([good] * 4), "test": Plain([good] * 3 + [bad]), "num_classes": 2, "target": target})


# --- the validation split


def labelled(counts: list[int]) -> Split:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator(1, "labels"))]
    return Split(labels, torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8))


@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=12), share=st.floats(0.01, 0.9), seed=st.integers(0, 9))
def test_each_class_gives_its_share(counts: list[int], share: float, seed: int) -> None:
    """Validation samples of each class against number * n_k / n, to one sample; a class keeps one, if it can."""
    total = sum(counts)
    number = int(total * share)
    if not total or number >= total:
        return
    split = labelled(counts)
    rows = validation_rows(split, number=number, seed=seed, stratify=True)
    taken = split.labels[rows].bincount(minlength=len(counts))
    assert len(rows.unique()) == len(rows) == number
    assert rows.tolist() == sorted(rows.tolist())
    left = torch.tensor(counts) - taken
    assert bool((left >= 0).all())
    num_kept = sum(count > 0 for count in counts)
    if number <= total - num_kept:
        assert bool((left[torch.tensor(counts) > 0] >= 1).all())
    if min((count for count in counts if count), default=0) > 2 * total / (total - number):  # no class is short
        exact = torch.tensor(counts, dtype=torch.float64) * number / total
        assert float((taken - exact).abs().max()) < 1 + 1e-9
    assert torch.equal(rows, validation_rows(split, number=number, seed=seed, stratify=True))


def test_within_a_class_the_seed_decides() -> None:
    """Rows of two seeds differ; without `stratify` they are the first ones of the seed's permutation."""
    split = labelled([30, 20, 10])
    one, two = (validation_rows(split, number=12, seed=seed, stratify=True) for seed in (0, 1))
    assert one.tolist() != two.tolist()
    assert split.labels[one].bincount().tolist() == split.labels[two].bincount().tolist() == [6, 4, 2]
    order = torch.randperm(60, generator=generator(0, "val"))[:12]
    assert validation_rows(split, number=12, seed=0, stratify=False).tolist() == sorted(order.tolist())


def test_equal_remainders_do_not_favour_the_first_classes() -> None:
    """Of 40 classes with half a sample each: those that validate are spread over all, and others for another seed."""
    split = labelled([5] * 40)
    chosen = [set(split.labels[validation_rows(split, number=20, seed=s, stratify=True)].tolist()) for s in (0, 1)]
    assert [len(classes) for classes in chosen] == [20, 20]
    assert chosen[0] != chosen[1]
    assert max(chosen[0]) > 30


def test_masks_and_numbers_keep_the_plain_permutation() -> None:
    """Rows of labels that are no classes against the permutation."""
    values = Split(torch.zeros(20, 1), torch.zeros(20, 1, 1, 1), target="value")
    order = torch.randperm(20, generator=generator(3, "val"))[:5]
    assert validation_rows(values, number=5, seed=3, stratify=True).tolist() == sorted(order.tolist())


def test_the_digits_are_stratified() -> None:
    """Classes of the validation split of the digits against a tenth of each, to one; `stratify: false` is another."""
    source, plain = load("digits", val="10%", seed=0), load("digits", val="10%", seed=0, stratify=False)
    counts = [(part.labels.bincount()) for part in (source.train, source.val)]
    assert float((counts[1] - (counts[0] + counts[1]) * 144 / 1437).abs().max()) < 1
    assert len(plain.val) == len(source.val) == 144
    assert not torch.equal(plain.val.labels, source.val.labels)


def test_classes_without_a_training_image_are_named(use: Use) -> None:
    """More validation samples than classes can spare against a warning with the names of those that lose all."""
    labels = [0] * 5 + [1] * 5 + [2]
    made = {"train": Plain(labels), "num_classes": 3, "class_names": ["ape", "bee", "cow"]}
    assert use(made, val=8).warnings == ()
    (warning,) = use(made, val=9).warnings
    assert "1 of the classes" in warning
    assert "dataset.val = 9" in warning


def test_validation_samples_of_a_seed_of_their_own() -> None:
    """Samples held out with `val_seed` 3 in runs of two seeds against those of a run with seed 3, bit for bit."""
    expected = load("digits", val="10%", seed=3)
    for seed in (0, 1):
        assert not torch.equal(load("digits", val="10%", seed=seed).val.images, expected.val.images)
        found = load("digits", val="10%", seed=seed, val_seed=3)
        assert torch.equal(found.val.images, expected.val.images)
        assert torch.equal(found.train.images, expected.train.images)
