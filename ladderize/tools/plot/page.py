"""The page: one HTML file that needs nothing else, with three views of the same blocks.

    blocks      standard above ladder, stale reads dashed             graph.py
    a step      lanes of standard above ladder, exposed time hatched  lanes.py
    layers      a table                                               table.py

What is selected in one view is marked in all; `page.js` does that, and folding and zooming.
"""

from collections.abc import Iterator, Mapping
from importlib.resources import files
from itertools import chain

from ladderize.report.data import BlockReport, GraphReport, StreamReport
from ladderize.report.present.lines import Section, page_of, title_of
from ladderize.report.report import Report
from ladderize.tools.plot import lanes, units
from ladderize.tools.plot.graph import BlockGraph
from ladderize.tools.plot.layout import can_fold, lay_out
from ladderize.tools.plot.svg import Markup, tag
from ladderize.tools.plot.table import Times, table
from ladderize.tools.plot.theme import DARK, LIGHT, drawing_style, variables
from ladderize.tools.predict.timeline.division import Division
from ladderize.tools.predict.timeline.steps import BlockKey, Step, Timeline, key_of

# Of the timeline before anybody knows how wide the window is.
WIDTH = 1000
# Nothing is fetched, whatever a module's name may hold.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(report: Report, timeline: Timeline, title: str) -> str:
    """The whole file."""
    text = page_of(report, full=True)
    head = tag(
        "head",
        Markup('<meta charset="utf-8">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        tag("title", title),
        tag("style", Markup(_style())),
    )
    body = tag(
        "body",
        HATCH,
        _header(title, text.headline),
        tag("p", tag("strong", text.warning), class_="warning", role="note"),
        tag(
            "main",
            *map(_refused, (part for part in text.parts if part.is_bad)),
            _blocks(report),
            _step(report, timeline),
            _layers(report, timeline),
            *_notes(text.parts),
        ),
        tag("footer", f"{text.footer} · drawn by ladderize plot"),
        tag("output", class_="about", aria_live="polite", hidden=True),
        tag("script", Markup(_resource("page.js"))),
    )
    whole = tag("html", head, body, lang="en", data_folded="true")
    return f"<!doctype html>\n{whole}\n"


HATCH = tag(
    "svg",
    tag(
        "defs",
        tag(
            "pattern",
            tag("path", class_="hatch-line", d="M0 0V6"),
            id="exposed-hatch",
            width=6,
            height=6,
            patternUnits="userSpaceOnUse",
            patternTransform="rotate(45)",
        ),
    ),
    class_="drawing definitions",
    width=0,
    height=0,
    aria_hidden="true",
)


def _style() -> str:
    light, dark = variables(LIGHT), variables(DARK)
    return (
        f":root{{color-scheme:light;{light}}}\n"
        f"@media (prefers-color-scheme: dark){{:root:not([data-theme=light])"
        f"{{color-scheme:dark;{dark}}}}}\n"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}\n"
        f"{drawing_style()}{_resource('page.css')}"
    )


def _resource(name: str) -> str:
    return files("ladderize.tools.plot").joinpath(name).read_text()


def _header(title: str, headline: str) -> Markup:
    button = tag("button", "Dark", type="button", class_="theme", aria_pressed="false")
    words = tag("div", tag("h1", title), tag("p", headline, class_="quiet"))
    return tag("header", words, button)


def _refused(part: Section) -> Markup:
    lines = [tag("p", line) for line in part.lines]
    return tag(
        "section", tag("h2", part.title[:1].upper() + part.title[1:]), *lines, class_="refused"
    )


def _notes(parts: tuple[Section, ...]) -> Iterator[Markup]:
    """Collectives, sharding and what streams are left alone for."""
    noted = [part for part in parts if part.lines and not part.is_bad]
    if noted:
        items = [
            tag("div", tag("h3", part.title), *(tag("p", line) for line in part.lines))
            for part in noted
        ]
        yield tag("section", tag("h2", "Notes"), *items, class_="notes")


# ---- blocks


def _blocks(report: Report) -> Markup:
    title = tag("div", tag("h2", "Blocks", id="blocks"), *_fold_button(report), class_="bar")
    drawn = [
        _stream(graph, stream)
        for graph in report.graphs
        for stream in graph.streams
        if stream.blocks
    ]
    if not drawn:
        drawn = [tag("p", "No residual block was found.", class_="quiet")]
    return tag(
        "section", title, _legend(report), *drawn, class_="view graph", aria_labelledby="blocks"
    )


def _fold_button(report: Report) -> Iterator[Markup]:
    if can_fold([stream for stream in report.streams if stream.blocks]):
        text = f"Show all {len(report.blocks)} blocks"
        yield tag("button", text, type="button", class_="unfold", aria_expanded="false")


def _legend(report: Report) -> Markup:
    stale = [tag("i", class_="swatch stale-swatch"), "stale read (dashed)"]
    rewired = any(block.is_rewired for block in report.blocks)
    entries = [
        *([stale] if rewired else []),
        [tag("i", class_="swatch wire-swatch"), "read and write"],
        [tag("i", "AR", class_="swatch reduce-swatch"), "all-reduce under tensor parallelism"],
    ]
    keys = "Arrow keys move between blocks, Enter selects one in all views, Esc lets go."
    spans = [tag("span", *entry) for entry in entries]
    return tag("p", *spans, tag("span", keys, class_="keys"), class_="legend")


