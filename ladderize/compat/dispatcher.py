"""What the dispatcher calls: ops, their packets, higher-order ops. Seen in torch 2.11 to 2.15."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch.fx import Node

__all__ = [
    "HigherOrderOperator",
    "OpOverload",
    "OpOverloadPacket",
    "define_composite_ops",
    "is_composite",
    "memory_id",
    "rename",
    "set_grad_enabled",
]

set_grad_enabled = torch._C._set_grad_enabled
"""How a trace spells `torch.no_grad()`."""


def define_composite_ops(
    functions: Iterable[tuple[str, Callable[..., Any]]],
) -> torch.library.Library:
    """Ops of the namespace `ladderize` that autograd and AOTAutograd see through.

    Args:
        functions: the schema of each, `wait(Tensor pending) -> Tensor`, and what it does.

    Returns:
        What they last as long as.
    """
    # torch.library is untyped
    library = torch.library.Library("ladderize", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema, function in functions:
        name = schema.partition("(")[0]
        library.define(schema)  # type: ignore[no-untyped-call]
        library.impl(name, function, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
    return library


def is_composite(op: OpOverload) -> bool:
    """Whether autograd and AOTAutograd see the ops that `op` is made of in its place."""
    return op.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)


def memory_id(tensor: Tensor) -> int:
    """The identity of the storage of `tensor`; equal for views of one storage, fake ones too."""
    return int(tensor.untyped_storage()._cdata)


def rename(node: Node, name: str) -> None:
    """Give `node` that name, or one made unique of it."""
    node._rename(name)
