"""`swa sweep`: try values of a recipe's keys, and choose on validation images.

`runs/<name>-sweep-001` has a run folder per trial, an ordinary run: see `several_runs`. Which values a trial has, and
which process runs it, is said by the Optuna study of the sweep: see `sweep_study`. So the same command continues a
sweep, in as many processes and on as many machines as it is given.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swa_cli.analysis import sweep_metric
from swa_cli.analysis.run_output import RunOutput
from swa_cli.analysis.several_runs import making, newest
from swa_cli.analysis.sweep_end import finish, share_repeats
from swa_cli.analysis.sweep_study import (
    HOW_TO_REPLACE,
    JOURNAL,
    Settings,
    SweepStudy,
    best_of,
    close_storage,
    is_url,
    open_storage,
    require_optuna,
    require_url,
    without_password,
)
from swa_cli.analysis.sweep_table import Table
from swa_cli.analysis.sweep_trials import Sweep, launch, work
from swa_cli.checkpoint.run_folder import RESUMABLE_KEYS, RunFolder, make_next, read_json
from swa_cli.engine import failures, train
from swa_cli.engine.run import problems_with_data
from swa_cli.engine.user_code import make_importable
from swa_cli.errors import Terminated, UserError
from swa_cli.metrics import tasks
from swa_cli.metrics.metric import TaskMetrics
from swa_cli.recipe import load
from swa_cli.recipe.load import Loaded
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.space import Space, check
from swa_cli.report.terminal import Terminal
from swa_cli.units import count_text


@dataclass(frozen=True)
class Options:
    """The options of the command; None where the recipe and the space decide."""

    trials: int | None = None
    metric: str | None = None
    sampler: str | None = None
    pruner: str = "none"
    storage: str | None = None
    timeout_s: float | None = None
    seeds: tuple[int, ...] = ()
    top: int = 3
    processes: int = 1
    worker: Path | None = None  # the folder, in a process that `launch` has started

    @property
    def url(self) -> str | None:
        """The database, if the storage is one."""
        return self.storage if self.storage is not None and is_url(self.storage) else None

    @property
    def folder(self) -> Path | None:
        """The folder of the sweep, if the storage names one."""
        return None if self.storage is None or self.url is not None else Path(self.storage)

    @property
    def storage_text(self) -> str:
        """The entry of sweep.json."""
        return JOURNAL if self.url is None else without_password(self.url)


def sweep(
    loaded: Loaded,
    space: Space,
    recipes: Sequence[Loaded],
    *,
    options: Options,
    words: Sequence[str] = (),
    terminal: Terminal,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Run the trials that are not finished, and choose the best recipe by validation images.

    The newest folder of a sweep with the same recipe and settings is continued; without one, a new folder is made.

    Args:
        loaded: The recipe.
        space: The values of its keys to try.
        recipes: The recipe of each example of the space, as `space.read` returns them.
        options: The options of the command.
        words: The words of the command, which further processes are started with.
        terminal: Where to print.
        dry_run: Show the plan and the first trial, and write nothing.

    Raises:
        RecipeError: Problems of the recipe, or of a value to try; nothing was run.
        UserError: Missing data, no validation images, options that do not go together, or no trial has succeeded.
    """
    require_optuna()
    if options.url is not None:
        require_url(options.url)
    make_importable(loaded)
    with failures.before_a_run():
        metrics = tasks.find(loaded.recipe.task).metrics
    settings = _settings(loaded.recipe, space, recipes, options, metrics)
    limit = _limit(space, settings, options)
    _refuse_seeds_of_seeds(space, options)
    folder, reason = _choose(loaded.recipe, settings, options, terminal)
    if folder is None:  # fail before a folder is made
        _check_with_data(loaded, space, recipes, settings, terminal=terminal)
    rows = _plan_rows(settings, limit, options, metrics, reason)
    if dry_run:
        return _dry_run(loaded, recipes[0], settings, limit, folder, rows, terminal=terminal)
    if options.url is not None:
        close_storage(open_storage(Path(), options.url))  # fail before a folder is made
    if folder is None:
        folder = _make(loaded.recipe, settings, options, terminal)
    name = "sweep" if options.url is None else _study_name(loaded.recipe, settings)
    study = SweepStudy(folder.path, settings, storage=options.url, name=name)
    found = Sweep(loaded, settings, limit, metrics, folder, study, options.timeout_s)
    if options.worker is not None:
        work(found, terminal=terminal, table=None)
        if options.seeds and found.is_finished:  # else each process may have other trials for the best
            best = best_of(found.records(), is_lower_better=settings.is_lower_better)[: options.top]
            share_repeats(found, best, seeds=options.seeds, terminal=terminal)
        return {}
    if number := sum(record.is_finished for record in found.records()):
        rows.append(("trials", f"{number} of {limit} are finished"))
    terminal.plan(f"{loaded.recipe.title}, {count_text(limit, 'trial')} -> {folder.display_path}", rows)
    table = Table(found.settings, limit, metrics, terminal=terminal, processes=options.processes)
    table.skip(study.records())
    try:
        if options.processes == 1:
            work(found, terminal=terminal, table=table)
        else:
            launch(found, words, processes=options.processes, terminal=terminal, table=table)
        seeds = options.seeds if found.is_finished else ()
        if options.seeds and not seeds:
            terminal.note("the repeats with seeds follow once all trials are finished: the same command continues")
        return finish(found, seeds=seeds, top=options.top, terminal=terminal)
    except (KeyboardInterrupt, Terminated):
        terminal.warning("the sweep is stopped: run the same command again to continue")
        raise
    finally:
        study.close()


