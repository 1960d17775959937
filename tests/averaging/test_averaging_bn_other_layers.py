"""update_batchnorm on statistics that are not those of an eager BatchNorm layer, against what the layers are fed."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from swa_cli.averaging.batchnorm import update_batchnorm
from swa_cli.averaging.bn_layers import has_batchnorm
from swa_cli.errors import UserError


def images(count: int = 70) -> Tensor:
    """(B, 2, 6, 6), the mean rising from sample to sample."""
    noise = torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    return noise + torch.linspace(-1, 1, count)[:, None, None, None]


class Decaying(nn.Module):
    """A norm of one's own: divides by a moving average of the batch's root mean square, and counts its batches."""

    def __init__(self, momentum: float = 0.3) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("power", torch.ones(2))
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, values: Tensor) -> Tensor:
        power = values.square().mean((0, 2, 3))
        if self.training:
            self.seen += 1
            self.power.lerp_(power.detach(), self.momentum)
        else:
            power = self.power
        return values / power.sqrt()[:, None, None]


class Centred(nn.Module):
    """A network with a statistic of its own, beside layers: nobody can measure it without switching all of it on."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(72, 3)
        self.register_buffer("centre", torch.zeros(72))
        self.register_buffer("norm_of_inputs", torch.zeros(()))  # moves, and evaluation does not read it

    def forward(self, values: Tensor) -> Tensor:
        values = values.flatten(1)
        if self.training:
            self.centre.lerp_(values.mean(0), 0.1)
            self.norm_of_inputs.copy_(values.norm())
        return self.head(values - self.centre)


class Squashed(nn.BatchNorm2d):
    """A BatchNorm by its class that keeps statistics of something else than its input."""

    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values.tanh() * 3 + 1)


