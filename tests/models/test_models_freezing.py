"""Freezing by name patterns: which parameters, and which normalization layers keep their statistics."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

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


class Own(nn.Module):
    """A norm of the user's, with names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.register_buffer("typical", torch.zeros(2))

    def forward(self, values: Tensor) -> Tensor:
        if self.training:
            self.typical.lerp_(values.detach().mean((0, 2, 3)), 0.1)
        return (values - self.typical[:, None, None]) * self.scale[:, None, None]


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.jit.script(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))),
        lambda: torch.jit.script(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, affine=False))),
        lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.InstanceNorm2d(2, affine=True, track_running_stats=True)),
        lambda: nn.Sequential(nn.Conv2d(2, 2, 1), Own()),
    ],
    ids=["scripted", "scripted without parameters", "InstanceNorm", "own"],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_statistics_of_any_frozen_norm_stay_until_it_is_unfrozen(make: Callable[[], nn.Module]) -> None:
    """Each number of a norm of any kind after a batch in training mode, frozen and unfrozen; dropout trains."""
    model = nn.Sequential(make(), nn.Sequential(nn.Conv2d(2, 2, 1), nn.Dropout(0.5)), nn.Conv2d(2, 1, 1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    names = frozen_names(model, ["*", "!2.*"])
    freeze(model, names)
    model.train()(images)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[1][1].training
    unfreeze(model, names)
    model.train()(images)
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def shared(*, norm: bool = False) -> nn.Sequential:
    """Two layers with one weight, or one norm in two places."""
    if norm:
        return nn.Sequential(nn.Sequential(one := nn.BatchNorm1d(3), nn.Linear(3, 3)), nn.Sequential(one))
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("norm", "patterns", "frozen"),
    [
        (False, ["1.*"], {"0.weight", "1.bias"}),
        (False, ["1.weight"], {"0.weight"}),
        (False, ["*", "!1.*"], {"0.bias"}),
        (True, ["1.*"], {"0.0.weight", "0.0.bias"}),
        (True, ["*", "!1.0.bias"], {"0.0.weight", "0.1.weight", "0.1.bias"}),
    ],
)
def test_a_shared_parameter_is_found_by_each_of_its_names(norm: bool, patterns: list[str], frozen: set[str]) -> None:
    """Frozen names, and gradients, of a tied weight and of a shared norm against lists by hand."""
    model = shared(norm=norm)
    assert frozen_names(model, patterns) == frozen
    freeze(model, frozen)
    assert {name for name, value in model.named_parameters() if not value.requires_grad} == frozen
    assert kept_layers(model) == ["0.0"] * (frozen == {"0.0.weight", "0.0.bias"})


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
