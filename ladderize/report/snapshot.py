"""Take blocks and streams from a standard graph as plain data."""

from collections.abc import Mapping, Sequence
from typing import Any

import sympy
from sympy.core.function import AppliedUndef
from torch.fx import GraphModule, Node

from ladderize.errors import describe_origin, module_path, source_line
from ladderize.graph import ops
from ladderize.graph.ops import Kind
from ladderize.report.costs import Costs
from ladderize.report.data import BlockReport, Outside, SegmentReport, StreamReport
from ladderize.streams.block import Block, Stream
from ladderize.streams.branch_kinds import kind_of_block
from ladderize.streams.context import AnalysisContext
from ladderize.streams.recurrence import Recurrence

Reads = tuple[tuple[str, ...], ...]


def snapshot(
    context: AnalysisContext,
    streams: Sequence[Stream],
    recurrences: Sequence[Recurrence],
    graph: int,
) -> tuple[tuple[StreamReport, ...], Outside]:
    """The streams of a standard graph with unchanged reads, and the costs outside of the blocks."""
    gm, static = context.gm, context.static
    costs = Costs(gm, static, context.parameters)
    weigh = costs.of
    reads = read_branches(recurrences)
    found = tuple(
        StreamReport(
            number,
            tuple(
                _block(gm, block, static, (graph, number), reads[number][block.index], weigh(block))
                for block in stream.blocks
            ),
            _segments(stream),
            tuple(describe_origin(block.add) for block in stream.stale_blocks),
            stream.blockers,
        )
        for number, stream in enumerate(streams)
    )
    return found, costs.outside(block for stream in streams for block in stream.blocks)


def read_branches(recurrences: Sequence[Recurrence]) -> tuple[Reads, ...]:
    """The named values that each branch reads, by stream and block."""
    return tuple(
        tuple(_arguments(equation) for equation in recurrence.sums) for recurrence in recurrences
    )


def _arguments(equation: sympy.Eq) -> tuple[str, ...]:
    terms = sympy.Add.make_args(equation.rhs)
    reads = [read for term in terms if isinstance(term, AppliedUndef) for read in term.args]
    return tuple(sorted({str(symbol) for read in reads for symbol in read.free_symbols}))


def _block(
    gm: GraphModule,
    block: Block,
    static: set[Node],
    place: tuple[int, int],
    reads: tuple[str, ...],
    costs: Mapping[str, int | None],
) -> BlockReport:
    graph, stream = place
    return BlockReport(
        graph=graph,
        stream=stream,
        segment=block.segment,
        index=block.index,
        layer=block.layer,
        module=module_of(block),
        kind=kind_of_block(gm, block, static),
        source=source_line(block.add),
        reads_before=reads,
        reads_after=reads,
        is_converted=False,
        num_nodes=len(block.branch),
        hides=(),
        is_prologue=block.is_prologue,
        was_stale=False,
        leaves_out=(),
        **costs,
    )


def module_of(block: Block) -> str:
    """The innermost module that holds all mixing ops of the branch: `model.layers.3.mlp`."""
    mixing = [node for node in block.branch if ops.kind(node) is Kind.MIX]
    paths = [path.split(".") for node in mixing if (path := module_path(node))]
    if not paths:
        return block.module
    common = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common) or block.module


def _segments(stream: Stream) -> tuple[SegmentReport, ...]:
    found = []
    for index in dict.fromkeys(block.segment for block in stream.blocks):
        blocks = [block for block in stream.blocks if block.segment == index]
        shape = ops.floating_shape(blocks[0].anchor) or ()
        dtype = str(getattr(ops.value(blocks[0].anchor), "dtype", "")).removeprefix("torch.")
        ends = blocks[0].index, blocks[-1].index
        found.append(SegmentReport(index, *ends, _sizes(shape), dtype))
    return tuple(found)


def _sizes(shape: tuple[Any, ...]) -> tuple[int | str, ...]:
    return tuple(int(size) if isinstance(size, int) else str(size) for size in shape)