class Ghost(nn.BatchNorm2d):
    """Statistics for each of the parts of a batch (Hoffer et al. 2017)."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__(width)
        self.parts = parts
        self.register_buffer("running_mean", torch.zeros(width * parts))
        self.register_buffer("running_var", torch.ones(width * parts))

    def forward(self, values: Tensor) -> Tensor:
        count, width, *rest = values.shape
        mean, variance = self.running_mean, self.running_var
        if not self.training:
            means = (mean.view(self.parts, -1).mean(0), variance.view(self.parts, -1).mean(0))
            return F.batch_norm(values, *means, self.weight, self.bias, False, 0.0, self.eps)
        weight, bias = self.weight.repeat(self.parts), self.bias.repeat(self.parts)
        parts = values.reshape(count // self.parts, width * self.parts, *rest)
        return F.batch_norm(parts, mean, variance, weight, bias, True, self.momentum, self.eps).view_as(values)


@pytest.mark.parametrize("momentum", [0.1, 0.4])
def test_instance_norm_has_the_mean_over_samples(momentum: float) -> None:
    """Ragged batches against each sample's own mean and unbiased variance, averaged over all samples."""
    values, layer = images(), nn.InstanceNorm2d(2, momentum=momentum, track_running_stats=True)
    update = update_batchnorm(values.split(32), nn.Sequential(layer, nn.Dropout(0.5)))
    assert (update.num_layers, update.num_samples, update.unmeasured) == (1, 70, ())
    torch.testing.assert_close(layer.running_mean, values.flatten(2).mean(2).mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.running_var, values.flatten(2).var(2).mean(0), rtol=1e-5, atol=1e-5)
    assert layer.num_batches_tracked == 0


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_scripted_batchnorm_has_the_moments_of_the_whole_set(momentum: float | None) -> None:
    """Batches whose means differ against mean and unbiased variance of all values, as for an eager layer."""
    values = images()
    model = torch.jit.script(nn.Sequential(nn.BatchNorm2d(2, momentum=momentum), nn.ReLU()))
    assert has_batchnorm(model)
    update = update_batchnorm(values.split(35), model)
    assert (update.num_layers, update.freshness) == (1, "recomputed")
    state = model.state_dict()
    torch.testing.assert_close(state["0.running_mean"], values.mean((0, 2, 3)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state["0.running_var"], values.var((0, 2, 3)), rtol=1e-5, atol=1e-5)


def test_a_norm_of_ones_own_is_measured_whatever_its_class() -> None:
    """A moving average of a statistic that we know nothing of against that statistic over all samples."""
    values, layer = images(), Decaying()
    model = nn.Sequential(nn.BatchNorm2d(2), layer)
    update = update_batchnorm(values.split(35), model)
    assert (update.num_layers, update.unmeasured) == (2, ())
    parts = [nn.functional.batch_norm(part, None, None, training=True) for part in values.split(35)]
    right = torch.cat(parts).square().mean((0, 2, 3))
    torch.testing.assert_close(layer.power, right, rtol=1e-5, atol=1e-5)
    assert layer.seen == 0


@pytest.mark.parametrize("make", [Decaying, lambda: nn.InstanceNorm2d(2, track_running_stats=True)])
@pytest.mark.parametrize("frozen_from", [0, 1])
def test_layers_of_other_kinds_that_forward_puts_into_eval_mode(make, frozen_from: int) -> None:
    """From the first batch on: as if frozen before. From a later one on: its buffers stay and are named."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = make(), nn.BatchNorm2d(2)

        def forward(self, values: Tensor) -> Tensor:
            if values.mean() > (-9, 0)[frozen_from]:
                self.layer.eval()
            return self.norm(self.layer(values))

    model, oracle, values = Net(), Net(), images()
    for buffer in (*model.layer.buffers(), *oracle.layer.buffers()):
        _ = buffer.fill_(0.5) if buffer.is_floating_point() else buffer
    before = {name: value.clone() for name, value in model.layer.named_buffers()}
    update = update_batchnorm(values.split(35), model)
    oracle.layer.eval()
    update_batchnorm(values.split(35), oracle)
    assert update.num_layers == 1
    assert len(update.unmeasured) == frozen_from * sum(value.is_floating_point() for value in before.values())
    for name, value in model.layer.named_buffers():
        assert torch.equal(value, before[name]), name
    assert torch.equal(model.norm.running_var, oracle.norm.running_var)


def test_a_norm_of_ones_own_that_some_batches_feed_nothing() -> None:
    """A routed layer against its statistic over the batches that reach it."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Decaying()

        def forward(self, values: Tensor) -> Tensor:
            return self.layer(values) if values.mean() < 0 else values

    model, values = Net(), images()
    update_batchnorm(values.split(10), model)
    fed = [part for part in values.split(10) if part.mean() < 0]
    assert 0 < len(fed) < 7
    torch.testing.assert_close(model.layer.power, torch.cat(fed).square().mean((0, 2, 3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e8m0fnu])
@pytest.mark.parametrize(("moves", "is_read"), [(False, True), (True, False), (True, True)])
def test_buffers_of_8_bit_floats(dtype: torch.dtype, moves: bool, is_read: bool) -> None:
    """Such a buffer is no running statistic; it is named where training moves it and evaluation reads it."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(2)
            self.register_buffer("scale", torch.ones(2).to(dtype))

        def forward(self, values: Tensor) -> Tensor:
            if moves and self.training:
                self.scale.copy_(torch.full((2,), 4.0))
            return self.norm(values) * (self.scale.float()[:, None, None] if is_read else 1)

    model = Scaled()
    update = update_batchnorm(images().split(35), model)
    assert (update.num_layers, update.unmeasured) == (1, ("scale",) * (moves and is_read))
    assert torch.equal(model.scale.float(), torch.ones(2))


@pytest.mark.parametrize("moves", [False, True])
def test_expanded_buffers(moves: bool) -> None:
    """A buffer whose elements share memory keeps its values, also where training puts another in its place."""

    class Expanded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(2)
            self.register_buffer("table", torch.arange(6.0).expand(2, 6, 6), persistent=False)

        def forward(self, values: Tensor) -> Tensor:
            if moves and self.training:
                self.table = self.table + values.mean(0)
            return self.norm(values) + self.table

    model = Expanded()
    update = update_batchnorm(images().split(35), model)
    assert (update.num_layers, update.unmeasured) == (1, ("table",) * moves)
    assert torch.equal(model.table, torch.arange(6.0).expand(2, 6, 6))
    torch.testing.assert_close(model.norm.running_mean, images().mean((0, 2, 3)), rtol=1e-5, atol=1e-5)


class FixedNorm(nn.BatchNorm2d):
    """A BatchNorm by its class that always normalises by the statistics it has."""

    def forward(self, values: Tensor) -> Tensor:
        return F.batch_norm(values, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


@pytest.mark.parametrize("method", ["pooled", "exact"])
def test_a_class_that_never_moves_its_statistics_is_frozen(method: str) -> None:
    """No warning of buffers that training moves, and the layer behind against what the fixed statistics give."""
    values, model = images(), nn.Sequential(FixedNorm(2), nn.BatchNorm2d(2))
    model[0].running_mean.fill_(0.5)
    update = update_batchnorm(values.split(35), model, method=method)
    assert (update.num_layers, update.unmeasured) == (1, ())
    torch.testing.assert_close(model[1].running_mean, values.mean((0, 2, 3)) - 0.5, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["pooled", "exact"])
def test_a_layer_whose_own_forward_never_moves_its_statistics_is_frozen(method: str) -> None:
    """As above, with the forward of the object in place of that of its class."""
    values, model = images(), nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    model[0].running_mean.fill_(0.5)
    model[0].forward = MethodType(FixedNorm.forward, model[0])
    update = update_batchnorm(values.split(35), model, method=method)
    assert (update.num_layers, update.unmeasured) == (1, ())
    torch.testing.assert_close(model[1].running_mean, values.mean((0, 2, 3)) - 0.5, rtol=1e-4, atol=1e-4)


class Proxy:
    """Stands before the forward of a layer, passes on its attributes, and changes its outputs."""

    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        self.forward = forward

    def __call__(self, values: Tensor) -> Tensor:
        return self.forward(values) * 3 + 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.forward, name)


@pytest.mark.parametrize("where", ["object", "class"])
def test_a_forward_that_was_replaced_is_executed(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layer behind one whose outputs are changed, in the object or in torch's class, against 3 y + 1."""
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    if where == "object":
        model[0].forward = Proxy(model[0].forward)
    else:
        plain = _BatchNorm.forward
        monkeypatch.setattr(_BatchNorm, "forward", lambda self, values: plain(self, values) * 3 + 1)
    assert update_batchnorm(images().split(35), model).freshness == "recomputed"
    torch.testing.assert_close(model[1].running_mean, torch.ones(2), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(model[1].running_var, torch.full((2,), 9.0), rtol=1e-2, atol=0)


class Called(nn.Module):
    """A BatchNorm whose layer is not called: through torch's class, or by the functional form."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.second, self.how = nn.BatchNorm2d(2), nn.BatchNorm2d(2), how

    def forward(self, values: Tensor) -> Tensor:
        layer = self.first
        if self.how == "class":
            return self.second(nn.BatchNorm2d.forward(layer, values))
        mean, var, training = layer.running_mean, layer.running_var, self.training
        return self.second(F.batch_norm(values, mean, var, layer.weight, layer.bias, training, 0.1))


def test_a_layer_that_nobody_calls_is_measured_by_what_moves() -> None:
    """Mean and variance against those of all values; method exact cannot measure it, and says so."""
    values, model = images(), Called("class")
    assert update_batchnorm(values.split(35), model).freshness == "recomputed"
    torch.testing.assert_close(model.first.running_mean, values.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.first.running_var, values.var((0, 2, 3)), rtol=1e-4, atol=0)
    torch.testing.assert_close(model.second.running_mean, torch.zeros(2), rtol=0, atol=1e-4)
    with pytest.raises(UserError, match=r"first\.running_mean"):
        update_batchnorm(values.split(35), model, method="exact")


def test_a_functional_batchnorm_that_only_its_network_can_train_is_named() -> None:
    """It trains where its network does, and a pass does not; the layer behind is fed what evaluation feeds it."""
    values, model = images(), Called("functional")
    update = update_batchnorm(values.split(35), model)
    assert (update.freshness, update.unmeasured) == ("partial", ("first.running_mean", "first.running_var"))
    torch.testing.assert_close(model.second.running_mean, values.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)


class Power(nn.BatchNorm2d):
    """A BatchNorm with a running statistic of its own beside torch's."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.register_buffer("power", torch.ones(num_features))

    def forward(self, values: Tensor) -> Tensor:
        power = values.square().mean((0, 2, 3)) if self.training else self.power
        if self.training:
            self.power.lerp_(power, 0.1)
        return super().forward(values) / power.sqrt()[:, None, None]


def test_a_statistic_beside_those_of_batchnorm_is_measured() -> None:
    """Against the mean square of all values."""
    values, model = images(), nn.Sequential(Power(2))
    assert update_batchnorm(values.split(35), model).freshness == "recomputed"
    torch.testing.assert_close(model[0].power, values.square().mean((0, 2, 3)), rtol=1e-4, atol=0)
    torch.testing.assert_close(model[0].running_mean, values.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)


def test_layers_that_share_statistics_get_those_of_both() -> None:
    """Against the moments of what both are fed; method exact refuses them."""
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    model[1].running_mean, model[1].running_var = model[0].running_mean, model[0].running_var
    values = images()
    fed = torch.cat([values, model[0].train()(values).detach()])
    assert update_batchnorm([values], model).freshness == "recomputed"
    torch.testing.assert_close(model[1].running_mean, fed.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model[1].running_var, fed.var((0, 2, 3)), rtol=1e-4, atol=0)
    with pytest.raises(UserError, match="shares"):
        update_batchnorm([values], model, method="exact")


class Clamped(nn.BatchNorm2d):
    """Keeps the statistics of clamped values, whose mean may be that of its input."""

    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values.clamp(-1, 1))


def test_exact_does_not_take_the_input_for_what_a_layer_keeps_of_it() -> None:
    """Values with a mean of 0; pooled takes what the layer keeps."""
    values, model = images(), nn.Sequential(Clamped(2))
    values = torch.cat([values, -values])
    assert update_batchnorm([values], model, method="exact").freshness == "partial"
    assert update_batchnorm([values], model).freshness == "recomputed"
    torch.testing.assert_close(model[0].running_var, values.clamp(-1, 1).var((0, 2, 3)), rtol=1e-4, atol=0)


class Functional(nn.BatchNorm2d):
    """A forward of its own that keeps what torch's keeps."""

    def forward(self, values: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(values, mean, var, self.weight, self.bias, self.training, self.momentum)


def test_a_rounded_mean_is_the_mean_of_the_input() -> None:
    """In bf16, far from 0 and with a small deviation."""
    model = nn.Sequential(Functional(2)).bfloat16()
    assert update_batchnorm([(images() / 4 + 30.06).bfloat16()], model).freshness == "recomputed"
    torch.testing.assert_close(model[0].running_mean.float(), torch.full((2,), 30.0), rtol=1e-2, atol=0)


def test_synchronized_batchnorm_and_layers_without_a_count() -> None:
    """torch's SyncBatchNorm requires its count; a layer may have none."""
    values, model = images(), nn.Sequential(nn.SyncBatchNorm(2), nn.BatchNorm2d(2))
    del model[1]._buffers["num_batches_tracked"]
    model[1].num_batches_tracked = None
    assert update_batchnorm(values.split(35), model).num_layers == 2
    torch.testing.assert_close(model[0].running_mean, values.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)


def test_a_class_that_never_moves_its_statistics_is_frozen_behind_values_around_0() -> None:
    """The mean that it is fed is that of its zeroed buffer."""
    model = nn.Sequential(nn.BatchNorm2d(2), FixedNorm(2))
    assert update_batchnorm(images().split(35), model).num_layers == 1
    assert torch.equal(model[1].running_var, torch.ones(2))


def test_a_layer_with_the_forward_of_another_one_keeps_its_statistics() -> None:
    """It never moves them."""
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    model[1].running_mean.fill_(0.5)
    model[1].forward = model[0].forward
    assert update_batchnorm(images().split(35), model).num_layers == 1
    assert torch.equal(model[1].running_mean, torch.full((2,), 0.5))


class Spare(nn.Module):
    """A lazy layer that no sample reaches, and one that its forward casts."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.spare = nn.BatchNorm2d(2).bfloat16(), nn.LazyBatchNorm2d()

    def forward(self, values: Tensor) -> Tensor:
        return self.norm.float()(values)


@pytest.mark.parametrize("method", ["pooled", "exact"])
def test_lazy_and_cast_layers(method: str) -> None:
    """One layer is measured."""
    values, model = images(), Spare()
    assert update_batchnorm(values.split(35), model, method=method).num_layers == 1
    torch.testing.assert_close(model.norm.running_mean.float(), values.mean((0, 2, 3)), rtol=1e-2, atol=1e-3)


def test_what_nobody_can_measure_is_named_and_left() -> None:
    """A buffer of the network itself against its values before; one that evaluation does not read is no concern."""
    model = Centred()
    model.centre.fill_(0.5)
    update = update_batchnorm(images().split(35), model)
    assert (update.unmeasured, update.num_layers, update.freshness) == (("centre",), 0, "partial")
    assert torch.equal(model.centre, torch.full((72,), 0.5))
    assert model.norm_of_inputs == 0


class Renorm(nn.Module):
    """Batch Renormalization (Ioffe 2017): training normalises by the running statistics, within bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((2,), 0.5))
        self.register_buffer("deviation", torch.full((2,), 1.5))

    def forward(self, values: Tensor) -> Tensor:
        if not self.training:
            return (values - self.mean[:, None, None]) / self.deviation[:, None, None]
        mean, deviation = values.mean((0, 2, 3)), values.std((0, 2, 3))
        ratio = (deviation / self.deviation).clamp(1 / 3, 3)
        shift = ((mean - self.mean) / self.deviation).clamp(-5, 5)
        self.mean.lerp_(mean, 0.1)
        self.deviation.lerp_(deviation, 0.1)
        scaled = (values - mean[:, None, None]) / deviation[:, None, None]
        return scaled * ratio[:, None, None] + shift[:, None, None]


class RunningScale(nn.Module):
    """Divides by a running deviation, in training as in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("deviation", torch.full((2,), 2.0))

    def forward(self, values: Tensor) -> Tensor:
        if self.training:
            self.deviation.lerp_(values.std((0, 2, 3)), 0.1)
        return values / self.deviation[:, None, None]


class Observed(nn.Module):
    """Quantizes by a range that an observer inside keeps, in every mode."""

    def __init__(self) -> None:
        super().__init__()
        self.observer = RunningScale()
        self.register_buffer("step", torch.ones(2))

    def forward(self, values: Tensor) -> Tensor:
        self.observer.deviation.lerp_(values.std((0, 2, 3)), 0.1)
        self.step.copy_(self.observer.deviation / 16)
        return (values / self.step[:, None, None]).round() * self.step[:, None, None]


@pytest.mark.parametrize("make", [Renorm, RunningScale])
@pytest.mark.parametrize("method", ["pooled", "exact"])
def test_a_layer_that_training_normalises_by_is_named_and_left(make, method: str) -> None:
    """BatchNorm behind it, against the moments of what evaluation feeds it; the layer against its values before."""
    values, model = images(), nn.Sequential(make(), nn.BatchNorm2d(2))
    kept = {name: value.clone() for name, value in model[0].named_buffers()}
    update = update_batchnorm(values.split(35), model, method=method)
    assert (update.unmeasured, update.freshness) == (tuple(f"0.{name}" for name in kept), "partial")
    assert all(torch.equal(value, kept[name]) for name, value in model[0].named_buffers())
    fed = model.eval()[0](values)
    torch.testing.assert_close(model[1].running_mean, fed.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[1].running_var, fed.var((0, 2, 3)), rtol=1e-5, atol=1e-6)


def test_an_observer_that_quantizes_what_batchnorm_is_fed() -> None:
    """Statistics behind it, against those of its inputs, from which its outputs differ by a step at most."""
    values, model = images(), nn.Sequential(Observed(), nn.BatchNorm2d(2))
    update = update_batchnorm(values.split(35), model)
    assert (update.unmeasured, update.freshness) == (("0.observer.deviation",), "partial")
    assert torch.equal(model[0].observer.deviation, torch.full((2,), 2.0))
    torch.testing.assert_close(model[1].running_mean, values.mean((0, 2, 3)), rtol=0, atol=0.01)
    torch.testing.assert_close(model[1].running_var, values.var((0, 2, 3)), rtol=0.01, atol=0)


def test_other_norms_beside_a_layer_that_is_left_are_measured() -> None:
    """Norms before and after it, against what they are fed."""
    norms = [Decaying(), nn.InstanceNorm2d(2, track_running_stats=True)]
    model, values = nn.Sequential(norms[0], RunningScale(), norms[1], nn.BatchNorm2d(2)), images()
    update = update_batchnorm([values], model)
    assert (update.num_layers, update.unmeasured) == (3, ("1.deviation",))
    power = values.square().mean((0, 2, 3))
    torch.testing.assert_close(norms[0].power, power, rtol=1e-5, atol=1e-6)
    fed = values / power.sqrt()[:, None, None] / 2
    torch.testing.assert_close(norms[1].running_mean, fed.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norms[1].running_var, fed.var((2, 3)).mean(0), rtol=1e-4, atol=1e-5)


class Largest(nn.Module):
    """A running maximum, which a batch moves or does not; with a layer inside, or without."""

    def __init__(self, largest: float, inside: nn.Module | None) -> None:
        super().__init__()
        self.inside = inside
        self.register_buffer("largest", torch.tensor(largest))

    def forward(self, values: Tensor) -> Tensor:
        values = values if self.inside is None else self.inside(values)
        if self.training:
            self.largest.copy_(torch.maximum(self.largest, values.abs().max()))
        return values / self.largest


@pytest.mark.parametrize("largest", [1e-3, 50.0])
@pytest.mark.parametrize("inside", [nn.BatchNorm2d(2), None])
def test_a_running_maximum_is_named_whether_a_batch_moves_it_or_not(largest: float, inside: nn.Module | None) -> None:
    """The buffer against its value before, and what is said of it."""
    model = Largest(largest, inside)
    update = update_batchnorm(images().split(35), model)
    assert (update.unmeasured, update.moved, update.freshness) == (("largest",), ("largest",), "partial")
    assert float(model.largest) == pytest.approx(largest)


class Positions(nn.Module):
    """A cache in a buffer: made anew for another number of samples, as timm's ConViT keeps its distances."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.register_buffer("cache", torch.zeros(1), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        if len(self.cache) != len(values):
            self.cache = torch.arange(float(len(values)))
        return values * self.weight + self.cache[:, None]


def test_a_cache_of_another_shape_is_no_statistic() -> None:
    """A buffer that a forward pass replaces by one of another shape, against a model without statistics."""
    model = Positions().train()
    update = update_batchnorm([torch.ones(6, 2)], model)
    assert (update.unmeasured, update.moved, update.freshness) == ((), (), "none")
    assert model.cache.shape == (1,)


@pytest.mark.parametrize("method", ["pooled", "exact"])
def test_a_batchnorm_that_keeps_something_else_is_named_and_left(method: str) -> None:
    """A subclass with statistics of another tensor than its input, beside a layer that is measured as ever."""
    values, model = images(), nn.Sequential(nn.BatchNorm2d(2), Squashed(2), nn.BatchNorm2d(2))
    model[1].running_mean.fill_(0.5)
    loader = iter(values.split(35)) if method == "pooled" else values.split(35)  # the trial costs no batch
    update = update_batchnorm(loader, model, method=method)
    assert (update.unmeasured, update.num_layers) == (("1.running_mean", "1.running_var"), 2)
    assert torch.equal(model[1].running_mean, torch.full((2,), 0.5))
    seen = model[:2].eval()(values) if method == "exact" else None  # what the layer behind it is fed
    if seen is not None:
        torch.testing.assert_close(model[2].running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model[0].running_mean, values.mean((0, 2, 3)), rtol=1e-5, atol=1e-5)


def test_statistics_of_parts() -> None:
    """Ghost BatchNorm: the mean over its parts against the mean of all values; method exact does not have parts."""
    values, model = images(72), nn.Sequential(Ghost(2, 4))
    assert update_batchnorm(values.split(24), model).num_layers == 1
    found = model[0].running_mean.view(4, 2).mean(0)
    torch.testing.assert_close(found, values.mean((0, 2, 3)), rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match=r"^0: .*parts"):
        update_batchnorm(values.split(24), model, method="exact")


def test_exact_refuses_what_is_not_batchnorm() -> None:
    """InstanceNorm beside BatchNorm against the promise that no method gives what another one would."""
    model = nn.Sequential(nn.BatchNorm2d(2), nn.InstanceNorm2d(2, track_running_stats=True))
    with pytest.raises(UserError, match=r"^1\.running_mean: .*exact") as error:
        update_batchnorm(images().split(35), model, method="exact")
    assert "pooled" in error.value.hint


@pytest.mark.parametrize("make", [lambda: nn.BatchNorm2d(2), lambda: nn.InstanceNorm2d(2, track_running_stats=True)])
def test_frozen_statistics_are_called_frozen(make) -> None:
    """A layer in eval mode inside a model in training mode keeps its statistics to the bit, and the update says so."""
    model = nn.Sequential(make(), nn.Conv2d(2, 2, 1))
    model[0].eval()
    model[0].running_mean.fill_(0.25)
    update = update_batchnorm(images().split(35), model)
    assert (update.num_layers, update.num_samples, update.freshness) == (0, 0, "frozen")
    assert torch.equal(model[0].running_mean, torch.full((2,), 0.25))


def test_constant_buffers_and_growing_ones_stay() -> None:
    """A positional table and a memory that grows against the tensors that were there before."""

    class Memory(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.rand(2, 6, 6))
            self.register_buffer("seen", torch.zeros(0))
            self.norm = nn.BatchNorm2d(2)

        def forward(self, values: Tensor) -> Tensor:
            if self.training:
                self.seen = torch.cat([self.seen, values.mean().reshape(1)])
            return self.norm(values + self.table)

    model = Memory()
    before = {name: value.clone() for name, value in model.named_buffers()}
    update = update_batchnorm(images().split(35), model)
    assert (update.num_layers, update.unmeasured) == (1, ())
    for name in ("table", "seen"):
        assert torch.equal(model.get_buffer(name), before[name])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("script", [lambda model: model, torch.jit.script])
def test_a_buffer_that_a_forward_pass_replaces_is_restored_after_an_error(script) -> None:
    """A pass that puts another tensor in the place of a buffer and then fails, against the values before."""

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(2)
            self.register_buffer("level", torch.full((2,), 0.5))

        def forward(self, values: Tensor) -> Tensor:
            values = self.norm(values)
            if self.training:
                self.level = values.mean((0, 2, 3)) + 1
                raise RuntimeError("broken")
            return values

    model = script(Broken())
    before = {name: value.clone() for name, value in model.named_buffers()}
    with pytest.raises(Exception, match="broken"):
        update_batchnorm(images().split(35), model)
    for name, value in model.named_buffers():
        assert torch.equal(value, before[name]), name
