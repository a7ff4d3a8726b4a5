"""Detect blocks that read fresh because a stream is joined or cut ahead of them.

    z = cat([prompt, x4[:, 3:]], 1);  z = add(z, h5(z))       h5 reads z, which has no stale value

Three cases are supported: a `cat` of all pieces of one value is that value (`graph/pieces.py`), a
sum of joined streams that is cut again becomes a sum for each stream (`passes/split_sums.py`), and
a block after a join reads the streams before the join (`joins.py`). All others begin a segment or
a stream, whose first block stays standard.
"""

import warnings
from collections.abc import Collection, Iterator, Sequence

import torch
from torch.fx import Node

from ladderize.config.options import LadderConfig
from ladderize.errors import Blocker, LadderError, LadderWarning
from ladderize.graph import ops
from ladderize.graph.ops import Kind
from ladderize.graph.pieces import CAT, piece_of
from ladderize.streams.block import Block, Stream
from ladderize.streams.context import AnalysisContext


def refuse_cut_streams(
    context: AnalysisContext,
    streams: Sequence[Stream],
    chosen: Sequence[Collection[int]],
    config: LadderConfig,
) -> None:
    """If `strict`, raise `LadderError` for blocks that the options name but that stay standard.

    Blocks after an op that thins out the stream, `x[:, ::2]`, are allowed: a segment begins there.
    """
    if not (config.names_blocks and config.strict and config.staleness):
        return
    found = [
        Blocker.at(block.add, why)
        for block, step, why in _cut_off(context, streams, chosen)
        if not _thins_out(step)
    ]
    if found:
        raise LadderError(
            "These blocks cannot be converted: a stream is joined or cut ahead of them in an "
            "unsupported way:",
            found,
            "leave them out with blocks=; or change the model so that it joins exactly the parts "
            "that it cut",
        )


def warn_of_cut_streams(
    context: AnalysisContext,
    streams: Sequence[Stream],
    chosen: Sequence[Collection[int]],
    config: LadderConfig,
) -> None:
    """Warn of each of the `chosen` blocks that stays standard for this reason."""
    found = [Blocker.at(block.add, why) for block, _, why in _cut_off(context, streams, chosen)]
    if found and config.staleness:
        warning = LadderWarning(
            "These blocks stay standard: a stream is joined or cut ahead of them in an "
            "unsupported way:",
            found,
        )
        warnings.warn(warning, stacklevel=3)


def _cut_off(
    context: AnalysisContext, streams: Sequence[Stream], chosen: Sequence[Collection[int]]
) -> Iterator[tuple[Block, Node, str]]:
    """The chosen first blocks of segments that read joined or cut values of `streams`.

    Yields the block, the op that joins or cuts, and a description.
    """
    writers = {block.add for stream in streams for block in stream.blocks}
    for number, (stream, indices) in enumerate(zip(streams, chosen, strict=True)):
        begun: set[int] = set()
        for block in stream.blocks:
            if block.segment in begun:
                continue
            begun.add(block.segment)
            if block.index not in indices or block.index in stream.joins:
                continue
            if (step := _joining_step(context, block.anchor, writers)) is not None:
                why = f"reads the {ops.op_name(step)} of what other blocks wrote"
                yield block, step, f"block {block.index} of stream {number} {why}"


def _thins_out(step: Node) -> bool:
    """Whether `step` slices a value other than by a contiguous range along one dim."""
    is_view = ops.op_name(step) not in CAT and isinstance(ops.value(step), torch.Tensor)
    return is_view and piece_of(step, step.all_input_nodes[0]) is None


def _joining_step(context: AnalysisContext, anchor: Node, writers: Collection[Node]) -> Node | None:
    """The op nearest to `anchor` that joins or cuts the value of one of `writers`, or None."""
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
