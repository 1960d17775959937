"""The documentation: the site builds without a warning or a dead link, and every block of code in it is checked.

Commands are parsed by the command line itself and their changes by the loader of recipes, YAML is loaded as a recipe,
names in Python are resolved, tables are read, and the words of outputs stand in the source. A block of another kind
fails. The blocks that are also run are in test_readme.py and beside their subjects.
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
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
import typer
import yaml

import swa_cli
from conftest import SMALL
from swa_cli.cli import app
from swa_cli.cli.shared import CHANGE
from swa_cli.data.datasets import DATASETS
from swa_cli.metrics.metric import BY_TASK
from swa_cli.models.build_model import ZOO
from swa_cli.recipe import load, space
from swa_cli.recipe.kinds import KINDS
from swa_cli.recipe.schedules import SCHEDULES
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.schema.output import LOGGERS
from swa_cli.recipe.templates import NAME, keys

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
GROUP: Any = typer.main.get_command(app)
BASE: dict[str, Any] = {  # what the parts of recipes that pages show are put into
    "model": {"name": "convnet"},
    "dataset": {"name": "digits"},
    "optimizer": {"lr": 0.1},
    "train": {"epochs": 9},
}
PROGRAMS = ("swa", "pip", "pipx", "make", "docker", "python")
OF_THE_READER = {  # names that an example for a loop of one's own supposes
    *("model", "optimizer", "train_loader", "loss_function", "epochs", "start", "train_one_epoch"),
}
NOT_IMPORTED = ("lightning", "accelerate")  # slow to import; test_readme.py runs their examples
OF_EXAMPLES = {"bad", "dig", "forest", "water"}  # names of classes and files in outputs


class Block(NamedTuple):
    """A block of code of a page."""

    place: str
    language: str
    text: str


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of a page in these languages, or all."""
    text = page.read_text()
    found = [
        Block(f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}", match[2], match[3])
        for match in BLOCK.finditer(text)
    ]
    return [block for block in found if not languages or block.language in languages]


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


def shell_lines(page: Path) -> Iterator[tuple[str, str]]:
    """The lines of shell blocks, and those after a prompt, with continued lines joined and comments removed."""
    for block in blocks(page, "bash", "console"):
        text = block.text.replace("\\\n", " ")
        if block.language == "console":
            text = "\n".join(re.findall(r"^\$ (.*)$", text, re.MULTILINE))
        elif text.startswith("#!"):  # a script
            continue
        yield from ((block.place, line) for line in text.splitlines() if line and not line.startswith("#"))


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
    require(check_line, shell_lines(page))
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
    """Load a recipe, or a part of one inside a small recipe; a line that repeats a key begins another part."""
    starts = re.findall(r"^(\w+):", text, re.MULTILINE)
    for part in text.splitlines() if len(set(starts)) < len(starts) else [text]:
        document = yaml.safe_load(part)
        whole = {**BASE, **document}
        for key in BASE:
            is_complete = key in ("model", "dataset") and "name" in whole[key]
            whole[key] = whole[key] if is_complete else {**BASE[key], **whole[key]}
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


# --- the site


