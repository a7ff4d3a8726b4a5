"""Sharding rules of ops that split or join tensors: slice, select, cat.

split(qkv, 32->16)    slice(gate_up, 0, 48->24)    chunk(qkv, 3) -> split(qkv, [16, 8, 8])
"""

import dataclasses
import itertools
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from ladderize.sharding.placement import Shard, Whole
from ladderize.sharding.rules.layouts import source, wrap
from ladderize.sharding.values import REPLICATED, Origin, Value, Values, inner_cuts, piece_of
from ladderize.sharding.views import as_expr
from ladderize.sharding.visit import Visit, packet

aten = torch.ops.aten


def select(visit: Visit) -> Values:
    node, value, shard = source(visit)
    dim = wrap(visit.argument(1, "dim"), len(visit.shape(node)))
    if dim != shard.dim:
        return value.at(shard.dim - (dim < shard.dim))
    at = wrap(visit.argument(2, "index"), shard.size)
    piece = cut(visit, node, [at, 1, shard.size - at - 1])[1]
    visit.set_argument(2, local_start(visit, shard, at))
    return piece  # a single entry is whole


def unbind(visit: Visit) -> Values:
    node, value, shard = source(visit)
    dim = wrap(visit.argument(1, "dim", 0), len(visit.shape(node)))
    if dim == shard.dim:
        return cut(visit, node, [1] * shard.size)
    return (value.at(shard.dim - (dim < shard.dim)),) * len(visit.node.meta["val"])


def slice_(visit: Visit) -> Values:
    node, value, shard = source(visit)
    dim = wrap(visit.argument(1, "dim", 0), len(visit.shape(node)))
    start, end, step = (visit.argument(i, n, d) for i, n, d in _SLICE_BOUNDS)
    if dim != shard.dim or _takes_all(visit, node, dim):
        return value  # the bound is beyond the end of a rank's part, too
    if not all(isinstance(bound, int | None) for bound in (start, end)):
        visit.illegal(f"{visit.op_name} has symbolic bounds on the sharded dim")
    first, last, _ = slice(start, end).indices(shard.size)
    if step != 1:
        return _every(visit, node, first, last, step)
    piece = cut(visit, node, [first, last - first, shard.size - last])[1]
    visit.rewrite((node, dim, local_start(visit, shard, first), local_start(visit, shard, last)))
    return piece


def narrow(visit: Visit) -> Values:
    """narrow(x, dim, start, length)"""
    node, value, shard = source(visit)
    dim, start, length = (visit.argument(i, n) for i, n in enumerate(("dim", "start", "length"), 1))
    if wrap(dim, len(visit.shape(node))) != shard.dim:
        return value
    if not isinstance(start, int) or not isinstance(length, int):
        visit.illegal(f"{visit.op_name} has symbolic bounds on the sharded dim")
    first = wrap(start, shard.size)
    piece = cut(visit, node, [first, length, shard.size - first - length])[1]
    begin = local_start(visit, shard, first)
    visit.rewrite((node, dim, begin, local_start(visit, shard, first + length) - begin), kwargs={})
    return piece


_SLICE_BOUNDS = ((2, "start", None), (3, "end", None), (4, "step", 1))


def _takes_all(visit: Visit, node: Node, dim: int) -> bool:
    """Whether a slice takes the whole dim: with a symbolic size, `x[:, None]` ends at 2**63 - 1."""
    return bool(as_expr(visit.shape()[dim]) == as_expr(visit.shape(node)[dim]))


