"""How the images of a recipe are shown: the words of the plan, against those that the documentation promises."""

from __future__ import annotations

from typing import Any

import pytest

from swa_cli.engine.context import build_context
from swa_cli.engine.events import Events
from swa_cli.engine.plan_text import describe_data, describe_views
from swa_cli.recipe.schema import Recipe

PHOTOS = {"flip": True, "policy": "trivial_augment", "random_resized_crop": True, "random_erasing": 0.25}
SIZES = {"0ep": 128, "50%": 176, "75%": [192, 256]}


def recipe(dataset: dict[str, Any] | None = None, evaluation: dict[str, Any] | None = None, epochs: int = 10) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"name": "convnet"},
            "dataset": {"name": "digits", **(dataset or {})},
            "optimizer": {"lr": 0.1},
            "train": {"epochs": epochs, "batch_size": 10},
            "eval": evaluation or {},
        }
    )


@pytest.mark.parametrize(
    ("dataset", "evaluation", "words"),
    [
        ({}, {}, ""),
        (
            {"image_size": 224, "augment": PHOTOS},
            {},
            "evaluated at 224 x 224 after resizing the shorter side to 256",
        ),
        (
            {"image_size": 224},
            {"crop": "none", "image_size": [192, 256], "interpolation": "bicubic"},
            "trained at 224 x 224; evaluated at 192 x 256 after resizing the whole image, bicubic",
        ),
        (
            {"image_size": SIZES, "augment": PHOTOS},
            {"resize": 200},
            "trained at 128 x 128 in epochs 1 to 5, 176 x 176 in epochs 6 to 8, 192 x 256 in epochs 9 to 10"
            " (points are rounded to the start of an epoch); evaluated at 192 x 256 after resizing the shorter side"
            " to 200",
        ),
        (
            {"image_size": {"0ep": 16, "9ep": 32}},
            {"resize": 32},
            "trained at 16 x 16 in epochs 1 to 9, 32 x 32 in epoch 10; evaluated at 32 x 32 after resizing the shorter"
            " side to 32",
        ),
        ({"mean": "imagenet", "std": [0.5, 1]}, {}, "mean imagenet; std 0.5 1"),
    ],
)
def test_the_plan_tells_sizes(dataset: dict[str, Any], evaluation: dict[str, Any], words: str) -> None:
    """The words of the plan about sizes and constants."""
    assert describe_views(recipe(dataset, evaluation)) == words


def test_the_plan_tells_changes_of_photos() -> None:
    """The words of the plan about a usual recipe for photos: a ratio of 1.3333 is written in three digits."""

    def told(size: Any, **others: Any) -> str:
        return describe_data(build_context(recipe({"image_size": size, "augment": PHOTOS, **others}), Events()))

    others = "(scale 0.08 to 1, ratio 0.75 to 1.33), flip, trivial_augment, random_erasing 0.25"
    assert told(8).endswith(f"; random_resized_crop 8 {others}")
    assert f"; random_resized_crop 8 x 6 {others}; " in told([8, 6], repeats=3)
    assert told([8, 6], repeats=3).endswith("each image of an epoch 3 times (repeats)")
    assert f"; random_resized_crop {others}" in told({"0ep": 8, "5ep": 9})
