"""Collectives in graphs of any dialect, and the process groups that a graph communicates over.

torch.ops._c10d_functional.all_reduce(h, "sum", "3")       a functional collective
autograd_function_apply(fwd_body, bwd_body, h)             functional collectives in its bodies
h.redistribute(…), from_local(x, mesh, …)                  a DTensor with its mesh
torch.ops.ladderize.reduce(h, "3")                         inserted by sharding

All code that needs to know whether a node communicates uses the tables below.
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
"""Namespaces of torch's functional collectives."""
ALL_REDUCES = frozenset({"all_reduce", "all_reduce_coalesced"})
GATHERS = frozenset(
    {"all_gather_into_tensor", "all_gather_into_tensor_out", "all_gather_into_tensor_coalesced"}
)
SCATTERS = frozenset(
    {"reduce_scatter_tensor", "reduce_scatter_tensor_out", "reduce_scatter_tensor_coalesced"}
)
P2P = frozenset({"isend", "irecv", "batch_p2p_ops"})
"""Point-to-point ops: ranks may launch different ones, and have to agree on their order."""
LAUNCHES = ALL_REDUCES | GATHERS | SCATTERS | P2P | {"all_to_all_single", "broadcast"}
"""Asynchronous functional collectives, by name without a trailing `_`."""
WAIT = "wait_tensor"

BACKWARD = " (backward)"
"""Suffix of the name of a collective that is launched in a backward pass."""
OWN_LAUNCH, OWN_WAIT = "ladderize::reduce", "ladderize::wait"
"""The two halves of an all-reduce in a sharded graph before autograd."""
OWN = {
    OWN_LAUNCH: ("all_reduce",),
    "ladderize::copy": (f"all_reduce{BACKWARD}",),
    "ladderize::gather": ("all_gather_into_tensor",),
    "ladderize::vocab_cross_entropy": ("all_reduce", "all_reduce"),  # highest logits, and sums
}
"""The ops of `parallel_ops.py` that communicate, with the collectives that each launches."""


def group_name_of(node: Node) -> str:
    """The `group_name` argument of a call; "" if it has none."""
    schema = schema_of(node)
    if schema is None:
        return ""
    return str(arguments_of(node, schema).get("group_name", ""))


def collective_of(node: Node) -> str:
    """The name of the functional collective that `node` calls (`all_reduce`); "" if none."""
    return _collective_named(called_op(node))


@functools.cache
def _collective_named(op: str) -> str:
    namespace, _, name = op.partition("::")
    return name.removesuffix("_") if namespace in NAMESPACES else ""


def is_all_reduce(node: Node) -> bool:
    return collective_of(node) in ALL_REDUCES


def own_launches(node: Node) -> tuple[str, ...]:
    """The collectives that an op of the `ladderize` namespace launches; empty for other nodes."""
    return OWN.get(called_op(node), ())


def launched_by(node: Node) -> str:
    """The name of the collective that `node` leaves in flight (`all_reduce`, `reduce`), or ""."""
    return _launched_by(called_op(node))


@functools.cache
def _launched_by(op: str) -> str:
    if (name := _collective_named(op)) in LAUNCHES:
        return name
    return "reduce" if op == OWN_LAUNCH else ""


def is_wait(node: Node) -> bool:
    return _waits(called_op(node))


@functools.cache
def _waits(op: str) -> bool:
    return op == OWN_WAIT or _collective_named(op) == WAIT


def every_node(gm: GraphModule) -> Iterator[Node]:
    """The nodes of `gm` in order; the nodes of its bodies follow each higher-order call."""
    for node in gm.graph.nodes:
        yield node
        for body in bodies(gm, node):
            yield from every_node(body)


def dtensors(node: Node) -> list[DTensor]:
    return [tensor for tensor in ops.tensors(node) if isinstance(tensor, DTensor)]


def find_groups(gm: GraphModule) -> list[dist.ProcessGroup]:
    """The process groups of more than one rank that `gm` communicates over, sorted by name.

    Linear in the size of the graph.
    """
    found: dict[str, dist.ProcessGroup] = {}
    meshes = set()
    for node in every_node(gm):
        name = group_name_of(node)
        group = compat.find_process_group(name) if name else None
        if group is not None:  # an engine's own name, such as vLLM's "tp:0", is unknown to c10d
            found[name] = group
        meshes |= {tensor.device_mesh for tensor in dtensors(node)}
    for mesh in meshes:
        found |= {group.group_name: group for group in mesh.get_all_groups()}
    return [found[name] for name in sorted(found) if found[name].size() > 1]


def launched_by_own(node: Node) -> Iterator[tuple[str, str]]:
    """Name and group of each collective that an op of the `ladderize` namespace launches."""
    yield from ((op, group_name_of(node)) for op in own_launches(node))


def launched_by_call(gm: GraphModule, node: Node) -> Iterator[tuple[str, str]]:
    """Name and group of each collective that a call of the traced model launches.

    Names of collectives in the backward pass end in `BACKWARD`.
    """
    if op := collective_of(node):
        if op != WAIT:
            yield op, group_name_of(node)
    elif schema_of(node) is not None:
        yield from launched_by_own(node)  # the model calls ladderize's f and g
    elif ops.op_name(node) == "redistribute":
        yield from _redistributions(node)
    elif ops.op_name(node) == "autograd_function_apply":
        forward, backward = bodies(gm, node)
        for body, suffix in ((forward, ""), (backward, BACKWARD)):
            for inner in body.graph.nodes:
                yield from ((op + suffix, group) for op, group in launched_by_call(body, inner))


def _redistributions(node: Node) -> Iterator[tuple[str, str]]:
    """The collectives that redistribute a DTensor, for each mesh axis."""
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
    return ""  # unchanged, or a local slice of a replicated tensor
