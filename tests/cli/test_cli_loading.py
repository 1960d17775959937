"""Networks whose state dict is more than names and shapes, end to end: torch's own loader is the oracle.

Versions, load hooks, layers that save their state otherwise, and a `state_dict` of one's own.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors import safe_open
from torch import Tensor

from conftest import load
from swa_cli.averaging.average import WeightAverage
from swa_cli.averaging.model_state import with_metadata
from swa_cli.checkpoint import loading
from swa_cli.errors import UserError

NETS = '''
import torch
import torchvision
from torch import nn


class Small(nn.Module):
    def __init__(self, num_classes=3, in_channels=1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, num_classes)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


class Renames(Small):
    """Takes files in which the head is called fc."""

    def __init__(self, **options):
        super().__init__(**options)
        self.register_load_state_dict_pre_hook(self.rename)

    @staticmethod
    def rename(module, state, *others):
        for key in [key for key in state if key.startswith("fc.")]:
            state[key.replace("fc.", "head.")] = state.pop(key)


class Transposes(Small):
    """Keeps its head transposed in the state dict, under another name."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "scale_t"] = self.scale.t() if keep_vars else self.scale.detach().t()
        del destination[prefix + "scale"]

    def _load_from_state_dict(self, state, prefix, *others):
        if prefix + "scale_t" in state:
            state[prefix + "scale"] = state.pop(prefix + "scale_t").t()
        super()._load_from_state_dict(state, prefix, *others)

    def __init__(self, num_classes=3, in_channels=1):
        super().__init__(num_classes, in_channels)
        self.scale = nn.Parameter(torch.ones(2, 3))

    def forward(self, x):
        return super().forward(x) * self.scale.sum(0)


class OwnStateDict(Small):
    def state_dict(self):
        return super().state_dict()

    def load_state_dict(self, state_dict):
        return super().load_state_dict(state_dict)


class Frozen(Small):
    def __init__(self, num_classes=3, in_channels=1):
        super().__init__(num_classes, in_channels)
        self.norm = torchvision.ops.FrozenBatchNorm2d(6)


class Extra(Small):
    """Has an extra state, which is a tensor."""

    def __init__(self, **options):
        super().__init__(**options)
        self.scale = torch.tensor(2.0)

    def get_extra_state(self):
        return self.scale

    def set_extra_state(self, state):
        self.scale = state.clone()


class Attends(Small):
    def __init__(self, num_classes=3, in_channels=1):
        super().__init__(num_classes, in_channels)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x):
        x = self.norm(self.conv(x)).flatten(2).mT
        return self.head(self.attention(x, x, x)[0].mean(1))


class Versioned(Small):
    """Its weights mean something else since version 2, and a state without a version is refused."""

    _version = 2

    def _load_from_state_dict(self, state, prefix, local, *others):
        version = local.get("version")
        if version not in (1, 2):
            raise ValueError(f"version should be 1 or 2, and is {version}")
        if version == 1:
            state[prefix + "head.weight"] = state[prefix + "head.weight"] / 2
        super()._load_from_state_dict(state, prefix, local, *others)


class Filtered(Small):
    """Leaves a weight that is trained out of its state dict."""

    def state_dict(self, *args, **options):
        return {key: value for key, value in super().state_dict(*args, **options).items() if "head" not in key}


def data():
    from torch.utils.data import TensorDataset

    def samples(count, seed):
        labels = torch.arange(count) % 3
        patterns = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(7))
        noise = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        return noise + 0.3 * patterns[labels], labels

    return {"train": TensorDataset(*samples(96, 0)), "test": TensorDataset(*samples(48, 1)), "num_classes": 3}


def photos():
    from torch.utils.data import TensorDataset

    pixels = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    split = TensorDataset(pixels, torch.arange(24) % 3)
    return {"train": split, "test": split, "num_classes": 3}
