"""What a collective is, in any dialect, and over which process groups a graph communicates.

torch.ops._c10d_functional.all_reduce(h, "sum", "3")       explicit; also inside of the bodies
autograd_function_apply(fwd_body, bwd_body, h)             of autograd functions
h.redistribute(…), from_local(x, mesh, …)                  a DTensor, which knows its mesh
torch.ops.ladderize.reduce(h, "3")                         what sharding puts in

The tables below are the only ones. Whatever asks whether a node communicates asks here.
"""

import functools
from collections.abc import Iterator

import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Placement
from torch.fx import GraphModule, Node

from ladderize import compat
from ladderize.graph import ops
from ladderize.graph.higher_order import bodies
from ladderize.graph.schemas import arguments_of, called_op, schema_of

NAMESPACES = ("_c10d_functional", "_c10d_functional_autograd", "c10d_functional")
"""Those of torch's functional collectives."""
ALL_REDUCES = frozenset({"all_reduce", "all_reduce_coalesced"})
GATHERS = frozenset(
    {"all_gather_into_tensor", "all_gather_into_tensor_out", "all_gather_into_tensor_coalesced"}
)
SCATTERS = frozenset(
    {"reduce_scatter_tensor", "reduce_scatter_tensor_out", "reduce_scatter_tensor_coalesced"}
)
P2P = frozenset({"isend", "irecv", "batch_p2p_ops"})
"""Sends and receipts: ranks may launch different ones, in an order that is theirs to agree on."""
LAUNCHES = ALL_REDUCES | GATHERS | SCATTERS | P2P | {"all_to_all_single", "broadcast"}
"""The functional collectives, by name without a trailing `_`: each returns before it is done."""
WAIT = "wait_tensor"

BACKWARD = " (backward)"
"""Behind the name of a collective that the backward of an op launches."""
OWN_LAUNCH, OWN_WAIT = "ladderize::reduce", "ladderize::wait"
"""The two halves of an all-reduce in a sharded graph before autograd."""
OWN = {
    OWN_LAUNCH: ("all_reduce",),
    "ladderize::copy": (f"all_reduce{BACKWARD}",),
    "ladderize::gather": ("all_gather_into_tensor",),
    "ladderize::vocab_cross_entropy": ("all_reduce", "all_reduce"),  # highest logits, and sums
}
"""The ops of `parallel_ops.py` that communicate, and what each launches."""


def group_name_of(node: Node) -> str:
    """The name of the process group that an op is given; "" for all others."""
    schema = schema_of(node)
    if schema is None:
        return ""
    return str(arguments_of(node, schema).get("group_name", ""))


def collective_of(node: Node) -> str:
    """The name of the functional collective that `node` calls (`all_reduce`); "" for all others."""
    return _collective_named(called_op(node))


@functools.cache
def _collective_named(op: str) -> str:
    namespace, _, name = op.partition("::")
    return name.removesuffix("_") if namespace in NAMESPACES else ""


def is_all_reduce(node: Node) -> bool:
    return collective_of(node) in ALL_REDUCES


def own_launches(node: Node) -> tuple[str, ...]:
    """What one of ladderize's own ops launches; nothing for all others."""
    return OWN.get(called_op(node), ())


def launched_by(node: Node) -> str:
    """The name of what `node` leaves in flight (`all_reduce`, `reduce`); "" for all others."""
    if (name := collective_of(node)) in LAUNCHES:
        return name
    return "reduce" if called_op(node) == OWN_LAUNCH else ""


def is_wait(node: Node) -> bool:
    op = called_op(node)
    return op == OWN_WAIT or _collective_named(op) == WAIT


def every_node(gm: GraphModule) -> Iterator[Node]:
    """The nodes of `gm` in order, each higher-order call followed by those of its bodies."""
    for node in gm.graph.nodes:
        yield node
        for body in bodies(gm, node):
            yield from every_node(body)


def dtensors(node: Node) -> list[DTensor]:
    return [tensor for tensor in ops.tensors(node) if isinstance(tensor, DTensor)]


def find_groups(gm: GraphModule) -> list[dist.ProcessGroup]:
    """Every group of more than one rank that `gm` communicates over, in the order of their names.

    Linear in the size of the graph.
    """
    found: dict[str, dist.ProcessGroup] = {}
    meshes = set()
    for node in every_node(gm):
        name = group_name_of(node)
        group = compat.find_process_group(name) if name else None
        if group is not None:  # else an engine's own name, as vLLM's "tp:0"
            found[name] = group
        meshes |= {tensor.device_mesh for tensor in dtensors(node)}
    for mesh in meshes:
        found |= {group.group_name: group for group in mesh.get_all_groups()}
    return [found[name] for name in sorted(found) if found[name].size() > 1]


def launched_by_own(node: Node) -> Iterator[tuple[str, str]]:
    """Name and group of each collective that one of ladderize's own ops launches."""
    yield from ((op, group_name_of(node)) for op in own_launches(node))


def launched_by_call(gm: GraphModule, node: Node) -> Iterator[tuple[str, str]]:
    """Name and group of each collective that a call of the traced model launches.

    Those that its backward pass launches have `BACKWARD` behind their names.
    """
    if op := collective_of(node):
        if op != WAIT:
            yield op, group_name_of(node)
    elif schema_of(node) is not None:
        yield from launched_by_own(node)  # of a model that uses f and g as ladderize has them
    elif ops.op_name(node) == "redistribute":
        yield from _redistributions(node)
    elif ops.op_name(node) == "autograd_function_apply":
        forward, backward = bodies(gm, node)
        for body, suffix in ((forward, ""), (backward, BACKWARD)):
            for inner in body.graph.nodes:
                yield from ((op + suffix, group) for op, group in launched_by_call(body, inner))


def _redistributions(node: Node) -> Iterator[tuple[str, str]]:
    """What takes a DTensor from its placements to the new ones, for each axis of its mesh."""
    before = [tensor for source in node.all_input_nodes for tensor in dtensors(source)]
    after = dtensors(node)
    if not before or not after:
        return
    mesh = after[0].device_mesh
    for axis, (old, new) in enumerate(zip(before[0].placements, after[0].placements, strict=True)):
        if op := _transfer(old, new):
            yield op, mesh.get_group(axis).group_name


def _transfer(old: Placement, new: Placement) -> str:
    if old.is_partial():
        return "reduce_scatter_tensor" if new.is_shard() else "all_reduce"
    if old.is_shard() and old != new:
        return "all_to_all_single" if new.is_shard() else "all_gather_into_tensor"
    return ""  # the same, or a part of what every rank has
