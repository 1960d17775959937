"""List the tasks, and find one by its name in a recipe.

Each task has a file of its own, and its table of metrics in `metric.py`. Whatever trains, scores, compares or draws
takes a `Task` and knows no task by name.
"""

from __future__ import annotations

from swa_cli.metrics import auxiliary_heads, classification, metric, regression, segmentation, user_task
from swa_cli.metrics.task import SampleScores, Subject, Task, UserTask

__all__ = ["TASKS", "SampleScores", "Subject", "Task", "UserTask", "find"]

TASKS = {
    "classification": Task(
        metrics=metric.CLASSIFICATION,
        loss=auxiliary_heads.with_auxiliary(classification.loss),
        predict=classification.predict,
        score_predictions=classification.score_predictions,
        score_outputs=classification.score_outputs,
        train_score=auxiliary_heads.on_main_output(classification.accuracy),
        check=classification.check,
        check_training=auxiliary_heads.check,
    ),
    "segmentation": Task(
        metrics=metric.SEGMENTATION,
        loss=auxiliary_heads.with_auxiliary(segmentation.loss),
        predict=segmentation.predict,
        score_predictions=segmentation.score_predictions,
        score_outputs=segmentation.score_outputs,
        train_score=auxiliary_heads.on_main_output(segmentation.pixel_accuracy),
        weight=segmentation.weight,
        check=segmentation.check,
        check_training=auxiliary_heads.check,
        families=("segmentation",),
        target="mask",
    ),
    "regression": Task(
        metrics=metric.REGRESSION,
        loss=auxiliary_heads.with_auxiliary(regression.loss),
        predict=regression.predict,
        score_predictions=regression.score_predictions,
        score_outputs=regression.score_predictions,
        train_score=auxiliary_heads.on_main_output(regression.mean_absolute_error),
        check=regression.check,
        check_training=auxiliary_heads.check,
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
