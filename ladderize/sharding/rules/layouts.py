"""Sharding rules of ops that change the shape or order of values: view, expand, permute.

view([2, s1, 96->48])    expand([s0, 2->1, 2, s1, 8])    view([s0, 4->2, 8] -> [s0*4->s0*2, 8])
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import sympy
import torch
from torch.fx import Node

from ladderize.sharding.lookahead import cuts_by_readers
from ladderize.sharding.placement import Shard
from ladderize.sharding.statics import ORDERS
from ladderize.sharding.values import LocalSize, Value, Values, inner_cuts, parts_of
from ladderize.sharding.views import DimGroup, dim_groups, product
from ladderize.sharding.visit import Visit, packet

aten = torch.ops.aten


def source(visit: Visit) -> tuple[Node, Value, Shard]:
    """The tensor that a layout op rearranges. Rules are only called if it is sharded."""
    node = visit.node.args[0]
    assert isinstance(node, Node)
    value = visit.value(node)
    if value.shard is None:
        visit.illegal(f"{visit.op_name} takes a sharded operand in an unexpected place")
    return node, value, value.shard


def wrap(dim: Any, ndim: int) -> int:
    return int(dim) + ndim if dim < 0 else int(dim)


# ---- another shape


def view(visit: Visit) -> Values:
    """Move the sharded dim to a dim of its new group that the ranks divide; only its size changes.

    The chunks, or repetitions of them, may be at any new dim of the group at which they are whole
    numbers of entries and the ranks divide them.
    """
    node, value, shard = source(visit)
    old, new = visit.shape(node), visit.shape()
    group = next(g for g in dim_groups(old, new) if shard.dim in g.old)
    places = list(_places(value, group, old, new))
    for place in places:
        if not place.shard.undivided(visit.num_ranks):
            _rewrite_size(visit, place.shard)
            return place.value
    return _refuse_view(visit, places)


def view_as(visit: Visit) -> Values:
    """reshape_as(x, y): y must have the placement of the result."""
    found = view(visit)
    other = visit.node.args[1]
    assert isinstance(found, Value)
    assert isinstance(other, Node)
    if visit.value(other).placement != found.placement:
        visit.illegal(f"{visit.op_name} takes the shape of a value with another placement")
    return found


def moved(shard: Shard, old: Sequence[Any], new: Sequence[Any], num_ranks: int) -> Shard | None:
    """The sharding of shape `new` that corresponds to `shard` of shape `old`; None if none."""
    group = next(g for g in dim_groups(old, new) if shard.dim in g.old)
    found = [place.shard for place in _places(Value(shard), group, old, new)]
    count = len(shard.chunks)  # fewer chunks would split words
    whole = [at for at in found if at.outer == at.inner == 1 and len(at.chunks) == count]
    return next((at for at in whole if not at.undivided(num_ranks)), whole[0] if whole else None)


@dataclass(frozen=True)
class _Place:
    """A possible placement after a view: `value`, with `unit` old entries for each new entry."""

    value: Value
    unit: Any

    @property
    def shard(self) -> Shard:
        assert self.value.shard is not None
        return self.value.shard

    @property
    def dim(self) -> int:
        return self.shard.dim


def _places(
    value: Value, group: DimGroup, old: Sequence[Any], new: Sequence[Any]
) -> Iterator[_Place]:
    """All dims at which the chunks, or repetitions of one chunk, are whole numbers of entries."""
    for read in (value, _as_repeats(value)):
        shard = read.shard if read is not None else None
        if read is None or shard is None:
            continue
        front = product(old, [d for d in group.old if d < shard.dim]) * shard.outer
        behind = product(old, [d for d in group.old if d > shard.dim]) * shard.inner
        for dim in group.new:
            outer = sympy.cancel(front / product(new, [d for d in group.new if d < dim]))
            unit = sympy.cancel(product(new, [d for d in group.new if d > dim]) / behind)
            chunks = [sympy.cancel(length / unit) for length in shard.chunks]
            if sympy.denom(outer) == 1 and all(s.is_Integer for s in chunks):
                at = read.at(dim, [int(s) for s in chunks], 1 if outer == 1 else outer, 1)
                yield _Place(at, unit)
            elif outer == 1 and sympy.denom(1 / unit) == 1:  # [experts, tokens] merged
                yield _Place(read.at(dim, inner=1 / unit), 1)


def _as_repeats(value: Value) -> Value | None:
    """(4, 4, 4) as three times (4)."""
    shard = value.shard
    assert shard is not None
    count = len(shard.chunks)
    if count == 1 or shard.whole or shard.inner != 1 or len(set(shard.chunks)) > 1:
        return None
    origins = [
        replace(o, length=o.length // count, repeats=o.repeats * count) for o in value.origins
    ]
    return Value(replace(shard, chunks=shard.chunks[:1], outer=shard.outer * count), tuple(origins))


def _refuse_view(visit: Visit, places: Sequence[_Place]) -> NoReturn:
    """Request cuts that may help, or else refuse the chunks that the ranks do not divide."""
    if not places:
        visit.illegal(f"{visit.op_name} splits the sharded dim")
    node, _, shard = source(visit)
    for place in places:
        cuts = frozenset(int(cut * place.unit) for cut in _cuts_for(visit, place.dim))
        if cuts and not cuts <= inner_cuts(shard.chunks) and shard.outer == 1:
            raise visit.needs_cuts([node], cuts | inner_cuts(shard.chunks))
    place = places[0]
    bad = place.shard.undivided(visit.num_ranks)
    parts = [part for i in bad for part in parts_of(place.value, i)]
    kind = "groups" if visit.unpacks else "heads"
    unit = "entries" if place.unit == 1 else f"{kind} of size {place.unit}"
    visit.illegal(visit.describe_size(sum(place.shard.chunks[i] for i in bad), unit), parts)


def _cuts_for(visit: Visit, dim: int) -> set[int]:
    """The positions at which the next dims, or the readers, split dim `dim`."""
    size, inner = visit.shape()[dim], visit.shape()[dim + 1 : dim + 3]
    is_stack = len(inner) == 2 and all(isinstance(n, int) and n > 1 for n in inner)
    if isinstance(size, int) and is_stack and inner[0] % visit.num_ranks == 0:
        return set(range(1, size))  # [3, heads, head_dim]
    return cuts_by_readers(visit.node, dim)


def _rewrite_size(visit: Visit, shard: Shard) -> None:
    """Divide the size of the sharded dim in the arguments of the call, if it is given there."""
    op, dim = packet(visit.node), shard.dim
    if op not in _SIZE_ARGUMENT:  # flatten has no sizes
        return
    index = _SIZE_ARGUMENT[op]
    sizes = visit.argument(index)
    if not isinstance(sizes, (list, tuple)):
        visit.illegal(f"{visit.op_name} does not give its sizes as a list")
    at = dim
    if op is aten.unflatten:  # unflatten(x, dim, sizes) only gives the new dims
        at -= wrap(visit.argument(1), len(visit.shape()) - len(sizes) + 1)
    if 0 <= at < len(sizes) and sizes[at] != -1:
        local = [local_size(visit, s, shard) if i == at else s for i, s in enumerate(sizes)]
        visit.set_argument(index, local)
    if op is aten.view:  # a kernel may return a local part with other strides
        visit.rewrite(visit.args or visit.node.args, aten.reshape.default)


def local_size(visit: Visit, size: Any, shard: Shard) -> Any:
    """The local form of `size`, an argument for the size of the sharded dim."""
    if isinstance(size, int):
        return size * shard.local_size(visit.num_ranks) // shard.size
    if shard.whole:
        visit.illegal(f"{visit.op_name} has a symbolic size at a dim with whole parts")
    return LocalSize(size)


# op -> position of its list of sizes
_SIZE_ARGUMENT = {
    **dict.fromkeys((aten.view, aten.reshape, aten._unsafe_view, aten.expand), 1),
    aten.broadcast_to: 1,
    aten.unflatten: 2,
}


def expand(visit: Visit) -> Values:
    node, value, shard = source(visit)
    found = value.at(shard.dim + len(visit.shape()) - len(visit.shape(node)))
    assert found.shard is not None
    _rewrite_size(visit, found.shard)
    return found


# ---- another order of dims


def permute(visit: Visit) -> Values:
    node, value, shard = source(visit)
    ndim = len(visit.shape(node))
    return value.at([wrap(d, ndim) for d in visit.argument(1, "dims")].index(shard.dim))


def transpose(visit: Visit) -> Values:
    node, value, shard = source(visit)
    ndim = len(visit.shape(node))
    a, b = (wrap(visit.argument(i, f"dim{i - 1}"), ndim) for i in (1, 2))
    return value.at({a: b, b: a}.get(shard.dim, shard.dim))


def movedim(visit: Visit) -> Values:
    """movedim(x, source, destination): the other dims keep their order."""
    node, value, shard = source(visit)
    ndim = len(visit.shape(node))
    named = (visit.argument(i, name) for i, name in ((1, "source"), (2, "destination")))
    old, new = ([wrap(d, ndim) for d in _listed(dims)] for dims in named)
    places = dict(zip(new, old, strict=True))
    rest = iter(d for d in range(ndim) if d not in old)
    return value.at(
        [places[d] if d in places else next(rest) for d in range(ndim)].index(shard.dim)
    )


def _listed(dims: Any) -> list[Any]:
    return list(dims) if isinstance(dims, (list, tuple)) else [dims]


def reorder(visit: Visit) -> Values:
    """t, mT, numpy_T: the op itself gives the order of the dims."""
    node, value, shard = source(visit)
    order = ORDERS[packet(visit.node)](visit.node, len(visit.shape(node)))
    return value.at(order.index(shard.dim))


def unsqueeze(visit: Visit) -> Values:
    _, value, shard = source(visit)
    return value.at(shard.dim + (wrap(visit.argument(1, "dim"), len(visit.shape())) <= shard.dim))


def squeeze(visit: Visit) -> Values:
    node, value, shard = source(visit)
    shape = visit.shape(node)
    dims = visit.argument(1, "dim", list(range(len(shape))))
    wrapped = [wrap(d, len(shape)) for d in (dims if isinstance(dims, (list, tuple)) else [dims])]
    if shard.dim in wrapped and shard.local_size(visit.num_ranks) == 1:
        visit.illegal(f"{visit.op_name} would drop the sharded dim")
    return value.at(shard.dim - sum(shape[d] == 1 and d < shard.dim for d in wrapped))


# ---- complex numbers as pairs


def pairs(visit: Visit) -> Values:
    """view_as_complex, view_as_real: the last dim, of pairs, is removed or added."""
    node, value, shard = source(visit)
    if shard.dim == min(len(visit.shape(node)), len(visit.shape())):
        visit.illegal(f"{visit.op_name} uses the sharded dim as pairs")
    return value
