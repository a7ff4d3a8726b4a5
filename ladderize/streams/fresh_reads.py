"""Detect reads of a converted branch that stay standard: stream values other than its anchor.

    u = norm(x1)                                  the branch of block 1 does not read u
    x3 = add(x2, h2(x2) * sigmoid(linear(u)))     h2 reads x1 in addition to x2, which moves
    x5 = add(x4, attn(cat([c4, x4])))             c ends with c4: no block of c reads it

Values computed in an earlier branch are as stale as that branch, and are not reported. The end of
another stream, such as an encoder's, is reported only if the two streams share a branch.
"""

import itertools
import warnings
from collections.abc import Collection, Iterator, Sequence

from torch.fx import Node

from ladderize.errors import Blocker, LadderWarning
from ladderize.graph import ops
from ladderize.streams.block import Block, Stream
from ladderize.streams.context import AnalysisContext

Place = tuple[int, Block]
"""A stream's number and one of its blocks."""


def warn_of_fresh_reads(found: Sequence[Blocker]) -> None:
    """Warn of each block with such a read."""
    if found:
        warning = LadderWarning(
            "These reads stay standard because they do not read the block's own anchor:", found
        )
        warnings.warn(warning, stacklevel=3)


def find_fresh_reads(
    context: AnalysisContext, streams: Sequence[Stream], chosen: Sequence[Collection[int]]
) -> Iterator[Blocker]:
    """The `chosen` blocks that read a stream value other than their anchor, and its location.

    Call this on the standard graph.
    """
    homes = _homes(streams)
    shared = ({number for number, _ in places} for places in homes.values())
    beside = {frozenset(pair) for numbers in shared for pair in itertools.combinations(numbers, 2)}
    before = {
        block.anchor: (number, block)
        for number, stream in enumerate(streams)
        for block in stream.blocks
        if block.index and stream.blocks[block.index - 1].segment == block.segment
    }
    ends = {
        stream.blocks[-1].add: (number, stream.blocks[-1])
        for number, stream in enumerate(streams)
        if stream.blocks and stream.blocks[-1].add not in before
    }
    reads = _side_reads(context, homes, {*before, *ends})
    for number, stream in enumerate(streams):
        for block in (block for block in stream.blocks if block.index in chosen[number]):
            said = f"block {block.index} of stream {number} also reads"
            for value in sorted(_read_by(block, homes, reads), key=context.position.__getitem__):
                other, of = before.get(value) or ends[value]
                where = "the stream" if other == number else f"stream {other}"
                if value in before:
                    yield Blocker.at(block.add, f"{said} {where} before block {of.index}")
                elif frozenset({number, other}) in beside:
                    yield Blocker.at(block.add, f"{said} {where} where it ends")


def _homes(streams: Sequence[Stream]) -> dict[Node, list[Place]]:
    """The branches that contain each node."""
    homes: dict[Node, list[Place]] = {}
    for number, stream in enumerate(streams):
        for block in stream.blocks:
            for node in block.branch:
                homes.setdefault(node, []).append((number, block))
    return homes


def _side_reads(
    context: AnalysisContext, homes: Collection[Node], named: Collection[Node]
) -> dict[Node, frozenset[Node]]:
    """For each node outside of all branches, the `named` values that it is computed from.

    For a named value, that is the value itself; for a node in a branch, nothing.
    """
    reads: dict[Node, frozenset[Node]] = {}
    for node in context.nodes:
        if node in named:
            reads[node] = frozenset({node})
        elif node in homes or node in context.static:
            reads[node] = frozenset()
        else:
            sources = (reads[s] for s in context.sources[node] if ops.holds_tensor(s))
            reads[node] = frozenset().union(*sources)
    return reads


def _read_by(
    block: Block, homes: dict[Node, list[Place]], reads: dict[Node, frozenset[Node]]
) -> set[Node]:
    """The named values that enter the branch of `block` other than through its anchor."""
    found: set[Node] = set()
    for node in block.branch:
        shared = {of.anchor for _, of in homes[node]}
        for source in node.all_input_nodes:
            if source not in block.members and source not in shared and ops.holds_tensor(source):
                found |= reads[source]
    return found
