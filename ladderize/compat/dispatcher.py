"""The dispatcher's ops: overloads, packets, higher-order ops. Seen in torch 2.11 to 2.15."""

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
"""The function that a trace calls for `torch.no_grad()`."""


def define_composite_ops(
    functions: Iterable[tuple[str, Callable[..., Any]]],
) -> torch.library.Library:
    """Define ops in the namespace `ladderize` that autograd and AOTAutograd decompose.

    Args:
        functions: schema and implementation of each op: `wait(Tensor pending) -> Tensor`.

    Returns:
        The library. The ops exist as long as it does.
    """
    # torch.library is untyped
    library = torch.library.Library("ladderize", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema, function in functions:
        name = schema.partition("(")[0]
        library.define(schema)  # type: ignore[no-untyped-call]
        library.impl(name, function, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
    return library


def is_composite(op: OpOverload) -> bool:
    """Whether autograd and AOTAutograd decompose `op` into other ops."""
    return op.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)


def memory_id(tensor: Tensor) -> int:
    """The identity of the storage of `tensor`, real or fake; equal for views of one storage."""
    return int(tensor.untyped_storage()._cdata)


def rename(node: Node, name: str) -> None:
    """Rename `node` to `name`, with a suffix if the name is taken."""
    node._rename(name)
