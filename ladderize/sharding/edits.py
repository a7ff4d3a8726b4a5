"""The edits that make a branch rank-local, as data: `plan` creates and `passes.shard` applies them.

view := view(q, [2, 8, 4, 16])      Rewrite       a new size, or a bias removed
n -> linear by copy                 BranchEntry   a replicated value enters sharded computation
w -> linear ((4, False), (2, True)) MixedWeight   some chunks of a fused weight stay whole
reduce (p,) + (b,) into add         Reduction     one all-reduce, then the bias
own rows of grouped_mm              ExpertProduct only the tokens of this rank's experts
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from ladderize.sharding.placement import OwnRows


@dataclass(frozen=True)
class Rewrite:
    """`node` becomes a call of `target` with `args` (a new size in a view, a bias removed).

    Attributes:
        node: node to rewrite.
        target, args: new target and arguments.
        kwargs: new keyword arguments; None keeps the present ones.
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
        user: node that reads the value.
        value: the replicated value.
        needs_copy: whether gradients can flow, which the backward pass must sum over the ranks.
        dim, index: select the entries along `dim` that the index input `index` holds; -1 and ""
            select all.
        inner: select from every run of this many entries; 0 for a single run.
        share: divide the value by this number, as it will be summed over the ranks.
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
    """`user` reads a `weight` with some chunks whole on each rank: `pieces` along `dim`.

    The backward pass sums the gradients of the whole pieces over the ranks.

    Attributes:
        user: node that reads the weight.
        weight: the weight.
        dim: sharded dim.
        pieces: (local length, whether it is whole) of each piece, in order.
    """

    user: Node
    weight: Node
    dim: int
    pieces: tuple[tuple[int, bool], ...]

    def __str__(self) -> str:
        return f"{self.weight} -> {self.user} {self.pieces} on dim {self.dim}"


@dataclass(frozen=True)
class ExpertEdit:
    """`node` computes with the experts of this rank.

    Attributes:
        node: the node.
        rows: placement of its entries.
        index: index input with the index of this rank's first expert.
        count: number of experts on this rank.
    """

    node: Node
    rows: OwnRows
    index: str
    count: int

    def __str__(self) -> str:
        return f"{type(self).__name__} {self.node}: {self.rows}; {self.count} from {self.index}"


@dataclass(frozen=True)
class ExpertProduct(ExpertEdit):
    """A grouped product for the entries of this rank's experts; other entries become 0."""


@dataclass(frozen=True)
class ExpertLookup(ExpertEdit):
    """`weights[experts]` from this rank's weights; other experts get one of these weights."""


@dataclass(frozen=True)
class OwnOnly(ExpertEdit):
    """`user` reads `node` with the entries of other ranks' experts set to 0."""

    user: Node

    def __str__(self) -> str:
        return f"{self.user}: {super().__str__()}"


@dataclass(frozen=True)
class Reduction:
    """One all-reduce of the sum of `partials`, or of each, followed by adding `biases`.

    With `into`, the result plus the replicated `others` becomes the branch operand of that residual
    add. Without, it replaces the single partial value for all its readers.

    Attributes:
        partials: partial values to sum.
        biases: parameters to add after the all-reduce.
        others: replicated summands of the branch.
        skip: skip operand of the residual add.
        into: residual add.
        unread: intermediate sums that are unused when `into` adds all branches.
        is_joint: whether the partial values are not added to each other, but sent together; see
            `joint_sums`.
        is_sent: whether there is an all-reduce; without one, each rank continues with its own part.
        sends_skip: whether the mean of the ranks' skips is reduced with the branches, by reducing
            the result of `into`.
        copies_skip: whether the skip enters by copy, because it is the same on all ranks but the
            sum is not.
    """

    partials: tuple[Node, ...]
    biases: tuple[Node, ...] = ()
    others: tuple[Node, ...] = ()
    skip: Node | None = None
    into: Node | None = None
    unread: tuple[Node, ...] = ()
    is_joint: bool = False
    is_sent: bool = True
    sends_skip: bool = False
    copies_skip: bool = False

    def __str__(self) -> str:
        how = "reduce" if self.is_sent else "keep"
        how += " each of" if self.is_joint else ""
        mean = f" + mean of {self.skip}" if self.sends_skip else ""
        return f"{how} {self.partials} + {self.biases} + {self.others}{mean} into {self.into}"
