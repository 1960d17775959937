"""Networks as people write them: each trains, ships the mean of its weights, and scores the same when opened again."""

from __future__ import annotations

import importlib
import json
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from conftest import load

RECIPE = """\
name: net
model: {name: "nets:Net"}
dataset: {name: "toy:make", val: 0, workers: 0}
optimizer: {lr: 0.05}
schedule: {name: constant, warmup: 0ep}
swa: {start: 50%, every: 1ep}
snapshots: {every: 1ep, start: 50%}
train: {epochs: 4, batch_size: 32, threads: 1, precision: fp32}
"""
TOY = """\
import torch
from torch.utils.data import TensorDataset

def samples(count, seed, shape):
    labels = torch.arange(count) % 3
    patterns = torch.randn(3, *shape, generator=torch.Generator().manual_seed(7))
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)) + 0.5 * patterns[labels], labels

def make(shape=(1, 6, 6), train=110):
    shape = tuple(shape)
    return {"train": TensorDataset(*samples(train, 0, shape)), "test": TensorDataset(*samples(45, 1, shape)),
            "num_classes": 3}
"""
HEAD = """\
import os, threading, warnings
import torch
from torch import nn
from torch.nn import functional as F
warnings.simplefilter("ignore")
"""
BODY = "nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())"


def network(make: str, forward: str = "return self.head(self.body(x).flatten(1))", more: str = "") -> str:
    """A network whose constructor has the lines `make`, and whose forward has the lines of `forward`."""
    lines = ["class Net(nn.Module):", "    def __init__(self, num_classes):", "        super().__init__()"]
    lines += [f"        {line}" for line in make.splitlines()]
    lines += ["    def forward(self, x):", *(f"        {line}" for line in forward.splitlines())]
    return HEAD + "\n".join(lines) + "\n" + more


