"""Freezing by name patterns: which parameters, and which normalization layers keep their statistics."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from swa_cli.engine.distributed import with_sync_batchnorm
from swa_cli.errors import UserError
from swa_cli.models.freezing import freeze, frozen_names, kept_layers, unfreeze


def small() -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "conv": nn.Conv2d(1, 2, 3),
            "norm": nn.BatchNorm2d(2),
            "block": nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, affine=False)),
            "head": nn.Linear(2, 3),
        }
    )


NAMES = {"conv.weight", "conv.bias", "norm.weight", "norm.bias", "block.0.weight", "block.0.bias"}
HEAD = {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        ([], set()),
        (["*", "!head.*"], NAMES),
        (["!head.*", "*"], NAMES | HEAD),
        (["*", "!head.*", "head.bias"], NAMES | {"head.bias"}),
        (["*.weight", "!norm.*"], {"conv.weight", "block.0.weight", "head.weight"}),
    ],
)
def test_the_last_pattern_that_matches_decides(patterns: list[str], frozen: set[str]) -> None:
    """Frozen names against lists by hand."""
    assert frozen_names(small(), patterns) == frozen


@pytest.mark.parametrize("pattern", ["haed.*", "!haed.*"])
def test_a_pattern_that_matches_nothing_is_an_error(pattern: str) -> None:
    """A misspelt layer against the name of the one that is meant."""
    with pytest.raises(UserError) as caught:
        frozen_names(small(), ["*", pattern])
    assert repr(pattern) in caught.value.message
    assert "did you mean head?" in caught.value.hint


def test_frozen_norms_keep_eval_mode_until_they_are_unfrozen() -> None:
    """Modes and gradients after `train()` against what is frozen; a norm with one trained parameter moves."""
    model = small().train()
    model["head"].bias.requires_grad = False  # by the network itself
    fresh = freeze(model, frozen_names(model, ["*"]))
    assert fresh == (NAMES | HEAD) - {"head.bias"}
    norms = [model["norm"], model["block"][1]]  # the second one has no parameters: its block decides
    model.train()
    assert [layer.training for layer in norms] == [False, False]
    assert model.training
    unfreeze(model, fresh)
    assert [layer.training for layer in model.train().modules()] == [True] * len(list(model.modules()))
    assert {name for name, value in model.named_parameters() if not value.requires_grad} == {"head.bias"}
    freeze(model, {"norm.weight", "block.0.weight"})
    assert [layer.training for layer in norms] == [True, True]


def test_a_norm_that_replaces_a_frozen_one_keeps_eval_mode() -> None:
    """SyncBatchNorm in place of two norms, of which one is frozen: kinds and modes after `train()`."""
    model = small().train()
    freeze(model, {"norm.weight", "norm.bias"})
    converted = with_sync_batchnorm(model, kept=kept_layers(model)).train()
    norms = [converted["norm"], converted["block"][1]]
    assert [(type(layer), layer.training) for layer in norms] == [(nn.SyncBatchNorm, False), (nn.SyncBatchNorm, True)]


def test_frozen_parameters_take_no_gradient() -> None:
    """Gradients after a backward pass: none of a frozen tensor, also where one was there; one of each other."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model(torch.ones(1, 3)).sum().backward()
    freeze(model, frozen_names(model, ["0.*"]))
    model(torch.ones(1, 3)).sum().backward()
    assert [value.grad is None for value in model.parameters()] == [True, True, False, False]
