"""The block graph and the timeline as one SVG, for papers and READMEs, and as a PNG of it."""

from collections.abc import Iterator
from itertools import chain

from ladderize.errors import LadderError
from ladderize.report.data import GraphReport, StreamReport
from ladderize.report.present.lines import page_of
from ladderize.report.report import Report
from ladderize.tools.plot import lanes, units
from ladderize.tools.plot.graph import BlockGraph
from ladderize.tools.plot.layout import lay_out
from ladderize.tools.plot.page import HATCH
from ladderize.tools.plot.svg import Markup, tag
from ladderize.tools.plot.theme import DARK, FAMILIES, LIGHT, drawing_style
from ladderize.tools.predict.timeline.division import Division
from ladderize.tools.predict.timeline.steps import Timeline, key_of

MARGIN = 28
# Of a picture at least.
WIDTH = 960
# Of a longer step only the beginning is shown, with bars that can be told apart.
MAX_COLLECTIVES = 16
# Pixels of a PNG for each unit of the drawing.
ZOOM = 2
THEMES = {"light": LIGHT, "dark": DARK}


class _Sheet:
    """Pieces from top to bottom, each moved to where it belongs."""

    def __init__(self) -> None:
        self.pieces: list[Markup] = []
        self.bottom: float = MARGIN
        self.width: float = WIDTH

    def text(self, text: str, kind: str = "", height: float = 20) -> None:
        y = self.bottom + height - 6
        self.pieces.append(tag("text", text, class_=kind or None, x=MARGIN, y=y))
        self.bottom += height

    def drawing(self, content: Iterator[Markup], height: float, width: float, x: float = 0) -> None:
        move = f"translate({MARGIN + x:g} {self.bottom:g})"
        self.pieces.append(tag("g", *content, transform=move))
        self.width = max(self.width, x + width)
        self.bottom += height


def svg(report: Report, timeline: Timeline, title: str, theme: str = "light") -> str:
    """A whole SVG file; runs of layers that are alike are folded."""
    if theme not in THEMES:
        raise LadderError(f"There is no theme {theme!r}: it is {' or '.join(THEMES)}.")
    text, sheet = page_of(report), _Sheet()
    sheet.text(title, "heading", 26)
    sheet.text(text.headline, "quiet")
    sheet.text(text.warning, "warning-text")
    for part in text.parts:
        if part.is_bad:
            sheet.text(f"{part.title}: {part.lines[0]}", "warning-text")
    for graph in report.graphs:
        for stream in graph.streams:
            if stream.blocks:
                _stream(sheet, graph, stream, len(report.streams) > 1)
    _timeline(sheet, report, timeline)
    width, height = sheet.width + 2 * MARGIN, sheet.bottom + MARGIN
    whole = tag(
        "svg",
        tag("style", Markup(drawing_style(THEMES[theme]))),
        HATCH,
        tag("rect", class_="paper", width=width, height=height),
        *sheet.pieces,
        xmlns="http://www.w3.org/2000/svg",
        class_="drawing",
        width=width,
        height=height,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=f"{title}: {text.headline}",
    )
    return f"{whole}\n"


def _stream(sheet: _Sheet, graph: GraphReport, stream: StreamReport, is_named: bool) -> None:
    layout, division = lay_out(stream, is_full=False), Division.of(graph)
    is_rewired = any(block.is_rewired for block in stream.blocks)
    for is_ladder in (False, True) if is_rewired else (False,):
        drawing = BlockGraph(stream, layout, division, is_ladder)
        name = drawing.name.capitalize() + (f", stream {stream.index}" if is_named else "")
        sheet.text(name, "title", 32)
        sheet.drawing(iter([drawing.draw()]), drawing.height, layout.width)


def _timeline(sheet: _Sheet, report: Report, timeline: Timeline) -> None:
    if timeline.steps:
        part = lanes.beginning(timeline, MAX_COLLECTIVES)
        scale = lanes.pixels(part, lanes.GUTTER, sheet.width - lanes.GUTTER)
        blocks = {key_of(block): block for block in report.blocks}
        sheet.bottom += 14
        for whole, step in zip(timeline.steps, part.steps, strict=True):
            drawn = lanes.StepDrawing(step, scale, blocks).draw()
            said = tag("text", lanes.summary(whole), class_="quiet", x=lanes.GUTTER, y=16)
            content = chain(lanes.gutter(step), [said], drawn)
            sheet.drawing(content, lanes.STEP_HEIGHT, sheet.width)
        sheet.drawing(lanes.axis(scale, levels=1), lanes.AXIS_HEIGHT, sheet.width)
        if part is not timeline:
            sheet.text(
                f"Shown are the first {units.seconds(part.seconds)} of each step.", "quiet", 26
            )
    sheet.text(timeline.origin, "quiet", 26)


def png(picture: str) -> bytes:
    """`picture`, an SVG of `svg`, as a PNG of twice its size in pixels.

    Raises:
        LadderError: resvg_py is not installed, or no font is.
    """
    try:
        import resvg_py
    except ModuleNotFoundError:
        raise LadderError(
            "A PNG needs resvg_py, which is not installed.",
            cure="pip install 'ladderize[plot]', or write an .svg",
        ) from None
    drawn = [resvg_py.svg_to_bytes(svg_string=_PROBE.format(text)) for text in ("M", "")]
    if drawn[0] == drawn[1]:
        raise LadderError(
            "No font was found to draw letters with.",
            cure=f"install one of {', '.join(FAMILIES[:-1])}, or write an .svg",
        )
    return bytes(resvg_py.svg_to_bytes(svg_string=picture, zoom=ZOOM))


_PROBE = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9">'
    f'<text y="9" font-family="{", ".join(FAMILIES)}">{{}}</text></svg>'
)
