"""Order the nodes of a graph according to a schedule.

    schedule   w0 after l1             l0 w0 x1 | h1 l1 w1 x2 | …
    ordered                            l0 | h1 l1 w0 x1 | …
    launches_first                     g w l1 | …  ->  g l1 w | …     l1 does not need w

Data dependencies and writes to memory keep their order. Otherwise the written order is kept.
"""

import heapq
import itertools
from collections.abc import Mapping, Sequence

from torch.fx import Graph, Node

from ladderize.graph.collectives import is_wait
from ladderize.passes.lane_times import Durations
from ladderize.passes.schedule import Schedule

MemoryOrder = Mapping[Node, Sequence[Node]]
"""For each node, the later nodes that must stay after it; see `find_memory_order`."""


def ordered(graph: Graph, schedule: Schedule, memory: MemoryOrder) -> tuple[list[Node], int]:
    """The nodes in their old order as far as `schedule` allows, and the number of deferred waits.

    In graphs that are not ladders, deferred waits may form a cycle together; waits that block the
    order are not deferred.
    """
    ranks = _ranks(graph, {**schedule.work, **schedule.launches})
    behind = {node: list(later) for node, later in memory.items()}
    for wait, launch in schedule.limits.items():
        behind.setdefault(wait, []).append(launch)
    waits = dict(schedule.waits)
    while True:
        order = _sort(graph, waits, behind, ranks)
        placed = set(order)
        blocked = [wait for wait in waits if wait not in placed]
        if not blocked:
            return order, len(waits)
        del waits[blocked[0]]


def _ranks(graph: Graph, early: Mapping[Node, Node]) -> dict[Node, tuple[int, int]]:
    """Sort keys: the old positions, but earlier ones for nodes moved forward and their inputs."""
    position = {node: i for i, node in enumerate(graph.nodes)}
    ranks = {node: (i, i) for node, i in position.items()}
    for first, after in early.items():
        place, _ = ranks[after]
        needed = [first]
        while needed:
            node = needed.pop()
            if ranks[node][0] > place:
                ranks[node] = (place, position[node])
                needed += node.all_input_nodes
    return ranks


def _sort(
    graph: Graph,
    waits: Mapping[Node, Node],
    behind: Mapping[Node, Sequence[Node]],
    ranks: Mapping[Node, tuple[int, int]],
) -> list[Node]:
    """A topological order that takes the ready node with the lowest rank."""
    nodes = list(graph.nodes)
    followers = {node: list(later) for node, later in behind.items()}
    for wait, after in waits.items():
        followers.setdefault(after, []).append(wait)
    missing = {node: len(node.all_input_nodes) for node in nodes}
    for node in itertools.chain.from_iterable(followers.values()):
        missing[node] += 1
    ready = [ranks[node] for node in nodes if missing[node] == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        node = nodes[heapq.heappop(ready)[1]]
        order.append(node)
        for follower in (*node.users, *followers.get(node, ())):
            missing[follower] -= 1
            if missing[follower] == 0:
                heapq.heappush(ready, ranks[follower])
    return order


def launches_first(order: Sequence[Node], durations: Durations, memory: MemoryOrder) -> list[Node]:
    """`order` with each launch moved before work that it does not need.

    A launch does not pass an earlier wait or launch. In a backward graph, the work that it passes
    is mostly weight gradients.
    """
    ahead: dict[Node, list[Node]] = {}
    for earlier, later in memory.items():
        for node in later:
            ahead.setdefault(node, []).append(earlier)
    found: list[Node] = []
    segment: list[Node] = []
    for node in order:
        if node not in durations.transfer and not is_wait(node):
            segment.append(node)
            continue
        if node in durations.transfer:
            needed = _needed(node, set(segment), ahead)
            late = _with_readers(segment, needed, durations, ahead)
            found += [*(n for n in segment if n not in late), node]
            segment = [n for n in segment if n in late]
        else:
            found += [*segment, node]
            segment = []
    return [*found, *segment]


def _needed(launch: Node, segment: set[Node], ahead: Mapping[Node, Sequence[Node]]) -> set[Node]:
    found: set[Node] = set()
    todo = [launch]
    while todo:
        node = todo.pop()
        new = segment.intersection((*node.all_input_nodes, *ahead.get(node, ()))) - found
        found |= new
        todo += new
    return found


def _with_readers(
    segment: Sequence[Node],
    needed: set[Node],
    durations: Durations,
    ahead: Mapping[Node, Sequence[Node]],
) -> set[Node]:
    """The work that is not needed, and the nodes that depend on it."""
    late: set[Node] = set()
    for node in segment:
        reads = (*node.all_input_nodes, *ahead.get(node, ()))
        if node not in needed and (node in durations.work or not late.isdisjoint(reads)):
            late.add(node)
    return late


def arrange(order: Sequence[Node]) -> None:
    """Put the nodes of a graph into `order`."""
    previous = order[0]
    for node in order[1:]:
        previous.append(node)
        previous = node
