"""The U-Net: its size by formula, every image size, its BatchNorm layers under both methods."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from swa_cli.averaging.batchnorm import update_batchnorm
from swa_cli.averaging.bn_layers import bn_layers
from swa_cli.models.build_model import build


def unet(*, num_classes: int = 2, in_channels: int = 1, **args: Any) -> nn.Module:
    torch.manual_seed(0)
    return build("unet", num_classes=num_classes, in_channels=in_channels, args=args)


@pytest.mark.parametrize("batchnorm", [True, False])
@pytest.mark.parametrize(
    ("depth", "width", "channels", "classes"), [(3, 16, 1, 2), (1, 5, 3, 2), (2, 8, 4, 21), (4, 64, 1, 2)]
)
def test_parameters_are_those_of_the_formula(
    depth: int, width: int, channels: int, classes: int, batchnorm: bool
) -> None:
    """Sizes are held against the formula of the docstring, and that against a sum over layers done by hand."""
    with torch.device("meta"):
        model = unet(num_classes=classes, in_channels=channels, depth=depth, width=width, batchnorm=batchnorm)
    w = [width * 2**level for level in range(depth + 1)]
    convolutions = 9 * channels * w[0] + 9 * w[0] ** 2 + classes * (w[0] + 1)
    convolutions += sum(9 * above * here + 9 * here * here for above, here in pairwise(w))
    convolutions += sum(4 * 2 * here * here + here + 9 * 2 * here * here + 9 * here * here for here in w[:-1])
    num_3x3 = 2 * sum(w) + 2 * sum(w[:-1])  # channels that come out of them, each with a scale and a shift
    by_hand = convolutions + num_3x3 * (2 if batchnorm else 1)
    assert sum(parameter.numel() for parameter in model.parameters()) == by_hand
    formula = 9 * channels * width + width**2 * (9 + 89 * (4**depth - 1) // 3)
    formula += width * (13 * 2**depth - 9) + classes * (width + 1)
    assert formula == by_hand + (0 if batchnorm else num_3x3)


def test_default_and_papers_size_are_the_documented_ones() -> None:
    """Sizes of the default and of the paper's network are held against the numbers of the docstring."""
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in m.parameters()) for m in (unet(), unet(depth=4, width=64))]
    assert sizes == [482_466, 31_036_546]
    assert all(f"{size:,}" in str(type(unet()).__doc__) for size in sizes)


@settings(max_examples=25)
@given(height=st.integers(1, 40), width=st.integers(1, 40), depth=st.integers(1, 4), batchnorm=st.booleans())
def test_every_size_comes_out_as_it_went_in(height: int, width: int, depth: int, batchnorm: bool) -> None:
    """Logits are held against the shape (B, K, H, W) for every image size, down to one pixel."""
    model = unet(num_classes=3, in_channels=2, depth=depth, width=2, batchnorm=batchnorm).eval()
    assert model(torch.zeros(2, 2, height, width)).shape == (2, 3, height, width)


def test_odd_sizes_are_the_same_scene_as_even_ones() -> None:
    """Logits of an image one pixel short are held against those of the full one, far from the missing edge."""
    model = unet(depth=2, width=4).eval()
    images = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        whole, short = model(images), model(images[..., :63, :63])
    torch.testing.assert_close(short[..., :32, :32], whole[..., :32, :32], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["pooled", "exact"])
def test_both_methods_measure_all_its_batchnorm_layers(method: str) -> None:
    """Every layer's statistics after an update are held against float64 moments of what reaches it."""
    model = unet(depth=2, width=3).double().train()
    layers = bn_layers(model)
    assert len(layers) == 2 * (3 + 2)
    images = torch.rand(9, 1, 13, 10, dtype=torch.float64)
    loader = [images[:4], images[4:]] if method == "exact" else [images]
    assert update_batchnorm(loader, model, method=method).num_layers == len(layers)
    model.train()
    reaching: dict[nn.Module, torch.Tensor] = {}
    for layer in layers:  # in training mode each layer normalises by the batch, here all samples
        layer.register_forward_pre_hook(lambda module, args: reaching.__setitem__(module, args[0].clone()))
        layer.momentum = 0.0
    with torch.no_grad():
        model(images)
    for layer in layers:
        torch.testing.assert_close(layer.running_mean, reaching[layer].mean((0, 2, 3)), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(layer.running_var, reaching[layer].var((0, 2, 3)), rtol=1e-9, atol=1e-9)


def test_learns_in_channels_last_and_scores_in_eval_mode() -> None:
    """Each parameter gets a gradient, each layer keeps channels_last; logits are held against those in NCHW."""
    model = unet(num_classes=3, in_channels=3, depth=2, width=8)
    images = torch.rand(2, 3, 19, 22)
    functional.cross_entropy(model(images), torch.zeros(2, 19, 22, dtype=torch.int64)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    model.eval()
    broken: list[str] = []

    def watch(module: nn.Module, _: object, output: torch.Tensor) -> None:
        if not output.is_contiguous(memory_format=torch.channels_last):
            broken.append(str(module))

    with torch.no_grad():
        expected = model(images)
        model.to(memory_format=torch.channels_last)
        for module in model.modules():
            module.register_forward_hook(watch)
        logits = model(images.to(memory_format=torch.channels_last))
    assert not broken
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_convolutions_start_with_the_spread_of_the_paper() -> None:
    """Initial weights are held against normal(0, sqrt(2 / fan in)), those of up-convolutions against 1 / fan in."""
    for module in unet(in_channels=3).modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            up = isinstance(module, nn.ConvTranspose2d)
            fan_in = module.in_channels * (1 if up else module.kernel_size[0] ** 2)
            n = module.weight.numel()
            std = ((1 if up else 2) / fan_in) ** 0.5
            assert abs(module.weight.std().item() / std - 1) < 5 / (2 * n) ** 0.5
