"""Optimizers by name: options checked against the class, parameter groups, and rates that arrive."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from swa_cli.engine import optimizers
from swa_cli.errors import RecipeError
from swa_cli.recipe import schema


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def group(**values: Any) -> schema.Group:
    """Parameters with their own rate and options, as a recipe writes them."""
    return schema.Group.model_validate(values)


def settings(
    name: str, options: dict[str, Any] | None = None, *, lr: float = 0.1, no_decay: Any = (), groups: Any = ()
) -> schema.Optimizer:
    """The section of a recipe with these values alone, without the defaults of SGD."""
    return schema.Optimizer.model_construct(
        name=name, lr=lr, no_decay=list(no_decay), groups=list(groups), **(options or {})
    )


def build(model: nn.Module, *, name: str, lr: float, options: dict[str, Any], **more: Any) -> torch.optim.Optimizer:
    return optimizers.build(model, settings(name, options, lr=lr, **more))


def test_misspelt_option_is_a_problem_with_a_suggestion() -> None:
    """`momentun` of SGD against the signature of torch.optim.SGD."""
    [problem] = optimizers.check(settings("SGD", {"momentun": 0.9}))
    assert problem.key == "optimizer.momentun"
    assert problem.hint == "did you mean `optimizer.momentum`?"


@pytest.mark.parametrize(("word", "key"), [("learning_rate", "lr"), ("wd", "weight_decay")])
def test_the_word_of_another_library_for_an_option(word: str, key: str) -> None:
    """An option that no optimizer has, of the section and of a group, against the one that is meant."""
    [problem, other] = optimizers.check(settings("SGD", {word: 0.1}, groups=[group(match="bias", **{word: 0.1})]))
    assert problem.hint == f"did you mean `optimizer.{key}`?"
    assert other.hint == f"did you mean `optimizer.groups.0.{key}`?"
    [problem] = optimizers.check(settings("Rprop", {"momentum": 0.9}))
    assert "Rprop takes" in problem.hint


def test_unknown_optimizer_is_a_problem_with_a_suggestion() -> None:
    """`AdamV` against the names in torch.optim; the base class and closures are not offered."""
    [problem] = optimizers.check(settings("AdamV"))
    assert "Adam" in problem.hint
    assert optimizers.check(settings("Optimizer"))
    assert optimizers.check(settings("LBFGS"))


def test_refused_value_names_the_class() -> None:
    """A value that torch refuses (negative momentum) becomes a problem of the recipe."""
    with pytest.raises(RecipeError, match="momentum"):
        build(small(), name="SGD", lr=0.1, options={"momentum": -1.0}, no_decay=[])


@pytest.mark.parametrize(
    ("name", "options", "groups", "key"),
    [
        ("AdamW", {"betas": [0.9]}, [], "optimizer.betas"),
        ("AdamW", {"betas": []}, [], "optimizer.betas"),
        ("AdamW", {"amsgrad": 5}, [], "optimizer.amsgrad"),
        ("SGD", {"nesterov": "maybe"}, [], "optimizer.nesterov"),
        ("SGD", {"dampening": "x"}, [{"match": "bias", "nesterov": True}], "optimizer.dampening"),
        ("SGD", {"foreach": "x"}, [], "optimizer.foreach"),
        ("Rprop", {"etas": [0.5]}, [], "optimizer.etas"),
        ("Adafactor", {"eps": [1]}, [], "optimizer.eps"),
        ("Muon", {"ns_coefficients": [1]}, [], "optimizer.ns_coefficients"),
        ("SGD", {}, [{"match": "bias", "momentum": "x"}], "optimizer.groups.0.momentum"),
        ("SGD", {}, [{"match": "bias", "name": "AdamW", "betas": [0.9]}], "optimizer.groups.0.betas"),
        ("SGD", {}, [{"match": "norm"}, {"match": "bias", "weight_decay": -1}], "optimizer.groups.1"),
        ("SGD", {"momentum": -1}, [{"match": "bias", "lr": "2x"}], "optimizer"),
    ],
)
def test_value_of_a_wrong_form_is_a_problem_at_its_key(
    name: str, options: dict[str, Any], groups: list[dict[str, Any]], key: str
) -> None:
    """Values that fail in a step of torch, or in a group, against the types and checks of the constructor."""
    [problem] = optimizers.check(settings(name, options, groups=[group(**each) for each in groups]))
    assert problem.key == key
    assert problem.message
    assert problem.hint


def test_every_default_of_torch_is_a_value() -> None:
    """The defaults of each class of torch.optim, as a recipe writes them, against the check: no problem."""
    for name, kind in vars(torch.optim).items():
        if not optimizers._is_optimizer(kind) or name in optimizers.UNSUPPORTED:
            continue
        parameters = list(inspect.signature(kind).parameters.values())[2:]
        values = {each.name: each.default for each in parameters if each.default is not None}
        options = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        assert optimizers.check(settings(name, options)) == [], name


@pytest.mark.parametrize(
    ("no_decay", "free"),
    [
        ([], set()),
        (["norm"], {"1.weight", "1.bias"}),
        (["bias"], {"0.bias", "1.bias", "3.bias"}),
        (["3.*"], {"3.weight", "3.bias"}),
        (["norm", "0.bias"], {"0.bias", "1.weight", "1.bias"}),
    ],
)
def test_no_decay_takes_parameters_out(no_decay: list[str], free: set[str]) -> None:
    """Parameters without weight decay against a list by hand; every parameter is in one group."""
    model = small()
    built = build(model, name="SGD", lr=0.1, options={"weight_decay": 0.5}, no_decay=no_decay)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in built.param_groups for p in group["params"]}
    assert set(decay) == set(names.values())
    assert {name for name, value in decay.items() if value == 0} == free


def test_no_decay_knows_the_biases_and_norms_of_others() -> None:
    """Biases of torch's attention and LSTM, and a norm of timm's own, against a list by hand."""
    timm = pytest.importorskip("timm")
    model = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(4, 2),
            "lstm": nn.LSTM(3, 2),
            "norm": timm.layers.RmsNorm(5),
            "table": nn.ParameterDict({"relative_bias": torch.zeros(3, 3)}),
        }
    )
    built = build(model, name="SGD", lr=0.1, options={"weight_decay": 0.5}, no_decay=["norm", "bias"])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    free = {names[id(p)] for group in built.param_groups if not group["weight_decay"] for p in group["params"]}
    assert free == {
        "attention.in_proj_bias",
        "attention.out_proj.bias",
        "lstm.bias_ih_l0",
        "lstm.bias_hh_l0",
        "norm.weight",
    }


def test_no_decay_knows_what_a_parametrization_makes_of_a_parameter() -> None:
    """The weight of a norm and the bias of a linear layer, under the names that torch gives to their parts."""
    model = nn.ModuleDict({"norm": nn.LayerNorm(4), "linear": nn.Linear(4, 2)})
    parametrize.register_parametrization(model["norm"], "weight", nn.Tanh())
    parametrize.register_parametrization(model["linear"], "bias", nn.Tanh())
    built = build(model, name="SGD", lr=0.1, options={"weight_decay": 0.5}, no_decay=["norm", "bias"])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    free = {names[id(p)] for group in built.param_groups if not group["weight_decay"] for p in group["params"]}
    assert free == {
        "norm.bias",
        "norm.parametrizations.weight.original",
        "linear.parametrizations.bias.original",
    }


@pytest.mark.parametrize(
    "options", [{}, {"nesterov": True}, {"dampening": 0.5}], ids=lambda options: ", ".join(options)
)
def test_sgd_bears_layers_that_are_dropped_at_first(options: dict[str, Any]) -> None:
    """A layer without a gradient in the first two steps and in the fourth, against torch's plain loop."""
    ours, theirs = small(), small()
    theirs.load_state_dict(ours.state_dict())
    options = {"momentum": 0.9, **options}
    optimizer = optimizers.build(ours, settings("SGD", options))
    optimizers.begin_momentum(optimizer)
    plain = torch.optim.SGD(theirs.parameters(), lr=0.1, foreach=False, **options)
    for step in range(5):
        for network, each in ((ours, optimizer), (theirs, plain)):
            each.zero_grad()
            used = [value for name, value in network.named_parameters() if step in (2, 4) or not name.startswith("0.")]
            sum((step + 1.0) * value.square().sum() for value in used).backward()  # type: ignore[union-attr]
            each.step()
        for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(own, other)


