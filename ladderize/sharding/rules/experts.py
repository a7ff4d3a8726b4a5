"""Sharding rules of weights that are sharded by experts: each rank holds whole experts.

grouped_mm(x, w[expert], ends)   x replicated -> own rows: those of this rank's experts, others 0
w[expert][ids]                                -> own rows: the weights of the entries' experts
bmm(x[expert], w[expert])                     -> sharded on the dim of experts; its sum is partial

`own_rows.py` has the rules for values with rows that are valid on one rank only.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from ladderize.sharding.placement import OwnRows, Shard
from ladderize.sharding.rules.products import PRODUCTS
from ladderize.sharding.values import Value
from ladderize.sharding.visit import Visit, packet

aten = torch.ops.aten


def by_expert(visit: Visit) -> Value | None:
    """The placement of a call that computes with whole experts; None for other calls."""
    if not visit.stacks.is_wanted:
        return None
    rule = _STARTS.get(packet(visit.node))
    return None if rule is None else rule(visit)


def sums_experts(visit: Visit, value: Value) -> bool:
    """Whether `visit.node` sums the results of all ranks' experts for the same tokens."""
    parameters = {origin.parameter for origin in value.origins}
    return packet(visit.node) is aten.sum and parameters <= visit.stacks.divided


def _grouped(visit: Visit) -> Value | None:
    """Rows sorted by experts, each multiplied by its expert's weight."""
    x, weight, ends, *rest = (*visit.node.args, None, None)[:5]
    if not _is_stack(visit, weight) or any(rest) or visit.node.kwargs:
        return None
    assert isinstance(x, Node)
    assert isinstance(weight, Node)
    if not isinstance(ends, Node) or not visit.value(ends).is_replicated:
        return None
    rows = OwnRows(0, ends, True, visit.shape(weight)[0], is_zero=True)
    value = visit.value(x)
    if value.is_replicated:
        visit.enter(x)
    elif value.own is None:
        return None
    elif (value.own.dim, value.own.teller) != (0, ends):
        visit.illegal(f"{visit.op_name} takes rows of other experts")
    visit.computed = rows
    return Value(rows, (visit.demand_stack(weight),))


def _looked_up(visit: Visit) -> Value | None:
    """A weight for each entry: `w[ids]`, to be multiplied with the entries by a bmm."""
    weight, (experts, *others) = visit.argument(0), visit.argument(1)
    if not _is_stack(visit, weight) or others or not isinstance(experts, Node):
        return None
    if len(visit.shape(experts)) != 1 or not visit.value(experts).is_replicated:
        return None
    visit.computed = OwnRows(0, experts, False, visit.shape(weight)[0])
    return Value(visit.computed, (visit.demand_stack(weight),))


def _batched(visit: Visit) -> Value | None:
    """Every expert multiplies its own tokens: experts are a dim of both operands."""
    form = PRODUCTS[packet(visit.node)]
    x, weight = visit.node.args[form.x], visit.node.args[form.weight]
    if not _is_stack(visit, weight) or any(visit.node.kwargs.values()):
        return None
    assert isinstance(x, Node)
    assert isinstance(weight, Node)
    shard = Shard(0, (int(visit.shape(weight)[0]),))
    is_new = visit.value(x).is_replicated
    if len(visit.shape(x)) != 3 or not (is_new or visit.value(x).shard == shard):
        return None
    origin = visit.demand_stack(weight)
    if is_new:
        visit.select(x, 0, shard)
    return Value(shard, (origin,))


def _is_stack(visit: Visit, weight: Any) -> bool:
    """Whether `weight` is a parameter [experts, …, …] that may be sharded by experts."""
    parameter = visit.parameter(weight)
    return (
        parameter is not None
        and visit.can_shard(weight)
        and visit.stacks.may_divide(parameter)
        and len(visit.shape(weight)) == 3
        and parameter.meta["val"].is_floating_point()
    )


_STARTS: dict[Any, Callable[[Visit], Value | None]] = {
    **dict.fromkeys((aten._grouped_mm, "transformers.grouped_mm_fallback"), _grouped),
    **dict.fromkeys((aten.bmm, aten.matmul), _batched),
    aten.index: _looked_up,
}
