"""Mistakes in a recipe: each has its exact place, one readable sentence and one action."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from swa_cli.errors import Problem, RecipeError
from swa_cli.recipe.load import load
from swa_cli.recipe.plan import problems_between

SMALLEST = "model: {name: convnet}\ndataset: {name: digits}\noptimizer: {lr: 0.1}\ntrain: {epochs: 3}\n"


def problems_of(folder: Path, text: str, *overrides: str) -> tuple[Problem, ...]:
    (folder / "r.yaml").write_text(text, newline="")
    with pytest.raises(RecipeError) as caught:
        load(folder / "r.yaml", overrides)
    assert caught.value.source == str(folder / "r.yaml")
    return caught.value.problems


class Wrong(NamedTuple):
    """Text that follows the four lines of the smallest recipe, and the only problem that it makes."""

    text: str
    place: tuple[int, int, int]  # line, column, number of characters underlined
    key: str
    message: str
    hint: str


WRONG = [
    # Keys that no section knows.
    Wrong("zzz: 1", (5, 1, 3), "zzz", "unknown key", "the keys at the top are name, seed"),
    Wrong("Seed: 1", (5, 1, 4), "Seed", "unknown key", "did you mean `seed`?"),
    Wrong("swa_lr: 0.05", (5, 1, 6), "swa_lr", "unknown key", "did you mean `swa.lr`?"),
    Wrong("swa_start: 75%", (5, 1, 9), "swa_start", "unknown key", "did you mean `swa.start`?"),
    Wrong("learning_rate: 1", (5, 1, 13), "learning_rate", "unknown key", "did you mean `optimizer.lr`?"),
    Wrong("weight_decay: 1", (5, 1, 12), "weight_decay", "unknown key", "`optimizer.weight_decay`?"),
    Wrong("batch_size: 1", (5, 1, 10), "batch_size", "unknown key", "write train.batch_size or eval.batch_size"),
    Wrong(
        "schedule: {name: cyclic, base_lr: 0, step_size_up: 1ep, up: 1ep}",
        (5, 57, 2),
        "schedule.up",
        "unknown key",
        "schedule.step_size_up",
    ),
    Wrong("schedule: {peak: 30%}", (5, 12, 4), "schedule.peak", "unknown key", "schedule.pct_start"),
    Wrong("output: {tensorboard: true}", (5, 10, 11), "output.tensorboard", "unknown key", "output.loggers"),
    Wrong("output: {loggers: tensorboard}", (5, 19, 11), "output.loggers", "takes a list", "write [tensorboard]"),
    Wrong("output: {loggers: [csv]}", (5, 20, 3), "output.loggers", "always written", "leave it out"),
    Wrong(
        "output: {loggers: [{name: wandb, experiment: a}]}",
        (5, 34, 10),
        "output.loggers.experiment",
        "wandb",
        "project, entity",
    ),
    Wrong("output: {loggers: [{project: a}]}", (5, 20, 12), "output.loggers.name", "is missing", "name:"),
    Wrong("output: {loggers: [tensorbord]}", (5, 20, 10), "output.loggers", "is not a logger", "`tensorboard`"),
    Wrong(
        "averages: {late: {kind: latest}}",
        (5, 25, 6),
        "averages.late.kind",
        "not one of mean, ema, power_ema, lawa",
        "choose",
    ),
    Wrong(
        "grad_accum_steps: 1",
        (5, 1, 16),
        "grad_accum_steps",
        "unknown key",
        "belongs to `train`: write train.grad_accum_steps",
    ),
    Wrong("tta: flip", (5, 1, 3), "tta", "unknown key", "belongs to `eval`: write eval.tta"),
    Wrong("lr: 1", (5, 1, 2), "lr", "unknown key", "write optimizer.lr or swa.lr"),
    Wrong("optimizer.lr: 1", (5, 1, 12), "optimizer.lr", "unknown key", "did you mean `optimizer.lr`?"),
    Wrong("epoch: 1", (5, 1, 5), "epoch", "unknown key", "`epochs` belongs to `train`: write train.epochs"),
    Wrong("swa:\n  strat: 75%", (6, 3, 5), "swa.strat", "unknown key", "did you mean `swa.start`?"),
    Wrong("swa:\n  swa_lr: 1", (6, 3, 6), "swa.swa_lr", "unknown key", "did you mean `swa.lr`?"),
    Wrong("swa:\n  eval-every: 1ep", (6, 3, 10), "swa.eval-every", "unknown key", "mean `swa.eval_every`?"),
    Wrong("swa:\n  warmup: 1ep", (6, 3, 6), "swa.warmup", "unknown key", "belongs to `schedule` or"),
    Wrong("output: {seed: 1}", (5, 10, 4), "output.seed", "unknown key", "at the top"),
    Wrong(
        "averages: {e: {kind: ema, decai: 0.9}}",
        (5, 27, 5),
        "averages.e.decai",
        "unknown key",
        "did you mean `averages.e.decay`?",
    ),
    Wrong(
        "averages: {e: {kind: ema, decay: 0.9, half_life: 2ep}}",
        (5, 39, 9),
        "averages.e.half_life",
        "mutually exclusive",
        "write one of the two",
    ),
    Wrong(
        "averages: {e: {kind: power_ema, width: 0.1, half_life: 10%}}",
        (5, 45, 9),
        "averages.e.half_life",
        "mutually exclusive",
        "write one of the two",
    ),
    Wrong(
        "averages: {s: {kind: swag, diagonal: true, rank: 5}}",
        (5, 44, 4),
        "averages.s.rank",
        "a diagonal swag keeps no deviations",
        "leave `rank` out, or write `diagonal: false`",
    ),
    Wrong(
        "averages: {s: {kind: swag, warmup: true}}",
        (5, 28, 6),
        "averages.s.warmup",
        "an average of kind swag has no such key",
        "`warmup` goes with `kind: ema`",
    ),
    Wrong(
        "averages: {s: {kind: mean, rank: 5}}",
        (5, 28, 4),
        "averages.s.rank",
        "an average of kind mean has no such key",
        "`rank` goes with `kind: swag`",
    ),
    Wrong(
        "averages: {s: {kind: swag, rank: 1}}",
        (5, 34, 1),
        "averages.s.rank",
        "`1` is below 2",
        "write 2 or more",
    ),
    Wrong(
        "averages: {e: {kind: ema, warmup: yes}}",
        (5, 35, 3),
        "averages.e.warmup",
        "`yes` is not a truth value",
        "write true",
    ),
    Wrong(
        "averages: {e: {kind: ema, half_life: 500}}",
        (5, 38, 3),
        "averages.e.half_life",
        "`500` has no unit",
        "write it as 75%",
    ),
    # Values that are not what the key takes.
    Wrong("seed: 1.0", (5, 7, 3), "seed", "`1.0` is not a whole number", "write 1"),
    Wrong("seed: 012", (5, 7, 3), "seed", "`012` may be 12 or, as octal, 10", "write 12"),
    Wrong("seed: 09", (5, 7, 2), "seed", "`09` begins with a zero", "write 9"),
    Wrong("seed: 0x10", (5, 7, 4), "seed", "`0x10` is not how", "write 16"),
    Wrong("seed: 1_000", (5, 7, 5), "seed", "`1_000` is not how", "write 1000"),
    Wrong("seed: -1", (5, 7, 2), "seed", "`-1` is below 0", "write 0 or more"),
    Wrong("seed: '3'", (5, 7, 3), "seed", '`"3"` is text', "remove the quotes"),
    Wrong("seed: " + "9" * 30, (5, 7, 30), "seed", "is too large", "18 digits"),
    Wrong("seed: [1]", (5, 7, 3), "seed", "takes a single value, not a list", "write one value"),
    Wrong("swa: {lr: fast}", (5, 11, 4), "swa.lr", "`fast` is not a number", "write digits"),
    Wrong("swa: {lr: .inf}", (5, 11, 4), "swa.lr", "`.inf` is not finite", "finite number"),
    Wrong("swa: {lr: 1e999}", (5, 11, 5), "swa.lr", "`1e999` is not finite", "smaller number"),
    Wrong("swa: {start: 75}", (5, 14, 2), "swa.start", "`75` has no unit", "write it as 75%, 23ep"),
    Wrong("swa: {every: 0.5cycle}", (5, 14, 8), "swa.every", "is not divided", "whole number of cycles"),
    Wrong("snapshots: {every: 101%}", (5, 20, 4), "snapshots.every", "more than the whole run", "at most 100%"),
    Wrong(
        "snapshots: {every: 1ep, keep: 0}",
        (5, 31, 1),
        "snapshots.keep",
        "neither `all` nor a count",
        "write all",
    ),
    Wrong("name: no", (5, 7, 2), "name", "`no` is not text in YAML", 'write "no"'),
    Wrong("name: TRUE", (5, 7, 4), "name", "`TRUE` is not text in YAML", 'write "TRUE"'),
    Wrong("name: null", (5, 7, 4), "name", "`null` is not a value", 'write "null" for text'),
    Wrong("name: ~", (5, 7, 1), "name", "`~` is not a value", "leave the key out"),
    Wrong("name:", (5, 1, 4), "name", "has no value", "write one, or leave the key out"),
    Wrong("name: my run", (5, 7, 6), "name", "`my run` is not possible here", "letters, digits"),
    Wrong('name: "a\\0"', (5, 7, 5), "name", "has a character that no text can have", "remove"),
    Wrong(
        "task: swimming",
        (5, 7, 8),
        "task",
        "`swimming` is not a task",
        "write classification, multilabel, segmentation",
    ),
    Wrong("task: segmentaton", (5, 7, 11), "task", "`segmentaton` is not a task", "`segmentation`?"),
    Wrong(
        "schedule: {name: cosin}",
        (5, 18, 5),
        "schedule.name",
        "`cosin` is not one of constant, cosine",
        "`cosine`?",
    ),
    Wrong("schedule: {name: }", (5, 12, 4), "schedule.name", "has no value", "leave the key out"),
    Wrong("schedule: {warmup: {}}", (5, 20, 2), "schedule.warmup", "not a section", "write one value"),
    Wrong(
        "swa:\n  batchnorm: {augment: yes}",
        (6, 24, 3),
        "swa.batchnorm.augment",
        "`yes` is not a truth",
        "write true",
    ),
    Wrong("swa:", (5, 1, 3), "swa", "has no value", "indent its keys below it, or leave the section out"),
    Wrong("swa: true", (5, 6, 4), "swa", "is a value, but `swa` is a section", "{key: value}"),
    Wrong("swa:\n  start:50%", (6, 3, 9), "swa", "has no space after the colon", "write `swa: {start: 50%}`"),
    Wrong("swa: {start:50%}", (5, 7, 9), "swa.start:50%", "unknown key", "write `start: 50%`"),
    Wrong("schedule: cosine", (5, 11, 6), "schedule", "`schedule` is a section", "`schedule: {name: cosine}`"),
    Wrong("schedule: 3", (5, 11, 1), "schedule", "`schedule` is a section", "{key: value}"),
    Wrong("snapshots: 1ep", (5, 12, 3), "snapshots", "is a section", "write `snapshots: {every: 1ep}`"),
    Wrong("schedule: [cosine]", (5, 11, 8), "schedule", "a list is given", "indent its keys"),
    Wrong(
        "schedule: {name: multistep, milestones: 50%}",
        (5, 41, 3),
        "schedule.milestones",
        "takes a list, not `50%`",
        "write [50%]",
    ),
    Wrong(
        "schedule: {name: multistep, milestones: [50%, 3]}",
        (5, 47, 1),
        "schedule.milestones",
        "`3` has no unit",
        "75%, 23ep",
    ),
    Wrong("eval: {precision: auto}", (5, 19, 4), "eval.precision", "`auto` is not one of fp32, bf16", "choose"),
    Wrong("eval: {precision: bf61}", (5, 19, 4), "eval.precision", "not one of fp32, bf16, fp16", "`bf16`?"),
    Wrong("eval: {precision: 16}", (5, 19, 2), "eval.precision", "`16` is not one of fp32, bf16, fp16", "choose"),
    Wrong("eval: {batch_size: 0}", (5, 20, 1), "eval.batch_size", "`0` is below 1", "write 1 or more"),
    Wrong("eval: {tta: flop}", (5, 13, 4), "eval.tta", "`flop` is not one of none, flip", "`flip`?"),
    Wrong("eval: fp32", (5, 7, 4), "eval", "`eval` is a section", "{key: value}"),
    # Keys that do not go together.
    Wrong(
        "schedule: {T_0: 3ep}",
        (5, 12, 3),
        "schedule.T_0",
        "cosine has no such key",
        "final_lr, span, warmup",
    ),
    Wrong(
        "schedule: {name: multistep}",
        (5, 1, 8),
        "schedule.milestones",
        "is missing",
        "add `milestones:` to the section `schedule`",
    ),
    Wrong("averages: {e: {}}", (5, 12, 1), "averages.e.kind", "is missing", "add `kind:`"),
    Wrong("averages: {m: {kind: mean, decay: 0.9}}", (5, 28, 5), "averages.m.decay", "no such key", "kind: ema"),
    Wrong(
        "averages: {e: {kind: ema, decay: 1}}",
        (5, 34, 1),
        "averages.e.decay",
        "`1` is not below 1",
        "below 1",
    ),
    Wrong("averages: {swa: {kind: ema}}", (5, 12, 3), "averages.swa", "cannot name an average", "small letters"),
    Wrong(
        "averages: {last_bn: {kind: ema}}",
        (5, 12, 7),
        "averages.last_bn",
        "cannot name an average",
        "small letters",
    ),
    # How images are shown.
    Wrong(
        "eval: {resize: 70000}", (5, 16, 5), "eval.resize", "are no side of an image", "write at most 65536, or auto"
    ),
    Wrong("eval: {image_size: [4]}", (5, 20, 3), "eval.image_size", "a list is not a size of images", "write 224, or"),
    Wrong("eval: {image_size: 0}", (5, 20, 1), "eval.image_size", "0 pixels are no side", "from 1 to 65536"),
    Wrong("img_size: 3", (5, 1, 8), "img_size", "unknown key", "did you mean `dataset.image_size`?"),
    # What YAML allows and a recipe does not.
    Wrong("seed: 1\nseed: 2", (6, 1, 4), "seed", "duplicate key, it is already in line 5", "keep one"),
    Wrong("seed: &s 1", (5, 7, 4), "seed", "anchors (`&s`) are not read", "remove it"),
    Wrong("seed: *s", (5, 7, 2), "seed", "aliases (`*s`) are not read", "write the value out"),
    Wrong("seed: !!int 1", (5, 7, 7), "seed", "types (`tag:yaml.org,2002:int`) are not read", "remove it"),
    Wrong("swa: {<<: {}}", (5, 7, 2), "swa", "merge keys (`<<`) are not read", "write the keys out"),
    Wrong("1: x", (5, 1, 1), "1", "the key `1` is not text", 'write "1"'),
    Wrong("averages: {no: {kind: ema}}", (5, 12, 2), "averages.no", "the key `no` is not text", 'write "no"'),
    Wrong("swa: {lr: 0,05}", (5, 13, 2), "swa.05", "the key `05` is not text", "write 0.05"),
    Wrong("? [a]\n: b", (5, 3, 1), "", "a key is not text", "write `key: value`"),
    Wrong("---\nseed: 1", (5, 1, 3), "", "a second document begins here", "one recipe"),
    # What is no YAML.
    Wrong("swa:\n\tlr: 1", (6, 1, 1), "", "a tab indents this line", "spaces"),
    Wrong("swa:\n  lr: 1\t# rate", (6, 8, 1), "", "a tab stands beside a value", "space"),
    Wrong("seed: 1\n lr: 1", (6, 4, 1), "", "a second `:` in the line, or a line indented", "align"),
    Wrong("swa:\n    lr: 1\n  start: 1ep", (7, 3, 1), "", "does not line up with the keys above", "align"),
    Wrong("swa: {lr: 1", (5, 6, 1), "", "a `{` is not closed", "{key: value"),
    Wrong('name: "a', (5, 7, 1), "", "a quote is not closed", "close the text"),
    Wrong("swa: {lr: 1}}", (5, 13, 1), "", "a bracket is closed that was not opened", "remove it"),
    Wrong("swa: {lr: 1}]", (5, 13, 1), "", "a bracket is closed that was not opened", "remove it"),
    Wrong("swa:\n  start:50%\n  lr: 1", (7, 5, 1), "", "the line above has no space", "write `start: 50%`"),
    Wrong("name: @a", (5, 7, 1), "", "cannot begin with this character", "quotes"),
    Wrong("name: [a] b", (5, 11, 1), "", "text stands after the end", "quotes"),
    Wrong("seed\nname: a", (5, 1, 1), "", "a key without", "after the colon"),
    Wrong('name: "\\q"', (5, 9, 1), "", "a backslash in double quotes", "single quotes"),
    Wrong("name: a\x07", (5, 8, 1), "", "an invisible control character", "remove it"),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.text[:30].replace("\n", "|"))
def test_a_mistake_has_its_place_and_one_action(tmp_path: Path, wrong: Wrong) -> None:
    """One mistake after a valid recipe is held against its exact place, its sentence and its hint."""
    problems = problems_of(tmp_path, SMALLEST + wrong.text)
    assert len(problems) == 1
    problem = problems[0]
    assert problem.place is not None
    assert (problem.place.line, problem.place.column, problem.place.length) == wrong.place
    assert problem.place.text == (SMALLEST + wrong.text).split("\n")[wrong.place[0] - 1]
    assert problem.key == wrong.key
    assert wrong.message in problem.message
    assert wrong.hint in problem.hint


@pytest.mark.parametrize(
    ("line", "key", "message", "hint"),
    [
        ("image_size: {50%: 3, 1 epoch: 4}", "image_size", "`1 epoch` is not a duration", "write it as 75%"),
        ("image_size: {0: 3, 2: 4}", "image_size", "`0` has no unit", "23ep"),
        ("image_size: {0ep: 65537}", "image_size", "`0ep`: 65537 pixels are no side", "from 1 to 65536"),
        ("on_device: gpu", "on_device", "`gpu` is not a truth value", "true, false or auto"),
        ("on_device: yes", "on_device", "`yes` is not a truth value", "write true"),
        ("image_size: {}", "image_size", "has no sizes", "write one, such as 224"),
        ("mean: 0.5", "mean", "`0.5` is not a number per channel", "a list such as [0.5, 0.5, 0.5]"),
        ("std: [1, 0]", "std", "0 is out of range", "write numbers above 0"),
        (
            "augment: {random_resized_crop: {scale: [1, 0.5]}}",
            "augment.random_resized_crop.scale",
            "[1, 0.5] begins with the larger number",
            "write [0.5, 1]",
        ),
        (
            "augment: {random_resized_crop: {scale: [0.5, 2]}}",
            "augment.random_resized_crop.scale",
            "2 is out of range",
            "write numbers above 0 and at most 1",
        ),
        (
            "augment: {random_resized_crop: {ratio: [0, 2]}}",
            "augment.random_resized_crop.ratio",
            "0 is out of range",
            "write numbers above 0",
        ),
        (
            "augment: {random_resized_crop: 0.5}",
            "augment.random_resized_crop",
            "`0.5` is not a truth value",
            "write true or false",
        ),
    ],
)
def test_a_mistake_in_the_images_of_a_dataset(tmp_path: Path, line: str, key: str, message: str, hint: str) -> None:
    """One wrong value in the section `dataset` against its place, its sentence and its hint."""
    text = SMALLEST.replace("dataset: {name: digits}", f"dataset:\n  name: digits\n  {line}")
    (found,) = problems_of(tmp_path, text)
    assert found.key == f"dataset.{key}"
    assert found.place is not None
    assert found.place.line == 4
    assert message in found.message
    assert hint in found.hint


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.text[:30].replace("\n", "|"))
def test_no_words_of_the_libraries_leak(tmp_path: Path, wrong: Wrong) -> None:
    """Messages and hints are held against the wording of pydantic and PyYAML, which helps no person."""
    for problem in problems_of(tmp_path, SMALLEST + wrong.text):
        said = problem.message + problem.hint
        assert not any(word in said for word in ("Input should", "Value error", "Plain", "<block", "while scanning"))


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    """A recipe full of mistakes is held against the list of them: by line, then the command line."""
    text = (
        "model: {name: no}\n"
        "dataset: {batch_size: 3}\n"
        "optimizer: {epochs: 3, weight_decay: 5e-4, nesterov: no, lr: 0.1}\n"
        "schedule: {name: cyclic, T_0: 3ep, mode: fast}\n"
        "train: {theads: 1, epochs: 1.5}\n"
    )
    problems = problems_of(tmp_path, text, "output.rot=x", "swa")
    assert [(problem.place and problem.place.line, problem.key) for problem in problems] == [
        (1, "model.name"),
        (2, "dataset.name"),
        (2, "dataset.batch_size"),
        (3, "optimizer.epochs"),
        (3, "optimizer.nesterov"),
        (4, "schedule.base_lr"),
        (4, "schedule.step_size_up"),
        (4, "schedule.T_0"),
        (4, "schedule.mode"),
        (5, "train.theads"),
        (5, "train.epochs"),
        (0, "swa"),
        (0, "output.rot"),
    ]


@pytest.mark.parametrize(
    ("item", "hint"),
    [("norm", "write {match: norm}"), ("'*.bias'", 'write {match: "*.bias"}'), ("'a: b'", 'write {match: "a: b"}')],
)
def test_a_value_in_a_list_of_sections(tmp_path: Path, item: str, hint: str) -> None:
    """A value alone in `optimizer.groups` against the section that it means, which the loader takes when pasted."""
    (found,) = problems_of(tmp_path, SMALLEST, f"optimizer.groups=[{item}]")
    assert found.hint == hint
    groups = load(tmp_path / "r.yaml", [f"optimizer.groups=[{hint.removeprefix('write ')}]"]).recipe.optimizer.groups
    assert [group.match for group in groups] == [[item.strip("'")]]
    (null,) = problems_of(tmp_path, SMALLEST, "optimizer.groups=[~]")
    assert "at least match" in null.hint


EMA = SMALLEST + "averages: {ema: {kind: ema, half_life: 1ep}}\n"


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("dataset.worker=4", "did you mean `dataset.workers`?"),
        ("swap.workesr=2", "did you mean `swap.workers`?"),
        ("averages.ema.half-life=1ep", "did you mean `averages.ema.half_life`?"),
        ("averages.ema.Half_life=1ep", "did you mean `averages.ema.half_life`?"),
    ],
)
def test_a_suggested_key_is_one_that_a_person_writes(tmp_path: Path, override: str, hint: str) -> None:
    """A mistyped key against the key to write: no internal one, and with the name that the average has."""
    assert hint in [problem.hint for problem in problems_of(tmp_path, EMA, override)]


@pytest.mark.parametrize(
    ("override", "written", "pasted"),
    [
        ("name=no", """'"no"'""", """name='"no"'"""),
        ("optimizer.no_decay=[no]", ' "no"', """'optimizer.no_decay=["no"]'"""),
        ("model.args={a: yes}", ' "yes"', """'model.args={a: "yes"}'"""),
        ("model.args={1: a}", ' "1"', """'model.args={"1": a}'"""),
        ("optimizer=.1", "optimizer.lr=.1", "optimizer.lr=.1"),
        ("optimizer={lr: 0,1}", "0.1", "'optimizer={lr: 0.1}'"),
        ("schedule=linear", "schedule.name=linear", "schedule.name=linear"),
        ("model=name:convnet", "model.name=convnet", "model.name=convnet"),
        ("snapshots=1 ep", "'snapshots.every=1 ep'", "'snapshots.every=1 ep'"),
        ("optimizer.groups=norm", "[{match: norm}]", "'optimizer.groups=[{match: norm}]'"),
        ("optimizer.groups=*.bias", '[{match: "*.bias"}]', """'optimizer.groups=[{match: "*.bias"}]'"""),
        (
            "optimizer.groups={match: [bias], lr: 2x}",
            "[{match: [bias], lr: 2x}]",
            "'optimizer.groups=[{match: [bias], lr: 2x}]'",
        ),
        ("output.loggers=tensorboard", "[tensorboard]", "output.loggers=[tensorboard]"),
        (
            "output.loggers={name: wandb, mode: offline}",
            "[{name: wandb, mode: offline}]",
            "'output.loggers=[{name: wandb, mode: offline}]'",
        ),
    ],
)
def test_a_hint_for_the_command_line_can_be_pasted(tmp_path: Path, override: str, written: str, pasted: str) -> None:
    """A wrong word against what its hint writes, which makes a recipe when it is pasted into a shell."""
    (problem,) = problems_of(tmp_path, SMALLEST, override)
    assert written in problem.hint
    load(tmp_path / "r.yaml", shlex.split(pasted))


def test_a_value_alone_in_a_file_is_shown_in_its_section(tmp_path: Path) -> None:
    """`optimizer: .1` against the section that it means: a number stays one."""
    (found,) = problems_of(tmp_path, SMALLEST.replace("{lr: 0.1}", ".1"))
    assert found.hint == "write `optimizer: {lr: .1}`"


def test_a_truth_value_in_place_of_a_column(tmp_path: Path) -> None:
    """`train.keep_best=true` against a text, which the plan holds against the columns."""
    (tmp_path / "r.yaml").write_text(SMALLEST)
    words = ["train.keep_best=true", "train.early_stopping={patience: 2, metric: on}"]
    problems = problems_between(load(tmp_path / "r.yaml", words).recipe, columns=None)
    assert [problem.key for problem in problems] == ["train.early_stopping.metric", "train.keep_best"]
    assert all("val_loss" in problem.hint for problem in problems)


@pytest.mark.parametrize("word", ["other.yaml", "digits", "runs/first"])
def test_a_second_recipe_is_not_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    """A word without = against a file, a shipped recipe and a folder: no VALUE is asked for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/first").mkdir(parents=True)
    (problem,) = problems_of(tmp_path, SMALLEST, word)
    assert problem.key == word
    assert "VALUE" not in problem.hint


def test_odd_keys_go_with_what_replaces_them(tmp_path: Path) -> None:
    """A number as a key, against a later word that replaces its section."""
    text = SMALLEST.replace("{name: convnet}", "{name: convnet, args: {1: 2}}")
    assert [problem.key for problem in problems_of(tmp_path, text)] == ["model.args.1"]
    assert load(tmp_path / "r.yaml", ["model.args={width: 4}"]).recipe.model.args == {"width": 4}
