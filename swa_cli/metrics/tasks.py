"""List the tasks and the losses that are trained, and find those of a recipe, or a user's by their import paths.

Each task has a file of its own, and its table of metrics in `metric.py`. Whatever trains, scores, compares or draws
takes a `Task` and knows no task by name. A user's task, see `UserTask`, returns a value for each sample and metric,
whose means are reported: that suffices for sampling errors and paired differences.

Some networks have auxiliary heads: outputs in training mode alone, each with a weight in the loss. torchvision's have
documented weights: 0.3 for both heads of GoogLeNet (Szegedy et al. 2015, section 5), 0.4 for the head of Inception v3
(its published training code), 0.5 for the `aux` of a segmentation network (torchvision's references). Other auxiliary
outputs are refused, as their weights are unknown.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from swa_cli.errors import UserError
from swa_cli.import_path import import_callable, import_object
from swa_cli.metrics import classification, losses, metric, multilabel, regression, segmentation
from swa_cli.metrics.metric import Direction, SampleScores, TaskMetrics, user_task_metrics
from swa_cli.metrics.task import Arguments, Subject, Task, UserTask

__all__ = ["TASKS", "SampleScores", "Subject", "Task", "UserTask", "find"]

AUXILIARY_WEIGHTS: Mapping[str, Mapping[str, float]] = {  # class of named tuple -> field -> weight
    "GoogLeNetOutputs": {"aux_logits2": 0.3, "aux_logits1": 0.3},
    "InceptionOutputs": {"aux_logits": 0.4},
}
AUXILIARY_WEIGHT_OF_SEGMENTATION = 0.5  # of `aux`, beside `out`


def batch_to_args(inputs: Any) -> Arguments:
    """Return the arguments of `model(x)` for a tensor, of `model(*x)` for a tuple, of `model(**x)` for a dict."""
    if isinstance(inputs, Mapping):
        return (), inputs
    return (inputs if isinstance(inputs, (tuple, list)) else (inputs,)), {}


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

    def total(outputs: Any, targets: Any, **options: Any) -> Tensor:
        main, auxiliary = main_and_auxiliary(outputs)
        value = loss(main, targets, **options)
        for weight, head in auxiliary:
            value = value + weight * loss(head, targets, **options)
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
        loss_weight=classification.loss_weight,
        predict=classification.predict,
        score_predictions=classification.score_predictions,
        score_outputs=classification.score_outputs,
        train_score=_on_main_output(classification.accuracy),
        check=classification.check,
        check_training=_check_training,
        batch_to_args=batch_to_args,
    ),
    "multilabel": Task(
        metrics=metric.MULTILABEL,
        loss=_with_auxiliary(losses.multilabel_loss),
        loss_weight=lambda labels, *, class_weights: None,
        loss_name="bce",
        predict=multilabel.predict,
        score_predictions=multilabel.score_predictions,
        score_outputs=multilabel.score_outputs,
        train_score=_on_main_output(multilabel.label_accuracy),
        check=multilabel.check,
        check_training=_check_training,
        batch_to_args=batch_to_args,
        target="multilabel",
    ),
    "segmentation": Task(
        metrics=metric.SEGMENTATION,
        loss=_with_auxiliary(segmentation.loss),
        loss_weight=segmentation.loss_weight,
        predict=_on_main_output(segmentation.predict),
        score_predictions=segmentation.score_predictions,
        score_outputs=_on_main_output(segmentation.score_outputs),
        train_score=_on_main_output(segmentation.pixel_accuracy),
        weight=segmentation.weight,
        check=_on_main_output(segmentation.check),
        check_training=_check_training,
        batch_to_args=batch_to_args,
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
        batch_to_args=batch_to_args,
        target="value",
    ),
}


def find(name: str) -> Task:
    """Return the task of a recipe: one of `TASKS`, or `package.module:attribute`.

    Raises:
        UserError: No task has this name.
    """
    return _own_task(name) if ":" in name else TASKS[name]


# The loss that is trained.

LOSS_FORMS = "a loss is cross_entropy, bce, focal or package.module:function"


@dataclass(frozen=True)
class TrainingLoss:
    """The loss that a run minimizes; validation and test losses are always the task's plain loss."""

    mean: Callable[[Any, Any], Tensor]  # (outputs, targets) -> (), the mean over a batch
    weight: Callable[[Any], Tensor | None] = lambda targets: None  # what the mean divides by; None: its samples

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """Return the mean over a batch."""
        return self.mean(outputs, targets)


