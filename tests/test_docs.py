"""The pages of the documentation: every block of code in them is checked, and every link between files.

Commands are parsed by the command line itself and their changes by the loader of recipes, YAML is loaded as a recipe,
names in Python are resolved, tables are read, and the words of outputs stand in the source. A block of another kind
fails. test_pages.py runs them.
"""

from __future__ import annotations

import ast
import builtins
import csv
import importlib.util
import itertools
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

from conftest import SMALL
from pages import BASE, BLOCK, PAGES, ROOT, blocks, recipes_in, shell_lines
from swa_cli.cli import app
from swa_cli.cli.shared import CHANGE
from swa_cli.recipe import load, space

GROUP: Any = typer.main.get_command(app)
PROGRAMS = ("swa", "pip", "pipx", "make", "docker", "python")
OF_THE_READER = {  # names that an example for a loop of one's own supposes
    *("model", "optimizer", "train_loader", "loss_function", "epochs", "start", "train_one_epoch"),
}
NOT_IMPORTED = ("lightning", "accelerate")  # slow to import; test_readme.py runs their examples
OF_EXAMPLES = {"bad", "dig", "forest", "water"}  # names of classes and files in outputs


def require(check: Callable[[str], object], texts: Iterator[tuple[str, str]]) -> None:
    """Check each text, and fail with all that is wrong, each with its place."""
    found = []
    for place, text in texts:
        try:
            check(text)
        except (Exception, SystemExit) as error:
            details = "; ".join(f"{each.key}: {each.message}" for each in getattr(error, "problems", ()))
            found.append(f"{place}: {text.strip()[:100]}: {type(error).__name__}: {error} {details}")
    assert not found, "\n".join(found)


def every_page(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)(test)


# --- commands


def lines_of(page: Path) -> Iterator[tuple[str, str]]:
    """The lines of the shell blocks of a page, with their places."""
    yield from ((block.place, line) for block in blocks(page, "bash", "console") for line in shell_lines(block))


def inline_commands(page: Path) -> Iterator[tuple[str, str]]:
    """The commands of swa inside sentences and tables."""
    text = BLOCK.sub("", page.read_text())
    for match in re.finditer(r"(?<!`)`(swa (?:--?\w|[a-z])[^`]*)`", text):
        yield str(page.relative_to(ROOT)), " ".join(match[1].split())


def parse(line: str, *, whole: bool) -> None:
    """Parse a command of swa: its arguments, its options and the changes of a recipe; a part may lack arguments."""
    words = shlex.split(line, comments=True)
    end = next((place for place, word in enumerate(words) if word in ("&&", "|", ">", "2>", "&", ";")), None)
    words = [word for word in words[1:end] if word not in ("...", "…")]
    while words[0].startswith("--"):
        assert words.pop(0) in {"--help", *(option for param in GROUP.params for option in param.opts)}
        if not words:
            return
    for name in words[0].split("|"):
        parse_command(name, words[1:], whole=whole)


def parse_command(name: str, words: list[str], *, whole: bool) -> None:
    command = GROUP.commands[name]
    known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)} | {"-h", "--help"}
    given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    assert given <= known, given - known
    if not given & {"-h", "--help"}:
        command.make_context(name, list(words), resilient_parsing=not whole)
    changes = [word for word in words if CHANGE.fullmatch(word)]
    if name == "sweep" and whole:
        space.read("digits", changes)
    elif changes and name in ("train", "plan", "repeat", "find-lr", "plot"):
        load.load(recipe_for(words[0], changes), changes)


@cache
def wide_recipe(folder: Path, *, swap: bool) -> Path:
    """A recipe of photos with the sections that changes below them need."""
    path = folder / f"wide-{swap}.yaml"
    averaging = {"swap": {"workers": 3}} if swap else {"swa": {}, "snapshots": {"every": "1ep"}}
    path.write_text(yaml.safe_dump({**BASE, "dataset": {"name": "image_folder", "image_size": 32}, **averaging}))
    return path


def recipe_for(name: str, changes: list[str]) -> Path | str:
    is_shipped = (ROOT / "recipes" / f"{name}.yaml").is_file()
    return name if is_shipped else wide_recipe(parse_command.folder, swap="swap." in " ".join(changes))  # type: ignore[attr-defined]


