"""The page in headless Chromium, offline: themes, keyboard, selection, folding, zoom, width.

Screenshots are left in pytest's temporary folder, or in $LADDERIZE_SCREENSHOTS to be looked at.
"""

import os
import shutil
from pathlib import Path

import pytest
from helpers.reports import block, machine, report_of

from ladderize.report import Refusal
from ladderize.tools.plot import draw
from ladderize.tools.plot.theme import DARK, LIGHT
from ladderize.tools.predict.timeline import Interval, Lane, Step, Timeline, predict

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
if CHROMIUM is None:
    pytest.skip("no chromium on this machine: the page was NOT tested", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: page NOT tested")

# Of all-reduces that take 0.8 of a block, as every 1000 FLOPs take 5 s.
HARDWARE = machine()


def chain(layers, stale=1, **fields):
    return [block(i, stale, **fields) for i in range(2 * layers)]


def two_streams():
    reads = {"reads_before": ("x1_1", "y3"), "reads_after": ("x0_1", "y3")}
    decoder = [block(0, stream=1), block(1, stream=1, **reads), block(2, stream=1)]
    return report_of(chain(2), decoder)


REPORTS = {
    "small": report_of(chain(3)),
    "deep": report_of(chain(80)),
    "streams": two_streams(),
    "refused": report_of(chain(2, stale=0), refusal=Refusal("It cannot be.", (), "take it out")),
    "unsized": report_of(chain(2, flops=None)),
}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        # As root, as in a container, Chromium starts without its sandbox only.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def show(browser, tmp_path):
    """Opens a page of a report, and at the end demands that nothing was said or fetched."""
    opened = []

    def show(report, timeline=None, scheme="light", width=1280, **options):
        path = draw(report, tmp_path / f"{len(opened)}.html", timeline or predict(report, HARDWARE))
        context = browser.new_context(
            color_scheme=scheme, viewport={"width": width, "height": 900}, offline=True, **options
        )
        page, said, fetched = context.new_page(), [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: fetched.append(request.url))
        page.goto(path.as_uri())
        opened.append((context, said, fetched, path.as_uri()))
        return page

    yield show
    for context, said, fetched, address in opened:
        context.close()
        assert said == []
        assert fetched == [address]


def picture(page, name, tmp_path):
    folder = Path(os.environ.get("LADDERIZE_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png", full_page=True)
    assert (folder / f"{name}.png").stat().st_size > 10_000


def style(page, selector, name):
    return page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{name}")


def rgb(colour):
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


def focused(page):
    return page.evaluate("document.activeElement.getAttribute('aria-label')")


def selected(page, view):
    """The blocks that are marked in a view."""
    return page.evaluate(
        "view => [...new Set([...document.querySelectorAll(`.${view} .selected[data-block]`)]"
        ".map(e => e.dataset.block))]",
        view,
    )


# ---- looks


@pytest.mark.parametrize("width", [1280, 600])
@pytest.mark.parametrize("name", list(REPORTS))
def test_no_page_is_wider_than_its_window(show, tmp_path, name, width):
    page = show(REPORTS[name], width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for button in page.locator(".unfold:visible").all()[:1]:
        button.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    picture(page, f"{name}-{width}", tmp_path)


@pytest.mark.parametrize(("scheme", "palette"), [("light", LIGHT), ("dark", DARK)])
def test_it_follows_the_system_and_the_button(show, tmp_path, scheme, palette):
    page = show(REPORTS["small"], scheme=scheme)
    other = DARK if palette is LIGHT else LIGHT
    assert style(page, "html", "backgroundColor") == rgb(palette["page"])
    assert style(page, ".graph .block text", "fill") == rgb(palette["ink"])
    assert style(page, ".stale-wire", "stroke") == rgb(palette["stale"])
    assert style(page, ".stale-wire", "strokeDasharray") == "6px, 4px"
    picture(page, scheme, tmp_path)
    button = page.locator(".theme")
    assert button.get_attribute("aria-pressed") == str(scheme == "dark").lower()
    button.focus()
    page.keyboard.press("Enter")
    assert style(page, "html", "backgroundColor") == rgb(other["page"])
    assert button.get_attribute("aria-pressed") == str(scheme == "light").lower()
    button.click()
    assert style(page, "html", "backgroundColor") == rgb(palette["page"])


def test_motion_is_reduced_for_those_who_ask(show):
    page = show(REPORTS["small"], reduced_motion="reduce")
    assert style(page, ".graph .block", "transitionDuration") == "0s"
    assert style(show(REPORTS["small"]), ".graph .block", "transitionDuration") != "0s"


# ---- keyboard


def test_each_view_is_one_tab_stop(show):
    page = show(REPORTS["small"])
    for view in ("graph", "time", "layers"):
        assert page.locator(f'.{view} .pick[tabindex="0"]').count() == 1
    page.locator(".graph .pick >> nth=0").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")
    assert focused(page).startswith("standard: h1,")


def test_arrow_keys_go_through_the_blocks(show):
    page = show(report_of(chain(2, stale=1)))
    page.locator(".graph .pick >> nth=0").focus()
    assert focused(page).startswith("standard: h0, attention, layer 0")
    seen = []
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft", "End", "Home", "ArrowUp"):
        page.keyboard.press(key)
        seen.append(focused(page).partition(",")[0])
    net = ["standard", "standard", "ladder", "ladder", "ladder", "ladder", "standard"]
    index = [1, 2, 2, 1, 3, 0, 0]
    assert seen == [f"{a}: h{b}" for a, b in zip(net, index, strict=True)]
    page.keyboard.press("ArrowUp")  # nothing is above
    assert focused(page).startswith("standard: h0")


def test_focus_shows(show):
    page = show(REPORTS["small"])
    page.locator(".graph .pick >> nth=0").focus()
    page.keyboard.press("ArrowRight")
    outline = page.evaluate("getComputedStyle(document.activeElement.querySelector('.box')).stroke")
    assert outline == rgb(LIGHT["focus"])
    page.locator(".layers tr.pick >> nth=0").focus()
    page.keyboard.press("ArrowDown")
    row = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert row == "solid"


def test_intervals_are_reached_too(show):
    page = show(REPORTS["small"])
    page.locator(".time .pick >> nth=0").focus()
    assert focused(page) == "standard: h0, attention, 5 s, 0 to 5 s"
    page.keyboard.press("ArrowDown")
    assert focused(page) == "standard: all-reduce h0, 4 s, 5 s to 9 s, 4 s exposed"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert focused(page) == "ladder: all-reduce h1, 4 s, 10 s to 14 s, hidden"


def test_enter_selects_a_block_in_all_views(show):
    page = show(report_of(chain(2)))
    about = page.locator(".about")
    assert about.is_hidden()
    page.locator(".graph .pick >> nth=0").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    for view in ("graph", "time", "layers"):
        assert selected(page, view) == ["0-0-1"]
    assert page.locator('.graph .block.pick.selected[aria-pressed="true"]').count() == 2
    assert page.locator('.time .pick.selected[aria-pressed="true"]').count() == 4
    assert page.locator('tr.selected[aria-selected="true"]').count() == 1
    assert "h1, MLP, layer 0, model.layers.0.mlp · reads x0 instead of x1" in about.inner_text()
    assert "exposed 4 s → 0" in about.inner_text()
    page.keyboard.press("Escape")
    assert selected(page, "graph") == selected(page, "time") == selected(page, "layers") == []
    assert about.is_hidden()
    page.keyboard.press(" ")
    assert selected(page, "layers") == ["0-0-1"]


def test_a_click_selects_and_lets_go(show):
    page = show(REPORTS["streams"])
    row = page.locator('tr[data-block="0-1-1"]')
    row.click()
    assert selected(page, "graph") == selected(page, "time") == ["0-1-1"]
    assert "reads x0_1, y3 instead of x1_1, y3" in page.locator(".about").inner_text()
    row.click()
    assert selected(page, "graph") == []


# ---- folding


def test_layers_are_folded_and_shown(show, tmp_path):
    page = show(REPORTS["deep"])
    assert page.locator(".graph .block.pick:visible").count() == 8  # four in each net
    assert page.locator(".layers tr.block:visible").count() == 4
    button = page.locator(".graph .unfold")
    assert (button.inner_text(), button.get_attribute("aria-expanded")) == (
        "Show all 160 blocks",
        "false",
    )
    button.click()
    assert page.locator(".graph .block.pick:visible").count() == 320
    assert page.locator(".layers tr.block:visible").count() == 160
    assert button.get_attribute("aria-expanded") == "true"
    picture(page, "unfolded", tmp_path)
    page.locator(".layers .unfold").click()
    assert page.locator(".graph .block.pick:visible").count() == 8


def test_a_fold_opens_at_its_first_block(show):
    page = show(REPORTS["deep"])
    page.locator(".graph .block.pick:visible >> nth=4").focus()
    page.keyboard.press("End")
    assert focused(page).startswith("156 blocks folded: layers 2-79: as layer 1.")
    page.keyboard.press("Enter")
    assert focused(page).startswith("ladder: h4, attention, layer 2")
    box = page.evaluate("document.activeElement.getBoundingClientRect().toJSON()")
    assert 0 <= box["left"] <= box["right"] <= 1280


def test_what_is_selected_in_a_fold_is_marked(show):
    page = show(REPORTS["deep"])
    page.locator('.time [data-block="0-0-77"] >> nth=0').dispatch_event("click")
    assert page.locator(".graph .fold.selected:visible").count() == 2
    assert page.locator(".layers tr.fold.selected:visible").count() == 1
    page.locator(".graph .unfold").click()
    chosen = page.locator(".graph .block.pick.selected:visible")
    assert chosen.count() == 2
    page.wait_for_function(
        "() => { const box = document.querySelector('.only-unfolded .block.pick.selected')"
        ".getBoundingClientRect(); return box.left >= 0 && box.right <= innerWidth; }"
    )


# ---- the timeline


def lane_width(page):
    return page.locator(".stretched").evaluate("e => e.getBoundingClientRect().width")


def test_zoom_and_pan(show, tmp_path):
    page = show(REPORTS["deep"])
    fit = lane_width(page)
    assert page.locator(".time [data-needs][visibility=visible]").count() == 0
    page.locator(".time .pick >> nth=40").focus()
    for _ in range(8):
        page.keyboard.press("+")
    assert lane_width(page) == pytest.approx(fit * 1.5**8, rel=0.01)
    assert page.locator(".time [data-needs][visibility=visible]").count() > 300
    assert page.locator(".tick.level-2:visible").count() > 0
    box = page.evaluate("document.activeElement.getBoundingClientRect().toJSON()")
    assert 0 <= box["left"] <= box["right"] <= 1280  # what has the focus stays in sight
    picture(page, "zoomed", tmp_path)
    before = page.locator(".time .scroller").evaluate("e => e.scrollLeft")
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    assert page.locator(".time .scroller").evaluate("e => e.scrollLeft") > before
    page.keyboard.press("-")
    assert lane_width(page) == pytest.approx(fit * 1.5**7, rel=0.01)
    page.keyboard.press("0")
    assert lane_width(page) == pytest.approx(fit)
    page.locator("[data-zoom=in]").click()
    assert lane_width(page) == pytest.approx(fit * 1.5, rel=0.01)
    page.locator(".time .scroller").hover()
    page.keyboard.down("Control")
    page.mouse.wheel(0, -300)
    page.keyboard.up("Control")
    page.wait_for_function(
        "fit => document.querySelector('.stretched').clientWidth > 3 * fit", arg=fit
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_a_measured_step_without_blocks(show, tmp_path):
    """Kernels belong to no block: they have names and times, and cannot be selected."""
    kernels = tuple(Interval(i, i + 0.6, "aten::mm") for i in range(9))
    sent = tuple(Interval(i + 0.4, i + 0.9, "gloo:all_reduce") for i in range(9))
    steps = tuple(
        Step(name, Lane(kernels), Lane(sent), "t.json") for name in ("standard", "ladder")
    )
    timeline = Timeline(steps, "measured by torch.profiler: t.json")
    page = show(REPORTS["small"], timeline)
    assert "Measured by torch.profiler: t.json" in page.locator(".origin").inner_text()
    page.locator(".time .pick >> nth=0").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert focused(page) == "standard: gloo:all_reduce, 500 ms, 1.4 s to 1.9 s, 300 ms exposed"
    assert page.locator(".about").is_hidden()
    picture(page, "measured", tmp_path)


def test_without_sizes_there_is_no_timeline(show):
    page = show(REPORTS["unsized"])
    assert page.locator(".lanes").count() == 0
    assert "are not known before the model runs" in page.locator(".origin").inner_text()
    page.locator(".graph .pick >> nth=0").focus()
    page.keyboard.press("Enter")
    assert selected(page, "layers") == ["0-0-0"]
