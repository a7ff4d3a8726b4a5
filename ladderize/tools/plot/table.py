"""The table of blocks on the page: what each reads, computes, sends, and how much of it shows.

Rows of folded layers are there too, marked, so that a fold needs no second table.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ladderize.report.data import BlockReport, StreamReport
from ladderize.report.present.lines import row_of, shape_of
from ladderize.report.present.repeats import find_runs
from ladderize.tools.plot import units
from ladderize.tools.plot.graph import describe
from ladderize.tools.plot.layout import fold_text
from ladderize.tools.plot.svg import Markup, join, tag
from ladderize.tools.predict.timeline.steps import BlockKey, Timeline, key_of

HEADER = ("layer", "block", "kind", "reads", "FLOPs", "weights", "all-reduce", "module", "add at")

TIMES = ("compute", "communication", "exposed")
NUMBERS = frozenset({"layer", "block", "FLOPs", "weights", "all-reduce", *TIMES})


@dataclass(frozen=True)
class Times:
    """What a timeline says of each block: seconds in each lane, and of communication exposed."""

    compute: Mapping[BlockKey, float]
    communication: Mapping[BlockKey, float]
    exposed: Mapping[str, Mapping[BlockKey, float]]

    @classmethod
    def of(cls, timeline: Timeline) -> "Times":
        compute: dict[BlockKey, float] = {}
        communication: dict[BlockKey, float] = {}
        exposed: dict[str, dict[BlockKey, float]] = {}
        for step in timeline.steps:
            shown = exposed.setdefault(step.name, {})
            compute.update({i.block: i.seconds for i in step.compute.intervals if i.block})
            for interval in step.communication.intervals:
                if interval.block:
                    communication[interval.block] = interval.seconds
                    shown[interval.block] = step.exposed_of(interval)
        return cls(compute, communication, {k: v for k, v in exposed.items() if v})

    def __bool__(self) -> bool:
        return bool(self.communication)

    def cells(self, key: BlockKey) -> list[str]:
        values = [self.compute.get(key), self.communication.get(key)]
        exposed = [units.seconds(times[key]) for times in self.exposed.values() if key in times]
        known = ["" if value is None else units.seconds(value) for value in values]
        return [*known, " → ".join(exposed)]


def table(stream: StreamReport, times: Times) -> Markup:
    header = [*HEADER[:-2], *(TIMES if times else ()), *HEADER[-2:]]
    names = [tag("th", name, scope="col", class_="number" * (name in NUMBERS)) for name in header]
    head = tag("tr", *names)
    body = join(list(_rows(stream, times, len(header))))
    return tag("table", tag("thead", head), tag("tbody", body))


def _rows(stream: StreamReport, times: Times, width: int) -> Iterator[Markup]:
    for segment in stream.segments:
        if len(stream.segments) > 1:
            title = f"segment {segment.index} of {shape_of(stream, segment.index)}"
            yield tag("tr", tag("td", title, colspan=width), class_="gap")
        for run in find_runs(stream.blocks[segment.first : segment.last + 1]):
            yield from (_row(block, times) for block in run.shown)
            if run.hidden:
                yield _gap(run.hidden, fold_text(run), width)
                yield from (_row(block, times, "folded") for block in run.hidden)


def _gap(hidden: Sequence[BlockReport], text: str, width: int) -> Markup:
    graph, stream, _ = key_of(hidden[0])
    return tag(
        "tr",
        tag("td", text, colspan=width),
        class_="gap fold pick only-folded",
        tabindex=-1,
        data_row="table",
        data_stream=f"{graph}-{stream}",
        data_from=hidden[0].index,
        data_to=hidden[-1].index,
        aria_label=f"{text}. Press Enter to show every block.",
    )


def _row(block: BlockReport, times: Times, extra: str = "") -> Markup:
    row, key = row_of(block), key_of(block)
    moved = [row.before, " → ", tag("b", row.after, class_="stale")] if row.after else []
    reads = join([*moved, ", " if moved and row.also else "", row.also])
    costs = [units.flops(block.flops), units.num_bytes(block.weight_bytes)]
    costs.append(units.num_bytes(block.reduce_bytes))
    numbers = [*costs, *(times.cells(key) if times else ())]
    cells = [
        tag("td", row.layer, class_="number"),
        tag("th", row.block, scope="row", class_="number"),
        tag("td", row.kind),
        tag("td", reads),
        *(tag("td", text, class_="number") for text in numbers),
        tag("td", row.module, class_="path"),
        tag("td", row.source, class_="path quiet"),
    ]
    return tag(
        "tr",
        *cells,
        class_=f"block pick {extra}".strip(),
        tabindex=-1,
        aria_selected="false",
        data_block="-".join(map(str, key)),
        data_row="table",
        data_about=_about(block, times),
    )


def _about(block: BlockReport, times: Times) -> str:
    """One line that is shown while the block is selected."""
    if block.is_rewired:
        before, after = ", ".join(block.reads_before), ", ".join(block.reads_after)
        reads = f"reads {after} instead of {before}"
    else:
        reads = f"reads {', '.join(block.reads_before)} as ever"
    sizes = f"{units.flops(block.flops)}, weights {units.num_bytes(block.weight_bytes)}"
    parts = [describe(block), reads, f"{sizes}, all-reduce {units.num_bytes(block.reduce_bytes)}"]
    if times:
        named = zip(TIMES, times.cells(key_of(block)), strict=True)
        parts.append(", ".join(f"{name} {cell}" for name, cell in named if cell))
    return " · ".join(filter(None, parts))
