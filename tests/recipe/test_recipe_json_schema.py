"""The JSON Schema that editors read, held against the recipes there are and against the loader."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from swa_cli.recipe import load
from swa_cli.recipe.explain import NAME, fields
from swa_cli.recipe.kinds import KINDS
from swa_cli.recipe.schedules import SCHEDULES
from swa_cli.recipe.schema.output import LOGGERS
from swa_cli.recipe.templates import STARTS, json_schema, template_of
from swa_cli.recipe.values import INTERNAL, owners_of_keys

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
SMALLEST = "model: {name: m}\ndataset: {name: d}\noptimizer: {lr: 0.1}\ntrain: {epochs: 3}\n"


class Yaml12(yaml.SafeLoader):
    """Numbers as YAML 1.2 has them, which editors read: `1e-4` is one."""


Yaml12.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?$"),
    list("-+.0123456789"),
)


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    return jsonschema.Draft202012Validator(json_schema())


def mistakes(validator: Any, text: str) -> list[str]:
    values = yaml.load(text, Yaml12)
    return [error.json_path for error in validator.iter_errors(values)]


def is_loaded(tmp_path: Path, text: str) -> bool:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    try:
        load.load(path)
    except load.RecipeError:
        return False
    return True


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(validator: Any, path: Path) -> None:
    """Each recipe as it is written, and as a run folder has it with every default, against the schema."""
    assert mistakes(validator, path.read_text()) == []
    assert mistakes(validator, load.dump(load.load(path).recipe)) == []


@pytest.mark.parametrize("task", STARTS)
def test_what_new_prints_is_valid(validator: Any, task: str) -> None:
    """The text of `swa new` against the schema."""
    assert mistakes(validator, template_of(task)) == []


def test_the_page_of_all_keys_is_valid(validator: Any) -> None:
    """The recipe shown in docs/recipe.md against the schema."""
    (shown,) = [
        text
        for text in re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/recipe.md").read_text(), re.DOTALL)
        if "train:" in text
    ]
    assert mistakes(validator, shown) == []


@pytest.mark.parametrize(
    "lines",
    [
        "swa: {start: 75}",
        "swa: {start: 75 percent}",
        "swa: {strat: 75%}",
        "swa: {lr: -0.1}",
        "seed: -1",
        "seed: 1.5",
        "name: a b",
        "task: detection",
        "schedule: {name: cosin}",
        "schedule: {name: cosine, step_size_up: 1ep}",
        "schedule: {step_size_up: 1ep}",
        "schedule: {name: cyclic, step_size_up: 1ep}",
        "averages: {last: {kind: ema}}",
        "averages: {last_bn: {kind: ema}}",
        "averages: {A: {kind: ema}}",
        "averages: {a: {kind: mean, decay: 0.9}}",
        "averages: {a: {kind: ema, decay: 1}}",
        "averages: {a: {decay: 0.9}}",
        "snapshots: {every: 1h}",
        "output: {save_every: 10}",
        "output: {root: -x}",
        "output: {root: .//-x}",
        "output: {save_every: 10 parsecs}",
        "output: {roots: x}",
        "trian: {epochs: 3}",
        "eval: {precision: auto}",
        "eval: {precision: fp8}",
        "eval: {batch_size: 0}",
        "eval: {tta: flop}",
        "eval: {eval_batch_size: 512}",
        "eval: bf16",
        "eval: {image_size: 0}",
        "eval: {image_size: {0ep: 8}}",
        "eval: {resize: big}",
        "eval: {crop: random}",
        "eval: {interpolation: nearest}",
    ],
)
def test_mistakes_are_marked_where_the_loader_refuses(validator: Any, tmp_path: Path, lines: str) -> None:
    """A recipe with one mistake: the schema against the loader, which both refuse it, and take it without."""
    assert mistakes(validator, SMALLEST) == []
    assert is_loaded(tmp_path, SMALLEST)
    assert mistakes(validator, SMALLEST + lines)
    assert not is_loaded(tmp_path, SMALLEST + lines)


@pytest.mark.parametrize(
    "lines",
    [
        "schedule: {name: multistep, milestones: [50%, 3ep], gamma: 0.2}",
        "schedule: {name: cyclic, step_size_up: 1ep, base_lr: 1e-4, mode: exp_range, gamma: .9}",
        "averages: {a: {kind: ema, half_life: 2 ep}, b: {kind: swag, rank: 3}, c: {kind: mean}}",
        "snapshots: {every: 200step, keep: 3, start: .5ep}",
        "output: {save_every: 10min}",
        "output: {root: ./a/-x}",
        "task: my.own:task",
        "eval: {batch_size: 64, precision: bf16, tta: flip_translate}",
        "eval: {precision: fp16}",
        "eval: {precision: fp32, tta: none}",
        "eval: {}",
        "eval: {image_size: 224, resize: 256, crop: center, interpolation: bicubic}",
        "eval: {image_size: [192, 256], resize: auto, crop: none}",
    ],
)
def test_ways_to_write_are_known(validator: Any, tmp_path: Path, lines: str) -> None:
    """What the loader takes, the schema takes."""
    assert is_loaded(tmp_path, SMALLEST + lines)
    assert mistakes(validator, SMALLEST + lines) == []


@pytest.mark.parametrize(
    ("value", "backend", "mode"),
    [
        ("true", "inductor", "default"),
        ("aot_eager", "aot_eager", "default"),
        ("my.own:backend", "my.own:backend", "default"),
        ("{mode: max-autotune}", "inductor", "max-autotune"),
        ("{backend: inductor, mode: reduce-overhead}", "inductor", "reduce-overhead"),
        ("{backend: eager}", "eager", "default"),
        ("false", None, None),
    ],
)
def test_short_and_long_forms_of_compile(
    validator: Any, tmp_path: Path, value: str, backend: str | None, mode: str | None
) -> None:
    """Each form of train.compile against the backend and mode that it means, in the schema and in what a run stores."""
    text = SMALLEST.replace("epochs: 3", f"epochs: 3, compile: {value}")
    assert mistakes(validator, text) == []
    (tmp_path / "recipe.yaml").write_text(text)
    recipe = load.load(tmp_path / "recipe.yaml").recipe
    settings = recipe.train.compile
    assert (settings and settings.backend, settings and settings.mode) == (backend, mode)
    stored = recipe.model_dump(mode="json")
    assert load.from_values(stored, source="stored").recipe == recipe
    stored["train"]["compile"] = yaml.safe_load(value)  # a stored short form, as older files have it
    assert load.from_values(stored, source="stored").recipe == recipe


@pytest.mark.parametrize(
    ("value", "is_right"),
    [
        ("[tensorboard, {name: wandb, mode: offline, project: a}, mlflow, 'my.own:Logger']", True),
        ("[{name: mlflow, tracking_uri: 'sqlite:///a.db'}]", True),
        ("[csv]", False),
        ("[{project: a}]", False),
        ("[{name: wandb, experiment: a}]", False),
        ("[{name: wandb, mode: never}]", False),
        ("[{name: tensorboard, project: a}]", False),
    ],
)
def test_forms_of_loggers(validator: Any, tmp_path: Path, value: str, is_right: bool) -> None:
    """Names and sections of output.loggers, in the schema and the loader; a stored recipe has them as they were."""
    text = SMALLEST + f"\noutput: {{loggers: {value}}}\n"
    assert (mistakes(validator, text) == []) is is_right
    assert is_loaded(tmp_path, text) is is_right
    if is_right:
        (tmp_path / "recipe.yaml").write_text(text)
        recipe = load.load(tmp_path / "recipe.yaml").recipe
        assert recipe.values()["output"]["loggers"] == yaml.safe_load(value)
        assert load.from_values(recipe.values(), source="stored").recipe == recipe


@pytest.mark.parametrize("value", ["[eager]", "{mode: fastest}", "{backends: eager}"])
def test_wrong_forms_of_compile_are_marked(validator: Any, tmp_path: Path, value: str) -> None:
    """A value of train.compile that the loader refuses, against the schema."""
    text = SMALLEST.replace("epochs: 3", f"epochs: 3, compile: {value}")
    assert mistakes(validator, text)
    assert not is_loaded(tmp_path, text)


@pytest.mark.parametrize(
    ("key", "good", "wrong"),
    [
        (
            "image_size",
            ["1", "65536", "[3, 4]", "{0ep: 8}", "{0ep: 8, 50%: [9, 10], .8 ep: 12}"],
            ["0", "65537", "1.5", "big", "[3]", "[3, 4, 5]", "{}", "{1 epoch: 8}", "{0ep: big}", "{0ep: {1ep: 3}}"],
        ),
        ("mean", ["auto", "imagenet", "[0]", "[0.5, -1, 1e-1]"], ["0.5", "[]", "[x]", "cifar10"]),
        ("std", ["auto", "imagenet", "[0.5, 1, 1e-1]"], ["0.5", "[]", "[0]", "[1, -1]"]),
        ("interpolation", ["bilinear", "bicubic"], ["nearest"]),
        ("skip_broken", ["true", "false"], ["1"]),
        ("repeats", ["1", "3"], ["0", "1.5"]),
    ],
)
def test_forms_of_image_keys(validator: Any, tmp_path: Path, key: str, good: list[str], wrong: list[str]) -> None:
    """Each form of a key of `dataset` in the loader and in the schema: both take it, or both refuse it."""
    for value in [*good, *wrong]:
        text = SMALLEST.replace("name: d", f"name: d, {key}: {value}")
        assert is_loaded(tmp_path, text) is (value in good), value
        assert (mistakes(validator, text) == []) is (value in good), value


@pytest.mark.parametrize(
    ("key", "good", "wrong"),
    [
        (
            "random_resized_crop",
            ["true", "false", "none", "{}", "{scale: [0.08, 1]}", "{scale: [1, 1], ratio: [0.5, 2]}"],
            [
                "1",
                "center",
                "[0.08, 1]",
                "{scale: 0.5}",
                "{scale: [0, 1]}",
                "{scale: [0.5, 1.1]}",
                "{ratio: [1, 2, 3]}",
            ],
        ),
        ("policy", ["none", "trivial_augment", "rand_augment", "auto_augment", "augmix"], ["true", "trivial"]),
        ("random_erasing", ["0", "0.25", "1"], ["1.1", "-0.1", "true"]),
        ("vertical_flip", ["true", "false"], ["alternating"]),
        ("rotate", ["0", "12.5", "180"], ["181", "-1"]),
    ],
)
def test_forms_of_augmentations(validator: Any, tmp_path: Path, key: str, good: list[str], wrong: list[str]) -> None:
    """Each form of a key of `dataset.augment` in the loader and in the schema: both take it, or both refuse it."""
    for value in [*good, *wrong]:
        text = SMALLEST.replace("name: d", f"name: d, augment: {{{key}: {value}}}")
        assert is_loaded(tmp_path, text) is (value in good), value
        assert (mistakes(validator, text) == []) is (value in good), value


def with_value(path: tuple[str, ...], value: object) -> dict[str, Any]:
    """The smallest recipe with a value of one key, and the other keys that its sections need."""
    needed = {"every": "1ep", "patience": 3, "match": "norm", "kind": "ema"} | {"name": "wandb"}
    tables = {"schedule": ("name", SCHEDULES), "averages": ("kind", KINDS), "output": ("name", LOGGERS)}
    root = node = yaml.safe_load(SMALLEST)
    for depth, part in enumerate(path[:-1], start=1):
        section: dict[str, Any] = node.setdefault("a" if part == NAME else part, {})
        if path[:depth] in (("optimizer", "groups"), ("output", "loggers")):
            node[part] = [section]
        for key in (leaf[-1] for leaf, info in fields().items() if leaf[:-1] == path[:depth] and info.is_required()):
            section.setdefault(key, needed.get(key))
        node = section
    key, table = tables.get(path[0], ("", {}))
    for name in owners_of_keys(table).get(path[-1], []) if len(path) > 1 else []:
        required = getattr(table[name], "required", ())
        node |= {key: name} | {other: ["1ep"] if other == "milestones" else "1ep" for other in required}
        break
    node[path[-1]] = value
    return root


def test_edges_of_every_key(validator: Any) -> None:
    """Zero, more than any bound, and an empty list or section as the value of each key, in the loader and the schema.

    Only a text that looks like a number is marked by the schema alone: the loader takes it as it stands.
    """
    paths = [path for path, info in fields().items() if info.json_schema_extra != INTERNAL]
    assert len(paths) > 100
    for path in paths:
        for value in (0, 10**6, [], [0], {}):
            values = with_value(path, value)
            try:
                load.from_values(values, source="edges")
                is_taken = True
            except load.RecipeError:
                is_taken = False
            is_marked = not validator.is_valid(values)
            assert is_taken or is_marked, (path, value)
            assert not is_taken or not is_marked or value not in ([], {}), (path, value)


def test_every_key_says_what_it_means() -> None:
    """A description at each key of each section, which is what an editor shows."""
    whole = json_schema()
    for section in (whole, *whole["$defs"].values()):
        for name, node in section["properties"].items():
            assert node.get("description"), name
