"""The summands that a block adds to its stream.

    x4 = add(x3, view(add(routed, shared)))      summands of block 3: routed and shared, each
                                                 through the view

The search goes back through layout ops, casts and scaling, which can be applied to each summand. A
norm or a dropout cannot, so its result is one summand.
"""

from collections.abc import Collection
from dataclasses import dataclass

from torch.fx import Node

from ladderize.errors import module_path
from ladderize.graph import ops
from ladderize.graph.collectives import collective_of
from ladderize.graph.ops import Kind
from ladderize.streams.block import Block

Step = tuple[Node, Node]
"""An op between a summand and the stream's sum, and the operand that comes from the summand."""


@dataclass(frozen=True)
class Summand:
    """A value that a block adds to the stream.

    Attributes:
        block: the block.
        value: the value.
        steps: ops from the value to the sum, in order; also applied in a partial sum.
    """

    block: Block
    value: Node
    steps: tuple[Step, ...] = ()

    @property
    def nodes(self) -> frozenset[Node]:
        """The nodes of the branch that compute the value."""
        seen: set[Node] = set()
        stack = [self.value]
        while stack:
            node = stack.pop()
            if node in self.block.members and node not in seen:
                seen.add(node)
                stack.extend(node.all_input_nodes)
        return frozenset(seen)

    @property
    def module(self) -> str:
        """The module of the last mixing op, collectives excluded, before the value, or ""."""
        inside = self.nodes
        mixing = (n for n in reversed(self.block.branch) if n in inside and _mixes(n))
        return next(filter(None, map(module_path, mixing)), "")


def summands_of(block: Block) -> tuple[Summand, ...]:
    """The summands of `block` in the order of the sum."""
    found = (leaf for output in block.outputs for leaf in leaves_of(output, block.members))
    return tuple(Summand(block, value, steps) for value, steps in found)


def leaves_of(output: Node, members: Collection[Node]) -> tuple[tuple[Node, tuple[Step, ...]], ...]:
    """The summands of `output`, each with its steps; `output` itself if it is not a sum.

    Args:
        output: value that a branch adds to the stream.
        members: nodes of the branch.
    """
    sums = output
    steps: tuple[Step, ...] = ()
    while (step := _step_back(sums, members)) is not None:
        sums, steps = step[1], (step, *steps)
    if sums not in members or not _is_plain_sum(sums):
        return ((output, ()),)
    return tuple(
        (value, (*inner, *steps))
        for operand in sums.all_input_nodes
        for value, inner in leaves_of(operand, members)
    )


def is_sum_of_summands(block: Block) -> bool:
    """Whether the sum of `block` adds its summands unscaled."""
    return all(map(_is_plain_sum, (block.add, *block.partial_sums)))


def _step_back(node: Node, members: Collection[Node]) -> Step | None:
    """`node` and the one operand that it rearranges, casts or scales; None for other nodes."""
    if node not in members or not ops.only_scales(node) or "dropout" in ops.op_name(node):
        return None
    made = [operand for operand in node.all_input_nodes if operand in members]
    if len(made) != 1 or _num_elements(made[0]) != _num_elements(node):
        return None
    return node, made[0]


def _is_plain_sum(node: Node) -> bool:
    shapes = [ops.floating_shape(operand) for operand in node.all_input_nodes]
    is_plain = ops.kind(node) is Kind.ADD and not node.kwargs and len(shapes) == 2
    return is_plain and None not in shapes and shapes == [ops.floating_shape(node)] * 2


def _num_elements(node: Node) -> object:
    shape = ops.floating_shape(node)
    return None if shape is None else ops.num_elements(shape)


def _mixes(node: Node) -> bool:
    return ops.kind(node) is Kind.MIX and not collective_of(node)
