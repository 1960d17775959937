"""Safetensors, and other people's files."""

from __future__ import annotations

import datetime
import struct
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import save

from hostile.contents import cyclic_options
from hostile.making import ESC, Evil, Row, edited, file, saved

# Safetensors, and other people's files.


def theirs(name: str, data: bytes, piece: str) -> Row:
    words = ["eval", "bad.safetensors", "--recipe", "good.yaml"]
    return Row(f"safetensors-{name}", words, piece, file("bad.safetensors", data))


def in_safetensors(folder: Path) -> None:
    weights = torch.load(folder / "swa.pt", weights_only=True)["state_dict"]
    file("a.safetensors", save({name: value.contiguous() for name, value in weights.items()}))(folder)


HEADER = b'{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}'
plain_weights = edited("swa.pt", "plain.pt", lambda content: content["state_dict"])
THEIRS = [
    theirs("empty", b"", "bad.safetensors:"),
    theirs("text", b"hello, I am no such file", "bad.safetensors:"),
    theirs("endless-header", struct.pack("<Q", 1 << 60) + b"{}", "bad.safetensors:"),
    theirs("terabytes", struct.pack("<Q", len(HEADER)) + HEADER + bytes(4), "bad.safetensors:"),
    theirs("truncated", save({"w": torch.zeros(99)})[:-9], "bad.safetensors:"),
    theirs("code", saved(Evil()), "bad.safetensors:"),
    theirs("other-names", save({ESC: torch.zeros(9)}), "1 unexpected"),
    Row(
        "safetensors-no-recipe",
        ["eval", "a.safetensors"],
        "--recipe",
        file("a.safetensors", save({"w": torch.ones(1)})),
    ),
    Row(
        "safetensors-in-place",
        ["bn-update", "a.safetensors", "--recipe", "good.yaml"],
        "a.safetensors:",
        in_safetensors,
    ),
    Row("theirs-no-recipe", ["eval", "plain.pt"], "--recipe", plain_weights),
    Row(
        "theirs-in-place",
        ["bn-update", "plain.pt", "--recipe", "good.yaml"],
        "plain.pt:",
        plain_weights,
    ),
    Row("theirs-missing-recipe", ["eval", "plain.pt", "--recipe", "bad.yaml"], "bad.yaml:", plain_weights),
    Row(
        "theirs-count",
        ["eval", "bad.pt", "--recipe", "good.yaml"],
        "n_averaged",
        edited("swa.pt", "bad.pt", lambda content: {"n_averaged": torch.ones(3), **content["state_dict"]}),
    ),
    Row(
        "theirs-count-text",
        ["eval", "bad.pt", "--recipe", "good.yaml"],
        "swa_n",
        edited("swa.pt", "bad.pt", lambda content: {"swa_n": ESC, "swa_state_dict": content["state_dict"]}),
    ),
    Row(
        "theirs-names-of-numbers",
        ["eval", "bad.pt", "--recipe", "good.yaml"],
        "no weights found among its keys",
        edited("swa.pt", "bad.pt", lambda content: dict(enumerate(content["state_dict"].values()))),
    ),
    Row(
        "theirs-values-of-text",
        ["eval", "bad.pt", "--recipe", "good.yaml"],
        "no weights found among its keys",
        edited("swa.pt", "bad.pt", lambda content: {"state_dict": dict.fromkeys(content["state_dict"], "x")}),
    ),
]


# Layouts of other programs, around the weights of swa.pt.


def layout(name: str, make: Callable[[dict[str, Any]], Any], piece: str, *words: str) -> Row:
    command = ["eval", "bad.ckpt", "--recipe", "good.yaml", *words]
    edit = edited("swa.pt", "bad.ckpt", lambda content: make(content["state_dict"]))
    return Row(f"layout-{name}", command, piece, edit)