def _stream(graph: GraphReport, stream: StreamReport) -> Markup:
    folded = lay_out(stream, is_full=False)
    drawings = [_rows(graph, stream, is_full=False, shown="only-folded" if folded.folds else None)]
    if folded.folds:
        drawings.append(_rows(graph, stream, is_full=True, shown="only-unfolded"))
    return tag("div", tag("h3", title_of(stream)), *drawings)


def _rows(graph: GraphReport, stream: StreamReport, is_full: bool, shown: str | None) -> Markup:
    layout, division = lay_out(stream, is_full), Division.of(graph)
    is_rewired = any(block.is_rewired for block in stream.blocks)
    rows: list[Markup] = []
    for is_ladder in (False, True) if is_rewired else (False,):
        drawing = BlockGraph(stream, layout, division, is_ladder)
        rows.append(tag("div", drawing.name, class_="row-name"))
        rows.append(
            tag(
                "svg",
                drawing.draw(),
                class_="drawing",
                width=layout.width,
                height=drawing.height,
                role="group",
                aria_label=f"stream {stream.index}, {drawing.name}",
            )
        )
    return tag("div", *rows, class_=f"scroller {shown or ''}".strip())


# ---- a step


def _step(report: Report, timeline: Timeline) -> Markup:
    title = tag("h2", "A step", id="step")
    origin = tag("p", timeline.origin[:1].upper() + timeline.origin[1:], class_="quiet origin")
    if not timeline.steps:
        return tag("section", title, origin, aria_labelledby="step")
    zoom = tag(
        "div",
        tag("button", "−", type="button", data_zoom="out", aria_label="zoom out"),  # noqa: RUF001
        tag("button", "fit", type="button", data_zoom="fit"),
        tag("button", "+", type="button", data_zoom="in", aria_label="zoom in"),
        class_="zoom",
        role="group",
        aria_label="zoom",
    )
    hatched = [tag("i", class_="swatch hatch-swatch"), "exposed: no compute covers it"]
    keys = "Keys + and - zoom, 0 fits; so does Ctrl with the wheel."
    return tag(
        "section",
        tag("div", title, zoom, class_="bar"),
        _figures(timeline),
        tag("p", tag("span", *hatched), tag("span", keys, class_="keys"), class_="legend"),
        _lanes(report, timeline),
        origin,
        class_="view time",
        aria_labelledby="step",
    )


def _figures(timeline: Timeline) -> Markup:
    """What the step takes, what shows of its communication, and what is hidden."""
    rows: list[tuple[str, list[str]]] = [
        ("step", [units.seconds(step.seconds) for step in timeline.steps]),
        ("exposed communication", [units.seconds(s.exposed_seconds) for s in timeline.steps]),
    ]
    fractions = [s.hidden_fraction for s in timeline.steps if s.hidden_fraction is not None]
    if len(fractions) == len(timeline.steps):
        rows.append(("hidden", [units.percent(fraction) for fraction in fractions]))
    if timeline.speedup is not None:
        rows.append(("speed-up", [f"{timeline.speedup:.2f}x"]))
    figures = [tag("div", tag("dt", name), tag("dd", " → ".join(values))) for name, values in rows]
    return tag("dl", *figures, class_="figures")


def _lanes(report: Report, timeline: Timeline) -> Markup:
    scale = lanes.percents(timeline, WIDTH)
    blocks: Mapping[BlockKey, BlockReport] = {key_of(block): block for block in report.blocks}
    drawn = [_step_lanes(step, scale, blocks) for step in timeline.steps]
    axis = tag(
        "svg",
        *lanes.axis(scale),
        class_="drawing axis",
        height=lanes.AXIS_HEIGHT,
        aria_hidden="true",
    )
    names = [
        tag(
            "svg",
            *lanes.gutter(step),
            class_="drawing",
            width=lanes.GUTTER,
            height=lanes.STEP_HEIGHT,
            aria_hidden="true",
        )
        for step in timeline.steps
    ]
    stretched = tag("div", *drawn, axis, class_="stretched")
    return tag(
        "div",
        tag("div", *names, class_="gutter"),
        tag("div", stretched, class_="scroller", data_width=WIDTH),
        class_="lanes",
    )


def _step_lanes(step: Step, scale: lanes.Scale, blocks: Mapping[BlockKey, BlockReport]) -> Markup:
    return tag(
        "svg",
        *lanes.StepDrawing(step, scale, blocks).draw(),
        class_="drawing",
        height=lanes.STEP_HEIGHT,
        role="group",
        aria_label=f"{step.name}: {lanes.summary(step)}",
    )


# ---- layers


def _layers(report: Report, timeline: Timeline) -> Markup:
    times = Times.of(timeline)
    tables = [
        [
            *([tag("h3", f"stream {stream.index}")] if len(report.streams) > 1 else []),
            tag("div", table(stream, times), class_="scroller"),
        ]
        for stream in report.streams
        if stream.blocks
    ]
    if not tables:
        return Markup("")
    title = tag("div", tag("h2", "Layers", id="layers"), *_fold_button(report), class_="bar")
    return tag("section", title, *chain(*tables), class_="view layers", aria_labelledby="layers")
