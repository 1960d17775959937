"""The step that is tried before a run: what the error proposes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from swa_cli.engine import preflight
from swa_cli.errors import UserError


@pytest.mark.parametrize(
    ("channels", "size", "is_larger"), [(3, (80, 80), True), (3, (299, 299), False), (None, (), False)]
)
def test_images_that_are_too_small_for_a_step_are_to_be_larger(
    channels: int | None, size: tuple[int, ...], is_larger: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooling layer that gets no pixel: a larger image is proposed, unless images are large, or the inputs none."""
    context: Any = SimpleNamespace(
        recipe=SimpleNamespace(
            model=SimpleNamespace(name="torchvision:inception_v3"),
        ),
        source=SimpleNamespace(channels=channels, size=size, describe_inputs=lambda: "inputs"),
        world=SimpleNamespace(size=1),
        hardware=SimpleNamespace(deterministic=False),
    )
    monkeypatch.setattr(preflight, "user_frames", lambda error: [])  # this file is none of a user's
    network = nn.AvgPool2d(5, stride=3)
    with (
        pytest.raises(UserError) as caught,
        preflight._explain_step(network, context, num_samples=2, key="train.batch_size"),
    ):
        network(torch.zeros(2, 3, 4, 4))
    assert ("dataset.image_size=" in caught.value.hint) == is_larger
