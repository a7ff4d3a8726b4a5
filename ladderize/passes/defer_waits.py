"""Put each wait off, and bring all-gathers forward, as `find_schedule` says.

    before   l0 w0 x1 | h1 l1 w1 x2 | h2 l2 w2 x3          h1 reads x0, h2 reads x1
    after    l0 | h1 l1 w0 x1 | h2 l2 w1 x2 | w2 x3

Only the order of nodes changes, and not that of writes into memory and what reads it. The launches
of one kind keep theirs; an all-gather may pass a reduce-scatter, on all ranks alike, because all
ranks have the same graph.
"""

import heapq
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import Graph, GraphModule, Node

from ladderize.config.hardware import Hardware
from ladderize.config.options import LadderConfig
from ladderize.graph.dataflow import find_memory_order
from ladderize.passes import PassResult
from ladderize.passes.lane_times import Durations, exposed
from ladderize.passes.schedule import MAX_AHEAD, Schedule, find_schedule


@dataclass(frozen=True)
class DeferWaits:
    """The order of least exposed time by the model of `lane_times.py`, or the one written.

    Attributes:
        hardware: what durations are those of; None: they are counted, and name no hardware.
        max_ahead: how many later launches of its channel a wait is put off past at most: so many
            more buffers are in flight.
    """

    hardware: Hardware | None = None
    max_ahead: int = MAX_AHEAD
    preserves_values: ClassVar[bool] = True

    @classmethod
    def of(cls, config: LadderConfig) -> "DeferWaits":
        return cls(config.known_hardware, config.launches_ahead)

    def __call__(self, gm: GraphModule) -> PassResult:
        durations = Durations.of(gm.graph, self.hardware)
        written = list(gm.graph.nodes)
        best, moved, least = written, 0, exposed(written, durations)
        for with_chains in (False, True):
            schedule = find_schedule(gm.graph, durations, self.max_ahead, with_chains=with_chains)
            if not schedule.waits and not schedule.launches:
                continue
            order, kept = _order(gm.graph, schedule)
            time = exposed(order, durations)
            if time <= least:
                best, moved, least = order, kept, time
        if best is not written:
            _arrange(best)
        return PassResult(changed=moved)


def _order(graph: Graph, schedule: Schedule) -> tuple[list[Node], int]:
    """The nodes in their old order as far as `schedule` allows; and how many waits were put off.

    A few waits may contradict each other in graphs that are no ladder (each is possible alone,
    together they make a cycle); those that would block stay where they are.
    """
    ranks = _ranks(graph, {**schedule.work, **schedule.launches})
    behind = find_memory_order(list(graph.nodes))
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
    """What comes first: the old position; what is brought forward ranks with all that it needs."""
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
    """Topological order that takes the node of the lowest rank first."""
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


def _arrange(order: list[Node]) -> None:
    previous = order[0]
    for node in order[1:]:
        previous.append(node)
        previous = node
