"""Networks that several processes cannot train, named before a run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swa_cli.engine.run import _problem_of_layers


class Rectified(nn.BatchNorm2d):
    """A norm with an activation in it, as timm's."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).relu()


@pytest.mark.parametrize(
    ("layer", "size", "sync_batchnorm", "key"),
    [
        (nn.BatchNorm2d(3), 2, True, None),
        (Rectified(3), 2, False, None),
        (Rectified(3), 1, True, None),
        (Rectified(3), 2, True, "train.sync_batchnorm"),
        (nn.SyncBatchNorm(3), 1, False, None),
        (nn.SyncBatchNorm(3), 2, False, "model.name"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_layers_that_processes_cannot_share(
    layer: nn.Module, size: int, sync_batchnorm: bool, key: str | None, device: str
) -> None:
    """A norm that exchanges in every pass, and one that torch would replace by a layer that does less."""
    context: Any = SimpleNamespace(
        world=SimpleNamespace(size=size),
        hardware=SimpleNamespace(device=torch.device(device)),
        recipe=SimpleNamespace(train=SimpleNamespace(sync_batchnorm=sync_batchnorm)),
    )
    found = _problem_of_layers(nn.Sequential(nn.Conv2d(1, 3, 1), layer), context)
    assert (found and found.key) == key
