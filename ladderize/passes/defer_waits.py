"""Put each wait off past the next launch that does not depend on it.

    before   l0 w0 x1 | h1 l1 w1 x2 | h2 l2 w2 x3          h1 reads x0, h2 reads x1
    after    l0 | h1 l1 w0 x1 | h2 l2 w1 x2 | w2 x3

Only the order of nodes changes, and never the order of the launches: that would hang ranks.
"""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import Graph, GraphModule, Node

from ladderize.inflight import find_deferrals
from ladderize.passes import PassResult


@dataclass(frozen=True)
class DeferWaits:
    preserves_values: ClassVar[bool] = True

    def __call__(self, gm: GraphModule) -> PassResult:
        deferrals = find_deferrals(gm.graph)
        if not deferrals:
            return PassResult(changed=0)
        order, kept = _order(gm.graph, deferrals)
        _arrange(order)
        return PassResult(changed=kept)


def _order(graph: Graph, after: Mapping[Node, Node]) -> tuple[list[Node], int]:
    """The nodes in their old order as far as `after` allows; and how many of `after` hold.

    A few deferrals may contradict each other in graphs that are no ladder (each is possible alone,
    together they make a cycle); those that would block are dropped.
    """
    constraints = dict(after)
    while True:
        order = _sort(graph, constraints)
        placed = set(order)
        blocked = [wait for wait in constraints if wait not in placed]
        if not blocked:
            return order, len(constraints)
        del constraints[blocked[0]]


def _sort(graph: Graph, after: Mapping[Node, Node]) -> list[Node]:
    """Topological order that takes the node with the lowest old position first."""
    nodes = list(graph.nodes)
    position = {node: i for i, node in enumerate(nodes)}
    followers: dict[Node, list[Node]] = {}
    for wait, launch in after.items():
        followers.setdefault(launch, []).append(wait)
    missing = {node: len(node.all_input_nodes) + (node in after) for node in nodes}
    ready = [position[node] for node in nodes if missing[node] == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        node = nodes[heapq.heappop(ready)]
        order.append(node)
        for follower in (*node.users, *followers.get(node, ())):
            missing[follower] -= 1
            if missing[follower] == 0:
                heapq.heappush(ready, position[follower])
    return order


def _arrange(order: list[Node]) -> None:
    previous = order[0]
    for node in order[1:]:
        previous.append(node)
        previous = node
