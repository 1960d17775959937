"""update_batchnorm against float64 statistics of the whole set and torch.optim.swa_utils.update_bn."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from threading import Barrier

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

from swa_cli.averaging.batchnorm import BatchNormUpdate, update_batchnorm
from swa_cli.averaging.bn_layers import bn_layers, has_batchnorm
from swa_cli.engine.distributed import Share
from swa_cli.errors import UserError

METHODS = ["pooled", "exact"]


def sorted_images(num_samples: int = 70) -> Tensor:
    """Images (B, 3, 6, 6) whose mean rises from sample to sample, as if sorted by class."""
    images = torch.randn(num_samples, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return images + torch.linspace(-3, 3, num_samples)[:, None, None, None]


def network() -> nn.Sequential:
    """Three BatchNorm layers, two of them downstream of another, and dropout between."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(4, 5, 3),
        nn.BatchNorm2d(5, affine=False, momentum=None),
        nn.Flatten(),
        nn.Linear(20, 2),
    )


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def one_batch_of_everything(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The oracle: a float64 copy that sees the whole set as one batch in training mode, dropout off."""
    oracle = copy.deepcopy(model).double()
    for module in oracle.modules():
        module.training = isinstance(module, nn.modules.batchnorm._BatchNorm)
        module.momentum = 1.0
    oracle(images.double())
    return {name: value for name, value in statistics(oracle).items() if "running" in name}


def assert_statistics(model: nn.Module, expected: dict[str, Tensor], *, tolerance: float = 2e-6) -> None:
    found = statistics(model)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=tolerance, atol=tolerance, msg=name)


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[name].numpy().tobytes() == second[name].numpy().tobytes() for name in first
    )


def num_traces(model: nn.Module) -> int:
    """Hooks, and `forward`s of objects beside that of their class."""
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    return hooks + sum("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sorted_ragged_data(method: str, dtype: torch.dtype) -> None:
    """The first layer against float64 mean and variance of all samples; torch's update_bn is far off."""
    images = sorted_images().to(dtype)
    batches = images.split([30, 30, 10])
    ours, theirs = (nn.Sequential(nn.BatchNorm2d(3)).to(dtype) for _ in range(2))
    assert update_batchnorm(batches, ours, method=method) == BatchNormUpdate(1, 70, method)
    update_bn(batches, theirs)
    variance, mean = torch.var_mean(images.double(), (0, 2, 3))
    assert_statistics(ours, {"0.running_mean": mean, "0.running_var": variance})
    assert (theirs[0].running_var / variance < 0.6).all()
    assert ((theirs[0].running_mean - mean).abs() > 0.1).all()


@pytest.mark.parametrize("batch_size", [1, 7, 32, 70])
@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_exact_is_one_batch_of_the_whole_set(batch_size: int, order: str) -> None:
    """`exact` against one float64 batch of everything in training mode, for any batch size and order."""
    images, model = sorted_images(), network()
    oracle = one_batch_of_everything(model, images)
    if order == "shuffled":
        images = images[torch.randperm(70, generator=torch.Generator().manual_seed(2))]
    loader = [(batch, None) for batch in images.split(batch_size)]
    assert update_batchnorm(loader, model, method="exact") == BatchNormUpdate(3, 70, "exact")
    assert_statistics(model, oracle)


def test_pooled_depends_on_the_partition_only_downstream() -> None:
    """`pooled` against the oracle: exact in one batch and in the first layer, near below it."""
    images = sorted_images()
    model = network()
    oracle = one_batch_of_everything(model, images)
    update_batchnorm([images], model)
    assert_statistics(model, oracle)
    update_batchnorm(images.split(10), model)
    first = {name: value for name, value in oracle.items() if name.startswith("0.")}
    assert_statistics(model, first)
    in_order = (model[6].running_var.double() / oracle["6.running_var"] - 1).abs().max()
    shuffled = images[torch.randperm(70, generator=torch.Generator().manual_seed(3))]
    update_batchnorm(shuffled.split(35), model)
    assert_statistics(model, first)
    assert (model[6].running_var.double() / oracle["6.running_var"] - 1).abs().max() < in_order


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), method=st.sampled_from(METHODS))
@settings(max_examples=40)
def test_every_partition(sizes: list[int], method: str) -> None:
    """The first layer against one float64 batch, for any sizes of batches, single samples included."""
    images = sorted_images(sum(sizes))
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    oracle = one_batch_of_everything(model, images)
    found = update_batchnorm(images.split(sizes), model, method=method)
    assert found.num_samples == sum(sizes)
    layers = ("0.",) if method == "pooled" else ("0.", "2.")
    assert_statistics(model, {name: value for name, value in oracle.items() if name.startswith(layers)}, tolerance=1e-5)


