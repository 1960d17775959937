"""The page of `swa report` in headless Chromium: no errors, values under the pointer, nothing wider than the page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import SMALL, Swa

pytestmark = pytest.mark.browser

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """A Chromium of its own profile."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    driver = shutil.which("chromedriver")
    if driver is None:
        pytest.fail("chromedriver is missing: `apt-get install chromium chromium-driver`")
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chromium = webdriver.Chrome(options=options, service=Service(driver))
    yield chromium
    chromium.quit()


def show(browser: Any, page: Path, *, width: int, scheme: str) -> None:
    """Open the page at a width, in light or dark."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.as_uri())


def test_the_page_works_in_a_browser(browser: Any, tmp_path: Path, swa: Swa) -> None:
    """Two runs at 1200 and 400 pixels, light and dark: no console message, no overflow, loaded images, read values."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    (tmp_path / "small.yaml").write_text(SMALL + "snapshots: {every: 1ep}\n")
    for seed in (0, 1):
        assert swa("train", "small.yaml", f"seed={seed}", "-q").code == 0
    assert swa("plot", "runs/small-001", "plane", "--grid", "3", "--samples", "64", "-q").code == 0
    for name, runs in (("one", ["runs/small-001"]), ("two", ["runs/small-001", "runs/small-002"])):
        assert swa("report", *runs, "-o", f"{name}.html", "-q").code == 0
        backgrounds = set()
        for width in (1200, 400):
            for scheme in ("light", "dark"):
                show(browser, tmp_path / f"{name}.html", width=width, scheme=scheme)
                sizes = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
                needed, given = browser.execute_script(sizes)
                assert needed <= given <= width
                images = browser.execute_script(
                    "return Promise.all([...document.images].map(i => i.decode())).then(() => document.images.length)"
                )
                assert images >= 5
                backgrounds.add(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
                chart = browser.find_element("css selector", ".chart svg")
                reading = browser.find_element("css selector", ".chart .reading")
                ActionChains(browser).move_to_element(chart).perform()
                assert reading.text.startswith("epoch 2: train ")
                chart.send_keys(Keys.ARROW_RIGHT)
                assert reading.text.startswith("epoch 3: train ")
        assert len(backgrounds) == 2
    assert browser.get_log("browser") == []
