"""The same recipe with several seeds, reported together: `runs/<name>-repeat-001` with a run folder per seed.

A seed is an ordinary run, and its folder alone says how far it is: finished, stopped, or not begun. So a repeat has
no progress of its own to save: the same command looks at the seeds' folders and does what is left. What it is compared
with, the baseline or another recipe, is a repeat in a folder of its own, run seed by seed beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swa_cli.analysis import plot
from swa_cli.analysis.compare import Result, over_pairs, over_seeds, read_result
from swa_cli.checkpoint.run_folder import RESUMABLE_KEYS, RunFolder, make_next, numbered
from swa_cli.engine import failures, train
from swa_cli.engine.run import Run
from swa_cli.engine.user_code import make_importable
from swa_cli.errors import EXIT_FAILED, RecipeError, Terminated, UserError
from swa_cli.metrics import tasks
from swa_cli.metrics.metric import TaskMetrics
from swa_cli.recipe import load
from swa_cli.recipe.baseline import BASELINE, baseline_of, describe_baseline
from swa_cli.recipe.load import Loaded
from swa_cli.recipe.schema import Recipe
from swa_cli.report.tables.seeds import Against, spelled
from swa_cli.report.terminal import Terminal

STATES = {"finished": "finished", "stopped": "to go on", "new": "to run"}
Results = dict[int, tuple[dict[str, Any], Result]]  # seed -> result.json, and what is compared of it


@dataclass(frozen=True)
class Member:
    """A seed of a repeat and its run folder; `state` is one of `STATES`."""

    seed: int
    folder: RunFolder
    state: str


@dataclass
class Series:
    """One recipe of a repeat and its folder; `label` names it beside the other one."""

    loaded: Loaded
    label: str
    folder: RunFolder | None  # None until it is made
    reason: str  # why this folder
    ready: dict[int, Run] = field(default_factory=dict)
    members: list[Member] = field(default_factory=list)
    results: Results = field(default_factory=dict)

    @property
    def place(self) -> RunFolder:
        """Its folder, which is there by now."""
        assert self.folder is not None, "made before a seed is run"
        return self.folder


def repeat(
    loaded: Loaded,
    seeds: Sequence[int],
    *,
    terminal: Terminal,
    against: Loaded | str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Run what is left of these seeds of a recipe, and report them together.

    The newest repeat folder whose recipe is the same is gone on with; without one, a new folder is made.

    Args:
        loaded: The recipe; its own seed does not matter.
        seeds: At least two, in ascending order.
        terminal: Told of everything.
        against: Another recipe, or `baseline`, that is run with the same seeds and compared pairwise.
        dry_run: Show the plan of the first seed and what would be run, and write nothing.

    Returns:
        What `--json` prints and result.json holds.

    Raises:
        RecipeError: Problems of a recipe; nothing was run.
        UserError: Missing data or device, a folder that does not fit, or a seed that failed (exit code 1).
    """
    make_importable(loaded)
    with failures.before_a_run():
        metrics = tasks.find(loaded.recipe.task).metrics
    every = [_series(loaded, "", terminal), *_others(loaded, against, terminal)]
    if dry_run:
        return _dry_run(every, seeds, terminal=terminal)
    for series in every:  # what is wrong with a recipe shows before a folder is made
        if series.folder is None:
            run = train.ready(series.loaded.with_seed(seeds[0]), terminal=terminal.part())
            if series is every[0]:  # two sets of data at once may be too much for the memory
                series.ready[seeds[0]] = run
    with ExitStack() as claims:
        logs = [claims.enter_context(_claimed(series, seeds)) for series in every]
        for series in every:
            finished = [member for member in series.members if member.state == "finished"]
            for member in finished:
                series.results[member.seed] = read_result(member.folder.result, metrics=metrics)
            _require_same_samples(series)
        terminal.attach_log(logs[0])
        for series in every:
            _write_request(series, seeds)
        _tell_plan(f"{loaded.recipe.title}, {len(seeds)} seeds -> {every[0].place.shown}", every, terminal=terminal)
        _run_seeds(every, seeds, metrics=metrics, terminal=terminal)
        if len(every) > 1:
            every[1].place.write_json(every[1].place.result.name, _answer(every[1], seeds, metrics=metrics))
        return _report(every, seeds, metrics=metrics, terminal=terminal)


def _series(loaded: Loaded, label: str, terminal: Terminal) -> Series:
    folder, reason = _choose(loaded.recipe, terminal)
    return Series(loaded, label, folder, reason)


