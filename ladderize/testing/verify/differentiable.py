"""Differentiable collectives that act on all ranks at once, one autograd function each."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import cross_entropy

from ladderize.graph import parallel_ops
from ladderize.testing.verify.lockstep import Call, Join


class _CopyAll(Function):
    """Copies of all ranks: the gradient of each is the sum of all."""

    @staticmethod
    def forward(_: Any, *values: Tensor) -> tuple[Tensor, ...]:
        return tuple(value.clone() for value in values)

    @staticmethod
    def backward(_: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        total = sum(grads[1:], grads[0])
        return (total,) * len(grads)


class _ReduceAll(Function):
    """Reductions of all ranks: gradients pass through."""

    @staticmethod
    def forward(_: Any, *values: Tensor) -> tuple[Tensor, ...]:
        total = sum(values[1:], values[0])
        return tuple(total.clone() for _ in values)

    @staticmethod
    def backward(_: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return grads


class _GatherAll(Function):
    """Gathers of all ranks: the gradient of each is its own part."""

    @staticmethod
    def forward(ctx: Any, dim: int, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.dim = dim
        return tuple(torch.cat(values, dim) for _ in values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        parts = [grad.chunk(len(grads), ctx.dim)[r] for r, grad in enumerate(grads)]
        return (None, *parts)


def _apply(function: type[Function], *args: Any) -> Sequence[Tensor]:
    results: Sequence[Tensor] = function.apply(*args)  # type: ignore[no-untyped-call]
    return results


def _copy(calls: Sequence[Call]) -> Sequence[Tensor]:
    return _apply(_CopyAll, *(call.value for call in calls))


def _reduce(calls: Sequence[Call]) -> Sequence[Tensor]:
    return _apply(_ReduceAll, *(call.value for call in calls))


def _gather(calls: Sequence[Call]) -> Sequence[Tensor]:
    return _apply(_GatherAll, calls[0].args[1], *(call.value for call in calls))


def _cross_entropy(calls: Sequence[Call]) -> list[Tensor]:
    """The cross entropy over all classes, which are split along dim 1 (dim 0 of a single row)."""
    target, _, reduction, ignore_index, _ = calls[0].args
    how = ("none", "mean", "sum")[reduction]
    dim = min(1, calls[0].value.dim() - 1)
    return [
        cross_entropy(logits, target, reduction=how, ignore_index=ignore_index)
        for logits in _apply(_GatherAll, dim, *(call.value for call in calls))
    ]


DIFFERENTIABLE: Mapping[Any, Join] = {
    parallel_ops.copy: _copy,
    parallel_ops.reduce: _reduce,
    parallel_ops.gather: _gather,
    parallel_ops.vocab_cross_entropy: _cross_entropy,
}
