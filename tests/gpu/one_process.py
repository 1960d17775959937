"""One process of torchrun: gradients and statistics through nccl and SyncBatchNorm, beside those without them.

It prints the largest relative difference of any gradient, and of any buffer, as JSON.
"""

from __future__ import annotations

import json
import sys
from functools import partial

import torch
import torch.distributed as dist
from torch import nn

from swa_cli.engine.distributed import World
from swa_cli.models.convnet import ConvNet


def passed(model: nn.Module, forward: nn.Module, device: str) -> dict[str, torch.Tensor]:
    """Return gradients and buffers of a network after one forward and backward pass."""
    images = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1)).to(device)
    nn.functional.cross_entropy(forward(images), torch.arange(16, device=device) % 10).backward()
    gradients = {f"gradient of {name}": value.grad for name, value in model.named_parameters()}
    return gradients | {name: value.double() for name, value in model.named_buffers()}


def differences(device: str, backend: str) -> dict[str, float]:
    """Return the largest difference of each gradient and buffer, relative to its largest value."""
    dist.init_process_group(backend)
    make = partial(ConvNet, width=4, num_classes=10, in_channels=1)
    torch.manual_seed(0)
    plain = make().to(device).train()
    model = make().to(device).train()
    model.load_state_dict(plain.state_dict())
    # A world of two processes is told, since one of a single process needs neither nccl nor SyncBatchNorm.
    forward = World(size=2).synchronised(model, sync_batchnorm=device == "cuda", make=lambda: make().to(device))
    expected, found = passed(plain, plain, device), passed(model, forward, device)
    dist.destroy_process_group()
    return {
        name: float((found[name] - values).abs().max() / values.abs().max().clamp(min=1e-6))
        for name, values in expected.items()
    }


if __name__ == "__main__":
    print(json.dumps(differences(*sys.argv[1:])))
