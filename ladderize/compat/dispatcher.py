"""What the dispatcher calls: ops, their packets, higher-order ops. Seen in torch 2.11 to 2.15."""

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch.fx import Node

__all__ = [
    "HigherOrderOperator",
    "OpOverload",
    "OpOverloadPacket",
    "is_composite",
    "memory_id",
    "rename",
    "set_grad_enabled",
]

set_grad_enabled = torch._C._set_grad_enabled
"""How a trace spells `torch.no_grad()`."""


def is_composite(op: OpOverload) -> bool:
    """Whether autograd and AOTAutograd see the ops that `op` is made of in its place."""
    return op.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)


def memory_id(tensor: Tensor) -> int:
    """The identity of the storage of `tensor`; equal for views of one storage, fake ones too."""
    return int(tensor.untyped_storage()._cdata)


def rename(node: Node, name: str) -> None:
    """Give `node` that name, or one made unique of it."""
    node._rename(name)
