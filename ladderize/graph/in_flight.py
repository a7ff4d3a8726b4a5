"""Collectives in flight: each launch with its wait.

    l0  w0 = wait(l0)  x1 = add(x0, w0)  …h1 reads x0…  l1  w1 = wait(l1)

Pure analysis over graphs of any dialect: `_c10d_functional` ops after autograd, the `ladderize`
ops of `collectives.py` before it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from ladderize.errors import Blocker, LadderError
from ladderize.graph.collectives import group_name_of

_LAUNCHES = frozenset(
    """all_reduce all_reduce_ reduce_scatter_tensor all_gather_into_tensor all_to_all_single
    broadcast reduce""".split()
)
GATHERS = frozenset({"all_gather_into_tensor", "all_gather_into_tensor_coalesced"})
SCATTERS = frozenset({"reduce_scatter_tensor", "reduce_scatter_tensor_coalesced"})
_WAITS = frozenset({"wait_tensor", "wait"})
_NAMESPACES = frozenset({"_c10d_functional", "ladderize"})


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
    return _collective_name(launch).rstrip("_"), group_name_of(launch)


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
