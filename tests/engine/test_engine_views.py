"""How the images of a recipe are shown: in the views of epochs, in the words of the plan, and in what a file stores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from swa_cli.checkpoint.schema import Input
from swa_cli.data import datasets
from swa_cli.data.datasets import IMAGENET_MEAN, IMAGENET_STD
from swa_cli.data.transforms import EvaluationView, RandomResizedCrop, TrainingView, Views
from swa_cli.engine.context import Context, build_context, constants
from swa_cli.engine.events import Events
from swa_cli.engine.plan_text import describe_data, describe_views
from swa_cli.engine.views import training_view, views_of
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.swap import worker_of

PHOTOS = {"flip": True, "policy": "trivial_augment", "random_resized_crop": True, "random_erasing": 0.25}
SIZES = {"0ep": 128, "50%": 176, "75%": [192, 256]}


def recipe(
    dataset: dict[str, Any] | None = None,
    evaluation: dict[str, Any] | None = None,
    epochs: int = 10,
    **sections: Any,
) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"name": "convnet"},
            "dataset": {"name": "digits", **(dataset or {})},
            "optimizer": {"lr": 0.1},
            "train": {"epochs": epochs, "batch_size": 10},
            "eval": evaluation or {},
            **sections,
        }
    )


def context_of(*args: Any, **sections: Any) -> Context:
    return build_context(recipe(*args, **sections), Events())


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


def test_views_say_what_the_recipe_says() -> None:
    """Views against those made by hand: training is framed as evaluation is, and photos have all of their changes."""
    as_it_is, of_224 = EvaluationView(), EvaluationView((224, 224), 256)
    assert views_of(recipe()) == Views(TrainingView(as_it_is), as_it_is)
    assert views_of(recipe({"image_size": 224})) == Views(TrainingView(of_224), of_224)
    drawn = {**PHOTOS, "random_resized_crop": {"scale": [0.3, 1], "ratio": [1, 1]}, "rotate": 15}
    photos = views_of(recipe({"image_size": 224, "augment": drawn, "interpolation": "bicubic"}))
    bicubic = EvaluationView((224, 224), 256, "bicubic")
    crop = RandomResizedCrop((0.3, 1), (1, 1))
    assert photos == Views(TrainingView(bicubic, crop, 15, "trivial_augment", "bicubic"), bicubic)
    whole = EvaluationView((192, 256), None)
    assert views_of(recipe({"image_size": [192, 256]}, {"crop": "none"})) == Views(TrainingView(whole), whole)


@pytest.mark.parametrize(
    ("dataset", "evaluation"),
    [
        ({"image_size": 8}, {"image_size": 9}),
        ({"image_size": 8}, {"resize": 8}),
        ({"image_size": 8}, {"interpolation": "bicubic"}),
        ({"image_size": {"0ep": 7, "5ep": 8}}, {}),
    ],
)
def test_training_images_that_differ_from_evaluated_ones_are_not_stored_as_those(
    dataset: dict[str, Any], evaluation: dict[str, Any]
) -> None:
    """Recipes whose training images have another size, frame or interpolation, against those with the same."""
    assert views_of(recipe(dataset, evaluation)).varies
    assert not views_of(recipe({"image_size": 8})).varies


def test_an_epoch_has_its_size() -> None:
    """Shapes of training, evaluation and BatchNorm batches with sizes by points, against the recipe."""
    context = context_of({"image_size": {"0ep": 6, "50%": [8, 7], "90%": 12}}, {"image_size": 14})
    first = {epoch: next(iter(context.training_batches(epoch)))[0] for epoch in (1, 5, 6, 9, 10)}
    shapes = {epoch: tuple(images.shape[2:]) for epoch, images in first.items()}
    assert shapes == {1: (6, 6), 5: (6, 6), 6: (8, 7), 9: (8, 7), 10: (12, 12)}
    assert next(iter(context.plain_batches("val")))[0].shape[2:] == (14, 14)
    assert next(iter(context.statistics_batches()))[0].shape[2:] == (12, 12)
    assert context.probe()[0].shape[2:] == (14, 14)
    assert context.epochs_by_size(epochs=10) == [(1, 5), (6, 4), (10, 1)]
    plain = context_of({"image_size": {"0ep": 6, "50%": 8}}, swa={"batchnorm": {"augment": False}})
    assert next(iter(plain.statistics_batches()))[0].shape[2:] == (8, 8)


def test_a_worker_trains_on_the_sizes_of_its_epochs() -> None:
    """Epochs of both phases of a SWAP run of 10 epochs, 7 of them common, against the sizes of the recipe."""
    swapped = recipe({"image_size": {"0ep": 6, "50%": 8, "90%": 10}}, swap={"workers": 2, "start": "70%"})
    common, worker = (build_context(made, Events()) for made in (swapped, worker_of(swapped, 1)))
    assert common.epochs_by_size(epochs=7) == [(1, 5), (6, 2)]
    assert common.epochs_by_size(epochs=10) == [(1, 5), (6, 4), (10, 1)]  # with those of the workers
    assert worker.epochs_by_size(epochs=3) == [(1, 2), (3, 1)]
    sides = [next(iter(worker.training_batches(epoch)))[0].shape[2] for epoch in (1, 2, 3)]
    assert sides == [8, 8, 10]


def test_a_dataset_with_a_size_of_its_own_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits that are declared to be resized to 6 x 7, as some photos are: batches with and without views."""
    monkeypatch.setitem(datasets.DATASETS, "digits", replace(datasets.DATASETS["digits"], image_size=(6, 7)))
    for augment in ({}, {"flip": True}, {"rotate": 10}, {"policy": "trivial_augment"}):
        context = context_of({"augment": augment})
        for batches in (context.training_batches(1), context.plain_batches("test"), context.statistics_batches()):
            assert next(iter(batches))[0].shape[2:] == (6, 7)
        keys = ("size", "resize", "crop", "interpolation")
        assert [context.input[key] for key in keys] == [[6, 7], None, "none", "bilinear"]


