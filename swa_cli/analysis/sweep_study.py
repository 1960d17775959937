"""The Optuna study of a sweep: it draws a point for each trial, prunes, and gives a trial to one process at a time.

A point is a function of (seed, number of the trial, trials before it), and no trial before it has the same point. So a
sweep that was killed draws what it would have drawn: the sampler is made anew for each trial, on a copy of the study
with the trials of lower numbers. A process that works on a trial holds a lock in the folder of the sweep, which ends
with the process. So a trial that Optuna calls running, and whose lock is free, was killed: it is taken again, with the
same point and in the same folder.
"""

from __future__ import annotations

import io
import itertools
import socket
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

from swa_cli import signals
from swa_cli.checkpoint import locks
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.data.randomness import derive_seed
from swa_cli.errors import UserError
from swa_cli.recipe.space import DIGITS, MAX_DIGITS, Choices, Parameter, Space, domain_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

FORMAT = 1  # of sweep.json
JOURNAL = "journal.log"
HOW_TO_REPLACE = "move the folder elsewhere"  # one whose sweep.json is damaged
DRAWING = "draw"  # the lock of drawing trials, beside one per trial
ORPHAN_AFTER = timedelta(minutes=1)  # for a trial of a database that nobody has put his name on
DRAWN_POLL_S = 0.1  # of the points that other machines are drawing
TPE_DRAWS = 10  # for a trial, before points are drawn at random
OPENING_TRIES, OPENING_POLL_S = 50, 0.1  # of a new database, whose tables several processes may make at once
REDUCTION = 4  # of the trials, the best quarter goes on to the next rung (Li et al. 2020, "A System for ... (ASHA)")
NUM_RUNGS = 2  # of pruning: at 1/16 and 1/4 of the epochs
COMPLETE, PRUNED, FAILED, RUNNING = "complete", "pruned", "failed", "running"


