"""Groups with optimizers of their own: Muon for matrices, AdamW for the rest, as one optimizer with one schedule."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from schedulefree import SGDScheduleFree
from torch import nn

from conftest import load
from equal_runs import assert_equal_runs
from swa_cli.engine import optimizers
from swa_cli.errors import RecipeError
from swa_cli.recipe import schema

MUON = "optimizer={name: Muon, lr: 0.02, no_decay: [norm], groups: [{match: not_2d, name: AdamW, lr: 0.1x}]}"


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 6), nn.Linear(6, 3))


def settings(**values: Any) -> schema.Optimizer:
    """The section of a recipe."""
    return schema.Optimizer.model_validate(values)


MIXED = settings(
    name="Muon",
    lr=0.02,
    momentum=0.9,
    groups=[
        {"match": "4.weight", "lr": "2x", "momentum": 0.5},
        {"match": "0.*", "name": "SGD", "lr": "0.5x", "momentum": 0.8},
        {"match": "not_2d", "name": "AdamW", "lr": "0.1x", "eps": 1e-6},
    ],
)


def by_hand(model: nn.Sequential) -> list[torch.optim.Optimizer]:
    """The optimizers of `MIXED` at the rate 0.01."""
    vectors = [model[1].weight, model[1].bias, model[3].bias, model[4].bias]
    return [
        torch.optim.Muon([model[3].weight], lr=0.01, momentum=0.9),
        torch.optim.Muon([model[4].weight], lr=0.02, momentum=0.5),
        torch.optim.SGD(model[0].parameters(), lr=0.005, momentum=0.8, nesterov=True, weight_decay=5e-4, fused=True),
        torch.optim.AdamW(vectors, lr=0.001, eps=1e-6, fused=True),
    ]


def test_steps_are_those_of_each_optimizer_by_itself() -> None:
    """Six steps, the state saved and loaded in their middle, against four optimizers of torch: the same bits."""
    ours, plain = small(), small()
    built, parts = optimizers.build(ours, MIXED), by_hand(plain)
    optimizers.set_learning_rate(built, 0.01)
    for step in range(6):
        if step == 3:
            state = built.state_dict()
            assert sorted(state["state"]) == list(range(len(list(ours.parameters()))))
            built = optimizers.build(ours, MIXED)
            built.load_state_dict(state)
        for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        built.step()
        for part in parts:
            part.step()
        built.zero_grad()
        assert all(value.grad is None for value in ours.parameters())
    for (name, one), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_state_of_other_optimizers_is_refused() -> None:
    """The state of one AdamW over the same parameters."""
    built, model = optimizers.build(small(), MIXED), small()
    other = optimizers.build(model, settings(name="AdamW", lr=0.1))
    with pytest.raises((ValueError, KeyError)):
        built.load_state_dict(other.state_dict())
    fewer = optimizers.build(model, settings(name="AdamW", lr=0.1, groups=[{"match": "0.*", "name": "SGD"}]))
    with pytest.raises(ValueError, match="2 optimizers"):
        built.load_state_dict(fewer.state_dict())


def test_a_gradient_scaler_sees_one_optimizer() -> None:
    """Gradients scaled by 1024 and unscaled, against gradients as they are; an infinite one stops the step of all."""
    ours, plain = small(), small()
    built, other = optimizers.build(ours, MIXED), optimizers.build(plain, MIXED)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for value, reference in zip(ours.parameters(), plain.parameters(), strict=True):
        reference.grad = torch.randn_like(reference)
        value.grad = reference.grad * 1024
    scaler.scale(torch.zeros(()))  # the scale is made at its first use
    scaler.step(built)
    scaler.update()
    other.step()
    for value, reference in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(value, reference)
        value.grad = torch.zeros_like(value)
    before = [value.detach().clone() for value in ours.parameters()]
    ours[4].bias.grad[0] = float("inf")
    scaler.scale(torch.zeros(()))
    scaler.step(built)
    assert all(torch.equal(value, old) for value, old in zip(ours.parameters(), before, strict=True))


def test_modes_reach_the_part_that_averages_inside() -> None:
    """Schedule-Free beside AdamW, against Schedule-Free alone: its eval weights, and AdamW's weights as they are."""
    group = {"match": "not_2d", "name": "AdamW"}
    model, alone = small(), small()
    built = optimizers.build(model, settings(name="schedulefree:SGDScheduleFree", lr=1.0, groups=[group]))
    reference = SGDScheduleFree([alone[3].weight, alone[4].weight], lr=1.0)
    reference.train()
    for _ in range(3):
        for value, other in zip(model.parameters(), alone.parameters(), strict=True):
            value.grad = torch.randn_like(value)
            other.grad = value.grad.clone()
        built.step()
        reference.step()
    reference.eval()
    trained = model[4].weight.detach().clone()
    vector = model[4].bias.detach().clone()
    assert optimizers.averages_inside(built)
    with optimizers.eval_weights(built):
        assert torch.equal(model[4].weight, alone[4].weight)
        assert torch.equal(model[4].bias, vector)
    assert torch.equal(model[4].weight, trained)
    assert not optimizers.averages_inside(optimizers.build(small(), MIXED))


