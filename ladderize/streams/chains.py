"""Link blocks into chains, longest first, without chains inside the branches of another.

a gate in each of three branches:  [b0 b1 b2], not [g0], [g1], [g2]
a state of six steps in a branch:  [b0 b1 b2], not [s0 … s5], which start from zeros
"""

from collections.abc import Collection, Mapping, Sequence

from torch.fx import Node

from ladderize.streams.block import Block


def longest_chains(
    blocks: Sequence[Block],
    parent: Mapping[Block, Block | None],
    position: Mapping[Node, int],
    static: Collection[Node],
) -> list[tuple[Block, ...]]:
    """Chains of linked blocks in graph order, without those nested in an accepted chain's branch.

    Longer chains are accepted first. Chains that start at a `static` value come after all other
    chains of at least two blocks.
    """
    free = list(blocks)
    apart = starting_at(static, blocks, parent)
    accepted: list[tuple[Block, ...]] = []
    while free:
        chain = _longest_chain(free, parent, apart)
        free = [block for block in free if block not in chain]
        if not _is_nested(chain, accepted):
            accepted.append(chain)
    return sorted(accepted, key=lambda chain: position[chain[0].add])


def starting_at(
    static: Collection[Node], blocks: Sequence[Block], parent: Mapping[Block, Block | None]
) -> set[Block]:
    """The blocks, in graph order, that belong to chains starting at one of the `static` values."""
    found: set[Block] = set()
    for block in blocks:
        before = parent[block]
        if before in found or (before is None and block.anchor in static):
            found.add(block)
    return found


def _longest_chain(
    free: Sequence[Block], parent: Mapping[Block, Block | None], apart: Collection[Block]
) -> tuple[Block, ...]:
    depth: dict[Block, int] = {}
    for block in free:  # in graph order: a parent comes before its children
        before = parent[block]
        depth[block] = depth.get(before, 0) + 1 if before is not None else 1

    def rank(block: Block) -> tuple[bool, int, int]:
        # Prefer the outermost of equally long chains: its last branch is the largest.
        return depth[block] > 1 and block not in apart, depth[block], len(block.branch)

    last: Block | None = max(free, key=rank)
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
