"""`swa new --task photos`: look at a folder of photos, and write a recipe that trains on it as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from swa_cli.data import folders
from swa_cli.data.image_file import unreadable
from swa_cli.data.photos import PhotoDataset, Photos, header_of
from swa_cli.data.transforms import EvaluationView
from swa_cli.engine.events import Events
from swa_cli.errors import UserError
from swa_cli.recipe import scalars
from swa_cli.recipe.templates import template
from swa_cli.recipe.values import MAX_NAME
from swa_cli.report.terminal import Terminal

SIZES = (32, 64, 96, 128, 160, 192, 224)  # that networks for photos are used with
LOOKED_AT = 500  # files whose sizes choose one of them
FEW = 2_000  # training images that need more epochs and smaller batches


def photos_recipe(root: Path, *, terminal: Terminal) -> str:
    """Return the text of a recipe for a folder of photos, with one subfolder per class.

    It has the largest of `SIZES` that the shorter side of most photos reaches, more epochs for few images, and leaves
    out files that cannot be read, if there are any. Mean and std are left out: they follow `model.pretrained`, or are
    measured.

    Raises:
        UserError: The layout is not that of `image_folder`, no image can be read, or no recipe can hold the path.
    """
    if not scalars.is_utf8(str(root.absolute())):
        raise UserError(f"{root}: its path has bytes that are not UTF-8", hint="rename the folder")
    found = folders.find(root, view=EvaluationView((1, 1)))
    splits = {split: part for split, part in found.splits.items() if isinstance(part, PhotoDataset)}
    readable: list[tuple[Photos, int]] = []
    broken: list[str] = []
    with Events([terminal]).loading() as progress:
        for split, part in splits.items():
            errors = unreadable(part.check, len(part), what=f"looking at {split} images", progress=progress)
            broken += errors.values()
            readable += [(part.photos, row) for row in range(len(part)) if row not in errors]
    if not readable:
        raise UserError(f"{root}: no image can be read: {broken[0]}", hint="repair the files")
    for reason in broken:
        terminal.warning(f"left out: {reason}")
    num_train = len(splits["train"])
    name = re.sub(r"[^\w.+-]+", "-", root.resolve().name, flags=re.ASCII).strip("+-.")[:MAX_NAME] or "photos"
    values = {
        "name": name if scalars.is_text(name) else json.dumps(name),
        "task": "classification",
        "model.name": "torchvision:resnet18",
        "dataset.name": "image_folder",
        "dataset.root": json.dumps(str(root.absolute()), ensure_ascii=False),
        "dataset.image_size": str(_image_size(readable)),
        "dataset.augment.random_resized_crop": "true",
        "dataset.augment.flip": "true",
        "dataset.augment.policy": "trivial_augment",
        "dataset.augment.mixup": "0.2",
        "optimizer.lr": "0.05",
        "schedule.name": "cosine",
        "swa.start": "75%",
        "swa.every": "0.25ep",
        "swa.lr": "0.0125",
        "averages": "{ema: {kind: ema, half_life: 5%}}",
        "train.epochs": "60" if num_train < FEW else "30",
        "train.batch_size": str(max(2, min(32 if num_train < FEW else 128, num_train // 4))),
        "output.root": "runs",
    }
    if broken:
        values["dataset.skip_broken"] = "true"
    return template(values)


def _image_size(photos: Sequence[tuple[Photos, int]]) -> int:
    """Return the largest of `SIZES` that the shorter side of three in four photos reaches; the smallest at least."""
    step = -(-len(photos) // LOOKED_AT)
    sides = sorted(min(header_of(source, row).size) for source, row in photos[::step])
    side = sides[len(sides) // 4]
    return max((size for size in SIZES if size <= side), default=SIZES[0])
