"""Sharding rules of key heads that several ranks share: fewer heads than ranks, read from a cache.

4 query heads, 2 key heads, 4 ranks; each rank holds 1 of each

attention(q [b, 4->1, s, d], k [b, 2->1, t, d])     4->1 heads, with enable_gqa
expand(k [b, 2->1, 1, t, d])                        [b, 2->1, 2->1, t, d]: repeats=2
view([b, 2->1, 2->1, t, d])                         [b, 4->1, t, d]: sharded on its heads
repeat_interleave(k, 2, 1)                          [b, 4->1, t, d]: sharded on its heads

Other ops on such values are refused, so that `all_heads` gathers them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from ladderize.graph.writes import written_operands
from ladderize.sharding.lookahead import MOVES
from ladderize.sharding.placement import Replicate, Shard, SharedHeads
from ladderize.sharding.values import REPLICATED, Value
from ladderize.sharding.visit import Visit, packet

aten = torch.ops.aten


def by_shared_heads(visit: Visit, is_pointwise: bool) -> Value:
    """The placement of a call that reads shared heads."""
    held = [node for node in visit.operands() if visit.value(node).shared]
    rule = _pointwise if is_pointwise else _RULES.get(packet(visit.node))
    found = None if rule is None or written_operands(visit.node) else rule(visit, held)
    if found is None:
        return visit.illegal(f"{visit.op_name} reads heads that ranks share", visit.origins(held))
    divided = [node for node in visit.operands() if not visit.value(node).is_replicated]
    return REPLICATED if isinstance(found, Replicate) else Value(found, visit.origins(divided))


def _heads(visit: Visit, node: Node) -> SharedHeads:
    found = visit.value(node).shared
    assert found is not None
    return found


Found = Shard | SharedHeads | Replicate | None


def _pointwise(visit: Visit, held: list[Node]) -> Found:
    """The other operands must have a single entry where the heads are."""
    placements = {_heads(visit, node) for node in held}
    others = [node for node in visit.operands() if node not in held]
    shared, ndim = _heads(visit, held[0]), len(visit.shape())
    is_alike = len(placements) == 1 and all(len(visit.shape(node)) == ndim for node in held)
    if not is_alike or not all(_is_broadcast(visit, node, shared) for node in others):
        return None
    for node in others:
        visit.enter(node)
    return shared


def _is_broadcast(visit: Visit, node: Node, shared: SharedHeads) -> bool:
    shape = visit.shape(node)
    at = shared.dim + len(shape) - len(visit.shape())
    sizes = [shape[i] for i in (at, at + 1)[: 1 if shared.repeats == 1 else 2] if i >= 0]
    return visit.value(node).is_replicated and all(size == 1 for size in sizes)


def _moved(visit: Visit, held: list[Node]) -> Found:
    """transpose, permute, unsqueeze, contiguous: the heads move to another dim."""
    shared, ndim = _heads(visit, held[0]), len(visit.shape(held[0]))
    dim, behind = (
        MOVES[packet(visit.node)](visit.node, at, ndim)
        for at in (shared.dim, min(shared.dim + 1, ndim - 1))
    )
    if shared.repeats > 1 and behind != dim + 1:
        return None
    return dataclasses.replace(shared, dim=dim)


def _slice(visit: Visit, held: list[Node]) -> Found:
    """slice(x, dim, start, end, step): the heads must be whole."""
    shared, before = _heads(visit, held[0]), visit.shape(held[0])
    dim = visit.argument(1, "dim", 0) % len(before)
    is_cut = dim == shared.dim or (shared.repeats > 1 and dim == shared.dim + 1)
    return None if is_cut and visit.shape()[dim] != before[dim] else shared


def _size(visit: Visit, held: list[Node]) -> Found:
    """sym_size(x, dim): not of the heads."""
    shared, ndim = _heads(visit, held[0]), len(visit.shape(held[0]))
    dims = [shared.dim] if shared.repeats == 1 else [shared.dim, shared.dim + 1]
    return None if visit.argument(1) % ndim in dims else Replicate()


def _expand(visit: Visit, held: list[Node]) -> Found:
    """expand(k [b, heads, 1, t, d], sizes): once for each query head."""
    (node,), sizes = held, list(visit.argument(1, "size"))
    shared, before, after = _heads(visit, node), visit.shape(node), visit.shape()
    behind = shared.dim + 1
    if len(before) != len(after) or shared.repeats > 1 or behind == len(after):
        return None
    repeats = after[behind]
    if before[behind] != 1 or not isinstance(repeats, int) or repeats % shared.copies:
        return None
    sizes[shared.dim], sizes[behind] = 1, repeats // shared.copies
    visit.set_argument(1, sizes)
    return dataclasses.replace(shared, repeats=repeats)


def _merge(visit: Visit, held: list[Node]) -> Found:
    """view([b, heads, repeats, t, d]): heads and repetitions become one dim."""
    shared, before, after = _heads(visit, held[0]), visit.shape(held[0]), visit.shape()
    dim, count = shared.dim, shared.heads * shared.repeats
    if shared.repeats == 1 or list(after) != [*before[:dim], count, *before[dim + 2 :]]:
        return None
    if packet(visit.node) is not aten.flatten:
        sizes = list(visit.argument(1, "size"))
        sizes[dim] = sizes[dim] if sizes[dim] == -1 else count // visit.num_ranks
        target = aten.reshape.default if packet(visit.node) is aten.view else None
        visit.rewrite((held[0], sizes), target, kwargs={})
    return Shard(dim, (count,))


def _repeat_interleave(visit: Visit, held: list[Node]) -> Found:
    shared, ndim = _heads(visit, held[0]), len(visit.shape(held[0]))
    repeats, dim = visit.argument(1, "repeats"), visit.argument(2, "dim")
    is_of_heads = dim is not None and dim % ndim == shared.dim and shared.repeats == 1
    if not is_of_heads or not isinstance(repeats, int) or repeats % shared.copies:
        return None
    visit.rewrite((held[0], repeats // shared.copies, dim), kwargs={})
    return Shard(shared.dim, (shared.heads * repeats,))


def _attention(visit: Visit, held: list[Node]) -> Found:
    """scaled_dot_product_attention(q, k, v, …, enable_gqa=True): each rank has one key head."""
    query, key, value = (visit.argument(i, n) for i, n in enumerate(("query", "key", "value")))
    heads, dim = visit.shape(query)[-3], len(visit.shape(query)) - 3
    is_shared = set(held) == {key, value} and visit.argument(7, "enable_gqa", False)
    placements = {_heads(visit, node) for node in held}
    fits = {p.dim - len(visit.shape(key)) for p in placements} == {-3} and len(placements) == 1
    if not is_shared or not fits or visit.value(query).shard != Shard(dim, (heads,)):
        return None
    met = visit.meet([node for node in visit.operands() if node not in held], (-1, -2))
    return met.shard


_RULES: dict[Any, Callable[[Visit, list[Node]], Found]] = {
    **dict.fromkeys(MOVES.keys() - {aten.squeeze}, _moved),  # it may drop a rank's single head
    aten.sym_size: _size,
    aten.slice: _slice,
    **dict.fromkeys((aten.expand, aten.broadcast_to), _expand),
    **dict.fromkeys((aten.view, aten.reshape, aten._unsafe_view, aten.flatten), _merge),
    aten.repeat_interleave: _repeat_interleave,
    aten.scaled_dot_product_attention: _attention,
}