@pytest.mark.parametrize(
    ("values", "key", "said", "hint"),
    [
        ({"name": "Muon"}, "optimizer.name", "6 of 8", "'optimizer.groups=[{match: not_2d, name: AdamW, lr: 0.1x}]'"),
        (
            {"name": "Muon", "groups": [{"match": "0.*", "name": "AdamW"}]},
            "optimizer.name",
            "1.weight (2)",
            "add {match: not_2d, name: AdamW, lr: 0.1x} at the end of optimizer.groups",
        ),
        (
            {"name": "AdamW", "groups": [{"match": ["0.*", "3.*"], "name": "Muon"}]},
            "optimizer.groups.0.name",
            "0.weight (2 x 1 x 3 x 3)",
            "before this group",
        ),
        (
            {"name": "AdamW", "groups": [{"match": "0.*", "name": "Muon"}]},
            "optimizer.groups.0.name",
            "2 of 2",
            "AdamW in place of Muon",
        ),
        ({"name": "SGD", "groups": [{"match": "*", "name": "AdamW"}]}, "optimizer.name", "all parameters", "group"),
    ],
)
def test_parameters_that_an_optimizer_cannot_train(values: dict, key: str, said: str, hint: str) -> None:
    """The key, the parameters and the group that mends it, against these by hand."""
    with pytest.raises(RecipeError) as caught:
        optimizers.build(small(), settings(lr=0.1, **values))
    [problem] = caught.value.problems
    assert problem.key == key
    assert said in problem.message
    assert hint in problem.hint


def test_names_and_options_of_groups_are_checked() -> None:
    """Each option against the class of its group, with its place."""
    groups = [{"match": "0.*", "name": "AdamV"}, {"match": "norm", "name": "AdamW", "momentum": 0.9}]
    found = optimizers.check(settings(name="SGD", lr=0.1, groups=groups))
    assert [problem.key for problem in found] == ["optimizer.groups.0.name", "optimizer.groups.1.momentum"]
    assert "AdamW" in found[0].hint
    assert "betas" in found[1].hint


def test_muon_and_adamw_resume_to_the_same_bits(
    swa, recipe: Path, tmp_path: Path, signal_at: Callable[..., None]
) -> None:
    """Stopped inside an epoch and resumed, with averages, against the run to the end; the plan names both."""
    words = [MUON, "train.precision=fp32", "train.epochs=2", "train.clip_norm=1"]
    told = swa("train", recipe, *words)
    assert told.code == 0, told.err
    assert "Muon; not_2d: AdamW, lr 0.1x" in " ".join(told.err.split())
    signal_at(30, signal.SIGTERM)
    assert swa("train", recipe, *words, "-q").code == 143
    signal_at(-1)
    assert swa("train", "--resume", "runs/small-002", "-q").code == 0
    assert_equal_runs(tmp_path / "runs/small-001", tmp_path / "runs/small-002")
    groups = load("runs/small-001/checkpoints/last.pt")["optimizer"]["param_groups"]
    assert [("momentum" in group, group["lr_multiple"]) for group in groups] == [(True, 1), (False, 0.1), (False, 0.1)]
    assert sorted(group["weight_decay"] for group in groups) == [0, 0.01, 0.1]


def test_a_damaged_state_of_them_is_refused(swa, recipe: Path, signal_at: Callable[..., None]) -> None:
    """A moment of another shape inside the resume point: exit 2, no traceback."""
    signal_at(30)
    assert swa("train", recipe, MUON, "train.epochs=2", "-q").code == 130
    signal_at(-1)
    last = Path("runs/small-001/checkpoints/last.pt")
    content = load(last)
    content["optimizer"]["state"][3]["exp_avg"] = torch.zeros(7)
    torch.save(content, last)
    ended = swa("train", "--resume", "runs/small-001", "-q")
    assert ended.code == 2
    assert "optimizer state" in ended.err