PLAIN = f"self.body = {BODY}\nself.head = nn.Linear(144, num_classes)"
# What it is -> its code. Buffers that are not the mean of anything are left out of the comparison by their names.
NETWORKS = {
    "a lock and an open file": network(PLAIN + "\nself.lock, self.file = threading.Lock(), open(os.devnull)"),
    "a hook that sees the network": network(
        PLAIN
        + "\nself.gate = nn.Parameter(torch.ones(4, 1, 1))"
        + "\nself.body[0].register_forward_hook(lambda layer, inputs, output: output * self.gate)"
    ),
    "a forward that was patched": network(
        PLAIN + "\nself.scale = nn.Parameter(torch.ones(()))\nplain = self.body.forward"
        "\nself.body.forward = lambda x: plain(x) * self.scale"
    ),
    "an expanded buffer": network(
        PLAIN + "\nself.register_buffer('table', torch.linspace(0, 1, 6).expand(4, 6, 6), persistent=False)",
        "return self.head((self.body(x) + self.table).flatten(1))",
    ),
    "a buffer of 8-bit floats": network(
        PLAIN + "\nself.register_buffer('scale', torch.ones(3).to(torch.float8_e4m3fn))"
    ),
    "weight norm by a hook": network(PLAIN + "\nself.head = nn.utils.weight_norm(self.head)"),
    "weight norm by a parametrization": network(
        PLAIN + "\nself.head = nn.utils.parametrizations.weight_norm(self.head)"
    ),
    "pruned weights": network(
        PLAIN + "\nfrom torch.nn.utils import prune\nprune.l1_unstructured(self.head, 'weight', 0.5)"
    ),
    "a compiled block": network(PLAIN + "\nself.body = torch.compile(self.body, backend='eager')"),
    "a block in DataParallel": network(PLAIN + "\nself.body = nn.DataParallel(self.body)"),
    "compiled as a whole": network(PLAIN).replace("class Net", "class Inner")
    + "def Net(num_classes):\n    return torch.compile(Inner(num_classes), backend='eager')\n",
    "in DataParallel as a whole, compiled": network(PLAIN).replace("class Net", "class Inner")
    + "def Net(num_classes):\n    return torch.compile(nn.DataParallel(Inner(num_classes)), backend='eager')\n",
    "lazy layers": network(
        "self.body = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU())"
        "\nself.head = nn.LazyLinear(num_classes)"
    ),
    "an embedding with sparse gradients": network(
        "self.values = nn.Embedding(17, 2, sparse=True)\nself.head = nn.Linear(72, num_classes)",
        "return self.head(self.values((x * 4 + 8).clamp(0, 16).long().flatten(1)).flatten(1))",
    ),
    "a memory that fills": network(
        PLAIN + "\nself.register_buffer('seen', torch.zeros(0))",
        "if self.training:\n    self.seen = torch.cat([self.seen, x.detach().mean().reshape(1)])[-5:]"
        "\nreturn self.head(self.body(x).flatten(1))",
    ),
    "instance norm with statistics": network(
        "self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.InstanceNorm2d(4, track_running_stats=True))"
        "\nself.head = nn.Linear(144, num_classes)"
    ),
    "a scripted block": network(f"self.body = torch.jit.script({BODY})\nself.head = nn.Linear(144, num_classes)"),
    "scripted as a whole": network(PLAIN).replace("class Net", "class Inner")
    + "def Net(num_classes):\n    return torch.jit.script(Inner(num_classes))\n",
    "what it has computed from its weights, until it is trained": network(
        PLAIN + "\nself.weight = None",
        "if self.training:\n    self.weight = None\n    return self.head(self.body(x).flatten(1))\n"
        "if self.weight is None:\n    self.weight = self.head.weight * 1.0\n"
        "return F.linear(self.body(x).flatten(1), self.weight, self.head.bias)",
    ),
    "a mask of infinite values": network(
        PLAIN + "\nself.register_buffer('mask', torch.full((4, 4), float('-inf')).triu(1))",
        "return self.head((self.body(x) + self.mask.exp()[0, 0]).flatten(1))",
    ),
    "spectral norm": network(PLAIN + "\nself.head = nn.utils.parametrizations.spectral_norm(self.head)"),
    "statistics that do not move": network(
        "from torchvision.ops import FrozenBatchNorm2d"
        "\nself.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), FrozenBatchNorm2d(4))"
        "\nself.head = nn.Linear(144, num_classes)"
    ),
    "a buffer that forward computes": network(
        PLAIN + "\nself.register_buffer('seen', torch.zeros(()))",
        "y = self.body(x)\nself.seen = y.square().mean()\nreturn self.head(y.flatten(1))",
    ),
    "modes that return nothing": network(
        PLAIN,
        more="    def train(self, mode=True):\n        super().train(mode)\n"
        "    def eval(self):\n        super().eval()\n"
        "    def to(self, *args, **kwargs):\n        super().to(*args, **kwargs)\n",
    ),
}
STATES = ("running_", "seen", "parametrizations.weight.0._")


