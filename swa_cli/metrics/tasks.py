"""List the tasks, and find one by its name in a recipe.

Each task has a file of its own, and its table of metrics in `metric.py`. Whatever trains, scores, compares or draws
takes a `Task` and knows no task by name.

Some networks have auxiliary heads: outputs in training mode alone, each with a weight in the loss. torchvision's have
documented weights: 0.3 for both heads of GoogLeNet (Szegedy et al. 2015, section 5), 0.4 for the head of Inception v3
(its published training code), 0.5 for the `aux` of a segmentation network (torchvision's references). Other auxiliary
outputs are refused, as their weights are unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from swa_cli.errors import UserError
from swa_cli.metrics import classification, metric, regression, segmentation, user_task
from swa_cli.metrics.metric import SampleScores
from swa_cli.metrics.task import Subject, Task, UserTask

__all__ = ["TASKS", "SampleScores", "Subject", "Task", "UserTask", "find"]

AUXILIARY_WEIGHTS: Mapping[str, Mapping[str, float]] = {  # class of named tuple -> field -> weight
    "GoogLeNetOutputs": {"aux_logits2": 0.3, "aux_logits1": 0.3},
    "InceptionOutputs": {"aux_logits": 0.4},
}
AUXILIARY_WEIGHT_OF_SEGMENTATION = 0.5  # of `aux`, beside `out`


def main_and_auxiliary(outputs: Any) -> tuple[Any, list[tuple[float, Any]]]:
    """Return the main output, and each auxiliary one with its weight in the loss; heads that are off are left out."""
    if isinstance(outputs, Mapping) and "out" in outputs:
        heads = [(AUXILIARY_WEIGHT_OF_SEGMENTATION, outputs["aux"])] if outputs.get("aux") is not None else []
        return outputs["out"], heads
    weights = AUXILIARY_WEIGHTS.get(type(outputs).__name__)
    if weights is None:
        return outputs, []
    found = [(weight, getattr(outputs, key)) for key, weight in weights.items()]
    return outputs.logits, [(weight, value) for weight, value in found if value is not None]


def _with_auxiliary(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a loss that adds the weighted loss of each auxiliary head to that of the main output."""

    def total(outputs: Any, targets: Any, *, label_smoothing: float) -> Tensor:
        main, auxiliary = main_and_auxiliary(outputs)
        value = loss(main, targets, label_smoothing=label_smoothing)
        for weight, head in auxiliary:
            value = value + weight * loss(head, targets, label_smoothing=label_smoothing)
        return value

    return total


def _on_main_output(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` applied to the main output."""
    return lambda outputs, *args, **options: function(main_and_auxiliary(outputs)[0], *args, **options)


def _check_training(outputs: Any, *, subject: Subject) -> None:
    """Refuse outputs of the training mode that have auxiliary parts of unknown weight.

    Raises:
        UserError: They are neither a tensor nor the outputs of a torchvision network.
    """
    main, auxiliary = main_and_auxiliary(outputs)
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


TASKS = {
    "classification": Task(
        metrics=metric.CLASSIFICATION,
        loss=_with_auxiliary(classification.loss),
        predict=classification.predict,
        score_predictions=classification.score_predictions,
        score_outputs=classification.score_outputs,
        train_score=_on_main_output(classification.accuracy),
        check=classification.check,
        check_training=_check_training,
    ),
    "segmentation": Task(
        metrics=metric.SEGMENTATION,
        loss=_with_auxiliary(segmentation.loss),
        predict=_on_main_output(segmentation.predict),
        score_predictions=segmentation.score_predictions,
        score_outputs=_on_main_output(segmentation.score_outputs),
        train_score=_on_main_output(segmentation.pixel_accuracy),
        weight=segmentation.weight,
        check=_on_main_output(segmentation.check),
        check_training=_check_training,
        families=("segmentation",),
        target="mask",
    ),
    "regression": Task(
        metrics=metric.REGRESSION,
        loss=_with_auxiliary(regression.loss),
        predict=regression.predict,
        score_predictions=regression.score_predictions,
        score_outputs=regression.score_predictions,
        train_score=_on_main_output(regression.mean_absolute_error),
        check=regression.check,
        check_training=_check_training,
        target="value",
    ),
}


def find(name: str) -> Task:
    """Return the task of a recipe: one of `TASKS`, or `package.module:attribute`.

    Raises:
        UserError: No task has this name.
    """
    if ":" in name:
        return user_task.find(name)
    return TASKS[name]
