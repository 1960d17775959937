"""Maxima of 2 x 2 pixels side by side on the CPU (maxpool.c): the bits of torch's, values and gradients.

torch keeps an index of 8 bytes a value and fills the gradient with zeros before it writes to it; here a byte is kept,
and the gradient is written once. Images are (B, C, H, W), channels last.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from swa_cli.kernels.arguments import are_images, pair
from swa_cli.kernels.library import library

WINDOW = (2, 2)


def max_pool2d(images: Tensor, *args: Any, **kwargs: Any) -> Any:
    """What `F.max_pool2d` does; anything but windows and images as above goes to it."""
    if not (_is_ours(*args, **kwargs) and are_images(images) and min(images.shape[2:]) >= WINDOW[0]):
        return F.max_pool2d(images, *args, **kwargs)
    return _MaxPool.apply(images)


def _is_ours(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> bool:
    sizes = kernel_size, kernel_size if stride is None else stride, padding, dilation
    return tuple(map(pair, sizes)) == (WINDOW, WINDOW, (0, 0), (1, 1)) and not (ceil_mode or return_indices)


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        size = batch, channels, height // WINDOW[0], width // WINDOW[1]
        largest = torch.empty(size, dtype=images.dtype, device="cpu", memory_format=torch.channels_last)
        which = torch.empty(size, dtype=torch.uint8, device="cpu", memory_format=torch.channels_last)
        library(images.dtype).max_pool_forward(
            images.data_ptr(),
            largest.data_ptr(),
            which.data_ptr(),
            batch,
            height,
            width,
            channels,
            torch.get_num_threads(),
        )
        ctx.save_for_backward(which)
        ctx.height, ctx.width = height, width
        return largest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (which,) = ctx.saved_tensors
        # Of a gradient nothing is known; and hooks for saved tensors give them back as they like.
        grad, which = (values.contiguous(memory_format=torch.channels_last) for values in (grad, which))
        batch, channels = grad.shape[:2]
        size = batch, channels, ctx.height, ctx.width
        grad_images = torch.empty(size, dtype=grad.dtype, device="cpu", memory_format=torch.channels_last)
        library(grad.dtype).max_pool_backward(
            grad.data_ptr(),
            which.data_ptr(),
            grad_images.data_ptr(),
            batch,
            ctx.height,
            ctx.width,
            channels,
            torch.get_num_threads(),
        )
        return grad_images
