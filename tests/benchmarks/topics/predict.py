"""Predictions of photos: `swa predict` against its two parts alone, decoding the files and the network on ready images.

The parts run one after the other, each with all cores, so their sum is what no program that does both can beat here.
The command is a process of its own, as users run it, timed once all is imported, with all that it does once, such as
opening the checkpoint. Inside this process it would be slower than users see: when its loader processes are forked, the
first write to a page of memory that other topics have left copies that page.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from benchmarks import data, processes
from benchmarks.contestants.bare import forward_passes
from benchmarks.figures import Figure, rate
from benchmarks.size import Size
from benchmarks.topics.photos import SIDE, WORKERS
from benchmarks.turns import by_turns, seconds
from benchmarks.voice import Voice
from swa_cli.data.color_jitter import normalize
from swa_cli.data.photos import PhotoFiles, UnlabeledPhotos
from swa_cli.data.splits import cut_spans
from swa_cli.data.stream import Pass, stream
from swa_cli.data.transforms import EvaluationView
from swa_cli.engine.hardware import manage_memory
from swa_cli.engine.views import evaluation_view
from swa_cli.models import build_model
from swa_cli.recipe import load

BAR = 0.95
TRAINED_ON = 64  # photos: what the network has learned does not matter
RECIPE: dict[str, Any] = {
    "name": "photos",
    "model": {"name": "torchvision:resnet18"},
    "dataset": {"name": "image_folder", "image_size": SIDE, "workers": WORKERS},
    "optimizer": {"lr": 0.01},
    "train": {"epochs": 1, "batch_size": 32},
    "eval": {"batch_size": 50},
}


def measure(size: Size, voice: Voice) -> tuple[list[Figure], dict[str, Any]]:
    """The command and its parts by turns, after a round that warms them up."""
    files = sorted((data.photo_folder(size.photos, voice=voice) / "train").glob("*/*.jpg"))
    manage_memory(keep=True)  # as the command does; the bare forward pass has the good of it, too
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = _checkpoint(files[:: -(-len(files) // TRAINED_ON)], Path(folder))
        view = evaluation_view(load.load(Path(folder, "recipe.yaml"), []).recipe)
        files = files[: size.predicted]
        decoded = partial(_decoded, files, view)
        words = ["-m", "benchmarks.contestants.predict", checkpoint, Path(folder, "predictions.csv"), *files]
        batches = [(normalize(images, mean=(0.5,) * 3, std=(0.25,) * 3), sizes) for images, sizes in decoded()]
        network = build_model.build(RECIPE["model"]["name"], num_classes=data.NUM_CLASSES, in_channels=3)
        network = network.to(memory_format=torch.channels_last).eval()
        times = by_turns(
            {
                "swa predict": lambda: float(processes.run(words).out),
                "decode": lambda: seconds(lambda: deque(decoded(), maxlen=0)),
                "forward": lambda: seconds(lambda: forward_passes(network, batches, precision="fp32")),
            },
            rounds=size.predict_rounds + 1,
            voice=voice,
        )
    ours, decode, forward = (statistics.median(each[1:]) for each in times.values())
    note = f"{len(files) / decode:,.0f} img/s decoded, {len(files) / forward:,.0f} through the network"
    parts = len(files) / (decode + forward)
    figure = rate(
        "predict", "photos, against forward and decode", ours=len(files) / ours, theirs=parts, bar=BAR, note=note
    )
    return [figure], times


def _checkpoint(photos: list[Path], folder: Path) -> Path:
    """Return a network that `swa train` has trained for an epoch of these photos."""
    for path in photos:
        target = folder / "photos" / path.relative_to(path.parents[2])
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    words = [f"dataset.root={folder / 'photos'}", f"--out={folder / 'runs'}", "--quiet"]
    processes.run(["-m", "swa_cli", "train", recipe, *words])
    return folder / "runs/latest/checkpoints/last_bn.pt"


def _decoded(files: list[Path], view: EvaluationView) -> Iterator[tuple[Tensor, Tensor]]:
    """What `swa predict` reads of these files, batch by batch."""
    assert view.size is not None
    spans = cut_spans(len(files), size=RECIPE["eval"]["batch_size"])
    photos = UnlabeledPhotos(PhotoFiles([str(path) for path in files]), view.size)
    rows = torch.arange(len(files))
    return stream(photos, Pass(rows=rows, spans=spans, seed=0, key=("predict",), workers=WORKERS, view=view))
