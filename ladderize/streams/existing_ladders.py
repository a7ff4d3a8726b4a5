"""Detect a model that is already a ladder: sums with a branch that reads an earlier stream value.

    x1 = x0 + h0(x0);  x2 = x1 + h1(x0);  x3 = x2 + h2(x1)      h1 and h2 are stale blocks

The reads of such a stream are unchanged, unless the options ask for a larger ladder; `restore.py`
then finds the standard model. All blocks are sharded as usual.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence

from torch.fx import Node

from ladderize.config.ladder_entry import MAX_STALENESS
from ladderize.errors import LadderWarning, counted, describe_origin, module_path
from ladderize.streams.block import Block, Stream
from ladderize.streams.candidates import Candidates, find_writer
from ladderize.streams.context import AnalysisContext


def find_stale_blocks(
    context: AnalysisContext, candidates: Candidates, chains: Sequence[Sequence[Block]]
) -> dict[Block, tuple[Block, ...]]:
    """The stale blocks that continue each chain, by the chain's first block.

    They are in graph order, all with `index` 0.
    """
    blocks = {block.add: block for block in candidates.blocks}
    taken = {node for b in candidates.blocks for node in b.partial_sums}
    nested = {chain[0]: {node for block in chain for node in block.branch} for chain in chains}
    home = {block.add: chain[0] for chain in chains for block in chain}
    found: dict[Block, list[Block]] = {}
    for node in context.nodes:
        if node in blocks or node in taken or not context.summands(node):
            continue
        stale, writer = _as_stale_block(context, node, blocks)
        if stale is None or writer is None or writer.add not in home:
            continue
        # Later sums see it as a block that continues the stream of `writer`.
        blocks[node] = Block(0, writer.add, stale.skip, (), (), add=node)
        home[node] = home[writer.add]
        if node not in nested[home[node]]:
            _append(context, found.setdefault(home[node], []), stale)
    return {block: tuple(stale) for block, stale in found.items()}


def groups_of_stale_blocks(
    context: AnalysisContext, candidates: Candidates, stale: Mapping[Block, Sequence[Block]]
) -> list[Block]:
    """The blocks whose branch is a ladder: it holds a block and stale blocks linked to it.

    x + s * (h + a(h)) + s * m(h),  h = norm(x)     one block; a has a skip of its own, m reads as a
    x + (h + a(h)) + m(h),  h = linear(x)           a ladder of two blocks behind a projection

    Both have one structure: in a ladder, the first block does not read a norm of what the group
    reads, or stale blocks read several values.

    Args:
        stale: stale blocks after each single block.
    """
    first = {block.add: block for block in candidates.blocks}

    def is_normed(anchor: Node, block: Block) -> bool:
        return anchor in block.branch and block.anchor in context.walk_back(anchor)

    def is_group(block: Block) -> bool:
        branch = frozenset(block.branch)
        for node in branch & first.keys():
            inside = [one for one in stale.get(first[node], ()) if one.add in branch]
            anchors = {one.anchor for one in inside}
            if len(anchors) > 1 or (anchors and not is_normed(first[node].anchor, block)):
                return True
        return False

    return [block for block in candidates.blocks if is_group(block)]


def entering_stale_branches(
    parent: Mapping[Block, Block | None], stale: Mapping[Block, Sequence[Block]]
) -> list[Block]:
    """The blocks in a stale branch that are linked to a block outside: the branch has a skip.

    x2 = x1 + (u + l(u)),  u = norm(x0)
    """
    holders = [one for ones in stale.values() for one in ones]
    return [
        block
        for block, before in parent.items()
        for holder in holders
        if before and block.add in holder.members and before.add not in holder.members
    ]


def chains_in_stale_branches(
    chains: Sequence[Sequence[Block]], stale: Mapping[Block, Sequence[Block]]
) -> list[Sequence[Block]]:
    """The chains that begin in a stale branch and are not longer than the stream of that branch.

    They consist of sums inside the branches. In a standard model, `chains.longest_chains` drops
    such chains.
    """
    length: dict[Node, int] = {}
    for chain in chains:
        behind = stale.get(chain[0], ())
        for node in (node for block in behind for node in block.branch):
            length[node] = max(length.get(node, 0), len(chain) + len(behind))
    return [chain for chain in chains if len(chain) <= length.get(chain[0].add, 0)]


def _as_stale_block(
    context: AnalysisContext, node: Node, blocks: Mapping[Node, Block]
) -> tuple[Block | None, Block | None]:
    """`node` as a stale block, and the block that wrote its skip; else None for both."""
    left, right = context.summands(node)
    for skip, output in ((left, right), (right, left)):
        writer = None if skip in context.static else find_writer(context, skip, blocks)
        if writer is None or context.depends_on([output], writer.add):
            continue  # a value computed after the writer, such as a token shift, is not stale
        if any(context.depends_on([skip], value) for value in context.walk_back(output)):
            continue  # `output` is a stream value, or `skip` is computed from it
        behind: Block | None = writer
        passed: set[Node] = set()
        for _ in range(MAX_STALENESS):
            if behind is None:
                break
            passed.add(behind.add)
            if branch := context.branch(behind.anchor, [output]):
                if not passed.isdisjoint(branch):
                    break  # `output` carries the stream, and `skip` is a branch
                return _stale_block(context, node, skip, output, behind), writer
            behind = find_writer(context, behind.anchor, blocks)
    return None, None


def _stale_block(
    context: AnalysisContext, node: Node, skip: Node, output: Node, behind: Block
) -> Block:
    """A block that reads the latest value, after a post-norm, that block `behind` could read."""
    for anchor in (*context.walk_back(behind.skip), behind.anchor):
        if (branch := context.branch(anchor, [output])) is not None:
            break
    assert branch is not None, "the anchor of `behind` reaches the output"
    return Block(0, anchor, skip, branch, (output,), add=node, module=module_path(node))


def _append(context: AnalysisContext, found: list[Block], stale: Block) -> None:
    """Add `stale` to `found`. The sums of a parallel block, `x1 + a(x0) + m(x0)`, are merged."""
    before = found[-1] if found else None
    if before is None or not _is_beside(context, stale, before):
        found.append(stale)
        return
    branch = sorted({*before.branch, *stale.branch}, key=context.position.__getitem__)
    found[-1] = Block(
        0,
        stale.anchor,
        before.skip,
        tuple(branch),
        (*before.outputs, *stale.outputs),
        add=stale.add,
        partial_sums=(*before.partial_sums, before.add),
        module=stale.module,
    )


def _is_beside(context: AnalysisContext, stale: Block, before: Block) -> bool:
    """Whether only `stale` reads the sum of `before`, and both read the same anchor."""
    is_partial = stale.skip is before.add and len(before.add.users) == 1
    is_plain = context.is_plain_sum(before.add) and context.is_plain_sum(stale.add)
    return is_partial and is_plain and stale.anchor is before.anchor


def warn_of_ladders(streams: Iterable[Stream]) -> None:
    """Warn, with the location of each block, that some of `streams` are already ladders."""
    blocks = [block for stream in streams for block in stream.stale_blocks]
    if blocks:
        places = "".join(f"\n  - {describe_origin(block.add)}" for block in blocks)
        warnings.warn(
            LadderWarning(
                f"This model is already a ladder, with {counted(len(blocks), 'stale block')}. "
                f"Its reads are unchanged:{places}"
            ),
            stacklevel=3,
        )
