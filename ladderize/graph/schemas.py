"""The schemas of the op that a node calls: one of an overload, those that fit of a packet.

torch.ops.aten.add.Tensor(x, h)        its own
torch.ops.engine.attention(q, k, v)    Dynamo keeps the packet: by number and names of arguments
"""

import functools
from typing import Any

from torch.fx import Node

from ladderize.compat.dispatcher import OpOverload, OpOverloadPacket


def schemas_of(node: Node) -> list[Any]:
    """Every schema that the call can mean; none for what is no op of the dispatcher."""
    target: Any = node.target
    if isinstance(target, OpOverload):
        return [target._schema]
    if not isinstance(target, OpOverloadPacket):
        return []
    overloads = target.overloads()  # type: ignore[no-untyped-call]
    found = [getattr(target, name)._schema for name in overloads]
    return [schema for schema in found if _fits(node, schema)]


def schema_of(node: Node) -> Any:
    """The first schema that the call can mean; None for what is no op of the dispatcher."""
    if isinstance(node.target, OpOverload):
        return node.target._schema
    return next(iter(schemas_of(node)), None)


def called_op(node: Node) -> str:
    """`aten::add` for whichever overload the call means; "" for what is no op of the dispatcher."""
    if isinstance(node.target, OpOverload):
        return _name_of(node.target)
    schema = schema_of(node)
    return "" if schema is None else str(schema.name)


@functools.cache
def _name_of(target: OpOverload) -> str:
    return str(target._schema.name)


@functools.cache
def writes_nothing(target: OpOverload) -> bool:
    """Whether the op says that it writes into none of its arguments."""
    return not target._schema.is_mutable


def arguments_of(node: Node, schema: Any) -> dict[str, Any]:
    """What the call is given, by the names of `schema`."""
    names = (argument.name for argument in schema.arguments)
    return dict(zip(names, node.args, strict=False)) | node.kwargs


def _fits(node: Node, schema: Any) -> bool:
    names = [argument.name for argument in schema.arguments]
    given = {*names[: len(node.args)], *node.kwargs}
    needed = {a.name for a in schema.arguments if not a.has_default_value()}
    return len(node.args) <= len(names) and needed <= given <= set(names)
