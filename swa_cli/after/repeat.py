"""The same recipe with several seeds, reported together: `runs/<name>-repeat-001` with a run folder a seed.

A seed is an ordinary run, and its folder alone says how far it is: finished, stopped, or not begun. So a repeat has
no progress of its own to save: the same command looks at the seeds' folders and does what is left.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swa_cli.after import pictures
from swa_cli.after.spread import Result, over_seeds, read_result
from swa_cli.errors import EXIT_FAILED, RecipeError, Terminated, UserError
from swa_cli.recipe import load
from swa_cli.recipe.load import Loaded
from swa_cli.recipe.schema import Recipe
from swa_cli.report.measures import Measures
from swa_cli.report.repeats import spelled
from swa_cli.report.terminal import Terminal
from swa_cli.training import faults, tasks, trainer
from swa_cli.training.own_code import import_from
from swa_cli.training.run_folder import RESUMABLE_KEYS, RunFolder, make_next, numbered
from swa_cli.training.setup import Run

STATES = {"finished": "finished", "stopped": "to go on", "new": "to run"}
Results = dict[int, tuple[dict[str, Any], Result]]  # seed -> result.json, and what is compared of it


@dataclass(frozen=True)
class Member:
    """A seed of a repeat and its run folder; `state` is one of `STATES`."""

    seed: int
    folder: RunFolder
    state: str


def repeat(loaded: Loaded, seeds: Sequence[int], *, terminal: Terminal, dry_run: bool = False) -> dict[str, Any]:
    """Run what is left of these seeds of a recipe, and report them together.

    The newest repeat folder whose recipe is the same is gone on with; without one, a new folder is made.

    Args:
        loaded: The recipe; its own seed does not matter.
        seeds: At least two, in ascending order.
        terminal: Told of everything.
        dry_run: Show the plan of the first seed and what would be run, and write nothing.

    Returns:
        What `--json` prints and result.json holds.

    Raises:
        RecipeError: Problems of the recipe; nothing was run.
        UserError: Missing data or device, a folder that does not fit, or a seed that failed (exit code 1).
    """
    import_from(loaded.folder)
    with faults.before_a_run():
        measures = tasks.find(loaded.recipe.task).measures
    folder, reason = _choose(loaded.recipe, terminal)
    if dry_run:
        return _dry_run(loaded, seeds, folder, reason, terminal=terminal)
    ready: dict[int, Run] = {}
    if folder is None:  # what is wrong with the recipe shows before a folder is made
        ready[seeds[0]] = trainer.ready(loaded.with_seed(seeds[0]), terminal=terminal.part())
        folder = RunFolder(make_next(Path(loaded.recipe.output.root), _name(loaded.recipe)))
    with folder.claimed() as log:
        members = _members(folder, loaded.recipe, seeds)
        finished = [member for member in members if member.state == "finished"]
        results = {member.seed: read_result(member.folder.result, measures=measures) for member in finished}
        _require_same_samples(results, folder)
        terminal.attach_log(log)
        _write_request(folder, loaded.recipe, seeds)
        title = f"{loaded.recipe.title}, {len(seeds)} seeds -> {folder.path}"
        _tell_plan(title, {member.seed: member.state for member in members}, reason, terminal=terminal)
        _run_members(members, loaded, ready, results, measures=measures, terminal=terminal)
        return _report(folder, {seed: results[seed] for seed in seeds}, measures=measures, terminal=terminal)


def _choose(recipe: Recipe, terminal: Terminal) -> tuple[RunFolder | None, str]:
    """The newest repeat folder with this recipe, if there is one, and why it or a new one is taken."""
    reason = "is new"
    for _, path in reversed(numbered(Path(recipe.output.root), _name(recipe))):
        folder = RunFolder(path)
        if not (folder.repeat.is_file() and folder.recipe.is_file()):
            continue
        try:
            found = load.load(folder.recipe).recipe
        except (RecipeError, UserError) as error:
            terminal.warning(f"{path} is not gone on with, its recipe cannot be read: {error}")
            continue
        differences = load.differences(found, recipe, ignored=(*RESUMABLE_KEYS, "seed"))
        if not differences:
            return folder, "is that of the same recipe, and is gone on with"
        if reason == "is new":
            key, before, now = differences[0]
            reason = f"is new: {path.name} has another recipe ({key} is {before} there and {now} here)"
    return None, reason


def _members(folder: RunFolder, recipe: Recipe, seeds: Sequence[int]) -> list[Member]:
    """Each seed as its folder says.

    Raises:
        UserError: Something else is in its place, or it was changed to another recipe since.
    """
    members = []
    for seed in seeds:
        run = RunFolder(folder.path / f"seed-{seed}")
        if run.path.is_symlink() or (run.path.exists() and not run.path.is_dir()):
            raise UserError(f"{run.path}: is no folder of a seed", hint="move it elsewhere, and run the same again")
        state = "new"
        if run.is_begun:
            state = "finished" if run.result.is_file() else "stopped"
            _recipe_of(run, recipe.model_copy(update={"seed": seed}))
        members.append(Member(seed, run, state))
    return members


def _recipe_of(run: RunFolder, wanted: Recipe) -> Recipe:
    """The recipe of a seed that was begun.

    Raises:
        UserError: It is not the wanted one.
    """
    found = load.load(run.recipe).recipe
    differences = load.differences(found, wanted, ignored=RESUMABLE_KEYS)
    if differences:
        key, before, now = differences[0]
        raise UserError(
            f"{run.recipe}: {key} is {before}, and the repeat has {now}",
            hint=f"move {run.path} elsewhere: the same command runs the seed anew",
        )
    return found


def _run_members(
    members: Sequence[Member],
    loaded: Loaded,
    ready: dict[int, Run],
    results: Results,
    *,
    measures: Measures,
    terminal: Terminal,
) -> None:
    """Run what is not finished, seed by seed, and put what comes out into `results`."""
    has_run = False
    for number, member in enumerate(members, start=1):
        title = f"seed {member.seed} ({number} of {len(members)})"
        terminal.heading(title if member.state != "finished" else f"{title} is finished")
        if member.state != "finished":
            with _named(title, finished=list(results), has_run=has_run, terminal=terminal):
                _run(member, loaded, ready, terminal=terminal)
                pictures.draw_if_asked(member.folder.path, terminal=terminal)
                results[member.seed] = read_result(member.folder.result, measures=measures)
            has_run = True


def _run(member: Member, loaded: Loaded, ready: dict[int, Run], *, terminal: Terminal) -> None:
    """A seed from where it stands to its end."""
    own = loaded.with_seed(member.seed)
    if member.state == "new":
        # Taken out of `ready`, or its network and data would stay in memory while the other seeds are run.
        run = ready.pop(member.seed, None) or trainer.ready(own, terminal=terminal.part())
        trainer.begin(run, RunFolder.at(member.folder.path), recipe_folder=loaded.folder)
        return
    moved = [
        f"{key}={json.dumps(now, ensure_ascii=False)}"
        for key, _, now in load.differences(_recipe_of(member.folder, own.recipe), own.recipe)
        if (key, now) != ("train.threads", "auto")  # bits depend on their number: the one it was begun with stays
    ]
    # The code that its recipe names is the code of the recipe that was given.
    trainer.resume(member.folder.path, moved, terminal=terminal.part(), allow_code=True)


@contextmanager
def _named(title: str, *, finished: Sequence[int], has_run: bool, terminal: Terminal) -> Iterator[None]:
    """Say in which seed the repeat ended, and with exit code 1 where a seed before it was run."""
    try:
        yield
    except UserError as error:
        kept = f"; {_seeds(sorted(finished))}: finished and kept" if finished else ""
        code = EXIT_FAILED if has_run else error.exit_code
        raise UserError(f"{title}: {error.message}", hint=error.hint + kept, exit_code=code) from error
    except (KeyboardInterrupt, Terminated):
        terminal.warning(f"stopped in {title}: run the same command again, and it goes on from there")
        raise


def _report(folder: RunFolder, results: Results, *, measures: Measures, terminal: Terminal) -> dict[str, Any]:
    """Compare the seeds, write result.json, tell."""
    _require_same_samples(results, folder)
    compared = {seed: result for seed, (_, result) in results.items()}
    weights = over_seeds(compared, measures=measures)
    first = next(iter(compared.values()))
    for name, row in weights.items():
        if missing := [seed for seed in compared if seed not in row["seeds"]]:
            terminal.warning(f"{name} is missing in {_seeds(missing)}: it is compared over the others")
    for key in ("device", "precision"):
        kinds = dict.fromkeys(getattr(result, key) for result in compared.values())
        if len(kinds) > 1:
            terminal.warning(f"the seeds were run with {key} {' and '.join(kinds)}: it is part of their spread")
    answer = {
        "command": "repeat",
        "run": str(folder.path.resolve()),
        "split": first.split,
        "samples": first.samples,
        "seeds": list(results),
        "runs": {str(seed): values for seed, (values, _) in results.items()},
        "weights": weights,
        "seconds": round(sum(result.seconds for result in compared.values()), 3),
    }
    folder.write_json(folder.result.name, answer)
    terminal.summary_over_seeds(
        weights, split=first.split, samples=first.samples, seeds=list(results), measures=measures
    )
    return answer


def _require_same_samples(results: Results, folder: RunFolder) -> None:
    """Scores are compared only where they are of as many samples of one split.

    Raises:
        UserError: Seeds were scored on something else.
    """
    kinds = {(result.split, result.samples): seed for seed, (_, result) in results.items()}
    if len(kinds) > 1:
        said = ", ".join(f"seed {seed} on {samples:,} {split}" for (split, samples), seed in kinds.items())
        raise UserError(
            f"{folder.path}: its seeds were scored on different samples ({said})",
            hint="move the seeds of the older data elsewhere: the same command runs them anew",
        )


def _dry_run(
    loaded: Loaded, seeds: Sequence[int], folder: RunFolder | None, reason: str, *, terminal: Terminal
) -> dict[str, Any]:
    states = dict.fromkeys(seeds, "new")
    if folder is not None:
        states = {member.seed: member.state for member in _members(folder, loaded.recipe, seeds)}
    _tell_plan(f"{loaded.recipe.title}, {len(seeds)} seeds (dry run)", states, reason, terminal=terminal)
    terminal.heading(f"seed {seeds[0]} (1 of {len(seeds)})")
    plan = trainer.train(loaded.with_seed(seeds[0]), terminal=terminal.part(), dry_run=True)
    return {
        "command": "repeat",
        "dry_run": True,
        "run": None if folder is None else str(folder.path.resolve()),
        "seeds": list(seeds),
        **{state: _in_state(states, state) for state in STATES},
        "plan": plan,
    }


def _tell_plan(title: str, states: Mapping[int, str], reason: str, *, terminal: Terminal) -> None:
    seeds = [f"{words}: {spelled(found)}" for state, words in STATES.items() if (found := _in_state(states, state))]
    terminal.plan(title, [("folder", reason), ("seeds", "; ".join(seeds))])


def _in_state(states: Mapping[int, str], wanted: str) -> list[int]:
    return [seed for seed, state in states.items() if state == wanted]


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {spelled(seeds)}"


def _write_request(folder: RunFolder, recipe: Recipe, seeds: Sequence[int]) -> None:
    """repeat.json first: it tells the folder from that of a run, which recipe.yaml alone would make it."""
    folder.write_json(folder.repeat.name, {"seeds": list(seeds)})
    folder.write_text(folder.recipe.name, load.dump(recipe))


def _name(recipe: Recipe) -> str:
    return f"{recipe.title}-repeat"