def training_loss(
    task: Task,
    *,
    name: str | None = None,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    focal_gamma: float | None = None,
) -> TrainingLoss:
    """Return the loss that is trained.

    Args:
        task: The task.
        name: One of `losses.LOSSES` or `losses.MULTILABEL_LOSSES`, or `package.module:function`; None for the task's
            own.
        label_smoothing: Share of the target that is spread over all classes.
        class_weights: (K,) float32 on the device of the targets.
        focal_gamma: The exponent of focal; None for its default.

    Raises:
        UserError: The function cannot be imported, or takes other arguments.
    """
    if name is not None and ":" in name:
        return TrainingLoss(_own_loss(name, label_smoothing=label_smoothing, class_weights=class_weights))
    if task.loss_weight is None:
        assert name is None, "the plan refuses losses over classes for a task without classes"
        return TrainingLoss(partial(task.loss, label_smoothing=label_smoothing))
    options: dict[str, Any] = {"name": name or task.loss_name, "class_weights": class_weights}
    options |= {} if focal_gamma is None else {"focal_gamma": focal_gamma}
    return TrainingLoss(
        partial(task.loss, label_smoothing=label_smoothing, **options),
        partial(task.loss_weight, class_weights=class_weights),
    )


def _own_loss(name: str, *, label_smoothing: float, class_weights: Tensor | None) -> Callable[[Any, Any], Tensor]:
    """Return a user's loss of outputs and targets; it gets those options that the recipe sets.

    Raises:
        UserError: It cannot be imported, or takes other arguments.
    """
    options: dict[str, Any] = {"label_smoothing": label_smoothing} if label_smoothing else {}
    options |= {} if class_weights is None else {"class_weights": class_weights}
    keywords = f", *, {', '.join(options)}" if options else ""
    function = import_callable(
        name,
        lambda signature: signature.bind(None, None, **options),
        key="train.loss",
        what="a loss",
        forms=LOSS_FORMS,
        expected=f"let it be a function (outputs, targets{keywords}) that returns the mean over a batch",
    )
    is_module = inspect.isclass(function) and issubclass(function, torch.nn.Module)
    if is_module:
        hint = "name a function, such as torch.nn.functional:cross_entropy, or an object of the class"
        raise UserError(f"train.loss: {name} is a class, and a loss is called with outputs and targets", hint=hint)

    def mean(outputs: Any, targets: Any) -> Tensor:
        value = function(outputs.float(), targets, **options)
        if not isinstance(value, Tensor) or value.dim():
            found = f"a tensor of {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UserError(
                f"train.loss: {name} returned {found}", hint="return the mean over a batch, a scalar tensor"
            )
        if outputs.requires_grad and not value.requires_grad:
            raise UserError(
                f"train.loss: {name} returned a tensor without a gradient", hint="compute it from the outputs by torch"
            )
        return value

    return _with_auxiliary(mean)


# A user's task.

EXPECTED = (
    'define loss, predict, metrics, and scores such as {"accuracy": "higher", "loss": "lower"}, with "loss" not first'
)
FORMS = f"a name is {', '.join(TASKS)} or package.module:attribute"
NUM_ARGUMENTS = {"loss": 2, "predict": 1, "metrics": 2}  # function -> positional arguments


