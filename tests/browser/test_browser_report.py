"""The page of `swa report` in headless Chromium: no errors, values under the pointer, nothing wider than the page.

What can be held of its look is held, too: contrast, whole words, shadows of what scrolls, focus, paper.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chromium import overflow, show
from conftest import SMALL, run_swa
from processes import render_blank_figures, render_real_figures

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of one run, and that of two, which differ in a key."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "small.yaml").write_text(SMALL + "snapshots: {every: 1ep}\n")
    runs = [folder / "runs/small-001", folder / "runs/small-002"]
    for seed in (0, 1):
        run_swa("train", folder / "small.yaml", f"seed={seed}", "--out", folder / "runs", "-q")
    run_swa("plot", runs[0], "plane", "--grid", "3", "--samples", "64", "-q")
    render_real_figures(setattr)
    try:
        run_swa("report", runs[0], "-o", folder / "one.html", "-q")
        run_swa("report", *runs, "-o", folder / "two.html", "-q")
    finally:
        render_blank_figures()
    return {"one": folder / "one.html", "two": folder / "two.html"}


def test_the_page_works_in_a_browser(browser: Any, pages: dict[str, Path]) -> None:
    """Two runs at 1200 and 400 pixels, light and dark: no console message, no overflow, loaded images, read values."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    for page in pages.values():
        backgrounds = set()
        for width in (1200, 400):
            for scheme in ("light", "dark"):
                show(browser, page, width=width, scheme=scheme)
                assert overflow(browser) <= 0
                images = browser.execute_script(
                    "return Promise.all([...document.images].map(i => i.decode())).then(() => document.images.length)"
                )
                assert images >= 5
                backgrounds.add(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
                chart = browser.find_element("css selector", ".chart svg")
                reading = browser.find_element("css selector", ".chart .reading")
                ActionChains(browser).move_to_element(chart).perform()
                assert reading.text.startswith("epoch 2: training ")
                chart.send_keys(Keys.ARROW_RIGHT)
                assert reading.text.startswith("epoch 3: training ")
                browser.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
                assert overflow(browser) <= 0
        assert len(backgrounds) == 2
    assert browser.get_log("browser") == []


CONTRASTS = """
const parts = text => (text.match(/[\\d.]+/g) || []).map(Number);
const light = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
const behind = node => {
  for (; node; node = node.parentElement) {
    const color = parts(getComputedStyle(node).backgroundColor);
    if (color.length === 3) return color;
  }
};
const found = [];
for (const node of document.querySelectorAll('body *')) {
  if (![...node.childNodes].some(one => one.nodeType === 3 && one.data.trim()) || node.closest('script')) continue;
  const style = getComputedStyle(node), color = node.closest('svg') ? style.fill : style.color;
  const [a, b] = [light(parts(color)), light(behind(node))].sort((a, b) => b - a);
  found.push([(a + .05) / (b + .05), node.textContent.trim().slice(0, 40)]);
}
return found;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_wcag(scheme: str, browser: Any, pages: dict[str, Path]) -> None:
    """All text of the page of two runs, with details open, against its background: at least 4.5; lines at least 3."""
    show(browser, pages["two"], width=1200, scheme=scheme)
    browser.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    found = browser.execute_script(CONTRASTS)
    assert len(found) > 200
    assert [text for contrast, text in found if contrast < 4.5] == []
    colors = """
    const style = getComputedStyle(document.documentElement);
    return arguments[0].map(name => style.getPropertyValue(name).trim());
    """
    names = ["back", "phase", "train", "val", *(f"a{n}" for n in range(5))]
    back, phase, *of_lines = (luminance(text) for text in browser.execute_script(colors, [f"--{n}" for n in names]))
    for color in of_lines:
        for ground in (back, phase):
            assert (max(color, ground) + 0.05) / (min(color, ground) + 0.05) >= 3


def luminance(color: str) -> float:
    """The relative luminance of `#rgb` or `#rrggbb`, by WCAG 2."""
    digits = color.removeprefix("#")
    digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    parts = [int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(factor * part for factor, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_a_narrow_page_shows_what_scrolls_and_breaks_no_key(browser: Any, pages: dict[str, Path]) -> None:
    """At 400 pixels: captions inside the window, keys on one line, tables that scroll with a shadow, a name, focus."""
    from selenium.webdriver.common.keys import Keys

    show(browser, pages["two"], width=400, scheme="light")
    script = """
    return [...document.querySelectorAll('.scroll')].filter(one => one.scrollWidth > one.clientWidth).map(one => ({
      layers: getComputedStyle(one).backgroundAttachment, name: one.getAttribute('aria-label'),
      role: one.getAttribute('role'), tab: one.tabIndex,
      caption: one.querySelector('caption')?.getBoundingClientRect().right ?? 0}));
    """
    scrolling = browser.execute_script(script)
    assert len(scrolling) >= 3
    for each in scrolling:
        assert each["layers"] == "local, local, scroll, scroll"
        assert (each["role"], each["tab"]) == ("region", 0)
        assert each["name"]
        assert 0 <= each["caption"] <= 400
    lines = """
    return [...document.querySelectorAll('.words td:first-child, dt')].filter(one => one.textContent).map(one => {
      const range = document.createRange(); range.selectNodeContents(one); return range.getClientRects().length; });
    """
    assert set(browser.execute_script(lines)) == {1}
    browser.find_element("css selector", "body").send_keys(Keys.TAB)
    focused = "return getComputedStyle(document.activeElement).outlineStyle + document.activeElement.className"
    assert browser.execute_script(focused) == "solidscroll"


def test_paper_shows_all(browser: Any, pages: dict[str, Path]) -> None:
    """Printed from a dark screen: details unfolded, a white ground, no hint at a pointer, every table whole."""
    show(browser, pages["two"], width=1200, scheme="dark")
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    script = """
    return [getComputedStyle(document.body).backgroundColor, document.querySelectorAll('details:not([open])').length,
      getComputedStyle(document.querySelector('.reading')).display,
      getComputedStyle(document.querySelector('.scroll')).overflowX];
    """
    assert browser.execute_script(script) == ["rgb(255, 255, 255)", 0, "none", "visible"]
