"""`optimizer.layer_decay`: blocks of networks and the rates of their parameters, against timm's own and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from swa_cli.engine import optimizers
from swa_cli.recipe import schema


class Nested(nn.Module):
    """A token, a backbone with most of the parameters, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(3))
        self.stem = nn.Conv2d(1, 4, 3)
        self.backbone = nn.ModuleDict(
            {
                "stages": nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(8, 8, 3))),
                "norm": nn.BatchNorm2d(8),
            }
        )
        self.head = nn.Linear(8, 2)


def rates(model: nn.Module, *, decay: float, groups: tuple[schema.Group, ...] = ()) -> dict[str, float]:
    """The rate of every parameter where that of the schedule is 1."""
    settings = schema.Optimizer.model_validate({"name": "AdamW", "lr": 0.5, "layer_decay": decay, "groups": groups})
    optimizer = optimizers.build(model, settings)
    optimizers.set_learning_rate(optimizer, 1.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(value)]: group["lr"] for group in optimizer.param_groups for value in group["params"]}


def test_blocks_are_children_in_their_order() -> None:
    """A nested network against its blocks by hand: plain Sequentials and the largest child stand for their parts."""
    blocks = {"token": 0, "stem": 0, "backbone.stages.0": 1, "backbone.stages.2.0": 2, "backbone.norm": 3, "head": 4}
    expected = {
        name: blocks[name if name in blocks else name.rpartition(".")[0]] for name, _ in Nested().named_parameters()
    }
    assert optimizers.depths(Nested()) == expected
    assert rates(Nested(), decay=0.5) == {name: 0.5 ** (4 - block) for name, block in expected.items()}
    assert set(rates(Nested(), decay=1.0).values()) == {1.0}


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_rates_of_timm_are_those_of_its_own_groups(name: str) -> None:
    """The rate of every parameter against `timm.optim.param_groups_layer_decay`."""
    import timm
    from timm.optim import param_groups_layer_decay

    with torch.device("meta"):
        model = timm.create_model(name)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    theirs = {
        names[id(value)]: group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=0.75)
        for value in group["params"]
    }
    assert rates(model, decay=0.75) == pytest.approx(theirs)


def test_a_group_multiplies_the_rate_of_its_block() -> None:
    """A group of the stem and one of the head beside layer_decay, by hand; the plan tells both."""
    groups = (
        schema.Group.model_validate({"match": "stem.*", "lr": "2x"}),
        schema.Group.model_validate({"match": "head.*", "lr": "10x", "weight_decay": 0}),
    )
    found = rates(Nested(), decay=0.5, groups=groups)
    assert found["stem.weight"] == 2 * 0.5**4
    assert found["head.bias"] == 10
    settings = schema.Optimizer.model_validate({"name": "AdamW", "lr": 0.5, "layer_decay": 0.5, "groups": groups})
    said = optimizers.describe(optimizers.build(Nested(), settings), settings)
    assert "layer_decay 0.5: 5 rates, 0.0625 to 10 times" in said
    assert "head.*: lr 10x, weight_decay 0" in said


def test_parameters_that_train_later_have_no_state_before() -> None:
    """Momentum of fused SGD with parameters that train from the second step on, against torch's plain loop."""
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    settings = schema.Optimizer.model_validate({"name": "SGD", "lr": 0.1})
    ours = optimizers.build(models[0], settings)
    optimizers.set_learning_rate(ours, 0.1)
    options = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "foreach": False}
    theirs = torch.optim.SGD(models[1].parameters(), lr=0.1, **options)
    for step in range(3):
        for model, optimizer in zip(models, (ours, theirs), strict=True):
            model[0].requires_grad_(step > 0)
            optimizers.begin_momentum(ours)
            optimizer.zero_grad()
            model(torch.ones(4, 3)).square().mean().backward()
            optimizer.step()
        assert len(ours.state) == (4 if step else 2)
    for value, expected in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(value, expected)