def behind(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


def lightning(state: dict[str, torch.Tensor], **more: Any) -> dict[str, Any]:
    return {"pytorch-lightning_version": "2.6.0", "state_dict": behind("model.", state), **more}


def averaging(state: dict[str, torch.Tensor], count: Any) -> dict[str, Any]:
    return lightning(state, current_model_state=behind("model.", state), averaging_state={"n_averaged": count})


def in_callback(state: dict[str, torch.Tensor], count: Any) -> dict[str, Any]:
    return lightning(state, callbacks={"S": {"average_model_state": behind("model.", state), "n_averaged": count}})


def with_attribute(state: dict[str, torch.Tensor], name: str, value: Any = 3) -> dict[str, torch.Tensor]:
    changed = OrderedDict(state)
    setattr(changed, name, value)
    return changed


def versions(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name.rpartition(".")[0]: {"version": ESC} for name in state}


class ShortNumber:
    """A number of numpy with fewer bytes than its type has."""

    def __reduce__(self) -> tuple[Any, ...]:
        return numpy.float64(1).__reduce__()[0], (numpy.dtype("f8"), b"abc")


def other_names(count: int) -> Callable[[dict[str, torch.Tensor]], Any]:
    """As many names, each behind a prefix of its own."""
    return lambda state: {"state_dict": {f"{'a.' * index}weight": torch.ones(1) for index in range(count)}}


CODE_BESIDE = "without running code: beside tensors it holds"
LAYOUTS = [
    layout("code-beside", lambda state: lightning(state, hyper_parameters=Evil()), CODE_BESIDE),
    layout("code-named", lambda state: lightning(state, hyper_parameters=Evil()), "posix.system"),
    layout("object-beside", lambda state: lightning(state, begun=datetime.date(2020, 1, 1)), "datetime.date"),
    layout(
        "object-key", lambda state: {"critic": state, "begun": datetime.date(2020, 1, 1)}, "['critic'], 'weights.pt')"
    ),
    layout("method-attribute", lambda state: {"state_dict": with_attribute(state, "keys")}, "a dict with attributes"),
    layout("number-of-objects", lambda state: {"model": state, "acc": numpy.datetime64("2020-01-01")}, "'M8'"),
    layout("number-too-short", lambda state: {"model": state, "acc": ShortNumber()}, "a numpy number of 3 bytes"),
    layout("unknown-keys", lambda state: {"critic": state, "epoch": 3}, "critic"),
    layout("versions-text", lambda state: with_attribute(state, "_metadata", versions(state)), "model: TypeError"),
    layout("options-code", lambda state: {"state_dict": state, "args": Namespace(a=Evil())}, CODE_BESIDE),
    layout("options-cyclic", lambda state: {"state_dict": state, "args": cyclic_options()}, "more values, or deeper"),
    layout("stale", lambda state: averaging(state, torch.tensor(3)), "--allow-stale-bn"),
    layout("stale-ema", lambda state: {"arch": "x", "state_dict": state, "state_dict_ema": state}, "ema has stale"),
    layout("count-text", lambda state: averaging(state, ESC), "n_averaged"),
    layout("count-vector", lambda state: averaging(state, torch.ones(2)), "n_averaged"),
    layout("count-inf", lambda state: averaging(state, float("inf")), "n_averaged"),
    layout("callback-count-text", lambda state: in_callback(state, ESC), "n_averaged"),
    layout("callback-stale", lambda state: in_callback(state, 2), "--allow-stale-bn"),
    layout(
        "two-networks",
        lambda state: {**behind("a.", state), **behind("b.", state)},
        "from last.a, last.b",
        "--weights=x",
    ),
    layout("other-sets", lambda state: averaging(state, 3), "choose from last, swa", "--weights", "ema"),
    layout(
        "prefix-shape", lambda state: lightning({**state, "classifier.weight": torch.ones(3)}), "1 of another shape"
    ),
    layout(
        "prefix-nan",
        lambda state: lightning({**state, "classifier.bias": state["classifier.bias"] * float("nan")}),
        "classifier.bias is not finite",
    ),
    layout("prefix-escapes", lambda state: {"model": behind(f"{ESC}.", {**state, "x": torch.ones(1)})}, "1 unexpected"),
    layout("long-names", other_names(1000), "tensors missing"),
    layout("empty-state", lambda _: {"state_dict": {}}, "no weights found among its keys"),
    layout("empty-model", lambda _: {"model": {}, "model_ema": {}}, "no weights found among its keys"),
    layout("text-in-state", lambda state: lightning({**state, "x": ESC}), "no weights found among its keys"),
]
