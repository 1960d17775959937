"""BatchNorm and ReLU in one function against torch's two in float64: values, gradients, statistics, the same bits."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from swa_cli.kernels import batchnorm
from swa_cli.kernels.batchnorm import batch_norm

EPS, MOMENTUM = 1e-5, 0.3
SHAPES = [
    (128, 16, 8, 8),  # blocks and strips come out even
    (7, 3, 5, 3),  # a strip that is not full
    (2, 1, 1, 1),  # two values, the fewest that have a variance
    (3, 24, 17, 9),  # 240 lanes, a block that ends within a strip
    (2, 300, 9, 7),  # a row is a strip
    (3, 1000, 2, 1),
    (65, 255, 3, 3),
]
NAMES = ["-".join(map(str, shape)) for shape in SHAPES]


def images_of(shape: tuple[int, ...], *, offset: float = 0.5, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + round(10 * offset))
    images = torch.randn(shape, generator=generator) * 2 + offset
    return images.to(dtype, memory_format=torch.channels_last)


def vectors(channels: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(channels)
    mean, weight, bias = torch.randn(3, channels, generator=generator)
    var = torch.rand(channels, generator=generator) + 0.5
    return {"running_mean": mean, "running_var": var, "weight": weight, "bias": bias}


def in_float64(images: Tensor, given: dict[str, Tensor], *, relu: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Torch's values, and what else it leaves."""
    given = {name: vector.detach().double() for name, vector in given.items()}
    for name in ("weight", "bias"):
        given[name].requires_grad_()
    normal = F.batch_norm(images, *given.values(), True, MOMENTUM, EPS)
    return (F.relu(normal) if relu else normal), given


def far(ours: Tensor | None, theirs: Tensor | None, *, size: Tensor | None = None) -> float:
    """The largest difference as a part of the largest value, or of a size for every value."""
    assert ours is not None
    assert theirs is not None
    size = theirs.abs().max() if size is None else size
    return float(((ours.detach().double() - theirs.detach()).abs() / size).max())


@pytest.mark.parametrize("relu", [True, False], ids=["relu", "plain"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 2**-8)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=NAMES)
def test_values_gradients_and_statistics_are_torch_s(
    shape: tuple[int, ...], dtype: torch.dtype, bound: float, relu: bool
) -> None:
    """All that a step takes from the pair, for images of both dtypes, against float64; sums to the bounds of fp32."""
    images = images_of(shape, dtype=dtype).requires_grad_()
    oracle = images.detach().double().requires_grad_()
    given = vectors(shape[1])
    for name in ("weight", "bias"):
        given[name].requires_grad_()
    theirs, left = in_float64(oracle, given, relu=relu)
    ours = batch_norm(images, *given.values(), momentum=MOMENTUM, eps=EPS, relu=relu)
    assert ours.dtype == dtype
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert far(ours, theirs.detach()) < bound
    grad = images_of(shape, offset=0.1, dtype=dtype)
    # The mask of the ReLU is that of the values before they are rounded, in both.
    ours.backward(grad)
    theirs.backward(grad.double())
    assert images.grad is not None
    assert images.grad.dtype == dtype
    # A gradient is what is left of terms of this size, and next to nothing of two values that are all there is.
    size = grad.abs().max() * left["weight"].detach().abs() / (images.detach().double().var((0, 2, 3)) + EPS).sqrt()
    assert far(images.grad, oracle.grad, size=size[:, None, None]) < bound
    for name in ("weight", "bias"):
        assert far(given[name].grad, left[name].grad) < 5e-6
    for name in ("running_mean", "running_var"):
        assert far(given[name], left[name]) < 2e-6


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    """Images around 1,000 with a deviation of 2: the variance, where a difference of squares would keep two digits."""
    images = images_of((16, 8, 16, 16), offset=1000)
    var = torch.zeros(8)
    batch_norm(images, torch.zeros(8), var, None, None, momentum=1, eps=EPS, relu=False)
    assert far(var, images.double().var((0, 2, 3))) < 1e-6


def test_without_parameters_and_statistics() -> None:
    """A layer that has none of the four vectors."""
    images = images_of((4, 6, 5, 5)).requires_grad_()
    ours = batch_norm(images, None, None, None, None, momentum=0.1, eps=EPS, relu=True)
    oracle = images.detach().double().requires_grad_()
    theirs = F.relu(F.batch_norm(oracle, None, None, None, None, True, 0.1, EPS))
    assert far(ours, theirs.detach()) < 2e-6
    ours.sum().backward()
    theirs.sum().backward()
    assert far(images.grad, oracle.grad) < 1e-5


