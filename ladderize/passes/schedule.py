"""Schedule launches and waits of collectives so that compute hides them.

    all-reduce        l0 w0 | h1 l1 w1 | h2 l2 w2                h1 reads x0, h2 reads x1
                      l0 | h1 l1 w0 | h2 l2 w1 | w2
    reduce-scatter    r0 w0 | g1 v1 h1 r1 w1 | g2 v2 h2 r2       g2 gathers x1 = x0 + w0
    and all-gather    r0 | v1 h1 w0 g2 h1 r1 | v2 h2 w1 g3 h2 r2
    experts           c0 w0 | h1 | router d1 v1 e1 c1            d1 sends the result of w0
                      c0 | h1 w0 router d1 h1 | v1 e1 c1

A launch comes as soon as its input is ready, ahead of work that it does not need. A wait (except
that of an all-gather) comes as late as possible: just before the first op that needs it and
computes or launches. It passes at most `max_ahead` later launches of its channel, whose buffers are
in flight at the same time.

A launch that needs a wait and little other work forms a chain of transfers with it
(transfer_chains.py): one stretch of work hides both, and the wait is inside this stretch.

The analysis does not change the graph and is linear in its size. Every rank has the same graph, so
all ranks find the same schedule.
"""

import bisect
import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch.fx import Graph, Node

from ladderize.config.ladder_entry import MAX_STALENESS
from ladderize.graph.collectives import GATHERS, P2P, is_wait
from ladderize.graph.dataflow import find_memory_order
from ladderize.graph.in_flight import find_in_flight
from ladderize.passes.lane_times import Durations
from ladderize.passes.transfer_chains import Chains

MAX_AHEAD = MAX_STALENESS
"""Default of `launches_ahead`; a ladder of staleness k needs k."""


@dataclass(frozen=True)
class Schedule:
    """The nodes to move.

    Attributes:
        waits: deferred waits, each with the node that it comes after.
        launches: launches to move forward with their inputs, each with the node that it comes
            after.
        work: work that launches need early in a stretch, each with the node that it comes after.
        limits: for each wait, the later launch that must stay after it, which limits the number of
            buffers in flight.
    """

    waits: dict[Node, Node] = field(default_factory=dict)
    launches: dict[Node, Node] = field(default_factory=dict)
    limits: dict[Node, Node] = field(default_factory=dict)
    work: dict[Node, Node] = field(default_factory=dict)


def find_schedule(
    graph: Graph, durations: Durations | None = None, max_ahead: int = MAX_AHEAD
) -> Schedule:
    """The schedule with chains, the last of `find_schedules`."""
    return find_schedules(graph, durations, max_ahead)[-1]


def find_schedules(
    graph: Graph, durations: Durations | None = None, max_ahead: int = MAX_AHEAD
) -> tuple[Schedule, Schedule]:
    """Find two schedules: without chains, and with chains whose waits are inside a stretch of work.

    Args:
        graph: ATen graph, forward or backward, or a sharded graph before autograd.
        durations: durations of nodes; by default `Durations.of(graph)`.
        max_ahead: maximum number of later launches of its channel past which a wait is deferred.
    """
    durations = Durations.of(graph) if durations is None else durations
    timeline = _Timeline(graph, durations)
    limits = timeline.limits(max_ahead)
    plain = Schedule(timeline.late_waits(limits), timeline.early_launches(), limits)
    chains = Chains(timeline.nodes, timeline.pairs, durations, plain.launches, limits)
    found = Schedule({**plain.waits}, {**plain.launches}, limits)
    for place in chains.places():
        if place.after is None:
            found.waits.pop(place.wait, None)
        else:
            found.waits[place.wait] = place.after
        found.launches.update(dict.fromkeys(place.launches, place.after or place.wait))
        found.work.update(dict.fromkeys(place.first, place.start))
    for each in (plain, found):
        timeline.keep_in_order(each.launches)
    return plain, found


