"""What is declared in one table and forgotten in another: an error at import, or in here; never a default.

Names of schedules and kinds of averages that are declared are held against all that has to be said of them; and a new
name, put into a table, against the files that know nothing of it.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import inspect
import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from conftest import SMALL
from swa_cli.averaging import kinds
from swa_cli.averaging.average import WeightAverage
from swa_cli.checkpoint import schema
from swa_cli.engine.context import build_context
from swa_cli.engine.events import Events
from swa_cli.engine.plan_text import describe_averages, describe_data, describe_schedule
from swa_cli.recipe.kinds import KINDS as DECLARED
from swa_cli.recipe.learning_rate import learning_rate
from swa_cli.recipe.plan import make_plan
from swa_cli.recipe.schedules import SCHEDULES
from swa_cli.recipe.schema import Augment, Recipe, Schedule
from swa_cli.recipe.values import Duration, owners_of_keys

REQUIRED: dict[str, dict[str, Any]] = {  # what each schedule cannot be without
    "constant": {},
    "cosine": {},
    "linear": {},
    "wsd": {},
    "sqrt": {},
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


@pytest.mark.parametrize("entry", [SCHEDULES["cyclic"], DECLARED["ema"]], ids=["schedule", "kind"])
def test_an_entry_without_a_part_cannot_be_made(entry: Any) -> None:
    """Entries of both tables with each of their fields left out once: none of them has a default."""
    parts = {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry)}
    for missing in parts:
        with pytest.raises(TypeError, match=missing):
            type(entry)(**{name: part for name, part in parts.items() if name != missing})


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
    told, rates = {}, {}
    for name in SCHEDULES:
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
    for kind in SCHEDULES.values():
        assert kind.cycles is None or set(kind.cycles.keys) <= kind.keys.keys()


@pytest.mark.parametrize("kind", DECLARED)
def test_every_kind_goes_from_a_recipe_into_a_file(kind: str) -> None:
    """Plan, text, average and stored form of a kind; every key of its state is known to the files and comes back."""
    a_recipe = recipe(averages={"own": {"kind": kind, "start": "0ep", "every": "1ep"}})
    planned = make_plan(a_recipe, num_train=100)
    (item,) = planned.averages
    (text,) = describe_averages(a_recipe, planned)
    assert ("own: 6 weights," in text) == (kind == "mean")
    model = nn.Linear(3, 2)
    average = WeightAverage(model, **item.arguments)
    average.update(model)
    stored = {**average.state_dict(), "batchnorm": "none"}
    assert stored.keys() <= schema.StoredAverage.model_fields.keys()
    schema.StoredAverage.model_validate(stored)
    again = WeightAverage(model, **item.arguments)
    again.load_state_dict(average.state_dict())
    assert torch.equal(again.averaged_state()["weight"], model.weight)


def test_settings_of_averages_are_the_same_everywhere() -> None:
    """Of the table of recipes, of the class, and of a file, against those that have an owner."""
    known = {"kind", *kinds.OWNERS}
    of_the_class = {name: kind for name, kind in DECLARED.items() if kind.share is None}
    assert {"kind", *owners_of_keys(of_the_class)} - {"half_life"} == known
    assert inspect.signature(WeightAverage).parameters.keys() - {"model", "share", "share_settings", "device"} == known
    assert known <= schema.StoredAverage.model_fields.keys()


def test_a_new_kind_is_known_to_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stored form follows the table of settings: a kind that is put in there can be read, and no other."""
    values = {"count": 1, "steps": [1], "state": {}, "batchnorm": "none"}
    with pytest.raises(ValueError, match="kind"):
        schema.StoredAverage.model_validate({**values, "kind": "polynomial"})
    monkeypatch.setitem(DECLARED, "polynomial", DECLARED["mean"])  # type: ignore[arg-type]
    made = fresh("swa_cli.checkpoint.schema").StoredAverage
    assert made.model_validate({**values, "kind": "polynomial"}).kind == "polynomial"


# One entry in each table, then the words after `swa` of each command.
NEW_NAMES = """
import json, sys
from swa_cli.recipe import kinds, schedules
from swa_cli.recipe.values import Key, Number, count_text

POWER = Key(Number, 2.0, "exponent of the decay")
schedules.SCHEDULES["polynomial"] = schedules.ScheduleKind(
    required={},
    optional={"warmup": schedules.WARMUP, "power": POWER},
    curve=lambda course: lambda step: course.lr * (1 - step / course.total) ** course.settings["power"],
    text=lambda course: f"polynomial of power {course.settings['power']:g}",
    bounds=lambda settings, lr, final_lr: (0.0, lr),
    problems=lambda course: [],
    has_default_warmup=False,
    leads_to_swa_lr=False,
    final_lr=0.0,
    is_decay=True,
    drops=lambda settings, exact: (),
    plateau=None,
    cycles=None,
)
kinds.KINDS["polynomial"] = kinds.Kind(
    summary="mean that favours late weight sets",
    start="0ep",
    every="1ep",
    keys={"eta": Key(Number, 3.0, "larger: more weight on late sets")},
    exclusions=(),
    lengths=(),
    problems=lambda values, every, exact: [],
    resolve=lambda values, every, exact: values,
    few=0,
    warnings=lambda plan: [],
    text=lambda plan: f"polynomial {plan.settings['eta']:g} of {count_text(plan.count, 'weight')}",
    memory=lambda plan: "",
    share=lambda n, settings: (settings["eta"] + 1) / (settings["eta"] + n),
)
from swa_cli import cli

for words in json.loads(sys.argv[1]):
    sys.argv = ["swa", *words]
    print("==", *words, flush=True)
    try:
        cli.main()
    except SystemExit as ended:
        assert not ended.code, (words, ended.code)
"""


