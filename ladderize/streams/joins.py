"""Find the blocks after a join of streams, and their stale reads from before the join.

    c2 = add(c1, f(c1));  x2 = add(x1, g(x1));  z = cat([c2, x2]);  y = add(z, h(z))
    h with staleness 1 reads                    cat([c1, x1])

An example is Flux: text and image streams join after their own last blocks. Each stream is as stale
as its own blocks would read it. A prompt or a class token, which no block wrote, has no earlier
value.
"""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch.fx import Node

from ladderize.graph import ops
from ladderize.graph.ops import Kind
from ladderize.graph.pieces import parts_of
from ladderize.streams.block import Block, End, Stream
from ladderize.streams.candidates import find_writer
from ladderize.streams.context import AnalysisContext
from ladderize.streams.left_out import Connectivity, LeftOut
from ladderize.streams.partial_reads import PartialRead

Steps = tuple[str, ...]
"""The names of the cheap ops from a sum to a value, the last op first."""


# ---- what is read, once blocks are chosen ------------------------------------------------------


@dataclass(frozen=True)
class JoinedRead:
    """A stale read from before a join: the concatenation of earlier values of the streams.

    Attributes:
        block: block that reads, the first after the join or a later one.
        join: concatenation that the segment begins with.
        ends: ends of the streams that it joins.
        staleness: number of blocks before the ends at which the streams are read.
        first: index of the first block after the join.
    """

    block: Block
    join: Node
    ends: tuple[End, ...]
    staleness: int
    first: int

    @property
    def instead(self) -> dict[Node, Node]:
        """For each end, the earlier value to join instead."""
        return {end.value: end.earlier(self.staleness) for end in self.ends}


@dataclass(frozen=True)
class StaleReads:
    """The stale reads of a stream's branches, in place of their anchors.

    Attributes:
        stream: stream of the standard model.
        sources: index of the block whose anchor is read, by the index of the reading block.
        joined: reads from before a join.
        partial: reads that leave out a part of the block before.
    """

    stream: Stream
    sources: Mapping[int, int]
    joined: tuple[JoinedRead, ...] = ()
    partial: tuple[PartialRead, ...] = ()

    @classmethod
    def of(
        cls, stream: Stream, chosen: Collection[int], connectivity: Connectivity
    ) -> "StaleReads":
        """The stale reads of the `chosen` blocks.

        Raises:
            LadderError: a part of a block's sum cannot be read separately.
        """
        sources = connectivity.sources(stream.blocks, chosen)
        parts = connectivity.parts(stream.blocks, chosen)
        partial = tuple(PartialRead.of(stream.blocks[i], part) for i, part in parts.items())
        if not connectivity.is_ladder:
            return cls(stream, sources, partial=partial)
        joined = tuple(_joined_reads(stream, chosen, connectivity.staleness))
        for read in joined:
            sources.pop(read.block.index, None)
        return cls(stream, sources, joined)

    def left_out(self) -> dict[int, tuple[LeftOut, ...]]:
        """For each block that reads stale, by its index, the parts that it leaves out."""
        blocks = self.stream.blocks
        found = {index: blocks[source:index] for index, source in self.sources.items()}
        for read in self.joined:
            index = read.block.index
            behind = (block for end in read.ends for block in end.left_out(read.staleness))
            found[index] = (*behind, *blocks[read.first : index])
        whole = {index: tuple(map(LeftOut, left)) for index, left in found.items()}
        parts = {
            r.block.index: (LeftOut(r.before.block, r.before.in_flight),) for r in self.partial
        }
        return whole | parts


def _joined_reads(stream: Stream, chosen: Collection[int], staleness: int) -> Iterator[JoinedRead]:
    for index, ends in stream.joins.items():
        first = stream.blocks[index]
        for block in stream.blocks[index : index + staleness]:
            if block.segment == first.segment and block.index in chosen:
                behind = staleness - (block.index - index)
                yield JoinedRead(block, first.anchor, ends, behind, index)


# ---- where streams are joined ------------------------------------------------------------------


def with_joins(context: AnalysisContext, streams: Sequence[Stream]) -> tuple[Stream, ...]:
    """`streams` with `joins` set for segments that begin with a join of streams."""
    ends = _Ends(context, streams)
    found = []
    for stream in streams:
        firsts = ((block.index, ends.joined_in(block.anchor)) for block in _first_blocks(stream))
        joins = {index: joined for index, joined in firsts if joined}
        found.append(replace(stream, joins=joins) if joins else stream)
    return tuple(found)


def _first_blocks(stream: Stream) -> Iterator[Block]:
    """The first blocks of segments without a prologue."""
    begun = {block.segment for block in stream.blocks if block.is_prologue}
    for block in stream.blocks:
        if block.segment not in begun:
            begun.add(block.segment)
            yield block


class _Ends:
    """The ends of streams, found from values that join them."""

    def __init__(self, context: AnalysisContext, streams: Sequence[Stream]) -> None:
        self.context = context
        self.by_add = {block.add: block for stream in streams for block in stream.blocks}
        self.stream_of = {block: stream for stream in streams for block in stream.blocks}

    def joined_in(self, value: Node) -> tuple[End, ...]:
        """The ends that `value` joins; empty unless all parts are ends, at least one of a block."""
        ends = [self._end(part) for part in (parts_of(value) or {}).values()]
        known = tuple(end for end in ends if end is not None)
        return known if len(known) == len(ends) and any(end.blocks for end in known) else ()

    def _end(self, value: Node) -> End | None:
        """`value` as the end of a run, if it has the form that a next block would read."""
        writer = find_writer(self.context, value, self.by_add)
        if writer is None:
            return None if self._is_written(value) else End(value)
        blocks = self.stream_of[writer].blocks[: writer.index + 1]
        run = [b for b in blocks if b.segment == writer.segment and not b.is_prologue]
        pairs = itertools.pairwise(run)
        forms = {self._steps(after.anchor, before.add) for before, after in pairs} or {()}
        if self._steps(value, writer.add) not in forms:
            return None
        alike = itertools.takewhile(lambda b: _form(b.anchor) == _form(value), reversed(run))
        found = tuple(alike)[::-1]
        return End(value, found) if found else None

    def _steps(self, value: Node, add: Node) -> Steps | None:
        """The cheap ops from `add` to `value`; None if there are other ops in between."""
        names = []
        node: Node | None = value
        while node is not None and node is not add:
            if ops.kind(node) not in (Kind.CHEAP, Kind.LAYOUT, Kind.ADD):
                return None
            names.append(ops.op_name(node))
            sources = self.context.carriers(node, value)
            node = next((s for s in sources if self.context.depends_on([s], add)), None)
        return None if node is None else tuple(names)

    def _is_written(self, value: Node) -> bool:
        """Whether cheap steps, of any size, lead from the sum of a block to `value`."""
        seen: set[Node] = set()
        stack = [value]
        while stack:
            node = stack.pop()
            if node in self.by_add:
                return True
            if node not in seen and ops.kind(node) in (Kind.CHEAP, Kind.LAYOUT, Kind.ADD):
                stack.extend(node.all_input_nodes)
            seen.add(node)
        return False


def _form(node: Node) -> tuple[object, ...]:
    return getattr(ops.value(node), "dtype", None), ops.floating_shape(node)
