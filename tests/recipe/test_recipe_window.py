"""Windows of a run: what is read, which steps their ends are, and what is refused."""

from __future__ import annotations

import pytest

from swa_cli.errors import UserError
from swa_cli.recipe.plan import Window
from swa_cli.recipe.schema import Recipe


def recipe(schedule: dict[str, object] | None = None) -> Recipe:
    """10 epochs of 20 steps."""
    return Recipe.model_validate(
        {
            "model": {"name": "convnet"},
            "dataset": {"name": "digits"},
            "optimizer": {"lr": 0.1},
            "schedule": schedule or {"name": "constant"},
            "train": {"epochs": 10, "batch_size": 50},
        }
    )


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("3ep:5ep", (60, 100)),
        ("0ep:100%", (0, 200)),
        ("0.25ep:25%", (5, 50)),
        ("7step:7step", (7, 7)),
        ("0.125ep:200step", (3, 200)),  # 2.5 steps, rounded half up
    ],
)
def test_ends_become_steps(text: str, points: tuple[int, int]) -> None:
    """Ends in every unit against the steps worked out by hand, of a run of 10 epochs of 20 steps."""
    assert Window.parse(text).points(recipe(), num_train=1000) == points


def test_cycles_are_minima_of_the_schedule() -> None:
    """1cycle to 3cycle of restarts every 2 epochs: the ends of epochs 2 and 6."""
    cyclic = recipe({"name": "cosine_restarts", "T_0": "2ep"})
    assert Window.parse("1cycle:3cycle").points(cyclic, num_train=1000) == (40, 120)


@pytest.mark.parametrize("text", ["", ":", "3ep", "3:5", "3ep:", ":5ep", "3ep:5ep:7ep", "-1ep:2ep", "a:b", "1ep:101%"])
def test_other_forms_are_refused(text: str) -> None:
    """What is no window is refused with a message that says how one is written."""
    with pytest.raises(ValueError, match="write"):
        Window.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5ep:3ep", "ends before it starts"),
        ("3ep:11ep", "after the end of the run, epoch 10"),
        ("0ep:201step", "after the end of the run"),
        ("1cycle:2cycle", "has 0 minima"),
    ],
)
def test_windows_that_the_run_does_not_have(text: str, message: str) -> None:
    """Ends in the wrong order or outside the run are refused."""
    with pytest.raises(UserError, match=message):
        Window.parse(text).points(recipe(), num_train=1000)
