"""SWA against torchcontrib's tests and algorithm, float64 means, and the same optimizers without a wrapper."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from swa_cli import SWA
from swa_cli.averaging.average import WeightAverage
from swa_cli.averaging.model_state import NonFiniteWeightsError
from swa_cli.errors import UserError

Params = Sequence[Any]
Make = Callable[[Params], torch.optim.Optimizer]

# Learning rates and swa_lr of torchcontrib's tests; of the optimizers that are younger, those of their nearest kin.
OPTIMIZERS: dict[str, tuple[Make, float | None]] = {
    "SGD": (lambda params: torch.optim.SGD(params, lr=1e-3), 1e-3),
    "SGD momentum": (lambda params: torch.optim.SGD(params, lr=1e-3, momentum=0.9, weight_decay=1e-4), 1e-3),
    "Adam": (lambda params: torch.optim.Adam(params, lr=1e-2), 1e-2),
    "AdamW": (lambda params: torch.optim.AdamW(params, lr=1e-2), 1e-2),
    "Adadelta": (lambda params: torch.optim.Adadelta(params), None),
    "Adagrad": (lambda params: torch.optim.Adagrad(params, lr=1e-1), 1e-2),
    "Adamax": (lambda params: torch.optim.Adamax(params, lr=1e-1), 1e-2),
    "NAdam": (lambda params: torch.optim.NAdam(params, lr=1e-2), 1e-2),
    "RAdam": (lambda params: torch.optim.RAdam(params, lr=1e-3), 1e-3),
    "RMSprop": (lambda params: torch.optim.RMSprop(params, lr=1e-2), 1e-3),
    "Rprop": (lambda params: torch.optim.Rprop(params, lr=1e-2), 1e-3),
    "ASGD": (lambda params: torch.optim.ASGD(params, lr=1e-3), 1e-3),
    "Adafactor": (lambda params: torch.optim.Adafactor(params, lr=1e-2), 1e-2),
    "LBFGS": (lambda params: torch.optim.LBFGS(params, lr=5e-2, max_iter=5), 1e-3),
}
every_optimizer = pytest.mark.parametrize("kind", OPTIMIZERS)


def make(kind: str, params: Params, *, start: int = 1000, freq: int = 1) -> SWA:
    """Automatic averaging on top of the optimizer of that name."""
    base, swa_lr = OPTIMIZERS[kind]
    return SWA(base(params), swa_start=start, swa_freq=freq, swa_lr=swa_lr)


class Linear:
    """The loss |Wx + b|^2 of one fixed x of torchcontrib's tests; with `column`, parameters are columns of others."""

    def __init__(self, *, seed: int = 0, column: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)
        weight, bias = torch.randn(10, 5, 2, generator=generator), torch.randn(10, 2, generator=generator)
        layout = (lambda value: value[..., 0]) if column else (lambda value: value[..., 0].clone())
        self.weight, self.bias = (layout(value).requires_grad_() for value in (weight, bias))
        assert self.weight.is_contiguous() != column
        self.input = torch.randn(5, generator=generator)

    @property
    def params(self) -> list[Tensor]:
        return [self.weight, self.bias]

    def loss(self) -> Tensor:
        for parameter in self.params:
            parameter.grad = None
        loss = (self.weight.mv(self.input) + self.bias).square().sum()
        loss.backward()
        return loss


LAYOUTS: dict[str, Callable[[Linear], Params]] = {
    "one group": lambda problem: problem.params,
    "two groups": lambda problem: [{"params": [problem.weight]}, {"params": [problem.bias], "lr": 1e-2}],
    "one of two": lambda problem: [{"params": problem.bias, "lr": 1e-2}],
}
every_optimizer_and_layout = pytest.mark.parametrize(
    ("kind", "layout"),
    [(kind, layout) for kind in OPTIMIZERS for layout in LAYOUTS if kind != "LBFGS" or layout == "one group"],
)


def bits(params: Sequence[Tensor]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in params]


