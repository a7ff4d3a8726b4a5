"""The nodes of a branch that carry shardings: its own, and those that make memory for it alone.

    s = slice(h);  z = zeros_like(s);  c = cat(z, h)      h, c: of the branch;  s, z: made for it
    m = empty([2, 8]);  copy_(slice(m), h)                m, its slice: made for it

    p = pad(h);  keep_part(p)                             p: made for what a cache keeps
    w = unpack(q);  y = matmul(h, w)                      w: unpacked for it alone

A branch holds the nodes that its values flow through. `z` takes the form of `s` alone, but both
are divided if `h` is.
"""

from collections.abc import Container, Iterator, Sequence

from torch.fx import Node

from ladderize.graph import ops
from ladderize.graph.local_heads import all_heads, keep_part, kept_part
from ladderize.graph.writes import written_operands
from ladderize.sharding.visit import FORM_READERS, is_tensor, packet
from ladderize.streams.block import Block


def walked_nodes(
    block: Block, taken: Container[Node], unpacked: Sequence[Node] = ()
) -> tuple[Node, ...]:
    """The branch and what is made for it alone, in graph order.

    Args:
        taken: the nodes of all branches.
        unpacked: what computes weights of the branch.
    """
    made: set[Node] = set()
    for node in reversed(_candidates(block, taken)):
        readers = [user for user in node.users if packet(user) not in FORM_READERS]
        is_used = bool(readers) or bool(written_operands(node))  # memory is filled with 0, too
        is_own = all(user in made or user in block.members for user in readers)
        if node.target is keep_part or (is_used and is_own):
            made.add(node)
    if not made:
        branch = block.branch
    else:
        branch = tuple(node for node in _stretch(block) if node in made or node in block.members)
    return tuple(sorted({*branch, *unpacked})) if unpacked else branch


def _candidates(block: Block, taken: Container[Node]) -> list[Node]:
    """What makes memory, takes the form of a value of the branch, and what is behind that."""
    found: dict[Node, None] = {}
    for node in _stretch(block):
        if node in taken or node.op != "call_function" or packet(node) in FORM_READERS:
            continue
        sources = node.all_input_nodes
        has_values = any(map(is_tensor, sources)) and not ops.reads_no_values(node)
        is_made = is_tensor(node) and (not has_values or node.target in _READS_OF_CACHES)
        if is_made or any(source in found or source in block.members for source in sources):
            found[node] = None
    return list(found)


_READS_OF_CACHES = (kept_part, all_heads)


def _stretch(block: Block) -> Iterator[Node]:
    """The nodes of the graph from the first to the last one of the branch."""
    node, last = block.branch[0], block.branch[-1]
    while node is not last:
        yield node
        node = node.next
    yield last
