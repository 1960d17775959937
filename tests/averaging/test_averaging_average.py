"""WeightAverage against float64 arithmetic, closed forms and torch.optim.swa_utils."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from swa_cli.averaging.average import WeightAverage, update_all
from swa_cli.averaging.model_state import NonFiniteWeightsError, plain_model
from swa_cli.errors import UserError

KINDS = [
    {"kind": "mean"},
    {"kind": "ema", "decay": 0.7},
    {"kind": "ema", "decay": 0.7, "bias_correction": False},
    {"kind": "lawa", "window": 3},
    {"kind": "swag", "rank": 3},
    {"kind": "swag", "diagonal": True},
]


class Tiny(nn.Module):
    """A convolution, BatchNorm and a head: parameters, float and integer buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)


def randomize(model: nn.Module, seed: int) -> None:
    """Other weights and buffers; frozen parameters stay."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        for buffer in model.buffers():
            buffer.copy_(torch.randint(1, 100, buffer.shape, generator=generator))


def expected(
    history: list[Tensor],
    *,
    kind: str,
    decay: float = 0.0,
    bias_correction: bool = True,
    window: int = 0,
    rank: int = 0,
    diagonal: bool = False,
) -> Tensor:
    """The definition of each kind, in float64."""
    values = [value.to(torch.promote_types(value.dtype, torch.float64)) for value in history]
    if kind == "ema":
        average, weight = (values[0] * 0, 0.0) if bias_correction else (values[0], 1.0)
        for value in values if bias_correction else values[1:]:
            average = decay * average + (1 - decay) * value
            weight = decay * weight + (1 - decay)
        return average / weight
    return torch.stack(values[-window:] if kind == "lawa" else values).mean(0)


def clones(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_mean_of_5000_updates() -> None:
    """Weights around 1 (as BatchNorm's) against the float64 mean of the same 5,000, to 1e-6; in float32 it is 4e-6."""
    model = nn.Linear(50, 20)
    average, total = WeightAverage(model), torch.zeros(20, 50, dtype=torch.float64)
    narrow = model.weight.detach().clone()
    for taken in range(5000):
        randomize(model, taken)
        with torch.no_grad():
            model.weight.add_(1)
        total += model.weight.detach().double()
        narrow = torch.lerp(narrow, model.weight.detach(), 1 / (taken + 1))
        average.update(model)
    exact = total / 5000
    assert (average.averaged_state()["weight"].double() - exact).abs().max() < 1e-6
    assert (narrow.double() - exact).abs().max() > 1e-6
    assert average.count == 5000
    assert type(average.count) is int


@given(
    shape=st.lists(st.integers(0, 4), max_size=4),
    num_updates=st.integers(1, 8),
    settings_=st.sampled_from(KINDS),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_every_kind_shape_and_dtype(
    shape: list[int], num_updates: int, settings_: dict, dtype: torch.dtype, seed: int
) -> None:
    """Every kind against its definition in float64, for any shape, number of updates and parameter type."""
    assume(settings_["kind"] != "swag" or not dtype.is_complex)
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(shape, dtype=dtype))
    average, history = WeightAverage(model, **settings_), []
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_updates):
        with torch.no_grad():
            model.weight.copy_(torch.randn(shape, generator=generator, dtype=torch.float64))
        history.append(model.weight.detach().clone())
        average.update(model)
    found = average.averaged_state()["weight"]
    assert found.dtype == dtype
    rounding = 1e-15 if dtype == torch.float64 else max(torch.finfo(dtype).eps, 1e-6)
    torch.testing.assert_close(found.to(dtype), expected(history, **settings_).to(dtype), rtol=rounding, atol=rounding)


def test_ema_of_bfloat16_weights_does_not_stall() -> None:
    """2,000 EMA(.9999) steps in bf16 against the closed form .009064; torch's average hardly moves."""
    model = nn.Linear(4, 4, bias=False).bfloat16()
    nn.init.constant_(model.weight, 0.05)
    ours = WeightAverage(model, kind="ema", decay=0.9999, bias_correction=False)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9999))
    ours.update(model)
    theirs.update_parameters(model)
    start = model.weight.detach().double().mean()
    nn.init.constant_(model.weight, 0.1)
    end = model.weight.detach().double().mean()
    for _ in range(2000):
        ours.update(model)
        theirs.update_parameters(model)
    moved = ours.state_dict()["state"]["weight"].double().mean() - start
    assert moved.item() == pytest.approx((end - start).item() * (1 - 0.9999**2000), abs=1e-6)
    assert (theirs.module.weight.double().mean() - start).item() < 1e-4


