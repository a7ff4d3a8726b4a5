"""Hide chains of transfers, with little work in between, behind one stretch of work.

    r0  w0  norm  g2  v2  h2         a reduce-scatter, then the all-gather of its sum
    c0  w0  router  d2  v2  e2       a combine, then the next dispatch
    c0  w0  router  n2  u2  d2  …    the same, with the token counts sent first

    stretch   h1 h1 h1 h1            work that does not depend on w0
    placed    c0 h1 h1 w0 router d2 h1 h1 v2 e2

Each transfer of a chain gets a share of the stretch in proportion to its duration. Work that needs
a wait but not the next one (shared experts) hides the later transfers, and counts for them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch.fx import Node

from ladderize.graph.collectives import GATHERS
from ladderize.graph.in_flight import InFlight
from ladderize.passes.lane_times import Durations, split


@dataclass(frozen=True)
class PlacedWait:
    """The position of a wait inside a stretch of work.

    Attributes:
        wait: the wait.
        after: op of the stretch that it comes after; None if there is none.
        launches: launches that need the wait; they come right after it, with their inputs.
        first: other work that they need; it comes before the rest of the stretch.
        start: node that this work comes after.
    """

    wait: Node
    after: Node | None
    launches: tuple[Node, ...]
    first: tuple[Node, ...]
    start: Node


@dataclass(frozen=True)
class _Link:
    """Transfers of a chain that are launched together.

    Attributes:
        launches: launches of the transfers.
        waits: waits of the transfers.
    """

    launches: tuple[Node, ...]
    waits: frozenset[Node]


@dataclass
class _Stretch:
    """Work that can hide the transfers of a chain.

    Attributes:
        start: node that the work comes after.
        own: for each link of the chain, the duration of work that needs the previous link's wait,
            but not its own.
        needed: work that needs no wait of the chain, but is needed by a launch, in graph order.
        others: work that needs no wait of the chain, and is needed by no launch.
    """

    start: Node
    own: list[float]
    needed: list[Node] = field(default_factory=list)
    others: list[Node] = field(default_factory=list)

    @property
    def free(self) -> list[Node]:
        """The work that needs no wait, in the order in which it should run."""
        return [*self.needed, *self.others]

    def add(self, node: Node, work: float, link: int, *, is_needed: bool) -> None:
        """Add work that needs the waits before link `link`; 0 means none."""
        if not link:
            (self.needed if is_needed else self.others).append(node)
        elif not is_needed:
            self.own[link] += work


class Chains:
    """The chains of a graph. Linear in its size, as a stretch ends where its chain is needed.

    Args:
        nodes: nodes in graph order.
        pairs: launches with their waits.
        durations: durations of work and transfers.
        early: launches to move forward, each with the node that it comes after.
        limits: for each wait, the launch that must stay after it.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        pairs: Sequence[InFlight],
        durations: Durations,
        early: Mapping[Node, Node],
        limits: Mapping[Node, Node],
    ) -> None:
        self._nodes = nodes
        self._position = {node: i for i, node in enumerate(nodes)}
        self._durations = durations
        self._early = early
        self._limits = limits
        self._channel = {pair.launch: pair.channel for pair in pairs}
        self._waits: dict[Node, set[Node]] = {}
        self._launch_of: dict[Node, Node] = {}
        for pair in pairs:
            self._waits.setdefault(pair.launch, set()).add(pair.wait)
            self._launch_of[pair.wait] = pair.launch
        self._next = self._find_next()

    def places(self) -> Iterator[PlacedWait]:
        """The placed waits of all chains; those of one chain are in graph order."""
        for chain in self._chains():
            yield from self._places(chain)

    def _chains(self) -> Iterator[list[_Link]]:
        """Each chain, from its first transfers to those without followers."""
        followers = {launch for launches in self._next.values() for launch in launches}
        for launch in self._next:
            if launch in followers:
                continue
            chain = [self._link([launch])]
            while following := self._after(chain[-1]):
                chain.append(self._link(following))
            yield chain

    def _places(self, chain: Sequence[_Link]) -> Iterator[PlacedWait]:
        stretch = self._stretch(chain)
        parts = [max(self._durations.transfer[n] for n in link.launches) for link in chain]
        afters: list[Node | None] = [None] * (len(chain) - 1)
        if stretch.free:
            work = [self._durations.work[node] for node in stretch.free]
            ends = split(work, parts, stretch.own)
            afters = [stretch.free[max(end, len(stretch.needed) - 1)] for end in ends]
        for link, after in zip(chain, afters, strict=False):
            for launch in link.launches:
                for wait in self._waits[launch]:
                    if following := self._next.get(launch):
                        yield PlacedWait(
                            wait, after, tuple(following), tuple(stretch.needed), stretch.start
                        )

    def _stretch(self, chain: Sequence[_Link]) -> _Stretch:
        """The work from the first launch to the first work that needs the last wait, or a limit."""
        first = chain[0].launches[0]
        start = self._position[self._early.get(first, first)]
        limits = {self._limits[wait] for wait in chain[0].waits if wait in self._limits}
        ahead = self._needed([first], start)
        needed = self._needed([launch for link in chain[1:] for launch in link.launches], start)
        own = {wait: i for i, link in enumerate(chain, 1) for wait in link.waits}
        level: dict[Node, int] = {}  # for nodes that need waits of the chain: their latest link
        stretch = _Stretch(self._early.get(first, first), [0.0] * len(chain))
        for node in self._nodes[start + 1 :]:
            deepest = max((level.get(source, 0) for source in node.all_input_nodes), default=0)
            deepest = own.get(node, deepest)
            if deepest:
                level[node] = deepest
            work = self._durations.work.get(node, 0.0)
            if (work and deepest == len(chain)) or node in limits:
                break
            if work and node not in ahead:
                stretch.add(node, work, deepest, is_needed=node in needed)
        return stretch

    def _needed(self, launches: Sequence[Node], start: int) -> set[Node]:
        """The launches, and the nodes after position `start` that they need."""
        todo = list(launches)
        found = set(todo)
        while todo:
            behind = [n for n in todo.pop().all_input_nodes if self._position[n] > start]
            todo += [n for n in behind if n not in found]
            found.update(behind)
        return found

    def _link(self, launches: Sequence[Node]) -> _Link:
        waits = frozenset(wait for launch in launches for wait in self._waits[launch])
        return _Link(tuple(launches), waits)

    def _after(self, link: _Link) -> list[Node]:
        found = (launch for one in link.launches for launch in self._next.get(one, ()))
        return list(dict.fromkeys(found))

    def _find_next(self) -> dict[Node, list[Node]]:
        """For each launch, those that need its wait, no later wait, and little work since."""
        latest: dict[Node, Node] = {}
        found: dict[Node, list[Node]] = {}
        for node in self._nodes:
            waits = [latest[source] for source in node.all_input_nodes if source in latest]
            if node in self._launch_of:
                waits.append(node)
            if not waits:
                continue
            last = latest[node] = max(waits, key=self._position.__getitem__)
            before = self._launch_of[last]
            if self._may_follow(before, node) and self._is_little(node, latest):
                found.setdefault(before, []).append(node)
        return found

    def _may_follow(self, before: Node, node: Node) -> bool:
        """Whether `node` is a launch, except all-gathers of parameters (over another group)."""
        if node not in self._channel:
            return False
        (_, group), (name, own) = self._channel[before], self._channel[node]
        return name not in GATHERS or own == group

    def _is_little(self, launch: Node, latest: Mapping[Node, Node]) -> bool:
        """Whether there is little work from the latest wait that a launch needs to the launch."""
        work, todo, seen = 0.0, [launch], {launch}
        while todo and work < self._durations.little:
            node = todo.pop()
            work += self._durations.work.get(node, 0.0)
            behind = [n for n in node.all_input_nodes if latest.get(n) is latest[launch]]
            todo += [n for n in behind if n not in seen]
            seen.update(behind)
        return work < self._durations.little
