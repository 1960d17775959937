"""Networks of torchvision and timm through a whole run, and the file that it ships opened in plain torch."""

from __future__ import annotations

import gc
import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import Ended
from swa_cli.engine import evaluate
from sweep.networks import LARGE, REFUSED, TIMM, TORCHVISION, Network

pytestmark = pytest.mark.sweep
NUM_CLASSES = 3
STEPS, BATCH_SIZE, NUM_TEST = 2, 4, 2
RECIPE = f"""\
name: net
model: {{name: MODEL}}
dataset: {{name: "noise:make", val: 0, workers: 0}}
optimizer: {{lr: 0.01, momentum: 0}}
schedule: {{name: constant, warmup: 0ep}}
train: {{epochs: 1, batch_size: {BATCH_SIZE}, threads: 1, precision: fp32}}
"""
AVERAGES = {  # the name of the average -> its section in the recipe
    "swa": ("swa", {"start": "0ep", "every": "1step"}),
    "ema": ("averages.ema", {"kind": "ema", "decay": 0.5}),
}
NOISE = f"""\
import torch
from torch.utils.data import TensorDataset

def split(count, seed, side, target):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, side, side, generator=generator)
    shape = (count, side, side) if target == "mask" else (count,)
    return TensorDataset(images, torch.randint({NUM_CLASSES}, shape, generator=generator))

def make(side, target):
    train, test = split({STEPS * BATCH_SIZE}, 0, side, target), split({NUM_TEST}, 1, side, target)
    return {{"train": train, "test": test, "num_classes": {NUM_CLASSES}, "target": target}}
"""


@pytest.fixture
def noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a recipe and a dataset of noise; what a run writes there is removed when the test ends."""
    monkeypatch.delitem(sys.modules, "noise", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "noise.py").write_text(NOISE)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("noise", None)
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The outputs of each network that a run scores, in the order of scoring."""
    outputs: list[Tensor] = []
    score = evaluate.score

    def watched(model: nn.Module, batches: Any, **settings: Any) -> Any:
        ((images, targets),) = batches
        outputs.append(outputs_of(model, images))
        return score(model, [(images, targets)], **settings)

    monkeypatch.setattr(evaluate, "score", watched)
    return outputs


@torch.inference_mode()
def outputs_of(model: nn.Module, images: Tensor) -> Tensor:
    outputs = model.eval()(images)
    return outputs["out"] if isinstance(outputs, dict) else outputs


def plain(source: str, network: Network) -> nn.Module:
    """The network as a person makes it without swa."""
    if source == "timm":
        import timm

        return timm.create_model(network.name, num_classes=NUM_CLASSES, **network.args)
    from torchvision import models

    more: dict[str, Any] = {}
    if network.name in ("googlenet", "inception_v3"):
        more = {"aux_logits": False, "init_weights": True}
    elif network.target == "mask":
        more = {"weights_backbone": None}
    return models.get_model(network.name, weights=None, num_classes=NUM_CLASSES, **more, **network.args)


def train(swa, name: str, network: Network) -> Ended:
    section, average = AVERAGES[network.average]
    settings = {
        "task": "segmentation" if network.target == "mask" else "classification",
        "model": {"name": name, "args": network.args},
        "dataset.args": {"side": network.side, "target": network.target},
        section: average,
    }
    ended = swa("train", "recipe.yaml", *(f"{key}={json.dumps(value)}" for key, value in settings.items()), "--json")
    gc.collect()  # a run is a cycle of objects, of up to 12 GB
    return ended


def require_shipped(swa, folder: Path, scored: list[Tensor], *, source: str, network: Network) -> None:
    """Train, then open swa.pt in plain torch: its outputs against those of the network that was scored."""
    ended = train(swa, f"{source}:{network.name}", network)
    assert ended.code == 0, ended.err
    shipped = torch.load(
        folder / "runs" / "net-001" / "checkpoints" / f"{network.average}.pt", weights_only=True, mmap=True
    )
    assert shipped["average"]["steps"] == [1, 2]
    model = plain(source, network)
    has_statistics = any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules())
    assert shipped["batchnorm"] == ("recomputed" if has_statistics else "none")
    model.load_state_dict(shipped["state_dict"])
    for value in model.parameters():
        if value.dim() == 4:  # the order in memory that a run has: other kernels round in other places
            value.data = value.data.to(memory_format=torch.channels_last)
    images, targets = importlib.import_module("noise").make(network.side, network.target)["test"].tensors
    outputs = outputs_of(model, images)
    scale = max(1.0, outputs.abs().max().item())
    torch.testing.assert_close(outputs / scale, scored[-1] / scale, rtol=0, atol=1e-5)
    loss = nn.functional.cross_entropy(outputs, targets).item()
    assert ended.json["weights"][network.average]["nll"] == pytest.approx(loss, abs=1e-5 * scale)


@pytest.mark.parametrize("network", TORCHVISION, ids=lambda network: network.name)
def test_torchvision(swa, noise: Path, scored: list[Tensor], network: Network) -> None:
    """Each network for classification and segmentation against torchvision's own with the weights of swa.pt."""
    require_shipped(swa, noise, scored, source="torchvision", network=network)


@pytest.mark.parametrize("network", LARGE, ids=lambda network: network.name)
def test_large_ones_one_at_a_time(swa, noise: Path, scored: list[Tensor], network: Network) -> None:
    """The same of the large ones, of which two at once would not fit into 16 GiB."""
    require_shipped(swa, noise, scored, source="torchvision", network=network)


@pytest.mark.parametrize("family", TIMM)
def test_timm(swa, noise: Path, scored: list[Tensor], family: str) -> None:
    """A network of each module of timm against timm's own with the weights of swa.pt."""
    require_shipped(swa, noise, scored, source="timm", network=TIMM[family])


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_network_cannot_do_is_told_before_a_run(swa, noise: Path, what: str) -> None:
    """Exit 2, the network and the reason, and no folder."""
    network, reason = REFUSED[what]
    ended = train(swa, network.name, network)
    assert ended.code == 2, ended.err
    told = " ".join(ended.err.split())
    assert network.name in told
    assert reason in told
    assert not (noise / "runs").exists()


def test_no_network_is_left_out() -> None:
    """The tables of the sweep against the lists of the libraries."""
    import timm
    from torchvision import models

    known = {*models.list_models(module=models), *models.list_models(module=models.segmentation)}
    assert known <= {network.name for network in (*TORCHVISION, *LARGE)}
    assert set(timm.list_modules()) <= TIMM.keys()
    assert all(network.name in timm.list_models(module=family) for family, network in TIMM.items())
