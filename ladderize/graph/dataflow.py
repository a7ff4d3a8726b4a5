"""Dataflow through operands and through memory written in place.

    out = zeros(2, 8);  setitem(out, 0, h);  y = add(x, out)      y reads h, through setitem

The edges of a graph do not show this dependency of `y` on `setitem` through the memory of `out`.
KV caches (`cache.index_copy_(…)`) and buffers that a scan fills step by step are written this way.
"""

from collections.abc import Iterable, Mapping, Sequence

from torch.fx import Node

from ladderize.graph import ops
from ladderize.graph.writes import written_operands


def find_writes(nodes: Iterable[Node]) -> dict[Node, dict[Node, Node]]:
    """For each reader of written memory, the last write before it, by operand. Linear.

    The last of several writes is enough, because each write reads those before it. An operand
    created after the write has read it itself: it is a view, or the functional replacement of an
    in-place op, whose fake value still has that storage.
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
    """For each of `nodes`, the nodes that it depends on: its operands and the writes to them.

    Empty for a node that reads only the shape of its operands (`zeros_like(x)`).
    """
    return {
        node: ()
        if ops.reads_no_values(node)
        else tuple(dict.fromkeys((*node.all_input_nodes, *writes.get(node, {}).values())))
        for node in nodes
    }


def find_memory_order(nodes: Sequence[Node]) -> dict[Node, list[Node]]:
    """For each node, the later nodes that must stay after it because of memory alone. Linear.

    A write stays after earlier reads and writes of its memory; a read, after the last write.
    """
    written = {
        node: _storages_of(operands) for node in nodes if (operands := written_operands(node))
    }
    shared = frozenset().union(*written.values())
    followers: dict[Node, list[Node]] = {}
    last_write: dict[int, Node] = {}
    since: dict[int, list[Node]] = {}  # the last write and the reads after it
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