def test_numbers_that_are_none_go_on() -> None:
    """NaN and infinity in one channel: values, gradients and statistics of that one are NaN, not hidden by the ReLU."""
    for bad, dtype in product((float("nan"), float("inf")), (torch.float32, torch.bfloat16)):
        images = images_of((4, 3, 5, 5), dtype=dtype)
        images[1, 1, 2, 2] = bad
        images.requires_grad_()
        mean = torch.zeros(3)
        normal = batch_norm(images, mean, torch.ones(3), None, None, momentum=0.1, eps=EPS, relu=True)
        normal.sum().backward()
        assert images.grad is not None
        for values in (normal, images.grad):
            assert values[:, 1].isnan().all()
            assert values[:, [0, 2]].isfinite().all()
        assert not mean[1].isfinite()
        assert mean[[0, 2]].isfinite().all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_threads_give_the_same_bits(threads: int) -> None:
    """Ten calls by turns, of which any could come to another order of sums; other threads agree to rounding."""
    images, grad = images_of((16, 24, 9, 9)), images_of((16, 24, 9, 9), offset=0)
    before = torch.get_num_threads()

    def once() -> list[Tensor]:
        given = vectors(24)
        entered = images.clone(memory_format=torch.channels_last).requires_grad_()
        given["weight"].requires_grad_()
        normal = batch_norm(entered, *given.values(), momentum=MOMENTUM, eps=EPS, relu=True)
        normal.backward(grad)
        assert entered.grad is not None
        assert given["weight"].grad is not None
        return [normal.detach(), entered.grad, given["weight"].grad, given["running_mean"], given["running_var"]]

    try:
        torch.set_num_threads(1)
        alone = once()
        torch.set_num_threads(threads)
        first = once()
        assert all(torch.equal(one, other) for _ in range(10) for one, other in zip(first, once(), strict=True))
        for one, other in zip(first, alone, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    finally:
        torch.set_num_threads(before)


def test_gradients_and_saved_images_of_any_layout() -> None:
    """A gradient that is one value seen everywhere, one that lies channels first, hooks that give images back so."""
    images = images_of((4, 6, 5, 5))
    results = []
    for layout in (torch.channels_last, torch.contiguous_format):
        entered = images.clone(memory_format=torch.channels_last).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved.contiguous()):
            normal = batch_norm(entered, None, None, None, None, momentum=0.1, eps=EPS, relu=True)
        normal.backward(images.contiguous(memory_format=layout))
        results.append(entered.grad)
    assert torch.equal(*results)
    entered = images.clone(memory_format=torch.channels_last).requires_grad_()
    batch_norm(entered, None, None, None, None, momentum=0.1, eps=EPS, relu=True).sum().backward()
    oracle = images.double().requires_grad_()
    F.relu(F.batch_norm(oracle, None, None, training=True, eps=EPS)).sum().backward()
    assert far(entered.grad, oracle.grad) < 1e-5


def test_one_channel_of_equal_values() -> None:
    """What one channel, and a constant, could cost: digits of long sums, a variance below 0."""
    images = torch.full((64, 1, 40, 40), 12345.678).requires_grad_()
    bias, var = torch.zeros(1, requires_grad=True), torch.ones(1)
    batch_norm(images, None, var, None, bias, momentum=1, eps=EPS, relu=False).backward(torch.full_like(images, 0.1))
    assert 0 <= float(var) < 1e-3
    assert bias.grad is not None
    # 32 additions in float, each off by 6e-8 at most of what is there.
    assert float(bias.grad) == pytest.approx(float(torch.tensor(0.1).double() * images.numel()), rel=5e-7)


def test_two_values_a_channel_lose_what_the_mean_is_rounded_by() -> None:
    """Differences far smaller than the mean: off by the rounding of a float32 mean, in deviations, and no more."""
    images = images_of((1, 1000, 2, 1))
    oracle = F.batch_norm(images.double(), None, None, training=True, eps=EPS)
    ours = batch_norm(images, None, None, None, None, momentum=0.1, eps=EPS, relu=False)
    mean, var = images.double().mean((0, 2, 3)), images.double().var((0, 2, 3), correction=0)
    bound = 2**-24 * mean.abs() / (var + EPS).sqrt() + 1e-6
    assert far(ours, oracle, size=bound[:, None, None]) < 1


