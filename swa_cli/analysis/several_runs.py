"""Runs within one folder, such as the seeds of a repeat or the trials of a sweep: find the folder, and do what is left.

One idea: each is an ordinary run, whose folder says how far it is: finished, stopped, or new. So whatever consists of
runs has no progress of its own to save: the same command looks at the folders and does what is left. Given in several
processes, on machines that share the folder, each of them does what no other one works on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from swa_cli.checkpoint import locks
from swa_cli.checkpoint.run_folder import RESUMABLE_KEYS, RunFolder, make_root, numbered
from swa_cli.engine import pretrained, resume, train
from swa_cli.engine.run import Run
from swa_cli.errors import RecipeError, UserError
from swa_cli.recipe import load
from swa_cli.recipe.load import Loaded
from swa_cli.recipe.schema import Recipe
from swa_cli.report.terminal import Terminal

STATES = {"finished": "finished", "stopped": "to continue", "new": "to run"}
POLL_S = 0.5  # between two looks at runs of other processes


def newest(
    recipe: Recipe,
    name: str,
    *,
    is_kind: Callable[[RunFolder], bool],
    terminal: Terminal,
    ignored: Sequence[str] = RESUMABLE_KEYS,
    other: Callable[[RunFolder], str | None] = lambda folder: None,
) -> tuple[RunFolder | None, str]:
    """Return the newest folder `<name>-NNN` to continue with a recipe, or None, and the reason of the choice.

    Args:
        recipe: The recipe now; the folder has to have the same, but for the `ignored` keys.
        name: The name of the folder without its number.
        is_kind: Whether a folder is one of this command.
        terminal: Hears of a folder that cannot be read.
        ignored: Patterns of keys.
        other: Returns what else differs in a folder with the same recipe, as `its sampler is tpe`.
    """
    reason = "is new"
    for _, path in reversed(numbered(Path(recipe.output.root), name)):
        folder = RunFolder(path)
        if not (is_kind(folder) and folder.recipe.is_file()):
            continue
        try:
            found = load.load(folder.recipe).recipe
            differences = load.differences(found, recipe, ignored=ignored)
            difference = "" if differences else other(folder)
        except (RecipeError, UserError) as error:
            terminal.warning(f"{path} is not continued, because it cannot be read: {error}")
            continue
        if not differences and not difference:
            if found.dataset.root != recipe.dataset.root:
                terminal.warning(
                    f"{path}: what has finished there was trained on dataset.root={found.dataset.root} and is kept;"
                    f" whether {recipe.dataset.root} holds the same images is not compared"
                )
            return folder, "has the same recipe and is continued"
        if reason == "is new" and differences:
            key, before, now = differences[0]
            reason = f"is new: {path.name} has another recipe ({key} is {before} there and {now} here)"
        elif reason == "is new":
            reason = f"is new: {path.name} differs ({difference})"
    return None, reason


@contextmanager
def making(root: Path, name: str) -> Iterator[None]:
    """Let one process at a time look for a folder `<name>-NNN` and make it: those that start at once share it.

    Raises:
        UserError: No folder can be made there.
    """
    make_root(root)
    with locks.holding(root / f".{name}.lock"):
        yield


def state_of(folder: RunFolder, wanted: Recipe, *, noun: str, command: str) -> str:
    """Return how far a run is: one of `STATES`; `noun` names it as a part of what `command` does.

    Raises:
        UserError: Something else is in its place, or its recipe was changed since.
    """
    if folder.path.is_symlink() or (folder.path.exists() and not folder.path.is_dir()):
        raise UserError(
            f"{folder.path}: is not the folder of a {noun}", hint="move it elsewhere, and run the same again"
        )
    if not folder.has_begun:
        return "new"
    differences = _differences(folder, wanted, ignored=RESUMABLE_KEYS)
    if differences:
        key, before, now = differences[0]
        raise UserError(
            f"{folder.recipe}: {key} is {before}, and the {command} has {now}",
            hint=f"move {folder.path} elsewhere: the same command runs the {noun} again",
        )
    return "finished" if folder.result.is_file() else "stopped"


def _differences(folder: RunFolder, wanted: Recipe, *, ignored: Sequence[str]) -> list[tuple[str, Any, Any]]:
    """Return the keys in which the recipe of a run that has begun differs from the one wanted.

    The run has recorded the images that its pretrained weights expect, where the recipe leaves them out.
    """
    if wanted.model.pretrained is not None:
        try:
            wanted = pretrained.with_inputs(wanted, pretrained.find(wanted))
        except RecipeError:  # the run goes on without a file that has gone
            ignored = (*ignored, *pretrained.INPUT_KEYS)
    return load.differences(load.load(folder.recipe).recipe, wanted, ignored=ignored)


def run_or_continue(
    loaded: Loaded,
    folder: RunFolder,
    *,
    state: str,
    listeners: Sequence[object],
    ready: Run | None = None,
    looks: bool = False,
) -> None:
    """Run a recipe in a folder that is new, or continue the run in it to its bit-identical end.

    `ready` is the run of this recipe if it was built before; `looks`: whether nobody has looked at its photos yet.
    """
    if state == "new":
        run = ready or train.set_up(loaded, listeners=listeners, purpose="train", looks=looks)
        train.start(run, RunFolder.at(folder.path), recipe_folder=loaded.folder)
        return
    moved = [
        f"{key}={json.dumps(now, ensure_ascii=False)}"
        for key, _, now in _differences(folder, loaded.recipe, ignored=())
        if (key, now) != ("train.threads", "auto")  # bits depend on it: the recorded number stays
    ]
    # Its recipe names the same code as the recipe of the user.
    resume.resume(folder.path, moved, listeners=listeners, allow_code=True)
