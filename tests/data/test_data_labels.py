"""Labels that are masks or numbers: they move with their images, come streamed as from memory, or are refused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import functional as vision

from swa_cli.data.augment import Augment, crop_and_flip, crop_and_flip_masks, draw
from swa_cli.data.batches import epoch_batches, plain_batches, statistics_batches
from swa_cli.data.randomness import generator
from swa_cli.data.samples import label_tensor
from swa_cli.data.sources import Split, load
from swa_cli.errors import UserError

AUGMENT = Augment(crop=2, flip=True, cutout=3)
PLAIN: dict[str, Any] = {"mean": (0.0,) * 2, "std": (1 / 255,) * 2}  # pixels come as they are stored


class Listed(Dataset[Any]):
    """Pairs of a list."""

    def __init__(self, pairs: list[tuple[Any, Any]]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        return self.pairs[row]


def painted(num_samples: int = 23) -> Split:
    """Masks, and images whose second channel is the mask; no class is 0, which is the color of the padding."""
    masks = torch.randint(1, 200, (num_samples, 6, 5), generator=generator(0, "masks"), dtype=torch.uint8)
    noise = torch.randint(0, 256, (num_samples, 6, 5), generator=generator(0, "noise"), dtype=torch.uint8)
    return Split(masks, torch.stack((noise, masks), dim=1), target="mask")


def streamed(split: Split, *, as_images: bool = False) -> Split:
    assert split.images is not None
    assert split.labels is not None
    labels = [Image.fromarray(mask.numpy()) if as_images else mask.long() for mask in split.labels]
    return Split(None, None, Listed(list(zip(split.images, labels, strict=True))), torch.arange(len(split)), "mask")


def assert_equal(ours: Any, theirs: Any) -> None:
    for (images, labels), (other_images, other_labels) in zip(ours, theirs, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)
        assert labels.dtype == other_labels.dtype


@settings(max_examples=25)
@given(height=st.integers(1, 9), width=st.integers(1, 9), crop=st.integers(0, 4), flip=st.booleans())
def test_a_mask_moves_as_one_image_at_a_time(height: int, width: int, crop: int, flip: bool) -> None:
    """The gather of a batch of masks is held against pad with 255, slice and torchvision's hflip of each."""
    masks = torch.randint(0, 256, (7, height, width), generator=generator(0, "masks"), dtype=torch.uint8)
    draws = draw(torch.arange(7), augment=Augment(crop=crop, flip=flip), seed=1, key=("draws",))
    moved = crop_and_flip_masks(masks.clone(), draws=draws)
    for mask, out, top, left, flipped in zip(masks, moved, draws.top, draws.left, draws.flipped, strict=True):
        window = vision.pad(mask[None], [crop], fill=255)[0, top : top + height, left : left + width]
        assert torch.equal(out, vision.hflip(window) if flip and flipped else window)


def test_masks_are_moved_in_the_distribution_of_images() -> None:
    """The windows of a mask are counted and held against those of the same picture as an image."""
    picture = torch.arange(1, 31, dtype=torch.uint8).view(6, 5)
    draws = draw(torch.arange(2000), augment=Augment(crop=1, flip=True), seed=0, key=("test",))
    masks = crop_and_flip_masks(picture.expand(2000, 6, 5), draws=draws)
    masks[masks == 255] = 0
    images = crop_and_flip(picture.expand(2000, 1, 6, 5), draws=draws)[:, 0]
    counts = [Counter(out.numpy().tobytes() for out in outs) for outs in (masks, images)]
    assert len(counts[0]) == 18
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    "augment",
    [
        Augment(),
        Augment(crop=2),
        Augment(flip=True),
        Augment(crop=3, flip=True),
        Augment(translate=2, flip="alternating"),
    ],
)
def test_image_and_mask_stay_aligned_in_every_kind_of_batch(augment: Augment) -> None:
    """The mask of each sample is held against the channel it was painted into; the crop's border is 255."""
    split = painted()
    common: dict[str, Any] = {"seed": 0, "batch_size": 4, "augment": augment, **PLAIN}
    num_borders = 0
    for batches in (epoch_batches(split, epoch=3, **common), statistics_batches(split, **common)):
        for images, masks in batches:
            inside = images[:, 1].round().long()
            border = inside == 0
            num_borders += int(border.sum())
            assert masks.dtype == torch.int64
            assert torch.equal(masks, inside.masked_fill(border, 255))
    assert bool(num_borders) == bool(augment.crop)
    for images, masks in plain_batches(split, batch_size=4, **PLAIN):
        assert torch.equal(masks, images[:, 1].round().long())


def test_cutout_leaves_the_mask() -> None:
    """Masks with cutout are held against those without; the images differ."""
    common: dict[str, Any] = {"seed": 0, "epoch": 1, "batch_size": 23, "mean": (0.5,) * 2, "std": (1.0,) * 2}
    cut, whole = (
        next(iter(epoch_batches(painted(), augment=Augment(crop=2, flip=True, cutout=side), **common)))
        for side in (4, 0)
    )
    assert torch.equal(cut[1], whole[1])
    assert not torch.equal(cut[0], whole[0])


@pytest.mark.parametrize(("workers", "as_images"), [(0, False), (0, True), (2, True)])
def test_streamed_masks_equal_those_in_memory(workers: int, as_images: bool) -> None:
    """Batches of masks from a dataset, tensors or PIL images, are held against the same ones in memory."""
    held = painted()
    by_file = streamed(held, as_images=as_images)
    common: dict[str, Any] = {"seed": 0, "batch_size": 4, "augment": AUGMENT, **PLAIN}
    assert_equal(epoch_batches(held, epoch=1, **common), epoch_batches(by_file, epoch=1, workers=workers, **common))
    assert_equal(statistics_batches(held, **common), statistics_batches(by_file, **common))
    assert_equal(plain_batches(held, batch_size=9, **PLAIN), plain_batches(by_file, batch_size=9, **PLAIN))


