"""Convolutions in bf16 against torch's in float64: values, gradients, the same bits, and what goes to torch.

On a processor with the instruction the kernels have to be compiled, and are what is tested; on another one torch would
be held against torch, so that these tests are not there, and the source is compiled without being run.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from swa_cli.kernels import convolution
from swa_cli.kernels.convolution import conv2d
from swa_cli.kernels.library import COMPILERS, OPTIONS, SOURCES, library

BF16 = torch.bfloat16
HALF_ULP = 2**-8  # of bf16: what rounding takes of a value at most
OF_SUMS = 5e-6  # of float32
CPUINFO = Path("/proc/cpuinfo")  # of Linux; elsewhere no processor has the instruction
FLAGS = set(CPUINFO.read_text().split()) if CPUINFO.is_file() else set()
COMPILER = os.environ.get("CC") or next(filter(shutil.which, COMPILERS), "cc")
Test = Callable[..., None]


def ours(test: Test) -> Test | None:
    """A test of what the kernels compute: only where the processor can run them."""
    return test if "avx512_bf16" in FLAGS else None


def elsewhere(test: Test) -> Test | None:
    """A test of what is left to say where it cannot."""
    return None if "avx512_bf16" in FLAGS else test


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> Iterator[None]:
    """The library with its convolutions, also where a matrix unit takes their place."""
    library.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        if "amx_bf16" in FLAGS:
            patch.setenv("CC", f"{COMPILER} -mno-amx-bf16")
        if "avx512_bf16" in FLAGS:
            assert hasattr(library(BF16), "conv2d_backward"), "the convolutions were not compiled"
        yield
    library.cache_clear()


SHAPES = [  # batch, inputs, outputs, height, width
    (5, 16, 16, 8, 8),  # few channels, and a batch that two threads do not halve
    (3, 32, 48, 5, 16),
    (4, 48, 32, 6, 8),  # the gradient has few channels, the images many
    (2, 64, 16, 7, 7),  # odd widths
    (3, 16, 32, 3, 5),
    (40, 16, 16, 9, 2),
    (2, 16, 16, 1, 1),
    (2, 32, 32, 4, 1),
    (2, 16, 16, 1, 8),
    (1, 16, 16, 70, 512),  # an image that is gone through by strips
    (1, 16, 16, 2, 9000),  # a row that is more than a block
    (1, 16, 16, 1, 17000),
    (1, 256, 256, 3, 3),
]
NAMES = ["-".join(map(str, shape)) for shape in SHAPES]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = BF16) -> Tensor:
    """(B, C, H, W) that lies channels last, or a vector, as bf16 can tell it."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(BF16).to(dtype)
    return values.to(memory_format=torch.channels_last) if len(shape) == 4 else values


def tensors(shape: tuple[int, ...], *, dtype: torch.dtype = BF16) -> tuple[Tensor, Tensor, Tensor]:
    """Images, weight and bias of a shape of SHAPES."""
    batch, inputs, outputs, height, width = shape
    images = random(batch, inputs, height, width, dtype=dtype)
    weight = random(outputs, inputs, 3, 3, seed=1, dtype=dtype)
    return images.requires_grad_(), weight.requires_grad_(), random(outputs, dtype=dtype).requires_grad_()


def far(ours: Tensor | None, theirs: Tensor | None) -> float:
    """The largest difference as a part of the largest value."""
    assert ours is not None
    assert theirs is not None
    return float((ours.detach().double() - theirs.detach()).abs().max() / theirs.detach().abs().max())


