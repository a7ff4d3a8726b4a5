"""Insert calls into a graph with the module and source line of an existing node."""

from typing import Any

from torch.fx import Graph, Node


def insert_after(graph: Graph, place: Node, target: Any, args: tuple[Any, ...]) -> Node:
    """Insert a call right after `place`, with the same module and source line."""
    with graph.inserting_after(place):
        return like(graph.call_function(target, args), place)


def like(node: Node, origin: Node) -> Node:
    """Give `node` the module and source line of `origin`."""
    for key in ("stack_trace", "nn_module_stack"):
        if key in origin.meta:
            node.meta[key] = origin.meta[key]
    return node
