"""Find parameters that start a stream, such as a class token or queries.

    c1 = add(c0, attn(cat(c0, x)))          c0 starts a stream: the branch is computed from it
    s  = add(bias, linear(norm(x), w))      `bias` does not: nothing is computed from it
    x2 = add(x1, h1(x1 + position))         `position`, a side input of stream x, does not:
    q3 = add(x2, position)                  x2 depends on it only through a branch of x

Static values depend only on parameters, buffers and constants (`context.py`).
"""

from collections.abc import Collection, Mapping

from torch.fx import Node

from ladderize.graph import ops
from ladderize.graph.ops import Kind
from ladderize.streams.block import Block
from ladderize.streams.context import AnalysisContext


def carried_values(context: AnalysisContext, blocks: Collection[Block]) -> frozenset[Node]:
    """The values on the skip paths of `blocks`, back to the previous sums."""
    return frozenset(value for block in blocks for value in context.walk_back(block.skip))


def is_made_of(
    context: AnalysisContext,
    output: Node,
    start: Node,
    by_add: Mapping[Node, Block],
    carried: Collection[Node],
) -> bool:
    """Whether every path from the static `start` to `output` has a mixing op.

    Paths that enter another stream, in a branch or in a sum on its skip path, do not count. False
    if there is no path.

    Args:
        by_add: blocks of other streams, by their adds.
        carried: values on their skip paths.
    """
    is_mixed = False
    seen: set[tuple[Node, bool]] = set()
    stack = [(output, False)]
    while stack:
        node, mixed = stack.pop()
        if node is start:
            if not mixed:
                return False
            is_mixed = True
        if (node, mixed) in seen or context.position[node] <= context.position[start]:
            continue
        seen.add((node, mixed))
        if node in by_add:
            sources = [by_add[node].skip]
        elif node in carried and context.summands(node):
            sources = context.carriers(node, node)
        else:
            sources = list(context.sources[node])
        mixed = mixed or ops.kind(node) is Kind.MIX
        stack.extend((source, mixed) for source in sources if ops.holds_tensor(source))
    return is_mixed