@ours
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "none"])
@pytest.mark.parametrize("shape", SHAPES, ids=NAMES)
def test_values_and_gradients_are_torch_s(shape: tuple[int, ...], with_bias: bool) -> None:
    """All that a step takes, under autocast from parameters in fp32, whose gradients keep the digits of fp32."""
    images, weight, bias = (tensor.detach() for tensor in tensors(shape))
    images.requires_grad_()
    weight, bias = weight.float().requires_grad_(), bias.float().requires_grad_()
    oracle = [tensor.detach().double().requires_grad_() for tensor in (images, weight, bias)]
    with torch.autocast("cpu", dtype=BF16):
        ours = conv2d(images, weight, bias if with_bias else None, 1, 1)
    theirs = torch.conv2d(oracle[0], oracle[1], oracle[2] if with_bias else None, 1, 1)
    assert ours.dtype == BF16
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert far(ours, theirs) < HALF_ULP
    grad = random(*ours.shape, seed=2)
    ours.backward(grad)
    theirs.backward(grad.double())
    assert far(images.grad, oracle[0].grad) < HALF_ULP
    assert far(weight.grad, oracle[1].grad) < OF_SUMS
    assert weight.grad is not None
    assert (images.grad.dtype, weight.grad.dtype) == (BF16, torch.float32)
    if with_bias:
        assert far(bias.grad, oracle[2].grad) < OF_SUMS
    else:
        assert bias.grad is None


@ours
@pytest.mark.parametrize("shape", SHAPES, ids=NAMES)
def test_what_is_ours_is_ours(shape: tuple[int, ...]) -> None:
    """The kernels are called: a test of them would else hold torch against torch."""
    outputs = conv2d(*tensors(shape), 1, 1)
    assert type(outputs.grad_fn).__name__ == "_ConvolutionBackward"


@elsewhere
def test_a_processor_without_the_instruction_has_no_convolution(tmp_path: Path) -> None:
    """The library has none, so that all goes to torch; the source compiles for a processor that has it."""
    assert not hasattr(library(BF16), "conv2d_backward")
    assert type(conv2d(*tensors(SHAPES[0]), 1, 1).grad_fn).__name__ == "ConvolutionBackward0"
    if platform.machine() == "x86_64":  # other compilers know no such processor
        options = [option for option in OPTIONS if option not in ("-march=native", "-shared")]
        words = [*COMPILER.split(), *options, "-march=cooperlake", "-Werror", "-DBF16", "-c"]
        for source in SOURCES:
            target = tmp_path / f"{source.stem}.o"
            subprocess.run([*words, "-o", target, source], check=True)
        for name in ("convolution.o", "convolution_backward.o"):
            assert (
                f"conv2d_{'backward' if 'backward' in name else 'forward'}".encode() in (tmp_path / name).read_bytes()
            )


@ours
@pytest.mark.parametrize(
    "kwargs",
    [
        {"padding": (1, 1), "stride": [1, 1]},
        {"padding": 1, "dilation": 1, "groups": 1},
        {"padding": [1, 1], "bias": random(16)},
    ],
)
def test_forms_of_the_settings(kwargs: dict[str, Any]) -> None:
    """Numbers, pairs and lists, by name: the same bits."""
    images, weight, _ = tensors(SHAPES[0])
    bias = kwargs.get("bias")
    assert torch.equal(conv2d(images, weight, **kwargs), conv2d(images, weight, bias, 1, 1))


class Kind(Tensor):
    """A tensor of another kind."""


