"""Colour jitter of whole batches against torchvision's ColorJitter: its functions, and its distribution."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torchvision import transforms
from torchvision.transforms import functional as vision

from swa_cli.data.color_jitter import ColorJitter, draw_color_jitter, jitter_colors
from swa_cli.data.randomness import generator

NAMES = ("brightness", "contrast", "saturation", "hue")
CHANGES = (vision.adjust_brightness, vision.adjust_contrast, vision.adjust_saturation, vision.adjust_hue)
EVERY = ColorJitter(brightness=1.4, contrast=0.8, saturation=1.5, hue=0.5)
# 0.999 quantiles of chi-square, from published tables: a fair draw passes, with the fixed seed for ever.
CHI_SQUARE = {9: 27.88, 23: 49.73}


def chi_square(counts: Counter[object], num_outcomes: int) -> float:
    expected = counts.total() / num_outcomes
    return sum((count - expected) ** 2 / expected for count in counts.values())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "jitter", [EVERY, ColorJitter(0.2, 0.2, 0.2, 0.05), ColorJitter(contrast=0.4), ColorJitter(hue=0.1)]
)
def test_colors_equal_torchvisions_one_image_at_a_time(channels: int, jitter: ColorJitter) -> None:
    """A batch is held against torchvision's functions on each image in float64, with its factors in its order."""
    images = torch.randint(0, 256, (50, channels, 5, 6), generator=generator(0, "images"), dtype=torch.uint8)
    images[:10] = images[:10, :1]  # gray pixels have no hue
    images[10:20] &= 0x80  # and ties between channels
    draws = draw_color_jitter(50, jitter=jitter, generator=generator(1, "draws"))
    assert draws is not None
    ours = jitter_colors(images, draws=draws)
    for image, out, factors, order in zip(images, ours, draws.factors, draws.order, strict=True):
        expected = image.double() / 255
        for number in order.tolist():
            if getattr(jitter, NAMES[number]):
                expected = CHANGES[number](expected, float(factors[number]))
        # Roundings of 1e-7 grow by factors of up to 2.4 x 1.8 x 2.5; a step of the stored pixels is 4e-3.
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5)
    assert torch.equal(jitter_colors(images, draws=draws), ours)


def test_orders_are_even_and_factors_uniform_as_torchvisions() -> None:
    """Draws are held against all 24 orders and ten even parts of torchvision's ranges, by chi-square."""
    num_samples = 24_000
    draws = draw_color_jitter(num_samples, jitter=EVERY, generator=generator(2, "draws"))
    assert draws is not None
    orders: Counter[object] = Counter(map(tuple, draws.order.tolist()))
    assert len(orders) == 24
    assert chi_square(orders, 24) < CHI_SQUARE[23]
    theirs = transforms.ColorJitter(EVERY.brightness, EVERY.contrast, EVERY.saturation, EVERY.hue)
    for name, factors in zip(NAMES, draws.factors.unbind(1), strict=True):
        low, high = getattr(theirs, name)
        assert low <= factors.min() < factors.max() <= high
        parts: Counter[object] = Counter(((factors - low) / (high - low) * 10).long().clamp(max=9).tolist())
        assert chi_square(parts, 10) < CHI_SQUARE[9]


def test_a_slice_of_the_draws_is_that_of_the_images() -> None:
    """Colors of a part of the images are held against that part of all of them."""
    images = torch.randint(0, 256, (9, 3, 4, 4), generator=generator(0, "images"), dtype=torch.uint8)
    draws = draw_color_jitter(9, jitter=EVERY, generator=generator(1, "draws"))
    assert draws is not None
    torch.testing.assert_close(jitter_colors(images[3:7], draws=draws[3:7]), jitter_colors(images, draws=draws)[3:7])
    assert draw_color_jitter(9, jitter=ColorJitter(), generator=generator(1, "draws")) is None
