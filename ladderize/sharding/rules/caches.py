"""Sharding rules of writes into memory that the module owns: KV caches.

index_copy_(cache, 2, position, k)    k sharded on its heads -> the cache is, on every rank
index_put_(cache, [None, None, position], k)

Who reads the cache itself aligns it as any other parameter; all must want it alike.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Node

from ladderize.sharding.placement import Shard
from ladderize.sharding.values import REPLICATED, Value, Values
from ladderize.sharding.visit import Visit

aten = torch.ops.aten


def index_copy(visit: Visit) -> Values:
    """index_copy_(cache, dim, index, source)"""
    cache, source = visit.argument(0), visit.argument(3)
    ndim = len(visit.shape(cache))
    dim = visit.argument(1)
    return _write(visit, cache, source, [dim if dim < 0 else dim - ndim])


def index_put(visit: Visit) -> Values:
    """index_put_(cache, indices, values): of the leading dims, None are taken whole."""
    cache, indices, source = (visit.argument(i) for i in range(3))
    ndim = len(visit.shape(cache))
    indexed = [i for i, index in enumerate(indices) if index is not None]
    if len(indexed) != 1 or len(visit.shape(indices[indexed[0]])) != 1:
        visit.illegal(f"{visit.op_name} moves dims around")  # one list of positions does not
    return _write(visit, cache, source, [indexed[0] - ndim])


def _write(visit: Visit, cache: Node, source: Node, mixed_dims: Sequence[int]) -> Values:
    """Both sharded alike on a dim that is written in place."""
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


CACHE_RULES: dict[Any, Callable[[Visit], Values]] = {
    aten.index_copy_: index_copy,
    aten.index_put_: index_put,
}
