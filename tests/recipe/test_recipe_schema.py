"""The schema on its own: defaults, types of texts, keys that go with a name, derived values."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from swa_cli.averaging.kinds import KINDS, OWNERS
from swa_cli.recipe import scalars
from swa_cli.recipe.explain import fields
from swa_cli.recipe.kinds import KINDS as DECLARED
from swa_cli.recipe.scalars import Plain
from swa_cli.recipe.schedules import SCHEDULES
from swa_cli.recipe.schema import Average, Optimizer, Recipe, Schedule
from swa_cli.recipe.values import Duration, owners_of_keys

SMALLEST: dict[str, Any] = {
    "model": {"name": "convnet"},
    "dataset": {"name": "digits"},
    "optimizer": {"lr": 0.1},
    "train": {"epochs": 3},
}


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate({**SMALLEST, **sections})


def test_defaults_are_those_of_the_contract() -> None:
    """The smallest recipe is held against the defaults that the documentation promises."""
    smallest = recipe(swa={}, snapshots={})
    assert smallest.seed == 0
    assert smallest.dataset.val == "10%"
    assert smallest.optimizer.options == {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    assert smallest.schedule.name == "cosine"
    assert smallest.swa is not None
    assert (str(smallest.swa.start), str(smallest.swa.every), str(smallest.swa.eval_every)) == (
        "75%",
        "1ep",
        "5ep",
    )
    assert smallest.swa.batchnorm.method == "pooled"
    assert smallest.snapshots is None
    assert (smallest.train.batch_size, smallest.train.precision) == (128, "auto")
    assert (smallest.eval.batch_size, smallest.eval.precision, smallest.eval.tta) == (512, "fp32", "none")


def test_plain_momentum_of_zero_takes_nesterov_away() -> None:
    """SGD's filled-in options are held against what torch.optim.SGD accepts: no Nesterov without momentum."""
    assert Optimizer.model_validate({"lr": 0.1, "momentum": Plain("0")}).options["nesterov"] is False
    assert Optimizer.model_validate({"lr": 0.1, "dampening": 0.1}).options["nesterov"] is False
    assert Optimizer(name="Adam", lr=0.1).options == {}


def test_every_field_says_what_it_is() -> None:
    """Each field with a value is held against having a description: documentation and hint at once."""
    sections = {path[:-1] for path in fields()} | {("averages",)}
    assert [path for path, info in fields().items() if path not in sections and not info.description] == []


def test_every_schedule_lists_its_keys() -> None:
    """The table of keys is held against the names and the fields of the section."""
    assert set(SCHEDULES) == set(Schedule.model_fields["name"].annotation.__args__)  # type: ignore[union-attr]
    listed = {key for kind in SCHEDULES.values() for key in kind.keys}
    assert listed == set(Schedule.model_fields) - {"name"}


