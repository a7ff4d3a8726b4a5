"""Ops that commute with a sum over ranks, so that a partial value need not be reduced.

add(partial, partial)        one partial value: the two halves of a parallel block
add(partial, replicated)     partial; each rank adds its share of the replicated value
mul(partial, replicated)     partial: an expert's result times its routing weight
index_add(zeros, i, partial) partial: experts' results written back
gelu(partial)                reduced first
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from ladderize.sharding.placement import Partial
from ladderize.sharding.values import NeedsReduction, Value
from ladderize.sharding.visit import FORM_READERS, Visit, packet

aten = torch.ops.aten


def join_partials(visit: Visit, partials: list[Node]) -> Value:
    """Pass partial inputs through linear ops and adds; reduce them before other ops."""
    op = packet(visit.node)
    others = [node for node in visit.operands() if node not in partials]
    # Several readers of one partial value would reduce it several times.
    is_linear = all(visit.value(node).is_replicated for node in others) and all(
        sum(packet(user) not in FORM_READERS for user in node.users) == 1 for node in partials
    )
    if is_linear and op in LINEAR and LINEAR[op](visit, partials):
        for node in others:  # the gradient of a factor is a sum over the ranks
            visit.enter(node)
        return Value(Partial(), biases=tuple(b for p in partials for b in visit.value(p).biases))
    raise NeedsReduction(partials[0])


Test = Callable[[Visit, list[Node]], bool]


def _is_first(visit: Visit, partials: list[Node]) -> bool:
    """Linear in the first argument; the other arguments do not depend on the partial value."""
    return list(partials) == [visit.node.args[0]] and not _has_biases(visit, partials)


def _has_biases(visit: Visit, partials: list[Node]) -> bool:
    return any(visit.value(node).biases for node in partials)


def _keeps_last_dim(visit: Visit, partials: list[Node]) -> bool:
    """Pending biases are along the last dim, which must be unchanged."""
    (node,), (old, new) = partials, (visit.shape(partials[0]), visit.shape())
    return not visit.value(node).biases or bool(len(old) and len(new) and old[-1] == new[-1])


def _leaves_last_dim(*positions: int) -> Test:
    """The arguments at `positions` are dims; with pending biases, the last dim is not allowed."""

    def test(visit: Visit, partials: list[Node]) -> bool:
        ndim = len(visit.shape(partials[0]))
        named = [visit.argument(i, default=0) for i in positions]
        dims = [d for dim in named for d in (dim if isinstance(dim, (list, tuple)) else [dim])]
        return not _has_biases(visit, partials) or (ndim - 1 not in [d % ndim for d in dims])

    return test


def _permutes(visit: Visit, partials: list[Node]) -> bool:
    order = visit.argument(1, "dims")
    return not _has_biases(visit, partials) or order[-1] % len(order) == len(order) - 1


def _same_dtype(visit: Visit, partials: list[Node]) -> bool:
    return bool(partials[0].meta["val"].dtype == visit.node.meta["val"].dtype)


def _is_off(visit: Visit, _: list[Node]) -> bool:
    """dropout(x, p, train)"""
    return not visit.argument(2, "train") or visit.argument(1, "p") == 0


def _factor(visit: Visit, partials: list[Node]) -> bool:
    return len(partials) == 1 and not _has_biases(visit, partials)


def _divides(visit: Visit, partials: list[Node]) -> bool:
    return not visit.node.kwargs.get("rounding_mode") and _is_first(visit, partials)


def _zero_fill(visit: Visit, partials: list[Node]) -> bool:
    """masked_fill(x, mask, 0), constant_pad_nd(x, pad, 0)"""
    return visit.argument(2, "value", 0) == 0 and _is_first(visit, partials)


def _sum(visit: Visit, partials: list[Node]) -> bool:
    """add of partial values, or of one and a share of a replicated value that broadcasts to it."""
    operands = visit.operands()
    if visit.node.kwargs or list(visit.node.args) != operands:
        return False
    if any(visit.shape(node) != visit.shape() for node in partials):
        return False
    for node in operands:
        if node not in partials:
            visit.share(node)
    return True


def _into_zeros(visit: Visit, partials: list[Node]) -> bool:
    """index_add(zeros, dim, index, x), index_put(zeros, indices, x, accumulate)"""
    target = visit.node.args[0]
    return (
        isinstance(target, Node)
        and packet(target) in (aten.zeros, aten.new_zeros, aten.zeros_like)
        and target not in partials
        and len(partials) == 1
        and not _has_biases(visit, partials)
    )


def _concatenates(visit: Visit, partials: list[Node]) -> bool:
    return set(visit.argument(0)) == set(partials) and not _has_biases(visit, partials)


# op -> whether this call is linear in its partial arguments
LINEAR: dict[Any, Test] = {
    aten.add: _sum,
    **dict.fromkeys((aten.mul, aten.multiply), _factor),
    **dict.fromkeys(
        (
            aten.neg, aten.sum, aten.mean, aten.index, aten.index_select, aten.expand,
            aten.flatten, aten.unflatten, aten.squeeze, aten.repeat,
            aten.avg_pool2d, aten.adaptive_avg_pool2d,
        ),
        _is_first,
    ),
    **dict.fromkeys((aten.view, aten.reshape, aten._unsafe_view), _keeps_last_dim),
    **dict.fromkeys((aten.clone, aten.contiguous, aten.alias), lambda *_: True),
    **dict.fromkeys((aten.to, aten._to_copy, aten.type_as), _same_dtype),
    aten.dropout: _is_off,
    aten.permute: _permutes,
    aten.transpose: _leaves_last_dim(1, 2),
    **dict.fromkeys((aten.slice, aten.select), _leaves_last_dim(1)),
    aten.roll: _leaves_last_dim(2),
    aten.div: _divides,
    **dict.fromkeys((aten.masked_fill, aten.constant_pad_nd), _zero_fill),
    **dict.fromkeys((aten.index_add, aten.scatter_add, aten.index_put), _into_zeros),
    **dict.fromkeys((aten.cat, aten.stack), _concatenates),
}  # fmt: skip
