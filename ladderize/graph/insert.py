"""New calls in a graph, which report the module and source line of those they belong to."""

from typing import Any

from torch.fx import Graph, Node


def insert_after(graph: Graph, place: Node, target: Any, args: tuple[Any, ...]) -> Node:
    """A call right after `place`, from the same module and source line."""
    with graph.inserting_after(place):
        return like(graph.call_function(target, args), place)


def like(node: Node, origin: Node) -> Node:
    """`node` reports the module and source line of `origin`."""
    for key in ("stack_trace", "nn_module_stack"):
        if key in origin.meta:
            node.meta[key] = origin.meta[key]
    return node
