"""THE TABLE: how each ATen op carries a sharding from its inputs to its result, one row an op.

    linear(x, w)           x replicated    -> w divided by outputs, result sharded on its last dim
    linear(x sharded, w)                   -> w divided by inputs, result partial
    anything(replicated …)                 -> replicated, no rule asked

A rule sees a `Visit` and returns the placement of the result; pointwise ops need no row. An op with
neither row nor tag keeps the parameters that sharded its inputs whole. Partial inputs have a table
of their own, `partial_rules`.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from ladderize import cache_rules as cache
from ladderize import layout_rules as layout
from ladderize.partial_rules import join_partials
from ladderize.placement import Partial, Shard
from ladderize.visit import (
    REPLICATED,
    Illegal,
    Origin,
    Selection,
    Value,
    Values,
    Visit,
    packet,
)

aten = torch.ops.aten
Rule = Callable[[Visit], Values]


# ---- products with a weight


@dataclass(frozen=True)
class Product:
    """Where a product has its operands, and which dim of its weight makes outputs."""

    x: int
    weight: int
    bias: int | None
    output_dim: int


PRODUCTS = {
    aten.linear: Product(x=0, weight=1, bias=2, output_dim=0),
    aten.addmm: Product(x=1, weight=2, bias=0, output_dim=1),
    aten.mm: Product(x=0, weight=1, bias=None, output_dim=1),
    aten.matmul: Product(x=0, weight=1, bias=None, output_dim=1),
}


def weighted(visit: Visit) -> Values:
    """Column-parallel for a replicated input, row-parallel for one sharded on its last dim."""
    form = PRODUCTS[packet(visit.node)]
    x, weight = visit.node.args[form.x], visit.node.args[form.weight]
    bias = None if form.bias is None else visit.argument(form.bias, "bias")
    assert isinstance(x, Node)
    assert isinstance(weight, Node)
    shard, last = visit.value(x).shard, len(visit.shape(x)) - 1
    if weight not in visit.parameters or len(visit.shape(weight)) != 2 or _is_scaled(visit):
        return _without_weight(visit)
    if shard is None:
        return _column_parallel(visit, form, x, weight, bias)
    if shard.dim == last:
        return _row_parallel(visit, form, x, weight, bias)
    visit.enter(weight)
    if isinstance(bias, Node):
        visit.align(bias, shard.dim - last - 1, shard.segments)
    return visit.value(x)


def _is_scaled(visit: Visit) -> bool:
    """addmm(…, alpha=2)"""
    return any(visit.node.kwargs.get(name, 1) != 1 for name in ("alpha", "beta"))


def _without_weight(visit: Visit) -> Values:
    if not visit.sharded(visit.operands()):
        return REPLICATED
    if packet(visit.node) is aten.matmul:
        return batched(visit)
    return visit.illegal(f"the weight of {visit.op_name} is no parameter")


def _column_parallel(visit: Visit, form: Product, x: Node, weight: Node, bias: Any) -> Values:
    if not visit.can_shard(weight):
        return REPLICATED
    size = visit.shape(weight)[form.output_dim]
    segments = visit.output_segments(weight, size)
    visit.demand(weight, Shard(form.output_dim, segments))
    visit.enter(x)
    if isinstance(bias, Node):
        visit.align(bias, -1, segments)
    return Value(Shard(len(visit.shape()) - 1, segments), (Origin(weight, 0, size),))


def _row_parallel(visit: Visit, form: Product, x: Node, weight: Node, bias: Any) -> Values:
    shard = visit.value(x).shard
    assert shard is not None
    if not visit.can_shard(weight):
        culprits = [origin.parameter for origin in visit.value(x).origins]
        raise Illegal(f"{visit.parameters[weight]} stays whole", culprits, is_consequence=True)
    visit.demand(weight, Shard(1 - form.output_dim, shard.segments))
    if not isinstance(bias, Node):
        return Value(Partial())
    if bias not in visit.parameters:
        visit.illegal(f"the bias of {visit.op_name} is no parameter")
    visit.rewrite((x, weight), aten.mm.default if packet(visit.node) is aten.addmm else None)
    return Value(Partial(), biases=(bias,))


# ---- other computing ops


def batched(visit: Visit) -> Values:
    """matmul, bmm, attention without weights: leading dims are independent, the last two mix."""
    return visit.meet(visit.operands(), mixed_dims=(-1, -2))


def attention(visit: Visit) -> Values:
    query, key, value = (visit.argument(i, n) for i, n in enumerate(("query", "key", "value")))
    heads, kv_heads = visit.shape(query)[-3], visit.shape(key)[-3]
    shards = [visit.value(node).shard for node in (query, key, value)]
    if not any(shards) or heads == kv_heads or not visit.argument(7, "enable_gqa", False):
        return batched(visit)
    if shards[0] != Shard(len(visit.shape(query)) - 3, (heads,)):
        visit.illegal(f"{visit.op_name} shares {kv_heads} key heads among undivided queries")
    if shards[1] != shards[2]:
        visit.illegal(f"{visit.op_name} takes keys and values placed differently")
    rest = [node for node in visit.operands() if node not in (key, value)]
    result = visit.meet(rest, mixed_dims=(-1, -2))
    if shards[1] is None:
        selection = Selection(
            len(visit.shape(key)) - 3, shared_heads(heads, kv_heads, visit.num_ranks)
        )
        visit.enter(key, selection)
        visit.enter(value, selection)
    return result


def shared_heads(heads: int, kv_heads: int, num_ranks: int) -> tuple[tuple[int, ...], ...]:
    """Which key/value heads each rank's query heads read; one for each where they do not line up.

    8 query heads on 2 key heads over 4 ranks -> (0), (0), (1), (1); 6 on 3 over 2 ranks ->
    (0, 0, 1), (1, 2, 2).
    """
    local, share = heads // num_ranks, heads // kv_heads
    rows = [[h // share for h in range(r * local, (r + 1) * local)] for r in range(num_ranks)]
    unique = [sorted(set(row)) for row in rows]
    if (
        all(
            [u for u in us for _ in range(local // len(us))] == row
            for us, row in zip(unique, rows, strict=True)
        )
        and len({len(us) for us in unique}) == 1
    ):
        rows = unique
    return tuple(map(tuple, rows))


def pointwise(visit: Visit) -> Values:
    return visit.meet(visit.operands())


def along(index: int, name: str = "dim") -> Rule:
    """Mixes entries along the dims given by argument `index`, keeps the shape."""

    def rule(visit: Visit) -> Values:
        dims = visit.argument(index, name)
        return visit.meet(visit.operands(), _from_right(dims, len(visit.shape())))

    return rule


def reduction(visit: Visit) -> Values:
    """mean(x, dims, keepdim): reduced dims must be whole."""
    node, value, shard = layout.source(visit)
    ndim = len(visit.shape(node))
    dims = {d + ndim for d in _from_right(visit.argument(1, "dim"), ndim)} or set(range(ndim))
    if shard.dim in dims:
        visit.illegal(f"{visit.op_name} reduces the sharded dim")
    kept = len(visit.shape()) == ndim
    return value if kept else value.at(shard.dim - sum(d < shard.dim for d in dims))


def normalization(visit: Visit) -> Values:
    """layer_norm(x, normalized_shape, weight, bias): the trailing dims mix."""
    count = len(visit.argument(1, "normalized_shape"))
    return visit.meet(visit.operands(), range(-count, 0))


def _from_right(dims: Any, ndim: int) -> list[int]:
    listed = dims if isinstance(dims, (list, tuple)) else [] if dims is None else [dims]
    return [d if d < 0 else d - ndim for d in listed]


RULES: dict[Any, Rule] = {
    **dict.fromkeys(PRODUCTS, weighted),
    aten.bmm: batched,
    aten.baddbmm: batched,
    aten.scaled_dot_product_attention: attention,
    aten.softmax: along(1),
    aten._softmax: along(1),
    aten.log_softmax: along(1),
    aten._safe_softmax: along(1),
    aten.cumsum: along(1),
    aten.layer_norm: normalization,
    aten.rms_norm: normalization,
    **dict.fromkeys(
        (aten.mean, aten.sum, aten.var, aten.std, aten.amax, aten.amin, aten.logsumexp), reduction
    ),
    aten.linalg_vector_norm: lambda visit: visit.illegal("a norm over a sharded tensor"),
    **dict.fromkeys(
        (aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten), layout.view
    ),
    aten.expand: layout.expand,
    aten.permute: layout.permute,
    aten.transpose: layout.transpose,
    aten.t: layout.transpose_matrix,
    aten.mT: layout.transpose_matrix,
    aten.unsqueeze: layout.unsqueeze,
    aten.squeeze: layout.squeeze,
    aten.select: layout.select,
    aten.slice: layout.slice_,
    **dict.fromkeys((aten.split, aten.split_with_sizes, aten.chunk), layout.split),
    aten.unbind: layout.unbind,
    aten.cat: layout.cat,
    aten.stack: layout.stack,
    operator.getitem: layout.getitem,
    aten.index_copy_: cache.index_copy,
    aten.index_put_: cache.index_put,
    # pointwise, but without the tag
    **dict.fromkeys(
        (
            aten.to, aten._to_copy, aten.type_as, aten.alias, aten.detach, aten.contiguous,
            aten.dropout, aten.native_dropout, aten.where, aten.masked_fill, aten.selu,
            aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like,
        ),
        pointwise,
    ),
}  # fmt: skip


# ---- looking up


def apply_rule(visit: Visit) -> Values:
    """The placement of `visit.node`, by the tables."""
    inputs = [visit.values.get(node, REPLICATED) for node in visit.node.all_input_nodes]
    op = packet(visit.node)
    if all(value == REPLICATED for value in inputs) and op not in PRODUCTS:
        return REPLICATED
    if op is not operator.getitem and any(isinstance(value, tuple) for value in inputs):
        visit.illegal(f"{visit.op_name} takes several sharded tensors at once")
    if op is not operator.getitem and (
        partials := [n for n in visit.operands() if visit.value(n).is_partial]
    ):
        return join_partials(visit, partials)
    if (rule := RULES.get(op)) is not None:
        return rule(visit)
    if torch.Tag.pointwise in getattr(visit.node.target, "tags", ()):
        return pointwise(visit)
    return visit.illegal(f"no sharding rule for {visit.op_name}")