@pytest.mark.slow
def test_a_schedule_and_a_kind_are_one_entry_each(tmp_path: Path) -> None:
    """A new schedule and a new kind, one entry each: template, schema, plan, training, resume and `eval`.

    Rates are held against their formula, and the average against the float64 mean of the snapshots with the weights
    that a share of (eta + 1) / (eta + n) gives.
    """
    (tmp_path / "small.yaml").write_text(
        SMALL.replace("swa: {start: 50%, every: 0.5ep, eval_every: 1ep}\n", "").replace("epochs: 4", "epochs: 2")
        + "schedule: {name: polynomial, power: 3}\naverages: {own: {kind: polynomial}}\nsnapshots: {every: 1ep}\n"
    )
    run = "runs/small-001"
    commands = [
        ["new"],
        ["schema"],
        ["train", "small.yaml"],
        ["train", "--resume", run, "--extend-to", "3"],
        ["eval", run, "--json"],
    ]
    ended = subprocess.run(
        [sys.executable, "-c", NEW_NAMES, json.dumps(commands)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    new, schema_text, *_, evaluated = ended.stdout.split("== ")[1:]
    assert "polynomial: exponent of the decay; default 2" in new
    sections = json.loads(schema_text.partition("\n")[2])["$defs"]
    assert "polynomial" in sections["Schedule"]["properties"]["name"]["enum"]
    assert "polynomial" in sections["Average"]["properties"]["kind"]["enum"]
    assert sections["Average"]["properties"]["eta"]["description"].startswith("polynomial: larger")
    assert "polynomial of power 3" in ended.stderr
    assert "own: polynomial 3 of 2 weights" in ended.stderr
    assert {"last", "own"} <= json.loads(evaluated.partition("\n")[2])["weights"].keys()

    folder = tmp_path / run
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    steps = [int(row["step"]) for row in rows]
    totals = [steps[-1] * 2 // 3] * 2 + [steps[-1]]
    expected = [0.1 * (1 - (step - 1) / total) ** 3 for step, total in zip(steps, totals, strict=True)]
    assert [float(row["lr"]) for row in rows] == pytest.approx(expected, rel=1e-12)
    mean: dict[str, torch.Tensor] = {}
    for n, path in enumerate(sorted((folder / "snapshots").glob("*.pt")), start=1):
        weights = torch.load(path, weights_only=True)["state_dict"]
        for name in weights:
            mean[name] = mean.get(name, 0.0) + (weights[name].double() - mean.get(name, 0.0)) * 4 / (3 + n)
    assert n == 3
    shipped = torch.load(folder / "checkpoints/own.pt", weights_only=True)
    assert shipped["average"]["kind"] == "polynomial"
    for name, value in shipped["state_dict"].items():
        if value.is_floating_point() and "running" not in name:
            torch.testing.assert_close(value.double(), mean[name], rtol=1e-6, atol=1e-7)


AUGMENTATIONS: dict[str, Any] = {
    "random_resized_crop": True,
    "crop": 1,
    "translate": 1,
    "flip": True,
    "vertical_flip": True,
    "rotate": 10,
    "policy": "trivial_augment",
    "cutout": 3,
    "random_erasing": 0.5,
    "jitter": {"brightness": 0.5},
    "mixup": 0.5,
    "cutmix": 0.5,
}


@pytest.mark.parametrize("key", Augment.model_fields)
def test_every_augmentation_changes_batches_and_is_described(key: str) -> None:
    """A key of `dataset.augment` against a run without it: the first training batch, and the words of the plan."""

    def first_batch(**augment: Any) -> tuple[torch.Tensor, str]:
        dataset = {"name": "digits", "image_size": 8, "augment": augment}
        context = build_context(recipe(dataset=dataset, train={"epochs": 1, "batch_size": 64}), Events())
        images, _ = next(iter(context.training_batches(1)))
        return images, describe_data(context)

    value = AUGMENTATIONS[key]
    images, text = first_batch(**{key: value})
    plain, plain_text = first_batch()
    assert not torch.equal(images, plain)
    assert "no augmentation" in plain_text
    assert (value if isinstance(value, str) else key) in text
