"""The page in headless Chromium, offline: light and dark, keyboard, width.

Screenshots are left in pytest's temporary folder, or in $LADDERIZE_SCREENSHOTS to be looked at.
"""

import os
import shutil
from pathlib import Path

import pytest
from helpers.reports import block, machine, report_of

from ladderize.tools.plot import draw
from ladderize.tools.plot.palettes import DARK, LIGHT
from ladderize.tools.predict.timeline import predict

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
if CHROMIUM is None:
    pytest.skip("no chromium on this machine: the page was NOT tested", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: page NOT tested")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        # As root, as in a container, Chromium starts without its sandbox only.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    report = report_of([block(i) for i in range(40)])
    out = tmp_path_factory.mktemp("page") / "plot.html"
    return draw(report, out, predict(report, machine()), title=f"Llama {'long_' * 30}name")


@pytest.fixture
def show(browser, path, tmp_path):
    """Opens the page; at the end, demands that nothing was logged or fetched."""
    opened, said, fetched = [], [], []

    def show(scheme="light", width=1280):
        context = browser.new_context(
            color_scheme=scheme, viewport={"width": width, "height": 900}, offline=True
        )
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: fetched.append(request.url))
        page.goto(path.as_uri())
        opened.append(context)
        folder = Path(os.environ.get("LADDERIZE_SCREENSHOTS", tmp_path))
        folder.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=folder / f"plot-{scheme}-{width}.png", full_page=True)
        return page

    yield show
    for context in opened:
        context.close()
    assert said == []
    assert fetched == [path.as_uri()] * len(opened)


def rgb(color):
    return f"rgb({', '.join(str(int(color[i : i + 2], 16)) for i in (1, 3, 5))})"


@pytest.mark.parametrize(("scheme", "palette"), [("light", LIGHT), ("dark", DARK)])
def test_it_follows_the_system(show, scheme, palette):
    page = show(scheme)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == rgb(palette["page"])
    strokes = page.evaluate(
        "[...document.querySelectorAll('svg path')].map(e => getComputedStyle(e))"
        ".filter(s => s.strokeDasharray !== 'none').map(s => s.stroke)"
    )
    assert rgb(palette["stale"]) in strokes
    name = page.get_by_text("h1 · layer 0").first
    assert name.evaluate("e => getComputedStyle(e).fill") == rgb(palette["muted"])


@pytest.mark.parametrize("width", [375, 1280])
def test_no_page_is_wider_than_its_window(show, width):
    page = show(width=width)
    page.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate(
        "[...document.querySelectorAll('.scroller')].filter(e => e.scrollWidth > e.clientWidth)"
        ".length"
    )
    assert (wide > 0) == (width == 375)  # they scroll by themselves


def scrolled(part):
    """How far a part has scrolled, which takes a few frames.

    `Page.wait_for_function` compiles its text once more at each frame, in the page, where the
    page's own policy forbids that.
    """
    return part.evaluate(
        """async part => {
            for (let frame = 0; frame < 300 && part.scrollLeft === 0; frame++)
                await new Promise(requestAnimationFrame);
            return part.scrollLeft;
        }"""
    )


def test_the_keyboard_reaches_everything(show):
    page = show(width=375)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith(
        "Block graph of stream 0"
    )
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("ArrowRight")
    assert scrolled(page.locator(":focus"))
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent").strip() == "h1 · layer 0"
    page.keyboard.press("Enter")
    row = page.locator("tr:target")
    assert "model.layers.0.mlp" in row.inner_text()
    assert row.locator("td").first.evaluate("e => getComputedStyle(e).backgroundColor") == rgb(
        LIGHT["attention"]
    )
    page.locator("summary").focus()
    assert page.locator("details tbody tr:visible").count() == 0
    page.keyboard.press("Enter")
    assert page.locator("details tbody tr:visible").count() == 40