@pytest.mark.parametrize(("method", "offset"), [("pooled", 300.0), ("exact", 300.0), ("exact", 1e5)])
def test_mean_far_from_zero(method: str, offset: float) -> None:
    """Values at hundreds of standard deviations from zero against float64: no cancellation."""
    images = sorted_images() + offset
    model = nn.Sequential(nn.BatchNorm2d(3))
    update_batchnorm(images.split(16), model, method=method)
    variance, mean = torch.var_mean(images.double(), (0, 2, 3))
    assert_statistics(model, {"0.running_mean": mean, "0.running_var": variance}, tolerance=1e-5)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(3), (3,)),
        (nn.BatchNorm1d(3), (3, 5)),
        (nn.BatchNorm2d(3), (3, 2, 2)),
        (nn.BatchNorm3d(3), (3, 2, 1, 2)),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_every_dimension(layer: nn.Module, shape: tuple[int, ...], method: str) -> None:
    """BatchNorm of every dimension against float64 mean and unbiased variance."""
    values = torch.randn(20, *shape, generator=torch.Generator().manual_seed(0)) * 2 + 1
    model = nn.Sequential(copy.deepcopy(layer))
    update_batchnorm(values.split(6), model, method=method)
    variance, mean = torch.var_mean(values.double().transpose(0, 1).flatten(1), 1)
    assert_statistics(model, {"0.running_mean": mean, "0.running_var": variance})


def test_tiny_last_batch_is_joined() -> None:
    """The sizes that the model is given against the rule: under half of the one before joins it."""
    images = sorted_images(24)
    for sizes, seen in (
        ([10, 10, 4], [10, 14]),
        ([10, 9, 5], [10, 9, 5]),
        ([20, 4], [24]),
        ([2, 10, 10, 2], [2, 10, 12]),
    ):
        model, given_sizes = nn.Sequential(nn.Identity(), nn.BatchNorm2d(3)), []
        model[0].register_forward_hook(lambda module, args, output, sizes=given_sizes: sizes.append(len(output)))
        update_batchnorm(images.split(sizes), model)
        assert given_sizes == [2, *seen]  # two samples show the modes of training


@pytest.mark.parametrize("method", METHODS)
def test_everything_but_the_statistics_stays(method: str) -> None:
    """Modes, momentum, counters, parameters, hooks and random state against those before."""
    model = network().train()
    model[4].eval()
    model.train = lambda mode=True: pytest.fail("train() may be overridden, to freeze layers for one")
    model[2].num_batches_tracked.fill_(41)
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" not in name}
    loader = DataLoader(TensorDataset(sorted_images(), torch.zeros(70)), batch_size=16, shuffle=True)
    random_state = torch.get_rng_state()
    update_batchnorm(loader, model, method=method)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    assert [layer.momentum for layer in bn_layers(model)] == [0.1, 0.1, None]
    assert same_bits({name: model.state_dict()[name] for name in before}, before)
    assert num_traces(model) == 0
    assert torch.is_grad_enabled()