def test_pattern_that_matches_nothing_is_a_problem() -> None:
    """`head.*` against a model without a head."""
    with pytest.raises(RecipeError, match=r"head\.\*"):
        build(small(), name="SGD", lr=0.1, options={}, no_decay=["head.*"])


def test_frozen_parameters_are_not_given_to_the_optimizer() -> None:
    """Parameters of the optimizer against those that take gradients."""
    model = small()
    model[0].requires_grad_(False)
    built = build(model, name="AdamW", lr=0.1, options={}, no_decay=[])
    assert sum(p.numel() for group in built.param_groups for p in group["params"]) == 4 + 27


def test_learning_rate_reaches_the_step() -> None:
    """One SGD step at a set rate against w - lr * g (torchcontrib's wrapper lost the rate)."""
    model = nn.Linear(1, 1, bias=False)
    built = build(model, name="SGD", lr=9.0, options={}, no_decay=[])
    before = model.weight.item()
    optimizers.set_learning_rate(built, 0.25)
    model.weight.grad = torch.full((1, 1), 2.0)
    built.step()
    assert model.weight.item() == pytest.approx(before - 0.5, abs=1e-7)


def test_a_pattern_finds_a_shared_parameter_by_its_second_name() -> None:
    """The rate of a weight that two layers share, by the name that the second gives it."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    built = build(model, name="SGD", lr=1.0, options={}, groups=[group(match="1.weight", lr="2x")])
    multiples = {id(p): group["lr_multiple"] for group in built.param_groups for p in group["params"]}
    assert [multiples[id(value)] for value in model.parameters()] == [2, 1, 1]


def test_groups_have_rates_and_options_of_their_own() -> None:
    """Rate, decay and momentum of every parameter against a list by hand; the first group that matches wins."""
    model = small()
    groups = [
        group(match="1.bias", lr="64x", weight_decay=0.01),
        group(match=["norm", "3.*"], lr="0.5x", momentum=0.0),
    ]
    options = {"weight_decay": 0.1, "momentum": 0.9}
    built = build(model, name="SGD", lr=1.0, options=options, no_decay=["bias"], groups=groups)
    optimizers.set_learning_rate(built, 0.2)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(p)]: (group["lr"], group["weight_decay"], group["momentum"])
        for group in built.param_groups
        for p in group["params"]
    }
    assert found == {
        "0.weight": (0.2, 0.1, 0.9),
        "0.bias": (0.2, 0.0, 0.9),
        "1.weight": (0.1, 0.1, 0.0),
        "1.bias": (pytest.approx(12.8), 0.0, 0.9),
        "3.weight": (0.1, 0.1, 0.0),
        "3.bias": (0.1, 0.0, 0.0),
    }


def test_a_group_that_matches_nothing_and_its_misspelt_option_are_problems() -> None:
    """Both against their place in the recipe."""
    with pytest.raises(RecipeError) as caught:
        build(small(), name="SGD", lr=0.1, options={}, groups=[group(match="head.*")])
    assert caught.value.problems[0].key == "optimizer.groups.0.match"
    [problem] = optimizers.check(settings("SGD", groups=[group(match="bias"), group(match="norm", weightdecay=0)]))
    assert problem.key == "optimizer.groups.1.weightdecay"
    assert problem.hint == "did you mean `optimizer.groups.1.weight_decay`?"


@pytest.mark.parametrize(("name", "options"), [("SGD", {"momentum": 0.9, "nesterov": True}), ("AdamW", {})])
def test_one_kernel_for_all_parameters_takes_the_steps_of_a_loop(name: str, options: dict) -> None:
    """Twenty steps of the optimizer that is built against torch's plain loop over parameters."""
    torch.manual_seed(0)
    ours, plain = small(), small()
    plain.load_state_dict(ours.state_dict())
    built = build(ours, name=name, lr=0.05, options={"weight_decay": 0.1, **options})
    assert built.defaults["fused"] is True
    reference = getattr(torch.optim, name)(plain.parameters(), lr=0.05, weight_decay=0.1, foreach=False, **options)
    for _ in range(20):
        for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        built.step()
        reference.step()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    said = build(small(), name=name, lr=0.05, options={**options, "foreach": True})
    assert not said.defaults["fused"]


