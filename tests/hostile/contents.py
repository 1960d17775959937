"""Checkpoints with a content that swa would not write: edits of good ones, or something else altogether."""

from __future__ import annotations

import warnings
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch

from hostile.making import ESC, Edit, Row, edited, put

# Checkpoints with a content that swa would not write: edits of swa.pt, or something else altogether.


def content(name: str, edit: Edit, piece: str, command: str = "eval bad.pt") -> Row:
    return Row(f"{command.split()[0]}-{name}", command.split(), piece, edited("swa.pt", "bad.pt", edit))


def weight(name: str, value: Callable[[torch.Tensor], object], piece: str, command: str = "eval bad.pt") -> Row:
    """One tensor of it is another."""

    def edit(content: dict[str, Any]) -> None:
        state = content["state_dict"]
        state["classifier.weight"] = value(state["classifier.weight"])

    return content(f"weight-{name}", edit, piece, command)


def nested(depth: int, width: int = 1) -> list[Any]:
    """Lists in lists; each level is there once, and is met `width` times as often as the one above."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value] * width
    return value


def cyclic_options() -> Namespace:
    options = Namespace()
    options.itself = {"options": vars(options)}
    return options


def cyclic(content: dict[str, Any]) -> None:
    content["self"] = content


def shared(content: dict[str, Any]) -> dict[str, Any]:
    """A hundred weights over the same 4 MB."""
    numbers = torch.zeros(1 << 20)
    return {f"w{index}": numbers[index:] for index in range(100)}


def number_name(content: dict[str, Any]) -> None:
    content["state_dict"][3] = torch.ones(1)


def nan_inside(content: dict[str, Any]) -> None:
    content["state_dict"]["features.0.weight"].fill_(float("nan"))


def colour(content: dict[str, Any]) -> None:
    content["input"].update(channels=3, mean=[0.5] * 3, std=[0.5] * 3)


def sparse(like: torch.Tensor) -> torch.Tensor:
    return like.to_sparse()


def quantized(like: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):
        return torch.quantize_per_tensor(like, 0.1, 0, torch.qint8)


def recipe_inside(name: str, edit: Edit, piece: str, command: str = "eval bad.pt") -> Row:
    return content(f"recipe-{name}", lambda content: edit(content["recipe"]), piece, command)


OS_SYSTEM = {"name": "os:system", "args": {"command": "touch trap"}}
CONTENTS = [
    content("list", lambda _: [1, 2], "bad.pt:"),
    content("number", lambda _: 42, "bad.pt:"),
    content("tensor", lambda _: torch.zeros(3), "bad.pt:"),
    content("nothing", lambda _: {}, "--recipe RECIPE"),
    content("no-weights", lambda _: {"epoch": 3}, "no weights found among its keys", "eval bad.pt --recipe good.yaml"),
    content("cyclic", cyclic, "more values, or deeper ones"),
    content("deep", lambda _: {"w": nested(200)}, "more values, or deeper ones"),
    content("shared-lists", lambda _: {"w": nested(30, width=9)}, "more values, or deeper ones"),
    content("many-values", lambda _: {"w": [[0] * 5000] * 5000}, "more values, or deeper ones"),
    content("shared-weights", shared, "bad.pt:"),
    content("set", lambda _: {"w": {1, 2}}, "no weights found among its keys", "eval bad.pt --recipe good.yaml"),
    content("format-future", put("format", 99), "format 99"),
    content("format-text", put("format", "1"), "format '1'"),
    content("format-escapes", put("format", ESC), "this version reads format 2"),
    content("format-flag", put("format", True), "is of format True"),
    content("format-nan", put("format", float("nan")), "format nan"),
    content("format-tensor", put("format", torch.ones(2)), "this version reads format 2"),
    content("no-weights-key", put("-state_dict", None), "state_dict: Field required"),
    content("no-input", put("-input", None), "input: Field required"),
    content("recipe-is-tensor", put("recipe", torch.ones(2)), "recipe: Input should be a valid dictionary"),
    content("recipe-empty", put("recipe", {}), "problems in bad.pt"),
    content("weights-list", put("state_dict", [1]), "state_dict: Input should be a valid dictionary"),
    content("weights-of-text", put("state_dict/classifier.weight", "x"), "state_dict"),
    content("number-names", number_name, "state_dict.3"),
    content("freshness", put("batchnorm", "fresh"), "batchnorm: Input should be"),
    content("samples-text", put("samples", "many"), "samples: Input should be a valid integer"),
    content("average-text", put("average", ESC), "average: Input should be"),
    content("classes-others", put("input/classes", [ESC, "b"]), "the weights were trained on 2"),
    content("channels-others", colour, "the weights were trained on 3"),
    content("channels-none", put("input/channels", 0), "input.channels: Input should be greater than 0"),
    content("size-zero", put("input/size", [0, 0]), "input.size", "show bad.pt"),
    content("size-of-volume", put("input/size", [8, 8, 8]), "input.size", "show bad.pt"),
    content("size-none", put("input/size", []), "input.size", "show bad.pt"),
    content("mean-too-long", put("input/mean", [0.5, 0.5]), "input.mean"),
    content("mean-missing", put("input/mean", []), "input.mean"),
    content("std-nan", put("input/std", [float("nan")]), "input.std"),
    content("std-zero", put("input/std", [0.0]), "input.std"),
    content("weights-none", put("state_dict", {}), "tensors missing"),
    content("escapes-in-names", put(f"state_dict/{ESC}", torch.ones(1)), "1 unexpected"),
    content("escapes-in-average", put("average/name", ESC), "'x'", "eval bad.pt --weights x"),
    content("nan-inside", nan_inside, "not finite", "bn-update bad.pt"),
    content("stale", put("batchnorm", "stale"), "has stale BatchNorm statistics"),
    weight("shape", lambda like: like[:, :2].clone(), "classifier.weight is (10, 2), not (10, 16)"),
    weight("shape", lambda like: like[:, :2].clone(), "classifier.weight is (10, 2), not (10, 16)", "bn-update bad.pt"),
    weight("meta", lambda like: like.to("meta"), "on meta"),
    weight("sparse", sparse, "of layout torch.sparse_coo"),
    weight("quantized", quantized, "bad.pt:"),
    weight("terabytes", lambda like: torch.zeros(1).expand(1 << 40), "bad.pt:"),
    weight("overlapping", lambda like: torch.zeros(99).as_strided((50, 50), (1, 1)), "bad.pt:"),
    weight("complex", lambda like: like + 1j, "complex64"),
    weight("whole-numbers", lambda like: like.to(torch.int8), "int8"),
    weight("nan", lambda like: like * float("nan"), "not finite"),
    weight("nan", lambda like: like * float("nan"), "not finite", "bn-update bad.pt"),
    weight("inf", lambda like: like + float("inf"), "not finite"),
    recipe_inside("model-code", put("model", OS_SYSTEM), "model.name os:system"),
    recipe_inside("dataset-code", put("dataset", OS_SYSTEM), "dataset.name os:system"),
    recipe_inside("model-code", put("model", OS_SYSTEM), "model.name os:system", "bn-update bad.pt"),
    recipe_inside("dataset-code", put("dataset", OS_SYSTEM), "dataset.name os:system", "bn-update bad.pt"),
    recipe_inside("escapes", put("model/name", ESC), "unknown network"),
    recipe_inside("escapes-in-code", put("model/name", f"{ESC}:x"), "--allow-code"),
    recipe_inside("half-a-character", put("dataset/root", "a\udcff"), "text that is not UTF-8"),
    recipe_inside("other-folder", put("name", "../../x"), "name:"),
    recipe_inside("average-elsewhere", put("averages/..x", {"kind": "mean"}), "averages...x:"),
    recipe_inside("unknown-key", put("colour", "red"), "colour: unknown key"),
    recipe_inside("deep", put("model/args", {"a": nested(40)}), "nested too deeply"),
    recipe_inside("long", put("model/args", {"a": [0] * 6000}), "longer than any"),
    recipe_inside("tensor", put("optimizer/lr", torch.ones(1)), "holds a Tensor"),
    recipe_inside("nan-rate", put("optimizer/lr", float("nan")), "optimizer.lr:"),
    recipe_inside("negative-seed", put("seed", -1), "seed:"),
    recipe_inside("huge-seed", put("seed", 1 << 80), "seed:"),
    recipe_inside("endless-width", put("model/args/width", 10**15), "model"),
    recipe_inside("endless-threads", put("train/threads", 10**15), "train.threads"),
    recipe_inside("no-such-folder", put("dataset", {"name": "image_folder", "root": "/nowhere"}), "no such folder"),
    content(
        "change-forbidden", put("samples", 1), "optimizer.lr: cannot be changed here", "eval bad.pt optimizer.lr=1"
    ),
]


# Posteriors that no weights lead to: edits of swag.pt.


def posterior(name: str, edit: Edit, piece: str) -> Row:
    words = ["eval", "bad.pt", "--draws", "2"]
    return Row(f"posterior-{name}", words, piece, edited("swag.pt", "bad.pt", edit))


def of_classifier(key: str, value: Callable[[torch.Tensor], object]) -> Edit:
    """Another value of the variance or the deviations of one weight."""

    def edit(content: dict[str, Any]) -> None:
        part = content["posterior"][key]
        part["classifier.weight"] = value(part["classifier.weight"])

    return edit


def without_classifier(content: dict[str, Any]) -> None:
    """Nothing is wrong with it but for the network."""
    for part in ("variance", "deviations"):
        del content["posterior"][part]["classifier.weight"]


def one_deviation(content: dict[str, Any]) -> None:
    stacks = content["posterior"]["deviations"]
    stacks.update({name: stack[:1].clone() for name, stack in stacks.items()})


IMPOSSIBLE = "has values that no weights lead to"
POSTERIORS = [
    posterior("none", put("-posterior", None), "posterior:"),
    posterior("of-mean", put("average/kind", "mean"), "kind swag"),
    posterior("text", put("posterior", ESC), "posterior: Input should be"),
    posterior("empty", put("posterior", {}), "posterior.diagonal: Field required"),
    posterior("no-variance", put("posterior/variance", {}), "deviations of other weights than its variance"),
    posterior("variance-text", put("posterior/variance/classifier.weight", ESC), "posterior.variance"),
    posterior("variance-negative", of_classifier("variance", lambda like: like - 9), IMPOSSIBLE),
    posterior("variance-nan", of_classifier("variance", lambda like: like * float("nan")), IMPOSSIBLE),
    posterior("variance-whole-numbers", of_classifier("variance", lambda like: like.to(torch.int8)), IMPOSSIBLE),
    posterior("variance-8-bit", of_classifier("variance", lambda like: like.to(torch.float8_e4m3fn)), IMPOSSIBLE),
    posterior("variance-complex", of_classifier("variance", lambda like: like + 0j), IMPOSSIBLE),
    posterior("variance-shape", of_classifier("variance", lambda like: like[:, :2].clone()), "bad.pt:"),
    posterior("variance-scalar", of_classifier("variance", lambda like: like.sum()), "bad.pt:"),
    posterior("deviations-inf", of_classifier("deviations", lambda like: like + float("inf")), IMPOSSIBLE),
    posterior("deviations-fewer", of_classifier("deviations", lambda like: like[:2].clone()), "not as many of each"),
    posterior("deviations-scalar", of_classifier("deviations", lambda like: like.sum()), "not as many of each"),
    posterior("deviations-shape", of_classifier("deviations", lambda like: like[..., :2].clone()), "of another shape"),
    posterior("deviations-none", put("posterior/deviations", {}), "deviations of other weights"),
    posterior("deviations-of-diagonal", put("posterior/diagonal", True), "deviations of other weights"),
    posterior("escapes", put(f"posterior/variance/{ESC}", torch.ones(1)), "deviations of other weights"),
    posterior("other-network", without_classifier, "1 missing (classifier.weight)"),
    posterior("one-deviation", one_deviation, "the number of deviations is 1"),
    posterior("mean-nan", nan_inside, "not finite"),
]
