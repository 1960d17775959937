"""Checkpoints of other programs: each layout as its program writes it, read back against the weights that went in."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import zipfile
from argparse import Namespace
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from swa_cli.averaging.model_state import metadata_of
from swa_cli.averaging.model_state import read as read_tensors
from swa_cli.checkpoint import loading, reader, third_party
from swa_cli.checkpoint.reader import WeightSet
from swa_cli.errors import UserError

State = dict[str, Tensor]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def weights(seed: int = 0) -> State:
    return network(seed).state_dict()


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def averaged_model() -> State:
    averaged = torch.optim.swa_utils.AveragedModel(network(1))
    averaged.update_parameters(network(1))
    return averaged.state_dict()


def same(found: State, expected: State) -> bool:
    return list(found) == list(expected) and all(torch.equal(found[key], expected[key]) for key in expected)


def read(path: Path, model: nn.Module | None = None) -> dict[str, WeightSet]:
    return reader.weight_sets(reader.read(path), model or network())


LIGHTNING = {"epoch": 3, "global_step": 60, "pytorch-lightning_version": "2.6.0", "loops": {}, "lr_schedulers": []}

# What is saved -> name: (seed of the weights, BatchNorm, count). Keys of Lightning as in its source.
LAYOUTS: dict[str, tuple[Callable[[], Any], dict[str, tuple[int, str, int | None]]]] = {
    "plain": (weights, {"last": (0, "running", None)}),
    "state_dict": (lambda: {"state_dict": weights(), "epoch": 3}, {"last": (0, "running", None)}),
    "model": (lambda: {"model": weights(), "optimizer": {}}, {"last": (0, "running", None)}),
    "model_state_dict": (lambda: {"model_state_dict": weights(), "loss": 0.5}, {"last": (0, "running", None)}),
    "net": (lambda: {"net": weights(), "acc": 90.0, "epoch": 3}, {"last": (0, "running", None)}),
    "averaged model": (averaged_model, {"swa": (1, "stale", 1)}),
    "averaged model inside": (lambda: {"model": averaged_model()}, {"swa": (1, "stale", 1)}),
    "averaged model behind DistributedDataParallel": (
        lambda: prefixed("module.", averaged_model()),
        {"swa": (1, "stale", 1)},
    ),
    "averaged model behind DistributedDataParallel inside": (
        lambda: {"model": prefixed("module.", averaged_model())},
        {"swa": (1, "stale", 1)},
    ),
    "averaged model in a module": (
        lambda: {**LIGHTNING, "state_dict": prefixed("model.", averaged_model()) | {"loss.weight": torch.ones(2)}},
        {"swa": (1, "stale", 1)},
    ),
    "averaged model of a module, beside its network": (
        lambda: {
            **LIGHTNING,
            "state_dict": prefixed("net.", weights())
            | {"copy.n_averaged": torch.tensor(3), **prefixed("copy.module.net.", weights(1))},
        },
        {"last": (0, "running", None), "swa": (1, "stale", 3)},
    ),
    "two averaged models": (
        lambda: {"model": averaged_model(), "model_ema": averaged_model()},
        {"swa": (1, "stale", 1), "ema": (1, "stale", 1)},
    ),
    "two averaged models in a module": (
        lambda: {
            **LIGHTNING,
            "state_dict": prefixed("fast.", averaged_model()) | prefixed("slow.", averaged_model()),
        },
        {"last.fast.module": (1, "stale", 1), "last.slow.module": (1, "stale", 1)},
    ),
    "no average yet": (
        lambda: {"state_dict": weights(), "state_dict_ema": {}},
        {"last": (0, "running", None)},
    ),
    "timgaripov": (
        lambda: {"epoch": 3, "state_dict": weights(), "swa_state_dict": weights(1), "swa_n": torch.tensor(4)},
        {"last": (0, "running", None), "swa": (1, "stale", 4)},
    ),
    "timgaripov without swa": (
        lambda: {"epoch": 3, "state_dict": weights(), "swa_state_dict": None, "swa_n": None, "optimizer": {}},
        {"last": (0, "running", None)},
    ),
    "timgaripov beside another swa": (
        lambda: {"swa_state_dict": weights(1), "swa_n": 4, "swa_model": weights(2)},
        {"swa_state_dict": (1, "stale", 4), "swa_model": (2, "stale", None)},
    ),
    "torchvision": (
        lambda: {"model": weights(), "model_ema": averaged_model(), "args": Namespace(lr=0.1)},
        {"last": (0, "running", None), "ema": (1, "stale", 1)},
    ),
    "convnext": (
        lambda: {"model": weights(), "model_ema": weights(1), "args": Namespace(lr=0.1)},
        {"last": (0, "running", None), "ema": (1, "stale", None)},
    ),
    "lightning": (
        lambda: {**LIGHTNING, "state_dict": prefixed("model.", weights()), "callbacks": {}},
        {"last": (0, "running", None)},
    ),
    "lightning with a loss": (
        lambda: {**LIGHTNING, "state_dict": {**prefixed("net.", weights()), "loss.weight": torch.ones(2)}},
        {"last": (0, "running", None)},
    ),
    "lightning WeightAveraging": (
        lambda: {
            **LIGHTNING,
            "state_dict": prefixed("model.", weights(1)),
            "current_model_state": prefixed("model.", weights()),
            "averaging_state": {"n_averaged": torch.tensor(7)},
            "callbacks": {"WeightAveraging": {"latest_update_step": 60}},
        },
        {"last": (0, "running", None), "swa": (1, "stale", 7)},
    ),
    "lightning StochasticWeightAveraging": (
        lambda: {
            **LIGHTNING,
            "state_dict": prefixed("model.", weights()),
            "callbacks": {
                "StochasticWeightAveraging": {
                    "n_averaged": 5,
                    "latest_update_epoch": 9,
                    "scheduler_state": None,
                    "average_model_state": prefixed("model.", weights(1)),
                }
            },
        },
        {"last": (0, "running", None), "swa": (1, "stale", 5)},
    ),
    "lightning StochasticWeightAveraging not begun": (
        lambda: {
            **LIGHTNING,
            "state_dict": prefixed("model.", weights()),
            "callbacks": {"StochasticWeightAveraging": {"n_averaged": 0, "average_model_state": weights(1)}},
        },
        {"last": (0, "running", None)},
    ),
    "two networks in a module": (
        lambda: {**LIGHTNING, "state_dict": {**prefixed("model.", weights()), **prefixed("teacher.", weights(1))}},
        {"last.model": (0, "running", None), "last.teacher": (1, "running", None)},
    ),
    "an average in a module": (
        lambda: {**LIGHTNING, "state_dict": {**prefixed("net.", weights()), **prefixed("ema.", averaged_model())}},
        {"last": (0, "running", None), "ema": (1, "stale", 1)},
    ),
    "composer": (
        lambda: {"state": {"model": prefixed("module.", weights()), "optimizers": {}, "run_name": "x"}, "rng": []},
        {"last": (0, "running", None)},
    ),
    "dino": (
        lambda: {
            "student": prefixed("module.backbone.", weights()) | {"module.head.weight": torch.ones(2)},
            "teacher": prefixed("backbone.", weights(1)) | {"head.weight": torch.ones(2)},
            "epoch": 3,
            "args": Namespace(arch="vit_small", out=Path("/runs"), lr=numpy.float64(0.1)),
        },
        {"last": (0, "running", None), "teacher": (1, "stale", None)},
    ),
    "weights": (lambda: {"weights": weights()}, {"last": (0, "running", None)}),
    "network": (lambda: {"network": weights(), "iteration": numpy.int64(7)}, {"last": (0, "running", None)}),
    "model_state and ema": (
        lambda: {"model_state": weights(), "ema": weights(1)},
        {"last": (0, "running", None), "ema": (1, "stale", None)},
    ),
    "ema_state_dict": (
        lambda: {"state_dict": weights(), "ema_state_dict": weights(1)},
        {"last": (0, "running", None), "ema": (1, "stale", None)},
    ),
    "mmengine with EMAHook, which exchanges them": (
        lambda: {
            "meta": {"mmengine_version": "0.10.7", "epoch": 3},
            "state_dict": weights(1),
            "message_hub": {"log_scalars": {}, "loss": numpy.ones(3)},
            "ema_state_dict": {"steps": torch.tensor(9), **prefixed("module.", weights())},
        },
        {"last": (0, "running", None), "ema": (1, "stale", None)},
    ),
    "mmengine": (
        lambda: {"meta": {"mmengine_version": "0.10.7"}, "state_dict": weights(), "message_hub": {}},
        {"last": (0, "running", None)},
    ),
    "ema-pytorch alone": (
        lambda: {
            "initted": torch.tensor(True),
            "step": torch.tensor(9),
            **prefixed("online_model.", weights()),
            **prefixed("ema_model.", weights(1)),
        },
        {"last": (0, "running", None), "ema": (1, "stale", None)},
    ),
    "ema-pytorch beside the model": (
        lambda: {
            "step": 9,
            "model": weights(),
            "ema": {"initted": torch.tensor(True), "step": torch.tensor(9), **prefixed("ema_model.", weights(1))},
        },
        {"last": (0, "running", None), "ema": (1, "stale", None)},
    ),
    "an average with its updates, of RT-DETR": (
        lambda: {"model": weights(), "ema": {"module": weights(1), "updates": 9}, "optimizer": {"state": {}}},
        {"last": (0, "running", None), "ema": (1, "stale", None)},
    ),
    "an AveragedModel with its decay": (
        lambda: {"net": weights(), "ema_model": {"state_dict": averaged_model(), "decay": 0.9}},
        {"last": (0, "running", None), "ema": (1, "stale", 1)},
    ),
    "two averages": (
        lambda: {"model": weights(), "ema": weights(1), "model_ema": weights(2)},
        {"last": (0, "running", None), "ema": (1, "stale", None), "model_ema": (2, "stale", None)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_holds_the_weights_that_went_in(tmp_path: Path, layout: str) -> None:
    """Names, weights, counts and freshness of every set against those that were written."""
    content, expected = LAYOUTS[layout]
    torch.save(content(), tmp_path / "a.pt")
    found = read(tmp_path / "a.pt")
    assert {name: (item.batchnorm, item.count) for name, item in found.items()} == {
        name: (batchnorm, count) for name, (_, batchnorm, count) in expected.items()
    }
    for name, (seed, _, _) in expected.items():
        assert same(found[name].state_dict, weights(seed)), name


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "averaged model" in name])
def test_a_counter_of_an_averaged_model_is_no_tensor_of_an_unknown_network(tmp_path: Path, layout: str) -> None:
    """Without a recipe: the same names and counts as with one, and as many tensors of the average as went in."""
    content, expected = LAYOUTS[layout]
    found = {
        name: item for name, item in third_party.read(content(), tmp_path, owners={}).sets.items() if name != "last"
    }
    assert {name: item.count for name, item in found.items()} == {
        name: count for name, (_, _, count) in expected.items() if name != "last"
    }
    assert {len(item.state_dict) for item in found.values()} == {len(weights())}


def test_what_is_left_out_does_not_count_the_counter_of_an_average(tmp_path: Path) -> None:
    """A loss beside an averaged model: one tensor is left out, of two that are none of the network's."""
    content = prefixed("model.", averaged_model()) | {"loss.weight": torch.ones(2)}
    owners = read_tensors(network()).owners
    assert third_party.read(content, tmp_path, owners=owners).sets["swa"].num_left_out == 1


