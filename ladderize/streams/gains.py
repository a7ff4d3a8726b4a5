"""The collectives that a stale read hides: those of the blocks it leaves out and of its own block.

    x1 = x0 + all_reduce(h0(x0));  x2 = x1 + h1(x0)      h1 runs while h0 is reduced
    x1 = x0 + h0(x0);  x2 = x1 + e(all_to_all(r(x0)))    h0 runs while tokens go to the experts
    x1 = x0 + h0(x0);              x2 = x1 + h1(x0)      the stale read of h1 hides nothing

In a model with its own collectives, stale reads that hide nothing are not made. On one device, and
if ladderize inserts the collectives, only the options decide.
"""

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence

from torch.fx import Node

from ladderize.config.options import LadderConfig
from ladderize.errors import Blocker, LadderError, LadderWarning
from ladderize.graph.collectives import ALL_REDUCES, LAUNCHES
from ladderize.streams.block import Block, Stream
from ladderize.streams.context import AnalysisContext
from ladderize.streams.contributions import brought, launched
from ladderize.streams.joins import StaleReads
from ladderize.streams.left_out import Connectivity, LeftOut

Chosen = tuple[frozenset[int], ...]


def keep_reads_that_hide(
    context: AnalysisContext,
    streams: Sequence[Stream],
    chosen: Chosen,
    stale: Sequence[Collection[int]],
    config: LadderConfig,
    connectivity: Connectivity,
) -> Chosen:
    """Drop chosen blocks whose stale reads would hide nothing, with a warning.

    In a model that reduces the stream itself, not the branches, all blocks are dropped. Blocks
    that already are `stale` are kept, and blocks that the options name are kept unless `strict`.

    Raises:
        LadderError: no stale read would hide anything, or `strict` is set and the options name a
            block whose read would hide nothing.
    """
    found = [_launches(context, stream) for stream in streams]
    if not any(found):
        return chosen
    moved = [
        _left_out(StaleReads.of(stream, indices, connectivity), already)
        for stream, indices, already in zip(streams, chosen, stale, strict=True)
    ]
    experts = {block for block, own in connectivity.contributions.items() if own.has_experts}
    idle = [_idle(context, *pair, experts) for pair in zip(streams, moved, strict=True)]
    if not any(idle):
        return chosen
    if not config.names_blocks and _reduces_streams(streams, found):
        others = [launch for launches in found for launch in launches]
        warning = LadderWarning(
            "This model reduces the stream itself, so no read is made stale:",
            _never_hidden(context, others),
        )
        warnings.warn(warning, stacklevel=2)
        return tuple(frozenset[int]() for _ in chosen)
    places = [Blocker.at(block.add, why) for blocks in idle for block, why in blocks]
    if len(places) == sum(map(len, moved)) or (config.names_blocks and config.strict):
        others = [launch for launches in found for launch in launches]
        raise LadderError(
            "These stale reads would hide no collective:",
            [*places, *_never_hidden(context, others)],
            "choose other blocks with blocks=; or convert the model before it is sharded",
        )
    if config.names_blocks:
        warning = LadderWarning("These stale reads hide no collective:", places)
        warnings.warn(warning, stacklevel=2)
        return chosen
    warning = LadderWarning(
        "These blocks stay standard because their stale reads would hide no collective:", places
    )
    warnings.warn(warning, stacklevel=2)
    return tuple(
        indices - {block.index for block, _ in blocks}
        for indices, blocks in zip(chosen, idle, strict=True)
    )


def _reduces_streams(streams: Sequence[Stream], found: Sequence[Sequence[Node]]) -> bool:
    """Whether all collectives are between blocks, and none in a branch."""
    inside = {node for stream in streams for block in stream.blocks for node in block.branch}
    return all(inside.isdisjoint(launches) for launches in found)


def _launches(context: AnalysisContext, stream: Stream) -> list[Node]:
    """The collectives between the first read of a stream and its last sum, and that of the sum."""
    if not stream.blocks or stream.stale_blocks:
        return []
    first, last = stream.blocks[0], stream.blocks[-1]
    inside = context.ancestors([last.add], context.position[first.anchor])
    inside -= context.static  # all-gathers of FSDP's parameters
    ends = [node for node in last.add.users if ALL_REDUCES.intersection(launched(context, node))]
    inside.update(ends)  # the sum itself is reduced, as in a desync residual
    return [node for node in context.nodes if node in inside and launched(context, node)]


def _left_out(reads: StaleReads, already: Collection[int]) -> dict[int, tuple[LeftOut, ...]]:
    """The parts left out by blocks that do not read stale `already`."""
    found = reads.left_out()
    return {index: left for index, left in found.items() if index not in already}


def _idle(
    context: AnalysisContext,
    stream: Stream,
    left_out: Mapping[int, tuple[LeftOut, ...]],
    experts: Collection[Block],
) -> list[tuple[Block, str]]:
    """The blocks whose stale reads would hide nothing, each with the reason.

    Args:
        left_out: for each block that reads stale, by its index, the parts that it leaves out.
        experts: blocks that leave out the whole block before them because they have experts,
            even on one device.
    """
    behind = {left for parts in left_out.values() for left in parts}
    hides = {left for left in behind if _is_hidden(context, left.nodes)}
    early = {block for block in experts if _is_hidden(context, block.branch)}
    return [
        (block, _without(block, [left.block for left in parts]))
        for block, parts in ((stream.blocks[index], parts) for index, parts in left_out.items())
        if hides.isdisjoint(parts) and block not in early and not brought(context, block)
    ]


def _without(block: Block, blocks: Sequence[Block]) -> str:
    first = block.index - len(blocks)
    if [before.index for before in blocks] != list(range(first, block.index)):
        before = "the last blocks of the streams joined"
    else:
        before = f"block {first}" if len(blocks) == 1 else f"blocks {first} to {block.index - 1}"
    return f"block {block.index}: no collective is in {before}"


def _is_hidden(context: AnalysisContext, nodes: Iterable[Node]) -> bool:
    return any(_launches_one(context, node) for node in nodes)


def _launches_one(context: AnalysisContext, node: Node) -> bool:
    return any(op in LAUNCHES for op in launched(context, node))


def _never_hidden(context: AnalysisContext, launches: Sequence[Node]) -> list[Blocker]:
    return [
        Blocker.at(node, f"{op} changes the stream itself")
        for node in launches
        for op in launched(context, node)
    ]
