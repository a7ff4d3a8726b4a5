"""When collectives are waited for and launched, so that they run behind compute.

    all-reduce        l0 w0 | h1 l1 w1 | h2 l2 w2                h1 reads x0, h2 reads x1
                      l0 | h1 l1 w0 | h2 l2 w1 | w2
    reduce-scatter    r0 w0 | g1 v1 h1 r1 w1 | g2 v2 h2 r2       g2 gathers x1 = x0 + w0
    and all-gather    r0 | v1 h1 w0 g2 h1 r1 | v2 h2 w1 g3 h2 r2

A wait is put off past the next launch of the same kind that does not depend on it, and the last
wait of its kind past all that computes without it. That would
leave the all-gather of a sequence-parallel net (Korthikanti et al., arXiv 2205.05198, Section
4.2.2) no time: it needs what was waited for, and the next block needs it. So the wait of a
reduce-scatter that an all-gather reads stands in the middle of the work between the two blocks'
ends, and the all-gather follows at once: each of the two has half of the work to hide behind.

Pure analysis. Every rank sees the same graph and so decides the same.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch.fx import Graph, Node

from ladderize.config.ladder_entry import MAX_STALENESS
from ladderize.graph import ops
from ladderize.graph.collectives import GATHERS, SCATTERS
from ladderize.graph.flops import work_of
from ladderize.graph.in_flight import InFlight, find_in_flight
from ladderize.graph.ops import Kind

MAX_LAUNCHES_AHEAD = MAX_STALENESS
"""How many launches a wait is deferred past at most: a ladder of staleness k needs k."""


@dataclass(frozen=True)
class Schedule:
    """What is to move.

    Attributes:
        waits: each wait that can be put off, and the node that it is to come after.
        launches: each launch that can be brought forward, with the node that it is to come after,
            together with all that it needs.
    """

    waits: dict[Node, Node] = field(default_factory=dict)
    launches: dict[Node, Node] = field(default_factory=dict)


def find_schedule(graph: Graph) -> Schedule:
    """Linear in the size of the graph: looks from each wait no further than it can be put off."""
    timeline = _Timeline(list(graph.nodes), find_in_flight(graph))
    gathers = timeline.gathers_of_scatters()
    found = Schedule()
    for pair in timeline.pairs:
        if pair.channel[0] in GATHERS:
            continue
        if pair in gathers:
            after = timeline.middle_of_the_work(pair, gathers[pair][0])
        else:
            after = timeline.last_independent_launch(pair) or timeline.last_independent_work(pair)
        if after is not None:
            found.waits[pair.wait] = after
        for gather in gathers.get(pair, ()):
            found.launches[gather.launch] = after or pair.wait
    timeline.keep_in_order(found.launches)
    return found


@dataclass(frozen=True)
class _Timeline:
    nodes: Sequence[Node]
    pairs: Sequence[InFlight]

    @cached_property
    def position(self) -> dict[Node, int]:
        return {node: i for i, node in enumerate(self.nodes)}

    @cached_property
    def launched(self) -> Mapping[Node, InFlight]:
        return {pair.launch: pair for pair in self.pairs}

    @cached_property
    def waits(self) -> Mapping[Node, Sequence[Node]]:
        """Of each launch; a coalesced one has several."""
        found: dict[Node, list[Node]] = {}
        for pair in self.pairs:
            found.setdefault(pair.launch, []).append(pair.wait)
        return found

    def after(self, node: Node) -> Iterator[Node]:
        for i in range(self.position[node] + 1, len(self.nodes)):
            yield self.nodes[i]

    def last_independent_launch(self, pair: InFlight) -> Node | None:
        """The last of the next launches of the channel that do not depend on the wait."""
        dependent = {pair.wait}
        last, passed = None, 0
        for node in self.after(pair.wait):
            if not dependent.isdisjoint(node.all_input_nodes):
                dependent.add(node)
            if node not in self.launched or self.launched[node].channel != pair.channel:
                continue
            if node in dependent or passed == MAX_LAUNCHES_AHEAD:
                break
            last, passed = node, passed + 1
        return last

    def last_independent_work(self, pair: InFlight) -> Node | None:
        """Of the last collective of its channel: the last op that computes without its result."""
        dependent = {pair.wait}
        last = None
        for node in self.after(pair.wait):
            if node in self.launched and self.launched[node].channel == pair.channel:
                return None
            if not dependent.isdisjoint(node.all_input_nodes):
                dependent.add(node)
            elif work_of(node):
                last = node
        return last

    def gathers_of_scatters(self) -> dict[InFlight, list[InFlight]]:
        """For each reduce-scatter the all-gathers that can be launched once it is waited for.

        Those are on the same group, and need no later reduce-scatter.
        """
        waited = {pair.wait: pair for pair in self.pairs if pair.channel[0] in SCATTERS}
        latest: dict[Node, Node] = {}
        found: dict[InFlight, list[InFlight]] = {}
        for node in self.nodes:
            waits = [latest[source] for source in node.all_input_nodes if source in latest]
            if node in waited:
                waits.append(node)
            if not waits:
                continue
            latest[node] = max(waits, key=self.position.__getitem__)
            gather, scatter = self.launched.get(node), waited[latest[node]]
            if gather and gather.channel[0] in GATHERS and gather.channel[1] == scatter.channel[1]:
                found.setdefault(scatter, []).append(gather)
        return found

    def keep_in_order(self, launches: dict[Node, Node]) -> None:
        """Let no all-gather that was brought forward pass an earlier one of its channel."""
        soonest: dict[tuple[str, str], Node] = {}
        for pair in reversed(self.pairs):
            after, next_one = launches.get(pair.launch), soonest.get(pair.channel)
            if next_one and self.position[next_one] < self.position[after or pair.launch]:
                after = launches[pair.launch] = next_one
            if after:
                soonest[pair.channel] = after

    def middle_of_the_work(self, pair: InFlight, gather: InFlight) -> Node | None:
        """The op nearest to half of the work that can hide both; None if there is none."""
        late, gathered = {pair.wait}, set(self.waits[gather.launch])
        steps: list[tuple[Node, int]] = []
        for node in self.after(pair.launch):
            if not gathered.isdisjoint(node.all_input_nodes):
                if ops.kind(node) is Kind.MIX:
                    break
                gathered.add(node)
            if not late.isdisjoint(node.all_input_nodes):
                late.add(node)
            elif work := work_of(node):
                steps.append((node, work))
        done = list(itertools.accumulate(work for _, work in steps))
        nearest = min(range(len(steps)), key=lambda i: abs(2 * done[i] - done[-1]), default=None)
        return None if nearest is None else steps[nearest][0]
