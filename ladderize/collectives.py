"""The two ends of a sharded branch and their gradients, as ops of namespace `ladderize`.

    op                 forward                      backward
    copy(x, group)     x                            all_reduce, wait     (Megatron's f)
    reduce(x, group)   all_reduce, still in flight  identity             (launch of Megatron's g)
    wait(pending)      wait                         identity             (the rest of g)

`_c10d_functional.all_reduce` alone will not do: its backward is another all-reduce. The ops are
CompositeImplicitAutograd and only call an `autograd.Function`: what AOTAutograd traces are the
functional collectives inside, forward and backward, and its cache sees an ordinary op in the graph.

For models that are sharded by hand, `copy_to_ranks` and `reduce_from_ranks` are the two ends.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.distributed import ProcessGroup

_functional = torch.ops._c10d_functional


class _Copy(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group_name: str) -> Tensor:
        ctx.group_name = group_name
        return x.view_as(x)  # a Function must not return its very input

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        pending = _functional.all_reduce(grad, "sum", ctx.group_name)
        return _functional.wait_tensor(pending), None


class _Reduce(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group_name: str) -> Tensor:  # noqa: ARG004
        pending: Tensor = _functional.all_reduce(x, "sum", group_name)
        return pending

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return grad, None


class _Wait(Function):
    @staticmethod
    def forward(ctx: Any, pending: Tensor) -> Tensor:  # noqa: ARG004
        done: Tensor = _functional.wait_tensor(pending)
        return done

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG004
        return grad


_OPS = (
    ("copy(Tensor x, str group_name) -> Tensor", _Copy),
    ("reduce(Tensor x, str group_name) -> Tensor", _Reduce),
    ("wait(Tensor pending) -> Tensor", _Wait),
)
# torch.library is untyped
_library = torch.library.Library("ladderize", "FRAGMENT")  # type: ignore[no-untyped-call]
for _schema, _function in _OPS:
    _name = _schema.partition("(")[0]
    _library.define(_schema)  # type: ignore[no-untyped-call]
    _library.impl(_name, _function.apply, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]

copy = torch.ops.ladderize.copy.default
reduce = torch.ops.ladderize.reduce.default
wait = torch.ops.ladderize.wait.default


def copy_to_ranks(x: Tensor, group: ProcessGroup) -> Tensor:
    """`x`, of which every rank of `group` makes its part of a branch (Megatron's f).

    Args:
        x: the input of a column-parallel layer, the same on every rank.
        group: the tensor-parallel ranks.

    Returns:
        `x`. Its gradient is the sum of the ranks' gradients.
    """
    copied: Tensor = copy(x, group.group_name)
    return copied


def reduce_from_ranks(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of every rank's `x` (Megatron's g).

    Args:
        x: the output of a row-parallel layer, this rank's summand.
        group: the tensor-parallel ranks.

    Returns:
        The sum, the same on every rank. The gradient of `x` is that of the sum.
    """
    summed: Tensor = wait(reduce(x, group.group_name))
    return summed
