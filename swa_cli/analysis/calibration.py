"""How sure a weight set is and how often it is right then, and which classes it takes for which.

Legend: N samples, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from swa_cli.analysis.run_data import OpenRun
from swa_cli.errors import UserError
from swa_cli.metrics.metric import ECE_BINS


def reliability(run: OpenRun) -> dict[str, dict[str, Any]]:
    """Weight set to its `ece` and its `bins`: `count`, and the means `confidence` and `accuracy`, None where empty.

    Raises:
        UserError: The task is no classification.
    """
    require_classes(run, "calibration")
    found = {}
    for name, (p, labels) in run.predictions.items():
        ece = run.opened[0].task.score_predictions(p, labels).metric("ece").value
        found[name] = {"ece": ece, "bins": bins_of(p, labels)}
    return found


def bins_of(p: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """Samples by confidence, in bins of equal width as for the ECE: probabilities (N, K), labels (N,)."""
    confidence, predicted = p.double().max(dim=1)
    edges = torch.linspace(0, 1, ECE_BINS + 1, dtype=torch.float64)
    index = (torch.bucketize(confidence, edges, right=True) - 1).clamp(0, ECE_BINS - 1)
    rows = []
    for number in range(ECE_BINS):
        inside = index == number
        count = int(inside.sum())
        rows.append(
            {
                "count": count,
                "confidence": float(confidence[inside].mean()) if count else None,
                "accuracy": float((predicted == labels)[inside].double().mean()) if count else None,
            }
        )
    return rows


def confusion(run: OpenRun, name: str) -> list[list[int]]:
    """(K, K) samples of a weight set: a row each true class, a column each predicted one.

    Raises:
        UserError: The task is no classification, or there is no such weight set.
    """
    require_classes(run, "confusion")
    if name not in run.predictions:
        raise UserError(f"{run.folder.path}: has no weights {name!r}", hint=f"choose from {', '.join(run.predictions)}")
    p, labels = run.predictions[name]
    number = p.shape[1]
    return torch.bincount(labels * number + p.argmax(1), minlength=number**2).view(number, number).tolist()


def require_classes(run: OpenRun, kind: str) -> None:
    """Refuse a run whose task is no classification.

    Raises:
        UserError: It is another one.
    """
    if run.recipe.task != "classification":
        raise UserError(
            f"{run.folder.path}: its task is {run.recipe.task}, and {kind} is drawn of classification alone",
            hint="draw curves, schedule, plane, path or window of it",
        )
