"""Resume a run: its resume point, its recipe as it is now, and the same end.

The same command may be given again at any time: a run that was killed while it was resumed or extended, or whose
processes were restarted, continues with what was begun.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from swa_cli.checkpoint import reader
from swa_cli.checkpoint.reader import Checkpoint
from swa_cli.checkpoint.run_folder import RESUMABLE_KEYS, RunFolder, about, folder_of_launch, read_json
from swa_cli.checkpoint.schema import ENDED_BY
from swa_cli.engine import failures, keep, pretrained, state, train
from swa_cli.engine.distributed import World, is_restarted, join_processes, name_of_launch
from swa_cli.engine.events import Events
from swa_cli.engine.hardware import Hardware, environment
from swa_cli.engine.run import build_run
from swa_cli.engine.user_code import admit, command
from swa_cli.errors import Problem, RecipeError, UserError
from swa_cli.recipe import load
from swa_cli.recipe.load import Loaded
from swa_cli.recipe.plan import make_plan
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.variants import with_more_epochs


def train_or_continue(loaded: Loaded, *, listeners: Sequence[object] = (), dry_run: bool = False) -> dict[str, Any]:
    """Train by a recipe as one of the processes of a launch; restarted processes continue the run they began.

    See `train.train` for arguments, result and errors.
    """
    with join_processes() as world:
        launch = name_of_launch()
        if launch is not None and is_restarted() and not dry_run:
            root, title = Path(loaded.recipe.output.root), loaded.recipe.title
            path = world.broadcast_from_rank0(lambda: folder_of_launch(launch, root, title))
            if path is not None:
                return _resume(path, [], listeners=listeners, world=world, allow_code=True)
        return train.train(loaded, listeners=listeners, world=world, dry_run=dry_run)


def resume(
    path: Path,
    overrides: Sequence[str],
    *,
    listeners: Sequence[object] = (),
    allow_code: bool = False,
    extend_to: int | None = None,
) -> dict[str, Any]:
    """Continue a run from its last save to the bit-identical result (CPU), and return the content of result.json.

    Args:
        path: The run folder; a run that has saved nothing yet starts from the beginning.
        overrides: Changes of keys that the result does not depend on.
        listeners: They hear the events of the run.
        allow_code: Import what the recipe in the folder names.
        extend_to: A larger number of epochs.

    Raises:
        RecipeError: A change of the recipe that would change the result.
        UserError: There is no run, it is finished, or its recipe names code that was not allowed.
    """
    with join_processes() as world:
        return _resume(path, overrides, listeners=listeners, world=world, allow_code=allow_code, extend_to=extend_to)


def _resume(
    path: Path,
    overrides: Sequence[str],
    *,
    listeners: Sequence[object],
    world: World,
    allow_code: bool,
    extend_to: int | None = None,
) -> dict[str, Any]:
    folder, events = RunFolder.open(path, writes=world.is_rank0), Events(listeners)
    with folder.lock() as log:
        if folder.about.is_file():
            about(folder.about)  # refuses a damaged one before anything is run
        result = _finished_result(folder, extend_to=extend_to) if is_restarted() else None
        if result is not None:  # the run had ended when a process was killed
            return result
        newest = _find_point(folder, world, events)
        point = newest if extend_to is None else _point_to_extend(folder, newest, extend_to)
        loaded = _load_recipe(folder, point, overrides, world=world, events=events, extend_to=extend_to)
        if extend_to is None and folder.result.is_file():
            raise _finished_error(folder, point, loaded.recipe)
        source = str(folder.recipe if point is None else point.path)
        admit(loaded, source=source, folder=folder.path, allow_code=allow_code)
        with failures.before_a_run():
            run = build_run(loaded, events, point=point, world=world, purpose="train")
            run.context.require_readable()
        changed = changes_since(point, run.context.hardware)
        if point is not None:
            state.restore(run, point.content, source=source)
            recorded = about(folder.about).get("pretrained") if folder.about.is_file() else None
            changed += pretrained.changes(run.context.recipe, recorded, run.model)
        elif run.initial is not None:
            run.initial.require(about(folder.about))
        with failures.explain(folder):
            extended = None if extend_to is None else newest
            state.prepare_folder(folder, point, load.dump(run.context.recipe), extended=extended)
            if newest is not None and point is not newest:
                events.note(
                    f"continues from {folder.plateau.name}, after step {run.step:,}, where the decay began;"
                    f" what the decay led to is kept as {state.ended_name(newest)}"
                )
            keep.write_best(run, folder)
        where = f"after step {run.step:,} of {run.plan.total_steps:,}" if run.step else "from the beginning"
        title = f"{run.context.recipe.title} -> {folder.path}, continued {where}"
        return train.run_to_end(run, folder, log, title=title, warnings=changed)


def _find_point(folder: RunFolder, world: World, events: Events) -> Checkpoint | None:
    """Return the newest resume point, the same for all processes; None if the run has saved none.

    Raises:
        UserError: It cannot be read, or the processes do not see the same files.
    """
    point = state.newest_resume_point(folder, events)
    steps = world.gathered(None if point is None else point.content["step"])
    if len(set(steps)) > 1:
        raise UserError(
            f"{folder.path}: the processes find different resume points there, of steps {', '.join(map(str, steps))}",
            hint="let all machines have the run folder on one file system",
        )
    return point


def _point_to_extend(folder: RunFolder, newest: Checkpoint | None, epochs: int) -> Checkpoint | None:
    """Return the resume point from which a run gets more epochs: plateau.pt where the newest one lies in a decay.

    Weights that have decayed are not those of the longer run, which decays later.

    Raises:
        UserError: plateau.pt is missing, or is that of another run.
    """
    if newest is None or newest.content["stopped"] is not None or _recipe_of(newest).train.epochs >= epochs:
        return newest
    planned = make_plan(_recipe_of(newest), num_train=newest.content["num_train"])
    if planned.plateau is None or newest.content["step"] <= planned.plateau:
        return newest
    where = f"the decay of this run began after step {planned.plateau:,}"
    if not folder.plateau.exists():
        hint = f"put the file back, or start a new run with train.epochs={epochs}"
        raise UserError(f"{folder.plateau}: is missing, and {where}", hint=hint)
    found = reader.read_resume_point(folder.plateau)
    differing = load.differences(_recipe_of(newest), _recipe_of(found), ignored=RESUMABLE_KEYS)
    if found.content["step"] != planned.plateau or differing:
        message = f"{folder.plateau}: is of step {found.content['step']:,}, or of another recipe, and {where}"
        raise UserError(message, hint="put the file of this run in its place")
    return found


def _load_recipe(
    folder: RunFolder,
    point: Checkpoint | None,
    overrides: Sequence[str],
    *,
    world: World,
    events: Events,
    extend_to: int | None,
) -> Loaded:
    """Load the recipe of a resumed run, see `resume`.

    Raises:
        RecipeError: It differs from that of the resume point where the result depends on it.
        UserError: Fewer epochs, or the averages so far would not be those of the longer run.
    """

    def loaded(words: Sequence[str], *, from_point: bool) -> Loaded:
        if folder.recipe.is_file() and not from_point:
            return load.load(folder.recipe, words, allowed=RESUMABLE_KEYS)
        assert point is not None, "a run folder has at least one of the two"
        return load.from_values(point.content["recipe"], words, source=str(point.path), allowed=RESUMABLE_KEYS)

    found = loaded(overrides, from_point=False)
    is_half_extended = False  # killed after recipe.yaml was replaced, and before the first save
    if extend_to == found.recipe.train.epochs and point is not None:
        is_half_extended = _recipe_of(point).train.epochs != extend_to
    if is_half_extended:
        found = loaded(overrides, from_point=True)
    if found.recipe.train.threads == "auto":  # bits depend on it
        begun = about(folder.about) if point is None else point.content["environment"]
        if begun.get("processes", 1) == world.size:
            found = loaded([f"train.threads={begun['threads']}", *overrides], from_point=is_half_extended)
    if point is not None:
        require_same(point, found)
    return found if extend_to is None else _extended(folder, point, found, extend_to, events)


def _finished_result(folder: RunFolder, *, extend_to: int | None) -> dict[str, Any] | None:
    """Return the result of a run that needs no more epochs; None if there is more to do."""
    if not folder.result.is_file():
        return None
    if extend_to is not None and load.load(folder.recipe).recipe.train.epochs != extend_to:
        return None
    return read_json(folder.result)


def _finished_error(folder: RunFolder, point: Checkpoint | None, recipe: Recipe) -> UserError:
    """Return the error that a run is finished, with the commands to score it or to extend it."""
    hint = f"score it with `{command(('swa', 'eval', folder.display_path), recipe)}`"
    longer = 2 * recipe.train.epochs
    with suppress(UserError, RecipeError):  # a longer run would have been another one from the start
        if point is not None and point.content["stopped"] is None:
            start = _point_to_extend(folder, point, longer) or point
            with_more_epochs(recipe, longer, num_train=start.content["num_train"], step=start.content["step"])
            words = ("swa", "train", "--resume", folder.display_path, "--extend-to", longer)
            hint += f", train {recipe.train.epochs} more epochs with `{command(words, recipe)}`"
    return UserError(f"{folder.display_path}: this run is finished", hint=f"{hint}, or start a new run")


def changes_since(point: Checkpoint | None, hardware: Hardware) -> list[str]:
    """Return a sentence for each change of what the bits of a run depend on."""
    now = environment(hardware)
    recorded = now if point is None else point.content["environment"]
    return [
        f"{key} was {value} and is {now[key]}: the result will not be bit-identical"
        for key, value in recorded.items()
        if key in now and now[key] != value
    ]


def _recipe_of(point: Checkpoint) -> Recipe:
    return load.from_values(point.content["recipe"], source=str(point.path)).recipe


def require_same(point: Checkpoint, found: Loaded, *, ignored: Sequence[str] = RESUMABLE_KEYS) -> None:
    """Require the recipe of the resume point, except for the `ignored` keys.

    Raises:
        RecipeError: It is another one.
    """
    problems = [
        Problem(key, f"is {now}, and the run was begun with {before}", f"write {before}, or start a new run")
        for key, before, now in load.differences(_recipe_of(point), found.recipe, ignored=ignored)
    ]
    if problems:
        raise found.locate(problems)


def _extended(folder: RunFolder, point: Checkpoint | None, loaded: Loaded, epochs: int, events: Events) -> Loaded:
    """Return the recipe with more epochs, and note what that moves."""
    if point is None or point.content["stopped"] is not None:
        reason = "has saved nothing yet" if point is None else f"was ended by {ENDED_BY[point.content['stopped']]}"
        raise UserError(f"{folder.path}: {reason}, so it has no epochs to add", hint="start a new run")
    if epochs == loaded.recipe.train.epochs and not folder.result.is_file():
        return loaded  # it was extended before, and is not finished
    longer, moved = with_more_epochs(
        loaded.recipe, epochs, num_train=point.content["num_train"], step=point.content["step"]
    )
    for sentence in moved:
        events.note(sentence)
    return load.from_values(longer, source=str(folder.recipe))
