"""The process groups that a graph communicates over, in the graph before autograd.

torch.ops._c10d_functional.all_reduce(h, "sum", "3")       explicit; also inside of the bodies
autograd_function_apply(fwd_body, bwd_body, h)             of autograd functions
h.redistribute(…), from_local(x, mesh, …)                  a DTensor, which knows its mesh
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.fx import GraphModule, Node

from ladderize import compat
from ladderize.graph import ops
from ladderize.graph.higher_order import bodies

_NAMESPACES = frozenset({"_c10d_functional", "_c10d_functional_autograd", "c10d_functional"})


def schema_of(node: Node) -> Any:
    """The schema of the op that `node` calls; None for what is no op of the dispatcher."""
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverloadPacket):  # Dynamo keeps the packet
        target = getattr(target, target.overloads()[0])  # type: ignore[no-untyped-call]
    return target._schema if isinstance(target, torch._ops.OpOverload) else None


def group_name_of(node: Node) -> str:
    """The name of the process group that an op is given; "" for all others."""
    schema = schema_of(node)
    if schema is None:
        return ""
    names = [argument.name for argument in schema.arguments]
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    return str(given.get("group_name", ""))


def collective_of(node: Node) -> str:
    """The name of the functional collective that `node` calls (`all_reduce`); "" for all others."""
    schema = schema_of(node)
    if schema is None:
        return ""
    namespace, name = schema.name.split("::")
    return str(name).removesuffix("_") if namespace in _NAMESPACES else ""


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
        if name := group_name_of(node):
            found.setdefault(name, compat.process_group(name))
        meshes |= {tensor.device_mesh for tensor in dtensors(node)}
    for mesh in meshes:
        found |= {group.group_name: group for group in mesh.get_all_groups()}
    return [found[name] for name in sorted(found) if found[name].size() > 1]
