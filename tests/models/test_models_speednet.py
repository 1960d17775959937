"""SpeedNet: its layers as published, and a first layer that whitens the data it is set from."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from swa_cli.models.build_model import build


def test_size_is_that_of_airbench94() -> None:
    """Trained values and BatchNorm layers against a sum by hand over the layers of airbench94 (Jordan 2024)."""
    model = build("speednet", num_classes=10, in_channels=3)
    convolutions = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 256 * 256 + 256 * 256 + 256 * 256)
    biases = 2 * (64 + 256 + 256)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == convolutions + biases + 24 + 10 * 256
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == 6
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"whiten.weight", *(f"group{i}.norm{j}.weight" for i in (1, 2, 3) for j in (1, 2))}


def test_first_layer_whitens_patches() -> None:
    """The first filters' answers to the images they were set from: mean square near 1, no correlation; float64 SVD."""
    generator = torch.Generator().manual_seed(0)
    images = F.avg_pool2d(torch.randn(64, 3, 34, 34, generator=generator), 3, stride=1) * 3  # neighbours are alike
    model = build("speednet", num_classes=10, in_channels=3)
    model.initialize_from(images)
    answers = model.whiten(images).detach().double()
    flat = answers.transpose(0, 1).flatten(1)  # (24, values)
    assert torch.equal(flat[:12], -flat[12:])
    patches = F.unfold(images.double(), 2).transpose(1, 2).flatten(0, 1)
    variances = torch.linalg.svdvals(patches).square() / len(patches)
    expected = torch.diag(variances / (variances + 5e-4))
    torch.testing.assert_close(flat[:12] @ flat[:12].T / flat.shape[1], expected, rtol=0, atol=1e-4)


def test_convolutions_begin_as_the_identity() -> None:
    """The first filters of each convolution of the groups against a unit impulse."""
    model = build("speednet", num_classes=10, in_channels=3, args={"width": 32})
    x = torch.randn(2, 24, 8, 8)
    torch.testing.assert_close(model.group1.conv1(x)[:, :24], x)
    x = torch.randn(2, 128, 8, 8)
    torch.testing.assert_close(model.group3.conv2(x), x)
