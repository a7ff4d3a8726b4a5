"""Find what computes while each collective is in flight, in a graph after autograd.

    l0 | attention.1 ...... w0 | experts.1        l0: behind attention.1
    l1 w1 | experts.0                             l1: exposed, its result is needed at once

Pure analysis of the lowered graph, whose waits are already deferred.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from ladderize.errors import describe_origin, module_path
from ladderize.graph.in_flight import InFlight, find_in_flight, is_launch
from ladderize.passes.lane_times import Durations

_READ_BY_HOST = ("_local_scalar_dense", "item", "tolist")


@dataclass(frozen=True)
class FlightReport:
    """One collective in the compiled order.

    Attributes:
        op: name of the collective (`all_reduce`).
        group: name of its process group.
        source: module path and line of the call.
        is_backward: whether it belongs to the backward graph.
        behind: paths of the modules that compute between its launch and its wait, in order.
        reason: why it is exposed; "" if something computes meanwhile.
    """

    op: str
    group: str
    source: str
    is_backward: bool
    behind: tuple[str, ...]
    reason: str = ""


def find_flights(gm: GraphModule) -> tuple[FlightReport, ...]:
    """The collectives of `gm` in launch order; a coalesced one ends at its first wait."""
    nodes = list(gm.graph.nodes)
    position = {node: i for i, node in enumerate(nodes)}
    work = Durations.of(gm.graph).work
    is_backward = any(n.op == "placeholder" and n.name.startswith("tangents") for n in nodes)
    found: dict[Node, FlightReport] = {}
    for pair in find_in_flight(gm.graph):
        if pair.launch in found:
            continue
        between = nodes[position[pair.launch] + 1 : position[pair.wait]]
        computing = [node for node in between if node in work]
        behind = tuple(dict.fromkeys(filter(None, map(_module, computing))))
        reason = "" if computing else _reason(pair, work)
        op, group = pair.channel
        origin = describe_origin(pair.launch)
        found[pair.launch] = FlightReport(op, group, origin, is_backward, behind, reason)
    return tuple(found.values())


def _module(node: Node) -> str:
    """The module that computes `node`; in a backward graph, the module of the forward op."""
    return module_path(node, "fwd_nn_module_stack") or module_path(node)


def _reason(pair: InFlight, work: Mapping[Node, float]) -> str:
    for node in _behind(pair.wait):
        if any(name in str(node.target) for name in _READ_BY_HOST):
            return "the host reads its result"
        if node.op == "output":
            return "nothing is left to compute"
        if node in work or is_launch(node):
            return f"its result is needed at once by {_module(node) or node.name}"
    return "nothing is left to compute"


def _behind(wait: Node) -> Iterator[Node]:
    """The nodes that depend on `wait`, breadth first."""
    queue, seen = [wait], {wait}
    while queue:
        for user in queue.pop(0).users:
            if user not in seen:
                seen.add(user)
                queue.append(user)
                yield user
