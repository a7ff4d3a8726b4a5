"""Find the placements of packed parameters from the wanted placement of an unpacked weight.

    w [64, 32->16]  =  mul(and(reshape(shift(q))), index(scales, g))     column-parallel
    q [8, 32->16]      scales [4, 32->16]      g [64] whole

    w [64->32, 32]     q [8->4, 32]      scales whole      g [64->32]    row-parallel

The rules of the table then shard the ops in between. Sources that cannot be sharded, such as the
scales of a group that two ranks share, stay whole and are cut where they meet sharded values.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.fx import Node

from ladderize.sharding.placement import Shard
from ladderize.sharding.rules.filled import MADE
from ladderize.sharding.rules.layouts import moved, wrap
from ladderize.sharding.rules.lookups import counts_in_words, moved_arange
from ladderize.sharding.rules.table import is_pointwise
from ladderize.sharding.statics import ORDERS, Unpacked
from ladderize.sharding.visit import op_name, packet

aten = torch.ops.aten


@dataclass
class PartsBehind:
    """The placements of a weight's sources.

    Attributes:
        unpacked: the weight.
        num_ranks: number of ranks.
        placed: result: placements of parameters, and of arange calls that count the entries of a
            part.
        in_the_way: result: reasons why other sources stay whole, from the weight backwards.
        positions: result: values that are used as indices.
    """

    unpacked: Unpacked
    num_ranks: int
    placed: dict[Node, Shard] = field(default_factory=dict)
    in_the_way: list[str] = field(default_factory=list)
    positions: set[Node] = field(default_factory=set)

    @classmethod
    def of(cls, unpacked: Unpacked, shard: Shard, num_ranks: int) -> "PartsBehind":
        found = cls(unpacked, num_ranks)
        found._divide(unpacked.weight, shard)
        return found

    @property
    def refusal(self) -> str | None:
        """The reason why the weight cannot be sharded; None if its words can."""
        if self.unpacked.main in self.placed:
            return None
        return self.in_the_way[0] if self.in_the_way else "its words are not sharded with it"

    def _divide(self, node: Node, shard: Shard) -> None:
        if node in self.unpacked.parameters:
            self._place(node, shard)
        elif packet(node) is aten.arange:
            if counts_in_words(node):
                self._place(node, shard)
        elif node in self.unpacked.nodes:  # constants are cut where they meet sharded values
            self._go_back(node, shard)

    def _go_back(self, node: Node, shard: Shard) -> None:
        step = _STEPS.get(packet(node), _broadcast if is_pointwise(node) else None)
        if step is None:
            self.in_the_way.append(f"no sharding rule for {op_name(node)}")
            return
        for source, wanted in step(self, node, shard):
            if node in self.positions:
                self.positions.add(source)
            if wanted is not None:
                self._divide(source, wanted)
            else:
                entries = f"{shard.size} entries over {self.num_ranks} ranks"
                self.in_the_way.append(f"{op_name(node)} splits words or groups: {entries}")

    def _place(self, node: Node, shard: Shard) -> None:
        if len(_shape(node)) == 1 and node not in self.positions:
            return  # shifts of words, or scales, which are cut where they meet sharded values
        if uneven := shard.undivided(self.num_ranks):
            words = "+".join(str(shard.chunks[i]) for i in uneven)
            self.in_the_way.append(f"{words} words cannot be divided over {self.num_ranks} ranks")
        elif self.placed.setdefault(node, shard) != shard:
            self.in_the_way.append(f"{node} is used in two ways")

    def holds_words(self, node: Node) -> bool:
        """Whether `node` is computed from the packed words of the weight."""
        if node not in self.unpacked.nodes:
            return node is self.unpacked.main
        return any(map(self.holds_words, node.all_input_nodes))


# ---- one step back


Sources = Iterator[tuple[Node, Shard | None]]
"""The sources of a value, with their placements for the wanted placement of the value."""
Step = Callable[[PartsBehind, Node, Shard], Sources]


def _shape(node: Node) -> Sequence[Any]:
    shape: Sequence[Any] = node.meta["val"].shape
    return shape


def _first(node: Node) -> Node:
    first = node.args[0]
    assert isinstance(first, Node)
    return first


def _broadcast(_: PartsBehind, node: Node, shard: Shard) -> Sources:
    """Operands without the dim, or with size 1 there, are whole."""
    for source in node.all_input_nodes:
        if isinstance(source.meta["val"], torch.Tensor):
            dim = shard.dim - len(_shape(node)) + len(_shape(source))
            if dim >= 0 and _shape(source)[dim] != 1:
                yield source, replace(shard, dim=dim)


def _view(behind: PartsBehind, node: Node, shard: Shard) -> Sources:
    source = _first(node)
    yield source, moved(shard, _shape(node), _shape(source), behind.num_ranks)


def _reordered(_: PartsBehind, node: Node, shard: Shard) -> Sources:
    source = _first(node)
    if node.target is aten.squeeze.default:
        yield source, None
        return
    dim = ORDERS[packet(node)](node, len(_shape(source)))[shard.dim]
    if dim >= 0:
        yield source, replace(shard, dim=dim)


def _slice(_: PartsBehind, node: Node, shard: Shard) -> Sources:
    """A slice must take the whole sharded dim."""
    source = _first(node)
    is_all = _shape(source)[shard.dim] == _shape(node)[shard.dim]
    yield source, shard if is_all else None


def _joined(node: Node) -> tuple[Sequence[Node], int]:
    """The operands of a stack or cat, and their dim in the result."""
    tensors: Any = node.args[0]
    return tensors, wrap(node.args[1] if len(node.args) > 1 else 0, len(_shape(node)))


def _stack(_: PartsBehind, node: Node, shard: Shard) -> Sources:
    tensors, at = _joined(node)
    for source in tensors:
        lies = replace(shard, dim=shard.dim - (at < shard.dim))
        yield source, None if at == shard.dim else lies


def _cat(_: PartsBehind, node: Node, shard: Shard) -> Sources:
    tensors, at = _joined(node)
    for source in tensors:
        yield source, None if at == shard.dim else shard


def _repeat_interleave(_: PartsBehind, node: Node, shard: Shard) -> Sources:
    """The sources of repeated scales, which must be sharded by whole groups."""
    source, repeats, *dims = node.args
    assert isinstance(source, Node)
    if not isinstance(repeats, int) or not dims:
        yield source, None
    elif wrap(dims[0], len(_shape(source))) != shard.dim:
        yield source, shard
    elif any(length % repeats for length in shard.chunks):
        yield source, None
    else:
        yield source, replace(shard, chunks=tuple(n // repeats for n in shard.chunks))


def _made(_: PartsBehind, __: Node, ___: Shard) -> Sources:
    """Memory that is filled has no source."""
    yield from ()


def _index(behind: PartsBehind, node: Node, shard: Shard) -> Sources:
    """table[g_idx]: shard the positions; or the table, together with positions within words."""
    table, indices = node.args[:2]
    assert isinstance(table, Node)
    assert isinstance(indices, (list, tuple))
    (dim, at), *others = ((i, at) for i, at in enumerate(indices) if isinstance(at, Node))
    count = len(_shape(at))
    if others:
        yield table, None
    elif not dim <= shard.dim < dim + count:
        yield table, replace(shard, dim=shard.dim - (count - 1) * (shard.dim > dim))
    elif moved_arange(at) is None and not behind.holds_words(table):
        behind.positions.add(at)
        yield at, replace(shard, dim=shard.dim - dim)
    else:
        behind.positions.add(at)
        yield table, replace(shard, dim=dim)
        yield at, replace(shard, dim=0)


_STEPS: Mapping[Any, Step] = {
    **dict.fromkeys(
        (aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten), _view
    ),
    **dict.fromkeys(ORDERS, _reordered),
    **dict.fromkeys((aten.expand, aten.broadcast_to), _broadcast),
    **dict.fromkeys(MADE, _made),
    aten.slice: _slice,
    aten.stack: _stack,
    **dict.fromkeys((aten.cat, aten.concat, aten.concatenate), _cat),
    aten.repeat_interleave: _repeat_interleave,
    aten.index: _index,
}
