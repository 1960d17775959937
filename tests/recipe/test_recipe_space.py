"""The values of a sweep: how KEY=VALUES words are read, checked, and turned into recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import SMALL
from swa_cli.errors import RecipeError
from swa_cli.recipe import load, space
from swa_cli.recipe.space import Choices, Range


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def domain(small: Path, word: str) -> Any:
    _, found, _ = space.read(small, [word])
    return found.parameters[0].domain


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("swa.lr=0.02,0.05", Choices(("0.02", "0.05"))),
        ("swa=null,{start: 50%, lr: 0.1}", Choices(("null", "{start: 50%, lr: 0.1}"))),
        ("swa.batchnorm.augment=true,false", Choices(("true", "false"))),
        ('model.name=convnet,"preresnet8"', Choices(("convnet", '"preresnet8"'))),
        ("train.class_weights=balanced,[1,1,1,1,1,1,1,1,1,2]", Choices(("balanced", "[1,1,1,1,1,1,1,1,1,2]"))),
        ("optimizer.lr=log(1e-3,1)", Range(1e-3, 1.0, is_log=True)),
        ("optimizer.lr=0.01..1", Range(0.01, 1.0)),
        ("swa.start=50%..90%", Range(50.0, 90.0, "%")),
        ("swa.start=linear(1.5ep,3ep)", Range(1.5, 3.0, "ep")),
        ("swa.every=1step..9step", Range(1.0, 9.0, "step", is_whole=True)),
        ("train.batch_size=int(16,64)", Range(16.0, 64.0, is_whole=True)),
    ],
)
def test_words_are_lists_and_ranges(small: Path, word: str, expected: Choices | Range) -> None:
    """A word against its domain, and the domain against its own entry of sweep.json."""
    found = domain(small, word)
    assert found == expected
    assert space.domain_of(found.values) == found


@pytest.mark.parametrize(
    ("word", "key", "said", "hint"),
    [
        ("swa.lr=0.05,x", "swa.lr", "`x`", "0.1"),
        ("swa.strt=1,2", "swa.strt", "unknown key", "swa.start"),
        ("optimizer.lr=lin(0,1)", "optimizer.lr", "`lin`", "linear"),
        ("optimizer.lr=log(0,1)", "optimizer.lr", "logarithm", "above 0"),
        ("optimizer.lr=log(1,0.1)", "optimizer.lr", "ascend", "log(0.1,1)"),
        ("optimizer.lr=log(0.1)", "optimizer.lr", "1 end", "log(LOW,HIGH)"),
        ("optimizer.lr=0.1,,1", "optimizer.lr", "empty", "comma"),
        ("optimizer.lr=0.1,0.1", "optimizer.lr", "twice", "once"),
        ("optimizer.lr=0.05,5e-2", "optimizer.lr", "`5e-2` gives the same recipe as `0.05`", "once"),
        ("optimizer.lr=log(0.1,0.10)", "optimizer.lr", "one value", "0.1"),
        ("optimizer.lr=1..1e999", "optimizer.lr", "beyond", "smaller"),
        (f"swa.every=1step..{'9' * 400}step", "swa.every", "beyond", "smaller"),
        ("swa.start=50%..50%", "swa.start", "one value", "50%"),
        ("optimizer.lr=0.1..0.100000000000001", "optimizer.lr", "one value", "0.1"),
        ("swa.start=50%..9ep", "swa.start", "different units", "50%..90%"),
        ("train.batch_size=16..64", "train.batch_size", "whole number", "int(16,64)"),
        ("train.batch_size=int(1.5,3)", "train.batch_size", "no whole number", "linear"),
        ("optimizer.lr=-1..1", "optimizer.lr", "-1", "0"),
        ("output.root=a,b", "output.root", "no score", "one value"),
        ("dataset.val=10%,20%", "dataset.val", "validation images", "one value"),
        ("train.epochs=3", "", "nothing to sweep", "swa.lr=0.02,0.05"),
    ],
)
def test_mistakes_stand_at_their_argument(small: Path, word: str, key: str, said: str, hint: str) -> None:
    """A wrong word: the key, the value and the fix; its place is the whole argument."""
    with pytest.raises(RecipeError) as raised:
        space.read(small, [word])
    (problem,) = raised.value.problems
    assert (problem.key, said in problem.message, hint in problem.hint) == (key, True, True), problem
    if key:
        assert problem.place is not None
        assert problem.place.source == f"command line: {word}"


def test_all_mistakes_are_told_at_once(small: Path) -> None:
    """A wrong value, a wrong range and a wrong fixed change: three problems of one call."""
    with pytest.raises(RecipeError) as raised:
        space.read(small, ["swa.lr=0.05,x", "optimizer.lr=lin(0,1)", "swa.start=50%,101%"])
    assert {problem.key for problem in raised.value.problems} == {"swa.lr", "optimizer.lr", "swa.start"}


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["optimizer.lr=0.1,0.2,0.10"], "optimizer.lr"),
        (["swa.start=50%,50.0%"], "swa.start"),
        (["model.args.width=4,8,null,~"], "model.args.width"),
        (["swa.start=null,75%", "optimizer.lr=log(0.1,1)"], "swa.start"),
        (["swa={start: 50%},{start: 75%}", "swa.start=60%,70%"], "swa"),
        (["model.args.width=4,4.0,true,1,'4'"], None),
        (["averages={a: {kind: ema, decay: 0.5}, b: {kind: ema, decay: 0.6}},null"], None),
    ],
)
def test_values_that_give_the_same_recipe_are_refused(small: Path, words: list[str], key: str | None) -> None:
    """Values that differ as texts alone, or that another key replaces: their key; an argument keeps its type."""
    if key is None:
        assert len(space.read(small, words)[2]) == space.read(small, words)[1].size
        return
    with pytest.raises(RecipeError) as raised:
        space.read(small, words)
    assert [problem.key for problem in raised.value.problems] == [key]


def test_a_removed_section_has_no_keys_and_the_grid_no_duplicates(small: Path) -> None:
    """swa=null against swa.lr: the grid has 1 + 2 points, and each loads as the recipe that it says."""
    _, found, recipes = space.read(small, ["swa.lr=0.01,0.02", "swa=null,{start: 75%}"])
    points = list(found.grid())
    assert len(points) == found.size == 3
    assert {"swa": "null"} in points
    rates = [None if each.recipe.swa is None else each.recipe.swa.lr for each in recipes]
    assert sorted(map(str, rates)) == ["0.01", "0.02", "None"]
    assert space.words_of(found, {"swa.lr": "0.01", "swa": "{start: 75%}"}) == [
        "swa={start: 75%}",
        "swa.lr=0.01",
    ]


def test_one_value_below_a_section_is_kept(small: Path) -> None:
    """A rate for all values of swa: none, one without a rate and one with its own; and a key given twice."""
    choices = "swa=null,{start: 75%},{start: 50%, lr: 0.3}"
    for words in ([choices, "swa.lr=0.07"], ["swa.lr=0.3", "swa.lr=0.07", choices]):
        _, found, recipes = space.read(small, words)
        assert [each.recipe.swa and (str(each.recipe.swa.start), each.recipe.swa.lr) for each in recipes] == [
            None,
            ("75%", 0.07),
            ("50%", 0.07),
        ]
        assert found.size == 3
    for words in (["swa.lr=0.1,0.2", "swa.lr=0.3"], ["swa.lr=0.3", "swa.lr=log(0.1,1)"]):
        with pytest.raises(RecipeError) as raised:
            space.read(small, words)
        assert [(each.key, "twice" in each.message) for each in raised.value.problems] == [("swa.lr", True)]


def test_null_is_a_value_of_an_argument(small: Path) -> None:
    """`null` below model.args, which the recipe does not have: it reaches the network and is no default."""
    _, found, _ = space.read(small, ["model={name: 'nets.own:Net'}", "model.args.momentum=null,0.1"])
    words = [space.words_of(found, found.texts(point)) for point in found.grid()]
    assert words == [["model.args.momentum=null"], ["model.args.momentum=0.1"]]


def test_seeds_that_hold_out_other_images_are_refused(small: Path) -> None:
    """Trials of several seeds, with the images of each seed and with those of one number or none."""
    with pytest.raises(RecipeError) as caught:
        space.read(small, ["seed=0,1"])
    assert [(each.key, each.place and each.place.source) for each in caught.value.problems] == [
        ("seed", "command line: seed=0,1")
    ]
    for word in ("dataset.val_seed=0", "dataset.val=0"):
        assert len(space.read(small, ["seed=0,1", word])[2]) == 2


def test_null_removes_what_the_section_of_the_same_point_has(small: Path) -> None:
    """swa.lr=null below sections of the command line with and without a rate: its rate is gone, or was not there."""
    recipes = space.read(small, ["swa={start: 75%, lr: 0.1},{start: 50%}", "swa.lr=null,0.3"])[2]
    assert [each.recipe.swa and each.recipe.swa.lr for each in recipes] == [None, 0.3] * 2


def test_null_of_a_section_that_is_not_there_changes_nothing(tmp_path: Path) -> None:
    """averages=null,{...} for a recipe without averages: the first choice is the recipe itself."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    loaded, _, recipes = space.read(path, ["averages=null,{ema: {kind: ema, half_life: 10%}}"])
    assert load.differences(loaded.recipe, recipes[0].recipe) == []
    assert list(recipes[1].recipe.all_averages) == ["swa", "ema"]


@given(st.floats(0, 1), st.sampled_from(["log(1e-3,1)", "0.001..1", "30%..90%", "2step..9step", "0.5ep..2ep"]))
def test_every_drawn_number_is_in_its_range_and_reads_as_itself(share: float, text: str) -> None:
    """Any number of a range: rounded into the range, and its text parses back to the same number."""
    found = space._domain(text)
    assert isinstance(found, Range)
    value = found.rounded(found.low + share * (found.high - found.low), digits=space.DIGITS)
    assert found.low <= value <= found.high
    written = found.text(value)
    assert "e" not in written.removesuffix(found.unit) or not found.unit
    assert float(written.removesuffix(found.unit)) == value