class Links(HTMLParser):
    """The links, the loaded files and the anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.anchors: set[str] = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.add(found["href"])
        elif tag == "link" and found.get("rel") != "canonical" and "href" in found:
            self.loaded.add(found["href"])
        elif "src" in found:
            self.loaded.add(found["src"])


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


@pytest.fixture(scope="module")
def linked(site: Path) -> dict[Path, Links]:
    return {page: Links(page.read_text()) for page in site.rglob("*.html") if page.name != "404.html"}


@pytest.mark.filterwarnings("ignore")  # of the libraries
def test_the_site_needs_no_network(site: Path, linked: dict[Path, Links]) -> None:
    """Scripts, styles, fonts and images of every page, and what its styles name, lie in the site."""
    assert len(linked) > 30
    for page, found in linked.items():
        for source in found.loaded:
            assert not urlsplit(source).netloc, (page, source)
            assert source.startswith("data:") or (page.parent / unquote(urlsplit(source).path)).is_file(), (
                page,
                source,
            )
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )['\"]?(https?:)?//", style.read_text()), style


@pytest.mark.filterwarnings("ignore")
def test_every_link_leads_somewhere(linked: dict[Path, Links]) -> None:
    """Each link to a page and to a place in it against the built pages; those to other hosts are encrypted."""
    dead = []
    for page, found in linked.items():
        for link in found.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                assert parts.scheme == "https", (page.name, link)
                assert "." in parts.netloc, (page.name, link)
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            anchors = linked[target].anchors if target in linked else {""}
            if not target.exists() or unquote(parts.fragment) not in anchors:
                dead.append(f"{page.name}: {link}")
    assert dead == []


@pytest.mark.filterwarnings("ignore")
def test_the_reference_has_every_command(site: Path) -> None:
    """Against the command line: each command, each option that is shown in its help, and its exit codes."""
    page = (site / "reference/commands.html").read_text()
    for name, command in GROUP.commands.items():
        section = page.partition(f'id="swa-{name}"')[2].partition("<h2 ")[0]
        shown = [param for param in command.params if not getattr(param, "hidden", False)]
        options = [option for param in shown for option in param.opts if option.startswith("-")]
        assert [option for option in options if option not in section] == [], name
        assert "143" in section, name


@pytest.mark.filterwarnings("ignore")
def test_the_reference_has_every_entry_of_the_tables(site: Path) -> None:
    """Schedules, averages, metrics, datasets, networks and loggers against their tables; names of the library."""
    page = (site / "reference/kinds.html").read_text()
    metrics = [metric.key for metrics in BY_TASK.values() for metric in metrics.all]
    arguments = [key for dataset in DATASETS.values() for key in dataset.args or ()]
    for name in (*SCHEDULES, *KINDS, *metrics, *DATASETS, *arguments, *ZOO, *LOGGERS):
        assert f"<code>{name}</code>" in page, name
    python = (site / "reference/python.html").read_text()
    assert all(f">{name}</" in python for name in swa_cli.__all__ if not name.startswith("_"))


def all_keys(model: Any, path: str = "") -> Iterator[str]:
    for key in keys(model):
        if key.section is None or key.name in ("random_resized_crop", "compile"):
            yield f"{path}{key.name}"
        if key.section is not None:
            yield from all_keys(key.section, f"{path}{key.name}." + (f"{NAME}." if key.many == "named" else ""))


def context_of(dotted: str) -> list[str]:
    """The changes of the digits under which a key may be set: its schedule, kind of average, or other section."""
    section, _, key = dotted.rpartition(".")
    if section == "schedule":
        name = next(name for name, entry in SCHEDULES.items() if key in entry.keys or key == "name")
        required = {"T_0": "3ep", "base_lr": "0.01", "step_size_up": "1ep", "milestones": "[50%]", "max_lr": "0.5"}
        own = [f"schedule.{need}={required[need]}" for need in SCHEDULES[name].required]
        return [f"schedule={{name: {name}}}", *own, *(["swa.lr=0.05"] if key == "span" else [])]
    if section == f"averages.{NAME}":
        kind = next((name for name, entry in KINDS.items() if key in entry.keys), "ema")
        return [f"averages={{NAME: {{kind: {kind}}}}}"]
    needed = {
        "swap": ["swa=null", "snapshots=null", "swap={workers: 2}"],
        "train.early_stopping": ["train.early_stopping={patience: 3}"],
        "dataset.interpolation": ["dataset.name=image_folder", "dataset.image_size=32"],
        "train.focal_gamma": ["train.loss=focal"],
        "train.init_weights": ["train.init=last.pt"],
        "train.init_skip": ["train.init=last.pt"],
        "swa.anneal": ["swa.lr=0.05"],
        "model.unfreeze": ["model.freeze=[fc.*]"],
    }
    return [word for prefix, words in needed.items() if dotted.startswith(prefix) for word in words]


@pytest.mark.filterwarnings("ignore")
def test_the_reference_has_every_key_with_an_example_that_loads(site: Path) -> None:
    """Each key of the schema against the page; its example against the loader."""
    page = (site / "reference/keys.html").read_text()
    names = [*all_keys(Recipe)]
    assert len(names) > 130

    def check(dotted: str) -> None:
        entry = page.partition(f'id="{dotted}"')[2].partition("</dd>")[0]
        (shown,) = re.findall(r"example <code>(.*?)</code>", entry)
        (change,) = shlex.split(shown.replace("&quot;", '"').replace("&amp;", "&").replace("&#39;", "'"))
        renamed = change.replace(f".{NAME}", ".example")
        context = [word.replace(NAME, "example") for word in context_of(dotted)]
        load.load("digits", [*context, renamed])

    require(check, ((name, name) for name in names))


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
        *("budget.json", "tensorboard/", "wandb/", "mlflow/", "loggers.json"),
    }


def test_the_notebook_is_one() -> None:
    """It is in the site as a file; test_tour.py runs it."""
    assert json.loads((ROOT / "docs/tour.ipynb").read_text())["nbformat"] == 4