@pytest.fixture
def person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a dataset, a recipe and room for nets.py; modules of other tests are forgotten."""
    for name in ("nets", "toy"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    importlib.invalidate_caches()
    yield tmp_path
    for name in ("nets", "toy"):
        sys.modules.pop(name, None)


def require_mean_of_snapshots(run: Path) -> dict[str, Tensor]:
    """swa.pt against the float64 mean of the snapshots of its steps."""
    shipped = load(run / "checkpoints" / "swa.pt")
    kept = {content["step"]: content["state_dict"] for content in map(load, (run / "snapshots").glob("*.pt"))}
    steps = shipped["average"]["steps"]
    assert len(steps) >= 2
    for key, value in shipped["state_dict"].items():
        if value.is_floating_point() and not any(state in key for state in STATES):
            mean = torch.stack([kept[step][key].double() for step in steps]).mean(0)
            torch.testing.assert_close(value.double(), mean, rtol=1e-6, atol=1e-6, msg=key)
    return shipped["state_dict"]


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:.*weight_norm", "ignore:.*unclosed file", "ignore:.*Lazy")
@pytest.mark.parametrize("name", NETWORKS)
def test_whatever_torch_trains_is_averaged(swa, person: Path, name: str) -> None:
    """A run of four epochs; its file against the snapshots, `swa eval`, an export and plain torch."""
    (person / "nets.py").write_text(NETWORKS[name])
    sparse = ["optimizer.momentum=0", "optimizer.nesterov=false", "optimizer.weight_decay=0"] * ("sparse" in name)
    ended = swa("train", "recipe.yaml", *sparse)
    assert ended.code == 0, ended.err
    run = person / "runs" / "net-001"
    state = require_mean_of_snapshots(run)
    assert not any(part in key for key in state for part in ("_orig_mod", "module."))
    told = json.loads((run / "result.json").read_text())["weights"]["swa"]
    again = swa("eval", run / "checkpoints" / "swa.pt", "--allow-code", "--json")
    assert again.json["weights"]["swa"]["nll"] == pytest.approx(told["nll"], abs=1e-5)
    words = ("--format", "safetensors", "-o", "a.safetensors", "--allow-code")
    ended = swa("export", run / "checkpoints" / "swa.pt", *words)
    assert ended.code == 0, ended.err
    assert all(torch.equal(value, state[key]) for key, value in load_file("a.safetensors").items())
    if "fills" not in name:  # plain torch takes no buffer of another shape
        nets = importlib.import_module("nets")
        inner = getattr(nets, "Inner", nets.Net)(3)
        for wrapped in ("compiled block", "DataParallel"):
            if wrapped in name and inner is not None and hasattr(inner, "body") and "whole" not in name:
                inner.body = getattr(inner.body, "_orig_mod", None) or inner.body.module
        if "lazy" in name:
            inner(torch.zeros(2, 1, 6, 6))
        inner.load_state_dict(state)


@pytest.mark.parametrize("shape", [[1, 2, 6, 6], [3, 4]])
def test_inputs_of_other_dimensions(swa, person: Path, shape: list[int]) -> None:
    """Volumes and sequences against networks with convolutions of three dimensions and of one, beside a 2-D one."""
    conv = "nn.Conv3d(1, 4, 3, padding=1)" if len(shape) == 4 else "nn.Conv1d(3, 4, 3, padding=1)"
    norm = "nn.BatchNorm3d(4)" if len(shape) == 4 else "nn.BatchNorm1d(4)"
    make = f"self.body = nn.Sequential({conv}, {norm})\nself.flat = nn.Conv2d(4, 3, 1)\nself.head = nn.LazyLinear(3)"
    (person / "nets.py").write_text(
        network(make, "return self.head(self.flat(self.body(x).flatten(2)[..., None]).flatten(1))")
    )
    ended = swa("train", "recipe.yaml", f"dataset.args.shape={shape}")
    assert ended.code == 0, ended.err
    require_mean_of_snapshots(person / "runs" / "net-001")


def test_a_hook_sees_the_averaged_network(swa, person: Path) -> None:
    """The BatchNorm statistics behind a gate that a hook applies, against the averaged gate's."""
    (person / "nets.py").write_text(NETWORKS["a hook that sees the network"])
    assert swa("train", "recipe.yaml", "optimizer.lr=0.2", "train.epochs=8").code == 0
    state = load(person / "runs" / "net-001" / "checkpoints" / "swa.pt")["state_dict"]
    images, _ = importlib.import_module("toy").samples(110, 0, (1, 6, 6))
    values = torch.nn.functional.conv2d(images, state["body.0.weight"], state["body.0.bias"], padding=1) * state["gate"]
    torch.testing.assert_close(state["body.1.running_mean"], values.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(state["body.1.running_var"], values.var((0, 2, 3)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("way", ["train", "forward"])
def test_frozen_statistics_stay_in_every_command(swa, person: Path, way: str) -> None:
    """Statistics of a network that keeps them, against its own constants, after a run, bn-update and average."""
    make = f"{PLAIN}\nself.body[1].running_mean.fill_(0.25)\nself.body[1].running_var.fill_(2.0)"
    code = network(make, "self.body.eval()\nreturn self.head(self.body(x).flatten(1))")
    if way == "train":
        code = network(make) + "    def train(self, mode=True):\n        super().train(mode)\n"
        code += "        self.body[1].eval()\n        return self\n"
    (person / "nets.py").write_text(code)
    run = person / "runs" / "net-001"
    assert swa("train", "recipe.yaml").code == 0
    assert swa("bn-update", run / "checkpoints" / "swa.pt", "-o", "again.pt", "--allow-code").code == 0
    assert swa("average", run, "-o", "mean.pt", "--allow-code").code == 0
    for path in (run / "checkpoints" / "swa.pt", person / "again.pt", person / "mean.pt"):
        content = load(path)
        assert torch.equal(content["state_dict"]["body.1.running_mean"], torch.full((4,), 0.25)), path
        assert torch.equal(content["state_dict"]["body.1.running_var"], torch.full((4,), 2.0)), path
        assert (content["batchnorm"], content["samples"]) == ("frozen", 0), path
    assert not (run / "checkpoints" / "last_bn.pt").exists()


def test_frozen_in_part(swa, person: Path) -> None:
    """One of two layers kept in eval mode: the plan counts it, and the other is recomputed."""
    make = PLAIN + "\nself.more = nn.BatchNorm1d(144)"
    code = network(make, "return self.head(self.more(self.body(x).flatten(1)))")
    code += (
        "    def train(self, mode=True):\n        super().train(mode)\n        self.more.eval()\n        return self\n"
    )
    (person / "nets.py").write_text(code)
    ended = swa("train", "recipe.yaml")
    assert "2 BatchNorm layers, 1 of them frozen" in ended.err
    content = load(person / "runs" / "net-001" / "checkpoints" / "swa.pt")
    assert content["batchnorm"] == "recomputed"
    assert torch.equal(content["state_dict"]["more.running_mean"], torch.zeros(144))
    assert not torch.equal(content["state_dict"]["body.1.running_mean"], torch.zeros(4))


@pytest.mark.parametrize(
    "move",
    ["self.centre.lerp_(x.mean(0), 0.1)", "self.centre.copy_(torch.maximum(self.centre, x.amax(0)))"],
    ids=["a mean", "a maximum that the last batches leave"],
)
def test_statistics_that_nobody_can_measure_are_named(swa, person: Path, move: str) -> None:
    """A buffer of the network itself: a warning with its name, and `partial` in file, JSON and table."""
    make = f"{PLAIN}\nself.register_buffer('centre', torch.zeros(1, 6, 6))"
    forward = f"if self.training:\n    {move}\n"
    forward += "return self.head(self.body(x - self.centre).flatten(1))"
    (person / "nets.py").write_text(network(make, forward))
    ended = swa("train", "recipe.yaml", "--json")
    assert ended.code == 0
    assert "warning: centre: " in ended.err
    assert [ended.json["weights"][name]["batchnorm"] for name in ("last", "last_bn", "swa")] == [
        "running",
        "partial",
        "partial",
    ]
    shipped = person / "runs" / "net-001" / "checkpoints" / "swa.pt"
    assert load(shipped)["batchnorm"] == "partial"
    again = swa("bn-update", shipped, "-o", "again.pt", "--allow-code", "--json")
    assert "warning: centre: " in again.err
    assert again.json["weights"]["swa"]["batchnorm"] == "partial"


@pytest.mark.parametrize(
    "make",
    [
        f"{PLAIN}\nself.order = sorted(range(36), key=lambda _: os.urandom(4))",
        "width = 3 + Net.built\nNet.built += 1\n"
        "self.body = nn.Conv2d(1, width, 3, padding=1)\nself.order = range(36)\n"
        "self.head = nn.Linear(36 * width, num_classes)",
    ],
    ids=["an order of its own", "another width each time"],
)
def test_a_constructor_that_makes_another_network_each_time(swa, person: Path, make: str) -> None:
    """It is told, and the average is scored in the network it belongs to: its loss is near that of the raw weights."""
    forward = "x = x.flatten(1)[:, list(self.order)].view(-1, 1, 6, 6)\nreturn self.head(self.body(x).flatten(1))"
    (person / "nets.py").write_text(network(make, forward, more="Net.built = 0\n"))
    ended = swa("train", "recipe.yaml", "train.epochs=8", "--json")
    assert ended.code == 0, ended.err
    assert "another network each time" in " ".join(ended.err.split())
    weights = ended.json["weights"]
    assert weights["swa"]["nll"] < 0.8 * 1.0986  # of three equal guesses; in another order it is worse than those
    assert abs(weights["swa"]["nll"] - weights["last"]["nll"]) < 0.2
    require_mean_of_snapshots(person / "runs" / "net-001")


AUXILIARY = "return (self.head(self.body(x).flatten(1)), {0}) if self.training else self.head(self.body(x).flatten(1))"
REFUSED = {  # what it is -> code, words, what the message names, what the cure has
    "a tuple in training": (network(PLAIN, AUXILIARY.format("x")), [], ("model.name", "tuple of 2"), "task"),
    "a dict in training": (
        network(
            PLAIN,
            "y = self.head(self.body(x).flatten(1))\nreturn {'main': y, 'early': y} if self.training else y",
        ),
        [],
        ("model.name", "main, early"),
        "task",
    ),
    "one value per channel": (
        network(
            "self.norm = nn.BatchNorm1d(36)\nself.head = nn.Linear(36, num_classes)",
            "return self.head(self.norm(x.flatten(1)))",
        ),
        ["train.batch_size=1"],
        ("train.batch_size", "norm (BatchNorm1d)"),
        "train.batch_size=2",
    ),
    "nothing to train": (
        network(PLAIN + "\nself.requires_grad_(False)"),
        [],
        ("model.name", "requires_grad"),
        "requires_grad=True",
    ),
    "sparse gradients and Adam": (
        NETWORKS["an embedding with sparse gradients"],
        ["optimizer={name: Adam, lr: 0.01}"],
        ("optimizer.name", "values.weight"),
        "sparse=False",
    ),
    "a buffer that torch cannot load": (
        network(PLAIN + "\nself.register_buffer('table', torch.ones(6).expand(4, 6))"),
        [],
        ("model.name", "table"),
        ".clone()",
    ),
    "a view of a parameter": (
        network(
            PLAIN
            + "\nself.gain = nn.Parameter(torch.ones(1))"
            + "\nself.register_buffer('gains', self.gain.expand(3), persistent=False)"
        ),
        [],
        ("model.name", "gains"),
        "in forward",
    ),
    "a sparse buffer": (
        network(PLAIN + "\nself.register_buffer('mask', torch.eye(3).to_sparse())"),
        [],
        ("model.name", "mask", "sparse"),
        "persistent=False",
    ),
    "a lazy layer out of reach": (
        network(PLAIN + "\nself.unused = nn.LazyLinear(3)"),
        [],
        ("model.name", "unused"),
        "forward",
    ),
    "parts of a batch that the pass cannot have": (
        network(
            "self.head = nn.Linear(36, num_classes)\nself.norm = Parts(1)",
            "return self.head(self.norm(x).flatten(1))",
            more="class Parts(nn.BatchNorm2d):\n    def forward(self, x):\n        if self.training:\n"
            "            assert len(x) % 4 == 0, 'no equal parts'\n        return super().forward(x)\n",
        ),
        [],
        ("norm (Parts)", "no equal parts"),
        "samples=96",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_refused_before_a_folder_is_made(swa, person: Path, name: str) -> None:
    """Exit 2, the key and the layer, a cure, and no folder."""
    code, words, named, cure = REFUSED[name]
    (person / "nets.py").write_text(code)
    ended = swa("train", "recipe.yaml", *words)
    said = " ".join(ended.err.split())
    assert ended.code == 2, ended.err
    for part in named:
        assert part in said
    assert cure in said.partition("hint:")[2]
    assert "mistake of swa" not in said
    assert not (person / "runs").exists()


def test_the_cure_for_ragged_parts_works(swa, person: Path) -> None:
    """The samples that the refusal names, pasted: the run ends."""
    (person / "nets.py").write_text(REFUSED["parts of a batch that the pass cannot have"][0])
    assert swa("train", "recipe.yaml", "swa.batchnorm.samples=96").code == 0
    swap = ["swa=null", "snapshots=null", "swap={workers: 2, start: 50%}", "train.epochs=2"]
    refused = " ".join(swa("train", "recipe.yaml", *swap).err.split())
    assert "swap.batchnorm.samples=96" in refused
    assert swa("train", "recipe.yaml", *swap, "swap.batchnorm.samples=96").code == 0


LATE = """\
self.stem = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
self.head = nn.Linear(3, num_classes)
self.register_buffer("seen", torch.zeros((), dtype=torch.long))
"""
FREEZES_LATE = """\
def train(self, mode=True):
    super().train(mode)
    if self.seen >= 3:
        self.stem.eval()
    return self
"""


def test_what_train_freezes_may_depend_on_the_weights(swa, person: Path) -> None:
    """Frozen after three steps by a buffer: the average, and `bn-update` of it, have the statistics of the run."""
    forward = "self.seen += self.training\nreturn self.head(self.stem(x).mean((2, 3)))"
    (person / "nets.py").write_text(network(LATE, forward, textwrap.indent(FREEZES_LATE, "    ")))
    assert swa("train", "recipe.yaml").code == 0
    run = person / "runs" / "net-001" / "checkpoints"
    assert swa("bn-update", run / "swa.pt", "--allow-code", "-o", "again.pt").code == 0
    raw = load(run / "last.pt")["model"]
    assert raw["seen"] > 3
    for file in (run / "swa.pt", Path("again.pt")):
        found = load(file)
        assert found["batchnorm"] == "frozen"
        assert torch.equal(found["state_dict"]["stem.1.running_mean"], raw["stem.1.running_mean"])


def test_an_average_that_forward_freezes_does_not_stay_stale(swa, person: Path) -> None:
    """Taken without a pass it is stale, and `bn-update` finds that nothing moves: frozen, and scored."""
    forward = "self.stem.eval()\nreturn self.head(self.stem(x).mean((2, 3)))"
    (person / "nets.py").write_text(network(LATE, forward))
    assert swa("train", "recipe.yaml").code == 0
    assert swa("average", "runs/latest", "--no-bn", "-o", "mean.pt", "--allow-code").code == 0
    assert load("mean.pt")["batchnorm"] == "stale"
    assert swa("bn-update", "mean.pt", "--allow-code").code == 0
    assert load("mean.pt")["batchnorm"] == "frozen"
    assert swa("eval", "mean.pt", "--allow-code").code == 0


def test_state_beside_the_state_dict_is_told(swa, person: Path) -> None:
    """A network that counts its steps in a plain attribute: a warning, and the file scores what the table says."""
    forward = "if self.training:\n    self.steps += 1\nreturn self.head(self.body(x).flatten(1)) * (1 + self.steps)"
    (person / "nets.py").write_text(network(PLAIN + "\nself.steps = 0", forward))
    ended = swa("train", "recipe.yaml", "--json")
    assert "outside its state dict" in " ".join(ended.err.split())
    again = swa("eval", person / "runs" / "net-001" / "checkpoints" / "swa.pt", "--allow-code", "--json")
    assert again.json["weights"]["swa"]["nll"] == pytest.approx(ended.json["weights"]["swa"]["nll"], abs=1e-5)


SETS_UP = (
    PLAIN + "\nself.register_buffer('first', torch.zeros(()))\nself.register_buffer('count', torch.tensor(0))"
    "\nself.start = nn.Parameter(torch.zeros(()))"
)
BY_FLAG = "\nself.register_buffer('ready', torch.tensor(False))"
IN_PLACE = "self.start.detach().copy_(x.mean())"


@pytest.mark.parametrize(
    ("make", "set_up", "words"),
    [
        (SETS_UP + BY_FLAG, f"{IN_PLACE}; self.ready.fill_(True)", []),
        (SETS_UP + BY_FLAG, "self.start.data.copy_(x.mean()); self.ready.fill_(True)", []),
        (SETS_UP + "\nself.ready = False", f"{IN_PLACE}; self.ready = True", []),
        (SETS_UP + BY_FLAG + "\nself.head = nn.LazyLinear(3)", f"{IN_PLACE}; self.ready.fill_(True)", []),
        (SETS_UP + BY_FLAG, f"{IN_PLACE}; self.ready.fill_(True)", ["train.compile=eager"]),
    ],
    ids=["a buffer tells", "through .data", "an attribute tells", "before a lazy layer", "compiled"],
)
def test_the_first_batch_sets_up_what_the_first_pass_does(
    swa, person: Path, make: str, set_up: str, words: list[str]
) -> None:
    """What any first `forward` takes from its inputs, as ActNorm does, against the first batch of training."""
    forward = f"if not self.ready:\n    {set_up}\n"
    forward += "if self.training:\n    self.first.copy_(self.first if self.count else x.mean())\n    self.count += 1\n"
    (person / "nets.py").write_text(network(make, forward + "return self.head(self.body(x - self.start).flatten(1))"))
    ended = swa("train", "recipe.yaml", "optimizer.lr=1e-9", *words)
    assert ended.code == 0, ended.err
    found = load(person / "runs" / "net-001" / "checkpoints" / "last.pt")["model"]
    assert found["count"] == 4 * 3
    assert float(found["start"]) == pytest.approx(float(found["first"]), abs=1e-6)
    assert found["start"] != 0
    assert ("another network each time" in " ".join(ended.err.split())) == ("self.ready = False" in make)


def test_layers_that_a_first_pass_makes_are_trained(swa, person: Path) -> None:
    """A head that the first `forward` makes: the optimizer has it, so it moves."""
    make = f"self.body = {BODY}\nself.head = None"
    forward = "if self.head is None:\n    self.head = nn.Linear(144, 3)\nreturn self.head(self.body(x).flatten(1))"
    (person / "nets.py").write_text(network(make, forward))
    assert swa("train", "recipe.yaml").code == 0
    first, last = (load(path)["state_dict"] for path in sorted((person / "runs/net-001/snapshots").iterdir())[::2])
    assert not torch.equal(first["head.weight"], last["head.weight"])


def test_a_constructor_that_takes_long_is_told(swa, person: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a limit of nothing, any does."""
    from swa_cli.engine import preflight

    monkeypatch.setattr(preflight, "SLOW_S", 0.0)
    (person / "nets.py").write_text(network(PLAIN))
    ended = swa("train", "recipe.yaml")
    assert ended.code == 0
    assert "warning: model.name: making nets:Net takes" in " ".join(ended.err.split())


def test_a_trial_leaves_no_trace(swa, person: Path) -> None:
    """Raw weights of a run whose network and data draw random numbers, against a loop of plain torch."""
    make = PLAIN + "\nself.drop = nn.Dropout(0.3)"
    (person / "nets.py").write_text(network(make, "return self.head(self.drop(self.body(x).flatten(1)))"))
    for seed in ("seed=3", "seed=3"):
        assert swa("train", "recipe.yaml", seed, "swa.every=1step").code == 0
    first, second = (load(person / "runs" / f"net-00{n}" / "checkpoints" / "last.pt")["model"] for n in (1, 2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert swa("train", "recipe.yaml", "seed=3", "swa=null", "snapshots=null").code == 0
    third = load(person / "runs" / "net-003" / "checkpoints" / "last.pt")["model"]
    assert all(torch.equal(first[key], third[key]) for key in first)


def test_a_run_with_sparse_gradients_goes_on(swa, person: Path) -> None:
    """Two epochs and two more against four in one go: the same weights, by the same kernel."""
    (person / "nets.py").write_text(NETWORKS["an embedding with sparse gradients"])
    words = ["optimizer.momentum=0", "optimizer.nesterov=false", "optimizer.weight_decay=0"]
    assert swa("train", "recipe.yaml", *words).code == 0
    assert swa("train", "recipe.yaml", *words, "train.epochs=2", "swa=null", "snapshots=null").code == 0
    two = person / "runs" / "net-002"
    assert swa("train", "--resume", two, "--extend-to", "4", "--allow-code").code == 0
    whole, parts = (load(run / "checkpoints" / "last.pt")["model"] for run in (person / "runs" / "net-001", two))
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())
