"""Find the operands that a call writes in place.

    aten.add_.Tensor(x, h)                        by its schema: x
    engine.attention(q, k, v, out)                a packet, by the schemas that match: out
    x.mul_(h)      out[:, 0] = h                  by its name: x, out
    relu(input=x, inplace=True)    x |= h         by its functional form: x
    while_loop(cond, body, x)                     by the writes of its bodies
    triton_kernel_wrapper_mutation(kwargs={…})    unknown: all its tensor arguments

Analyses, dead-code elimination and memory ordering use it. A call that is not known to be pure
counts as writing.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Any

from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from ladderize.compat.dispatcher import HigherOrderOperator, OpOverload, OpOverloadPacket
from ladderize.graph import ops
from ladderize.graph.higher_order import bodies
from ladderize.graph.schemas import arguments_of, schemas_of, writes_nothing

# Methods named like in-place methods that change no value.
_WRITES_NOTHING = frozenset({"requires_grad_", "share_memory_", "rename_"})


def written_operands(node: Node) -> list[Node]:
    """The operands that a call writes in place, even if it has no functional form."""
    target: Any = node.target
    if not node.op.startswith("call_"):
        return []
    if isinstance(target, OpOverload) and writes_nothing(target):
        return []
    if isinstance(target, (OpOverload, OpOverloadPacket)):
        by_any = (_written_by_schema(node, schema) for schema in schemas_of(node))
        return list(dict.fromkeys(chain.from_iterable(by_any)))
    if isinstance(target, HigherOrderOperator):
        return list(dict.fromkeys(_written_by_bodies(node)))
    first = _nodes(ops.first_argument(node))
    name = ops.op_name(node)
    is_in_place = name == "setitem" or (name.endswith("_") and not name.endswith("__"))
    written = _nodes(node.kwargs.get("out"))
    if name in _WRITES_NOTHING or not first:
        return written
    if is_in_place or ops.functional_form(node) is not None:
        return [*first, *written]
    return written


def written_values(graph: Graph) -> set[Node]:
    """The nodes of `graph` with a value whose memory is written."""
    memory = {
        storage
        for node in graph.nodes
        for operand in written_operands(node)
        for storage in ops.storages(operand)
    }
    return {node for node in graph.nodes if memory and not memory.isdisjoint(ops.storages(node))}


def is_impure(node: Node) -> bool:
    """Whether `node` must be kept even if nothing reads its result.

    torch.fx treats every method call as pure, even `cache.index_copy_(…)`.
    """
    if node.is_impure() or written_operands(node) or ops.op_name(node) in _WRITES_NOTHING:
        return True
    return node.op.startswith("call_") and ops.value(node) is None


def _written_by_schema(node: Node, schema: Any) -> list[Node]:
    values = arguments_of(node, schema)
    written = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
    return [operand for name in written for operand in _nodes(values.get(name))]


def _written_by_bodies(node: Node) -> Iterator[Node]:
    """All tensor operands of a higher-order call if a body writes one of its inputs."""
    gm = node.graph.owning_module
    inner = [] if gm is None else bodies(gm, node)
    if ops.op_name(node).endswith("_mutation") or any(map(_writes_an_input, inner)):
        yield from (operand for operand in node.all_input_nodes if ops.tensors(operand))


def _writes_an_input(body: GraphModule) -> bool:
    given = {s for node in body.graph.find_nodes(op="placeholder") for s in ops.storages(node)}
    return any(
        not given.isdisjoint(ops.storages(operand)) or operand.op == "placeholder"
        for node in body.graph.nodes
        for operand in written_operands(node)
    )


def _nodes(value: Any) -> list[Node]:
    """The nodes in an argument, which may be a list of them."""
    found: list[Node] = []
    map_arg(value, found.append)
    return found
