"""Weights that no run can start from."""

from __future__ import annotations

import torch

from hostile.contents import nan_inside, number_name
from hostile.making import ESC, Edit, Evil, Make, Row, edited, fifo, file, put, saved

# Starts: `swa train good.yaml train.init=bad.pt`.


def start(name: str, make: Make, piece: str, *words: str) -> Row:
    return Row(f"start-{name}", ["train", "good.yaml", "train.init=bad.pt", *words], piece, make)


def start_with(name: str, edit: Edit, piece: str, *words: str) -> Row:
    return start(name, edited("swa.pt", "bad.pt", edit), piece, *words)


whole = edited("swa.pt", "bad.pt", lambda _: None)
STARTS = [
    start("code", file("bad.pt", saved({"format": 1, "recipe": Evil()})), "bad.pt:"),
    start("fifo", fifo("bad.pt"), "is no regular file"),
    start("empty", file("bad.pt", b""), "bad.pt:"),
    start("other-weights", whole, "train.init_weights: bad.pt", "train.init_weights=ema"),
    start("all-weights", whole, "`all`", "train.init_weights=all"),
    start("escapes-in-name", whole, "holds no weights", f"train.init_weights={ESC}"),
    start("other-width", whole, "of another shape", "model.args.width=8"),
    start("other-network", whole, "train.init:", "model={name: preresnet, args: {depth: 8}}"),
    start_with("nan", nan_inside, "is not finite"),
    start_with("number-names", number_name, "state_dict.3"),
    start_with("future", put("format", 99), "format 99"),
    start_with("no-weights", lambda _: {"epoch": 3}, "no weights found among its keys"),
    start_with("theirs-shape", lambda _: {"classifier.weight": torch.ones(3)}, "1 of another shape"),
    start("skip-nothing", whole, "matches no tensor", "train.init_skip=[head.*]"),
    start("skip-escapes", whole, "matches no tensor", 'train.init_skip=["\\e[31m"]'),
    start_with("skip-too-little", put("state_dict/classifier.weight", torch.ones(5, 16)), "init_skip=[classifier.*]"),
    start_with("escapes-in-names", put(f"state_dict/{ESC}", torch.ones(1)), "1 unexpected"),
    start(
        "of-another-network",
        edited("run/checkpoints/last.pt", "bad.pt", lambda _: None),
        "train.init:",
        "model.args.width=8",
    ),
    start(
        "average-of-another-network",
        edited("run/checkpoints/last.pt", "bad.pt", lambda _: None),
        "train.init: the tensors of the",
        "model.args.width=8",
        "train.init_weights=swa",
    ),
]