NAMES = [
    "ASGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_that_of_torch_without_its_compiler(name: str) -> None:
    """Six steps, the state saved and loaded in their middle, against the class of torch: the same bits, no graph."""
    torch.manual_seed(0)
    ours, plain = small(), small()
    plain.load_state_dict(ours.state_dict())
    options = {"foreach": False} | ({} if name == "Rprop" else {"weight_decay": 0.1})

    def built_anew() -> torch.optim.Optimizer:
        return build(ours, name=name, lr=0.05, options=options)

    built = built_anew()
    parameters = list(plain.parameters())
    reference = getattr(torch.optim, name)(parameters, lr=0.05, **options)
    for step in range(6):
        if step == 3:
            state = built.state_dict()
            built = built_anew()
            built.load_state_dict(state)
        for a, b in zip(ours.parameters(), parameters, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        built.step()
        reference.step()
        built.zero_grad()
    for a, b in zip(ours.parameters(), parameters, strict=True):
        assert torch.equal(a, b)
        assert a.is_leaf
        assert a.grad is None


@pytest.mark.parametrize(
    "options", [{}, {"nesterov": True}, {"dampening": 0.5}], ids=lambda options: ", ".join(options)
)
def test_sgd_bears_a_first_step_that_is_skipped(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of scaled gradients after one that overflowed, against SGD that never saw that one."""
    monkeypatch.setattr(torch, "empty_like", lambda values: torch.full_like(values, float("nan")))  # as memory may be
    ours, theirs = small(), small()
    theirs.load_state_dict(ours.state_dict())
    options = {"momentum": 0.9, **options}
    optimizer = optimizers.build(ours, settings("SGD", options))
    optimizers.begin_momentum(optimizer)
    plain = torch.optim.SGD(theirs.parameters(), lr=0.1, foreach=False, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    for factor in (float("inf"), 1.0, 2.0):
        for network, step in ((ours, lambda: scaler.step(optimizer)), (theirs, plain.step)):
            network.zero_grad()
            loss = factor * sum(value.sum() for value in network.parameters())
            (scaler.scale(loss) if network is ours else loss).backward()
            if network is ours or factor < float("inf"):
                step()
        scaler.update()
        for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(own, other)


@pytest.mark.parametrize(
    ("options", "of_group"),
    [({"momentum": 0.9, "nesterov": True}, {"momentum": 0}), ({"momentum": 0.9}, {"nesterov": True})],
)
def test_a_group_may_have_what_a_constructor_refuses_of_all(options: dict[str, Any], of_group: dict[str, Any]) -> None:
    """As torch: checks between options are made of those of the constructor, not of a group's."""
    assert not optimizers.check(settings("SGD", options, groups=[group(match=["bias"], **of_group)]))
