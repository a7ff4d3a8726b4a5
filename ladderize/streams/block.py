"""The results of the analysis: blocks, and the streams that they form.

x[i+1] = T_i(x[i] + h_i(anchor_i))      one block: anchor, skip, branch, outputs, add
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from torch.fx import Node

from ladderize.errors import Blocker


@dataclass(frozen=True, eq=False)
class Block:
    """One residual add with its branch, `x[i+1] = T(x[i] + h(anchor))`.

    Attributes:
        index: index in its stream, from 0.
        anchor: stream value that the branch reads in the standard model.
        skip: operand of the sum that carries the stream past the branch.
        branch: nodes of `h` in graph order, from the reads of the anchor to `outputs`.
        outputs: operands of the sum that the branch computes (two in a parallel block).
        add: node that computes the sum of `skip` and `outputs`.
        partial_sums: intermediate adds before `add` if there are more than two operands.
        segment: number of its segment, from 0. Each block of a segment reads what the one before
            it wrote, in one shape and with no mixing op in between.
        layer: index in the module list that holds the block; None if it is in none.
        is_prologue: whether it is in no module list and comes before the first layer of its
            segment, such as a convolution that computes positions.
        module: path of the module that performs the add; "" if unknown.
    """

    index: int
    anchor: Node
    skip: Node
    branch: tuple[Node, ...]
    outputs: tuple[Node, ...]
    add: Node
    partial_sums: tuple[Node, ...] = ()
    segment: int = 0
    layer: int | None = None
    is_prologue: bool = False
    module: str = ""

    @cached_property
    def members(self) -> frozenset[Node]:
        return frozenset(self.branch)

    @property
    def readers(self) -> list[Node]:
        """The nodes of the branch that read the anchor directly."""
        return [user for user in self.anchor.users if user in self.members]


@dataclass(frozen=True, eq=False)
class End:
    """The end of a run of blocks, or a value that no block wrote.

    Attributes:
        value: value at the end.
        blocks: last blocks of the run with anchors of the shape and dtype of `value`; empty if no
            block wrote it.
    """

    value: Node
    blocks: tuple[Block, ...] = ()

    def earlier(self, staleness: int) -> Node:
        """The value of the run `staleness` blocks earlier."""
        left_out = self.left_out(staleness)
        return left_out[0].anchor if left_out else self.value

    def left_out(self, staleness: int) -> tuple[Block, ...]:
        """The blocks between that value and the end."""
        return self.blocks[-staleness:] if staleness else ()


@dataclass(frozen=True, eq=False)
class Stream:
    """A chain of blocks, each reading what the one before it wrote.

    Attributes:
        blocks: blocks in graph order.
        blockers: reasons why the chain must not be rewritten; empty for a ladder candidate.
        stale_blocks: later blocks with a branch that already reads an earlier value than the
            skip (their `anchor`). A stream with stale blocks is a ladder.
        joins: ends of the streams that a block's anchor concatenates, by the block's index.
    """

    blocks: tuple[Block, ...]
    blockers: tuple[Blocker, ...] = ()
    stale_blocks: tuple[Block, ...] = ()
    joins: Mapping[int, tuple[End, ...]] = field(default_factory=dict)


class Placed(Protocol):
    """The position of a block in its stream."""

    @property
    def index(self) -> int: ...

    @property
    def segment(self) -> int: ...

    @property
    def is_prologue(self) -> bool: ...


def stale_sources(
    blocks: Sequence[Placed], chosen: Collection[int], staleness: int
) -> dict[int, int]:
    """For each chosen block that reads stale, the index of the block whose anchor it reads.

    Block i reads anchor i - staleness, but no earlier than the start of its segment or the end of
    a prologue without chosen blocks.

    Args:
        blocks: blocks of one stream, in order.
        chosen: indices of the blocks to convert.
        staleness: number of blocks by which they read earlier.
    """
    joined = {block.segment for block in blocks if block.is_prologue and block.index in chosen}
    first_of_segment: dict[int, int] = {}
    sources = {}
    for block in blocks:
        if block.is_prologue and block.segment not in joined:
            continue
        first = first_of_segment.setdefault(block.segment, block.index)
        source = max(block.index - staleness, first)
        if block.index in chosen and source != block.index:
            sources[block.index] = source
    return sources
