"""Reduce the sums of a layer's branches together: the parallel form of a layer.

    a1 = add(x0, p0);  a2 = add(a1, p1)      p0, p1: partial; only a2 reads a1
    two reductions                       x1 = add(add(x0, reduce(p0)), reduce(p1))
    one reduction                        x1 = add(x0, reduce(add(p0, p1)))

Values are preserved up to rounding.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.fx import Node

from ladderize.sharding.edits import Reduction
from ladderize.sharding.visit import FORM_READERS, packet
from ladderize.streams.block import Block


def whole_sum(block: Block, reductions: Sequence[Reduction]) -> Reduction | None:
    """The single reduction of a branch, as the operand of its residual add.

    None unless the branch has exactly one reduction, of its output, and a plain add adds it.
    """
    if len(reductions) != 1:
        return None
    (found,) = reductions
    if found.into is not None:
        return found
    output = found.partials[0]
    is_plain = packet(block.add) is torch.ops.aten.add and not block.add.kwargs
    is_sum_of_two = is_plain and set(block.add.args) == {block.skip, output}
    if not is_sum_of_two or _readers(output) != [block.add]:
        return None
    return replace(found, skip=block.skip, into=block.add)


def join_layer_sums(
    blocks: Sequence[Block], per_block: Sequence[Sequence[Reduction]]
) -> list[Reduction]:
    """The reductions of all blocks, joined for sums that only the next sum reads.

    Args:
        blocks: blocks in graph order.
        per_block: reductions of each block.
    """
    joined: list[Reduction] = []
    latest: dict[Node, Reduction] = {}
    for block, own in zip(blocks, per_block, strict=True):
        found = whole_sum(block, own)
        if found is None:
            joined += own
            continue
        before = latest.get(block.skip)
        if before is not None and _readers(block.skip) == [block.add]:
            joined.remove(before)
            found = replace(
                found,
                partials=(*before.partials, *found.partials),
                biases=(*before.biases, *found.biases),
                others=(*before.others, *found.others),
                skip=before.skip,
                unread=(*before.unread, block.skip),
            )
        latest[block.add] = found
        joined.append(found)
    return joined


def _readers(node: Node) -> list[Node]:
    """The nodes that read the values of `node`, not only its shape or dtype."""
    return [user for user in node.users if packet(user) not in FORM_READERS]
