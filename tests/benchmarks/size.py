"""How much is measured: the same topics on fewer or more images, in fewer or more rounds."""

from __future__ import annotations

from dataclasses import dataclass

JOB_IMAGES, JOB_EPOCHS = 10_000, 3  # the whole job that bars are set for
LONG_JOB_S = 600.0  # the documentation script's time for what is called a long job


@dataclass(frozen=True)
class Size:
    """Images are multiples of the batch size wherever rates are compared: then no contestant drops any."""

    name: str
    job_images: int
    job_rounds: int
    loop_images: int
    loop_rounds: int
    pass_images: int
    pass_rounds: int
    pipeline_images: int
    pipeline_rounds: int
    photos: int
    photo_rounds: int  # of the crop that a bar is set for
    other_photo_rounds: int
    predicted: int  # of the photos
    predict_rounds: int
    average_images: int  # of the runs with averages and without; an epoch is short, and many are by turns
    average_rounds: int
    growth_images: int  # x1; up to four times as many
    growth_rounds: int
    start_rounds: int
    device: str = "cpu"


FULL = Size(
    name="full",
    job_images=JOB_IMAGES,
    job_rounds=2,
    loop_images=2_560,
    loop_rounds=6,
    pass_images=5_120,
    pass_rounds=13,
    pipeline_images=10_000,
    pipeline_rounds=5,
    photos=2_000,
    photo_rounds=13,
    other_photo_rounds=3,
    predicted=1_500,
    predict_rounds=5,
    average_images=640,
    average_rounds=3,
    growth_images=1_280,
    growth_rounds=6,
    start_rounds=5,
)
QUICK = Size(
    name="quick",
    job_images=512,
    job_rounds=1,
    loop_images=512,
    loop_rounds=1,
    pass_images=512,
    pass_rounds=3,
    pipeline_images=5_120,
    pipeline_rounds=3,
    photos=200,
    photo_rounds=1,
    other_photo_rounds=1,
    predicted=100,
    predict_rounds=1,
    average_images=256,
    average_rounds=1,
    growth_images=256,
    growth_rounds=1,
    start_rounds=2,
)
