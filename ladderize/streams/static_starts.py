"""Tell the parameter that a stream starts from, of a class token or of queries, from any other.

    c1 = add(c0, attn(cat(c0, x)))          c0 carries a stream: what is added was made of it
    s  = add(bias, linear(norm(x), w))      `bias` is none: nothing here was made of it
    x2 = add(x1, h1(x1 + position))         nor is `position`, a side input of the stream x:
    q3 = add(x2, position)                  what x2 has of it came by way of a branch of x

Static as in `context.py`: made of parameters, buffers and constants alone.
"""

from collections.abc import Collection, Mapping

from torch.fx import Node

from ladderize.graph import ops
from ladderize.graph.ops import Kind
from ladderize.streams.block import Block
from ladderize.streams.context import AnalysisContext


def carried_values(context: AnalysisContext, blocks: Collection[Block]) -> frozenset[Node]:
    """The values on the skip paths of `blocks`, back to the sums that they start from."""
    return frozenset(value for block in blocks for value in context.walk_back(block.skip))


def is_made_of(
    context: AnalysisContext,
    output: Node,
    start: Node,
    by_add: Mapping[Node, Block],
    carried: Collection[Node],
) -> bool:
    """Whether `output` was mixed from the static `start`, and not carried on from it.

    What entered another stream, in a branch or in a sum on its skip path, does not count.

    Args:
        by_add: the blocks of other streams.
        carried: the values on their skip paths.
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
