"""What is learned: the loss that is trained, predictions, and what each sample scores, behind one `Task`.

One file a task; `find` gives it by the name in a recipe. All that knows what a task is about is in here and in
`metrics/metric.py`: whatever trains, scores, compares or draws takes a `Task`.
"""

from __future__ import annotations

from swa_cli.metrics import auxiliary_heads, classification, metric, regression, segmentation, user_task
from swa_cli.metrics.task import OwnTask, SampleScores, Subject, Task

__all__ = ["TASKS", "OwnTask", "SampleScores", "Subject", "Task", "find"]

TASKS = {
    "classification": Task(
        measures=metric.CLASSIFICATION,
        loss=auxiliary_heads.with_auxiliary(classification.loss),
        predict=classification.probabilities,
        metrics=classification.score_probabilities,
        score=classification.score_samples,
        train_score=auxiliary_heads.of_main(classification.accuracy),
        check=classification.check,
        check_training=auxiliary_heads.check,
    ),
    "segmentation": Task(
        measures=metric.SEGMENTATION,
        loss=auxiliary_heads.with_auxiliary(segmentation.loss),
        predict=segmentation.predict,
        metrics=segmentation.metrics,
        score=segmentation.score,
        train_score=auxiliary_heads.of_main(segmentation.pixel_accuracy),
        weight=segmentation.weight,
        check=segmentation.check,
        check_training=auxiliary_heads.check,
        families=("segmentation",),
        target="mask",
    ),
    "regression": Task(
        measures=metric.REGRESSION,
        loss=auxiliary_heads.with_auxiliary(regression.loss),
        predict=regression.predict,
        metrics=regression.metrics,
        score=regression.metrics,
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