def _every(visit: Visit, node: Node, first: int, last: int, step: int) -> Value:
    """x[..., 0::2]: the gate of an interleaved `[gate0, up0, gate1, up1, …]`."""
    value = visit.value(node)
    shard = value.shard
    assert shard is not None
    if not (first < step and last == shard.size and shard.outer == 1 and not shard.whole):
        visit.illegal(f"{visit.op_name} steps through a part of the sharded dim")
    if any(length % (step * visit.num_ranks) for length in shard.chunks):
        visit.illegal(f"{visit.op_name} steps across the bounds of the ranks' parts")
    return value.at(shard.dim, [length // step for length in shard.chunks])


def split(visit: Visit) -> Values:
    """split, split_with_sizes, chunk: the lengths of the parts are those of the fake result."""
    node, value, shard = source(visit)
    dim = wrap(visit.argument(2, "dim", 0), len(visit.shape(node)))
    parts: Sequence[Any] = visit.node.meta["val"]
    if dim != shard.dim:
        return (value,) * len(parts)
    lengths = [int(part.shape[dim]) for part in parts]
    pieces = cut(visit, node, lengths)
    ends = [0, *itertools.accumulate(lengths)]
    local = [local_start(visit, shard, end) for end in ends]
    sizes = [b - a for a, b in itertools.pairwise(local)]
    if len(set(sizes)) > 1 or isinstance(visit.argument(1), (list, tuple)):
        visit.rewrite((node, sizes, dim), aten.split_with_sizes.default)
    elif packet(visit.node) is not aten.chunk:
        visit.set_argument(1, sizes[0])
    return pieces


def pad(visit: Visit) -> Values:
    """pad(x, [left, right of the last dim, …])"""
    node, value, shard = source(visit)
    from_right = 2 * (len(visit.shape(node)) - 1 - shard.dim)
    if any(visit.argument(1, "pad")[from_right : from_right + 2]):
        visit.illegal(f"{visit.op_name} pads the sharded dim")
    return value


def glu(visit: Visit) -> Values:
    """glu(x, dim): the first half times the sigmoid of the second."""
    node, value, shard = source(visit)
    if wrap(visit.argument(1, "dim", -1), len(visit.shape(node))) != shard.dim:
        return value
    first, second = cut(visit, node, [shard.size // 2] * 2)
    if first.shard is None or first.placement != second.placement:
        visit.illegal(f"{visit.op_name} takes halves with different placements")
    return Value(first.placement, (*first.origins, *second.origins))


# ---- the parts


def local_start(visit: Visit, shard: Shard, first: int) -> int:
    """The local position of entry `first` (or of the end), which is the start of a chunk."""
    ends = [0, *itertools.accumulate(shard.chunks)]
    return shard.local_size(visit.num_ranks, ends.index(first))


def cut(visit: Visit, node: Node, lengths: Sequence[int]) -> tuple[Value, ...]:
    """Split the sharded dim into parts of `lengths`, whose bounds must be bounds of chunks."""
    value = visit.value(node)
    shard = value.shard
    assert shard is not None
    if shard.outer != 1:
        visit.illegal(f"{visit.op_name} splits a merged dim")
    bounds = [0, *itertools.accumulate(lengths)]
    cuts = frozenset(bounds) - {0, shard.size}
    if not cuts <= inner_cuts(shard.chunks):
        raise visit.needs_cuts([node], cuts | inner_cuts(shard.chunks))
    return tuple(_part(value, a, b) for a, b in itertools.pairwise(bounds))


def _part(value: Value, first: int, last: int) -> Value:
    shard = value.shard
    assert shard is not None
    ends = list(itertools.accumulate(shard.chunks))
    inside = [i for i, end in enumerate(ends) if first < end <= last]
    if not inside:
        return REPLICATED
    origins = tuple(piece_of(o, first, last - first, shard.size) for o in value.origins)
    whole = tuple(new for new, i in enumerate(inside) if i in shard.whole)
    if len(whole) == len(inside):
        return Value(Whole(), origins)
    lengths = tuple(shard.chunks[i] for i in inside)
    return Value(dataclasses.replace(shard, chunks=lengths, whole=whole), origins)


# ---- several tensors into one


def cat(visit: Visit) -> Values:
    tensors = visit.argument(0)
    dim = wrap(visit.argument(1, "dim", 0), len(visit.shape()))
    sharded = visit.sharded(tensors)
    if all(shard.dim != dim for _, shard in sharded):
        return visit.meet(tensors)
    if len(sharded) != len(tensors) or any(
        shard.dim != dim or shard.outer != 1 for _, shard in sharded
    ):
        visit.illegal(f"{visit.op_name} joins sharded and whole tensors along the sharded dim")
    chunks: list[int] = []
    whole: list[int] = []
    for _, shard in sharded:
        whole += [len(chunks) + i for i in shard.whole]
        chunks += shard.chunks
    origins = tuple(Origin(o.parameter, 0, 0) for o in visit.origins(tensors))
    return Value(Shard(dim, tuple(chunks), tuple(whole)), origins)


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


PART_RULES: dict[Any, Any] = {
    aten.select: select,
    aten.slice: slice_,
    aten.narrow: narrow,
    **dict.fromkeys((aten.split, aten.split_with_sizes, aten.chunk), split),
    aten.unbind: unbind,
    **dict.fromkeys((aten.pad, aten.constant_pad_nd), pad),
    aten.glu: glu,
    **dict.fromkeys((aten.cat, aten.concat, aten.concatenate), cat),
    aten.stack: stack,
    operator.getitem: getitem,
}
