"""Turned digits against turns that are known exactly, and the example's set against what it promises."""

from __future__ import annotations

import pytest
import torch

from swa_cli.data.sources import load
from swa_cli.data.synthetic import LARGEST_ANGLE, UNIT, read_digits, read_rotated_digits, rotate


@pytest.mark.parametrize("quarters", [-2, -1, 0, 1, 2])
def test_quarter_turns_move_pixels_exactly(quarters: int) -> None:
    """Turns by multiples of 90 degrees against torch.rot90, which turns counter-clockwise, to a grey level."""
    images, _ = read_digits()["train"]
    turned = rotate(images[:50], degrees=torch.full((50,), 90.0 * quarters))
    expected = torch.rot90(images[:50], quarters, dims=(2, 3))
    assert (turned.int() - expected.int()).abs().max() <= 1


def test_each_image_is_turned_by_its_own_angle() -> None:
    """A batch of different angles against its images one by one."""
    images, _ = read_digits()["train"]
    degrees = torch.tensor([-60.0, -10.5, 0.0, 33.0, 60.0])
    whole = rotate(images[:5], degrees=degrees)
    for row in range(5):
        assert torch.equal(whole[row : row + 1], rotate(images[row : row + 1], degrees=degrees[row : row + 1]))


def test_the_set_is_always_the_same_and_its_targets_are_tens_of_degrees() -> None:
    """Sizes, range and mean of the angles against a uniform draw; images that are turned back against the digits."""
    source = load("rotated_digits", val="10%", seed=3)
    assert (source.target, source.num_classes, source.channels, source.size) == ("value", 1, 1, (12, 12))
    assert len(source.train) + len(source.val) == 1437
    assert len(source.test) == 360
    images, targets = read_rotated_digits()["train"]
    assert torch.equal(read_rotated_digits()["train"][0], images)
    assert targets.shape == (1437, 1)
    assert float(targets.abs().max()) * UNIT <= LARGEST_ANGLE
    assert abs(float(targets.mean())) < 3 * (LARGEST_ANGLE / UNIT) / 3**0.5 / 1437**0.5
    back = rotate(images, degrees=-UNIT * targets[:, 0])[:, :, 2:-2, 2:-2].float()
    digits, _ = read_digits()["train"]
    similarity = torch.nn.functional.cosine_similarity(back.flatten(1), digits.float().flatten(1))
    assert float(similarity.min()) > 0.9