'''
RECIPE: dict[str, Any] = {
    "name": "loading",
    "dataset": {"name": "loading_nets:data", "val": 0, "workers": 0},
    "optimizer": {"lr": 0.05},
    "schedule": {"name": "constant"},
    "swa": {"start": "1ep", "every": "1ep"},
    "snapshots": {"every": "1ep", "start": "1ep"},
    "train": {"epochs": 3, "batch_size": 16, "threads": 1, "precision": "fp32", "device": "cpu"},
}


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of networks above, beside the recipe."""
    (tmp_path / "loading_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("loading_nets", None)
    import loading_nets

    return loading_nets


def recipe_of(name: str, **sections: Any) -> str:
    Path("r.yaml").write_text(json.dumps({**RECIPE, "model": {"name": name}, **sections}))
    return "r.yaml"


def mean_of_snapshots(run: Path, steps: list[int]) -> dict[str, Tensor]:
    states = [load(run / f"snapshots/step-{step:08d}.pt")["state_dict"] for step in steps]
    return {key: torch.stack([state[key].double() for state in states]).mean(0) for key in states[0]}


def is_statistic(key: str) -> bool:
    return key.rpartition(".")[2].startswith(("running_", "num_batches"))


def run_through(swa, recipe: str, build: Any) -> Path:
    """Train, and use what was shipped with every command that loads weights; the mean is held against float64."""
    ended = swa("train", recipe)
    assert ended.code == 0, ended.err
    run = Path("runs/loading-001")
    shipped, told = run / "checkpoints/swa.pt", json.loads((run / "result.json").read_text())["weights"]["swa"]["nll"]
    content = load(shipped)
    build().load_state_dict(content["state_dict"])  # the four lines of the README
    for key, value in mean_of_snapshots(run, content["average"]["steps"]).items():
        if not is_statistic(key):
            torch.testing.assert_close(content["state_dict"][key].double(), value, atol=1e-6, rtol=0)
    scored = swa("eval", shipped, "--json", "--allow-code").json["weights"]["swa"]["nll"]
    assert abs(scored - told) < 1e-5
    for words in (
        ["bn-update", shipped, "-o", "updated.pt"],
        ["average", run, "-o", "soup.pt"],
        ["average", run, "--weights", "swa", "-o", "taken.pt"],
        ["export", shipped, "--format", "state-dict", "-o", "weights.pth"],
        ["export", shipped, "--format", "safetensors", "-o", "weights.safetensors"],
    ):
        ended = swa(*words, "--allow-code", "-q")
        assert ended.code == 0, (words, ended.err)
    for file in ("updated.pt", "soup.pt", "taken.pt"):
        build().load_state_dict(load(file)["state_dict"])
        found = swa("eval", file, "--json", "--allow-code").json["weights"]
        assert abs(next(iter(found.values()))["nll"] - told) < 1e-5, file
    for file in ("weights.pth", "weights.safetensors"):
        found = swa("eval", file, "--recipe", recipe, "--json").json["weights"]
        assert abs(next(iter(found.values()))["nll"] - told) < 1e-5, file
    build().load_state_dict(load("weights.pth"))
    return run


@pytest.mark.parametrize("name", ["Renames", "Transposes", "OwnStateDict", "Frozen", "Extra", "Attends", "Versioned"])
def test_a_network_with_a_state_of_its_own_goes_through(swa, nets: Any, name: str) -> None:
    """Every command on its files, and its own loader in plain torch, against the mean of its snapshots in float64."""
    run_through(swa, recipe_of(f"loading_nets:{name}"), getattr(nets, name))


@pytest.mark.slow
def test_a_versioned_network_of_torchvision_goes_through(swa, nets: Any) -> None:
    """MNASNet, which refuses a state without its version: all commands, a resumed run, and plain torchvision."""
    dataset = {"name": "loading_nets:photos", "val": 0, "workers": 0}
    train = {**RECIPE["train"], "batch_size": 8, "epochs": 2}
    recipe = recipe_of("torchvision:mnasnet0_5", dataset=dataset, train=train, optimizer={"lr": 0.001})

    def build() -> torch.nn.Module:
        return torchvision.models.mnasnet0_5(num_classes=3)

    run = run_through(swa, recipe, build)
    assert load(run / "checkpoints/swa.pt")["state_dict"]._metadata[""] == {"version": 2}
    with safe_open("weights.safetensors", framework="pt") as file:  # as docs/predict.md says
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
        build().load_state_dict(with_metadata(state, json.loads(file.metadata()["state_dict_metadata"])))
    ended = swa("train", "--resume", run, "--extend-to", "3", "-q", "--allow-code")
    assert ended.code == 0, ended.err


def test_files_of_an_older_layout_are_loaded_by_the_hooks(swa, nets: Any) -> None:
    """A renamed head and a version-1 file: scored, averaged and begun from as the network's own loader takes them."""
    recipe = recipe_of("loading_nets:Renames")
    torch.manual_seed(0)
    state = nets.Renames().state_dict()
    torch.save(state, "new.pt")
    torch.save({key.replace("head.", "fc."): value for key, value in state.items()}, "old.pt")
    new, old = (
        swa("eval", f, "--recipe", recipe, "--json").json["weights"]["last"]["nll"] for f in ("new.pt", "old.pt")
    )
    assert new == old
    assert swa("average", "new.pt", "old.pt", "--recipe", recipe, "-o", "mean.pt", "--no-bn").code == 0
    for key, value in load("mean.pt")["state_dict"].items():
        assert torch.equal(value, state[key])
    assert swa("train", recipe, "--dry-run", "train.init=old.pt").code == 0
    recipe = recipe_of("loading_nets:Versioned")
    halved = {**state, "head.weight": state["head.weight"] * 2}
    torch.save({"model": with_metadata(halved, {"": {"version": 1}, "norm": {"version": 2}})}, "version1.pt")
    assert swa("eval", "version1.pt", "--recipe", recipe, "--json").json["weights"]["last"]["nll"] == new


def test_a_file_of_batchnorm_into_frozen_batchnorm(swa, nets: Any) -> None:
    """FrozenBatchNorm2d drops the counters of a file, and so do eval and train.init."""
    recipe = recipe_of("loading_nets:Frozen")
    torch.save(nets.Small().state_dict(), "theirs.pt")
    ended = swa("eval", "theirs.pt", "--recipe", recipe)
    assert ended.code == 0, ended.err
    assert swa("train", recipe, "--dry-run", "train.init=theirs.pt").code == 0


def test_what_the_hooks_refuse_is_told(swa, nets: Any) -> None:
    """A state without the version that a layer asks for: exit 2, the layer's own words, and no fault of swa."""
    recipe = recipe_of("loading_nets:Versioned")
    torch.save(dict(nets.Versioned().state_dict()), "plain.pt")
    ended = swa("eval", "plain.pt", "--recipe", recipe)
    assert ended.code == 2
    said = " ".join(ended.err.split())
    assert "does not fit the recipe's model: ValueError: version should be 1 or 2, and is None" in said


def test_a_trained_weight_that_the_state_lacks_is_refused(swa, nets: Any) -> None:
    """A state_dict that leaves a trained weight out: exit 2, its name, and nothing begun."""
    ended = swa("train", recipe_of("loading_nets:Filtered"))
    assert ended.code == 2
    assert "head.weight: is trained, but missing" in " ".join(ended.err.split())
    assert not Path("runs").exists()


def test_metadata_of_an_average_is_that_of_the_model() -> None:
    """`averaged_state` and `state_dict()["state"]` against the model's own `_metadata`; the copy is nobody else's."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    average = WeightAverage(model)
    average.update(model)
    for state in (average.averaged_state(), average.state_dict()["state"]):
        assert state._metadata == model.state_dict()._metadata
        state._metadata["1"]["version"] = 1
    assert average.averaged_state()._metadata["1"] == {"version": 2}


def test_versions_of_a_file_do_not_replace_parameters() -> None:
    """torch's loader keeps `assign` among the versions: a file that says so is copied all the same."""
    model = torch.nn.Linear(2, 2)
    own, state = (
        model.weight,
        with_metadata(torch.nn.Linear(2, 2).state_dict(), {"": {"assign_to_params_buffers": True}}),
    )
    loading.load_weights(model, state, source="a.pt")
    assert model.weight is own
    assert torch.equal(model.weight, state["weight"])


def test_buffers_of_8_bit_floats_are_loaded() -> None:
    """Floats that torch does not compare: the tensors of the file itself come back, as those of other types do."""
    model = torch.nn.Linear(2, 2)
    model.register_buffer("scale", torch.ones(2).to(torch.float8_e4m3fn))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert loading.load_weights(model, state, source="a.pt")["scale"] is state["scale"]


def counting() -> torch.nn.Module:
    """A network with a counter of batches, and with an index, whose numbers are places."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    model.register_buffer("index", torch.tensor([2, 0, 1]))
    model.register_buffer("levels", torch.tensor([255, 0], dtype=torch.uint8))
    return model


def test_a_mean_of_state_dicts_is_loaded() -> None:
    """(a + b) / 2 of each tensor, and a copy in float64, with such counters, against torch's strict load."""
    a, b, model, plain = counting(), counting(), counting(), counting()
    a(torch.randn(4, 2))
    states = [network.state_dict() for network in (a, b)]
    mean = {key: (value + states[1][key].double()) / 2 for key, value in states[0].items()}
    assert mean["1.num_batches_tracked"] == 0.5
    for state in (mean, {key: value.double() for key, value in states[0].items()}):
        plain.load_state_dict(state)
        loaded = loading.load_weights(model, state, source="a.pt")
        for key, value in plain.state_dict().items():
            assert torch.equal(model.state_dict()[key], value), key
            assert loaded[key].is_floating_point() == value.is_floating_point(), key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("index", torch.tensor([1.5, 0.0, 1.0])),
        ("index", torch.tensor([2.0, 0.0, float("inf")])),
        ("index", torch.tensor([2, 0, 1]) + 0j),
        ("levels", torch.tensor([256.0, 0.0])),
        ("1.num_batches_tracked", torch.tensor(float("nan"))),
        ("1.num_batches_tracked", torch.tensor(3 + 0j)),
        ("1.running_mean", torch.tensor([1, 2])),
    ],
)
def test_numbers_that_a_cast_would_change_are_refused(key: str, value: Tensor) -> None:
    """Places between two, numbers beyond their type, NaN, complex ones, and whole ones for real ones."""
    model = counting()
    with pytest.raises(UserError, match=re.escape(f"a.pt: {key} is ")):
        loading.load_strict(model, {**model.state_dict(), key: value}, source="a.pt")


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"])
def test_weights_of_8_bit_floats_are_loaded_as_those_of_the_network(name: str) -> None:
    """torch computes with no such weights: its own strict load of them comes back; NaN among them is refused."""
    model, plain = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    state = {key: value.to(getattr(torch, name)) for key, value in model.state_dict().items()}
    plain.load_state_dict(state)
    loaded = loading.load_weights(model, state, source="a.pt")
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in loaded.items())
    state["weight"] = torch.full((2, 2), float("nan")).to(getattr(torch, name))
    with pytest.raises(UserError, match="weight is not finite"):
        loading.load_weights(model, state, source="a.pt")


def test_what_does_not_fit_is_counted_as_torch_counts() -> None:
    """torch's missing and unexpected names, and shapes; a counter that torch does not miss is not counted."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    state = {key: value for key, value in model.state_dict().items() if "num_batches" not in key}
    state["0.weight"], state["extra"] = torch.ones(3), state.pop("1.bias")
    with pytest.raises(UserError, match="1 tensors missing, 1 unexpected, 1 of another shape") as caught:
        loading.load_weights(model, state, source="a.pt")
    assert caught.value.names == ("1.bias", "extra", "0.weight")
