"""Times of an order of nodes on two lanes: compute, and a link for each process group.

    compute    h0 | h1 ........ | wait | h2 |           a rank computes its nodes in order
    link         | l0 ...... |    | l1 ...... |         a group moves one transfer at a time

With known hardware, durations are in seconds. Otherwise an op takes its FLOPs, and all transfers of
a graph together take half as long as all of its ops.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch.fx import Graph, Node

from ladderize.config.hardware import Hardware
from ladderize.graph.collectives import ALL_REDUCES, is_wait
from ladderize.graph.flops import flops_of
from ladderize.graph.in_flight import channel_of, is_launch, tensors_in_flight, transfer_bytes

BUSY = 0.5
"""Transfer time of a graph as a fraction of its compute time, without known hardware."""
LEAST = 0.1
"""Minimum transfer time, without known hardware, as a fraction of the mean: the latency."""

LITTLE = 0.25
"""Threshold for little work, as a fraction of the mean work between launches."""
NEGLIGIBLE = 0.01
"""Threshold below which an op counts 0, as a fraction of the mean work between launches."""


@dataclass(frozen=True)
class Durations:
    """Durations of nodes, in one unit.

    Attributes:
        work: compute time of each node that computes.
        transfer: time of each launch on its group's link.
    """

    work: Mapping[Node, float] = field(default_factory=dict)
    transfer: Mapping[Node, float] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph, hardware: Hardware | None = None) -> "Durations":
        sent = _bytes_by_launch(graph)
        work = _work(graph, len(sent))
        if hardware is not None:
            link = hardware.link
            return cls(
                {node: flops / hardware.flops for node, flops in work.items()},
                {node: link.latency + sent[node] / link.bandwidth for node in sent},
            )
        mean = sum(sent.values()) / max(len(sent), 1) or 1.0
        long = {node: max(size / mean, LEAST) for node, size in sent.items()}
        unit = BUSY * (sum(work.values()) or 1.0) / (sum(long.values()) or 1.0)
        return cls(work, {node: unit * share for node, share in long.items()})

    @cached_property
    def little(self) -> float:
        """Threshold for little work, such as a router's, in contrast to a block's."""
        return LITTLE * sum(self.work.values()) / max(len(self.transfer), 1)

    def acts(self, node: Node) -> bool:
        """Whether a node computes or launches a transfer."""
        return node in self.work or node in self.transfer


def _work(graph: Graph, num_launches: int) -> dict[Node, float]:
    """FLOPs of the nodes that compute, without negligible ones such as a lookup."""
    every = {node: float(flops) for node in graph.nodes if (flops := flops_of(node))}
    least = NEGLIGIBLE * sum(every.values()) / max(num_launches, 1)
    return {node: flops for node, flops in every.items() if flops >= least}


def _bytes_by_launch(graph: Graph) -> dict[Node, float]:
    """Bytes that each launch sends; for data-dependent sizes, the mean of launches of its kind."""
    sent = {node: _sent_bytes(node) for node in graph.nodes if is_launch(node)}
    known: dict[str, list[float]] = {}
    for node, size in sent.items():
        if size is not None:
            known.setdefault(channel_of(node)[0], []).append(size)
    means = {name: sum(sizes) / len(sizes) for name, sizes in known.items()}
    return {
        node: means.get(channel_of(node)[0], 1.0) if size is None else size
        for node, size in sent.items()
    }


def _sent_bytes(launch: Node) -> float | None:
    """Bytes that a rank sends, for many ranks: the tensor twice for an all-reduce, else once."""
    size = transfer_bytes(launch)
    name, _ = channel_of(launch)
    return size if size is None else size * (2.0 if name in {*ALL_REDUCES, "reduce"} else 1.0)


def exposed(order: Sequence[Node], durations: Durations) -> float:
    """The time that waits block, in the unit of `durations`, if the nodes run in `order`."""
    now = blocked = 0.0
    free: dict[str, float] = {}
    done: dict[Node, float] = {}
    for node in order:
        if node in durations.transfer:
            group = channel_of(node)[1]
            free[group] = max(free.get(group, 0.0), now) + durations.transfer[node]
            done |= dict.fromkeys(tensors_in_flight(node), free[group])
        elif is_wait(node):
            late = max(_ends(node.all_input_nodes, done), default=now)
            blocked += max(late - now, 0.0)
            now = max(late, now)
        now += durations.work.get(node, 0.0)
    return blocked


def _ends(sources: Iterable[Node], done: Mapping[Node, float]) -> list[float]:
    return [done[source] for source in sources if source in done]


def split(slots: Sequence[float], parts: Sequence[float], taken: Sequence[float]) -> list[int]:
    """Cut consecutive `slots` so that each part gets a share of the time.

    Args:
        slots: durations of consecutive work.
        parts: durations of the transfers to hide behind the work, one after the other.
        taken: for each part, the duration of other work that hides it.

    Returns:
        For each part but the last, the index of the slot after which it ends, nearest to its
        share.
    """
    done = list(itertools.accumulate(slots))
    time = done[-1] + sum(taken)
    shares = [
        max(time * part / sum(parts) - own, 0.0) for part, own in zip(parts, taken, strict=True)
    ]
    ends = [end * done[-1] / sum(shares) for end in itertools.accumulate(shares)]
    return [
        min(range(len(slots)), key=lambda i, end=end: abs(done[i] - end))  # type: ignore[misc]
        for end in ends[:-1]
    ]