@dataclass(frozen=True)
class Settings:
    """What the trials of a sweep depend on besides its recipe; two sweeps with other settings are different ones."""

    space: Space
    metric: str  # column of metrics.csv
    is_lower_better: bool
    sampler: str  # grid | tpe | random
    seed: int
    pruner: str  # asha | none
    epochs: int  # of the recipe, from which the rungs of pruning follow

    @property
    def direction(self) -> str:
        """The direction in Optuna's words."""
        return "minimize" if self.is_lower_better else "maximize"

    @property
    def values(self) -> dict[str, Any]:
        """The content of sweep.json, but for the storage."""
        asha = {"name": "asha", "min_epochs": self.min_epochs, "reduction": REDUCTION}
        return {
            "format": FORMAT,
            "space": self.space.values,
            "metric": self.metric,
            "direction": self.direction,
            "sampler": {"name": self.sampler, "seed": self.seed},
            "pruner": {"name": "none"} if self.pruner == "none" else asha,
        }

    @property
    def min_epochs(self) -> int:
        """The epochs after which pruning looks at a trial first."""
        return max(self.epochs // REDUCTION**NUM_RUNGS, 1)

    @property
    def rungs(self) -> list[int]:
        """The epochs after which pruning compares trials: at most those of `NUM_RUNGS`, and at least the first."""
        steps = [self.min_epochs * REDUCTION**k for k in range(NUM_RUNGS)]
        return [step for step in steps if step <= max(self.epochs // REDUCTION, self.min_epochs)]


@dataclass(frozen=True)
class Record:
    """A trial as plain values; `texts` are the values of its point as they stand in KEY=VALUE."""

    number: int
    state: str
    texts: dict[str, str]
    value: float | None
    reason: str  # why it failed
    seconds: float | None  # so far

    @property
    def name(self) -> str:
        """The name of its run folder."""
        return trial_name(self.number)

    @property
    def values(self) -> dict[str, Any]:
        """The entry of result.json; `run` is relative to the folder of the sweep."""
        reason = {"reason": self.reason} if self.reason else {}
        known = {"number": self.number, "state": self.state, "params": self.texts, "value": self.value}
        return {**known, "seconds": self.seconds, "run": self.name, **reason}

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.state != RUNNING


def settings_of(stored: Mapping[str, Any], *, epochs: int) -> Settings:
    """Return the settings of a sweep.json.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: It is not as swa writes it.
    """
    if not isinstance(stored["metric"], str):
        raise ValueError("a metric without a name")
    parameters = [Parameter(key, domain_of(values), "") for key, values in stored["space"].items()]
    return Settings(
        Space(tuple(parameters)),
        stored["metric"],
        stored["direction"] == "minimize",
        stored["sampler"]["name"],
        stored["sampler"]["seed"],
        stored["pruner"]["name"],
        epochs,
    )


def trial_name(number: int) -> str:
    """Return the name of the run folder of a trial."""
    return f"trial-{number:03d}"


def require_optuna() -> ModuleType:
    """Return the package optuna, which prints warnings only.

    Raises:
        UserError: It is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError(f"a sweep needs the package optuna: {error}", hint="pip install 'swa-cli[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class SweepStudy:
    """The trials of a sweep.

    Args:
        folder: The folder of the sweep, which exists.
        settings: What the trials depend on.
        storage: The URL of a database; None for the journal in the folder.
        name: Of the study in a database, where it has to be the same on all machines.
        reads_only: Write nothing; a study that is not there yet has no trials.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        *,
        storage: str | None = None,
        name: str = "sweep",
        reads_only: bool = False,
    ) -> None:
        self.folder, self.settings = folder, settings
        self._optuna = optuna = require_optuna()
        self.is_local = storage is None  # else machines share it that may not see each other's folders
        self._owner = f"{socket.gethostname()}:{folder.resolve()}"  # of the trials whose locks are in this folder
        self._lock_of = RunFolder(folder).lock_of
        self._storage = open_storage(folder, storage)
        pruner = optuna.pruners.NopPruner()
        if settings.pruner == "asha":
            pruner = optuna.pruners.SuccessiveHalvingPruner(
                min_resource=settings.min_epochs, reduction_factor=REDUCTION
            )
        sampler = optuna.samplers.RandomSampler(seed=0)  # never asked: see `_draw`
        if reads_only and name not in optuna.get_all_study_names(self._storage):
            self.study = optuna.create_study(direction=settings.direction)  # in memory
        elif reads_only:
            self.study = optuna.load_study(study_name=name, storage=self._storage, sampler=sampler, pruner=pruner)
        else:
            with locks.holding(self._lock_of(DRAWING)):
                self.study = optuna.create_study(
                    study_name=name,
                    storage=self._storage,
                    sampler=sampler,
                    pruner=pruner,
                    direction=settings.direction,
                    load_if_exists=True,
                )

    def close(self) -> None:
        """Close the connections to a database."""
        close_storage(self._storage)

    def records(self) -> list[Record]:
        """Return all trials in the order of their numbers."""
        states = self._optuna.trial.TrialState
        names = {states.COMPLETE: COMPLETE, states.PRUNED: PRUNED, states.FAIL: FAILED}
        return [
            Record(
                trial.number,
                names.get(trial.state, RUNNING),
                self.settings.space.texts(trial.user_attrs.get("point", {})),
                trial.value if trial.state == states.COMPLETE else None,
                trial.user_attrs.get("reason", ""),
                trial.user_attrs.get("seconds"),
            )
            for trial in self.study.get_trials(deepcopy=False)
        ]

    def claim(self, *, limit: int, may_draw: bool = True) -> Claim | None:
        """Take a trial that was killed, or else draw the next one of the first `limit`; None if there is none now."""
        with locks.holding(self._lock_of(DRAWING)):
            trials = self.study.get_trials(deepcopy=False)
            for trial in trials[:limit]:
                if not trial.state.is_finished() and self._is_ours(trial):
                    claimed = self._take(trial.number)
                    if claimed is not None:
                        return claimed
            if may_draw and len(trials) < limit:
                number = self.study.ask().number
                if number < limit:  # another machine may have drawn the last one meanwhile
                    return self._take(number)
        return None

    def is_to_be_pruned(self, number: int) -> bool:
        """Return whether a trial is to be pruned after its last report, by the rungs that other trials have reached.

        The pruner of Optuna says it once: it stores that the rung is reached, and a process that is killed then loses
        the answer. So it is asked about a copy of the trial that has reached only the rungs of earlier reports. It also
        has rungs up to the end of a run: the report counts for the last of ours at most, and none does after it.
        """
        trials = self.study.get_trials()
        trial = trials.pop(number)
        if self.settings.pruner == "none" or not trial.intermediate_values:
            return False
        *before, last = sorted(trial.intermediate_values)
        earlier, rungs = max(before, default=0), self.settings.rungs
        if earlier >= rungs[-1]:
            return False
        trial.intermediate_values = {min(last, rungs[-1]): trial.intermediate_values[last]}
        left = {f"completed_rung_{k}" for k, rung in enumerate(rungs) if rung > earlier}
        trial.system_attrs = {key: value for key, value in trial.system_attrs.items() if key not in left}
        copy = self._optuna.create_study(direction=self.settings.direction, pruner=self.study.pruner)
        copy.add_trials([*trials, trial])
        pruned = copy.pruner.prune(copy, copy.get_trials()[-1])
        for key, value in copy.get_trials(deepcopy=False)[-1].system_attrs.items():
            self._storage.set_trial_system_attr(trial._trial_id, key, value)
        return pruned

    def importances(self) -> dict[str, float]:
        """Return the share of each parameter in the spread of the values (PED-ANOVA); empty where nothing is known."""
        complete = [record for record in self.records() if record.state == COMPLETE]
        values = {record.value for record in complete}
        if len(values) < 2:
            return {}
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of sections that few trials have
            found: dict[str, float] = self._optuna.importance.get_param_importances(self.study)
        return found

    def _take(self, number: int) -> Claim | None:
        """Lock a trial and make sure that it has its point; None if another process has it, or it is finished."""
        file = locks.take(self._lock_of(trial_name(number)))
        if file is None:
            return None
        with ExitStack() as stack:
            stack.enter_context(file)
            trial = self.study.get_trials(deepcopy=False)[number]  # anew: it may have been finished just now
            if trial.state.is_finished():
                return None
            self._storage.set_trial_user_attr(trial._trial_id, "owner", self._owner)
            claim = Claim(self, number, self._point(trial), file)
            stack.pop_all()  # the claim closes it
        return claim

    def _is_ours(self, trial: FrozenTrial) -> bool:
        """Return whether the lock of a trial would be in this folder: a database has trials of other machines too."""
        if self.is_local:
            return True
        owner = trial.user_attrs.get("owner")
        if owner is None and trial.datetime_start is not None:
            return datetime.now() - trial.datetime_start > ORPHAN_AFTER
        return bool(owner == self._owner)

    def _point(self, trial: FrozenTrial) -> dict[str, Any]:
        """Return the point of a trial, which is drawn once and stored before anything else knows it."""
        point = trial.user_attrs.get("point")
        if point is None:
            point = self._draw(trial.number)
            self._storage.set_trial_user_attr(trial._trial_id, "point", point)
        for each in self.settings.space.parameters:
            if each.key in point and each.key not in trial.params:
                distribution = self._distribution(each)
                inner = distribution.to_internal_repr(point[each.key])
                self._storage.set_trial_param(trial._trial_id, each.key, inner, distribution)
        return dict(point)

    def _draw(self, number: int) -> dict[str, Any]:
        """Draw the point of a trial: one that no trial of a lower number has, for a second run would be the same."""
        space = self.settings.space
        if self.settings.sampler == "grid":
            return next(point for index, point in enumerate(space.grid()) if index == number)
        before = self._drawn_before(number)
        taken = {tuple(space.texts(trial.user_attrs["point"]).items()) for trial in before}
        return next(point for point in self._draws(number, before) if tuple(space.texts(point).items()) not in taken)

    def _draws(self, number: int, before: Sequence[FrozenTrial]) -> Iterator[dict[str, Any]]:
        """Yield points for a trial: draws of the sampler, each with ever more digits of its numbers.

        TPE draws what it has found good again and again. What few points are left of a list is found at random.
        """
        settings, samplers = self.settings, self._optuna.samplers
        seed = derive_seed(settings.seed, "sweep", number) % 2**32  # numpy takes no more bits
        sampler = samplers.TPESampler(seed=seed) if settings.sampler == "tpe" else samplers.RandomSampler(seed=seed)
        copy = self._optuna.create_study(sampler=sampler, direction=settings.direction)
        copy.add_trials(before)
        for attempt in itertools.count(1):
            drawn = settings.space.draw(partial(self._suggest, copy.ask()))
            for digits in range(DIGITS, MAX_DIGITS + 1):
                yield settings.space.rounded(drawn, digits=digits)
            if attempt == TPE_DRAWS:
                copy.sampler = samplers.RandomSampler(seed=seed)

    def _drawn_before(self, number: int) -> list[FrozenTrial]:
        """Return the trials of lower numbers; wait for the points that other machines are drawing.

        A machine that was killed in this moment has left none, so that the point is drawn here.
        """
        since = time.monotonic()
        while True:
            trials = self.study.get_trials(deepcopy=False)[:number]
            drawn = [trial for trial in trials if "point" in trial.user_attrs]
            # What another program has ended without a point never gets one.
            missing = [trial for trial in trials if "point" not in trial.user_attrs and not trial.state.is_finished()]
            if not missing:
                return drawn
            if self.is_local or time.monotonic() - since > ORPHAN_AFTER.total_seconds():
                self._point(missing[0])
            else:
                signals.check()
                time.sleep(DRAWN_POLL_S)

    def _suggest(self, trial: Any, parameter: Parameter) -> Any:
        return trial._suggest(parameter.key, self._distribution(parameter))

    def _distribution(self, parameter: Parameter) -> BaseDistribution:
        domain, kinds = parameter.domain, self._optuna.distributions
        if isinstance(domain, Choices):
            found: BaseDistribution = kinds.CategoricalDistribution(domain.texts)
        elif domain.is_whole:
            found = kinds.IntDistribution(int(domain.low), int(domain.high), log=domain.is_log)
        else:
            found = kinds.FloatDistribution(domain.low, domain.high, log=domain.is_log)
        return found


class Claim:
    """A trial that this process runs; leaving the block gives it up, finished or not."""

    def __init__(self, study: SweepStudy, number: int, point: Mapping[str, Any], file: io.FileIO) -> None:
        optuna = require_optuna()
        self.number, self.texts = number, study.settings.space.texts(point)
        self._study, self._file, self._states = study, file, optuna.trial.TrialState
        frozen = study.study.get_trials(deepcopy=False)[number]
        self._trial = optuna.trial.Trial(study.study, frozen._trial_id)
        self._reported = dict(frozen.intermediate_values)
        self._since = time.monotonic() - frozen.user_attrs.get("seconds", 0.0)

    @property
    def name(self) -> str:
        """The name of the run folder."""
        return trial_name(self.number)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()

    def report(self, epoch: int, value: float) -> bool:
        """Report the metric after an epoch; return whether the trial is to be pruned.

        An epoch that was reported before the process was killed counts as it was then.
        """
        if epoch not in self._reported:
            self._reported[epoch] = value
            self._trial.report(value, step=epoch)
        return epoch == max(self._reported) and self._study.is_to_be_pruned(self.number)

    @property
    def was_pruned(self) -> bool:
        """Whether the trial was to be pruned after its last report, and its process was killed before it was."""
        return bool(self._reported) and self._study.is_to_be_pruned(self.number)

    def record_seconds(self) -> None:
        """Record the time that the trial has taken, in processes that were stopped or killed too."""
        self._trial.set_user_attr("seconds", round(time.monotonic() - self._since, 3))

    def finish(self, state: str, *, value: float | None = None, reason: str = "") -> None:
        """Record how the trial ended: `COMPLETE` with a value, `PRUNED`, or `FAILED` for a reason."""
        self.record_seconds()
        if reason:
            self._trial.set_user_attr("reason", reason)
        names = {COMPLETE: self._states.COMPLETE, PRUNED: self._states.PRUNED, FAILED: self._states.FAIL}
        if state == COMPLETE:
            assert value is not None, "a trial without a value is failed"
            self._study.study.tell(self.number, value)
        else:
            self._study.study.tell(self.number, state=names[state])


_URL_HINT = "write one such as postgresql://user:password@host:5432/database, or name a folder"


def is_url(storage: str) -> bool:
    """Return whether a storage is a database, not a folder."""
    return "://" in storage


def without_password(storage: str) -> str:
    """Return the URL of a database as it may be shown and stored."""
    from sqlalchemy.engine import make_url

    return make_url(storage).render_as_string(hide_password=True)


def require_url(url: str) -> None:
    """Refuse what is no URL of a database.

    Raises:
        UserError: It is none.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        make_url(url)
    except (ArgumentError, ValueError) as error:  # ValueError: a port that is no number
        raise UserError(f"--storage: is no URL of a database ({error})", hint=_URL_HINT) from error


def open_storage(folder: Path, url: str | None) -> BaseStorage:
    """Open the journal of a folder, or a database.

    Raises:
        UserError: The journal is not as swa writes it, or the database cannot be opened.
    """
    require_optuna()
    if url is None:
        from swa_cli.analysis.sweep_journal import open_journal

        return open_journal(folder / JOURNAL)
    from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

    try:
        storage = _open_database(url)
    except NoSuchModuleError as error:
        raise UserError(f"--storage: {error}", hint=_URL_HINT) from error
    except (SQLAlchemyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        message = f"--storage {without_password(url)}: cannot be opened ({reason})"
        raise UserError(message, hint="start the database, or name a folder that all machines see") from error
    return storage


def _open_database(url: str) -> BaseStorage:
    """Open a database and make its tables; again where another process has made one of them at the same time."""
    from sqlalchemy.exc import DBAPIError, IntegrityError

    for _ in range(OPENING_TRIES):
        try:
            return require_optuna().storages.RDBStorage(url)
        except DBAPIError as error:
            if not isinstance(error, IntegrityError) and "already exists" not in str(error):
                raise
        time.sleep(OPENING_POLL_S)
    return require_optuna().storages.RDBStorage(url)


def close_storage(storage: BaseStorage) -> None:
    """Close the connections to a database."""
    storage.remove_session()
    if hasattr(storage, "engine"):
        storage.engine.dispose()


def best_of(records: Sequence[Record], *, is_lower_better: bool) -> list[Record]:
    """Return the complete trials, the best first; of equal ones the earlier."""
    complete = [record for record in records if record.state == COMPLETE and record.value is not None]
    return sorted(complete, key=lambda record: (record.value or 0.0) * (1 if is_lower_better else -1))


def folder_of(sweep: RunFolder, number: int) -> RunFolder:
    """Return the run folder of a trial."""
    return RunFolder(sweep.path / trial_name(number))
