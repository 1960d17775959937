"""The documentation: the site builds without a warning or a dead link, and every block of code in it is checked.

Recipes are loaded, Python is compiled, each command is parsed by the command line itself, with the keys that it
changes; a block of another kind fails. The blocks that are also run are in test_readme.py and beside their subjects.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from swa_cli.cli import app
from swa_cli.recipe import load
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.templates import all_sections, keys

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
BASE = {"model": {"name": "convnet"}, "dataset": {"name": "digits"}, "optimizer": {"lr": 0.1}, "train": {"epochs": 9}}
OTHER_PROGRAMS = ("apiVersion", "jobs")  # files of Kubernetes, and of CI


def blocks(language: str) -> list[Any]:
    """Each block of a language, by page and line."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            if match[2] == language:
                line = text.count("\n", 0, match.start()) + 1
                found.append(pytest.param(match[3], id=f"{page.relative_to(ROOT)}:{line}"))
    return found


def commands() -> list[Any]:
    """Each command of swa, as a line of a block or inside a sentence, by page and line."""
    found = []
    for page in PAGES:
        text = page.read_text()
        shown = [
            (block.start(3) + line.start(1), line[1])
            for block in BLOCK.finditer(text)
            for line in re.finditer(r"^ *(swa (?!vs )[a-z](?:[^\n]*\\\n)*[^\n]*)$", block[3], re.MULTILINE)
        ]
        shown += [(inline.start(), inline[1]) for inline in re.finditer(r"(?<!`)`(swa [a-z][^`]*)`", text)]
        for start, words in shown:
            found.append(pytest.param(words, id=f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, start) + 1}"))
    return found


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    languages = {match[2] for page in PAGES for match in BLOCK.finditer(page.read_text())}
    assert languages <= {"", "bash", "json", "python", "yaml"}


@pytest.mark.parametrize("text", blocks("yaml"))
def test_each_yaml_block_is_a_recipe_or_a_part_of_one(text: str, tmp_path: Path) -> None:
    """Against the loader, which refuses any key that is not; a part is put into a small recipe."""
    (document,) = yaml.safe_load_all(text)
    if any(key in document for key in OTHER_PROGRAMS):
        return
    whole = {key: value for key, value in BASE.items() if key not in document} | document
    for key, value in BASE.items():
        if isinstance(whole[key], dict):
            whole[key] = {**({} if "name" in whole[key] else value), **whole[key]}
    whole["train"] = {**BASE["train"], **whole["train"]}
    whole["optimizer"] = {**BASE["optimizer"], **whole["optimizer"]}
    path = tmp_path / "shown.yaml"
    path.write_text(yaml.safe_dump(whole))
    assert load.load(path, []).recipe.model.name


@pytest.mark.parametrize("text", blocks("python"))
def test_each_python_block_compiles(text: str) -> None:
    compile(text, "block", "exec")


@pytest.mark.parametrize("text", commands())
def test_each_command_is_one(text: str) -> None:
    """Against the options and arguments of the command, and the keys of the schema."""
    words = shlex.split(text.replace("\\\n", " "), comments=True)
    words = [word for word in words if word not in ("...", "…")]
    words = words[
        1 : next((place for place, word in enumerate(words) if word in ("&&", "|", ">", "2>", "&", ";")), None)
    ]
    group: Any = typer.main.get_command(app)
    names, *rest = words
    for name in names.split("|"):
        require_parsed(group, name, rest)


def require_parsed(group: Any, name: str, rest: list[str]) -> None:
    assert name in group.commands, name
    rest = [word for word in rest if word not in ("-h", "--help")]
    if rest:
        params = group.commands[name].make_context(name, rest, resilient_parsing=True).params
        assert params
    for word in rest:
        if re.match(r"[a-z_]+(\.\w+)*=", word):
            assert is_key(word.partition("=")[0]), word
        if word.startswith("--"):
            options = {
                option for param in group.commands[name].params for option in (*param.opts, *param.secondary_opts)
            }
            assert word.partition("=")[0] in options, word


def is_key(dotted: str) -> bool:
    """Whether the schema has a key, or takes any name in its place."""
    model: Any = Recipe
    for part in dotted.split("."):
        found = {key.name: key for key in keys(model)}
        if part not in found:
            return model.model_config.get("extra") == "allow" or part in ("NAME",)
        key = found[part]
        if key.section is None or key.many:
            return True
        model = key.section
    return True


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning is an error."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


@pytest.mark.filterwarnings("ignore")  # of the libraries
def test_the_site_needs_no_network(site: Path) -> None:
    """Scripts, styles, fonts and images of every page, and what its styles name, lie in the site."""
    loaded = re.compile(r"<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)=\"?(https?:)?//", re.IGNORECASE)
    pages = [*site.rglob("*.html")]
    assert len(pages) > 15
    for page in pages:
        text = re.sub(r"<link rel=\"?canonical[^>]*>", "", page.read_text())
        assert not loaded.search(text), page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text()), style


@pytest.mark.filterwarnings("ignore")
def test_the_reference_has_every_key_and_command(site: Path) -> None:
    """The built pages against the schema and the command line."""
    shown = (site / "reference/keys.html").read_text()
    names = {key.name for section in all_sections(Recipe) for key in keys(section)}
    assert len(names) > 80
    missing = [name for name in names if f"{name}</code>" not in shown and f".{name}<" not in shown]
    assert not missing
    commands_page = (site / "reference/commands.html").read_text()
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        assert f"swa {name}" in commands_page
        shown_params = [param for param in command.params if not getattr(param, "hidden", False)]
        for option in (option for param in shown_params for option in param.opts if option.startswith("--")):
            assert option in commands_page, (name, option)
    python = (site / "reference/python.html").read_text()
    assert all(name in python for name in ("WeightAverage", "update_batchnorm", "SWA"))
