"""The backend of torch.compile: which calls of a network it replaces, and that the network stays what it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from swa_cli.kernels import graph
from swa_cli.kernels.graph import KernelBackend, is_backend_for


class Twice(nn.Module):
    """BatchNorm whose output a ReLU and something else read, and two with a ReLU of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.BatchNorm2d(6) for _ in range(3))

    def forward(self, images: Tensor) -> Tensor:
        normal = self.first(images)
        total: Tensor = normal + torch.relu(normal) + self.second(images).relu() + self.third(images).relu_()
        return total


def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Told of every call of ours: whether it has the ReLU in it."""
    told: list[bool] = []

    def batch_norm(*vectors: Any, **options: Any) -> Tensor:
        told.append(options["relu"])
        return real(*vectors, **options)

    real: Callable[..., Tensor] = graph.batch_norm
    monkeypatch.setattr(graph, "batch_norm", batch_norm)
    return told


def step(model: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor) -> list[Tensor]:
    """Outputs, gradients and buffers."""
    outputs = forward(images.requires_grad_())
    outputs.square().mean().backward()
    grads = [tensor.grad for tensor in (images, *model.parameters()) if tensor.grad is not None]
    return [outputs.detach(), *grads, *model.buffers()]


@pytest.mark.parametrize(
    ("build", "relus"),
    [
        (lambda: torchvision.models.resnet18(num_classes=5), [True] * 9 + [False] * 11),
        (Twice, [False, True, True]),
        (lambda: nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.ReLU6()), [False]),
        (lambda: nn.Sequential(nn.BatchNorm2d(6, affine=False, track_running_stats=False), nn.ReLU(True)), [True]),
    ],
    ids=["resnet18", "twice", "relu6", "bare"],
)
def test_a_compiled_network_takes_the_same_step(
    build: Callable[[], nn.Module], relus: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs, gradients and running statistics of a step against the network as it is; how often ours was called."""
    torch.manual_seed(0)
    eager = build().train()
    compiled = copy.deepcopy(eager)
    images = torch.randn(8, 3 if isinstance(eager, torchvision.models.ResNet) else 6, 33, 33)
    told = calls(monkeypatch)
    torch._dynamo.reset()
    backend = KernelBackend()
    ours = step(compiled, torch.compile(compiled, backend=backend), images.clone())
    assert backend.num_fused == len(relus)
    assert sorted(told) == sorted(relus)
    theirs = step(eager, eager, images.clone())
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_convolutions_of_a_network_in_bf16_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast: which of the convolutions of a network are called, and gradients no further off than torch's.

    The oracle is the same network in float64; what rounding to bf16 on the way costs is the measure.
    """
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), Two()).train() for _ in range(3)]
    for network in networks[1:]:
        network.load_state_dict(networks[0].state_dict())
    eager, compiled, oracle = networks
    told: list[tuple[int, ...]] = []

    def conv2d(images: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        told.append(tuple(weight.shape))
        return real(images, weight, *rest)

    real: Callable[..., Tensor] = graph.conv2d
    monkeypatch.setattr(graph, "conv2d", conv2d)
    torch._dynamo.reset()
    images = torch.randn(8, 3, 18, 18).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = torch.compile(compiled, backend=KernelBackend())(images).float()
        theirs = eager(images).float()
    for outputs in (ours, theirs, oracle.double()(images.double())):
        outputs.square().mean().backward()
    assert told == [(16, 3, 3, 3), (16, 16, 3, 3), (32, 16, 3, 3)]
    for one, other, true in zip(*(network.parameters() for network in (compiled, eager, oracle)), strict=True):
        assert one.grad is not None
        assert one.grad.dtype == torch.float32
        far_ours, far_theirs = ((tensor.grad - true.grad).norm() / true.grad.norm() for tensor in (one, other))
        assert far_ours < max(1.2 * far_theirs, 1e-2)


class Two(nn.Module):
    """A convolution whose arguments are given by position, and one by name, around a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.weight = nn.Parameter(torch.randn(32, 16, 3, 3) / 12)

    def forward(self, images: Tensor) -> Tensor:
        total = self.first(images) + images
        named = F.conv2d(input=total, weight=self.weight, padding=1)  # stays as it is
        return F.conv2d(total, self.weight, None, 1, 1) + named


def test_maxima_of_pixels_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a layer, of a function, and of torch's own name for it; one that names its images stays as it is."""

    def forward(images: Tensor) -> Tensor:
        sums = layer(images) + F.max_pool2d(images, 2) + torch.max_pool2d(images, 2)
        return sums + F.max_pool2d(input=images, kernel_size=2)

    layer = nn.MaxPool2d(2)
    told: list[int] = []

    def max_pool2d(*args: Any, **kwargs: Any) -> Tensor:
        told.append(len(args))
        return real(*args, **kwargs)

    real: Callable[..., Tensor] = graph.max_pool2d
    monkeypatch.setattr(graph, "max_pool2d", max_pool2d)
    torch._dynamo.reset()
    images = torch.randn(2, 5, 8, 8).to(memory_format=torch.channels_last)
    assert torch.equal(torch.compile(forward, backend=KernelBackend())(images), forward(images))
    assert len(told) == 3


def test_frozen_layers_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer in eval mode inside a network in training mode: its statistics are used and kept, by torch."""
    model = nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6)).train()
    model[0].eval()
    told = calls(monkeypatch)
    torch._dynamo.reset()
    images = torch.randn(4, 6, 5, 5)
    outputs = torch.compile(model, backend=KernelBackend())(images)
    assert told == [False]
    assert torch.equal(model[0].running_mean, torch.zeros(6))
    torch.testing.assert_close(outputs, F.batch_norm(images.div((1 + 1e-5) ** 0.5).relu(), None, None, training=True))


def test_batches_of_another_size_and_named_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that names its arguments, with three sizes of batch, of which the later ones come as symbols."""

    def forward(images: Tensor) -> Tensor:
        return torch.relu_(F.batch_norm(images, None, None, training=True, eps=0.1))

    told = calls(monkeypatch)
    torch._dynamo.reset()
    compiled = torch.compile(forward, backend=KernelBackend())
    for size in (8, 5, 3):
        images = torch.randn(size, 6, 5, 5).to(memory_format=torch.channels_last)
        torch.testing.assert_close(compiled(images), forward(images))
    assert told == [True] * 3


def test_for_which_networks_it_is_the_backend() -> None:
    """Images on the CPU in fp32 or bf16 that meet BatchNorm; anything else is for torch's own backend."""
    with_it, without = nn.Sequential(nn.BatchNorm2d(3)), nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm1d(3))
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert is_backend_for(with_it, device=cpu, dtype=torch.float32)
    assert is_backend_for(with_it, device=cpu, dtype=torch.bfloat16)
    assert not is_backend_for(with_it, device=cpu, dtype=torch.float16)
    assert not is_backend_for(with_it, device=gpu, dtype=torch.bfloat16)
    assert not is_backend_for(without, device=cpu, dtype=torch.float32)