@pytest.fixture(autouse=True, scope="module")
def folder_of_recipes(tmp_path_factory: pytest.TempPathFactory) -> None:
    parse_command.folder = tmp_path_factory.mktemp("recipes")  # type: ignore[attr-defined]


def check_line(line: str) -> None:
    """A line of a shell block: a program that is known, and what the repository knows about its arguments."""
    program, *words = shlex.split(line, comments=True)
    assert program in PROGRAMS, program
    if program == "swa":
        parse(line, whole=True)
    if program == "make":
        assert {word for word in words if "=" not in word} <= make_targets(), words
    if program == "python":
        assert (ROOT / words[0]).is_file(), words[0]
    if program == "docker":
        arguments = {word.partition("=")[0] for before, word in itertools.pairwise(words) if "build-arg" in before}
        assert all(re.search(rf"^ARG {name}\b", (ROOT / "Dockerfile").read_text(), re.MULTILINE) for name in arguments)


@cache
def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@every_page
def test_each_command_is_one(page: Path) -> None:
    """Against the options and arguments of the command; a change of a recipe against its loader."""
    require(check_line, lines_of(page))
    require(lambda line: parse(line, whole=False), inline_commands(page))


def test_shell_blocks_are_shell() -> None:
    """Against the grammar of bash; placeholders such as <TAB> are no shell, and stand in other blocks."""
    text = "\n".join(block.text for page in PAGES for block in blocks(page, "bash"))
    assert subprocess.run(["bash", "-n"], input=text, text=True, stderr=subprocess.PIPE).stderr == ""


def test_extras_and_tasks_in_the_text_exist() -> None:
    """Each `swa-cli[NAME]` against pyproject.toml, each `make NAME` against the Makefile."""
    text = "\n".join(page.read_text() for page in PAGES)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {name for group in re.findall(r"(?:swa-cli|'\.)\[([\w,]+)\]", text) for name in group.split(",")}
    assert named
    assert named <= set(extras), named - set(extras)
    assert set(re.findall(r"`make ([a-z-]+)`", text)) <= make_targets()
    table = (ROOT / "docs/install.md").read_text().partition("| part |")[2].partition("\n\n")[0]
    listed = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (.*?) \|", table, re.MULTILINE))))
    assert listed == set(extras) - {"bench", "dev", "docs"}


# --- other blocks


@every_page
def test_every_block_is_of_a_kind_that_is_checked(page: Path) -> None:
    """A block without a language, or in another one, has no check."""
    kinds = {"bash", "console", "csv", "python", "text", "yaml"}
    assert [block.place for block in blocks(page) if block.language not in kinds] == []
    assert page.read_text().count("```") == 2 * len(blocks(page))


def check_recipe(text: str) -> None:
    """Load each recipe of a block."""
    for whole in recipes_in(text):
        path = parse_command.folder / "shown.yaml"  # type: ignore[attr-defined]
        path.write_text(yaml.safe_dump(whole))
        load.load(path, [])


@every_page
def test_each_recipe_is_one(page: Path) -> None:
    """Against the loader, which refuses any key and value that is not."""
    require(check_recipe, ((block.place, block.text) for block in blocks(page, "yaml")))


def check_python(text: str) -> None:
    """Find each name that is used, and in a module that is imported each attribute."""
    tree = ast.parse(text)
    modules: dict[str, Any] = {}
    bound = {*dir(builtins), *OF_THE_READER}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
            modules.update(imported(node))
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert used <= bound, used - bound
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.fullmatch(r"[\w.]+", ast.unparse(node)):
            dotted = ast.unparse(node).split(".")
            found = modules.get(dotted[0])
            for part in dotted[1:]:
                if not isinstance(found, ModuleType):
                    break
                found = getattr(found, part)


def imported(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, Any]]:
    """Import what a statement names, and return it by its name in the example."""
    sources = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    for source in sources:
        assert importlib.util.find_spec(source.split(".")[0]), source
        if source.split(".")[0] in NOT_IMPORTED:
            return
    for alias in node.names:
        if isinstance(node, ast.Import):
            yield (alias.asname or alias.name).split(".")[0], importlib.import_module(alias.name)
        else:
            yield alias.asname or alias.name, getattr(importlib.import_module(node.module or ""), alias.name)


