"""What is learned: the loss that is trained, predictions, and what each sample scores, behind one `Task`.

One file a task; `find` gives it by the name in a recipe. All that knows what a task is about is in here and in
`metrics/metric.py`: whatever trains, scores, compares or draws takes a `Task`.
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
        train_score=auxiliary_heads.of_main(classification.accuracy),
        check=classification.check,
        check_training=auxiliary_heads.check,
    ),
    "segmentation": Task(
        metrics=metric.SEGMENTATION,
        loss=auxiliary_heads.with_auxiliary(segmentation.loss),
        predict=segmentation.predict,
        score_predictions=segmentation.score_predictions,
        score_outputs=segmentation.score_outputs,
        train_score=auxiliary_heads.of_main(segmentation.pixel_accuracy),
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
        train_score=auxiliary_heads.of_main(regression.mean_absolute_error),
        check=regression.check,
        check_training=auxiliary_heads.check,
        target="value",
    ),
}


def find(name: str) -> Task:
    """The task of a recipe: one of `TASKS`, or `package.module:attribute`.

    Raises:
        UserError: There is none of this name.
    """
    if ":" in name:
        return user_task.find(name)
    return TASKS[name]
