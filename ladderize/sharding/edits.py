"""The edits that make a branch rank-local, as data: what `plan` writes and `passes.shard` does.

view := view(q, [2, 8, 4, 16])      Rewrite       a size, or a bias taken out
n -> linear by copy                 BranchEntry   a replicated value enters sharded computation
w -> linear ((4, False), (2, True)) MixedWeight   of a fused weight some chunks stay whole
reduce (p,) + (b,) into add         Reduction     one all-reduce, then the bias
own rows of grouped_mm              ExpertProduct the tokens of this rank's experts alone
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from ladderize.sharding.placement import OwnRows


@dataclass(frozen=True)
class Rewrite:
    """`node` becomes a call of `target` with `args` (a size in a view, a bias taken out).

    Attributes:
        kwargs: None: those that it has.
    """

    node: Node
    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        named = "" if self.kwargs is None else f" {dict(self.kwargs)}"
        return f"{self.node} := {self.target}{self.args}{named}"


@dataclass(frozen=True)
class BranchEntry:
    """Replicated `value` enters sharded computation at `user`.

    Attributes:
        needs_copy: gradients can flow, so the backward pass must sum them over the ranks.
        dim, index: take the entries that index input `index` names along `dim`; -1 and "" for all.
        inner: the entries are taken out of every run of so many, 0 for one run.
        share: take 1 / share of the value, to be summed over the ranks.
    """

    user: Node
    value: Node
    needs_copy: bool
    dim: int = -1
    index: str = ""
    inner: int = 0
    share: int = 1

    def __str__(self) -> str:
        taken = f" [{self.index} on dim {self.dim} in {self.inner}]" if self.index else ""
        shared = f" / {self.share}" if self.share > 1 else ""
        return f"{self.value} -> {self.user}{taken}{shared}{' by copy' if self.needs_copy else ''}"


@dataclass(frozen=True)
class MixedWeight:
    """`user` reads a `weight` of which some chunks are whole on each rank: `pieces` along `dim`.

    The gradients of the whole pieces are summed over the ranks in the backward pass.

    Attributes:
        pieces: (local length, whether it is whole), in order.
    """

    user: Node
    weight: Node
    dim: int
    pieces: tuple[tuple[int, bool], ...]

    def __str__(self) -> str:
        return f"{self.weight} -> {self.user} {self.pieces} on dim {self.dim}"


@dataclass(frozen=True)
class ExpertEdit:
    """`node` has to do with the experts that this rank holds, `count` of them.

    Attributes:
        rows: of which entries, and who tells whose they are.
        index: the index input that holds the number of this rank's first expert.
    """

    node: Node
    rows: OwnRows
    index: str
    count: int

    def __str__(self) -> str:
        return f"{type(self).__name__} {self.node}: {self.rows}; {self.count} from {self.index}"


@dataclass(frozen=True)
class ExpertProduct(ExpertEdit):
    """A grouped product of the entries of this rank's experts; the others become 0."""


@dataclass(frozen=True)
class ExpertLookup(ExpertEdit):
    """`weights[experts]` out of this rank's weights; what the others hold is one of these."""


@dataclass(frozen=True)
class OwnOnly(ExpertEdit):
    """`user` reads `node` with 0 in the place of the entries of other ranks' experts."""

    user: Node

    def __str__(self) -> str:
        return f"{self.user}: {super().__str__()}"


@dataclass(frozen=True)
class Reduction:
    """One all-reduce: of the sum of `partials`, followed by adding `biases`.

    With `into` the sum, completed by the replicated `others`, becomes the branch operand of that
    residual add; else it replaces the one partial value for all its readers.

    Attributes:
        skip: what the residual add `into` adds the branch to.
        unread: sums that nobody reads once `into` adds up all.
        is_sent: whether there is an all-reduce; without one each rank goes on with its own part.
        sends_skip: reduce the mean of the ranks' skips with the branches: `into` as a whole.
        copies_skip: let the skip enter by copy, as all ranks have it alike and the sum differs.
    """

    partials: tuple[Node, ...]
    biases: tuple[Node, ...] = ()
    others: tuple[Node, ...] = ()
    skip: Node | None = None
    into: Node | None = None
    unread: tuple[Node, ...] = ()
    is_sent: bool = True
    sends_skip: bool = False
    copies_skip: bool = False

    def __str__(self) -> str:
        how = "reduce" if self.is_sent else "keep"
        mean = f" + mean of {self.skip}" if self.sends_skip else ""
        return f"{how} {self.partials} + {self.biases} + {self.others}{mean} into {self.into}"
