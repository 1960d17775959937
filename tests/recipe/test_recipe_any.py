"""What holds for any file and any recipe: an answer and never a crash; what is written is read as it was."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from swa_cli.errors import RecipeError, UserError
from swa_cli.recipe.load import Loaded, dump, from_values, load
from swa_cli.recipe.schedules import SCHEDULES
from swa_cli.recipe.schema import Recipe

FEW = settings(max_examples=60)
SMALLEST = "model: {name: convnet}\ndataset: {name: digits}\noptimizer: {lr: 0.1}\ntrain: {epochs: 3}\n"


def load_text(folder: Path, text: str | bytes, *overrides: str) -> Loaded:
    path = folder / "r.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    return load(path, overrides)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [*a, *a, *b{i - 1}]\n" for i in range(60)),
        "a: &a {}\n" + "b: {<<: [*a, *a]}\n" * 200,
        "[" * 100_000,
        "{a: " * 100_000,
        "- " * 100_000,
        "? " * 10_000,
        "".join(f"k{i}: 1\n" for i in range(10_000)),
        "a: &a\n  b: *a\n",
    ],
    ids=["aliases", "merges", "lists", "sections", "block", "keys", "many", "loop"],
)
def test_bombs_are_refused(tmp_path: Path, text: str) -> None:
    """Files made to exhaust a reader are held against being refused: nothing in them is expanded."""
    with pytest.raises(RecipeError):
        load_text(tmp_path, text)


NAMES = "model name lr swa averages schedule at dataset 75% no ~ 012 1e-4"
SIGNS = "- : ? { } [ ] , &a *a !!x | > \" ' # << % \\"
WORDS = st.sampled_from([*NAMES.split(), *SIGNS.split(), ": ", "? ", "&a ", "\n", "\n  ", " ", "\t", "---\n"])


@FEW
@given(st.one_of(st.binary(max_size=60), st.text(max_size=60), st.lists(WORDS, max_size=30).map(": ".join)))
@example('a: "\\UFFFFFFFF"')
@example('a: "\\ud800"')
@example("%YAML 9.9\n---\na: b")
@example("a: |9\n b")
@example("!<%ff> a: b")
def test_any_bytes_end_in_an_answer(tmp_path: Path, content: str | bytes) -> None:
    """Arbitrary files are held against the only two errors that a person may see."""
    with pytest.raises((RecipeError, UserError)):
        load_text(tmp_path, content)


@FEW
@given(st.lists(WORDS, max_size=25).map("".join), st.lists(WORDS, max_size=8).map("".join))
def test_any_words_of_yaml_end_in_an_answer(tmp_path: Path, text: str, override: str) -> None:
    """Arbitrary pieces of YAML after a valid recipe, and arbitrary overrides, are held against the same."""
    with contextlib.suppress(RecipeError):
        load_text(tmp_path, SMALLEST + text, override, f"model.args={override}")


AMBIGUOUS = "no 1e-4 012 0x10 1_000 .inf ~ null True 12:30 *a = <<"
AWKWARD = ["", "a: b", "# x", " x ", "- a", "a\nb", "\x85", "\u2028"]
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12),
    st.sampled_from([*AMBIGUOUS.split(), *AWKWARD]),
)
LEAVES = TEXTS | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False)
FREE = st.dictionaries(
    TEXTS, LEAVES | st.lists(LEAVES, max_size=3) | st.dictionaries(TEXTS, LEAVES, max_size=2), max_size=4
)
DURATIONS = st.sampled_from(["75%", "0.25ep", "3ep", "200step", "1cycle", "0ep"])
RATES = st.floats(0, 1e6)
SCHEDULE_VALUES: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(["warmup", "T_0", "step_size_up", "step_size_down", "pct_start", "decay", "hold"], DURATIONS),
    **dict.fromkeys(["final_lr", "base_lr", "max_lr"], RATES),
    "span": st.sampled_from(["auto", "start", "run"]),
    "shape": st.sampled_from(["linear", "cosine", "1-sqrt"]),
    "T_mult": st.floats(1, 9),
    "begin": st.sampled_from(["base", "max"]),
    "mode": st.sampled_from(["triangular", "exp_range"]),
    "gamma": st.floats(0.1, 1),
    "milestones": st.lists(DURATIONS, min_size=1, max_size=3),
}


AVERAGES: list[dict[str, Any]] = [
    {"kind": "ema"},
    {"kind": "ema", "half_life": "10%", "warmup": True, "bias_correction": False},
    {"kind": "power_ema", "width": 0.05},
    {"kind": "power_ema", "half_life": "10%"},
    {"kind": "lawa", "window": 3},
    {"kind": "mean", "start": "3ep"},
    {"kind": "swag"},
    {"kind": "swag", "diagonal": True, "every": "0.25ep"},
]


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    name = draw(st.sampled_from(sorted(SCHEDULES)))
    required, optional = SCHEDULES[name].required, SCHEDULES[name].optional
    chosen = st.lists(st.sampled_from(sorted(optional)), unique=True) if optional else st.just([])
    keys = [*sorted(required), *draw(chosen)]
    values: dict[str, Any] = {
        "seed": draw(st.integers(0, 2**59)),
        "model": {"name": draw(TEXTS), "args": draw(FREE)},
        "dataset": {"name": draw(TEXTS), "root": draw(TEXTS), "val": draw(st.sampled_from(["10%", 500, 0]))},
        "optimizer": {
            "lr": draw(RATES),
            "weight_decay": draw(RATES),
            "no_decay": draw(st.lists(TEXTS, max_size=2)),
        },
        "schedule": {"name": name, **{key: draw(SCHEDULE_VALUES[key]) for key in keys}},
        "averages": draw(st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from(AVERAGES), max_size=2)),
        "train": {"epochs": draw(st.integers(1, 10**6)), "threads": draw(st.sampled_from(["auto", 4]))},
        "eval": {
            "batch_size": draw(st.integers(1, 10**6)),
            "precision": draw(st.sampled_from(["fp32", "bf16", "fp16"])),
            "tta": draw(st.sampled_from(["none", "flip", "flip_translate"])),
        },
    }
    if draw(st.booleans()):
        values["swa"] = {"start": draw(DURATIONS), "lr": draw(st.none() | RATES)}
        values["snapshots"] = {"every": draw(DURATIONS), "keep": draw(st.sampled_from(["all", 3]))}
    return Recipe.model_validate(values)


@FEW
@given(recipes())
def test_a_written_recipe_is_read_as_it_was(tmp_path: Path, recipe: Recipe) -> None:
    """The text of any recipe is held against the recipe: `recipe.yaml` of a run re-runs it verbatim."""
    assert load_text(tmp_path, dump(recipe)).recipe == recipe
    assert from_values(recipe.model_dump(mode="json"), source="a.pt").recipe == recipe
