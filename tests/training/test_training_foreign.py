"""Other people's checkpoints: every layout as its program writes it, read back against the weights that went in."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from swa_cli.averaging.tensors import read as read_tensors
from swa_cli.errors import UserError
from swa_cli.training import checkpoint, foreign, loading
from swa_cli.training.checkpoint import WeightSet

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
    return checkpoint.weight_sets(checkpoint.read(path), model or network())


LIGHTNING = {"epoch": 3, "global_step": 60, "pytorch-lightning_version": "2.6.0", "loops": {}, "lr_schedulers": []}

# What is saved -> name: (seed of the weights, BatchNorm, count). Keys of Lightning as in its source, see `foreign.py`.
LAYOUTS: dict[str, tuple[Callable[[], Any], dict[str, tuple[int, str, int | None]]]] = {
    "plain": (weights, {"last": (0, "running", None)}),
    "state_dict": (lambda: {"state_dict": weights(), "epoch": 3}, {"last": (0, "running", None)}),
    "model": (lambda: {"model": weights(), "optimizer": {}}, {"last": (0, "running", None)}),
    "model_state_dict": (lambda: {"model_state_dict": weights(), "loss": 0.5}, {"last": (0, "running", None)}),
    "net": (lambda: {"net": weights(), "acc": 90.0, "epoch": 3}, {"last": (0, "running", None)}),
    "averaged model": (averaged_model, {"swa": (1, "stale", 1)}),
    "averaged model inside": (lambda: {"model": averaged_model()}, {"swa": (1, "stale", 1)}),
    "timgaripov": (
        lambda: {"epoch": 3, "state_dict": weights(), "swa_state_dict": weights(1), "swa_n": torch.tensor(4)},
        {"last": (0, "running", None), "swa": (1, "stale", 4)},
    ),
    "timgaripov without swa": (
        lambda: {"epoch": 3, "state_dict": weights(), "swa_state_dict": None, "swa_n": None, "optimizer": {}},
        {"last": (0, "running", None)},
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
        {"last.net": (0, "running", None), "last.ema.module": (1, "stale", 1)},
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


PREFIXES = ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "a.b.c."]


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
    found = foreign.read(content, tmp_path, owners=owners)
    assert str(found) == "checkpoint of Lightning with last (left out beside it: 1)"
    found = foreign.read({"state_dict": weights(), "swa_state_dict": weights(), "swa_n": 3}, tmp_path, owners=owners)
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


def test_objects_are_named_and_not_made(tmp_path: Path) -> None:
    """A Lightning checkpoint with a path among its hyperparameters: the class, and the line that saves its weights."""
    content = {**LIGHTNING, "state_dict": weights(), "hyper_parameters": {"root": Path("/data")}}
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"without running code: beside tensors it holds pathlib\.\w+") as caught:
        checkpoint.read(tmp_path / "a.ckpt")
    line = caught.value.hint.partition("runs its code: ")[2]
    exec(line.replace("'weights.pt'", repr(str(tmp_path / "weights.pt"))), {"torch": torch})
    assert same(read(tmp_path / "weights.pt")["last"].state_dict, weights())


def test_a_whole_model_is_told_how_to_be_saved(tmp_path: Path) -> None:
    """torch.save(model): the line in the message makes a file that is read."""
    torch.save(network(), tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"torch\.nn\.modules") as caught:
        checkpoint.read(tmp_path / "a.pt")
    line = caught.value.hint.partition("runs its code: ")[2]
    exec(line.replace("'weights.pt'", repr(str(tmp_path / "weights.pt"))), {"torch": torch})
    assert same(read(tmp_path / "weights.pt")["last"].state_dict, weights())