# What is to be done.


def _settings(
    recipe: Recipe, space: Space, recipes: Sequence[Loaded], options: Options, metrics: TaskMetrics
) -> Settings:
    metric = sweep_metric.choose(options.metric, recipes, metrics)
    sampler = options.sampler or ("grid" if space.is_finite and options.trials is None else "tpe")
    lower = sweep_metric.metric_of(metric, metrics).is_lower_better
    return Settings(space, metric, lower, sampler, recipe.seed, options.pruner, recipe.train.epochs)


def _limit(space: Space, settings: Settings, options: Options) -> int:
    """Return the number of trials.

    Raises:
        UserError: The space and the options do not say it, or contradict each other.
    """
    ranges = [each.word for each in space.parameters if hasattr(each.domain, "low")]
    if settings.sampler != "grid":
        if options.trials is None:
            reason = f"{ranges[0]} is a range" if ranges else f"--sampler {settings.sampler} draws any number of them"
            raise UserError(f"the number of trials is missing: {reason}", hint="add --trials 20")
        if options.trials > space.size:
            message = f"--trials {options.trials}: the values have {count_text(int(space.size), 'combination')}"
            raise UserError(message, hint=f"write --trials {space.size:.0f}, which tries each of them once")
        return options.trials
    if ranges:
        message = f"--sampler grid: {ranges[0]} is a range, which has no grid"
        raise UserError(message, hint="write a list of values, or --sampler tpe with --trials")
    size = int(space.size)
    if options.trials not in (None, size):
        message = f"--trials {options.trials}: the grid has {count_text(size, 'trial')}"
        raise UserError(message, hint="leave --trials out, or write --sampler random")
    return size


def _refuse_seeds_of_seeds(space: Space, options: Options) -> None:
    """Refuse repeats of trials that differ in the seed: with the seeds of the repeats, they would be the same.

    Raises:
        UserError: They are asked for.
    """
    word = next((each.word for each in space.parameters if each.key == "seed"), None)
    if options.seeds and word is not None:
        message = f"--seeds: repeats replace the seed, and the trials differ in it ({word})"
        raise UserError(message, hint=f"leave {word} out, or --seeds")


def _choose(recipe: Recipe, settings: Settings, options: Options, terminal: Terminal) -> tuple[RunFolder | None, str]:
    """Return the folder to continue, if there is one, and the reason of the choice.

    Raises:
        UserError: The folder of --storage holds another sweep.
    """
    if options.worker is not None:
        return RunFolder(options.worker), ""

    def other(folder: RunFolder) -> str | None:
        return _difference(folder, settings, options)

    if options.folder is None:
        return newest(
            recipe, _name(recipe), is_kind=lambda found: found.sweep.is_file(), terminal=terminal, other=other
        )
    folder = RunFolder(options.folder)
    if not folder.sweep.is_file():
        if folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir())):
            message = f"--storage {folder.path}: holds something else than a sweep"
            raise UserError(message, hint="name a new folder, or that of a sweep")
        return None, "is new"
    differences = load.differences(load.load(folder.recipe).recipe, recipe, ignored=RESUMABLE_KEYS)
    found = f"{differences[0][0]} is {differences[0][1]} there" if differences else other(folder)
    if found:
        raise UserError(f"--storage {folder.path}: holds another sweep ({found})", hint="name a new folder")
    return folder, "has the same recipe and is continued"


