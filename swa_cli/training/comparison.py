"""What averages are judged by: the raw weights under the same BatchNorm treatment, on the same samples.

The one idea: recomputed BatchNorm statistics alone can be worth many points, so raw weights are scored with them too
(`last_bn` beside `last`). The **reference** is whichever of the two has the lower validation loss; every difference,
paired error and verdict is against it. Where nothing was averaged there is no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from swa_cli.training.evaluate import compare, summarize
from swa_cli.training.tasks import SampleScores

RAW = "last"  # the raw weights at the end of a run
EQUAL = 1e-3  # of the length of the weights: rounding them to bf16 changes them by more


def recomputed(name: str) -> str:
    """The name of raw weights with recomputed BatchNorm statistics: `last_bn` of `last`."""
    return f"{name}_bn"


def reference(candidates: Sequence[str], val_losses: Mapping[str, float | None]) -> str:
    """The weight set that averages are judged against.

    Args:
        candidates: Raw weight sets, each before its twin with recomputed statistics, if there is one.
        val_losses: Their validation losses; empty without a validation split.

    Returns:
        The one with the lowest validation loss; without a validation split the first one with recomputed statistics.
    """
    known = {name: loss for name in candidates if (loss := val_losses.get(name)) is not None and math.isfinite(loss)}
    if known:
        return min(known, key=lambda name: known[name])
    twin = recomputed(candidates[0])
    return twin if twin in candidates else candidates[0]


def unjudged(
    name: str, *, count: int | None, weights: Mapping[str, Tensor], raw: Mapping[str, Tensor], names: Sequence[str]
) -> str | None:
    """Why an average gets no verdict; None where it gets one.

    Args:
        name: Of the average.
        count: How many weight sets it holds; None where that is not known.
        weights: Its state dict.
        raw: That of the raw weights.
        names: Of the parameters.
    """
    if count == 1:
        return f"{name} holds 1 weight set: nothing was averaged"
    if distance(weights, raw, names=names) <= EQUAL:
        return f"{name} equals the raw weights: averaging changed nothing"
    return None


def distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor], *, names: Sequence[str]) -> float:
    """||first - second|| / ||second|| over the parameters of these names; 0 for two networks without any."""
    difference, length = 0.0, 0.0
    for name in names:
        wide = torch.complex128 if second[name].is_complex() else torch.float64
        own, other = first[name].to("cpu", wide), second[name].to("cpu", wide)
        difference += float((own - other).abs().square().sum())
        length += float(other.abs().square().sum())
    return math.sqrt(difference / length) if length else math.sqrt(difference)


def table(
    samples: Mapping[str, SampleScores], *, reference: str | None, judged: Mapping[str, str | None]
) -> dict[str, dict[str, Any]]:
    """The scores of every weight set, and the paired differences of averages to the reference.

    Args:
        samples: What each sample of a split scored, for each weight set.
        reference: Of them the one that averages are judged against; None where there are no raw weights.
        judged: Each average, and why it gets no verdict, if it gets none.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, own in samples.items():
        rows[name] = dict(summarize(own))
        if name not in judged:
            continue
        if (reason := judged[name]) is not None:
            rows[name]["no_verdict"] = reason
        elif reference is not None:
            rows[name] |= {"reference": reference, **compare(own, samples[reference])}
    return rows
