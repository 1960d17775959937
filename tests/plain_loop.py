"""A training loop written out: the batches and first weights of a recipe, and an optimizer called by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swa_cli.engine import train
from swa_cli.recipe import load

Update = Callable[[Any, Callable[[], Tensor], Tensor], None]  # optimizer, what passes the batch again, its first loss


def plain_step(optimizer: Any, again: Callable[[], Tensor], loss: Tensor) -> None:
    """The step of an optimizer that needs no closure."""
    optimizer.step()


def trained(
    recipe: Path, words: list[str], make: Callable[[nn.Module], Any], update: Update = plain_step
) -> tuple[nn.Module, Any]:
    """Train by a recipe without dropout at a constant rate in fp32; return network and optimizer."""
    run = train.set_up(load.load(recipe, words))
    model, epochs = run.model, run.plan.epochs
    optimizer = make(model)
    model.train()
    for epoch in range(1, epochs + 1):
        for inputs, targets in run.context.training_batches(epoch):

            def again(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(inputs), targets)
                loss.backward()
                return loss

            update(optimizer, again, again())
    return model, optimizer


def assert_equal_parameters(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """The parameters of a network against those in a state dict, bit for bit."""
    for name, value in model.named_parameters():
        assert torch.equal(value, weights[name]), name
