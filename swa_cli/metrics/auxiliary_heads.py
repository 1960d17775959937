"""Auxiliary heads: outputs that a network has in training mode alone, each with a weight in the loss.

torchvision's networks have documented weights: 0.3 for both heads of GoogLeNet (Szegedy et al. 2015, section 5), 0.4
for the head of Inception v3 (its published training code), 0.5 for the `aux` of a segmentation network (torchvision's
references). Other auxiliary outputs are refused, as their weights are unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from swa_cli.errors import UserError
from swa_cli.metrics.task import Subject

WEIGHTS: Mapping[str, Mapping[str, float]] = {  # class of named tuple -> field -> weight
    "GoogLeNetOutputs": {"aux_logits2": 0.3, "aux_logits1": 0.3},
    "InceptionOutputs": {"aux_logits": 0.4},
}
SEGMENTATION_WEIGHT = 0.5  # of `aux`, beside `out`


def split(outputs: Any) -> tuple[Any, list[tuple[float, Any]]]:
    """Return the main output, and each auxiliary one with its weight in the loss; heads that are off are left out."""
    if isinstance(outputs, Mapping) and "out" in outputs:
        heads = [(SEGMENTATION_WEIGHT, outputs["aux"])] if outputs.get("aux") is not None else []
        return outputs["out"], heads
    weights = WEIGHTS.get(type(outputs).__name__)
    if weights is None:
        return outputs, []
    found = [(weight, getattr(outputs, key)) for key, weight in weights.items()]
    return outputs.logits, [(weight, value) for weight, value in found if value is not None]


def with_auxiliary(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a loss that adds the weighted loss of each auxiliary head to that of the main output."""

    def total(outputs: Any, targets: Any, *, label_smoothing: float) -> Tensor:
        main, auxiliary = split(outputs)
        value = loss(main, targets, label_smoothing=label_smoothing)
        for weight, head in auxiliary:
            value = value + weight * loss(head, targets, label_smoothing=label_smoothing)
        return value

    return total


def on_main_output(score: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """Return `score` applied to the main output."""
    return lambda outputs, targets: score(split(outputs)[0], targets)


def check(outputs: Any, *, subject: Subject) -> None:
    """Refuse outputs of the training mode that have auxiliary parts of unknown weight.

    Raises:
        UserError: They are neither a tensor nor the outputs of a torchvision network.
    """
    main, auxiliary = split(outputs)
    heads = [head for _, head in auxiliary]
    if isinstance(main, Tensor) and all(isinstance(head, Tensor) and head.shape == main.shape for head in heads):
        return
    raise UserError(
        f"model.name: {subject.model} returns {_described(outputs)} in training mode: the weights of its"
        " auxiliary outputs in the loss are unknown",
        hint="return the logits alone from forward, or set a task of your own whose loss takes all outputs:"
        " task=package.module:attribute",
    )


def _described(outputs: Any) -> str:
    name = type(outputs).__name__
    if isinstance(outputs, Mapping):
        return f"a {name} of {', '.join(map(str, outputs))}"
    return f"a {name} of {len(outputs)} outputs" if isinstance(outputs, tuple | list) else f"a {name}"
