"""Notice blocks that read fresh because a stream is joined or cut ahead of them.

    z = cat([prompt, x4[:, 3:]], 1);  z = add(z, h5(z))       h5 reads z: what is stale of it?

A `cat` of all pieces of one value is that value (`graph/pieces.py`), and a sum of joined streams
that is cut again is a sum for each of them (`passes/split_sums.py`). Elsewhere another segment
begins, or another stream, whose first block stays standard.
"""

import warnings
from collections.abc import Collection, Iterator, Sequence

from torch.fx import Node

from ladderize.errors import Blocker, LadderWarning
from ladderize.graph import ops
from ladderize.graph.ops import Kind
from ladderize.graph.pieces import CAT
from ladderize.streams.block import Block, Stream
from ladderize.streams.context import AnalysisContext


def warn_of_cut_streams(
    context: AnalysisContext, streams: Sequence[Stream], chosen: Sequence[Collection[int]]
) -> None:
    """Name each of the `chosen` blocks that has nothing earlier to read because of that."""
    found = [
        Blocker.at(block.add, f"block {block.index} of stream {number} {why}")
        for number, (stream, indices) in enumerate(zip(streams, chosen, strict=True))
        for block, why in find_cut_off(context, stream, streams)
        if block.index in indices
    ]
    if found:
        listed = "".join(f"\n  - {blocker}" for blocker in found)
        warnings.warn(
            LadderWarning(
                "These blocks stay standard, for a stream is joined or cut ahead of them in a way "
                f"that is not followed:{listed}"
            ),
            stacklevel=3,
        )


def find_cut_off(
    context: AnalysisContext, stream: Stream, streams: Sequence[Stream]
) -> Iterator[tuple[Block, str]]:
    """The first blocks of segments that read joined or cut values of `streams`, and what they read.

    Args:
        stream: that of the blocks.
        streams: all of the graph.
    """
    writers = {block.add for other in streams for block in other.blocks}
    begun: set[int] = set()
    for block in stream.blocks:
        if block.segment not in begun:
            begun.add(block.segment)
            if (step := _joining_step(context, block.anchor, writers)) is not None:
                yield block, f"reads the {ops.op_name(step)} of what other blocks wrote"


def _joining_step(context: AnalysisContext, anchor: Node, writers: Collection[Node]) -> Node | None:
    """The first op behind `anchor` that joins or cuts what one of `writers` left, if any does."""
    seen: set[Node] = set()
    stack: list[tuple[Node, Node | None]] = [(anchor, None)]
    while stack:
        node, step = stack.pop()
        if node in seen or node in context.static:
            continue
        seen.add(node)
        if node in writers:
            if step is not None:
                return step
            continue
        if ops.kind(node) in (Kind.CHEAP, Kind.LAYOUT, Kind.ADD):
            here = step or (node if _joins_or_cuts(context, node) else None)
            stack.extend((source, here) for source in node.all_input_nodes)
    return None


def _joins_or_cuts(context: AnalysisContext, node: Node) -> bool:
    if ops.kind(node) is not Kind.LAYOUT:
        return False
    sources = [s for s in context.steps_back(node) if context.shape[s] is not None]
    is_cut = any(not context.is_same_size(source, node) for source in sources)
    return ops.op_name(node) in CAT or is_cut
