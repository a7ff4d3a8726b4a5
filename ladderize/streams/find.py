"""Find the residual stream: its adds, the nodes of its branches, and its reads.

    x1 = add(x0, h0)      h0 reached from x0 through a mixing op   -> block 0, anchor x0
    x2 = add(norm(x1), h1)                                         -> block 1, anchor norm(x1)
    x3 = add(conv(x2), h2)                                         -> no block: the skip path mixes
    x4 = add(x3, h3)                                               -> block 2, the next segment

The analysis does not change the graph. It matches structure only: names are used for the report
and for `layers=`. See the glossary for stream, block, branch, anchor and segment.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch.fx import GraphModule, Node

from ladderize.streams.block import Block, Stream
from ladderize.streams.candidates import find_candidates, find_writer
from ladderize.streams.chains import longest_chains
from ladderize.streams.context import AnalysisContext
from ladderize.streams.existing_ladders import (
    chains_in_stale_branches,
    entering_stale_branches,
    find_stale_blocks,
    groups_of_stale_blocks,
)
from ladderize.streams.joins import with_joins
from ladderize.streams.layers import count_prologue, layer_indices
from ladderize.streams.refusals import find_blockers
from ladderize.streams.stale_halves import separate_stale_halves

Chain = tuple[Block, ...]


def find_streams(gm: GraphModule, parameters: Iterable[Node] = ()) -> tuple[Stream, ...]:
    """The residual streams of `gm`, in graph order. Linear in the size of the graph.

    Args:
        gm: a Dynamo, export or symbolically traced graph, functionalized, with fake values.
        parameters: placeholders of parameters and buffers.
    """
    return streams_in(AnalysisContext(gm, parameters))


def streams_in(context: AnalysisContext) -> tuple[Stream, ...]:
    """`find_streams` for a graph with an `AnalysisContext`."""
    candidates = find_candidates(context)
    alone = find_stale_blocks(context, candidates, [(block,) for block in candidates.blocks])
    if groups := groups_of_stale_blocks(context, candidates, alone):
        candidates = candidates.without(groups)
    by_add = {block.add: block for block in candidates.blocks}
    parent = {block: find_writer(context, block.anchor, by_add) for block in candidates.blocks}
    parent |= dict.fromkeys(entering_stale_branches(parent, alone))
    chains = longest_chains(candidates.blocks, parent, context.position, context.static)
    stale = find_stale_blocks(context, candidates, chains)
    if nested := chains_in_stale_branches(chains, stale):
        chains = [chain for chain in chains if chain not in nested]
        stale = find_stale_blocks(context, candidates, chains)
    streams = []
    for segments in _join_segments(context, chains):
        blocks = _number(segments)
        behind = tuple(block for chain in segments for block in stale.get(chain[0], ()))
        stream = Stream(blocks, find_blockers(context, blocks, by_add), behind)
        streams.append(separate_stale_halves(context, stream))
    return with_joins(context, streams)


def _join_segments(context: AnalysisContext, chains: Sequence[Chain]) -> list[list[Chain]]:
    """Join chains into streams: a chain continues the one whose end it reads, reshaped or mixed."""
    joined = {chain: [chain] for chain in chains}
    ends = _latest_ends(context, {chain[-1].add: chain for chain in chains})
    streams = []
    for chain in chains:
        before = ends[chain[0].anchor]
        run = joined.get(before) if before is not None else None
        if before is None or run is None or run[-1] is not before:
            streams.append(joined[chain])  # first segment, or another chain continues `before`
            continue
        run.append(chain)
        joined[chain] = run
    return streams


def _latest_ends(context: AnalysisContext, ends: Mapping[Node, Chain]) -> dict[Node, Chain | None]:
    """For each node, the last chain to end among those that it depends on."""
    latest: dict[Node, Node | None] = {}
    for node in context.nodes:
        found = [latest[s] for s in context.sources[node] if s not in context.static]
        behind = max((f for f in found if f), key=context.position.__getitem__, default=None)
        latest[node] = node if node in ends else behind
    return {node: None if end is None else ends[end] for node, end in latest.items()}


def _number(chains: Sequence[Chain]) -> Chain:
    """The blocks of a stream's segments, with indices, segments and layers set."""
    numbered: list[Block] = []
    for segment, chain in enumerate(chains):
        layers = layer_indices(chain)
        ahead = count_prologue(chain, layers)
        for place, block in enumerate(chain):
            numbered.append(
                replace(
                    block,
                    index=len(numbered),
                    layer=layers[place],
                    segment=segment,
                    is_prologue=place < ahead,
                )
            )
    return tuple(numbered)