class _Timeline:
    """The nodes of a graph, and the positions of those that take time.

    Attributes:
        nodes: nodes in graph order.
        pairs: launches with their waits.
        position: position of each node.
        acting: positions of nodes that compute or launch, in order.
        working: positions of nodes that compute, in order.
    """

    def __init__(self, graph: Graph, durations: Durations) -> None:
        self.nodes = list(graph.nodes)
        self.pairs = find_in_flight(graph)
        self.position = {node: i for i, node in enumerate(self.nodes)}
        self.acting = [i for i, node in enumerate(self.nodes) if durations.acts(node)]
        self.working = [i for i, node in enumerate(self.nodes) if node in durations.work]
        self._num_inputs = sum(node.op == "placeholder" for node in self.nodes)
        self._durations = durations

    def limits(self, max_ahead: int) -> dict[Node, Node]:
        """For each wait, the first launch of its channel after the next `max_ahead` launches."""
        launched: dict[tuple[str, str], list[int]] = {}
        for launch, channel in self._launches():
            launched.setdefault(channel, []).append(self.position[launch])
        found = {}
        for pair in self.pairs:
            later = launched[pair.channel]
            beyond = bisect.bisect(later, self.position[pair.wait]) + max_ahead
            if beyond < len(later):
                found[pair.wait] = self.nodes[later[beyond]]
        return found

    def late_waits(self, limits: Mapping[Node, Node]) -> dict[Node, Node]:
        """For each wait that can be deferred, the last acting op before the op that needs it.

        The wait of an all-gather stays in place, because the op after it needs the result.
        """
        needed = self._first_needs()
        found = {}
        for pair in self.pairs:
            if pair.channel[0] in GATHERS:
                continue
            end = needed[pair.wait]
            if pair.wait in limits:
                end = min(end, self.position[limits[pair.wait]])
            last = bisect.bisect_left(self.acting, end) - 1
            if last >= 0 and self.acting[last] > self.position[pair.wait]:
                found[pair.wait] = self.nodes[self.acting[last]]
        return found

    def early_launches(self) -> dict[Node, Node]:
        """For each launch after work that it does not need, the last node that it does need.

        Little work that leads to the launch moves with it. All-gathers of parameters depend on no
        node and stay in place: all of them at once would fill the memory. Point-to-point ops stay
        too, because they may differ between ranks.
        """
        found = {}
        for launch, (name, _) in self._launches():
            if name in GATHERS | P2P:
                continue
            needs, leading = self._last_need(launch)
            start = bisect.bisect(self.working, needs)
            end = bisect.bisect_left(self.working, self.position[launch])
            if end - start > leading:
                found[launch] = self.nodes[needs]
        return found

    def _last_need(self, launch: Node) -> tuple[int, int]:
        """The position of the node that a launch must come after, and the number of ops in between.

        This is the last wait, launch or work that it needs; little work does not count.
        """
        work, leading = 0.0, 0
        todo, seen = [-self.position[launch]], {launch}
        while todo:
            at = -heapq.heappop(todo)
            node = self.nodes[at]
            if is_wait(node) or (node in self._durations.transfer and node is not launch):
                return at, leading
            work += self._durations.work.get(node, 0.0)
            if node in self._durations.work:
                if work >= self._durations.little:
                    return at, leading
                leading += 1
            behind = [n for n in node.all_input_nodes if n not in seen]
            seen.update(behind)
            for source in behind:
                heapq.heappush(todo, -self.position[source])
        return self._num_inputs - 1, leading

    def keep_in_order(self, launches: dict[Node, Node]) -> None:
        """Keep launches that move forward from passing an earlier launch of their channel."""
        soonest: dict[tuple[str, str], Node] = {}
        for launch, channel in reversed(self._launches()):
            after, next_one = launches.get(launch), soonest.get(channel)
            if next_one and self.position[next_one] < self.position[after or launch]:
                after = launches[launch] = next_one
            if after:
                soonest[channel] = after

    def _launches(self) -> list[tuple[Node, tuple[str, str]]]:
        return list({pair.launch: pair.channel for pair in self.pairs}.items())

    def _first_needs(self) -> dict[Node, int]:
        """For each node, the position of the first acting op that needs it."""
        memory = find_memory_order(self.nodes)
        needed: dict[Node, int] = {}
        for node in reversed(self.nodes):
            readers = (*node.users, *memory.get(node, ()))
            needed[node] = min(
                (
                    self.position[reader]
                    if self._durations.acts(reader)
                    else needed.get(reader, self.position[reader])
                    for reader in readers
                ),
                default=len(self.nodes),
            )
        return needed
