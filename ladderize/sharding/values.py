"""How a value inside a branch lies over the ranks and where that comes from; what rules may raise.

linear(x, w[96, 32])      Value(Shard(2, (96,)), origins (w, 0, 96))
its k, after a split      Value(Shard(2, (32,)), origins (w, 32, 32))
linear(that, w2, b)       Value(Partial(), biases (b,))
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Node

from ladderize.sharding.placement import (
    Local,
    OwnRows,
    Partial,
    Placement,
    Replicate,
    Shard,
    Whole,
)


@dataclass(frozen=True)
class Origin:
    """Where a sharded dim comes from: `length` entries from `start` of a parameter's output dim.

    In all there are `repeats` such runs, one after the other: the q, k and v of a fused weight that
    is viewed as `[3, heads, head_dim]`. A `length` of 0 says that positions cannot be traced back
    (after a `cat`).
    """

    parameter: Node
    start: int
    length: int
    repeats: int = 1


class Illegal(Exception):
    """No rule, or it cannot hold: the `culprits` must not be divided.

    A culprit is a parameter or, as an origin, the part of one (the k of a fused qkv).
    `is_consequence`: the branch was left without its other half; some other ban is the cause.
    """

    def __init__(
        self, reason: str, culprits: Iterable[Node | Origin], is_consequence: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_consequence = is_consequence
        self.culprits = tuple(dict.fromkeys(culprits))


class NeedsReduction(Exception):
    """A partial `value` reached an op that is not linear."""

    def __init__(self, value: Node) -> None:
        super().__init__(value.name)
        self.value = value


class NeedsCuts(Exception):
    """Parameters must be divided within finer chunks: parameter -> positions of cuts."""

    def __init__(self, cuts: Mapping[Node, frozenset[int]]) -> None:
        super().__init__(cuts)
        self.cuts = cuts


class NeedsLocal(Exception):
    """Memory that the branch makes must be made otherwise: `memory` as `value` says."""

    def __init__(self, memory: Node, value: "Value") -> None:
        super().__init__(memory.name)
        self.memory = memory
        self.value = value


class NeedsUnpacked(Exception):
    """What `weight` is computed from must be divided so that `weight` lies as `shard`.

    `is_of_outputs`: its entries along the divided dim are outputs of the product.
    """

    def __init__(self, weight: Node, shard: Shard, is_of_outputs: bool) -> None:
        super().__init__(weight.name)
        self.weight = weight
        self.shard = shard
        self.is_of_outputs = is_of_outputs


@dataclass(frozen=True)
class Value:
    """The placement of a tensor inside a branch.

    Attributes:
        placement: how it lies over the ranks.
        origins: sharded or whole: the parameters whose sharding made it so.
        biases: partial: parameters to be added once, after the reduction.
    """

    placement: Placement = field(default_factory=Replicate)
    origins: tuple[Origin, ...] = ()
    biases: tuple[Node, ...] = ()

    @property
    def is_replicated(self) -> bool:
        return isinstance(self.placement, Replicate)

    @property
    def is_whole(self) -> bool:
        return isinstance(self.placement, Whole)

    @property
    def is_partial(self) -> bool:
        return isinstance(self.placement, Partial)

    @property
    def shard(self) -> Shard | None:
        return self.placement if isinstance(self.placement, Shard) else None

    @property
    def local(self) -> Local | None:
        return self.placement if isinstance(self.placement, Local) else None

    @property
    def own(self) -> OwnRows | None:
        return self.placement if isinstance(self.placement, OwnRows) else None

    def at(
        self, dim: int, chunks: Sequence[int] | None = None, outer: Any = None, inner: Any = None
    ) -> "Value":
        """The same sharding seen at another dim, in other units."""
        assert isinstance(self.placement, Shard)
        shard = dataclasses.replace(self.placement, dim=dim)
        if chunks is not None:
            shard = dataclasses.replace(shard, chunks=tuple(chunks))
        if outer is not None:
            shard = dataclasses.replace(shard, outer=outer)
        if inner is not None:
            shard = dataclasses.replace(shard, inner=inner)
        return Value(shard, self.origins)


REPLICATED = Value()
Values = Value | tuple[Value, ...]


@dataclass(frozen=True)
class RowSelection:
    """Entries of `dim` that each rank takes out of a replicated operand; one row a rank.

    With `inner` they are taken out of every run of `inner` entries: of the heads in a merged
    `[batch*heads]`.
    """

    dim: int
    rows: tuple[tuple[int, ...], ...]
    inner: int = 0


@dataclass(frozen=True)
class LocalSize:
    """In rewritten arguments: the size that `node` computes, divided over the ranks."""

    node: Node

    def __str__(self) -> str:
        return f"local({self.node})"


def inner_cuts(chunks: Sequence[int]) -> frozenset[int]:
    """Where chunks meet: (4, 2, 2) -> {4, 6}."""
    return frozenset(sum(chunks[:i]) for i in range(1, len(chunks)))


def parts_of(value: "Value", chunk: int) -> list[Origin]:
    """The parameters' parts behind one chunk of a sharded value, as far as they are known."""
    shard = value.shard
    assert shard is not None
    first, length = sum(shard.chunks[:chunk]), shard.chunks[chunk]
    return [piece_of(origin, first, length, shard.size) for origin in value.origins]


def piece_of(origin: Origin, first: int, length: int, size: int) -> Origin:
    """What is behind `length` of `size` entries, from `first` on."""
    if origin.repeats > 1 and length != size:
        return Origin(origin.parameter, 0, 0)
    start = origin.start + first * origin.length // size
    return dataclasses.replace(origin, start=start, length=length * origin.length // size)