def test_the_docs_list_every_schedule() -> None:
    """The table in docs/recipe.md is held against the table of schedules: names and keys, in order."""
    page = (Path(__file__).parents[2] / "docs/recipe.md").read_text()
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| `")]
    told = [[re.findall(r"`(\w+)`", cell) for cell in row] for row in rows[1:]]  # below the head
    assert told == [[[name], list(kind.required), list(kind.optional)] for name, kind in SCHEDULES.items()]


@pytest.mark.parametrize(
    "sections",
    [
        {"schedule": {"name": "cosine", "T_0": "3ep"}},
        {"schedule": {"name": "cyclic"}},
        {"averages": {"a": {"kind": "mean", "decay": 0.9}}},
        {"averages": {"a": {"kind": "ema", "window": 2}}},
        {"averages": {"a": {"kind": "ema", "decay": 0.9, "half_life": "1ep"}}},
        {"averages": {"a": {"kind": "lawa", "warmup": True}}},
        {"averages": {"a": {"kind": "mean", "bias_correction": False}}},
        {"averages": {"a": {"kind": "mean", "diagonal": False}}},
        {"averages": {"a": {"kind": "swag", "rank": 1}}},
        {"averages": {"a": {"kind": "swag", "rank": 2, "diagonal": True}}},
        {"averages": {"last": {"kind": "mean"}}},
        {"averages": {"Bad name": {"kind": "mean"}}},
    ],
)
def test_keys_that_do_not_go_together_are_refused(sections: dict[str, Any]) -> None:
    """A recipe made in Python is held against the same rules as one from a file."""
    with pytest.raises(ValidationError):
        recipe(**sections)


def test_defaults_of_an_average_follow_its_kind() -> None:
    """Each kind is held against its own start, interval and parameter."""
    averages = recipe(averages={"e": {"kind": "ema"}, "k": {"kind": "lawa"}, "m": {"kind": "mean"}}).averages
    assert (str(averages["e"].start), str(averages["e"].every), averages["e"].decay) == (
        "0ep",
        "1step",
        0.999,
    )
    assert (str(averages["k"].start), str(averages["k"].every), averages["k"].window) == ("75%", "1ep", 5)
    assert (str(averages["m"].start), averages["m"].decay, averages["m"].window) == ("75%", None, None)
    assert (averages["e"].warmup, averages["e"].bias_correction, averages["m"].warmup) == (False, True, None)
    swag = recipe(averages={"s": {"kind": "swag"}, "d": {"kind": "swag", "diagonal": True}}).averages
    assert (str(swag["s"].start), str(swag["s"].every), swag["s"].rank) == ("75%", "1ep", 20)
    assert (swag["s"].diagonal, swag["d"].rank) == (False, None)
    assert recipe(averages={"e": {"kind": "ema", "half_life": "10%"}}).averages["e"].decay is None


def test_every_key_of_an_average_has_its_kind() -> None:
    """The table of keys is held against the fields of the section and against what is built from them."""
    assert set(owners_of_keys(DECLARED)) == set(Average.model_fields) - {"kind", "start", "every", "keep"}
    of_the_class = {name: kind for name, kind in DECLARED.items() if kind.share is None}
    built = {key: name for name, kind in of_the_class.items() for key in kind.keys if key != "half_life"}  # a decay
    assert built == OWNERS
    assert list(of_the_class) == list(KINDS)
    assert Average.model_fields["kind"].annotation.__args__ == tuple(DECLARED)  # type: ignore[union-attr]


def test_derived_values() -> None:
    """Title and list of averages are held against the recipe's sections."""
    made = recipe(model={"name": "torchvision:resnet18"}, swa={"start": "2ep"}, averages={"e": {"kind": "ema"}})
    assert made.title == "digits-torchvision-resnet18"
    assert list(made.all_averages) == ["swa", "e"]
    assert made.all_averages["swa"].start == Duration.parse("2ep")
    assert recipe(name="mine").title == "mine"
    assert recipe().all_averages == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("-3", -3), ("1e-4", 1e-4), ("5E+2", 500.0), (".1", 0.1), ("1.", 1.0), ("0", 0), ("0.0", 0.0)],
)
def test_numbers_by_their_text(text: str, value: float) -> None:
    """Each form of a number is held against Python's own reading of it."""
    assert scalars.number(Plain(text)) == value
    assert scalars.free(Plain(text)) == value
    assert type(scalars.free(Plain(text))) is type(value)


@pytest.mark.parametrize(
    "text",
    ["012", "-012", "00", "0x10", "0o10", "0b1", "1_000", "1,5", ".inf", "nan", "1e999", "", "~", "ten", "٣"],
)
def test_texts_that_are_no_number(text: str) -> None:
    """Each ambiguous or foreign form is held against being refused with an action after the colon."""
    for read in (scalars.number, scalars.whole):
        with pytest.raises(ValueError, match=r".+: \w.+"):
            read(Plain(text))


@pytest.mark.parametrize("text", ["012", "0x10", "1_000", ".inf", "1e999", "no", "Yes", "ON", "True", "null", "~", ""])
def test_free_texts_that_may_mean_two_things(text: str) -> None:
    """Texts that readers of YAML disagree about are held against being refused; quoted, they are text."""
    with pytest.raises(ValueError, match=r".+: \w.+"):
        scalars.free(Plain(text))
    assert scalars.free(text) == text


def test_schema_does_not_import_torch() -> None:
    """The modules that the recipe's room loads are held against the promise that it runs without torch."""
    code = "import sys, swa_cli.recipe.load; print('torch' in sys.modules, 'typer' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False"]