def test_a_weight_of_zero_learns_nothing_at_the_kink() -> None:
    """Values that are exactly 0, as of a residual branch that begins with weight 0: the ReLU passes no gradient."""
    images = images_of((4, 3, 5, 5)).requires_grad_()
    weight, bias = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    batch_norm(images, None, None, weight, bias, momentum=0.1, eps=EPS, relu=True).sum().backward()
    for tensor in (images, weight, bias):
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_variances_of_constants_are_never_negative() -> None:
    """256 channels, each of one value up to 100,000: what rounding leaves of their variances."""
    values = torch.rand(1, 256, 1, 1, generator=torch.Generator().manual_seed(0)) * 1e5
    images = values.expand(9, 256, 21, 21).contiguous(memory_format=torch.channels_last)
    var = torch.ones(256)
    batch_norm(images, None, var, None, None, momentum=1, eps=EPS, relu=False)
    assert var.min() >= 0
    assert var.max() < 1e-3


def test_squares_beyond_float_are_told() -> None:
    """Values whose squares are infinite in float32: NaN, and not a constant that looks like an answer."""
    normal = batch_norm(images_of((4, 3, 5, 5)) * 1e30, None, None, None, None, momentum=0.1, eps=EPS, relu=True)
    assert normal.isnan().all()


def test_one_running_statistic_alone() -> None:
    """A mean without a variance and the other way round: each is kept."""
    images = images_of((4, 3, 5, 5))
    mean, var = torch.zeros(3), torch.ones(3)
    batch_norm(images, mean, None, None, None, momentum=1, eps=EPS, relu=False)
    batch_norm(images, None, var, None, None, momentum=1, eps=EPS, relu=False)
    assert far(mean, images.double().mean((0, 2, 3))) < 1e-6
    assert far(var, images.double().var((0, 2, 3))) < 1e-6


def test_default_types_of_the_process_do_not_matter() -> None:
    """Gradients of the parameters where new tensors are float64 by default."""
    images = images_of((4, 6, 5, 5)).requires_grad_()
    grads = []
    for dtype in (torch.float32, torch.float64):
        given = vectors(6)
        given["weight"].requires_grad_()
        torch.set_default_dtype(dtype)
        try:
            batch_norm(images, *given.values(), momentum=0.1, eps=EPS, relu=True).sum().backward()
        finally:
            torch.set_default_dtype(torch.float32)
        grads.append(given["weight"].grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize(
    ("images", "given"),
    [
        (torch.randn(4, 6), vectors(6)),
        (torch.randn(4, 6, 3, 3), vectors(6)),
        (
            torch.randn(4, 6, 3, 3).double().to(memory_format=torch.channels_last),
            {k: v.double() for k, v in vectors(6).items()},
        ),
        (
            torch.randn(4, 6, 3, 3).bfloat16().to(memory_format=torch.channels_last),
            {k: v.bfloat16() for k, v in vectors(6).items()},
        ),
    ],
    ids=["vectors", "channels first", "float64", "bf16 parameters"],
)
def test_what_is_not_ours_goes_to_torch(
    images: Tensor, given: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs that the kernels do not take: torch's values and statistics, and no call of the kernels."""
    monkeypatch.setattr(batchnorm, "library", None)
    theirs = {name: vector.clone() for name, vector in given.items()}
    ours = batch_norm(images, *given.values(), momentum=MOMENTUM, eps=EPS, relu=True)
    assert torch.equal(ours, F.relu(F.batch_norm(images, *theirs.values(), True, MOMENTUM, EPS)))
    assert torch.equal(given["running_var"], theirs["running_var"])


def test_one_value_a_channel_is_refused_as_torch_does() -> None:
    """A batch of one image of one pixel: torch's own message."""
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training") as ours:
        batch_norm(torch.randn(1, 6, 1, 1), None, None, None, None, momentum=0.1, eps=EPS, relu=True)
    with pytest.raises(ValueError, match="Expected more than 1 value") as theirs:
        F.batch_norm(torch.randn(1, 6, 1, 1), None, None, training=True)
    assert str(ours.value) == str(theirs.value)