def test_masks_depend_on_seed_epoch_and_position_alone() -> None:
    """An epoch and its end from a later start are held against a second making; another epoch differs."""
    common: dict[str, Any] = {"seed": 5, "batch_size": 4, "augment": AUGMENT, **PLAIN}
    first = list(epoch_batches(painted(), epoch=2, **common))
    assert_equal(first, epoch_batches(painted(), epoch=2, **common))
    assert_equal(first[3:], epoch_batches(painted(), epoch=2, start=3, **common))
    other = list(epoch_batches(painted(), epoch=3, **common))
    assert not torch.equal(first[0][1], other[0][1])


@pytest.mark.parametrize(
    ("label", "target", "expected"),
    [
        (3, "class", torch.tensor(3)),
        (torch.tensor(3, dtype=torch.int32), "class", torch.tensor(3)),
        (0.5, "value", torch.tensor([0.5])),
        ([1, 2.5], "value", torch.tensor([1.0, 2.5])),
        (np.array([1.0, 2.0]), "value", torch.tensor([1.0, 2.0])),
        (torch.tensor([[True, False]]), "mask", torch.tensor([[1, 0]], dtype=torch.uint8)),
        (torch.tensor([[255, 7]], dtype=torch.int32), "mask", torch.tensor([[255, 7]], dtype=torch.uint8)),
        (Image.new("P", (2, 1), 9), "mask", torch.tensor([[9, 9]], dtype=torch.uint8)),
    ],
)
def test_labels_of_each_kind(label: Any, target: str, expected: Tensor) -> None:
    """What a dataset may give is held against the tensor that it becomes."""
    made = label_tensor(label, target=target, shape=(1, 2))
    assert torch.equal(made, expected)
    assert made.dtype == expected.dtype


@pytest.mark.parametrize(
    ("label", "target", "message"),
    [
        (torch.zeros(1, 2, dtype=torch.uint8), "class", r"not a class: torch\.uint8 tensor \(1, 2\)"),
        ("cat", "class", "not a class: str"),
        ("cat", "value", "not a value: str"),
        (None, "value", "not a value: NoneType"),
        (3, "mask", "wrong kind: int"),
        (torch.zeros(1, 2), "mask", r"wrong kind: torch\.float32 tensor \(1, 2\)"),
        (torch.zeros(1, 1, 2, dtype=torch.uint8), "mask", r"wrong kind: .* \(1, 1, 2\)"),
        (Image.new("RGB", (2, 1)), "mask", r"wrong kind: torch\.uint8 tensor \(1, 2, 3\)"),
        (torch.zeros(2, 1, dtype=torch.uint8), "mask", "image of 2x1 pixels with a mask of 1x2"),
        (torch.tensor([[-1, 0]]), "mask", "classes from -1 to 0"),
        (torch.tensor([[0, 256]]), "mask", "classes from 0 to 256"),
    ],
)
def test_labels_of_another_kind_are_refused(label: Any, target: str, message: str) -> None:
    """Each wrong label is held against a message that says what came, and an action."""
    with pytest.raises(UserError, match=message) as caught:
        label_tensor(label, target=target, shape=(1, 2))
    assert caught.value.hint


@pytest.mark.parametrize(("values", "message"), [([1.0, [1.0, 2.0]], "samples 0 and 1"), ([1.0, "x"], "not a value")])
def test_numbers_that_differ_in_length_are_named(values: list[Any], message: str) -> None:
    """Labels that cannot be stacked are held against an error instead of torch's."""
    image = torch.zeros(1, 2, 2, dtype=torch.uint8)
    split = Split(None, None, Listed([(image, value) for value in values]), torch.arange(2), "value")
    with pytest.raises(UserError, match=message):
        list(plain_batches(split, batch_size=2, mean=(0.0,), std=(1.0,)))


@pytest.mark.parametrize("cache", ["ram", "none"])
@pytest.mark.parametrize("target", ["class", "mask", "value"])
def test_a_factory_says_what_its_labels_are(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, target: str, cache: str
) -> None:
    """`target` of a factory is held against the labels of its batches, in memory and streamed."""
    (tmp_path / f"own_{target}_{cache}.py").write_text("def factory(): return made\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = __import__(f"own_{target}_{cache}")
    image, labels = torch.full((1, 3, 2), 7, dtype=torch.uint8), {"class": 1, "mask": image_mask(), "value": 0.5}
    module.made = {"train": Listed([(image, labels[target])] * 8), "num_classes": 2, "target": target}
    source = load(f"own_{target}_{cache}:factory", val=2, cache=cache, workers=0)
    assert source.val is not None
    assert source.target == source.train.target == source.val.target == target
    _, batch = next(iter(plain_batches(source.train, batch_size=6, mean=(0.0,), std=(1.0,))))
    expected = {"class": torch.ones(6).long(), "mask": image_mask().expand(6, 3, 2), "value": torch.full((6, 1), 0.5)}
    assert torch.equal(batch, expected[target])
    module.made["target"] = "label"
    with pytest.raises(UserError, match="'label' as 'target'"):
        load(f"own_{target}_{cache}:factory")


def image_mask() -> Tensor:
    return torch.tensor([[0, 1], [1, 255], [0, 0]])
