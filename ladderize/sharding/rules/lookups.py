"""Sharding rules of ops that look up entries by position: index, gather, arange.

index(scales, [g_idx 64->32])            positions are sharded, the table is whole
index(v [64, 32->16], [None, order])     order: arange(32->16), its entries moved within words
"""

from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from ladderize.sharding.rules.layouts import source, wrap
from ladderize.sharding.rules.parts import cut, local_start
from ladderize.sharding.values import REPLICATED, Value, Values
from ladderize.sharding.visit import FORM_READERS, Visit, packet

aten = torch.ops.aten


def index(visit: Visit) -> Values:
    """x[…, [3], …]: looks up entries of whole dims, or one known entry of the sharded dim."""
    indices = list(visit.argument(1))
    indexed = [i for i, at in enumerate(indices) if at is not None]
    if visit.sharded([indices[i] for i in indexed]):
        return _look_up(visit, indices, indexed)
    node, value, shard = source(visit)
    if any(not visit.value(at).is_replicated for at in indices if at is not None):
        visit.illegal(f"{visit.op_name} looks up sharded entries")
    if shard.dim in indexed:
        return _pick(visit, node, indices)
    if indexed != list(range(indexed[0], indexed[-1] + 1)):
        visit.illegal(f"{visit.op_name} indexes dims that are not neighbors")
    ndim = max(len(visit.shape(indices[i])) for i in indexed)
    return value.at(shard.dim + (ndim - len(indexed) if shard.dim > indexed[-1] else 0))


def _look_up(visit: Visit, indices: list[Any], indexed: list[int]) -> Value:
    """Look up sharded positions along one dim, in a whole table or, within words, in a part."""
    node, (dim, *others) = visit.argument(0), indexed
    value, positions = visit.value(node), visit.value(indices[dim])
    assert positions.shard is not None
    if indices[dim].meta["val"].dtype is torch.bool:
        visit.illegal(f"{visit.op_name} selects entries by a sharded mask")
    in_own_part = moved_arange(indices[dim]) is not None
    if in_own_part and not others and value.shard == replace(positions.shard, dim=dim):
        return value
    if others or in_own_part or not value.is_replicated:
        visit.illegal(f"{visit.op_name} looks up sharded positions of sharded entries")
    visit.enter(node)
    return positions.at(dim + positions.shard.dim)


def moved_arange(positions: Any) -> Node | None:
    """The arange call that `positions` reorders only within words of a view; None if not.

    arange(32), view [4, 8], index [:, [0, 4, 1, 5, 2, 6, 3, 7]], view [32]
    """
    node = positions
    while isinstance(node, Node) and packet(node) in _MOVES:
        node = node.args[0]
    is_counted = isinstance(node, Node) and packet(node) is aten.arange and counts_in_words(node)
    return node if is_counted else None


def counts_in_words(node: Node) -> bool:
    """Whether an arange from 0 in steps of 1 is only reordered within words and used as index."""
    if _end_of(node) is None:
        return False
    while len(readers := _readers(node)) == 1 and packet(readers[0]) in _MOVES:
        if readers[0].args[0] is not node:
            break
        (node,) = readers
    return all(packet(user) is aten.index and user.args[0] is not node for user in readers)


def _readers(node: Node) -> list[Node]:
    return [user for user in node.users if packet(user) not in FORM_READERS]


_MOVES = {
    *(aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten, aten.index),
    *(aten.to, aten._to_copy, aten.contiguous, aten.clone),
}


def _end_of(node: Node) -> int | None:
    """The index of the `end` argument of an arange from 0 in steps of 1; None for others."""
    start, end, step = {1: (0, *node.args, 1), 2: (*node.args, 1)}.get(len(node.args), node.args)
    is_plain = (start, step) == (0, 1) and isinstance(end, int)
    return min(1, len(node.args) - 1) if is_plain else None


def arange(visit: Visit) -> Value:
    """Positions in a rank's part of a dim, if requested. They are the same on all ranks."""
    wanted, end = visit.made.get(visit.node), _end_of(visit.node)
    if wanted is None or wanted.shard is None or end is None:
        return REPLICATED
    visit.set_argument(end, wanted.shard.local_size(visit.num_ranks))
    return wanted


def _pick(visit: Visit, node: Node, indices: list[Any]) -> Value:
    """x[…, [-2], …] at the sharded dim, such as the single key head after the query heads."""
    value = visit.value(node)
    shard = value.shard
    assert shard is not None
    entries = known_constant(indices.pop(shard.dim))
    if any(at is not None for at in indices) or entries is None or entries.numel() != 1:
        visit.illegal(f"{visit.op_name} looks up entries of the sharded dim")
    at = wrap(entries.item(), shard.size)
    piece = cut(visit, node, [at, 1, shard.size - at - 1])[1]
    first = local_start(visit, shard, at)
    visit.rewrite((node, shard.dim, first, first + 1), aten.slice.Tensor)
    return piece


def known_constant(node: Any) -> torch.Tensor | None:
    """The value of a small constant of the traced program (`x[:, [-2]]`), if the trace kept it.

    Fake tensors store it as `constant`. Seen in torch 2.11 to 2.13.
    """
    while isinstance(node, Node) and packet(node) in (
        aten.lift_fresh_copy,
        aten.detach,
        aten.alias,
    ):
        node = node.args[0]
    fake = node.meta.get("val") if isinstance(node, Node) else None
    return getattr(fake, "constant", None)


def index_select(visit: Visit) -> Values:
    node, value, shard = source(visit)
    if wrap(visit.argument(1, "dim"), len(visit.shape(node))) == shard.dim:
        visit.illegal(f"{visit.op_name} looks up entries of the sharded dim")
    return value


def index_add(visit: Visit) -> Values:
    """index_add(x, dim, index, source): entries of `dim` mix."""
    dim = wrap(visit.argument(1, "dim"), len(visit.shape()))
    if visit.sharded([visit.argument(2, "index")]):
        visit.illegal(f"{visit.op_name} adds to sharded positions")
    both = [visit.argument(0), visit.argument(3)]
    return visit.meet(both, [dim - len(visit.shape())])


def gather(visit: Visit) -> Values:
    dim = wrap(visit.argument(1, "dim"), len(visit.shape()))
    return visit.meet(visit.operands(), [dim - len(visit.shape())])


LOOKUP_RULES: dict[Any, Any] = {
    aten.index: index,
    aten.index_select: index_select,
    aten.index_add: index_add,
    aten.gather: gather,
}
