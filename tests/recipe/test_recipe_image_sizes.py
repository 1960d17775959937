"""Sizes of images: what is read and stored, what an epoch sees, and each mistake with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from swa_cli.errors import Problem, RecipeError
from swa_cli.recipe import image_sizes
from swa_cli.recipe.load import dump, from_values, load
from swa_cli.recipe.plan import image_problems, make_plan, problems_between
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.swap import worker_of
from swa_cli.recipe.variants import baseline_of, with_more_epochs

SIZES = {"0ep": 128, "50%": [176, 160], "80%": 224}


def recipe(*, epochs: int = 10, dataset: Any = None, evaluation: Any = None, **sections: Any) -> Recipe:
    values: dict[str, Any] = {
        "model": {"name": "convnet"},
        "dataset": {"name": "digits", **(dataset or {})},
        "optimizer": {"lr": 0.1},
        "train": {"epochs": epochs, "batch_size": 10},
        "eval": evaluation or {},
    }
    return Recipe.model_validate(values | sections)


def problem(**sections: Any) -> Problem:
    (found,) = problems_between(recipe(**sections), columns=None)
    return found


@pytest.mark.parametrize("size", [None, 1, 224, 65536, [192, 256], SIZES])
@pytest.mark.parametrize("values", ["auto", "imagenet", [0.5, 0.25, 1]])
def test_values_are_stored_as_they_are_written(tmp_path: Path, size: Any, values: Any) -> None:
    """Sizes and constants in what a checkpoint stores, and in the text of a recipe, against those that were given."""
    given = {"mean": values, "std": values, "augment": {"random_resized_crop": {"scale": [0.3, 1]}}}
    made = recipe(dataset=given | ({"image_size": size} if size else {}), evaluation={"image_size": [3, 4]})
    stored = made.model_dump(mode="json")
    assert stored["dataset"]["image_size"] == size
    assert stored["dataset"]["mean"] == stored["dataset"]["std"] == values
    assert stored["dataset"]["augment"]["random_resized_crop"] == {"scale": [0.3, 1], "ratio": [0.75, 1.3333]}
    assert stored["eval"]["image_size"] == [3, 4]
    assert from_values(stored, source="stored").recipe == made
    (tmp_path / "r.yaml").write_text(dump(made))
    assert load(tmp_path / "r.yaml").recipe == made


def test_the_size_of_each_epoch() -> None:
    """The sizes of ten epochs against those counted by hand: half of the run is done before epoch 6."""
    made = recipe(dataset={"image_size": SIZES})
    sizes = [image_sizes.training_size(made, epoch=epoch) for epoch in range(1, 11)]
    assert sizes == [(128, 128)] * 5 + [(176, 160)] * 3 + [(224, 224)] * 2
    assert not image_sizes.is_rounded(made)
    nine = recipe(epochs=9, dataset={"image_size": SIZES})
    assert image_sizes.sizes_by_epoch(nine) == [(1, (128, 128)), (6, (176, 160)), (8, (224, 224))]  # 4.5 and 7.2
    assert image_sizes.is_rounded(nine)
    assert image_sizes.training_size(recipe(), epoch=1) is None


@pytest.mark.parametrize(
    ("dataset", "evaluation", "size", "resize"),
    [
        ({}, {}, None, None),
        ({"image_size": 224}, {}, (224, 224), 256),  # as torchvision's presets
        ({"image_size": SIZES}, {}, (224, 224), 256),
        ({"image_size": 32}, {}, (32, 32), 37),  # 36.57
        ({"image_size": [192, 256]}, {}, (192, 256), 219),  # 219.4
        ({"image_size": 224}, {"image_size": 288}, (288, 288), 329),  # 329.1
        ({"image_size": 224}, {"resize": 232}, (224, 224), 232),
        ({"image_size": 224}, {"resize": 224}, (224, 224), 224),
        ({"image_size": 224}, {"crop": "none"}, (224, 224), None),
    ],
)
def test_what_is_evaluated(
    dataset: dict[str, Any], evaluation: dict[str, Any], size: tuple[int, int] | None, resize: int | None
) -> None:
    """Size and shorter side of evaluated images against size / 0.875, rounded."""
    made = recipe(dataset=dataset, evaluation=evaluation)
    assert image_problems(made) == []
    assert (image_sizes.evaluation_size(made), image_sizes.evaluation_resize(made)) == (size, resize)


def test_evaluation_is_resized_as_training_unless_it_says_otherwise() -> None:
    """Of both keys: none, one or both."""
    for dataset, evaluation, expected in (
        ({}, {}, "bilinear"),
        ({"interpolation": "bicubic"}, {}, "bicubic"),
        ({"interpolation": "bicubic"}, {"interpolation": "bilinear"}, "bilinear"),
    ):
        assert image_sizes.evaluation_interpolation(recipe(dataset=dataset, evaluation=evaluation)) == expected


@pytest.mark.parametrize(
    ("sections", "key", "message", "hint"),
    [
        (
            {"dataset": {"augment": {"random_resized_crop": True}}},
            "dataset.augment.random_resized_crop",
            "no dataset.image_size",
            "such as 224, or leave it out",
        ),
        ({"evaluation": {"resize": 256}}, "eval.resize", "no dataset.image_size", "such as 224, or leave it out"),
        ({"evaluation": {"crop": "none"}}, "eval.crop", "no dataset.image_size", "such as 224, or leave it out"),
        (
            {"evaluation": {"image_size": 256}},
            "eval.image_size",
            "no dataset.image_size",
            "such as 224, or leave it out",
        ),
        (
            {"dataset": {"image_size": 224}, "evaluation": {"resize": 223}},
            "eval.resize",
            "smaller than the crop of 224 x 224",
            "write at least 224",
        ),
        (
            {"dataset": {"image_size": 32}, "evaluation": {"image_size": [300, 200], "resize": 199}},
            "eval.resize",
            "smaller than the crop of 300 x 200",
            "write at least 200",
        ),
        (
            {"dataset": {"image_size": 224}, "evaluation": {"resize": 256, "crop": "none"}},
            "eval.resize",
            "eval.crop is none",
            "eval.crop: center",
        ),
        ({"dataset": {"image_size": {"10%": 8}}}, "dataset.image_size", "begins at 10%", "write 0ep instead of 10%"),
        (
            {"dataset": {"image_size": {"0ep": 8, "5ep": 9, "50%": 10}}},
            "dataset.image_size",
            "50% is not after 5ep",
            "later than",
        ),
        (
            {"dataset": {"image_size": {"0ep": 8, "5ep": 9, "20%": 10}}},
            "dataset.image_size",
            "20% is not after 5ep",
            "later than",
        ),
        (
            {"dataset": {"image_size": {"0ep": 8, "50%": 9, "54%": 10}}},
            "dataset.image_size",
            "50% and 54% are the start of the same epoch, 6 of 10",
            "leave 54% out",
        ),
        (
            {"dataset": {"image_size": {"0ep": 8, "4%": 9}}},
            "dataset.image_size",
            "0ep and 4% are the start of the same epoch, 1 of 10",
            "leave 4% out",
        ),
        (
            {"dataset": {"image_size": {"0ep": 8, "95%": 9}}},
            "dataset.image_size",
            "no epoch begins at 95% or later",
            "an earlier point",
        ),
        (
            {"dataset": {"image_size": {"0ep": 8, "12ep": 9}}},
            "dataset.image_size",
            "no epoch begins at 12ep or later",
            "an earlier point",
        ),
        (
            {"dataset": {"image_size": {"0ep": 8, "30step": 9}}},
            "dataset.image_size",
            "30step is not a share of the epochs",
            "write the point in % or ep",
        ),
        (
            {"dataset": {"augment": {"policy": "augmix"}}, "task": "segmentation"},
            "dataset.augment.policy",
            "no mask can follow",
            "trivial_augment",
        ),
        ({"dataset": {"repeats": 11}}, "dataset.repeats", "fill a batch of 10 samples", "write at most 10"),
        ({"dataset": {"decode": "device"}}, "dataset.decode", "no dataset.image_size", "dataset.decode=cpu"),
    ],
)
def test_a_mistake_in_how_images_are_shown(sections: Any, key: str, message: str, hint: str) -> None:
    """One mistake against its key, its sentence and its hint."""
    found = problem(**sections)
    assert found.key == key
    assert message in found.message
    assert hint in found.hint


DECODED = {"decode": "device", "image_size": 8}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"dataset": DECODED, "train": {"device": "cpu", "epochs": 10}}, "train.device is cpu"),
        ({"dataset": DECODED | {"augment": {"policy": "rand_augment"}}}, "policy rand_augment"),
        ({"dataset": DECODED | {"augment": {"rotate": 5}}}, "dataset.augment.rotate"),
        ({"dataset": DECODED | {"cache": "ram"}}, "dataset.cache=ram"),
        ({"dataset": DECODED | {"cache": "packed"}}, "dataset.cache=packed"),
        ({"dataset": DECODED, "task": "segmentation"}, "masks"),
    ],
)
def test_what_a_device_that_decodes_cannot_follow(sections: Any, message: str) -> None:
    """One obstacle against its words; without it, and with what the hint says, there is no problem."""
    assert image_problems(recipe(dataset=DECODED)) == []
    found = problem(**sections)
    assert found.key == "dataset.decode"
    assert message in found.message
    assert "dataset.decode=cpu" in found.hint
    assert image_problems(recipe(**sections | {"dataset": sections["dataset"] | {"decode": "cpu"}})) == []


def test_mistakes_have_their_places(tmp_path: Path) -> None:
    """Mistakes between the keys of a file against their lines."""
    (tmp_path / "r.yaml").write_text(
        "model: {name: convnet}\noptimizer: {lr: 0.1}\ntrain: {epochs: 3}\n"
        "dataset:\n  name: digits\n  image_size:\n    0ep: 64\n    2step: 96\neval:\n  resize: 32\n"
    )
    loaded = load(tmp_path / "r.yaml")
    located = loaded.locate(problems_between(loaded.recipe, columns=None)).problems
    places = [(each.key, each.place and each.place.line, each.place and each.place.column) for each in located]
    assert places == [("dataset.image_size", 7, 5), ("eval.resize", 10, 11)]


def test_a_longer_run_changes_its_size_where_it_did() -> None:
    """A run of 9 epochs that goes on to 20: the epochs of its sizes before and after."""
    before = recipe(epochs=9, dataset={"image_size": SIZES})
    values, notes = with_more_epochs(before, 20, num_train=100, step=0)
    after = Recipe.model_validate(values)
    assert image_sizes.sizes_by_epoch(after) == image_sizes.sizes_by_epoch(before)
    assert values["dataset"]["image_size"] == {"0ep": 128, "4.5ep": [176, 160], "7.2ep": 224}
    assert any("dataset.image_size 224 stays at 7.2ep (80% of 9 epochs)" in note for note in notes)


def test_phases_and_the_baseline_have_the_sizes_of_the_run() -> None:
    """Sizes of a SWAP worker and of the baseline against those of the recipe: points are shares of all epochs."""
    dataset = {"image_size": SIZES}
    swapped = recipe(dataset=dataset, swap={"workers": 2, "start": "70%"})
    make_plan(swapped, num_train=100)
    averaged = recipe(dataset=dataset, swa={})
    for made in (worker_of(swapped, 1), baseline_of(averaged)):
        assert image_sizes.sizes_by_epoch(made) == image_sizes.sizes_by_epoch(averaged)


def test_a_plan_refuses_what_is_wrong() -> None:
    """`make_plan`, which every command calls, against a mistake in the sizes."""
    with pytest.raises(RecipeError, match="begins at 1ep"):
        make_plan(recipe(dataset={"image_size": {"1ep": 8}}), num_train=100)
