"""Sharding rules of ops that move values without computing: view, transpose, slice, split, cat.

view([2, s1, 96->48])    split(32->16)    expand([s0, 2->1, 2, s1, 8])
"""

import itertools
from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch.fx import Node

from ladderize.placement import Shard
from ladderize.views import DimGroup, dim_groups, product
from ladderize.visit import REPLICATED, Origin, Value, Values, Visit, inner_cuts, packet

aten = torch.ops.aten


def source(visit: Visit) -> tuple[Node, Value, Shard]:
    """The tensor that a layout op moves; rules are only called when it is sharded."""
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
    """The sharded dim must lead its group; of the sizes only the one at that dim changes."""
    node, value, shard = source(visit)
    old, new = visit.shape(node), visit.shape()
    group = next(g for g in dim_groups(old, new) if shard.dim in g.old)
    dim, scale = _led_dim(visit, shard, group, old, new)
    segments = [length * scale for length in shard.segments]
    if any(not s.is_Integer or s % visit.num_ranks for s in segments):
        unit = f"heads of size {1 / scale}" if (1 / scale).is_Integer and scale != 1 else "entries"
        visit.illegal(visit.describe_size(new[dim], unit))
    _rewrite_size(visit, dim)
    return value.at(dim, [int(s) for s in segments])


def _led_dim(
    visit: Visit, shard: Shard, group: DimGroup, old: Sequence[Any], new: Sequence[Any]
) -> tuple[int, sympy.Expr]:
    """The new dim that the sharded one leads to, and new entries per old entry."""
    if any(old[dim] != 1 for dim in group.old if dim < shard.dim):
        visit.illegal(f"{visit.op_name} merges the sharded dim into one that another dim leads")
    dim = group.new[0]
    if old[shard.dim] != 1 and len(group.old) > 1:
        dim = next((d for d in group.new if new[d] != 1), dim)
    inner_old = product(old, [d for d in group.old if d > shard.dim])
    inner_new = product(new, [d for d in group.new if d > dim])
    scale = sympy.cancel(inner_old / inner_new)
    if not scale.is_Rational:
        visit.illegal(f"{visit.op_name} merges the sharded dim with a symbolic one")
    return dim, scale


