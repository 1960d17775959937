"""BatchNorm in training mode and the ReLU after it as one function on the CPU, with its gradient (batchnorm.c).

Two passes over the images forward, two back, where torch makes some for each of the two, and its compiler a square root
and two divisions for every vector. Sums keep the digits of float32: short ones are merged in float64. Images are
(B, C, H, W), channels last; statistics and parameters (C,) float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from swa_cli.kernels.arguments import are_images, is_plain
from swa_cli.kernels.library import checked, library, pointer


def batch_norm(
    images: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    momentum: float,
    eps: float,
    relu: bool,
) -> Tensor:
    """What `F.batch_norm` does in training mode, running statistics included, and `F.relu` if `relu`.

    Anything but images of a dtype of SCALARS, channels last, with float32 vectors, all on the CPU, goes to torch.
    """
    if not _is_ours(images, running_mean, running_var, weight, bias):
        normal = F.batch_norm(images, running_mean, running_var, weight, bias, True, momentum, eps)
        return F.relu(normal) if relu else normal
    if images.numel() == images.shape[1]:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {images.size()}")
    normal = _BatchNorm.apply(images, weight, bias, (running_mean, running_var), (momentum, eps), relu)
    assert isinstance(normal, Tensor)
    return normal


def _is_ours(images: Tensor, *vectors: Tensor | None) -> bool:
    return are_images(images) and all(vector is None or _is_vector(vector, images.shape[1]) for vector in vectors)


def _is_vector(vector: Tensor, length: int) -> bool:
    """Whether its memory is `length` floats."""
    return is_plain(vector) and vector.dtype == torch.float32 and vector.shape == (length,) and vector.is_contiguous()


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running: tuple[Tensor | None, Tensor | None],
        options: tuple[float, float],
        relu: bool,
    ) -> Tensor:
        channels = images.shape[1]
        normal = torch.empty_like(images)
        kept = _scratch(channels)  # what batchnorm.c needs on the way back
        checked(
            library(images.dtype).batch_norm_forward(
                images.data_ptr(),
                normal.data_ptr(),
                images.numel() // channels,
                channels,
                pointer(weight),
                pointer(bias),
                *map(pointer, running),
                *options,
                relu,
                torch.get_num_threads(),
                kept.data_ptr(),
            ),
            what="BatchNorm",
        )
        ctx.save_for_backward(images, kept)
        ctx.relu, ctx.has_weight, ctx.has_bias = relu, weight is not None, bias is not None
        return normal

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images, kept = ctx.saved_tensors
        # Of a gradient nothing is known; and hooks for saved tensors give images back as they like.
        grad, images = (values.contiguous(memory_format=torch.channels_last) for values in (grad, images))
        channels = images.shape[1]
        grad_images = torch.empty_like(images)
        grads = _scratch(channels)  # weight, bias, and two that are used inside
        checked(
            library(images.dtype).batch_norm_backward(
                grad.data_ptr(),
                images.data_ptr(),
                grad_images.data_ptr(),
                images.numel() // channels,
                channels,
                kept.data_ptr(),
                ctx.relu,
                torch.get_num_threads(),
                grads.data_ptr(),
            ),
            what="BatchNorm",
        )
        of_weight, of_bias = grads[0] if ctx.has_weight else None, grads[1] if ctx.has_bias else None
        return grad_images, of_weight, of_bias, None, None, None


def _scratch(channels: int) -> Tensor:
    return torch.empty(4, channels, dtype=torch.float32, device="cpu")
