"""What each node reads: its operands, and what was written into their memory before it.

    out = zeros(2, 8);  setitem(out, 0, h);  y = add(x, out)      y reads h, through setitem

A graph's edges alone do not say so: `y` and `setitem` are joined by the memory of `out`. KV caches
are written in this way (`cache.index_copy_(…)`), and buffers that a scan fills step by step.
"""

from collections.abc import Iterable, Mapping, Sequence

from torch.fx import Node

from ladderize.graph import ops
from ladderize.graph.writes import written_operands


def find_writes(nodes: Iterable[Node]) -> dict[Node, dict[Node, Node]]:
    """For each reader of written memory, the last write before it by operand. Linear.

    Of several writes to one memory the last is enough: it reads those before. An operand that was
    made behind the write has read it itself: a view, or what an in-place op became that was
    replaced by a functional one, whose fake value still is of that memory.
    """
    last_write: dict[int, Node] = {}
    writes: dict[Node, dict[Node, Node]] = {}
    position: dict[Node, int] = {}
    for index, node in enumerate(nodes):
        position[node] = index
        if last_write:
            found = {
                operand: last_write[storage]
                for operand in node.all_input_nodes
                for storage in ops.storages(operand)
                if storage in last_write
                and position.get(operand, -1) < position[last_write[storage]]
            }
            if found:
                writes[node] = found
        for written in written_operands(node):
            last_write.update(dict.fromkeys(ops.storages(written), node))
    return writes


def find_sources(
    nodes: Iterable[Node], writes: Mapping[Node, Mapping[Node, Node]]
) -> dict[Node, tuple[Node, ...]]:
    """For each of `nodes` those whose results it depends on: its operands, and what wrote them.

    None for a node that takes no more than the form of its operands (`zeros_like(x)`).
    """
    return {
        node: ()
        if ops.reads_no_values(node)
        else tuple(dict.fromkeys((*node.all_input_nodes, *writes.get(node, {}).values())))
        for node in nodes
    }


def find_memory_order(nodes: Sequence[Node]) -> dict[Node, list[Node]]:
    """For each node the later ones that have to stay behind it because of memory alone. Linear.

    A write stays behind what has read or written that memory; what reads it, behind the last write.
    """
    written = {
        node: _storages_of(operands) for node in nodes if (operands := written_operands(node))
    }
    shared = frozenset().union(*written.values())
    followers: dict[Node, list[Node]] = {}
    last_write: dict[int, Node] = {}
    since: dict[int, list[Node]] = {}  # that write and what has read its result
    for node in nodes if shared else ():
        for storage in shared.intersection(_storages_of(node.all_input_nodes)):
            if storage in written.get(node, ()):
                ahead, since[storage] = since.get(storage, []), [node]
                last_write[storage] = node
            else:
                ahead = [last_write[storage]] if storage in last_write else []
                since.setdefault(storage, []).append(node)
            for earlier in ahead:
                followers.setdefault(earlier, []).append(node)
    return followers


def _storages_of(operands: Iterable[Node]) -> set[int]:
    return {storage for operand in operands for storage in ops.storages(operand)}