def _rewrite_size(visit: Visit, dim: int) -> None:
    """Divide the explicit integer size at `dim` of the result, wherever the call spells it."""
    op = packet(visit.node)
    if op not in _SIZE_ARGUMENT:  # flatten spells none
        return
    index = _SIZE_ARGUMENT[op]
    sizes = visit.argument(index)
    if not isinstance(sizes, (list, tuple)):
        visit.illegal(f"{visit.op_name} does not spell its sizes as a list")
    at = dim
    if op is aten.unflatten:  # unflatten(x, dim, sizes) spells only the new dims
        at -= wrap(visit.argument(1), len(visit.shape()) - len(sizes) + 1)
    if not 0 <= at < len(sizes) or sizes[at] == -1:
        return
    if not isinstance(sizes[at], int):
        visit.illegal(f"{visit.op_name} has a symbolic size at the sharded dim")
    visit.set_argument(index, [s // visit.num_ranks if i == at else s for i, s in enumerate(sizes)])


# op -> position of its list of sizes
_SIZE_ARGUMENT = {
    **dict.fromkeys((aten.view, aten.reshape, aten._unsafe_view, aten.expand), 1),
    aten.unflatten: 2,
}


def expand(visit: Visit) -> Values:
    node, value, shard = source(visit)
    dim = shard.dim + len(visit.shape()) - len(visit.shape(node))
    _rewrite_size(visit, dim)
    return value.at(dim)


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


def transpose_matrix(visit: Visit) -> Values:
    node, value, shard = source(visit)
    return value.at(
        2 * len(visit.shape(node)) - 3 - shard.dim
        if shard.dim >= len(visit.shape(node)) - 2
        else shard.dim
    )


def unsqueeze(visit: Visit) -> Values:
    _, value, shard = source(visit)
    return value.at(shard.dim + (wrap(visit.argument(1, "dim"), len(visit.shape())) <= shard.dim))


def squeeze(visit: Visit) -> Values:
    node, value, shard = source(visit)
    shape = visit.shape(node)
    dims = visit.argument(1, "dim", list(range(len(shape))))
    wrapped = [wrap(d, len(shape)) for d in (dims if isinstance(dims, (list, tuple)) else [dims])]
    return value.at(shard.dim - sum(shape[d] == 1 and d < shard.dim for d in wrapped))


# ---- a part, or several parts


def select(visit: Visit) -> Values:
    node, value, shard = source(visit)
    dim = wrap(visit.argument(1, "dim"), len(visit.shape(node)))
    if dim == shard.dim:
        visit.illegal(f"{visit.op_name} picks one entry of the sharded dim")
    return value.at(shard.dim - (dim < shard.dim))


def slice_(visit: Visit) -> Values:
    node, value, shard = source(visit)
    dim = wrap(visit.argument(1, "dim", 0), len(visit.shape(node)))
    start, end, step = (visit.argument(i, n, d) for i, n, d in _SLICE_BOUNDS)
    if dim != shard.dim or (start in (None, 0) and end is None and step == 1):
        return value
    if step != 1 or not all(isinstance(bound, int | None) for bound in (start, end)):
        visit.illegal(f"{visit.op_name} steps through the sharded dim")
    first, last, _ = slice(start, end).indices(shard.size)
    if (first, last) == (0, shard.size):
        return value
    piece = _cut(visit, node, [first, last - first, shard.size - last])[1]
    local = first // visit.num_ranks
    visit.rewrite((node, dim, local, local + (last - first) // visit.num_ranks))
    return piece


_SLICE_BOUNDS = ((2, "start", None), (3, "end", None), (4, "step", 1))


def split(visit: Visit) -> Values:
    """split, split_with_sizes, chunk: the lengths of the parts are read off the fake result."""
    node, value, shard = source(visit)
    name = "dim"
    dim = wrap(visit.argument(2, name, 0), len(visit.shape(node)))
    parts: Sequence[Any] = visit.node.meta["val"]
    if dim != shard.dim:
        return (value,) * len(parts)
    lengths = [int(part.shape[dim]) for part in parts]
    pieces = _cut(visit, node, lengths)
    asked = visit.argument(1)
    if packet(visit.node) is aten.chunk:
        if len(set(lengths)) > 1:
            visit.illegal(f"{visit.op_name} makes unequal chunks of the sharded dim")
    elif isinstance(asked, int):
        visit.set_argument(1, asked // visit.num_ranks)
    else:
        visit.set_argument(1, [length // visit.num_ranks for length in lengths])
    return pieces


def unbind(visit: Visit) -> Values:
    node, value, shard = source(visit)
    dim = wrap(visit.argument(1, "dim", 0), len(visit.shape(node)))
    if dim == shard.dim:
        visit.illegal(f"{visit.op_name} takes the sharded dim apart")
    return (value.at(shard.dim - (dim < shard.dim)),) * len(visit.node.meta["val"])


def _cut(visit: Visit, node: Node, lengths: Sequence[int]) -> tuple[Value, ...]:
    """The parts of `lengths` along the sharded dim; its segments must meet where the parts do."""
    value = visit.value(node)
    assert value.shard is not None
    bounds = [0, *itertools.accumulate(lengths)]
    cuts = frozenset(bounds) - {0, value.shard.size}
    if not cuts <= inner_cuts(value.shard.segments):
        raise visit.needs_cuts([node], cuts | inner_cuts(value.shard.segments))
    return tuple(_part(value, a, b) for a, b in itertools.pairwise(bounds))


def _part(value: Value, first: int, last: int) -> Value:
    shard = value.shard
    assert shard is not None
    ends = list(itertools.accumulate(shard.segments))
    inside = tuple(
        length for length, end in zip(shard.segments, ends, strict=True) if first < end <= last
    )
    origins = tuple(
        Origin(
            o.parameter,
            o.start + first * o.length // shard.size,
            (last - first) * o.length // shard.size,
        )
        for o in value.origins
    )
    return Value(Shard(shard.dim, inside), origins) if inside else REPLICATED


# ---- several tensors into one


def cat(visit: Visit) -> Values:
    tensors = visit.argument(0)
    dim = wrap(visit.argument(1, "dim", 0), len(visit.shape()))
    sharded = visit.sharded(tensors)
    if all(shard.dim != dim for _, shard in sharded):
        return visit.meet(tensors)
    if len(sharded) != len(tensors) or any(shard.dim != dim for _, shard in sharded):
        visit.illegal(f"{visit.op_name} joins sharded and whole tensors along the sharded dim")
    segments = tuple(length for _, shard in sharded for length in shard.segments)
    origins = tuple(Origin(o.parameter, 0, 0) for o in visit.origins(tensors))
    return Value(Shard(dim, segments), origins)


def stack(visit: Visit) -> Values:
    value = visit.meet(visit.argument(0))
    assert value.shard is not None
    return value.at(
        value.shard.dim + (wrap(visit.argument(1, "dim", 0), len(visit.shape())) <= value.shard.dim)
    )


def getitem(visit: Visit) -> Values:
    values = visit.values[visit.node.args[0]]  # type: ignore[index]
    assert isinstance(values, tuple)
    return values[visit.node.args[1]]  # type: ignore[index]
