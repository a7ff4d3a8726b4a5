"""The nodes that carry shardings in a branch: its own, and those that create memory only for it.

    s = slice(h);  z = zeros_like(s);  c = cat(z, h)      h, c: in the branch;  s, z: only for it
    m = empty([2, 8]);  copy_(slice(m), h)                m, its slice: only for it

    p = pad(h);  keep_part(p)                             p: only for a cache
    w = unpack(q);  y = matmul(h, w)                      w: unpacked only for it

A branch has the nodes that its values flow through. `z` only takes the shape of `s`, but both are
sharded if `h` is.
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
    """The nodes of the branch and those that serve only it, in graph order.

    Args:
        block: block of the branch.
        taken: nodes of all branches.
        unpacked: nodes that compute weights of the branch.
    """
    made: set[Node] = set()
    for node in reversed(_candidates(block, taken)):
        readers = [user for user in node.users if packet(user) not in FORM_READERS]
        is_used = bool(readers) or bool(written_operands(node))  # filling memory is a use
        is_own = all(user in made or user in block.members for user in readers)
        if node.target is keep_part or (is_used and is_own):
            made.add(node)
    if not made:
        branch = block.branch
    else:
        branch = tuple(node for node in _stretch(block) if node in made or node in block.members)
    return tuple(sorted({*branch, *unpacked})) if unpacked else branch


def _candidates(block: Block, taken: Container[Node]) -> list[Node]:
    """Nodes that create memory or use values of the branch, and nodes computed from these."""
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
    """The nodes of the graph from the first to the last node of the branch."""
    node, last = block.branch[0], block.branch[-1]
    while node is not last:
        yield node
        node = node.next
    yield last