@pytest.mark.parametrize(
    ("images", "weight", "settings"),
    [
        pytest.param(random(2, 16, 8, 8), random(16, 16, 3, 3), {"padding": 1, "stride": 2}, id="stride"),
        pytest.param(random(2, 16, 8, 8), random(16, 16, 3, 3), {}, id="no padding"),
        pytest.param(random(2, 16, 8, 8), random(16, 16, 3, 3), {"padding": "valid"}, id="valid"),
        pytest.param(random(2, 16, 8, 8), random(16, 16, 3, 3), {"padding": (1, 0)}, id="one side"),
        pytest.param(random(2, 16, 8, 8), random(16, 16, 3, 3), {"padding": 1, "dilation": 2}, id="dilation"),
        pytest.param(random(2, 32, 8, 8), random(16, 16, 3, 3), {"padding": 1, "groups": 2}, id="groups"),
        pytest.param(random(2, 16, 8, 8), random(16, 16, 1, 3), {"padding": 1}, id="flat"),
        pytest.param(random(2, 16, 8, 8), random(24, 16, 3, 3), {"padding": 1}, id="24 outputs"),
        pytest.param(random(2, 24, 8, 8), random(16, 24, 3, 3), {"padding": 1}, id="24 inputs"),
        pytest.param(random(2, 272, 4, 4), random(256, 272, 3, 3), {"padding": 1}, id="large"),
        pytest.param(random(2, 16, 8, 8).contiguous(), random(16, 16, 3, 3), {"padding": 1}, id="channels first"),
        pytest.param(random(2, 16, 8, 8)[0], random(16, 16, 3, 3), {"padding": 1}, id="one image"),
        pytest.param(random(2, 16, 8, 8)[:0], random(16, 16, 3, 3), {"padding": 1}, id="no image"),
        pytest.param(random(2, 16, 8, 8).float(), random(16, 16, 3, 3).float(), {"padding": 1}, id="fp32"),
        pytest.param(random(2, 16, 8, 8), random(16, 16, 3, 3).as_subclass(Kind), {"padding": 1}, id="a kind"),
    ],
)
def test_what_is_not_ours_goes_to_torch(
    images: Tensor, weight: Tensor, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's bits, and no call of the kernels."""
    monkeypatch.setattr(convolution, "library", None)
    assert torch.equal(conv2d(images, weight, **settings), torch.conv2d(images, weight, **settings))


def test_a_weight_of_another_precision_is_refused_as_torch_does() -> None:
    """Without autocast nothing is cast."""
    with pytest.raises(RuntimeError, match=r"type|dtype"):
        conv2d(random(2, 16, 8, 8), random(16, 16, 3, 3).float(), padding=1)


@ours
def test_gradients_come_in_the_precision_of_their_tensors() -> None:
    """A weight and a bias in bf16."""
    images, weight, bias = tensors(SHAPES[0])
    outputs = conv2d(images, weight, bias, 1, 1)
    assert far(outputs, torch.conv2d(images.double(), weight.double(), bias.double(), 1, 1)) < HALF_ULP
    outputs.sum().backward()
    for tensor in (images, weight, bias):
        assert tensor.grad is not None
        assert tensor.grad.dtype == BF16


@ours
@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_what_is_needed_gets_a_gradient(needed: tuple[bool, ...]) -> None:
    """Images alone, as below frozen layers, or one of the parameters: the same as with all."""
    whole, parts = tensors(SHAPES[1]), tensors(SHAPES[1])
    for tensor, need in zip(parts, needed, strict=True):
        tensor.requires_grad_(need)
    for given in (whole, parts):
        outputs = conv2d(*given, 1, 1)
        outputs.backward(random(*outputs.shape, seed=2))
    for one, other, need in zip(whole, parts, needed, strict=True):
        assert (other.grad is not None) == need
        assert not need or torch.equal(other.grad, one.grad)


@ours
def test_gradients_and_saved_images_of_any_layout() -> None:
    """A gradient that is one value seen everywhere, one that lies channels first, hooks that give images back so."""
    found = []
    for layout in (torch.channels_last, torch.contiguous_format):
        images, weight, bias = tensors(SHAPES[0])
        with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved.contiguous()):
            outputs = conv2d(images, weight, bias, 1, 1)
        outputs.backward(random(*outputs.shape, seed=2).contiguous(memory_format=layout))
        found.append((images.grad, weight.grad, bias.grad))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    images, weight, bias = tensors(SHAPES[0])
    conv2d(images, weight, bias, 1, 1).sum().backward()
    assert bias.grad is not None
    assert bias.grad.eq(5 * 8 * 8).all()


