"""Collectives in flight: each launch with its wait, and how long the wait can be put off.

    l0  w0 = wait(l0)  x1 = add(x0, w0)  …h1 reads x0…  l1  w1 = wait(l1)
        w0 can be put off until after l1, because l1 does not depend on it

Pure analysis over graphs of any dialect: `_c10d_functional` ops after autograd, the `ladderize`
ops of `collectives.py` before it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from ladderize.errors import Blocker, LadderError

_LAUNCHES = frozenset(
    """all_reduce all_reduce_ reduce_scatter_tensor all_gather_into_tensor all_to_all_single
    broadcast reduce""".split()
)
_WAITS = frozenset({"wait_tensor", "wait"})
_NAMESPACES = frozenset({"_c10d_functional", "ladderize"})

# How many launches a wait is put off at most. A ladder of staleness k needs k.
MAX_LAUNCHES_AHEAD = 8


@dataclass(frozen=True, eq=False)
class InFlight:
    """One collective: its launch, its wait, and the channel on which its order is fixed.

    Attributes:
        launch: the node that starts it; its value must not be touched before `wait`.
        wait: the node that ends it.
        channel: op and process group. Only collectives of one channel are paired.
    """

    launch: Node
    wait: Node
    channel: tuple[str, str]


def _collective_name(node: Node) -> str:
    target: Any = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return ""
    namespace, name = target._schema.name.split("::")
    return name if namespace in _NAMESPACES else ""


def is_launch(node: Node) -> bool:
    return _collective_name(node) in _LAUNCHES


def is_wait(node: Node) -> bool:
    return _collective_name(node) in _WAITS


def channel_of(launch: Node) -> tuple[str, str]:
    """Op name and group name of a launch, read by the op's schema."""
    target: Any = launch.target
    names = [argument.name for argument in target._schema.arguments]
    given = dict(zip(names, launch.args, strict=False)) | launch.kwargs
    return _collective_name(launch).rstrip("_"), str(given.get("group_name", ""))


def find_in_flight(graph: Graph) -> list[InFlight]:
    """Every collective of `graph` that is launched and waited for in it, in launch order."""
    return [
        InFlight(launch, waits[0], channel_of(launch))
        for launch in graph.nodes
        if is_launch(launch) and len(waits := [u for u in launch.users if is_wait(u)]) == 1
    ]


def check_in_flight(graph: Graph) -> None:
    """The stage invariant: each launch has exactly one wait, and nothing else reads its value.

    Raises:
        LadderError: naming each launch that breaks it.
    """
    blockers = []
    for launch in filter(is_launch, graph.nodes):
        waits = [user for user in launch.users if is_wait(user)]
        others = [user for user in launch.users if not is_wait(user)]
        if len(waits) != 1:
            blockers.append(Blocker.at(launch, f"{launch.name} has {len(waits)} waits, not one"))
        blockers += [
            Blocker.at(other, f"{other.name} reads {launch.name} while it is in flight")
            for other in others
        ]
    if blockers:
        raise LadderError("Collectives are launched but not properly waited for:", blockers)


def find_deferrals(graph: Graph) -> dict[Node, Node]:
    """For each wait that can be put off: the launch that it is to come after.

    That is the last of the next launches on the same channel that do not depend on the wait, at
    most `MAX_LAUNCHES_AHEAD` of them. Looks no further than the first launch that does depend:
    linear in the size of the graph.
    """
    nodes = list(graph.nodes)
    pairs = find_in_flight(graph)
    channels = {pair.launch: pair.channel for pair in pairs}
    position = {node: i for i, node in enumerate(nodes)}
    deferrals = {}
    for pair in pairs:
        later = _last_independent(pair, nodes, position[pair.wait], channels)
        if later is not None:
            deferrals[pair.wait] = later
    return deferrals


def _last_independent(
    pair: InFlight,
    nodes: Sequence[Node],
    start: int,
    channels: Mapping[Node, tuple[str, str]],
) -> Node | None:
    dependent = {pair.wait}
    last, passed = None, 0
    for i in range(start + 1, len(nodes)):
        node = nodes[i]
        if not dependent.isdisjoint(node.all_input_nodes):
            dependent.add(node)
        if channels.get(node) != pair.channel:
            continue
        if node in dependent or passed == MAX_LAUNCHES_AHEAD:
            break
        last, passed = node, passed + 1
    return last
