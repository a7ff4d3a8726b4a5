"""What each node reads: its operands, and what was written into their memory before it.

    out = zeros(2, 8);  setitem(out, 0, h);  y = add(x, out)      y reads h, through setitem

A graph's edges alone do not say so: `y` and `setitem` are joined by the memory of `out`. KV caches
are written in this way (`cache.index_copy_(…)`), and buffers that a scan fills step by step.
"""

from collections.abc import Iterable

from torch.fx import Node

from ladderize import ops


def find_sources(nodes: Iterable[Node]) -> dict[Node, tuple[Node, ...]]:
    """For each of `nodes`, in graph order, the nodes whose results it depends on. Linear.

    Of several writes to one memory it is the last before the reader: that one reads those before.
    """
    last_write: dict[int, Node] = {}
    sources: dict[Node, tuple[Node, ...]] = {}
    for node in nodes:
        operands = node.all_input_nodes
        found = dict.fromkeys(operands)
        if last_write:
            memory = (s for operand in operands for s in ops.storages(operand))
            found.update(dict.fromkeys(last_write[s] for s in memory if s in last_write))
        sources[node] = tuple(found)
        for written in ops.written_operands(node):
            last_write.update(dict.fromkeys(ops.storages(written), node))
    return sources
