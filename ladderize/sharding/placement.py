"""Placements of tensors over the ranks of a mesh axis, and local parts.

Shard(0, (4, 2, 2)) over 2 ranks:   q0 q1 q2 q3 | k0 k1 | v0 v1
                         rank 0 ->  q0 q1 k0 v0        rank 1 ->  q2 q3 k1 v1
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node


@dataclass(frozen=True)
class Replicate:
    """Every rank holds the whole value."""

    def __str__(self) -> str:
        return "replicated"


@dataclass(frozen=True)
class Whole:
    """Every rank computes the whole value for its part of a branch, such as a shared key head.

    Unlike `Replicate`, the gradient on a rank is partial.
    """

    def __str__(self) -> str:
        return "whole on each rank"


@dataclass(frozen=True)
class Partial:
    """Every rank holds a summand of the value."""

    def __str__(self) -> str:
        return "partial"


@dataclass(frozen=True)
class Shard:
    """Every rank holds a part of `dim`.

    Attributes:
        dim: sharded dim, not negative.
        chunks: lengths along `dim`, each divided evenly over the ranks. A plain weight has one
            chunk, a fused `[q|k|v]` has three.
        whole: indices of chunks that every rank holds whole instead.
        outer: number of repetitions of the chunks along `dim`, an int or a sympy expression:
            `batch` in a merged `[batch*heads]`. 1 for parameters.
        inner: number of entries of `dim` for each entry in `chunks`, a sympy expression: a symbolic
            `tokens` in a merged `[experts*tokens]`. Otherwise 1.
    """

    dim: int
    chunks: tuple[int, ...]
    whole: tuple[int, ...] = ()
    outer: Any = 1
    inner: Any = 1

    @property
    def size(self) -> int:
        """The total length of the chunks; with `outer` 1, that of the whole dim."""
        return sum(self.chunks)

    @property
    def is_one_stretch(self) -> bool:
        """Whether each rank's part is a contiguous range of the dim."""
        return len(self.chunks) == 1 and not self.whole

    def undivided(self, num_ranks: int) -> list[int]:
        """The indices of chunks that the number of ranks does not divide."""
        lengths = enumerate(self.chunks)
        return [i for i, n in lengths if n % num_ranks and i not in self.whole]

    def local_size(self, num_ranks: int, last: int | None = None) -> int:
        """The length of one rank's part of the first `last` chunks, or of all chunks."""
        return sum(
            length if i in self.whole else length // num_ranks
            for i, length in enumerate(self.chunks[:last])
        )

    def __str__(self) -> str:
        parts = (f"{n}{' whole' * (i in self.whole)}" for i, n in enumerate(self.chunks))
        repeated = "" if self.outer == 1 else f"{self.outer} times "
        return f"sharded on dim {self.dim} as {repeated}{'+'.join(parts)}"


@dataclass(frozen=True)
class OwnRows:
    """Every rank holds all entries of `dim`, but only those of its own experts are valid.

    An entry is a token paired with one of its experts, so it is valid on one rank. On the other
    ranks it is finite.

    Attributes:
        dim: dim of the entries, not negative.
        teller: node that maps entries to experts: the expert of each entry, or with `by_ends`, the
            end of each expert's entries.
        by_ends: whether the entries are sorted by experts, and `teller` holds the ends.
        num_experts: number of experts on all ranks.
        is_zero: whether the entries of other ranks' experts are 0.
    """

    dim: int
    teller: Node
    by_ends: bool
    num_experts: int
    is_zero: bool = False

    def __str__(self) -> str:
        return f"own rows of {self.num_experts} experts on dim {self.dim}, told by {self.teller}"


@dataclass(frozen=True)
class SharedHeads:
    """Every rank holds the one key head that its query heads read; neighbors hold the same.

    Attributes:
        dim: dim of the heads, not negative.
        heads: number of heads on all ranks.
        copies: number of ranks that hold each head.
        repeats: size of the next dim, along which each head is repeated for its query heads. A rank
            holds the repetitions for its own query heads. 1 before the repetition.
    """

    dim: int
    heads: int
    copies: int
    repeats: int = 1

    def __str__(self) -> str:
        return f"one of {self.heads} heads on dim {self.dim}, on {self.copies} ranks each"


@dataclass(frozen=True)
class Local:
    """Every rank holds the cache of its own heads, with the shape that the graph already has.

    Attributes:
        part: placement of the cached value; None if the graph only reads it.
    """

    part: Shard | None = None

    def __str__(self) -> str:
        return "of this rank's heads"


Placement = Replicate | Whole | Partial | Shard | OwnRows | SharedHeads | Local


@dataclass(frozen=True)
class IndexInput:
    """An integer input added to the sharded graph, with the entries that this rank selects.

    Attributes:
        name: name of the placeholder.
        rows: entries of each rank, all of the same length.
    """

    name: str
    rows: tuple[tuple[int, ...], ...]

    @classmethod
    def first_of(cls, size: int, num_ranks: int) -> "IndexInput":
        """The input with the first of `size` entries, divided evenly, that each rank holds."""
        share = size // num_ranks
        return cls(f"rank_first_of_{size}", tuple((rank * share,) for rank in range(num_ranks)))

    def tensor(self, rank: int, device: torch.device | str = "cpu") -> torch.Tensor:
        return torch.tensor(self.rows[rank], dtype=torch.int64, device=device)


def local_indices(shard: Shard, rank: int, num_ranks: int) -> list[range]:
    """For each chunk of `shard`, the entries of the whole dim that `rank` holds."""
    ranges, start = [], 0
    for i, length in enumerate(shard.chunks):
        share = length // num_ranks
        mine = range(start + rank * share, start + (rank + 1) * share)
        ranges.append(range(start, start + length) if i in shard.whole else mine)
        start += length
    return ranges


def local_shape(shape: Sequence[int], placement: Placement, num_ranks: int) -> list[int]:
    """The shape of one rank's part of a tensor of `shape`."""
    local = list(shape)
    if isinstance(placement, Shard):
        local[placement.dim] = placement.local_size(num_ranks)
    return local


def view_local(full: Tensor, placement: Shard, rank: int, num_ranks: int) -> Tensor:
    """`rank`'s part of `full`, a contiguous range, as a view."""
    (entries,) = local_indices(placement, rank, num_ranks)
    return full.narrow(placement.dim, entries.start, len(entries))


def take_local(full: Tensor, placement: Placement, rank: int, num_ranks: int) -> Tensor:
    """A copy of `rank`'s part of `full` (`full` itself if replicated)."""
    if not isinstance(placement, Shard):
        return full
    if placement.is_one_stretch:  # a wrapper subclass may only support slices
        view = view_local(full, placement, rank, num_ranks)
        return view.clone(memory_format=torch.contiguous_format)
    ranges = local_indices(placement, rank, num_ranks)
    return torch.cat([full.narrow(placement.dim, r.start, len(r)) for r in ranges], placement.dim)