def _others(loaded: Loaded, against: Loaded | str | None, terminal: Terminal) -> list[Series]:
    """What the recipe is compared with.

    Raises:
        UserError: It is the recipe itself, or of another task.
    """
    if against is None:
        return []
    label = BASELINE
    if isinstance(against, str):
        against = loaded.with_recipe(baseline_of(loaded.recipe))
    else:
        make_importable(against)
        label = against.recipe.title
    ignored = (*RESUMABLE_KEYS, "seed", "name", *(["schedule.span"] if label == BASELINE else []))
    if not load.differences(loaded.recipe, against.recipe, ignored=ignored):
        what = "has no averaging, so it is its own baseline" if label == BASELINE else "is the same recipe"
        raise UserError(f"{against.source}: {what}", hint="name another recipe with --against OTHER.yaml")
    if against.recipe.task != loaded.recipe.task:
        raise UserError(
            f"{against.source}: its task is {against.recipe.task}, that of {loaded.source} is {loaded.recipe.task}",
            hint="compare recipes of one task",
        )
    return [_series(against, label, terminal)]


@contextmanager
def _claimed(series: Series, seeds: Sequence[int]) -> Iterator[Any]:
    """Be the only process in the folder of a series, which is made if there is none; yields its log."""
    recipe = series.loaded.recipe
    if series.folder is None:
        series.folder = RunFolder(make_next(Path(recipe.output.root), _name(recipe)))
    with series.folder.claimed() as log:
        series.members = _members(series.folder, recipe, seeds)
        yield log


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


def _run_seeds(every: Sequence[Series], seeds: Sequence[int], *, metrics: TaskMetrics, terminal: Terminal) -> None:
    """Run what is not finished, seed by seed, each recipe in turn, and put what comes out into `results`."""
    has_run = False
    for number, members in enumerate(zip(*(series.members for series in every), strict=True), start=1):
        for series, member in zip(every, members, strict=True):
            title = f"seed {member.seed} ({number} of {len(seeds)})" + (f", {series.label}" if series.label else "")
            terminal.heading(title if member.state != "finished" else f"{title} is finished")
            if member.state == "finished":
                continue
            with _named(title, finished=list(series.results), has_run=has_run, terminal=terminal):
                _run(member, series, terminal=terminal)
                plot.draw_if_asked(member.folder.path, terminal=terminal)
                series.results[member.seed] = read_result(member.folder.result, metrics=metrics)
            has_run = True


def _run(member: Member, series: Series, *, terminal: Terminal) -> None:
    """A seed from where it stands to its end."""
    own = series.loaded.with_seed(member.seed)
    if member.state == "new":
        # Taken out of `ready`, or its network and data would stay in memory while the other seeds are run.
        run = series.ready.pop(member.seed, None) or train.ready(own, terminal=terminal.part())
        train.begin(run, RunFolder.at(member.folder.path), recipe_folder=own.folder)
        return
    moved = [
        f"{key}={json.dumps(now, ensure_ascii=False)}"
        for key, _, now in load.differences(_recipe_of(member.folder, own.recipe), own.recipe)
        if (key, now) != ("train.threads", "auto")  # bits depend on their number: the one it was begun with stays
    ]
    # The code that its recipe names is the code of the recipe that was given.
    train.resume(member.folder.path, moved, terminal=terminal.part(), allow_code=True)


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


def _answer(series: Series, seeds: Sequence[int], *, metrics: TaskMetrics) -> dict[str, Any]:
    """What the seeds of one recipe come to.

    Raises:
        UserError: They were scored on different samples.
    """
    _require_same_samples(series)
    results = {seed: series.results[seed] for seed in seeds}
    compared = {seed: result for seed, (_, result) in results.items()}
    first = next(iter(compared.values()))
    return {
        "command": "repeat",
        "run": str(series.place.path.resolve()),
        "split": first.split,
        "samples": first.samples,
        "seeds": list(results),
        "runs": {str(seed): values for seed, (values, _) in results.items()},
        "weights": over_seeds(compared, metrics=metrics),
        "seconds": round(sum(result.seconds for result in compared.values()), 3),
    }


def _report(
    every: Sequence[Series], seeds: Sequence[int], *, metrics: TaskMetrics, terminal: Terminal
) -> dict[str, Any]:
    """Compare the seeds, and the recipes if there are two, write result.json, tell."""
    answer = _answer(every[0], seeds, metrics=metrics)
    weights, compared = answer["weights"], {seed: every[0].results[seed][1] for seed in seeds}
    for name, row in weights.items():
        if missing := [seed for seed in compared if seed not in row["seeds"]]:
            terminal.warning(f"{name} is missing in {_seeds(missing)}: it is compared over the others")
    for key in ("device", "precision"):
        kinds = dict.fromkeys(getattr(result, key) for result in compared.values())
        if len(kinds) > 1:
            terminal.warning(f"the seeds were run with {key} {' and '.join(kinds)}: it is part of their spread")
    against = None
    if len(every) > 1:
        against = _compare(answer, every[1], compared, metrics=metrics)
    folder = every[0].place
    folder.write_json(folder.result.name, answer)
    terminal.summary_over_seeds(
        weights, split=answer["split"], samples=answer["samples"], seeds=seeds, metrics=metrics, against=against
    )
    return answer