def _own_task(name: str) -> Task:
    """Return the task that `package.module:attribute` names; a class is called without arguments.

    Raises:
        UserError: It cannot be imported, or is no task.
    """
    found: Any = import_object(name, key="task", what="a task", forms=FORMS)
    if inspect.isclass(found):
        found = found()
    task: UserTask = found
    for function, number in NUM_ARGUMENTS.items():
        _require_function(getattr(task, function, None), name=name, function=function, number=number)
    table = user_task_metrics(_directions(getattr(task, "scores", None), name=name))

    def score_predictions(predictions: Tensor, targets: Any) -> SampleScores:
        return _sample_scores(task.metrics(predictions, targets), table, num_samples=len(predictions), name=name)

    def train_score(outputs: Any, targets: Any) -> Tensor:
        with torch.no_grad():
            return task.metrics(task.predict(outputs), targets)[table.training_key].float().mean()

    def check(outputs: Any, targets: Any, *, subject: Subject) -> None:
        value = task.loss(outputs, targets, label_smoothing=0.0)
        if not isinstance(value, Tensor) or value.dim():
            raise UserError(f"task: the loss of {name} is no scalar tensor", hint="return the mean over the batch")
        score_predictions(task.predict(outputs), targets)

    return Task(
        metrics=table,
        loss=task.loss,
        predict=task.predict,
        score_predictions=score_predictions,
        score_outputs=lambda outputs, targets: score_predictions(task.predict(outputs), targets),
        train_score=train_score,
        check=check,
        families=("classification", "segmentation"),
        target=None,
        batch_to_args=getattr(task, "batch_to_args", batch_to_args),
    )


def _require_function(value: Any, *, name: str, function: str, number: int) -> None:
    """Raise unless `value` can be called with `number` positional arguments."""
    keywords = {"label_smoothing": 0.0} if function == "loss" else {}
    if not isinstance(value, Callable):  # type: ignore[arg-type]
        raise UserError(f"task: {name} has no function {function}", hint=EXPECTED)
    try:
        inspect.signature(value).bind(*[None] * number, **keywords)
    except TypeError as error:
        wanted = {"loss": "(outputs, targets, *, label_smoothing)", "predict": "(outputs)"}
        raise UserError(
            f"task: {function} of {name} takes other arguments: {error}",
            hint=f"define {function}{wanted.get(function, '(predictions, targets)')}",
        ) from error


def _directions(found: Any, *, name: str) -> dict[str, Direction]:
    """Return `scores` of a task, the direction of each metric.

    Raises:
        UserError: It is no such dict, or `loss` is missing or first.
    """
    named = isinstance(found, Mapping) and all(isinstance(key, str) and key.isidentifier() for key in found)
    if not named or next(iter(found), "loss") == "loss" or found.get("loss") != "lower":
        raise UserError(f"task: {name} has the scores {found!s:.200}", hint=EXPECTED)
    for key, direction in found.items():
        if direction not in ("higher", "lower"):
            raise UserError(f"task: {name} says {direction!r:.50} of {key}", hint="say higher or lower")
    return dict(found)


def _sample_scores(found: Any, table: TaskMetrics, *, num_samples: int, name: str) -> SampleScores:
    """Return the tensors that `metrics` returned, (B,) float32 each.

    Raises:
        UserError: Their names are not those of `scores`, or one has not one value per sample.
    """
    if not isinstance(found, Mapping) or set(found) != set(table.keys):
        what = sorted(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise UserError(f"task: metrics of {name} returned {what}", hint=f"return a dict with {', '.join(table.keys)}")
    for key in table.keys:
        if not isinstance(found[key], Tensor) or found[key].shape != (num_samples,):
            shape = tuple(found[key].shape) if isinstance(found[key], Tensor) else type(found[key]).__name__
            raise UserError(
                f"task: metrics of {name} returned {shape} as {key} of {num_samples} samples",
                hint="return one value per sample, a tensor (B,)",
            )
    return SampleScores(table, {key: found[key].float() for key in table.keys})
