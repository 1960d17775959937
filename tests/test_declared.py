"""What is declared in one table and forgotten in another: an error at import, or in here; never a default.

Names of schedules and kinds of averages that are declared are held against all that has to be said of them; and a new
name, put into a table, against the files that know nothing of it.
"""

from __future__ import annotations

import importlib.util
import inspect
import itertools
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from swa_cli.averaging import kinds
from swa_cli.averaging.average import WeightAverage
from swa_cli.checkpoint import schema
from swa_cli.recipe.describe import describe_averages, describe_schedule
from swa_cli.recipe.plan import SETTINGS, make_plan
from swa_cli.recipe.schedules import SCHEDULES, learning_rate
from swa_cli.recipe.schema import AVERAGE_KINDS, SCHEDULE_KEYS, Recipe, Schedule
from swa_cli.recipe.values import Duration

REQUIRED: dict[str, dict[str, Any]] = {  # what each schedule cannot be without
    "constant": {},
    "cosine": {},
    "linear": {},
    "cosine_restarts": {"T_0": "2ep"},
    "cyclic": {"base_lr": 0.01, "step_size_up": "1ep"},
    "multistep": {"milestones": ["3ep"]},
    "one_cycle": {"max_lr": 0.3},
    "swa_paper": {},
}


def recipe(**sections: Any) -> Recipe:
    values = {"model": {"name": "convnet"}, "dataset": {"name": "digits"}, "optimizer": {"lr": 0.1}}
    return Recipe.model_validate(values | {"train": {"epochs": 6, "batch_size": 10}} | sections)


def fresh(name: str, *, instead: tuple[str, str] = ("", "")) -> ModuleType:
    """A module made anew from its file, or from its file with something else `instead`, beside the one that is used."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text()
    assert instead[0] in source
    module = importlib.util.module_from_spec(spec)
    exec(compile(source.replace(*instead), spec.origin, "exec"), module.__dict__)
    return module


@pytest.mark.parametrize("module", ["swa_cli.recipe.schedules", "swa_cli.recipe.describe"])
def test_a_schedule_without_a_part_cannot_be_imported(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name in the table of keys alone, against the files with curves and texts."""
    monkeypatch.setitem(SCHEDULE_KEYS, "polynomial", (frozenset(), frozenset({"power"})))  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="polynomial"):
        fresh(module)


@pytest.mark.parametrize("module", ["swa_cli.recipe.plan", "swa_cli.recipe.describe"])
def test_a_kind_without_a_text_cannot_be_imported(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind of average in the table of recipes alone."""
    monkeypatch.setitem(AVERAGE_KINDS, "polynomial", {"power": 2})  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="polynomial"):
        fresh(module)


def test_a_kind_without_a_text_of_its_plan_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind of average in the table of arithmetic alone, against what the plan says it holds."""
    monkeypatch.setitem(kinds.KINDS, "polynomial", kinds.KINDS["mean"])  # type: ignore[index]
    with pytest.raises(AssertionError, match="polynomial"):
        fresh("swa_cli.engine.plan_text")


def test_a_kind_without_a_part_cannot_be_imported() -> None:
    """A kind without its share, check or type, and a setting without a field, in the table of arithmetic."""
    mean = '"mean": Kind({}, _no_misfits, torch.float64, lambda settings, n: 1 / n)'
    for parts in ("{}, _no_misfits, torch.float64", "{}, _no_misfits", "{}"):
        with pytest.raises(TypeError, match="share"):
            fresh("swa_cli.averaging.kinds", instead=(mean, f'"mean": Kind({parts})'))
    with pytest.raises(AssertionError, match="without an owner"):
        fresh("swa_cli.averaging.kinds", instead=('"mean": Kind({}', '"mean": Kind({"power": None}'))


def test_every_schedule_has_a_curve_and_a_text_of_its_own() -> None:
    """Of all that are declared: no two train alike or are described alike, and a name that is not has neither."""
    assert list(SCHEDULES) == list(SCHEDULE_KEYS)
    told, rates = {}, {}
    for name in SCHEDULE_KEYS:
        a_recipe = recipe(schedule={"name": name, **REQUIRED[name]})
        rate = learning_rate(a_recipe, steps_per_epoch=10)
        rates[name] = [rate(step) for step in range(60)]
        told[name] = describe_schedule(a_recipe, make_plan(a_recipe, num_train=100))
    assert [pair for pair in itertools.combinations(told, 2) if told[pair[0]] == told[pair[1]]] == []
    assert [pair for pair in itertools.combinations(rates, 2) if rates[pair[0]] == rates[pair[1]]] == []
    assert "constant" not in " ".join(text for name, text in told.items() if name != "constant")
    unknown = a_recipe.model_copy(update={"schedule": Schedule.model_construct(name="polynomial")})
    with pytest.raises(KeyError, match="polynomial"):
        learning_rate(unknown, steps_per_epoch=10)


def test_every_length_of_a_schedule_is_looked_at() -> None:
    """Lengths of a section against its fields: those in cycles are refused, and SWAP refuses those in steps."""
    fields = {key for key, field in Schedule.model_fields.items() if "Duration" in str(field.annotation)}
    given = Schedule.model_construct(**{key: Duration.parse("1step") for key in fields} | {"milestones": []})
    listed = Schedule.model_construct(milestones=[Duration.parse("1ep"), Duration.parse("2ep")])
    assert {key for key, _ in given.lengths} | {"milestones"} == fields
    assert [key for key, _ in listed.lengths] == ["milestones", "milestones"]
    for name, kind in SCHEDULES.items():
        assert kind.cycles is None or set(kind.cycles.keys) <= set().union(*SCHEDULE_KEYS[name])


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_every_kind_goes_from_a_recipe_into_a_file(kind: str) -> None:
    """Plan, text, average and stored form of a kind; every key of its state is known to the files and comes back."""
    a_recipe = recipe(averages={"own": {"kind": kind, "start": "0ep", "every": "1ep"}})
    planned = make_plan(a_recipe, num_train=100)
    (item,) = planned.averages
    (text,) = describe_averages(a_recipe, planned)
    assert ("own: 6 weights," in text) == (kind == "mean")
    model = nn.Linear(3, 2)
    average = WeightAverage(model, **item.settings)
    average.update(model)
    stored = {**average.state_dict(), "batchnorm": "none"}
    assert stored.keys() <= schema.StoredAverage.model_fields.keys()
    schema.StoredAverage.model_validate(stored)
    again = WeightAverage(model, **item.settings)
    again.load_state_dict(average.state_dict())
    assert torch.equal(again.averaged_state()["weight"], model.weight)


def test_settings_of_averages_are_the_same_everywhere() -> None:
    """Of a plan, of the class, and of a file, against those that have an owner."""
    known = {"kind", *kinds.OWNERS}
    assert set(SETTINGS) == known
    assert inspect.signature(WeightAverage).parameters.keys() - {"model", "share"} == known
    assert known <= schema.StoredAverage.model_fields.keys()


def test_a_new_kind_is_known_to_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stored form follows the table of settings: a kind that is put in there can be read, and no other."""
    values = {"count": 1, "steps": [1], "state": {}, "batchnorm": "none"}
    with pytest.raises(ValueError, match="kind"):
        schema.StoredAverage.model_validate({**values, "kind": "polynomial"})
    monkeypatch.setitem(kinds.KINDS, "polynomial", kinds.KINDS["mean"])  # type: ignore[arg-type]
    made = fresh("swa_cli.checkpoint.schema").StoredAverage
    assert made.model_validate({**values, "kind": "polynomial"}).kind == "polynomial"
