"""What the simulated device does with single operations, observed in its process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from device.simulated import DEVICE, NAME, Entry


def journals() -> dict[str, list[Entry]]:
    """Return the journal of each of some operations on values (2, 3) of the device."""
    host = torch.arange(6.0).view(2, 3)
    pinned = host.pin_memory()
    values = host.to(NAME)
    places = torch.tensor([0, 1])
    works: dict[str, Callable[[], Any]] = {
        "arithmetic": lambda: ((values + 1) * torch.tensor(2.0)).sum(),
        "view in place": lambda: values.clone().t()[0].add_(1),
        "fill of a mask": lambda: values.clone().masked_fill_(values > 9, 0),
        "pageable": lambda: host.to(NAME, non_blocking=True),
        "pinned": lambda: pinned.to(NAME, non_blocking=True),
        "blocking": lambda: host.to(NAME),
        "item": lambda: values.sum().item(),
        "bool": lambda: bool((values > 9).any()),
        "tolist": lambda: values.tolist(),
        "cpu": lambda: values.cpu(),
        "mask": lambda: values[values > 2],
        "nonzero": lambda: values.nonzero(),
        "indices of the host": lambda: values[places],
        "values where a mask is": lambda: values.clone().index_put_((values > 2,), torch.zeros(3, device=NAME)),
    }
    found = {}
    for name, work in works.items():
        DEVICE.journal.clear()
        work()
        found[name] = list(DEVICE.journal)
    return found


def refused() -> list[str]:
    """Return the errors of operands on the host, of numpy, and of pinned memory that changes during its copy."""
    values, source = torch.zeros(2, 3, device=NAME), torch.zeros(3).pin_memory()
    there = source.to(NAME, non_blocking=True)
    source.fill_(1)
    works: list[Callable[[], Any]] = [
        lambda: values + torch.zeros(2, 3),
        lambda: torch.stack([values, torch.zeros(2, 3)]),
        lambda: values.index_select(0, torch.tensor([0])),
        lambda: nn.Linear(3, 2)(values),
        lambda: values.numpy(),
        lambda: there.sum().item(),
    ]
    errors = []
    for work in works:
        try:
            work()
            errors.append("")
        except (RuntimeError, TypeError) as error:
            errors.append(str(error))
    return errors


def training(device: str, *, autocast: bool = False, fused: bool = False) -> tuple[list[float], str]:
    """Return the losses of three steps of a network, and the type of its outputs."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3)
    )
    inputs, labels = torch.randn(8, 2, 8, 8), torch.arange(8) % 3
    network.to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, fused=fused)
    losses = []
    for _ in range(3):
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            outputs = network(inputs.to(device))
        loss = nn.functional.cross_entropy(outputs.float(), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, str(outputs.dtype)


def trainings() -> dict[str, tuple[list[float], str]]:
    """Return what `training` does on the CPU and on the device."""
    return {
        "cpu": training("cpu"),
        "device": training(NAME),
        "fused": training(NAME, fused=True),
        "cpu bf16": training("cpu", autocast=True),
        "bf16": training(NAME, autocast=True),
    }


def random_numbers() -> tuple[list[float], list[float], bool]:
    """Return numbers of the device after the same seed, with numbers of the host between, and whether those changed."""
    module = torch.get_device_module(NAME)
    module.manual_seed(1)
    first = torch.rand(4, device=NAME).tolist()
    state = torch.get_rng_state()
    module.manual_seed(1)
    torch.rand(2, device=NAME)
    is_same = torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    module.manual_seed(1)
    return first, torch.rand(4, device=NAME).tolist(), is_same
