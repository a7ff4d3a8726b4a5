"""The page: one self-contained HTML file, rendered from `page.html.jinja`.

    blocks      standard above ladder, stale reads dashed             block_graph.py
    a step      lanes of standard above ladder, exposed time hatched  step_lanes.py
    layers      a table; block names in the graph link to its rows

Drawings take their colors from CSS variables and so follow the light or dark theme.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ladderize.report.present.lines import Gap, Row, page_of, row_of, runs_of, title_of
from ladderize.report.present.repeats import Run
from ladderize.report.report import Report
from ladderize.tools import units
from ladderize.tools.plot import sheet
from ladderize.tools.plot.columns import fold_text
from ladderize.tools.plot.palettes import DARK, LIGHT, as_variables
from ladderize.tools.plot.step_lanes import beginning
from ladderize.tools.predict.timeline.steps import Timeline, key_of

HEADER = ("block", "layer", "kind", "reads", "FLOPs", "weights", "all-reduce")
TIMES = ("compute", "communication", "exposed")


@dataclass(frozen=True)
class TableRow:
    """A row for a block, or a line across the table if `row` is None."""

    text: str = ""
    row: Row | None = None
    anchor: str = ""
    numbers: tuple[str, ...] = ()


@dataclass(frozen=True)
class StreamView:
    """A stream: its drawing, its table, and the table of every block if layers are folded."""

    title: str
    drawing: Markup
    rows: tuple[TableRow, ...]
    every_row: tuple[TableRow, ...]


def page(report: Report, timeline: Timeline, title: str) -> str:
    """The HTML file as text."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = files("ladderize.tools.plot").joinpath("page.html.jinja").read_text("utf-8")
    times = _times(timeline)
    return environment.from_string(source).render(
        title=title,
        text=page_of(report, full=True),
        light=LIGHT,
        dark=DARK,
        header=(*HEADER, *(TIMES if times else ()), "module", "add at"),
        streams=[*_streams(report, times)],
        steps=[*_steps(report, timeline)],
        figures=[*_figures(timeline)] if timeline.steps else [],
        origin=timeline.origin[:1].upper() + timeline.origin[1:],
        has_stale_reads=any(block.is_rewired for block in report.blocks),
    )


def _drawn(*drawings: sheet.Drawing) -> Markup:
    """`drawings` as SVG with CSS variables. Safe as markup: its text is escaped."""
    return Markup(as_variables(sheet.render(drawings, LIGHT, "svg", edge=4).decode()))


def _streams(report: Report, times: "Times") -> Iterator[StreamView]:
    for graph in report.graphs:
        for stream in graph.streams:
            if stream.blocks:
                runs = [*runs_of(stream)]
                is_folded = any(isinstance(run, Run) and run.hidden for run in runs)
                yield StreamView(
                    title_of(stream),
                    _drawn(*sheet.graphs(graph, stream, is_named=False)),
                    tuple(_rows(runs, times, is_full=False)),
                    tuple(_rows(runs, times, is_full=True)) if is_folded else (),
                )


def _rows(runs: list[Run | Gap], times: "Times", is_full: bool) -> Iterator[TableRow]:
    for run in runs:
        if isinstance(run, Gap):
            yield TableRow(run.text)
            continue
        for block in (*run.shown, *(run.hidden if is_full else ())):
            key = key_of(block)
            numbers = [units.flops(block.flops), units.num_bytes(block.weight_bytes)]
            numbers += [units.num_bytes(block.reduce_bytes), *times.get(key, ())]
            anchor = "" if is_full else f"block-{'-'.join(map(str, key))}"
            yield TableRow("", row_of(block), anchor, tuple(numbers))
        if run.hidden and not is_full:
            yield TableRow(fold_text(run))


Times = dict[tuple[int, int, int], tuple[str, str, str]]


def _times(timeline: Timeline) -> Times:
    """Seconds of compute, of communication, and exposed in each step, by block."""
    compute: dict[object, float] = {}
    sent: dict[tuple[int, int, int], float] = {}
    exposed: dict[object, list[str]] = {}
    for step in timeline.steps:
        compute |= {bar.block: bar.seconds for bar in step.compute.intervals}
        for bar in step.communication.intervals:
            if bar.block:
                sent[bar.block] = bar.seconds
                exposed.setdefault(bar.block, []).append(units.seconds(step.exposed_of(bar)))
    return {
        key: (
            units.seconds(compute[key]) if key in compute else "",
            units.seconds(seconds),
            " → ".join(exposed[key]),
        )
        for key, seconds in sent.items()
    }


def _steps(report: Report, timeline: Timeline) -> Iterator[tuple[str, Markup]]:
    """Drawings of the steps with captions; a long step is drawn in part and whole."""
    if timeline.steps:
        part = beginning(timeline, sheet.MAX_COLLECTIVES)
        shown = units.seconds(part.seconds)
        said = "" if part is timeline else f"The first {shown} of each step"
        yield said, _drawn(sheet.lanes(report, timeline, part))
        if part is not timeline:
            yield "The whole step", _drawn(sheet.lanes(report, timeline, timeline))


def _figures(timeline: Timeline) -> Iterator[tuple[str, str]]:
    """Step time, exposed communication and hidden fraction, standard → ladder."""
    steps = timeline.steps
    yield "step", " → ".join(units.seconds(step.seconds) for step in steps)
    yield "exposed communication", " → ".join(units.seconds(s.exposed_seconds) for s in steps)
    fractions = [s.hidden_fraction for s in steps if s.hidden_fraction is not None]
    if len(fractions) == len(steps):
        yield "hidden", " → ".join(map(units.percent, fractions))
    if timeline.speedup is not None:
        yield "speedup", f"{timeline.speedup:.2f}x"
