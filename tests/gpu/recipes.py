"""Small recipes of each task, and what their runs leave."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from device.on_device import Told

OnCard = Callable[..., list[Told]]  # the fixture `on_card`: a folder, commands, and a change to the product
COMMON = """\
name: {name}
optimizer: {{lr: {lr}}}
swa: {{start: 50%, every: 0.5ep, eval_every: 1ep}}
averages: {{ema: {{kind: ema, decay: 0.9, every: 1step}}}}
train: {{epochs: 2, batch_size: {batch_size}, threads: 1, device: {device}, precision: fp32}}
"""
DIGITS = """\
model: {name: convnet, args: {width: 4, dropout: 0.1}}
dataset: {name: digits, augment: {crop: 1, flip: true}}
"""
ANGLES = """\
task: regression
model: {name: convnet, args: {width: 4}}
dataset: {name: rotated_digits}
"""
SHAPES = """\
task: segmentation
model: {name: unet, args: {width: 4, depth: 2}}
dataset: {name: shapes, val: 16, args: {size: 16, train: 112, test: 32}, augment: {flip: true}}
"""
RECIPES: dict[str, tuple[str, float, int]] = {  # with the learning rate, and the batch size
    "digits": (DIGITS, 0.1, 128),
    "angles": (ANGLES, 0.01, 128),
    "shapes": (SHAPES, 0.1, 16),
}


def write_recipes(folder: Path, device: str) -> None:
    """Write NAME.yaml of each recipe."""
    for name, (own, lr, batch_size) in RECIPES.items():
        common = COMMON.format(name=name, lr=lr, batch_size=batch_size, device=device)
        (folder / f"{name}.yaml").write_text(common + own)


def require_done(*told: Told) -> None:
    """Require that each command has succeeded."""
    for one in told:
        assert one.code == 0, one.said


def facts(told: Told) -> dict[str, Any]:
    """Return the JSON that a command printed among its messages."""
    (line,) = [line for line in told.said.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(line)
    return found


def rows(run: Path) -> list[dict[str, str]]:
    """Return metrics.csv without times."""
    found = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]
