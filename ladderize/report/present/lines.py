"""Lay out a report as plain lines and rows, which `text.py` and `html.py` draw.

    Report ── Page(headline, warning, parts) ── Section(title, rows, lines)

Runs of layers that differ only in their numbers are shown once, followed by a `Gap`:

    1  1  attention  x2 → x1  model.layers.1.self_attn
    3  1  MLP        x3 → x2  model.layers.1.mlp
          layers 2-79: as layer 1
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ladderize.errors import counted
from ladderize.report.data import (
    SAID,
    WARNING,
    BlockReport,
    GraphReport,
    Refusal,
    ReportData,
    ShardReport,
    StreamReport,
)
from ladderize.report.present.order import describe_flights
from ladderize.report.present.repeats import Run, find_runs

OUTCOMES = {
    "explained": "nothing is compiled",
    "rewritten": "the ladder is compiled",
    "program": "the program is rewritten, nothing is compiled",
    "standard": "the standard graph is compiled instead",
    "refused": "nothing is compiled",
}
HEADER = ("block", "layer", "kind", "reads", "module", "add at")
LEAVES_OUT = "leaves out"
"""A column after the reads, if the connectivity is not "ladder"."""
STANDARD_ENGINES = "Engines that do not read it run these weights as a standard model."
# Number of lines of one kind that are shown.
MAX_LINES = 8


@dataclass(frozen=True)
class Row:
    """One block, whose branch reads `after` instead of `before`, and `also` as before.

    `leaves_out` lists what it leaves out; "" for a ladder.
    """

    block: str
    layer: str
    kind: str
    before: str
    after: str
    also: str
    module: str
    source: str
    leaves_out: str = ""


@dataclass(frozen=True)
class Gap:
    """A line across the table: folded layers, or the start of a segment."""

    text: str


@dataclass(frozen=True)
class Section:
    """A title with a table or lines below it; `is_bad` marks refusals."""

    title: str
    rows: tuple[Row | Gap, ...] = ()
    lines: tuple[str, ...] = ()
    is_bad: bool = False

    @property
    def header(self) -> tuple[str, ...]:
        """The names of the columns of `rows`."""
        if not any(isinstance(row, Row) and row.leaves_out for row in self.rows):
            return HEADER
        return (*HEADER[:4], LEAVES_OUT, *HEADER[4:])


@dataclass(frozen=True)
class Page:
    headline: str
    parts: tuple[Section, ...]
    footer: str
    warning: str = WARNING


def page_of(report: ReportData, full: bool = False) -> Page:
    """Lay out `report`, every block of it if `full`."""
    parts = [part for graph in report.graphs for part in _graph(graph, report, full)]
    if report.breaks:
        title = "graph breaks: Dynamo did not capture the call as one graph"
        parts.append(Section(title, lines=_cut(map(str, report.breaks)), is_bad=True))
    return Page(_headline(report), tuple(parts), _footer(report), _warning(report))


def _headline(report: ReportData) -> str:
    found = f"{counted(len(report.blocks), 'block')} in {counted(len(report.streams), 'stream')}"
    outcomes = dict.fromkeys(OUTCOMES[graph.outcome] for graph in report.graphs)
    reads = "would read" if [*outcomes] == [OUTCOMES["explained"]] else "read"
    return f"{found}, {report.num_stale} {reads} stale; {', '.join(outcomes)}"


def _warning(report: ReportData) -> str:
    """No warning is needed for a checkpoint with a ladder entry: it was trained as a ladder."""
    said = dict(report.options).get(SAID)
    return WARNING if said is None else f"{SAID}: {said}. {STANDARD_ENGINES}"


def _graph(graph: GraphReport, report: ReportData, full: bool) -> Iterator[Section]:
    prefix = f"graph {graph.index} ({graph.name}), " if len(report.graphs) > 1 else ""
    says_what = "connectivity" in dict(report.options)
    for stream in graph.streams:
        yield Section(
            prefix + title_of(stream),
            tuple(_rows(stream, full, says_what)),
            tuple(_remarks(stream)),
        )
    if graph.refusal is not None:
        yield _refused(graph.refusal, prefix)
    if graph.collectives:
        yield Section(f"{prefix}collectives", lines=tuple(_collectives(graph)))
    if graph.flights:
        yield Section(f"{prefix}order", lines=tuple(describe_flights(graph, full)))
    if graph.sharding is not None:
        yield _sharded(graph.sharding, prefix, graph.outcome == "explained")
    if graph.engines is not None:
        title, *left = graph.engines.describe()
        yield Section(prefix + title, lines=_cut(left))


def _sharded(sharding: ShardReport, prefix: str, is_plan: bool) -> Section:
    title = (
        f"{prefix}{counted(len(sharding.placements), 'parameter')} "
        f"{'to be ' if is_plan else ''}sharded over {sharding.num_ranks} ranks"
    )
    if sharding.num_by_expert:
        title += f", {sharding.num_by_expert} of them by experts"
    if sharding.kept_whole:
        extra = f"{sharding.extra_bytes:,} bytes of parameters"
        title += f"; {extra} and {sharding.extra_flops:,} FLOPs per rank beyond an even share"
    if sharding.cache_bytes:
        title += f"; {sharding.cache_bytes:,} bytes of caches per rank beyond an even share"
    kept = _cut(f"kept whole: {note}" for note in sharding.kept_whole)
    split = _cut(f"experts split: {why}" for why in sharding.split_experts)
    return Section(title, lines=(*kept, *split))


def call_of(report: ReportData) -> str:
    """The sizes of the traced call: "batch 2, length 32, bfloat16"."""
    if not report.streams:
        return ""
    stream = report.streams[0]
    sizes = [shape_of(stream, 0)]
    if len(shape := stream.segments[0].shape[:-1]) <= 2:
        named = zip(("batch", "length"), shape, strict=False)
        sizes = [f"{name} {size}" for name, size in named]
    return ", ".join(filter(None, [*sizes, report.dtype]))


def title_of(stream: StreamReport) -> str:
    segments = f", {len(stream.segments)} segments" if len(stream.segments) > 1 else ""
    shape = f" of {shape_of(stream, 0)}" if len(stream.segments) == 1 else ""
    return f"stream {stream.index}: {counted(len(stream.blocks), 'block')}{segments}{shape}"


def _remarks(stream: StreamReport) -> Iterator[str]:
    yield from _prologues(stream)
    if kept := [f"block {block.index}" for block in stream.blocks if block.was_stale]:
        yield f"already read stale and are left unchanged: {', '.join(_cut(kept))}"
    if stream.stale:
        yield (
            f"its reads are left unchanged: {counted(len(stream.stale), 'block')} of this stream "
            "already read stale, so it is a ladder"
        )
        yield from _cut(f"reads stale: {place}" for place in stream.stale)


def _prologues(stream: StreamReport) -> Iterator[str]:
    for segment in stream.segments:
        blocks = stream.blocks[segment.first : segment.last + 1]
        ahead = [block.index for block in blocks if block.is_prologue]
        if ahead and not any(stream.blocks[index].is_converted for index in ahead):
            yield (
                f"{_range('block', ahead)} before the first layer: standard unless chosen by "
                "blocks=; the first layer reads the output"
            )


def _refused(refusal: Refusal, prefix: str) -> Section:
    lines = [refusal.summary, *_cut(map(str, refusal.blockers))]
    if refusal.cure:
        lines.append(f"What to do: {refusal.cure}")
    return Section(f"{prefix}refused", lines=tuple(lines), is_bad=True)


def _collectives(graph: GraphReport) -> Iterator[str]:
    inserted = "to be inserted" if graph.outcome == "explained" else "inserted by ladderize"
    found = Counter(
        (c.op, c.group, inserted if c.is_inserted else "found", bool(c.block))
        for c in graph.collectives
    )
    for (op, group, origin, is_inside), count in found.items():
        place = "inside branches" if is_inside else "outside branches"
        where = f" on group {group!r}" if group else ""
        yield f"{count} {op}{where}, {origin}, {place}"
    yield from _hidden(graph)


def _hidden(graph: GraphReport) -> Iterator[str]:
    """What stale reads hide; those that hide nothing are listed by name."""
    stale = [block for stream in graph.streams for block in stream.blocks if block.is_rewired]
    for hides, count in Counter(block.hides for block in stale if block.hides).items():
        each = " each" if count > 1 else ""
        ops = ", ".join(f"{number} {op}" for op, number in Counter(hides).items())
        hide = "hide" if count > 1 else "hides"
        yield f"{counted(count, 'stale read')} {hide} {ops}{each}"
    if idle := [f"block {block.index}" for block in stale if not block.hides]:
        yield f"hides nothing: the stale read of {', '.join(_cut(idle))}"


def _footer(report: ReportData) -> str:
    seconds = sum(step.seconds for step in report.steps)
    passes = counted(len(report.passes), "pass", "passes")
    edits = counted(sum(step.edits for step in report.passes), "edit")
    parts = [f"{passes}, {edits}, {seconds:.2f} s"]
    parts += [f"{name}={value}" for name, value in report.options if name != SAID]
    parts += [f"{name} {number}" for name, number in report.versions if name != "python"]
    return " · ".join(parts)


# ---- rows ------------------------------------------------------------------------------------


def _rows(stream: StreamReport, full: bool, says_what: bool) -> Iterator[Row | Gap]:
    of_block = partial(row_of, says_what=says_what)
    for run in runs_of(stream):
        if isinstance(run, Gap):
            yield run
            continue
        yield from map(of_block, run.shown)
        if full:
            yield from map(of_block, run.hidden)
        elif run.hidden:
            yield Gap(alike(run))


def runs_of(stream: StreamReport) -> Iterator[Run | Gap]:
    """The runs of a stream, with a heading before each segment if there are several."""
    for segment in stream.segments:
        if len(stream.segments) > 1:
            yield Gap(f"segment {segment.index} of {shape_of(stream, segment.index)}")
        yield from find_runs(stream.blocks[segment.first : segment.last + 1])


def row_of(block: BlockReport, says_what: bool = False) -> Row:
    """The row of `block`, with what it leaves out if `says_what`."""
    path, _, line = block.source.rpartition(":")
    return Row(
        block=str(block.index),
        layer="" if block.layer is None else str(block.layer),
        kind=block.kind,
        before=_all_but(block.reads_before, block.reads_after),
        after=_all_but(block.reads_after, block.reads_before),
        also=", ".join(read for read in block.reads_before if read in block.reads_after),
        module=block.module,
        source=f"{Path(path).name}:{line}" if path else "",
        leaves_out=", ".join(map(_in_its_list, block.leaves_out)) if says_what else "",
    )


def _in_its_list(left_out: str) -> str:
    """`h3: model.layers.1.mlp.experts` as `layers.1.mlp.experts`; `h3` as it is."""
    name, _, path = left_out.partition(": ")
    parts = path.split(".")
    layer = next((i for i, part in enumerate(parts) if part.isdecimal()), 1)
    return ".".join(parts[max(layer - 1, 0) :]) or name


def _all_but(reads: Sequence[str], others: Sequence[str]) -> str:
    return ", ".join(read for read in reads if read not in others)


def alike(run: Run) -> str:
    if run.hidden[0].layer is None:
        unit, hidden = "block", [block.index for block in run.hidden]
        shown = [block.index for block in run.pattern]
    else:
        unit, hidden = "layer", [b.layer for b in run.hidden if b.layer is not None]
        shown = [b.layer for b in run.pattern if b.layer is not None]
    turn = " in turn" if len(set(shown)) > 1 else ""
    return f"{_range(unit, hidden)}: as {_range(unit, shown)}{turn}"


def _range(unit: str, numbers: Sequence[int]) -> str:
    first, last = min(numbers), max(numbers)
    return f"{unit} {first}" if first == last else f"{unit}s {first}-{last}"


def shape_of(stream: StreamReport, segment: int) -> str:
    return f"[{', '.join(map(str, stream.segments[segment].shape))}]"


def _cut(lines: Iterable[str]) -> tuple[str, ...]:
    found = tuple(lines)
    left_out = len(found) - MAX_LINES
    return found if left_out <= 0 else (*found[:MAX_LINES], f"… and {left_out} more")
