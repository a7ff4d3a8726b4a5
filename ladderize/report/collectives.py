"""The collectives that a graph launches, of any dialect.

    torch.ops._c10d_functional.all_reduce(h, "sum", "0")     Dynamo keeps the overload packet
    h.redistribute(…)                                        a DTensor's; may be a local step too
    ladderize.reduce(h, "0")                                 what sharding puts in

Those of autograd functions are hidden in closures until after autograd.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch.distributed as dist
from torch.fx import GraphModule, Node

from ladderize import ops
from ladderize.errors import describe_origin, module_path
from ladderize.groups import group_name_of, schema_of
from ladderize.report.data import CollectiveReport

_NAMESPACES = frozenset({"_c10d_functional", "_c10d_functional_autograd", "c10d_functional"})
_DISTRIBUTED = str(Path(dist.__file__).parent)
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
# A reduction follows the sum of at most that many partial values of parallel branches.
_STEPS_TO_BRANCH = 4
_REDISTRIBUTIONS = frozenset({"redistribute", "prim_redistribute"})
_OWN = {"ladderize::reduce": "all_reduce", "ladderize::copy": "all_reduce (backward)"}


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
        if op := _own_op(node) if is_inserted else _models_op(node):
            block = _home_of_inserted(node, home) if is_inserted else home.get(node, "")
            found.append(
                CollectiveReport(op, group_name_of(node), block, is_inserted, _origin(node))
            )
    return tuple(found)


def _own_op(node: Node) -> str:
    schema = schema_of(node)
    return "" if schema is None else _OWN.get(schema.name, "")


def _models_op(node: Node) -> str:
    schema = schema_of(node)
    if schema is None:
        return "redistribute" if ops.op_name(node) in _REDISTRIBUTIONS else ""
    namespace, op = schema.name.split("::")
    return op.removesuffix("_") if namespace in _NAMESPACES and op != "wait_tensor" else ""


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
