"""Import paths planted in every place of a recipe inside a checkpoint or a run: no command may import them.

The module `trap` lies beside the files and in the working directory, and leaves a mark when it is imported.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
import yaml
from PIL import Image

from hostile.making import GOOD
from swa_cli.cli import app
from swa_cli.errors import RecipeError
from swa_cli.recipe import explain, load

TRAP = "trap:Trap"
MARK = "mark"  # the file that the trap makes
RUNS_CODE = {  # a command that makes the network of a checkpoint or run, or looks at its task
    "eval": ["bad.pt"],
    "bn-update": ["bad.pt", "-o", "new.pt"],
    "average": ["bad.pt", "-o", "new.pt"],
    "soup": ["bad.pt", "swa.pt", "--method", "uniform", "-o", "new.pt"],
    "export": ["bad.pt", "--format", "state-dict", "-o", "new.pt"],
    "predict": ["bad.pt", "photo.png"],
    "train": ["--resume", "run"],
    "plot": ["run", "curves", "-o", "new.png"],
    "report": ["run", "--no-data", "-o", "new.html"],
}
ONLY_READS = {"show": ["bad.pt"], "compare": ["run", "run"]}
TAKES_A_RECIPE = {
    "plan": ["bad.pt"],
    "doctor": ["bad.pt"],
    "find-lr": ["bad.pt"],
    "repeat": ["bad.pt", "--seeds", "0-1"],
    "sweep": ["bad.pt", "swa.lr=0.1,0.2"],
}
OPENS_NO_FILE = {"new", "recipes", "schema"}
NO_CODE = {  # places where text with a colon is a file name, or a network that a library does not have
    *("dataset.root", "output.root", "train.init", "model.pretrained"),
    *("model.name=torchvision", "model.name=timm", "model.name=timm hub", "dataset.name=hf"),
}
OPENS = {**RUNS_CODE, **ONLY_READS, **TAKES_A_RECIPE}


def commands() -> dict[str, set[str]]:
    """Every command of the app with its options."""
    group = typer.main.get_command(app)
    return {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in group.commands.items()  # type: ignore[attr-defined]
    }


def placed(path: tuple[str, ...], value: object) -> dict[str, Any]:
    """Sections around a value."""
    for key in reversed(path):
        value = {("x" if key == explain.NAME else key): value}
    assert isinstance(value, dict)
    return value


def merged(values: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    both = {key: merged(values.get(key) or {}, new) if isinstance(new, dict) else new for key, new in change.items()}
    return {**values, **both}


def changes() -> dict[str, dict[str, Any]]:
    """The trap at every key of the schema, as a text and in a list, and where a section takes keys of any name."""
    deep = {"a": [{"b": TRAP}]}
    found = {}
    for path in explain.fields():
        found[".".join(path)] = placed(path, TRAP)
        found[f"{'.'.join(path)}[0]"] = placed(path, [TRAP])
    for path in [("model", "args"), ("dataset", "args"), ("optimizer",)]:
        found[f"{'.'.join(path)}.z"] = placed((*path, "z"), TRAP)
        found[f"{'.'.join(path)}.z.a[0].b"] = placed((*path, "z"), deep)
    found["optimizer.groups[0].z"] = {"optimizer": {"groups": [{"match": ["*"], "z": TRAP}]}}
    for library in ("torchvision", "timm"):
        for section, key in (("dataset", "name"), ("model", "name")):
            found[f"{section}.{key}={library}"] = {section: {key: f"{library}:trap"}}
        found[f"task={library}"] = {"task": f"{library}:trap"}
        found[f"args of {library}"] = {"model": {"name": f"{library}:resnet18", "args": {"norm_layer": TRAP}}}
    found["model.name=torchvision.models"] = {"model": {"name": "torchvision.models:resnet18"}}
    found["dataset.name=hf"] = {"dataset": {"name": "hf:trap", "download": False}}
    found["model.name=timm hub"] = {"model": {"name": "timm:hf-hub:trap"}}
    return found


def is_readable(change: dict[str, Any]) -> bool:
    """Whether a recipe with this change is one: if not, it is refused at the door that all commands go through."""
    values = yaml.safe_load(GOOD)
    try:
        load.from_values(merged(values, change), source="good.yaml")
    except RecipeError:
        return False
    return True


CHANGES = changes()
READABLE = {place: change for place, change in CHANGES.items() if is_readable(change)}


@pytest.fixture(autouse=True)
def _nothing_stays_imported() -> Iterator[None]:
    path = list(sys.path)
    yield
    sys.path[:] = path
    sys.modules.pop("trap", None)


def planted(trained: Path, folder: Path, change: dict[str, Any]) -> None:
    """Put a change into the recipes of a checkpoint and of a run, and the trap beside them."""
    shutil.copytree(trained, folder, dirs_exist_ok=True)
    Image.new("RGB", (9, 9)).save(folder / "photo.png")
    for trap in (folder / "trap.py", folder / "run/trap.py", folder / "run/checkpoints/trap.py"):
        trap.write_text(f"import pathlib\npathlib.Path({str(folder / MARK)!r}).touch()\nclass Trap: pass\n")
    for source, target in (("swa.pt", "bad.pt"), ("run/checkpoints/last.pt", "run/checkpoints/last.pt")):
        content = torch.load(folder / source, weights_only=True)
        content["recipe"] = merged(content["recipe"], change)
        torch.save(content, folder / target)
    (folder / "run/recipe.yaml").write_text(yaml.safe_dump(without_nulls(content["recipe"])))


def without_nulls(values: dict[str, Any]) -> dict[str, Any]:
    """A stored recipe as recipe.yaml has it: without the keys that have no value."""
    return {
        key: without_nulls(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None
    }


def test_every_command_is_in_a_table() -> None:
    """Commands and options of the app against the tables here: a new command has to say what it opens."""
    known = commands()
    assert known.keys() == OPENS.keys() | OPENS_NO_FILE
    assert {name for name, options in known.items() if "--allow-code" in options} == set(RUNS_CODE)


@pytest.mark.parametrize("place", READABLE)
def test_no_command_imports_what_a_recipe_inside_names(swa, trained: Path, tmp_path: Path, place: str) -> None:
    """Every command on a checkpoint and a run with the trap in one place: exit 0 or 2, no mark, no longer path."""
    planted(trained, tmp_path, READABLE[place])
    path = list(sys.path)
    for name, words in OPENS.items():
        ended = swa(name, *words)
        assert ended.code in (0, 2), (name, ended.err)
        assert "mistake of swa" not in ended.err
        if name in RUNS_CODE and place not in NO_CODE and not place.startswith("train.init_"):
            assert ended.code == 2, name
            assert "--allow-code" in ended.err, name
        assert not (tmp_path / MARK).exists(), name
        assert "trap" not in sys.modules
        assert sys.path == path, name


@pytest.mark.slow
def test_other_places_take_no_import_path(swa, trained: Path, tmp_path: Path) -> None:
    """The trap at every key that holds no free text: the recipe is refused by name, and there is no mark."""
    others = CHANGES.keys() - READABLE.keys()
    assert len(others) > len(READABLE) > 20
    for place in sorted(others):
        content = torch.load(trained / "swa.pt", weights_only=True)
        content["recipe"] = merged(content["recipe"], CHANGES[place])
        torch.save(content, tmp_path / "bad.pt")
        ended = swa("eval", "bad.pt")
        assert ended.code == 2, place
        assert place.split(".")[0].split("[")[0] in ended.err
    assert "trap" not in sys.modules


@pytest.mark.parametrize("name", RUNS_CODE)
def test_the_trap_is_imported_once_it_is_allowed(swa, trained: Path, tmp_path: Path, name: str) -> None:
    """The same words with --allow-code, for each command that has it: the mark is made, so the trap is a real one."""
    planted(trained, tmp_path, {"task": TRAP})
    ended = swa(name, *RUNS_CODE[name], "--allow-code")
    assert ended.code == 2
    assert "trap:Trap has no function loss" in ended.err
    assert (tmp_path / MARK).exists()


@pytest.mark.parametrize("value", [TRAP, {"backend": TRAP}], ids=["short", "section"])
def test_a_backend_of_torch_compile_is_imported_once_it_is_allowed(
    swa, trained: Path, tmp_path: Path, value: object
) -> None:
    """The trap as train.compile of a run and of its checkpoint: refused, and with --allow-code the mark is made."""
    planted(trained, tmp_path, {"train": {"compile": value}})
    for words in (["train", "--resume", "run"], ["eval", "bad.pt"]):
        refused = swa(*words)
        assert refused.code == 2
        assert f"train.compile.backend {TRAP}" in " ".join(refused.err.split())
        assert "--allow-code" in refused.err
    assert not (tmp_path / MARK).exists()
    ended = swa("train", "--resume", "run", "--allow-code")
    assert ended.code == 2
    assert "train.compile: trap:Trap takes other arguments" in ended.err
    assert (tmp_path / MARK).exists()


@pytest.mark.parametrize("word", [f"dataset.name={TRAP}", f"dataset={{name: {TRAP}}}"])
def test_a_change_on_the_command_line_is_the_users_own(swa, trained: Path, tmp_path: Path, word: str) -> None:
    """Code in a typed change needs no permission; the same code in the checkpoint does, whatever else is changed."""
    planted(trained, tmp_path, {})
    ended = swa("eval", "bad.pt", word)
    assert (tmp_path / MARK).exists() == (word[7] == ".")  # a whole section of a checkpoint cannot be changed
    assert "--allow-code" not in ended.err
    planted(trained, tmp_path, {"dataset": {"args": {"make": TRAP}}})
    (tmp_path / MARK).unlink(missing_ok=True)
    sys.modules.pop("trap", None)
    ended = swa("eval", "bad.pt", word, "dataset.root=elsewhere")
    assert ended.code == 2
    assert not (tmp_path / MARK).exists()


def test_texts_of_a_checkpoint_outside_its_recipe_are_not_imported(swa, trained: Path, tmp_path: Path) -> None:
    """The trap in place of every text in swa.pt and last.pt that is not in the recipe: exit 0 or 2, and no mark."""
    planted(trained, tmp_path, {})
    for name, words in (("swa.pt", ["bad.pt"]), ("run/checkpoints/last.pt", ["bad.pt", "--allow-stale-bn"])):
        content = torch.load(tmp_path / name, weights_only=True)
        places = [place for place in texts(content, ()) if place[0] != "recipe"]
        assert places
        for place in places:
            changed = torch.load(tmp_path / name, weights_only=True)
            around = changed
            for key in place[:-1]:
                around = around[key]
            around[place[-1]] = TRAP
            torch.save(changed, tmp_path / "bad.pt")
            for command in (["eval", *words], ["show", "bad.pt"]):
                assert swa(*command).code in (0, 2), place
                assert not (tmp_path / MARK).exists(), place


def texts(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """The place of every text in nested values."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if isinstance(item, str):
            yield (*path, key)
        else:
            yield from texts(item, (*path, key))
