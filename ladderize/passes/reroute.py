"""Reroute each converted branch to read the stream `staleness` blocks earlier.

    before   a1 = add(x0, h0(x0));  a2 = add(a1, h1(a1));  a3 = add(a2, h2(a2))
    after    a1 = add(x0, h0(x0));  a2 = add(a1, h1(x0));  a3 = add(a2, h2(a1))

A branch that leaves out some summands of the block before reads a partial sum:

    before   a1 = add(x0, add(routed, shared));   a2 = add(a1, h1(a1))
    after    a1 = add(x0, add(routed, shared));   r1 = add(x0, shared);   a2 = add(a1, h1(r1))

The skip path is unchanged. This is the only pass that changes the computed function
(arXiv 2501.06589, Section 3; staleness above 1 is this project's generalization).
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Node

from ladderize.graph import ops
from ladderize.graph.fake_values import new_fake
from ladderize.graph.higher_order import REGION
from ladderize.passes import PassResult
from ladderize.streams.block import Block
from ladderize.streams.joins import JoinedRead, StaleReads
from ladderize.streams.partial_reads import PartialRead


@dataclass(frozen=True)
class MovedRead:
    """The rerouted read of one block.

    Attributes:
        block: block of the standard graph.
        readers: nodes of its branch that read the anchor, in graph order.
        fresh: the anchor.
        stale: earlier stream value that they read instead, of the same shape and dtype.
    """

    block: Block
    readers: tuple[Node, ...]
    fresh: Node
    stale: Node


@dataclass(frozen=True)
class RerouteReads:
    """Reroute the reads of each stream's blocks.

    Attributes:
        reads: wanted reads of each stream.
        moved: rerouted reads, in graph order; a result of the pass.
    """

    reads: tuple[StaleReads, ...]
    moved: list[MovedRead] = field(default_factory=list, compare=False)
    preserves_values: ClassVar[bool] = False

    def __call__(self, gm: GraphModule) -> PassResult:
        position = {node: i for i, node in enumerate(gm.graph.nodes)}
        for reads in self.reads:
            joined = {read.block.index: read for read in reads.joined}
            partial = {read.block.index: read for read in reads.partial}
            for index in {**reads.sources, **joined, **partial}:
                block = reads.stream.blocks[index]
                readers = sorted(block.readers, key=position.__getitem__)
                if not readers:  # only a side input of the branch reads the anchor
                    continue
                if index in joined:
                    stale = _joined(gm, joined[index], before=readers[0])
                elif index in partial:
                    stale = _partial(gm, partial[index], before=readers[0])
                else:
                    path = reads.stream.blocks[reads.sources[index] : index + 1]
                    stale = _in_form_of_anchor(gm, path, before=readers[0])
                self.moved.append(MovedRead(block, tuple(readers), block.anchor, stale))
        for move in self.moved:
            for reader in move.readers:
                reader.replace_input_with(move.fresh, move.stale)
        return PassResult(changed=sum(len(move.readers) for move in self.moved))


def _in_form_of_anchor(gm: GraphModule, path: tuple[Block, ...], before: Node) -> Node:
    """The anchor of the first block of `path`, in the layout and dtype of the last one's."""
    stale, fresh = path[0].anchor, path[-1].anchor
    if ops.floating_shape(stale) != ops.floating_shape(fresh):
        for earlier, later in itertools.pairwise(path):
            for step in layout_steps(earlier.add, later.anchor):
                with gm.graph.inserting_before(before):
                    replayed = gm.graph.node_copy(step, _substitute(step, stale))
                stale = replayed
    return _cast(gm, stale, fresh, before)


def _cast(gm: GraphModule, value: Node, like: Node, before: Node) -> Node:
    """`value` in the dtype of `like`."""
    if _dtype(ops.value(value)) == _dtype(ops.value(like)):
        return value
    with gm.graph.inserting_before(before):
        cast = ops.cast(gm.graph, value, _dtype(ops.value(like)), like=like)
    cast.meta = dict(like.meta)
    return cast


def _partial(gm: GraphModule, read: PartialRead, before: Node) -> Node:
    """The sum without the summands in flight, in the form of the anchor."""
    total = read.before.block.add

    def call(step: Node, operands: Mapping[Node, Node]) -> Node:
        with gm.graph.inserting_before(before):
            made = gm.graph.node_copy(step, lambda node: operands.get(node, node))
        made.meta.pop(REGION, None)  # belongs to the region of the reader, not of the step
        new_fake(made, step)
        return made

    def add(value: Node, other: Node) -> Node:
        made = call(total, {})
        made.args = (_cast(gm, value, total, made), other)
        return made

    return read.build(lambda node: node, call, add)


def _joined(gm: GraphModule, read: JoinedRead, before: Node) -> Node:
    """The join of the earlier values of the streams."""
    instead = read.instead
    with gm.graph.inserting_before(before):
        joined = gm.graph.node_copy(read.join, lambda node: instead.get(node, node))
    joined.meta.pop(REGION, None)  # belongs to the region of the reader
    return joined


def layout_steps(add: Node, anchor: Node) -> list[Node]:
    """The layout ops among the cheap steps that lead from `add` to `anchor`, in order."""
    came_from: dict[Node, Node | None] = {anchor: None}
    stack = [anchor]
    while stack and add not in came_from:
        node = stack.pop()
        if ops.kind(node) in (ops.Kind.CHEAP, ops.Kind.LAYOUT, ops.Kind.ADD):
            for source in node.all_input_nodes:
                if source not in came_from:
                    came_from[source] = node
                    stack.append(source)
    steps = []
    step = came_from.get(add)
    while step is not None:
        if ops.kind(step) is ops.Kind.LAYOUT:
            steps.append(step)
        step = came_from[step]
    return steps


def _substitute(step: Node, value: Node) -> Any:
    """An argument mapper that replaces the tensor that `step` rearranges by `value`."""
    laid_out = next(source for source in step.all_input_nodes if ops.holds_tensor(source))
    return lambda node: value if node is laid_out else node


def _dtype(value: Any) -> torch.dtype | None:
    return value.dtype if isinstance(value, torch.Tensor) else None
