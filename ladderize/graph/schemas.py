"""The schemas of the op that a node calls: that of an overload, or the matching ones of a packet.

torch.ops.aten.add.Tensor(x, h)        the overload's schema
torch.ops.engine.attention(q, k, v)    a packet: schemas that match the arguments by number and name
"""

import functools
from typing import Any

from torch.fx import Node

from ladderize.compat.dispatcher import OpOverload, OpOverloadPacket


def schemas_of(node: Node) -> list[Any]:
    """All schemas that match the call; empty if it does not call an op of the dispatcher."""
    target: Any = node.target
    if isinstance(target, OpOverload):
        return [target._schema]
    if not isinstance(target, OpOverloadPacket):
        return []
    overloads = target.overloads()  # type: ignore[no-untyped-call]
    found = [getattr(target, name)._schema for name in overloads]
    return [schema for schema in found if _fits(node, schema)]


def schema_of(node: Node) -> Any:
    """The first schema that matches the call; None if it does not call an op of the dispatcher."""
    if isinstance(node.target, OpOverload):
        return node.target._schema
    return next(iter(schemas_of(node)), None)


def called_op(node: Node) -> str:
    """The op's name without overload, `aten::add`; "" if it is not an op of the dispatcher."""
    if isinstance(node.target, OpOverload):
        return _name_of(node.target)
    schema = schema_of(node)
    return "" if schema is None else str(schema.name)


@functools.cache
def _name_of(target: OpOverload) -> str:
    return str(target._schema.name)


@functools.cache
def writes_nothing(target: OpOverload) -> bool:
    """Whether the op's schema declares no mutation of its arguments."""
    return not target._schema.is_mutable


def arguments_of(node: Node, schema: Any) -> dict[str, Any]:
    """The arguments of the call, by their names in `schema`."""
    names = (argument.name for argument in schema.arguments)
    return dict(zip(names, node.args, strict=False)) | node.kwargs


def _fits(node: Node, schema: Any) -> bool:
    names = [argument.name for argument in schema.arguments]
    given = {*names[: len(node.args)], *node.kwargs}
    needed = {a.name for a in schema.arguments if not a.has_default_value()}
    return len(node.args) <= len(names) and needed <= given <= set(names)
