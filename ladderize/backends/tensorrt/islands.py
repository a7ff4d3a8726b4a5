"""Find the islands of a graph: the role of each node, and the runs of compute.

    h0 = mm(x, w) │ l0 │ v = view(x, …)  h1 = mm(v, u) │ l1 │ w0 │ x1 = add(x, w0) …
    island_0            island_1: h1                             island_2

Pure analysis of a functional ATen graph (after autograd), in its final order.
"""

import enum
import functools
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ladderize.compat.dispatcher import OpOverload, is_composite
from ladderize.graph import ops
from ladderize.graph.collectives import is_wait
from ladderize.graph.in_flight import is_launch


class Role(enum.Enum):
    """The role of a call in the cut.

    BOUNDARY: stays outside, in its place: collectives and waits, writes into memory, calls with
        subgraphs, numbers that the host reads (`item`).
    FREE: costs nothing anywhere: views, arithmetic of sizes, metadata checks.
    COMPUTE: everything else.
    """

    BOUNDARY = "boundary"
    FREE = "free"
    COMPUTE = "compute"


@dataclass(frozen=True, eq=False)
class Island:
    """The compute between two neighboring boundaries: `nodes`, in order.

    It includes the reshape of a result if that is all that others read.
    """

    name: str
    nodes: tuple[Node, ...]


def find_islands(graph: Graph) -> tuple[Island, ...]:
    """The islands of `graph` in order. Linear.

    A run that only makes constants (`full`, `arange`) is not an island. An item of a result with
    several parts belongs to the call that made it.
    """
    run_of, home = _find_runs(graph)
    home |= _find_last_reshapes(graph, run_of, home)
    runs: dict[int, list[Node]] = {}
    for node in graph.nodes:
        if node in home:
            runs.setdefault(home[node], []).append(node)
    worth_it = [run for run in runs.values() if any(map(reads_values, run))]
    return tuple(Island(f"island_{i}", tuple(run)) for i, run in enumerate(worth_it))


def _find_runs(graph: Graph) -> tuple[dict[Node, int], dict[Node, int]]:
    """The number of boundaries before each node, and the run of each node that computes."""
    run_of: dict[Node, int] = {}
    home: dict[Node, int] = {}
    run = 0
    for node in graph.nodes:
        is_item = node.target is operator.getitem
        run += role_of(node) is Role.BOUNDARY and not is_item
        run_of[node] = run
        if role_of(node) is Role.COMPUTE:
            home[node] = home[node.all_input_nodes[0]] if is_item else run
    return run_of, home


def _find_last_reshapes(
    graph: Graph, run_of: Mapping[Node, int], home: Mapping[Node, int]
) -> dict[Node, int]:
    """The reshapes through which all readers outside of its run read a result.

    With them, a stream crosses as `[batch, length, width]` instead of as the
    `[batch * length, width]` of the product that made it.
    """
    readers = _find_readers(graph, home)
    found: dict[Node, int] = {}
    for result, run in home.items():
        node = result
        while True:
            across = [user for user in node.users if readers.get(user) != run]
            if len(across) != 1 or run_of[across[0]] != run or across[0].target not in _RESHAPES:
                break
            (node,) = across
            found[node] = run
    return found


def _find_readers(graph: Graph, home: Mapping[Node, int]) -> dict[Node, int]:
    """The run that computes with a node or its views, if it is only one."""
    readers = dict(home)
    for node in reversed(graph.nodes):
        if role_of(node) is Role.FREE:
            runs = {readers.get(user) for user in node.users}
            run = runs.pop() if len(runs) == 1 else None
            if run is not None:
                readers[node] = run
    return readers


def islands_of(gm: GraphModule) -> dict[str, GraphModule]:
    """The islands of a cut `gm` by name, in the order in which they run."""
    called = {str(node.target): ops.called_module(node) for node in gm.graph.nodes if is_call(node)}
    return {name: body for name, body in called.items() if isinstance(body, GraphModule)}


def is_call(node: Node) -> bool:
    """Whether `node` calls an island."""
    return node.op == "call_module" and str(node.target).startswith("island_")


# ---- the roles


def role_of(node: Node) -> Role | None:
    """The role of a call; None for inputs, attributes and the output."""
    if node.op in ("placeholder", "get_attr", "output"):
        return None
    if node.target is operator.getitem:
        made = node.args[0]
        assert isinstance(made, Node)
        return role_of(made)
    if isinstance(node.target, OpOverload):
        return Role.BOUNDARY if is_launch(node) or is_wait(node) else _role_of_op(node.target)
    is_size = isinstance(ops.value(node), _NUMBERS) and not any(
        map(ops.holds_tensor, node.all_input_nodes)
    )
    return Role.FREE if is_size else Role.BOUNDARY


def is_size(node: Node) -> bool:
    """Whether the value of `node` is a number: a size, or computed from sizes."""
    return isinstance(ops.value(node), _NUMBERS)


def reads_values(node: Node) -> bool:
    """Whether `node` reads tensors that are not constants; `full` and `arange` do not."""
    return any(
        ops.holds_tensor(source) and source.op != "get_attr" for source in node.all_input_nodes
    )


_RESHAPES = frozenset(
    {
        torch.ops.aten.view.default,
        torch.ops.aten._unsafe_view.default,
        torch.ops.aten.unsqueeze.default,
        torch.ops.aten.squeeze.dim,
        torch.ops.aten.squeeze.dims,
    }
)
_NUMBERS = (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)
_OF_FORM = frozenset(
    """sym_size sym_stride sym_numel sym_storage_offset sym_is_contiguous _assert_scalar
    sym_constrain_range sym_constrain_range_for_size _assert_tensor_metadata""".split()
)
# Names of arguments that are a process group.
_GROUPS = frozenset({"group", "group_name"})


@functools.cache
def _role_of_op(op: Any) -> Role:
    schema = op._schema
    name = schema.name.split("::")[-1]
    if schema.is_mutable or not _GROUPS.isdisjoint(a.name for a in schema.arguments):
        return Role.BOUNDARY
    if name in _OF_FORM or is_view(op):
        return Role.FREE
    returns_tensors = any("Tensor" in str(result.type) for result in schema.returns)
    return Role.COMPUTE if returns_tensors else Role.BOUNDARY


@functools.cache
def is_view(op: Any) -> bool:
    """Whether an op always returns the memory of its first operand.

    `reshape`, `contiguous` and `to` only may do so, and count as compute.
    """
    if op is torch.ops.aten._unsafe_view.default:  # its schema claims a new result
        return True
    is_alias = any(a.alias_info and not a.alias_info.is_write for a in op._schema.arguments)
    return is_alias and not is_composite(op)
