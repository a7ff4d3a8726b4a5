"""Reduce small sums of one branch together: those of a norm over all heads of q and one of k.

    q: p0 = mean(q², -1, True) ; k: p1 = mean(k², -1, True)     one number per token each
    one all-reduce of cat([p0, p1], -1), of which q's norm reads one entry and k's the other

Neither sum may depend on the other. What reads the first sum moves behind the all-reduce; therefore
nothing in between may write to memory.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch.fx import Node

from ladderize.graph import ops
from ladderize.graph.writes import written_operands
from ladderize.sharding.edits import Reduction


def join_small_sums(reductions: Sequence[Reduction]) -> list[Reduction]:
    """The reductions, in graph order, with neighbors joined that may be sent together."""
    joined: list[Reduction] = []
    for found in reductions:
        if joined and _may_join(joined[-1], found):
            partials = (*joined[-1].partials, *found.partials)
            joined[-1] = replace(found, partials=partials, is_joint=True)
        else:
            joined.append(found)
    return joined


def _may_join(first: Reduction, second: Reduction) -> bool:
    values = [node.meta["val"] for node in (*first.partials, *second.partials)]
    is_plain = not (first.biases or second.biases or first.into or second.into)
    forms = {(ops.expressions(value.shape), value.dtype) for value in values}
    if not is_plain or len(forms) > 1 or ops.expressions(values[0].shape)[-1:] != (1,):
        return False
    between = list(_until(first.partials[0], second.partials[-1]))
    if any(map(written_operands, between)):
        return False
    late = readers_before(first.partials, second.partials[-1])
    return not any(node in second.partials or _draws(node) for node in late)


def _draws(node: Node) -> bool:
    """Whether a node draws random numbers, so that it may not move."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _until(node: Node, end: Node) -> Iterator[Node]:
    """The nodes behind `node` up to `end`."""
    while node is not end:
        node = node.next
        yield node


def readers_before(sources: Iterable[Node], end: Node) -> list[Node]:
    """The nodes from the first of `sources` to `end` that depend on `sources`, in graph order."""
    found = dict.fromkeys(sources)
    late = []
    for node in _until(next(iter(found)), end):
        if any(source in found for source in node.all_input_nodes):
            found[node] = None
            late.append(node)
    return late
