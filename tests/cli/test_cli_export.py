"""`swa export`: files for other programs against the plain network in float64, and what they say of themselves."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from conftest import load, run_swa
from swa_cli import __version__, cli
from swa_cli.analysis import export
from swa_cli.errors import UserError
from swa_cli.models import build_model

RECIPE = """\
name: small
model: {name: convnet, args: {width: 4}}
dataset: {name: digits}
optimizer: {lr: 0.1}
swa: {start: 1ep, every: 0.5ep, eval_every: 1ep}
averages: {ema: {kind: ema, decay: 0.9}}
train: {epochs: 2, batch_size: 128, threads: 1, precision: fp32}
"""
SWA, LAST = "run/checkpoints/swa.pt", "run/checkpoints/last.pt"
SUFFIXES = {"safetensors": ".safetensors", "state-dict": ".pt", "torch-export": ".pt2", "onnx": ".onnx"}
GRAPHS = ("torch-export", "onnx")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, and every export of its swa.pt."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "small.yaml").write_text(RECIPE)
    run_swa("train", folder / "small.yaml", "-q", "-o", folder)
    source = (folder / "small-001").rename(folder / "run") / "checkpoints/swa.pt"
    for name, suffix in SUFFIXES.items():
        words = ("export", source, "--format", name, "-q", "-o")
        run_swa(*words, folder / f"plain{suffix}")
        if name in GRAPHS:
            run_swa(*words, folder / f"pixels{suffix}", "--with-normalization")
    return folder


@pytest.fixture
def run(swa, trained: Path, tmp_path: Path) -> Path:
    """The working folder has a copy of the run."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


