"""`swa repeat`: run a recipe with several seeds and report them together.

`runs/<name>-repeat-001` has a run folder per seed, an ordinary run: see `several_runs`. The baseline, or another recipe
to compare with, is a repeat in a folder of its own, run seed by seed beside it. `repeat_seeds` runs what is left to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from swa_cli.analysis.compare import Result, over_pairs, over_seeds, read_result
from swa_cli.analysis.repeat_seeds import (
    Series,
    describe,
    members_of,
    newest_repeat,
    opened,
    require_same_samples,
    run_seeds,
    seeds_text,
    write_result,
)
from swa_cli.analysis.run_output import RunOutput
from swa_cli.analysis.several_runs import STATES
from swa_cli.checkpoint.run_folder import RESUMABLE_KEYS, RunFolder
from swa_cli.engine import failures, train
from swa_cli.engine.user_code import make_importable
from swa_cli.errors import UserError
from swa_cli.metrics import tasks
from swa_cli.metrics.metric import TaskMetrics
from swa_cli.recipe import load
from swa_cli.recipe.load import Loaded
from swa_cli.recipe.variants import BASELINE, baseline_of, describe_baseline
from swa_cli.report.seeds import Against, seed_ranges, seed_summary
from swa_cli.report.terminal import Terminal


def repeat(
    loaded: Loaded,
    seeds: Sequence[int],
    *,
    terminal: Terminal,
    against: Loaded | str | None = None,
    dry_run: bool = False,
    at: Path | None = None,
    waits: bool = True,
) -> dict[str, Any]:
    """Run the seeds that are not finished and that no other process works on, and report all of them.

    The newest repeat folder with the same recipe is continued; without one, a new folder is made. Seeds of other
    processes are waited for, and run here if those processes end before them.

    The seed of the recipe itself is ignored. `against` is another recipe, or `baseline`, to run with the same seeds
    and to compare pairwise. `dry_run` shows the plan of the first seed and the seeds to run, and writes nothing. `at`
    is the folder, if it is not to be chosen. Without `waits` the answer is empty while other processes work on seeds.

    Raises:
        RecipeError: Problems of a recipe; nothing was run.
        UserError: Missing data or device, a folder that does not fit, or a seed that failed (exit code 1).
    """
    make_importable(loaded)
    with failures.before_a_run():
        metrics = tasks.find(loaded.recipe.task).metrics
    every = [_series(loaded, "", terminal, at=at), *_others(loaded, against, terminal)]
    if dry_run:
        return _dry_run(every, seeds, terminal=terminal)
    for series in every:  # fail before a folder is made
        if series.folder is None:
            run = train.set_up(
                series.loaded.with_seed(seeds[0]), listeners=[RunOutput(terminal.part())], purpose="train"
            )
            if series is every[0]:  # two datasets at once may not fit into memory
                series.ready[seeds[0]] = run
    with ExitStack() as stack:
        logs = [stack.enter_context(opened(series, seeds, terminal)) for series in every]
        for series in every:
            for member in series.members:
                if member.state == "finished":
                    series.results[member.seed] = read_result(member.folder.result, metrics=metrics)
            require_same_samples(series)
        terminal.attach_log(logs[0])
        for series in every:
            describe(series.place, series.loaded.recipe, seeds)
        _tell_plan(
            f"{loaded.recipe.title}, {len(seeds)} seeds -> {every[0].place.display_path}",
            every,
            seeds,
            terminal=terminal,
        )
        if not run_seeds(every, seeds, metrics=metrics, terminal=terminal, waits=waits):
            return {}
        if len(every) > 1:
            write_result(every[1].place, _answer(every[1], seeds, metrics=metrics))
        return _report(every, seeds, metrics=metrics, terminal=terminal)


def _series(loaded: Loaded, label: str, terminal: Terminal, *, at: Path | None = None) -> Series:
    if at is not None:
        at.mkdir(parents=True, exist_ok=True)
        return Series(loaded, label, RunFolder(at), "is that of the trial")
    return Series(loaded, label, *newest_repeat(loaded.recipe, terminal))


def _others(loaded: Loaded, against: Loaded | str | None, terminal: Terminal) -> list[Series]:
    """Return the recipe to compare with, if there is one; refuse an equal one, and one of another task."""
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


def _answer(series: Series, seeds: Sequence[int], *, metrics: TaskMetrics) -> dict[str, Any]:
    """Return the results of the seeds of one recipe."""
    require_same_samples(series)
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
    """Compare the seeds, and the recipes if there are two; write result.json and show the table."""
    answer = _answer(every[0], seeds, metrics=metrics)
    weights, compared = answer["weights"], {seed: every[0].results[seed][1] for seed in seeds}
    for name, row in weights.items():
        if missing := [seed for seed in compared if seed not in row["seeds"]]:
            terminal.warning(f"{name} is missing in {seeds_text(missing)}: only the other seeds count for it")
    for key in ("device", "precision"):
        kinds = dict.fromkeys(getattr(result, key) for result in compared.values())
        if len(kinds) > 1:
            terminal.warning(f"the seeds ran with {key} {' and '.join(kinds)}: this adds to their spread")
    against = _compare(answer, every[1], compared, metrics=metrics) if len(every) > 1 else None
    write_result(every[0].place, answer)
    split, samples = answer["split"], answer["samples"]
    terminal.print(seed_summary(weights, split=split, samples=samples, seeds=seeds, metrics=metrics, against=against))
    return answer


def _compare(
    answer: dict[str, Any], series: Series, compared: Mapping[int, Result], *, metrics: TaskMetrics
) -> Against:
    """Add to an answer how it differs, seed by seed, from another recipe; return the rows of the table."""
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
        "recipe": series.loaded.recipe.values(),
        "outcome": scores,
        **{key: other[key] for key in ("run", "runs", "weights", "seconds")},
    }
    if series.label == BASELINE:
        answer["against"]["schedule"] = describe_baseline(series.loaded.recipe)
    return Against(series.label, scores, pairs)


def _dry_run(every: Sequence[Series], seeds: Sequence[int], *, terminal: Terminal) -> dict[str, Any]:
    for series in every:
        if series.folder is not None:
            series.members = members_of(series.folder, series.loaded.recipe, seeds)
    loaded, folder = every[0].loaded, every[0].folder
    _tell_plan(f"{loaded.recipe.title}, {len(seeds)} seeds (dry run)", every, seeds, terminal=terminal)
    plans = []
    for series in every:
        terminal.heading(f"seed {seeds[0]} (1 of {len(seeds)})" + (f", {series.label}" if series.label else ""))
        output = RunOutput(terminal.part())
        plans.append(train.train(series.loaded.with_seed(seeds[0]), listeners=[output], dry_run=True))
    answer = {
        "command": "repeat",
        "dry_run": True,
        "run": None if folder is None else str(folder.path.resolve()),
        "seeds": list(seeds),
        **{state: every[0].in_state(state, seeds) for state in STATES},
        "plan": plans[0],
    }
    if len(every) > 1:
        left = {state: every[1].in_state(state, seeds) for state in STATES}
        answer["against"] = {"name": every[1].label, **left, "plan": plans[1]}
    return answer


def _tell_plan(title: str, every: Sequence[Series], seeds: Sequence[int], *, terminal: Terminal) -> None:
    rows = []
    for series in every:
        found = {words: series.in_state(state, seeds) for state, words in STATES.items()}
        left = [f"{words}: {seed_ranges(numbers)}" for words, numbers in found.items() if numbers]
        if series.label:
            recipe = series.loaded.recipe
            rows.append(("against", describe_baseline(recipe) if series.label == BASELINE else recipe.title))
        rows += [("folder", series.reason), ("seeds", "; ".join(left))]
    terminal.plan(title, rows)