def test_ema_starts_at_the_first_update() -> None:
    """The average after one update against the weights then, not those of the model's construction."""
    model = nn.Linear(3, 3)
    average = WeightAverage(model, kind="ema", decay=0.999)
    randomize(model, 1)
    average.update(model, step=700)
    assert same_bits(average.averaged_state(), clones(model))
    assert average.steps == [700]


def test_nothing_averaged_yet_is_refused() -> None:
    """An empty average against its promise: it never gives out initial weights."""
    with pytest.raises(UserError, match="no weights yet"):
        WeightAverage(nn.Linear(2, 2)).averaged_state()


def test_lawa_keeps_the_last_window() -> None:
    """`lawa` against the mean of exactly the last three (or fewer), and the steps it names."""
    model, history = nn.Linear(3, 2), []
    average = WeightAverage(model, kind="lawa", window=3)
    for index in range(8):
        randomize(model, index)
        history.append(model.weight.detach().clone())
        average.update(model, step=10 * index)
        torch.testing.assert_close(
            average.averaged_state()["weight"].double(),
            expected(history, kind="lawa", window=3),
            rtol=0,
            atol=1e-7,
        )
        assert average.steps == [10 * i for i in range(max(0, index - 2), index + 1)]
        assert average.count == min(index + 1, 3)


def test_a_resumed_window_gives_the_same_bits() -> None:
    """A lawa average of float64 weights saved and loaded at each step, against one that is never interrupted."""
    model = Tiny().double()
    whole, resumed = (WeightAverage(model, kind="lawa", window=3) for _ in range(2))
    for seed in range(7):
        randomize(model, seed)
        whole.update(model)
        resumed.update(model)
        again = WeightAverage(model, kind="lawa", window=3)
        again.load_state_dict(resumed.state_dict())
        resumed = again
        assert same_bits(resumed.averaged_state(), whole.averaged_state())


def test_steps_count_on_by_default() -> None:
    """Recorded steps against the calls: one more than the last one unless it is given."""
    model = nn.Linear(2, 2)
    average = WeightAverage(model)
    average.update(model)
    average.update(model, step=40)
    average.update(model)
    assert average.steps == [1, 40, 41]


@pytest.mark.parametrize("settings_", KINDS)
def test_buffers_are_copied(settings_: dict) -> None:
    """Buffers, integer ones too, against the model's last; a refreshed state reaches no later average."""
    model = Tiny()
    average = WeightAverage(model, **settings_)
    for seed in range(3):
        randomize(model, seed)
        average.update(model)
        state = average.averaged_state()
        for name, buffer in model.named_buffers():
            assert torch.equal(state[name], buffer)
            assert state[name].dtype == buffer.dtype
            state[name].fill_(77)


