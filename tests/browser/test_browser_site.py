"""The documentation site in headless Chromium, opened from the disk: search, the two color schemes, narrow windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chromium import overflow, show

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]
PAGES = ("index", "explained", "first_run", "faq", "reference/keys", "reference/commands", "reference/kinds")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize("width", [1200, 400])
def test_pages_fit_and_follow_the_color_scheme(width: int, browser: Any, site: Path) -> None:
    """Pages with pictures, long code and tables: no console message, no overflow, loaded images, two backgrounds."""
    for name in PAGES:
        backgrounds = set()
        for scheme in ("light", "dark"):
            show(browser, site / f"{name}.html", width=width, scheme=scheme)
            assert overflow(browser) <= 0, name
            browser.execute_script("return Promise.all([...document.images].map(i => i.decode()))")
            backgrounds.add(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
        assert len(backgrounds) == 2, name
        assert browser.get_log("browser") == [], name


@pytest.mark.filterwarnings("ignore")
def test_search_works_from_the_disk(browser: Any, site: Path) -> None:
    """A word of one page against the first result, without a server: browsers start no worker for a file."""
    from selenium.webdriver.support.ui import WebDriverWait

    show(browser, site / "index.html", width=1200, scheme="light")
    field = browser.find_element("css selector", "[data-md-component=search-query]")
    browser.execute_script("arguments[0].focus()", field)
    field.send_keys("snapshots.cumulative")
    found = WebDriverWait(browser, 20).until(lambda it: it.find_elements("css selector", ".md-search-result__link"))
    assert "reference/keys.html" in " ".join(link.get_attribute("href") for link in found)
    assert browser.get_log("browser") == []
