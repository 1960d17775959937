"""`swa new`, `swa recipes`, `swa schema`: from nothing to a recipe that runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from swa_cli.recipe import load
from swa_cli.recipe.explain import fields
from swa_cli.recipe.templates import STARTS, json_schema, template_of
from swa_cli.recipe.values import INTERNAL

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
SHORT = {
    "classification": ["train.epochs=1", "swa.start=1step", "swa.every=10step"],
    "segmentation": [
        "train.epochs=1",
        "swa.start=1step",
        "swa.every=1step",
        "train.batch_size=32",
        "dataset.args={size: 32, train: 80, test: 20, classes: 2}",
    ],
    "regression": ["train.epochs=1", "swa.start=1step", "swa.every=10step"],
}


@pytest.mark.parametrize("task", STARTS)
def test_what_new_writes_can_be_trained(swa, tmp_path: Path, task: str) -> None:
    """`swa new -o recipe.yaml`, then `swa train` of it: exit 0 and an average."""
    assert swa("new", "--task", task, "-o", "recipe.yaml").code == 0
    assert (tmp_path / "recipe.yaml").read_text() == swa("new", "--task", task).out
    ended = swa("train", "recipe.yaml", "train.threads=1", "train.precision=fp32", "--json", *SHORT[task])
    assert ended.code == 0, ended.err
    assert ended.json["weights"]["swa"]["count"] > 1


def test_new_names_every_key() -> None:
    """The keys of the text, commented out or not, against those of the schema without internal ones."""
    told = set(re.findall(r"^#? *(?:- )?(\w+):", template_of("classification"), re.MULTILINE))
    internal = {path for path, field in fields().items() if field.json_schema_extra == INTERNAL}
    assert internal == {("swap", "worker")}
    assert {path[-1] for path in fields().keys() - internal} <= told
    assert "worker" not in told
    assert "worker" not in json_schema()["$defs"]["Swap"]["properties"]


@pytest.mark.parametrize("task", STARTS)
def test_a_default_that_is_uncommented_changes_nothing(tmp_path: Path, task: str) -> None:
    """Each commented default of a section that is there, written out alone: the same recipe."""
    path, lines = tmp_path / "recipe.yaml", template_of(task).splitlines()
    path.write_text("\n".join(lines))
    expected, num_tried, section = load.load(path).recipe, 0, ""
    for number, line in enumerate(lines):
        if re.match(r"\w+:", line):
            section = line
        elif re.match(r"#\w+:$", line):
            section = ""
        if re.match(r"#(  )?\w+: \S", line) and (section or line[1] != " "):
            path.write_text("\n".join([*lines[:number], line[1:], *lines[number + 1 :]]))
            assert load.load(path).recipe == expected, line
            num_tried += 1
    assert num_tried > 20


def test_an_existing_file_is_never_overwritten(swa, tmp_path: Path) -> None:
    """-o with a file that is there, of each command that takes it: exit 2, the file as it was."""
    (tmp_path / "mine.yaml").write_text("mine")
    for words in (["new"], ["recipes", "digits"], ["schema"]):
        ended = swa(*words, "-o", "mine.yaml")
        assert ended.code == 2
        assert "mine.yaml: already exists" in ended.err
    assert (tmp_path / "mine.yaml").read_text() == "mine"


def test_a_path_that_no_recipe_can_hold_leaves_no_file(swa, tmp_path: Path) -> None:
    """A folder whose name is not UTF-8: exit 2 that names the fault, and no empty recipe."""
    (tmp_path / "p\udcff").mkdir()
    ended = swa("new", "--task", "photos", "--data", "p\udcff", "-o", "r.yaml")
    assert ended.code == 2
    assert "bytes that are not UTF-8" in ended.err
    assert not (tmp_path / "r.yaml").exists()


def test_a_folder_whose_name_is_a_word_of_yaml(swa, tmp_path: Path) -> None:
    """Photos in a folder `on`: the recipe that is written loads, with that name."""
    for label in ("cat", "dog"):
        (tmp_path / "on" / label).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (12, 12), (number, 0, 0)).save(tmp_path / "on" / label / f"{number}.png")
    assert swa("new", "--task", "photos", "--data", "on", "-o", "r.yaml").code == 0
    assert load.load(tmp_path / "r.yaml").recipe.name == "on"


def test_recipes_are_listed_with_their_results(swa) -> None:
    """Every file of recipes/ in the list, with all figures of the comment that it begins with, and none without any."""
    listed = {item["name"]: item for item in swa("recipes", "--json").json["recipes"]}
    assert list(listed) == sorted(
        path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml")
    )
    figures = {}
    for name, item in listed.items():
        comment = " ".join(re.match(r"(#.*\n)*", (RECIPES / f"{name}.yaml").read_text())[0].replace("#", " ").split())
        figures[name] = re.findall(r"[\d.]+ ± [\d.]+", comment)
        assert re.findall(r"[\d.]+ ± [\d.]+", item["result"] or "") == figures[name], name
        assert (item["result"] is None) == (not figures[name] and "measured" not in comment), name
        assert "±" not in item["about"]
    assert any(figures.values())
    assert listed["shapes_unet_cyclic"]["task"] == "segmentation"
    assert "Not measured by us" in listed["paper/cifar100_vgg16"]["result"]
    ended = swa("recipes")
    assert all(name in ended.out for name in listed)
    assert max(map(len, ended.out.splitlines())) <= 80


def test_a_recipe_is_printed_or_copied(swa, tmp_path: Path) -> None:
    """The bytes on stdout and in the file against those in recipes/."""
    expected = (RECIPES / "paper/cifar100_vgg16.yaml").read_text()
    assert swa("recipes", "paper/cifar100_vgg16").out == expected
    assert swa("recipes", "recipes/paper/cifar100_vgg16.yaml", "-o", "own.yaml").code == 0
    assert (tmp_path / "own.yaml").read_text() == expected


def test_schema_is_json(swa) -> None:
    """stdout: one JSON Schema with the sections of a recipe."""
    values = json.loads(swa("schema").out)
    assert set(values["required"]) == {"model", "dataset", "optimizer", "train"}
    assert values["additionalProperties"] is False
