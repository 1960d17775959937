"""Weights drawn from a swag average, and what they predict together (Bayesian model averaging).

One idea: draw i is a function of (seed, i), so thirty draws begin with the same ten as ten do. Each has BatchNorm
statistics of its own: those of the mean belong to other weights. Legend: N samples.
"""

from __future__ import annotations

import torch
from torch import nn

from swa_cli.averaging.swag import Posterior
from swa_cli.averaging.tensors import read, require_same_shapes, shapes
from swa_cli.data.randomness import generator
from swa_cli.training import evaluate, faults
from swa_cli.training.bench import Bench
from swa_cli.training.tasks import SampleScores


def score(
    posterior: Posterior, model: nn.Module, *, num_draws: int, name: str, bench: Bench, split: str
) -> SampleScores:
    """Score the mean prediction (of class probabilities) over draws: for each, BatchNorm is measured and it predicts.

    Args:
        posterior: What is drawn from.
        model: A network of the recipe, whose names the posterior has to have.
        num_draws: At least 1.
        name: Of the average.
        bench: Data and hardware; its recipe has the seed, and the samples of each BatchNorm pass.
        split: What is predicted.

    Raises:
        UserError: The posterior is not one of this network, or holds too little to draw from.
    """
    require_same_shapes(shapes(posterior.variance), shapes(read(model).weights), what="posterior")
    posterior.require_drawable()
    settings, loader = bench.recipe.train, bench.plain_batches(split)
    total, targets = torch.zeros(()), None  # (N, ...) from the first draw on
    length = num_draws * (bench.refresh_length(model) + len(loader))
    with bench.terminal.progress(f"{num_draws} draws of {name}", length) as bar:
        for index in range(num_draws):
            model = bench.build_model()
            model.load_state_dict(posterior.draw(generator(bench.recipe.seed, "swag draw", index)))
            with faults.memory("train.batch_size", settings.batch_size):
                bench.refresh_batchnorm(model, name=name, bar=bar)
            with faults.memory("eval.batch_size", bench.recipe.eval.batch_size):
                p, targets = evaluate.predict(
                    model, loader, task=bench.final_task, hardware=bench.eval_hardware, advance=bar.advance
                )
            total = total + p
    return bench.task.metrics(total / num_draws, targets)
