"""Sharding rules of own rows: each entry is valid only on the rank that holds its expert.

silu(own)                own: each row separately
mul(own, replicated)     own: rows times routing weights
index(own, [order])      partial: rows of other ranks become 0, and the results are summed
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from ladderize.graph.writes import written_operands
from ladderize.sharding.lookahead import MOVES
from ladderize.sharding.placement import OwnRows
from ladderize.sharding.rules.partials import join_partials
from ladderize.sharding.values import NeedsReduction, Value, Values
from ladderize.sharding.views import as_expr, dim_groups
from ladderize.sharding.visit import Visit, packet

aten = torch.ops.aten


def carry_own_rows(visit: Visit, owned: list[Node], is_pointwise: bool) -> Values:
    """The placement of a call on own rows: own rows if it keeps rows separate, else partial."""
    rows = [_own(visit, node) for node in owned]
    others = [node for node in visit.operands() if node not in owned]
    if written_operands(visit.node):
        visit.illegal(f"{visit.op_name} writes in place", visit.origins(owned))
    if len({(r.teller, r.by_ends) for r in rows}) > 1:
        visit.illegal(f"{visit.op_name} takes rows of different experts", visit.origins(owned))
    rule = _pointwise if is_pointwise else _ROW_BY_ROW.get(packet(visit.node))
    dim = None if rule is None else rule(visit, owned)
    if dim is None or not all(visit.value(node).is_replicated for node in others):
        return _leave(visit, owned, others)
    for node in others:
        visit.enter(node)
    is_zero = packet(visit.node) in _KEEP_ZEROS and any(r.is_zero for r in rows)
    made = Value(dataclasses.replace(rows[0], dim=dim, is_zero=is_zero), visit.origins(owned))
    result = visit.node.meta["val"]
    return (made,) * len(result) if isinstance(result, (tuple, list)) else made


def _leave(visit: Visit, owned: list[Node], others: list[Node]) -> Values:
    """The result if rows are mixed: a partial value, with other ranks' rows set to 0."""
    partials = [node for node in others if visit.value(node).is_partial]
    visit.masked |= {n: rows for n in owned if not (rows := _own(visit, n)).is_zero}
    try:
        return join_partials(visit, [*owned, *partials])
    except NeedsReduction as needed:
        if needed.value in partials:
            raise
        reason = f"{visit.op_name} mixes rows of different experts"
        return visit.illegal(reason, visit.origins(owned))


def _own(visit: Visit, node: Node) -> OwnRows:
    rows = visit.value(node).own
    assert rows is not None
    return rows


# ---- the dim of the rows in the result; None if rows are mixed

RowRule = Callable[[Visit, list[Node]], int | None]


def _pointwise(visit: Visit, owned: list[Node]) -> int | None:
    """Rows must be on one dim of the result, without repetition."""
    dims = {_own(visit, node).dim - len(visit.shape(node)) for node in owned}
    dim = dims.pop() + len(visit.shape())
    size = as_expr(visit.shape()[dim])
    lengths = {as_expr(visit.shape(node)[_own(visit, node).dim]) for node in owned}
    return None if dims or lengths != {size} else dim


def _moved(visit: Visit, owned: list[Node]) -> int | None:
    (node,) = owned
    dim, ndim = _own(visit, node).dim, len(visit.shape(node))
    if packet(visit.node) is aten.squeeze and dim in _dims(visit.argument(1), ndim):
        return None
    return MOVES[packet(visit.node)](visit.node, dim, ndim)


def _viewed(visit: Visit, owned: list[Node]) -> int | None:
    """The dim of the rows must be unchanged; others may change."""
    (node,) = owned
    groups = dim_groups(visit.shape(node), visit.shape())
    found = next(group for group in groups if _own(visit, node).dim in group.old)
    return found.new[0] if len(found.old) == len(found.new) == 1 else None


def _batched(visit: Visit, owned: list[Node]) -> int | None:
    """bmm(weights of the entries, entries)"""
    return 0 if all(_own(visit, node).dim == 0 for node in owned) else None


def _within(index: int, name: str = "dim", is_reduced: bool = False, default: Any = 0) -> RowRule:
    """A rule for ops that mix or select entries along the dims in argument `index`."""

    def rule(visit: Visit, owned: list[Node]) -> int | None:
        dim, ndim = _own(visit, owned[0]).dim, len(visit.shape(owned[0]))
        dims = _dims(visit.argument(index, name, default), ndim)
        if dim in dims or len(owned) > 1:
            return None
        gone = is_reduced and len(visit.shape()) < ndim
        return dim - sum(d < dim for d in dims) if gone else dim

    return rule


def _normalized(visit: Visit, owned: list[Node]) -> int | None:
    """layer_norm(x, normalized_shape, …)"""
    dim, ndim = _own(visit, owned[0]).dim, len(visit.shape(owned[0]))
    is_apart = dim < ndim - len(visit.argument(1, "normalized_shape"))
    return dim if is_apart and len(owned) == 1 else None


def _dims(named: Any, ndim: int) -> set[int]:
    """The given dims as non-negative numbers; all dims if none is given."""
    listed = named if isinstance(named, (list, tuple)) else [named]
    return set(range(ndim)) if named in (None, []) else {dim % ndim for dim in listed}


_ROW_BY_ROW: dict[Any, RowRule] = {
    **dict.fromkeys(MOVES, _moved),
    **dict.fromkeys((aten.view, aten.reshape, aten._unsafe_view), _viewed),
    **dict.fromkeys((aten.bmm, aten.baddbmm), _batched),
    **dict.fromkeys((aten.chunk, aten.split, aten.split_with_sizes), _within(2)),
    **dict.fromkeys((aten.softmax, aten._softmax, aten.log_softmax, aten.slice), _within(1)),
    aten.select: _within(1, is_reduced=True),
    **dict.fromkeys(
        (aten.mean, aten.sum, aten.amax, aten.amin, aten.var),
        _within(1, is_reduced=True, default=None),
    ),
    **dict.fromkeys((aten.layer_norm, aten.rms_norm), _normalized),
}
_KEEP_ZEROS = {
    *MOVES,
    aten.mul,
    aten.multiply,
    aten.neg,
    aten.view,
    aten.reshape,
    aten.chunk,
    aten.split,
    aten.split_with_sizes,
    aten.slice,
    aten.select,
}