@ours
def test_weights_of_any_layout() -> None:
    """A weight that lies channels first, as a network's does whose images alone were moved."""
    images, weight, bias = tensors(SHAPES[0])
    assert torch.equal(conv2d(images, weight.contiguous(), bias, 1, 1), conv2d(images, weight, bias, 1, 1))


@ours
@pytest.mark.parametrize("shape", [(7, 16, 32, 9, 8), (1, 16, 16, 40, 16)], ids=["batch", "one image"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_threads_give_the_same_bits(threads: int, shape: tuple[int, ...]) -> None:
    """Ten calls by turns, of which any could come to another order of sums; other threads agree to rounding.

    One image is shared out among the threads too.
    """
    before = torch.get_num_threads()

    def once() -> list[Tensor]:
        images, weight, bias = (tensor.detach().requires_grad_() for tensor in tensors(shape))
        parameters = weight.detach().float().requires_grad_(), bias.detach().float().requires_grad_()
        with torch.autocast("cpu", dtype=BF16):
            outputs = conv2d(images, *parameters, 1, 1)
        outputs.backward(random(*outputs.shape, seed=2))
        return [outputs.detach(), *(tensor.grad for tensor in (images, *parameters) if tensor.grad is not None)]

    try:
        torch.set_num_threads(1)
        alone = once()
        torch.set_num_threads(threads)
        first = once()
        assert all(torch.equal(one, other) for _ in range(10) for one, other in zip(first, once(), strict=True))
        for one, other in zip(first[:2], alone[:2], strict=True):
            assert far(one, other.double()) < 1e-9  # no sum of these is shared out
        for one, other in zip(first[2:], alone[2:], strict=True):
            assert far(one, other.double()) < OF_SUMS
    finally:
        torch.set_num_threads(before)


@ours
def test_numbers_that_are_none_go_on() -> None:
    """NaN and infinity in an image: where the kernel meets them, outputs are none; the gradient of every weight too."""
    for bad in (float("nan"), float("inf")):
        images = random(2, 16, 8, 8)
        images[1, 3, 4, 5] = bad
        images.requires_grad_()
        weight = random(16, 16, 3, 3, dtype=BF16).requires_grad_()
        outputs = conv2d(images, weight, padding=1)
        outputs.sum().backward()
        assert weight.grad is not None
        met = torch.zeros(2, 8, 8, dtype=torch.bool)
        met[1, 3:6, 4:7] = True
        assert torch.equal(outputs.detach().isfinite().all(1), ~met)
        assert not weight.grad[:, 3].isfinite().any()
        assert weight.grad[:, :3].isfinite().all()


@ours
def test_products_are_added_without_rounding_them() -> None:
    """A large product in every sum that the others cancel: bf16 on the way would leave nothing of the small ones."""
    images, weight = torch.ones(1, 16, 8, 8), torch.zeros(16, 16, 3, 3)
    weight[:, 0, 1, 1], weight[:, 1, 1, 1], weight[:, 2, 1, 1] = 4096, 1, -4096
    given = (tensor.to(BF16, memory_format=torch.channels_last) for tensor in (images, weight))
    assert conv2d(*given, padding=1).eq(1).all()


def test_no_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernels give then, in place of a result."""

    class Full:
        """A library that has memory for images, and none for sums."""

        conv2d_forward = staticmethod(lambda *_: 0)
        conv2d_backward = staticmethod(lambda *_: 1)

    monkeypatch.setattr(convolution, "library", lambda _: Full)
    outputs = conv2d(*tensors(SHAPES[0]), 1, 1)
    with pytest.raises(MemoryError, match="no memory for the sums of a convolution"):
        outputs.sum().backward()
    monkeypatch.setattr(Full, "conv2d_forward", Full.conv2d_backward)
    with pytest.raises(MemoryError, match="no memory"):
        conv2d(*tensors(SHAPES[0]), 1, 1)
