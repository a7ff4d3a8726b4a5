"""Sharding rules of memory that a branch creates and fills: empty, zeros_like, copy_ into a view.

m = new_empty(x, [b, 8->4, s, 12]);  copy_(slice(m, 3, 0, 8), k)     k sharded on heads -> m too
copy_(select(t, 2, i), row)                                          t sharded -> row too
"""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch.fx import Node

from ladderize.sharding.placement import Shard, Whole
from ladderize.sharding.rules.layouts import local_size, wrap
from ladderize.sharding.values import REPLICATED, NeedsLocal, NeedsReduction, Value
from ladderize.sharding.views import as_expr
from ladderize.sharding.visit import Visit, packet

aten = torch.ops.aten

# op -> position of the list of sizes; None: those of the first argument
MADE: dict[Any, int | None] = {
    **dict.fromkeys((aten.zeros, aten.ones, aten.empty, aten.full), 0),
    **dict.fromkeys((aten.new_zeros, aten.new_ones, aten.new_empty, aten.new_full), 1),
    **dict.fromkeys((aten.zeros_like, aten.ones_like, aten.empty_like, aten.full_like), None),
}
WRITES = {aten.copy_, aten.fill_, aten.zero_}


def make(visit: Visit) -> Value:
    """Memory has the placement of the values written to it, or of its template."""
    like = MADE[packet(visit.node)]
    source = visit.operands()[0] if like is None else None
    wanted = visit.made.get(visit.node)
    if source is not None and visit.value(source).shard is not None:
        return visit.value(source)
    if wanted is None or wanted.shard is None:
        return wanted or REPLICATED
    shard = wanted.shard
    if source is not None:
        visit.align(source, shard.dim - len(visit.shape()), shard)
    else:
        assert like is not None
        sizes = list(visit.argument(like))
        sizes[shard.dim] = local_size(visit, sizes[shard.dim], shard)
        visit.set_argument(like, sizes)
    return wanted


def write(visit: Visit) -> Value:
    """copy_(memory, value): the same placement; memory made in the branch adapts to the value."""
    memory, values = visit.node.args[0], [visit.value(node) for node in visit.operands()]
    assert isinstance(memory, Node)
    if all(value.is_replicated for value in values):
        return REPLICATED
    if partials := [node for node in visit.operands() if visit.value(node).is_partial]:
        raise NeedsReduction(partials[0])
    if any(value.own for value in values):
        visit.illegal(f"{visit.op_name} writes in place")
    target = visit.value(memory)
    sharded = visit.sharded(visit.operands())
    if target.shard is not None:
        _refuse_reshaped(visit, memory)
        return visit.meet(visit.operands())
    if not sharded and target.is_whole:
        for node in visit.operands():
            if visit.value(node).is_replicated:
                visit.enter(node)
        return target
    return _make_fit(visit, memory, sharded)


def _refuse_reshaped(visit: Visit, memory: Any) -> None:
    """Refuse writes through a reshape, which may copy a local part where the whole is a view."""
    while packet(memory) in _ALIASES and isinstance(memory.args[0], Node):
        if packet(memory) in _RESHAPES:
            visit.illegal(f"{visit.op_name} writes into a reshaped view of a sharded value")
        memory = memory.args[0]


def _make_fit(visit: Visit, memory: Node, sharded: list[tuple[Node, Shard]]) -> NoReturn:
    """Request that the memory of a view gets the placement of the written value."""
    origins = visit.origins(visit.operands())
    if not sharded:
        made = _maker(memory, -1)
        placement: Shard | Whole = Whole()
    else:
        shard = visit.common_shard(sharded)
        dim = len(visit.shape(memory)) + shard.dim - len(visit.shape(sharded[0][0]))
        made = _maker(memory, dim)
        placement = Shard(made[1] if made else 0, shard.chunks, shard.whole)
        if shard.outer != 1 or shard.inner != 1:
            made = None
    if made is None or made[0] in visit.made:
        visit.illegal(f"{visit.op_name} writes divided values into memory that stays whole")
    raise NeedsLocal(made[0], Value(placement, origins))


def _maker(view: Any, dim: int) -> tuple[Node, int] | None:
    """The op that creates the memory of `view`, and its dim for `dim`, which the view has whole."""
    while packet(view) not in MADE:
        step = _VIEWS.get(packet(view))
        if step is None or not isinstance(source := view.args[0], Node):
            return None
        behind = step(view, source, dim)
        if behind is None:
            return None
        view, dim = source, behind
    return view, dim


def _sliced(view: Node, source: Node, dim: int) -> int | None:
    """slice(x, dim, start, end)"""
    sizes = (
        [as_expr(node.meta["val"].shape[dim]) for node in (view, source)] if dim >= 0 else [0, 0]
    )
    return dim if sizes[0] == sizes[1] else None


def _selected(view: Node, source: Node, dim: int) -> int:
    """select(x, dim, index)"""
    at: Any = view.args[1]
    return dim + (0 <= wrap(at, source.meta["val"].dim()) <= dim)


_RESHAPES = {aten.view, aten.reshape, aten.flatten, aten.unflatten, aten.view_as, aten.reshape_as}
_ALIASES = {
    *_RESHAPES,
    *(aten.slice, aten.select, aten.alias, aten.detach, aten.transpose, aten.permute),
    *(aten.unsqueeze, aten.squeeze, aten.expand),
}
_VIEWS: dict[Any, Callable[[Node, Node, int], int | None]] = {
    aten.slice: _sliced,
    aten.select: _selected,
    **dict.fromkeys((aten.alias, aten.detach), lambda _, __, dim: dim),
}