def test_an_own_buffer_called_as_the_counter_stays(tmp_path: Path) -> None:
    """A network with a buffer `n_averaged` against its weights, alone and as an averaged model."""
    model = network()
    model.register_buffer("n_averaged", torch.tensor(7))
    averaged = torch.optim.swa_utils.AveragedModel(model).state_dict()
    for content, name in ((model.state_dict(), "last"), (averaged, "swa")):
        torch.save(content, tmp_path / "a.pt")
        found = read(tmp_path / "a.pt", model)
        assert list(found) == [name]
        assert same(found[name].state_dict, model.state_dict())


PREFIXES = ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "a.b.c."]


@pytest.mark.parametrize("wrapper", ["_orig_mod", "module", "_fsdp_wrapped_module", "module._orig_mod"])
def test_wrappers_inside_names_are_removed(tmp_path: Path, wrapper: str) -> None:
    """A wrapped block in a wrapped network against the plain one: names, numbers and versions."""
    state = nn.Sequential(nn.Sequential(network()), nn.Linear(2, 1)).state_dict()
    inside = OrderedDict((f"module.{key}".replace("0.0.", f"0.0.{wrapper}."), value) for key, value in state.items())
    inside._metadata = {f"module.0.0.{wrapper}.1": {"version": 2}}
    torch.save({"model": inside}, tmp_path / "a.pt")
    found = read(tmp_path / "a.pt", nn.Sequential(nn.Sequential(network()), nn.Linear(2, 1)))["last"].state_dict
    assert same(found, state)
    assert metadata_of(found)["0.0.1"] == {"version": 2}


