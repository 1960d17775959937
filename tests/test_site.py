"""The site that is built of the documentation: no warning, no dead link, no other host, a whole reference."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import typer

import swa_cli
from swa_cli.cli import app
from swa_cli.data.datasets import DATASETS
from swa_cli.errors import RecipeError
from swa_cli.metrics.metric import BY_TASK
from swa_cli.models.build_model import ZOO
from swa_cli.recipe import load
from swa_cli.recipe.kinds import KINDS
from swa_cli.recipe.schedules import SCHEDULES
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.schema.output import LOGGERS
from swa_cli.recipe.templates import NAME, keys

ROOT = Path(__file__).parent.parent
GROUP: Any = typer.main.get_command(app)
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries


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


@pytest.mark.slow
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


def test_the_reference_has_every_command(site: Path) -> None:
    """Against the command line: each command, each option that is shown in its help, and its exit codes."""
    page = (site / "reference/commands.html").read_text()
    for name, command in GROUP.commands.items():
        section = page.partition(f'id="swa-{name}"')[2].partition("<h2 ")[0]
        shown = [param for param in command.params if not getattr(param, "hidden", False)]
        options = [option for param in shown for option in param.opts if option.startswith("-")]
        assert [option for option in options if option not in section] == [], name
        assert "143" in section, name


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


def test_the_reference_has_every_key_with_an_example_that_loads(site: Path) -> None:
    """Each key of the schema against the page; its example against the loader."""
    page = (site / "reference/keys.html").read_text()
    names = [*all_keys(Recipe)]
    assert len(names) > 130

    refused = []
    for dotted in names:
        entry = page.partition(f'id="{dotted}"')[2].partition("</dd>")[0]
        (shown,) = re.findall(r"example <code>(.*?)</code>", entry)
        (change,) = shlex.split(unescape(shown))
        try:
            load.load("digits", [word.replace(NAME, "example") for word in (*context_of(dotted), change)])
        except RecipeError as error:
            refused.append((change, error.problems))
    assert refused == []
