"""What a run goes on from: its resume point, and its recipe as it is now.

The one idea: the same command may be given again at any time. Where a run was killed while it was resumed or extended,
or as one of several processes that are started again, that goes on with what was begun.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from swa_cli.checkpoint.reader import Checkpoint
from swa_cli.checkpoint.run_folder import RESUMABLE_KEYS, RunFolder, about
from swa_cli.engine import state
from swa_cli.engine.distributed import World
from swa_cli.engine.hardware import Hardware, environment
from swa_cli.engine.user_code import named_code
from swa_cli.errors import Problem, RecipeError, UserError
from swa_cli.recipe import load
from swa_cli.recipe.load import Loaded
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.variants import with_more_epochs
from swa_cli.report.terminal import Terminal


def point_of(folder: RunFolder, world: World, terminal: Terminal) -> Checkpoint | None:
    """The newest resume point, the same for all processes; None where a run has saved none.

    Raises:
        UserError: It cannot be read, or they do not see the same files.
    """
    point = state.newest_resume_point(folder, terminal)
    steps = world.gathered(None if point is None else point.content["step"])
    if len(set(steps)) > 1:
        raise UserError(
            f"{folder.path}: the processes find different resume points there, of steps {', '.join(map(str, steps))}",
            hint="let all machines have the run folder on one file system",
        )
    return point


def recipe_of(
    folder: RunFolder,
    point: Checkpoint | None,
    overrides: Sequence[str],
    *,
    world: World,
    terminal: Terminal,
    extend_to: int | None = None,
) -> Loaded:
    """The recipe of a run that goes on: recipe.yaml, which must not differ where the result depends on it.

    Args:
        folder: Of the run.
        point: What it goes on from.
        overrides: Changes of keys that the result does not depend on.
        world: The processes that go on.
        terminal: Hears what more epochs move.
        extend_to: A larger number of epochs.

    Raises:
        RecipeError: It does; or an override that would change the result.
        UserError: Fewer epochs, or the averages so far would not be those of the longer run.
    """

    def loaded(words: Sequence[str], *, from_point: bool) -> Loaded:
        if folder.recipe.is_file() and not from_point:
            return load.load(folder.recipe, words, allowed=RESUMABLE_KEYS)
        assert point is not None, "a run folder has at least one of the two"
        return load.from_values(point.content["recipe"], words, source=str(point.path), allowed=RESUMABLE_KEYS)

    found = loaded(overrides, from_point=False)
    # Killed after recipe.yaml was written anew, and before the first save: the run has still to be extended.
    is_half_extended = extend_to == found.recipe.train.epochs and point is not None and _epochs(point) != extend_to
    if is_half_extended:
        found = loaded(overrides, from_point=True)
    if found.recipe.train.threads == "auto":  # bits depend on it
        begun = about(folder.about) if point is None else point.content["environment"]
        if begun.get("processes", 1) == world.size:
            found = loaded([f"train.threads={begun['threads']}", *overrides], from_point=is_half_extended)
    if point is not None:
        require_same(point, found)
    return found if extend_to is None else _extended(folder, point, found, extend_to, terminal)


def result_of(folder: RunFolder, *, extend_to: int | None) -> dict[str, Any] | None:
    """What a finished run has told, of so many epochs if they were asked for; None where there is more to do."""
    if not folder.result.is_file():
        return None
    if extend_to is not None and load.load(folder.recipe).recipe.train.epochs != extend_to:
        return None
    result: dict[str, Any] = json.loads(folder.result.read_text())
    return result


def finished(folder: RunFolder, point: Checkpoint | None, recipe: Recipe) -> UserError:
    """What to do with a run that is finished: score it, and train it for longer where that is possible."""
    flags = ["--allow-code"] if named_code(recipe) else []
    hint = f"score it with `{shlex.join(['swa', 'eval', str(folder.shown), *flags])}`"
    longer = 2 * recipe.train.epochs
    with suppress(UserError, RecipeError):  # of a longer run that would have been another one from the start
        if point is not None and point.content["stopped"] is None:
            with_more_epochs(recipe, longer, num_train=point.content["num_train"], step=point.content["step"])
            words = ["swa", "train", "--resume", str(folder.shown), "--extend-to", str(longer), *flags]
            hint += f", train {recipe.train.epochs} more epochs with `{shlex.join(words)}`"
    return UserError(f"{folder.shown}: this run is finished", hint=f"{hint}, or start a new run")


def changes_since(point: Checkpoint | None, hardware: Hardware) -> list[str]:
    """What the bits of a run depend on that is not as it was, a sentence each."""
    now = environment(hardware)
    recorded = now if point is None else point.content["environment"]
    return [
        f"{key} was {value} and is {now[key]}: the result will not be bit-identical"
        for key, value in recorded.items()
        if key in now and now[key] != value
    ]


def _epochs(point: Checkpoint) -> int:
    return load.from_values(point.content["recipe"], source=str(point.path)).recipe.train.epochs


def require_same(point: Checkpoint, found: Loaded, *, ignored: Sequence[str] = RESUMABLE_KEYS) -> None:
    """The recipe is that of the resume point, but for these keys.

    Raises:
        RecipeError: It is another one.
    """
    begun = load.from_values(point.content["recipe"], source=str(point.path)).recipe
    problems = [
        Problem(key, f"is {now}, and the run was begun with {before}", f"write {before}, or start a new run")
        for key, before, now in load.differences(begun, found.recipe, ignored=ignored)
    ]
    if problems:
        raise found.locate(problems)


def _extended(folder: RunFolder, point: Checkpoint | None, loaded: Loaded, epochs: int, terminal: Terminal) -> Loaded:
    """The recipe with more epochs; says what that moves."""
    if point is None or point.content["stopped"] is not None:
        reason = "has saved nothing yet" if point is None else f"was ended by train.{point.content['stopped']}"
        raise UserError(f"{folder.path}: {reason}, so it has no epochs to add", hint="start a new run")
    if epochs == loaded.recipe.train.epochs and not folder.result.is_file():
        return loaded  # it was extended before, and has not come to its end
    longer, moved = with_more_epochs(
        loaded.recipe, epochs, num_train=point.content["num_train"], step=point.content["step"]
    )
    for sentence in moved:
        terminal.note(sentence)
    return load.from_values(longer, source=str(folder.recipe))