def _difference(folder: RunFolder, settings: Settings, options: Options) -> str | None:
    """Return which setting of a sweep differs in a folder, or None.

    Raises:
        UserError: Its sweep.json is not as swa writes it.
    """
    stored = read_json(folder.sweep, hint=HOW_TO_REPLACE)
    for key, now in {**settings.values, "storage": options.storage_text}.items():
        if key not in stored:
            raise UserError(f"{folder.sweep}: is not as swa writes it (no {key})", hint=HOW_TO_REPLACE)
        if stored[key] != now:
            return f"{key} is {json.dumps(stored[key], ensure_ascii=False)} there"
    return None


def _make(recipe: Recipe, settings: Settings, options: Options, terminal: Terminal) -> RunFolder:
    """Make the folder of a sweep, unless another process has made it just now."""
    root = Path(recipe.output.root) if options.folder is None else options.folder.absolute().parent
    with making(root, _name(recipe)):
        folder, _ = _choose(recipe, settings, options, terminal)
        if folder is None:
            folder = RunFolder(make_next(root, _name(recipe)) if options.folder is None else options.folder)
            folder.path.mkdir(exist_ok=True)
            # In this order: with recipe.yaml alone it would be the folder of a run.
            folder.write_json(folder.sweep.name, {**settings.values, "storage": options.storage_text})
            folder.write_text(folder.recipe.name, load.dump(recipe))
    return folder


def _study_name(recipe: Recipe, settings: Settings) -> str:
    """Return the name of the study in a database: the same for the same recipe and settings on every machine."""
    text = json.dumps([load.leaves(recipe, ignored=RESUMABLE_KEYS), settings.values], sort_keys=True)
    return f"{recipe.title}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _check_with_data(
    loaded: Loaded,
    space: Space,
    recipes: Sequence[Loaded],
    settings: Settings,
    *,
    terminal: Terminal,
) -> None:
    """Build the run of the first recipe, and check all recipes as `swa train` does with the data that it has read.

    Raises:
        RecipeError: Every problem of every value.
        UserError: The data are missing, or have no validation split; or pruning would compare what is not alike.
    """
    run = train.set_up(recipes[0], listeners=[RunOutput(terminal.part())])
    if run.context.source.val is None:
        message = f"{loaded.source}: a sweep chooses on validation images, and dataset.val is 0"
        raise UserError(message, hint="set dataset.val=10%")
    num_train = len(run.context.split("train"))

    check(loaded, space, further=lambda changed: problems_with_data(changed.recipe, run.context))
    if settings.pruner == "asha":
        firsts = {sweep_metric.first_measured(settings.metric, each.recipe, num_train=num_train) for each in recipes}
        if len(firsts) > 1:
            listed = " and ".join(f"{column} from epoch {epoch} on" for column, epoch in sorted(firsts)[:2])
            raise UserError(
                f"--pruner asha: trials would be compared by different things: {listed}",
                hint="add --metric val_loss, which each trial measures after each epoch, or leave --pruner out",
            )


def _plan_rows(
    settings: Settings, limit: int, options: Options, metrics: TaskMetrics, reason: str
) -> list[tuple[str, str]]:
    metric = sweep_metric.metric_of(settings.metric, metrics)
    rows = [(each.key, str(each.domain)) for each in settings.space.parameters]
    rows.append(("metric", f"{settings.metric}, {metric.direction} is better; test images are not looked at"))
    names = {"grid": "every combination", "tpe": "TPE", "random": "random"}
    sampler = names[settings.sampler] + ("" if settings.sampler == "grid" else f", seed {settings.seed}")
    rows.append(("sampler", f"{sampler}: {count_text(limit, 'trial')}"))
    if settings.pruner == "asha":
        rows.append(("pruner", f"ASHA, first after epoch {settings.min_epochs}, where the metric is measured"))
    if options.processes > 1:
        rows.append(("processes", str(options.processes)))
    rows.append(("folder", reason))
    return rows


def _dry_run(
    loaded: Loaded,
    first: Loaded,
    settings: Settings,
    limit: int,
    folder: RunFolder | None,
    rows: Sequence[tuple[str, str]],
    *,
    terminal: Terminal,
) -> dict[str, Any]:
    terminal.plan(f"{loaded.recipe.title}, {count_text(limit, 'trial')} (dry run)", rows)
    terminal.heading("the first combination of values")
    plan = train.train(first, listeners=[RunOutput(terminal.part())], dry_run=True)
    values = settings.values
    return {
        "command": "sweep",
        "dry_run": True,
        "run": None if folder is None else str(folder.path.resolve()),
        "trials": limit,
        **{key: values[key] for key in ("space", "metric", "direction", "sampler", "pruner")},
        "plan": plan,
    }


def _name(recipe: Recipe) -> str:
    return f"{recipe.title}-sweep"
