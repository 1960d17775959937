"""Passes without gradients: the BatchNorm pass and the scores, against bare forward passes on ready tensors.

Ours read, augment and normalise their images as in a run; the bare ones find them ready.
"""

from __future__ import annotations

import copy
import statistics
from functools import partial
from typing import Any

from torch import nn
from torch.optim.swa_utils import update_bn

from benchmarks import data
from benchmarks.contestants.bare import Batch, autocast, forward_passes, ready_batches
from benchmarks.figures import Figure, rate
from benchmarks.jobs import RECIPE, changes
from benchmarks.machine import precisions
from benchmarks.size import Size
from benchmarks.turns import by_turns, seconds
from benchmarks.voice import Voice
from swa_cli.engine import evaluate
from swa_cli.engine.context import Context, build_context
from swa_cli.engine.events import Events
from swa_cli.recipe import load

BAR = 0.95


def measure(size: Size, voice: Voice) -> tuple[list[Figure], dict[str, Any]]:
    """Each pass and its bare twin in each precision, by turns."""
    figures, details = [], {}
    for precision in precisions(size.device):
        words = [*changes(images=size.pass_images, epochs=3), f"dataset.args.test={size.pass_images}"]
        words += [f"train.precision={precision}", f"train.device={size.device}"]
        context = build_context(load.load(RECIPE, words).recipe, Events())
        times = by_turns(_contestants(context, precision), rounds=size.pass_rounds + 1, voice=voice)
        rates = {name: size.pass_images / statistics.median(each[1:]) for name, each in times.items()}
        figures += _figures(rates, precision)
        details[precision] = times
    return figures, details


def _contestants(context: Context, precision: str) -> dict[str, Any]:
    """What is timed; the first round warms it up."""
    split, recipe = context.source.train, context.recipe
    device = recipe.train.device
    train = ready_batches(split.images, split.labels, device=device)
    test = ready_batches(*data.arrays(0, len(split))["test"], batch_size=recipe.eval.batch_size, device=device)
    models = {name: context.build_model() for name in ("ours", "train", "torch", "eval")}
    models["train"].train()
    models["eval"].eval()

    def score() -> None:
        evaluate.score(models["ours"], context.plain_batches("test"), task=context.task, hardware=context.hardware)

    return {
        "BatchNorm pass": lambda: seconds(lambda: context.refresh_batchnorm(models["ours"], name="swa")),
        "bare forward pass": lambda: seconds(partial(forward_passes, models["train"], train, precision=precision)),
        "torch's update_bn": lambda: seconds(partial(_torch_update, models["torch"], train, precision)),
        "scores": lambda: seconds(score),
        "bare inference": lambda: seconds(partial(forward_passes, models["eval"], test, precision=precision)),
    }


def _torch_update(model: nn.Module, batches: list[Batch], precision: str) -> None:
    with autocast(batches[0][0].device.type, precision):
        update_bn(batches, copy.deepcopy(model))


def _figures(rates: dict[str, float], precision: str) -> list[Figure]:
    ours = rates["BatchNorm pass"]
    return [
        rate(
            "passes",
            f"BatchNorm pass, {precision}, against a bare forward pass",
            ours=ours,
            theirs=rates["bare forward pass"],
            bar=BAR,
        ),
        rate("passes", f"BatchNorm pass, {precision}, against update_bn", ours=ours, theirs=rates["torch's update_bn"]),
        rate(
            "passes",
            f"scores, {precision}, against bare inference",
            ours=rates["scores"],
            theirs=rates["bare inference"],
        ),
    ]