def _compare(
    answer: dict[str, Any], series: Series, compared: Mapping[int, Result], *, metrics: TaskMetrics
) -> Against:
    """Put into an answer how it differs, seed by seed, from another recipe; and what the table shows of that.

    Raises:
        UserError: The two were scored on different samples.
    """
    other = _answer(series, list(compared), metrics=metrics)
    if (other["split"], other["samples"]) != (answer["split"], answer["samples"]):
        raise UserError(
            f"{series.label} was scored on {other['samples']:,} {other['split']} samples,"
            f" the recipe on {answer['samples']:,} {answer['split']}",
            hint="compare recipes with the same data",
        )
    others = {seed: series.results[seed][1] for seed in compared}
    scores, pairs = over_pairs(compared, others, metrics=metrics)
    for name, differences in pairs.items():
        answer["weights"][name]["against"] = differences
    answer["against"] = {
        "name": series.label,
        "recipe": series.loaded.recipe.model_dump(mode="json", exclude_none=True),
        "outcome": scores,
        **{key: other[key] for key in ("run", "runs", "weights", "seconds")},
    }
    if series.label == BASELINE:
        answer["against"]["schedule"] = describe_baseline(series.loaded.recipe)
    return Against(series.label, scores, pairs)


def _require_same_samples(series: Series) -> None:
    """Scores are compared only where they are of as many samples of one split.

    Raises:
        UserError: Seeds were scored on something else.
    """
    kinds = {(result.split, result.samples): seed for seed, (_, result) in series.results.items()}
    if len(kinds) > 1:
        said = ", ".join(f"seed {seed} on {samples:,} {split}" for (split, samples), seed in kinds.items())
        raise UserError(
            f"{series.place.path}: its seeds were scored on different samples ({said})",
            hint="move the seeds of the older data elsewhere: the same command runs them anew",
        )


def _dry_run(every: Sequence[Series], seeds: Sequence[int], *, terminal: Terminal) -> dict[str, Any]:
    states = []
    for series in every:
        if series.folder is not None:
            series.members = _members(series.folder, series.loaded.recipe, seeds)
        states.append({member.seed: member.state for member in series.members} or dict.fromkeys(seeds, "new"))
    loaded, folder = every[0].loaded, every[0].folder
    _tell_plan(f"{loaded.recipe.title}, {len(seeds)} seeds (dry run)", every, terminal=terminal, seeds=seeds)
    plans = []
    for series in every:
        terminal.heading(f"seed {seeds[0]} (1 of {len(seeds)})" + (f", {series.label}" if series.label else ""))
        plans.append(train.train(series.loaded.with_seed(seeds[0]), terminal=terminal.part(), dry_run=True))
    answer = {
        "command": "repeat",
        "dry_run": True,
        "run": None if folder is None else str(folder.path.resolve()),
        "seeds": list(seeds),
        **{state: _in_state(states[0], state) for state in STATES},
        "plan": plans[0],
    }
    if len(every) > 1:
        left = {state: _in_state(states[1], state) for state in STATES}
        answer["against"] = {"name": every[1].label, **left, "plan": plans[1]}
    return answer


def _tell_plan(title: str, every: Sequence[Series], *, terminal: Terminal, seeds: Sequence[int] = ()) -> None:
    rows = []
    for series in every:
        states = {member.seed: member.state for member in series.members} or dict.fromkeys(seeds, "new")
        left = [f"{words}: {spelled(found)}" for state, words in STATES.items() if (found := _in_state(states, state))]
        if series.label:
            recipe = series.loaded.recipe
            rows.append(("against", describe_baseline(recipe) if series.label == BASELINE else recipe.title))
        rows += [("folder", series.reason), ("seeds", "; ".join(left))]
    terminal.plan(title, rows)


def _in_state(states: Mapping[int, str], wanted: str) -> list[int]:
    return [seed for seed, state in states.items() if state == wanted]


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {spelled(seeds)}"


def _write_request(series: Series, seeds: Sequence[int]) -> None:
    """repeat.json first: it tells the folder from that of a run, which recipe.yaml alone would make it."""
    series.place.write_json(series.place.repeat.name, {"seeds": list(seeds)})
    series.place.write_text(series.place.recipe.name, load.dump(series.loaded.recipe))


def _name(recipe: Recipe) -> str:
    return f"{recipe.title}-repeat"