def test_a_forward_of_the_object_is_used_and_kept() -> None:
    """A layer whose `forward` somebody has replaced, as accelerate does: called in the pass, and there after it."""
    model, calls = nn.Sequential(nn.BatchNorm2d(3)), []
    of_class = model[0].forward

    def own(images: Tensor) -> Tensor:
        calls.append(len(images))
        return of_class(images)

    model[0].forward = own
    update_batchnorm([torch.randn(8, 3, 4, 4)], model)
    assert calls == [2, 8]  # two samples show the modes of training
    assert model[0].forward is own


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("culprit", ["loader", "model"])
def test_an_error_changes_nothing(method: str, culprit: str) -> None:
    """A pass that breaks off against the model before, to the bit; torch's leaves its traces."""

    class Broken(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if culprit == "model" and self.calls == 4:
                raise RuntimeError("broken")
            return x

    class Loader:
        def __iter__(self) -> Iterator[Tensor]:
            yield from sorted_images().split(10)
            if culprit == "loader":
                raise RuntimeError("broken")

    model = nn.Sequential(network(), Broken()).eval()
    model[0].insert(3, Broken())
    update_batchnorm([sorted_images() * 2 + 1], model)
    model[1].calls = model[0][3].calls = 0
    model[0].train()
    modes = [module.training for module in model.modules()]
    before, random_state, theirs = statistics(model), torch.get_rng_state(), copy.deepcopy(model)
    with pytest.raises(RuntimeError, match="broken"):
        update_batchnorm(Loader(), model, method=method)
    assert same_bits(statistics(model), before)
    assert [module.training for module in model.modules()] == modes
    assert model[0][0].momentum == 0.1
    assert num_traces(model) == 0
    assert torch.equal(torch.get_rng_state(), random_state)
    with pytest.raises(RuntimeError, match="broken"):
        update_bn(Loader(), theirs)
    assert theirs[0][0].momentum is None
    assert not same_bits(statistics(theirs), before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batches", [[], [torch.zeros(0, 3, 6, 6)], iter(())])
def test_a_loader_without_samples_is_refused(method: str, batches: object) -> None:
    """Statistics after an empty loader against those before; torch's silently resets them."""
    model = network()
    update_batchnorm([sorted_images()], model)
    before, theirs = statistics(model), copy.deepcopy(model)
    with pytest.raises(UserError, match="no samples"):
        update_batchnorm(batches, model, method=method)
    assert same_bits(statistics(model), before)
    update_bn([], theirs)
    assert torch.equal(theirs[0].running_mean, torch.zeros(3))


@pytest.mark.parametrize("method", METHODS)
def test_frozen_layers(method: str) -> None:
    """A layer in eval mode inside a model in training mode against itself; torch's overwrites it."""
    model = network().train()
    model[0].eval()
    theirs = copy.deepcopy(model)
    found = update_batchnorm(sorted_images().split(10), model, method=method)
    update_bn(sorted_images().split(10), theirs)
    assert found.num_layers == 2
    assert torch.equal(model[0].running_mean, torch.zeros(3))
    assert not torch.equal(theirs[0].running_mean, torch.zeros(3))
    assert not torch.equal(model[2].running_mean, torch.zeros(4))


class Extractor(nn.Module):
    """A layer that `forward` puts into eval mode where `is_frozen` says so, and one downstream of it."""

    def __init__(self, is_frozen: Callable[[Tensor], bool] = lambda x: True) -> None:
        super().__init__()
        self.is_frozen = is_frozen
        self.body = nn.Sequential(nn.BatchNorm2d(3))
        self.norm = nn.BatchNorm2d(3)
        self.body[0].running_mean.fill_(0.5)
        self.body[0].running_var.fill_(4.0)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_frozen(x):
            self.body.eval()
        return self.norm(self.body(x))


def frozen_before() -> dict[str, Tensor]:
    """The oracle of `Extractor`: float64 moments of what the fixed statistics make of the images."""
    values = (sorted_images().double() - 0.5) / (4 + 1e-5) ** 0.5
    variance, mean = torch.var_mean(values, (0, 2, 3))
    fixed = {"body.0.running_mean": torch.full((3,), 0.5), "body.0.running_var": torch.full((3,), 4.0)}
    return {name: value.double() for name, value in fixed.items()} | {
        "norm.running_mean": mean,
        "norm.running_var": variance,
    }


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_layers_that_forward_puts_into_eval_mode(method: str, training: bool) -> None:
    """A frozen extractor against its own statistics to the bit, and the layer behind it against float64."""
    model = Extractor().train(training)
    read: list[int] = []
    batches = sorted_images().split(10)
    loader = (read.append(len(batch)) or batch for batch in batches) if method == "pooled" else batches
    update = update_batchnorm(loader, model, method=method)
    assert (update.num_layers, update.freshness, update.unmeasured) == (1, "recomputed", ())
    assert sum(read) in (0, 70)  # the first batch is not read again
    assert_statistics(model, frozen_before())
    assert torch.equal(model.body[0].running_mean, torch.full((3,), 0.5))
    assert [layer.momentum for layer in (model.body[0], model.norm)] == [0.1, 0.1]
    model.norm = nn.Identity()
    update = update_batchnorm(batches, model, method=method)
    assert (update.num_layers, update.num_samples, update.freshness) == (0, 0, "frozen")


class Handing(nn.Module):
    """A first layer whose mode `forward` sets by its own, in one of two ways, and one behind it."""

    def __init__(self, *, freezes: bool) -> None:
        super().__init__()
        self.norm, self.last, self.freezes = nn.BatchNorm2d(3), nn.BatchNorm2d(3), freezes

    def forward(self, images: Tensor) -> Tensor:
        if not self.freezes:
            self.norm.train(self.training)
        elif self.training:
            self.norm.eval()
        return self.last(self.norm(images))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("freezes", [True, False])
def test_modes_that_forward_sets_by_its_own(method: str, freezes: bool) -> None:
    """In the passes the root is in eval mode: frozen where training freezes, named where training moves, unchanged."""
    model = Handing(freezes=freezes)
    kept = {name: value.clone() for name, value in model.norm.named_buffers()}
    update = update_batchnorm([torch.randn(8, 3, 4, 4) for _ in range(3)], model, method=method)
    assert (update.num_layers, update.freshness) == (1, "recomputed" if freezes else "partial")
    assert update.unmeasured == (() if freezes else ("norm.running_mean", "norm.running_var"))
    assert all(torch.equal(value, kept[name]) for name, value in model.norm.named_buffers())


def test_a_layer_that_forward_freezes_in_one_of_two_calls_is_named() -> None:
    """A teacher of itself, whose mode is restored from that of the root: training moves the layer, a pass does not."""

    class Teacher(Handing):
        def forward(self, images: Tensor) -> Tensor:
            self.norm.eval()
            taught = self.norm(images)
            self.norm.train(self.training)
            return self.last(self.norm(images) + taught)

    update = update_batchnorm([torch.randn(8, 3, 4, 4) for _ in range(3)], Teacher(freezes=False))
    assert update.unmeasured == ("norm.running_mean", "norm.running_var")


@pytest.mark.parametrize("method", METHODS)
def test_modes_that_two_samples_do_not_show(method: str) -> None:
    """A forward that fails for two samples in training, and freezes: the layer stays, in groups of four."""

    class Groups(Handing):
        def forward(self, images: Tensor) -> Tensor:
            if self.training:
                images.view(4, -1)
            return super().forward(images)

    model = Groups(freezes=True)
    update = update_batchnorm([torch.randn(8, 3, 5, 5) for _ in range(3)], model, method=method)
    assert (update.num_layers, update.unmeasured) == (1, ())
    assert not model.norm.running_mean.any()


def test_a_batch_of_one_sample_shows_the_modes() -> None:
    """One value per channel, which torch cannot train on and `exact` can measure: the first layer is frozen."""

    class Pooled(Handing):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.mean((2, 3), keepdim=True))

    model, images = Pooled(freezes=True), torch.randn(6, 3, 4, 4)
    update = update_batchnorm(images.split(1), model, method="exact")
    assert (update.num_layers, update.unmeasured) == (1, ())
    assert not model.norm.running_mean.any()
    torch.testing.assert_close(model.last.running_mean, images.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_what_training_does_beside_leaves_no_trace(method: str) -> None:
    """A forward that writes into its input, moves a teacher and draws from Python and NumPy in training."""

    class Busy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.teacher, self.steps = nn.BatchNorm2d(3), nn.Linear(2, 2).requires_grad_(False), 0

        def forward(self, images: Tensor) -> Tensor:
            if self.training:
                self.teacher.weight.mul_(0.9 + random.random() / 100 + np.random.rand() / 100)
                self.steps += 1
                images.mul_(3)
            return self.norm(images)

    model, batches = Busy(), [torch.randn(8, 3, 4, 4) for _ in range(3)]
    kept, weight = [batch.clone() for batch in batches], model.teacher.weight.clone()
    random.seed(5)
    np.random.seed(5)
    update_batchnorm(batches, model, method=method)
    drawn = random.random(), np.random.rand()
    random.seed(5)
    np.random.seed(5)
    assert drawn == (random.random(), np.random.rand())
    assert torch.equal(model.teacher.weight, weight)
    assert model.steps == 0
    assert all(torch.equal(batch, own) for batch, own in zip(batches, kept, strict=True))
    torch.testing.assert_close(model.norm.running_mean, torch.cat(kept).mean((0, 2, 3)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_layers_that_forward_puts_into_eval_mode_in_some_batches(method: str) -> None:
    """Batches of higher images freeze the extractor: its statistics stay and are named; an iterator is refused."""
    model = Extractor(lambda x: bool(x.mean() > 1)).train()
    update = update_batchnorm(sorted_images().split(10), model, method=method)
    assert update.unmeasured == ("body.0.running_mean", "body.0.running_var")
    assert (update.num_layers, update.freshness) == (1, "partial")
    assert torch.equal(model.body[0].running_var, torch.full((3,), 4.0))
    assert_statistics(model, frozen_before())
    before = statistics(model)
    with pytest.raises(UserError, match="read only once"):
        update_batchnorm(iter(sorted_images().split(10)), model, method=method)
    assert same_bits(statistics(model), before)


def test_a_layer_in_both_modes_in_one_pass() -> None:
    """A layer that trains on one input and evaluates another: named, and its statistics stay in both."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.after = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            self.norm.train()
            seen = self.norm(x)
            self.norm.eval()
            return seen + self.after(self.norm(2 * x))

    images = sorted_images()
    for method in METHODS:
        model = Both()
        update = update_batchnorm(images.split(35), model, method=method)
        assert update.unmeasured == ("norm.running_mean", "norm.running_var"), method
        assert torch.equal(model.norm.running_var, torch.ones(3))
        variance, mean = torch.var_mean(2 * images.double() / (1 + 1e-5) ** 0.5, (0, 2, 3))
        assert_statistics(model, {"after.running_mean": mean, "after.running_var": variance})


@pytest.mark.parametrize("method", METHODS)
def test_processes_agree_on_the_layers_that_stay(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, of which the second freezes the extractor in its first batch: both leave it, and end equal."""
    monkeypatch.setattr(torch.compiler, "set_stance", lambda _: nullcontext())  # threads would leave each other's
    barrier, values = Barrier(2, timeout=20), [None, None]

    def run(rank: int) -> tuple[BatchNormUpdate, nn.Module]:
        def gather(value: object) -> list[object]:
            barrier.wait()
            values[rank] = copy.deepcopy(value)
            barrier.wait()
            return list(values)

        model = Extractor(lambda x: bool(x.mean() > 1)).train()
        batches = sorted_images().split(35)[rank].split(7)[:: 1 - 2 * rank]
        return update_batchnorm(batches, model, method=method, gather=gather), model

    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(run, range(2)))
    for update, model in ended:
        assert (update.num_layers, update.num_samples) == (1, 70)
        assert update.unmeasured == ("body.0.running_mean", "body.0.running_var")
        assert_statistics(model, frozen_before())


class Lockstep:
    """Collectives of processes in threads: each call has to be the same one of all, as those of torch.distributed."""

    def __init__(self, size: int) -> None:
        self._barrier, self._values = Barrier(size, timeout=20), [("", None)] * size

    def call(self, rank: int, what: str, value: object = None) -> list[object]:
        self._values[rank] = what, copy.deepcopy(value)
        self._barrier.wait()
        found = list(self._values)
        self._barrier.wait()
        assert {name for name, _ in found} == {what}
        return [theirs for _, theirs in found]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sizes", [(2, 3), (1, 3), (3, 1), (1, 2, 3), (5, 1)], ids=str)
def test_processes_with_uneven_shares_stay_in_step(
    method: str, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shares of so many batches of 10, the last one of 6: the statistics of one process, in every one."""
    monkeypatch.setattr(torch.compiler, "set_stance", lambda _: nullcontext())  # threads would leave each other's
    steps = Lockstep(len(sizes))
    images, starts = sorted_images(), [10 * sum(sizes[:rank]) for rank in range(len(sizes) + 1)]
    images, models = images[: starts[-1] - 4], [network() for _ in sizes]

    def run(rank: int) -> tuple[BatchNormUpdate, nn.Module]:
        batches = [(part, None) for part in images[starts[rank] : starts[rank + 1]].split(10)]
        share = Share(
            batches, max(sizes), partial(steps.call, rank, "gather"), check=partial(steps.call, rank, "check")
        )
        return update_batchnorm(share, models[rank], method=method, gather=share.gathered), models[rank]

    with ThreadPoolExecutor(len(sizes)) as pool:
        ended = list(pool.map(run, range(len(sizes))))
    alone = network()
    update_batchnorm(images.split(10), alone, method=method)
    for update, model in ended:
        assert update.num_samples == len(images)
        assert_statistics(model, {name: value.double() for name, value in statistics(alone).items()})


class Routed(nn.Module):
    """Each layer gets the samples of one range of means; the last one gets none. `skips` those that get none."""

    def __init__(self, *, skips: bool, make: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.skips = skips
        self.experts = nn.ModuleList(make(3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        out, route = torch.zeros_like(x), (x.mean((1, 2, 3)) > 1).long()
        for index, expert in enumerate(self.experts):
            if not self.skips or (route == index).any():
                out[route == index] = expert(x[route == index])
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_layers_that_some_batches_feed_nothing(method: str, skips: bool, dtype: torch.dtype) -> None:
    """Routed samples in sorted batches against the float64 moments of each route; a layer without any stays."""
    images, model = sorted_images().to(dtype), Routed(skips=skips).to(dtype)
    model.experts[2].running_mean.fill_(5)
    assert update_batchnorm(images.split(10), model, method=method) == BatchNormUpdate(2, 70, method)
    route = images.mean((1, 2, 3)) > 1
    for index, values in enumerate((images[~route], images[route])):
        variance, mean = torch.var_mean(values.double(), (0, 2, 3))
        expected = {f"experts.{index}.running_mean": mean, f"experts.{index}.running_var": variance}
        assert_statistics(model, expected, tolerance=2e-6 if dtype == torch.float32 else 4e-3)
    assert torch.equal(model.experts[2].running_mean.float(), torch.full((3,), 5.0))
    assert torch.equal(model.experts[2].running_var.float(), torch.ones(3))


def test_exact_refuses_layers_in_changing_order() -> None:
    """Two layers of which each comes first in some batches: none can be measured before the other."""
    model = Twice()
    model.add_module("aside", nn.BatchNorm2d(3))  # never executed, so the order is looked for in all batches
    model.forward = lambda x: model.norm(model.unused(x)) if x.mean() > 1 else model.unused(model.norm(x))
    with pytest.raises(UserError, match="another order") as caught:
        update_batchnorm(sorted_images().split(10), model, method="exact")
    assert "pooled" in caught.value.hint


@pytest.mark.parametrize("method", METHODS)
def test_a_model_in_eval_mode_is_updated(method: str) -> None:
    """All layers of a model wholly in eval mode against the same model in training mode: equal bits."""
    training, evaluating = network().train(), network().eval()
    for model in (training, evaluating):
        assert update_batchnorm(sorted_images().split(10), model, method=method).num_layers == 3
    assert same_bits(statistics(training), statistics(evaluating))
    assert not any(module.training for module in evaluating.modules())


@pytest.mark.parametrize("method", METHODS)
def test_twice_changes_no_bit(method: str) -> None:
    """A second update against the first: the old statistics have no part in the new."""
    model = network()
    model[2].running_mean.fill_(float("nan"))
    model[2].running_var.fill_(float("inf"))
    update_batchnorm(sorted_images().split(10), model, method=method)
    first = statistics(model)
    update_batchnorm(sorted_images().split(10), model, method=method)
    assert same_bits(statistics(model), first)
    assert all(value.isfinite().all() for value in first.values())


@pytest.mark.parametrize("method", METHODS)
def test_dropout_is_off(method: str) -> None:
    """Statistics behind dropout against those of the values themselves; torch's doubles the second moment."""
    images = sorted_images()
    ours, theirs = (nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3)).train() for _ in range(2))
    update_batchnorm([images], ours, method=method)
    update_bn([images], theirs)
    variance = images.double().transpose(0, 1).flatten(1).var(1)
    assert_statistics(ours, {"1.running_var": variance})
    assert (theirs[1].running_var > 1.5 * variance).all()


def test_single_values() -> None:
    """One value a channel a batch: refused (pooled) or held against float64 (exact); one in all: refused."""
    values = sorted_images().flatten(1)
    model = nn.Sequential(nn.BatchNorm1d(108))
    before = statistics(model)
    with pytest.raises(UserError, match="0: a batch has one value") as caught:
        update_batchnorm(values.split(1), model)
    assert "larger batches" in caught.value.hint
    assert same_bits(statistics(model), before)
    update_batchnorm(values.split(1), model, method="exact")
    variance, mean = torch.var_mean(values.double(), 0)
    assert_statistics(model, {"0.running_mean": mean, "0.running_var": variance})
    with pytest.raises(UserError, match="0: one value"):
        update_batchnorm([values[:1]], model, method="exact")


class Twice(nn.Module):
    """One layer for two inputs, and one that is never executed."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.unused = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(input=x) + self.norm(3 * x)


def test_a_layer_called_twice() -> None:
    """Both calls' values against their float64 statistics (pooled); `exact` refuses and names the way out."""
    images, model = sorted_images(), Twice()
    model.unused.running_mean.fill_(5)
    before = statistics(model)
    with pytest.raises(UserError, match="norm: is executed more than once") as caught:
        update_batchnorm(images.split(10), model, method="exact")
    assert "pooled" in caught.value.hint
    assert same_bits(statistics(model), before)
    assert update_batchnorm(images.split(10), model).num_layers == 1
    variance, mean = torch.var_mean(torch.cat([images, 3 * images]).double(), (0, 2, 3))
    assert_statistics(model, {"norm.running_mean": mean, "norm.running_var": variance})
    assert torch.equal(model.unused.running_mean, torch.full((3,), 5.0))


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_never_executed_keeps_its_statistics(method: str) -> None:
    """Statistics of a layer outside the forward pass against those before."""
    model = network()
    model.aside = nn.BatchNorm2d(3)
    model.forward = lambda x: model[8](model[7](model[6](model[5](model[2](model[1](x))))))
    for name in ("running_mean", "running_var"):
        getattr(model[0], name).fill_(5)
        getattr(model.aside, name).fill_(6)
    assert update_batchnorm(sorted_images().split(10), model, method=method).num_layers == 2
    assert torch.equal(model[0].running_var, torch.full((3,), 5.0))
    assert torch.equal(model.aside.running_mean, torch.full((3,), 6.0))


def test_loaders_that_can_be_read_once() -> None:
    """A generator against the list of its batches: good for one pass, refused where `exact` needs several."""
    images = sorted_images()
    for model, method in ((network(), "pooled"), (nn.Sequential(nn.BatchNorm2d(3)), "exact")):
        again = copy.deepcopy(model)
        assert update_batchnorm((batch for batch in images.split(10)), model, method=method).num_samples == 70
        update_batchnorm(images.split(10), again, method=method)
        assert same_bits(statistics(model), statistics(again))
    model = network()
    before = statistics(model)
    with pytest.raises(UserError, match="read only once") as caught:
        update_batchnorm(iter(images.split(10)), model, method="exact")
    assert "pooled" in caught.value.hint
    assert same_bits(statistics(model), before)


def test_batches_of_other_things_are_refused() -> None:
    """A dictionary as batch against what a batch may be."""
    with pytest.raises(UserError, match="begin with a dict"):
        update_batchnorm([{"image": sorted_images()}], network())


@pytest.mark.parametrize("method", METHODS)
def test_low_precision_statistics(method: str) -> None:
    """A bf16 model on 700 sorted batches against float64: rounded once at the end, not at every batch."""
    images = sorted_images(700).bfloat16()
    model = nn.Sequential(nn.BatchNorm2d(3)).bfloat16()
    update_batchnorm(images.split(2), model, method=method)
    variance, mean = torch.var_mean(images.double(), (0, 2, 3))
    for found, exact in ((model[0].running_mean, mean), (model[0].running_var, variance)):
        assert torch.equal(found, exact.bfloat16())


@pytest.mark.parametrize("method", METHODS)
def test_under_autocast(method: str) -> None:
    """Statistics under bf16 autocast against those in float32, within the rounding of the activations."""
    images, model, plain = sorted_images(), network(), network()
    with torch.autocast("cpu", torch.bfloat16):
        update_batchnorm(images.split(35), model, method=method)
    update_batchnorm(images.split(35), plain, method=method)
    assert model[6].running_var.dtype == torch.float32
    expected = {name: value.double() for name, value in statistics(plain).items()}
    assert_statistics(model, {name: value for name, value in expected.items() if name[0] == "0"}, tolerance=1e-6)
    assert_statistics(model, {name: value for name, value in expected.items() if "running" in name}, tolerance=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_values_that_are_not_finite_are_refused(method: str) -> None:
    """NaN among the images against the statistics before: kept, and the layer is named."""
    model, images = network(), sorted_images()
    before = statistics(model)
    images[33, 1, 2, 2] = float("nan")
    with pytest.raises(UserError, match="0: receives values that are not finite"):
        update_batchnorm(images.split(10), model, method=method)
    assert same_bits(statistics(model), before)


@pytest.mark.parametrize("method", METHODS)
def test_compiled_and_wrapped_models(method: str) -> None:
    """A model compiled and run before, whole or in part, against the plain one: it is not passed over."""
    images, plain = sorted_images(), network()
    update_batchnorm(images.split(10), plain, method=method)
    whole = torch.compile(network(), backend="eager")
    part = nn.Sequential(torch.compile(network(), backend="eager"))
    for model in (whole, part, nn.DataParallel(network())):
        with torch.no_grad():  # in the mode and shape that the pass will have, so compiled code is at hand
            model.eval()(images[:2])
            model(images[:10])
        assert update_batchnorm(images.split(10), model, method=method).num_layers == 3
        for found, expected in zip(statistics(model).items(), statistics(plain).values(), strict=True):
            if "running" in found[0]:
                assert torch.equal(found[1], expected)


def test_models_without_batchnorm() -> None:
    """A model without such layers against the promise that its loader is not even opened."""
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False), nn.InstanceNorm1d(3))
    assert not has_batchnorm(model)
    assert bn_layers(model) == []
    loader = (pytest.fail("the loader was read") for _ in range(1))
    assert update_batchnorm(loader, model) == BatchNormUpdate(0, 0, "pooled")
    assert has_batchnorm(network())


def test_unknown_method() -> None:
    """A method against the two there are."""
    with pytest.raises(UserError, match="'precise'"):
        update_batchnorm([sorted_images()], network(), method="precise")


@pytest.mark.parametrize(("is_shared", "expected"), [(True, 5), (False, 1)])
def test_processes_read_a_pass_to_its_end(is_shared: bool, expected: int) -> None:
    """A pass with nothing to measure: one process looks at its first batch, and several read all, to stay in step."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.ones(3))

        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3)) + self.table

    read: list[int] = []

    def batches() -> Iterator[Tensor]:
        for index in range(5):
            read.append(index)
            yield sorted_images(4)

    options = {"gather": lambda value: [value]} if is_shared else {}
    assert update_batchnorm(batches(), Positions(), **options).num_layers == 0
    assert len(read) == expected
