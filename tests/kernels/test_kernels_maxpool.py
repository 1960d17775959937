"""Maxima of 2 x 2 pixels: torch's bits, values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from swa_cli.kernels import maxpool
from swa_cli.kernels.maxpool import max_pool2d


def images_of(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Few values, so that windows have equal ones."""
    values = torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(sum(shape)))
    return values.to(dtype).to(memory_format=torch.channels_last)


def both_ways(pool: Any, images: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Values, and the gradient of numbers that differ from pixel to pixel."""
    images = images.detach().clone(memory_format=torch.channels_last).requires_grad_()
    largest = pool(images, *args, **kwargs)
    grad = torch.arange(1, largest.numel() + 1).view(largest.shape).to(images.dtype)
    largest.backward(grad)  # that lies channels first
    assert images.grad is not None
    return largest.detach(), images.grad


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(3, 64, 8, 8), (2, 5, 7, 9), (1, 1, 2, 2), (2, 300, 3, 2), (5, 16, 2, 31)])
def test_values_and_gradients_are_torch_s(shape: tuple[int, ...], dtype: torch.dtype, threads: int) -> None:
    """Even and odd sizes, channels that fill no register; the first of equal pixels has the gradient."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        images = images_of(*shape, dtype=dtype)
        ours, theirs = both_ways(max_pool2d, images, 2), both_ways(F.max_pool2d, images, 2)
    finally:
        torch.set_num_threads(before)
    assert ours[0].is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_what_is_ours_is_ours() -> None:
    """A test of the kernels would else hold torch against torch."""
    outputs = max_pool2d(images_of(2, 5, 4, 4).requires_grad_(), 2)
    assert type(outputs.grad_fn).__name__ == "_MaxPoolBackward"


def test_numbers_that_are_none_win() -> None:
    """NaN and both infinities in all places of a window, in pairs: torch's bits."""
    for bad in (float("nan"), float("inf"), float("-inf")):
        images = images_of(1, 4, 8, 8)
        for place in range(4):
            images[0, place, place // 2 :: 2, place % 2 :: 2] = bad
            images[0, place, 1::2, 1::2] = float("nan")
        for ours, theirs in zip(both_ways(max_pool2d, images, 2), both_ways(F.max_pool2d, images, 2), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("args", "kwargs"), [((2, 2), {}), (([2, 2], (2, 2), [0, 0]), {}), (((2, 2),), {"stride": None, "dilation": 1})]
)
def test_forms_of_the_settings(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Numbers, pairs and lists, by name: the same bits, of ours."""
    images = images_of(2, 5, 4, 4).requires_grad_()
    outputs = max_pool2d(images, *args, **kwargs)
    assert type(outputs.grad_fn).__name__ == "_MaxPoolBackward"
    assert torch.equal(outputs, max_pool2d(images, 2))


@pytest.mark.parametrize(
    ("images", "kwargs"),
    [
        pytest.param(images_of(2, 5, 8, 8), {"kernel_size": 3}, id="window"),
        pytest.param(images_of(2, 5, 8, 8), {"kernel_size": (2, 1)}, id="flat"),
        pytest.param(images_of(2, 5, 8, 8), {"kernel_size": 2, "stride": 1}, id="stride"),
        pytest.param(images_of(2, 5, 8, 8), {"kernel_size": 2, "padding": 1}, id="padding"),
        pytest.param(images_of(2, 5, 8, 8), {"kernel_size": 2, "dilation": 2}, id="dilation"),
        pytest.param(images_of(2, 5, 7, 7), {"kernel_size": 2, "ceil_mode": True}, id="ceiling"),
        pytest.param(images_of(2, 5, 8, 8).contiguous(), {"kernel_size": 2}, id="channels first"),
        pytest.param(images_of(2, 5, 8, 8)[0], {"kernel_size": 2}, id="one image"),
        pytest.param(images_of(2, 5, 8, 8)[:0], {"kernel_size": 2}, id="no image"),
        pytest.param(images_of(2, 5, 8, 8).double(), {"kernel_size": 2}, id="fp64"),
    ],
)
def test_what_is_not_ours_goes_to_torch(
    images: Tensor, kwargs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's bits, and no call of the kernels."""
    monkeypatch.setattr(maxpool, "library", None)
    assert torch.equal(max_pool2d(images, **kwargs), F.max_pool2d(images, **kwargs))


def test_indices_are_torch_s() -> None:
    """With them there are two results."""
    images = images_of(2, 5, 8, 8)
    for ours, theirs in zip(
        max_pool2d(images, 2, return_indices=True), F.max_pool2d(images, 2, return_indices=True), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_images_too_small_are_refused_as_torch_does() -> None:
    """One row: torch's own message."""
    with pytest.raises(RuntimeError, match="too small"):
        max_pool2d(images_of(2, 5, 1, 8), 2)
