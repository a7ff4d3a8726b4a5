"""Notice a net that is a ladder already: sums whose branch reads the stream before its skip.

    x1 = x0 + h0(x0);  x2 = x1 + h1(x0);  x3 = x2 + h2(x1)      x2 and x3 are stale sums

Such a stream is left alone: a second rewrite would compute neither net.
"""

from collections.abc import Mapping, Sequence

from torch.fx import Node

from ladderize.block import Block
from ladderize.candidates import Candidates, find_writer
from ladderize.reach import Reach

# How many blocks behind its skip a branch is looked for.
MAX_STALENESS = 8


def find_stale_sums(
    reach: Reach, candidates: Candidates, chains: Sequence[Sequence[Block]]
) -> dict[Block, tuple[Node, ...]]:
    """The stale sums behind each chain that has any, by the chain's first block."""
    blocks = {block.add: block for block in candidates.blocks}
    taken = {node for b in candidates.blocks for node in b.partial_sums} | candidates.groups
    nested = {node for chain in chains for block in chain for node in block.branch}
    first = {block: chain[0] for chain in chains for block in chain}
    found: dict[Block, list[Node]] = {}
    for node in reach.nodes:
        if node in blocks or node in taken or not reach.summands(node):
            continue
        writer = _find_stale_skip(reach, node, blocks)
        if writer is None or writer not in first:
            continue
        home = first[writer]
        stale = Block(0, writer.add, writer.add, (), (), add=node)
        blocks[node], first[stale] = stale, home
        if node not in nested:
            found.setdefault(home, []).append(node)
    return {block: tuple(sums) for block, sums in found.items()}


def _find_stale_skip(reach: Reach, node: Node, blocks: Mapping[Node, Block]) -> Block | None:
    """The block that wrote the skip of `node`, if the other operand reads the stream before it."""
    left, right = reach.summands(node)
    for skip, output in ((left, right), (right, left)):
        writer = None if skip in reach.static else find_writer(reach, skip, blocks)
        if writer is None or output in reach.static or reach.depends_on([output], writer.add):
            continue  # what comes after the writer, a token shift for one, is not stale
        behind: Block | None = writer
        for _ in range(MAX_STALENESS):
            if behind is None:
                break
            if reach.branch(behind.anchor, [output]) is not None:
                return writer
            behind = find_writer(reach, behind.anchor, blocks)
    return None