def plain_network(trained: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network with the weights of swa.pt in float64, and its `input`."""
    content = load(trained / SWA)
    model = build_model.build("convnet", num_classes=10, in_channels=1, args={"width": 4})
    model.load_state_dict(content["state_dict"], strict=True)
    return model.eval().double(), content["input"]


def run_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["outputs"], {"images": images.numpy()})[0])


def run_exported(path: Path) -> Callable[[Tensor], Tensor]:
    module = torch.export.load(path).module()
    return lambda images: module(images).detach()


RUN = {"onnx": run_onnx, "torch-export": run_exported}


@pytest.mark.slow
@pytest.mark.parametrize("pixels", [False, True], ids=["plain", "pixels"])
@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_computes_what_the_network_does(trained: Path, name: str, pixels: bool) -> None:
    """100 images in batches of 1, 7 and 100 against the plain network and its normalisation in float64, to 1e-4."""
    model, about = plain_network(trained)
    outputs = RUN[name](trained / f"{'pixels' if pixels else 'plain'}{SUFFIXES[name]}")
    images = np.random.default_rng(5).random((100, 1, 8, 8))
    normalised = (images - np.reshape(about["mean"], (1, 1, 1))) / np.reshape(about["std"], (1, 1, 1))
    with torch.no_grad():
        expected = model(torch.from_numpy(normalised))
    given = torch.from_numpy(images if pixels else normalised).float()
    for size in (1, 7, 100):
        found = torch.cat([outputs(batch) for batch in given.split(size)])
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.1  # not all the same


@pytest.mark.parametrize("name", ["safetensors", "state-dict"])
def test_weights_load_strictly_into_the_plain_network(trained: Path, name: str) -> None:
    """Every tensor against swa.pt, bit for bit; a state dict has nothing else."""
    path = trained / f"plain{SUFFIXES[name]}"
    found = load_file(path) if name == "safetensors" else load(path)
    expected = load(trained / SWA)["state_dict"]
    assert set(found) == set(expected)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    build_model.build("convnet", num_classes=10, in_channels=1, args={"width": 4}).load_state_dict(found, strict=True)


def metadata_of(path: Path) -> dict[str, str]:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return file.metadata()
    if path.suffix == ".onnx":
        import onnx

        return {item.key: item.value for item in onnx.load(path).metadata_props}
    keys = ("swa_version", "weights", "batchnorm", "normalization", "recipe", "input", "average", "scores")
    extra = dict.fromkeys(keys, "")
    torch.export.load(path, extra_files=extra)
    return extra


@pytest.mark.parametrize("file", ["plain.safetensors", "plain.onnx", "pixels.pt2"])
def test_metadata_are_those_of_the_checkpoint_and_its_run(trained: Path, file: str) -> None:
    """Recipe, input and average against swa.pt, scores against result.json."""
    found, expected = metadata_of(trained / file), load(trained / SWA)
    assert found["swa_version"] == __version__
    assert (found["weights"], found["batchnorm"]) == ("swa", "recomputed")
    assert found["normalization"] == ("inside" if file.startswith("pixels") else "outside")
    for key in ("recipe", "input", "average"):
        assert json.loads(found[key]) == expected[key], key
    preprocessing = {"channels", "size", "resize", "crop", "interpolation", "mean", "std", "classes"}
    assert preprocessing <= json.loads(found["input"]).keys()
    result = json.loads((trained / "run/result.json").read_text())
    scores = {"split": "test", "samples": 360, **result["weights"]["swa"]}
    assert json.loads(found["scores"]) == scores


@pytest.mark.parametrize(
    "change", ["eval.image_size=21", "dataset.name=fashion_mnist", "dataset.mean=[0.5]", "train.device=cpu"]
)
def test_a_file_of_ours_is_exported_as_it_is(swa, run: Path, change: str) -> None:
    """A change, which could only be told of the weights and not be done to them: exit 2, its key, and no file."""
    ended = swa("export", SWA, change, "--format", "safetensors", "-o", "a.safetensors")
    assert ended.code == 2
    assert f"{change.partition('=')[0]}: cannot be changed here" in ended.err
    assert not Path("a.safetensors").exists()


def test_metadata_are_those_of_the_checkpoint_with_another_recipe(swa, run: Path) -> None:
    """A recipe of other data and sizes that fits the weights: `swa show` of the export against that of swa.pt."""
    other = RECIPE.replace("{name: digits}", "{name: fashion_mnist, image_size: 21}")
    Path("other.yaml").write_text(other)
    words = ["export", SWA, "--recipe", "other.yaml", "--format", "safetensors", "-o", "a.safetensors"]
    assert swa(*words).code == 0
    found, expected = (swa("show", path, "--json").json for path in ("a.safetensors", SWA))
    assert (found["recipe"], found["input"]) == (expected["recipe"], expected["input"])


@pytest.mark.parametrize("name", SUFFIXES)
def test_nothing_of_the_machine_is_in_the_file(trained: Path, name: str) -> None:
    """The bytes of each file against the folders of this project and of its packages, which torch's notes name."""
    data = (trained / f"plain{SUFFIXES[name]}").read_bytes()
    for folder in (Path(cli.__file__).parents[2], Path(torch.__file__).parents[1]):
        assert str(folder).encode() not in data


def test_onnx_names_its_input_and_leaves_the_batch_open(trained: Path) -> None:
    """The signature of the graph against (batch, channels, height, width) and (batch, classes)."""
    import onnx

    graph = onnx.load(trained / "plain.onnx").graph
    shapes = {
        value.name: [part.dim_param or part.dim_value for part in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output]
    }
    assert shapes == {"images": ["batch", 1, 8, 8], "outputs": ["batch", 10]}


def test_the_answer(swa, run: Path) -> None:
    """--json against the file; without it one line on stdout, which says that a state dict has no metadata."""
    ended = swa("export", SWA, "--format", "state-dict", "-o", "raw.pt", "--json")
    assert ended.code == 0, ended.err
    seconds = ended.json["seconds"]
    assert ended.json == {
        "command": "export",
        "checkpoint": SWA,
        "file": "raw.pt",
        "format": "state-dict",
        "weights": "swa",
        "batchnorm": "recomputed",
        "normalization": "outside",
        "max_difference": 0.0,
        "inputs": 0,
        "metadata": [],
        "bytes": Path("raw.pt").stat().st_size,
        "seconds": seconds,
    }
    ended = swa("export", SWA, "--format", "state-dict", "-o", "raw.pt")  # over the file of before
    assert "no place for metadata" in ended.out
    assert swa("export", SWA, "--format", "state-dict", "-o", "raw.pt", "-q").err == ""


def test_the_weight_set_is_chosen_and_fresh(swa, run: Path) -> None:
    """Of several weight sets one is named; a stale one is refused, and exported on insistence."""
    words = ["export", LAST, "--format", "safetensors", "-o", "a.safetensors"]
    several = swa(*words)
    assert several.code == 2
    assert "last, swa, ema" in several.err
    assert "--weights NAME" in several.err
    assert "choose from last, swa, ema" in swa(*words, "--weights", "x").err
    stale = swa(*words, "--weights", "swa")
    assert stale.code == 2
    assert "stale" in stale.err
    assert "bn-update" in stale.err
    assert not Path("a.safetensors").exists()
    assert swa(*words, "--weights", "swa", "--allow-stale-bn").code == 0
    assert metadata_of(Path("a.safetensors"))["batchnorm"] == "stale"
    assert "scores" not in metadata_of(Path("a.safetensors"))  # the run's are those of other statistics
    assert swa(*words, "--weights", "last").code == 0
    found = metadata_of(Path("a.safetensors"))
    assert (found["weights"], "average" in found, "scores" in found) == ("last", False, True)
    assert all(torch.equal(value, load(LAST)["model"][key]) for key, value in load_file("a.safetensors").items())


@pytest.mark.parametrize("name", ["swa", "ema", "last_bn"])
def test_an_export_is_read_as_the_checkpoint_that_it_was_made_of(swa, run: Path, name: str) -> None:
    """What `swa show` and `swa eval` say of an export, without --recipe, against what they say of its source."""
    source = f"run/checkpoints/{name}.pt"
    assert swa("export", source, "--format", "safetensors", "-o", "a.safetensors").code == 0
    shown, expected = (swa("show", path, "--json").json for path in ("a.safetensors", source))
    if name == "last_bn":  # of raw weights, the metadata have no steps
        expected["weights"][name]["steps"] = []
    assert {**shown, "path": source} == expected
    scores, expected = (swa("eval", path, "--json").json for path in ("a.safetensors", source))
    assert scores["weights"] == expected["weights"]


def test_stale_statistics_of_an_export_stay_stale_until_they_are_recomputed(swa, run: Path) -> None:
    """An average that was exported as it is: refused; after the command of the hint, the weights of the run's file."""
    words = ["export", LAST, "--format", "safetensors", "-o", "a.safetensors", "--weights", "swa", "--allow-stale-bn"]
    assert swa(*words).code == 0
    refused = swa("eval", "a.safetensors", "dataset.workers=0")
    assert refused.code == 2
    [command] = re.findall(r"run `swa (.*?)` first", " ".join(refused.err.split()))
    assert swa(*shlex.split(command)).code == 0
    found, expected = load(Path("FILE.pt")), load(run / "checkpoints/swa.pt")
    assert found["average"] == expected["average"]
    assert all(torch.equal(value, expected["state_dict"][key]) for key, value in found["state_dict"].items())


def test_an_exported_swag_average_is_its_mean(swa, tmp_path: Path) -> None:
    """The deviations are not in the file: it is shown as a mean, has no draws, and is written again as one."""
    recipe = tmp_path / "small.yaml"
    recipe.write_text(RECIPE.replace("averages: {ema: {kind: ema, decay: 0.9}}", "averages: {swag: {kind: swag}}"))
    assert swa("train", recipe, "-q").code == 0
    source = "runs/small-001/checkpoints/swag.pt"
    assert swa("export", source, "--format", "safetensors", "-o", "a.safetensors").code == 0
    assert swa("show", "a.safetensors", "--json").json["weights"]["swag"]["kind"] == "mean"
    assert swa("eval", "a.safetensors", "--draws", 2).code == 2
    assert swa("bn-update", "a.safetensors", "-o", "b.pt").code == 0
    ours, theirs = (swa("eval", path, "--json").json["weights"]["swag"] for path in ("b.pt", source))
    assert ours["nll"] == theirs["nll"]


def test_no_data_are_needed(swa, run: Path) -> None:
    """A checkpoint whose dataset is nowhere: exported all the same."""
    content = load(SWA)
    content["recipe"]["dataset"] |= {"name": "cifar10", "root": "nowhere", "download": False}
    torch.save(content, "far.pt")
    assert swa("eval", "far.pt").code == 2
    assert swa("export", "far.pt", "--format", "safetensors", "-o", "a.safetensors").code == 0


@pytest.mark.parametrize("layer", ["Linear(5, 10)", "LazyLinear(10)"])
@pytest.mark.parametrize("name", ["safetensors", "state-dict"])
def test_a_network_of_other_inputs_is_exported_as_weights(swa, run: Path, name: str, layer: str) -> None:
    """A checkpoint whose inputs are no images: the weights bit for bit; graphs are refused, and damage is found."""
    content = load(SWA)
    content["input"] |= {"channels": None, "size": [], "mean": [], "std": [], "resize": None, "crop": "none"}
    content["recipe"] |= {"model": {"name": "vectors:Net"}}
    content["state_dict"] = {"last.weight": torch.randn(10, 5), "last.bias": torch.randn(10).double()}
    torch.save(content, "far.pt")
    Path("vectors.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        f"        self.last = torch.nn.{layer}\n"
        "        self.last.bias = torch.nn.Parameter(torch.zeros(10).double())\n"
    )
    target = "a.pt" if name == "state-dict" else "a.safetensors"
    ended = swa("export", "far.pt", "--allow-code", "--format", name, "-o", target, "--json")
    assert ended.code == 0, ended.err
    assert (ended.json["inputs"], ended.json["max_difference"]) == (0, 0.0)
    written = load_file(target) if name == "safetensors" else load(Path(target))
    assert all(torch.equal(written[key], value) for key, value in content["state_dict"].items())
    ended = swa("export", "far.pt", "--allow-code", "--format", "torch-export", "-o", "a.pt2")
    assert ended.code == 2
    assert "takes no images" in ended.err
    assert not Path("a.pt2").exists()


def test_foreign_weights_are_exported(swa, run: Path, trained: Path) -> None:
    """A Lightning checkpoint with --recipe: its weights against those that went in, under clean names."""
    state = load(SWA)["state_dict"]
    content = {"pytorch-lightning_version": "2.6.0", "state_dict": {f"net.{key}": v for key, v in state.items()}}
    torch.save(content, "a.ckpt")
    words = ["export", "a.ckpt", "--recipe", trained / "small.yaml", "--format", "safetensors", "-o", "a.safetensors"]
    ended = swa(*words, "--json")
    assert ended.code == 0, ended.err
    assert (ended.json["weights"], ended.json["batchnorm"]) == ("last", "running")
    assert all(torch.equal(value, state[key]) for key, value in load_file("a.safetensors").items())
    assert swa(*words, "dataset.image_size=12").code == 0  # it has no input of its own, and gets that of the recipe
    found = swa("show", "a.safetensors", "--json").json
    assert (found["recipe"]["dataset"]["image_size"], found["input"]["size"]) == (12, [12, 12])


class Pair(NamedTuple):
    out: Tensor
    aux: Tensor


@pytest.mark.parametrize("kind", [dict, Pair])
def test_each_output_of_a_graph_is_compared(kind: type) -> None:
    """A network of two outputs against the list that an ONNX session gives, and against one that is off by 2e-4."""

    class Two(nn.Module):
        def forward(self, images: Tensor) -> Any:
            return kind(out=images.sum(1), aux=images.mean((1, 2)))

    batches, bar, network = [torch.rand(2, 3, 4)], SimpleNamespace(advance=lambda: None), Two()
    assert export._difference(network, lambda images: [images.sum(1), images.mean((1, 2))], batches, bar) == 0
    for wrong in (
        lambda images: [images.sum(1), images.mean((1, 2)) + 2e-4 * images.sum(1).max()],
        lambda images: [images.sum(1)],
    ):
        with pytest.raises(UserError, match="nothing was written") as caught:
            export._difference(network, wrong, batches, bar)
        assert caught.value.exit_code == 1


@pytest.mark.parametrize("name", ["safetensors", "state-dict"])
def test_weights_of_a_network_of_any_outputs(swa, run: Path, name: str) -> None:
    """A network that returns no tensor at all: its weights are exported bit for bit."""
    content = load(SWA)
    content["recipe"] |= {"model": {"name": "objects_net:Net"}}
    content["state_dict"] = {"last.weight": torch.randn(10, 64), "last.bias": torch.randn(10)}
    torch.save(content, "far.pt")
    Path("objects_net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.last = nn.Linear(64, num_classes)\n"
        "    def forward(self, images):\n"
        "        return object()\n"
    )
    target = "a.pt" if name == "state-dict" else "a.safetensors"
    ended = swa("export", "far.pt", "--allow-code", "--format", name, "-o", target)
    assert ended.code == 0, ended.err
    written = load_file(target) if name == "safetensors" else load(Path(target))
    assert all(torch.equal(written[key], value) for key, value in content["state_dict"].items())


@pytest.mark.parametrize("content", [None, b"before"])
def test_a_failed_check_leaves_the_file_as_it_was(
    swa, run: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    """A format that changes one number: exit 1, its name, and no file, or the one of before."""
    format_ = export.FORMATS["safetensors"]

    def wrong(data: bytes, model: nn.Module) -> dict[str, Tensor]:
        weights = format_.read(data, model)
        name = next(iter(weights))
        return {**weights, name: weights[name].nextafter(torch.tensor(9.0))}

    monkeypatch.setattr(export, "FORMATS", {**export.FORMATS, "safetensors": replace(format_, read=wrong)})
    if content is not None:
        Path("a.safetensors").write_bytes(content)
    before = sorted(Path().iterdir())
    ended = swa("export", SWA, "--format", "safetensors", "-o", "a.safetensors")
    assert ended.code == 1
    assert "other weights (" in ended.err
    assert "nothing was written" in ended.err
    assert sorted(Path().iterdir()) == before
    assert content is None or Path("a.safetensors").read_bytes() == content


def test_a_missing_package_is_named_with_its_command(swa, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without onnxruntime: exit 2 and what installs it."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    ended = swa("export", SWA, "--format", "onnx", "-o", "a.onnx")
    assert ended.code == 2
    assert "--format onnx needs onnxruntime" in ended.err
    assert "pip install 'swa-cli[onnx]'" in ended.err


@pytest.mark.parametrize("name", GRAPHS)
def test_a_network_without_a_graph_is_refused(swa, tmp_path: Path, trained: Path, name: str) -> None:
    """A network that looks at its values: exit 2, why, and the formats that hold it; those then do."""
    Path("branching_net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes, in_channels):\n"
        "        super().__init__()\n"
        "        self.last = nn.Linear(64 * in_channels, num_classes)\n"
        "    def forward(self, images):\n"
        "        if images.sum() > 0:\n"
        "            images = images * 2\n"
        "        return self.last(images.flatten(1))\n"
    )
    text = (trained / "small.yaml").read_text()
    Path("own.yaml").write_text(text.replace("{name: convnet, args: {width: 4}}", "{name: 'branching_net:Net'}"))
    assert swa("train", "own.yaml", "-q", "train.epochs=1", "averages={}", "swa={}").code == 0
    words = ["export", "runs/latest/checkpoints/last.pt", "--allow-code", "--weights", "last", "--format"]
    ended = swa(*words, name, "-o", f"a{SUFFIXES[name]}")
    assert ended.code == 2
    assert f"branching_net:Net: cannot be exported as {name}" in ended.err
    assert "symbolic_shapes" not in ended.err  # what torch logs
    assert not Path(f"a{SUFFIXES[name]}").exists()
    assert swa(*words, "safetensors", "-o", "a.safetensors").code == 0
    words.remove("--allow-code")
    assert "--allow-code" in swa(*words, "safetensors", "-o", "b.safetensors").err
