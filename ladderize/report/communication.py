"""The collectives that a graph launches, of any dialect.

    torch.ops._c10d_functional.all_reduce(h, "sum", "0")     Dynamo keeps the overload packet
    h.redistribute(…)                                        a DTensor's: its placements say which
    autograd_function_apply(fwd_body, bwd_body, h)           in the bodies: Megatron's f and g
    ladderize.reduce(h, "0")                                 what sharding puts in

Those that autograd itself will add, as the gradient of a DTensor's, are not there yet.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch.distributed as dist
from torch.distributed.tensor.placement_types import Placement
from torch.fx import GraphModule, Node

from ladderize.errors import describe_origin, module_path
from ladderize.graph import ops
from ladderize.graph.collectives import (
    WAIT,
    collective_of,
    dtensors,
    group_name_of,
    own_launches,
)
from ladderize.graph.higher_order import bodies
from ladderize.graph.schemas import schema_of
from ladderize.report.data import CollectiveReport

_DISTRIBUTED = str(Path(dist.__file__).parent)
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
# A reduction follows the sum of at most that many partial values of parallel branches.
_STEPS_TO_BRANCH = 4


def find_collectives(
    gm: GraphModule, home: Mapping[Node, str], is_inserted: bool
) -> tuple[CollectiveReport, ...]:
    """The launches of `gm` in graph order.

    Args:
        gm: the graph.
        home: the name of the block that each node of a branch belongs to.
        is_inserted: look for those of ladderize's own sharding, else for the model's.
    """
    found = []
    for node in gm.graph.nodes:
        block = _home_of_inserted(node, home) if is_inserted else home.get(node, "")
        for op, group in _own_ops(node) if is_inserted else _models_ops(gm, node):
            found.append(CollectiveReport(op, group, block, is_inserted, _origin(node)))
    return tuple(found)


def _own_ops(node: Node) -> Iterator[tuple[str, str]]:
    yield from ((op, group_name_of(node)) for op in own_launches(node))


def _models_ops(gm: GraphModule, node: Node) -> Iterator[tuple[str, str]]:
    """Name and group of each collective that a call of the traced model launches."""
    if op := collective_of(node):
        if op != WAIT:
            yield op, group_name_of(node)
    elif schema_of(node) is not None:
        yield from _own_ops(node)  # of a model that uses f and g as ladderize has them
    elif ops.op_name(node) == "redistribute":
        yield from _redistributions(node)
    elif ops.op_name(node) == "autograd_function_apply":
        forward, backward = bodies(gm, node)
        for body, suffix in ((forward, ""), (backward, " (backward)")):
            for inner in body.graph.nodes:
                yield from ((op + suffix, group) for op, group in _models_ops(body, inner))


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


def _home_of_inserted(node: Node, home: Mapping[Node, str]) -> str:
    """The block next to which sharding put `node` in: a copy is read there, a sum comes from it."""
    near = [node, *node.users]
    for _ in range(_STEPS_TO_BRANCH):
        node = next(iter(node.all_input_nodes), node)
        near.append(node)
    return next((home[other] for other in near if other in home), "")


def _origin(node: Node) -> str:
    """Module and line that call the collective, not the line inside of torch.distributed."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    lines = [f"{path}:{line}" for path, line in frames if not path.startswith(_DISTRIBUTED)]
    if not lines:
        return describe_origin(node)
    return " at ".join(filter(None, [module_path(node), lines[-1]]))
