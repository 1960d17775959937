"""Auxiliary heads: outputs that a network gives in training alone, each with a share in the loss.

torchvision's networks have documented shares: 0.3 for both heads of GoogLeNet (Szegedy et al. 2015, section 5), 0.4 for
the one of Inception v3 (as in its published training code), 0.5 for the `aux` of a segmentation network (torchvision's
references). What another network gives beside its logits is refused: nobody knows what it is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from swa_cli.errors import UserError
from swa_cli.metrics.task import Subject

SHARES: Mapping[str, Mapping[str, float]] = {  # class of named tuple -> field -> share
    "GoogLeNetOutputs": {"aux_logits2": 0.3, "aux_logits1": 0.3},
    "InceptionOutputs": {"aux_logits": 0.4},
}
SEGMENTATION_SHARE = 0.5  # of `aux`, beside `out`


def split(outputs: Any) -> tuple[Any, list[tuple[float, Any]]]:
    """The main output, and each auxiliary one with its share in the loss; a head that is off gives None."""
    if isinstance(outputs, Mapping) and "out" in outputs:
        heads = [(SEGMENTATION_SHARE, outputs["aux"])] if outputs.get("aux") is not None else []
        return outputs["out"], heads
    shares = SHARES.get(type(outputs).__name__)
    if shares is None:
        return outputs, []
    found = [(share, getattr(outputs, key)) for key, share in shares.items()]
    return outputs.logits, [(share, value) for share, value in found if value is not None]


def with_auxiliary(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The loss of the main output, and that of each auxiliary head times its share."""

    def total(outputs: Any, targets: Any, *, label_smoothing: float) -> Tensor:
        main, auxiliary = split(outputs)
        value = loss(main, targets, label_smoothing=label_smoothing)
        for share, head in auxiliary:
            value = value + share * loss(head, targets, label_smoothing=label_smoothing)
        return value

    return total


def of_main(score: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """The score of the main output."""
    return lambda outputs, targets: score(split(outputs)[0], targets)


def check(outputs: Any, *, subject: Subject) -> None:
    """Refuse outputs in training whose parts have no share that is known.

    Raises:
        UserError: They are no tensor and none of torchvision's.
    """
    main, auxiliary = split(outputs)
    heads = [head for _, head in auxiliary]
    if isinstance(main, Tensor) and all(isinstance(head, Tensor) and head.shape == main.shape for head in heads):
        return
    raise UserError(
        f"model.name: {subject.model} returns {_described(outputs)} in training: nothing says what its auxiliary"
        " outputs weigh in the loss",
        hint="let forward return its logits alone, or name a task of your own, whose loss takes them all:"
        " task=package.module:attribute",
    )


def _described(outputs: Any) -> str:
    name = type(outputs).__name__
    if isinstance(outputs, Mapping):
        return f"a {name} of {', '.join(map(str, outputs))}"
    return f"a {name} of {len(outputs)} outputs" if isinstance(outputs, tuple | list) else f"a {name}"
