"""The collectives that a graph launches, of any dialect.

    torch.ops._c10d_functional.all_reduce(h, "sum", "0")     Dynamo keeps the overload packet
    ladderize.reduce(h, "0")                                 what sharding puts in

Those of DTensor and of autograd functions are hidden in closures until after autograd.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ladderize.errors import describe_origin
from ladderize.report.data import CollectiveReport

_NAMESPACES = frozenset({"_c10d_functional", "_c10d_functional_autograd", "c10d_functional"})
# A reduction follows the sum of at most that many partial values of parallel branches.
_STEPS_TO_BRANCH = 4
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
        schema = _schema(node)
        op = "" if schema is None else _op(schema.name, is_inserted)
        if op:
            group = _group(node, schema)
            where = describe_origin(node)
            found.append(
                CollectiveReport(op, group, _home(node, home, is_inserted), is_inserted, where)
            )
    return tuple(found)


def _schema(node: Node) -> Any:
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverloadPacket):
        target = getattr(target, target.overloads()[0])  # type: ignore[no-untyped-call]
    return target._schema if isinstance(target, torch._ops.OpOverload) else None


def _op(name: str, is_inserted: bool) -> str:
    if is_inserted:
        return _OWN.get(name, "")
    namespace, op = name.split("::")
    return op.removesuffix("_") if namespace in _NAMESPACES and op != "wait_tensor" else ""


def _group(node: Node, schema: Any) -> str:
    names = [argument.name for argument in schema.arguments]
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    return str(given.get("group_name", ""))


def _home(node: Node, home: Mapping[Node, str], is_inserted: bool) -> str:
    """The block of `node`; what sharding put in stands a few new nodes behind one of a branch."""
    for _ in range(_STEPS_TO_BRANCH if is_inserted else 0):
        if node in home or not node.all_input_nodes:
            break
        node = node.all_input_nodes[0]
    return home.get(node, "")
