"""Placements of values inside a branch with their origins, and the exceptions that rules raise.

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
    SharedHeads,
    Whole,
)


@dataclass(frozen=True)
class Origin:
    """The origin of a sharded dim: `length` entries from `start` of a parameter's output dim.

    There are `repeats` such consecutive runs, such as q, k and v of a fused weight that is viewed
    as `[3, heads, head_dim]`. A `length` of 0 means that positions cannot be traced back (after a
    `cat`).
    """

    parameter: Node
    start: int
    length: int
    repeats: int = 1


class Illegal(Exception):
    """There is no rule, or it does not apply: the `culprits` must not be sharded.

    A culprit is a parameter or, as an `Origin`, a part of one (the k of a fused qkv).
    `is_consequence` means that another ban, of the other half of the branch, is the cause.
    """

    def __init__(
        self, reason: str, culprits: Iterable[Node | Origin], is_consequence: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_consequence = is_consequence
        self.culprits = tuple(dict.fromkeys(culprits))


class NeedsReduction(Exception):
    """A partial `value` reaches an op that is not linear."""

    def __init__(self, value: Node) -> None:
        super().__init__(value.name)
        self.value = value


class NeedsCuts(Exception):
    """Parameters must be sharded in finer chunks: parameter -> positions of cuts."""

    def __init__(self, cuts: Mapping[Node, frozenset[int]]) -> None:
        super().__init__(cuts)
        self.cuts = cuts


class NeedsLocal(Exception):
    """Memory that the branch creates, `memory`, must have the placement `value`."""

    def __init__(self, memory: Node, value: "Value") -> None:
        super().__init__(memory.name)
        self.memory = memory
        self.value = value


class NeedsUnpacked(Exception):
    """The sources of `weight` must be sharded so that `weight` has the placement `shard`.

    `is_of_outputs` means that the sharded dim is the output dim of the product.
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
        placement: placement over the ranks.
        origins: for sharded and whole values, the sharded parameters that caused the placement.
        biases: for partial values, parameters to add once, after the reduction.
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

    @property
    def shared(self) -> SharedHeads | None:
        return self.placement if isinstance(self.placement, SharedHeads) else None

    def at(
        self, dim: int, chunks: Sequence[int] | None = None, outer: Any = None, inner: Any = None
    ) -> "Value":
        """The same sharding at another dim, with other chunks."""
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
    """The entries of `dim` that each rank selects from a replicated operand, one row per rank.

    With `inner`, they are selected from every run of `inner` entries, such as the heads in a merged
    `[batch*heads]`.
    """

    dim: int
    rows: tuple[tuple[int, ...], ...]
    inner: int = 0


@dataclass(frozen=True)
class LocalSize:
    """In rewritten arguments, the size that `node` computes, divided by the number of ranks."""

    node: Node

    def __str__(self) -> str:
        return f"local({self.node})"


def inner_cuts(chunks: Sequence[int]) -> frozenset[int]:
    """The positions between chunks: (4, 2, 2) -> {4, 6}."""
    return frozenset(sum(chunks[:i]) for i in range(1, len(chunks)))


def parts_of(value: "Value", chunk: int) -> list[Origin]:
    """The parts of parameters that one chunk of a sharded value comes from, if known."""
    shard = value.shard
    assert shard is not None
    first, length = sum(shard.chunks[:chunk]), shard.chunks[chunk]
    return [piece_of(origin, first, length, shard.size) for origin in value.origins]


def piece_of(origin: Origin, first: int, length: int, size: int) -> Origin:
    """The origin of `length` of `size` entries, starting at `first`."""
    if origin.repeats > 1 and length != size:
        return Origin(origin.parameter, 0, 0)
    start = origin.start + first * origin.length // size
    return dataclasses.replace(origin, start=start, length=length * origin.length // size)
