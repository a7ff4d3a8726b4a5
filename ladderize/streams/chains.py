"""Link blocks into chains: the longest first, and none inside the branch of another.

a gate in each of three branches:  [b0 b1 b2], not [g0], [g1], [g2]
"""

from collections.abc import Mapping, Sequence

from torch.fx import Node

from ladderize.streams.block import Block


def longest_chains(
    blocks: Sequence[Block],
    parent: Mapping[Block, Block | None],
    position: Mapping[Node, int],
) -> list[tuple[Block, ...]]:
    """Chains of linked blocks, longest first, without those nested in a longer one's branches."""
    free = list(blocks)
    accepted: list[tuple[Block, ...]] = []
    while free:
        chain = _longest_chain(free, parent)
        free = [block for block in free if block not in chain]
        if not _is_nested(chain, accepted):
            accepted.append(chain)
    return sorted(accepted, key=lambda chain: position[chain[0].add])


def _longest_chain(
    free: Sequence[Block], parent: Mapping[Block, Block | None]
) -> tuple[Block, ...]:
    depth: dict[Block, int] = {}
    for block in free:  # in graph order: a parent comes before its children
        before = parent[block]
        depth[block] = depth.get(before, 0) + 1 if before is not None else 1
    # Of equally long chains the outermost: its last branch is the largest.
    last: Block | None = max(free, key=lambda block: (depth[block], len(block.branch)))
    chain = []
    while last is not None and last in depth:
        chain.append(last)
        last = parent[last]
    return tuple(reversed(chain))


def _is_nested(chain: Sequence[Block], accepted: Sequence[Sequence[Block]]) -> bool:
    adds = {block.add for block in chain}
    for other in accepted:
        for block in other:
            if adds & block.members:
                return True
        for block in chain:
            if any(theirs.add in block.members for theirs in other):
                return True
    return False
