"""A convolution on the CPU in bf16: of 3 x 3 with stride 1 and padding 1, of which networks for images are made.

Its weight and bias get their gradients from convolution_backward.c: torch makes them at 0.6 of the speed of the
convolution itself, and rounds them to bf16; here they come in the precision of the parameters, from sums in float32.
Of few channels convolution.c makes the convolution too, and the gradient of the images, which is one of the gradient;
of many torch does. Images are (B, C, H, W), channels last.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from swa_cli.kernels.arguments import are_images, is_plain, pair
from swa_cli.kernels.library import checked, library, pointer

KERNEL, STRIDE, PADDING, DILATION, GROUPS = (3, 3), (1, 1), (1, 1), (1, 1), 1
MULTIPLE = 16  # of channels
# Of weights: with more the sums of a thread leave its caches, and 512 x 512 channels take longer than torch's own.
LARGEST = 9 * 256 * 256
FEW, PIXELS = 32, 8  # channels that convolution.c is faster for, and what widths are multiples of


def conv2d(images: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
    """What `torch.conv2d` does, under autocast too; anything but images and a kernel as above goes to it."""
    if not (_is_ours(*args, **kwargs) and _are_ours(images, weight, bias)):
        return torch.conv2d(images, weight, bias, *args, **kwargs)
    outputs = _Convolution.apply(images, weight, bias)
    assert isinstance(outputs, Tensor)
    return outputs


def _is_ours(stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> bool:
    return (pair(stride), pair(padding), pair(dilation), groups) == (STRIDE, PADDING, DILATION, GROUPS)


def _are_ours(images: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        are_images(images)
        and images.dtype == torch.bfloat16
        and weight.shape[1:] == (images.shape[1], *KERNEL)
        and all(channels % MULTIPLE == 0 for channels in weight.shape[:2])
        and weight.numel() <= LARGEST
        and all(_is_parameter(tensor) for tensor in (weight, bias) if tensor is not None)
        and hasattr(library(images.dtype), "conv2d_backward")
    )


def _is_parameter(tensor: Tensor) -> bool:
    """Whether it is in bf16, or cast to it by autocast."""
    is_cast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return is_plain(tensor) and tensor.dtype in ((torch.bfloat16, torch.float32) if is_cast else (torch.bfloat16,))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        narrow = weight.to(images.dtype)
        ctx.save_for_backward(images, narrow)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        if _are_few(images):
            return _convolved(images, narrow, bias)
        return torch.conv2d(images, narrow, None if bias is None else bias.to(images.dtype), STRIDE, PADDING)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        # Of a gradient nothing is known; and hooks for saved tensors give images back as they like.
        grad, images = (values.contiguous(memory_format=torch.channels_last) for values in (grad, images))
        of_images, of_weight, of_bias = ctx.needs_input_grad
        grad_images = _grad_images(grad, images, weight) if of_images else None
        if not (of_weight or of_bias):
            return grad_images, None, None
        grad_weight, grad_bias = _grad_parameters(grad, images, with_bias=of_bias)
        to_weight, to_bias = ctx.dtypes
        return grad_images, grad_weight.to(to_weight), None if grad_bias is None else grad_bias.to(to_bias)


def _are_few(images: Tensor) -> bool:
    return images.shape[1] <= FEW and images.shape[3] % PIXELS == 0


def _convolved(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, O, H, W), of images and weight in bf16, and the bias as float32."""
    outputs = weight.shape[0]
    size = images.shape[0], outputs, *images.shape[2:]
    found = torch.empty(size, memory_format=torch.channels_last, dtype=images.dtype, device="cpu")
    weight = weight.contiguous(memory_format=torch.channels_last)
    bias = None if bias is None else bias.detach().float().contiguous()
    checked(
        library(images.dtype).conv2d_forward(
            images.data_ptr(),
            weight.data_ptr(),
            pointer(bias),
            found.data_ptr(),
            *_sizes(images, outputs),
            torch.get_num_threads(),
        ),
        what="a convolution",
    )
    return found


def _grad_images(grad: Tensor, images: Tensor, weight: Tensor) -> Tensor:
    if _are_few(grad):
        return _convolved(grad, weight.flip(2, 3).transpose(0, 1), None)
    settings = (STRIDE, PADDING, DILATION, False, (0, 0), GROUPS)
    found: Tensor
    found, _, _ = torch.ops.aten.convolution_backward(grad, images, weight, None, *settings, (True, False, False))
    return found


def _grad_parameters(grad: Tensor, images: Tensor, *, with_bias: bool) -> tuple[Tensor, Tensor | None]:
    """Of the weight, (O, I, 3, 3) float32, channels last, and of the bias, (O,) float32."""
    outputs, inputs = grad.shape[1], images.shape[1]
    weight = torch.empty(outputs, inputs, *KERNEL, memory_format=torch.channels_last, dtype=torch.float32, device="cpu")
    bias = torch.empty(outputs, dtype=torch.float32, device="cpu") if with_bias else None
    checked(
        library(images.dtype).conv2d_backward(
            images.data_ptr(),
            grad.data_ptr(),
            weight.data_ptr(),
            pointer(bias),
            *_sizes(images, outputs),
            torch.get_num_threads(),
        ),
        what="a convolution",
    )
    return weight, bias


def _sizes(images: Tensor, outputs: int) -> tuple[int, ...]:
    """Batch, height, width, inputs, outputs."""
    batch, inputs, height, width = images.shape
    return batch, height, width, inputs, outputs
