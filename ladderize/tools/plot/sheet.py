"""Stack drawings on a sheet, as SVG or PNG with matplotlib: one pixel is one point."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Protocol

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ladderize.report.data import GraphReport, StreamReport
from ladderize.report.present.lines import page_of
from ladderize.report.report import Report
from ladderize.tools import units
from ladderize.tools.plot.block_graph import BlockGraph
from ladderize.tools.plot.columns import columns_of
from ladderize.tools.plot.palettes import Palette
from ladderize.tools.plot.step_lanes import StepLanes, beginning, summary
from ladderize.tools.predict.timeline.division import Division
from ladderize.tools.predict.timeline.steps import Timeline, key_of

WIDTH = 960
EDGE = 28
# Of a step with more collectives, only the beginning is drawn, so that bars stay distinct.
MAX_COLLECTIVES = 16
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "ladderize",  # the same file each time
    "font.family": "sans-serif",
    "font.sans-serif": [
        "Inter",
        "Helvetica",
        "Segoe UI",
        "Arial",
        "Liberation Sans",
        "DejaVu Sans",
    ],
    "font.size": 11,
    "hatch.linewidth": 1.2,
}


class Drawing(Protocol):
    """An item of known size that draws itself on axes in pixels, y downward."""

    @property
    def width(self) -> float: ...
    @property
    def height(self) -> float: ...
    def draw(self, axes: Axes, colors: Palette) -> None: ...


@dataclass(frozen=True)
class TextLine:
    """A line of text."""

    text: str
    color: str = "muted"
    size: float = 11
    weight: str = "normal"
    width: float = WIDTH

    @property
    def height(self) -> float:
        return self.size + 10

    def draw(self, axes: Axes, colors: Palette) -> None:
        text = axes.text(0, self.height / 2, self.text, va="center", fontsize=self.size)
        text.set(color=colors[self.color], weight=self.weight, parse_math=False)


def picture(report: Report, timeline: Timeline, title: str) -> Iterator[Drawing]:
    """The drawings of a picture: text, block graphs, the beginning of a step."""
    text = page_of(report)
    yield TextLine(title, "ink", 18, "bold")
    yield TextLine(text.headline)
    yield TextLine(text.warning, "exposed")
    for part in text.parts:
        if part.is_bad:
            yield TextLine(f"{part.title}: {part.lines[0]}", "bad")
    for graph in report.graphs:
        for stream in graph.streams:
            if stream.blocks:
                yield from graphs(graph, stream, len(report.streams) > 1)
    if timeline.steps:
        yield TextLine("")
        shown = beginning(timeline, MAX_COLLECTIVES)
        yield lanes(report, timeline, shown)
        if shown is not timeline:
            yield TextLine(f"The first {units.seconds(shown.seconds)} of each step are shown.")
    yield TextLine(timeline.origin)


def graphs(graph: GraphReport, stream: StreamReport, is_named: bool) -> Iterator[Drawing]:
    """The block graphs of a stream with titles: standard and, if reads were rerouted, ladder."""
    columns, division = columns_of(stream), Division.of(graph)
    is_rewired = any(block.is_rewired for block in stream.blocks)
    for is_ladder in (False, True) if is_rewired else (False,):
        name = "Ladder" if is_ladder else "Standard"
        title = f"{name}, stream {stream.index}" if is_named else name
        yield TextLine(title, "ink", 14, "bold", columns.width)
        yield BlockGraph(stream, columns, division, is_ladder)


def lanes(report: Report, whole: Timeline, shown: Timeline) -> StepLanes:
    """The steps of `shown`, with titles that describe `whole`."""
    titles = [f"{step.name.capitalize()}: {summary(step)}" for step in whole.steps]
    return StepLanes(shown, {key_of(block): block for block in report.blocks}, titles, WIDTH)


def render(drawings: Sequence[Drawing], colors: Palette, kind: str, edge: float = EDGE) -> bytes:
    """Render `drawings` in a column as "svg" or "png"; the PNG has twice the pixels."""
    width = max(drawing.width for drawing in drawings) + 2 * edge
    height = sum(drawing.height for drawing in drawings) + 2 * edge
    with rc_context(STYLE):
        figure = Figure((width / 72, height / 72), dpi=72, facecolor=colors["panel"])
        top = edge
        for drawing in drawings:
            place = (edge, height - top - drawing.height, drawing.width, drawing.height)
            left, bottom, across, up = place
            axes = figure.add_axes((left / width, bottom / height, across / width, up / height))
            axes.set(xlim=(0, drawing.width), ylim=(drawing.height, 0), facecolor="none")
            axes.set_axis_off()
            drawing.draw(axes, colors)
            for artist in axes.get_children():
                artist.set_clip_on(False)
            top += drawing.height
        made = BytesIO()
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(made, format=kind, dpi=72 if kind == "svg" else 144, metadata=metadata)
    return _cleaned(made.getvalue().decode()).encode() if kind == "svg" else made.getvalue()


def _cleaned(svg: str) -> str:
    """Remove the prolog, unused ids (which would repeat on a page) and `target="_blank"`."""
    used = {*re.findall(r'(?:url\(#|href="#)([^)"]+)', svg)}
    svg = svg[svg.index("<svg") :].replace(' target="_blank"', "")
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    return re.sub(r'(width|height)="([\d.]+)pt"', r'\1="\2"', svg, count=2)
