"""A step predicted from FLOPs, bytes and a link model, standard and ladder.

    standard   h0 AR0 h1 AR1 h2 AR2          h1 reads x1, so it waits for AR0
    ladder     h0 h1  h2 …                   h1 reads x0, h2 reads x1: AR0 runs during h1
                  AR0 AR1 AR2

two_lanes.py makes the tasks and their schedule.

The prediction ignores everything outside the blocks (embedding, head, loss), the backward pass, and
memory traffic other than weights. The first value of each stream is available at the start.
Branches that are kept whole take the time of a whole branch and send nothing.
"""

from collections.abc import Container, Iterator, Sequence

from ladderize.config.hardware import Hardware, hardware_of
from ladderize.report.data import BlockReport, GraphReport
from ladderize.report.naming import LANDED, block_name, parse
from ladderize.report.report import Report
from ladderize.tools.predict.timeline.division import Division
from ladderize.tools.predict.timeline.steps import Interval, Lane, Timeline, TimelineStep, key_of
from ladderize.tools.predict.timeline.two_lanes import (
    Branch,
    Sum,
    as_step,
    landed_of,
    place,
    reduce_of,
    tasks_of,
)

DEFAULT = "h100x8-nvlink"


def predict(report: Report, hardware: Hardware | None = None) -> Timeline:
    """Predict the standard step of a model and, if reads were rerouted, the step of the ladder.

    If there is no block, or sizes are not known before the model runs, the timeline has no steps
    and `origin` gives the reason.

    Args:
        report: report from `ladderize.explain`.
        hardware: hardware to predict for, by default `hardware_of("h100x8-nvlink")`.
    """
    hardware = hardware or hardware_of(DEFAULT)
    if not report.blocks:
        return Timeline((), "No prediction: no block was found.")
    if unknown := [b for b in report.blocks if None in (b.flops, b.weight_bytes, b.reduce_bytes)]:
        names = ", ".join(map(block_name, unknown[:8])) + (", …" if len(unknown) > 8 else "")
        return Timeline((), f"No prediction: sizes of {names} are not known before the model runs.")
    steps = [_step("standard", report, hardware)]
    if any(block.is_rewired for block in report.blocks):
        steps.append(_step("ladder", report, hardware))
    origin = f"predicted from FLOPs, bytes and a link model: {hardware}"
    if hardware.contention:
        rate = f"{1 - hardware.contention:.0%}"
        origin += f"; while the link is busy, a block computes at {rate} of its rate"
    return Timeline(tuple(steps), origin)


def _step(name: str, report: Report, hardware: Hardware) -> TimelineStep:
    """The graphs of a report run one after another."""
    compute: list[Interval] = []
    communication: list[Interval] = []
    start = 0.0
    for graph in report.graphs:
        division = Division.of(graph)
        blocks = list(_in_order(graph))
        reads = {b: b.reads_after if name == "ladder" else b.reads_before for b in blocks}
        read_apart = {_sum_behind(r) for b in blocks for r in reads[b] if parse(r).letter == LANDED}
        tasks = tasks_of(_branch(b, reads[b], read_apart, division, hardware) for b in blocks)
        seconds: dict[str, float] = {}
        for block in blocks:
            seconds.update(_seconds(block, division, hardware))
        part = as_step(name, tasks, place(tasks, seconds, hardware.contention, start))
        compute += part.compute.intervals
        communication += part.communication.intervals
        start = max(start, part.seconds)
    return TimelineStep(name, Lane(tuple(compute)), Lane(tuple(communication)))


def _branch(
    block: BlockReport,
    reads: Sequence[str],
    read_apart: Container[Sum],
    division: Division,
    hardware: Hardware,
) -> Branch:
    # A value inside a branch (`b3`) is available as soon as it is computed.
    letters = {read: parse(read).letter for read in reads}
    sums = tuple(_sum_behind(read) for read in reads if letters[read] not in ("b", LANDED))
    landed = tuple(_sum_behind(read) for read in reads if letters[read] == LANDED)
    key = (block.stream, block.index)
    is_reduced = division.is_reduced(block) and hardware.ranks > 1
    is_apart = is_reduced and key in read_apart and not division.is_local
    return Branch(
        block_name(block),
        key,
        sums,
        is_reduced,
        key_of(block),
        landed=landed,
        has_landed_reduce=is_apart,
    )


def _seconds(block: BlockReport, division: Division, hardware: Hardware) -> dict[str, float]:
    """Durations of the tasks of `block`, each running alone."""
    assert block.flops is not None
    assert block.weight_bytes is not None
    assert block.reduce_bytes is not None
    name, ranks = block_name(block), division.ranks(block, hardware.ranks)
    reduced = hardware.reduce_seconds(block.reduce_bytes)
    return {
        name: hardware.compute_seconds(block.flops, block.weight_bytes, ranks),
        reduce_of(name): reduced,
        landed_of(name): reduced,
    }


def _in_order(graph: GraphReport) -> Iterator[BlockReport]:
    """The blocks of a graph, each after those that it reads: a decoder after its encoder.

    Both steps run in this order, because the ladder never reads a later value than the standard
    model.
    """
    left = [list(stream.blocks) for stream in graph.streams]
    ran: set[tuple[int, int]] = set()
    while any(left):
        before = len(ran)
        for blocks in left:
            while blocks and all(
                key[1] < 0 or key in ran for key in map(_sum_behind, blocks[0].reads_before)
            ):
                block = blocks.pop(0)
                ran.add((block.stream, block.index))
                yield block
        assert len(ran) > before, "blocks read each other in a circle"


def _sum_behind(read: str) -> Sum:
    """Stream and index of the block that writes `read`; index -1 for a stream's first value."""
    value = parse(read)
    return value.stream, value.index - (value.letter == "x")
