"""The study of a sweep: points are a function of what came before, and a trial belongs to one process."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest

from swa_cli.analysis import sweep_study
from swa_cli.analysis.sweep_study import (
    COMPLETE,
    FAILED,
    PRUNED,
    Settings,
    SweepStudy,
    best_of,
    close_storage,
    open_storage,
    settings_of,
)
from swa_cli.recipe.space import Choices, Parameter, Range, Space

SPACE = Space(
    (
        Parameter("optimizer.lr", Range(1e-3, 1.0, is_log=True), ""),
        Parameter("swa", Choices(("null", "{start: 50%}")), ""),
        Parameter("swa.lr", Range(0.01, 0.1), ""),
    )
)


def settings(sampler: str = "tpe", *, pruner: str = "none", epochs: int = 16, space: Space = SPACE) -> Settings:
    return Settings(space, "val_loss", True, sampler, 3, pruner, epochs)


def value_of(texts: dict[str, str]) -> float:
    """A stand-in for training: a loss that depends on the point alone."""
    return (float(texts["optimizer.lr"]) - 0.1) ** 2 + float(texts.get("swa.lr", 0.5))


def run(folder: Path, *, until: int, killed: tuple[int, ...] = (), sampler: str = "tpe") -> list[dict[str, str]]:
    """Run trials; in the trials `killed`, the process ends inside, and another one goes on."""
    folder.mkdir(exist_ok=True)
    study, left = SweepStudy(folder, settings(sampler)), list(killed)
    while (claim := study.claim(limit=until)) is not None:
        if claim.number in left:
            left.remove(claim.number)
            claim.__exit__(None, None, None)  # the lock ends with the process
            study = SweepStudy(folder, settings(sampler))
            continue
        with claim:
            claim.finish(COMPLETE, value=value_of(claim.texts))
    return [record.values["params"] | {"value": record.value} for record in study.records()]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_sweep_killed_five_times_has_the_trials_of_an_undisturbed_one(tmp_path: Path, sampler: str) -> None:
    """Points and values of 14 trials, beyond the random start of TPE, against the same with five kills."""
    whole = run(tmp_path / "whole", until=14, sampler=sampler)
    killed = run(tmp_path / "killed", until=14, killed=(0, 3, 11, 11, 13), sampler=sampler)
    assert len(whole) == 14
    assert killed == whole
    assert len({json.dumps(params) for params in whole}) > 10


def test_more_trials_continue_the_same_sequence(tmp_path: Path) -> None:
    """6 trials, then 14, against 14 at once."""
    run(tmp_path / "more", until=6)
    assert run(tmp_path / "more", until=14) == run(tmp_path / "whole", until=14)


SWITCHED = (Parameter("swa", Choices(("null", "{start: 50%}")), ""), Parameter("swa.lr", Choices(("0.1", "0.2")), ""))
WHOLE = Parameter("swa.every", Range(1, 4, "step", is_log=True, is_whole=True), "")
FLAT = Parameter("optimizer.lr", Range(0.1, 0.1002), "")  # three numbers of four digits


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize(
    ("parameters", "trials", "size"), [(SWITCHED, 3, 3), ((*SWITCHED, WHOLE), 9, 9), ((FLAT,), 12, math.inf)]
)
def test_no_point_is_drawn_twice(
    tmp_path: Path, sampler: str, parameters: tuple[Parameter, ...], trials: int, size: float
) -> None:
    """As many trials as a space has points, or more than one has of four digits: all differ, also after a kill."""
    space = Space(parameters)
    assert space.size == size
    found = []
    for name, num_first in (("whole", trials), ("killed", 1)):
        (tmp_path / name).mkdir()
        for limit in (num_first, trials):
            study = SweepStudy(tmp_path / name, settings(sampler, space=space))
            while (claim := study.claim(limit=limit)) is not None:
                with claim:
                    claim.finish(COMPLETE, value=1.0)
        found.append([record.texts for record in study.records()])
    assert found[0] == found[1]
    assert len({json.dumps(texts) for texts in found[0]}) == trials


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_machine_waits_for_the_point_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_killed: bool
) -> None:
    """A database, and a machine that draws trial 0 or dies of it: trial 1 of another one has the point that is left."""
    space, url = Space(SWITCHED[:1]), f"sqlite:///{tmp_path / 'study.db'}"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, second = (SweepStudy(tmp_path / name, settings(space=space), storage=url, name="s") for name in ("a", "b"))
    first.study.ask()
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds: float) -> None:
        clock.now += 100 * seconds
        if not is_killed:
            first._take(0).__exit__(None, None, None)  # what follows in `claim`

    monkeypatch.setattr(sweep_study, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    with second.claim(limit=2) as claim:
        assert claim.number == 1
        found = [record.texts["swa"] for record in second.records()]
        assert (sorted(found), claim.texts["swa"]) == (["null", "{start: 50%}"], found[1])
    assert (clock.now > 60) == is_killed
    first.close()
    second.close()


def test_a_trial_that_ended_without_a_point_is_passed_over(tmp_path: Path) -> None:
    """A trial that another program has failed, against the points of the trials after it: those of an empty study."""
    study = SweepStudy(tmp_path, settings(space=Space(SWITCHED[:1])))
    number = study.study.ask().number
    study.study.tell(number, state=optuna.trial.TrialState.FAIL)
    points = []
    while (claim := study.claim(limit=3)) is not None:
        with claim:
            points.append(claim.texts["swa"])
            claim.finish(COMPLETE, value=1.0)
    assert sorted(points) == ["null", "{start: 50%}"]


def test_two_processes_share_the_trials(tmp_path: Path) -> None:
    """Two studies on one folder: never the same trial, and what one leaves the other takes, with the same point."""
    first, second = (SweepStudy(tmp_path, settings("random")) for _ in range(2))
    claims = [study.claim(limit=3) for study in (first, second, first)]
    assert [claim.number for claim in claims if claim] == [0, 1, 2]
    assert second.claim(limit=3) is None
    dead = claims[0]
    dead.__exit__(None, None, None)
    again = second.claim(limit=3)
    assert (again.number, again.texts) == (0, dead.texts)
    claims[1].finish(COMPLETE, value=1.0)
    claims[1].__exit__(None, None, None)
    assert second.claim(limit=3) is None, "finished, or run by the first"
    for claim in (again, claims[2]):
        claim.__exit__(None, None, None)


def test_a_point_is_kept_if_the_process_ends_while_it_is_drawn(tmp_path: Path) -> None:
    """A trial that Optuna has numbered and that has no values yet, against the undisturbed first trial."""
    study = SweepStudy(tmp_path, settings())
    study.study.ask()
    with study.claim(limit=1) as claim:
        assert claim.number == 0
    (tmp_path / "other").mkdir()
    with SweepStudy(tmp_path / "other", settings()).claim(limit=1) as undisturbed:
        assert claim.texts == undisturbed.texts


def test_a_database_is_shared(tmp_path: Path) -> None:
    """SQLite under two folders, as two machines have them: the trials have consecutive numbers and other points."""
    url = f"sqlite:///{tmp_path / 'study.db'}"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, second = (SweepStudy(tmp_path / name, settings(), storage=url, name="s") for name in ("a", "b"))
    with first.claim(limit=2) as one, second.claim(limit=2) as two:
        assert (one.number, two.number) == (0, 1)
        assert one.texts != two.texts
        one.finish(COMPLETE, value=1.0)
    assert second.records()[0].state == COMPLETE
    first.close()
    second.close()


def test_a_new_database_is_opened_by_two_at_once(tmp_path: Path) -> None:
    """A second process that makes the tables just as the first one begins to: both can work with them."""
    from sqlalchemy import Engine, event

    url, others = f"sqlite:///{tmp_path / 'study.db'}", []

    def open_second(_: object, __: object, statement: str, *more: object) -> None:
        if "CREATE TABLE" in statement and not others:
            others.append(None)
            others.append(open_storage(tmp_path, url))

    event.listen(Engine, "before_cursor_execute", open_second)
    try:
        first = open_storage(tmp_path, url)
    finally:
        event.remove(Engine, "before_cursor_execute", open_second)
    for storage in (first, others[1]):
        assert storage.get_all_studies() == []
        close_storage(storage)


@pytest.mark.parametrize(("epochs", "rungs"), [(2, [1]), (5, [1]), (16, [1, 4]), (20, [1, 4])])
def test_asha_compares_trials_in_the_first_quarter_alone(tmp_path: Path, epochs: int, rungs: list[int]) -> None:
    """A trial that is worse from some epoch on, against one that is better: pruned at 1/16 and 1/4, never later.

    A metric that is measured at the end of a run for the first time counts for both rungs.
    """
    study = SweepStudy(tmp_path, settings("random", pruner="asha", epochs=epochs))
    with study.claim(limit=99) as first:
        assert not any(first.report(epoch, 1.0) for epoch in range(1, epochs + 1))
        first.finish(COMPLETE, value=1.0)
    found = []
    for epoch in range(1, epochs + 1):
        with study.claim(limit=99) as claim:
            told = [claim.report(each, 2.0 if each >= epoch else 0.5 / (claim.number + 1)) for each in range(1, epochs)]
            found += [told.index(True) + 1] if any(told) else []
            claim.finish(PRUNED, value=None)
    assert sorted(set(found)) == rungs
    for loss, is_pruned in ((0.0, False), (3.0, True)):
        with study.claim(limit=999) as late:
            assert late.report(epochs, loss) is is_pruned
            late.finish(PRUNED)


def test_asha_prunes_the_worse_trials_and_not_the_first(tmp_path: Path) -> None:
    """Losses 1, 2, 3 after epoch 1 of 16: the first goes on, the worse ones end.

    Asked again after a kill, also in another process, the answer is the same.
    """
    study = SweepStudy(tmp_path, settings(pruner="asha"))
    assert study.settings.min_epochs == 1
    told = []
    for loss in (1.0, 2.0, 0.5, 3.0):
        with study.claim(limit=4) as claim:
            told.append(claim.report(1, loss))
            assert claim.report(1, loss) is claim.was_pruned is told[-1]
        with SweepStudy(tmp_path, settings(pruner="asha")).claim(limit=4) as claim:
            assert claim.number == len(told) - 1
            assert claim.was_pruned is claim.report(1, loss) is told[-1]
            claim.finish(PRUNED if told[-1] else COMPLETE, value=None if told[-1] else loss)
    assert told == [False, True, False, True]
    assert [record.state for record in study.records()] == [COMPLETE, PRUNED, COMPLETE, PRUNED]


def test_importances_of_a_section_that_one_trial_lacks(tmp_path: Path) -> None:
    """A grid of five trials, of which one has no swa: a share of each key, and no warning of Optuna."""
    keys = {"swa": ("null", "{start: 25%}", "{start: 50%}"), "swa.lr": ("0.02", "0.05")}
    space = Space(tuple(Parameter(key, Choices(texts), "") for key, texts in keys.items()))
    study = SweepStudy(tmp_path, settings("grid", space=space))
    for value in (4.0, 1.4, 1.1, 1.2, 1.0):
        with study.claim(limit=5) as claim:
            claim.finish(COMPLETE, value=value)
    assert study.importances().keys() == keys.keys()


def test_records_are_plain_and_the_best_is_found(tmp_path: Path) -> None:
    """Three trials, one failed: their values as in result.json, the order of the best, and importances."""
    study = SweepStudy(tmp_path, settings("random"))
    for value in (2.0, None, 1.0):
        with study.claim(limit=3) as claim:
            if value is None:
                claim.finish(FAILED, reason="epoch 1, step 3: the loss is nan")
            else:
                claim.finish(COMPLETE, value=value)
    records = study.records()
    assert [record.number for record in best_of(records, is_lower_better=True)] == [2, 0]
    assert [record.number for record in best_of(records, is_lower_better=False)] == [0, 2]
    assert records[1].values["reason"].startswith("epoch 1")
    assert json.loads(json.dumps([record.values for record in records]))
    assert set(study.importances()) <= {"optimizer.lr", "swa", "swa.lr"}
    assert settings_of(study.settings.values, epochs=16).space.values == SPACE.values
