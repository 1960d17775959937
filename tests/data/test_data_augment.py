"""Augmentation of whole batches against torchvision and against enumerations of all outcomes."""

from __future__ import annotations

from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional as vision

from swa_cli.data.augment import Augment, crop_and_flip, cut_out, draw
from swa_cli.data.batches import normalize
from swa_cli.data.randomness import generator

# 0.999 quantiles of chi-square, from published tables: a fair draw passes, with the fixed seed for ever.
CHI_SQUARE = {35: 66.62, 49: 85.35}


def marked(height: int, width: int) -> Tensor:
    """One image (1, H, W) of which each pixel has a value of its own, none 0."""
    return torch.arange(1, height * width + 1, dtype=torch.uint8).view(1, height, width)


def chi_square(counts: Counter[bytes], outcomes: set[bytes]) -> float:
    expected = counts.total() / len(outcomes)
    return sum((counts[outcome] - expected) ** 2 / expected for outcome in outcomes)


def content(image: Tensor) -> bytes:
    return image.contiguous().numpy().tobytes()


def test_crop_and_flip_equal_torchvisions_in_distribution() -> None:
    """The outcomes are held against all windows of the zero-padded image, and torchvision's own draws."""
    image, padding, num_samples = marked(6, 5), 2, 5000
    draws = draw(num_samples, augment=Augment(crop=padding, flip=True), generator=generator(3, "test"))
    ours = Counter(content(out) for out in crop_and_flip(image.expand(num_samples, 1, 6, 5), draws=draws))
    padded = vision.pad(image, [padding])
    windows = [padded[:, y : y + 6, x : x + 5] for y in range(5) for x in range(5)]
    outcomes = {content(window) for window in windows} | {content(window.flip(2)) for window in windows}
    theirs = transforms.Compose([transforms.RandomCrop((6, 5), padding=padding), transforms.RandomHorizontalFlip()])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        seen = {content(theirs(image)) for _ in range(1000)}
    assert len(outcomes) == 50
    assert set(ours) == outcomes == seen
    assert chi_square(ours, outcomes) < CHI_SQUARE[49]


@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.integers(1, 3),
    crop=st.integers(0, 4),
    flip=st.booleans(),
)
def test_crop_and_flip_equal_one_image_at_a_time(height: int, width: int, channels: int, crop: int, flip: bool) -> None:
    """The gather of a batch is held against pad, slice and torchvision's hflip of each image."""
    images = torch.randint(0, 256, (7, channels, height, width), generator=generator(0, "images"), dtype=torch.uint8)
    draws = draw(7, augment=Augment(crop=crop, flip=flip), generator=generator(1, "draws"))
    for image, out, top, left, mirrored in zip(
        images, crop_and_flip(images, draws=draws), draws.top, draws.left, draws.mirrored, strict=True
    ):
        window = vision.pad(image, [crop])[:, top : top + height, left : left + width]
        assert torch.equal(out, vision.hflip(window) if flip and mirrored else window)


def test_cutout_is_a_clipped_square_at_a_uniform_pixel() -> None:
    """The zeroed regions are held against those of all 36 centres, by chi-square."""
    side, num_samples = 4, 3600
    draws = draw(num_samples, augment=Augment(cutout=side), generator=generator(5, "test"))
    regions = Counter(content(out == 0) for out in cut_out(torch.ones(num_samples, 2, 6, 6), draws=draws))
    outcomes = set()
    for y in range(6):
        for x in range(6):
            region = torch.zeros(2, 6, 6, dtype=torch.bool)
            region[:, max(0, y - 2) : y + 2, max(0, x - 2) : x + 2] = True
            outcomes.add(content(region))
    assert len(outcomes) == 36
    assert set(regions) == outcomes
    assert chi_square(regions, outcomes) < CHI_SQUARE[35]


def test_cutout_leaves_the_other_draws_alone() -> None:
    """The crops and flips with cutout are held against those without."""
    plain, cut = (
        draw(100, augment=Augment(crop=4, flip=True, cutout=side), generator=generator(0, "augment")) for side in (0, 8)
    )
    assert torch.equal(plain.top, cut.top)
    assert torch.equal(plain.left, cut.left)
    assert torch.equal(plain.mirrored, cut.mirrored)


def test_normalize_equals_torchvision() -> None:
    """uint8 and float images are held against torchvision's normalize, which wants pixels in [0, 1]."""
    images = torch.randint(0, 256, (5, 3, 4, 4), generator=generator(0, "images"), dtype=torch.uint8)
    mean, std = (0.49, 0.48, 0.44), (0.24, 0.23, 0.26)
    expected = vision.normalize(images.double() / 255, mean, std)
    torch.testing.assert_close(normalize(images, mean=mean, std=std).double(), expected, rtol=0, atol=1e-6)
    pixels = images.float() / 255
    torch.testing.assert_close(normalize(pixels, mean=mean, std=std).double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(normalize(pixels, mean=(0.0,) * 3, std=(1.0,) * 3), pixels)