def test_what_draws_nothing_is_as_it_lies_in_memory() -> None:
    """Batches of a size that the images have already, with an equal frame, against those without a size."""
    plain, sized = context_of(), context_of({"image_size": 8}, {"crop": "none"})
    for made in ("training_batches", "statistics_batches"):
        args = (1,) if made == "training_batches" else ()
        (first, _), (second, _) = (next(iter(getattr(context, made)(*args))) for context in (plain, sized))
        assert torch.equal(first, second)


def test_repeats_show_an_image_several_times() -> None:
    """The batches of an epoch with three repeats: each label stands three times, and one image changes."""
    augment = {"policy": "trivial_augment"}
    images, labels = next(iter(context_of({"repeats": 3, "augment": augment}).training_batches(1)))
    assert torch.equal(labels[:9], labels[:9:3].repeat_interleave(3))
    assert not torch.equal(images[0], images[1])


def test_the_pass_of_batchnorm_is_augmented_unless_it_says_otherwise() -> None:
    """BatchNorm batches with a policy against those of plain images."""
    dataset = {"augment": {"policy": "rand_augment"}}
    plain, off, on = (
        next(iter(made.statistics_batches()))[0]
        for made in (context_of(), context_of(dataset, swa={"batchnorm": {"augment": False}}), context_of(dataset))
    )
    assert torch.equal(plain, off)
    assert not torch.equal(plain, on)


def test_constants_of_the_recipe() -> None:
    """Mean and std against ImageNet's and those of a list; the batches are normalized by them."""
    assert constants("imagenet", imagenet=IMAGENET_MEAN) == (0.485, 0.456, 0.406)
    assert constants("imagenet", imagenet=IMAGENET_STD) == (0.229, 0.224, 0.225)
    assert constants("auto", imagenet=IMAGENET_STD) == "auto"
    own = context_of({"mean": [0.25], "std": [0.5]})
    assert (own.source.mean, own.source.std) == ((0.25,), (0.5,))


@pytest.mark.parametrize(
    ("dataset", "evaluation", "expected"),
    [
        ({}, {}, ([8, 8], None, "none", "bilinear")),
        ({"image_size": 14, "interpolation": "bicubic"}, {}, ([14, 14], 16, "center", "bicubic")),
        ({"image_size": {"0ep": 6, "5ep": 14}}, {"image_size": [7, 9], "resize": 9}, ([7, 9], 9, "center", "bilinear")),
        ({"image_size": 14}, {"crop": "none", "interpolation": "bicubic"}, ([14, 14], None, "none", "bicubic")),
    ],
)
def test_a_file_stores_how_an_image_is_prepared(
    dataset: dict[str, Any], evaluation: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    """The keys of `input` against the recipe; a file that was written before they were added can be read."""
    stored = context_of(dataset, evaluation).input
    assert tuple(stored[key] for key in ("size", "resize", "crop", "interpolation")) == expected
    Input.model_validate(stored)
    older = {key: value for key, value in stored.items() if key not in ("resize", "crop", "interpolation")}
    read = Input.model_validate(older)
    assert (read.resize, read.crop, read.interpolation) == (None, "none", "bilinear")


def test_a_view_has_the_size_of_its_epoch() -> None:
    """The still view of an epoch: its shorter side against size / 0.875."""
    made = recipe({"image_size": SIZES}, {"resize": 300})
    assert training_view(made, epoch=1).still == EvaluationView((128, 128), 146)
    assert training_view(made, epoch=10).still == EvaluationView((192, 256), 219)