def same(first: Any, second: Any) -> bool:
    """Whether nested containers hold equal values, tensors bit for bit."""
    if isinstance(first, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def close_to_mean(found: Tensor, history: Sequence[Tensor]) -> None:
    """The float64 mean of all that was averaged, to the rounding of the parameters' type."""
    mean = torch.stack([value.double() for value in history]).mean(0)
    eps = torch.finfo(found.dtype).eps
    torch.testing.assert_close(found.detach().double(), mean, rtol=eps, atol=eps * 1e-3)


def product_problem(*, momentum: float = 0.9) -> tuple[Tensor, Tensor, Callable[[], Tensor], torch.optim.SGD]:
    """The problem (sum x y)^2 in two groups of torchcontrib's tests."""
    x, y = torch.tensor([5.0, 2.0], requires_grad=True), torch.tensor([3.0, 7.0], requires_grad=True)
    base = torch.optim.SGD([{"params": [x]}, {"params": [y], "lr": 1e-3}], lr=1e-2, momentum=momentum)

    def backward() -> Tensor:
        x.grad = y.grad = None
        loss = (x * y).sum() ** 2
        loss.backward()
        return loss

    return x, y, backward, base


@pytest.mark.parametrize("kind", [*OPTIMIZERS, "SGD manual"])
def test_rosenbrock_ends_no_farther_than_it_began(kind: str) -> None:
    """The average of half a run on Rosenbrock's function against its first weights: no farther from (1, 1)."""
    params = torch.tensor([1.5, 1.5], requires_grad=True)
    manual = kind == "SGD manual"
    num_steps = {"LBFGS": 100, "Adagrad": 2000}.get(kind, 1000)
    swa = SWA(OPTIMIZERS["SGD"][0]([params])) if manual else make(kind, [params], start=num_steps // 2)
    solution = torch.ones(2)
    initial = params.detach().dist(solution)

    def closure() -> Tensor:
        swa.zero_grad()
        x, y = params.tolist()
        params.grad = torch.tensor([-400 * x * (y - x**2) - 2 * (1 - x), 200 * (y - x**2)])
        return torch.tensor((1 - x) ** 2 + 100 * (y - x**2) ** 2)

    for _ in range(num_steps):
        swa.step(closure)
        if manual:
            swa.update_swa()
    assert swa.param_groups[0]["n_avg"] == (num_steps if manual else num_steps // 2)
    swa.swap_swa_sgd()
    assert params.detach().dist(solution) <= initial


@pytest.mark.parametrize("column", [False, True], ids=["contiguous", "not contiguous"])
@every_optimizer_and_layout
def test_loss_of_a_linear_problem_falls(kind: str, column: bool, layout: str) -> None:
    """The loss of 60 steps and of the average of the last 30 against the loss at the beginning."""
    problem = Linear(column=column)
    swa = make(kind, LAYOUTS[layout](problem), start=30)
    assert repr(swa).startswith("SWA (")
    initial = problem.loss().item()
    for _ in range(60):
        swa.step(problem.loss)
    assert problem.loss().item() < initial
    swa.swap_swa_sgd()
    assert problem.loss().item() < initial


@every_optimizer_and_layout
def test_a_clone_goes_on_from_the_state_dict(kind: str, layout: str, tmp_path: Path) -> None:
    """An optimizer saved to a file and loaded with weights_only=True against the one that never stopped.

    Bits of parameters, averages and rates of 20 more steps, with a swap and a swap back after each.
    """
    whole = Linear()
    swa = make(kind, LAYOUTS[layout](whole), start=5, freq=2)
    for _ in range(20):
        swa.step(whole.loss)
    file = tmp_path / "optimizer.pt"
    torch.save(swa.state_dict(), file)
    other = copy.deepcopy(whole)
    resumed = make(kind, LAYOUTS[layout](other), start=5, freq=2)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert same(resumed.state_dict(), swa.state_dict())
    for step in range(20):
        swa.step(whole.loss)
        resumed.step(other.loss)
        assert same(whole.params, other.params), step
        trained = bits(whole.params)
        for one in (swa, resumed):
            one.swap_swa_sgd()
        assert same(whole.params, other.params), step
        assert not torch.equal(whole.bias, trained[1]), step
        for one in (swa, resumed):
            one.swap_swa_sgd()
        assert same(bits(whole.params), trained), step
        assert same(bits(other.params), trained), step
    assert same(resumed.state_dict(), swa.state_dict())


@every_optimizer
def test_the_state_dict_is_a_copy(kind: str) -> None:
    """A state dict before and after it is loaded and both optimizers go on: not a bit of it changes."""
    problem, other = Linear(), Linear()
    swa, loaded = make(kind, problem.params, start=2), make(kind, other.params, start=2)
    for _ in range(6):
        swa.step(problem.loss)
    state = swa.state_dict()
    assert state["swa_state"].keys() == {0, 1}
    before = copy.deepcopy(state)
    loaded.load_state_dict(state)
    for _ in range(3):
        swa.step(problem.loss)
        loaded.step(other.loss)
    assert same(state, before)


@pytest.mark.parametrize("column", [False, True], ids=["contiguous", "not contiguous"])
@every_optimizer
def test_wrapped_steps_are_those_of_the_base(kind: str, column: bool) -> None:
    """Trajectory, loss and gradients under SWA against the plain optimizer, bit for bit; averages against the mean."""
    problem, plain = Linear(column=column), Linear(column=column)
    swa = SWA(OPTIMIZERS[kind][0](problem.params), swa_start=3, swa_freq=2)
    base = OPTIMIZERS[kind][0](plain.params)
    history = []
    for step in range(1, 16):
        assert same(swa.step(problem.loss), base.step(plain.loss))
        assert same(problem.params, plain.params)
        assert same([one.grad for one in problem.params], [one.grad for one in plain.params])
        if step > 3 and step % 2 == 0:
            history.append(bits(plain.params))
    swa.swap_swa_sgd()
    for index, parameter in enumerate(problem.params):
        close_to_mean(parameter, [values[index] for values in history])


def test_muon_averages_matrices() -> None:
    """Muon, which takes matrices alone, against the float64 mean of its weights, saved and loaded in between."""
    problem, other = Linear(), Linear()
    swa, resumed = (SWA(torch.optim.Muon([one.weight], lr=1e-2), swa_start=4, swa_freq=3) for one in (problem, other))
    history = []
    for step in range(1, 21):
        swa.step(problem.loss)
        if step > 4 and step % 3 == 0:
            history.append(problem.weight.detach().clone())
        if step == 10:
            resumed.load_state_dict(swa.state_dict())
            other.weight.data.copy_(problem.weight.data)
        if step > 10:
            resumed.step(other.loss)
    for one in (swa, resumed):
        one.swap_swa_sgd()
    close_to_mean(problem.weight, history)
    assert torch.equal(problem.weight, other.weight)


class Torchcontrib:
    """The algorithm of torchcontrib 0.0.2, tensor by tensor: what the wrapper has to do in automatic mode."""

    def __init__(self, optimizer: torch.optim.Optimizer, start: int, freq: int, rate: float | None) -> None:
        self.optimizer, self.start, self.freq, self.rate = optimizer, start, freq, rate
        self.averages: dict[Tensor, Tensor] = {}
        self.steps = self.num_averaged = 0

    def step(self) -> None:
        if self.rate is not None and self.steps >= self.start:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate
        self.optimizer.step()
        self.steps += 1
        if self.steps > self.start and self.steps % self.freq == 0:
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    average = self.averages.setdefault(parameter, torch.zeros_like(parameter))
                    average += (parameter.detach() - average) * (1 / float(self.num_averaged + 1))
            self.num_averaged += 1


@pytest.mark.parametrize("rate", [None, 1e-4, 0.0])
@pytest.mark.parametrize(("start", "freq"), [(0, 1), (0, 3), (1, 1), (5, 1), (5, 2), (5, 7), (6, 3), (20, 1), (30, 2)])
def test_automatic_mode_is_torchcontribs_algorithm(start: int, freq: int, rate: float | None) -> None:
    """Every step of SWA on SGD with momentum against the original: weights and rates in bits, averages to 1e-6."""
    x, y, backward, base = product_problem()
    u, v, original_backward, original_base = product_problem()
    swa, original = SWA(base, start, freq, rate), Torchcontrib(original_base, start, freq, rate)
    for _ in range(30):
        backward()
        original_backward()
        swa.step()
        original.step()
        assert same(bits([x, y]), bits([u, v]))
        for group, expected in zip(swa.param_groups, original_base.param_groups, strict=True):
            assert group["lr"] == expected["lr"]
            assert (group["n_avg"], group["step_counter"]) == (original.num_averaged, original.steps)
        for ours, theirs in ((x, u), (y, v)):
            if theirs in original.averages:
                torch.testing.assert_close(
                    swa.state[ours]["swa_buffer"].float(), original.averages[theirs], rtol=1e-6, atol=1e-6
                )
            else:
                assert not swa.state[ours]


@pytest.mark.parametrize("mode", ["auto", "manual"])
def test_averages_are_the_mean(mode: str) -> None:
    """The weights after the swap against the float64 mean of those of steps 6, 8 and 10."""
    x, y, backward, base = product_problem()
    swa = SWA(base, swa_start=5, swa_freq=2, swa_lr=0.001) if mode == "auto" else SWA(base)
    history = []
    for step in range(1, 11):
        backward()
        swa.step()
        if step > 5 and step % 2 == 0:
            history.append(bits([x, y]))
            if mode == "manual":
                swa.update_swa()
    swa.swap_swa_sgd()
    close_to_mean(x, [values[0] for values in history])
    close_to_mean(y, [values[1] for values in history])


def test_only_the_averaged_group_is_swapped() -> None:
    """One group of two averaged by hand: it takes its mean, the other stays and is told."""
    x, y, backward, base = product_problem()
    swa, history = SWA(base), []
    for step in range(1, 11):
        backward()
        swa.step()
        if step > 5:
            swa.update_swa_group(swa.param_groups[1])
            history.append(y.detach().clone())
    before = x.detach().clone()
    with pytest.warns(UserWarning, match="SWA wasn't applied") as told:
        swa.swap_swa_sgd()
    assert [str(warning.message) for warning in told] == [
        f"SWA wasn't applied to param {x}; skipping it (params[0] of param_groups[0])"
    ]
    assert told[0].filename == __file__
    assert torch.equal(x, before)
    close_to_mean(y, history)
    assert [group["n_avg"] for group in swa.param_groups] == [0, 5]


@pytest.mark.parametrize("through", ["wrapper", "base"])
def test_a_group_added_during_the_run_waits_for_swa_start_of_its_own(through: str) -> None:
    """A group added after ten steps: its average begins five steps later, as does its rate; the first goes on."""
    x, y, backward, _ = product_problem()
    swa = SWA(torch.optim.SGD([x], lr=1e-3, momentum=0.9), swa_start=5, swa_freq=2, swa_lr=1e-4)
    of_x: list[Tensor] = []
    of_y: list[Tensor] = []
    for step in range(1, 22):
        if step == 12:
            (swa if through == "wrapper" else swa.optimizer).add_param_group({"params": y, "lr": 1e-5})
            assert through == "base" or swa.param_groups[1]["n_avg"] == swa.param_groups[1]["step_counter"] == 0
        backward()
        swa.step()
        if step > 5 and step % 2 == 0:
            of_x.append(x.detach().clone())
        since = step - 11
        if since > 5 and since % 2 == 0:
            of_y.append(y.detach().clone())
        if since > 0:
            assert [group["lr"] for group in swa.param_groups] == [1e-4, 1e-4 if since > 5 else 1e-5]
    swa.swap_swa_sgd()
    close_to_mean(x, of_x)
    close_to_mean(y, of_y)


def test_swa_lr_from_swa_start_on() -> None:
    """The rate after each step against swa_lr from the step after swa_start; a rate in a tensor stays that tensor."""
    x, _, backward, _ = product_problem()
    held = torch.tensor(1e-2)
    for rate in (1e-2, held):
        swa = SWA(torch.optim.SGD([x], lr=rate), swa_start=5, swa_freq=2, swa_lr=0.25)
        for step in range(1, 11):
            backward()
            swa.step()
            assert float(swa.param_groups[0]["lr"]) == pytest.approx(0.25 if step > 5 else 1e-2)
    assert swa.param_groups[0]["lr"] is held


def test_swa_lr_is_ignored_in_manual_mode() -> None:
    """swa_lr without swa_start and swa_freq: a warning, and the base's rates stay."""
    _, _, backward, base = product_problem()
    with pytest.warns(UserWarning, match="Some of swa_start, swa_freq is None, ignoring swa_lr"):
        swa = SWA(base, swa_lr=1e-3)
    for _ in range(10):
        backward()
        swa.step()
        assert [group["lr"] for group in swa.param_groups] == [1e-2, 1e-3]


@pytest.mark.parametrize("start", [None, 5])
@pytest.mark.parametrize("freq", [None, 2])
@pytest.mark.parametrize("rate", [None, 1e-3])
@pytest.mark.filterwarnings("always:Some of swa_start")
def test_automatic_mode_takes_start_and_freq(
    start: int | None, freq: int | None, rate: float | None, recwarn: pytest.WarningsRecorder
) -> None:
    """All combinations of settings: automatic if and only if both are given; whatever is ignored is warned of."""
    swa = SWA(product_problem()[-1], swa_start=start, swa_freq=freq, swa_lr=rate)
    auto = start is not None and freq is not None
    assert swa._auto_mode == auto
    assert (swa.swa_start, swa.swa_freq, swa.swa_lr) == ((start, freq, rate) if auto else (None, None, None))
    expected = ["Some of swa_start, swa_freq is None, ignoring other"] if (start is None) != (freq is None) else []
    if not auto and rate is not None:
        expected.append("Some of swa_start, swa_freq is None, ignoring swa_lr")
    assert [str(warning.message) for warning in recwarn] == expected
    assert all(warning.filename == __file__ for warning in recwarn)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"swa_start": 1, "swa_freq": 2, "swa_lr": -1e-4}, "Invalid SWA learning rate: -0.0001"),
        ({"swa_start": 1, "swa_freq": 0, "swa_lr": 1e-4}, "Invalid swa_freq: 0"),
        ({"swa_start": -1, "swa_freq": 0, "swa_lr": 1e-4}, "Invalid swa_start: -1"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    """Each setting out of range against the ValueError of torchcontrib; the base stays as it was."""
    base = product_problem()[-1]
    with pytest.raises(ValueError, match=message):
        SWA(base, **settings)
    assert "n_avg" not in base.param_groups[0]


def test_settings_are_cast_with_a_warning() -> None:
    """Fractions and whole floats for steps against torchcontrib: cut to int, told."""
    with pytest.warns(UserWarning, match="Casting swa_start, swa_freq to int"):
        swa = SWA(product_problem()[-1], swa_start=5.7, swa_freq=2.0)  # type: ignore[arg-type]
    assert (swa.swa_start, swa.swa_freq) == (5, 2)


class Normed(nn.Module):
    """One layer and its BatchNorm: the statistics that belong to it are those of the layer's output."""

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm = layer, norm

    def forward(self, inputs: Tensor) -> Tensor:
        return self.norm(self.layer(inputs))


NETWORKS = {
    "linear": lambda: (Normed(nn.Linear(5, 20), nn.BatchNorm1d(20)), torch.rand(103, 5)),
    "convolution": lambda: (Normed(nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10, momentum=0.3)), torch.rand(103, 3, 5, 5)),
}


@pytest.mark.parametrize("labels", [False, True], ids=["no labels", "labels"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("network", NETWORKS)
def test_bn_update_gives_the_statistics_of_the_dataset(network: str, training: bool, labels: bool) -> None:
    """103 samples in batches of 5 against float64 mean and variance of all; mode and momentum stay."""
    torch.manual_seed(0)
    model, inputs = NETWORKS[network]()
    model.train(training)
    momentum = model.norm.momentum
    data = TensorDataset(inputs, torch.arange(103)) if labels else inputs
    loader: DataLoader = DataLoader(data, batch_size=5, shuffle=True)  # type: ignore[arg-type]
    swa = SWA(torch.optim.SGD(model.parameters(), lr=1e-3))
    swa.bn_update(loader, model, device="cpu")
    values = copy.deepcopy(model.layer).double()(inputs.double()).transpose(0, 1).flatten(1).detach()
    torch.testing.assert_close(model.norm.running_mean.double(), values.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.norm.running_var.double(), values.var(1), rtol=1e-5, atol=1e-6)
    assert {module.training for module in model.modules()} == {training}
    assert model.norm.momentum == momentum
    assert SWA.bn_update(loader, nn.Linear(5, 1)).num_layers == 0


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "CyclicLR": lambda one: lr_scheduler.CyclicLR(one, 1e-4, 1e-3, step_size_up=3),
    "OneCycleLR": lambda one: lr_scheduler.OneCycleLR(one, 1e-3, total_steps=20),
    "LambdaLR": lambda one: lr_scheduler.LambdaLR(one, lambda step: 1 / (step + 1)),
    "CosineAnnealingLR": lambda one: lr_scheduler.CosineAnnealingLR(one, 20),
    "SequentialLR": lambda one: lr_scheduler.SequentialLR(
        one, [lr_scheduler.LinearLR(one), lr_scheduler.StepLR(one, 3)], [4]
    ),
    "ReduceLROnPlateau": lambda one: lr_scheduler.ReduceLROnPlateau(one, patience=1),
}


@pytest.mark.parametrize("kind", ["SGD momentum", "Adam"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_on_the_wrapper(scheduler: str, kind: str) -> None:
    """Rates, momenta and weights under each scheduler on SWA against the same on the plain optimizer, in bits.

    The wrapped one is saved and loaded into a new one halfway.
    """
    problem, plain = Linear(), Linear()
    base = OPTIMIZERS[kind][0](plain.params)
    swa = SWA(OPTIMIZERS[kind][0](problem.params), swa_start=3, swa_freq=2)
    schedules = [SCHEDULERS[scheduler](one) for one in (swa, base)]
    for step in range(12):
        if step == 6:
            fresh = SWA(OPTIMIZERS[kind][0](problem.params), swa_start=3, swa_freq=2)
            schedule = SCHEDULERS[scheduler](fresh)
            schedule.load_state_dict(schedules[0].state_dict())
            fresh.load_state_dict(swa.state_dict())
            swa, schedules[0] = fresh, schedule
        swa.step(problem.loss)
        base.step(plain.loss)
        for schedule in schedules:
            schedule.step(*([1.0] if scheduler == "ReduceLROnPlateau" else []))
        for group, expected in zip(swa.optimizer.param_groups, base.param_groups, strict=True):
            for key in {"lr", "momentum", "betas"} & expected.keys():
                assert group[key] == expected[key], (step, key)
    assert same(problem.params, plain.params)
    assert len({float(group["lr"]) for group in base.param_groups} - {1e-3, 1e-2}) > 0


def test_groups_are_those_of_the_base() -> None:
    """A rate set on the wrapper, also after loads of either: the base has it."""
    _, _, _, base = product_problem()
    swa = SWA(base, 5, 2)
    assert isinstance(swa, torch.optim.Optimizer)
    for load in (
        lambda: None,
        lambda: swa.load_state_dict(swa.state_dict()),
        lambda: base.load_state_dict(base.state_dict()),
        lambda: setattr(swa, "param_groups", list(swa.param_groups)),
    ):
        load()
        assert swa.param_groups is base.param_groups
        swa.param_groups[1]["lr"] *= 2
    assert base.param_groups[1]["lr"] == 2**4 * 1e-3
    assert swa.defaults is base.defaults
    assert swa.opt_state is base.state


def test_hooks_run_once_each() -> None:
    """Hooks of steps and state dicts on wrapper and base: each once, with its optimizer, in the order of events."""
    _, _, backward, base = product_problem()
    swa = SWA(base, 0, 1)
    seen: list[str] = []
    for name, one in (("swa", swa), ("base", base)):
        for place in ("step_pre", "step_post", "state_dict_pre", "load_state_dict_post"):
            event = f"{name} {place}"
            getattr(one, f"register_{place}_hook")(
                lambda found, *_, event=event, one=one: seen.append(event if found is one else "another optimizer")
            )
    swa.register_state_dict_post_hook(lambda _, state: {**state, "note": "kept"})
    swa.register_load_state_dict_pre_hook(lambda _, state: seen.append(state.pop("note")))
    backward()
    swa.step()
    swa.load_state_dict(swa.state_dict())
    assert seen == [
        *("swa step_pre", "base step_pre", "base step_post", "swa step_post"),
        *("swa state_dict_pre", "base state_dict_pre", "kept", "base load_state_dict_post", "swa load_state_dict_post"),
    ]


def test_closure_and_gradients() -> None:
    """The closure's loss comes back from step; zero_grad clears as the base does."""
    x, _, backward, base = product_problem()
    swa = SWA(base)
    assert swa.step(backward).item() == 29.0**2  # type: ignore[union-attr]
    assert swa.step() is None
    swa.zero_grad(set_to_none=False)
    assert torch.equal(x.grad, torch.zeros(2))  # type: ignore[arg-type]
    swa.zero_grad()
    assert x.grad is None


@pytest.mark.parametrize("fused", [False, True], ids=["foreach", "fused"])
def test_grad_scaler(fused: bool) -> None:
    """fp16 scaling on the wrapper against plain steps; a step that overflows counts for nothing."""
    problem, plain = Linear(), Linear()
    swa = SWA(torch.optim.SGD(problem.params, lr=1e-2, fused=fused), swa_start=0, swa_freq=1)
    base = torch.optim.SGD(plain.params, lr=1e-2, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(6):
        problem.loss()
        for parameter in problem.params:
            assert parameter.grad is not None
            parameter.grad *= scaler.get_scale() if step != 2 else float("inf")
        scaler.scale(torch.ones(()))
        scaler.step(swa)
        scaler.update()
        if step != 2:
            base.step(plain.loss)
    assert same(problem.params, plain.params)
    assert swa.param_groups[0]["n_avg"] == swa.param_groups[0]["step_counter"] == 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_averages_are_wide_and_survive_swaps(dtype: torch.dtype) -> None:
    """500 weight sets of each type against their float64 mean to 1e-6, with swaps and reloads in between."""
    weight = torch.ones(50, dtype=dtype, requires_grad=True)
    swa, history = SWA(torch.optim.SGD([weight], lr=1.0)), []
    generator = torch.Generator().manual_seed(0)
    for step in range(500):
        weight.data.copy_(1 + torch.randn(50, generator=generator))
        swa.update_swa()
        history.append(weight.detach().double().clone())
        if step % 50 == 0:
            swa.swap_swa_sgd()
            swa.load_state_dict(swa.state_dict())  # a state saved while swapped is one, too
            swa.swap_swa_sgd()
            assert torch.equal(weight.detach().double(), history[-1])
    mean = torch.stack(history).mean(0)
    assert (swa.state[weight]["swa_buffer"].double() - mean).abs().max() < 1e-6
    swa.swap_swa_sgd()
    assert torch.equal(weight.detach(), mean.to(dtype)) or dtype in (torch.float32, torch.float64)


def test_same_bits_as_weight_average() -> None:
    """The averages of SWA against those of WeightAverage over the same weights, bit for bit."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2).bfloat16())
    swa, average = SWA(torch.optim.SGD(model.parameters(), lr=0.1)), WeightAverage(model)
    for seed in range(20):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        swa.update_swa()
        average.update(model)
    swa.swap_swa_sgd()
    assert same(dict(model.state_dict()), average.averaged_state())


def test_what_changed_while_swapped_is_the_average() -> None:
    """Parameters changed while they hold the averages, as after torchcontrib's swap: a swap back keeps the change."""
    x, y, _, base = product_problem()
    swa = SWA(base)
    swa.update_swa()
    swa.swap_swa_sgd()
    x.data.add_(1)
    swa.swap_swa_sgd()
    assert same(bits([x, y]), [torch.tensor([5.0, 2.0]), torch.tensor([3.0, 7.0])])
    swa.swap_swa_sgd()
    assert same(bits([x, y]), [torch.tensor([6.0, 3.0]), torch.tensor([3.0, 7.0])])


def test_averages_are_not_trained_or_averaged() -> None:
    """Steps and updates between a swap and its return: refused, and nothing changed."""
    x, y, backward, base = product_problem()
    swa = SWA(base, 0, 1)
    backward()
    swa.step()
    swa.swap_swa_sgd()
    before, state = bits([x, y]), swa.state_dict()
    for refused in (swa.step, swa.update_swa, lambda: swa.update_swa_group(swa.param_groups[0])):
        with pytest.raises(UserError, match="hold their averages"):
            refused()
    assert same(bits([x, y]), before)
    assert same(swa.state_dict(), state)


def test_weights_that_are_not_finite_enter_no_average() -> None:
    """NaN in the second group: told by name, and the averages and counts of both groups stay."""
    x, y = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    base = torch.optim.SGD([{"params": [("x", x)]}, {"params": [("y", y)]}], lr=0.1)
    swa = SWA(base)
    swa.update_swa()
    state = swa.state_dict()
    x.data.add_(1)
    y.data[1] = float("nan")
    with pytest.raises(NonFiniteWeightsError, match="y holds values"):
        swa.update_swa()
    assert same(swa.state_dict(), state)


def test_copies_and_pickles_go_on() -> None:
    """A deep copy and a pickle, made with a scheduler on the wrapper, against the original that goes on."""
    problem = Linear()
    swa = make("Adam", problem.params, start=2)
    lr_scheduler.StepLR(swa, 1)
    for _ in range(5):
        swa.step(problem.loss)
    copies = [copy.deepcopy((problem, swa)), pickle.loads(pickle.dumps((problem, swa)))]
    file = io.BytesIO()
    torch.save((problem, swa), file)
    file.seek(0)
    copies.append(torch.load(file, weights_only=False))
    for _ in range(5):
        swa.step(problem.loss)
    swa.swap_swa_sgd()
    for other, copied in copies:
        assert other.weight is not problem.weight
        for _ in range(5):
            copied.step(other.loss)
        copied.swap_swa_sgd()
        assert same(bits(other.params), bits(problem.params))
        assert same(copied.state_dict(), swa.state_dict())


def averaged() -> SWA:
    """Two parameters in two groups, after four steps with averages of three."""
    _, _, backward, base = product_problem()
    swa = SWA(base, 1, 1)
    for _ in range(4):
        backward()
        swa.step()
    return swa


def test_a_state_keyed_by_addresses_throughout() -> None:
    """The state dicts of torchcontrib on the torch of its time, ids in groups and states: averages are found."""
    swa, fresh = averaged(), averaged()
    state = swa.state_dict()
    ids = {0: 140_111, 1: 140_007}
    for key in ("opt_state", "swa_state"):
        state[key] = {ids[position]: value for position, value in state[key].items()}
    for group in state["param_groups"]:
        group["params"] = [ids[position] for position in group["params"]]
    for kept in state["swa_state"].values():
        kept["swa_buffer"] = kept["swa_buffer"].float()
    fresh.load_state_dict(state)
    found, expected = fresh.state_dict()["swa_state"], swa.state_dict()["swa_state"]
    for position in (0, 1):
        assert found[position]["swa_buffer"].dtype == torch.float64
        assert torch.equal(found[position]["swa_buffer"].float(), expected[position]["swa_buffer"].float())


def address_keys(state: dict[str, Any]) -> None:
    state["swa_state"] = {140_000 + key: value for key, value in state["swa_state"].items()}


def lost_average(state: dict[str, Any]) -> None:
    del state["swa_state"][1]


def plain_optimizer(state: dict[str, Any]) -> None:
    state["state"] = state.pop("opt_state")
    del state["swa_state"]


def other_shape(state: dict[str, Any]) -> None:
    state["swa_state"][1]["swa_buffer"] = torch.zeros(3)


def one_group(state: dict[str, Any]) -> None:
    del state["param_groups"][1], state["swa_state"][1]


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (address_keys, UserError, "does not fit param_groups: parameter 140000 of 2"),
        (lost_average, UserError, "does not fit param_groups: parameter 1 of 1"),
        (plain_optimizer, UserError, "lacks opt_state, swa_state"),
        (other_shape, UserError, r"parameter 1 \[3\] instead of \[2\]"),
        (one_group, ValueError, "different number of parameter groups"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(
    damage: Callable[[dict[str, Any]], None], error: type[Exception], message: str
) -> None:
    """States of others, with keys, buffers or groups that do not fit: refused, this optimizer stays as it was."""
    swa = averaged()
    before, damaged = swa.state_dict(), swa.state_dict()
    damage(damaged)
    with pytest.raises(error, match=message):
        swa.load_state_dict(damaged)
    assert same(swa.state_dict(), before)
