"""When collectives are waited for and launched, so that they run behind compute.

    all-reduce        l0 w0 | h1 l1 w1 | h2 l2 w2                h1 reads x0, h2 reads x1
                      l0 | h1 l1 w0 | h2 l2 w1 | w2
    reduce-scatter    r0 w0 | g1 v1 h1 r1 w1 | g2 v2 h2 r2       g2 gathers x1 = x0 + w0
    and all-gather    r0 | v1 h1 w0 g2 h1 r1 | v2 h2 w1 g3 h2 r2
    experts           c0 w0 | h1 | router d1 v1 e1 c1            d1 sends what w0 brought
                      c0 | h1 w0 router d1 h1 | v1 e1 c1

A launch comes as soon as what it sends is there, ahead of work that it does not need. A wait, but
that of an all-gather, comes as late as it can: just ahead of the first op that needs it and
computes or launches, but past no more than `max_ahead` later launches of its channel, whose buffers
are in flight together.

A launch that needs a wait, and hardly any work beside it, forms a chain of transfers with it
(transfer_chains.py): both hide behind one stretch of work, and the wait stands within it.

Pure analysis, linear in the size of the graph. Every rank sees the same graph and so decides the
same.
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
"""`launches_ahead` where no one says: a ladder of staleness k needs k."""


@dataclass(frozen=True)
class Schedule:
    """What is to move.

    Attributes:
        waits: each wait that can be put off, and the node that it is to come after.
        launches: each launch that can be brought forward, with the node that it is to come after,
            together with all that it needs.
        work: what has to run early in a stretch of work, because launches need it, with the node
            that it is to come after.
        limits: for each wait the later launch that must stay behind it, so that no more buffers
            are in flight than allowed.
    """

    waits: dict[Node, Node] = field(default_factory=dict)
    launches: dict[Node, Node] = field(default_factory=dict)
    limits: dict[Node, Node] = field(default_factory=dict)
    work: dict[Node, Node] = field(default_factory=dict)


def find_schedule(
    graph: Graph, durations: Durations | None = None, max_ahead: int = MAX_AHEAD
) -> Schedule:
    """The moves with chains: the last of `find_schedules`."""
    return find_schedules(graph, durations, max_ahead)[-1]


def find_schedules(
    graph: Graph, durations: Durations | None = None, max_ahead: int = MAX_AHEAD
) -> tuple[Schedule, Schedule]:
    """Without chains, and with waits that stand within a stretch of work.

    Args:
        graph: ATen, forward or backward, or a sharded graph before autograd.
        durations: those of `Durations.of(graph)` if not given.
        max_ahead: how many later launches of its channel a wait is put off past at most.
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
    """The nodes of a graph, and what each needs that takes time.

    Attributes:
        nodes: in graph order.
        pairs: what is in flight.
        position: of each node.
        acting: the positions of what computes or launches, in order.
        working: those of what computes.
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
        """For each wait the first launch of its channel beyond the next `max_ahead`."""
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
        """For each wait that can be put off the last op that acts ahead of what needs it.

        An all-gather is waited for where it is written: it is launched for the op behind.
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
        """For each launch that stands behind work it does not need the last node that it needs.

        Little work that leads to it comes forward with it. Of parameters, which nothing computes,
        gathers stay where they are: all of them at once would fill the memory. Ranks may send
        each other different messages; those stay too.
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
        """The position of what a launch has to come after; and how many ops lead from there to it.

        That is the last wait, launch or work that it needs, but for little work.
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
        """Let no launch that was brought forward pass an earlier one of its channel."""
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
        """Of each node the position of the first op that acts and needs it."""
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
