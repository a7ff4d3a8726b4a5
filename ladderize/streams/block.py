"""What the analysis finds: blocks, and the streams they make.

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
        index: place in its stream, from 0.
        anchor: the stream value that the branch reads in the standard model.
        skip: the operand of the sum that carries the stream past the branch.
        branch: the nodes of `h` in graph order, from the reads of the anchor to `outputs`.
        outputs: the operands of the sum that the branch produced (two in a parallel block).
        add: the node whose value is the sum of `skip` and `outputs`.
        partial_sums: the adds on the way to `add` when there are more than two operands.
        segment: number of the run of blocks, from 0, in which each reads what the one before it
            wrote: in one shape, with no mixing op in between.
        layer: index in the module list that holds the block, None when it is in none.
        is_prologue: whether it is in none and comes before the first layer of its segment, as a
            convolution that makes positions of the stream does.
        module: path of the module that performs the add, "" when unknown.
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
        """The nodes of the branch that read the anchor itself."""
        return [user for user in self.anchor.users if user in self.members]


@dataclass(frozen=True, eq=False)
class End:
    """What the last block of a run left, or a value that no block wrote.

    Attributes:
        value: the end.
        blocks: the last ones of the run, whose anchors are in the form of `value`; none if no
            block wrote it.
    """

    value: Node
    blocks: tuple[Block, ...] = ()

    def earlier(self, staleness: int) -> Node:
        """What the run had left that many blocks earlier."""
        left_out = self.left_out(staleness)
        return left_out[0].anchor if left_out else self.value

    def left_out(self, staleness: int) -> tuple[Block, ...]:
        """The blocks between that and the end."""
        return self.blocks[-staleness:] if staleness else ()


@dataclass(frozen=True, eq=False)
class Stream:
    """A chain of blocks, each reading what the one before it wrote.

    Attributes:
        blocks: in graph order.
        blockers: why this chain must not be rewritten; empty for a ladder candidate.
        stale_blocks: those behind them whose branch reads the stream before the skip already, as
            their `anchor`s say; a stream that has any is a ladder.
        joins: of each block, by its index, whose anchor joins the ends of streams: these ends.
    """

    blocks: tuple[Block, ...]
    blockers: tuple[Blocker, ...] = ()
    stale_blocks: tuple[Block, ...] = ()
    joins: Mapping[int, tuple[End, ...]] = field(default_factory=dict)


class Placed(Protocol):
    """A block, or what stands for one: where it is in its stream."""

    @property
    def index(self) -> int: ...

    @property
    def segment(self) -> int: ...

    @property
    def is_prologue(self) -> bool: ...


def stale_sources(
    blocks: Sequence[Placed], chosen: Collection[int], staleness: int
) -> dict[int, int]:
    """For each chosen block whose reads move: index of the block whose anchor it reads instead.

    Block i reads anchor i - staleness, but none before the start of its segment, nor before the
    end of a prologue of which no block is chosen.

    Args:
        blocks: of one stream, in order.
        chosen: indices of the blocks to convert.
        staleness: how many blocks earlier they read.
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