@pytest.mark.parametrize("settings_", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_frozen_parameters_come_out_bit_exact(settings_: dict, dtype: torch.dtype) -> None:
    """Frozen parameters after 11 updates against themselves, to the bit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 40, dtype=dtype), nn.Linear(40, 4, dtype=dtype))
    model[0].requires_grad_(False)
    average = WeightAverage(model, **settings_)
    for seed in range(11):
        randomize(model, seed)
        average.update(model)
    state = average.averaged_state()
    assert torch.equal(state["0.weight"], model[0].weight)
    assert not torch.equal(state["1.weight"], model[1].weight)


@pytest.mark.parametrize("settings_", KINDS)
def test_shared_parameters(settings_: dict) -> None:
    """A tied pair against its definition: kept once, out under both names, and the model stays tied."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    average, history = WeightAverage(model, **settings_), []
    for seed in range(4):
        randomize(model, seed)
        history.append(model[0].weight.detach().clone())
        average.update(model)
    assert set(average.state_dict()["state"]) == {"0.weight", "0.bias", "1.bias"}
    state = average.averaged_state()
    torch.testing.assert_close(state["0.weight"].double(), expected(history, **settings_), rtol=0, atol=1e-6)
    assert torch.equal(state["0.weight"], state["1.weight"])
    model.load_state_dict(state, strict=True)


@pytest.mark.parametrize("settings_", KINDS)
def test_memory_format(settings_: dict) -> None:
    """Strides of accumulators and results against the parameters': channels_last, transposed, with gaps."""
    model = nn.Module()
    model.last = nn.Parameter(torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last))
    model.transposed = nn.Parameter(torch.randn(3, 7).t())
    model.gaps = nn.Parameter(torch.randn(6, 8)[:, ::2])
    average, history = WeightAverage(model, **settings_), []
    for seed in range(5):
        randomize(model, seed)
        history.append({name: value.detach().clone() for name, value in model.named_parameters()})
        average.update(model)
    state = average.averaged_state()
    for name in ("last", "transposed"):
        strides = model.get_parameter(name).stride()
        assert state[name].stride() == strides
        assert all(kept[name].stride() == strides for kept in average._slots)
    for name, value in state.items():
        oracle = expected([entry[name] for entry in history], **settings_)
        torch.testing.assert_close(value.double(), oracle, rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings_", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_foretold(settings_: dict, dtype: torch.dtype) -> None:
    """`num_bytes` against the storages that the average really keeps, before it is full and after."""
    model = Tiny().to(dtype)
    average = WeightAverage(model, **settings_)
    for taken in range(6):
        spread = [] if average._spread is None else [average._spread._m2, *average._spread._columns]
        held = [average._buffers, *average._slots, *spread]
        storages = {id(value.untyped_storage()): value.untyped_storage() for part in held for value in part.values()}
        assert average.num_bytes(taken) == sum(storage.nbytes() for storage in storages.values())
        average.update(model)


def test_window_takes_memory_for_what_it_holds() -> None:
    """A window of more weights than any machine holds: after one update, and after a round trip, it is that one."""
    model = nn.Linear(3, 2)
    average = WeightAverage(model, kind="lawa", window=10**18)
    average.update(model)
    again = WeightAverage(model, kind="lawa", window=10**18)
    again.load_state_dict(average.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(again.averaged_state()[name], value)


@pytest.mark.parametrize("settings_", KINDS)
@pytest.mark.parametrize("num_updates", [0, 2, 5])
def test_round_trip_through_a_file(settings_: dict, num_updates: int) -> None:
    """An average continued from a file (weights_only) against one that was never interrupted, to the bit."""
    model = Tiny()
    whole = WeightAverage(model, **settings_)
    for seed in range(num_updates):
        randomize(model, seed)
        whole.update(model, step=seed + 10)
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = WeightAverage(Tiny(), **settings_)
    resumed.load_state_dict(saved)
    for seed in range(100, 104):
        assert resumed.steps == whole.steps
        randomize(model, seed)
        whole.update(model, step=seed)
        resumed.update(model, step=seed)
        assert same_bits(resumed.averaged_state(), whole.averaged_state())
    for key in ("state", "m2", "deviations"):
        assert same_bits(resumed.state_dict().get(key, {}), whole.state_dict().get(key, {}))
    assert saved["steps"] == list(range(10, 10 + num_updates))[-settings_.get("window", 99) :]
    assert saved["count"] == len(saved["steps"])


@pytest.mark.parametrize("settings_", KINDS)
def test_nothing_is_aliased(settings_: dict) -> None:
    """What was given out against overwriting it, and against later updates: neither touches the other."""
    model = Tiny()
    average = WeightAverage(model, **settings_)
    randomize(model, 0)
    average.update(model)
    state, saved = average.averaged_state(), average.state_dict()["state"]
    kept = copy.deepcopy(state)
    randomize(model, 1)
    assert same_bits(average.averaged_state(), kept)
    for value in (*average.averaged_state().values(), *saved.values()):
        value.fill_(5)
    assert same_bits(average.averaged_state(), kept)
    average.update(model)
    assert same_bits(state, kept)


@pytest.mark.parametrize("settings_", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite_change_nothing(settings_: dict, bad: float, dtype: torch.dtype) -> None:
    """An average that was offered NaN or infinity against itself before; the tensor is named."""
    model = Tiny().to(dtype)
    average = WeightAverage(model, **settings_)
    randomize(model, 0)
    average.update(model)
    before = average.state_dict()
    randomize(model, 1)
    with torch.no_grad():
        model.head.weight[1, 2] = bad
        model.head.bias[0] = bad
    with pytest.raises(NonFiniteWeightsError, match=r"head\.weight") as caught:
        average.update(model)
    assert caught.value.name == "head.weight"
    after = average.state_dict()
    assert after["steps"] == before["steps"]
    for key in ("state", "m2", "deviations"):
        assert same_bits(after.get(key, {}), before.get(key, {}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_huge_finite_weights_are_finite(dtype: torch.dtype) -> None:
    """Weights at the end of their range, whose norm overflows, against their mean."""
    model = nn.Linear(9, 9, bias=False).to(dtype)
    nn.init.constant_(model.weight, torch.finfo(dtype).max)
    average = WeightAverage(model)
    average.update(model)
    average.update(model)
    assert torch.equal(average.averaged_state()["weight"], model.weight)


def test_weights_that_are_not_finite_can_be_told_later() -> None:
    """`finite` stays true over finite weights, and false from the first others on; nothing is raised."""
    model, finite = nn.Linear(2, 1), torch.tensor(True)
    average = WeightAverage(model)
    for value, expected in ((1.0, True), (2.0, True), (float("nan"), False), (1.0, False)):
        nn.init.constant_(model.weight, value)
        update_all([average], model, finite=finite)
        assert bool(finite) is expected
    assert average.count == 4
    assert average.averaged_state()["weight"].isnan().all()


def test_another_model_is_refused() -> None:
    """Missing, extra and reshaped parameters against the average's names; torch's positions let one pass."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    average, theirs = WeightAverage(model), AveragedModel(model)
    average.update(model)
    before = average.state_dict()
    longer = nn.Sequential(*(nn.Linear(3, 3) for _ in range(4)))
    theirs.update_parameters(longer)
    for other, message in (
        (longer, r"4 unexpected \(2.weight, 2.bias, 3.weight, \.\.\.\)"),
        (nn.Sequential(nn.Linear(3, 3)), r"2 missing \(1.weight, 1.bias\)"),
        (
            nn.Sequential(nn.Linear(3, 3), nn.Linear(2, 3)),
            r"1 of another shape \(1.weight \[3, 2\] instead of",
        ),
    ):
        with pytest.raises(UserError, match=message):
            average.update(other)
    assert same_bits(average.state_dict()["state"], before["state"])


def test_untying_is_refused() -> None:
    """Parameters that were shared and no longer are against the names kept: one more than there were."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    average = WeightAverage(model)
    average.update(model)
    model[1].weight = nn.Parameter(torch.ones(4, 4))
    with pytest.raises(UserError, match=r"1\.weight"):
        average.update(model)


def test_several_averages_change_together_or_not_at_all() -> None:
    """`update_all` against one `update` each; an average of another model leaves all as they were."""
    model = Tiny()
    together, alone = ([WeightAverage(model, **settings_) for settings_ in KINDS] for _ in range(2))
    for seed in range(4):
        randomize(model, seed)
        update_all(together, model, step=seed)
        for average in alone:
            average.update(model, step=seed)
    for first, second in zip(together, alone, strict=True):
        assert same_bits(first.averaged_state(), second.averaged_state())
        assert first.steps == second.steps
    with pytest.raises(UserError, match="do not match"):
        update_all([*together, WeightAverage(nn.Linear(2, 2))], model, step=9)
    assert [average.steps for average in together] == [average.steps for average in alone]


def test_loading_another_average_is_refused() -> None:
    """A saved average against one of another kind, setting or model: refused, and nothing changed."""
    model = Tiny()
    average = WeightAverage(model, kind="ema", decay=0.9)
    average.update(model)
    saved = average.state_dict()
    for other, message in (
        (WeightAverage(model), "kind ema, this one mean"),
        (WeightAverage(model, kind="ema", decay=0.99), r"decay 0\.9, this one 0\.99"),
        (WeightAverage(model, kind="ema", decay=0.9, warmup=True), "warmup False, this one True"),
        (WeightAverage(model, kind="ema", decay=0.9, bias_correction=False), "bias_correction True, this one False"),
        (WeightAverage(nn.Linear(4, 2), kind="ema", decay=0.9), r"2 missing .*9 unexpected"),
    ):
        with pytest.raises(UserError, match=message):
            other.load_state_dict(saved)
        assert other.count == 0
    without_head = {**saved, "state": {name: v for name, v in saved["state"].items() if "head" not in name}}
    for damaged, message in (
        ({"kind": "ema"}, "lacks count, steps, state"),
        ({**saved, "count": 2}, "another number of steps"),
        (without_head, r"2 missing \(head.weight, head.bias\)"),
    ):
        with pytest.raises(UserError, match=message):
            average.load_state_dict(damaged)
    assert same_bits(average.averaged_state(), clones(model))


@pytest.mark.parametrize(
    "settings_",
    [
        {"kind": "median"},
        {"kind": "ema"},
        {"kind": "ema", "decay": 1.0},
        {"kind": "ema", "decay": -0.1},
        {"kind": "mean", "decay": 0.9},
        {"kind": "lawa"},
        {"kind": "lawa", "window": 0},
        {"kind": "mean", "window": 3},
        {"kind": "mean", "warmup": True},
        {"kind": "lawa", "window": 3, "bias_correction": False},
        {"kind": "ema", "decay": 0.9, "rank": 3},
        {"kind": "ema", "decay": 0.9, "diagonal": True},
        {"kind": "swag"},
        {"kind": "swag", "rank": 1},
        {"kind": "swag", "rank": 3, "diagonal": True},
        {"kind": "swag", "rank": 3, "decay": 0.9},
    ],
)
def test_settings_that_do_not_fit_are_refused(settings_: dict) -> None:
    """Settings against the kind they belong to."""
    with pytest.raises(UserError):
        WeightAverage(nn.Linear(2, 2), **settings_)


@pytest.fixture
def process_group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "compile": lambda model: torch.compile(model, backend="eager"),
    "compile in DistributedDataParallel": lambda model: nn.parallel.DistributedDataParallel(
        torch.compile(model, backend="eager")
    ),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_names_of_wrapped_models(wrapper: str, process_group: None) -> None:
    """An average fed by a wrapped model against the plain model: same names, same weights, loads strictly."""
    plain = nn.Sequential(Tiny())
    wrapped = WRAPPERS[wrapper](plain)
    average = WeightAverage(wrapped)
    average.update(wrapped)
    assert same_bits(average.averaged_state(), clones(plain))
    average.update(plain)
    nn.Sequential(Tiny()).load_state_dict(average.averaged_state(), strict=True)
    assert plain_model(wrapped) is plain


def test_compiled_part_and_attribute_called_module() -> None:
    """Names against the plain model's: `_orig_mod.` goes anywhere, an own attribute `module` stays."""
    model = nn.Module()
    model.module = nn.Linear(2, 2)
    names = list(model.state_dict())
    model.module = torch.compile(model.module, backend="eager")
    average = WeightAverage(model)
    average.update(model)
    assert list(average.averaged_state()) == names == ["module.weight", "module.bias"]


def test_integer_parameters_and_odd_states() -> None:
    """Parameters of integers against themselves (copied); a state that is no tensor is refused by name."""
    model = nn.Module()
    model.codes = nn.Parameter(torch.arange(5, dtype=torch.int8), requires_grad=False)
    average = WeightAverage(model)
    average.update(model)
    average.update(model)
    assert same_bits(average.averaged_state(), clones(model))

    class Extra(nn.Linear):
        def get_extra_state(self) -> str:
            return "text"

    with pytest.raises(UserError, match=r"0\._extra_state: .* str"):
        WeightAverage(nn.Sequential(Extra(2, 2)))


def test_a_buffer_that_forward_computes_is_copied() -> None:
    """A buffer with a graph against itself (copied); a buffer that is trained against the mean."""
    model = nn.Linear(1, 1)
    model.register_buffer("trained", torch.zeros(1, requires_grad=True))
    model.register_buffer("result", torch.zeros(1))
    average = WeightAverage(model)
    for number in (1.0, 3.0):
        model.trained.data.fill_(number)
        model.result = 2 * number * model.trained
        average.update(model)
    state = average.averaged_state()
    assert (state["trained"].item(), state["result"].item()) == (2.0, 18.0)


def test_trained_weights_enter_without_a_graph() -> None:
    """Accumulators against autograd: no gradient, no graph, no parameter kept."""
    model = Tiny()
    average = WeightAverage(model)
    average.update(model)
    state = average.averaged_state()
    assert not any(value.requires_grad or isinstance(value, nn.Parameter) for value in state.values())


@pytest.mark.parametrize("kind", ["mean", "ema", "lawa", "swag"])
def test_an_average_on_another_device_has_the_same_bits(kind: str) -> None:
    """On the CPU by name, together with one beside the weights, against that one; and a continued one."""
    own: dict[str, dict[str, Any]] = {"ema": {"decay": 0.9}, "lawa": {"window": 2}, "swag": {"rank": 2}}
    settings = {"kind": kind, **own.get(kind, {})}
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    beside, named = (
        WeightAverage(model, **settings),
        WeightAverage(model, **settings, device="cpu"),
    )
    for seed in range(3):
        torch.manual_seed(seed)
        nn.init.normal_(model[0].weight)
        nn.init.normal_(model[1].running_mean)
        update_all([beside, named], model)
    continued = WeightAverage(model, **settings, device="cpu")
    continued.load_state_dict(named.state_dict())
    for other in (named, continued):
        for name, value in beside.averaged_state().items():
            assert torch.equal(value, other.averaged_state()[name]), name
    nn.init.zeros_(model[1].running_mean)
    assert named.averaged_state()["1.running_mean"].all()