@every_page
def test_each_name_in_python_exists(page: Path) -> None:
    """Against what the example defines and imports, and what the imported modules have."""
    require(check_python, ((block.place, block.text) for block in blocks(page, "python")))


def check_table(text: str) -> None:
    header, *rows = csv.reader(text.splitlines())
    assert rows
    assert {len(row) for row in rows} == {len(header)}


@every_page
def test_each_table_has_its_columns(page: Path) -> None:
    require(check_table, ((block.place, block.text) for block in blocks(page, "csv")))


@cache
def words_of_the_source() -> tuple[set[str], str]:
    """The words of the code and of the shipped recipes, and all of them in their order."""
    files = [*(ROOT / "swa_cli").rglob("*.py"), *(ROOT / "recipes").rglob("*.yaml")]
    text = "\n".join(path.read_text() for path in files)
    return set(re.findall(r"[A-Za-z]+", text)), " ".join(
        re.findall(r"[a-z]+", re.sub(r"\{[^{}]*\}", " ", text.lower()))
    )


def check_output(text: str) -> None:
    """Find each word of an output in the source, and most words beside the word before them."""
    words, whole = words_of_the_source()
    text = re.sub(r"<TAB>", "", text)
    unknown = set(re.findall(r"[A-Za-z]{3,}", text)) - words - OF_EXAMPLES
    assert not unknown, unknown
    if "/" in text.split(maxsplit=1)[0]:  # a folder with its files
        return
    text = re.sub(r"\b(swa|last|baseline)\b", " . ", text)  # names of weight sets
    phrases = [phrase.lower().split() for phrase in re.findall(r"[A-Za-z]+(?: [A-Za-z]+)+", text)]
    pairs = [f"{first} {second}" for phrase in phrases for first, second in itertools.pairwise(phrase)]
    strange = [pair for pair in pairs if f" {pair} " not in whole]
    assert len(strange) <= 0.25 * len(pairs), strange


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_each_output_has_the_words_of_the_source(page: Path) -> None:
    """An output whose wording has changed in the code is shown as it was: its words are not in the source any more.

    The map of CONTRIBUTING.md is held against the files by `test_the_map_has_every_file`.
    """
    shown = ((block.place, re.sub(r"^\$ .*$", "", block.text, flags=re.M)) for block in blocks(page, "text", "console"))
    require(check_output, shown)


@every_page
def test_links_between_files_lead_to_files(page: Path) -> None:
    """As they are read on a platform that shows the repository; the site has its own check."""
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", BLOCK.sub("", page.read_text()))
    local = [target for target in targets if not target.startswith("https://")]
    assert [target for target in local if not (page.parent / target).exists()] == []
    assert [target for target in targets if target.startswith("http://")] == []


def test_the_table_of_files_has_what_a_run_leaves(swa: Any, tmp_path: Path) -> None:
    """Each file of a real run against the table in docs/checkpoints.md, and those that every such run has."""
    (tmp_path / "small.yaml").write_text(SMALL)
    changes = [
        "train.keep_best=val_loss",
        "snapshots={every: 1ep}",
        "schedule={name: wsd, warmup: 0ep}",
        "swa={start: 50%}",
    ]
    ended = swa("train", "small.yaml", *changes, "-q")
    assert ended.code == 0, ended.err
    table = (ROOT / "docs/checkpoints.md").read_text().partition("| file |")[2].partition("\n\n")[0]
    shown = re.findall(r"`([\w/.*]+)`", " ".join(re.findall(r"^\| (.*?) \|", table, re.MULTILINE)))
    shown += re.findall(r"`(\w+\.pt)` is the one before", table)
    folder = tmp_path / "runs/latest"
    left = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    unknown = [name for name in left if not any(fnmatch(name, f"*{pattern}") for pattern in shown)]
    assert unknown == []
    assert {pattern for pattern in shown if not any(fnmatch(name, f"*{pattern}") for name in left)} <= {
        *("budget.json", "workers/", "tensorboard/", "wandb/", "mlflow/", "loggers.json"),
    }


def test_the_notebook_is_one() -> None:
    """It is in the site as a file; test_tour.py runs it."""
    assert json.loads((ROOT / "docs/tour.ipynb").read_text())["nbformat"] == 4
