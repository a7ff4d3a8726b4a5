"""Sharding rules of KV caches, owned by the module or passed to it.

index_copy_(cache, 2, position, k)    k sharded on its heads -> the cache is, too
index_put_(cache, [None, None, position], k)

Readers of the cache align it like any other parameter; all must need the same placement.

own_heads(k)         k sharded on its heads -> k, local; k whole -> the heads of this rank, local
cat([past, local])   an op on local and replicated values: local
all_heads(local)     sharded on its heads, or shared heads; replicated if banned: the op stays
keep_part(x)         x sharded -> local, followed by zeros; x whole -> x
kept_part(local)     the sharded value, without the zeros
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Node

from ladderize.graph.local_heads import all_heads, keep_part, kept_part, own_heads
from ladderize.sharding.placement import Local, Shard, SharedHeads
from ladderize.sharding.values import (
    REPLICATED,
    NeedsReduction,
    Origin,
    RowSelection,
    Value,
    Values,
)
from ladderize.sharding.visit import Visit

aten = torch.ops.aten


def index_copy(visit: Visit) -> Values:
    """index_copy_(cache, dim, index, source)"""
    cache, source = visit.argument(0), visit.argument(3)
    ndim = len(visit.shape(cache))
    dim = visit.argument(1)
    return _write(visit, cache, source, [dim if dim < 0 else dim - ndim])


def index_put(visit: Visit) -> Values:
    """index_put_(cache, indices, values): an index of None takes the whole dim."""
    cache, indices, source = (visit.argument(i) for i in range(3))
    ndim = len(visit.shape(cache))
    indexed = [i for i, index in enumerate(indices) if index is not None]
    if len(indexed) != 1 or len(visit.shape(indices[indexed[0]])) != 1:
        visit.illegal(f"{visit.op_name} moves dims around")  # a single 1-D index does not
    return _write(visit, cache, source, [indexed[0] - ndim])


def _write(visit: Visit, cache: Node, source: Node, mixed_dims: Sequence[int]) -> Values:
    """Cache and source must have the same sharding, on a dim along which nothing is indexed."""
    shard = visit.value(source).shard
    if visit.value(cache).shard is None and shard is not None:
        if not visit.can_shard(cache):
            visit.illegal(f"{visit.op_name} writes sharded values into memory that stays whole")
        dim = shard.dim - len(visit.shape(source))
        if dim in mixed_dims:
            visit.illegal(f"{visit.op_name} writes along the sharded dim")
        placement = Shard(len(visit.shape(cache)) + dim, shard.chunks)
        visit.demand(cache, placement)
        return Value(placement, visit.origins([source]))
    if shard is None and visit.value(cache).shard is None:
        return visit.value(source) if visit.is_whole(source) else REPLICATED
    return visit.meet([cache, source], mixed_dims)


def by_heads(visit: Visit) -> Values:
    """The placement of a call with local values."""
    kept = [value for node in visit.operands() if (value := visit.value(node)).local]
    for node in visit.operands():
        value = visit.value(node)
        if value.is_partial:
            raise NeedsReduction(node)
        if not value.local and not value.is_replicated:
            visit.illegal(f"{visit.op_name} mixes a rank's cache with divided values")
    value = max(kept, key=lambda value: bool(value.origins))
    made = visit.node.meta["val"]
    if isinstance(made, (tuple, list)):
        return (value,) * len(made)
    return value if isinstance(made, torch.Tensor) else REPLICATED


def _own_heads(visit: Visit) -> Value:
    """own_heads(x, dim, num_ranks, copies, …)"""
    x, dim, _, copies = (visit.argument(i) for i in range(4))
    value, heads = visit.value(x), Shard(dim, (int(visit.shape(x)[dim]),))
    if value.is_partial:
        raise NeedsReduction(x)
    if (value.is_replicated or value.is_whole) and copies > 1:
        rows = tuple((rank // copies,) for rank in range(visit.num_ranks))
        visit.enter(x, RowSelection(dim, rows))
    elif value.is_replicated or value.is_whole:
        visit.select(x, dim, heads)
    elif value.shard != heads:
        visit.illegal(f"{visit.op_name} keeps heads, which are sharded in another way")
    visit.rewrite((x,), aten.alias.default)
    return Value(Local(heads), value.origins)


def _all_heads(visit: Visit) -> Value:
    """all_heads(x, dim, num_ranks, copies, …)"""
    x, dim, _, copies = (visit.argument(i) for i in range(4))
    if visit.node in visit.banned:
        return REPLICATED
    heads = int(visit.shape()[dim])
    visit.rewrite((x,), aten.alias.default)
    placement = Shard(dim, (heads,)) if copies == 1 else SharedHeads(dim, heads, copies)
    return Value(placement, (Origin(visit.node, 0, heads),))


def _keep_part(visit: Visit) -> Value:
    """keep_part(x, dim, site)"""
    x, dim, site = (visit.argument(i) for i in range(3))
    value, shard = visit.value(x), visit.value(x).shard
    if value.is_partial:
        raise NeedsReduction(x)
    if shard is None:
        visit.rewrite((x,), aten.alias.default)
        return value
    if shard.dim != dim or shard.outer != 1 or shard.inner != 1:
        visit.illegal(f"{visit.op_name} keeps dim {dim}, but another dim is sharded")
    rest = int(visit.shape(x)[dim]) - shard.local_size(visit.num_ranks)
    behind = [0, 0] * (len(visit.shape(x)) - 1 - dim)
    visit.rewrite((x, [*behind, 0, rest]), aten.constant_pad_nd.default)
    visit.kept[site] = shard
    return Value(Local(shard), value.origins)


def _kept_part(visit: Visit) -> Value:
    """kept_part(x, dim, site)"""
    x, dim, site = (visit.argument(i) for i in range(3))
    value, size = visit.value(x), int(visit.shape(x)[dim])
    if value.local is not None and value.local.part is not None:
        part, origins = value.local.part, value.origins
    elif visit.node in visit.banned:
        visit.rewrite((x,), aten.alias.default)
        return REPLICATED
    else:
        part, origins = visit.cut_shard(visit.node, dim, size), (Origin(visit.node, 0, size),)
    if any(n % visit.num_ranks for i, n in enumerate(part.chunks) if i not in part.whole):
        visit.illegal(visit.describe_size(size), origins)
    visit.rewrite((x, dim, 0, part.local_size(visit.num_ranks)), aten.slice.Tensor)
    visit.kept[site] = part
    return Value(part, origins)


LOCAL_RULES: dict[Any, Callable[[Visit], Value]] = {
    own_heads: _own_heads,
    all_heads: _all_heads,
    keep_part: _keep_part,
    kept_part: _kept_part,
}


CACHE_RULES: dict[Any, Callable[[Visit], Values]] = {
    aten.index_copy_: index_copy,
    aten.index_put_: index_put,
}