def test_versions_come_along(tmp_path: Path) -> None:
    """`_metadata` of a state dict behind a prefix and in a safetensors of ours against that of the network."""
    torch.save({"state_dict": nn.ModuleDict({"model": network()}).state_dict()}, tmp_path / "a.pt")
    found = read(tmp_path / "a.pt")["last"].state_dict
    assert metadata_of(found)["1"] == network().state_dict()._metadata["1"]


def test_batchnorm_without_its_counter(tmp_path: Path) -> None:
    """What torch < 0.4.1 wrote, alone and as one of two networks: torch loads it strictly, and so it is here."""
    old = {key: value for key, value in weights(1).items() if "num_batches" not in key}
    torch.save({**LIGHTNING, "state_dict": prefixed("net.", weights()) | prefixed("ema.", old)}, tmp_path / "a.pt")
    found, model = read(tmp_path / "a.pt"), network()
    assert list(found) == ["last", "ema"]
    loaded = loading.load_weights(model, found["ema"].state_dict, source="a.pt")
    assert same(loaded, {**weights(1), "1.num_batches_tracked": torch.tensor(0)})


def test_an_index_of_shards(tmp_path: Path) -> None:
    """Two shards of a network as transformers writes them against the whole; a shard elsewhere is refused."""
    names = {key: f"model-0000{1 + key.startswith('1')}-of-00002.safetensors" for key in weights()}
    for file in set(names.values()):
        save_file({key: value for key, value in weights().items() if names[key] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 100}, "weight_map": names}))
    assert same(read(index)["last"].state_dict, weights())
    index.write_text(json.dumps({"weight_map": {"0.weight": "../elsewhere.safetensors"}}))
    with pytest.raises(UserError, match="elsewhere"):
        reader.read(index)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_one_common_prefix_is_removed(tmp_path: Path, prefix: str) -> None:
    """Weights behind a prefix against those without, as .pt and as .safetensors."""
    torch.save(prefixed(prefix, weights()), tmp_path / "a.pt")
    save_file(prefixed(prefix, weights()), tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        assert same(read(tmp_path / name)["last"].state_dict, weights())


def test_a_compiled_part_and_an_attribute_called_module(tmp_path: Path) -> None:
    """`_orig_mod` goes from everywhere; the own name `module.0.weight` of a network stays."""
    model = nn.Module()
    model.module = network()
    torch.save({f"module._orig_mod.{key}": value for key, value in weights().items()}, tmp_path / "a.pt")
    assert same(read(tmp_path / "a.pt", model)["last"].state_dict, model.state_dict())


def test_timm_as_timm_writes_it(tmp_path: Path) -> None:
    """timm's own CheckpointSaver with an EMA and options: raw weights and average against timm's."""
    from timm.utils import CheckpointSaver, ModelEmaV3

    model = network()
    ema = ModelEmaV3(model, decay=0.5)
    ema.update(network(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    saver = CheckpointSaver(
        model, optimizer, args=Namespace(model="tiny", lr=0.1), model_ema=ema, checkpoint_dir=str(tmp_path)
    )
    saver.save_checkpoint(epoch=1, metric=0.5)
    found = read(tmp_path / "last.pth.tar")
    assert list(found) == ["last", "ema"]
    assert same(found["last"].state_dict, weights())
    assert same(found["ema"].state_dict, ema.module.state_dict())
    assert (found["ema"].batchnorm, found["ema"].count) == ("stale", None)


def test_a_block_that_is_used_many_times(tmp_path: Path) -> None:
    """Twelve names of one block: torch's own file of it is read, bit for bit; twelve overlapping views are refused."""
    block = nn.Conv2d(16, 16, 3)
    state = nn.Sequential(*[block] * 12).state_dict()
    torch.save(state, tmp_path / "a.pt")
    found = reader.read(tmp_path / "a.pt").content
    assert all(torch.equal(found[key], value) for key, value in state.items())
    torch.save({f"w{index}": block.weight.data.flatten()[index:] for index in range(12)}, tmp_path / "b.pt")
    with pytest.raises(UserError, match="more numbers than the file has"):
        reader.read(tmp_path / "b.pt")


def test_names_of_a_shared_tensor_that_safetensors_leaves_out(tmp_path: Path) -> None:
    """safetensors keeps one name of tied weights; all names are back, and load strictly."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    save_model(model, str(tmp_path / "a.safetensors"))
    assert same(read(tmp_path / "a.safetensors", model)["last"].state_dict, model.state_dict())


def test_what_was_found_is_described(tmp_path: Path) -> None:
    """The sentence about a file against its layout, sets, and what stands beside the network."""
    content = {**LIGHTNING, "state_dict": {**prefixed("net.", weights()), "loss.weight": torch.ones(2)}}
    owners = read_tensors(network()).owners
    found = third_party.read(content, tmp_path, owners=owners)
    assert str(found) == "checkpoint of Lightning with last (left out beside it: 1)"
    found = third_party.read(
        {"state_dict": weights(), "swa_state_dict": weights(), "swa_n": 3}, tmp_path, owners=owners
    )
    assert str(found) == "checkpoint of timgaripov/swa with last, swa (average of 3)"


def test_a_mismatch_is_counted_behind_the_prefix(tmp_path: Path) -> None:
    """Weights of another network behind `model.`: counts and three examples under the network's own names."""
    state = weights()
    del state["1.bias"], state["1.weight"], state["1.running_var"]
    state["extra"] = torch.zeros(1)
    torch.save({**LIGHTNING, "state_dict": prefixed("model.", state)}, tmp_path / "a.ckpt")
    found = read(tmp_path / "a.ckpt")["last"].state_dict
    with pytest.raises(UserError, match=r"3 tensors missing, 1 unexpected, 0 of another shape") as caught:
        loading.load_weights(network(), found, source="a.ckpt")
    assert "(missing 1.weight; unexpected extra; missing 1.bias)" in caught.value.message


def pasted(hint: str, tmp_path: Path, *, in_a_process: bool = False) -> dict[str, WeightSet]:
    """What the line of a message makes, in a folder of its own.

    A shell reads the line. Its Python code runs in this process, or in one of its own, which takes seconds to import
    torch.
    """
    command = hint[hint.index("python -c") :].partition(" (it also")[0]
    if in_a_process:
        subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True, cwd=tmp_path)
    else:
        reader_of_code = f'python() {{ printf %s "$2"; }}\n{command}'
        code = subprocess.run(reader_of_code, shell=True, check=True, capture_output=True, text=True).stdout
        with contextlib.chdir(tmp_path):
            exec(code, {})
    return read(tmp_path / "weights.pt")


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before-torch-1.6"])
@pytest.mark.parametrize("key", ["state_dict", "model", "generator"])
def test_objects_are_named_and_not_made(tmp_path: Path, key: str, is_zip: bool) -> None:
    """A date beside weights: the class is named, and the line of the message takes the weights out of the right key."""
    content = {key: weights(), "optimizer": {"state": {0: weights(1)}}, "begun": {"date": date(2020, 1, 1)}}
    torch.save(content, tmp_path / "a b.ckpt", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(UserError, match=r"without running code: beside tensors it holds datetime\.date") as caught:
        reader.read(tmp_path / "a b.ckpt")
    assert same(pasted(caught.value.hint, tmp_path)["last"].state_dict, weights())


BESIDE: dict[str, tuple[Any, Any]] = {  # what stands beside weights, and what is read of it
    "numpy float64": (numpy.float64(93.1), 93.1),
    "numpy float16": (numpy.float16(0.5), 0.5),
    "numpy big-endian": (numpy.dtype(">i4").type(7), 7),
    "numpy bool": (numpy.bool_(True), True),
    "numpy complex": (numpy.complex128(1 + 2j), 1 + 2j),
    "numpy text": (numpy.str_("best"), "best"),
    "path": (Path("/data/images"), "/data/images"),
    "options": (Namespace(lr=0.1, model=Namespace(root=Path("a"))), {"lr": 0.1, "model": {"root": "a"}}),
    "defaultdict": (defaultdict(list, losses=[numpy.float32(1)]), {"losses": [1.0]}),
    "OrderedDict": (OrderedDict(a=1), {"a": 1}),
    "set": ({"dog", "cat"}, {"dog", "cat"}),
    "bytearray": (bytearray(b"ab"), bytearray(b"ab")),
}


@pytest.mark.parametrize("name", BESIDE)
def test_harmless_values_beside_weights_are_read(tmp_path: Path, name: str) -> None:
    """Numbers of numpy, options and paths against their plain values, deep inside too."""
    value, expected = BESIDE[name]
    torch.save({"model": weights(), "beside": {"deep": [value]}}, tmp_path / "a.pt")
    found = reader.read(tmp_path / "a.pt")
    assert found.content["beside"]["deep"] == [expected]
    assert type(found.content["beside"]["deep"][0]) not in (Namespace, numpy.float64)
    assert same(read(tmp_path / "a.pt")["last"].state_dict, weights())


@pytest.mark.parametrize("beside", [1, Namespace(lr=0.1), numpy.float64(93.1)], ids=["plain", "options", "numpy"])
def test_unknown_keys_are_told_with_a_line_that_takes_them_out(tmp_path: Path, beside: Any) -> None:
    """Two state dicts under keys of their own: both are named, and the pasted line makes a file that is read.

    Also where torch alone would refuse what stands beside them, and on a machine without the GPU that wrote it.
    """
    torch.save({"critic": weights(), "nested": {"actor": weights(1)}, "beside": beside}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"\['critic'\] \(7 tensors\), \['nested'\]\['actor'\]") as caught:
        read(tmp_path / "a.pt")
    assert ("where you trust who wrote it" in caught.value.hint) == (beside != 1)
    assert caught.value.hint.count("map_location='cpu'") == 2
    first, second = caught.value.hint.split(" or ")
    assert same(pasted(second, tmp_path)["last"].state_dict, weights(1))
    assert same(pasted(first, tmp_path)["last"].state_dict, weights())


@pytest.mark.parametrize(
    "beside",
    [
        {"shadow": weights(1)},
        {"ema": {"shadow": weights(1), "decay": 0.9}},
        {"net": {"best": weights(1)}},
        {"ema": {"module": weights(2), "state_dict": weights(1)}},
    ],
)
def test_weights_that_are_not_read_are_told(tmp_path: Path, beside: dict[str, Any]) -> None:
    """A state dict under a key that is not known, also below one that is: the sentence about the file names it."""
    found = third_party.read({"model": weights(), **beside}, tmp_path, owners=read_tensors(network()).owners)
    (place,) = found.unread
    assert same(place.state(beside), weights(1))
    assert str(found).endswith(f"; not read: {place.expression} (7 tensors)")


def test_a_whole_model_is_told_how_to_be_saved(tmp_path: Path) -> None:
    """torch.save(model): the line in the message makes a file that is read."""
    torch.save(network(), tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"torch\.nn\.modules") as caught:
        reader.read(tmp_path / "a.pt")
    assert same(pasted(caught.value.hint, tmp_path)["last"].state_dict, weights())


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
def test_a_torchscript_network(tmp_path: Path) -> None:
    """torch.jit.save: the line in the message makes a file that is read."""
    model = nn.Linear(3, 2)
    torch.jit.save(torch.jit.script(model), tmp_path / "a.pt")
    with pytest.raises(UserError, match="TorchScript") as caught:
        reader.read(tmp_path / "a.pt")
    assert caught.value.hint is not None
    assert torch.equal(pasted(caught.value.hint, tmp_path)["last"].state_dict["weight"], model.weight)


@pytest.mark.parametrize("save", [numpy.savez, numpy.savez_compressed])
def test_an_archive_of_numpy(tmp_path: Path, save: Callable[..., None]) -> None:
    """numpy.savez of a state dict: the line in the message makes a file that is read."""
    save(tmp_path / "a.npz", **{key: value.numpy() for key, value in weights().items()})
    with pytest.raises(UserError, match="NumPy") as caught:
        reader.read(tmp_path / "a.npz")
    assert same(pasted(caught.value.hint, tmp_path)["last"].state_dict, weights())


@pytest.mark.parametrize(
    ("names", "kind", "code"),
    [
        (["config.json", "model.weights.h5"], "Keras", ""),
        (["m/data/weights/weight_0", "m/models/model.json", "m/archive_format"], r"torch\.export", "torch.export.load"),
        (["word/document.xml"], "zip archive", ""),
    ],
)
def test_archives_of_other_programs_are_named(tmp_path: Path, names: list[str], kind: str, code: str) -> None:
    """Names in a zip archive against what the message calls it; nothing in it is read."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, "text " * 100)
    with pytest.raises(UserError, match=kind) as caught:
        reader.read(tmp_path / "a.zip")
    assert code in (caught.value.hint or "")


def test_a_list_of_state_dicts(tmp_path: Path) -> None:
    """The line in the message writes the first state dict, below its place, to a file that is read."""
    torch.save([3, {"net": weights()}, {"net": weights(1)}], tmp_path / "a.pt")
    with pytest.raises(UserError, match="holds a list") as caught:
        reader.read(tmp_path / "a.pt")
    assert same(pasted(caught.value.hint, tmp_path)["last"].state_dict, weights())


def test_a_whole_model_under_a_key(tmp_path: Path) -> None:
    """{'model': network}, as YOLOv5 saves: the line of the message names the key and the method."""
    torch.save({"epoch": 3, "model": network()}, tmp_path / "a.pt")
    with pytest.raises(UserError) as caught:
        reader.read(tmp_path / "a.pt")
    assert same(pasted(caught.value.hint, tmp_path, in_a_process=True)["last"].state_dict, weights())
