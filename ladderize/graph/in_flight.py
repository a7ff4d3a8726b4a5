"""Collectives in flight: each launch with its wait.

    l0  w0 = wait(l0)  x1 = add(x0, w0)  …h1 reads x0…  l1  w1 = wait(l1)
    l0  (v0, v1) = l0  w0 = wait(v0)  w1 = wait(v1)    coalesced: a wait for each tensor

This analysis handles graphs of any dialect: `_c10d_functional` ops after autograd, and the
`ladderize` ops of `parallel_ops.py` before it.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.fx import Graph, Node

from ladderize import compat
from ladderize.errors import Blocker, LadderError
from ladderize.graph import ops
from ladderize.graph.collectives import group_name_of, is_wait, launched_by

_SIZES = frozenset({"sym_size", "sym_stride", "sym_numel", "sym_storage_offset"})


@dataclass(frozen=True, eq=False)
class InFlight:
    """A tensor in flight: its launch, its wait and its channel.

    Attributes:
        launch: node that starts the collective; its value must not be used before `wait`.
        wait: node that waits for it.
        channel: op and process group. Order is fixed, and collectives are paired, per channel.
    """

    launch: Node
    wait: Node
    channel: tuple[str, str]


def is_launch(node: Node) -> bool:
    return bool(launched_by(node))


def channel_of(launch: Node) -> tuple[str, str]:
    """Op name and group name of a launch."""
    return launched_by(launch), group_name_of(launch)


def tensors_in_flight(launch: Node) -> list[Node]:
    """The nodes of a launch's tensors: the launch itself, or its items if it is coalesced."""
    items = [user for user in launch.users if user.target is operator.getitem]
    return items if launch_is_coalesced(launch) else [launch]


def launch_is_coalesced(launch: Node) -> bool:
    return launched_by(launch).endswith(("_coalesced", "batch_p2p_ops"))


def transfer_bytes(launch: Node) -> int | None:
    """Bytes of the whole tensor that a launch moves: the larger of its input and its output.

    None if its size is data-dependent.
    """
    sources = launch.all_input_nodes[: None if launch_is_coalesced(launch) else 1]
    given = [tensor for source in sources for tensor in ops.tensors(source)]
    sizes = (_num_bytes(tensors) for tensors in (given, ops.tensors(launch)))
    return max((size for size in sizes if size is not None), default=None)


def _num_bytes(tensors: Sequence[Tensor]) -> int | None:
    if not all(compat.has_hint(tensor.numel()) for tensor in tensors):
        return None
    return sum(compat.hint(tensor.numel()) * tensor.dtype.itemsize for tensor in tensors)


def find_in_flight(graph: Graph) -> list[InFlight]:
    """The tensors that are launched and waited for in `graph`, in launch order."""
    return [
        InFlight(launch, waits[0], channel_of(launch))
        for launch in graph.nodes
        if is_launch(launch)
        for tensor in tensors_in_flight(launch)
        if len(waits := [user for user in tensor.users if is_wait(user)]) == 1
    ]


def check_in_flight(graph: Graph) -> None:
    """Check the stage invariant: each launch has one wait, and nothing else reads its value.

    Reads of its sizes are allowed.

    Raises:
        LadderError: lists each launch that breaks the invariant.
    """
    blockers = []
    for launch in filter(is_launch, graph.nodes):
        tensors = tensors_in_flight(launch)
        readers = [user for tensor in tensors for user in tensor.users]
        if launch_is_coalesced(launch):
            readers += [user for user in launch.users if user not in tensors]
        for tensor in tensors:
            waits = [user for user in tensor.users if is_wait(user)]
            if len(waits) != 1:
                what = f"{tensor.name} has {len(waits)} waits, not one"
                blockers.append(Blocker.at(launch, what))
        blockers += [
            Blocker.at(reader, f"{reader.name} reads {launch.name} while it is in flight")
            for reader in readers
            if not is_wait(reader) and ops.op_name(reader) not in _SIZES
        ]
    if blockers:
        raise LadderError("Collectives are launched but not properly waited for:", blockers)
